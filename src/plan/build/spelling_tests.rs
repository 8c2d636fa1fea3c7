//! That no spelling of a field, a host or a path turns what a rule denies into a pass, or what no rule allows into one.

use super::policy_tests::check;

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
