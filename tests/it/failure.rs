//! Every failure has an answer that says why; what is in doubt is refused and never forwarded.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;

use crate::harness::{App, Caller, Sidecar, field, free_port, read_head, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn inbound(app: &App, more: &str) -> Sidecar {
    Sidecar::start(&format!(
        "service: server\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}'{more} }}\noutbound: {{ listen: '{{out}}' }}\n",
        app.addr
    ))
}

fn reason(answer: &str) -> String {
    let status = field(answer, "proxy-status").unwrap_or_else(|| panic!("no Proxy-Status in {answer}"));
    status.split("reason=").nth(1).unwrap().split(';').next().unwrap().to_owned()
}

#[test]
fn bad_heads_are_refused_closed_and_not_forwarded() {
    let app = App::http(OK);
    let sidecar = inbound(&app, "");
    let long = "a".repeat(70_000);
    let many = (0..200).map(|n| format!("f{n}: x\r\n")).collect::<String>();
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x10\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n".to_owned(), 501),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: wonders\r\n\r\n".to_owned(), 417),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), 405),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), 431),
    ];
    for (request, status) in cases {
        let mut caller = Caller::connect(sidecar.inbound);
        // A caller whose head is too large may be closed on while it still writes.
        let _ = caller.0.write_all(request.as_bytes());
        let answer = caller.rest();
        let shown = &request[..request.len().min(90)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?} got {answer:?}");
    }
    app.unseen();
    for (status, reason) in [("400", "bad_head"), ("431", "head_too_large"), ("501", "unknown_coding")] {
        sidecar.says(&[&format!("status={status} reason={reason} "), "side=client"]);
    }
    let told = sidecar.log().lines().filter(|line| line.contains("reason=") && !line.contains("status=")).count();
    assert_eq!(told, 0, "each line has the status that was answered");
}

#[test]
fn a_target_that_the_parser_cannot_hold_gets_414() {
    let app = App::http(OK);
    let sidecar = inbound(&app, ", limits: { head: 256KiB }");
    let mut caller = Caller::connect(sidecar.inbound);
    let answer = caller.send(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(70_000))).rest();
    assert!(answer.starts_with("HTTP/1.1 414 "), "{answer}");
    sidecar.says(&["status=414 reason=uri_too_long"]);
}

#[test]
fn a_dead_app_gives_503_with_reason_and_side_at_once() {
    let port = free_port();
    let sidecar = Sidecar::start(&format!(
        "service: server\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '127.0.0.1:{port}' }}\noutbound: {{ listen: '{{out}}' }}\n"
    ));
    // Many times: whether the app is dialled before the caller's first byte is seen is a matter of chance.
    let times = 20;
    for _ in 0..times {
        let answer = Caller::connect(sidecar.inbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer();
        assert!(answer.starts_with("HTTP/1.1 503 ") && reason(&answer) == "connect_refused", "{answer}");
        assert!(answer.contains("side=app"), "{answer}");
    }
    sidecar.says(&["reason=connect_refused", "side=app", "status=503"]);
    assert_eq!(sidecar.metric(&["outrigger_failures_total", "connect_refused"]), f64::from(times));
}

#[test]
fn a_name_without_a_peer_is_refused_where_it_is_denied() {
    let sidecar = Sidecar::start("service: a\nadmin: '{admin}'\noutbound: { listen: '{out}', otherwise: deny }\n");
    let answer = Caller::connect(sidecar.outbound).send("GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 404 ") && reason(&answer) == "no_route", "{answer}");
}

#[test]
fn an_app_that_hangs_up_gives_502_and_one_that_is_slow_504() {
    let rude = App::start(|stream, _| {
        let _ = read_head(&mut BufReader::new(stream));
    });
    let sidecar = inbound(&rude, "");
    let answer =
        Caller::connect(sidecar.inbound).send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 502 ") && reason(&answer) == "reset", "{answer}");
    let slow = App::start(|mut stream, _| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.read(&mut [0; 1024]);
    });
    let sidecar = inbound(&slow, ", timeout: { request: 100ms }");
    let answer = Caller::connect(sidecar.inbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 504 ") && reason(&answer) == "deadline_passed", "{answer}");
}

#[test]
fn a_head_that_is_never_finished_gets_408() {
    let app = App::http(OK);
    let sidecar = inbound(&app, ", timeout: { head: 200ms }");
    let mut caller = Caller::connect(sidecar.inbound);
    let answer = caller.send("GET / HTTP/1.1\r\nHost: a\r\nX-").rest();
    assert!(answer.starts_with("HTTP/1.1 408 ") && reason(&answer) == "head_timeout", "{answer}");
    sidecar.says(&["reason=head_timeout"]);
    app.unseen();
}

#[test]
fn a_body_over_the_limit_gets_413() {
    let app = App::start(|mut stream, report| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        // An early dial that the caller's HTTP made needless ends without a byte.
        if !all.is_empty() {
            let _ = report.send(String::from_utf8_lossy(&all).into_owned());
        }
    });
    let sidecar = inbound(&app, ", limits: { body: 10B }");
    let answer =
        Caller::connect(sidecar.inbound).send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 413 ") && reason(&answer) == "body_too_large", "{answer}");
    app.unseen();
    let mut caller = Caller::connect(sidecar.inbound);
    let answer =
        caller.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[test]
fn first_bytes_that_stop_short_are_told_of_and_answered_where_they_begin_a_request() {
    let app = App::http(OK);
    let sidecar = inbound(&app, ", timeout: { head: 200ms }");
    let answer = Caller::connect(sidecar.inbound).send("GE").rest();
    assert!(answer.starts_with("HTTP/1.1 408 ") && reason(&answer) == "head_timeout", "{answer}");
    assert_eq!(field(&answer, "connection").as_deref(), Some("close"));
    sidecar.says(&["status=408 reason=head_timeout", "first bytes"]);
    // The beginning of a ClientHello: no answer of HTTP would be understood.
    assert_eq!(Caller::connect(sidecar.inbound).send([0x16, 3, 1]).rest(), "");
    until("both are told of", || (sidecar.log().matches("first bytes").count() == 2).then_some(()));
    assert_eq!(sidecar.log().matches("status=408").count(), 1);
}

#[test]
fn whoever_only_connects_to_the_shared_port_is_not_told_of() {
    let sidecar = Sidecar::start("service: a\nadmin: '{admin}'\noutbound: { listen: '{out}' }\n");
    for _ in 0..3 {
        // As a health check does: nothing is said before the close.
        let mut probe = Caller::connect(sidecar.outbound);
        probe.0.shutdown(Shutdown::Write).unwrap();
        assert_eq!(probe.rest(), "");
    }
    assert_eq!(Caller::connect(sidecar.outbound).send("*1\r\n").rest(), "");
    sidecar.says(&["reason=wrong_protocol"]);
    assert_eq!(sidecar.log().matches("reason=").count(), 1, "{}", sidecar.log());
    assert_eq!(sidecar.metric(&["outrigger_failures_total", "wrong_protocol"]), 1.0);
}
