//! What stands in where a peer gives no answer, and copies for a peer that is tried out, through the real binary.

use std::io::Read;

use crate::harness::{App, Caller, Sidecar, field, free_port, get, until};

const STANDBY: &str = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nstandby";

/// A sidecar whose peer `shop` has these further keys, beside a peer `standby`.
fn sidecar(shop: impl std::fmt::Display, standby: &App, more: &str) -> Sidecar {
    Sidecar::start(&format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  standby: {{ static: ['{}'] }}\n  shop: {{ static: ['{shop}'], {more} }}\n",
        standby.addr
    ))
}

fn ask(sidecar: &Sidecar, method: &str, fields: &str) -> String {
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(format!("{method} /a?b HTTP/1.1\r\nHost: shop\r\n{fields}")).answer()
}

fn metric(sidecar: &Sidecar, line: &str) {
    until(line, || get(sidecar.admin, "/metrics").contains(line).then_some(()));
}

#[test]
fn another_peer_gets_what_was_never_sent_whatever_its_method() {
    let standby = App::http(STANDBY);
    let dead = format!("127.0.0.1:{}", free_port());
    let sidecar = sidecar(dead, &standby, "fallback: { peer: standby }");
    for (method, rest) in [("GET", "\r\n"), ("POST", "content-length: 5\r\n\r\nhello")] {
        let answer = ask(&sidecar, method, rest);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("standby"), "{answer}");
        let seen = standby.next();
        assert!(seen.starts_with(&format!("{method} /a?b HTTP/1.1\r\nHost: shop\r\n")), "{seen}");
        assert_eq!(seen.ends_with("hello"), method == "POST", "{seen}");
    }
    sidecar.says(&["peer=shop", "fallback=standby", "status=200", "reason=connect_refused", "side=peer"]);
    metric(&sidecar, "outrigger_fallbacks_total{peer=\"shop\"} 2");
}

#[test]
fn to_a_peer_that_stands_in_it_is_a_first_attempt_and_what_both_try_adds_up() {
    let (standby, breaks) = (App::script([""]), App::script([""]));
    let retry = |attempts: u8| format!("retry: {{ attempts: {attempts}, backoff: {{ base: 1ms, cap: 1ms }} }}");
    let sidecar = Sidecar::start(&format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  standby: {{ static: ['{}'], {} }}\n  \
         shop: {{ static: ['{}', '127.0.0.1:{}'], balance: round-robin, eject: off, {}, fallback: {{ peer: standby }} }}\n",
        standby.addr,
        retry(3),
        breaks.addr,
        free_port(),
        retry(2),
    ));
    let trace = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: other=1\r\n\r\n";
    // One of two begins at the endpoint that breaks off, and finds nobody at the other then.
    for request in 1..=2 {
        let answer = ask(&sidecar, "GET", trace);
        assert!(answer.contains("its fallback standby failed too"), "{answer}");
        for n in 1..=3 {
            let seen = standby.next();
            let marked = (n > 1).then(|| n.to_string());
            let state = marked.as_ref().map_or("other=1".into(), |n| format!("outrigger=a:{n},other=1"));
            assert_eq!(field(&seen, "x-outrigger-attempt"), marked, "{request}");
            assert_eq!(field(&seen, "tracestate"), Some(state), "{request}");
        }
        let asked = ["shop", "standby"].map(|peer| sidecar.metric(&["outrigger_attempts_total", peer]));
        assert_eq!(asked, [2.0, 3.0].map(|each| each * f64::from(request)));
        standby.unseen();
    }
    sidecar.says(&["fallback=standby", " attempts=5 "]);
}

#[test]
fn what_may_have_been_done_is_not_done_again_elsewhere() {
    let (standby, shop) = (App::http(STANDBY), App::script([""]));
    let sidecar = sidecar(shop.addr, &standby, "fallback: { peer: standby }");
    for rest in ["content-length: 5\r\n\r\nhello", "content-length: 0\r\n\r\n"] {
        let answer = ask(&sidecar, "POST", rest);
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("reason=reset"), "{answer}");
        shop.next();
    }
    standby.unseen();
    assert!(ask(&sidecar, "GET", "\r\n").ends_with("standby"));
}

#[test]
fn a_status_that_counts_as_none_and_two_that_fail() {
    let (standby, shop) =
        (App::script([STANDBY, ""]), App::script(["HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nfull"]));
    let sidecar = sidecar(shop.addr, &standby, "fallback: { peer: standby, statuses: [503] }");
    assert!(ask(&sidecar, "GET", "\r\n").ends_with("standby"));
    let posted = ask(&sidecar, "POST", "content-length: 0\r\n\r\n");
    assert!(posted.starts_with("HTTP/1.1 503 ") && posted.ends_with("full"), "{posted}");
    let both = ask(&sidecar, "GET", "\r\n");
    assert!(both.starts_with("HTTP/1.1 502 ") && both.contains("reason=reset"), "{both}");
    sidecar.says(&["peer=shop", "fallback=standby", "status=502"]);
}

#[test]
fn an_answer_from_the_file_names_the_reason_and_a_route_has_its_own() {
    let standby = App::http(STANDBY);
    let more = "fallback: { respond: { status: 200, body: '[]', content-type: application/json } }, routes: [{ match: { methods: PUT }, fallback: { respond: { status: 202 } } }]";
    let sidecar = sidecar(format!("127.0.0.1:{}", free_port()), &standby, more);
    let answer = ask(&sidecar, "POST", "content-length: 2\r\n\r\nab");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("[]"), "{answer}");
    assert_eq!(field(&answer, "content-type").as_deref(), Some("application/json"));
    assert!(field(&answer, "proxy-status").unwrap().contains("reason=connect_refused"), "{answer}");
    assert!(ask(&sidecar, "PUT", "content-length: 0\r\n\r\n").starts_with("HTTP/1.1 202 "));
    sidecar.says(&["fallback=respond", "status=202", "reason=connect_refused"]);
}

#[test]
fn what_a_fallback_stands_in_for_is_not_hidden_from_the_breaker() {
    let standby = App::http(STANDBY);
    for fallback in ["respond: { status: 200 }", "peer: standby"] {
        let more = format!("fallback: {{ {fallback} }}, breaker: {{ failures: 50%, volume: 4, open-for: 1h }}");
        let sidecar = sidecar(format!("127.0.0.1:{}", free_port()), &standby, &more);
        for _ in 0..5 {
            assert!(ask(&sidecar, "GET", "\r\n").starts_with("HTTP/1.1 200 "));
        }
        metric(&sidecar, "outrigger_peer_breaker_open{peer=\"shop\"} 1");
        sidecar.says(&["fallback=", "status=200", "reason=circuit_open"]);
    }
}

#[test]
fn an_earlier_answer_is_given_to_the_same_get_and_to_no_other() {
    const GOOD: &str =
        "HTTP/1.1 200 OK\r\nCache-Control: max-age=0\r\nVary: Accept\r\nContent-Length: 4\r\nX-From: shop\r\n\r\ngood";
    let standby = App::http(STANDBY);
    let shop = App::script([GOOD, "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", ""]);
    let sidecar = sidecar(shop.addr, &standby, "fallback: { stale: { for: 1h }, statuses: [503] }");
    let first = ask(&sidecar, "GET", "\r\n");
    assert!(first.ends_with("good") && field(&first, "cache-status").is_none(), "{first}");
    for status in ["outrigger; fwd=stale; fwd-status=503", "outrigger; hit; ttl=0; detail=reset"] {
        let again = ask(&sidecar, "GET", "\r\n");
        assert!(again.starts_with("HTTP/1.1 200 ") && again.ends_with("good"), "{again}");
        let status_said = field(&again, "cache-status").unwrap();
        assert_eq!(status_said.replace("ttl=-1", "ttl=0"), status);
        assert!(field(&again, "age").is_some() && field(&again, "x-from").is_some(), "{again}");
    }
    for (method, fields) in [
        ("GET", "Authorization: x\r\n\r\n"),
        ("GET", "Accept: text/html\r\n\r\n"),
        ("POST", "content-length: 0\r\n\r\n"),
    ] {
        let answer = ask(&sidecar, method, fields);
        assert!(answer.starts_with("HTTP/1.1 502 "), "{fields}: {answer}");
    }
    sidecar.says(&["fallback=stale", "status=200", "reason=reset"]);
}

#[test]
fn an_earlier_answer_of_one_subset_is_given_to_no_request_for_another() {
    const V1: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none";
    const V2: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo";
    const MADE: &str = "HTTP/1.1 204 No Content\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n";
    let (standby, one, two) =
        (App::http(STANDBY), App::script([BUSY, V1, BUSY, BUSY, BUSY]), App::script([V2, BUSY, MADE, BUSY]));
    let version = |app: &App, n: u8| format!("{{ address: '{}', metadata: {{ version: '{n}' }} }}", app.addr);
    let sidecar = Sidecar::start(&format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  standby: {{ static: ['{}'] }}\n  \
         shop: {{ static: [{}, {}], fallback: {{ stale: {{ for: 1h }}, statuses: [503] }}, eject: off, \
         routes: [{{ match: {{ headers: {{ x-next: '1' }} }}, subset: {{ version: '2' }} }}, {{ subset: {{ version: '1' }} }}] }}\n",
        standby.addr,
        version(&one, 1),
        version(&two, 2),
    ));
    let stable = |status: &str, body: &str| {
        let answer = ask(&sidecar, "GET", "\r\n");
        assert!(answer.starts_with(status) && answer.ends_with(body), "{answer}");
    };
    let next = |method: &str, status: &str, body: &str| {
        let answer = ask(&sidecar, method, "x-next: 1\r\ncontent-length: 0\r\n\r\n");
        assert!(answer.starts_with(status) && answer.ends_with(body), "{answer}");
    };
    next("GET", "HTTP/1.1 200 ", "two");
    // Version 1 has answered nothing yet, and then neither takes the other's place.
    stable("HTTP/1.1 503 ", "");
    stable("HTTP/1.1 200 ", "one");
    next("GET", "HTTP/1.1 200 ", "two");
    stable("HTTP/1.1 200 ", "one");
    // What is changed through one is changed for the other, too.
    next("POST", "HTTP/1.1 204 ", "");
    next("GET", "HTTP/1.1 503 ", "");
    stable("HTTP/1.1 503 ", "");
}

#[test]
fn what_its_peer_s_guards_keep_out_is_not_copied() {
    let (next, shop) = (App::http(STANDBY), App::script([""]));
    let more = "retry: { attempts: 1 }, breaker: { failures: 50%, volume: 2, open-for: 1h }, routes: [{ mirror: { peer: standby } }]";
    let sidecar = sidecar(shop.addr, &next, more);
    let mut forwarded = 0;
    for (n, rest) in ["\r\n", "content-length: 5\r\n\r\nhello"].repeat(4).into_iter().enumerate() {
        let answer = ask(&sidecar, if n % 2 == 0 { "GET" } else { "POST" }, rest);
        assert_eq!(answer.contains("reason=circuit_open"), n >= 2, "{n}: {answer}");
        if n < 2 {
            forwarded += 1;
            next.next();
        }
    }
    assert_eq!(sidecar.metric(&["outrigger_mirrored_total", "standby"]), f64::from(forwarded));
    assert_eq!(sidecar.metric(&["outrigger_mirror_dropped_total", "standby"]), 0.0);
    next.unseen();
}

#[test]
fn a_copy_goes_to_the_mirror_and_its_answer_nowhere() {
    let (next, shop) = (App::http("HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\nbad"), App::http(STANDBY));
    let sidecar = sidecar(shop.addr, &next, "routes: [{ mirror: { peer: standby } }]");
    for (method, rest) in [("GET", "\r\n"), ("POST", "content-length: 5\r\n\r\nhello")] {
        let answer = ask(&sidecar, method, rest);
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("standby"), "{answer}");
        let (original, copy) = (shop.next(), next.next());
        assert!(copy.starts_with(&format!("{method} /a?b HTTP/1.1\r\nHost: shop\r\n")), "{copy}");
        assert_eq!(copy.ends_with("hello"), original.ends_with("hello"), "{copy}");
        assert_eq!(field(&copy, "x-outrigger-mirror").as_deref(), Some("1"));
        assert_eq!(field(&original, "x-outrigger-mirror"), None);
    }
    let large = "x".repeat(65 * 1024);
    let answer = ask(&sidecar, "POST", &format!("content-length: {}\r\n\r\n{large}", large.len()));
    assert!(answer.ends_with("standby"), "{answer}");
    assert!(shop.next().ends_with(&large));
    metric(&sidecar, "outrigger_mirror_dropped_total{peer=\"standby\"} 1");
    metric(&sidecar, "outrigger_mirrored_total{peer=\"standby\"} 2");
    next.unseen();
}

#[test]
fn a_copy_of_a_retry_is_not_multiplied() {
    let (breaks, shop) = (App::script([""]), App::http(STANDBY));
    let sidecar = sidecar(shop.addr, &breaks, "routes: [{ mirror: { peer: standby } }]");
    assert!(ask(&sidecar, "GET", "x-outrigger-attempt: 2\r\n\r\n").ends_with("standby"));
    metric(&sidecar, "outrigger_retries_skipped_total{peer=\"standby\"} 1");
    assert_eq!(sidecar.metric(&["outrigger_attempts_total", "standby"]), 1.0);
}

#[test]
fn a_mirror_that_hangs_delays_nobody_and_takes_no_more_than_its_places() {
    let (hangs, shop) = (App::start(|mut stream, _| drop(stream.read_to_end(&mut Vec::new()))), App::http(STANDBY));
    let sidecar = sidecar(shop.addr, &hangs, "routes: [{ mirror: { peer: standby } }]");
    let mut caller = Caller::connect(sidecar.outbound);
    for _ in 0..110 {
        let answer = caller.send("GET / HTTP/1.1\r\nHost: shop\r\n\r\n").answer();
        assert!(answer.ends_with("standby"), "{answer}");
    }
    metric(&sidecar, "outrigger_mirrored_total{peer=\"standby\"} 100");
    metric(&sidecar, "outrigger_mirror_dropped_total{peer=\"standby\"} 10");
}

#[test]
fn what_an_earlier_attempt_may_have_done_is_not_done_again_elsewhere() {
    for more in ["", "hedge: 5ms, "] {
        let (standby, shop) = (App::http(STANDBY), App::script([""]));
        let addrs = format!("{}', '127.0.0.1:{}", shop.addr, free_port());
        let retry = "retry: { on: [connect-failure, reset], methods: any, attempts: 2 }, balance: round-robin";
        let sidecar = sidecar(addrs, &standby, &format!("{more}{retry}, fallback: {{ peer: standby }}"));
        // One of two begins at the endpoint that takes it and breaks off; the other endpoint refuses it then.
        for rest in ["content-length: 5\r\n\r\nhello", "content-length: 0\r\n\r\n"].repeat(2) {
            let answer = ask(&sidecar, "POST", rest);
            assert!(answer.starts_with("HTTP/1.1 50"), "{more}: {answer}");
            shop.next();
        }
        standby.unseen();
        assert!(ask(&sidecar, "GET", "\r\n").ends_with("standby"));
    }
}
