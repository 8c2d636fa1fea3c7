//! How the facts of one exchange become one line: `key=value` words or a JSON object, never more than one line.
//!
//! Whatever a caller sends ends up inside quotes with control and direction-changing characters escaped, so that no
//! request can forge a line or move a terminal's cursor.

use std::fmt::{self, Display, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::stamp::Stamp;
use crate::ids::{ClientAddr, Door};
use crate::reason::{Reason, Side};

/// The most bytes of one value that a line shows; the rest is cut and marked with `…`.
pub const VALUE_LIMIT: usize = 1024;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `key=value` words (logfmt); a value that needs it stands in quotes with JSON's escapes.
    Text,
    /// One JSON object.
    Json,
}

/// What is known about an exchange at its end. What is empty or `None` is left out of the line.
pub struct Line<'a> {
    /// When it began.
    pub time: SystemTime,
    /// The door it came through.
    pub door: Door,
    /// The party at the other end of the accepted connection.
    pub client: ClientAddr,
    /// The address that party dialled, where the connection was captured.
    pub original: Option<SocketAddr>,
    /// Whether the peer, chosen by name, has no endpoint there.
    pub elsewhere: bool,
    /// Who that party has proven to be.
    pub client_id: &'a str,
    /// The request's method; empty for opaque connections.
    pub method: &'a str,
    /// `http` or `https` as the caller used it; empty for opaque connections.
    pub scheme: &'a str,
    /// The authority asked for.
    pub host: &'a str,
    /// The path; what follows a `?` is never written, because secrets travel there.
    pub path: &'a str,
    /// The status answered, if anything was.
    pub status: Option<u16>,
    /// Why it failed, if it did, and the side to look at first.
    pub reason: Option<(Reason, Side)>,
    /// The peer it went to.
    pub peer: &'a str,
    /// Who that peer's endpoint has proven to be.
    pub peer_id: &'a str,
    /// The route that meant the request.
    pub route: &'a str,
    /// What stood in for the peer's answer: another peer's name, `respond` or `stale`.
    pub fallback: &'a str,
    /// The endpoint of the last attempt.
    pub endpoint: Option<&'a dyn Display>,
    /// Attempts made.
    pub attempts: u32,
    /// Why there was no further attempt although the last one failed in a way that was worth one.
    pub retry_skipped: &'a str,
    /// Whether the last attempt used a connection that had served before.
    pub reused: bool,
    /// Body bytes from the caller.
    pub bytes_in: u64,
    /// Body bytes to the caller.
    pub bytes_out: u64,
    /// From the request's head to the end of the exchange.
    pub duration: Duration,
    /// From the request's head to the answer's head.
    pub first_byte: Option<Duration>,
    /// What the caller spoke, such as `HTTP/1.1`.
    pub protocol: &'a str,
    /// What was spoken to the peer.
    pub peer_protocol: &'a str,
    /// The request's `x-request-id`.
    pub request_id: &'a str,
    /// Why the rules of the service would have kept it out, where they are only audited.
    pub would_deny: &'a str,
    /// The chain of errors behind the reason.
    pub detail: &'a str,
}

impl Line<'_> {
    /// A line with nothing in it but when, where and who.
    pub fn new(time: SystemTime, door: Door, client: ClientAddr) -> Self {
        Self {
            time,
            door,
            client,
            original: None,
            elsewhere: false,
            client_id: "",
            method: "",
            scheme: "",
            host: "",
            path: "",
            status: None,
            reason: None,
            peer: "",
            peer_id: "",
            route: "",
            fallback: "",
            endpoint: None,
            attempts: 0,
            retry_skipped: "",
            reused: false,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            first_byte: None,
            protocol: "",
            peer_protocol: "",
            request_id: "",
            would_deny: "",
            detail: "",
        }
    }

    /// Appends the line and its newline to `out`.
    pub fn format(&self, format: Format, out: &mut Vec<u8>) {
        let mut fields = Fields::begin(format, out);
        fields.shown("time", &Stamp(self.time));
        fields.word("door", self.door.word());
        fields.shown("client", &self.client);
        if let Some(original) = &self.original {
            fields.shown("original", original);
        }
        fields.text("client_id", self.client_id);
        fields.text("method", self.method);
        fields.text("scheme", self.scheme);
        fields.text("host", self.host);
        fields.text("path", self.path.split('?').next().unwrap_or_default());
        fields.number("status", self.status.map(u64::from));
        if let Some((reason, side)) = self.reason {
            fields.word("reason", reason.word());
            fields.word("side", side.word());
        }
        fields.text("peer", self.peer);
        fields.text("peer_id", self.peer_id);
        if self.elsewhere {
            fields.word_unquoted("host_ip_mismatch", "true");
        }
        fields.text("route", self.route);
        fields.text("fallback", self.fallback);
        if let Some(endpoint) = self.endpoint {
            fields.shown("endpoint", endpoint);
        }
        fields.number("attempts", Some(u64::from(self.attempts)));
        fields.text("retry_skipped", self.retry_skipped);
        fields.word_unquoted("reused", if self.reused { "true" } else { "false" });
        fields.number("bytes_in", Some(self.bytes_in));
        fields.number("bytes_out", Some(self.bytes_out));
        fields.millis("duration_ms", Some(self.duration));
        fields.millis("first_byte_ms", self.first_byte);
        fields.text("protocol", self.protocol);
        fields.text("peer_protocol", self.peer_protocol);
        fields.text("request_id", self.request_id);
        fields.text("would_deny", self.would_deny);
        fields.text("detail", self.detail);
        fields.end();
    }
}

/// Writes the fields of one line in either format.
struct Fields<'a> {
    format: Format,
    out: &'a mut Vec<u8>,
    first: bool,
}

impl<'a> Fields<'a> {
    fn begin(format: Format, out: &'a mut Vec<u8>) -> Self {
        if format == Format::Json {
            out.push(b'{');
        }
        Self { format, out, first: true }
    }

    fn end(self) {
        if self.format == Format::Json {
            self.out.push(b'}');
        }
        self.out.push(b'\n');
    }

    fn key(&mut self, key: &str) {
        let json = self.format == Format::Json;
        if !std::mem::take(&mut self.first) {
            self.out.push(if json { b',' } else { b' ' });
        }
        let (before, after): (&[u8], &[u8]) = if json { (b"\"", b"\":") } else { (b"", b"=") };
        self.out.extend_from_slice(before);
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(after);
    }

    /// A value from a closed list of plain words.
    fn word(&mut self, key: &str, value: &str) {
        self.key(key);
        let json = self.format == Format::Json;
        self.out.extend_from_slice(if json { b"\"" } else { b"" });
        self.out.extend_from_slice(value.as_bytes());
        self.out.extend_from_slice(if json { b"\"" } else { b"" });
    }

    /// A literal: `true`, `false` or a number.
    fn word_unquoted(&mut self, key: &str, value: &str) {
        self.key(key);
        self.out.extend_from_slice(value.as_bytes());
    }

    /// A value that may hold anything.
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.shown(key, &value);
        }
    }

    /// As `text`, for what shows itself.
    fn shown(&mut self, key: &str, value: &dyn Display) {
        self.key(key);
        self.out.push(b'"');
        let start = self.out.len();
        let mut escaping = Escaping { out: self.out, left: VALUE_LIMIT, plain: true };
        // The only error is our own stop at the limit.
        let _ = write!(escaping, "{value}");
        let bare = escaping.plain && self.format == Format::Text && self.out.len() > start;
        if bare {
            // Nothing in it needs quotes: take back the opening one.
            self.out.copy_within(start.., start.saturating_sub(1));
            self.out.pop();
        } else {
            self.out.push(b'"');
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.key(key);
            decimal(self.out, value);
        }
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, key: &str, value: Option<Duration>) {
        if let Some(value) = value {
            let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
            self.key(key);
            decimal(self.out, micros / 1000);
            let rest = micros % 1000;
            self.out.extend_from_slice(&[b'.', digit(rest / 100), digit(rest / 10), digit(rest)]);
        }
    }
}

/// The last digit of a number.
fn digit(value: u64) -> u8 {
    b'0' | (value % 10) as u8
}

fn decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0_u8; 20];
    let mut from = digits.len();
    for (at, place) in digits.iter_mut().enumerate().rev() {
        *place = digit(value);
        value /= 10;
        from = at;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(digits.get(from..).unwrap_or_default());
}

/// Takes text and appends it with JSON's escapes, up to a limit.
struct Escaping<'a> {
    out: &'a mut Vec<u8>,
    left: usize,
    /// Whether nothing so far needs quotes in a `key=value` line.
    plain: bool,
}

impl Write for Escaping<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() <= self.left && text.bytes().all(is_plain) {
            self.left -= text.len();
            self.out.extend_from_slice(text.as_bytes());
            return Ok(());
        }
        self.plain = false;
        text.chars().try_for_each(|c| self.push(c))
    }
}

impl Escaping<'_> {
    fn push(&mut self, c: char) -> fmt::Result {
        let Some(left) = self.left.checked_sub(c.len_utf8()) else {
            self.left = 0;
            self.out.extend_from_slice("…".as_bytes());
            return Err(fmt::Error);
        };
        self.left = left;
        match c {
            '"' | '\\' => self.out.extend_from_slice(&[b'\\', c as u8]),
            '\n' => self.out.extend_from_slice(b"\\n"),
            '\r' => self.out.extend_from_slice(b"\\r"),
            '\t' => self.out.extend_from_slice(b"\\t"),
            c if misleading(c) => {
                for digits in c.encode_utf16(&mut [0; 2]) {
                    self.out.extend_from_slice(b"\\u");
                    for shift in [12, 8, 4, 0] {
                        let nibble = u32::from(*digits >> shift) & 15;
                        self.out.push(char::from_digit(nibble, 16).map_or(b'0', |digit| digit as u8));
                    }
                }
            }
            c => self.out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        Ok(())
    }
}

/// What stands in a `key=value` line without quotes.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=')
}

/// Control characters (C0, DEL, C1), line separators, and what changes the direction of text.
fn misleading(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' | '\u{61c}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn sample() -> Line<'static> {
        Line {
            method: "GET",
            scheme: "http",
            host: "payments:8080",
            path: "/v1/orders?token=secret",
            status: Some(503),
            reason: Some((Reason::ConnectRefused, Side::Peer)),
            peer: "payments",
            route: "",
            endpoint: Some(&"10.0.0.7:9000"),
            attempts: 2,
            retry_skipped: "",
            bytes_in: 12,
            bytes_out: u64::MAX,
            duration: Duration::from_micros(1_234_056),
            first_byte: Some(Duration::from_micros(7)),
            protocol: "HTTP/1.1",
            request_id: "a b",
            detail: "tcp connect: \"refused\"\nby host",
            ..Line::new(UNIX_EPOCH, Door::Outbound, ClientAddr(Some(([127, 0, 0, 1], 4242).into())))
        }
    }

    fn text_of(line: &Line<'_>, format: Format) -> String {
        let mut out = b"before\n".to_vec();
        line.format(format, &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before\n").unwrap().to_owned()
    }

    /// Reads `key=value` words back, by the rules the format promises.
    fn words(line: &str) -> BTreeMap<String, String> {
        let mut rest = line.strip_suffix('\n').unwrap();
        let mut found = BTreeMap::new();
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=').unwrap();
            let (value, after) = if after.starts_with('"') {
                let mut stream = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let value = stream.next().unwrap().unwrap();
                (value, &after[stream.byte_offset()..])
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            };
            assert!(found.insert(key.to_owned(), value).is_none(), "{key} twice");
            rest = after.strip_prefix(' ').unwrap_or(after);
        }
        found
    }

    #[test]
    fn a_text_line() {
        assert_eq!(
            text_of(&sample(), Format::Text),
            "time=1970-01-01T00:00:00.000Z door=outbound client=127.0.0.1:4242 method=GET scheme=http \
             host=payments:8080 path=/v1/orders status=503 reason=connect_refused side=peer peer=payments \
             endpoint=10.0.0.7:9000 attempts=2 reused=false bytes_in=12 bytes_out=18446744073709551615 \
             duration_ms=1234.056 first_byte_ms=0.007 protocol=HTTP/1.1 request_id=\"a b\" \
             detail=\"tcp connect: \\\"refused\\\"\\nby host\"\n"
        );
    }

    #[test]
    fn a_json_line_says_the_same() {
        let json: serde_json::Value = serde_json::from_str(&text_of(&sample(), Format::Json)).unwrap();
        let text = words(&text_of(&sample(), Format::Text));
        let flat: BTreeMap<String, String> = json
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
            .collect();
        assert_eq!(flat, text);
        assert_eq!(json["bytes_out"], u64::MAX);
        assert_eq!(json["reused"], false);
    }

    #[test]
    fn long_values_are_cut() {
        let path = "/é".repeat(VALUE_LIMIT);
        let line = Line { path: &path, ..sample() };
        for format in [Format::Text, Format::Json] {
            let text = text_of(&line, format);
            assert!(text.len() < 3 * VALUE_LIMIT && text.contains('…'), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_a_caller_sends_breaks_a_line(host in "\\PC*|.{0,40}", path in any::<String>(), id in any::<String>()) {
            let line = Line { host: &host, path: &path, request_id: &id, ..sample() };
            let text = text_of(&line, Format::Text);
            let json = text_of(&line, Format::Json);
            for made in [&text, &json] {
                prop_assert!(!made.trim_end_matches('\n').chars().any(misleading));
                prop_assert_eq!(made.matches('\n').count(), 1);
            }
            let json: serde_json::Value = serde_json::from_str(&json).unwrap();
            let words = words(&text);
            for (key, sent) in [("host", host.as_str()), ("request_id", id.as_str())] {
                let expected = (!sent.is_empty()).then_some(sent);
                prop_assert_eq!(words.get(key).map(String::as_str), expected);
                prop_assert_eq!(json.get(key).and_then(|v| v.as_str()), expected);
            }
        }
    }
}
