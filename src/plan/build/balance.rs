//! Which endpoint takes a request: the balance of a peer, what its requests stick by, and the subsets that routes name.

use std::sync::Arc;

use crate::config::collect::Pairs;
use crate::config::kind::Set;
use crate::config::listener::Protocol;
use crate::config::peer::{self as said, Balancing, Peer};
use crate::config::problem::Problems;
use crate::config::split::Otherwise;
use crate::plan::peer::{Addresses, Affinity, Balance, EndpointSpec, PeerPlan, PeerPolicy};
use crate::plan::rules::{Share, SubsetFallback, SubsetRule};

/// A policy with the balance that the file asks for.
pub fn balanced(peer: &Set<Peer>, policy: PeerPolicy, problems: &mut Problems) -> PeerPolicy {
    let set = &peer.balance;
    let balance = match set.by.value {
        said::Balance::PeakEwma => Balance::PeakEwma,
        said::Balance::LeastRequest => Balance::LeastRequest,
        said::Balance::RoundRobin => Balance::RoundRobin,
        said::Balance::Random => Balance::Random,
        said::Balance::RingHash => Balance::RingHash,
        said::Balance::Maglev => Balance::Maglev,
    };
    if balance.goes_by_key() {
        by_key(peer, balance, problems);
    } else {
        without_key(set, balance, problems);
    }
    let bounded_load = set.bounded.0.map(|most| Share::percent(u32::try_from(most.0).unwrap_or(u32::MAX)));
    PeerPolicy { balance, affinity: affinity(set, problems), bounded_load, ..policy }
}

fn by_key(peer: &Peer, balance: Balance, problems: &mut Problems) {
    let (set, word) = (&peer.balance, balance.word());
    match &set.key {
        None => set.refuse(
            problems,
            format!("`{word}` needs to know what requests stick by: `{{ by: {word}, key: {{ header: x-user }} }}`"),
        ),
        Some(key) if key.0.is_some() && peer.protocol.value == Protocol::Tcp => {
            key.refuse(problems, "`tcp` has no fields: `source` is all that its connections can stick by");
        }
        Some(_) => {}
    }
    if peer.slow_start.0.is_some() {
        let text = format!("means nothing with `{word}`, where a key decides and not a share: remove one");
        peer.slow_start.refuse(problems, text);
    }
}

fn without_key(set: &Set<Balancing>, balance: Balance, problems: &mut Problems) {
    let word = balance.word();
    let text = || format!("means nothing with `{word}`: only `ring-hash` and `maglev` go by a key");
    if let Some(key) = &set.key {
        key.refuse(problems, text());
    }
    if set.bounded.0.is_some() {
        set.bounded.refuse(problems, text());
    }
}

fn affinity(set: &Set<Balancing>, problems: &mut Problems) -> Option<Affinity> {
    let key = set.key.as_ref()?;
    match &key.0 {
        None => Some(Affinity::Source),
        Some(sticky) => super::routes::stuck(key, sticky, problems).map(Affinity::Sticky),
    }
}

/// The rule that `subset` and `otherwise` make.
pub fn subset(wanted: &Option<Set<Pairs>>, otherwise: &Set<Otherwise>, problems: &mut Problems) -> Option<SubsetRule> {
    let Some(set) = wanted else {
        if otherwise.value == Otherwise::Any {
            otherwise.refuse(problems, "means nothing without `subset`: remove it, or say which endpoints");
        }
        return None;
    };
    if set.value.0.is_empty() {
        set.refuse(problems, "expected at least one fact, such as `version: \"2\"`");
    }
    let fallback = match otherwise.value {
        Otherwise::None => SubsetFallback::None,
        Otherwise::Any => SubsetFallback::Any,
    };
    Some(SubsetRule { wanted: set.value.0.iter().cloned().collect(), otherwise: fallback })
}

/// Warns of a subset that no endpoint of a written list belongs to.
pub fn of_nobody(wanted: &Option<Set<Pairs>>, peer: Option<&PeerPlan>, problems: &mut Problems) {
    let (Some(set), Some(peer)) = (wanted, peer) else { return };
    let Addresses::Static(specs) = &peer.source.addresses else { return };
    let has = |spec: &EndpointSpec, (key, value): &(String, String)| {
        spec.metadata.as_ref().is_some_and(|known| known.get(key) == Some(value))
    };
    if !specs.iter().any(|spec| set.value.0.iter().all(|fact| has(spec, fact))) {
        set.warn(problems, format!("matches nothing: no endpoint of peer {} has all of it in its metadata", peer.name));
    }
}

/// Makes a peer prepare a subset; gives the one it prepares.
pub fn prepared(peer: &mut PeerPlan, rule: SubsetRule) -> Arc<SubsetRule> {
    if let Some(known) = peer.policy.subsets.iter().find(|known| ***known == rule) {
        return known.clone();
    }
    let rule = Arc::new(rule);
    Arc::make_mut(&mut peer.policy).subsets.push(rule.clone());
    rule
}
