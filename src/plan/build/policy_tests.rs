//! What the rules of a file say of requests and connections, as tables, and that no spelling of a path evades them.

use std::path::Path;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::build;
use crate::config::facts::Facts as Machine;
use crate::config::problem::Problems;
use crate::config::read;
use crate::plan::claims::Claims;
use crate::plan::path::{ambiguity, decoded};
use crate::plan::policy::{Asked, Facts, Policy, Ports, Verdict};

pub(super) fn file(inbound: &str) -> String {
    format!("service: s\ninbound:\n  app: 127.0.0.1:8080\n{inbound}\n")
}

/// The policy of a file, and every problem it has.
pub(super) fn read_policy(text: &str) -> (Policy, String) {
    let mut problems = Problems::new("f");
    let document = read(text, &Machine::PLAIN, &|_| None, &mut problems).unwrap();
    let built = build(&document.config, Path::new("/"), &mut problems);
    (built.plan.policy, problems.sorted().to_string())
}

pub(super) fn policy(inbound: &str) -> Policy {
    let text = file(inbound);
    let (policy, problems) = read_policy(&text);
    assert!(!problems.lines().any(|line| !line.contains("warning")), "{text}\n{problems}");
    policy
}

/// Words such as `GET /a host=b:80 x-c:d as=spiffe://s/x at=10.0.0.1 on=15006 tunnel body token:{"a":1}`, or `tcp` for
/// opaque bytes. A character of a field is a byte.
pub(super) fn decide(policy: &Policy, words: &str) -> String {
    let (mut method, mut uri, mut host, mut headers) = (None, "/", "s", HeaderMap::new());
    let (mut identity, mut address, mut tunnel, mut body) = (None, None, false, false);
    let mut ports = Ports { dialled: Some(15006), others: [None, None] };
    let mut tokens = Vec::new();
    for word in words.split(' ') {
        match (word.split_once('='), word.split_once(':')) {
            _ if word == "tunnel" => tunnel = true,
            _ if word == "body" => body = true,
            _ if word.starts_with(['/', '*']) => uri = word,
            (Some(("host", text)), _) => host = text,
            (Some(("as", text)), _) => identity = Some(text.parse().unwrap()),
            (Some(("at", text)), _) => address = Some(text.parse().unwrap()),
            (Some(("on", text)), _) => ports.dialled = text.parse().ok(),
            (Some(("door", text)), _) => ports.others[0] = text.parse().ok(),
            (Some(("app", text)), _) => ports.others[1] = text.parse().ok(),
            (_, Some(("token", json))) => tokens.push(Arc::new(Claims(serde_json::from_str(json).unwrap()))),
            (_, Some((name, value))) => {
                let bytes: Vec<u8> = value.chars().map(|one| u8::try_from(one).unwrap()).collect();
                headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(&bytes).unwrap());
            }
            _ if word == "tcp" => {}
            _ => method = Some(word.parse::<Method>().unwrap()),
        }
    }
    let uri = uri.parse().unwrap();
    let (name, port_named) = host.rsplit_once(':').filter(|(_, port)| !port.contains(']')).unwrap_or((host, "80"));
    let request = method.as_ref().map(|method| Asked {
        method,
        uri: &uri,
        headers: &headers,
        host: name,
        host_port: port_named.parse().unwrap(),
        tunnel,
        body,
        tokens: &tokens,
    });
    match policy.decide(&Facts { identity: identity.as_ref(), address, ports, request }) {
        Verdict::Free => "free".into(),
        Verdict::Probe => "probe".into(),
        Verdict::NoneAllows => "none".into(),
        Verdict::TokenMissing => "token".into(),
        Verdict::Allowed(rule) | Verdict::Denied(rule) => rule.name.trim_start_matches("inbound.").to_owned(),
    }
}

/// Rules, and what they say of requests and connections.
pub(super) type Table<'t> = &'t [(&'t str, &'t [(&'t str, &'t str)])];

pub(super) fn check(table: Table<'_>) {
    for (rules, asked) in table {
        let policy = policy(rules);
        for (words, expect) in *asked {
            assert_eq!(decide(&policy, words), *expect, "{rules}: {words}");
        }
    }
}

#[test]
fn each_condition_counts_and_deny_comes_first() {
    check(&[
        ("", &[("GET /", "free"), ("tcp", "free")]),
        (
            "  deny: { methods: DELETE }",
            &[("DELETE /", "deny"), ("delete /", "deny"), ("GET /", "free"), ("tcp", "deny")],
        ),
        ("  deny: [{}]", &[("GET /", "deny[0]"), ("tcp", "deny[0]")]),
        ("  allow: [{}]", &[("GET /", "allow[0]"), ("tcp", "allow[0]")]),
        (
            "  allow:\n    - { from: spiffe://shop/web, methods: [GET, POST], paths: /orders/* }\n    - { from: [spiffe://shop/*, spiffe://b/c/*], paths: [/healthz] }\n  deny: { from: spiffe://shop/bad, paths: /orders/* }",
            &[
                ("GET /orders/7 as=spiffe://shop/web", "allow[0]"),
                ("POST /orders as=spiffe://shop/web", "allow[0]"),
                ("HEAD /orders as=spiffe://shop/web", "none"),
                ("get /orders as=spiffe://shop/web", "none"),
                ("GET /ordersx as=spiffe://shop/web", "none"),
                ("GET /orders/7", "none"),
                ("GET /orders/7 as=spiffe://shop/other", "none"),
                ("GET /healthz as=spiffe://shop/other", "allow[1]"),
                ("GET /healthz as=spiffe://b/c/d", "allow[1]"),
                ("GET /healthz as=spiffe://b/c", "none"),
                ("GET /orders as=spiffe://shop/bad", "deny"),
                ("tcp as=spiffe://shop/bad", "deny"),
                ("tcp as=spiffe://shop/web", "none"),
            ],
        ),
        (
            "  allow: { hosts: [Orders.shop, \"admin:8443\", \"[::1]\"] }",
            &[
                ("GET / host=orders.SHOP.", "allow"),
                ("GET / host=orders.shop:99", "allow"),
                ("GET / host=admin:8443", "allow"),
                ("GET / host=admin", "none"),
                ("GET / host=[0:0::1]:80", "allow"),
                ("GET / host=xorders.shop", "none"),
            ],
        ),
        (
            "  allow: { headers: { x-tier: gold, x-no: { present: false } } }",
            &[
                ("GET / x-tier:gold", "allow"),
                ("GET / x-tier:gold x-tier:iron", "none"),
                ("GET / x-tier:gold x-no:1", "none"),
                ("GET /", "none"),
                ("tcp", "none"),
            ],
        ),
        (
            "  deny: { headers: { x-tier: iron } }",
            &[("GET / x-tier:gold x-tier:iron", "deny"), ("GET / x-tier:gold", "free")],
        ),
    ]);
}

/// One issuer; two lines that the rules stand below.
const JWT: &str = "  jwt: [{ issuer: \"https://l\", audiences: any, jwks: \"https://l/k\" }]\n";

#[test]
fn claims_are_those_of_one_token() {
    let allow = |rules: &str| format!("{JWT}  allow: {rules}");
    let both =
        "{ claims: { sub: ann, scope: [orders.write, admin], \"https://l/roles\": { present: true } }, paths: /a }";
    check(&[
        (
            &allow(both),
            &[
                (r#"GET /a token:{"sub":"ann","scope":"x|admin","https://l/roles":[]}"#, "none"),
                (r#"GET /a token:{"sub":"ann","scope":["x","admin"],"https://l/roles":[]}"#, "allow"),
                (r#"GET /b token:{"sub":"ann","scope":["x","admin"],"https://l/roles":[]}"#, "none"),
                (r#"GET /a token:{"sub":"ann"} token:{"scope":"admin","https://l/roles":1}"#, "none"),
                ("GET /a", "token"),
                ("GET /b", "none"),
                ("GET /a tunnel", "token"),
                ("CONNECT /a tunnel", "token"),
                ("tcp", "none"),
            ],
        ),
        (
            &allow("[{ claims: { sub: ann }, from: spiffe://s/web }, { paths: /open }]"),
            &[
                (r#"GET /a as=spiffe://s/web token:{"sub":"ann"}"#, "allow[0]"),
                (r#"GET /a as=spiffe://s/web token:{"sub":"bob"}"#, "none"),
                ("GET /a as=spiffe://s/web", "token"),
                ("GET /a as=spiffe://s/other", "none"),
                ("GET /open", "allow[1]"),
                ("tcp as=spiffe://s/web", "none"),
            ],
        ),
        (
            &format!("{JWT}  deny: {{ claims: {{ banned: \"true\" }} }}"),
            &[
                (r#"GET / token:{"banned":true}"#, "deny"),
                (r#"GET / token:{"banned":false}"#, "free"),
                (r#"GET / token:{"banned":false} token:{"banned":true}"#, "deny"),
                ("GET /", "free"),
                // A banned one's token could be within.
                ("tcp", "deny"),
            ],
        ),
        (
            // How a token is demanded of everybody.
            &format!("{JWT}  deny: {{ claims: {{ iss: {{ present: false }} }} }}\n  allow: [{{}}]\n  probes: [/h]"),
            &[(r#"GET / token:{"iss":"l"}"#, "allow[0]"), ("GET /", "token"), ("GET /h", "token"), ("tcp", "deny")],
        ),
        (
            &format!("{JWT}  allow: {{ claims: {{ sub: {{ present: false }} }} }}"),
            &[(r#"GET / token:{"iss":"l"}"#, "allow"), ("GET /", "token")],
        ),
    ]);
}

#[test]
fn ports_tunnels_and_probes_have_rules_of_their_own() {
    check(&[
        (
            "  ports: [{ listen: 0.0.0.0:7, app: 127.0.0.1:8 }]\n  allow: [{ addresses: [10.0.0.0/8, \"fd00::1\"], ports: 7 }, { ports: 15006, methods: GET }]",
            &[
                ("GET / at=10.1.2.3 on=7", "allow[0]"),
                ("tcp at=fd00::1 on=7", "allow[0]"),
                ("GET / at=11.1.2.3 on=7", "none"),
                ("GET / on=7", "none"),
                ("GET /", "allow[1]"),
                ("POST / at=10.1.2.3", "none"),
                ("GET / on=unix", "none"),
                ("tcp", "none"),
                // What allows means the port that was dialled alone.
                ("GET / on=8 door=15006 app=15006", "none"),
                ("POST / at=10.1.2.3 on=8 door=7 app=7", "none"),
            ],
        ),
        (
            "  allow: { methods: GET, paths: /ws }",
            &[
                ("GET /ws tunnel", "allow"),
                ("CONNECT /ws tunnel", "allow"),
                ("CONNECT /ws", "none"),
                ("POST /ws tunnel", "none"),
            ],
        ),
        ("  deny: { methods: GET }", &[("CONNECT /ws tunnel", "deny"), ("POST /", "free")]),
        (
            "  allow: { from: spiffe://shop/web }\n  probes: [/healthz, { path: /ready }]\n  deny: { addresses: 10.0.0.9 }",
            &[
                ("GET /healthz", "probe"),
                ("GET /ready?full", "probe"),
                ("HEAD /healthz", "none"),
                ("GET /healthz/", "none"),
                ("GET /health%7a", "none"),
                ("GET /healthz tunnel", "none"),
                ("GET /healthz body", "none"),
                ("GET /healthz body as=spiffe://shop/web", "allow"),
                ("GET /healthz at=10.0.0.9", "deny"),
                ("tcp", "none"),
            ],
        ),
    ]);
}

#[test]
fn a_path_is_what_its_bytes_stand_for() {
    for (rule, path, allows, denies) in [
        ("/a", "/a", true, true),
        ("/a", "/%61", true, true),
        ("/a", "/a/", false, true),
        ("/a", "/A", false, true),
        ("/a", "/a/b", false, false),
        ("/a", "/ab", false, false),
        ("/a/", "/a/", true, true),
        ("/a/", "/a", false, true),
        ("/a/*", "/a", true, true),
        ("/a/*", "/a/", true, true),
        ("/a/*", "/a/b/c", true, true),
        ("/a/*", "/%61/b", true, true),
        ("/a/*", "/ab", false, false),
        ("/a/*", "/", false, false),
        ("/*", "/", true, true),
        ("/*", "/x/y", true, true),
        ("/*", "*", false, true),
        ("/", "/", true, true),
        ("/", "/x", false, false),
        ("/a%20b", "/a%20b", true, true),
        ("/%C3%A4", "/%c3%a4/", false, true),
        ("/ä/*", "/%c3%a4/x", true, true),
        ("/a%2Ab", "/a*b", true, true),
    ] {
        let asked = format!("OPTIONS {path}");
        let (allow, deny) =
            (policy(&format!("  allow: {{ paths: {rule} }}")), policy(&format!("  deny: {{ paths: {rule} }}")));
        let told = (decide(&allow, &asked) == "allow", decide(&deny, &asked) == "deny");
        assert_eq!(told, (allows, denies), "{rule} {path}");
    }
}

#[test]
fn what_can_mean_nothing_is_told() {
    let ports = "  ports: [{ listen: 0.0.0.0:7, app: 127.0.0.1:8 }]\n";
    for (inbound, expect) in [
        ("  allow: []", "f:4:10: inbound.allow: expected a mapping with keys of"),
        ("  allow: { paths: [] }", "found an empty list"),
        ("  allow: { paths: orders }", "did you mean `/orders`?"),
        ("  allow: { paths: /a*/b }", "a `*` stands for whole segments at the end"),
        ("  allow: { paths: \"/a?b\" }", "expected a path such as `/healthz` or `/orders/*`"),
        ("  allow: { paths: /a/../b }", "f:4:19: inbound.allow.paths: means nothing: it has a dot segment"),
        ("  allow: [{ paths: [/a, /b//*] }]", "inbound.allow[0].paths[1]: means nothing: it has an empty segment"),
        ("  deny: { paths: /a%2fb }", "it has an encoded slash"),
        ("  allow: { headers: { x: { present: true, exact: a } } }", "expected exactly one of its keys"),
        ("  allow: { from: shop/web }", "a SPIFFE ID begins with `spiffe://`"),
        ("  allow: { methods: get }", "did you mean `GET`?"),
        ("  allow: { bogus: 1 }", "unknown key `bogus`"),
        ("  authorization: log", "inbound.authorization: expected"),
        ("  authorization: audit", "warning: inbound.authorization: there is nothing to audit"),
        ("  deny: { from: spiffe://a/b }", "f:4:17: warning: inbound.deny.from: matches nobody: a caller in plaintext"),
        ("  allow: { ports: 8 }", "warning: inbound.allow.ports: matches nothing: no inbound port"),
        (&format!("{ports}  deny: {{ ports: [7, 15006, 8, 9] }}"), "warning: inbound.deny.ports[3]: matches nothing"),
        (&format!("{ports}  allow: {{ ports: [7, 15006, 9] }}"), "warning: inbound.allow.ports[2]: matches nothing"),
        (
            "  deny: { paths: /a/*, methods: [GET, POST] }\n  allow: { paths: [/a/b, /a/c/*], methods: GET }",
            "f:5:10: warning: inbound.allow: allows nothing: `inbound.deny` (line 4) denies all of it",
        ),
        (
            "  deny: [{}]\n  allow: { addresses: 10.0.0.1 }",
            "allows nothing: `inbound.deny[0]` (line 4) denies all of it",
        ),
        ("  deny: { addresses: 10.0.0.0/8 }\n  allow: { addresses: 10.1.0.0/16 }", "denies all of it"),
        (
            "  deny: { claims: { iss: { present: false } } }",
            "f:4:19: warning: inbound.deny.claims: matches everybody: without `inbound.jwt` no token is believed",
        ),
        ("  protocol: tcp\n  allow: { paths: /a }", "warning: inbound.allow: allows nothing: the ports speak `tcp`"),
    ] {
        let (_, problems) = read_policy(&file(inbound));
        assert!(problems.contains(expect), "{inbound}: {problems}");
    }
    for fine in [
        "  deny: { paths: /a/b }\n  allow: { paths: /a/* }",
        "  deny: { paths: /a/*, methods: GET }\n  allow: { paths: /a/b }",
        "  deny: { hosts: a }\n  allow: { hosts: b }",
        "  deny: { headers: { x: \"1\" } }\n  allow: [{}]",
        "  passthrough: [15006, a.b]",
        "  protocol: http1\n  passthrough: [15006]",
        &format!("{JWT}  authorization: audit"),
        "  jwt:\n    - { issuer: a, audiences: b, jwks: \"https://l/k\" }\n    - { issuer: a, audiences: c, jwks: \"https://l/k\", token: x-t }",
        "  probes: /a\n  protocol: tcp\n",
    ] {
        let (_, problems) = read_policy(&file(fine));
        assert!(problems.is_empty() || fine.contains("probes"), "{fine}: {problems}");
    }
}

#[test]
fn issuers_that_cannot_be_meant_are_told() {
    for (inbound, expect) in [
        ("  deny: { claims: { a: b } }", "f:4:19: warning: inbound.deny.claims: matches nobody: without `inbound.jwt`"),
        ("  jwt: [{ issuer: a, audiences: [] , jwks: k }]", "f:4:33: inbound.jwt[0].audiences: expected"),
        ("  jwt: [{ issuer: a, jwks: k }]", "inbound.jwt[0].audiences: is missing: expected `any` or a text"),
        (
            "  jwt: [{ issuer: a, audiences: b, jwks: \"http://l.x/k\" }]",
            "keys that come in plaintext prove nothing; did you mean `https://l.x/k`?",
        ),
        (
            "  jwt: [{ issuer: a, audiences: b, jwks: \"https://l/k\" }, { issuer: a, audiences: c, jwks: \"https://l/k\" }]",
            "f:4:59: inbound.jwt[1]: `a` is listed twice, first at line 4: join their audiences in one entry",
        ),
        (
            "  jwt: [{ issuer: a, audiences: b, jwks: \"https://l/k\", token: { cookie: c, query: d } }]",
            "inbound.jwt[0].token: expected exactly one of its keys, found 2",
        ),
        (
            "  jwt: [{ issuer: a, audiences: b, jwks: \"https://l/k\", token: { cookie: c }, forward: strip }]",
            "inbound.jwt[0].forward: `strip` is for tokens in fields",
        ),
        (
            "  jwt: [{ issuer: a, audiences: b, jwks: \"http://127.0.0.1/k\", roots: r.pem }]",
            "warning: inbound.jwt[0].roots: means nothing: the keys do not come by https",
        ),
        (&format!("  protocol: tcp\n{JWT}"), "warning: inbound.jwt: is never asked: the ports speak `tcp`"),
        ("  passthrough: [15007]", "f:4:17: inbound.passthrough[0]: no inbound port has this number"),
        (
            "  passthrough: [0]",
            "expected a DNS name, `*.` and a DNS name, one of these and `:PORT`, or a port, found `0`",
        ),
        ("  passthrough: [\"a.b:15007\"]", "f:4:17: inbound.passthrough[0]: no inbound port has this number"),
        ("  passthrough: [\"a.b:0\"]", "expected a DNS name"),
        (
            "  ports: [{ listen: \"0.0.0.0:7\", app: \"127.0.0.1:8\", protocol: http1 }]\n  passthrough: [\"a.b:7\"]",
            "f:5:17: inbound.passthrough[0]: needs `protocol: auto` at that port",
        ),
    ] {
        let (_, problems) = read_policy(&file(inbound));
        assert!(problems.contains(expect), "{inbound}: {problems}");
    }
}

/// A segment of a path in some spelling, with what it is when plain.
fn segment() -> impl Strategy<Value = (String, String)> {
    let plain = prop::sample::select(vec!["a", "b", "admin", "x-1", "~q", "ä", "a b", "a+b", "..."]);
    (plain, prop::collection::vec(0..4u8, 12)).prop_map(|(plain, how)| {
        let mut spelt = String::new();
        for (at, byte) in plain.bytes().enumerate() {
            let dot = byte == b'.';
            match how.get(at % how.len()).copied().unwrap_or(0) {
                1 if !dot => spelt.push_str(&format!("%{byte:02x}")),
                2 if !dot => spelt.push_str(&format!("%{byte:02X}")),
                _ if byte.is_ascii_graphic() => spelt.push(char::from(byte)),
                _ => spelt.push_str(&format!("%{byte:02x}")),
            }
        }
        (spelt, plain.to_owned())
    })
}

const RULES: [&str; 7] = ["/admin", "/admin/*", "/a/b", "/a/*", "/", "/%C3%A4/*", "/a%20b"];

fn verdicts(path: &str) -> Vec<(String, String)> {
    let of =
        |rule: &str, word: &str| decide(&policy(&format!("  {word}: {{ paths: {rule} }}")), &format!("GET {path}"));
    RULES.iter().map(|rule| (of(rule, "allow"), of(rule, "deny"))).collect()
}

/// What a server of the most forgiving kind makes of a path: decoded over and over, cut off at what looks like a query or
/// fragment, slashes turned and merged, dots resolved, parameters dropped, blanks trimmed.
fn forgiving(path: &str) -> Vec<u8> {
    let mut bytes = path.as_bytes().to_vec();
    loop {
        let once: Vec<u8> =
            decoded(&bytes.iter().map(|byte| char::from(*byte)).filter(char::is_ascii).collect::<String>()).collect();
        if !bytes.is_ascii() || once == bytes {
            break;
        }
        bytes = once;
    }
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let bytes = bytes.split(|byte| matches!(byte, b'?' | b'#')).next().unwrap_or_default();
    for part in bytes.split(|byte| matches!(byte, b'/' | b'\\')) {
        let part = part.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        match part {
            b"" | b"." => {}
            b".." => drop(kept.pop()),
            part => kept.push(part.to_vec()),
        }
    }
    kept.join(&b'/')
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a path is spelt, the rules say the same of it.
    #[test]
    fn spellings_of_a_path_are_judged_alike(parts in prop::collection::vec(segment(), 0..4), slash in any::<bool>()) {
        let end = if slash && !parts.is_empty() { "/" } else { "" };
        let path = |which: fn(&(String, String)) -> &String| {
            let parts: Vec<_> = parts.iter().map(which).cloned().collect();
            format!("/{}{end}", parts.join("/"))
        };
        let (spelt, plain) = (path(|pair| &pair.0), path(|pair| &pair.1).replace(' ', "%20").replace('ä', "%C3%A4"));
        prop_assert_eq!(ambiguity(&spelt), None, "{}", spelt);
        prop_assert_eq!(verdicts(&spelt), verdicts(&plain), "{} {}", spelt, plain);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is passed as normal, even a forgiving server takes for the path that was judged.
    #[test]
    fn a_normal_path_has_one_structure(path in "/(a|b|admin|/|\\.|\\\\|;|%2f|%2F|%5c|%2e|%25|%00|%3b|%61|%41|%c0%af|%c3%a4|%0a|%3f|%3F|%23|%20|%){0,4}") {
        if ambiguity(&path).is_none() {
            let judged: Vec<u8> = decoded(&path).collect();
            let text = String::from_utf8(judged.clone());
            prop_assert!(text.is_ok(), "{}", path);
            let trimmed: Vec<u8> = judged.strip_prefix(b"/").unwrap().to_vec();
            let trimmed = trimmed.strip_suffix(b"/").unwrap_or(&trimmed);
            prop_assert_eq!(forgiving(&path), trimmed, "{}", path);
        }
    }

    /// What a rule that allows a path lets in, a forgiving server takes for nothing else.
    #[test]
    fn no_spelling_slips_through_a_rule_that_allows(path in "/(a|A|b|admin|/|\\.|\\\\|;x|%2f|%5c|%2e|%2E|%25|%61|%41|%62|%3f|%23|%20){0,4}") {
        if ambiguity(&path).is_none() && path.parse::<http::Uri>().is_ok() {
            let meant = String::from_utf8_lossy(&forgiving(&path)).into_owned();
            let allowed = decide(&policy("  allow: { paths: [/b, /a/*] }"), &format!("GET {path}")) == "allow";
            let mine = meant == "a" || meant.starts_with("a/") || (meant == "b" && !path.ends_with('/'));
            prop_assert_eq!(allowed, mine, "{} is {}", path, meant);
        }
    }

    /// A rule that denies a path denies whatever a forgiving server that knows no case takes for it, or it is refused.
    #[test]
    fn no_spelling_evades_a_rule_that_denies(path in "/(a|A|admin|ADMIN|/|\\.|\\\\|;x|%2f|%5c|%2e|%2E|%25|%61|%41|%64|%3f|%23|%20){0,4}") {
        let lower = String::from_utf8_lossy(&forgiving(&path)).to_ascii_lowercase();
        if ambiguity(&path).is_none() && path.parse::<http::Uri>().is_ok() {
            let denied = decide(&policy("  deny: { paths: [/admin, /a/*] }"), &format!("GET {path}")) == "deny";
            prop_assert_eq!(denied, lower == "admin" || lower == "a" || lower.starts_with("a/"), "{}", path);
        }
    }
}
