//! Which endpoint takes a request, through the real binary: by field, by cookie, by subset; and old connections replaced.

use std::collections::BTreeSet;

use http::Request;

use crate::harness::http2::{App2, soon};
use crate::harness::{App, Caller, Sidecar, field, until};

const BODIES: [&str; 4] = [
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n0",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2",
    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n3",
];

fn file(endpoints: &str, more: &str) -> String {
    format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  shop:\n    static: [{endpoints}]\n{more}telemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

/// A sidecar whose peer `shop` has four endpoints that each answer with their number.
fn four(more: &str) -> (Vec<App>, Sidecar) {
    let apps: Vec<App> = BODIES.into_iter().map(App::http).collect();
    let addrs: Vec<String> = apps.iter().map(|app| format!("'{}'", app.addr)).collect();
    let sidecar = Sidecar::start(&file(&addrs.join(", "), more));
    (apps, sidecar)
}

fn get(sidecar: &Sidecar, fields: &str) -> String {
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(format!("GET / HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).answer()
}

fn body(answer: &str) -> String {
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    answer.chars().last().unwrap().to_string()
}

#[test]
fn requests_of_one_user_stick_to_one_endpoint() {
    for balance in ["ring-hash", "maglev"] {
        let more = format!("    balance: {{ by: {balance}, key: {{ header: x-user }} }}\n");
        let (mut apps, sidecar) = four(&more);
        let user = |n: usize| body(&get(&sidecar, &format!("X-User: user-{n}\r\n")));
        let homes: Vec<String> = (0..40).map(user).collect();
        assert_eq!(homes.iter().collect::<BTreeSet<_>>().len(), 4, "{balance}: {homes:?}");
        for (n, home) in homes.iter().enumerate() {
            assert_eq!(user(n), *home, "{balance}: user {n}");
        }
        // Users of an endpoint that goes move, those of the others stay.
        drop(apps.remove(3));
        let left: Vec<String> = apps.iter().map(|app| format!("'{}'", app.addr)).collect();
        sidecar.rewrite(&file(&left.join(", "), &more));
        sidecar.signal("HUP");
        until("three endpoints", || (sidecar.page("/state").matches("\"address\"").count() == 3).then_some(()));
        let moved = homes.iter().enumerate().filter(|(n, home)| *home != "3" && user(*n) != **home).count();
        assert!(moved <= if balance == "maglev" { 8 } else { 0 }, "{balance}: {moved} moved without need");
    }
}

#[test]
fn a_caller_sticks_by_the_cookie_that_it_is_given() {
    let (_apps, sidecar) = four("    balance: { by: ring-hash, key: { cookie: home } }\n");
    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        let first = get(&sidecar, "");
        let given = field(&first, "set-cookie").expect("a cookie");
        assert!(given.starts_with("home=") && given.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{given}");
        let cookie = given.split(';').next().unwrap();
        for _ in 0..3 {
            let again = get(&sidecar, &format!("Cookie: a=b; {cookie}\r\n"));
            assert_eq!(body(&again), body(&first));
            assert_eq!(field(&again, "set-cookie"), None);
        }
        seen.insert(body(&first));
        if seen.len() == 4 {
            return;
        }
    }
    panic!("64 callers were all sent to {seen:?}");
}

#[test]
fn a_split_and_a_balance_that_stick_by_one_cookie_give_it_once() {
    let (_apps, sidecar) = four(
        "    balance: { by: maglev, key: { cookie: home } }\n    routes: [{ split: { shop: 1, again: { peer: shop, weight: 1 } }, sticky: { cookie: home } }]\n",
    );
    let first = get(&sidecar, "");
    assert_eq!(first.to_ascii_lowercase().matches("set-cookie: home=").count(), 1, "{first}");
    let cookie = field(&first, "set-cookie").unwrap();
    let cookie = cookie.split(';').next().unwrap();
    for _ in 0..8 {
        assert_eq!(body(&get(&sidecar, &format!("Cookie: {cookie}\r\n"))), body(&first));
    }
}

#[test]
fn a_route_reaches_only_the_endpoints_of_its_subset() {
    let apps: Vec<App> = BODIES.into_iter().map(App::http).collect();
    let of =
        |at: usize, version: &str| format!("{{ address: '{}', metadata: {{ version: '{version}' }} }}", apps[at].addr);
    let endpoints = [of(0, "1"), of(1, "1"), of(2, "2"), of(3, "2")].join(", ");
    let sidecar = Sidecar::start(&file(
        &endpoints,
        "    routes:\n      - { match: { headers: { x-v: two } }, subset: { version: '2' } }\n      - { match: { headers: { x-v: three } }, subset: { version: '3' } }\n      - { match: { headers: { x-v: any } }, subset: { version: '3' }, otherwise: any }\n      - { split: { stable: { peer: shop, weight: 1, subset: { version: '1' } }, canary: { peer: shop, weight: 0, subset: { version: '2' } } } }\n",
    ));
    let seen = |fields: &str| (0..24).map(|_| body(&get(&sidecar, fields))).collect::<BTreeSet<_>>();
    let set = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(seen("x-v: two\r\n"), set(&["2", "3"]));
    assert_eq!(seen(""), set(&["0", "1"]));
    assert!(seen("x-v: any\r\n").len() > 2);
    let answer = get(&sidecar, "x-v: three\r\n");
    let status = field(&answer, "proxy-status").unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && status.contains("reason=no_endpoint"), "{answer}");
    sidecar.says(&["reason=no_endpoint", "no endpoint with version=3 among its 4"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_old_http2_connection_is_replaced_and_no_request_notices() {
    let mut app = App2::start().await;
    let sidecar = Sidecar::start(&file(&format!("'{}'", app.addr), "    protocol: http2\n    connection-age: 500ms\n"));
    let mut caller = crate::harness::http2::Caller2::connect(sidecar.outbound).await;
    let request = || Request::get("http://shop/").body(()).unwrap();
    // A stream that outlives its connection's age.
    let (first, _sending) = caller.open(request(), true).await;
    let mut held = app.next().await;
    let mut connections = BTreeSet::from([held.connection]);
    while connections.len() < 3 {
        let (answer, _sending) = caller.open(request(), true).await;
        let mut arrived = app.next().await;
        connections.insert(arrived.connection);
        arrived.answer("ok");
        assert_eq!(soon("an answer", answer).await.unwrap().status(), 200);
    }
    held.answer("late");
    assert_eq!(soon("the first answer", first).await.unwrap().status(), 200);
}
