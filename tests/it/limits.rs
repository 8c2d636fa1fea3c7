//! Limits are exact, whatever the number of threads, and who is refused is told which one and its value.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;

use crate::harness::{App, Caller, PATIENCE, Sidecar, field, read_head, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const BAD: &str = "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno";

/// Holds every answer back until it is opened.
#[derive(Clone, Default)]
struct Held(Arc<(Mutex<bool>, Condvar)>);

impl Held {
    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    fn wait(&self) {
        let shut = self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), PATIENCE, |open| !*open);
        assert!(!shut.unwrap().1.timed_out());
    }

    /// An app that reports each request at once and answers it when opened; each connection reports itself too.
    fn app(&self) -> App {
        let held = self.clone();
        App::start(move |stream, report| {
            let _ = report.send("connection".into());
            let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            while let Some(head) = read_head(&mut reader) {
                let _ = report.send(head);
                held.wait();
                if std::io::Write::write_all(&mut writer, OK.as_bytes()).is_err() {
                    return;
                }
            }
        })
    }
}

/// Sends one request each from so many callers at once; their answers come as they come.
fn callers(n: usize, to: SocketAddr) -> mpsc::Receiver<String> {
    let (tell, answers) = mpsc::channel();
    for _ in 0..n {
        let tell = tell.clone();
        thread::spawn(move || {
            let answer = Caller::connect(to).send("GET / HTTP/1.1\r\nHost: server\r\n\r\n").answer();
            let _ = tell.send(answer);
        });
    }
    answers
}

fn take(answers: &mpsc::Receiver<String>, n: usize) -> Vec<String> {
    (0..n).map(|_| answers.recv_timeout(PATIENCE).expect("an answer")).collect()
}

fn peer(app: &App, more: &str) -> String {
    peers(&format!("'{}'", app.addr), more)
}

fn peers(addrs: &str, more: &str) -> String {
    format!(
        "service: client\nworkers: 4\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: [{addrs}], timeout: {{ connect: 15s }}, {more} }}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

fn requests(app: &App, n: usize) {
    let mut left = n;
    while left > 0 {
        left -= usize::from(app.next() != "connection");
    }
}

#[track_caller]
fn refused(answer: &str, detail: &str) {
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let status = field(answer, "proxy-status").unwrap();
    assert!(status.contains("reason=limit_reached; side=policy"), "{status}");
    assert!(status.contains(detail), "{status}");
}

#[test]
fn a_peers_limit_in_flight_is_exact_to_the_unit_with_four_workers() {
    const LIMIT: usize = 17;
    let (held, more) = (Held::default(), "breaker: { in-flight: 17 }");
    let app = held.app();
    let sidecar = Sidecar::start(&peer(&app, more));
    let answers = callers(100, sidecar.outbound);
    for answer in take(&answers, 100 - LIMIT) {
        refused(&answer, "the limit `in-flight: 17` is reached for peer server");
    }
    requests(&app, LIMIT);
    assert!(answers.try_recv().is_err(), "the others are in flight");
    let state = sidecar.page("/state");
    assert!(state.split_whitespace().collect::<String>().contains(r#""in-flight":{"used":17,"limit":17}"#), "{state}");
    let refused_so_far = ["outrigger_peer_limit_rejections_total", "limit=\"in-flight\""];
    assert_eq!(sidecar.metric(&refused_so_far), (100 - LIMIT) as f64);
    sidecar.says(&["reason=limit_reached", "side=policy", "peer=server", "in-flight: 17"]);

    // A reload changes the number and keeps the count.
    sidecar.rewrite(&peer(&app, "breaker: { in-flight: 20 }"));
    until("the reload", || (sidecar.metric(&["outrigger_reloads_total", "applied"]) >= 1.0).then_some(()));
    let later = callers(10, sidecar.outbound);
    for answer in take(&later, 7) {
        refused(&answer, "`in-flight: 20`");
    }
    held.open();
    let all: Vec<_> = take(&answers, LIMIT).into_iter().chain(take(&later, 3)).collect();
    assert!(all.iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")), "{all:?}");
    until("all is given back", || {
        sidecar.page("/state").split_whitespace().collect::<String>().contains(r#""used":0,"limit":20"#).then_some(())
    });
}

#[test]
fn connections_and_those_who_wait_for_one_are_exact() {
    let held = Held::default();
    let app = held.app();
    let sidecar = Sidecar::start(&peer(&app, "breaker: { connections: 3, pending: 2 }"));
    let answers = callers(40, sidecar.outbound);
    for answer in take(&answers, 35) {
        refused(&answer, "the limit `pending: 2` is reached for peer server");
    }
    held.open();
    assert!(take(&answers, 5).iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")));
    let opened = app.seen.try_iter().filter(|said| said == "connection").count();
    assert_eq!(opened, 3);
}

#[test]
fn an_endpoint_that_is_full_leaves_the_request_to_another() {
    let held = Held::default();
    let (one, two, three) = (held.app(), held.app(), held.app());
    let addrs = [&one, &two, &three].map(|app| format!("'{}'", app.addr)).join(", ");
    let sidecar = Sidecar::start(&peers(&addrs, "breaker: { endpoint: { in-flight: 4 } }"));
    let answers = callers(30, sidecar.outbound);
    for answer in take(&answers, 18) {
        refused(&answer, "the limit `in-flight: 4` is reached for the endpoint 127.0.0.1:");
    }
    [&one, &two, &three].into_iter().for_each(|app| requests(app, 4));
    held.open();
    assert!(take(&answers, 12).iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")));
}

#[test]
fn an_idle_connection_makes_room_for_one_to_another_endpoint() {
    let held = Held::default();
    held.open();
    let (one, two) = (held.app(), held.app());
    let addrs = format!("'{}', '{}'", one.addr, two.addr);
    let sidecar = Sidecar::start(&peers(&addrs, "balance: round-robin, breaker: { connections: 1 }"));
    for _ in 0..6 {
        assert!(take(&callers(1, sidecar.outbound), 1)[0].starts_with("HTTP/1.1 200 "));
        assert!(sidecar.metric(&["outrigger_peer_connections{", "server"]) <= 1.0);
    }
    assert!(one.seen.try_iter().count() >= 2 && two.seen.try_iter().count() >= 2);
}

#[test]
fn a_caller_that_leaves_gives_back_what_it_held() {
    let held = Held::default();
    let app = held.app();
    let sidecar = Sidecar::start(&peer(&app, "breaker: { in-flight: 1, failures: 50% }"));
    let mut first = Caller::connect(sidecar.outbound);
    first.send("GET / HTTP/1.1\r\nHost: server\r\n\r\n");
    requests(&app, 1);
    refused(&take(&callers(1, sidecar.outbound), 1)[0], "`in-flight: 1`");
    drop(first);
    held.open();
    until("its place is free", || take(&callers(1, sidecar.outbound), 1)[0].starts_with("HTTP/1.1 200 ").then_some(()));
}

#[test]
fn a_tunnel_counts_as_a_connection() {
    let echo = App::start(|mut stream, _| {
        let mut reader = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut reader, &mut stream);
    });
    let sidecar = Sidecar::start(&peer(&echo, "breaker: { connections: 1 }"));
    let connect =
        |caller: &mut Caller| caller.send("CONNECT server:80 HTTP/1.1\r\nHost: server:80\r\n\r\n").until(b"\r\n\r\n");
    let mut first = Caller::connect(sidecar.outbound);
    assert!(connect(&mut first).starts_with("HTTP/1.1 200 "));
    let answer = connect(&mut Caller::connect(sidecar.outbound));
    refused(&answer, "the limit `connections: 1` is reached for peer server");
    drop(first);
    until("its place is free", || {
        connect(&mut Caller::connect(sidecar.outbound)).starts_with("HTTP/1.1 200 ").then_some(())
    });
}

#[test]
fn an_upgraded_connection_counts_until_its_end() {
    for limits in ["connections: 1", "endpoint: { connections: 1 }", "endpoint: { in-flight: 1 }"] {
        let app = App::http("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        let file = peer(&app, &format!("breaker: {{ {limits} }}")).replace("connect: 15s", "connect: 50ms");
        let sidecar = Sidecar::start(&file);
        let upgrade = |caller: &mut Caller| {
            caller
                .send("GET / HTTP/1.1\r\nHost: server\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
                .until(b"\r\n\r\n")
        };
        let mut first = Caller::connect(sidecar.outbound);
        let answer = upgrade(&mut first);
        assert!(answer.starts_with("HTTP/1.1 101 "), "{limits}: {answer}");
        let answer = upgrade(&mut Caller::connect(sidecar.outbound));
        refused(&answer, "is reached for ");
        drop(first);
        until("its place is free", || {
            upgrade(&mut Caller::connect(sidecar.outbound)).starts_with("HTTP/1.1 101 ").then_some(())
        });
    }
}

#[test]
fn a_peer_that_fails_too_much_is_left_alone_until_one_request_succeeds() {
    let well = Held::default();
    let answer = well.clone();
    let app = App::start(move |stream, report| {
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let _ = report.send(head);
            let text = if *answer.0.0.lock().unwrap() { OK } else { BAD };
            if std::io::Write::write_all(&mut writer, text.as_bytes()).is_err() {
                return;
            }
        }
    });
    let breaker = |wait: &str| format!("breaker: {{ failures: 50%, volume: 4, open-for: {wait} }}");
    let sidecar = Sidecar::start(&peer(&app, &breaker("1h")));
    let once = || take(&callers(1, sidecar.outbound), 1).remove(0);
    for _ in 0..4 {
        assert!(once().starts_with("HTTP/1.1 500 "));
    }
    let refused = once();
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(field(&refused, "proxy-status").unwrap().contains("reason=circuit_open; side=policy"), "{refused}");
    let wait: u64 = field(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((3000..=3600).contains(&wait), "{wait}");
    sidecar.says(&["peer server: the breaker opened: 4 of 4 requests failed"]);
    assert_eq!(app.seen.try_iter().count(), 4);
    let open = || sidecar.metric(&["outrigger_peer_breaker_open{", "server"]);
    assert_eq!((open(), sidecar.metric(&["breaker_changes_total", "server", "open"])), (1.0, 1.0));
    assert!(sidecar.page("/state").split_whitespace().collect::<String>().contains(r#""breaker":"open""#));
}

#[test]
fn a_breaker_closes_when_the_one_request_that_tries_goes_well() {
    let (well, app) = (Held::default(), App::http(BAD));
    let sidecar = Sidecar::start(&peer(&app, "breaker: { failures: 50%, volume: 1, open-for: 20ms }"));
    let once = || take(&callers(1, sidecar.outbound), 1).remove(0);
    assert!(once().starts_with("HTTP/1.1 500 "));
    until("a trial fails", || {
        sidecar.log().contains("the breaker stays open").then_some(()).or_else(|| {
            once();
            None
        })
    });
    well.open();
    let good = well.app();
    // The same peer with other rules keeps its breaker; with other addresses it is another peer.
    sidecar.rewrite(&peer(&good, "breaker: { failures: 50%, volume: 1, open-for: 20ms }"));
    until("it answers", || once().starts_with("HTTP/1.1 200 ").then_some(()));
}

#[test]
fn admission_refuses_part_of_what_a_peer_refuses() {
    let app = App::http("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n");
    let sidecar = Sidecar::start(&peer(&app, "breaker: { admission: { volume: 5 } }"));
    let refused = until("a refusal of ours", || {
        let answer = take(&callers(1, sidecar.outbound), 1).remove(0);
        field(&answer, "proxy-status").map(|_| answer)
    });
    let status = field(&refused, "proxy-status").unwrap();
    assert!(status.contains("reason=throttled; side=policy") && status.contains("accepted 0 of "), "{status}");
}

fn service(app: &App, limits: &str, routes: &str) -> String {
    format!(
        "service: server\nworkers: 4\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}', limits: {{ {limits} }}, routes: [{routes}] }}\noutbound: {{ listen: '{{out}}' }}\ntelemetry: {{ access-log: {{ log: all }} }}\n",
        app.addr
    )
}

#[test]
fn what_comes_in_is_limited_to_the_unit_before_its_body_is_read() {
    let held = Held::default();
    let app = held.app();
    let sidecar = Sidecar::start(&service(&app, "in-flight: 9", ""));
    let answers = callers(60, sidecar.inbound);
    for answer in take(&answers, 51) {
        refused(&answer, "the limit `in-flight: 9` is reached for inbound");
    }
    requests(&app, 9);
    // The body never comes, and is not waited for.
    let mut caller = Caller::connect(sidecar.inbound);
    let answer = caller.send("POST / HTTP/1.1\r\nHost: server\r\nContent-Length: 1000000\r\n\r\n").answer();
    refused(&answer, "`in-flight: 9`");
    let state = sidecar.page("/state").split_whitespace().collect::<String>();
    assert!(state.contains(r#""limits":{"inbound":{"in-flight":{"used":9,"limit":9}}}"#), "{state}");
    held.open();
    assert!(take(&answers, 9).iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")));
}

#[test]
fn a_rate_answers_429_with_what_is_left_and_when_to_come_back() {
    let app = App::http(OK);
    let sidecar = Sidecar::start(&service(&app, "rate: { limit: 2/h, per: header x-user }", ""));
    let ask = |user: &str, more: &str| {
        let head = format!("GET / HTTP/1.1\r\nHost: server\r\nx-user: {user}\r\n{more}\r\n");
        Caller::connect(sidecar.inbound).send(head).answer()
    };
    for user in ["a", "b", "a", "b"] {
        assert!(ask(user, "").starts_with("HTTP/1.1 200 "));
    }
    let answer = ask("a", "");
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    let status = field(&answer, "proxy-status").unwrap();
    assert!(status.contains("reason=rate_limited; side=policy") && status.contains("`rate: 2/h` of each x-user"));
    let wait: u64 = field(&answer, "retry-after").unwrap().parse().unwrap();
    assert!((1700..=1800).contains(&wait), "{wait}");
    assert_eq!(field(&answer, "ratelimit").unwrap(), format!("\"inbound\";r=0;t={wait}"));
    assert_eq!(field(&answer, "ratelimit-policy").unwrap(), "\"inbound\";q=2;w=3600");
    let grpc = ask("b", "content-type: application/grpc\r\nte: trailers\r\n");
    assert!(grpc.starts_with("HTTP/1.1 200 "), "{grpc}");
    assert_eq!(field(&grpc, "grpc-status").as_deref(), Some("8"));

    // A reload keeps the hour that was used: at twenty minutes for each, one of four is left.
    sidecar.rewrite(&service(&app, "rate: { limit: 3/h, burst: 4, per: header x-user }", ""));
    until("the reload", || (sidecar.metric(&["outrigger_reloads_total", "applied"]) >= 1.0).then_some(()));
    assert!(ask("a", "").starts_with("HTTP/1.1 200 "));
    assert!(ask("a", "").starts_with("HTTP/1.1 429 "));

    // What fills a smaller bucket is all that is owed to it, so the next comes in twenty minutes and not in an hour.
    sidecar.rewrite(&service(&app, "rate: { limit: 3/h, burst: 2, per: header x-user }", ""));
    until("the reload", || (sidecar.metric(&["outrigger_reloads_total", "applied"]) >= 2.0).then_some(()));
    let wait: u64 = field(&ask("a", ""), "retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&wait), "{wait}");
}

#[test]
fn a_route_has_limits_of_its_own() {
    let app = App::http(OK);
    let routes = "{ name: search, match: { path: /search }, limits: { rate: 1/h } }";
    let sidecar = Sidecar::start(&service(&app, "", routes));
    let ask = |path: &str| {
        Caller::connect(sidecar.inbound).send(format!("GET {path} HTTP/1.1\r\nHost: server\r\n\r\n")).answer()
    };
    assert!(ask("/search").starts_with("HTTP/1.1 200 "));
    let answer = ask("/search");
    assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
    assert!(answer.contains("is reached for inbound.routes/search"), "{answer}");
    assert!(ask("/other").starts_with("HTTP/1.1 200 "));
    sidecar.says(&["reason=rate_limited", "route=search", "status=429"]);
}

#[test]
fn an_answer_that_passed_a_rate_of_its_own_tells_what_is_left() {
    let app = App::http(OK);
    let routes = "{ name: search, match: { path: /search }, limits: { rate: 3/h } }, \
                  { name: quiet, match: { path: /quiet }, response-headers: { remove: [ratelimit, ratelimit-policy] } }, \
                  { name: told, match: { path: /told }, respond: { status: 404 } }";
    let sidecar = Sidecar::start(&service(&app, "rate: [{ limit: 5/h, per: header x-user }, 1000/h]", routes));
    let ask = |path: &str, user: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nHost: server\r\nx-user: {user}\r\n\r\n");
        Caller::connect(sidecar.inbound).send(head).answer()
    };
    let told = |answer: &str, name: &str| {
        let fields = |wanted: &str| {
            let lines = answer.lines().filter_map(|line| line.split_once(": "));
            lines.filter(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value).collect::<Vec<_>>()
        };
        let of = |list: Vec<&str>| {
            list.into_iter().filter(|item| item.contains(name)).map(str::to_owned).collect::<Vec<_>>()
        };
        (of(fields("ratelimit")), of(fields("ratelimit-policy")))
    };
    for (path, left, search) in [("/", 4, None), ("/search", 3, Some(2)), ("/told", 2, None)] {
        let answer = ask(path, "a");
        let (rate, policy) = told(&answer, "\"inbound\"");
        assert_eq!(policy, ["\"inbound\";q=5;w=3600"], "{answer}");
        assert!(rate.len() == 1 && rate[0].starts_with(&format!("\"inbound\";r={left};t=")), "{answer}");
        let (rate, _) = told(&answer, "search");
        assert_eq!(
            rate.first().map(|rate| rate[..30].to_owned()),
            search.map(|left| format!("\"inbound.routes/search\";r={left};t=")),
            "{answer}"
        );
    }
    assert_eq!(field(&ask("/quiet", "a"), "ratelimit"), None);
    assert!(field(&ask("/", "b"), "ratelimit").unwrap().starts_with("\"inbound\";r=4;"));

    // What an app says of rates itself stays alone, and what all callers share is nobody's own.
    let own = App::http("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nRateLimit: \"mine\";r=7\r\n\r\nhi");
    for (app, limits, expect) in [(&own, "{ limit: 5/h, per: address }", Some("\"mine\";r=7")), (&app, "1000/h", None)]
    {
        let sidecar = Sidecar::start(&service(app, &format!("rate: {limits}"), ""));
        let answer = Caller::connect(sidecar.inbound).send("GET / HTTP/1.1\r\nHost: server\r\n\r\n").answer();
        assert_eq!(field(&answer, "ratelimit").as_deref(), expect, "{answer}");
        assert_eq!(field(&answer, "ratelimit-policy"), None);
    }
}

#[test]
fn what_is_worth_least_is_turned_away_first() {
    let held = Held::default();
    let app = held.app();
    let routes = "{ match: { path: /healthz }, priority: high }, { match: { path: /report }, priority: low, limits: { in-flight: 9 } }";
    let sidecar = Sidecar::start(&service(&app, "in-flight: 10", routes));
    // In order of what refuses them: each gets in only while fewer than its part are in flight.
    let mut callers = Vec::new();
    let mut ask = |path: &str, fields: &str, passes: bool| {
        let mut caller = Caller::connect(sidecar.inbound);
        caller.send(format!("GET {path} HTTP/1.1\r\nHost: server\r\n{fields}\r\n"));
        if passes {
            requests(&app, 1);
            callers.push(caller);
            String::new()
        } else {
            caller.answer()
        }
    };
    (0..4).for_each(|_| drop(ask("/", "", true)));
    (0..4).for_each(|_| drop(ask("/report", "", true)));
    let low = "is reached by the 8 that low priority may use for inbound";
    let copy = "x-outrigger-mirror: 1\r\n";
    let again = "x-outrigger-attempt: 2\r\n";
    let elsewhere =
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: outrigger=a:2\r\n";
    for (path, fields) in [("/report", ""), ("/", copy), ("/healthz", copy), ("/", again), ("/", elsewhere)] {
        refused(&ask(path, fields, false), low);
    }
    ask("/", "", true);
    refused(
        &ask("/", "x-outrigger-attempt: 1\r\n", false),
        "is reached by the 9 that normal priority may use for inbound",
    );
    ask("/healthz", again, true);
    refused(&ask("/healthz", "", false), "the limit `in-flight: 10` is reached for inbound");
    assert!(app.seen.try_iter().all(|said| said == "connection"), "what is refused is never sent");
    let shed = |priority: &str| sidecar.metric(&["outrigger_requests_shed_total", "inbound", priority]);
    assert_eq!([shed("low"), shed("normal"), shed("high")], [5.0, 1.0, 1.0]);
    held.open();
    assert!(callers.iter_mut().all(|caller| caller.answer().starts_with("HTTP/1.1 200 ")));
}

#[test]
fn a_peer_keeps_room_for_the_routes_that_say_so_and_is_not_dialled_for_the_others() {
    let held = Held::default();
    let app = held.app();
    let routes = "routes: [{ match: { path: /pay }, priority: high }, { match: { path: /report }, priority: low }]";
    let sidecar = Sidecar::start(&peer(&app, &format!("breaker: {{ in-flight: 3 }}, {routes}")));
    let mut callers = Vec::new();
    for (path, passes) in [("/", true), ("/report", true), ("/report", false), ("/", false), ("/pay", true)] {
        let mut caller = Caller::connect(sidecar.outbound);
        caller.send(format!("GET {path} HTTP/1.1\r\nHost: server\r\n\r\n"));
        if passes {
            assert_eq!(app.next(), "connection");
            requests(&app, 1);
            callers.push(caller);
        } else {
            let answer = caller.answer();
            refused(&answer, "the limit `in-flight: 3` is reached by the 2 that ");
        }
    }
    app.unseen();
    assert_eq!(sidecar.metric(&["outrigger_requests_shed_total", "outbound", "low"]), 1.0);
    held.open();
    assert!(callers.iter_mut().all(|caller| caller.answer().starts_with("HTTP/1.1 200 ")));
}

#[test]
fn the_limit_that_follows_latency_is_one_line() {
    let held = Held::default();
    let app = held.app();
    let sidecar = Sidecar::start(&service(&app, "adaptive: on", ""));
    let answers = callers(50, sidecar.inbound);
    for answer in take(&answers, 30) {
        refused(&answer, "the adaptive limit of 20 requests in flight is reached for inbound");
    }
    held.open();
    assert!(take(&answers, 20).iter().all(|answer| answer.starts_with("HTTP/1.1 200 ")));
}
