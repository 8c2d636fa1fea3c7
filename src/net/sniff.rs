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

/// What the last word of a request's line begins with. Node's parser serves those of RTSP and Icecast as HTTP.
const VERSIONS: [&[u8]; 3] = [b"HTTP/", b"RTSP/", b"ICE/"];

/// Room for a whole ClientHello: one with a hybrid key share and a ticket is 2.6 KB.
const HELLO: usize = 4096;

/// Room for the first bytes of anything else.
const SILENT: usize = 1024;

/// How the headers of the PROXY protocol begin.
const PROXY_1: &[u8] = b"PROXY ";
const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

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
            Some(_) => match judge_text(bytes) {
                // A line this long may still be a request: our own parser has its limits, and judges what it lets pass.
                Verdict::More if bytes.len() >= MOST => Verdict::Is(Wire::Http1),
                verdict => verdict,
            },
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
    match unproxied(bytes) {
        None => Verdict::More,
        Some(rest) if rest.len() < bytes.len() => match judge_start(rest) {
            // Our own parser refuses a request that such a header stands before: past it, nobody would judge it.
            Verdict::Is(Wire::Http2) => Verdict::Is(Wire::Http1),
            verdict => verdict,
        },
        Some(_) => judge_start(bytes),
    }
}

fn judge_start(bytes: &[u8]) -> Verdict {
    let known = bytes.len().min(PREFACE.len());
    if bytes.get(..known) == PREFACE.get(..known) {
        // One byte more than "P" already tells POST from PRI.
        return if known == PREFACE.len() { Verdict::Is(Wire::Http2) } else { Verdict::More };
    }
    judge_line(bytes)
}

/// What follows the headers of the PROXY protocol (versions 1 and 2), by which a balancer names the caller; all of it where
/// there is none, nothing where one has still to end.
fn unproxied(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        let header = if bytes.starts_with(PROXY_1) {
            bytes.iter().position(|byte| *byte == b'\n')? + 1
        } else if bytes.starts_with(PROXY_2) {
            let Some(&[high, low]) = bytes.get(14..16) else { return None };
            16 + usize::from(u16::from_be_bytes([high, low]))
        } else {
            // A beginning of the second may still be an empty line or two.
            let part = bytes.len() > 4 && PROXY_2.starts_with(bytes);
            return (!part).then_some(bytes);
        };
        bytes = bytes.get(header..)?;
    }
}

/// HTTP/1 if a method and the start of a target stand there, or a line of which a server would say so. What some server
/// takes for a request must never pass unseen: our own parser refuses what is none.
fn judge_line(bytes: &[u8]) -> Verdict {
    let bytes = unblank(bytes, true);
    let token = bytes.iter().take_while(|b| is_token(**b)).count();
    let (method, rest) = bytes.split_at_checked(token).unwrap_or_default();
    match rest.first() {
        // The end of what is there: of a method of any length (RFC 9110 §9 sets no bound), or of blank lines.
        None => return Verdict::More,
        Some(_) if method.is_empty() => return Verdict::Is(Wire::Opaque),
        Some(byte) if !is_blank(*byte) && *byte != b'\n' => return Verdict::Is(Wire::Opaque),
        Some(_) => {}
    }
    let target = unblank(rest, false);
    // Binary protocols begin so, LDAP for one: a digit and a length that looks like a blank.
    let wordless = !method.iter().any(u8::is_ascii_alphabetic);
    if wordless && target.first().is_some_and(|first| *first < b'!') {
        return Verdict::Is(Wire::Opaque);
    }
    if METHODS.contains(&method) && starts_target(method, target) {
        return Verdict::Is(Wire::Http1);
    }
    match bytes.iter().position(|b| *b == b'\n') {
        None => Verdict::More,
        Some(end) => Verdict::Is(by_words(bytes.get(..end).unwrap_or_default())),
    }
}

/// What a whole line of a method and more is: by the version that a request ends with, or by having none as HTTP/0.9, after
/// which some read fields all the same.
fn by_words(line: &[u8]) -> Wire {
    let mut words = line.split(|byte| is_blank(*byte)).filter(|word| !word.is_empty());
    let numbers = |word: &[u8]| word.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.');
    let is_get = words.next() == Some(b"GET");
    let mut count = 1;
    while let Some(word) = words.next() {
        count += 1;
        let Some(version) = version(word) else { continue };
        // The last word, or cut in pieces; or in its own place, whatever follows it, of which Perl's server takes no notice.
        let mut rest = words.clone();
        if rest.clone().next().is_none() || (numbers(version) && rest.all(numbers)) || (count == 3 && is_whole(version))
        {
            return Wire::Http1;
        }
    }
    if is_get && count == 2 { Wire::Http1 } else { Wire::Opaque }
}

/// What follows the name of a protocol in a word that begins as a version does.
fn version(word: &[u8]) -> Option<&[u8]> {
    let named = |name: &&&[u8]| word.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name));
    VERSIONS.iter().find(named).and_then(|name| word.get(name.len()..))
}

/// Whether a version begins with both of its numbers.
fn is_whole(version: &[u8]) -> bool {
    let digits = version.iter().take_while(|byte| byte.is_ascii_digit()).count();
    digits > 0 && matches!(version.get(digits..), Some([b'.', b'0'..=b'9', ..]))
}

/// What is left to be judged where no more bytes come: a line that is cut short is the parser's to refuse.
fn judge_cut(bytes: &[u8]) -> Wire {
    match unproxied(bytes) {
        Some([0x16, ..]) | None => Wire::Opaque,
        Some(bytes) => by_words(unblank(bytes, true).split(|byte| *byte == b'\n').next().unwrap_or_default()),
    }
}

/// Whether first bytes that tell no protocol yet can only become a request of HTTP/1, and no HTTP/2 preface: at least
/// the beginning of a method stands there, so an answer of HTTP/1 is what their sender would understand.
pub fn may_become_http1(bytes: &[u8]) -> bool {
    let line = unblank(bytes, true);
    let other = line.starts_with(b"PRI ") || line.starts_with(PROXY_1);
    line.first().is_some_and(|first| is_token(*first)) && !other && judge(bytes) == Verdict::More
}

/// Whether a target begins here as those of a listed method do; NATS has a CONNECT of its own, of JSON.
fn starts_target(method: &[u8], target: &[u8]) -> bool {
    match target.first() {
        None | Some(b'\n') => false,
        Some(b'/' | b'*') => true,
        Some(first) => (method == b"CONNECT" && *first != b'{') || starts_absolute(target),
    }
}

fn starts_absolute(target: &[u8]) -> bool {
    target.len() >= 4 && target.get(..4).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http"))
}

/// Without the white space before it, and without the empty lines where there may be some.
fn unblank(bytes: &[u8], lines: bool) -> &[u8] {
    let blank = bytes.iter().take_while(|byte| is_blank(**byte) || (lines && **byte == b'\n')).count();
    bytes.get(blank..).unwrap_or_default()
}

/// What a server may take for white space within a line (RFC 9112 §3); those that split text as Python does take the
/// separators of ASCII and of Latin-1 too.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | b'\r' | 0x1c..=0x1f | 0x85 | 0xa0)
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
        // A connection that never says a word holds this all the time.
        if seen.len() == seen.capacity() {
            seen.reserve(if seen.is_empty() { SILENT } else { HELLO });
        }
        let read = io.read_buf(seen);
        let read = match late.instant() {
            None => read.await?,
            Some(at) => timeout_at(at, read).await.map_err(|_| io::ErrorKind::TimedOut)??,
        };
        late = Deadline::after(Instant::now(), Some(rest)).min(late);
        if read == 0 {
            return Ok(judge_cut(seen));
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

/// Where first bytes are to be read to, of which most connections have few; those that come to speak `tls` begin with a
/// ClientHello.
pub fn room(tls: bool) -> BytesMut {
    if tls { BytesMut::with_capacity(HELLO) } else { BytesMut::new() }
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
        check(b"FOO-BAR /x HTTP/2.1\r\n", http1());
        check(b"get key\r\n", opaque());
        check(b"PING\r\n", opaque());
        check(b"*1\r\n$4\r\nPING\r\n", opaque());
        check(&[0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f], opaque());
        check(b"EHLO me\r\n", opaque());
        check(&[0x16, 9], opaque());
        check(&[b'A'; 32], Verdict::More);
    }

    /// What some server takes for a request of HTTP although RFC 9112 §3 does not: lines before it are skipped, any white
    /// space parts its words (Python's, several controls and high bytes of Latin-1), a version is spelled in other ways,
    /// and Node takes those of RTSP and Icecast.
    const TAKEN_FOR_HTTP: &[&[u8]] = &[
        b"\r\nGET / HTTP/1.1\r\n",
        b"\n\n\r\nGET / HTTP/1.1\r\n",
        b" GET / HTTP/1.1\r\n",
        b"\t\x0b\x0c\x1c\x1f\x85\xa0GET / HTTP/1.1\r\n",
        b"\r\nPRI * HTTP/2.0\r\n",
        b"GET\t/ HTTP/1.1\r\n",
        b"GET\x0b/ HTTP/1.1\r\n",
        b"GET\x0c/ HTTP/1.1\r\n",
        b"GET\r/ HTTP/1.1\r\n",
        b"GET\xa0/ HTTP/1.1\r\n",
        b"GET  / HTTP/1.1\r\n",
        b"GET\t/\r\n",
        b"get / HTTP/1.1\r\n",
        b"GET x HTTP/1.1\r\n",
        b"FOO /\tHTTP/1.1\r\n",
        b"FOO / HTTP/1.1 \r\n",
        b"FOO / HTTP/1.10\r\n",
        b"FOO / http/1.1\n",
        b"FOO / HTTP/3.7\r\n",
        b"CONNECT {a} HTTP/1.1\r\n",
        b"THE-METHOD-OF-A-SERVER-THAT-TAKES-ANY / HTTP/1.1\r\n",
        b"SOURCE /x ICE/1.0\r\n",
        b"PLAY /x RTSP/1.0\r\n",
        // A name of no letter (Go takes any token), HTTP/0.9 with what is not its own, a version in two words or followed
        // by more.
        b"0 / HTTP/1.1\r\n",
        b"0\x0c / HTTP/1.1\r\n",
        b"GET admin\r\n",
        b"GET \x0badmin \r\n",
        b"FOO x HTTP/ 1.1\r\n",
        b"FOO x HTTP/1 .1\r\n",
        b"FOO x HTTP/1.1 and more\r\n",
        // What one behind a balancer takes off first.
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\n",
        b"PROXY UNKNOWN\r\nFOO x HTTP/1.1\r\n",
        b"PROXY UNKNOWN\r\nPROXY UNKNOWN\r\nGET admin\r\n",
        b"PROXY UNKNOWN\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\0\x01\0\x02GET / HTTP/1.1\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET admin\r\n",
    ];

    #[test]
    fn what_a_server_may_take_for_http_is_http_however_it_is_cut() {
        for bytes in TAKEN_FOR_HTTP {
            for cut in 0..bytes.len() {
                assert!(
                    judge(&bytes[..cut]) != Verdict::Is(Wire::Opaque),
                    "{:?}",
                    String::from_utf8_lossy(&bytes[..cut])
                );
            }
            check(bytes, Verdict::Is(Wire::Http1));
        }
        // Nobody shows a line to be something else by making it long.
        for start in [&b"FOO /"[..], b"A", b"\r\n", b"GET x"] {
            let mut bytes = start.to_vec();
            bytes.resize(MOST, *start.last().unwrap());
            check(&bytes, Verdict::Is(Wire::Http1));
        }
    }

    #[test]
    fn other_protocols_of_text_are_opaque() {
        for bytes in [
            // SMTP, FTP, IMAP, IRC, SSH, SIP.
            &b"EHLO me\r\n"[..],
            b"USER x\r\n",
            b"a1 LOGIN x y\r\n",
            b"NICK x\r\n",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
            b"INVITE sip:b@c SIP/2.0\r\n",
            // Redis, inline and not; memcached; NATS; STOMP, also after a beat of its heart; Graphite.
            b"PING\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"get x\r\n",
            b"get http/index 1\r\n",
            b"get ice/1 x rtsp/index y\r\n",
            b"set http/1.1/x 0 0 5\r\nhello\r\n",
            b"set key 0 0 5\r\nhello\r\n",
            b"CONNECT {\"verbose\":false}\r\n",
            b"CONNECT\naccept-version:1.2\n\n\0",
            b"\nCONNECT\naccept-version:1.2\n\n\0",
            b"some.long.name.of.a.metric.in.graphite.mean 1 2\n",
            // JSON, XML, syslog, AMQP; lengths first that look like white space, of MongoDB and Protocol Buffers.
            b"{\"a\": 1}",
            b"<?xml version='1.0'?>",
            b"<13>Oct 11 22:14:15 host app: GET / HTTP/1.1\n",
            b"AMQP\0\0\x09\x01",
            b"\x20\0\0\0",
            b"\x0a\x05hello",
            // LDAP: an anonymous bind, StartTLS, and lengths that look like a blank.
            b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\0\x80\0",
            b"\x30\x1d\x02\x01\x01\x77\x181.3.6.1.4.1.1466.20037",
            b"\x30\x09\x02",
            b"\x30\x0b\x02",
            b"\x30\x0d\x02",
            b"\x30\x1c\x02",
            b"\x30\x1e\x02",
            b"\x30\x1f\x02",
            b"\x30\x20\x02",
            // Behind a balancer, by the line that names the caller and by its binary form.
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nEHLO me\r\n",
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n\x16\x03\x01",
            b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0*1\r\n",
            b"\r\n\r\n\0\r\nQUIT?",
        ] {
            check(bytes, Verdict::Is(Wire::Opaque));
            for cut in 0..bytes.len() {
                assert!(judge(&bytes[..cut]) != Verdict::Is(Wire::Http1), "{:?}", String::from_utf8_lossy(bytes));
            }
        }
    }

    #[tokio::test]
    async fn a_line_that_the_end_cuts_off_is_judged_as_it_is() {
        for (bytes, expect) in [
            (&b"FOO /x HTTP/1.1"[..], Wire::Http1),
            (b"\r\nFOO /x HTTP/1.1", Wire::Http1),
            (b"FOO /x", Wire::Opaque),
            (b"GET x", Wire::Http1),
            (b"PROXY UNKNOWN\r\nFOO /x HTTP/1.1", Wire::Http1),
            (b"PROXY UNKNOWN\r\n", Wire::Opaque),
            (b"PROXY UNKNOWN", Wire::Opaque),
            (b"PRI * HTTP/2.0\r\n\r\nS", Wire::Http1),
            (b"0\x0c", Wire::Opaque),
            (b"PING", Wire::Opaque),
            (b"\r\n", Wire::Opaque),
            (b"", Wire::Opaque),
        ] {
            let mut seen = BytesMut::new();
            let wire = sniff(&mut &bytes[..], &mut seen, Duration::from_secs(1)).await.unwrap();
            assert_eq!((wire, &seen[..]), (expect, bytes), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test]
    async fn who_is_silent_holds_little_and_a_hello_is_read_at_once() {
        for (tls, least, most) in [(false, 512, 1024), (true, 4096, 4096)] {
            let (_ours, mut theirs) = tokio::io::duplex(64);
            let mut seen = room(tls);
            assert!(futures_util::poll!(std::pin::pin!(sniff(&mut theirs, &mut seen, Duration::ZERO))).is_pending());
            assert!((least..=most).contains(&seen.capacity()), "{}", seen.capacity());
        }
        let long = [b'A'; 5000];
        let mut seen = room(false);
        sniff(&mut &long[..], &mut seen, Duration::from_secs(1)).await.unwrap();
        assert_eq!(seen, long[..]);
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
            (b"PROXY ", false),
            (b"\r\nGE", true),
            (b"\r\n", false),
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
        fn nor_do_more_words(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    &b"PROXY "[..], PROXY_2, b"\x20\0\0\x01", b"\r\n", b" ", b"\x0c", b"0", b"\x02", b"GET", b"get", b"PRI",
                    b"HTTP/", b"1", b".1", b"/", b"x", PREFACE,
                ]),
                0..12,
            ),
            cut in 0usize..100,
        ) {
            let bytes = words.concat();
            if let Verdict::Is(wire) = judge(&bytes[..cut.min(bytes.len())]) {
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
