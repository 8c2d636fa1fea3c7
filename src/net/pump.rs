//! Two-way copy between two streams: half-close passes through, nothing stands still for longer than the idle time.
//!
//! A side that no longer takes bytes may still have spoken: its last words are carried to their end, while what the
//! other side still says is thrown away, so that neither holds the other up.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes held per direction while the other side cannot take them.
pub const BUFFER: usize = 16 * 1024;

/// Turns of one ready direction before the other work of the thread gets its share.
const TURNS: usize = 16;

/// How long a tunnel may stand still once one side takes no more bytes.
pub const LAST_WORDS: Duration = Duration::from_secs(10);

/// Bytes for a side that takes none any more that are thrown away before the tunnel ends without their end.
const DISCARDED: usize = 256 * 1024;

/// How a tunnel ended.
#[derive(Debug)]
pub enum End {
    /// Both directions were closed in order.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
    /// The stream of the first argument broke.
    Left {
        /// By what.
        error: io::Error,
        /// Whether it had not ended in order before: the other one must not take what came for the whole.
        cut: bool,
    },
    /// The stream of the second argument broke.
    Right {
        /// As in `Left`.
        error: io::Error,
        /// As in `Left`.
        cut: bool,
    },
}

/// What a tunnel carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes from left to right.
    pub forth: u64,
    /// Bytes from right to left.
    pub back: u64,
}

/// One direction: reads into a buffer that exists only while bytes wait in it.
struct Way {
    buffer: Option<Box<[u8]>>,
    from: usize,
    to: usize,
    carried: u64,
    state: WayState,
    unflushed: bool,
    /// The reader was reset: what the kernel still has of it is given, but its end is none.
    reset: bool,
}

/// `Open -> Closing -> Closed`: the reader's end is passed on as a shutdown of the writer.
/// `Open or Closing -> Deaf -> Closed`: the writer broke, what the reader still says is thrown away.
#[derive(PartialEq, Eq)]
enum WayState {
    Open,
    Closing,
    /// With how many bytes may still be thrown away.
    Deaf(usize),
    Closed,
}

enum Fault {
    Reader(io::Error),
    Writer(io::Error),
}

impl Way {
    fn new() -> Self {
        Self { buffer: None, from: 0, to: 0, carried: 0, state: WayState::Open, unflushed: false, reset: false }
    }

    /// The writer takes no more.
    fn deafen(&mut self) {
        self.buffer = None;
        self.state = WayState::Deaf(DISCARDED);
    }

    /// Moves what can be moved. `Ready` when closed, or after [`TURNS`] turns with `moved` set.
    fn poll_move<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut bool,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..TURNS {
            match self.state {
                WayState::Closed => return Poll::Ready(Ok(())),
                WayState::Closing => {
                    match ready!(Pin::new(&mut *writer).poll_shutdown(cx)) {
                        // A socket that is gone both ways needs no end.
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(Fault::Writer(error)));
                        }
                        _ => {}
                    }
                    self.state = WayState::Closed;
                    *moved = true;
                }
                WayState::Deaf(left) => self.state = ready!(discard(cx, reader, left)),
                WayState::Open if self.from < self.to => {
                    ready!(self.poll_drain(cx, writer))?;
                    *moved = true;
                }
                WayState::Open => match self.poll_fill(cx, reader) {
                    Poll::Ready(filled) => {
                        filled?;
                        *moved = true;
                    }
                    Poll::Pending => {
                        if self.unflushed {
                            ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Fault::Writer)?;
                            self.unflushed = false;
                        }
                        return Poll::Pending;
                    }
                },
            }
        }
        // More is ready, but others are waiting: be polled again.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>, reader: &mut (impl AsyncRead + Unpin)) -> Poll<Result<(), Fault>> {
        let mut buffer = self.buffer.take().unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice());
        let mut space = ReadBuf::new(&mut buffer);
        // Pending drops the buffer: a tunnel at rest holds no memory for its direction.
        ready!(Pin::new(reader).poll_read(cx, &mut space)).map_err(Fault::Reader)?;
        (self.from, self.to) = (0, space.filled().len());
        if self.to == 0 && self.reset {
            return Poll::Ready(Err(Fault::Reader(io::ErrorKind::ConnectionReset.into())));
        }
        if self.to == 0 {
            self.state = WayState::Closing;
        } else {
            self.buffer = Some(buffer);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>, writer: &mut (impl AsyncWrite + Unpin)) -> Poll<Result<(), Fault>> {
        let waiting = self.buffer.as_deref().and_then(|buffer| buffer.get(self.from..self.to)).unwrap_or_default();
        let n = ready!(Pin::new(writer).poll_write(cx, waiting)).map_err(Fault::Writer)?;
        if n == 0 {
            return Poll::Ready(Err(Fault::Writer(io::ErrorKind::WriteZero.into())));
        }
        self.from += n;
        self.carried += n as u64;
        self.unflushed = true;
        Poll::Ready(Ok(()))
    }
}

/// Throws away what is read, up to `left` bytes, the end or a fault.
fn discard(cx: &mut Context<'_>, reader: &mut (impl AsyncRead + Unpin), left: usize) -> Poll<WayState> {
    let mut waste = [0; 1024];
    let mut space = ReadBuf::new(&mut waste);
    // A reader's fault is its end: nothing that it says counts any more.
    let read = ready!(Pin::new(reader).poll_read(cx, &mut space)).map_or(0, |()| space.filled().len());
    let left = left.saturating_sub(read);
    Poll::Ready(if read == 0 || left == 0 { WayState::Closed } else { WayState::Deaf(left) })
}

/// The side that takes no more bytes, and why.
enum Broken {
    Left(io::Error),
    Right(io::Error),
}

impl Broken {
    fn end(self, cut: bool) -> End {
        match self {
            Self::Left(error) => End::Left { error, cut },
            Self::Right(error) => End::Right { error, cut },
        }
    }
}

/// Both ways of a tunnel, and the first side that takes no more bytes.
struct Ways {
    forth: Way,
    back: Way,
    broken: Option<Broken>,
}

impl Ways {
    /// Moves what can be moved; the end, if it has come.
    fn poll_move<L, R>(&mut self, cx: &mut Context<'_>, left: &mut L, right: &mut R, moved: &mut bool) -> Option<End>
    where
        L: AsyncRead + AsyncWrite + Unpin,
        R: AsyncRead + AsyncWrite + Unpin,
    {
        let mut deafened = false;
        if let Poll::Ready(Err(fault)) = self.forth.poll_move(cx, left, right, moved) {
            match fault {
                Fault::Reader(error) => return Some(End::Left { error, cut: true }),
                Fault::Writer(error) => {
                    self.forth.deafen();
                    deafened = true;
                    self.back.reset = error.kind() == io::ErrorKind::ConnectionReset;
                    self.broken.get_or_insert(Broken::Right(error));
                }
            }
        }
        if let Poll::Ready(Err(fault)) = self.back.poll_move(cx, right, left, moved) {
            match fault {
                Fault::Reader(error) => return Some(End::Right { error, cut: true }),
                Fault::Writer(error) => {
                    self.back.deafen();
                    deafened = true;
                    self.forth.reset = error.kind() == io::ErrorKind::ConnectionReset;
                    self.broken.get_or_insert(Broken::Left(error));
                }
            }
        }
        if deafened {
            // The deaf way has still to look at its reader; the last words have their time from here on.
            cx.waker().wake_by_ref();
            *moved = true;
        }
        self.ended()
    }

    fn ended(&mut self) -> Option<End> {
        let over = (&self.forth.state, &self.back.state);
        match over {
            (WayState::Closed, WayState::Closed) => {
                Some(self.broken.take().map_or(End::Closed, |side| side.end(false)))
            }
            (WayState::Deaf(_), WayState::Deaf(_)) => self.broken.take().map(|side| side.end(true)),
            _ => None,
        }
    }

    fn carried(&self) -> Carried {
        Carried { forth: self.forth.carried, back: self.back.carried }
    }
}

/// Copies both ways until both are closed, one breaks, or nothing moves for `idle`. Dropping it ends the tunnel.
/// `carried` is kept up to date all the while, so that an abandoned tunnel can still be told of.
pub async fn pump<L, R>(left: &mut L, right: &mut R, idle: Duration, carried: &mut Carried) -> End
where
    L: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let mut ways = Ways { forth: Way::new(), back: Way::new(), broken: None };
    let mut last = Instant::now();
    let mut clock: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(idle));
    poll_fn(|cx| {
        let mut moved = false;
        let end = ways.poll_move(cx, left, right, &mut moved);
        *carried = ways.carried();
        if let Some(end) = end {
            return Poll::Ready(end);
        }
        let limit = if ways.broken.is_some() { idle.min(LAST_WORDS) } else { idle };
        ready!(poll_idle(cx, &mut clock, &mut last, moved, limit));
        Poll::Ready(ways.broken.take().map_or(End::Idle, |side| side.end(true)))
    })
    .await
}

/// One timer for the tunnel's life: movement only notes the time, and the timer is moved when it fires too early.
fn poll_idle(
    cx: &mut Context<'_>,
    clock: &mut Pin<Box<Sleep>>,
    last: &mut Instant,
    moved: bool,
    idle: Duration,
) -> Poll<()> {
    if moved {
        *last = Instant::now();
    }
    if clock.deadline() > *last + idle {
        // The limit became shorter.
        clock.as_mut().reset(*last + idle);
    }
    while clock.as_mut().poll(cx).is_ready() {
        let due = *last + idle;
        if due <= Instant::now() {
            return Poll::Ready(());
        }
        clock.as_mut().reset(due);
    }
    Poll::Pending
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn bytes_and_half_closes_pass_both_ways() {
        let (mut client, mut left) = duplex(7);
        let (mut right, mut server) = duplex(5);
        let mut carried = Carried::default();
        let tunnel = pump(&mut left, &mut right, HOUR, &mut carried);
        let talk = async {
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            let mut end = String::new();
            client.read_to_string(&mut end).await.unwrap();
            assert_eq!(end, "a long answer after the caller's end");
        };
        let serve = async {
            let mut question = String::new();
            server.read_to_string(&mut question).await.unwrap();
            assert_eq!(question, "question");
            server.write_all(b"a long answer after the caller's end").await.unwrap();
            server.shutdown().await.unwrap();
        };
        let (end, (), ()) = tokio::join!(tunnel, talk, serve);
        assert!(matches!(end, End::Closed), "{end:?}");
        assert_eq!(carried, Carried { forth: 8, back: 36 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_at_rest_ends_after_the_idle_time_since_the_last_byte() {
        let (mut client, mut left) = duplex(64);
        let (mut right, _server) = duplex(64);
        let start = Instant::now();
        let mut carried = Carried::default();
        let writer = async {
            tokio::time::sleep(Duration::from_secs(50)).await;
            client.write_all(b"x").await.unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            end = pump(&mut left, &mut right, Duration::from_secs(60), &mut carried) => {
                assert!(matches!(end, End::Idle), "{end:?}");
                assert_eq!(start.elapsed().as_secs(), 110);
            }
            () = writer => unreachable!(),
        }
        assert_eq!(carried.forth, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_side_is_named() {
        let (client, mut left) = duplex(64);
        let (mut right, mut server) = duplex(64);
        drop(client);
        server.write_all(b"for nobody").await.unwrap();
        server.shutdown().await.unwrap();
        let end = pump(&mut left, &mut right, HOUR, &mut Carried::default()).await;
        assert!(matches!(end, End::Left { .. }), "{end:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_before_a_side_stopped_taking_is_still_carried() {
        let (mut client, mut left) = duplex(4);
        let (mut right, mut server) = duplex(64);
        server.write_all(b"the last words").await.unwrap();
        drop(server);
        client.write_all(b"late").await.unwrap();
        let mut carried = Carried::default();
        let talk = async {
            let mut all = String::new();
            client.read_to_string(&mut all).await.unwrap();
            // What the caller still says does not hold it up.
            client.write_all(&[b'x'; 64]).await.unwrap();
            drop(client);
            all
        };
        let (end, all) = tokio::join!(pump(&mut left, &mut right, HOUR, &mut carried), talk);
        assert_eq!((all.as_str(), carried), ("the last words", Carried { forth: 0, back: 14 }));
        assert!(matches!(end, End::Right { cut: false, .. }), "{end:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_side_that_neither_takes_nor_ends_is_not_waited_for_long() {
        let (mut client, mut left) = duplex(64);
        let (right, _server) = duplex(64);
        let mut right = Deaf(right, io::ErrorKind::BrokenPipe);
        let start = Instant::now();
        client.write_all(b"for nobody").await.unwrap();
        let end = pump(&mut left, &mut right, HOUR, &mut Carried::default()).await;
        assert!(matches!(end, End::Right { cut: true, .. }), "{end:?}");
        assert_eq!(start.elapsed(), LAST_WORDS);
    }

    #[tokio::test(start_paused = true)]
    async fn last_words_have_their_time_from_the_break_on() {
        let (mut client, mut left) = duplex(64);
        let (says, mut server) = duplex(64);
        let (takes, taken) = duplex(4);
        let mut right = tokio::io::join(says, takes);
        let talk = async {
            client.write_all(b"more than it takes").await.unwrap();
            tokio::time::sleep(2 * LAST_WORDS).await;
            drop(taken);
            tokio::time::sleep(LAST_WORDS / 2).await;
            server.write_all(b"enough").await.unwrap();
            drop(server);
            let mut words = [0; 6];
            let read = tokio::time::timeout(HOUR, client.read_exact(&mut words)).await;
            drop(client);
            read.map(|_| words)
        };
        let mut carried = Carried::default();
        let (_, words) = tokio::join!(pump(&mut left, &mut right, HOUR, &mut carried), talk);
        assert_eq!((words.unwrap_or_default(), carried.back), (*b"enough", 6));
    }

    /// Who wrote to a reset socket was told; who reads from it afterwards is given its rest and then an end.
    #[tokio::test(start_paused = true)]
    async fn a_reset_that_a_write_has_met_is_no_end_in_order() {
        let (mut client, mut left) = duplex(64);
        let (right, mut server) = duplex(64);
        let mut right = Deaf(right, io::ErrorKind::ConnectionReset);
        client.write_all(b"for nobody").await.unwrap();
        server.write_all(b"the last words").await.unwrap();
        drop(server);
        let end = pump(&mut left, &mut right, HOUR, &mut Carried::default()).await;
        assert!(matches!(end, End::Right { cut: true, .. }), "{end:?}");
        let mut words = [0; 14];
        client.read_exact(&mut words).await.unwrap();
        assert_eq!(&words, b"the last words");
        assert!(futures_util::poll!(std::pin::pin!(client.read(&mut words))).is_pending());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_talks_to_a_side_that_is_gone_is_not_heard_for_ever() {
        let (client, mut left) = duplex(64);
        let (mut right, mut server) = duplex(64);
        drop(client);
        let talk = async { while server.write_all(&[0; 64]).await.is_ok() {} };
        let (start, mut carried) = (Instant::now(), Carried::default());
        tokio::select! {
            end = pump(&mut left, &mut right, HOUR, &mut carried) => {
                assert!(matches!(end, End::Left { cut: false, .. }), "{end:?}");
            }
            () = talk => unreachable!(),
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    /// A stream that takes nothing and gives what it has.
    struct Deaf(tokio::io::DuplexStream, io::ErrorKind);

    impl AsyncRead for Deaf {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Deaf {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(self.1.into()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
}
