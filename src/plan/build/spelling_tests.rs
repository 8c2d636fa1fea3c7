//! That no spelling of a field, a host or a path turns what a rule denies into a pass, or what no rule allows into one.

use std::path::Path;

use proptest::prelude::*;

use super::build;
use super::policy_tests::{check, decide, file, policy, read_policy};
use crate::config::facts::Facts as Machine;
use crate::config::problem::Problems;
use crate::config::read;
use crate::plan::path::ambiguity;

#[test]
fn a_field_that_is_no_utf8_is_what_a_regex_denies() {
    check(&[
        (
            "  deny: { headers: { x-role: { regex: \"admin.*\" } } }",
            &[
                ("GET / x-role:admin", "deny"),
                ("GET / x-role:admin\u{ff}", "deny"),
                ("GET / x-role:\u{e4}", "deny"),
                ("GET / x-role:user x-role:\u{e4}", "deny"),
                ("GET / x-role:user", "free"),
                ("GET / x-other:\u{e4}", "free"),
                ("GET /", "free"),
            ],
        ),
        (
            "  allow: { headers: { x-role: { regex: \".*\" } } }",
            &[("GET / x-role:user", "allow"), ("GET / x-role:user\u{ff}", "none")],
        ),
        // Bytes are compared as they are where no characters are asked for.
        (
            "  deny: { headers: { x-role: { prefix: admin } } }",
            &[("GET / x-role:admin\u{ff}", "deny"), ("GET / x-role:\u{ff}", "free")],
        ),
    ]);
}

#[test]
fn a_field_is_what_servers_may_take_for_it() {
    check(&[
        (
            "  deny: { headers: { x-debug: \"1\" } }",
            &[
                ("GET / X-Debug:1", "deny"),
                ("GET / X_Debug:1", "deny"),
                ("GET / x.debug:1", "deny"),
                ("GET / x-debug:0 x_debug:1", "deny"),
                ("GET / x-debug:0,1", "deny"),
                ("GET / x-debug:1,0", "deny"),
                ("GET / x-debug:0,11", "free"),
                ("GET / xdebug:1", "free"),
                ("GET / x--debug:1", "free"),
                ("GET / x_debug:0", "free"),
            ],
        ),
        (
            "  deny: { headers: { x_debug: { present: true } } }",
            &[("GET / x-debug:1", "deny"), ("GET / x~debug:1", "deny"), ("GET / y-debug:1", "free")],
        ),
        (
            // What some server sees as missing is.
            "  deny: { headers: { x-key: { present: false } } }",
            &[
                ("GET /", "deny"),
                ("GET / x_key:1", "deny"),
                ("GET / x-key:1", "free"),
                ("GET / x-key:1 x_key:1", "free"),
            ],
        ),
        (
            "  allow: { headers: { x-tier: gold } }",
            &[
                ("GET / x-tier:gold", "allow"),
                ("GET / X-Tier:gold x-tiers:iron", "allow"),
                ("GET / x_tier:gold", "none"),
                ("GET / x-tier:gold x_tier:admin", "none"),
                ("GET / x-tier:gold x.tier:gold", "none"),
                ("GET / x-tier:gold,gold", "none"),
            ],
        ),
        (
            "  allow: { headers: { x-no: { present: false } } }",
            &[("GET /", "allow"), ("GET / x-no:1", "none"), ("GET / x_no:1", "none"), ("GET / x.no:1", "none")],
        ),
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// However the name is written for which a server reads the same variable (RFC 3875 §4.1.18), a rule that denies
    /// means it, and one that allows takes no other spelling beside its own.
    #[test]
    fn no_spelling_of_a_name_evades(gaps in "[-_.~!|]{2}", noise in prop::sample::select(vec!["", " a:1", " x-roles-b:1"])) {
        let (one, other) = gaps.split_at(1);
        let spelt = format!("x{one}role{other}b");
        let (deny, allow) = (
            policy("  deny: { headers: { x-role-b: admin } }"),
            policy("  allow: { headers: { x-role-b: admin } }"),
        );
        prop_assert_eq!(decide(&deny, &format!("GET /{noise} {spelt}:admin")), "deny");
        let beside = decide(&allow, &format!("GET /{noise} x-role-b:admin {spelt}:admin"));
        prop_assert_eq!(beside == "allow", spelt == "x-role-b", "{}", spelt);
    }
}

#[test]
fn a_host_is_what_servers_may_take_for_it() {
    check(&[(
        "  deny: { hosts: [10.0.0.9, int.shop, \"secret.shop:18306\", \"[::1]\"] }",
        &[
            ("GET / host=10.0.0.9", "deny"),
            ("GET / host=10.0.0.9.:80", "deny"),
            ("GET / host=[::ffff:10.0.0.9]", "deny"),
            ("GET / host=[::ffff:a00:9]:80", "deny"),
            ("GET / host=167772169", "deny"),
            ("GET / host=0xa000009", "deny"),
            ("GET / host=0X0A.0.0.9", "deny"),
            ("GET / host=012.0.0.9", "deny"),
            ("GET / host=010.0.0.9", "deny"),
            ("GET / host=10.9", "deny"),
            ("GET / host=10.0.9", "deny"),
            ("GET / host=INT.shop", "deny"),
            ("GET / host=int.shop.", "deny"),
            ("GET / host=int.shop..", "deny"),
            ("GET / host=.int.shop", "deny"),
            ("GET / host=int..shop", "deny"),
            ("GET / host=%69nt.shop", "deny"),
            ("GET / host=int.shop%00.b", "deny"),
            ("GET / host=int.shop,a", "deny"),
            ("GET / host=secret.shop:18306", "deny"),
            ("GET / host=secret.shop", "deny"),
            ("GET / host=secret.shop:1", "deny"),
            ("GET / host=[0:0::1]", "deny"),
            ("GET / host=10.0.0.8", "free"),
            ("GET / host=10.0.2305", "free"),
            ("GET / host=10.0.0.9.b", "free"),
            ("GET / host=1.2.3.4.5", "free"),
            ("GET / host=99999999999999999999", "free"),
            ("GET / host=int_shop", "free"),
            ("GET / host=0x", "free"),
            ("GET / host=a", "free"),
            ("GET / host=[::2]", "free"),
        ],
    )]);
}

#[test]
fn a_host_in_doubt_is_denied_and_not_allowed() {
    check(&[
        (
            "  deny: { hosts: [\"[::ffff:10.0.0.9]\", 127.0.0.1] }",
            &[
                ("GET / host=10.0.0.9", "deny"),
                ("GET / host=127.0.0.1", "deny"),
                ("GET / host=[::ffff:127.0.0.1]", "deny"),
                ("GET / host=127.0.0.2", "free"),
            ],
        ),
        // What is in doubt is only denied where the rest of the rule holds.
        ("  deny: { hosts: a, methods: DELETE }", &[("DELETE / host=%61", "deny"), ("GET / host=%61", "free")]),
        (
            "  allow: { hosts: [10.0.0.9, \"int.shop:80\"] }",
            &[
                ("GET / host=10.0.0.9", "allow"),
                ("GET / host=int.shop.", "allow"),
                ("GET / host=[::ffff:10.0.0.9]", "none"),
                ("GET / host=167772169", "none"),
                ("GET / host=int.shop..", "none"),
                ("GET / host=%69nt.shop", "none"),
                ("GET / host=int.shop:81", "none"),
            ],
        ),
    ]);
}

/// A number below 256^`bytes` in one of the notations of `inet_aton`.
fn number(value: u32, how: u8) -> String {
    match how {
        0 => format!("{value}"),
        1 => format!("0x{value:X}"),
        2 => format!("0{value:o}"),
        3 => format!("0X0{value:x}"),
        _ => format!("000{value:o}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// An address in any notation that `inet_aton` reads is the address.
    #[test]
    fn no_notation_of_an_address_evades(parts in 1..5_usize, how in prop::collection::vec(0..5_u8, 4), mapped in any::<bool>()) {
        const ADDRESS: u32 = 0x0a14_0309;
        let bytes = ADDRESS.to_be_bytes();
        let mut spelt: Vec<String> = bytes.iter().zip(&how).take(parts - 1).map(|(byte, how)| number(u32::from(*byte), *how)).collect();
        let rest = if parts == 1 { ADDRESS } else { ADDRESS & (u32::MAX >> (8 * (parts - 1))) };
        spelt.push(number(rest, how[3]));
        let host = if mapped { format!("[::ffff:{:x}:{:x}]", ADDRESS >> 16, ADDRESS & 0xffff) } else { spelt.join(".") };
        let deny = policy("  deny: { hosts: 10.20.3.9 }");
        prop_assert_eq!(decide(&deny, &format!("GET / host={host}")), "deny", "{}", host);
        prop_assert_eq!(decide(&deny, "GET / host=10.20.3.8"), "free");
    }
}

#[test]
fn the_port_of_a_host_that_is_denied_is_told_to_mean_nothing() {
    for (inbound, expect) in [
        (
            "  deny: { hosts: [a, \"b:80\"] }",
            "f:4:22: warning: inbound.deny.hosts[1]: its port is not looked at: it is the caller's word, so `deny` means the host with any",
        ),
        (
            "  deny: { hosts: \"a:80\" }\n  allow: { hosts: a }",
            "allows nothing: `inbound.deny` (line 4) denies all of it",
        ),
    ] {
        let (_, problems) = read_policy(&file(inbound));
        assert!(problems.contains(expect), "{inbound}: {problems}");
    }
    let (_, problems) = read_policy(&file("  allow: { hosts: \"a:80\" }"));
    assert_eq!(problems, "");
}

#[test]
fn the_star_of_options_is_below_the_root_for_who_denies() {
    check(&[
        ("  deny: { paths: /* }", &[("OPTIONS *", "deny"), ("GET /a", "deny")]),
        ("  deny: { paths: /a/* }", &[("OPTIONS *", "free")]),
        ("  deny: { paths: / }", &[("OPTIONS *", "free"), ("OPTIONS /", "deny")]),
        ("  allow: { paths: /* }", &[("OPTIONS *", "none"), ("OPTIONS /", "allow")]),
    ]);
}

#[test]
fn what_some_server_cuts_off_a_path_is_not_normal() {
    for (path, why) in [
        ("/admin%3Fx", Some("an encoded `?`")),
        ("/admin%3f", Some("an encoded `?`")),
        ("/admin%23x", Some("an encoded `#`")),
        ("/admin%20", Some("a blank at the end of a segment")),
        ("/admin%20%20/x", Some("a blank at the end of a segment")),
        ("/%20", Some("a blank at the beginning of a segment")),
        ("/%20admin", Some("a blank at the beginning of a segment")),
        ("/a/%20%61", Some("a blank at the beginning of a segment")),
        ("/a%20b", None),
        ("/a%20b/c%20d", None),
        ("/a+", None),
        ("/a%2B", None),
    ] {
        assert_eq!(ambiguity(path), why, "{path}");
    }
    let (_, problems) = read_policy(&file("  deny: { paths: /a%3Fb }"));
    assert!(problems.contains("means nothing: it has an encoded `?`"), "{problems}");
}

#[test]
fn who_is_denied_by_identity_and_can_come_without_one_is_told_of() {
    let identity = "identity: { certificate: c.pem, key: k.pem, roots: r.pem }\n";
    let told = |inbound: &str| {
        let (_, problems) = read_policy(&format!("{identity}{}", file(inbound)));
        let about = |line: &&str| line.contains(".from");
        problems.lines().filter(about).map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = "f:6:17: warning: inbound.deny.from: is evaded by leaving TLS away, as callers in plaintext are nobody: \
                 say `mtls: strict`, or in `allow` who may come";
    let passed = "f:6:17: warning: inbound.deny.from: is evaded by TLS that is passed through (`passthrough`), whose \
                  callers are nobody: say in `allow` who may come";
    let deny = "  deny: { from: spiffe://a/b }";
    for (inbound, expect) in [
        (format!("  mtls: permissive\n{deny}"), Some(plain)),
        (format!("  mtls: permissive\n{deny}\n  allow: {{ addresses: 10.0.0.0/8 }}"), Some(plain)),
        (format!("  mtls: permissive\n{deny}\n  allow: [{{ from: spiffe://a/c }}, {{ paths: /x }}]"), Some(plain)),
        (format!("  mtls: permissive\n{deny}\n  allow: {{ from: spiffe://a/* }}"), None),
        (format!("  passthrough: [a.b]\n{deny}"), Some(passed)),
        (format!("  passthrough: [15006]\n{deny}"), Some(passed)),
        (format!("  mtls: strict\n{deny}"), None),
        (format!("  mtls: strict\n{deny}\n  allow: {{ addresses: 10.0.0.0/8 }}"), None),
        ("  mtls: permissive\n  allow: { from: spiffe://a/b }".to_owned(), None),
    ] {
        assert_eq!(told(&inbound), expect.into_iter().collect::<Vec<_>>(), "{inbound}");
    }
}

#[test]
fn a_trust_domain_is_nobody() {
    for (text, key) in [
        (file("  allow: { from: spiffe://shop }"), "inbound.allow.from"),
        (file("  deny: [{ from: [spiffe://shop/a, spiffe://shop] }]"), "inbound.deny[0].from[1]"),
        (
            "service: s\npeers: { p: { static: [10.0.0.1:1], mtls: { id: spiffe://shop } } }\n".to_owned(),
            "peers.p.mtls.id",
        ),
    ] {
        let (_, problems) = read_policy(&text);
        let line = problems.lines().find(|line| line.contains(&format!(": {key}: expected"))).unwrap_or(&problems);
        let expect =
            "found `spiffe://shop`: no caller or peer is a trust domain itself; did you mean `spiffe://shop/*`?";
        assert!(line.ends_with(expect), "{text}: {problems}");
    }
}

#[test]
fn a_trust_domain_without_roots_is_told_of() {
    let (said, expect) = (
        "service: s\nidentity: { certificate: c, key: k, roots: [own.pem, { file: p.pem, trust-domain: partner }] }\ninbound:\n  \
         app: 127.0.0.1:8080\n  allow: { from: [spiffe://own/a, \"spiffe://partner/*\", \"spiffe://other/*\"] }\n  deny: { from: \
         spiffe://owner/x }\npeers:\n  p: { static: [{ address: \"10.0.0.1:1\", identity: spiffe://elsewhere/a }], mtls: { id: \
         [\"spiffe://own/*\", spiffe://strange/b] } }\n",
        [
            ("inbound.allow.from[2]", "other"),
            ("inbound.deny.from", "owner"),
            ("peers.p.static[0].identity", "elsewhere"),
            ("peers.p.mtls.id[1]", "strange"),
        ],
    );
    let mut problems = Problems::new("f");
    let document = read(said, &Machine::PLAIN, &|_| None, &mut problems).unwrap();
    let built = build(&document.config, Path::new("/"), &mut problems);
    let identity = built.plan.identity.unwrap();
    super::identity::lint(&document.config, identity.files().unwrap(), "own", &mut problems);
    let told = problems.sorted().to_string();
    assert_eq!(told.lines().count(), expect.len(), "{told}");
    for (key, domain) in expect {
        let expect =
            format!("warning: {key}: means nobody: `identity.roots` has no roots of the trust domain `{domain}`");
        assert!(told.contains(&expect), "{told}");
    }
}

#[test]
fn a_port_is_denied_by_each_that_leads_to_the_same_app() {
    check(&[(
        "  deny: [{ ports: 8080, paths: /a }, { ports: 15006, methods: PUT }, { ports: 9090 }]",
        &[
            ("GET /a on=8080 door=15006 app=8080", "deny[0]"),
            ("GET /a on=15006 door=15006 app=8080", "deny[0]"),
            ("GET /a on=unix app=8080", "deny[0]"),
            ("GET /a on=15006 door=15006 app=8081", "free"),
            ("GET /b on=15006 door=15006 app=8080", "free"),
            ("PUT /b on=8080 door=15006 app=8080", "deny[1]"),
            ("tcp on=15006 door=15006 app=8080", "deny[0]"),
            ("GET / on=9090", "deny[2]"),
            ("PUT /a on=9091", "free"),
        ],
    )]);
}
