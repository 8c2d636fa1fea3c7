//! What is to be captured, as text for nft, for iptables and in words (`tests/capture/golden`), and as the kernel's
//! messages and back.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::attribute::{Attributes, Writer, messages};
use super::compile::{compile, decompile};
use super::expression::Expression;
use super::rules::{Action, Chain, Family, Match, Rule, Ruleset};
use super::tables::Batch;
use super::{build, iptables, text, words};
use crate::config::facts::Facts;
use crate::config::problem::Problems;
use crate::plan::build::redirect::capture;

const CASES: [&str; 3] = ["plain", "picky", "tproxy"];

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/capture/golden").join(name)
}

fn rules(text: &str, v6: bool) -> Ruleset {
    let mut problems = Problems::new("FILE");
    let document = crate::config::read(text, &Facts::PLAIN, &|_| None, &mut problems);
    let capture = document.and_then(|document| capture(&document.config, &mut problems));
    assert!(problems.list().is_empty(), "{problems}");
    build::ruleset(&capture.unwrap(), v6)
}

fn case(name: &str, v6: bool) -> Ruleset {
    rules(&fs::read_to_string(file(&format!("{name}.yaml"))).unwrap(), v6)
}

/// Compares with the file; with OUTRIGGER_BLESS set, the file is written instead.
fn golden(name: &str, text: &str) {
    if std::env::var_os("OUTRIGGER_BLESS").is_some() {
        fs::write(file(name), text).unwrap();
    }
    assert_eq!(text, fs::read_to_string(file(name)).unwrap_or_default(), "{name}: OUTRIGGER_BLESS=1 writes it anew");
}

#[test]
fn rules_are_written_for_nft_for_iptables_and_in_words() {
    for name in CASES {
        let rules = case(name, true);
        golden(&format!("{name}.nft"), &text::script(&rules));
        golden(&format!("{name}.sh"), &iptables::script(&rules, true, false));
        golden(&format!("{name}.words"), &words::words(&rules.chains));
    }
    golden("tproxy-v4.nft", &text::script(&case("tproxy", false)));
    golden("tproxy.remove.sh", &iptables::script(&case("tproxy", true), true, true));
}

#[test]
fn rules_for_one_app_and_for_a_network_of_its_own() {
    let text = fs::read_to_string(file("picky.yaml")).unwrap();
    let mut problems = Problems::new("FILE");
    let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
    let capture = capture(&document.config, &mut problems).unwrap();
    let group = Match::ControlGroup { level: 2, id: 4711, path: "a.slice/outrigger-1".into() };
    golden("app.nft", &text::table(&build::ruleset_of(&capture, group, true).chains));
    let door = capture.outbound.unwrap().door;
    let own: [ipnet::IpNet; 2] = ["10.9.0.1/32", "fd09::1/128"].map(|net| net.parse().unwrap());
    golden("inside.nft", &text::table(&build::inside(door, true, &own).chains));
    golden("inside-v4.nft", &text::table(&build::inside(door, false, &own[..1]).chains));
}

#[test]
fn without_ipv6_nothing_is_said_of_it() {
    for name in CASES {
        let rules = case(name, false);
        for written in [text::script(&rules), iptables::script(&rules, false, false)] {
            assert!(!written.contains("ip6") && !written.contains("ipv6") && !written.contains("ip -6"), "{written}");
        }
        assert!(words::words(&rules.chains).contains("IPv4 alone"));
    }
    // A list that only names the other family lets nothing through, rather than everything.
    let text = "service: a\nredirect: { outbound: { only: { networks: ['fd00::/8'] } } }";
    let chains = rules(text, false).chains;
    let out = chains.iter().find(|chain| chain.name == "outrigger-out").unwrap();
    assert_eq!(out.rules, []);
}

#[test]
fn what_is_off_has_no_rules() {
    let names = |text: &str| {
        let chains = rules(&format!("service: a\n{text}"), true).chains;
        chains.iter().map(|chain| chain.name.trim_start_matches("outrigger-").to_owned()).collect::<Vec<_>>().join(" ")
    };
    let (out, inbound) = ("out guard-out not-out", "own self inbound in guard-in not-in");
    assert_eq!(names(""), format!("outbound {out}"));
    assert_eq!(names("inbound: { app: '127.0.0.1:1' }"), format!("outbound {out} {inbound}"));
    assert_eq!(names("inbound: { app: '127.0.0.1:1' }\nredirect: { inbound: off }"), format!("outbound {out}"));
    assert_eq!(names("inbound: { app: '127.0.0.1:1' }\nredirect: { outbound: off }"), format!("outbound {inbound}"));
    assert_eq!(
        names("redirect: { outbound: off, dns: all }\ndns: { listen: ['127.0.0.1:15053', '[::1]:15053'] }"),
        "outbound"
    );
    assert_eq!(
        names("inbound: { app: '127.0.0.1:1' }\nredirect: { mode: tproxy }"),
        format!("outbound {out} own self inbound in back")
    );
}

#[test]
fn names_of_chains_fit_into_iptables() {
    for chain in CASES.into_iter().flat_map(|name| case(name, true).chains) {
        assert!(chain.name.len() <= 28 && chain.name.starts_with(build::PREFIX), "{}", chain.name);
    }
}

#[test]
fn a_rule_is_the_bytes_that_nft_would_send() {
    let rule = Rule::new([Match::Tcp, Match::Port(80..=80)], Action::Redirect(15001), "");
    let mut list = Writer::default();
    compile(&rule).iter().for_each(|step| step.write(&mut list));
    let hex: String = list.into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let expect = [
        // meta load l4proto => reg 1
        "24000180 09000100 6d65746100000000 14000280 0800010000000001 0800020000000010",
        // cmp eq reg 1 0x06
        "2c000180 08000100 636d7000 20000280 0800010000000001 0800020000000000 0c000380 0500010006000000",
        // payload load 2b @ transport header + 2 => reg 1
        "34000180 0c000100 7061796c6f616400 24000280 0800010000000001 0800020000000002 0800030000000002 0800040000000002",
        // cmp eq reg 1 0x0050
        "2c000180 08000100 636d7000 20000280 0800010000000001 0800020000000000 0c000380 0600010000500000",
        // immediate reg 1 0x3a99
        "2c000180 0e000100 696d6d656469617465000000 18000280 0800010000000001 0c000280 060001003a990000",
        // redir proto_min reg 1
        "1c000180 0a000100 7265646972000000 0c000280 0800010000000001",
    ];
    let expect = expect.concat().replace(' ', "");
    assert_eq!(hex, expect);
}

/// The rules in a batch's messages, by chain, as the kernel would keep them.
fn decoded(bytes: &[u8]) -> Vec<(String, Option<Rule>)> {
    let new_rule = 10 << 8 | 6;
    let rules = messages(bytes).filter(|message| message.kind == new_rule);
    let rule = |body: Attributes<'_>| {
        let steps = body.inside(4)?.all().map(|(_, element)| Expression::read(Attributes(element)));
        let why = std::str::from_utf8(body.get(7)?.get(2..)?).ok()?.trim_end_matches('\0');
        decompile(&steps.collect::<Option<Vec<_>>>()?, why)
    };
    rules
        .map(|message| {
            let body = Attributes(&message.body[4..]);
            (body.text(2).unwrap().to_owned(), rule(body))
        })
        .collect()
}

#[test]
fn a_batch_holds_every_rule_and_asks_for_one_answer() {
    for name in CASES {
        let Ruleset { chains, .. } = case(name, true);
        let mut batch = Batch::begin(7, 42);
        batch.delete_table(false);
        batch.make_table();
        batch.chains(&chains);
        let (bytes, first, last, _) = batch.end();
        let meant: Vec<_> = chains
            .iter()
            .flat_map(|Chain { name, rules, .. }| rules.iter().map(|rule| (name.clone(), Some(rule.clone()))))
            .collect();
        assert_eq!(decoded(&bytes), meant);
        let all: Vec<_> = messages(&bytes).collect();
        assert_eq!(
            all.iter().map(|message| message.sequence).collect::<Vec<_>>(),
            (first..=last + 1).collect::<Vec<_>>()
        );
        let asking: Vec<u32> =
            all.iter().filter(|message| message.flags & 4 != 0).map(|message| message.sequence).collect();
        assert_eq!(asking, [last]);
        assert_eq!((all[0].kind, all[all.len() - 1].kind), (0x10, 0x11));
        assert_eq!(Attributes(&all[0].body[4..]).number(1), Some(42));
    }
}

fn a_match() -> impl Strategy<Value = Match> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let v4 =
        (any::<[u8; 4]>(), 1..=32_u8).prop_map(|(ip, length)| ipnet::IpNet::new(ip.into(), length).unwrap().trunc());
    let v6 =
        (any::<[u8; 16]>(), 1..=128_u8).prop_map(|(ip, length)| ipnet::IpNet::new(ip.into(), length).unwrap().trunc());
    let net = prop_oneof![v4, v6];
    let interface = "[a-z0-9]{1,15}\\*?";
    prop_oneof![
        Just(Match::Tcp),
        Just(Match::Udp),
        Just(Match::Opening),
        Just(Match::Opened),
        Just(Match::ToHere),
        Just(Match::Transparent),
        Just(Match::Translated),
        Just(Match::Original),
        Just(Match::Reply),
        (1_u16.., 1_u16..).prop_map(|(a, b)| Match::Port(a.min(b)..=a.max(b))),
        net.clone().prop_map(Match::Destination),
        net.prop_map(Match::Source),
        any::<u32>().prop_map(Match::User),
        any::<u32>().prop_map(Match::Group),
        any::<u32>().prop_map(Match::ConnectionMark),
        interface.prop_map(Match::In),
        interface.prop_map(Match::Out),
        (family, 0..64_u8).prop_map(|(family, code)| Match::Dscp(family, code)),
    ]
}

fn an_action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Return),
        Just(Action::Accept),
        Just(Action::Drop),
        "[a-z]{1,20}".prop_map(Action::Goto),
        any::<u16>().prop_map(Action::Redirect),
        any::<u16>().prop_map(Action::Tproxy),
        any::<u32>().prop_map(Action::Mark),
        any::<u32>().prop_map(Action::MarkConnection),
    ]
}

proptest! {
    #[test]
    fn what_the_kernel_is_told_reads_back_as_the_same_rule(
        matches in prop::collection::vec(a_match(), 0..5),
        actions in prop::collection::vec(an_action(), 1..4),
    ) {
        let rule = Rule { matches, actions, why: "why".into() };
        let mut list = Writer::default();
        compile(&rule).iter().for_each(|step| step.write(&mut list));
        let bytes = list.into_bytes();
        let steps = Attributes(&bytes).all().map(|(_, element)| Expression::read(Attributes(element)));
        let steps: Option<Vec<Expression>> = steps.collect();
        prop_assert_eq!(decompile(&steps.unwrap(), "why"), Some(rule));
    }

    #[test]
    fn expressions_of_others_are_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, element) in Attributes(&bytes).all() {
            let _ = Expression::read(Attributes(element));
        }
    }
}
