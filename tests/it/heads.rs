//! Heads of HTTP/1, raw on both sides: their limits, fields that must not pass, framing in doubt.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;

use crate::harness::{App, Caller, field, inbound, read_head};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[test]
fn what_belongs_to_one_hop_or_to_us_does_not_pass() {
    let app = App::http(
        "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: timeout=5\r\nX-Mine: 1\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nX-Yours: 2\r\nContent-Length: 2\r\n\r\nhi",
    );
    let sidecar = inbound(app.addr, "");
    let answer = Caller::connect(sidecar.inbound)
        .send(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, X-Named, X-Request-Id, Host, X-Outrigger-Hops\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nX-Named: gone\r\nKeep-Alive: 5\r\nProxy-Connection: close\r\n\
             TE: gzip, trailers\r\nX-Request-Id: mine\r\nX-Outrigger-Hops: 1\r\nX-Outrigger-Secret: forged\r\n\
             X_Outrigger_Hops: 9\r\nX-Forwarded-Client-Cert: forged\r\nX_Forwarded_For: forged\r\nX-Forwarded-For: 6.6.6.6\r\n\
             Forwarded: for=6.6.6.6\r\nX-Kept: yes\r\n\r\n",
        )
        .answer();
    let seen = app.next();
    for gone in [
        "connection",
        "upgrade",
        "http2-settings",
        "x-named",
        "keep-alive",
        "proxy-connection",
        "x-outrigger-secret",
        "x_outrigger_hops",
        "x-forwarded-client-cert",
        "x_forwarded_for",
        "forwarded",
    ] {
        assert_eq!(field(&seen, gone), None, "{gone} in {seen}");
    }
    for (kept, value) in [
        ("host", "a"),
        ("te", "trailers"),
        ("x-request-id", "mine"),
        ("x-outrigger-hops", "2"),
        ("x-kept", "yes"),
        ("x-forwarded-for", "127.0.0.1"),
    ] {
        assert_eq!(field(&seen, kept).as_deref(), Some(value), "{kept} in {seen}");
    }
    for gone in ["keep-alive", "x-mine", "proxy-connection", "upgrade"] {
        assert_eq!(field(&answer, gone), None, "{gone} in {answer}");
    }
    assert_eq!(field(&answer, "x-yours").as_deref(), Some("2"));
}

#[test]
fn heads_up_to_the_limit_pass_both_ways() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let size = field(&head, "x-big").unwrap().len();
            report.send(size.to_string()).unwrap();
            let big = "y".repeat(size);
            writer
                .write_all(format!("HTTP/1.1 200 OK\r\nX-Big: {big}\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .unwrap();
        }
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    for size in [17_000, 50_000, 64_000] {
        caller.send(format!("GET / HTTP/1.1\r\nHost: a\r\nX-Big: {}\r\n\r\n", "x".repeat(size)));
        assert_eq!(app.next(), size.to_string());
        let answer = caller.until(b"\r\n\r\n");
        assert_eq!(field(&answer, "x-big").map(|value| value.len()), Some(size), "{}", &answer[..300]);
    }
}

#[test]
fn the_case_and_order_of_fields_are_kept() {
    let app = App::http(
        "HTTP/1.1 200 OK\r\nX-ONE: 1\r\nx-two: 2\r\nX-Three: 3\r\nSet-Cookie: a=1\r\nSET-COOKIE: b=2\r\nContent-LENGTH: 2\r\n\r\nhi",
    );
    let sidecar = inbound(app.addr, "");
    let answer = Caller::connect(sidecar.inbound)
        .send("GET / HTTP/1.1\r\nHOST: a\r\nzz-Last: 1\r\nAA-First: 2\r\nmM-Mid: 3\r\n\r\n")
        .answer();
    let seen = app.next();
    assert!(seen.starts_with("GET / HTTP/1.1\r\nHOST: a\r\nzz-Last: 1\r\nAA-First: 2\r\nmM-Mid: 3\r\n"), "{seen}");
    assert!(
        answer.contains(
            "X-ONE: 1\r\nx-two: 2\r\nX-Three: 3\r\nSet-Cookie: a=1\r\nSET-COOKIE: b=2\r\nContent-LENGTH: 2\r\n"
        ),
        "{answer}"
    );
}

#[test]
fn a_length_beside_a_coding_is_dropped_and_the_connection_closed() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let head = read_head(&mut reader).unwrap();
        let mut body = [0; 13];
        reader.read_exact(&mut body).unwrap();
        report.send(head + &String::from_utf8_lossy(&body)).unwrap();
        writer.write_all(OK.as_bytes()).unwrap();
        assert!(read_head(&mut reader).is_none(), "nothing may be smuggled");
        report.send("nothing more".into()).unwrap();
    });
    let sidecar = inbound(app.addr, "");
    let answer = Caller::connect(sidecar.inbound)
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
        .rest();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.matches("HTTP/1.1").count() == 1, "{answer}");
    let seen = app.next();
    assert!(seen.ends_with("3\r\nabc\r\n0\r\n\r\n") && field(&seen, "content-length").is_none(), "{seen}");
    drop(sidecar);
    assert_eq!(app.next(), "nothing more");
}

#[test]
fn the_absolute_form_at_the_inbound_door_must_agree_with_host() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, "");
    let answer = Caller::connect(sidecar.inbound).send("GET http://a/x?y HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let seen = app.next();
    assert!(seen.starts_with("GET /x?y HTTP/1.1\r\n") && field(&seen, "host").as_deref() == Some("a"), "{seen}");
    for (target, host) in [("http://a/", "b"), ("http://u@a/", "a"), ("ftp://a/", "a"), ("http://a:1/", "a")] {
        let answer =
            Caller::connect(sidecar.inbound).send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n")).rest();
        assert!(answer.starts_with("HTTP/1.1 400"), "{target}: {answer}");
    }
    app.unseen();
}

/// Fields that stand in doubt, or put their message in doubt.
const DOUBTFUL_FIELDS: &[&str] = &[
    "Content-Length: +5",
    "Content-Length: -0",
    "Content-Length: 0x10",
    "Content-Length:",
    "Content-Length: 1 2",
    "Content-Length: 1,2",
    "Content-Length: 1\r\nContent-Length: 2",
    "Content-Length: 99999999999999999999",
    "Transfer-Encoding: ,chunked",
    "Transfer-Encoding: chunked,",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\u{b}chunked",
    "X: a\0b",
    "X: a\rb",
    "X\0: a",
    "nocolon",
    ":",
    ": value",
    "X : a",
    " folded: a",
    "X: a\r\n folded",
    "X(: a",
];

/// Heads that stand in doubt by more than one field.
const DOUBTFUL_HEADS: &[&[u8]] = &[
    b"POST / HTTP/1.1\r\nHost: a\r\nX\x85: a\r\n\r\n",
    b"POST / HTTP/1.1\r\n Host: a\r\n\r\n",
    b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /#x HTTP/1.1 \r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    b"GET /\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
];

#[test]
fn heads_whose_framing_is_in_doubt_are_never_forwarded() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, "");
    let with = |field: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n").into_bytes();
    let fields = DOUBTFUL_FIELDS.iter().map(|field| with(field));
    for case in fields.chain(DOUBTFUL_HEADS.iter().map(|head| head.to_vec())) {
        // First a good one, so that what follows it stands on an HTTP connection beyond doubt.
        let mut caller = Caller::connect(sidecar.inbound);
        assert!(caller.send("GET /good HTTP/1.1\r\nHost: a\r\n\r\n").answer().ends_with("hi"));
        assert!(app.next().starts_with("GET /good"));
        let _ = caller.0.write_all(&case);
        let _ = caller.0.shutdown(Shutdown::Write);
        let answer = caller.rest();
        let shown = String::from_utf8_lossy(&case).into_owned();
        let refused =
            ["400", "431", "501", "505"].iter().any(|status| answer.starts_with(&format!("HTTP/1.1 {status}")));
        assert!(answer.is_empty() || refused, "{shown:?} got {answer:?}");
        assert_eq!(app.seen.try_recv().ok(), None, "{shown:?} was forwarded");
    }
}
