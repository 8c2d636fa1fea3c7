//! HTTP/1 towards callers: hyper's connection, one service per request, and what hyper refuses by itself told in words.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;

use super::doors::LAST_HANDSHAKES;
use super::exchange::exchange;
use super::{Conn, failure, record};
use crate::http::awaited::{Asked, Awaited};
use crate::http::body::Body;
use crate::life::drain::Phase;
use crate::net::clocked::{Clocked, Expired, Limits, Phase as ClockPhase};
use crate::net::io::Io;
use crate::reason::Reason;

/// hyper's smallest buffer, and the least that a head's limit can buy.
const LEAST_BUFFER: usize = 16 * 1024;

/// Fields that hyper's parser keeps on the stack; more cost two heap blocks a request, an eighth of all instructions.
const ON_STACK: usize = 100;

/// Serves HTTP/1 on `io` until it ends, a clock runs out, or the drain is over.
pub async fn serve_http1(conn: Arc<Conn>, io: Io) {
    let limits = &conn.door.limits;
    // Who has still to prove who it is comes to speak TLS: its place is not for long.
    let idle = if conn.is_unproven() { limits.head_timeout.min(limits.keep_alive) } else { limits.keep_alive };
    let clocks = Limits { idle, head: limits.head_timeout, write: limits.body_idle };
    let io = Clocked::new(io, conn.clock.clone(), clocks, failure::LATE_HEAD);
    let service = service_fn(|request: Request<Incoming>| {
        let conn = conn.clone();
        async move {
            let (request, asked) = watched(request);
            let mut answer = exchange(&conn, request, &conn.no_informational).await;
            if let Some(asked) = asked {
                last_of_its_connection(&mut answer, &asked);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut builder = http1::Builder::new();
    if limits.fields > ON_STACK {
        builder.max_headers(limits.fields);
    }
    let serving = builder
        .preserve_header_case(true)
        .auto_date_header(false)
        .max_header_size(limits.head)
        .max_buf_size(limits.head.max(LEAST_BUFFER))
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    let mut serving = pin!(serving);
    let mut drain = conn.drain.clone();
    let result = tokio::select! {
        // The connection first: a ready request is served before a drain begins.
        biased;
        result = serving.as_mut() => result,
        _ = drain.reached(Phase::Draining) => match Box::pin(last_moment(&conn, serving.as_mut())).await {
            Some(result) => result,
            None => {
                serving.as_mut().graceful_shutdown();
                tokio::select! {
                    result = serving.as_mut() => result,
                    _ = drain.reached(Phase::Forced) => return,
                }
            }
        }
    };
    if let Err(error) = result {
        tell(&conn, &error);
    }
}

/// Serves on for a moment where the caller is silent or within a head, because its next request may be on the way, and
/// hyper would close at once; the connection's end, if it comes to it.
async fn last_moment<T: Future>(conn: &Conn, mut serving: Pin<&mut T>) -> Option<T::Output> {
    // Who is no longer believed to be who it was is heard no more.
    if conn.proof.as_ref().is_some_and(|proof| !proof.holds()) {
        return None;
    }
    let mut drain = conn.drain.clone();
    let mut over = pin!(timeout(LAST_HANDSHAKES, drain.reached(Phase::Forced)));
    poll_fn(|cx| match serving.as_mut().poll(cx) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        // A request is told in its answer that it is the last.
        Poll::Pending if conn.clock.phase() == ClockPhase::Busy => Poll::Ready(None),
        Poll::Pending => over.as_mut().poll(cx).map(|_| None),
    })
    .await
}

/// Has an eye on a body that hyper asks for by a 100 when it is first polled.
fn watched(request: Request<Incoming>) -> (Request<Body>, Option<Asked>) {
    // Most requests have no body, and need no look at their fields.
    let waits = !request.body().is_end_stream()
        && request.version() != Version::HTTP_10
        && request.headers().contains_key(EXPECT);
    if !waits {
        return (request.map(Body::Http1), None);
    }
    let (parts, body) = request.into_parts();
    let (body, asked) = Awaited::watch(Body::Http1(body));
    (Request::from_parts(parts, body), Some(asked))
}

/// Tells a caller that waited with its body, and is answered before all of it was read, that its connection ends: hyper
/// closes it, because the body may or may not follow, and says nothing of it (RFC 9112 §9.6). An answer that is no refusal
/// may still read what it asked for.
fn last_of_its_connection<T>(answer: &mut Response<T>, asked: &Asked) {
    let ends = match answer.status() {
        StatusCode::SWITCHING_PROTOCOLS => false,
        status if status >= StatusCode::MULTIPLE_CHOICES => !asked.ended(),
        _ => !asked.began(),
    };
    if ends {
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The caller's stream after an upgrade, as it was accepted: hyper hides it, and the clocks are for HTTP.
pub fn taken_back(upgraded: Upgraded) -> Io {
    match upgraded.downcast::<TokioIo<Clocked<Io>>>() {
        Ok(parts) => parts.io.into_inner().into_inner().prefixed(parts.read_buf),
        Err(other) => Io::boxed(TokioIo::new(other)),
    }
}

/// Records why a connection ended, where no exchange does: the head itself was refused, or late.
fn tell(conn: &Arc<Conn>, error: &hyper::Error) {
    let reason = match conn.clock.expired() {
        Expired::Head => Reason::HeadTimeout,
        Expired::No if is_target_too_long(error) => Reason::UriTooLong,
        Expired::No if error.is_parse_too_large() => Reason::HeadTooLarge,
        Expired::No if error.is_parse() && conn.clock.phase() != ClockPhase::Busy => Reason::BadHead,
        Expired::No | Expired::Idle | Expired::Write | Expired::Cut => return,
    };
    // hyper and the clock answer what the table says, but for an HTTP/2 preface, to which no HTTP/1 answer fits.
    let status = (!error.is_parse_version_h2()).then(|| failure::row(reason).http);
    record::refused_with(conn, reason, status, &error.to_string());
}

/// hyper answers 414 only to a target that its own parser cannot hold, and tells it from a head that is too large by
/// words alone.
fn is_target_too_long(error: &hyper::Error) -> bool {
    error.is_parse_too_large() && error.to_string() == "URI too long"
}
