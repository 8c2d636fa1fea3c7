//! What is said about files that are wrong or probably not meant, as tables.

use super::*;

#[test]
fn each_problem_is_one_line_with_its_place() {
    for (text, expect) in [
        ("", "f:1:1: service: is missing: expected a name of letters, digits, `-`, `_` and `.`, such as `checkout`"),
        (
            "- a",
            "f:1:1: expected a mapping with keys of service, zone, workers, grace, admin, status, identity, inbound, outbound, peers, redirect, dns, telemetry, found a list",
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
        (
            &with("dns: { listen: \"0.0.0.0:15053\" }"),
            "f:3:16: dns.listen: an answer over UDP must come from the address that was asked: list the addresses one by one",
        ),
        (
            &with("dns: { listen: [\"127.0.0.1:53\", \"[::1]:53\"], servers: [10.0.0.1, \"::1\", 0.0.0.0] }"),
            "f:3:66: dns.servers[1]: is this sidecar's own DNS door (dns.listen): it would ask itself\nf:3:73: dns.servers[2]: is this sidecar's own DNS door (dns.listen): it would ask itself",
        ),
        (
            &with("dns: { listen: \"127.0.0.1:15000\" }"),
            "f:3:16: dns.listen: `127.0.0.1:15000` is taken already by admin.listen (127.0.0.1:15000), a default",
        ),
        (
            &with("dns: { listen: \"unix:/x\" }"),
            "f:3:16: dns.listen: expected an address to listen at, `IP:PORT` or `[IPv6]:PORT`, found `unix:/x`",
        ),
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
fn ejection_and_health_problems() {
    for (text, expect) in [
        ("eject: {}", ""),
        ("eject: { for: 500ms }, health: { tcp: true, every: 500ms }", ""),
        ("eject: off, health: off", ""),
        (
            "eject: { after: 5 }",
            "f:3:52: peers.a.eject.after: expected a number of failures such as `5 failures`, found `5`; did you mean `5 failures`?",
        ),
        (
            "eject: { probe: 2s, for: 1s }",
            "f:3:52: peers.a.eject.probe: must not be longer than `for`, the longest time from one try to the next",
        ),
        (
            "eject: { most: 0% }",
            "f:3:51: peers.a.eject.most: 0% would still allow one: to eject none, say `eject: off`",
        ),
        (
            "eject: { server-errors: off, gateway-errors: off, local-failures: off, failure-share: off }",
            "f:3:43: warning: peers.a.eject: ejects nothing, as every cause is off: say `eject: off`",
        ),
        ("health: {}", "f:3:44: peers.a.health: does not say what to ask: give one of `http`, `grpc` or `tcp`"),
        (
            "health: { http: /, tcp: true }",
            "f:3:44: peers.a.health: an endpoint is asked in one way: give one of `http`, `grpc` and `tcp`",
        ),
        ("health: { tcp: false }", "f:3:51: peers.a.health.tcp: expected `true`, or another check in its place"),
        (
            "health: { http: healthz }",
            "f:3:52: peers.a.health.http: expected a path that begins with `/`, with or without a query, found `healthz`",
        ),
        (
            "health: { http: /, timeout: 6s }",
            "f:3:64: peers.a.health.timeout: must not be longer than `every`, the time from one check to the next",
        ),
        (
            "protocol: http1, health: { grpc: \"\" }",
            "f:3:69: peers.a.health.grpc: gRPC needs HTTP/2, and this peer's `protocol` is another",
        ),
    ] {
        assert_eq!(problems(&with(&format!("peers: {{ a: {{ static: [1.1.1.1:1], {text} }} }}"))), expect, "{text}");
    }
}

#[test]
fn limits_that_cannot_be_meant() {
    for (text, expect) in [
        (
            &with("peers: { a: { static: [10.0.0.1:1], breaker: { volume: 5 } } }"),
            "f:3:46: peers.a.breaker: `volume` means nothing without `failures` or `slow`",
        ),
        (
            &with("peers: { a: { static: [10.0.0.1:1], breaker: { failures: 0% } } }"),
            "f:3:58: peers.a.breaker.failures: a share of 0% is always reached: write `off`, or what is too much",
        ),
        (
            &with("peers: { a: { static: [10.0.0.1:1], breaker: { connections: 2, endpoint: { connections: 3 } } } }"),
            "f:3:89: peers.a.breaker.endpoint.connections: is never reached: `connections` of the whole peer is 2",
        ),
        (
            &with("peers: { a: { static: [10.0.0.1:1], breaker: { adaptive: { start: 2000 } } } }"),
            "f:3:58: peers.a.breaker.adaptive: expected least <= start <= most, found 4, 2000 and 1000",
        ),
        (
            &with("outbound: { limits: { rate: 500 } }"),
            "f:3:29: outbound.limits.rate.limit: expected a rate such as `500/s`, `10/m` or `1000/h`, at most 1000000, found `500`; did you mean `500/s`?",
        ),
        (
            &with("outbound: { limits: { rate: [{ limit: 1/s, per: x-user }] } }"),
            "f:3:49: outbound.limits.rate[0].per: expected `address`, `identity`, or `header` and a field's name such as `header x-user`, found `x-user`; did you mean `header x-user`?",
        ),
        (
            &with("peers: { a: { static: [10.0.0.1:1], routes: [{ limits: {} }] } }"),
            "f:3:56: peers.a.routes[0].limits: does nothing: give `in-flight`, `rate` or `adaptive`",
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
            "f:4:27: peers.a.timeout: expected a mapping with keys of connect, request, attempt, idle, tunnel, keep-alive, found `5`",
        ),
        (
            "a: { dns: b:1, timeout: { keepalive: 5s } }",
            "f:4:29: peers.a.timeout.keepalive: unknown key `keepalive`; did you mean `keep-alive`?",
        ),
        (
            "a: { dns: b:1, balance: ewma }",
            "f:4:27: peers.a.balance.by: expected `peak-ewma`, `least-request`, `round-robin`, `random`, `ring-hash` or `maglev`, found `ewma`",
        ),
    ] {
        assert_eq!(problems(&with(&format!("peers:\n  {text}"))), expect, "{text}");
    }
}

#[test]
fn problems_of_the_names_of_peers() {
    for (text, expect) in [
        (
            "app: { dns: b:1 }",
            "f:4:8: peers.app: `app` is the name of the service behind the inbound door: choose another",
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
    for text in ["peers: { a: { jwt: {} } }", "telemetry: { traces: {} }"] {
        assert!(problems(text).contains("unknown key"), "{text}: {}", problems(text));
    }
}

#[test]
fn hedges_that_never_happen() {
    for (peer, expect) in [
        (
            "hedge: p95, retry: off",
            "peers.a.hedge: is a further attempt, and `retry` allows none: let `retry.attempts` be 2",
        ),
        ("hedge: 1s, timeout: { attempt: 1s }", "peers.a.hedge: must be sooner than `timeout.attempt`"),
        ("hedge: { after: p95, at-least: 2s }, timeout: { attempt: 1s }", "peers.a.hedge: must be sooner than"),
        ("routes: [{ hedge: 2s, timeout: { attempt: 1s } }]", "peers.a.routes[0].hedge: must be sooner than"),
        ("retry: { attempts: 1 }, routes: [{ hedge: p99 }]", "peers.a.routes[0].hedge: is a further attempt"),
        ("hedge: p49", "peers.a.hedge.after: expected a duration such as `50ms`, or a part of the peer's own answers"),
        ("hedge: p100", "from `p50` to `p99.99`"),
        ("hedge: 0ms", "peers.a.hedge.after: expected a duration such as"),
        ("routes: [{ redirect: { scheme: https }, hedge: p99 }]", "so `hedge` means nothing"),
    ] {
        let text = format!("peers: {{ a: {{ static: ['127.0.0.1:1'], {peer} }} }}");
        assert!(problems(&text).contains(expect), "{peer}: {}", problems(&text));
    }
}

#[test]
fn balances_that_contradict_themselves() {
    for (peer, expect) in [
        (
            "balance: ring-hash",
            "peers.a.balance: `ring-hash` needs to know what requests stick by: `{ by: ring-hash, key: { header: x-user } }`",
        ),
        (
            "balance: { by: random, key: source }",
            "peers.a.balance.key: means nothing with `random`: only `ring-hash` and `maglev` go by a key",
        ),
        (
            "balance: { bounded-load: 125% }",
            "peers.a.balance.bounded-load: means nothing with `peak-ewma`: only `ring-hash` and `maglev` go by a key",
        ),
        ("balance: { by: maglev, key: { header: x }, bounded-load: 90% }", "peers.a.balance.bounded-load: expected"),
        ("balance: { by: maglev, key: {} }", "peers.a.balance.key: expected exactly one of its keys, found 0"),
        (
            "balance: { by: maglev, key: { header: x } }, slow-start: 30s",
            "peers.a.slow-start: means nothing with `maglev`, where a key decides and not a share: remove one",
        ),
        (
            "protocol: tcp, listen: 127.0.0.1:7, balance: { by: maglev, key: { header: x } }",
            "peers.a.balance.key: `tcp` has no fields: `source` is all that its connections can stick by",
        ),
        ("balance: fastest", "peers.a.balance.by: expected"),
    ] {
        let text = with(&format!("peers: {{ a: {{ dns: b:1, {peer} }} }}"));
        assert!(
            problems(&text).starts_with("f:3:") && problems(&text).contains(expect),
            "{text}\n{}\nbut\n{expect}",
            problems(&text)
        );
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
            &with("dns: { listen: [\"127.0.0.1:15053\", \"10.0.0.1:15053\"] }"),
            "f:3:16: warning: dns.listen: hosts of peers get addresses that lead somewhere only where traffic is captured: the file needs `redirect`\nf:3:36: warning: dns.listen[1]: is not loopback: whoever reaches it can ask, and have answers sent to others",
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
            &with("peers: { a: { dns: b:1, balance: { by: maglev, key: source } } }"),
            "f:3:53: warning: peers.a.balance.key: only this machine can call: all requests would go to one endpoint",
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
fn mutual_tls_says_who_is_who() {
    const ID: &str = "identity: { certificate: c.pem, key: k.pem, roots: r.pem }";
    for (text, expect) in [
        ("identity: {}", "identity: does not say where it comes from: give `certificate`, `key` and `roots`, or"),
        ("identity: { certificate: c.pem, key: k.pem }", "identity.roots: is missing"),
        ("identity: { key: k.pem, roots: r.pem }", "identity.certificate: is missing"),
        ("identity: { certificate: c, key: k, roots: r, id: spiffe://a/b }", "identity.id: chooses among what"),
        ("identity: { key: k, workload-api: unix:/a }", "identity.key: cannot be beside `workload-api`"),
        ("identity: { roots: k, workload-api: unix:/a }", "identity.roots: cannot be beside `workload-api`"),
        ("identity: { crls: [k], workload-api: unix:/a }", "identity.crls: cannot be beside `workload-api`"),
        ("identity: { workload-api: on }", "identity.workload-api: `on` means the socket that SPIFFE_ENDPOINT_SOCKET"),
        ("identity: { workload-api: a.sock }", "identity.workload-api: expected"),
        ("identity: { workload-api: \"tcp:10.0.0.1:80\" }", "a private key would cross the network unencrypted"),
        ("identity: { roots: [] }", "identity.roots: expected"),
        ("identity: { roots: { file: r, trust-domain: A/b } }", "identity.roots.trust-domain: expected a trust domain"),
        ("inbound: { app: 127.0.0.1:1, mtls: strict }", "inbound.mtls: needs `identity`"),
        ("inbound: { app: 127.0.0.1:1, mtls: permissive }", "inbound.mtls: needs `identity`"),
        ("inbound: { app: 127.0.0.1:1, mtls: on }", "inbound.mtls: expected"),
        ("peers: { a: { dns: a:1, mtls: { id: spiffe://shop/a } } }", "peers.a.mtls: needs `identity`"),
        ("peers: { a: { dns: a:1, mtls: {} } }", "peers.a.mtls.id: is missing"),
        ("peers: { a: { dns: a:1, mtls: { id: a } } }", "peers.a.mtls.id: expected a SPIFFE ID"),
        (
            "ID\npeers: { a: { dns: a:1 } }",
            "peers.a: does not say who it is: with `identity` each peer has `mtls: { id: spiffe://DOMAIN/a }`",
        ),
        (
            "ID\npeers: { a: { dns: a:1, tls: {}, mtls: { id: spiffe://shop/a } } }",
            "peers.a.mtls: cannot be beside `tls`",
        ),
        (
            "ID\ninbound: { app: 127.0.0.1:1, tls: { certificate: c, key: k } }",
            "inbound.tls: cannot be beside mutual TLS",
        ),
        ("ID\ninbound: { app: 127.0.0.1:1, mtls: off, tls: { certificate: c, key: k } }", ""),
        ("ID\ninbound: { app: 127.0.0.1:1, allow: { from: spiffe://shop/a } }", ""),
        ("ID\npeers: { a: { dns: a:1, mtls: off }, b: { dns: b:1, tls: {} } }", ""),
        ("peers: { a: { dns: a:1, mtls: off } }", ""),
    ] {
        let found = problems(&format!("service: x\n{}\n", text.replace("ID", ID)));
        assert!(if expect.is_empty() { found.is_empty() } else { found.contains(expect) }, "{text}: {found}");
    }
}
