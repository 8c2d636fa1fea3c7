//! What HTTP/1 and the crates that speak it can be led into, raw on both sides: framing of bodies, early and broken
//! answers, upgrades before their time.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc;

use crate::harness::{App, Caller, field, inbound, read_head};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// An app that reads a head, sends these bytes and closes.
fn says_once(bytes: impl Into<Vec<u8>>) -> App {
    let bytes = bytes.into();
    App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            report.send(head).unwrap();
            let _ = writer.write_all(&bytes);
            let _ = writer.shutdown(Shutdown::Write);
        }
    })
}

#[test]
fn an_app_that_refuses_or_ignores_an_expectation_is_obeyed() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            report.send(head.clone()).unwrap();
            if head.starts_with("PUT /no") {
                writer.write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").unwrap();
                let mut rest = Vec::new();
                reader.read_to_end(&mut rest).unwrap();
                report.send(format!("then {} bytes", rest.len())).unwrap();
                return;
            }
            // Never a 100: the body has to come all the same.
            let mut body = [0; 4];
            reader.read_exact(&mut body).unwrap();
            report.send(String::from_utf8_lossy(&body).into_owned()).unwrap();
            writer.write_all(OK.as_bytes()).unwrap();
        }
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    let ask =
        |path: &str| format!("PUT {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert!(caller.send(ask("/no")).answer().starts_with("HTTP/1.1 417"));
    app.next();
    assert_eq!(app.next(), "then 0 bytes");

    let mut caller = Caller::connect(sidecar.inbound);
    caller.send(ask("/yes"));
    app.next();
    let head = caller.until(b"\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 100"), "{head}");
    assert!(caller.send("body").answer().starts_with("HTTP/1.1 200"));
    assert_eq!(app.next(), "body");
}

#[test]
fn pipelined_requests_are_answered_in_order_each_by_the_app() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         POST /3 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    for _ in 0..3 {
        assert!(caller.answer().ends_with("hi"));
    }
    let last = caller.rest();
    assert!(last.starts_with("HTTP/1.1 200") && last.ends_with("hi"), "{last:?}");
    for n in 1..=4 {
        let seen = app.next();
        assert!(seen.contains(&format!(" /{n} HTTP/1.1\r\n")), "{n}: {seen}");
    }
}

#[test]
fn an_answer_that_comes_before_the_request_has_ended_arrives_whole() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            report.send(head.clone()).unwrap();
            writer.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nenough").unwrap();
            if field(&head, "content-length").is_some_and(|length| length != "0") {
                let _ = reader.read_to_end(&mut Vec::new());
                report.send("closed".into()).unwrap();
                return;
            }
        }
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send("POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbeginning");
    let answer = caller.answer();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("enough"), "{answer}");
    app.next();
    // Both connections are in the middle of a message and can serve nothing else.
    assert_eq!(app.next(), "closed");
    caller.rest();
    let line = sidecar.says(&["path=/big", "status=403"]);
    assert!(!line.contains("reason="), "{line}");
    assert!(Caller::connect(sidecar.inbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer().ends_with("enough"));
}

/// Chunks whose framing is in doubt (conformance: the "longest valid prefix" and its kin).
const BROKEN_CHUNKS: &[&str] = &[
    "zz\r\nabc\r\n0\r\n\r\n",
    "0x3\r\nabc\r\n0\r\n\r\n",
    "+3\r\nabc\r\n0\r\n\r\n",
    "-3\r\nabc\r\n0\r\n\r\n",
    "3_0\r\nabc\r\n0\r\n\r\n",
    "3 3\r\nabc\r\n0\r\n\r\n",
    "\r\nabc\r\n0\r\n\r\n",
    "3\nabc\r\n0\r\n\r\n",
    "3\r\nabc\n0\r\n\r\n",
    "3\r\nabcd\r\n0\r\n\r\n",
    "3\r\nabc\r\n\r\n0\r\n\r\n",
    "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "3;a=\rb\r\nabc\r\n0\r\n\r\n",
];

#[test]
fn broken_chunks_end_both_connections_and_are_never_a_whole_request() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let Some(head) = read_head(&mut reader) else { return };
        if head.starts_with("GET") {
            writer.write_all(OK.as_bytes()).unwrap();
            report.send("fine".into()).unwrap();
            return;
        }
        let mut body = Vec::new();
        let _ = reader.read_to_end(&mut body);
        report.send(String::from_utf8_lossy(&body).into_owned()).unwrap();
    });
    let sidecar = inbound(app.addr, "");
    for chunks in BROKEN_CHUNKS {
        let mut caller = Caller::connect(sidecar.inbound);
        caller.send("POST /broken HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
        let _ = caller.0.write_all(chunks.as_bytes());
        let answer = caller.rest();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{chunks:?}: {answer:?}");
        let seen = app.next();
        assert!(!seen.ends_with("0\r\n\r\n"), "{chunks:?} became a whole request: {seen:?}");
    }
    sidecar.says(&["reason=bad_body", "side=client", "path=/broken"]);
    // What follows goes over a new connection.
    assert!(Caller::connect(sidecar.inbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer().ends_with("hi"));
    assert_eq!(app.next(), "fine");
}

#[test]
fn a_caller_that_leaves_in_the_middle_of_its_body_takes_the_apps_connection_with_it() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream);
        report.send(read_head(&mut reader).unwrap()).unwrap();
        let mut body = Vec::new();
        let _ = reader.read_to_end(&mut body);
        report.send(String::from_utf8_lossy(&body).into_owned()).unwrap();
    });
    let sidecar = inbound(app.addr, "");
    for framing in ["Content-Length: 10\r\n\r\npart", "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n"] {
        let mut caller = Caller::connect(sidecar.inbound);
        caller.send(format!("POST /left HTTP/1.1\r\nHost: a\r\n{framing}"));
        app.next();
        drop(caller);
        let seen = app.next();
        assert!(!seen.ends_with("0\r\n\r\n"), "{seen:?}");
    }
    let line = sidecar.says(&["path=/left"]);
    assert!(line.contains("reason=client_gone") || line.contains("reason=bad_body"), "{line}");
}

#[test]
fn broken_answers_are_told_apart() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let oversized = format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\n\r\n", "x".repeat(140_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(200));
    // What the app says, what the caller gets, the reason in the access line.
    let cases: Vec<(&str, String, Option<u16>, &str)> = vec![
        ("nothing", String::new(), Some(502), "reset"),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-".into(), Some(502), "reset"),
        ("no HTTP", "SSH-2.0-OpenSSH_9.2p1\r\n\r\n".into(), Some(502), "bad_response"),
        ("no status", "HTTP/1.1 abc OK\r\n\r\n".into(), Some(502), "bad_response"),
        ("no colon", "HTTP/1.1 200 OK\r\nfield\r\n\r\n".into(), Some(502), "bad_response"),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx".into(),
            Some(502),
            "bad_response",
        ),
        ("no length", "HTTP/1.1 200 OK\r\nContent-Length: 1x\r\n\r\nx".into(), Some(502), "bad_response"),
        ("an oversized head", oversized, Some(502), "response_head_too_large"),
        ("too many fields", many, Some(502), "response_head_too_large"),
        (
            "an unasked switch",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n".into(),
            Some(502),
            "bad_response",
        ),
        ("a short body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort".into(), None, "response_incomplete"),
        ("an end within a chunk", format!("{chunked}5\r\nab"), None, "response_incomplete"),
        ("an end between chunks", format!("{chunked}2\r\nab\r\n"), None, "response_incomplete"),
        ("an end before the last line", format!("{chunked}2\r\nab\r\n0\r\n"), None, "response_incomplete"),
        ("a chunk that is none", format!("{chunked}2\r\nab\r\nzz\r\n"), None, "response_incomplete"),
    ];
    for (n, (what, answer, status, reason)) in cases.into_iter().enumerate() {
        let app = says_once(answer);
        let sidecar = inbound(app.addr, "");
        let got = Caller::connect(sidecar.inbound)
            .send(format!("POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"))
            .rest();
        let expected = status.unwrap_or(200);
        assert!(got.starts_with(&format!("HTTP/1.1 {expected} ")), "{what}: {got}");
        let line = sidecar.says(&[&format!("path=/{n} "), "reason="]);
        assert!(line.contains(&format!("reason={reason} side=app")), "{what}: {line}");
        if status.is_none() {
            assert!(!got.ends_with("0\r\n\r\n"), "{what} was made whole: {got:?}");
        }
    }
}

#[test]
fn an_answer_framed_by_the_connections_end_is_whole() {
    let app = says_once("HTTP/1.1 200 OK\r\n\r\nuntil the end");
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    let answer = caller.send("GET /c HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.contains("D\r\nuntil the end\r\n0\r\n\r\n"), "{answer:?}");
    // HTTP/1.0 knows no chunks: there it is the end again.
    let answer = Caller::connect(sidecar.inbound).send("GET /c HTTP/1.0\r\n\r\n").rest();
    assert!(answer.ends_with("\r\n\r\nuntil the end"), "{answer:?}");
    let line = sidecar.says(&["path=/c"]);
    assert!(!line.contains("reason="), "{line}");
}

#[test]
fn http_1_0_has_neither_chunks_nor_bodies_without_length() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, "");
    // Without a length there is no body; what follows is not one either.
    let answer = Caller::connect(sidecar.inbound)
        .send("POST /bare HTTP/1.0\r\nHost: a\r\n\r\nGET /smuggled HTTP/1.0\r\n\r\n")
        .rest();
    assert!(answer.starts_with("HTTP/1.0 200") && answer.matches("HTTP/1.").count() == 1, "{answer}");
    let seen = app.next();
    assert!(seen.starts_with("POST /bare HTTP/1.1\r\n"), "{seen}");
    let answer = Caller::connect(sidecar.inbound)
        .send("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .rest();
    assert!(answer.contains(" 400 ") || answer.contains(" 501 "), "{answer}");
    let mut caller = Caller::connect(sidecar.inbound);
    for _ in 0..2 {
        let answer = caller.send("GET /kept HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n").answer();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
        assert_eq!(field(&answer, "connection").as_deref(), Some("keep-alive"), "{answer}");
        assert!(app.next().starts_with("GET /kept"));
    }
    app.unseen();
}

#[test]
fn answers_without_bodies_leave_the_connection_in_step() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let answer = match head.split(' ').nth(1).unwrap() {
                "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
                "/headchunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                _ => OK,
            };
            writer.write_all(answer.as_bytes()).unwrap();
            report.send(head).unwrap();
        }
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    for (method, path, status) in
        [("HEAD", "/head", 200), ("GET", "/204", 204), ("GET", "/304", 304), ("HEAD", "/headchunks", 200)]
    {
        caller.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let head = caller.until(b"\r\n\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        // hyper leaves the length of a 304 away, as RFC 9110 §8.6 allows.
        assert_eq!(field(&head, "content-length"), (path == "/head").then(|| "9".to_owned()), "{head}");
        let line = sidecar.says(&[&format!("path={path} ")]);
        assert!(!line.contains("reason="), "{line}");
    }
    assert!(caller.send("GET /last HTTP/1.1\r\nHost: a\r\n\r\n").answer().ends_with("hi"));
    for path in ["/204", "/304", "/headchunks", "/last"] {
        sidecar.says(&[&format!("path={path} "), "reused=true"]);
    }
}

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n";

#[test]
fn bytes_sent_before_the_101_reach_the_app_after_it_or_never() {
    let (go, gate) = mpsc::channel::<&'static str>();
    let gate = Mutex::new(gate);
    let app = App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let Some(head) = read_head(&mut reader) else { return };
        // All that the head's packet brought with it would stand in this buffer.
        report.send(format!("{head}and {} bytes", reader.buffer().len())).unwrap();
        writer.write_all(gate.lock().unwrap().recv().unwrap().as_bytes()).unwrap();
        let mut rest = Vec::new();
        let _ = reader.read_to_end(&mut rest);
        report.send(String::from_utf8_lossy(&rest).into_owned()).unwrap();
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send(format!("{ASK}\u{1}early"));
    assert!(app.next().ends_with("and 0 bytes"));
    go.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").unwrap();
    assert!(caller.until(b"\r\n\r\n").starts_with("HTTP/1.1 101"));
    caller.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(app.next(), "\u{1}early");

    // A 200 is no agreement (CVE-2024-23326): nothing of what was sent early may follow.
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send(format!("{ASK}\u{1}early"));
    assert!(app.next().ends_with("and 0 bytes"));
    go.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno").unwrap();
    let answer = caller.rest();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\r\n\r\nno"), "{answer:?}");
    drop(sidecar);
    assert_eq!(app.next(), "");
}

#[test]
fn an_upgrade_with_a_body_is_refused_rather_than_cut() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, "");
    for body in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let head = ASK.strip_suffix("\r\n").unwrap();
        let answer = Caller::connect(sidecar.inbound).send(format!("{head}{body}")).rest();
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("reason=bad_head"), "{answer}");
    }
    app.unseen();
}

#[test]
fn an_upgrade_that_nobody_answers_ends_with_the_requests_time() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream);
        report.send(read_head(&mut reader).unwrap()).unwrap();
        let _ = reader.read_to_end(&mut Vec::new());
        report.send("closed".into()).unwrap();
    });
    let sidecar = inbound(app.addr, ", timeout: { request: 1s }");
    let answer = Caller::connect(sidecar.inbound).send(ASK).answer();
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("reason=deadline_passed"), "{answer}");
    app.next();
    assert_eq!(app.next(), "closed");
}

#[test]
fn a_reused_connection_that_the_app_has_closed_is_replaced_unnoticed() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer: TcpStream = stream;
        let Some(head) = read_head(&mut reader) else { return };
        writer.write_all(OK.as_bytes()).unwrap();
        drop((reader, writer));
        // Said after the close: the next request meets a dead connection or none.
        report.send(head).unwrap();
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    for _ in 0..20 {
        let answer = caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer();
        assert!(answer.ends_with("hi"), "{answer}");
        app.next();
    }
}
