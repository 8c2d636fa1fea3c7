//! Requests that become tunnels: CONNECT at the outbound door, HTTP/1 upgrades, and extended CONNECT (RFC 8441), each
//! to a peer of either version. Nothing is tunnelled before the peer has agreed.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::Conn;
use super::answer::Reply;
use super::record::Exchange;
use super::serve::taken_back;
use super::tunnel;
use crate::call::Failure;
use crate::call::attempt::{Call, Tries};
use crate::call::retry::Spare;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::http::guard::Guard;
use crate::http::h2io::StreamIo;
use crate::http::head::Facts;
use crate::http::hop;
use crate::http::mark::ATTEMPT;
use crate::http::unsent::Sending;
use crate::net::io::Io;
use crate::plan::door::Protocol;
use crate::plan::peer::PeerPolicy;
use crate::reason::Reason;
use crate::upstream::choice::Ask;
use crate::upstream::http1;
use crate::upstream::lease::Version as Leg;
use crate::upstream::lease::{Answer, Lease, Opened, SendError};
use crate::upstream::peer::Peer;

/// What both sides have agreed on, or the peer's refusal.
pub enum Switch {
    /// The tunnel to open.
    Tunnel(Box<Opening>),
    /// The peer answered with something else, which is passed on.
    Refused(Box<(Answer, Guard)>),
}

impl Switch {
    /// The fields of the answer that the caller gets.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Tunnel(opening) => opening.head.headers_mut(),
            Self::Refused(refused) => refused.0.headers_mut(),
        }
    }
}

/// A tunnel whose answer has still to be sent.
pub struct Opening {
    /// What the caller gets.
    head: Response<()>,
    /// How the caller's bytes are got once it has its answer.
    caller: CallerSide,
    peer: Io,
    idle: std::time::Duration,
}

/// The caller's bytes, before its answer was sent.
enum CallerSide {
    /// hyper hands the connection over after the answer.
    Http1(hyper::upgrade::OnUpgrade),
    /// The stream's receiving half; the sending half comes with the answer.
    Http2(h2::RecvStream),
}

/// Rides in an answer's extensions: hands the stream's sending half to the tunnel.
#[derive(Clone)]
pub struct Takeover(Arc<parking_lot::Mutex<Option<oneshot::Sender<Sending>>>>);

impl Takeover {
    /// Gives the sending half; a tunnel that is gone lets it drop, which resets the stream.
    pub fn give(self, stream: Sending) {
        if let Some(sender) = self.0.lock().take() {
            // The receiver is gone only when the tunnel was ended by force.
            let _ = sender.send(stream);
        }
    }
}

/// Whether the request asks for a tunnel.
pub fn is_asked(parts: &Parts, facts: &Facts) -> bool {
    parts.method == Method::CONNECT || facts.upgrade.is_some()
}

/// Asks the peer for the tunnel.
///
/// # Errors
/// Why there is no answer.
#[expect(clippy::too_many_arguments, reason = "they are the corridor's own locals")]
pub async fn switch(
    conn: &Conn,
    mut parts: Parts,
    body: Body,
    facts: &Facts,
    peer: &Arc<Peer>,
    ask: Ask<'_>,
    policy: &PeerPolicy,
    deadline: Deadline,
    record: &mut Exchange,
) -> Result<Switch, Failure> {
    let protocol = parts.extensions.get::<h2::ext::Protocol>().cloned();
    let caller = caller_side(&mut parts, body)?;
    let call = Call { marked: facts.marked, ask, deadline, ..Call::plain(peer, &policy.rules, record.called) };
    let mut later = call;
    let mut tries = Tries::new(&call);
    if parts.method == Method::CONNECT && protocol.is_none() {
        let io = tries.dial(&mut record.trail).await?;
        let head = Response::new(());
        return Ok(Switch::Tunnel(Box::new(Opening { head, caller, peer: io, idle: policy.tunnel_idle })));
    }
    let asked = asked(conn, &parts, protocol, facts)?;
    let spare = Spare::of(&policy.rules, facts.marked, &mut Request::from_parts(parts.clone(), Body::Empty));
    // Where neither the file nor ALPN decides, an extended CONNECT is passed on as such if it can be, else in HTTP/1's words.
    let free = peer.source().protocol == Protocol::Auto && peer.source().tls.is_none();
    let mut version = if asked.http2 { Leg::Http2 } else { Leg::Http1 };
    let asking = loop {
        let leased = tries.lease(&mut record.trail, version).await;
        let fits = leased.as_ref().is_ok_and(|lease| lease.version() == Leg::Http1 || lease.extended_connect());
        if version == Leg::Http2 && free && !fits {
            version = Leg::Http1;
            later.now = Instant::now();
            tries = Tries::anew(&later);
            continue;
        }
        let asking = ask_once(leased?, &parts, &asked);
        let answered = match tries.attempt_ends() {
            None => Some(asking.await?),
            Some(at) => timeout_at(at, asking).await.ok().transpose()?,
        };
        let (trail, method, spare) = (&mut record.trail, &parts.method, spare.as_ref());
        let again = match answered {
            Some(Ok(Answered::Http1(mut answer))) => {
                trail.tunnelled = answer.extensions_mut().remove();
                break agreed_http1(answer, &asked).await?;
            }
            Some(Ok(Answered::Http2(opened))) => break agreed_http2(opened, &asked),
            Some(Err(error)) => tries.after_failure(trail, error, method, spare).await?,
            None => tries.after_timeout(trail, method, spare).await?,
        };
        // It is worded anew, and only its mark is needed.
        again.headers().get(ATTEMPT).map(|attempt| parts.headers.insert(ATTEMPT, attempt.clone()));
    };
    match asking {
        Asking::Agreed(head, io) => {
            Ok(Switch::Tunnel(Box::new(Opening { head, caller, peer: io, idle: policy.tunnel_idle })))
        }
        Asking::Refused(answer) => Ok(refused(answer, policy, deadline, record)),
    }
}

/// Asks on one connection, in the words of its version: the next one may be of the other.
async fn ask_once(lease: Lease, parts: &Parts, asked: &Asked) -> Result<Result<Answered, SendError>, Failure> {
    match lease.version() {
        Leg::Http1 => Ok(lease.send(ask_http1(parts, asked)?, None).await.map(Answered::Http1)),
        Leg::Http2 if !lease.extended_connect() => {
            let detail = "the peer speaks HTTP/2 and does not offer extended CONNECT";
            Err(Failure::new(Reason::UpgradeFailed, detail))
        }
        Leg::Http2 => Ok(lease.open_tunnel(ask_http2(parts, asked)).await.map(Answered::Http2)),
    }
}

fn refused(mut answer: Answer, policy: &PeerPolicy, deadline: Deadline, record: &Exchange) -> Switch {
    hop::response(answer.status(), answer.headers_mut());
    if record.http1() {
        *answer.version_mut() = Version::HTTP_11;
    }
    Switch::Refused(Box::new((answer, Guard::new(policy.body_idle, deadline, None))))
}

/// What was asked for, and how.
struct Asked {
    /// Whether the caller used extended CONNECT.
    http2: bool,
    token: String,
    key: Option<HeaderValue>,
}

/// The peer's answer as it came.
enum Answered {
    Http1(Answer),
    Http2(Opened),
}

enum Asking {
    Agreed(Response<()>, Io),
    Refused(Answer),
}

fn asked(conn: &Conn, parts: &Parts, protocol: Option<h2::ext::Protocol>, facts: &Facts) -> Result<Asked, Failure> {
    let token = match (&protocol, &facts.upgrade) {
        (Some(protocol), _) => protocol.as_str().to_ascii_lowercase(),
        (None, Some(token)) => token.clone(),
        (None, None) => return Err(Failure::new(Reason::Internal, "an upgrade without a token")),
    };
    if protocol.is_some() && token != "websocket" && !conn.door.upgrades.contains(&token) {
        return Err(Failure::new(
            Reason::MethodNotAllowed,
            format!("CONNECT for {token} is not listed under upgrades"),
        ));
    }
    Ok(Asked { http2: protocol.is_some(), token, key: parts.headers.get(header::SEC_WEBSOCKET_KEY).cloned() })
}

fn caller_side(parts: &mut Parts, body: Body) -> Result<CallerSide, Failure> {
    match (body, parts.version) {
        (Body::Http2(body), Version::HTTP_2) => Ok(CallerSide::Http2(body.into_stream())),
        (_, version) if version < Version::HTTP_2 => {
            let mut request = Request::new(());
            std::mem::swap(request.extensions_mut(), &mut parts.extensions);
            let upgrade = hyper::upgrade::on(&mut request);
            std::mem::swap(request.extensions_mut(), &mut parts.extensions);
            Ok(CallerSide::Http1(upgrade))
        }
        _ => Err(Failure::new(Reason::BadHead, "the stream was ended before it could become a tunnel")),
    }
}

/// What is said of a body, and no tunnel has: a server that does not agree to it would wait for one, or take the next
/// request's bytes for it.
const OF_A_BODY: [header::HeaderName; 3] = [header::CONTENT_LENGTH, header::TRAILER, header::EXPECT];

/// The request to an HTTP/1 peer; an extended CONNECT is told in HTTP/1's words (RFC 8441 §5).
fn ask_http1(parts: &Parts, asked: &Asked) -> Result<Request<Body>, Failure> {
    let mut parts = parts.clone();
    parts.version = Version::HTTP_11;
    parts.headers = without(&parts.headers, &OF_A_BODY);
    if asked.http2 {
        parts.method = Method::GET;
        let token = HeaderValue::from_str(&asked.token);
        let token = token.map_err(|_| Failure::new(Reason::BadHead, "the protocol is not a token"))?;
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(header::UPGRADE, token);
        parts.headers.insert(header::SEC_WEBSOCKET_KEY, websocket_key());
    }
    Ok(Request::from_parts(parts, Body::Empty))
}

async fn agreed_http1(mut answer: Answer, asked: &Asked) -> Result<Asking, Failure> {
    if asked.http2 && answer.status().is_success() {
        // Passed on, it would tell the caller that its tunnel is open.
        let status = answer.status().as_u16();
        return Err(Failure::new(Reason::UpgradeFailed, format!("the peer answered the upgrade with {status}")));
    }
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Asking::Refused(answer));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await;
    let upgraded = upgraded.map_err(|error| Failure::new(Reason::UpgradeFailed, error.to_string()))?;
    hop::response(answer.status(), answer.headers_mut());
    let (head, _) = answer.into_parts();
    let mut head = Response::from_parts(head, ());
    if asked.http2 {
        *head.status_mut() = StatusCode::OK;
        *head.headers_mut() =
            without(head.headers(), &[header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_ACCEPT]);
    }
    Ok(Asking::Agreed(head, http1::taken_back(upgraded)))
}

/// The extended CONNECT to an HTTP/2 peer; the scheme is that of the leg.
fn ask_http2(parts: &Parts, asked: &Asked) -> Request<()> {
    let mut parts = parts.clone();
    parts.method = Method::CONNECT;
    parts.uri = parts.uri.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
    parts.extensions.insert(h2::ext::Protocol::from(asked.token.as_str()));
    let [length, trailer, expect] = OF_A_BODY;
    let gone = [header::CONNECTION, header::UPGRADE, header::SEC_WEBSOCKET_KEY, length, trailer, expect];
    parts.headers = without(&parts.headers, &gone);
    parts.version = Version::HTTP_2;
    Request::from_parts(parts, ())
}

fn agreed_http2(opened: Opened, asked: &Asked) -> Asking {
    let (mut head, io) = match opened {
        Opened::Tunnel(head, io) => (head, io),
        Opened::Refused(answer) => return Asking::Refused(answer),
    };
    if !asked.http2 {
        *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *head.version_mut() = Version::HTTP_11;
        let headers = head.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Ok(token) = HeaderValue::from_str(&asked.token) {
            headers.insert(header::UPGRADE, token);
        }
        if let Some(accept) = asked.key.as_ref().and_then(websocket_accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
    }
    Asking::Agreed(head, io)
}

/// A copy without some fields, in the order of the rest.
fn without(headers: &HeaderMap, names: &[header::HeaderName]) -> HeaderMap {
    headers
        .iter()
        .filter(|(name, _)| !names.contains(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// RFC 6455 §4.1: 16 random bytes; HTTP/2 has none, so a server gets one of ours.
fn websocket_key() -> HeaderValue {
    HeaderValue::from_str(&base64(&fastrand::u128(..).to_le_bytes())).unwrap_or(HeaderValue::from_static(""))
}

/// RFC 6455 §4.2.2: the proof that the server has read the key.
fn websocket_accept(key: &HeaderValue) -> Option<HeaderValue> {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let text = [key.as_bytes(), GUID].concat();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    HeaderValue::from_str(&base64(digest.as_ref())).ok()
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0_u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * place)) as usize & 63);
            text.push(if place <= chunk.len() { digit.map_or('=', |digit| char::from(*digit)) } else { '=' });
        }
    }
    text
}

/// The caller's answer; the tunnel runs once it is sent, and ends the record.
pub fn take_over(switch: Switch, mut record: Box<Exchange>) -> Response<Reply> {
    let opening = match switch {
        Switch::Refused(refused) => {
            let (answer, guard) = *refused;
            let (parts, body) = answer.into_parts();
            record.answered(parts.status, Instant::now());
            return Response::from_parts(parts, Reply::peer(body, guard, record));
        }
        Switch::Tunnel(opening) => *opening,
    };
    let Opening { head, caller, peer, idle } = opening;
    let (mut parts, ()) = head.into_parts();
    record.answered(parts.status, Instant::now());
    record.tunnel();
    let conn = record.conn().clone();
    match caller {
        CallerSide::Http1(upgrade) => {
            conn.tasks().spawn(async move {
                match upgrade.await {
                    Ok(io) => tunnel::run(taken_back(io), peer, idle, record).await,
                    Err(error) => record.tunnelled(0, 0, Some(Failure::new(Reason::ClientGone, error.to_string()))),
                }
            });
        }
        CallerSide::Http2(receiving) => {
            let (give, take) = oneshot::channel();
            parts.extensions.insert(Takeover(Arc::new(parking_lot::Mutex::new(Some(give)))));
            conn.tasks().spawn(async move {
                match take.await {
                    Ok(sending) => {
                        tunnel::run(Io::boxed(StreamIo::new(sending, receiving, ())), peer, idle, record).await
                    }
                    Err(_) => {
                        record.tunnelled(
                            0,
                            0,
                            Some(Failure::new(Reason::ClientGone, "the stream ended before the tunnel began")),
                        );
                    }
                }
            });
        }
    }
    Response::from_parts(parts, Reply::text(Bytes::new(), None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_value_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(websocket_accept(&key).unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!([base64(b"f"), base64(b"fo"), base64(b"foo")], ["Zg==", "Zm8=", "Zm9v"]);
    }
}
