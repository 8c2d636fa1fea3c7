//! Retries: what is sent again, what is not, and what the next hop is told, through the real binary.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::harness::{App, Caller, Sidecar, field, read_head};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// An app that treats its first `bad` requests with `badly` (then closes) and answers the others.
fn flaky(bad: u32, badly: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> App {
    let seen = AtomicU32::new(0);
    App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            report.send(head).unwrap();
            if seen.fetch_add(1, Ordering::SeqCst) < bad {
                return badly(&mut writer);
            }
            writer.write_all(OK.as_bytes()).unwrap();
        }
    })
}

fn sidecar(app: &App, peer: &str) -> Sidecar {
    sidecar_of(&format!("'{}'", app.addr), peer)
}

fn sidecar_of(addrs: &str, peer: &str) -> Sidecar {
    Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: [{addrs}]{peer} }}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    ))
}

fn ask(sidecar: &Sidecar, head: &str) -> String {
    Caller::connect(sidecar.outbound).send(format!("{head} HTTP/1.1\r\nHost: db\r\nContent-Length: 0\r\n\r\n")).answer()
}

#[test]
fn what_may_have_been_processed_is_repeated_for_idempotent_requests_only() {
    for (head, peer, status, attempts, skipped) in [
        ("GET /", "", 200, 2, ""),
        ("PUT /", "", 200, 2, ""),
        ("POST /", "", 502, 1, "retry_skipped=not_idempotent"),
        ("POST /", ", retry: { methods: any }", 200, 2, ""),
        ("GET /", ", retry: off", 502, 1, ""),
    ] {
        let app = flaky(1, |_| {});
        let sidecar = sidecar(&app, peer);
        let answer = ask(&sidecar, head);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head} {peer}: {answer}");
        sidecar.says(&[&format!("status={status}"), &format!("attempts={attempts}"), skipped]);
        let first = app.next();
        assert_eq!(field(&first, "x-outrigger-attempt"), None, "{first}");
        if attempts == 2 {
            assert_eq!(field(&app.next(), "x-outrigger-attempt").as_deref(), Some("2"));
        }
    }
}

#[test]
fn an_answer_is_repeated_where_the_rule_names_it_and_else_passed_on() {
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy";
    const LATER: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 60\r\nContent-Length: 4\r\n\r\nbusy";
    for (answer, rule, status, skipped) in [
        (BUSY, "on: [503]", 200, ""),
        (BUSY, "on: [gateway-error]", 200, ""),
        (BUSY, "on: [reset]", 503, ""),
        (BUSY, "on: [503], attempts: 1", 503, ""),
        (BUSY, "on: [503], budget: { share: 0%, floor: 0 }", 503, "retry_skipped=budget_spent"),
        (LATER, "on: [503]", 503, "retry_skipped=pause_too_long"),
    ] {
        let app = flaky(1, move |stream| stream.write_all(answer.as_bytes()).unwrap());
        let sidecar = sidecar(&app, &format!(", retry: {{ {rule} }}"));
        let got = ask(&sidecar, "GET /");
        assert!(got.starts_with(&format!("HTTP/1.1 {status} ")), "{rule}: {got}");
        sidecar.says(&[&format!("status={status}"), skipped]);
    }
}

#[test]
fn a_retry_of_a_retry_is_not_made() {
    let app = flaky(9, |_| {});
    let sidecar = sidecar(&app, "");
    for (fields, attempts) in [
        ("x-outrigger-attempt: 2\r\n", 1),
        (
            "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b,outrigger=a:2\r\n",
            1,
        ),
        ("traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=b\r\n", 2),
    ] {
        let answer =
            Caller::connect(sidecar.outbound).send(format!("GET / HTTP/1.1\r\nHost: db\r\n{fields}\r\n")).answer();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
        let seen: Vec<_> = (0..attempts).map(|_| app.next()).collect();
        if attempts == 2 {
            assert_eq!(field(&seen[1], "tracestate").as_deref(), Some("outrigger=a:2,a=b"));
        }
    }
    assert_eq!(sidecar.metric(&["outrigger_attempts_total", "db"]), 4.0);
}

#[test]
fn an_answer_that_is_worth_another_attempt_and_gets_none_says_why() {
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";
    for (head, fields, attempts, skipped) in [
        ("POST /", "", 2, "retry_skipped=not_idempotent"),
        ("GET /", "x-outrigger-attempt: 2\r\n", 2, "retry_skipped=retry_of_retry"),
        ("POST /", "", 1, ""),
    ] {
        let app = flaky(1, move |stream| stream.write_all(BUSY.as_bytes()).unwrap());
        let sidecar = sidecar(&app, &format!(", retry: {{ on: [503], attempts: {attempts} }}"));
        let request = format!("{head} HTTP/1.1\r\nHost: db\r\n{fields}Content-Length: 0\r\n\r\n");
        let answer = Caller::connect(sidecar.outbound).send(request).answer();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("busy"), "{answer}");
        sidecar.says(&["status=503", "attempts=1", skipped]);
        let counted = sidecar.metric(&["outrigger_retries_skipped_total", "db"]);
        assert_eq!(counted, f64::from(u8::from(attempts > 1)), "{head} {fields}");
    }
}

#[test]
fn a_body_is_kept_up_to_a_bound() {
    for (size, status, skipped) in [(64 * 1024, 200, ""), (64 * 1024 + 1, 502, "retry_skipped=body_too_large")] {
        let seen = AtomicU32::new(0);
        let app = App::start(move |stream, report| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            read_head(&mut reader).unwrap();
            let mut body = vec![0; size];
            std::io::Read::read_exact(&mut reader, &mut body).unwrap();
            if seen.fetch_add(1, Ordering::SeqCst) > 0 {
                report.send(body.iter().filter(|byte| **byte == b'x').count().to_string()).unwrap();
                writer.write_all(OK.as_bytes()).unwrap();
            }
        });
        let sidecar = sidecar(&app, "");
        let mut caller = Caller::connect(sidecar.outbound);
        caller.send(format!("PUT / HTTP/1.1\r\nHost: db\r\nContent-Length: {size}\r\n\r\n"));
        let answer = caller.send(vec![b'x'; size]).answer();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{size}: {answer}");
        sidecar.says(&[&format!("status={status}"), skipped]);
        if status == 200 {
            assert_eq!(app.next(), size.to_string());
        }
    }
}

#[test]
fn an_attempt_that_takes_too_long_is_followed_by_another() {
    let (dead, alive) = (App::start(|stream, _| std::mem::forget(stream)), App::http(OK));
    let sidecar = Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: ['{}', '{}'], balance: round-robin, timeout: {{ attempt: 50ms }} }}\n",
        dead.addr, alive.addr
    ));
    for _ in 0..4 {
        let answer = ask(&sidecar, "GET /");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(sidecar.metric(&["outrigger_retries_total", "db"]) >= 2.0);
    let answers: Vec<_> = (0..2).map(|_| ask(&sidecar, "POST /")).collect();
    let late = answers.iter().find(|answer| answer.starts_with("HTTP/1.1 504 ")).expect("one went to the dead one");
    assert!(field(late, "proxy-status").unwrap().contains("reason=attempt_timeout"), "{late}");
}

#[test]
fn an_app_that_closes_a_connection_under_a_request_is_asked_again_where_that_does_no_harm() {
    for (method, status) in [("GET", 200), ("POST", 502)] {
        let app = App::start(|stream, _| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            read_head(&mut reader).unwrap();
            writer.write_all(OK.as_bytes()).unwrap();
            // The next one is read, and meets the end of the connection.
            read_head(&mut reader);
        });
        let sidecar = Sidecar::start(&format!(
            "service: s\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}', protocol: http1 }}\n",
            app.addr
        ));
        let mut caller = Caller::connect(sidecar.inbound);
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert!(caller.send(&head).answer().starts_with("HTTP/1.1 200 "));
        let second = caller.send(&head).answer();
        assert!(second.starts_with(&format!("HTTP/1.1 {status} ")), "{method}: {second}");
    }
}

#[test]
fn an_answer_that_is_repeated_leaves_its_connection_to_the_next_attempt() {
    let seen = AtomicU32::new(0);
    let app = App::start(move |stream, report| {
        report.send("connected".into()).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            report.send(head).unwrap();
            let first = seen.fetch_add(1, Ordering::SeqCst) == 0;
            let answer = if first { "HTTP/1.1 503 X\r\nRetry-After: 0\r\nContent-Length: 4\r\n\r\nbusy" } else { OK };
            writer.write_all(answer.as_bytes()).unwrap();
        }
    });
    let sidecar = sidecar(&app, ", retry: { on: [503] }");
    assert!(ask(&sidecar, "GET /").starts_with("HTTP/1.1 200 "));
    let told = [(); 3].map(|()| app.next());
    assert_eq!(told.each_ref().map(|told| told == "connected"), [true, false, false], "{told:?}");
}

#[test]
fn an_endpoint_that_its_limit_keeps_from_is_passed_over_and_no_attempt() {
    let full = App::start(|stream, report| {
        let mut reader = BufReader::new(stream);
        while let Some(head) = read_head(&mut reader) {
            report.send(head).unwrap();
        }
    });
    let free = App::http(OK);
    for more in ["", ", hedge: 10s"] {
        let limits = format!("balance: round-robin{more}, breaker: {{ endpoint: {{ in-flight: 1 }} }}");
        let sidecar = sidecar_of(&format!("'{}', '{}'", full.addr, free.addr), &format!(", {limits}"));
        let mut held = Caller::connect(sidecar.outbound);
        held.send("GET /held HTTP/1.1\r\nHost: db\r\n\r\n");
        // Round robin: it is the first's turn again and again.
        full.next();
        for n in 0..4 {
            let answer = ask(&sidecar, &format!("GET /{n}"));
            assert!(answer.starts_with("HTTP/1.1 200 "), "{more}: {answer}");
            let line = sidecar.says(&[&format!("path=/{n}")]);
            assert!(line.contains(" attempts=1 "), "{more}: {line}");
        }
        assert_eq!(sidecar.metric(&["outrigger_attempts_total", "db"]), 5.0);
    }
}
