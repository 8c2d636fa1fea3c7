//! Heads, judged and normalised once, before any decision: what follows decides on the very bytes that are forwarded.
//!
//! Strips hop-by-hop fields (RFC 9110 §7.6.1) and those that only this proxy may set, checks the authority, and finds
//! the facts that the corridor needs. Never rewrites a path.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Uri, Version};

use super::authority::Authority;
use super::forwarded;
use super::hop::{
    HTTP2_SETTINGS, KEEP_ALIVE, PROXY_CONNECTION, connection_names, hop_by_hop, list, named_by_connection,
};
use super::mark::{ATTEMPT, TRACE_STATE, is_marked};
use super::time_left::{GRPC_TIMEOUT, grpc_timeout};
use crate::deadline::Deadline;
use crate::plan::matching::{folded, is_grpc};
use crate::reason::Reason;

/// How many sidecars a request has passed through.
pub const HOPS: HeaderName = HeaderName::from_static("x-outrigger-hops");
/// Marks a copy of a request, whose answer nobody reads.
pub const MIRROR: HeaderName = HeaderName::from_static("x-outrigger-mirror");
/// How many milliseconds the caller still waits.
pub const DEADLINE: HeaderName = HeaderName::from_static("x-outrigger-deadline-ms");
/// Names one request across services.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The caller's certificate, set by proxies only.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The addresses a request came through.
pub const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The scheme the first caller used.
pub const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

const OWN_PREFIX: &str = "x-outrigger-";

/// More sidecars than this on one way are a loop.
pub const MOST_HOPS: u8 = 10;

/// What the door knows about a request before reading its head.
#[derive(Clone, Copy)]
pub struct Rules<'a> {
    /// Whether absolute-form and CONNECT are served (RFC 9112 §3.2.2): the outbound side only.
    pub forward_proxy: bool,
    /// Whether `Forwarded` and `X-Forwarded-*` of this caller are believed.
    pub trusted: bool,
    /// Whether a caller that is believed and says nothing of where it comes from is told of as another is.
    pub fills: bool,
    /// The caller's address, where one is to be told in `X-Forwarded-For`.
    pub client: Option<&'a HeaderValue>,
    /// Whether the caller's connection is TLS.
    pub tls: bool,
    /// Upgrade tokens that may tunnel besides `websocket`, in lower case.
    pub upgrades: &'a [String],
    /// The authority of requests that carry none, as HTTP/1.0 allows.
    pub default_authority: Option<&'a HeaderValue>,
    /// Fields in a head.
    pub fields: usize,
    /// Bytes in a head.
    pub bytes: usize,
}

/// What a head says, beside the fields themselves.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Whom it is for.
    pub authority: Authority,
    /// `x-request-id`, the caller's or a new one.
    pub id: HeaderValue,
    /// The token of an upgrade that is listed, in lower case.
    pub upgrade: Option<String>,
    /// Whether the caller waits for a 100 before it sends its body.
    pub expects_continue: bool,
    /// Whether it is gRPC, so that failures are told in trailers.
    pub grpc: bool,
    /// How long the caller waits, as it says itself.
    pub patience: Option<Duration>,
    /// Whether it came in absolute-form, as to a forward proxy.
    pub absolute: bool,
    /// Whether it is a sidecar's further attempt: to repeat it again would multiply what was multiplied already.
    pub marked: bool,
    /// Whether it is a copy, whose answer nobody waits for.
    pub copied: bool,
    /// Whether a body follows; the head alone cannot tell, so whoever has the body says it.
    pub body: bool,
}

/// Why a head is refused: the reason, and what exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadError {
    /// The reason.
    pub reason: Reason,
    /// In words.
    pub detail: &'static str,
}

fn refuse<T>(reason: Reason, detail: &'static str) -> Result<T, HeadError> {
    Err(HeadError { reason, detail })
}

fn bad<T>(detail: &'static str) -> Result<T, HeadError> {
    refuse(Reason::BadHead, detail)
}

/// What one walk over the fields finds.
#[derive(Default)]
struct Found {
    /// A field must go, so the map is rebuilt.
    strip: bool,
    /// `Connection` names further fields.
    connection: bool,
    te_trailers: bool,
    upgrade: Option<String>,
    expects_continue: bool,
    grpc: bool,
    hops: u8,
    patience: Option<Duration>,
    request_id: Option<HeaderValue>,
    marked: bool,
    copied: bool,
    crumbs: usize,
    bytes: usize,
}

/// Judges and normalises a request's head in place. Afterwards the target is in origin-form (or `*`, or the authority
/// of a CONNECT), exactly one Host field stands in the map, and no hop-by-hop field is left but those of a listed upgrade.
///
/// # Errors
/// The reason and words for a refusal; nothing may be forwarded then.
pub fn request(parts: &mut Parts, rules: &Rules<'_>) -> Result<Facts, HeadError> {
    if parts.headers.len() > rules.fields {
        return refuse(Reason::HeadTooLarge, "more fields than the limit");
    }
    if parts.method == Method::CONNECT && !rules.forward_proxy && !is_extended_connect(parts) {
        return refuse(Reason::MethodNotAllowed, "CONNECT is not served at this door");
    }
    let found = walk(parts, rules)?;
    if found.bytes > rules.bytes {
        return refuse(Reason::HeadTooLarge, "more bytes than the limit");
    }
    let Meant { authority, absolute, in_host } = authority(parts, rules)?;
    origin_form(parts)?;
    if found.hops >= MOST_HOPS {
        return refuse(Reason::Looped, "the request has passed through more than 10 sidecars");
    }
    if found.strip || found.crumbs > 1 {
        rebuild(&mut parts.headers, &found, rules);
    }
    // A field that names it is passed on as it is.
    let host = if in_host { None } else { Some(authority.raw()) };
    let id = found.request_id.clone().unwrap_or_else(fresh_id);
    add(parts, &found, rules, host, &id)?;
    Ok(Facts {
        authority,
        id,
        upgrade: found.upgrade,
        expects_continue: found.expects_continue,
        grpc: found.grpc,
        patience: found.patience,
        absolute,
        marked: found.marked,
        copied: found.copied,
        body: false,
    })
}

/// RFC 8441: CONNECT with a `:protocol`, which stands in the extensions.
fn is_extended_connect(parts: &Parts) -> bool {
    parts.version == Version::HTTP_2 && parts.extensions.get::<h2::ext::Protocol>().is_some()
}

fn walk(parts: &Parts, rules: &Rules<'_>) -> Result<Found, HeadError> {
    let mut found = Found::default();
    let (mut hosts, mut codings, mut lengths) = (0, 0, 0);
    for (name, value) in &parts.headers {
        found.bytes += name.as_str().len() + value.len() + 4;
        if is_padded(value.as_bytes()) {
            return bad("a field's value begins or ends with a blank");
        }
        match *name {
            header::HOST => hosts += 1,
            header::CONNECTION => (found.connection, found.strip) = (true, true),
            header::TRANSFER_ENCODING => {
                // hyper has taken the last coding to be chunked; what it does not know, it would pass on undecoded.
                codings += 1;
                found.strip = true;
                if codings > 1 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return refuse(Reason::UnknownCoding, "a transfer coding other than chunked");
                }
            }
            header::TE => {
                found.strip = true;
                found.te_trailers |= list(value).any(|word| word.eq_ignore_ascii_case("trailers"));
            }
            header::UPGRADE => {
                found.strip = true;
                found.upgrade = found.upgrade.take().or_else(|| listed(value, rules.upgrades));
            }
            header::EXPECT if parts.version != Version::HTTP_10 => {
                if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
                    return refuse(Reason::UnknownExpectation, "an expectation other than 100-continue");
                }
                found.expects_continue = true;
            }
            header::CONTENT_TYPE => found.grpc = is_grpc(value),
            header::COOKIE => found.crumbs += 1,
            header::CONTENT_LENGTH => {
                lengths += 1;
                if lengths > 1 {
                    return bad("more than one content-length");
                }
                // What follows is the tunnel's (RFC 9113 §8.5): told on to a server, it would eat the next request.
                if parts.method == Method::CONNECT && value != "0" {
                    return bad("a CONNECT with a content-length");
                }
            }
            ref name => custom(name, value, rules, &mut found),
        }
    }
    if hosts > 1 {
        return bad("more than one Host field");
    }
    if parts.version >= Version::HTTP_2 || parts.version == Version::HTTP_10 {
        // An upgrade belongs to HTTP/1.1 (RFC 9110 §7.8); HTTP/2 has extended CONNECT.
        found.upgrade = None;
    } else if found.upgrade.is_some() && !connection_names(&parts.headers, "upgrade") {
        found.upgrade = None;
    }
    Ok(found)
}

/// What makes a field of HTTP/2 malformed (RFC 9113 §8.2.1), and h2 lets pass: a rule would see another value than a service
/// that trims, or that is spoken to in HTTP/1, where no blanks at the ends of a value are part of it.
fn is_padded(value: &[u8]) -> bool {
    matches!(value, [b' ' | b'\t', ..] | [.., b' ' | b'\t'])
}

/// Fields that have no constant of their own to match on.
fn custom(name: &HeaderName, value: &HeaderValue, rules: &Rules<'_>, found: &mut Found) {
    let text = name.as_str();
    match text.as_bytes().first() {
        Some(b'k') => found.strip |= *name == KEEP_ALIVE,
        Some(b'p') => {
            found.strip |= *name == PROXY_CONNECTION || (rules.forward_proxy && *name == header::PROXY_AUTHORIZATION);
        }
        Some(b'h') => found.strip |= *name == HTTP2_SETTINGS,
        Some(b'g') if *name == GRPC_TIMEOUT => found.patience = shorter(found.patience, grpc_timeout(value)),
        Some(b't') if *name == TRACE_STATE => found.marked |= is_marked(value),
        Some(b'f') => found.strip |= !rules.trusted && *name == header::FORWARDED,
        Some(b'x') => {
            if *name == REQUEST_ID {
                found.request_id.get_or_insert_with(|| value.clone());
            } else if *name == HOPS {
                // Rebuilt with one more; a text that is no number counts as a loop rather than as a fresh request.
                found.strip = true;
                found.hops = value.to_str().ok().and_then(|text| text.parse().ok()).unwrap_or(MOST_HOPS);
            } else if *name == ATTEMPT {
                found.marked |= value.as_bytes() != b"1";
            } else if *name == MIRROR {
                found.copied = true;
            } else if *name == DEADLINE {
                let millis = value.to_str().ok().and_then(|text| text.parse().ok()).map(Duration::from_millis);
                found.patience = shorter(found.patience, millis);
            } else {
                found.strip |= reserved(text, rules);
            }
        }
        _ => {}
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Fields that no caller may set, in any spelling that a server may take for them ([`folded`]).
fn reserved(name: &str, rules: &Rules<'_>) -> bool {
    if name.bytes().all(|byte| folded(byte) == byte) {
        let own = name.starts_with(OWN_PREFIX) && name != ATTEMPT.as_str() && name != MIRROR.as_str();
        let forwarded = name.starts_with("x-forwarded-");
        return own || name == CLIENT_CERT.as_str() || (forwarded && !rules.trusted);
    }
    of_proxies(name)
}

/// Whether some server may take a field for one that only proxies set.
pub(super) fn of_proxies(name: &str) -> bool {
    [OWN_PREFIX, "x-forwarded-"].iter().any(|start| name.bytes().map(folded).take(start.len()).eq(start.bytes()))
}

/// Whom a request is for.
struct Meant {
    authority: Authority,
    /// Whether it came in absolute-form.
    absolute: bool,
    /// Whether the Host field says just that.
    in_host: bool,
}

/// Finds whom the request is for (RFC 9112 §3.2, RFC 9113 §8.3.1).
fn authority(parts: &Parts, rules: &Rules<'_>) -> Result<Meant, HeadError> {
    let by_target = |authority, absolute| Ok(Meant { authority, absolute, in_host: false });
    let host = parts.headers.get(header::HOST);
    let default = if rules.tls { 443 } else { 80 };
    let from_uri = parts
        .uri
        .authority()
        .map(|authority| HeaderValue::from_str(authority.as_str()).ok().and_then(Authority::parse));
    let from_host = host.filter(|host| !host.is_empty()).map(|host| Authority::parse(host.clone()));
    let absolute = parts.version < Version::HTTP_2 && parts.uri.scheme().is_some();
    match (from_uri, from_host) {
        (Some(None), _) | (None, Some(None)) => bad("the authority is not `host[:port]`"),
        (Some(Some(uri)), _) if parts.method == Method::CONNECT => by_target(uri, false),
        // A proxy replaces Host by the target's authority (RFC 9112 §3.2.2).
        (Some(Some(uri)), _) if absolute && rules.forward_proxy => by_target(uri, true),
        (Some(Some(uri)), Some(Some(host))) if !uri.same(&host, default) => {
            bad("Host and the target's authority differ")
        }
        (Some(Some(_)), Some(None)) => bad("the Host field is not `host[:port]`"),
        (Some(Some(uri)), _) => by_target(uri, absolute),
        (None, Some(Some(authority))) => Ok(Meant { authority, absolute: false, in_host: true }),
        (None, None) if host.is_some() || parts.version == Version::HTTP_10 => {
            match rules.default_authority.cloned().and_then(Authority::parse) {
                Some(authority) => by_target(authority, false),
                None => bad("no host is named"),
            }
        }
        (None, None) => bad("the Host field is missing"),
    }
}

/// Leaves only path and query in the target; a CONNECT keeps its authority.
fn origin_form(parts: &mut Parts) -> Result<(), HeadError> {
    if parts.method == Method::CONNECT && !is_extended_connect(parts) {
        return if parts.uri.path().is_empty() || parts.version >= Version::HTTP_2 {
            Ok(())
        } else {
            bad("CONNECT takes `host:port`")
        };
    }
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    // An absolute URI may have no path at all, or a query without one (RFC 9112 §3.2.1: it is `/` then).
    let pathless = parts.uri.scheme().is_some() && !path.starts_with('/') && path != "*";
    let ok = match path {
        "*" => parts.method == Method::OPTIONS,
        path => path.starts_with('/') || pathless,
    };
    if !ok {
        return bad("the target is neither a path nor an absolute URI");
    }
    if let Some(scheme) = parts.uri.scheme()
        && *scheme != http::uri::Scheme::HTTP
        && *scheme != http::uri::Scheme::HTTPS
    {
        return bad("the target's scheme is neither http nor https");
    }
    if parts.uri.authority().is_some() {
        let mut uri = http::uri::Parts::default();
        uri.path_and_query =
            if pathless { format!("/{path}").parse().ok() } else { parts.uri.path_and_query().cloned() };
        parts.uri = Uri::from_parts(uri).or_else(|_| bad("the target is not a URI"))?;
    }
    Ok(())
}

/// Copies the map without what must go; the order of the rest stays (removing from it would swap fields).
fn rebuild(headers: &mut HeaderMap, found: &Found, rules: &Rules<'_>) {
    let old = std::mem::take(headers);
    headers.reserve(old.len());
    let named: Vec<String> = if found.connection { named_by_connection(&old) } else { Vec::new() };
    let cookie = (found.crumbs > 1).then(|| joined_cookie(&old)).flatten();
    let mut last = None;
    for (name, value) in old {
        // The iterator gives the name with the first of its values only.
        let first = name.is_some();
        let Some(name) = name.or_else(|| last.clone()) else { continue };
        let goes = hop_by_hop(&name)
            || name == HOPS
            || (rules.forward_proxy && name == header::PROXY_AUTHORIZATION)
            || (name == header::FORWARDED && !rules.trusted)
            || (name.as_str().starts_with('x') && name != DEADLINE && reserved(name.as_str(), rules))
            || named.iter().any(|other| other == name.as_str());
        if !goes {
            match &cookie {
                Some(cookie) if name == header::COOKIE => {
                    if first {
                        headers.append(name.clone(), cookie.clone());
                    }
                }
                _ => {
                    headers.append(name.clone(), value);
                }
            }
        }
        last = Some(name);
    }
}

/// HTTP/2 may cut Cookie into crumbs; HTTP/1 has one field (RFC 9113 §8.2.3).
fn joined_cookie(headers: &HeaderMap) -> Option<HeaderValue> {
    let crumbs: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).ok()
}

/// Adds what the next hop is to know.
fn add(
    parts: &mut Parts,
    found: &Found,
    rules: &Rules<'_>,
    host: Option<&HeaderValue>,
    id: &HeaderValue,
) -> Result<(), HeadError> {
    let names_host = parts.method != Method::CONNECT || is_extended_connect(parts);
    let headers = &mut parts.headers;
    // Room for all that may be added, so that the map grows once at most.
    headers.reserve(6);
    if let Some(host) = host.filter(|_| names_host) {
        headers.insert(header::HOST, host.clone());
    }
    if found.te_trailers || found.grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let Some(token) = &found.upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        let token = HeaderValue::from_str(token).or_else(|_| bad("the upgrade is not a token"))?;
        headers.insert(header::UPGRADE, token);
    }
    headers.insert(HOPS, hops(found.hops + 1));
    if found.request_id.is_none() {
        headers.insert(REQUEST_ID, id.clone());
    }
    forwarded::tell(headers, rules);
    Ok(())
}

fn hops(n: u8) -> HeaderValue {
    const TEXT: [&str; 11] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    HeaderValue::from_static(TEXT.get(usize::from(n)).copied().unwrap_or("10"))
}

/// 128 random bits in hex; the name of a request is no secret.
pub fn fresh_id() -> HeaderValue {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut bits = fastrand::u128(..);
    let mut text = [0_u8; 32];
    for cell in &mut text {
        *cell = DIGITS.get((bits & 15) as usize).copied().unwrap_or(b'0');
        bits >>= 4;
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}

fn listed(value: &HeaderValue, upgrades: &[String]) -> Option<String> {
    list(value).map(str::to_ascii_lowercase).find(|token| token == "websocket" || upgrades.contains(token))
}

/// Whether a request is gRPC, asked before its head is judged, so that even a refusal is told as gRPC does.
pub fn is_grpc_call(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(is_grpc)
}

impl Facts {
    /// The caller's patience as a deadline, counted from `now`.
    pub fn patience_from(&self, now: tokio::time::Instant) -> Deadline {
        Deadline::after(now, self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const RULES: Rules<'_> = Rules {
        forward_proxy: false,
        trusted: false,
        fills: false,
        client: None,
        tls: false,
        upgrades: &[],
        default_authority: None,
        fields: 128,
        bytes: 65_536,
    };

    fn parts(target: &str, version: Version, fields: &[(&str, &str)]) -> Parts {
        let (method, uri) = target.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(uri).version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn judged(
        target: &str,
        version: Version,
        fields: &[(&str, &str)],
        rules: &Rules<'_>,
    ) -> Result<(Parts, Facts), Reason> {
        let mut parts = parts(target, version, fields);
        let facts = request(&mut parts, rules).map_err(|error| error.reason)?;
        Ok((parts, facts))
    }

    fn refused(target: &str, version: Version, fields: &[(&str, &str)], rules: &Rules<'_>) -> Option<Reason> {
        judged(target, version, fields, rules).err()
    }

    #[test]
    fn a_length_is_said_once_and_never_of_a_tunnel() {
        let proxy = Rules { forward_proxy: true, ..RULES };
        for (target, version, lengths, expect) in [
            ("POST http://a/", Version::HTTP_2, &["5"][..], None),
            ("POST http://a/", Version::HTTP_2, &["0", "5"], Some(Reason::BadHead)),
            ("POST http://a/", Version::HTTP_2, &["5", "5"], Some(Reason::BadHead)),
            ("CONNECT a:1", Version::HTTP_2, &["0"], None),
            ("CONNECT a:1", Version::HTTP_2, &["5"], Some(Reason::BadHead)),
            ("CONNECT a:1", Version::HTTP_2, &["00"], Some(Reason::BadHead)),
            ("CONNECT a:1", Version::HTTP_11, &["5"], Some(Reason::BadHead)),
        ] {
            let host = if version == Version::HTTP_11 { &[("host", "a:1")][..] } else { &[] };
            let fields: Vec<_> = host.iter().copied().chain(lengths.iter().map(|n| ("content-length", *n))).collect();
            assert_eq!(refused(target, version, &fields, &proxy), expect, "{target} {lengths:?}");
        }
        let mut asked = parts("CONNECT http://a/ws", Version::HTTP_2, &[("content-length", "5")]);
        asked.extensions.insert(h2::ext::Protocol::from_static("websocket"));
        assert_eq!(request(&mut asked, &RULES).unwrap_err().reason, Reason::BadHead);
    }

    fn names(parts: &Parts) -> Vec<&str> {
        parts.headers.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "x-request-id").collect()
    }

    #[test]
    fn heads_in_doubt_are_refused() {
        let v11 = Version::HTTP_11;
        let proxy = Rules { forward_proxy: true, ..RULES };
        let host = ("host", "a");
        assert_eq!(refused("GET /", v11, &[], &RULES), Some(Reason::BadHead));
        assert_eq!(refused("GET /", v11, &[host, ("host", "a")], &RULES), Some(Reason::BadHead));
        assert_eq!(refused("GET /", v11, &[("host", "u@a")], &RULES), Some(Reason::BadHead));
        assert_eq!(refused("GET http://b/", v11, &[host], &RULES), Some(Reason::BadHead));
        assert_eq!(refused("GET ftp://a/", v11, &[host], &RULES), Some(Reason::BadHead));
        assert_eq!(refused("GET a", v11, &[host], &RULES), Some(Reason::BadHead));
        assert_eq!(refused("GET *", v11, &[host], &RULES), Some(Reason::BadHead));
        assert_eq!(
            refused("GET /", v11, &[host, ("transfer-encoding", "gzip, chunked")], &RULES),
            Some(Reason::UnknownCoding)
        );
        assert_eq!(
            refused("GET /", v11, &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")], &RULES),
            Some(Reason::UnknownCoding)
        );
        assert_eq!(refused("GET /", v11, &[host, ("expect", "a-miracle")], &RULES), Some(Reason::UnknownExpectation));
        assert_eq!(refused("CONNECT a:80", v11, &[host], &RULES), Some(Reason::MethodNotAllowed));
        assert_eq!(refused("CONNECT a:80", v11, &[host], &proxy), None);
        for padded in [" admin", "admin ", "admin\t", "\tadmin", " "] {
            let fields = [host, ("x-role", padded)];
            assert_eq!(refused("GET /", Version::HTTP_2, &fields, &RULES), Some(Reason::BadHead), "{padded:?}");
        }
        assert_eq!(refused("GET /", Version::HTTP_2, &[host, ("x-role", "a b"), ("x-none", "")], &RULES), None);
        assert_eq!(refused("GET /", v11, &[host, ("x-outrigger-hops", "10")], &RULES), Some(Reason::Looped));
        assert_eq!(refused("GET /", v11, &[host, ("x-outrigger-hops", "many")], &RULES), Some(Reason::Looped));
        assert_eq!(refused("GET http://a:80/", Version::HTTP_2, &[("host", "b")], &RULES), Some(Reason::BadHead));
        assert_eq!(
            refused("GET /", v11, &[host, ("a", "1"), ("b", "2")], &Rules { fields: 2, ..RULES }),
            Some(Reason::HeadTooLarge)
        );
    }

    #[test]
    fn hop_by_hop_fields_go_and_the_rest_keeps_its_order() {
        let fields = [
            ("host", "a"),
            ("b", "1"),
            ("connection", "keep-alive, c, host"),
            ("c", "2"),
            ("keep-alive", "5"),
            ("te", "gzip"),
            ("d", "3"),
            ("proxy-connection", "x"),
            ("upgrade", "h2c"),
            ("http2-settings", "x"),
            ("a", "4"),
        ];
        let (parts, facts) = judged("GET /", Version::HTTP_11, &fields, &RULES).unwrap();
        assert_eq!(names(&parts), ["host", "b", "d", "a", "x-outrigger-hops"]);
        assert_eq!(facts.upgrade, None);
        assert_eq!(parts.headers["x-outrigger-hops"], "1");
    }

    #[test]
    fn reserved_fields_of_callers_go_in_any_spelling() {
        let fields = [
            ("host", "a"),
            ("x-forwarded-client-cert", "1"),
            ("x_forwarded_for", "1"),
            ("x.forwarded.client.cert", "1"),
            ("x-forwarded-client~cert", "1"),
            ("x.outrigger|identity", "1"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-outrigger-identity", "1"),
            ("forwarded", "for=6.6.6.6"),
            ("x-other", "kept"),
            ("x-outrigger-hops", "3"),
        ];
        let client = HeaderValue::from_static("10.0.0.9");
        let (parts, _) = judged("GET /", Version::HTTP_11, &fields, &Rules { client: Some(&client), ..RULES }).unwrap();
        assert_eq!(names(&parts), ["host", "x-other", "x-outrigger-hops", "x-forwarded-for", "x-forwarded-proto"]);
        assert_eq!(
            (&parts.headers["x-forwarded-for"], &parts.headers["x-outrigger-hops"]),
            (&client, &HeaderValue::from_static("4"))
        );
        let (parts, _) = judged("GET /", Version::HTTP_11, &fields, &Rules { trusted: true, ..RULES }).unwrap();
        assert_eq!(
            (&parts.headers["x-forwarded-for"], parts.headers.contains_key("x-forwarded-client-cert")),
            (&HeaderValue::from_static("6.6.6.6"), false)
        );
    }

    #[test]
    fn a_sidecar_of_the_mesh_is_believed_and_told_of_where_it_says_nothing() {
        let client = HeaderValue::from_static("10.0.0.9");
        let mesh = Rules { trusted: true, fills: true, client: Some(&client), ..RULES };
        for (said, expect) in [
            (&[][..], &[("x-forwarded-for", "10.0.0.9"), ("x-forwarded-proto", "http")][..]),
            (
                &[("x-forwarded-for", "6.6.6.6, 10.1.1.1")],
                &[("x-forwarded-for", "6.6.6.6, 10.1.1.1"), ("x-forwarded-proto", "http")],
            ),
            (&[("x-forwarded-proto", "https")], &[("x-forwarded-proto", "https"), ("x-forwarded-for", "10.0.0.9")]),
            (&[("forwarded", "for=6.6.6.6;proto=https")], &[("forwarded", "for=6.6.6.6;proto=https")]),
        ] {
            let fields = [&[("host", "a")], said].concat();
            let (parts, _) = judged("GET /", Version::HTTP_11, &fields, &mesh).unwrap();
            let told = parts.headers.iter().filter(|(name, _)| name.as_str().contains("forwarded"));
            let told: Vec<_> = told.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            assert_eq!(told, expect);
        }
    }

    #[test]
    fn targets_become_origin_form_and_host_is_the_authority() {
        let proxy = Rules { forward_proxy: true, ..RULES };
        let (parts, facts) = judged("GET http://B:8080?q", Version::HTTP_11, &[("host", "other")], &proxy).unwrap();
        assert_eq!(
            (parts.uri.to_string().as_str(), &parts.headers["host"]),
            ("/?q", &HeaderValue::from_static("B:8080"))
        );
        assert!(facts.absolute && facts.authority.host() == "b");
        let (parts, _) =
            judged("GET http://a/x", Version::HTTP_2, &[("cookie", "a=1"), ("z", "1"), ("cookie", "b=2")], &RULES)
                .unwrap();
        assert_eq!(parts.headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
        assert_eq!((parts.uri.to_string().as_str(), &parts.headers["host"]), ("/x", &HeaderValue::from_static("a")));
        let default = HeaderValue::from_static("localhost");
        let (parts, _) =
            judged("GET /", Version::HTTP_10, &[], &Rules { default_authority: Some(&default), ..RULES }).unwrap();
        assert_eq!(parts.headers["host"], "localhost");
    }

    #[test]
    fn a_listed_upgrade_stays_and_patience_is_the_shorter() {
        let fields = [
            ("host", "a"),
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("grpc-timeout", "2S"),
            ("x-outrigger-deadline-ms", "1500"),
        ];
        let (parts, facts) = judged("GET /", Version::HTTP_11, &fields, &RULES).unwrap();
        assert_eq!((facts.upgrade.as_deref(), facts.patience), (Some("websocket"), Some(Duration::from_millis(1500))));
        assert_eq!(
            (&parts.headers["connection"], &parts.headers["upgrade"]),
            (&HeaderValue::from_static("upgrade"), &HeaderValue::from_static("websocket"))
        );
    }
}
