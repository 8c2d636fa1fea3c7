//! Trailers, judged as they come: none may say what only a head may (RFC 9110 §6.5.1), for whoever judges heads sees no
//! trailer, and many a server lays them beside its fields.

use http::header::{self, HeaderMap, HeaderName};
use http_body::Frame;

use super::head::of_proxies;
use super::hop::hop_by_hop;
use crate::plan::matching::alike;

/// What frames, leads, authorizes or reads a message, besides what belongs to the connection.
static OF_HEADS: [HeaderName; 21] = [
    header::AUTHORIZATION,
    HeaderName::from_static("authentication-info"),
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    HeaderName::from_static("keep-alive"),
    header::MAX_FORWARDS,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::WWW_AUTHENTICATE,
];

/// The frame as it is passed on; trailers of which nothing is left are none.
pub(super) fn passed<T>(frame: Frame<T>) -> Option<Frame<T>> {
    match frame.into_trailers() {
        Ok(trailers) => kept(trailers).map(Frame::trailers),
        Err(frame) => Some(frame),
    }
}

/// The frame without trailers of these names, however they are spelled; `None` where nothing is left.
pub(super) fn without<T>(frame: Frame<T>, names: &[HeaderName]) -> Option<Frame<T>> {
    match frame.into_trailers() {
        Ok(trailers) => sieved(trailers, |name| names.iter().any(|one| alike(one, name))).map(Frame::trailers),
        Err(frame) => Some(frame),
    }
}

/// What may be passed on of trailers; `None` where nothing is left.
pub(super) fn kept(trailers: HeaderMap) -> Option<HeaderMap> {
    sieved(trailers, goes)
}

fn sieved(trailers: HeaderMap, goes: impl Fn(&HeaderName) -> bool) -> Option<HeaderMap> {
    if !trailers.keys().any(&goes) {
        return Some(trailers);
    }
    let mut kept = HeaderMap::with_capacity(trailers.len());
    let mut last = None;
    for (name, value) in trailers {
        // The iterator gives the name with the first of its values only.
        last = name.or(last);
        if let Some(name) = last.as_ref().filter(|name| !goes(name)) {
            kept.append(name.clone(), value);
        }
    }
    (!kept.is_empty()).then_some(kept)
}

/// By any spelling: servers that map all that is no letter or digit to one sign take one name for the other.
fn goes(name: &HeaderName) -> bool {
    hop_by_hop(name) || of_proxies(name.as_str()) || OF_HEADS.iter().any(|one| alike(one, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(names: &[&'static str]) -> Option<Vec<String>> {
        let map =
            names.iter().map(|name| (HeaderName::from_static(name), http::HeaderValue::from_static("1"))).collect();
        kept(map).map(|kept| kept.keys().map(|name| name.as_str().to_owned()).collect())
    }

    #[test]
    fn only_what_a_trailer_may_say_is_left() {
        for name in [
            "x-forwarded-client-cert",
            "x_forwarded_client_cert",
            "x.forwarded-client~cert",
            "x-forwarded-for",
            "forwarded",
            "x-outrigger-hops",
            "x_outrigger.identity",
            "authorization",
            "proxy-authorization",
            "proxy_authorization",
            "cookie",
            "set_cookie",
            "host",
            "content-length",
            "content_length",
            "transfer-encoding",
            "connection",
            "keep-alive",
            "proxy-connection",
            "http2-settings",
            "te",
            "upgrade",
            "trailer",
        ] {
            assert_eq!(left(&[name]), None, "{name}");
            assert_eq!(left(&["grpc-status", name, "z"]).unwrap(), ["grpc-status", "z"], "{name}");
        }
    }

    #[test]
    fn those_of_grpc_and_of_services_pass_untouched() {
        let names = ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms", "retry-after"];
        assert_eq!(left(&names).unwrap(), names);
        let names = ["x-sum", "x_sum", "digest", "server-timing", "etag", "x-forward", "hostname", "traceparent"];
        assert_eq!(left(&names).unwrap(), names);
        let mut several = HeaderMap::new();
        for (name, value) in [("a", "1"), ("cookie", "x"), ("a", "2"), ("cookie", "y")] {
            several.append(name, value.parse().unwrap());
        }
        assert_eq!(kept(several).unwrap().get_all("a").iter().collect::<Vec<_>>(), ["1", "2"]);
    }
}
