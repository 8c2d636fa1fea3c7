//! Hop-by-hop fields (RFC 9110 §7.6.1): what belongs to one connection and must not be passed on.

use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub(super) const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
pub(super) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
pub(super) const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Normalises an answer's head in place: hop-by-hop fields go, but those of an upgrade that was made.
pub fn response(status: StatusCode, headers: &mut HeaderMap) {
    let Some(first) = headers.keys().position(hop_by_hop) else { return };
    let upgraded = status == StatusCode::SWITCHING_PROTOCOLS;
    let upgrade = if upgraded { headers.get(header::UPGRADE).cloned() } else { None };
    let names = names_more(headers);
    if !names && first + 1 == headers.keys().len() {
        drop_last(headers);
    } else {
        let named = if names { named_by_connection(headers) } else { Vec::new() };
        let old = std::mem::take(headers);
        headers.reserve(old.len());
        let mut last = None;
        for (name, value) in old {
            let Some(name) = name.or_else(|| last.clone()) else { continue };
            if !hop_by_hop(&name) && !named.iter().any(|other| other == name.as_str()) {
                headers.append(name.clone(), value);
            }
            last = Some(name);
        }
    }
    if let Some(token) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, token);
    }
}

/// Drops the last field, where most servers put `Connection`: nothing changes its place then.
#[expect(clippy::disallowed_methods, reason = "removing the last field swaps it with itself")]
fn drop_last(headers: &mut HeaderMap) {
    if let Some(name) = headers.keys().last().cloned() {
        headers.remove(name);
    }
}

/// RFC 9110 §7.6.1; `Trailer` stays, because HTTP/1 sends only trailers that it announces.
pub(super) fn hop_by_hop(name: &HeaderName) -> bool {
    matches!(*name, header::CONNECTION | header::TRANSFER_ENCODING | header::TE | header::UPGRADE)
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
        || *name == HTTP2_SETTINGS
}

/// Words of `Connection` that name no field to be dropped, or one that frames or addresses the message.
const KEPT: [&str; 6] = ["keep-alive", "close", "upgrade", "host", "content-length", "x-request-id"];

/// Whether `Connection` names further fields; most say `keep-alive` or `close` and nothing else.
fn names_more(headers: &HeaderMap) -> bool {
    let says_little = |value: &HeaderValue| {
        let word = value.as_bytes();
        word.eq_ignore_ascii_case(b"keep-alive") || word.eq_ignore_ascii_case(b"close")
    };
    headers.get_all(header::CONNECTION).iter().any(|value| !says_little(value))
}

/// The fields that `Connection` names, in lower case. Those that frame or address the message stay whatever it says.
pub(super) fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(list)
        .filter(|name| !KEPT.iter().any(|kept| name.eq_ignore_ascii_case(kept)))
        .map(str::to_ascii_lowercase)
        .collect()
}

pub(super) fn connection_names(headers: &HeaderMap, word: &str) -> bool {
    headers.get_all(header::CONNECTION).iter().flat_map(list).any(|name| name.eq_ignore_ascii_case(word))
}

/// The words of a comma-separated list.
pub(super) fn list(value: &HeaderValue) -> impl Iterator<Item = &str> {
    value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_lose_their_hop_by_hop_fields() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("a", "1"),
            ("connection", "close, b"),
            ("b", "2"),
            ("set-cookie", "x"),
            ("set-cookie", "y"),
            ("transfer-encoding", "chunked"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        response(StatusCode::OK, &mut headers);
        let left: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(left, [("a", "1"), ("set-cookie", "x"), ("set-cookie", "y")]);
    }
}
