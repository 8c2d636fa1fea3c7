//! What is said about requests, as a table: the decisions and the lines that made them.

use super::*;
use crate::control::load::load_text;

mod refused;

const FILE: &str = "service: s
inbound:
  app: 127.0.0.1:8080
  routes:
    - { match: { path: /internal/* }, respond: { status: 404 } }
peers:
  next: { dns: \"next.shop:80\", timeout: { request: 2s } }
  payments:
    static: [10.0.0.1:1, 10.0.0.2:1]
    hosts: [payments, \"payments:9000\"]
    routes:
      - { match: { methods: [POST, PUT], path: { prefix: /v2 } } }
      - { name: canary, match: [{ path: { prefix: /v2 }, headers: { x-canary: \"1\" } }], split: { payments: 90, next: 10 },
          sticky: { header: x-user }, rewrite: { prefix: /v1 }, request-headers: { set: { x-tier: gold } },
          timeout: { request: 5s } }
      - { match: { path: /old }, redirect: { scheme: https, path: /new } }
      - { match: { query: { x: \"1\" } }, fault: { share: 5%, abort: 503 } }
  base: { static: [10.0.0.9:1], listen: 127.0.0.1:5432, protocol: tcp }
  web: { dns: \"web.shop:80\", listen: 127.0.0.1:5433 }
";

/// What is said about a request: the text.
fn explain_in(file: &str, arguments: &str) -> String {
    let (mut asking, mut words) = (None, arguments.split(" | "));
    let method = words.next().unwrap();
    let mut fields = Vec::new();
    let (mut inbound, mut identity, mut address, mut said) = (false, None, None, None);
    let (mut dialled, mut living) = (None, None);
    for word in words {
        match word {
            "in" => inbound = true,
            word if word.starts_with("spiffe:") => identity = Some(word.parse().unwrap()),
            word if word.starts_with("to ") => dialled = Some(super::dialled(&word[3..]).unwrap()),
            word if word.starts_with("{\"peers") => living = Some(serde_json::from_str(word).unwrap()),
            word if word.starts_with('{') => said = Some(claims(word).unwrap()),
            word if word.starts_with("from ") => address = Some(word[5..].parse().unwrap()),
            word if word.starts_with("http") => asking = Some(url(word).unwrap()),
            word => fields.push(field(word).unwrap()),
        }
    }
    let method = method.parse().unwrap();
    let asking = Asking { url: asking, dialled, living, method, fields, inbound, identity, address, claims: said };
    let loaded = load_text(file, Path::new("/f"), &Facts::PLAIN, &|_| None).unwrap();
    decide::decide(&loaded, &asking).map_or_else(|why| why, |explained| explained.text(&asking))
}

fn says(text: &str, about: &str, what: &str) -> bool {
    let squeezed = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(squeezed).any(|line| line.starts_with(about) && line.contains(what))
}

#[test]
fn each_request_is_told_what_decides_about_it() {
    let long = [
        ("door", "outbound 127.0.0.1:15001 [default]"),
        ("peer", "payments, by its host `payments` with any port [/f:10]"),
        ("passed over", "`peers.payments.routes[0]` does not mean it: the method is none of POST, PUT [/f:12]"),
        ("route", "`canary` means it [/f:13]"),
        ("split", "payments 90%, next 10% [/f:13]"),
        ("sticky", "by the field `x-user`, which this request has not: it is split by chance [/f:14]"),
        ("rewrite", "/v2/x?y becomes /v1/x?y [/f:14]"),
        ("request fields", "`x-tier: gold` are set [/f:14]"),
        ("endpoints", "payments: 10.0.0.1:1, 10.0.0.2:1 [/f:9]"),
        ("endpoints", "next: the A and AAAA records of next.shop, port 80 [/f:7]"),
        ("timeout.request", "5s [/f:15]"),
        ("timeout.connect", "1s [default]"),
        ("retry.budget", "20% of the requests, at least 3 a second [default]"),
        ("ejection", "after 5 answers of 5xx in a row, or 5 answers of 502 to 504 in a row, or "),
    ];
    let text = explain_in(FILE, "GET | http://payments/v2/x?y | x-canary: 1");
    for (about, what) in long {
        assert!(says(&text, about, what), "{about} {what}\n{text}");
    }
}

#[test]
fn each_way_through_the_plan_says_its_own() {
    for (asking, about, what) in [
        ("GET | http://payments:9000/", "peer", "`payments` with port 9000 [/f:10]"),
        ("GET | http://PAYMENTS./", "peer", "`payments` with any port [/f:10]"),
        ("GET | http://payments/x", "route", "none means it"),
        (
            "GET | http://payments/v2",
            "passed over",
            "`canary` does not mean it: the field `x-canary` is not `1` [/f:13]",
        ),
        ("GET | http://payments/old?a", "answer", "302, the caller is sent to https://payments/new?a [/f:16]"),
        ("GET | http://payments/?x=1", "fault", "5% of the requests is answered 503"),
        ("GET | http://payments/v2/../x", "refused", "400, reason path_not_normal (side client)"),
        ("GET | http://payments/v2 | x-user: u | x-canary: 1", "sticky", "by the field `x-user`: this request goes to"),
        ("GET | http://next/", "timeout.request", "2s [/f:7]"),
        ("GET | http://nobody/", "peer", "none has the host `nobody`, so `otherwise` decides: pass [default]"),
        ("GET | http://nobody/", "endpoints", "`nobody` is looked up when it is called"),
        ("GET | http://169.254.169.254/", "refused", "403, reason address_refused"),
        ("GET | http://127.0.0.1:15006/", "refused", "an own listener"),
        ("GET | https://next/", "tunnel", "CONNECT opens a tunnel"),
        ("GET | https://next/", "peer", "next, by its host `next`"),
        ("GET | http://127.0.0.1:5432/", "tunnel", "the bytes are passed on as they come"),
        ("GET | http://localhost:5433/", "door", "outbound 127.0.0.1:5433 [/f:19]"),
        ("GET | http://localhost:5433/", "endpoints", "web: "),
        ("GET | http://127.0.0.1:15001/x | host: next", "peer", "next, by its host `next`"),
        ("GET | http://payments/ | x-outrigger-hops: 10", "refused", "508, reason looped"),
        ("GET | http://me/internal/x | in", "answer", "404 with 0 bytes from the file [/f:5]"),
        ("GET | http://me/internal/x | in", "peer", "app, the service itself"),
        ("GET | http://me/ | in", "endpoints", "app: 127.0.0.1:8080 [/f:3]"),
        ("GET | https://me/ | in", "refused", "client_tls_failed"),
        ("GET | http://me:15006/ | in", "door", "inbound [::]:15006 [default]"),
        ("CONNECT | http://me/ | in", "refused", "405, reason method_not_allowed"),
    ] {
        let text = explain_in(FILE, asking);
        assert!(says(&text, about, what), "{asking}: {about} {what}\n{text}");
    }
    let deny = FILE.replace("peers:", "outbound: { otherwise: deny }\npeers:");
    let text = explain_in(&deny, "GET | http://nobody/");
    assert!(
        says(&text, "peer", "otherwise` decides: deny [/f:6]") && says(&text, "refused", "404, reason no_route"),
        "{text}"
    );
    let text = explain_in("service: s\npeers: { a: { dns: \"a:1\" } }\n", "GET | http://a/ | in");
    assert_eq!(text, "/f has no inbound door: give it `inbound`");
}

/// Everything that may hold for a request, each thing in a line of its own.
const ALL: &str = "service: s
outbound:
  limits:
    in-flight: 100
    rate: { limit: 10/m, burst: 20, per: header x-user }
    adaptive: on
peers:
  next: { static: [10.0.0.3:1] }
  standby: { static: [10.0.0.4:1] }
  shop:
    static: [10.0.0.1:1]
    routes:
      - match: { path: /pay }
        priority: high
        limits:
          rate: 5/s
        mirror: { peer: next, share: 1.5% }
    balance: round-robin
    slow-start: 30s
    breaker:
      in-flight: 50
      failures: 40%
      slow: 2s
      adaptive: on
      admission: on
    retry:
      attempts: 3
      budget: 10%
    eject: { probe: 2s }
    health: { http: /healthz, every: 7s }
    fallback:
      peer: standby
      statuses: [503]
    timeout:
      attempt: 1s
";

/// What is said of it.
const EVERY_LINE: &str = "GET http://shop/pay
  door             outbound 127.0.0.1:15001  [default]
  door limits      100 requests in flight, the last tenth for high priority  [/f:4]
  door limits      adaptive, 4 to 1000 requests in flight, the last tenth for high priority  [/f:6]
  door limits      10 requests of each x-user in 60s, 20 at once; answers tell what is left  [/f:5]
  peer             shop, by its host `shop` with any port  [/f:11]
  route            `peers.shop.routes[0]` means it  [/f:13]
  priority         high: the last tenth of each limit in flight is kept for it  [/f:14]
  route limits     5 requests in 1s, 5 at once; answers tell what is left  [/f:16]
  mirror           copies of 1.5% go to next  [/f:17]
  endpoints        shop: 10.0.0.1:1  [/f:11]
  protocol         the caller's own version, or what ALPN says  [default]
  balance          round-robin  [/f:18]
  timeout.connect  1s  [default]
  timeout.attempt  1s  [/f:35]
  timeout.request  none  [default]
  timeout.idle     60s  [default]
  timeout.tunnel   1h  [default]
  retry            at most 3 attempts, idempotent methods, or what was provably not processed  [/f:27]
  retry.on         connect-failure, reset-before-request, reset, refused-stream  [/f:27]
  retry.backoff    up to 25ms, doubled to 250ms  [/f:27]
  retry.budget     10% of the requests, at least 3 a second  [/f:28]
  limits           50 in flight; of those in flight the last tenth is kept for high priority  [/f:21]
  breaker          opens at 40% failures or 50% slower than 2s, for 5s  [/f:22]
  adaptive limit   adaptive, 4 to 1000 requests in flight  [/f:24]
  admission        refuses at most 80% of what the peer would refuse  [/f:25]
  ejection         after 5 answers of 5xx in a row, or 5 answers of 502 to 504 in a row, or 5 failures to answer in a row, or 20% failed, clearly more than elsewhere; tried again after 2s to 10s  [/f:29]
  health checks    GET /healthz every 7s, within 1s; out after 3 failed, back after 2  [/f:30]
  slow start       over 30s, from 10%  [/f:19]
  fallback         the answer of standby where there is none, also for 503  [/f:32]
";

#[test]
fn all_that_may_hold_is_said_with_its_line() {
    let text = explain_in(ALL, "GET | http://shop/pay");
    assert_eq!(text, EVERY_LINE);
}

#[test]
fn what_a_mark_does_is_said_although_no_line_does() {
    for (asking, what) in [
        ("GET | http://shop/ | x-outrigger-mirror: 1", "low: four fifths of a limit in flight at most, being a copy"),
        ("GET | http://shop/ | x-outrigger-attempt: 2", "being a further attempt"),
        (
            "GET | http://shop/pay | x-outrigger-attempt: 2",
            "high: the last tenth of each limit in flight is kept for it [/f:14]",
        ),
    ] {
        let text = explain_in(ALL, asking);
        assert!(says(&text, "priority", what), "{asking}: {what}\n{text}");
    }
}

#[test]
fn a_wrong_command_line_is_told_what_was_expected() {
    for (text, expect) in [
        ("payments/v2", "did you mean `http://payments/v2`?"),
        ("/v2", "did you mean `http://v2`?"),
        ("ftp://a/", "http or https, not `ftp`"),
        ("http://a b/", "not a URL"),
    ] {
        let said = url(text).unwrap_err();
        assert!(said.contains(expect), "{text}: {said}");
    }
    assert!(field("x-canary").unwrap_err().contains("`name: value`"));
    assert!(field("x y: 1").is_err());
}

#[test]
fn what_the_rules_of_the_service_say_has_its_line() {
    let file = "service: s
inbound:
  app: 127.0.0.1:8080
  ports: [{ listen: 0.0.0.0:5432, app: 127.0.0.1:5433, protocol: tcp }]
  probes: [/healthz]
  deny:
    - { paths: /internal/* }
  allow:
    - { from: spiffe://shop/web, methods: [GET, POST], paths: /orders/* }
    - { addresses: 10.0.0.0/8, ports: 15006 }
";
    let audit = file.replace("  probes", "  authorization: audit\n  probes");
    for (file, asking, about, what) in [
        (
            file,
            "GET | http://s/orders/7 | in | spiffe://shop/web",
            "authorization",
            "`inbound.allow[0]` allows it [/f:9]",
        ),
        (file, "GET | http://s/x | in | from 10.1.2.3", "authorization", "`inbound.allow[1]` allows it [/f:10]"),
        (file, "GET | http://s/healthz | in", "authorization", "it is a probe [/f:5]"),
        (
            file,
            "GET | http://s/internal/x | in",
            "refused",
            "403, reason denied (side policy): `inbound.deny[0]` (line 7) denies it",
        ),
        (file, "GET | http://s/orders/7 | in", "refused", "no rule of `inbound.allow` allows it"),
        (file, "GET | http://s//orders/7 | in", "refused", "400, reason path_not_normal"),
        (
            file,
            "GET | http://s:5432/ | in | from 10.1.2.3",
            "refused",
            "`inbound.deny[0]` (line 7) denies requests that",
        ),
        (
            &audit,
            "GET | http://s/internal/x | in",
            "authorization",
            "let in by the audit alone: `inbound.deny[0]` (line 8)",
        ),
        (file, "GET | http://nobody/", "peer", "none has the host"),
    ] {
        let text = explain_in(file, asking);
        assert!(says(&text, about, what), "{asking}: {about} {what}\n{text}");
    }
}

#[test]
fn what_the_sidecar_itself_writes_of_a_caller_is_seen_by_the_rules() {
    let denied = "`inbound.deny[0]` (line 5) denies it";
    for (rule, asking, about, what) in [
        ("x-forwarded-client-cert: { regex: \".*evil.*\" }", "spiffe://shop/evil | from 127.0.0.1", "refused", denied),
        (
            "x-forwarded-client-cert: { regex: \".*evil.*\" }",
            "spiffe://shop/good",
            "authorization",
            "no rule denies it",
        ),
        (
            "x-forwarded-client-cert: { present: true }",
            "x-forwarded-client-cert: a",
            "authorization",
            "no rule denies it",
        ),
        ("x-forwarded-client-cert: { present: false }", "x-forwarded-client-cert: a", "refused", denied),
        ("x-forwarded-proto: http", "x-forwarded-proto: https", "refused", denied),
        ("x-forwarded-proto: https", "x-forwarded-proto: https", "authorization", "no rule denies it"),
        // A proven caller is a sidecar of the mesh, whose word holds.
        ("x-forwarded-proto: https", "spiffe://shop/a | x-forwarded-proto: https", "refused", denied),
        ("x-forwarded-for: 127.0.0.1", "from ::ffff:127.0.0.1", "refused", denied),
        ("x-forwarded-for: 127.0.0.1", "", "caller", "rules see `x-forwarded-for: unknown` (`--address` says where"),
        ("x-forwarded-for: 6.6.6.6", "from 1.1.1.1 | x-forwarded-for: 6.6.6.6", "authorization", "no rule denies it"),
        ("x-forwarded-for: 6.6.6.6", "from 10.1.1.1 | x-forwarded-for: 6.6.6.6", "refused", denied),
        ("forwarded: { prefix: for=6 }", "from 1.1.1.1 | forwarded: for=6", "authorization", "no rule denies it"),
        ("forwarded: { prefix: for=6 }", "from 10.1.1.1 | forwarded: for=6", "refused", denied),
        ("x-forwarded-proto: http", "spiffe://shop/a | forwarded: for=6", "authorization", "no rule denies it"),
    ] {
        let file = format!(
            "service: s\ninbound:\n  app: 127.0.0.1:8080\n  trusted: [10.0.0.0/8]\n  deny: [{{ headers: {{ {rule} }} }}]\n"
        );
        let more = if asking.is_empty() { String::new() } else { format!(" | {asking}") };
        let text = explain_in(&file, &format!("GET | http://s/x | in{more}"));
        assert!(says(&text, about, what), "{rule}: {asking}: {about} {what}\n{text}");
    }
}

#[test]
fn tokens_and_claims_are_told_with_their_lines() {
    let file = "service: s
inbound:
  app: 127.0.0.1:8080
  jwt:
    - { issuer: \"https://l\", audiences: [a, b], jwks: \"https://l/k\" }
    - { issuer: m, audiences: any, jwks: \"https://m/k\", token: x-t, forward: strip }
  allow:
    - claims: { scope: [w, { prefix: r. }], sub: { present: true } }
";
    for (asked, about, what) in [
        (
            "GET | http://h/ | in",
            "tokens",
            "of https://l for a or b in the field `authorization`, by the keys of https://l/k [/f:5]",
        ),
        (
            "GET | http://h/ | in",
            "tokens",
            "of m for anyone in the field `x-t`, by the keys of https://m/k, not passed on [/f:6]",
        ),
        ("GET | http://h/ | in", "claims", "`inbound.allow[0]` asks for scope: w or r.…, sub: anything [/f:8]"),
        ("GET | http://h/ | in", "refused", "401, reason token_missing (side client)"),
        ("GET | http://h/ | in | authorization: Bearer x", "refused", "401, reason token_invalid (side client)"),
        ("GET | http://h/ | in | {\"scope\":\"w\"}", "refused", "403, reason denied"),
        (
            "GET | http://h/ | in | {\"scope\":\"a r.b\",\"sub\":\"x\"}",
            "authorization",
            "`inbound.allow[0]` allows it [/f:8]",
        ),
    ] {
        let text = explain_in(file, asked);
        assert!(says(&text, about, what), "{asked}: {text}");
    }
    let unread = format!(
        "GET | http://h/ | in | authorization: Bearer {}",
        crate::jwt::testing::Signer::p256()
            .sign(&serde_json::json!({ "alg": "ES256" }), &serde_json::json!({ "iss": "https://l" }))
    );
    assert!(says(&explain_in(file, &unread), "refused", "503, reason keys_unavailable"), "{unread}");
}

/// In transparent mode.
const CAPTURED: &str = "service: s
redirect:
  outbound: { except: { ports: [22], networks: [10.9.0.0/16] } }
  dns: all
inbound:
  app: 127.0.0.1:8080
  routes:
    - { match: { path: /internal/* }, respond: { status: 404 } }
    - { match: { path: /slow }, timeout: { request: 9s } }
  deny: [{ ports: 7000 }]
dns: { listen: ['127.0.0.1:15053', '[::1]:15053'] }
peers:
  late: { dns: \"late.shop:5432\" }
  shop: { static: [10.0.0.1:80, 10.0.0.2:80], routes: [{ match: { path: /x }, respond: { status: 410 } }] }
  data: { static: [10.0.0.3:5432], protocol: tcp, hosts: [data] }
";

/// An address that stands for `shop`.
fn virtual_shop() -> std::net::Ipv4Addr {
    let loaded = load_text(CAPTURED, Path::new("/f"), &Facts::PLAIN, &|_| None).unwrap();
    loaded.plan.virtual_ips.find("shop").unwrap().v4
}

fn all_say(rows: &[(&str, &str, &str)]) {
    for (asking, about, what) in rows {
        let text = explain_in(CAPTURED, asking);
        assert!(says(&text, about, what), "{asking}: {about} {what}\n{text}");
    }
}

#[test]
fn what_was_dialled_leads_where_nothing_more_is_said() {
    let stands_for_shop = format!("GET | to {}:80", virtual_shop());
    let living = "{\"peers\":[{\"name\":\"late\",\"kind\":\"named\",\"endpoints\":[{\"address\":\"10.7.7.7:5432\"}]}]}";
    all_say(&[
        ("GET | to 10.0.0.3:5432", "door", "outbound 127.0.0.1:15001 [default]"),
        ("GET | to [fd00::1]:5432", "door", "outbound [::1]:15001 [default]"),
        ("GET | to 10.0.0.3:5432", "captured", "yes, from all users and interfaces that are not excepted [/f:3]"),
        ("GET | to 10.0.0.3:5432", "peer", "data, which has an endpoint at 10.0.0.3:5432 [/f:15]"),
        ("GET | to 10.0.0.3:5432", "endpoint", "10.0.0.3:5432 and no other, past the routes"),
        ("GET | to 10.0.0.3:5432", "tunnel", "the bytes are passed on as they come"),
        ("GET | to 10.0.0.2:80", "not known", "where late can be found now"),
        (
            "GET | to 10.7.7.7:5432",
            "peer",
            "none has an endpoint at 10.7.7.7:5432, so `otherwise` decides: pass [default]",
        ),
        ("GET | to 10.7.7.7:5432", "endpoint", "10.7.7.7:5432 itself, as it is"),
        ("GET | to 10.7.7.7:5432", "timeout.connect", "30s"),
        (&format!("GET | to 10.7.7.7:5432 | {living}"), "peer", "late, which has an endpoint at 10.7.7.7:5432 [/f:13]"),
        (&stands_for_shop, "peer", "stands for its host `shop` [/f:14]"),
        (&stands_for_shop, "endpoints", "shop: 10.0.0.1:80, 10.0.0.2:80"),
        (
            "GET | to 240.240.9.9:80",
            "refused",
            "404, reason no_route (side policy): 240.240.9.9:80 is a virtual address",
        ),
        ("GET | to 127.0.0.1:15001", "captured", "no, loopback never is"),
        ("GET | to [fe80::1]:80", "captured", "no, a link-local address never is"),
        ("GET | to [::ffff:127.0.0.1]:80", "captured", "no, loopback never is"),
        ("GET | to 0.0.0.0:80", "captured", "no, the kernel takes it for loopback"),
        ("GET | to [::]:80", "captured", "no, the kernel takes it for loopback"),
        ("GET | to [::ffff:10.0.0.3]:5432", "door", "outbound 127.0.0.1:15001"),
        ("GET | to [::ffff:10.0.0.3]:5432", "peer", "data, which has an endpoint at 10.0.0.3:5432"),
    ]);
}

#[test]
fn a_name_on_a_captured_connection_leads() {
    let at_shop = format!("GET | http://x/x | to {}:80", virtual_shop());
    all_say(&[
        // By a host, whatever was dialled.
        ("GET | http://shop/x | to 10.7.7.7:80", "answer", "410 with 0 bytes from the file [/f:14]"),
        ("GET | http://shop/ | to 10.7.7.7:80", "dialled", "10.7.7.7:80, which is none of its endpoints"),
        ("GET | http://shop-0.shop/x | to 10.0.0.1:80", "host", "`shop-0.shop` is no peer's: what was dialled decides"),
        ("GET | http://shop-0.shop/x | to 10.0.0.1:80", "endpoint", "10.0.0.1:80 and no other"),
        (&at_shop, "answer", "410"),
        ("GET | http://x/ | to 10.7.7.7:80", "endpoint", "10.7.7.7:80 itself"),
        // By the server name, at the port that was dialled; what a peer is declared to speak binds.
        ("GET | https://shop/ | to 10.7.7.7:443", "peer", "shop, by the server name `shop` [/f:14]"),
        ("GET | https://shop/ | to 10.7.7.7:443", "tunnel", "the bytes"),
        ("GET | https://x/ | to 10.0.0.1:80", "server name", "`x` is no peer's: what was dialled decides"),
        ("GET | https://shop/ | to 10.0.0.3:5432", "server name", "`shop` is not looked at: `protocol: tcp` binds"),
        ("GET | http://shop/ | to 10.0.0.3:5432", "peer", "data, which has an endpoint"),
    ]);
}

#[test]
fn what_the_rules_leave_alone_and_what_comes_in() {
    all_say(&[
        ("GET | to 10.0.0.3:22", "captured", "no, `redirect.outbound.except.ports` leaves it alone: it goes past"),
        ("GET | to 10.9.1.1:80", "captured", "no, `redirect.outbound.except.networks` leaves it alone"),
        ("GET | to 10.9.1.1:53", "captured", "no, `redirect.dns` sends it to the DNS door [/f:4]"),
        // What comes in.
        ("GET | in | to 192.0.2.7:8080", "endpoints", "app: 127.0.0.1:8080 [/f:6]"),
        ("GET | http://s/internal/a | in | to 192.0.2.7:9000", "answer", "404 with 0 bytes from the file [/f:8]"),
        ("GET | http://s/slow | in | to 192.0.2.7:9000", "endpoints", "app:192.0.2.7:9000: 192.0.2.7:9000"),
        ("GET | http://s/slow | in | to 192.0.2.7:9000", "timeout.request", "9s [/f:9]"),
        ("GET | http://s/ | in | to 192.0.2.7:9000", "protocol", "the caller's own version"),
        ("GET | in | to 192.0.2.7:7000", "refused", "403, reason denied (side policy): `inbound.deny[0]` (line 10)"),
        ("GET | https://s/ | in | to 192.0.2.7:9000", "tunnel", "the bytes"),
        ("GET | in | to 192.0.2.7:15006", "captured", "no, it is a port of the sidecar itself"),
    ]);
    let deny = CAPTURED.replace("dns: all", "mode: tproxy\noutbound: { otherwise: deny }");
    let text = explain_in(&deny, "GET | to 10.7.7.7:5432");
    assert!(says(&text, "peer", "decides: deny [/f:5]") && says(&text, "refused", "404, reason no_route"), "{text}");
    let text = explain_in(&deny, "GET | in | to 192.0.2.7:8080");
    assert!(says(&text, "address shown", "its caller's: the app is called at 192.0.2.7 and not on loopback"), "{text}");
    let text = explain_in(FILE, "GET | to 10.7.7.7:5432");
    assert_eq!(text, "/f has no outbound connections captured: give it `redirect`, or leave --dialled away");
}

#[test]
fn a_captured_connection_is_told_in_full() {
    let file = "service: s\nredirect: {}\npeers: { db: { static: [10.1.2.3:5432], protocol: tcp, retry: off } }\n";
    let text = explain_in(file, "GET | to 10.1.2.3:5432");
    assert!(text.starts_with("a connection to 10.1.2.3:5432\n  captured "), "{text}");
    let about = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let all: Vec<_> = text.lines().skip(1).map(about).take(6).collect();
    assert_eq!(all, ["captured", "door", "tunnel", "peer", "endpoint", "protocol"], "{text}");
}
