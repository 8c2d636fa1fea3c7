//! Reason -> answer: the only place an answer is invented, and the only table that says how.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::call::Failure;
use crate::http::body::BodyError;
use crate::plan::matching::is_grpc;
use crate::plan::peer::PeerKind;
use crate::reason::{Reason, Side};

/// RFC 9209.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Bytes of an answer's text that a `grpc-message` holds: callers bound their heads.
const MOST_WORDS: usize = 1024;

/// One row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The status for HTTP callers.
    pub http: StatusCode,
    /// The status for gRPC callers (gRPC's `statuscodes`).
    pub grpc: u8,
    /// Whether an HTTP/1 connection is closed after it.
    pub close: bool,
}

/// What is answered for a reason. Every reason has its line; there is no other.
pub fn row(reason: Reason) -> Row {
    use Reason as R;
    let (http, grpc, close) = match reason {
        R::BadHead | R::BadBody => (400, 13, true),
        R::PathNotNormal => (400, 3, false),
        R::Denied => (403, 7, false),
        R::TokenMissing | R::TokenInvalid => (401, 16, false),
        R::KeysUnavailable => (503, 14, false),
        R::FaultInjected => (503, 14, false),
        R::HeadTooLarge => (431, 13, true),
        R::UriTooLong => (414, 13, true),
        R::HeadTimeout | R::BodyTimeout => (408, 4, true),
        R::BodyTooLarge => (413, 8, true),
        R::Flood => (429, 8, true),
        R::UnknownCoding => (501, 12, true),
        R::UnknownExpectation => (417, 13, true),
        R::MethodNotAllowed => (405, 12, true),
        R::WrongProtocol | R::ClientTlsFailed | R::ClientGone => (400, 1, true),
        R::ClientCertificateMissing | R::ClientCertificateExpired | R::ClientUntrusted => (403, 7, true),
        R::RefusedByClient => (400, 1, true),
        R::PlaintextRefused => (403, 7, true),
        R::NoRoute => (404, 12, false),
        R::AddressRefused => (403, 7, false),
        R::Looped => (508, 10, true),
        R::Overloaded | R::LimitReached | R::CircuitOpen | R::Throttled => (503, 14, false),
        R::RateLimited => (429, 8, false),
        R::Draining | R::GraceOver => (503, 14, true),
        R::Internal => (500, 13, true),
        R::NoIdentity | R::NoEndpoint | R::DnsFailed | R::ConnectRefused | R::ConnectFailed | R::ConnectTimeout => {
            (503, 14, false)
        }
        R::RefusedStream => (503, 14, false),
        R::TlsFailed | R::Reset | R::UpgradeFailed => (502, 14, false),
        R::PeerIdentityMismatch | R::PeerCertificateExpired | R::PeerUntrusted | R::RefusedByPeer => (502, 14, false),
        R::BadResponse | R::ResponseHeadTooLarge | R::ResponseIncomplete => (502, 13, false),
        R::ResponseTimeout | R::AttemptTimeout | R::DeadlinePassed | R::TunnelIdle => (504, 4, false),
    };
    Row { http: StatusCode::from_u16(http).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), grpc, close }
}

/// The side to look at first, which for an app behind the door is the app.
pub fn side(reason: Reason, kind: Option<PeerKind>) -> Side {
    match (reason.side(), kind) {
        (Side::Peer | Side::Network, Some(PeerKind::App)) => Side::App,
        (side, _) => side,
    }
}

/// The invented answer: for gRPC callers trailers-only, for all others a line of text; always with `Proxy-Status`.
pub fn answer(failure: &Failure, kind: Option<PeerKind>, grpc: bool, http1: bool) -> Response<Bytes> {
    let row =
        failure.status.map_or(row(failure.reason), |http| Row { http, grpc: grpc_code(http), ..row(failure.reason) });
    let side = side(failure.reason, kind).word();
    let (word, detail) = (failure.reason.word(), plain(told(failure)));
    let mut answer = Response::new(Bytes::new());
    let text = format!("outrigger: {word} ({side}): {detail}");
    let headers = answer.headers_mut();
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(row.grpc)));
        headers.insert(GRPC_MESSAGE, value(&percent(text.as_bytes())));
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    }
    headers.insert(PROXY_STATUS, proxy_status(failure, kind));
    if let Some(fields) = &failure.fields {
        headers.extend((**fields).clone());
    }
    if let Some(challenge) = challenge(failure.reason) {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if failure.reason == Reason::MethodNotAllowed {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"));
    }
    if row.close && http1 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if !grpc {
        *answer.status_mut() = row.http;
        *answer.body_mut() = Bytes::from(text + "\n");
    }
    answer
}

/// What a 401 asks for (RFC 6750 §3): who sent no token is not told of an error.
fn challenge(reason: Reason) -> Option<HeaderValue> {
    match reason {
        Reason::TokenMissing => Some(HeaderValue::from_static("Bearer")),
        Reason::TokenInvalid => Some(HeaderValue::from_static("Bearer error=\"invalid_token\"")),
        _ => None,
    }
}

/// An answer that stands in the file as a gRPC caller understands it: trailers-only, with its status's code and its text.
pub fn for_grpc(answer: Response<Bytes>) -> Response<Bytes> {
    if answer.headers().get(header::CONTENT_TYPE).is_some_and(is_grpc) {
        return answer;
    }
    let (mut parts, text) = answer.into_parts();
    let words = if text.is_empty() { parts.status.canonical_reason().unwrap_or_default().as_bytes() } else { &text };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    // What the route itself sets is better known there.
    if !parts.headers.contains_key(GRPC_STATUS) {
        parts.headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(grpc_code(parts.status))));
        parts.headers.insert(GRPC_MESSAGE, value(&percent(words.get(..MOST_WORDS).unwrap_or(words))));
    }
    parts.status = StatusCode::OK;
    Response::from_parts(parts, Bytes::new())
}

/// The field that says why (RFC 9209), also beside what stands in for a peer's answer.
pub fn proxy_status(failure: &Failure, kind: Option<PeerKind>) -> HeaderValue {
    let (word, side) = (failure.reason.word(), side(failure.reason, kind).word());
    value(&format!(
        "outrigger; error={}; details=\"{}\"; reason={word}; side={side}",
        failure.reason.proxy_error(),
        plain(told(failure)).replace('\\', "\\\\").replace('"', "\\\""),
    ))
}

/// What a caller is told in words: who is kept out does not learn by which rule. The access line has the whole.
fn told(failure: &Failure) -> &str {
    match failure.reason {
        Reason::Denied => "the rules of this service do not allow it",
        _ => &failure.detail,
    }
}

/// The gRPC code of a status (gRPC's `http-grpc-status-mapping`).
fn grpc_code(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}

/// The HTTP/1 answer to a head that is late, written by the connection's clock, which knows no messages.
pub const LATE_HEAD: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\
    proxy-status: outrigger; error=http_request_error; reason=head_timeout; side=client\r\n\r\n";

/// What a body that broke after the head was passed on is to be called, seen from its receiver.
pub fn broken_answer(error: &BodyError) -> Reason {
    match error {
        BodyError::Http1(_) | BodyError::Http2(_) | BodyError::Short => Reason::ResponseIncomplete,
        BodyError::Idle => Reason::ResponseTimeout,
        BodyError::Deadline => Reason::DeadlinePassed,
        BodyError::TooLarge => Reason::BodyTooLarge,
        BodyError::Forced => Reason::GraceOver,
        BodyError::Superseded => Reason::Internal,
    }
}

/// Header text has no control bytes, and nothing beyond ASCII; a peer's words could hold both.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' }).take(300).collect()
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("outrigger"))
}

/// Percent-encoding of `grpc-message` (gRPC over HTTP/2): printable ASCII but `%` stays.
fn percent(text: &[u8]) -> String {
    let mut coded = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'~' if *byte != b'%' => coded.push(char::from(*byte)),
            _ => coded.push_str(&format!("%{byte:02X}")),
        }
    }
    coded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_kept_out_does_not_learn_by_which_rule() {
        let failure = Failure::new(Reason::Denied, "`inbound.deny[0]` (line 3) denies it");
        for grpc in [false, true] {
            let told = format!("{:?}", answer(&failure, None, grpc, true));
            assert!(told.contains("denied (policy)") && !told.contains("inbound"), "{told}");
        }
    }

    #[test]
    fn every_reason_has_an_error_answer() {
        for &reason in Reason::ALL {
            let row = row(reason);
            assert!(row.http.is_client_error() || row.http.is_server_error(), "{reason:?}");
            assert!((1..=16).contains(&row.grpc), "{reason:?}");
        }
    }

    #[test]
    fn an_invented_answer_names_reason_and_side() {
        let failure = Failure::new(Reason::ConnectRefused, "10.0.0.1:80 said \"no\"\r\n");
        let http = answer(&failure, Some(PeerKind::App), false, true);
        assert_eq!(http.status(), 503);
        assert_eq!(
            http.headers()["proxy-status"],
            r#"outrigger; error=connection_refused; details="10.0.0.1:80 said \"no\"??"; reason=connect_refused; side=app"#
        );
        assert_eq!(http.body(), "outrigger: connect_refused (app): 10.0.0.1:80 said \"no\"??\n");
        let grpc = answer(&failure, Some(PeerKind::Named), true, false);
        assert_eq!((grpc.status().as_u16(), &grpc.headers()["grpc-status"]), (200, &HeaderValue::from_static("14")));
        assert!(grpc.body().is_empty());
    }
}
