//! What rules do, in words: from the rules themselves, so that it is true of what is in force too.

use std::fmt::Write;

use super::build::{self, PREFIX};
use super::rules::{Action, Chain, Family, Hook, Match, Rule};
use super::text;
use crate::plan::redirect::DNS_PORT;

/// What these chains do, a line for each thing.
pub fn words(chains: &[Chain]) -> String {
    let mut out = String::new();
    let (v4, v6) = families(chains);
    let families = match (v4, v6) {
        (true, true) => "IPv4 and IPv6",
        (false, true) => "IPv6 alone",
        (_, false) => "IPv4 alone: IPv6 is off here; apply again when that changes",
    };
    let mut line = |name: &str, text: &str| {
        let _ = writeln!(out, "  {name:<11} {text}");
    };
    line("families", families);
    let sent = door(chains, &format!("{PREFIX}out"));
    line(
        "outbound",
        &sent.map_or("not captured".into(), |to| format!("TCP connections that this machine opens go to {to}")),
    );
    let came = door(chains, &format!("{PREFIX}in"));
    line("inbound", &came.map_or("not captured".into(), |to| format!("TCP connections to this machine go to {to}")));
    let dns: Vec<String> = actions(chains, &Action::Redirect(DNS_PORT)).map(servers).collect();
    let mut asked: Vec<&str> = dns.iter().map(String::as_str).collect();
    asked.dedup();
    line(
        "dns",
        &if asked.is_empty() {
            "not captured".to_owned()
        } else {
            format!("questions to {} go to port {DNS_PORT}", asked.join(", "))
        },
    );
    line("left alone", &left_alone(chains));
    if chains.iter().flat_map(|chain| &chain.rules).any(|rule| rule.actions.contains(&Action::Drop)) {
        line("dropped", "what opens a connection that was to go to a door and could not be sent there");
    }
    for chain in chains {
        let listed = chain.rules.iter().filter(|rule| rule.why.contains(".only.") || rule.why.contains(".except."));
        for rule in listed.filter(|_| !build::repeats(chain)) {
            line("", &format!("{}: {}", rule.why, look(rule)));
        }
    }
    out
}

fn families(chains: &[Chain]) -> (bool, bool) {
    let mut all = chains.iter().flat_map(|chain| &chain.rules).filter(|rule| redirects(rule));
    let (mut v4, mut v6) = (false, false);
    all.by_ref().for_each(|rule| {
        let own = |family| rule.matches.contains(&Match::Family(family));
        let either = !own(Family::V4) && !own(Family::V6);
        (v4, v6) = (v4 || either || own(Family::V4), v6 || either || own(Family::V6));
    });
    (v4, v6)
}

fn redirects(rule: &Rule) -> bool {
    rule.actions.iter().any(|action| match action {
        Action::Redirect(port) => *port != DNS_PORT,
        Action::Tproxy(_) => true,
        _ => false,
    })
}

/// Where the chains of this name lead.
fn door(chains: &[Chain], name: &str) -> Option<String> {
    let own = |chain: &&Chain| chain.name == name || chain.name.starts_with(&format!("{name}-"));
    let rules = chains.iter().filter(own).flat_map(|chain| &chain.rules);
    let ports = rules.flat_map(|rule| rule.actions.iter().map(move |action| (rule, action)));
    let said = ports.filter_map(|(rule, action)| {
        let family = rule.matches.iter().find_map(|found| match found {
            Match::Family(Family::V4) => Some(" (IPv4)"),
            Match::Family(Family::V6) => Some(" (IPv6)"),
            _ => None,
        });
        match action {
            Action::Redirect(port) => Some(format!("port {port}{}", family.unwrap_or_default())),
            Action::Tproxy(port) => {
                Some(format!("port {port}{}, their addresses unchanged (TPROXY)", family.unwrap_or_default()))
            }
            _ => None,
        }
    });
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn actions<'c>(chains: &'c [Chain], action: &'c Action) -> impl Iterator<Item = &'c Rule> {
    chains.iter().flat_map(|chain| &chain.rules).filter(move |rule| rule.actions.contains(action))
}

fn servers(rule: &Rule) -> String {
    let server = rule.matches.iter().find_map(|found| match found {
        Match::Destination(net) => Some(text::short(net)),
        Match::Family(Family::V4) => Some("all name servers over IPv4".into()),
        Match::Family(Family::V6) => Some("all name servers over IPv6".into()),
        _ => None,
    });
    server.unwrap_or_else(|| "all name servers".into())
}

fn left_alone(chains: &[Chain]) -> String {
    let output = chains.iter().filter(|chain| chain.base.is_some_and(|base| base.hook == Hook::Output));
    let mut who: Vec<String> = Vec::new();
    for found in
        output.flat_map(|chain| &chain.rules).filter(|rule| !rule.why.contains('.')).flat_map(|rule| &rule.matches)
    {
        let said = match found {
            Match::User(uid) => format!("what user {uid} sends"),
            Match::Group(gid) => format!("what group {gid} sends"),
            _ => continue,
        };
        if !who.contains(&said) {
            who.push(said);
        }
    }
    who.push("loopback".into());
    if chains.iter().flat_map(|chain| &chain.rules).any(|rule| rule.why == build::LINK_LOCAL) {
        who.push("what is sent to link-local addresses (IPv6)".into());
    }
    if chains.iter().any(|chain| chain.base.is_some_and(|base| base.hook == Hook::Prerouting)) {
        who.push("what only passes through this machine".into());
    }
    let own = chains.iter().flat_map(|chain| &chain.rules).filter(|rule| rule.why == "a port of the sidecar");
    let mut ports: Vec<u16> = own
        .flat_map(|rule| &rule.matches)
        .filter_map(|found| if let Match::Port(range) = found { Some(*range.start()) } else { None })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    if !ports.is_empty() {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        who.push(format!("calls to ports {} (the sidecar's own)", ports.join(", ")));
    }
    who.push("connections from before the rules; UDP but for dns".into());
    who.join("; ")
}

/// What a rule looks at, without what all have in common.
fn look(rule: &Rule) -> String {
    let own = Rule {
        matches: rule.matches.iter().filter(|found| **found != Match::Tcp).cloned().collect(),
        actions: Vec::new(),
        why: String::new(),
    };
    text::rule(&own)
}
