//! HTTP/2 towards callers, on h2 itself rather than hyper: 103 passes, resets keep their reason, and one bad CONNECT
//! does not take its neighbours with it.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use http_body::Body as _;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Conn;
use super::exchange::exchange;
use super::upgrade::Takeover;
use crate::http::body::{Body, Http2Body, content_length};
use crate::http::pour::pour;
use crate::http::window::{self, Window, Windows};
use crate::life::drain::Phase;
use crate::net::clocked::{Clock, Clocked, Limits};
use crate::net::io::Duplex;
use crate::plan::door::DoorLimits;
use crate::upstream::lease::OnInformational;

/// Streams one caller may have open.
const STREAMS: u32 = 250;

/// How long a caller without streams may take to answer a GOAWAY by leaving; h2 waits for its PING's answer.
const LAST_WORD: Duration = Duration::from_secs(5);

/// Bytes of answers that wait in a stream's send buffer.
const SEND_BUFFER: usize = 128 * 1024;

/// Serves HTTP/2 on `io` until it ends, is idle for too long, or the drain is over.
pub async fn serve_http2(conn: Arc<Conn>, io: impl Duplex) {
    let limits = &conn.door.limits;
    let clocks = Limits { idle: limits.keep_alive, head: limits.head_timeout, write: limits.body_idle };
    // A clock of its own that is always busy: exchanges of other streams end and make the connection's idle, and this
    // loop has its own idle time.
    let clock = Clock::new(Instant::now());
    clock.busy();
    let io = Clocked::new(io, clock, clocks, &[]);
    let window = Windows::PROCESS.take();
    let handshake = tokio::time::timeout(limits.head_timeout, settings(limits, &window).handshake(io));
    let Ok(Ok(mut serving)) = handshake.await else { return };
    let mut drain = conn.drain.clone();
    let mut draining = false;
    let idle = tokio::time::sleep(limits.keep_alive);
    tokio::pin!(idle);
    loop {
        tokio::select! {
            accepted = serving.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    idle.as_mut().reset(Instant::now() + limits.keep_alive);
                    conn.tasks().spawn(stream(conn.clone(), request, respond));
                }
                Some(Err(_)) | None => return,
            },
            phase = drain.reached(if draining { Phase::Forced } else { Phase::Draining }) => {
                if phase == Phase::Forced {
                    serving.abrupt_shutdown(Reason::NO_ERROR);
                    let _ = finish(&mut serving, limits.head_timeout).await;
                    return;
                }
                draining = true;
                serving.graceful_shutdown();
                idle.as_mut().reset(Instant::now() + LAST_WORD);
            },
            () = idle.as_mut() => {
                let unused = !serving.has_streams();
                match (unused, draining) {
                    // Told to go, it neither went nor answered.
                    (true, true) => return,
                    (true, false) => {
                        draining = true;
                        serving.graceful_shutdown();
                    }
                    (false, _) => {}
                }
                let next = if draining { LAST_WORD } else { limits.keep_alive };
                idle.as_mut().reset(Instant::now() + next);
            }
        }
    }
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
        .enable_connect_protocol();
    builder
}

/// Flushes what a shutdown still has to say, for a bounded time.
async fn finish<T>(serving: &mut Connection<T, Bytes>, most: std::time::Duration) -> Result<(), h2::Error>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let closed = poll_fn(|cx| serving.poll_closed(cx));
    tokio::time::timeout(most.min(std::time::Duration::from_secs(1)), closed).await.unwrap_or(Ok(()))
}

type Respond = Arc<Mutex<SendResponse<Bytes>>>;

/// Serves one stream. The caller's reset cancels it wherever it stands.
async fn stream(conn: Arc<Conn>, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
    let respond: Respond = Arc::new(Mutex::new(respond));
    let informational = relay(&respond);
    let request = request_body(request);
    let idle = conn.door.limits.body_idle;
    let answer = tokio::select! {
        // The reset first: what nobody waits for is not worth another step.
        biased;
        _ = poll_fn(|cx| respond.lock().poll_reset(cx)) => return,
        answer = exchange(&conn, request, &informational) => answer,
    };
    let (mut parts, body) = answer.into_parts();
    let takeover = parts.extensions.remove::<Takeover>();
    let end = body.is_end_stream() && takeover.is_none();
    let Ok(sending) = respond.lock().send_response(Response::from_parts(parts, ()), end) else { return };
    match takeover {
        Some(takeover) => takeover.give(sending),
        None if end => {}
        None => {
            // Why it broke stands in the exchange's record, which the body holds.
            let _ = pour(sending, body, idle).await;
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

/// Passes 100 and 103 on to the caller, until the answer itself is sent.
fn relay(respond: &Respond) -> OnInformational {
    let respond = respond.clone();
    Arc::new(move |answer: Response<()>| {
        let (mut parts, ()) = answer.into_parts();
        crate::http::hop::response(parts.status, &mut parts.headers);
        // Too late, or the stream is gone: the final answer tells the rest.
        let _ = respond.lock().send_informational(Response::from_parts(parts, ()));
    })
}
