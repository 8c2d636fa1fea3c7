//! Pours a body into an HTTP/2 stream: a frame is asked for only once the receiver has room, so nothing piles up.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;

use super::body::BodyError;

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

/// Pours `body` and its trailers into `stream` and ends it. Dropping the future resets the stream with CANCEL.
///
/// # Errors
/// Which side broke; the stream is reset then.
pub async fn pour<B>(stream: SendStream<Bytes>, mut body: B, idle: Duration) -> Result<(), PourError>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    let mut stream = Resetting { stream, done: false };
    loop {
        room(&mut stream.stream, idle).await?;
        let frame = poll_fn(|cx| poll_frame(cx, &mut stream.stream, &mut body)).await?;
        let Some(frame) = frame else { break };
        match frame {
            Ok(frame) => match frame.into_data() {
                Ok(data) => {
                    let end = body.is_end_stream();
                    send(&mut stream.stream, data, end, idle).await?;
                    if end {
                        stream.done = true;
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        stream.done = true;
                        return stream.stream.send_trailers(trailers).map_err(PourError::Stream);
                    }
                }
            },
            Err(error) => {
                stream.stream.send_reset(reset_reason(&error));
                stream.done = true;
                return Err(PourError::Body(error));
            }
        }
    }
    stream.done = true;
    stream.stream.send_data(Bytes::new(), true).map_err(PourError::Stream)
}

/// What the receiver of a broken body is told: an HTTP/2 sender's own word, else CANCEL for what was given up.
fn reset_reason(error: &BodyError) -> Reason {
    match error {
        BodyError::Http2(error) => error.reason().filter(|r| *r != Reason::NO_ERROR).unwrap_or(Reason::INTERNAL_ERROR),
        BodyError::Idle | BodyError::Deadline | BodyError::Forced => Reason::CANCEL,
        BodyError::Http1(_) | BodyError::Short | BodyError::TooLarge => Reason::INTERNAL_ERROR,
    }
}

/// A stream that is reset when it is dropped before its end.
struct Resetting {
    stream: SendStream<Bytes>,
    done: bool,
}

impl Drop for Resetting {
    fn drop(&mut self) {
        if !self.done {
            self.stream.send_reset(Reason::CANCEL);
        }
    }
}

/// The next frame, or the receiver's reset, whichever is first.
#[expect(clippy::type_complexity, reason = "a poll of an optional frame is what it is")]
fn poll_frame<B>(
    cx: &mut Context<'_>,
    stream: &mut SendStream<Bytes>,
    body: &mut B,
) -> Poll<Result<Option<Result<http_body::Frame<Bytes>, BodyError>>, PourError>>
where
    B: HttpBody<Data = Bytes, Error = BodyError> + Unpin,
{
    if let Poll::Ready(reset) = stream.poll_reset(cx) {
        return Poll::Ready(Err(PourError::Stream(match reset {
            Ok(reason) => reason.into(),
            Err(error) => error,
        })));
    }
    Pin::new(body).poll_frame(cx).map(Ok)
}

/// Waits until the receiver has room for at least one byte, for `idle` at most.
async fn room(stream: &mut SendStream<Bytes>, idle: Duration) -> Result<usize, PourError> {
    if stream.capacity() == 0 {
        stream.reserve_capacity(1);
        // No timer is made where there is room at once, which is the rule.
        let now = poll_fn(|cx| Poll::Ready(poll_room(cx, stream))).await;
        match now {
            Poll::Ready(room) => room?,
            Poll::Pending => tokio::time::timeout(idle, poll_fn(|cx| poll_room(cx, stream)))
                .await
                .map_err(|_| PourError::Stalled)??,
        };
    }
    Ok(stream.capacity())
}

fn poll_room(cx: &mut Context<'_>, stream: &mut SendStream<Bytes>) -> Poll<Result<usize, PourError>> {
    loop {
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(0)) => {}
            Some(room) => return Poll::Ready(room.map_err(PourError::Stream)),
            None => {
                let reset = ready!(stream.poll_reset(cx)).map_or_else(|error| error, Into::into);
                return Poll::Ready(Err(PourError::Stream(reset)));
            }
        }
    }
}

/// Sends one frame's data in the portions that the receiver has room for.
async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes, end: bool, idle: Duration) -> Result<(), PourError> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let room = room(stream, idle).await?.min(data.len());
        let part = data.split_to(room);
        let last = end && data.is_empty();
        stream.send_data(part, last).map_err(PourError::Stream)?;
        if last {
            return Ok(());
        }
    }
    if end { stream.send_data(Bytes::new(), true).map_err(PourError::Stream) } else { Ok(()) }
}
