//! HTTP/2 towards callers, on h2 itself rather than hyper: 103 passes, resets keep their reason, and one bad CONNECT
//! does not take its neighbours with it.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;

use h2::server::{Connection, SendResponse};
use h2::{Reason as Code, RecvStream};
use http::{Request, Response};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::exchange::{Last, exchange};
use super::upgrade::Takeover;
use super::{Conn, record};
use crate::http::body::{Body, Http2Body, content_length};
use crate::http::pour::{PourError, pour};
use crate::http::unsent::{Piece, Sending, Unsent};
use crate::http::window::{self, Window, Windows};
use crate::life::drain::Phase;
use crate::net::clocked::{Clock, Clocked, Expired, Limits, Phase as ClockPhase};
use crate::net::io::{Duplex, Resets};
use crate::plan::door::DoorLimits;
use crate::reason::Reason;
use crate::resilience::calm::{A_SECOND, AT_ONCE, Calm};
use crate::upstream::lease::OnInformational;

/// Streams one caller may have open.
const STREAMS: u32 = 250;

/// How long a caller without streams may take to answer a GOAWAY by leaving; h2 waits for its PING's answer.
const LAST_WORD: Duration = Duration::from_secs(5);

/// How long after the last answer of a connection its caller is told to go: there are HTTP/2 libraries (Python's h2, as used
/// by httpx) that throw an answer away which they read together with a GOAWAY.
const AFTER_LAST: Duration = Duration::from_millis(100);

/// Bytes of answers that wait in a stream's send buffer.
const SEND_BUFFER: usize = 128 * 1024;

/// What the streams of a connection and the connection know of each other.
struct Shared {
    conn: Arc<Conn>,
    unsent: Arc<Unsent>,
    calm: Mutex<Calm>,
    /// More was cancelled than is borne.
    flooded: AtomicBool,
    /// The last answer of the connection is on its way.
    last: AtomicBool,
}

impl Shared {
    fn new(conn: Arc<Conn>) -> Arc<Self> {
        let calm = Mutex::new(Calm::new(Instant::now()));
        Arc::new(Self {
            conn,
            unsent: Unsent::new(),
            calm,
            flooded: AtomicBool::new(false),
            last: AtomicBool::new(false),
        })
    }

    /// The caller cancelled a stream before its end. The connection learns it with the next stream: without one there
    /// is no flood.
    fn cancelled(&self) {
        if !self.calm.lock().cancelled(Instant::now()) {
            self.flooded.store(true, Ordering::Relaxed);
        }
    }
}

/// Serves HTTP/2 on `io` until it ends, is idle for too long, or the drain is over.
pub async fn serve_http2(conn: Arc<Conn>, io: impl Duplex + Resets) {
    let limits = &conn.door.limits;
    let clocks = Limits { idle: limits.keep_alive, head: limits.head_timeout, write: limits.body_idle };
    let clock = Clock::new(Instant::now());
    let io = Clocked::new(io, clock.clone(), clocks, &[]);
    let window = Windows::CALLERS.take();
    let handshake = tokio::time::timeout(limits.head_timeout, settings(limits, &window).handshake::<_, Piece>(io));
    let serving = match handshake.await {
        Ok(Ok(serving)) => serving,
        Ok(Err(error)) if clock.expired() != Expired::Head => return tell(&conn, &error, Reason::WrongProtocol),
        // One that has said nothing has asked for nothing.
        _ if clock.phase() == ClockPhase::Idle => return,
        _ => return record::refused(&conn, Reason::HeadTimeout, "the HTTP/2 preface was not complete in time"),
    };
    // Busy from here on: exchanges of other streams end and make the connection's own clock idle, and the loop below
    // has its own idle time.
    clock.busy();
    serve(&Shared::new(conn.clone()), serving).await;
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin>(shared: &Arc<Shared>, mut serving: Connection<T, Piece>) {
    let (conn, limits) = (&shared.conn, &shared.conn.door.limits);
    let mut drain = conn.drain.clone();
    // When a caller that was told to go should have done so.
    let mut last_word = None;
    let mut refused = false;
    // Who has still to prove who it is comes to speak TLS: whatever it asks, its place is not for long.
    let unproven = conn.is_unproven();
    let silence = if unproven { limits.head_timeout.min(limits.keep_alive) } else { limits.keep_alive };
    let idle = tokio::time::sleep(silence);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            accepted = serving.accept() => match accepted {
                Some(Ok(_)) if shared.flooded.load(Ordering::Relaxed) => {
                    let detail = format!(
                        "the caller cancelled more than {AT_ONCE} requests at once or {A_SECOND} a second on one connection"
                    );
                    record::refused(conn, Reason::Flood, &detail);
                    return leave(&mut serving, Code::ENHANCE_YOUR_CALM, limits.head_timeout).await;
                }
                // It has not answered that it was told to go, and could go on for as long as the drain may take; or it is
                // no longer believed to be who it was. Elsewhere each is served (RFC 9113 §8.7).
                Some(Ok((_, mut respond))) if is_too_late(conn, last_word) => respond.send_reset(Code::REFUSED_STREAM),
                Some(Ok((request, respond))) => {
                    if last_word.is_none() && !unproven && !refused {
                        idle.as_mut().reset(Instant::now() + silence);
                    }
                    // Boxed: tokio moves a task about ten times on its way, and this is one of kilobytes for each request.
                    conn.tasks().spawn(Box::pin(stream(shared.clone(), request, respond)));
                }
                Some(Err(error)) => return tell(conn, &error, Reason::BadHead),
                None => return,
            },
            phase = drain.reached(if last_word.is_some() { Phase::Forced } else { Phase::Draining }) => {
                if phase == Phase::Forced {
                    return leave(&mut serving, Code::NO_ERROR, limits.head_timeout).await;
                }
                idle.as_mut().reset(tell_to_go(&mut serving, &mut last_word));
            },
            // Said before the answer is given to h2, which wakes this task for it.
            () = said(&shared.last), if !refused => {
                refused = true;
                if last_word.is_none() {
                    idle.as_mut().reset(Instant::now() + AFTER_LAST);
                }
            }
            () = idle.as_mut() => {
                // It does not even read why. Who came before its door was strict may have more under way.
                if unproven && refused && last_word.is_some() && serving.has_streams() {
                    return leave(&mut serving, Code::NO_ERROR, limits.head_timeout).await;
                }
                let lasting = Some(silence).filter(|_| !unproven && !refused);
                let Some(next) = idled(&mut serving, &mut last_word, lasting) else { return };
                idle.as_mut().reset(next);
            }
        }
    }
}

/// Looks at what wakes the task anyway.
async fn said(flag: &AtomicBool) {
    poll_fn(|_| if flag.load(Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }).await;
}

/// When to look again at a connection whose time is over; `None` where it is to end. With streams it is let be for as
/// long as `lasting`.
fn idled<T>(
    serving: &mut Connection<T, Piece>,
    last_word: &mut Option<Instant>,
    lasting: Option<Duration>,
) -> Option<Instant>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    match (serving.has_streams(), *last_word, lasting) {
        // Told to go, it neither went nor answered.
        (false, Some(_), _) => None,
        (true, Some(_), _) => Some(Instant::now() + LAST_WORD),
        (true, None, Some(lasting)) => Some(Instant::now() + lasting),
        (_, None, _) => Some(tell_to_go(serving, last_word)),
    }
}

/// Sends the first GOAWAY; gives how long the caller has to answer it.
fn tell_to_go<T>(serving: &mut Connection<T, Piece>, last_word: &mut Option<Instant>) -> Instant
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    serving.graceful_shutdown();
    *last_word.get_or_insert(Instant::now() + LAST_WORD)
}

/// Whether a new stream comes after the caller's last word, or from one that is not believed any more.
fn is_too_late(conn: &Conn, last_word: Option<Instant>) -> bool {
    last_word.is_some_and(|until| Instant::now() >= until) || conn.proof.as_ref().is_some_and(|proof| !proof.holds())
}

/// Records why a connection ended, where no exchange does: it broke HTTP/2's rules, or the caller says that we did.
/// Who only left is told by the exchanges that it left behind, if any.
fn tell(conn: &Conn, error: &h2::Error, rule: Reason) {
    let reason = match error.reason() {
        None | Some(Code::NO_ERROR) => return,
        Some(_) if error.is_remote() => Reason::ClientGone,
        Some(Code::ENHANCE_YOUR_CALM) => Reason::Flood,
        Some(_) => rule,
    };
    record::refused(conn, reason, &format!("HTTP/2 connection ended: {error}"));
}

/// What callers may do on one connection.
fn settings(limits: &DoorLimits, window: &Window) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    // Twice the heads' limit: h2 refuses what is over it with a bare 431 that nobody records; the corridor says why.
    builder
        .initial_window_size(window::STREAM)
        .initial_connection_window_size(window.size())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(limits.head.saturating_mul(2)).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(window::SMALL_FRAMES)
        // Requests cancelled before they were looked at; as many as may be open, because they may come in one packet.
        .max_pending_accept_reset_streams(STREAMS as usize)
        .enable_connect_protocol();
    builder
}

/// Ends the connection with all its streams; what there is to say is flushed for a bounded time.
async fn leave<T>(serving: &mut Connection<T, Piece>, code: Code, most: Duration)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    serving.abrupt_shutdown(code);
    let closed = poll_fn(|cx| serving.poll_closed(cx));
    let _ = tokio::time::timeout(most.min(Duration::from_secs(1)), closed).await;
}

type Respond = Arc<Mutex<SendResponse<Piece>>>;

/// Serves one stream. The caller's reset cancels it wherever it stands.
async fn stream(shared: Arc<Shared>, request: Request<RecvStream>, respond: SendResponse<Piece>) {
    let conn = &shared.conn;
    let respond: Respond = Arc::new(Mutex::new(respond));
    let informational = relay(&respond, &shared);
    let request = request_body(request);
    let idle = conn.door.limits.body_idle;
    let answer = tokio::select! {
        // The reset first: what nobody waits for is not worth another step.
        biased;
        reset = poll_fn(|cx| respond.lock().poll_reset(cx)) => {
            if reset.is_ok() {
                shared.cancelled();
            }
            return;
        }
        answer = exchange(conn, request, &informational) => answer,
    };
    let (mut parts, body) = answer.into_parts();
    let takeover = parts.extensions.remove::<Takeover>();
    let is_last = parts.extensions.remove::<Last>().is_some();
    let end = body.is_end_stream() && takeover.is_none();
    if is_last {
        shared.last.store(true, Ordering::Release);
    }
    let sending = respond.lock().send_response(Response::from_parts(parts, ()), end);
    let Ok(sending) = sending else { return };
    let sending = Sending::new(sending, &shared.unsent);
    match takeover {
        Some(takeover) => takeover.give(sending),
        None if end => {}
        // Why else it broke stands in the exchange's record, which the body holds.
        None => {
            if let Err(PourError::Stream(error)) = pour(sending, body, idle).await
                && error.is_reset()
            {
                shared.cancelled();
            }
        }
    }
}

fn request_body(request: Request<RecvStream>) -> Request<Body> {
    let (parts, stream) = request.into_parts();
    let connect = parts.method == http::Method::CONNECT;
    let body = if stream.is_end_stream() && !connect {
        Body::Empty
    } else {
        Body::Http2(Http2Body::new(stream, content_length(&parts.headers).filter(|_| !connect)))
    };
    Request::from_parts(parts, body)
}

/// Informational answers that are passed on for one request. They have no flow control, so a caller that does not read
/// would let any number pile up; more than a few are no hints.
const INFORMATIONAL: u32 = 100;

/// Passes 100 and 103 on to the caller, until the answer itself is sent.
fn relay(respond: &Respond, shared: &Arc<Shared>) -> OnInformational {
    let (respond, shared, told) = (respond.clone(), shared.clone(), AtomicU32::new(0));
    Arc::new(move |answer: Response<()>| {
        if told.fetch_add(1, Ordering::Relaxed) >= INFORMATIONAL {
            return (shared.conn.no_informational)(answer);
        }
        let (mut parts, ()) = answer.into_parts();
        crate::http::hop::response(parts.status, &mut parts.headers);
        // Too late, or the stream is gone: the final answer tells the rest.
        let _ = respond.lock().send_informational(Response::from_parts(parts, ()));
    })
}
