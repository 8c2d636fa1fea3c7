//! An HTTP/2 connection towards a peer, by h2 itself: shared by many streams, watched for life, driven by one task.
//!
//! h2 and not hyper's client: informational answers, the small-DATA budget, the peer's stream limit and the reason of
//! a reset are not to be had from hyper.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use h2::client::{Builder, Connection, SendRequest};
use h2::{Ping, PingPong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::ping::{Pings, Step};
use crate::http::unsent::{Piece, Unsent};
use crate::http::window::{self, Window, Windows};
use crate::life::tasks::Tasks;
use crate::net::io::Io;
use crate::tls::proof::Proof;

/// The decoded size of an answer's fields.
const HEADER_LIST: u32 = 64 * 1024;

/// Bytes of one stream waiting to be written.
const SEND_BUFFER: usize = 128 * 1024;

/// What the streams of a connection and its task know of each other.
pub(super) struct Life {
    tasks: Tasks,
    /// Bytes of requests that the peer has not taken yet.
    unsent: Arc<Unsent>,
    streams: AtomicUsize,
    /// Bytes came since the task last looked.
    heard: AtomicBool,
    /// The peer did not answer a PING.
    dead: AtomicBool,
    /// What its endpoint has proven of itself, where mutual TLS is spoken to it.
    proof: Option<Arc<Proof>>,
}

impl Life {
    pub(super) fn stream_began(&self) {
        self.streams.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn stream_ended(&self) {
        self.streams.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether the connection was given up because a PING went unanswered.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// What its endpoint has proven of itself, where mutual TLS is spoken to it.
    pub(super) fn proof(&self) -> Option<&Arc<Proof>> {
        self.proof.as_ref()
    }

    /// Where a body that outlives its request's future goes on.
    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// The count of the connection's unsent bytes.
    pub(super) fn unsent(&self) -> &Arc<Unsent> {
        &self.unsent
    }
}

/// The sending end of a shared connection; clones open streams on the same one.
#[derive(Clone)]
pub struct Many {
    pub(super) send: SendRequest<Piece>,
    life: Arc<Life>,
}

impl Many {
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// Whether its endpoint is still believed to be who it has proven to be.
    pub(super) fn is_believed(&self) -> bool {
        self.life.proof.as_ref().is_none_or(|proof| proof.holds())
    }

    /// Whether new streams are still taken: not after a GOAWAY or the connection's end.
    pub(super) fn is_usable(&mut self) -> bool {
        self.is_believed()
            && !matches!(self.send.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    /// Whether the peer's SETTINGS offer extended CONNECT (RFC 8441).
    pub(super) fn extended_connect(&self) -> bool {
        self.send.is_extended_connect_protocol_enabled()
    }
}

/// The connection task's part of a connection.
pub(super) struct Driver {
    conn: Connection<Heard, Piece>,
    pings: PingPong,
    life: Arc<Life>,
    max: usize,
    /// Given back when the connection ends.
    _window: Window,
}

impl Driver {
    /// How many streams the peer takes.
    pub(super) fn max_streams(&self) -> usize {
        self.max
    }
}

/// Speaks the preface and waits for the peer's SETTINGS, so that its limits and extensions are known before the first
/// request, and a server that speaks something else is found out while nothing is lost. The caller sets the clock.
///
/// # Errors
/// The connection broke, ended, or the peer does not speak HTTP/2.
pub(super) async fn handshake(
    io: Io,
    tasks: &Tasks,
    proof: Option<Arc<Proof>>,
) -> Result<(Many, Box<Driver>), h2::Error> {
    let life = Arc::new(Life {
        tasks: tasks.clone(),
        unsent: Unsent::new(),
        streams: AtomicUsize::new(0),
        heard: AtomicBool::new(false),
        dead: AtomicBool::new(false),
        proof,
    });
    let window = Windows::PEERS.take();
    let (send, mut conn) = builder(&window).handshake::<_, Piece>(Heard { io, life: life.clone() }).await?;
    let Some(pings) = conn.ping_pong() else { return Err(h2::Reason::INTERNAL_ERROR.into()) };
    let max = poll_fn(|cx| match Pin::new(&mut conn).poll(cx) {
        Poll::Ready(Ok(())) => Poll::Ready(Err(io_ended())),
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        // Zero is what the builder assumes until SETTINGS come.
        Poll::Pending => match conn.max_concurrent_send_streams() {
            0 => Poll::Pending,
            max => Poll::Ready(Ok(max)),
        },
    })
    .await?;
    Ok((Many { send, life: life.clone() }, Box::new(Driver { conn, pings, life, max, _window: window })))
}

fn builder(window: &Window) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(window.shared())
        .initial_connection_window_size(window.size())
        .max_header_list_size(HEADER_LIST)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(window::SMALL_FRAMES)
        .initial_max_send_streams(0);
    builder
}

fn io_ended() -> h2::Error {
    // The only public way to make an h2 error; the text is made where the address is known.
    h2::Reason::NO_ERROR.into()
}

/// Drives a connection to its end: frames, the peer's stream limit, PINGs. Keeps no endpoint alive.
pub(super) async fn drive(mut driver: Box<Driver>, endpoint: Weak<Endpoint>, id: u64) {
    let Driver { conn, pings: wire, life, max, .. } = &mut *driver;
    let mut pings = Pings::new(Instant::now());
    let mut timer = pin!(tokio::time::sleep_until(Instant::now()));
    let mut armed = false;
    poll_fn(|cx| {
        if Pin::new(&mut *conn).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let allowed = conn.max_concurrent_send_streams();
        if allowed != *max {
            *max = allowed;
            if let Some(endpoint) = endpoint.upgrade() {
                endpoint.stream_limit(id, allowed);
            }
        }
        if wire.poll_pong(cx).is_ready() {
            life.heard.store(false, Ordering::Relaxed);
            pings.pong(Instant::now());
        }
        // A stream that is opened wakes this task; without any, and without an open question, no timer does.
        while !armed || timer.as_mut().poll(cx).is_ready() {
            let streams = life.streams.load(Ordering::Relaxed);
            if !armed && streams == 0 {
                break;
            }
            let now = Instant::now();
            // Whatever the time without streams was, it was no silence.
            let heard = life.heard.swap(false, Ordering::Relaxed) || !armed;
            match pings.look(now, heard, streams) {
                Step::Rest => {}
                Step::Ping => {
                    // Only fails while one is unanswered, which `Pings` rules out, or when the end is near anyway.
                    let _ = wire.send_ping(Ping::opaque());
                    let _ = wire.poll_pong(cx);
                }
                Step::Dead => {
                    life.dead.store(true, Ordering::Relaxed);
                    return Poll::Ready(());
                }
            }
            let next = pings.next(now, streams);
            armed = next.is_some();
            match next {
                Some(next) => timer.as_mut().reset(next),
                None => break,
            }
        }
        Poll::Pending
    })
    .await;
    // The streams learn of the end when the connection goes; the pool first, so that none of them is sent back here.
    if let Some(endpoint) = endpoint.upgrade() {
        endpoint.gone(id);
    }
    drop(driver);
}

/// The connection's stream, which notes that bytes came.
struct Heard {
    io: Io,
    life: Arc<Life>,
}

impl AsyncRead for Heard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let poll = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.life.heard.store(true, Ordering::Relaxed);
        }
        poll
    }
}

impl AsyncWrite for Heard {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
