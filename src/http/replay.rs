//! A request's body that can be sent again: what was read of it is kept up to a bound, and each attempt reads it from
//! its beginning before it goes on with what is still to come.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::{Body, BodyError};

/// Bytes of a body that are kept.
pub const KEPT: usize = 64 * 1024;

/// The body as one attempt reads it. Until all of it is kept only the latest attempt may: the leg of an earlier one may
/// still hold its own.
pub struct Replay {
    shared: Arc<Mutex<Shared>>,
    attempt: u32,
    /// Pieces that this attempt has read.
    at: usize,
    sent: u64,
}

struct Shared {
    source: Body,
    attempt: u32,
    kept: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More was read than is kept, or the source broke: it cannot be read from its beginning again.
    lost: bool,
    /// Nobody can ask for another attempt any more: what was read once need not be kept.
    last: bool,
    /// Its length, where that is known.
    length: Option<u64>,
    idle: Option<std::time::Duration>,
}

/// Gives the body out again.
pub struct Spare(Arc<Mutex<Shared>>);

impl Replay {
    /// Wraps `source` for the first attempt; the spare gives it to later ones.
    pub fn new(source: Body) -> (Self, Spare) {
        let (length, idle) = (source.size_hint().exact(), source.idle());
        let (kept, trailers) = (Vec::new(), None);
        let (ended, lost, last) = (false, false, false);
        let shared = Shared { source, attempt: 0, kept, bytes: 0, trailers, ended, lost, last, length, idle };
        let shared = Arc::new(Mutex::new(shared));
        (Self { shared: shared.clone(), attempt: 0, at: 0, sent: 0 }, Spare(shared))
    }

    /// How long it may stand still, where it is under guard.
    pub fn idle(&self) -> Option<std::time::Duration> {
        self.shared.lock().idle
    }

    #[cfg(test)]
    pub(crate) fn kept(&self) -> usize {
        self.shared.lock().kept.iter().map(Bytes::len).sum()
    }
}

impl Spare {
    /// Whether the whole body can be sent again.
    pub fn is_whole(&self) -> bool {
        !self.0.lock().lost
    }

    /// Whether the whole body was read already and is kept, so that several attempts can read it at the same time.
    pub fn is_complete(&self) -> bool {
        self.0.lock().is_complete()
    }

    /// The body for another attempt; those that were given out before end with an error unless the body is complete.
    /// `None` if too much was read.
    pub fn again(&self) -> Option<Replay> {
        let mut shared = self.0.lock();
        shared.attempt += 1;
        (!shared.lost).then(|| Replay { shared: self.0.clone(), attempt: shared.attempt, at: 0, sent: 0 })
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        self.0.lock().last = true;
    }
}

impl Shared {
    /// The next frame of the source, kept as long as there is room.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = match ready!(Pin::new(&mut self.source).poll_frame(cx)) {
            None => {
                self.ended = true;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.forget();
                return Poll::Ready(Some(Err(error)));
            }
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref() {
            self.bytes += data.len();
            if self.bytes > KEPT {
                self.forget();
            } else if !self.lost {
                self.kept.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.ended = true;
            self.trailers = Some(trailers.clone());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_complete(&self) -> bool {
        !self.lost && (self.ended || self.source.is_end_stream())
    }

    fn forget(&mut self) {
        self.lost = true;
        self.kept = Vec::new();
    }
}

impl HttpBody for Replay {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut shared = this.shared.lock();
        if shared.attempt != this.attempt && !shared.is_complete() {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let kept = if shared.lost { None } else { shared.kept.get(this.at).cloned() };
        if let Some(data) = kept {
            this.at += 1;
            this.sent += data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if shared.ended {
            let fresh = this.at <= shared.kept.len();
            this.at = usize::MAX;
            let trailers = shared.trailers.clone().filter(|_| fresh);
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if shared.last && !shared.is_complete() {
            // Two attempts read side by side only what is complete: nobody else needs what this one has read.
            shared.forget();
        }
        let frame = ready!(shared.poll_source(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {
                this.at += 1;
                this.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
            }
            // Trailers are the end: this attempt has them.
            _ => this.at = usize::MAX,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        let read_all = self.at >= shared.kept.len() || shared.lost;
        self.at == usize::MAX
            || (read_all && shared.trailers.is_none() && (shared.ended || shared.source.is_end_stream()))
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.shared.lock().length;
        length.map_or_else(SizeHint::default, |length| SizeHint::with_exact(length.saturating_sub(self.sent)))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn text(body: Replay) -> Result<String, BodyError> {
        Ok(String::from_utf8_lossy(&body.collect().await?.to_bytes()).into_owned())
    }

    #[tokio::test]
    async fn every_attempt_reads_it_from_the_beginning() {
        let (first, spare) = Replay::new(Body::text("hello"));
        assert_eq!((first.size_hint().exact(), first.is_end_stream()), (Some(5), false));
        assert_eq!(text(first).await.unwrap(), "hello");
        for _ in 0..3 {
            let again = spare.again().unwrap();
            assert_eq!((again.size_hint().exact(), again.is_end_stream()), (Some(5), false));
            assert_eq!(text(again).await.unwrap(), "hello");
        }
    }

    #[tokio::test]
    async fn an_earlier_attempt_reads_no_more() {
        let (first, spare) = Replay::new(Body::text("hello"));
        let second = spare.again().unwrap();
        assert!(matches!(text(first).await, Err(BodyError::Superseded)));
        assert_eq!(text(second).await.unwrap(), "hello");
    }

    #[tokio::test]
    async fn attempts_read_a_complete_body_side_by_side() {
        let (mut first, spare) = Replay::new(Body::text("hello"));
        assert!(!spare.is_complete());
        assert!(first.frame().await.unwrap().is_ok());
        assert!(spare.is_complete());
        let second = spare.again().unwrap();
        assert_eq!((text(first).await.unwrap(), text(second).await.unwrap()), (String::new(), "hello".into()));
        let (long, spare) = Replay::new(Body::text(vec![b'x'; KEPT + 1]));
        text(long).await.unwrap();
        assert!(!spare.is_complete());
    }

    #[tokio::test]
    async fn what_is_more_than_is_kept_is_sent_once() {
        for (length, again) in [(KEPT, true), (KEPT + 1, false)] {
            let (first, spare) = Replay::new(Body::text(vec![b'x'; length]));
            assert!(spare.is_whole());
            assert_eq!(text(first).await.unwrap().len(), length);
            assert_eq!((spare.is_whole(), spare.again().is_some()), (again, again), "{length}");
        }
    }
}
