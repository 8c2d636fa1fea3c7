//! A caller's connection with its clocks: idle between requests, from the first byte of a head to its end, and
//! unread answers. One timer per connection, moved only when it fires too early.
//!
//! hyper's own head timer is not used: it also runs while a connection is idle and would close kept-alive ones.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::io::Resets;

/// What the connection is doing. `Idle -> Head -> Busy -> Idle`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Between two requests.
    Idle = 0,
    /// A head has begun and not ended.
    Head = 1,
    /// A request is being served; other clocks run.
    Busy = 2,
}

/// Which clock ended the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Expired {
    /// None did.
    No = 0,
    /// No request came.
    Idle = 1,
    /// A head was begun and not finished.
    Head = 2,
    /// The caller did not read its answer.
    Write = 3,
    /// No clock: it is to end by a reset, and nothing more is written.
    Cut = 4,
}

/// How long each clock runs.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Between two requests.
    pub idle: Duration,
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// While nothing of an answer can be written.
    pub write: Duration,
}

/// The part of the clocks that the request path sets; shared by the stream and the corridor.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    phase: AtomicU8,
    expired: AtomicU8,
    /// Milliseconds after `start` at which the connection last became idle.
    idle_since: AtomicU64,
}

impl Clock {
    /// A connection that is idle since `now`.
    pub fn new(now: Instant) -> Arc<Self> {
        Arc::new(Self {
            start: now,
            phase: AtomicU8::new(Phase::Idle as u8),
            expired: AtomicU8::new(Expired::No as u8),
            idle_since: AtomicU64::new(0),
        })
    }

    /// A request is being served from here on.
    pub fn busy(&self) {
        self.phase.store(Phase::Busy as u8, Ordering::Relaxed);
    }

    /// The request that was served ended at `now`.
    pub fn idle(&self, now: Instant) {
        let since = u64::try_from(now.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX);
        self.idle_since.store(since, Ordering::Relaxed);
        self.phase.store(Phase::Idle as u8, Ordering::Relaxed);
    }

    /// What the connection is doing.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        }
    }

    /// Which clock ended the connection.
    pub fn expired(&self) -> Expired {
        match self.expired.load(Ordering::Relaxed) {
            1 => Expired::Idle,
            2 => Expired::Head,
            3 => Expired::Write,
            4 => Expired::Cut,
            _ => Expired::No,
        }
    }

    /// Ends the connection by a reset in place of its next answer.
    pub fn cut(&self) {
        self.expire(Expired::Cut);
    }

    fn idle_since(&self) -> Instant {
        self.start + Duration::from_millis(self.idle_since.load(Ordering::Relaxed))
    }

    fn expire(&self, which: Expired) {
        self.expired.store(which as u8, Ordering::Relaxed);
    }
}

/// The read timer, and who is woken by it.
struct Armed {
    sleep: Pin<Box<Sleep>>,
    waker: Waker,
}

impl Armed {
    /// Whether it will wake the polling task no later than `due`, so that it need not be polled again.
    fn holds(&self, cx: &Context<'_>, due: Instant) -> bool {
        self.sleep.deadline() <= due && !self.sleep.is_elapsed() && self.waker.will_wake(cx.waker())
    }
}

/// `inner` under the clocks of `clock`.
pub struct Clocked<T> {
    inner: T,
    clock: Arc<Clock>,
    limits: Limits,
    /// What is written before the close when a head is late; empty where no HTTP/1 answer fits.
    late: &'static [u8],
    head_since: Option<Instant>,
    timer: Option<Armed>,
    blocked: Option<Pin<Box<Sleep>>>,
}

impl<T> Clocked<T> {
    /// Puts `inner` under `clock`; `late` is written when a head takes too long.
    pub fn new(inner: T, clock: Arc<Clock>, limits: Limits, late: &'static [u8]) -> Self {
        Self { inner, clock, limits, late, head_since: None, timer: None, blocked: None }
    }

    /// The stream without its clocks, for what became a tunnel: there only the tunnel's own counts.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// Polls the one read timer for `due`; it may be set earlier and is then moved.
    fn poll_due(&mut self, cx: &mut Context<'_>, due: Instant) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Armed {
            sleep: Box::pin(tokio::time::sleep_until(due)),
            waker: Waker::noop().clone(),
        });
        if timer.holds(cx, due) {
            return Poll::Pending;
        }
        if timer.sleep.deadline() > due {
            timer.sleep.as_mut().reset(due);
        }
        timer.waker.clone_from(cx.waker());
        while timer.sleep.as_mut().poll(cx).is_ready() {
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.sleep.as_mut().reset(due);
        }
        Poll::Pending
    }
}

impl<T: AsyncWrite + Unpin> Clocked<T> {
    /// Nothing came while busy. An exchange's end does not wake the reader, which may not look again of its own accord:
    /// a timer does, at the earliest moment at which the connection could have been idle for too long.
    fn watch(&mut self, cx: &mut Context<'_>) {
        let armed = |timer: &Armed| !timer.sleep.is_elapsed() && timer.waker.will_wake(cx.waker());
        if !self.timer.as_ref().is_some_and(armed) {
            let due = Instant::now() + self.limits.idle;
            // Never ready: it lies ahead.
            let _ = self.poll_due(cx, due);
        }
    }

    /// Nothing came: decides whether that has lasted too long. `Ready` is the end of the stream.
    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.clock.phase() {
            Phase::Busy => {
                self.watch(cx);
                Poll::Pending
            }
            Phase::Idle => {
                ready!(self.poll_due(cx, self.clock.idle_since() + self.limits.idle));
                self.clock.expire(Expired::Idle);
                Poll::Ready(Ok(()))
            }
            Phase::Head => {
                let since = *self.head_since.get_or_insert_with(Instant::now);
                ready!(self.poll_due(cx, since + self.limits.head));
                self.clock.expire(Expired::Head);
                // Best effort: a caller that does not read gets the close alone.
                let _ = Pin::new(&mut self.inner).poll_write(cx, self.late);
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Judges the result of a write: blocked for too long is an error.
    fn poll_written<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let limit = self.limits.write;
        let timer = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        self.clock.expire(Expired::Write);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<T: Resets> Clocked<T> {
    /// Nothing is written to a connection that is to be cut.
    fn uncut(&self) -> io::Result<()> {
        if self.clock.expired() == Expired::Cut {
            self.inner.reset_on_close();
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Clocked<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        if read.is_pending() {
            return this.poll_silence(cx);
        }
        if buf.filled().len() > before && this.clock.phase() == Phase::Idle {
            this.clock.phase.store(Phase::Head as u8, Ordering::Relaxed);
            this.head_since = None;
        }
        read
    }
}

impl<T: AsyncWrite + Resets + Unpin> AsyncWrite for Clocked<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.uncut()?;
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.poll_written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.uncut()?;
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.inner).poll_flush(cx);
        this.poll_written(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let shut = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.poll_written(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const LIMITS: Limits =
        Limits { idle: Duration::from_secs(75), head: Duration::from_secs(10), write: Duration::from_secs(60) };

    fn pair(size: usize) -> (DuplexStream, Clocked<DuplexStream>, Arc<Clock>) {
        let (client, server) = duplex(size);
        let clock = Clock::new(Instant::now());
        (client, Clocked::new(server, clock.clone(), LIMITS, b"late"), clock)
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_in_silence_after_the_last_request() {
        let (mut client, mut server, clock) = pair(64);
        let start = Instant::now();
        client.write_all(b"request").await.unwrap();
        server.read_exact(&mut [0; 7]).await.unwrap();
        clock.busy();
        assert!(tokio::time::timeout(Duration::from_secs(500), server.read(&mut [0; 9])).await.is_err());
        clock.idle(Instant::now());
        assert_eq!(server.read(&mut [0; 9]).await.unwrap(), 0);
        assert_eq!((start.elapsed().as_secs(), clock.expired()), (575, Expired::Idle));
        drop(server);
        assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_in_drops_is_late_ten_seconds_after_its_first_byte() {
        let (mut client, mut server, clock) = pair(64);
        let start = Instant::now();
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                if client.write_all(b"x").await.is_err() {
                    break;
                }
            }
        };
        let read = async { while server.read(&mut [0; 9]).await.unwrap() > 0 {} };
        tokio::select! { () = drip => unreachable!(), () = read => {} }
        assert_eq!((start.elapsed().as_secs(), clock.expired()), (13, Expired::Head));
        let mut late = [0; 4];
        client.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"late");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_written_to_a_connection_that_is_cut() {
        let (mut client, mut server, clock) = pair(64);
        clock.cut();
        assert_eq!(server.write_all(b"answer").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        drop(server);
        assert_eq!(client.read(&mut [0; 9]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_unread_answer_breaks_the_connection() {
        let (_client, mut server, clock) = pair(4);
        clock.busy();
        let error = server.write_all(b"more than fits").await.unwrap_err();
        assert_eq!((error.kind(), clock.expired()), (io::ErrorKind::TimedOut, Expired::Write));
    }
}
