//! Retries, routes, limits, fallbacks and deadlines where they meet, through the real binary.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use http::Request;

use crate::harness::http2::{App2, Caller2};
use crate::harness::{App, Caller, PATIENCE, Sidecar, field, free_port, read_head, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const BAD: &str = "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno";
const STANDBY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstandby";

/// A sidecar with these peers.
fn sidecar(peers: &str) -> Sidecar {
    Sidecar::start(&file(peers))
}

fn file(peers: &str) -> String {
    format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  {peers}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

fn ask(sidecar: &Sidecar, method: &str, rest: &str) -> String {
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(format!("{method} /a HTTP/1.1\r\nHost: shop\r\n{rest}")).answer()
}

/// An app that answers each request with the next of these, the last for ever; it closes where that is empty, and waits
/// where it ends in `…`. It reports each head and its body.
fn script(answers: &'static [&'static str]) -> App {
    let next = AtomicUsize::new(0);
    App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let length = field(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
            let mut body = vec![0; length];
            if reader.read_exact(&mut body).is_err() {
                return;
            }
            let _ = report.send(head + &String::from_utf8_lossy(&body));
            let answer = answers[next.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1)];
            let now = answer.trim_end_matches('…');
            if answer.is_empty() || writer.write_all(now.as_bytes()).is_err() {
                return;
            }
            if now != answer {
                let _ = reader.read_to_end(&mut Vec::new());
            }
        }
    })
}

fn dead() -> String {
    format!("127.0.0.1:{}", free_port())
}

/// How long the head says that its answer is waited for, in milliseconds.
fn deadline(head: &str) -> u64 {
    field(head, "x-outrigger-deadline-ms").unwrap_or_else(|| panic!("no deadline: {head}")).parse().unwrap()
}

#[test]
fn a_full_endpoint_that_no_other_can_replace_refuses_at_once() {
    for (more, route) in [
        ("{ address: '127.0.0.1:1', weight: 0 }", ""),
        ("{ address: '127.0.0.1:1' }", ", routes: [{ subset: { version: '2' } }]"),
    ] {
        let shop = script(&["…"]);
        let sidecar = sidecar(&format!(
            "shop: {{ static: [{{ address: '{}', metadata: {{ version: '2' }} }}, {more}], breaker: {{ endpoint: {{ in-flight: 1 }} }}{route} }}",
            shop.addr
        ));
        let mut first = Caller::connect(sidecar.outbound);
        first.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n");
        shop.next();
        let answer = ask(&sidecar, "GET", "\r\n");
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("limit_reached"), "{more}: {answer}");
    }
}

#[test]
fn a_fallback_does_not_hide_from_the_breaker_that_its_peer_fails() {
    for (answers, fallback) in [
        (&[BAD][..], "{ respond: { body: soft }, statuses: [500] }"),
        (&[""], "{ respond: { body: soft } }"),
        (&[BAD], "{ peer: standby, statuses: [500] }"),
    ] {
        let (shop, standby) = (script(answers), App::http("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nsoft"));
        let sidecar = sidecar(&format!(
            "standby: {{ static: ['{}'] }}\n  shop: {{ static: ['{}'], retry: off, fallback: {fallback}, breaker: {{ failures: 50%, volume: 4, open-for: 1h }} }}",
            standby.addr, shop.addr
        ));
        for _ in 0..8 {
            assert!(ask(&sidecar, "GET", "\r\n").ends_with("soft"));
        }
        assert_eq!(shop.seen.try_iter().count(), 4, "{fallback}");
        sidecar.says(&["the breaker opened: 4 of 4"]);
        sidecar.says(&["status=200", "reason=circuit_open", "fallback="]);
    }
}

#[test]
fn who_stands_in_has_limits_of_its_own_and_the_first_gets_its_place_back() {
    let standby = script(&["…"]);
    let sidecar = sidecar(&format!(
        "standby: {{ static: ['{}'], breaker: {{ in-flight: 1 }} }}\n  shop: {{ static: ['{}'], fallback: {{ peer: standby }}, breaker: {{ in-flight: 1 }} }}",
        standby.addr,
        dead()
    ));
    let mut first = Caller::connect(sidecar.outbound);
    first.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n");
    standby.next();
    let answer = ask(&sidecar, "GET", "\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let status = field(&answer, "proxy-status").unwrap();
    assert!(status.contains("reason=connect_refused"), "the first peer was asked: {status}");
    assert!(status.contains("its fallback standby failed too") && status.contains("`in-flight: 1`"), "{status}");
    standby.unseen();
}

#[test]
fn a_body_that_was_kept_goes_to_who_stands_in() {
    let (standby, shop) = (App::http(STANDBY), script(&[""]));
    let sidecar = sidecar(&format!(
        "standby: {{ static: ['{}'] }}\n  shop: {{ static: ['{}'], fallback: {{ peer: standby }} }}",
        standby.addr, shop.addr
    ));
    let answer = ask(&sidecar, "PUT", "content-length: 5\r\n\r\nhello");
    assert!(answer.ends_with("standby"), "{answer}");
    assert!(standby.next().ends_with("hello"));
    let answer = ask(&sidecar, "POST", "content-length: 5\r\n\r\nhello");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    standby.unseen();
}

#[test]
fn what_is_left_of_the_deadline_is_passed_on_with_each_attempt() {
    let shop = script(&["…", OK]);
    let sidecar = sidecar(&format!(
        "shop: {{ static: ['{}'], timeout: {{ request: 15s, attempt: 200ms }}, retry: {{ methods: any }} }}",
        shop.addr
    ));
    assert!(ask(&sidecar, "GET", "\r\n").starts_with("HTTP/1.1 200 "));
    let (first, second) = (deadline(&shop.next()), deadline(&shop.next()));
    assert!((10_000..=15_000).contains(&first) && second + 200 <= first, "{first} {second}");
    for (fields, most) in
        [("x-outrigger-deadline-ms: 12000\r\n", 12_000), ("x-outrigger-deadline-ms: 90000\r\n", 15_000)]
    {
        assert!(ask(&sidecar, "GET", &format!("{fields}\r\n")).starts_with("HTTP/1.1 200 "));
        let left = deadline(&shop.next());
        assert!((9_000..=most).contains(&left), "{fields}: {left}");
    }
    let grpc = "content-type: application/grpc\r\nte: trailers\r\ngrpc-timeout: 12S\r\ncontent-length: 0\r\n\r\n";
    assert!(ask(&sidecar, "POST", grpc).starts_with("HTTP/1.1 200 "));
    let head = shop.next();
    let left = field(&head, "grpc-timeout").unwrap();
    let micros: u64 = left.strip_suffix('u').unwrap_or_else(|| panic!("{left}")).parse().unwrap();
    assert!((9_000_000..12_000_000).contains(&micros) && left.len() <= 9, "{left}");
}

#[test]
fn a_deadline_is_no_attempts_time_and_nothing_is_sent_after_it() {
    let shop = script(&["…"]);
    let sidecar = sidecar(&format!("shop: {{ static: ['{}'], timeout: {{ attempt: 10s }} }}", shop.addr));
    let answer = ask(&sidecar, "GET", "x-outrigger-deadline-ms: 100\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("reason=deadline_passed"), "{answer}");
    shop.next();
    let answer = ask(&sidecar, "GET", "x-outrigger-deadline-ms: 0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("reason=deadline_passed"), "{answer}");
    shop.unseen();
}

#[test]
fn a_delay_made_on_purpose_is_not_taken_from_the_attempts_time_nor_told_of_the_peer() {
    let shop = App::http(OK);
    let sidecar = sidecar(&format!(
        "shop: {{ static: ['{}'], timeout: {{ attempt: 1s }}, breaker: {{ slow: {{ from: 1s }}, volume: 1 }}, routes: [{{ fault: {{ header: x-slow, delay: 1200ms }} }}] }}",
        shop.addr
    ));
    for _ in 0..2 {
        let answer = ask(&sidecar, "GET", "x-slow: 1\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    // One that ends by the caller's deadline does not reach the peer.
    assert_eq!(shop.seen.try_iter().count(), 2);
    let answer = ask(&sidecar, "POST", "x-slow: 1\r\nx-outrigger-deadline-ms: 50\r\ncontent-length: 0\r\n\r\n");
    assert!(answer.contains("reason=deadline_passed"), "{answer}");
    shop.unseen();
}

#[test]
fn a_get_with_a_body_is_no_other_gets_answer() {
    let shop = script(&[OK, ""]);
    let sidecar = sidecar(&format!("shop: {{ static: ['{}'], fallback: {{ stale: {{}} }} }}", shop.addr));
    assert!(ask(&sidecar, "GET", "content-length: 3\r\n\r\none").ends_with("hi"));
    for rest in ["content-length: 3\r\n\r\ntwo", "\r\n"] {
        let answer = ask(&sidecar, "GET", rest);
        assert!(answer.starts_with("HTTP/1.1 502 "), "{rest}: {answer}");
    }
}

#[test]
fn what_is_gone_is_not_given_for_what_was_there() {
    const GONE: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    const PRIVATE: &str = "HTTP/1.1 200 OK\r\nCache-Control: private\r\nContent-Length: 2\r\n\r\nmy";
    const BUSY: &str = "HTTP/1.1 429 Later\r\nContent-Length: 0\r\n\r\n";
    for (answers, kept) in [(&[OK, GONE, ""][..], false), (&[OK, PRIVATE, ""], false), (&[OK, BUSY, ""], true)] {
        let shop = script(answers);
        let sidecar = sidecar(&format!("shop: {{ static: ['{}'], fallback: {{ stale: {{}} }} }}", shop.addr));
        ask(&sidecar, "GET", "\r\n");
        ask(&sidecar, "GET", "\r\n");
        let answer = ask(&sidecar, "GET", "\r\n");
        assert_eq!(answer.ends_with("\r\n\r\nhi"), kept, "{answers:?}: {answer}");
    }
}

#[test]
fn what_a_peer_said_is_forgotten_with_it() {
    let shop = App::http(OK);
    let peer = |addr: &str| file(&format!("shop: {{ static: ['{addr}'], fallback: {{ stale: {{}} }} }}"));
    let sidecar = Sidecar::start(&peer(&shop.addr.to_string()));
    assert!(ask(&sidecar, "GET", "\r\n").ends_with("hi"));
    sidecar.rewrite(&peer(&dead()));
    until("the reload", || (sidecar.metric(&["outrigger_reloads_total", "applied"]) >= 1.0).then_some(()));
    let answer = ask(&sidecar, "GET", "\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 "), "another service's answer: {answer}");
}

#[test]
fn a_routes_changes_are_made_to_whatever_the_caller_gets() {
    const GOOD: &str = "HTTP/1.1 200 OK\r\nServer: secret\r\nContent-Length: 4\r\n\r\ngood";
    let route = "response-headers: { remove: [server], add: { x-by: mesh } }";
    for (fallback, status) in [
        ("", "502"),
        (", fallback: { stale: {} }", "200"),
        (", fallback: { respond: { status: 203, body: soft } }", "203"),
    ] {
        let shop = script(&[GOOD, ""]);
        let sidecar = sidecar(&format!(
            "shop: {{ static: ['{}'], routes: [{{ match: {{ methods: GET }}, {route}{fallback} }}] }}",
            shop.addr
        ));
        for status in ["200", status] {
            let answer = ask(&sidecar, "GET", "\r\n");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{fallback}: {answer}");
            assert_eq!(field(&answer, "x-by").as_deref(), Some("mesh"), "{fallback}: {answer}");
            assert!(!answer.contains("secret"), "{fallback}: {answer}");
        }
    }
}

#[test]
fn a_grpc_caller_is_told_as_grpc_does() {
    const CALL: &str = "content-type: application/grpc\r\nte: trailers\r\ncontent-length: 0\r\n\r\n";
    let sidecar = sidecar(&format!(
        "shop: {{ static: ['{}'], routes: [{{ match: {{ headers: {{ x-gone: '1' }} }}, respond: {{ status: 403, body: 'not you, 100%' }} }}], fallback: {{ respond: {{ body: '[]' }} }} }}",
        dead()
    ));
    let answer = ask(&sidecar, "POST", &format!("x-gone: 1\r\n{CALL}"));
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(field(&answer, "content-type").as_deref(), Some("application/grpc"));
    assert_eq!(field(&answer, "grpc-status").as_deref(), Some("7"), "{answer}");
    assert_eq!(field(&answer, "grpc-message").as_deref(), Some("not you, 100%25"), "{answer}");
    // What means nothing to it does not stand in for the reason.
    let answer = ask(&sidecar, "POST", CALL);
    assert_eq!(field(&answer, "grpc-status").as_deref(), Some("14"), "{answer}");
    assert!(field(&answer, "grpc-message").unwrap().contains("connect_refused"), "{answer}");
    assert!(ask(&sidecar, "POST", "content-length: 0\r\n\r\n").ends_with("[]"));
}

#[test]
fn a_retry_that_is_being_answered_leaves_its_place_to_others() {
    const BEGUN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx…";
    let shop = script(&["", BEGUN, "", BEGUN]);
    let sidecar = sidecar(&format!("shop: {{ static: ['{}'], breaker: {{ retries: 1 }} }}", shop.addr));
    let open: Vec<_> = (0..2)
        .map(|n| {
            let mut caller = Caller::connect(sidecar.outbound);
            caller.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n");
            let head = caller.until(b"\r\n\r\n");
            assert!(head.starts_with("HTTP/1.1 200 "), "{n}: {head}");
            caller
        })
        .collect();
    drop(open);
}

#[test]
fn a_mirror_has_its_peers_limits() {
    let (hangs, shop) = (script(&["…"]), App::http(OK));
    let sidecar = sidecar(&format!(
        "next: {{ static: ['{}'], breaker: {{ in-flight: 1 }} }}\n  shop: {{ static: ['{}'], routes: [{{ mirror: {{ peer: next }} }}] }}",
        hangs.addr, shop.addr
    ));
    for _ in 0..3 {
        assert!(ask(&sidecar, "GET", "\r\n").ends_with("hi"));
    }
    let count = |name: &str| sidecar.metric(&[name, "next"]) as u32;
    let counts = || (count("outrigger_mirrored_total"), count("outrigger_mirror_dropped_total"));
    until("two are dropped", || (counts() == (1, 2)).then_some(()));
}

#[test]
fn answers_that_break_off_count_against_their_endpoint() {
    const SHORT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx";
    let (breaks, well) = (
        App::start(|stream, _| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer: TcpStream = stream;
            read_head(&mut reader);
            let _ = writer.write_all(SHORT.as_bytes());
        }),
        App::http(OK),
    );
    let sidecar = sidecar(&format!("shop: {{ static: ['{}', '{}'], balance: round-robin }}", breaks.addr, well.addr));
    until("it is ejected", || {
        let mut caller = Caller::connect(sidecar.outbound);
        caller.send("GET /a HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").rest();
        sidecar.log().contains("ejected").then_some(())
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_that_was_refused_after_its_body_is_made_again_whatever_its_method() {
    let mut app = App2::start().await;
    let sidecar = sidecar(&format!("shop: {{ static: ['{}'], protocol: http2 }}", app.addr));
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let asking = tokio::spawn(async move { caller.send(Request::post("http://shop/").body("hello").unwrap()).await });
    let mut first = app.next().await;
    let body = crate::harness::http2::piece(first.request.body_mut()).await;
    assert_eq!(&body[..], b"hello");
    first.respond.send_reset(h2::Reason::REFUSED_STREAM);
    let mut second = app.next().await;
    assert_eq!(second.field("x-outrigger-attempt"), Some("2"));
    assert_eq!(&crate::harness::http2::piece(second.request.body_mut()).await[..], b"hello");
    second.answer("done");
    assert_eq!(asking.await.unwrap().unwrap().body, "done");
}

#[test]
fn an_early_answer_is_repeated_while_the_body_still_comes() {
    const BUSY: &str = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    let first = AtomicUsize::new(0);
    let shop = App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        let Some(head) = read_head(&mut reader) else { return };
        if first.fetch_add(1, Ordering::SeqCst) == 0 {
            let _ = report.send("first".into());
            let _ = writer.write_all(BUSY.as_bytes());
            let _ = reader.read_to_end(&mut Vec::new());
            return;
        }
        let _ = report.send(head);
        let mut body = vec![0; 10];
        reader.read_exact(&mut body).unwrap();
        let _ = report.send(String::from_utf8(body).unwrap());
        let _ = writer.write_all(OK.as_bytes());
    });
    let sidecar = sidecar(&format!("shop: {{ static: ['{}'], retry: {{ on: [503] }} }}", shop.addr));
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send("PUT /a HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nhello");
    assert_eq!(shop.next(), "first");
    assert_eq!(field(&shop.next(), "x-outrigger-attempt").as_deref(), Some("2"));
    assert!(caller.send("world").answer().ends_with("hi"));
    assert_eq!(shop.next(), "helloworld");
}

#[test]
fn an_upgrade_is_asked_for_again_by_the_rule_of_requests() {
    const AGREED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n…";
    for (answers, more) in [(&["", AGREED][..], ""), (&["…", AGREED], ", timeout: { attempt: 200ms }")] {
        let shop = script(answers);
        let sidecar = sidecar(&format!("shop: {{ static: ['{}']{more} }}", shop.addr));
        let mut caller = Caller::connect(sidecar.outbound);
        caller.send("GET /a HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
        let head = caller.until(b"\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 101 "), "{answers:?}: {head}");
        assert_eq!(field(&shop.next(), "x-outrigger-attempt"), None);
        assert_eq!(field(&shop.next(), "x-outrigger-attempt").as_deref(), Some("2"));
    }
}

#[test]
fn what_stands_in_for_a_head_leaves_the_connection_in_step() {
    let shop = script(&[OK, ""]);
    let sidecar = sidecar(&format!(
        "shop: {{ static: ['{}'], routes: [{{ match: {{ headers: {{ x-soft: '1' }} }}, fallback: {{ respond: {{ body: soft }} }} }}], fallback: {{ stale: {{}} }} }}",
        shop.addr
    ));
    assert!(ask(&sidecar, "GET", "\r\n").ends_with("hi"));
    let mut caller = Caller::connect(sidecar.outbound);
    for (method, soft, status, body) in [
        ("HEAD", "x-soft: 1\r\n", 200, ""),
        ("HEAD", "", 502, ""),
        ("GET", "x-soft: 1\r\n", 200, "soft"),
        ("GET", "range: bytes=0-0\r\n", 200, "hi"),
        ("GET", "if-none-match: \"x\"\r\n", 200, "hi"),
    ] {
        caller.send(format!("{method} /a HTTP/1.1\r\nHost: shop\r\n{soft}\r\n"));
        let answer = if method == "HEAD" { caller.until(b"\r\n\r\n") } else { caller.answer() };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {soft}: {answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{method} {soft}: {answer}");
    }
}

#[test]
fn what_a_limit_keeps_from_its_peer_gets_the_fallback() {
    let shop = script(&["…"]);
    let sidecar = sidecar(&format!(
        "shop: {{ static: ['{}'], breaker: {{ in-flight: 1 }}, fallback: {{ respond: {{ body: soft }} }} }}",
        shop.addr
    ));
    let mut first = Caller::connect(sidecar.outbound);
    first.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n");
    shop.next();
    for _ in 0..3 {
        let answer = ask(&sidecar, "POST", "content-length: 2\r\n\r\nab");
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("soft"), "{answer}");
        assert!(field(&answer, "proxy-status").unwrap().contains("reason=limit_reached"), "{answer}");
    }
    shop.unseen();
}

#[test]
fn who_has_waited_for_a_full_endpoint_does_not_wait_for_all_others_too() {
    let shops = [script(&["…"]), script(&["…"]), script(&["…"])];
    let addrs = shops.iter().map(|shop| format!("'{}'", shop.addr)).collect::<Vec<_>>().join(", ");
    let sidecar = sidecar(&format!(
        "shop: {{ static: [{addrs}], balance: round-robin, timeout: {{ connect: 200ms }}, breaker: {{ endpoint: {{ connections: 1 }} }} }}"
    ));
    let open: Vec<_> = shops
        .iter()
        .map(|_| {
            let mut caller = Caller::connect(sidecar.outbound);
            caller.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n");
            caller
        })
        .collect();
    shops.iter().for_each(|shop| drop(shop.next()));
    let answer = ask(&sidecar, "GET", "\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("limit_reached"), "{answer}");
    sidecar.says(&["reason=limit_reached", "attempts=1 "]);
    drop(open);
}

#[test]
fn a_part_of_a_split_does_not_stand_in_for_itself() {
    let sidecar = sidecar(&format!(
        "standby: {{ static: ['{}'] }}\n  shop: {{ static: ['127.0.0.1:1'], routes: [{{ split: {{ standby: 1 }}, fallback: {{ peer: standby }} }}] }}",
        dead()
    ));
    let answer = ask(&sidecar, "GET", "\r\n");
    assert!(answer.contains("reason=connect_refused") && !answer.contains("its fallback"), "{answer}");
}

#[test]
fn a_deadline_ends_the_pause_between_attempts() {
    const LATER: &str = "HTTP/1.1 503 No\r\nRetry-After: 2\r\nContent-Length: 4\r\n\r\nbusy";
    let shop = script(&[LATER]);
    let sidecar = sidecar(&format!("shop: {{ static: ['{}'], retry: {{ on: [503] }} }}", shop.addr));
    // The pause would outlast the caller: it gets the answer that there is.
    let answer = ask(&sidecar, "GET", "x-outrigger-deadline-ms: 500\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("busy"), "{answer}");
    sidecar.says(&["retry_skipped=no_time"]);
    // A caller that leaves in the pause ends it: nothing is sent for it any more.
    let (tell, told) = mpsc::channel();
    let to = sidecar.outbound;
    thread::spawn(move || {
        let mut caller = Caller::connect(to);
        caller.send("GET /a HTTP/1.1\r\nHost: shop\r\n\r\n");
        let _ = told.recv_timeout(PATIENCE);
    });
    shop.next();
    shop.next();
    tell.send(()).unwrap();
    sidecar.says(&["reason=client_gone"]);
    assert_eq!(shop.seen.recv_timeout(Duration::from_secs(3)).ok(), None);
}
