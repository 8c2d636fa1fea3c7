//! Routes: which requests they mean, where those go and what is changed on the way, through the real binary.

use crate::harness::{App, Caller, Sidecar, field};

const V1: &str = "HTTP/1.1 200 OK\r\nServer: one\r\nContent-Length: 2\r\n\r\nv1";
const V2: &str = "HTTP/1.1 200 OK\r\nServer: two\r\nContent-Length: 2\r\n\r\nv2";

/// A sidecar whose peer `shop` has these routes, beside a peer `next`.
fn sidecar(shop: &App, next: &App, routes: &str) -> Sidecar {
    Sidecar::start(&format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  next: {{ static: ['{}'] }}\n  shop:\n    static: ['{}']\n    routes:\n{routes}telemetry: {{ access-log: {{ log: all }} }}\n",
        next.addr, shop.addr
    ))
}

fn get(sidecar: &Sidecar, target: &str, fields: &str) -> String {
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(format!("GET {target} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).answer()
}

#[test]
fn the_first_route_that_means_a_request_takes_it() {
    let (one, two) = (App::http(V1), App::http(V2));
    let sidecar = sidecar(
        &one,
        &two,
        "      - { name: canary, match: { path: { prefix: /v2 }, headers: { x-canary: '1' } }, split: { next: 1 }, rewrite: { prefix: /api }, request-headers: { set: { x-tier: gold }, remove: [x-secret] }, response-headers: { remove: [server], add: { x-by: mesh } } }\n      - { match: { path: /gone }, respond: { status: 410, body: it is gone } }\n      - { match: { path: { prefix: /old } }, redirect: { scheme: https, host: shop.example, prefix: /new, status: 308 } }\n",
    );
    let answer = get(&sidecar, "/v2/cart?x=1", "x-canary: 1\r\nX-Secret: a\r\n");
    assert!(answer.ends_with("v2") && answer.contains("x-by: mesh") && !answer.contains("erver:"), "{answer}");
    let seen = two.next();
    assert!(seen.starts_with("GET /api/cart?x=1 HTTP/1.1\r\nHost: shop\r\n"), "{seen}");
    assert_eq!(field(&seen, "x-tier").as_deref(), Some("gold"));
    assert_eq!(field(&seen, "x-secret"), None);
    sidecar.says(&["path=/v2/cart", "peer=next", "route=canary", "status=200"]);

    for target in ["/v2/cart", "/v2x"] {
        let answer = get(&sidecar, target, "");
        assert!(answer.ends_with("v1") && answer.contains("Server: one"), "{answer}");
        assert!(one.next().starts_with(&format!("GET {target} HTTP/1.1\r\n")));
    }
    let answer = get(&sidecar, "/gone", "");
    assert!(answer.starts_with("HTTP/1.1 410 ") && answer.ends_with("it is gone"), "{answer}");
    let answer = get(&sidecar, "/old/a?b=c", "");
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    assert_eq!(field(&answer, "location").as_deref(), Some("https://shop.example/new/a?b=c"));
    sidecar.says(&["path=/old/a", "route=peers.shop.routes[2]", "status=308"]);
}

#[test]
fn a_path_that_can_be_read_in_two_ways_is_not_judged() {
    let (one, two) = (App::http(V1), App::http(V2));
    let sidecar = sidecar(
        &one,
        &two,
        "      - { match: { headers: { x-raw: { present: true } } } }\n      - { match: { path: { prefix: /admin } }, respond: { status: 403 } }\n",
    );
    for target in ["/x/../admin", "/%61dmin/..", "//admin", "/a%2f..%2fadmin", "/admin;a=b"] {
        let answer = get(&sidecar, target, "");
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("path_not_normal"), "{target}: {answer}");
    }
    assert!(get(&sidecar, "//admin", "x-raw: 1\r\n").ends_with("v1"), "taken by a route that looks at no path");
    assert!(get(&sidecar, "/admin/x", "").starts_with("HTTP/1.1 403 "));
    assert!(get(&sidecar, "/%61dmin", "").ends_with("v1"), "other bytes are another path");
    sidecar.says(&["status=400", "reason=path_not_normal", "side=client"]);
}

#[test]
fn a_split_sticks_by_the_cookie_that_it_gives() {
    let (one, two) = (App::http(V1), App::http(V2));
    let sidecar = sidecar(&one, &two, "      - { split: { shop: 1, next: 1 }, sticky: { cookie: variant } }\n");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let first = get(&sidecar, "/", "");
        let cookie = field(&first, "set-cookie").expect("a cookie");
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let body = first[first.len() - 2..].to_owned();
        for _ in 0..3 {
            let again = get(&sidecar, "/", &format!("cookie: a=b; {cookie}\r\n"));
            assert!(again.ends_with(&body) && field(&again, "set-cookie").is_none(), "{first}\n{again}");
        }
        seen.insert(body);
        if seen.len() == 2 {
            return;
        }
    }
    panic!("64 callers were all sent to {seen:?}");
}

#[test]
fn faults_are_made_where_they_are_asked_for_and_named() {
    let (one, two) = (App::http(V1), App::http(V2));
    let sidecar = sidecar(&one, &two, "      - { name: chaos, fault: { header: x-fault, delay: 5ms, abort: 504 } }\n");
    assert!(get(&sidecar, "/", "").ends_with("v1"));
    let answer = get(&sidecar, "/", "x-fault: yes\r\n");
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    let status = field(&answer, "proxy-status").unwrap();
    assert!(
        status.contains("reason=fault_injected") && status.contains("side=policy") && status.contains("chaos"),
        "{status}"
    );
    sidecar.says(&["reason=fault_injected", "status=504", "route=chaos"]);
}

#[test]
fn a_connect_has_no_path_and_takes_no_answer_for_a_tunnel() {
    let (one, two) = (App::http(V1), App::http(V2));
    let sidecar = sidecar(
        &one,
        &two,
        "      - { match: { headers: { x-to: respond } }, respond: { body: hi } }\n      - { match: { headers: { x-to: redirect } }, redirect: { host: other } }\n      - { rewrite: { path: /x } }\n",
    );
    for to in ["respond", "redirect"] {
        let mut caller = Caller::connect(sidecar.outbound);
        let answer = caller.send(format!("CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\nx-to: {to}\r\n\r\n")).answer();
        assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("method_not_allowed"), "{to}: {answer}");
    }
    let mut caller = Caller::connect(sidecar.outbound);
    let answer = caller.send("CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n").until(b"\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[test]
fn the_service_has_routes_of_its_own() {
    let app = App::http(V1);
    let sidecar = Sidecar::start(&format!(
        "service: server\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}', routes: [{{ match: {{ path: \"/internal/*\" }}, respond: {{ status: 404, body: no }} }}] }}\noutbound: {{ listen: '{{out}}' }}\n",
        app.addr
    ));
    let mut caller = Caller::connect(sidecar.inbound);
    let answer = caller.send("GET /internal/x HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 404 ") && answer.ends_with("no"), "{answer}");
    let answer = caller.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.ends_with("v1"), "{answer}");
}
