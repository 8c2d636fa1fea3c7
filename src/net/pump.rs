//! Two-way copy between two streams: half-close passes through, nothing stands still for longer than the idle time.

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

/// How a tunnel ended.
#[derive(Debug)]
pub enum End {
    /// Both directions were closed in order.
    Closed,
    /// Nothing moved for the idle time.
    Idle,
    /// The stream of the first argument broke.
    Left(io::Error),
    /// The stream of the second argument broke.
    Right(io::Error),
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
}

/// `Open -> Closing -> Closed`: the reader's end is passed on as a shutdown of the writer.
#[derive(PartialEq, Eq)]
enum WayState {
    Open,
    Closing,
    Closed,
}

enum Fault {
    Reader(io::Error),
    Writer(io::Error),
}

impl Way {
    fn new() -> Self {
        Self { buffer: None, from: 0, to: 0, carried: 0, state: WayState::Open, unflushed: false }
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
                    ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Fault::Writer)?;
                    self.state = WayState::Closed;
                    *moved = true;
                }
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

/// Copies both ways until both are closed, one breaks, or nothing moves for `idle`. Dropping it ends the tunnel.
/// `carried` is kept up to date all the while, so that an abandoned tunnel can still be told of.
pub async fn pump<L, R>(left: &mut L, right: &mut R, idle: Duration, carried: &mut Carried) -> End
where
    L: AsyncRead + AsyncWrite + Unpin,
    R: AsyncRead + AsyncWrite + Unpin,
{
    let (mut forth, mut back) = (Way::new(), Way::new());
    let mut last = Instant::now();
    let mut clock: Pin<Box<Sleep>> = Box::pin(tokio::time::sleep(idle));
    poll_fn(|cx| {
        let mut moved = false;
        let one = forth.poll_move(cx, left, right, &mut moved);
        let two = back.poll_move(cx, right, left, &mut moved);
        *carried = Carried { forth: forth.carried, back: back.carried };
        let end = match (one, two) {
            (Poll::Ready(Err(Fault::Reader(error))), _) | (_, Poll::Ready(Err(Fault::Writer(error)))) => {
                End::Left(error)
            }
            (Poll::Ready(Err(Fault::Writer(error))), _) | (_, Poll::Ready(Err(Fault::Reader(error)))) => {
                End::Right(error)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => End::Closed,
            _ => return poll_idle(cx, &mut clock, &mut last, moved, idle),
        };
        Poll::Ready(end)
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
) -> Poll<End> {
    if moved {
        *last = Instant::now();
    }
    while clock.as_mut().poll(cx).is_ready() {
        let due = *last + idle;
        if due <= Instant::now() {
            return Poll::Ready(End::Idle);
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
        let end = pump(&mut left, &mut right, HOUR, &mut Carried::default()).await;
        assert!(matches!(end, End::Left(_)), "{end:?}");
    }
}
