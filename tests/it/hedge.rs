//! Hedging: what is sent beside a slow attempt, which of the two counts, and what is not sent twice.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use crate::harness::{App, Caller, Sidecar, field, read_head, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nbusy";

/// Opens once.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        drop(self.0.1.wait_while(self.0.0.lock().unwrap(), |open| !*open).unwrap());
    }
}

/// An app that reports each request with its body and serves the nth by `serve`; afterwards it reports who has gone.
fn numbered(serve: impl Fn(u32, &mut TcpStream) + Send + Sync + 'static) -> App {
    let seen = AtomicU32::new(0);
    App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let length = field(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let n = seen.fetch_add(1, Ordering::SeqCst) + 1;
            report.send(format!("{head}{}", String::from_utf8_lossy(&body))).unwrap();
            serve(n, &mut writer);
        }
    })
}

/// Waits until the other end has closed.
fn gone(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0]);
}

fn sidecar(apps: &[&App], peer: &str) -> Sidecar {
    let addrs: Vec<_> = apps.iter().map(|app| format!("'{}'", app.addr)).collect();
    Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: [{}], balance: round-robin, {peer} }}\ntelemetry: {{ access-log: {{ log: all }} }}\n",
        addrs.join(", ")
    ))
}

fn request(method: &str, fields: &str, body: &str) -> String {
    format!("{method} / HTTP/1.1\r\nHost: db\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

fn mark(head: &str) -> Option<String> {
    field(head, "x-outrigger-attempt")
}

fn counts(sidecar: &Sidecar) -> [f64; 3] {
    ["outrigger_hedges_total", "outrigger_hedges_won_total", "outrigger_hedges_skipped_total"]
        .map(|name| sidecar.metric(&[name, "db"]))
}

#[test]
fn a_slow_attempt_is_overtaken_and_cancelled() {
    let left = Gate::default();
    let leaves = left.clone();
    let slow = numbered(move |_, stream| {
        gone(stream);
        leaves.open();
    });
    let quick = App::http(OK);
    let sidecar = sidecar(&[&slow, &quick], "hedge: 20ms");
    let answer = Caller::connect(sidecar.outbound).send(request("PUT", "", "abc")).answer();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hi"), "{answer}");
    let (first, second) = (slow.next(), quick.next());
    assert!(first.ends_with("abc") && second.ends_with("abc"), "{first} {second}");
    assert_eq!((mark(&first), mark(&second).as_deref()), (None, Some("2")));
    left.pass();
    sidecar.says(&["status=200", "attempts=2", &format!("endpoint={}", quick.addr)]);
    assert_eq!(counts(&sidecar), [1.0, 1.0, 0.0]);
}

#[test]
fn only_what_may_be_sent_twice_is_hedged() {
    for (head, peer, attempts, skipped) in [
        (request("GET", "", ""), "hedge: 200ms", 2, 0.0),
        (request("POST", "", "x"), "hedge: 10ms", 1, 0.0),
        (request("POST", "", "x"), "hedge: 200ms, retry: { on: [connect-failure], methods: any }", 2, 0.0),
        (request("GET", "x-outrigger-attempt: 2\r\n", ""), "hedge: 10ms", 1, 0.0),
        (
            request("GET", "", ""),
            "hedge: 10ms, retry: { on: [connect-failure], budget: { share: 0%, floor: 0 } }",
            1,
            1.0,
        ),
        (request("GET", "", ""), "hedge: 10ms, breaker: { retries: 0 }", 1, 1.0),
        (request("GET", "", ""), "hedge: 10ms, routes: [{ hedge: off }]", 1, 0.0),
        (request("GET", "", ""), "routes: [{ hedge: 200ms }]", 2, 0.0),
    ] {
        let app = numbered(|n, stream| if n == 1 { gone(stream) } else { stream.write_all(OK.as_bytes()).unwrap() });
        let retry = if peer.contains("retry: ") { "" } else { "retry: { on: [connect-failure] }, " };
        // The hedge comes when the first attempt has long been sent, and is answered; without one nothing is.
        let attempt = if attempts == 2 { "20s" } else { "300ms" };
        let sidecar = sidecar(&[&app], &format!("timeout: {{ attempt: {attempt} }}, {retry}{peer}"));
        let answer = Caller::connect(sidecar.outbound).send(&head).answer();
        sidecar.says(&[&format!("attempts={attempts}")]);
        let status = if attempts == 2 { 200 } else { 504 };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head} {peer}: {answer}");
        let hedged = if attempts == 2 { 1.0 } else { 0.0 };
        assert_eq!(counts(&sidecar), [hedged, hedged, skipped], "{head} {peer}");
    }
}

#[test]
fn a_body_that_is_still_on_its_way_is_not_sent_twice() {
    let asked = Gate::default();
    let goes_on = asked.clone();
    let app = App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let head = read_head(&mut reader).unwrap();
        goes_on.open();
        let mut body = [0; 4];
        reader.read_exact(&mut body).unwrap();
        report.send(head).unwrap();
        writer.write_all(OK.as_bytes()).unwrap();
    });
    let sidecar = sidecar(&[&app], "hedge: 10ms");
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send("PUT / HTTP/1.1\r\nHost: db\r\nContent-Length: 4\r\n\r\nab");
    asked.pass();
    until("the hedge's time is over", || (counts(&sidecar)[2] > 0.0).then_some(()));
    assert!(caller.send("cd").answer().starts_with("HTTP/1.1 200 "));
    assert_eq!((mark(&app.next()), counts(&sidecar)), (None, [0.0, 0.0, 1.0]));
}

#[test]
fn an_answer_that_the_rule_names_does_not_win() {
    // Which attempt is refused; the other one is answered when the refused one's connection was given up.
    for refused in [1, 2] {
        let (both, over) = (Gate::default(), Gate::default());
        let app = numbered(move |n, stream| {
            if n == 2 {
                both.open();
            }
            both.pass();
            if n != refused {
                over.pass();
                return stream.write_all(OK.as_bytes()).unwrap();
            }
            // More is announced than would be read of an answer that nobody wants.
            stream.write_all(b"HTTP/1.1 503 X\r\nContent-Length: 99999\r\n\r\n").unwrap();
            gone(stream);
            over.open();
        });
        let sidecar = sidecar(&[&app], "hedge: 10ms, retry: { on: [gateway-error] }");
        let answer = Caller::connect(sidecar.outbound).send(request("GET", "", "")).answer();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{refused}: {answer}");
        assert_eq!(counts(&sidecar), [1.0, if refused == 1 { 1.0 } else { 0.0 }, 0.0], "{refused}");
    }
}

#[test]
fn where_both_fail_the_rule_of_retries_goes_on() {
    for (attempts, status) in [(2, 503), (3, 200)] {
        let both = Gate::default();
        let app = numbered(move |n, stream| {
            if n == 2 {
                both.open();
            }
            both.pass();
            stream.write_all(if n < 3 { BUSY } else { OK }.as_bytes()).unwrap();
        });
        let sidecar = sidecar(&[&app], &format!("hedge: 10ms, retry: {{ on: [gateway-error], attempts: {attempts} }}"));
        let answer = Caller::connect(sidecar.outbound).send(request("GET", "", "")).answer();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{attempts}: {answer}");
        sidecar.says(&[&format!("attempts={attempts}")]);
    }
}

#[test]
fn a_caller_who_leaves_cancels_both() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        report.send(read_head(&mut reader).unwrap()).unwrap();
        let _ = reader.read(&mut [0]);
        report.send("gone".into()).unwrap();
    });
    let sidecar = sidecar(&[&app], "hedge: 10ms");
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(request("GET", "", ""));
    assert!(app.next().starts_with("GET ") && app.next().starts_with("GET "));
    drop(caller);
    assert_eq!((app.next(), app.next()), ("gone".into(), "gone".into()));
    sidecar.says(&["attempts=2", "client_gone"]);
    until("nothing is in flight", || (sidecar.metric(&["outrigger_in_flight", "db"]) == 0.0).then_some(()));
}

#[test]
fn the_peer_s_own_answers_say_what_is_slow() {
    let app = numbered(|n, stream| if n == 21 { gone(stream) } else { stream.write_all(OK.as_bytes()).unwrap() });
    let sidecar = sidecar(&[&app], "hedge: { after: p50, at-least: 100ms }");
    let mut caller = Caller::connect(sidecar.outbound);
    for n in 1..=21 {
        assert!(caller.send(request("GET", "", "")).answer().starts_with("HTTP/1.1 200 "), "{n}");
    }
    assert!(counts(&sidecar)[1] >= 1.0);
    sidecar.says(&["attempts=2"]);
}
