//! The authority of a request (`host[:port]`), checked once; matching is blind to case, port and a trailing dot.

use std::borrow::Cow;

use http::HeaderValue;

/// A checked `host[:port]` as the caller wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    raw: HeaderValue,
    host_len: usize,
    port: Option<u16>,
}

impl Authority {
    /// Checks the text of a Host field or `:authority`: a name, an IPv4 or a bracketed IPv6 address, and a port.
    /// Userinfo is refused (RFC 9110 §4.2.4), as is anything that a host cannot contain (RFC 3986 §3.2.2).
    pub fn parse(raw: HeaderValue) -> Option<Self> {
        let bytes = raw.as_bytes();
        let host_len = match bytes.first()? {
            b'[' => {
                let end = bytes.iter().position(|b| *b == b']')?;
                let inside = std::str::from_utf8(bytes.get(1..end)?).ok()?;
                inside.parse::<std::net::Ipv6Addr>().ok()?;
                end + 1
            }
            _ => {
                let len = bytes.iter().position(|b| *b == b':').unwrap_or(bytes.len());
                let legal =
                    bytes.get(..len)?.iter().all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=%".contains(b));
                (legal && len > 0).then_some(len)?
            }
        };
        let port = match bytes.get(host_len..)? {
            // "host:" is legal and means the default port (RFC 3986 §3.2.3).
            [] | [b':'] => None,
            [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
                Some(std::str::from_utf8(digits).ok()?.parse().ok()?)
            }
            _ => return None,
        };
        Some(Self { raw, host_len, port })
    }

    /// The port, if it was written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The host in lower case without brackets or trailing dot: what routes are keyed by.
    pub fn host(&self) -> Cow<'_, str> {
        let host = self.written_host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let host = host.strip_suffix('.').filter(|host| !host.is_empty()).unwrap_or(host);
        if host.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        }
    }

    /// As the caller wrote it, for the Host field and `:authority`.
    pub fn raw(&self) -> &HeaderValue {
        &self.raw
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.raw.as_bytes()).unwrap_or_default()
    }

    /// The host as it was written, an IPv6 address in its brackets.
    pub fn written_host(&self) -> &str {
        self.as_str().get(..self.host_len).unwrap_or_default()
    }

    /// Whether both name the same place, a port that is not written being `default`.
    pub fn same(&self, other: &Self, default: u16) -> bool {
        self.port.unwrap_or(default) == other.port.unwrap_or(default) && self.host() == other.host()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<(String, Option<u16>)> {
        Authority::parse(HeaderValue::from_str(text).unwrap()).map(|a| (a.host().into_owned(), a.port()))
    }

    #[test]
    fn hosts_are_matched_without_case_port_and_dot() {
        let some = |host: &str, port| Some((host.to_owned(), port));
        assert_eq!(parse("Payments.Shop.:8080"), some("payments.shop", Some(8080)));
        assert_eq!(parse("a:"), some("a", None));
        assert_eq!(parse("[::1]:80"), some("::1", Some(80)));
        assert_eq!(parse("127.0.0.1"), some("127.0.0.1", None));
        for wrong in ["", ":80", "a:b", "a:80:80", "a:65536", "u@a", "a b", "a/b", "[::1", "[x]", "a:+1", "a\u{e9}"] {
            assert_eq!(HeaderValue::from_str(wrong).ok().and_then(Authority::parse), None, "{wrong}");
        }
    }
}
