//! Which names are handed through at which doors, and whom a rule certainly means.

use std::path::Path;

use super::build;
use super::policy_tests::{file, read_policy};
use crate::config::facts::Facts as Machine;
use crate::config::problem::Problems;
use crate::config::read;

#[test]
fn a_name_is_handed_through_at_its_own_door() {
    let ports = "  ports: [{ listen: \"0.0.0.0:7\", app: \"127.0.0.1:8\" }, { listen: \"0.0.0.0:9\", app: \"127.0.0.1:10\" }]\n";
    let text = file(&format!("{ports}  passthrough: [a.b, \"*.c:7\", \"d.e:15006\"]"));
    let mut problems = Problems::new("f");
    let document = read(&text, &Machine::PLAIN, &|_| None, &mut problems).unwrap();
    let plan = build(&document.config, Path::new("/"), &mut problems).plan;
    for (sni, doors) in [("a.b", [true, false, false]), ("x.c", [false, true, false]), ("d.e", [true, false, false])] {
        let inbound = plan.doors.iter().filter(|door| door.side == crate::ids::Door::Inbound);
        let passes = inbound.map(|door| door.passes(sni, door.listen.tcp().map(|listen| listen.port())));
        assert_eq!(passes.collect::<Vec<_>>(), doors, "{sni}");
    }
}

#[test]
fn a_rule_covers_only_whom_it_certainly_means() {
    for (deny, allow, covers) in [
        ("spiffe://shop/a", "spiffe://shop/a", true),
        ("spiffe://shop/a", "spiffe://shop/a/*", false),
        ("spiffe://shop/a/*", "spiffe://shop/a/*", true),
        ("spiffe://shop/a/*", "spiffe://shop/a/b/*", true),
        ("spiffe://shop/a/*", "spiffe://shop/a/b", true),
        ("spiffe://shop/a/*", "spiffe://shop/a", false),
        ("spiffe://shop/a/b/*", "spiffe://shop/a/*", false),
        ("spiffe://shop/a/b", "spiffe://shop/a/*", false),
    ] {
        let (policy, _) = read_policy(&file(&format!("  deny: {{ from: {deny} }}\n  allow: {{ from: {allow} }}")));
        assert_eq!(policy.deny[0].covers(&policy.allow[0]), covers, "{deny} {allow}");
    }
}
