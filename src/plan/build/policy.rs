//! The rules of `inbound.allow` and `inbound.deny`, and what is probably not meant by them.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::HeaderName;

use super::routes::text_match;
use crate::config::Config;
use crate::config::collect::{Named, OneOrMore};
use crate::config::jwt::Claims;
use crate::config::kind::Set;
use crate::config::listener::{Inbound, Protocol};
use crate::config::policy::{AccessRule, Authorization, PathRange};
use crate::config::problem::Problems;
use crate::config::route::TextMatch as SaidText;
use crate::config::values::field_name;
use crate::ids::Door;
use crate::plan::claims::ClaimRule;
use crate::plan::door::{DoorPlan, Mtls};
use crate::plan::host::HostRule;
use crate::plan::jwt::{JwtPlan, Place};
use crate::plan::matching::TextMatch;
use crate::plan::path::ambiguity;
use crate::plan::policy::{PathRule, Policy, Rule};
use crate::plan::route::Line;

/// The rules as the file says them.
pub fn policy(config: &Config, problems: &mut Problems) -> Policy {
    let Some(inbound) = &config.inbound else { return Policy::default() };
    let mut rules = |set| said(set).iter().map(|set| rule(set, problems)).collect();
    Policy {
        deny: rules(&inbound.deny),
        allow: rules(&inbound.allow),
        probes: inbound
            .probes
            .0
            .iter()
            .filter_map(|probe| probe.value.path.as_ref())
            .map(|path| path.value.0.clone())
            .collect(),
        audit: inbound.authorization.value == Authorization::Audit,
    }
}

/// The fields by which rules and tokens judge a request's head. An audit changes nothing.
pub fn judged_fields(policy: &Policy, jwt: Option<&JwtPlan>) -> Option<Arc<[HeaderName]>> {
    let of_rules = policy.deny.iter().chain(&policy.allow).flat_map(|rule| &rule.headers).map(|(name, _)| name);
    let of_tokens = jwt.into_iter().flat_map(|jwt| &jwt.issuers).filter_map(|issuer| match &issuer.place {
        Place::Header(name) => Some(name),
        Place::Cookie(_) | Place::Query(_) => None,
    });
    let all: BTreeSet<&str> = of_rules.chain(of_tokens).map(HeaderName::as_str).collect();
    let all: Arc<[_]> = all.into_iter().filter_map(field_name).collect();
    (!all.is_empty() && !policy.audit).then_some(all)
}

type Rules = Option<Set<OneOrMore<AccessRule>>>;

fn said(set: &Rules) -> &[Set<AccessRule>] {
    set.as_ref().map_or(&[], |set| &set.0)
}

fn each<T, U>(set: &Option<Set<OneOrMore<T>>>, one: impl FnMut(&Set<T>) -> U) -> Vec<U> {
    set.iter().flat_map(|set| &set.0).map(one).collect()
}

fn rule(set: &Set<AccessRule>, problems: &mut Problems) -> Rule {
    Rule {
        name: set.path.clone(),
        line: Line(set.origin.at().map_or(0, |at| at.line)),
        from: each(&set.from, |id| id.value.0.clone()),
        addresses: each(&set.addresses, |net| net.value.0),
        ports: each(&set.ports, |port| u16::try_from(port.value.0).unwrap_or(u16::MAX)),
        methods: each(&set.methods, |method| method.value.0.clone()),
        paths: each(&set.paths, |path| path_rule(path, problems)),
        hosts: each(&set.hosts, |host| HostRule::new(&host.value.0.0, host.value.0.1)),
        headers: fields(&set.headers, problems),
        claims: claims(&set.claims, problems),
    }
}

fn path_rule(set: &Set<PathRange>, problems: &mut Problems) -> PathRule {
    let PathRange { path, below } = &set.value;
    let whole = format!("{path}{}", if *below { "/" } else { "" });
    if let Some(why) = ambiguity(&whole) {
        set.refuse(problems, format!("means nothing: it has {why}, and requests for such paths are refused"));
    }
    PathRule { path: path.clone(), below: *below }
}

fn fields(set: &Option<Set<Named<SaidText>>>, problems: &mut Problems) -> Vec<(http::HeaderName, TextMatch)> {
    let all = set.iter().flat_map(|named| &named.0);
    all.filter_map(|(name, text)| Some((field_name(name)?, text_match(text, problems)?))).collect()
}

fn claims(set: &Option<Set<Claims>>, problems: &mut Problems) -> Vec<ClaimRule> {
    let all = set.iter().flat_map(|named| &named.0);
    all.map(|(name, texts)| ClaimRule {
        name: name.clone(),
        texts: texts.0.iter().filter_map(|text| text_match(text, problems)).collect(),
    })
    .collect()
}

/// What rules can learn at the inbound doors.
pub struct Doors {
    /// Whether any of them learns who calls.
    pub identities: bool,
    /// Whether connections to any port may come to them.
    pub captured: bool,
    /// How one that has an identity can come without, if it can.
    pub evaded: Option<Evaded>,
}

/// How a caller keeps its identity to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evaded {
    /// It leaves TLS away.
    Plaintext,
    /// Its TLS is handed through.
    Passthrough,
}

impl Doors {
    /// What these doors let rules learn.
    pub fn of(doors: &[Arc<DoorPlan>], captured: bool) -> Self {
        let inbound = || doors.iter().filter(|door| door.side == Door::Inbound);
        let evaded = match () {
            () if inbound().any(|door| door.mtls != Mtls::Strict) => Some(Evaded::Plaintext),
            () if inbound().any(|door| door.passes_all || !door.passthrough.is_empty()) => Some(Evaded::Passthrough),
            () => None,
        };
        Self { identities: super::asks_identity(doors), captured, evaded }
    }
}

/// Warns of rules that can mean nothing.
pub fn lint(inbound: &Inbound, policy: &Policy, doors: &Doors, problems: &mut Problems) {
    let (deny, allow) = (said(&inbound.deny), said(&inbound.allow));
    if policy.audit && policy.is_empty() && inbound.jwt.0.is_empty() {
        inbound.authorization.warn(problems, "there is nothing to audit: neither `allow` nor `deny` has a rule");
    }
    let ports: Vec<u16> = listens(inbound);
    for set in deny.iter().chain(allow) {
        if let Some(from) = set.from.as_ref().filter(|_| !doors.identities) {
            from.warn(problems, "matches nobody: a caller in plaintext has no identity");
        }
        for port in set.ports.iter().flat_map(|ports| &ports.0) {
            // Port 0 is any that the system chooses.
            if !doors.captured && !ports.contains(&0) && !ports.iter().any(|own| u64::from(*own) == port.value.0) {
                port.warn(problems, "matches nothing: no inbound port is listed with this number");
            }
        }
    }
    if inbound.jwt.0.is_empty() {
        lint_claims(deny, allow, policy, problems);
    }
    denials(deny, allow, doors, problems);
    for (set, rule) in allow.iter().zip(&policy.allow) {
        if let Some(before) = policy.deny.iter().find(|deny| deny.covers(rule)) {
            let text = format!("allows nothing: `{}` (line {}) denies all of it", before.name, before.line.0);
            set.warn(problems, text);
        } else if rule.needs_request() && !speaks_http(inbound) {
            set.warn(problems, "allows nothing: the ports speak `tcp`, which has no requests to look at");
        }
    }
}

/// Warns of claims where nobody has any: a rule that denies may ask just for that.
fn lint_claims(deny: &[Set<AccessRule>], allow: &[Set<AccessRule>], policy: &Policy, problems: &mut Problems) {
    let denied = deny.iter().zip(policy.deny.iter().map(Rule::means_who_has_no_claim));
    for (set, all) in denied.chain(allow.iter().map(|set| (set, false))) {
        let Some(claims) = &set.claims else { continue };
        let whom = if all { "everybody" } else { "nobody" };
        claims.warn(problems, format!("matches {whom}: without `inbound.jwt` no token is believed"));
    }
}

/// Warns of rules that deny less, or more, than they seem to.
fn denials(deny: &[Set<AccessRule>], allow: &[Set<AccessRule>], doors: &Doors, problems: &mut Problems) {
    // Where each rule that allows asks who it is, nobody is let in as nobody.
    let nobody_passes = allow.is_empty() || allow.iter().any(|set| set.from.is_none());
    let evaded = match doors.evaded.filter(|_| doors.identities && nobody_passes) {
        None => None,
        Some(Evaded::Plaintext) => Some(
            "is evaded by leaving TLS away, as callers in plaintext are nobody: say `mtls: strict`, or in `allow` who may \
             come",
        ),
        Some(Evaded::Passthrough) => Some(
            "is evaded by TLS that is passed through (`passthrough`), whose callers are nobody: say in `allow` who may come",
        ),
    };
    for set in deny {
        if let (Some(from), Some(text)) = (&set.from, evaded) {
            from.warn(problems, text);
        }
        for host in set.hosts.iter().flat_map(|hosts| &hosts.0).filter(|host| host.value.0.1.is_some()) {
            let text = "its port is not looked at: it is the caller's word, so `deny` means the host with any; `ports` \
                        are those that were connected to";
            host.warn(problems, text);
        }
    }
}

/// The inbound ports, 0 for one that the system chooses.
pub fn listens(inbound: &Inbound) -> Vec<u16> {
    let own = inbound.listen.0.iter().filter(|_| inbound.app.is_some());
    let more = inbound.ports.0.iter().filter_map(|port| port.listen.as_ref());
    own.chain(more).filter_map(|listen| Some(listen.value.0.tcp()?.port())).collect()
}

fn speaks_http(inbound: &Inbound) -> bool {
    let own = inbound.app.is_some() && inbound.protocol.value != Protocol::Tcp;
    own || inbound.ports.0.iter().any(|port| port.protocol.value != Protocol::Tcp)
}
