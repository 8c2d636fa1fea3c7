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

/// Pieces below this size are copied: each may be a small part of a large buffer that it would keep alive.
const OWN: usize = 8 * 1024;

/// What a piece costs at least.
const LEAST: usize = 64;

/// The body as one attempt reads it. Until all of it is kept only the latest attempt may: the leg of an earlier one may
/// still hold its own.
pub struct Replay {
    shared: Arc<Mutex<Shared>>,
    attempt: u32,
    /// Kept pieces that this attempt has read.
    at: usize,
    /// Whether it has the trailers.
    told: bool,
    sent: u64,
}

struct Shared {
    source: Body,
    attempt: u32,
    kept: Vec<Bytes>,
    /// Whether the latest attempt has read all that is kept.
    read: bool,
    /// Whether an earlier attempt may read beside the latest.
    beside: bool,
    /// Whether there is no further attempt.
    last: bool,
    cost: usize,
    trailers: Option<HeaderMap>,
    ended: bool,
    /// More was read than is kept, or the source broke: it cannot be read from its beginning again.
    lost: bool,
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
        let (attempt, cost, read, beside, last, ended, lost) = (0, 0, true, false, false, false, false);
        let shared = Shared { source, attempt, kept, read, beside, last, cost, trailers, ended, lost, length, idle };
        let shared = Arc::new(Mutex::new(shared));
        (Self { shared: shared.clone(), attempt: 0, at: 0, told: false, sent: 0 }, Spare(shared))
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
    /// `None` if too much was read: then who sends it goes on.
    pub fn again(&self) -> Option<Replay> {
        let mut shared = self.0.lock();
        if shared.lost {
            return None;
        }
        shared.attempt += 1;
        (shared.read, shared.beside) = (shared.kept.is_empty(), shared.is_complete());
        Some(Replay { shared: self.0.clone(), attempt: shared.attempt, at: 0, told: false, sent: 0 })
    }
}

impl Drop for Spare {
    /// There is no further attempt: a stream that goes on for hours need not hold what it began with.
    fn drop(&mut self) {
        let mut shared = self.0.lock();
        shared.last = true;
        if shared.read {
            shared.forget_what_is_read();
        }
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
            self.keep(data);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.ended = true;
            self.trailers = Some(trailers.clone());
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_complete(&self) -> bool {
        !self.lost && (self.ended || self.source.is_end_stream())
    }

    /// Keeps a piece that the latest attempt has read, as long as there is room.
    fn keep(&mut self, data: &Bytes) {
        if self.lost {
            return;
        }
        self.cost += data.len().max(LEAST);
        if self.cost > KEPT {
            return self.forget();
        }
        // Most bodies are one piece, whose buffer nobody else needs.
        let shared = self.kept.is_empty() || data.len() >= OWN;
        self.kept.push(if shared { data.clone() } else { Bytes::copy_from_slice(data) });
    }

    /// To be called where the last attempt has read all that is kept.
    fn forget_what_is_read(&mut self) {
        if !self.beside {
            self.forget();
        }
    }

    fn forget(&mut self) {
        (self.lost, self.read) = (true, true);
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
        if let Some(data) = shared.kept.get(this.at).cloned() {
            this.at += 1;
            if shared.attempt == this.attempt {
                shared.read = this.at == shared.kept.len();
            }
            this.sent += data.len() as u64;
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if shared.ended {
            let trailers = if std::mem::replace(&mut this.told, true) { None } else { shared.trailers.clone() };
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        if shared.last {
            shared.forget_what_is_read();
        }
        let frame = ready!(shared.poll_source(cx));
        this.at = shared.kept.len();
        match frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            Some(data) => this.sent += data.len() as u64,
            // Trailers are the end: this attempt has them.
            None => this.told = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        let over = shared.trailers.is_none() && (shared.ended || shared.source.is_end_stream());
        let read_all = shared.lost || self.at >= shared.kept.len();
        // An earlier attempt that may read no more has come to no end, or its leg would take what it sent for the whole.
        let reads = shared.attempt == self.attempt || shared.is_complete();
        reads && (self.told || (over && read_all))
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

    /// A large buffer that tells when nobody holds a part of it any more.
    struct Large {
        bytes: Vec<u8>,
        _alive: Arc<()>,
    }

    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &self.bytes
        }
    }

    #[tokio::test]
    async fn small_pieces_keep_no_large_buffers_and_their_number_has_an_end() {
        let (first, spare) = Replay::new(Body::Empty);
        let alive = Arc::new(());
        let piece = || Bytes::from_owner(Large { bytes: vec![b'x'; KEPT], _alive: alive.clone() }).slice(..1);
        for n in 1..=KEPT / LEAST {
            first.shared.lock().keep(&piece());
            assert_eq!(Arc::strong_count(&alive), 2, "after {n}");
        }
        assert!(spare.is_whole());
        assert_eq!(text(spare.again().unwrap()).await.unwrap().len(), KEPT / LEAST);
        first.shared.lock().keep(&piece());
        assert!(!spare.is_whole());
    }

    #[tokio::test]
    async fn without_a_further_attempt_nothing_is_kept() {
        let (mut first, spare) = Replay::new(Body::text("hello"));
        first.frame().await.unwrap().unwrap();
        let second = spare.again().unwrap();
        drop(spare);
        assert_eq!(text(second).await.unwrap(), "hello", "what it has not read yet is kept");
        let (mut first, spare) = Replay::new(Body::text("hello"));
        first.frame().await.unwrap().unwrap();
        drop(spare);
        assert!(first.shared.lock().kept.is_empty() && first.frame().await.is_none());
    }

    #[tokio::test]
    async fn who_goes_on_sending_is_not_disturbed_by_a_spare_that_is_not_whole() {
        let (mut first, spare) = Replay::new(Body::text(vec![b'x'; KEPT + 1]));
        first.frame().await.unwrap().unwrap();
        assert!(spare.again().is_none());
        assert!(first.frame().await.is_none());
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
