//! What files mean and what is said about wrong ones, as tables; nothing here opens a file.

use std::path::Path;

use proptest::prelude::*;

use super::{Built, build};
use crate::config::facts::Facts;
use crate::config::print::values;
use crate::config::problem::Problems;
use crate::config::{Document, read};
use crate::ids::Door;
use crate::plan::Plan;
use crate::plan::door::{Leads, Otherwise, Protocol};
use crate::plan::peer::{Addresses, PeerKind};

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

#[test]
fn every_key_at_its_default_means_the_same_as_none() {
    assert_eq!(plan(FULL), plan(MINIMAL));
}

#[test]
fn the_values_in_force_are_a_file_that_means_the_same() {
    for text in [FULL, MINIMAL, QUICKSTART, EVERYTHING] {
        let (document, built) = built_with(text, &Facts::PLAIN).unwrap();
        let printed = values(&document.config, "f");
        assert_eq!(plan(&printed), built.plan, "{printed}");
    }
}

/// Every key away from its default.
const EVERYTHING: &str = r#"
service: checkout
workers: 3
grace: 1m
admin: { listen: "unix:/run/admin.sock", token: token }
status: 0.0.0.0:15020
inbound:
  listen: [0.0.0.0:15006, "unix:/run/in.sock"]
  app: unix:/run/app.sock
  ports: [{ listen: "0.0.0.0:15007", app: "127.0.0.1:9090", protocol: tcp }, { listen: "0.0.0.0:0", app: "unix:/run/app.sock" }]
  tls: { certificate: cert.pem, key: key.pem }
  passthrough: [db.example.com, "*.X"]
  upgrades: [foo/2]
  trusted: [10.0.0.0/8, "::1"]
  limits: { connections: 7, head: 8KiB, fields: 9, body: 1GiB }
  timeout: { head: 1s, keep-alive: 2s, connect: 3s, request: 4s, idle: 5s, tunnel: 6s }
  routes: [{ match: { path: /healthz }, respond: { status: 204 } }]
outbound:
  listen: unix:/run/out.sock
  otherwise: pass
  allow: [metadata.internal, 169.254.0.0/16]
  upgrades: [bar]
  trusted: [10.1.0.0/16]
  limits: { connections: 8, head: 16KiB, fields: 10, body: 0B }
  timeout: { head: 7s, keep-alive: 8s, idle: 9s, tunnel: 10s }
peers:
  one: { dns: "One.shop.:${PORT}", hosts: [a, "b:80", "[::1]:80"], protocol: http2, tls: { roots: roots.pem }, balance: random }
  two:
    srv: _grpc._tcp.two.shop
    tls: {}
    routes:
      - name: all
        match:
          - { path: { prefix: /a }, methods: [GET, PUT], headers: { x-a: "1", x-b: { present: false } }, query: { v: { regex: "[0-9]+" } } }
          - { path: { prefix: /b }, methods: POST }
        split: { one: 1, two: 3 }
        sticky: { cookie: v }
        timeout: { request: 20s, idle: 21s, tunnel: 22s }
        rewrite: { prefix: /c, host: "c.d:1" }
        request-headers: { set: { x-c: "3" }, add: { x-d: "4" }, remove: [x-e] }
        response-headers: { remove: [server] }
        fault: { share: 0.5%, header: x-f, delay: 1s, abort: 503 }
      - { match: { grpc: { service: a.B, method: C } }, redirect: { scheme: https, host: x.y, port: 8443, path: /z, status: 308 } }
      - { match: { path: "/u/{id}/*" }, respond: { status: 410, body: gone, content-type: text/html } }
    balance: round-robin
    timeout: { connect: 11s, request: 12s, idle: 13s, tunnel: 14s, keep-alive: 15s }
  three: { file: peers.yaml, listen: "127.0.0.1:5432", protocol: tcp, balance: least-request }
  four: { static: [{ address: "10.0.0.1:80", weight: 0, zone: "a: b", identity: "spiffe://s/x", metadata: { "k,": "${PORT:-1}" } }, "10.0.0.2:80"] }
dns: { servers: [10.0.0.2, "[::1]:5353"], floor: 2s, ceiling: 3s, stale-for: 0s, timeout: 4s, hosts-file: false }
telemetry: { access-log: { log: all, format: json } }
"#;

#[test]
fn every_key_reaches_the_plan() {
    let plan = plan(EVERYTHING);
    let listens: Vec<_> = plan.doors.iter().map(|door| (door.side, door.listen.to_string(), door.leads)).collect();
    let expect = [
        (Door::Inbound, "0.0.0.0:15006", Leads::Peer(0)),
        (Door::Inbound, "unix:/run/in.sock", Leads::Peer(0)),
        (Door::Inbound, "0.0.0.0:15007", Leads::Peer(1)),
        (Door::Inbound, "0.0.0.0:0", Leads::Peer(0)),
        (Door::Outbound, "unix:/run/out.sock", Leads::ByAuthority),
        (Door::Outbound, "127.0.0.1:5432", Leads::Peer(4)),
    ];
    assert_eq!(listens, expect.map(|(side, listen, leads)| (side, listen.to_owned(), leads)));
    let names: Vec<_> = plan.peers.iter().map(|peer| (peer.name.as_str(), peer.kind)).collect();
    let (app, named) = (PeerKind::App, PeerKind::Named);
    assert_eq!(
        names,
        [("app", app), ("app:9090", app), ("one", named), ("two", named), ("three", named), ("four", named)]
    );
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
    assert_eq!(plan.dns.servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.2:53", "[::1]:5353"]);
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
fn each_problem_is_one_line_with_its_place() {
    for (text, expect) in [
        ("", "f:1:1: service: is missing: expected a name of letters, digits, `-`, `_` and `.`, such as `checkout`"),
        (
            "- a",
            "f:1:1: expected a mapping with keys of service, workers, grace, admin, status, inbound, outbound, peers, dns, telemetry, found a list",
        ),
        (
            &with("grace: 5"),
            "f:3:8: grace: expected a duration with a unit such as `800ms` or `5s`, found `5`; did you mean `5s`?",
        ),
        (
            &with("grace:"),
            "f:3:6: grace: expected a duration with a unit such as `800ms` or `5s`, found nothing (remove the key, or give it a value)",
        ),
        (&with("grace: [5s]"), "f:3:8: grace: expected a duration with a unit such as `800ms` or `5s`, found a list"),
        (&with("sevice: y"), "f:3:1: sevice: unknown key `sevice`; did you mean `service`?"),
        (&with("service: y"), "f:3:1: `service` is given twice, first in line 1"),
        (
            &with("admin: 0.0.0.0:1"),
            "f:3:8: admin.listen: expected a loopback address such as `127.0.0.1:15000`, or `unix:/PATH`, found `0.0.0.0:1`: whoever reaches it could change this sidecar",
        ),
        (
            &with("admin: { listen: off, token: t }"),
            "f:3:30: admin.token: there is no admin server to guard: `listen` is `off`",
        ),
        (
            &with("dns: { hosts-file: on }"),
            "f:3:20: dns.hosts-file: expected `true` or `false`, found `on`; did you mean `true`?",
        ),
        (&with("dns: { floor: 10m }"), "f:3:15: dns.floor: must not be longer than dns.ceiling"),
        (&with("dns: { ceiling: 500ms }"), "f:3:17: dns.floor: must not be longer than dns.ceiling"),
        (
            &with("grace: ${NOT_SET}"),
            "f:3:8: grace: the variable NOT_SET is not set: set it, or give a default: `${NOT_SET:-default}`",
        ),
        (
            &with("status: 127.0.0.1:15000"),
            "f:3:9: status: `127.0.0.1:15000` is taken already by admin.listen (127.0.0.1:15000), a default",
        ),
    ] {
        assert_eq!(problems(text), expect, "{text}");
    }
}

#[test]
fn inbound_problems() {
    for (text, expect) in [
        (
            "{}",
            "f:2:10: inbound.app: is missing: expected the address where the service listens, such as `127.0.0.1:8080`, or `ports`",
        ),
        (
            "{ app: \"127.0.0.1:15006\" }",
            "f:2:17: inbound.app: `127.0.0.1:15006` is this sidecar's own inbound.listen ([::]:15006), a default: it would call itself",
        ),
        (
            "{ app: 8080 }",
            "f:2:17: inbound.app: expected an address to connect to, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`, found `8080`; did you mean `127.0.0.1:8080`?",
        ),
        (
            "{ app: 127.0.0.1:1, protocol: http1, passthrough: [a.b] }",
            "f:2:60: inbound.passthrough: needs `protocol: auto`: with a declared protocol no server name is looked at",
        ),
        (
            "{ app: 127.0.0.1:1, tls: { certificate: c } }",
            "f:2:35: inbound.tls.key: is missing: expected the path of a file, such as `tls/key.pem`",
        ),
        (
            "{ app: 127.0.0.1:1, timeout: { connect: 2s, request: 1s } }",
            "f:2:50: inbound.timeout.connect: must not be longer than `request`, the time for the whole",
        ),
        (
            "{ app: 127.0.0.1:1, timeout: { idle: 0s } }",
            "f:2:47: inbound.timeout.idle: expected a duration above zero with a unit such as `800ms` or `5s`, found `0s`",
        ),
        (
            "{ app: 127.0.0.1:1, limits: { head: 1KiB } }",
            "f:2:46: inbound.limits.head: expected a size from `8KiB` to `1MiB`, found `1KiB`",
        ),
        (
            "{ listen: 0.0.0.0:1, ports: [{ listen: 0.0.0.0:2, app: 127.0.0.1:3 }] }",
            "f:2:20: inbound.listen: leads nowhere without `app`; the ports under `ports` have their own",
        ),
        (
            "{ ports: [{ listen: 0.0.0.0:2 }] }",
            "f:2:20: inbound.ports[0].app: is missing: expected an address to connect to, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`, such as `127.0.0.1:9090`",
        ),
        (
            "{ app: 127.0.0.1:1, listen: [] }",
            "f:2:38: inbound.listen: expected an address to listen at, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`, found an empty list",
        ),
        (
            "{ app: 127.0.0.1:1, listen: [0.0.0.0:2, 127.0.0.1:2] }",
            "f:2:50: inbound.listen[1]: `127.0.0.1:2` is taken already by inbound.listen[0] (0.0.0.0:2) in line 2",
        ),
        (
            "{ app: 127.0.0.1:1, upgrades: [h2c] }",
            "f:2:41: inbound.upgrades[0]: expected an upgrade token such as `foo/2`, found `h2c`: HTTP/2 needs no upgrade; RFC 9113 removed it",
        ),
    ] {
        assert_eq!(problems(&format!("service: x\ninbound: {text}\n")), expect, "{text}");
    }
}

#[test]
fn peer_problems() {
    for (text, expect) in [
        ("a: {}", "f:4:6: peers.a: does not say where it is: give one of `dns`, `srv`, `file` or `static`"),
        ("a: { dns: b }", "f:4:13: peers.a.dns: expected `HOST:PORT`, found `b`: the port is missing"),
        (
            "a: { dns: 10.0.0.1:80 }",
            "f:4:13: peers.a.dns: expected `HOST:PORT`, found `10.0.0.1:80`: an address needs no lookup: `static: [10.0.0.1:80]`",
        ),
        (
            "a: { dns: b:1, file: p }",
            "f:4:24: peers.a.file: a peer has one source, and `dns` is given already: remove one",
        ),
        (
            "app: { dns: b:1 }",
            "f:4:8: peers.app: `app` is the name of the service behind the inbound door: choose another",
        ),
        ("a: { static: [] }", "f:4:16: peers.a.static: expected at least one address, such as `10.0.0.7:9000`"),
        (
            "a: { static: [1.1.1.1:1, 1.1.1.1:1] }",
            "f:4:28: peers.a.static[1]: this address is given twice, first in line 4",
        ),
        (
            "a: { static: [127.0.0.1:15001] }",
            "f:4:17: peers.a.static[0].address: `127.0.0.1:15001` is this sidecar's own outbound.listen[0] (127.0.0.1:15001), a default: it would call itself",
        ),
        (
            "a: { static: [1.1.1.1:1], tls: {} }",
            "f:4:34: peers.a.tls.sni: is missing: expected the DNS name that the certificate proves; only `dns` and `srv` give one",
        ),
        (
            "a: { dns: b:1, listen: 127.0.0.1:15001 }",
            "f:4:26: peers.a.listen: `127.0.0.1:15001` is taken already by outbound.listen[0] (127.0.0.1:15001), a default",
        ),
        (
            "a: { dns: b:1, timeout: 5 }",
            "f:4:27: peers.a.timeout: expected a mapping with keys of connect, request, idle, tunnel, keep-alive, found `5`",
        ),
        (
            "a: { dns: b:1, timeout: { keepalive: 5s } }",
            "f:4:29: peers.a.timeout.keepalive: unknown key `keepalive`; did you mean `keep-alive`?",
        ),
        (
            "a: { dns: b:1, balance: ewma }",
            "f:4:27: peers.a.balance: expected `peak-ewma`, `least-request`, `round-robin` or `random`, found `ewma`",
        ),
        (
            "a: { dns: b:1 }\n  c: { dns: d:1, hosts: [c, A] }",
            "f:5:29: peers.c.hosts[1]: the host `a` belongs to peers.a already (line 4); a host means one peer",
        ),
        (
            "a: { dns: b:1 }\n  A: { dns: c:1, hosts: [] }",
            "f:5:6: peers.A: differs from peers.a only in the case of letters",
        ),
        ("a: { dns: b:1 }\n  a: { dns: c:1 }", "f:5:3: peers: `a` is given twice, first in line 4"),
        (
            "a b: { dns: b:1 }",
            "f:4:3: peers.a b: expected a name of at most 63 letters, digits, `-`, `_` or `.`, beginning with a letter or digit",
        ),
    ] {
        assert_eq!(problems(&with(&format!("peers:\n  {text}"))), expect, "{text}");
    }
}

#[test]
fn keys_of_later_steps_are_unknown() {
    for text in [
        "identity: {}",
        "inbound: { mtls: strict }",
        "inbound: { allow: [] }",
        "inbound: { limits: { in-flight: 1 } }",
        "inbound: { limits: { rate: 1/s } }",
        "inbound: { probes: [] }",
        "peers: { a: { mtls: {} } }",
        "peers: { a: { retry: {} } }",
        "peers: { a: { breaker: {} } }",
        "peers: { a: { eject: {} } }",
        "peers: { a: { health: {} } }",
        "peers: { a: { fallback: {} } }",
        "peers: { a: { timeout: { attempt: 1s } } }",
        "telemetry: { traces: {} }",
    ] {
        assert!(problems(text).contains("unknown key"), "{text}: {}", problems(text));
    }
}

#[test]
fn all_problems_are_said_at_once() {
    let text = "servce: x\nworkers: none\ninbound:\n  app: here\n  tls: { key: k }\n  bogus: 1\npeers:\n  a: { srv: \"!\" }\n  b: { dns: \"b:1\", hosts: [a] }\n";
    let lines: Vec<_> =
        problems(text).lines().map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" ")).collect();
    let expect = [
        "f:1:1 service",
        "f:1:1 servce",
        "f:2:10 workers",
        "f:4:8 inbound.app",
        "f:5:8 inbound.tls.certificate",
        "f:6:3 inbound.bogus",
        "f:8:13 peers.a.srv",
        "f:9:28 peers.b.hosts[0]",
    ];
    assert_eq!(lines, expect);
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    for (text, expect) in [
        ("service: x", "f: warning: neither `inbound` nor `peers`: this sidecar only forwards what it does not know"),
        (
            "service: x\ninbound: { app: 10.0.0.1:8080 }",
            "f:2:17: warning: inbound.app: is not loopback: others can reach the service there, past this sidecar",
        ),
        (
            &with("outbound: { listen: 0.0.0.0:1, otherwise: pass }"),
            "f:3:43: warning: outbound.otherwise: `0.0.0.0:1` is not loopback: whoever reaches it can use this sidecar as an open proxy",
        ),
        (
            &with("outbound: { otherwise: deny, allow: [a] }"),
            "f:3:37: warning: outbound.allow: matches nothing while `otherwise` is `deny`: only peers are called",
        ),
        (
            &with("peers: { a: { dns: b:1, protocol: tcp } }"),
            "f:3:35: warning: peers.a.protocol: `tcp` without a `listen` of its own: the shared outbound port reaches it by CONNECT only",
        ),
        (
            &with("peers: { a: { dns: b:1, listen: 0.0.0.0:1 } }"),
            "f:3:33: warning: peers.a.listen: is not loopback: whoever reaches it reaches this peer as if they were this service",
        ),
        (
            &with("peers: { a: { dns: b:1, hosts: [a, a:80] } }"),
            "f:3:36: warning: peers.a.hosts[1]: adds nothing: `a` with any port is listed too",
        ),
        (
            &with("peers: { a: { dns: b:1, hosts: [] } }"),
            "f:3:32: warning: peers.a.hosts: is empty and there is no `listen`: no request can reach this peer",
        ),
        (
            &with("peers: { a: { static: [{ address: 1.1.1.1:1, weight: 0 }] } }"),
            "f:3:23: warning: peers.a.static: every weight is 0: this peer takes no traffic",
        ),
    ] {
        assert_eq!(problems(text), expect, "{text}");
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
