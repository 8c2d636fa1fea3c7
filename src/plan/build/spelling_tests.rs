//! That no spelling of a field, a host or a path turns what a rule denies into a pass, or what no rule allows into one.

use proptest::prelude::*;

use super::policy_tests::{check, decide, policy};

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
