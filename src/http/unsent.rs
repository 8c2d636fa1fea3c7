//! How many bytes of bodies may lie in h2 until one connection takes them: whoever does not read stops its own streams,
//! however much window it gave them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::SendStream;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

/// What all streams of a connection may have unsent before they have to wait. Above it goes one frame for each data
/// thread at most. More than one stream's send buffer, so that a single fast stream never waits for it.
pub const MOST: usize = 256 * 1024;

/// Streams that wait go on once this little is left; the gap keeps every written frame from waking all of them.
const LOW: usize = MOST / 2;

/// Set in the state from the moment the bound is reached until little is left, for newcomers as for those that wait.
const FULL: usize = 1 << (usize::BITS - 1);

/// The unsent bytes of one connection.
#[derive(Debug, Default)]
pub struct Unsent {
    state: AtomicUsize,
    freed: Arc<Notify>,
}

impl Unsent {
    /// A connection without any.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes charge of `bytes` until they are written or dropped.
    fn hold(self: &Arc<Self>, bytes: Bytes) -> Piece {
        let held = bytes.len();
        if held == 0 {
            return Piece::from(bytes);
        }
        let step = |state: usize| {
            let now = (state & !FULL) + held;
            Some(now | if now >= MOST { FULL } else { state & FULL })
        };
        // Never fails: the step always gives a value.
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, step);
        Piece { bytes, held, unsent: Some(self.clone()) }
    }

    fn free(&self, held: usize) {
        let left = |state: usize| (state & !FULL).saturating_sub(held);
        let step = |state: usize| Some(left(state) | if left(state) < LOW { 0 } else { state & FULL });
        if let Ok(before) = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, step)
            && before & FULL != 0
            && left(before) < LOW
        {
            self.freed.notify_waiters();
        }
    }

    fn is_full(&self) -> bool {
        self.state.load(Ordering::Acquire) & FULL != 0
    }
}

/// Bytes on their way through h2, counted until they are gone.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    held: usize,
    unsent: Option<Arc<Unsent>>,
}

impl From<Bytes> for Piece {
    /// Bytes that nobody counts.
    fn from(bytes: Bytes) -> Self {
        Self { bytes, held: 0, unsent: None }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(unsent) = &self.unsent {
            unsent.free(self.held);
        }
    }
}

/// The sending half of a stream, and its connection's count.
pub struct Sending {
    /// What the frames go into.
    pub stream: SendStream<Piece>,
    unsent: Arc<Unsent>,
    /// Made only when the stream has to wait.
    freed: Option<Pin<Box<OwnedNotified>>>,
}

impl Sending {
    /// A stream of the connection that `unsent` belongs to.
    pub fn new(stream: SendStream<Piece>, unsent: &Arc<Unsent>) -> Self {
        Self { stream, unsent: unsent.clone(), freed: None }
    }

    /// Sends `bytes`, for which there was room, and counts them until they are written. What is only in hand is not
    /// counted: it may wait for window, which must not be its neighbours' trouble.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn send(&mut self, bytes: Bytes, end: bool) -> Result<(), h2::Error> {
        self.stream.send_data(self.unsent.hold(bytes), end)
    }

    /// Ready when the connection takes bytes, with the window for at least one; `None` when the stream is closed.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<usize, h2::Error>>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                closed => return Poll::Ready(closed),
            }
        }
        if self.poll_turn(cx).is_pending() {
            // A stream that was reset need not wait for its neighbours.
            return self.stream.poll_reset(cx).map(|_| None);
        }
        Poll::Ready(Some(Ok(self.stream.capacity())))
    }

    /// Whether the connection takes no more for now.
    pub fn is_full(&self) -> bool {
        self.unsent.is_full()
    }

    fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.unsent.is_full() {
            let unsent = &self.unsent;
            let freed = self.freed.get_or_insert_with(|| Box::pin(unsent.freed.clone().notified_owned()));
            // It hears of everything since it was made; only then is a second look certain to miss nothing.
            if !unsent.is_full() {
                break;
            }
            ready!(freed.as_mut().poll(cx));
            self.freed = None;
        }
        self.freed = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(unsent: &Unsent) -> usize {
        unsent.state.load(Ordering::Acquire) & !FULL
    }

    #[test]
    fn bytes_count_until_they_are_dropped() {
        let unsent = Unsent::new();
        let mut piece = unsent.hold(Bytes::from_static(b"0123456789"));
        let other = unsent.hold(Bytes::from_static(b"x"));
        // What was read of a piece is not free before all of it is.
        piece.advance(5);
        assert_eq!((piece.chunk(), held(&unsent)), (&b"56789"[..], 11));
        drop(piece);
        assert_eq!(held(&unsent), 1);
        drop((other, Piece::from(Bytes::from_static(b"uncounted"))));
        assert_eq!(held(&unsent), 0);
    }

    #[tokio::test]
    async fn a_full_connection_is_full_until_half_is_gone_and_then_wakes_all() {
        let unsent = Unsent::new();
        let half = Bytes::from(vec![0; MOST / 2]);
        let pieces = [unsent.hold(half.clone()), unsent.hold(half.slice(1..)), unsent.hold(half.slice(..1))];
        assert!(unsent.is_full());
        let waiting = [unsent.freed.clone().notified_owned(), unsent.freed.clone().notified_owned()];
        let [first, second, third] = pieces;
        drop(third);
        drop(first);
        // One byte less than half is left: the last drop crossed the line.
        assert!(!unsent.is_full());
        for freed in waiting {
            freed.await;
        }
        drop(second);
        assert_eq!(held(&unsent), 0);
    }
}
