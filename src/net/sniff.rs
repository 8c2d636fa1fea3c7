//! Which protocol a connection speaks, by its first bytes: TLS, HTTP/2, HTTP/1 or opaque. Looks, never answers.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use crate::deadline::Deadline;

/// What the first bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wire {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// The HTTP/2 preface (RFC 9113 §3.4).
    Http2,
    /// A TLS ClientHello, with the name it asks for (RFC 6066 §3), in lower case.
    Tls {
        /// The server name, if there is one.
        sni: Option<String>,
    },
    /// Something else.
    Opaque,
}

/// A judgement of some first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Decided.
    Is(Wire),
    /// Not to be decided without more bytes.
    More,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// More is never read to decide: the longest request line judged, and well above any ClientHello seen.
pub const MOST: usize = 16 * 1024;

/// The methods that are HTTP without a look at the rest of the line (RFC 9110 §9, 5789, 4918, 3253).
const METHODS: [&[u8]; 16] = [
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"DELETE",
    b"CONNECT",
    b"OPTIONS",
    b"TRACE",
    b"PATCH",
    b"PROPFIND",
    b"PROPPATCH",
    b"MKCOL",
    b"COPY",
    b"MOVE",
    b"LOCK",
    b"REPORT",
];

/// Judges the first bytes of a connection. Empty input needs more; [`MOST`] bytes always decide.
pub fn judge(bytes: &[u8]) -> Verdict {
    Judge::default().judge(bytes)
}

/// Judges bytes that grow: what was looked at of a ClientHello is not parsed again for each piece that comes.
#[derive(Default)]
struct Judge {
    /// rustls' own parser, and how much it has been given.
    hello: Option<Box<(Acceptor, usize)>>,
}

impl Judge {
    fn judge(&mut self, bytes: &[u8]) -> Verdict {
        match bytes.first() {
            None => Verdict::More,
            Some(0x16) => self.judge_tls(bytes),
            Some(_) => judge_text(bytes),
        }
    }

    /// Reads a ClientHello on a copy; what the parser refuses is opaque.
    fn judge_tls(&mut self, bytes: &[u8]) -> Verdict {
        match bytes.get(1) {
            None => return Verdict::More,
            Some(3) => {}
            Some(_) => return Verdict::Is(Wire::Opaque),
        }
        let (acceptor, given) = &mut **self.hello.get_or_insert_default();
        let mut rest = bytes.get(*given..).unwrap_or_default();
        while !rest.is_empty() {
            let before = rest.len();
            match acceptor.read_tls(&mut rest) {
                Ok(0) | Err(_) => break,
                Ok(_) => *given += before - rest.len(),
            }
            match acceptor.accept() {
                Ok(Some(hello)) => {
                    let sni = hello.client_hello().server_name().map(str::to_ascii_lowercase);
                    return Verdict::Is(Wire::Tls { sni });
                }
                Ok(None) => {}
                Err(_) => return Verdict::Is(Wire::Opaque),
            }
        }
        if bytes.len() >= MOST { Verdict::Is(Wire::Opaque) } else { Verdict::More }
    }
}

/// Whether bytes that are no ClientHello, or none that can be read, are a record of TLS nevertheless: an old version, or
/// a broken one, whose sender understands an alert.
pub fn is_tls_record(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x16, 3])
}

/// Whether what answers a ClientHello begins as TLS does: a handshake or an alert, of version 3 (RFC 8446 §5.1).
pub fn is_tls_answer(bytes: &[u8]) -> bool {
    matches!(bytes, [0x15 | 0x16, 3, 0..=4, ..])
}

/// Reads a ClientHello and not a byte more: the records that it fills (RFC 8446 §5.1).
///
/// # Errors
/// What reading gives; `InvalidData` where there is no ClientHello, or it does not end with a record.
pub async fn read_hello(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "no ClientHello that ends with its record");
    let (mut records, mut hello) = (Vec::new(), Vec::new());
    while records.len() <= MOST {
        let mut header = [0; 5];
        io.read_exact(&mut header).await?;
        let [0x16, 3, _, high, low] = header else { return Err(wrong()) };
        let mut record = vec![0; usize::from(u16::from_be_bytes([high, low]))];
        io.read_exact(&mut record).await?;
        records.extend_from_slice(&header);
        records.extend_from_slice(&record);
        hello.append(&mut record);
        let whole = match hello[..] {
            [1, a, b, c, ..] => 4 + u32::from_be_bytes([0, a, b, c]) as usize,
            [1] | [1, _] | [1, _, _] | [] => continue,
            _ => return Err(wrong()),
        };
        match hello.len().cmp(&whole) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => return Ok(records),
            std::cmp::Ordering::Greater => return Err(wrong()),
        }
    }
    Err(wrong())
}

fn judge_text(bytes: &[u8]) -> Verdict {
    let known = bytes.len().min(PREFACE.len());
    if bytes.get(..known) == PREFACE.get(..known) {
        // One byte more than "P" already tells POST from PRI.
        return if known == PREFACE.len() { Verdict::Is(Wire::Http2) } else { Verdict::More };
    }
    judge_line(bytes)
}

/// HTTP/1 if a method, a space and the start of a target stand there, and for unlisted methods the version as well.
fn judge_line(bytes: &[u8]) -> Verdict {
    let full = bytes.len() >= MOST;
    let token = bytes.iter().take_while(|b| is_token(**b)).count();
    if token == bytes.len() {
        // A method has no more than a few letters; RFC 9110 §9 sets no bound, so this one does.
        return if token < 32 { Verdict::More } else { Verdict::Is(Wire::Opaque) };
    }
    if token == 0 || bytes.get(token) != Some(&b' ') {
        return Verdict::Is(Wire::Opaque);
    }
    let (method, target) = (bytes.get(..token).unwrap_or_default(), bytes.get(token + 1..).unwrap_or_default());
    let Some(start) = target.first() else { return Verdict::More };
    let connect = method == b"CONNECT";
    let listed = METHODS.contains(&method);
    if listed && (*start == b'/' || *start == b'*' || connect || starts_absolute(target)) {
        return Verdict::Is(Wire::Http1);
    }
    match target.iter().position(|b| *b == b'\n') {
        None if full => Verdict::Is(Wire::Opaque),
        None => Verdict::More,
        Some(end) => {
            let line = target.get(..end).unwrap_or_default();
            let version = line.strip_suffix(b"\r").unwrap_or(line);
            let http1 = version.len() > 9 && version.get(version.len() - 9..version.len() - 1) == Some(b" HTTP/1.");
            Verdict::Is(if http1 { Wire::Http1 } else { Wire::Opaque })
        }
    }
}

/// Whether first bytes that tell no protocol yet can only become a request of HTTP/1, and no HTTP/2 preface: at least
/// the beginning of a method stands there, so an answer of HTTP/1 is what their sender would understand.
pub fn may_become_http1(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| is_token(*first)) && !bytes.starts_with(b"PRI ") && judge(bytes) == Verdict::More
}

fn starts_absolute(target: &[u8]) -> bool {
    target.len() >= 4 && target.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http"))
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads until the protocol is known, for `rest` at most from the first byte on; gives back what was read. The end of
/// the stream decides too: nothing at all is opaque and empty. The caller brings the clock of the first byte.
/// Cancel-safe only in that `seen` keeps what was read.
///
/// # Errors
/// What reading gives; `TimedOut` when `rest` is over.
pub async fn sniff(io: &mut (impl AsyncRead + Unpin), seen: &mut BytesMut, rest: Duration) -> io::Result<Wire> {
    let (mut late, mut judge) = (Deadline::NONE, Judge::default());
    loop {
        if let Verdict::Is(wire) = judge.judge(seen) {
            return Ok(wire);
        }
        // Room for a whole ClientHello: one with a hybrid key share and a ticket is 2.6 KB.
        seen.reserve(4096);
        let read = io.read_buf(seen);
        let read = match late.instant() {
            None => read.await?,
            Some(at) => timeout_at(at, read).await.map_err(|_| io::ErrorKind::TimedOut)??,
        };
        late = Deadline::after(Instant::now(), Some(rest)).min(late);
        if read == 0 {
            // A line cut short is left to the HTTP parser to refuse; anything else is for the tunnel.
            return Ok(Wire::Opaque);
        }
    }
}

/// Whether a server's first bytes are the header of HTTP/2's SETTINGS frame; `None` when it takes more bytes to tell.
/// No greeting of a protocol in which the server speaks first begins so: they are text, or have a longer length first.
pub fn is_http2_server(first: &[u8]) -> Option<bool> {
    let fits = |at: usize, byte: u8| match at {
        // A length of 24 bits, six bytes for each setting.
        2 => byte.is_multiple_of(6),
        3 => byte == 4,
        _ => byte == 0,
    };
    let header = first.get(..9).unwrap_or(first);
    if !header.iter().enumerate().all(|(at, byte)| fits(at, *byte)) {
        return Some(false);
    }
    (header.len() == 9).then_some(true)
}

/// Whether the first bytes of an HTTP/1 request ask for something elsewhere, as only a forward proxy is asked: CONNECT, or
/// a target that is no path.
pub fn is_for_a_proxy(seen: &[u8]) -> bool {
    let target = seen.split(|byte| *byte == b' ').nth(1).and_then(<[u8]>::first);
    target.is_some_and(|first| !matches!(first, b'/' | b'*'))
}

/// Takes what was seen as the prefix to replay.
pub fn replay(seen: BytesMut) -> Bytes {
    seen.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(bytes: &[u8], expect: Verdict) {
        assert_eq!(judge(bytes), expect, "{:?}", String::from_utf8_lossy(bytes));
    }

    #[test]
    fn first_bytes_tell_the_protocol() {
        let http1 = || Verdict::Is(Wire::Http1);
        let opaque = || Verdict::Is(Wire::Opaque);
        check(b"", Verdict::More);
        check(b"P", Verdict::More);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Verdict::More);
        check(PREFACE, Verdict::Is(Wire::Http2));
        check(b"POST /", http1());
        check(b"GET / HTTP/1.1\r\n", http1());
        check(b"GET /", http1());
        check(b"GET http://a/ HTTP/1.1\r\n", http1());
        check(b"OPTIONS * HTTP/1.1\r\n", http1());
        check(b"CONNECT a:443 HTTP/1.1\r\n", http1());
        check(b"FOO-BAR /x HTTP/1.1\r\n", http1());
        check(b"FOO-BAR /x HTTP/1.1", Verdict::More);
        check(b"FOO-BAR /x HTTP/2.1\r\n", opaque());
        check(b"GET key\r\n", opaque());
        check(b"PING\r\n", opaque());
        check(b"*1\r\n$4\r\nPING\r\n", opaque());
        check(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], opaque());
        check(b"EHLO me\r\n", opaque());
        check(&[0x16, 9], opaque());
        check(&[b'A'; 32], opaque());
    }

    #[test]
    fn a_request_for_a_forward_proxy_is_told_from_others() {
        for (bytes, expect) in [
            (&b"GET / HTTP/1.1\r\n"[..], false),
            (b"OPTIONS * HTTP/1.1\r\n", false),
            (b"GET http://a/ HTTP/1.1\r\n", true),
            (b"CONNECT a:443 HTTP/1.1\r\n", true),
            (b"GET ", false),
            (b"", false),
        ] {
            assert_eq!(is_for_a_proxy(bytes), expect, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn the_beginning_of_a_request_is_told_from_other_beginnings() {
        for (bytes, may) in [
            (&b"G"[..], true),
            (b"GE", true),
            (b"GET ", true),
            (b"FOO /x HTTP/1.", true),
            (b"P", true),
            (b"PRI ", false),
            (b"PRI * HTTP/2.0\r\n", false),
            (b"", false),
            (&[0x16, 3, 1], false),
            (b"GET /", false),
            (b"*1\r\n", false),
        ] {
            assert_eq!(may_become_http1(bytes), may, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_client_hello_gives_its_name_however_it_is_cut() {
        let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = "DB.example.com".try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut hello = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut hello).unwrap();
        }
        for cut in 0..hello.len() {
            assert_eq!(judge(&hello[..cut]), Verdict::More, "cut at {cut}");
        }
        // The same bytes one by one, in one record or in one for each byte (RFC 8446 §5.1).
        let in_pieces = hello[5..].iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]).collect::<Vec<_>>();
        for hello in [&hello, &in_pieces] {
            let mut judge = Judge::default();
            for cut in 0..hello.len() {
                assert_eq!(judge.judge(&hello[..cut]), Verdict::More, "grown to {cut}");
            }
            assert_eq!(judge.judge(hello), Verdict::Is(Wire::Tls { sni: Some("db.example.com".into()) }));
        }
        check(&hello, Verdict::Is(Wire::Tls { sni: Some("db.example.com".into()) }));
    }

    #[test]
    fn settings_are_told_from_greetings() {
        let settings = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1];
        assert_eq!(is_http2_server(&settings), Some(true));
        for cut in 0..9 {
            assert_eq!(is_http2_server(&settings[..cut]), None, "cut at {cut}");
        }
        // MariaDB, SMTP, an acknowledgement of SETTINGS, a PostgreSQL message.
        for other in [&[0x5a, 0, 0, 0, 10][..], b"220 hi", &[0, 0, 0, 4, 1], b"R\0\0\0"] {
            assert_eq!(is_http2_server(other), Some(false), "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_verdict(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 0usize..200) {
            let cut = cut.min(bytes.len());
            if let Verdict::Is(wire) = judge(&bytes[..cut]) {
                prop_assert_eq!(judge(&bytes), Verdict::Is(wire));
            }
        }

        #[test]
        fn it_does_not_matter_in_what_pieces_bytes_come(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), tls in any::<bool>(), piece in 1usize..50,
        ) {
            let bytes = if tls { [&[0x16, 3, 1, 0, 40][..], &bytes].concat() } else { bytes };
            let mut judge = Judge::default();
            let ends = (0..bytes.len()).step_by(piece).chain([bytes.len()]);
            let grown = ends.map(|end| judge.judge(&bytes[..end])).find(|verdict| *verdict != Verdict::More);
            prop_assert_eq!(grown.unwrap_or(Verdict::More), super::judge(&bytes));
        }

        #[test]
        fn a_full_buffer_always_decides(byte in any::<u8>(), start in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut bytes = start;
            bytes.resize(MOST, byte);
            prop_assert!(judge(&bytes) != Verdict::More);
        }
    }
}
