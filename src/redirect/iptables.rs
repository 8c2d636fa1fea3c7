//! Rules as a shell script for iptables and ip6tables, for kernels and habits without nftables.

use std::collections::HashMap;
use std::fmt::Write;

use super::rules::{Action, Chain, Family, Hook, Kind, Match, Rule, Ruleset};
use super::text::{routing_commands, routing_removal};

/// The families with their programs.
const FAMILIES: [(Family, &str); 2] = [(Family::V4, "iptables"), (Family::V6, "ip6tables")];

/// The tables that have rules of ours.
const TABLES: [&str; 3] = ["nat", "mangle", "filter"];

/// What every script begins with: it takes away what of ours is there, however it came there.
const CLEAR: &str = r#"#!/bin/sh
set -eu
clear() { # clear PROGRAM TABLE
    for chain in outrigger-outbound outrigger-inbound outrigger-back outrigger-guard-out outrigger-guard-in; do
        for hook in PREROUTING INPUT OUTPUT; do
            while "$1" -w -t "$2" -D "$hook" -j "$chain" 2>/dev/null; do :; done
        done
    done
    chains=$("$1" -w -t "$2" -S | sed -n 's/^-N \(outrigger-.*\)$/\1/p')
    for chain in $chains; do "$1" -w -t "$2" -F "$chain"; done
    for chain in $chains; do "$1" -w -t "$2" -X "$chain"; done
}
"#;

/// A script that puts the rules in force, or with `remove` takes them away; `v6` says whether there is IPv6.
pub fn script(ruleset: &Ruleset, v6: bool, remove: bool) -> String {
    let mut out = CLEAR.to_owned();
    let families = FAMILIES.into_iter().filter(|(family, _)| v6 || *family == Family::V4);
    let commands = |out: &mut String, lines: Vec<String>| lines.iter().for_each(|line| writeln_into(out, line));
    for (_, program) in families.clone() {
        commands(&mut out, TABLES.iter().map(|table| format!("clear {program} {table}")).collect());
    }
    if remove || ruleset.routing.is_some() {
        commands(&mut out, routing_removal(v6));
    }
    if remove {
        return out;
    }
    if let Some(routing) = &ruleset.routing {
        commands(&mut out, routing_commands(routing.mark, v6));
    }
    let tables = tables(ruleset);
    for (family, program) in families {
        for table in TABLES {
            let own = |chain: &&Chain| tables.get(&*chain.name) == Some(&table);
            let chains: Vec<&Chain> = ruleset.chains.iter().filter(own).collect();
            if !chains.is_empty() {
                restore(&mut out, &chains, (family, program), table);
            }
        }
    }
    out
}

fn writeln_into(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// The chains of one table, in one step.
fn restore(out: &mut String, chains: &[&Chain], (family, program): (Family, &str), table: &str) {
    let _ = writeln!(out, "{program}-restore -w --noflush <<'END'\n*{table}");
    for chain in chains {
        let _ = writeln!(out, ":{} - [0:0]", chain.name);
    }
    for chain in chains {
        for line in chain.rules.iter().flat_map(|rule| lines(rule, family)) {
            let _ = writeln!(out, "-A {} {line}", chain.name);
        }
    }
    for (chain, base) in chains.iter().filter_map(|chain| chain.base.map(|base| (chain, base))) {
        let _ = writeln!(out, "-I {} 1 -j {}", hook(base.hook), chain.name);
    }
    out.push_str("COMMIT\nEND\n");
}

fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Input => "INPUT",
        Hook::Output => "OUTPUT",
    }
}

/// The table of each chain: that of the hook from which it is reached. What looks at packets after they were translated
/// stands in one that comes after `nat` at its hook.
fn tables(ruleset: &Ruleset) -> HashMap<&str, &'static str> {
    let mut tables = HashMap::new();
    for chain in &ruleset.chains {
        if let Some(base) = chain.base {
            let table = match (base.kind, base.hook) {
                (Kind::Nat, _) => "nat",
                (Kind::Filter, Hook::Output) => "filter",
                (Kind::Filter | Kind::Route, _) => "mangle",
            };
            tables.insert(chain.name.as_str(), table);
        }
        let Some(table) = tables.get(chain.name.as_str()).copied() else { continue };
        for action in chain.rules.iter().flat_map(|rule| &rule.actions) {
            if let Action::Goto(next) = action {
                tables.insert(next, table);
            }
        }
    }
    tables
}

/// A rule for one family: nothing where it is about the other, several lines where it does several things.
fn lines(rule: &Rule, family: Family) -> Vec<String> {
    let Some(words) = rule.matches.iter().map(|found| looks_at(found, family)).collect::<Option<Vec<_>>>() else {
        return Vec::new();
    };
    let words: Vec<String> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let mark = rule.actions.iter().find_map(|action| if let Action::Mark(mark) = action { Some(*mark) } else { None });
    let tproxy = rule.actions.iter().any(|action| matches!(action, Action::Tproxy(_)));
    let target = |action: &Action| match action {
        Action::Return => Some("-j RETURN".into()),
        Action::Goto(chain) => Some(format!("-g {chain}")),
        Action::Redirect(port) => Some(format!("-j REDIRECT --to-ports {port}")),
        // It marks by itself, and ends the table's look at the packet.
        Action::Tproxy(port) => {
            Some(format!("-j TPROXY --on-port {port} --tproxy-mark {:#x}", mark.unwrap_or_default()))
        }
        Action::Mark(_) | Action::Accept if tproxy => None,
        Action::Mark(mark) => Some(format!("-j MARK --set-mark {mark:#x}")),
        Action::MarkConnection(mark) => Some(format!("-j CONNMARK --set-mark {mark:#x}")),
        Action::Accept => Some("-j ACCEPT".into()),
        Action::Drop => Some("-j DROP".into()),
    };
    let line = |target: String| {
        let comment = format!("-m comment --comment \"{}\"", rule.why);
        words.iter().cloned().chain([comment, target]).collect::<Vec<_>>().join(" ")
    };
    rule.actions.iter().filter_map(target).map(line).collect()
}

/// What a rule looks at; `None` where it never holds in this family.
fn looks_at(found: &Match, own: Family) -> Option<String> {
    let interface = |name: &str| name.replace('*', "+");
    Some(match found {
        Match::Family(family) => (*family == own).then(String::new)?,
        Match::Tcp => "-p tcp".into(),
        Match::Udp => "-p udp".into(),
        Match::Opening => "--syn".into(),
        Match::Opened => "! --syn".into(),
        Match::Port(range) => format!("--dport {}:{}", range.start(), range.end()),
        Match::Destination(net) => (Family::of(net) == own).then(|| format!("-d {net}"))?,
        Match::Source(net) => (Family::of(net) == own).then(|| format!("-s {net}"))?,
        Match::ToHere => "-m addrtype --dst-type LOCAL".into(),
        Match::User(uid) => format!("-m owner --uid-owner {uid}"),
        Match::Group(gid) => format!("-m owner --gid-owner {gid}"),
        Match::ControlGroup { path, .. } => format!("-m cgroup --path {path}"),
        Match::In(name) => format!("-i {}", interface(name)),
        Match::Out(name) => format!("-o {}", interface(name)),
        Match::Dscp(family, code) => (*family == own).then(|| format!("-m dscp --dscp {code:#04x}"))?,
        Match::Transparent => "-m socket --transparent".into(),
        Match::Translated => "-m conntrack --ctstate DNAT".into(),
        Match::Original => "-m conntrack --ctdir ORIGINAL".into(),
        Match::Reply => "-m conntrack --ctdir REPLY".into(),
        Match::ConnectionMark(mark) => format!("-m connmark --mark {mark:#x}"),
    })
}
