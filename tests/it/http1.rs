//! HTTP/1 through both doors, from raw callers to scripted apps.

use std::io::{BufReader, Read, Write};

use crate::harness::{App, Caller, Sidecar, field, read_head};

const OK: &str = "HTTP/1.1 200 OK\r\nX-CaSe: Kept\r\nContent-Length: 2\r\n\r\nhi";

fn pair(app: &App) -> (Sidecar, Sidecar) {
    let inbound = Sidecar::start(&format!(
        "service: server\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}' }}\noutbound: {{ listen: '{{out}}' }}\ntelemetry: {{ access-log: {{ log: all }} }}\n",
        app.addr
    ));
    let outbound = Sidecar::start(&format!(
        "service: client\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: ['{}'] }}\ntelemetry: {{ access-log: {{ log: all }} }}\n",
        inbound.inbound
    ));
    (outbound, inbound)
}

#[test]
fn requests_of_one_connection_pass_two_sidecars_and_keep_their_case() {
    let app = App::http(OK);
    let (outbound, inbound) = pair(&app);
    let mut caller = Caller::connect(outbound.outbound);
    for n in 0..3 {
        let answer = caller
            .send(format!("POST /p?{n} HTTP/1.1\r\nHost: server\r\nX-MiXed: a\r\nContent-Length: 3\r\n\r\nabc"))
            .answer();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
        assert!(answer.contains("X-CaSe: Kept"), "{answer}");
        let seen = app.next();
        assert!(
            seen.starts_with(&format!("POST /p?{n} HTTP/1.1\r\nHost: server\r\n")) && seen.contains("X-MiXed: a\r\n"),
            "{seen}"
        );
        assert!(seen.ends_with("abc"));
        assert_eq!(field(&seen, "x-outrigger-hops").as_deref(), Some("2"));
        assert_eq!(field(&seen, "x-forwarded-for").as_deref(), Some("127.0.0.1"));
    }
    inbound.says(&["status=200", "method=POST", "path=/p"]);
    assert_eq!(outbound.metric(&["outrigger_requests_total", "server", "2xx"]), 3.0);
}

#[test]
fn an_old_caller_without_host_is_served_and_closed() {
    let app = App::http(OK);
    let (_, inbound) = pair(&app);
    let mut caller = Caller::connect(inbound.inbound);
    let answer = caller.send("GET / HTTP/1.0\r\n\r\n").rest();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("hi"), "{answer}");
    assert!(app.next().starts_with("GET / HTTP/1.1\r\n"));
}

#[test]
fn a_body_waits_for_the_apps_own_100() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let head = read_head(&mut reader).unwrap();
        report.send(head).unwrap();
        writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = [0; 4];
        reader.read_exact(&mut body).unwrap();
        report.send(String::from_utf8_lossy(&body).into_owned()).unwrap();
        writer.write_all(OK.as_bytes()).unwrap();
    });
    let (outbound, _inbound) = pair(&app);
    let mut caller = Caller::connect(outbound.outbound);
    caller.send("PUT / HTTP/1.1\r\nHost: server\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    assert_eq!(field(&app.next(), "expect").as_deref(), Some("100-continue"));
    assert!(caller.until(b"\r\n\r\n").starts_with("HTTP/1.1 100"));
    assert!(caller.send("body").answer().starts_with("HTTP/1.1 200"));
    assert_eq!(app.next(), "body");
}

#[test]
fn a_caller_whose_body_is_not_wanted_is_told_that_its_connection_ends() {
    // By the app, by what the file spells out, and where nothing of the kind was said.
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        report.send(read_head(&mut reader).unwrap()).unwrap();
        (&stream).write_all(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").unwrap();
        let _ = reader.read(&mut [0]);
    });
    let routes = ", routes: [{ match: { path: /told }, respond: { status: 403 } }, \
                  { match: { path: /fine }, respond: { status: 200 } }]";
    let inbound = crate::harness::inbound(app.addr, routes);
    for (path, expect, status) in
        [("/", "100-continue", 417), ("/told", "100-continue", 403), ("/fine", "100-continue", 200), ("/", "", 417)]
    {
        let mut caller = Caller::connect(inbound.inbound);
        let more = if expect.is_empty() { String::new() } else { format!("Expect: {expect}\r\nContent-Length: 4\r\n") };
        let answer = caller.send(format!("PUT {path} HTTP/1.1\r\nHost: a\r\n{more}\r\n")).until(b"\r\n\r\n");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(field(&answer, "connection").is_some(), !expect.is_empty(), "{answer}");
    }
}

#[test]
fn a_caller_whose_body_was_read_keeps_its_connection_whatever_the_answer() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
            reader.read_exact(&mut [0; 4]).unwrap();
            report.send(head).unwrap();
            writer.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
        }
    });
    let inbound = crate::harness::inbound(app.addr, "");
    let mut caller = Caller::connect(inbound.inbound);
    for _ in 0..2 {
        caller.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
        assert!(caller.until(b"\r\n\r\n").starts_with("HTTP/1.1 100"));
        let answer = caller.send("body").until(b"\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 404") && field(&answer, "connection").is_none(), "{answer}");
        app.next();
    }
}

#[test]
fn chunks_and_announced_trailers_pass() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        report.send(read_head(&mut reader).unwrap()).unwrap();
        writer
            .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n")
            .unwrap();
        let _ = reader.read(&mut [0]);
    });
    let (outbound, _inbound) = pair(&app);
    let mut caller = Caller::connect(outbound.outbound);
    caller.send("GET / HTTP/1.1\r\nHost: server\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    let answer = caller.until(b"x-sum: 9\r\n\r\n").to_ascii_lowercase();
    assert!(answer.contains("trailer: x-sum") && answer.contains("3\r\nabc\r\n0\r\n"), "{answer}");
    assert_eq!(field(&app.next(), "te").as_deref(), Some("trailers"));
}

#[test]
fn a_websocket_becomes_a_tunnel_only_after_the_apps_101() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        report.send(read_head(&mut reader).unwrap()).unwrap();
        writer
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nearly")
            .unwrap();
        let mut word = [0; 4];
        reader.read_exact(&mut word).unwrap();
        writer.write_all(&word).unwrap();
    });
    let (outbound, inbound) = pair(&app);
    let mut caller = Caller::connect(outbound.outbound);
    caller.send("GET /ws HTTP/1.1\r\nHost: server\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\nSec-WebSocket-Version: 13\r\n\r\n");
    let head = caller.until(b"\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101") && field(&head, "upgrade").as_deref() == Some("websocket"), "{head}");
    caller.until(b"early");
    caller.send("ping");
    caller.until(b"ping");
    assert_eq!(caller.rest(), "");
    drop(caller);
    assert_eq!(field(&app.next(), "upgrade").as_deref(), Some("websocket"));
    inbound.says(&["status=101", "path=/ws"]);
}
