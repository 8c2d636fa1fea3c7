//! What is said about routes that contradict themselves, as a table, and what right ones mean.

use std::path::Path;
use std::time::Duration;

use super::build;
use crate::config::facts::Facts;
use crate::config::problem::Problems;
use crate::plan::Plan;
use crate::plan::door::Protocol;
use crate::plan::route::Leads;

fn built(routes: &str, peers: &str) -> (Plan, String) {
    let text = format!(
        "service: x\npeers:\n  a: {{ static: [10.0.0.1:1] }}\n{peers}  b: {{ static: [10.0.0.2:2], routes: [{routes}] }}\n"
    );
    let mut problems = Problems::new("f");
    let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
    let plan = build(&document.config, Path::new("/"), &mut problems).plan;
    (plan, problems.sorted().to_string())
}

#[test]
fn what_cannot_be_meant_is_said_with_its_place() {
    for (route, said) in [
        ("{ split: { a: 0, b: 0 } }", "the weights' sum must be above 0"),
        ("{ split: { c: 1 } }", "there is no peer `c`"),
        ("{ split: { d: 1 } }", "`d` speaks `tcp`"),
        ("{ sticky: { header: x } }", "there is no `split`"),
        ("{ split: { a: 1 }, sticky: {} }", "expected exactly one of its keys, found 0"),
        ("{ split: { a: 1 }, sticky: { header: x, cookie: y } }", "expected exactly one of its keys, found 2"),
        ("{ split: { a: { peer: c } } }", "peers.b.routes[0].split.a.peer: there is no peer `c`"),
        ("{ split: { a: 1 }, subset: { v: \"1\" } }", "`subset` beside `split`: give it to the parts"),
        ("{ subset: {} }", "expected at least one fact"),
        (
            "{ name: n, match: { path: /x } }, { name: m }, { name: n }",
            "peers.b.routes[2]: this name is given twice, first in line",
        ),
        ("{ otherwise: any }", "means nothing without `subset`"),
        ("{ respond: {}, subset: { v: \"1\" } }", "`respond` ends the request here, so `subset` means nothing"),
        ("{ redirect: {}, split: { a: 1 } }", "`redirect` ends the request here, so `split` means nothing"),
        ("{ redirect: {}, respond: {} }", "`redirect` ends the request here, so `respond` means nothing"),
        ("{ respond: {}, timeout: { request: 1s } }", "`respond` ends the request here, so `timeout` means nothing"),
        ("{ rewrite: { prefix: /x } }", "there is no prefix to replace"),
        ("{ match: { path: /y }, rewrite: { prefix: /x } }", "there is no prefix to replace"),
        ("{ match: { path: { prefix: /y } }, rewrite: { prefix: /x, path: /z } }", "remove one"),
        ("{ match: { path: {} } }", "expected exactly one of its keys, found 0"),
        ("{ match: { path: { exact: /a, prefix: /b } } }", "expected exactly one of its keys, found 2"),
        ("{ match: { path: { regex: \"(\" } } }", "unclosed group"),
        ("{ match: { path: { regex: \"x{1000}{1000}\" } } }", "takes more than 256 KiB"),
        ("{ match: { path: \"/a*\" } }", "a `*` stands for whole segments"),
        ("{ match: { path: a } }", "a path begins with `/`"),
        ("{ match: { methods: get } }", "did you mean `GET`?"),
        ("{ match: { path: /x, grpc: { service: a.B } } }", "give `grpc` or `path`, not both"),
        ("{ match: [] }", "found an empty list"),
        ("{ request-headers: { set: { host: x } } }", "is changed by `rewrite: { host: … }`"),
        ("{ request-headers: { remove: [content-length] } }", "`content-length` is set by the sidecar itself"),
        ("{ request-headers: { add: { \"x y\": a } } }", "is not the name of a field"),
        ("{ response-headers: { set: { x: \"a\\nb\" } } }", "no control characters"),
        ("{ fault: { abort: 204 } }", "an abort is an error"),
        ("{ redirect: { host: \"a:1\", port: 2 } }", "`host` has a port already"),
        ("{ match: { path: { regex: \"/a)|(/b\" } } }", "unopened group"),
        ("{ fault: { abort: 503, share: 120% } }", "expected a share"),
        ("{ respond: { status: 100 } }", "expected a status from 200 to 599"),
        ("{ redirect: { status: 200 } }", "301, 302, 303, 307 or 308"),
        ("{ redirect: { host: \"a/b\" } }", "expected a host"),
    ] {
        let (_, problems) = built(
            route,
            "  d: { static: [10.0.0.3:3], protocol: tcp, listen: \"127.0.0.1:9\" }\n  e: { static: [10.0.0.4:4], fallback: { peer: b } }\n  f: { static: [10.0.0.5:5], timeout: { attempt: 2s, request: 3s } }\n",
        );
        assert!(problems.contains(said) && problems.starts_with("f:"), "{route}\n{problems}");
    }
}

#[test]
fn what_never_takes_effect_is_said_with_its_place() {
    for (route, said) in [
        ("{ fault: {} }", "does nothing"),
        ("{ fault: { abort: 503, share: 0% } }", "warning: peers.b.routes[0].fault.share: strikes nothing"),
        ("{ timeout: { attempt: 2s, request: 1s } }", "timeout.attempt: must not be longer than `request`"),
        ("{ split: { f: 1 }, timeout: { attempt: 4s } }", "timeout.attempt: must not be longer than `request`"),
        (
            "{ split: { f: 1 }, timeout: { request: 1s } }",
            "timeout.request: is shorter than its peer's `timeout.attempt`",
        ),
        ("{}, { match: { path: /x } }", "matches nothing: `peers.b.routes[0]` (line 7) takes all of its requests"),
        (
            "{ name: wide, match: { path: { prefix: /x } } }, { match: { path: { prefix: /x/y }, methods: GET } }",
            "matches nothing: `wide`",
        ),
    ] {
        let (_, problems) = built(
            route,
            "  d: { static: [10.0.0.3:3], protocol: tcp, listen: \"127.0.0.1:9\" }\n  e: { static: [10.0.0.4:4], fallback: { peer: b } }\n  f: { static: [10.0.0.5:5], timeout: { attempt: 2s, request: 3s } }\n",
        );
        assert!(problems.contains(said) && problems.starts_with("f:"), "{route}\n{problems}");
    }
}

#[test]
fn fallbacks_and_mirrors_name_peers_that_take_requests() {
    for (route, said) in [
        ("{ mirror: { peer: c } }", "there is no peer `c`"),
        ("{ retry: { attempts: 4 } }", "where each of three hops makes 4 attempts, the last gets 64"),
        ("{ retry: { budget: { share: 0%, floor: 0 } } }", "allows no retry at all"),
        ("{ retry: { budget: 51% } }", "lets a failing peer be asked half as much again"),
        ("{ mirror: { peer: d } }", "`d` speaks `tcp`"),
        ("{ mirror: { peer: a, share: 0% } }", "mirrors nothing"),
        ("{ mirror: {} }", "peer: is missing"),
        ("{ respond: {}, mirror: { peer: a } }", "`respond` ends the request here, so `mirror` means nothing"),
        (
            "{ redirect: {}, fallback: { respond: {} } }",
            "`redirect` ends the request here, so `fallback` means nothing",
        ),
        ("{ fallback: {} }", "expected exactly one of `peer`, `respond` and `stale`, found 0"),
        ("{ fallback: { peer: a, stale: {} } }", "expected exactly one of `peer`, `respond` and `stale`, found 2"),
        ("{ fallback: { peer: aa } }", "there is no peer `aa`; did you mean `a`?"),
        ("{ fallback: { peer: d } }", "`d` speaks `tcp`"),
        ("{ fallback: { peer: b } }", "a peer cannot stand in for itself"),
        (
            "{ fallback: { peer: e } }",
            "warning: peers.b.routes[0].fallback.peer: `e` has a fallback of its own, and leads back here: it is not used",
        ),
    ] {
        let (_, problems) = built(
            route,
            "  d: { static: [10.0.0.3:3], protocol: tcp, listen: \"127.0.0.1:9\" }\n  e: { static: [10.0.0.4:4], fallback: { peer: b } }\n",
        );
        assert!(problems.contains(said) && problems.starts_with("f:"), "{route}\n{problems}");
    }
}

#[test]
fn a_route_changes_only_what_it_says_of_how_its_peers_are_called() {
    let route = "{ match: { path: { prefix: /x } }, split: { a: 1, b: 2 }, timeout: { request: 3s } }";
    let (plan, problems) = built(route, "");
    assert_eq!(problems, "");
    let routes = &plan.peers[1].routes;
    assert!(routes.by_path && plan.peers[0].routes.list.is_empty());
    let Leads::To(split) = &routes.list[0].leads else { panic!("forwards") };
    let to: Vec<_> = split.to.iter().map(|to| (to.peer, to.weight, to.policy.request_timeout)).collect();
    assert_eq!(to, [(0, 1, Some(Duration::from_secs(3))), (1, 2, Some(Duration::from_secs(3)))]);
    assert_eq!(split.to[0].policy.body_idle, plan.peers[0].policy.body_idle);
}

#[test]
fn the_routes_of_the_service_cannot_split() {
    let text = "service: x\ninbound: { app: \"127.0.0.1:80\", ports: [{ listen: \"0.0.0.0:1\", app: \"127.0.0.1:81\" }], routes: [{ split: { a: 1 } }] }\npeers: { a: { static: [10.0.0.1:1] } }\n";
    let mut problems = Problems::new("f");
    let document = crate::config::read(text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
    build(&document.config, Path::new("/"), &mut problems);
    let problems = problems.sorted().to_string();
    assert_eq!(problems.matches("`split` belongs to the routes of a peer").count(), 1, "{problems}");
}

#[test]
fn the_routes_of_the_service_are_for_its_ports_that_speak_http() {
    for (ports, wrong) in [
        (
            "{ listen: \"0.0.0.0:1\", app: \"127.0.0.1:81\", protocol: tcp }, { listen: \"0.0.0.0:2\", app: \"127.0.0.1:82\" }",
            false,
        ),
        (
            "{ listen: \"0.0.0.0:2\", app: \"127.0.0.1:82\" }, { listen: \"0.0.0.0:1\", app: \"127.0.0.1:81\", protocol: tcp }",
            false,
        ),
        ("{ listen: \"0.0.0.0:1\", app: \"127.0.0.1:81\", protocol: tcp }", true),
    ] {
        let text = format!("service: x\ninbound: {{ ports: [{ports}], routes: [{{ respond: {{}} }}] }}\n");
        let mut problems = Problems::new("f");
        let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        let plan = build(&document.config, Path::new("/"), &mut problems).plan;
        let problems = problems.sorted().to_string();
        assert_eq!(problems.contains("`tcp` has no requests"), wrong, "{problems}");
        for peer in plan.peers.iter().filter(|_| !wrong) {
            assert_eq!(peer.routes.list.is_empty(), peer.source.protocol == Protocol::Tcp);
        }
    }
}

#[test]
fn an_attempt_of_a_route_fits_in_the_request_of_its_peer_and_the_other_way_round() {
    for (own, route, said) in [
        ("request: 1s", "attempt: 2s", "peers.b.routes[0].timeout.attempt: must not be longer than `request`"),
        ("request: 5s, attempt: 2s", "request: 1s", "peers.b.routes[0].timeout.request: must not be shorter than"),
        ("request: 5s, attempt: 2s", "request: 2s", ""),
        ("request: 1s", "attempt: 2s, request: none", ""),
    ] {
        let text = format!(
            "service: x\npeers: {{ b: {{ static: [10.0.0.2:2], timeout: {{ {own} }}, routes: [{{ timeout: {{ {route} }} }}] }} }}\n"
        );
        let mut problems = Problems::new("f");
        let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        build(&document.config, Path::new("/"), &mut problems);
        let all = problems.sorted().to_string();
        assert!(all.contains(said) && all.is_empty() == said.is_empty(), "{own} / {route}: {all}");
    }
}
