//! Pours a body into an HTTP/2 stream: a frame is asked for only once the receiver has room, so nothing piles up.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http_body::Body as HttpBody;

use super::body::BodyError;
use super::unsent::Sending;

/// Why a body was not poured to its end.
#[derive(Debug, thiserror::Error)]
pub enum PourError {
    /// The body itself broke; the stream was reset.
    #[error("the body broke: {0}")]
    Body(BodyError),
    /// The receiver's connection broke, or it reset the stream.
    #[error("the receiver is gone: {0}")]
    Stream(h2::Error),
    /// The receiver gave no room for too long; the stream was reset.
    #[error("the receiver took nothing for too long")]
    Stalled,
}

/// Pours `body` and its trailers into `sending` and ends it. Dropping the future resets the stream with CANCEL.
///
/// # Errors
/// Which side broke; the stream is reset then.
pub async fn pour<B>(sending: Sending, mut body: B, idle: Duration) -> Result<(), PourError>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut to = Resetting { sending, done: false };
    loop {
        room(&mut to.sending, 1, idle).await?;
        let frame = poll_fn(|cx| match to.sending.is_full() {
            // It became full while the body stood still: what came meanwhile is left where it is.
            true => Poll::Ready(None),
            false => poll_frame(cx, &mut to.sending, &mut body).map(Some),
        });
        let Some(frame) = frame.await.transpose()? else { continue };
        let Some(frame) = frame else { break };
        match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => {
                    let end = body.is_end_stream();
                    send(&mut to.sending, data, end, idle).await?;
                    if end {
                        to.done = true;
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        // Refused, they leave the stream open.
                        to.sending.stream.send_trailers(trailers).map_err(PourError::Stream)?;
                        to.done = true;
                        return Ok(());
                    }
                }
            },
            Err(error) => {
                to.sending.stream.send_reset(reset_reason(&error));
                to.done = true;
                return Err(PourError::Body(error));
            }
        }
    }
    to.done = true;
    to.sending.send(Bytes::new(), true).map_err(PourError::Stream)
}

/// What the receiver of a broken body is told: an HTTP/2 sender's own word, else CANCEL for what was given up.
fn reset_reason(error: &BodyError) -> Reason {
    match error {
        BodyError::Http2(error) => error.reason().filter(|r| *r != Reason::NO_ERROR).unwrap_or(Reason::INTERNAL_ERROR),
        BodyError::Idle | BodyError::Deadline | BodyError::Forced | BodyError::Superseded => Reason::CANCEL,
        BodyError::Http1(_) | BodyError::Short | BodyError::TooLarge => Reason::INTERNAL_ERROR,
    }
}

/// A stream that is reset when it is dropped before its end.
struct Resetting {
    sending: Sending,
    done: bool,
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if !self.done {
            self.sending.stream.send_reset(Reason::CANCEL);
        }
    }
}

/// The next frame, or the receiver's reset, whichever is first.
#[expect(clippy::type_complexity, reason = "a poll of an optional frame is what it is")]
fn poll_frame<B>(
    cx: &mut Context<'_>,
    sending: &mut Sending,
    body: &mut B,
) -> Poll<Result<Option<Result<http_body::Frame<Bytes>, BodyError>>, PourError>>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    if let Poll::Ready(reset) = poll_reset(cx, sending) {
        return Poll::Ready(Err(reset));
    }
    Pin::new(body).poll_frame(cx).map(Ok)
}

fn poll_reset(cx: &mut Context<'_>, sending: &mut Sending) -> Poll<PourError> {
    sending.stream.poll_reset(cx).map(|reset| PourError::Stream(reset.map_or_else(|error| error, Into::into)))
}

/// Waits until the receiver has room for at least one of `most` bytes, for `idle` at most; gives how many.
async fn room(sending: &mut Sending, most: usize, idle: Duration) -> Result<usize, PourError> {
    sending.stream.reserve_capacity(most);
    // No timer is made where there is room at once, which is the rule.
    match poll_fn(|cx| Poll::Ready(poll_room(cx, sending))).await {
        Poll::Ready(room) => room,
        Poll::Pending => {
            let room = poll_fn(|cx| poll_room(cx, sending));
            tokio::time::timeout(idle, room).await.unwrap_or(Err(PourError::Stalled))
        }
    }
}

fn poll_room(cx: &mut Context<'_>, sending: &mut Sending) -> Poll<Result<usize, PourError>> {
    match ready!(sending.poll_room(cx)) {
        Some(room) => Poll::Ready(room.map_err(PourError::Stream)),
        None => poll_reset(cx, sending).map(Err),
    }
}

/// Sends one frame's data in the portions that the receiver has room for.
async fn send(sending: &mut Sending, mut data: Bytes, end: bool, idle: Duration) -> Result<(), PourError> {
    while !data.is_empty() {
        let room = room(sending, data.len(), idle).await?.min(data.len());
        let part = data.split_to(room);
        let last = end && data.is_empty();
        sending.send(part, last).map_err(PourError::Stream)?;
        if last {
            return Ok(());
        }
    }
    if end { sending.send(data, true).map_err(PourError::Stream) } else { Ok(()) }
}
