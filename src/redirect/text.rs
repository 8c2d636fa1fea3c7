//! Rules as text that `nft -f` takes.

use std::fmt::Write;

use super::rules::{Action, Base, Chain, Family, Hook, Kind, Match, Rule, Ruleset};
use super::{PROTOCOL, TABLE};

/// A script that puts the rules in force in one step, whatever of ours was there before.
pub fn script(ruleset: &Ruleset) -> String {
    let mut out = String::new();
    if let Some(routing) = &ruleset.routing {
        aside(&mut out, &routing_commands(routing.mark, routing.v6));
    }
    // The first line is for where there is no such table yet.
    let _ = writeln!(out, "table inet {TABLE}\ndelete table inet {TABLE}");
    out.push_str(&table(&ruleset.chains));
    out
}

/// A script that takes the table away.
pub fn remove(ruleset: &Ruleset) -> String {
    let mut out = format!("table inet {TABLE}\ndelete table inet {TABLE}\n");
    if let Some(routing) = &ruleset.routing {
        aside(&mut out, &routing_removal(routing.v6));
    }
    out
}

/// What `nft -f` cannot do, as comments.
fn aside(out: &mut String, commands: &[String]) {
    out.push_str("# besides, by hand:\n");
    for line in commands {
        let _ = writeln!(out, "#   {line}");
    }
}

/// The commands of `ip` for policy routing.
pub fn routing_commands(mark: u32, v6: bool) -> Vec<String> {
    let of = |ip: &&str| {
        [
            format!("{ip} route add local default dev lo table {mark} proto {PROTOCOL}"),
            format!("{ip} rule add fwmark {mark:#x} lookup {mark} pref {mark} protocol {PROTOCOL}"),
        ]
    };
    programs(v6).iter().flat_map(of).collect()
}

/// Those that take all of ours away.
pub fn routing_removal(v6: bool) -> Vec<String> {
    let of = |ip: &&str| {
        [format!("{ip} rule flush protocol {PROTOCOL}"), format!("{ip} route flush table all proto {PROTOCOL}")]
    };
    programs(v6).iter().flat_map(of).collect()
}

fn programs(v6: bool) -> &'static [&'static str] {
    if v6 { &["ip", "ip -6"] } else { &["ip"] }
}

/// The table.
pub fn table(chains: &[Chain]) -> String {
    let mut out = format!("table inet {TABLE} {{\n");
    for (at, chain) in chains.iter().enumerate() {
        let blank = if at == 0 { "" } else { "\n" };
        let _ = writeln!(out, "{blank}\tchain {} {{", chain.name);
        if let Some(base) = &chain.base {
            let _ = writeln!(out, "\t\t{}; policy accept;", self::base(base));
        }
        for rule in &chain.rules {
            let _ = writeln!(out, "\t\t{}", self::rule(rule));
        }
        out.push_str("\t}\n");
    }
    out.push_str("}\n");
    out
}

fn base(base: &Base) -> String {
    let kind = match base.kind {
        Kind::Nat => "nat",
        Kind::Filter => "filter",
        Kind::Route => "route",
    };
    let hook = match base.hook {
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Output => "output",
    };
    format!("type {kind} hook {hook} priority {}", base.priority)
}

/// One rule.
pub fn rule(rule: &Rule) -> String {
    let mut words: Vec<String> = Vec::new();
    let udp = rule.matches.contains(&Match::Udp);
    words.extend(rule.matches.iter().map(|found| looks_at(found, udp)));
    words.extend(rule.actions.iter().map(action));
    if !rule.why.is_empty() {
        words.push(format!("comment \"{}\"", rule.why));
    }
    words.join(" ")
}

fn looks_at(found: &Match, udp: bool) -> String {
    let ip = |family: Family| if family == Family::V4 { "ip" } else { "ip6" };
    match found {
        Match::Family(Family::V4) => "meta nfproto ipv4".into(),
        Match::Family(Family::V6) => "meta nfproto ipv6".into(),
        Match::Tcp => "meta l4proto tcp".into(),
        Match::Udp => "meta l4proto udp".into(),
        Match::Opening => "tcp flags & (fin|syn|rst|ack) == syn".into(),
        Match::Opened => "tcp flags & (fin|syn|rst|ack) != syn".into(),
        Match::Port(range) => {
            let protocol = if udp { "udp" } else { "tcp" };
            let (first, last) = (range.start(), range.end());
            if first == last { format!("{protocol} dport {first}") } else { format!("{protocol} dport {first}-{last}") }
        }
        Match::Destination(net) => format!("{} daddr {}", ip(Family::of(net)), short(net)),
        Match::Source(net) => format!("{} saddr {}", ip(Family::of(net)), short(net)),
        Match::ToHere => "fib daddr type local".into(),
        Match::User(uid) => format!("meta skuid {uid}"),
        Match::Group(gid) => format!("meta skgid {gid}"),
        Match::ControlGroup { level, path, .. } => format!("socket cgroupv2 level {level} \"{path}\""),
        Match::In(name) => format!("iifname \"{name}\""),
        Match::Out(name) => format!("oifname \"{name}\""),
        Match::Dscp(family, code) => format!("{} dscp {code:#04x}", ip(*family)),
        Match::Transparent => "socket transparent 1".into(),
        Match::Translated => "ct status dnat".into(),
        Match::Original => "ct direction original".into(),
        Match::Reply => "ct direction reply".into(),
        Match::ConnectionMark(mark) => format!("ct mark {mark:#010x}"),
    }
}

/// A network, or the address where it is only one.
pub fn short(net: &ipnet::IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

fn action(action: &Action) -> String {
    match action {
        Action::Return => "return".into(),
        Action::Goto(chain) => format!("goto {chain}"),
        Action::Redirect(port) => format!("redirect to :{port}"),
        Action::Tproxy(port) => format!("tproxy to :{port}"),
        Action::Mark(mark) => format!("meta mark set {mark:#010x}"),
        Action::MarkConnection(mark) => format!("ct mark set {mark:#010x}"),
        Action::Accept => "accept".into(),
        Action::Drop => "drop".into(),
    }
}
