//! What files mean, as tables; nothing here opens a file.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::{Built, build};
use crate::config::facts::Facts;
use crate::config::print::values;
use crate::config::problem::Problems;
use crate::config::{Document, read};
use crate::ids::{Door, PeerName};
use crate::plan::Plan;
use crate::plan::door::{self, Otherwise, Protocol};
use crate::plan::fallback::{Fallback, Instead, StaleRule};
use crate::plan::health::{HealthCheck, HealthRule};
use crate::plan::peer::{Addresses, Affinity, Balance, PeerKind, PeerPolicy};
use crate::plan::policy::Policy;
use crate::plan::route::{Leads, Mirror, Sticky};
use crate::plan::rules::{
    AdmissionRule, BreakerRule, BudgetRule, ConcurrencyRule, Condition, Conditions, DoorGates, EjectRule, GateRule,
    HedgeAfter, HedgeRule, LatencyRule, LimitsRule, MeterRule, Methods, Priority, RateKey, RateRule, Rules, Share,
    SlowStartRule, SubsetFallback,
};

mod identity;
mod mistakes;
mod names;
mod rules;
mod same;

const FULL: &str = include_str!("../../../config/full.yaml");
const MINIMAL: &str = include_str!("../../../config/minimal.yaml");
const QUICKSTART: &str = include_str!("../../../config/quickstart.yaml");

fn variable(name: &str) -> Option<String> {
    (name == "PORT").then(|| "9999".into())
}

fn built_with(text: &str, facts: &Facts) -> Result<(Document, Built), Problems> {
    let mut problems = Problems::new("f");
    let Some(document) = read(text, facts, &variable, &mut problems) else { return Err(problems.sorted()) };
    let built = build(&document.config, Path::new("/etc/outrigger"), &mut problems);
    if problems.list().is_empty() { Ok((document, built)) } else { Err(problems.sorted()) }
}

fn plan(text: &str) -> Plan {
    built_with(text, &Facts::PLAIN).unwrap_or_else(|problems| panic!("{text}\n{problems}")).1.plan
}

/// Every problem of a file, a line each.
fn problems(text: &str) -> String {
    built_with(text, &Facts::PLAIN).err().map(|problems| problems.to_string()).unwrap_or_default()
}

/// A file that is fine but for what is appended.
fn with(text: &str) -> String {
    format!("service: x\ninbound: {{ app: \"127.0.0.1:8080\" }}\n{text}\n")
}

/// Every key away from its default.
const EVERYTHING: &str = r#"
service: checkout
zone: eu-1a
workers: 3
grace: 1m
admin: { listen: "unix:/run/admin.sock", token: token }
status: 0.0.0.0:15020
identity: { certificate: id.pem, key: id.key, roots: [roots.pem, { file: partner.pem, trust-domain: partner }], crls: [crl.pem], tls12: true }
inbound:
  mtls: off
  listen: [0.0.0.0:15006, "unix:/run/in.sock"]
  app: unix:/run/app.sock
  ports: [{ listen: "0.0.0.0:15007", app: "127.0.0.1:9090", protocol: tcp }, { listen: "0.0.0.0:0", app: "unix:/run/app.sock" }]
  tls: { certificate: cert.pem, key: key.pem }
  passthrough: [db.example.com, "*.X"]
  upgrades: [foo/2]
  trusted: [10.0.0.0/8, "::1"]
  allow: [{ methods: [GET, POST], paths: [/orders/*, /healthz], hosts: [Shop, "[::1]:80"] }, { addresses: 10.0.0.0/8, ports: [15007] }]
  deny: { headers: { x-a: "1", x-b: { present: false } } }
  authorization: audit
  probes: [/live, { path: /ready }]
  limits: { connections: 7, head: 8KiB, fields: 9, body: 1GiB, in-flight: 11, rate: 12/m, adaptive: on }
  timeout: { head: 1s, keep-alive: 2s, connect: 3s, request: 4s, idle: 5s, tunnel: 6s }
  routes: [{ match: { path: /healthz }, respond: { status: 204 } }]
outbound:
  listen: unix:/run/out.sock
  otherwise: pass
  allow: [metadata.internal, 169.254.0.0/16]
  upgrades: [bar]
  trusted: [10.1.0.0/16]
  limits: { connections: 8, head: 16KiB, fields: 10, body: 0B, in-flight: 13, rate: [{ limit: 14/h, burst: 15 }, { per: address, limit: 16/s, keys: 17 }], adaptive: { least: 1, start: 2, most: 3, tolerance: 200% } }
  timeout: { head: 7s, keep-alive: 8s, idle: 9s, tunnel: 10s }
peers:
  one: { dns: "One.shop.:${PORT}", hosts: [a, "b:80", "[::1]:80"], protocol: http2, tls: { roots: roots.pem }, balance: random, slow-start: 30s, connection-age: none }
  two:
    srv: _grpc._tcp.two.shop
    tls: {}
    routes:
      - name: all
        match:
          - { path: { prefix: /a }, methods: [GET, PUT], headers: { x-a: "1", x-b: { present: false } }, query: { v: { regex: "[0-9]+" } } }
          - { path: { prefix: /b }, methods: POST }
        split: { one: 1, two: { weight: 3, subset: { version: "2" }, otherwise: any }, again: { peer: one, weight: 5, subset: { version: "1" } } }
        sticky: { cookie: v }
        timeout: { request: 20s, attempt: 19s, idle: 21s, tunnel: 22s }
        retry: off
        fallback: { stale: { for: 2h, size: 1MiB }, statuses: [500, 503] }
        mirror: { peer: one, share: 1% }
        rewrite: { prefix: /c, host: "c.d:1" }
        priority: low
        request-headers: { set: { x-c: "3" }, add: { x-d: "4" }, remove: [x-e] }
        response-headers: { remove: [server] }
        limits: { in-flight: 18, rate: { per: header X-User, limit: 19/s }, adaptive: on }
        fault: { share: 0.5%, header: x-f, delay: 1s, abort: 503 }
      - { match: { grpc: { service: a.B, method: C } }, redirect: { scheme: https, host: x.y, port: 8443, path: /z, status: 308 } }
      - { match: { methods: DELETE }, subset: { version: "3" }, priority: high, hedge: 39ms }
      - { match: { path: "/u/{id}/*" }, respond: { status: 410, body: gone, content-type: text/html } }
    balance: { by: ring-hash, key: { cookie: shop }, bounded-load: 125% }
    breaker:
      { connections: 21, connecting: 22, in-flight: 23, pending: 24, retries: 25,
        endpoint: { connections: 1, connecting: 2, in-flight: 3, pending: 4 },
        failures: 26%, slow: { from: 27s, share: 28% }, volume: 29, open-for: 30s,
        adaptive: { least: 31, most: 33, start: 32, tolerance: 134% }, admission: { accepts: 135%, most: 36%, volume: 37 } }
    fallback: { peer: four }
    retry: { attempts: 3, on: [5xx, 409, unavailable], methods: any, headers: { x-again: "", x-mood: bad }, budget: 30%, backoff: { base: 1s, cap: 2s, asked: 3s } }
    hedge: { after: p99.9, at-least: 38ms }
    eject: { after: 2 failures, server-errors: 3 failures, gateway-errors: off, failure-share: 30%, latency: { times: 4, at-least: 60ms }, volume: 6, probe: 2s, for: 20s, most: 50% }
    health: { grpc: two.T, host: t.two, every: 6s, timeout: 2s, healthy: 4, unhealthy: 5 }
    timeout: { connect: 11s, request: 12s, attempt: 11s, idle: 13s, tunnel: 14s, keep-alive: 15s }
  three: { mtls: off, file: peers.yaml, listen: "127.0.0.1:5432", protocol: tcp, balance: least-request, eject: off, health: { tcp: true } }
  four: { mtls: { id: [spiffe://s/x, spiffe://s/y/*] }, fallback: { respond: { status: 203, body: x, content-type: a/b }, statuses: [504] }, static: [{ address: "10.0.0.1:80", weight: 0, priority: 7, zone: "a: b", identity: "spiffe://s/x", metadata: { "k,": "${PORT:-1}" } }, "10.0.0.2:80"] }
dns: { servers: [10.0.0.2, "[::1]:5353"], floor: 2s, ceiling: 3s, stale-for: 0s, timeout: 4s, hosts-file: false }
telemetry: { access-log: { log: all, format: json } }
"#;

#[test]
fn every_key_reaches_the_plan() {
    let plan = plan(EVERYTHING);
    let listens: Vec<_> = plan.doors.iter().map(|door| (door.side, door.listen.to_string(), door.leads)).collect();
    let expect = [
        (Door::Inbound, "0.0.0.0:15006", door::Leads::Peer(0)),
        (Door::Inbound, "unix:/run/in.sock", door::Leads::Peer(0)),
        (Door::Inbound, "0.0.0.0:15007", door::Leads::Peer(1)),
        (Door::Inbound, "0.0.0.0:0", door::Leads::Peer(0)),
        (Door::Outbound, "unix:/run/out.sock", door::Leads::ByAuthority),
        (Door::Outbound, "127.0.0.1:5432", door::Leads::Peer(4)),
    ];
    assert_eq!(listens, expect.map(|(side, listen, leads)| (side, listen.to_owned(), leads)));
    let names: Vec<_> = plan.peers.iter().map(|peer| (peer.name.as_str(), peer.kind)).collect();
    let (app, named) = (PeerKind::App, PeerKind::Named);
    assert_eq!(
        names,
        [("app", app), ("app:9090", app), ("one", named), ("two", named), ("three", named), ("four", named)]
    );
    let identity = plan.identity.as_ref().and_then(|plan| plan.files()).unwrap();
    assert_eq!(identity.certificate.to_str(), Some("/etc/outrigger/id.pem"));
    assert_eq!(identity.roots[1].domain.as_deref(), Some("partner"));
    assert!(identity.tls12 && identity.crls.len() == 1);
    let ids: Vec<_> = plan.peers[5].source.mtls.iter().flat_map(|ids| ids.iter()).map(ToString::to_string).collect();
    assert_eq!(ids, ["spiffe://s/x", "spiffe://s/y/*"]);
    assert_eq!(plan.peers[2].source.addresses, Addresses::Dns { host: "One.shop.".into(), port: 9999 });
    assert_eq!(plan.peers[2].source.tls.as_ref().unwrap().sni, "one.shop");
    assert_eq!(plan.peers[3].source.tls.as_ref().unwrap().sni, "two.shop");
    assert_eq!(plan.peers[4].source.addresses, Addresses::File { path: "/etc/outrigger/peers.yaml".into() });
    assert_eq!(plan.peers[4].source.protocol, Protocol::Tcp);
    let hosts = [("a", 1), ("b", 80), ("::1", 80), ("two", 5), ("three", 5), ("b", 81), ("one", 80)];
    let found = hosts.map(|(host, port)| plan.hosts.find(host, port));
    assert_eq!(found, [Some(2), Some(2), Some(2), Some(3), Some(4), None, None]);
    assert_eq!((plan.workers, plan.grace.as_secs()), (3, 60));
    assert_eq!(plan.egress.own.len(), 8);
    the_numbers(&plan);
    the_fallbacks(&plan);
    the_rules(&plan.policy);
}

fn the_rules(policy: &Policy) {
    let [first, second] = policy.allow.as_slice() else { panic!("two rules") };
    let paths: Vec<_> = first.paths.iter().map(|path| (path.path.as_str(), path.below)).collect();
    let hosts: Vec<_> = first.hosts.iter().map(|host| (host.name.as_str(), host.port)).collect();
    assert_eq!((&*first.name, first.line.0, first.methods.len()), ("inbound.allow[0]", 18, 2));
    assert_eq!((paths, hosts), (vec![("/orders", true), ("/healthz", false)], vec![("shop", None), ("::1", Some(80))]));
    assert_eq!((second.addresses[0].to_string(), &*second.ports), ("10.0.0.0/8".into(), &[15007][..]));
    assert_eq!((policy.deny.len(), policy.deny[0].headers.len(), &*policy.deny[0].name), (1, 2, "inbound.deny"));
    assert_eq!((policy.probes.as_slice(), policy.audit), (&["/live".to_owned(), "/ready".to_owned()][..], true));
}

fn the_fallbacks(plan: &Plan) {
    let of = |at: usize| plan.peers[at].policy.fallback.as_deref().unwrap().clone();
    assert_eq!(of(3), Fallback { to: Instead::Peer(PeerName::new("four")), statuses: Box::default() });
    assert_eq!((of(5).to.word(), of(5).statuses[0].as_u16()), ("respond", 504));
    let route = &plan.peers[3].routes.list[0];
    assert_eq!(route.mirror, Some(Mirror { peer: 2, share: 10_000 }));
    let Leads::To(split) = &route.leads else { panic!("forwards") };
    let fallback = split.to[0].policy.fallback.as_deref().unwrap();
    let rule = StaleRule { time: std::time::Duration::from_secs(7200), size: 1 << 20 };
    assert_eq!((&fallback.to, fallback.statuses.len()), (&Instead::Stale(rule), 2));
}

#[test]
fn ejection_and_health_checks_reach_the_plan() {
    let plan = plan(EVERYTHING);
    let eject = |at: usize| plan.peers[at].policy.rules.eject;
    let ms = Duration::from_millis;
    let latency = Some(LatencyRule { times: Share::percent(400), at_least: ms(60) });
    let all = EjectRule {
        server_errors: Some(3),
        gateway_errors: None,
        local_failures: Some(2),
        failure_share: Some(Share::percent(30)),
        latency,
        volume: 6,
        probe_after: ms(2_000),
        longest: ms(20_000),
        most: Share::percent(50),
    };
    // The first two are apps, of which there is one each: nothing is to be chosen.
    let want = [None, None, Some(EjectRule::default()), Some(all), None, Some(EjectRule::default())];
    assert_eq!(want, std::array::from_fn(eject));
    let health = |at: usize| plan.peers[at].policy.health.as_deref().cloned();
    let check = HealthCheck::Grpc { service: "two.T".into(), host: "t.two".into() };
    let rule = HealthRule { check, every: ms(6_000), timeout: ms(2_000), healthy: 4, unhealthy: 5 };
    assert_eq!(health(3), Some(rule));
    let rule = HealthRule { check: HealthCheck::Tcp, every: ms(5_000), timeout: ms(1_000), healthy: 2, unhealthy: 3 };
    assert_eq!((health(2), health(4)), (None, Some(rule)));
    let host = |peer: &str| {
        let plan = self::plan(&with(&format!("peers: {{ a: {{ {peer}, health: {{ http: /h?x=1 }} }} }}")));
        match &plan.peers[1].policy.health.as_ref().unwrap().check {
            HealthCheck::Http { path, host } => format!("{host}{path}"),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(host("dns: \"B.c.:80\""), "B.c/h?x=1");
    assert_eq!(host("dns: \"b.c:80\", tls: { sni: d.e }"), "d.e/h?x=1");
    assert_eq!(host("static: [1.1.1.1:1]"), "a/h?x=1");
}

/// The numbers of the plan that a swapped field would change.
fn the_numbers(plan: &Plan) {
    let limits = |at: usize| {
        let limits = &plan.doors[at].limits;
        let times = [limits.head_timeout, limits.keep_alive, limits.body_idle, limits.tunnel_idle];
        (limits.connections, limits.head, limits.fields, limits.body, times.map(|time| time.as_secs()))
    };
    assert_eq!(limits(0), (7, 8192, 9, Some(1 << 30), [1, 2, 5, 6]));
    assert_eq!(limits(4), (8, 16384, 10, Some(0), [7, 8, 9, 10]));
    let policy = |at: usize| {
        let policy = &plan.peers[at].policy;
        let request = policy.request_timeout.map(|time| time.as_secs());
        let times = [policy.connect_timeout, policy.body_idle, policy.tunnel_idle, policy.keep_alive];
        (request, times.map(|time| time.as_secs()))
    };
    assert_eq!(policy(0), (Some(4), [3, 5, 6, 4]));
    assert_eq!(policy(3), (Some(12), [11, 13, 14, 15]));
    the_retries(plan);
    who_is_picked(plan);
    the_limits(plan);
    assert_eq!(plan.dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2:53", "[::1]:5353"]);
}

fn the_retries(plan: &Plan) {
    let rules = &plan.peers[3].policy.rules;
    let retry = &rules.retry;
    let on = [Condition::ServerError, Condition::StatusCodes, Condition::Unavailable, Condition::Headers];
    assert_eq!((retry.attempts, retry.on, &*retry.statuses), (3, Conditions::of(&on), &[409][..]));
    let headers: Vec<_> = retry.headers.iter().map(|one| (one.name.as_str(), one.value.is_some())).collect();
    assert_eq!((retry.methods, headers), (Methods::Any, vec![("x-again", false), ("x-mood", true)]));
    assert_eq!(retry.budget, BudgetRule { share: Share::percent(30), floor: 3 });
    let times = [retry.backoff.base, retry.backoff.cap, retry.backoff.asked_cap, retry.attempt_timeout.unwrap()];
    assert_eq!(times.map(|time| time.as_secs()), [1, 2, 3, 11]);
    let Leads::To(split) = &plan.peers[3].routes.list[0].leads else { panic!("forwards") };
    let route = &split.to[0].policy.rules.retry;
    assert_eq!((route.attempts, route.attempt_timeout), (1, Some(Duration::from_secs(19))));
    let (after, at_least) = (HedgeAfter::Quantile(Share::millionths(999_000)), Duration::from_millis(38));
    assert_eq!(rules.hedge, Some(HedgeRule { after, at_least }));
    let Leads::To(split) = &plan.peers[3].routes.list[2].leads else { panic!("forwards") };
    let after = HedgeAfter::Delay(Duration::from_millis(39));
    assert_eq!(split.to[0].policy.rules.hedge, Some(HedgeRule { after, ..HedgeRule::default() }));
}

/// What endpoints are chosen by.
fn who_is_picked(plan: &Plan) {
    let policy = |at: usize| &plan.peers[at].policy;
    let (one, two) = (policy(2), policy(3));
    assert_eq!((one.balance, one.connection_age), (Balance::Random, None));
    assert_eq!(one.rules.slow_start, Some(SlowStartRule::over(Duration::from_secs(30))));
    assert_eq!((two.balance, two.bounded_load), (Balance::RingHash, Some(Share::percent(125))));
    assert_eq!(two.affinity, Some(Affinity::Sticky(Sticky::Cookie("shop".into()))));
    assert!((2..6).all(|at| policy(at).zone.as_deref() == Some("eu-1a")));
    let subset = |policy: &PeerPolicy| {
        policy.subsets.iter().map(|rule| (rule.wanted["version"].clone(), rule.otherwise)).collect::<Vec<_>>()
    };
    assert_eq!(subset(one), [("1".to_owned(), SubsetFallback::None)]);
    assert_eq!(subset(two), [("2".to_owned(), SubsetFallback::Any), ("3".to_owned(), SubsetFallback::None)]);
    let routes = &plan.peers[3].routes.list;
    let Leads::To(split) = &routes[0].leads else { panic!("it forwards") };
    let to: Vec<_> = split.to.iter().map(|to| (to.peer, to.weight, to.subset.clone())).collect();
    let (first, second) = (&one.subsets[0], &two.subsets[0]);
    assert_eq!(to, [(2, 1, None), (3, 3, Some(second.clone())), (2, 5, Some(first.clone()))]);
    let Addresses::Static(four) = &plan.peers[5].source.addresses else { panic!("it is static") };
    assert_eq!(four.iter().map(|spec| spec.priority).collect::<Vec<_>>(), [7, 0]);
}

#[test]
fn the_environment_says_where_this_sidecar_runs_unless_the_file_does() {
    let zone = |text: &str, value: &str| {
        let mut problems = Problems::new("f");
        let set = |name: &str| (name == "OUTRIGGER_ZONE").then(|| value.to_owned());
        let document = crate::config::read(text, &Facts::PLAIN, &set, &mut problems).unwrap();
        document.config.zone.map(|zone| (zone.value.0, zone.origin.at().is_some()))
    };
    assert_eq!(zone("service: x", "b"), Some(("b".into(), false)));
    assert_eq!(zone("service: x\nzone: a", "b"), Some(("a".into(), true)));
    assert_eq!((zone("service: x", ""), zone("service: x", "\t")), (None, None));
}

fn the_limits(plan: &Plan) {
    let rate = |count, seconds, burst| RateRule { count, period: Duration::from_secs(seconds), burst };
    let adaptive =
        |least, start, most, percent| Some(ConcurrencyRule { least, start, most, tolerance: Share::percent(percent) });
    let meter = |rate, per: Option<RateKey>, keys| MeterRule { rate, told: per.is_some(), per, keys };
    let inbound = GateRule {
        in_flight: Some(11),
        rates: [meter(rate(12, 60, 12), None, 10_000)].into(),
        adaptive: adaptive(4, 20, 1000, 150),
        kept: false,
    };
    let outbound = GateRule {
        in_flight: Some(13),
        // The rate of each stands first.
        rates: [meter(rate(16, 1, 16), Some(RateKey::Address), 17), meter(rate(14, 3600, 15), None, 10_000)].into(),
        adaptive: adaptive(1, 2, 3, 200),
        kept: true,
    };
    assert_eq!(plan.gates, DoorGates { inbound, outbound });
    let gate = plan.peers[3].routes.list[0].gate.as_ref().unwrap();
    let per = Some(RateKey::Header(http::HeaderName::from_static("x-user")));
    assert_eq!((&*gate.key, gate.rule.in_flight), ("peers.two.routes/all", Some(18)));
    assert_eq!(
        (&*gate.rule.rates, &gate.rule.adaptive),
        (&[meter(rate(19, 1, 19), per, 10_000)][..], &inbound_adaptive())
    );
    let rules = &plan.peers[3].policy.rules;
    let worth: Vec<_> = plan.peers[3].routes.list.iter().map(|route| route.priority).collect();
    assert_eq!(worth, [Some(Priority::Low), None, Some(Priority::High), None]);
    assert!(rules.kept && !gate.rule.kept, "a route's own limits are for its own");
    let limits = |connections, connecting, in_flight, pending, retries| LimitsRule {
        connections: Some(connections),
        connecting: Some(connecting),
        in_flight: Some(in_flight),
        pending: Some(pending),
        retries,
    };
    assert_eq!((rules.limits, rules.endpoint_limits), (limits(21, 22, 23, 24, Some(25)), limits(1, 2, 3, 4, None)));
    let breaker = BreakerRule {
        failure_share: Share::percent(26),
        slow: Some((Share::percent(28), Duration::from_secs(27))),
        volume: 29,
        open_for: Duration::from_secs(30),
    };
    let admission = AdmissionRule { accepts: Share::percent(135), most: Share::percent(36), volume: 37 };
    assert_eq!((rules.breaker, rules.admission), (Some(breaker), Some(admission)));
    assert_eq!(rules.concurrency, adaptive(31, 32, 33, 134));
    let slow_start = Some(SlowStartRule::over(Duration::from_secs(30)));
    assert_eq!(plan.peers[2].policy.rules, Rules { slow_start, ..Rules::default() });
}

fn inbound_adaptive() -> Option<ConcurrencyRule> {
    Some(ConcurrencyRule::default())
}

#[test]
fn a_breaker_may_look_at_slowness_alone() {
    let rule = |breaker: &str| {
        let text = with(&format!("peers: {{ a: {{ static: [10.0.0.1:1], breaker: {{ {breaker} }} }} }}"));
        plan(&text).peers[1].policy.rules.breaker
    };
    let slow = rule("slow: 2s").unwrap();
    assert_eq!(slow.slow, Some((Share::percent(50), Duration::from_secs(2))));
    assert!(!slow.failure_share.reached(10, 10), "failures alone never open it");
    assert_eq!(rule("failures: 50%"), Some(BreakerRule::default()));
    assert_eq!(rule("connections: 1"), None);
}

#[test]
fn defaults_follow_from_the_rest_of_the_file_and_from_the_machine() {
    let facts = Facts { cpu_quota: Some(2.5), ipv6: false };
    let plan = built_with(MINIMAL, &facts).unwrap().1.plan;
    let listens: Vec<_> = plan.doors.iter().map(|door| door.listen.to_string()).collect();
    assert_eq!((plan.workers, listens.as_slice()), (2, &["0.0.0.0:15006".into(), "127.0.0.1:15001".into()][..]));
    let optional = |text: &str| self::plan(text).doors.iter().map(|door| door.optional).collect::<Vec<_>>();
    assert_eq!(optional(MINIMAL), [false, false, true]);
    assert_eq!(optional(&with("outbound: { listen: [127.0.0.1:1, 127.0.0.1:2] }")), [false, false, false]);
    let otherwise = |text: &str| self::plan(&with(text)).egress.otherwise;
    assert_eq!(otherwise(""), Otherwise::Pass);
    assert_eq!(otherwise("outbound: { listen: \"unix:/run/x\" }"), Otherwise::Pass);
    assert_eq!(otherwise("outbound: { listen: 10.0.0.1:15001 }"), Otherwise::Deny);
    let short = self::plan(&with("peers: { a: { dns: \"b:80\", timeout: { request: 500ms } } }"));
    assert_eq!(short.peers[1].policy.connect_timeout.as_millis(), 500);
    let ports = self::plan("service: x\ninbound: { ports: [{ listen: \"0.0.0.0:1\", app: \"127.0.0.1:2\" }] }");
    assert_eq!((ports.doors.len(), ports.peers[0].name.as_str()), (3, "app"));
}

#[test]
fn the_admin_server_has_a_short_form_and_an_end() {
    let admin = |text: &str| plan(&with(text)).admin.map(|admin| admin.listen.to_string());
    assert_eq!(admin("admin: 127.0.0.1:1").as_deref(), Some("127.0.0.1:1"));
    assert_eq!(admin("admin: { listen: 127.0.0.1:1 }").as_deref(), Some("127.0.0.1:1"));
    assert_eq!(admin("admin: unix:/run/a.sock").as_deref(), Some("unix:/run/a.sock"));
    assert_eq!((admin("admin: off"), admin("admin: { listen: off }")), (None, None));
}

#[test]
fn a_value_knows_where_it_comes_from() {
    let text = "service: x\ngrace: ${GRACE:-7s}\npeers:\n  a: { dns: \"b:${PORT}\" }\n";
    let (document, _) = built_with(text, &Facts::PLAIN).unwrap();
    let printed = values(&document.config, "outrigger.yaml");
    let line = |start: &str| printed.lines().find(|line| line.trim_start().starts_with(start)).unwrap_or_default();
    let origin = |start: &str| line(start).split(" # ").nth(1).unwrap_or_default();
    assert_eq!(origin("service:"), "outrigger.yaml:1");
    assert_eq!(origin("grace: 7s"), "outrigger.yaml:2");
    assert_eq!(origin("workers:"), "default");
    assert_eq!(origin("dns: b:9999"), "outrigger.yaml:4, env PORT");
    assert_eq!(document.places.problem("peers.a.dns", "x").to_string(), "f:4:13: peers.a.dns: x");
    let (document, _) =
        built_with("service: x\nadmin: 127.0.0.1:1\npeers: { a: { dns: \"b:1\" } }\n", &Facts::PLAIN).unwrap();
    assert_eq!(document.places.problem("admin.listen", "x").to_string(), "f:2:8: admin.listen: x");
    assert_eq!(document.places.problem("outbound.listen", "x").to_string(), "f: outbound.listen: x");
}

#[test]
fn the_environment_says_where_the_admin_server_is_unless_the_file_does() {
    let read = |text: &str, value: &str| {
        let mut problems = Problems::new("f");
        let set = |name: &str| (name == "OUTRIGGER_ADMIN").then(|| value.to_owned());
        let document = crate::config::read(text, &Facts::PLAIN, &set, &mut problems).unwrap();
        let listen = values(&document.config, "f").lines().find(|line| line.contains("listen:")).unwrap().to_owned();
        if problems.has_errors() {
            problems.to_string()
        } else {
            listen.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    };
    for (text, value, expect) in [
        ("service: x", "127.0.0.1:7", "listen: 127.0.0.1:7 # env OUTRIGGER_ADMIN"),
        ("service: x\nadmin: { token: t }", "unix:/run/a", "listen: unix:/run/a # env OUTRIGGER_ADMIN"),
        ("service: x\nadmin: 127.0.0.1:8", "127.0.0.1:7", "listen: 127.0.0.1:8 # f:2"),
        ("service: x\nadmin: { listen: off }", "127.0.0.1:7", "listen: off # f:2"),
        ("service: x", "", "listen: 127.0.0.1:15000 # default"),
        (
            "service: x",
            "0.0.0.0:7",
            "f: admin.listen: expected a loopback address such as `127.0.0.1:15000`, or `unix:/PATH`, found `0.0.0.0:7`: whoever reaches it could change this sidecar",
        ),
    ] {
        assert_eq!(read(text, value), expect, "{text} {value}");
    }
}

#[test]
fn a_file_cut_off_anywhere_is_no_panic_and_before_the_end_of_the_service_a_problem() {
    let service = FULL.find("checkout").unwrap();
    for cut in (0..FULL.len()).step_by(7).filter(|cut| FULL.is_char_boundary(*cut)) {
        let said = problems(&FULL[..cut]);
        assert!(cut > service || !said.is_empty(), "{cut}");
    }
}

proptest! {
    /// Whatever a file becomes, it is read to the end.
    #[test]
    fn no_edit_of_a_file_makes_a_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, "[\\PC\\n \\[\\]{}:&*,\"'#$-]{0,6}"), 1..5),
        whole in any::<bool>(),
    ) {
        let mut text: Vec<char> = if whole { FULL } else { EVERYTHING }.chars().collect();
        for (at, length, put) in edits {
            let start = at.index(text.len());
            let end = (start + length).min(text.len());
            text.splice(start..end, put.chars());
        }
        let text: String = text.into_iter().collect();
        let _ = problems(&text);
        let _ = crate::plan::control_file::parse(&text, "f");
    }

    /// A value that is printed reads the same, whatever is in it.
    #[test]
    fn any_text_survives_printing(text in "\\PC{1,40}") {
        let file = with(&format!(
            "peers: {{ a: {{ static: [{{ address: 1.1.1.1:1, metadata: {{ k: {} }} }}] }} }}",
            crate::config::shape::quoted(&text, true),
        ));
        let plan = plan(&file);
        let Addresses::Static(endpoints) = &plan.peers[1].source.addresses else { panic!("static") };
        prop_assert_eq!(&endpoints[0].metadata.as_ref().unwrap()["k"], &text);
    }
}
