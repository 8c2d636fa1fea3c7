//! What is said about rules of resilience that are impossible, multiply, or mean nothing, as tables.

use super::*;

#[test]
fn retries_and_priorities_that_cannot_be_meant() {
    for (text, expect) in [
        (
            "service: x\ninbound: { app: \"127.0.0.1:1\", routes: [{ priority: high }] }",
            "f:2:53: warning: inbound.routes[0].priority: means nothing: `inbound.limits` has neither `in-flight` nor `adaptive`",
        ),
        ("service: x\ninbound: { app: \"127.0.0.1:1\", limits: { adaptive: on }, routes: [{ priority: high }] }", ""),
        (
            &with("peers: { a: { dns: b:1, routes: [{ priority: low }] } }"),
            "f:3:46: warning: peers.a.routes[0].priority: means nothing: neither `outbound.limits` nor a peer's `breaker` has `in-flight` or `adaptive`",
        ),
        (&with("peers: { a: { dns: b:1, breaker: { in-flight: 9 }, routes: [{ priority: low }] } }"), ""),
        (
            &with("peers: { a: { dns: b:1, retry: { attempts: 4 } } }"),
            "f:3:44: warning: peers.a.retry.attempts: retries multiply: where each of three hops makes 4 attempts, the last gets 64",
        ),
        (
            &with("peers: { a: { dns: b:1, retry: { budget: { share: 0%, floor: 0 } } } }"),
            "f:3:42: warning: peers.a.retry.budget: allows no retry at all: `retry: off` says so in fewer words",
        ),
        (
            &with("peers: { a: { dns: b:1, timeout: { attempt: 2s, request: 1s } } }"),
            "f:3:45: peers.a.timeout.attempt: must not be longer than `request`, the time for all attempts",
        ),
    ] {
        assert_eq!(problems(text), expect, "{text}");
    }
}

#[test]
fn rules_that_are_impossible_or_mean_nothing_are_told_with_their_place() {
    for (text, expect) in [
        (
            &with("peers: { a: { dns: b:1, retry: { attempts: 0 } } }"),
            "f:3:44: peers.a.retry.attempts: expected a whole number from 1 to 10, found `0`",
        ),
        (
            &with("peers: { a: { dns: b:1, retry: { budget: { share: 80% } } } }"),
            "f:3:42: warning: peers.a.retry.budget: lets a failing peer be asked half as much again, and more, at each hop",
        ),
        (
            &with("peers: { a: { dns: b:1, routes: [{ split: { a: 0, c: 0 } }] }, c: { dns: d:1 } }"),
            "f:3:43: peers.a.routes[0].split: the weights' sum must be above 0: no peer would take a request",
        ),
        (
            &with("peers: { a: { dns: b:1, routes: [{ match: { path: { regex: \"x{1000}{1000}\" } } }] } }"),
            "f:3:60: peers.a.routes[0].match.path.regex: expected a regular expression, found `x{1000}{1000}`: takes more than 256 KiB: make it smaller",
        ),
        (
            &with(
                "peers: { a: { static: [{ address: 1.1.1.1:1, metadata: { v: \"1\" } }], routes: [{ subset: { v: \"2\" } }] } }",
            ),
            "f:3:90: warning: peers.a.routes[0].subset: matches nothing: no endpoint of peer a has all of it in its metadata",
        ),
        (
            &with(
                "peers: { a: { static: [{ address: 1.1.1.1:1, metadata: { v: \"1\" } }], routes: [{ subset: { v: \"1\" } }] } }",
            ),
            "",
        ),
        (
            &with("peers: { a: { dns: b:1, routes: [{ name: all }, { match: { path: /x } }] } }"),
            "f:3:49: warning: peers.a.routes[1]: matches nothing: `all` (line 3) takes all of its requests",
        ),
    ] {
        assert_eq!(problems(text), expect, "{text}");
    }
}

#[test]
fn a_rate_of_each_identity_needs_callers_that_have_one() {
    const ID: &str = "identity: { certificate: c.pem, key: k.pem, roots: r.pem }";
    const NOBODY: &str =
        "is one rate for all: without mutual TLS (`identity`, and not `inbound.mtls: off`) no caller has one";
    const OURSELVES: &str = "is one rate for all: whoever calls through an outbound door is this service";
    let inbound = "inbound: { app: 127.0.0.1:1, limits: { rate: { per: identity, limit: 1/s } } }";
    let off =
        "inbound: { app: 127.0.0.1:1, mtls: off, limits: { rate: [{ limit: 5/s }, { per: identity, limit: 1/s }] } }";
    let route = "inbound: { app: 127.0.0.1:1, routes: [{ limits: { rate: { per: identity, limit: 1/s } } }] }";
    let outbound =
        "outbound: { limits: { rate: { per: identity, limit: 1/s } } }\npeers: { a: { dns: b:1, mtls: off } }";
    let peer = "peers: { a: { dns: b:1, mtls: off, routes: [{ limits: { rate: { per: identity, limit: 1/s } } }] } }";
    for (text, at, why) in [
        (inbound, "f:3:53: warning: inbound.limits.rate.per", NOBODY),
        (off, "f:3:81: warning: inbound.limits.rate[1].per", NOBODY),
        (route, "f:3:64: warning: inbound.routes[0].limits.rate.per", NOBODY),
        (outbound, "f:3:36: warning: outbound.limits.rate.per", OURSELVES),
        (peer, "f:3:70: warning: peers.a.routes[0].limits.rate.per", OURSELVES),
    ] {
        // With an identity a door asks for its callers' unless it says that it does not.
        for (identity, said) in [("", true), (ID, why == OURSELVES || text == off)] {
            let expect = if said { format!("{at}: {why}") } else { String::new() };
            assert_eq!(problems(&format!("service: x\n{identity}\n{text}\n")), expect, "{text}");
        }
    }
}
