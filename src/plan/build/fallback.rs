//! Fallbacks and mirrors: the peers that they name must be there and take requests.

use std::sync::Arc;

use super::Parts;
use super::routes::{answer, peer_named};
use crate::config::Config;
use crate::config::fallback as said;
use crate::config::kind::Set;
use crate::config::problem::Problems;
use crate::config::split::Mirror as SaidMirror;
use crate::ids::PeerName;
use crate::plan::fallback::{Fallback, Instead, StaleRule};
use crate::plan::peer::PeerPlan;
use crate::plan::route::Mirror;

/// A fallback as planned; whether its peer is there is looked at once all are known.
pub fn fallback(set: Option<&Set<said::StandIn>>, problems: &mut Problems) -> Option<Arc<Fallback>> {
    let set = set?;
    let given = [set.peer.is_some(), set.respond.is_some(), set.stale.is_some()];
    let given = given.into_iter().filter(|given| *given).count();
    if given != 1 {
        set.refuse(problems, format!("expected exactly one of `peer`, `respond` and `stale`, found {given}"));
    }
    let peer = set.peer.as_ref().map(|name| Instead::Peer(PeerName::new(&name.value.0)));
    let respond = || set.respond.as_ref().map(|respond| Instead::Respond(answer(respond, problems)));
    let stale = set.stale.as_ref().map(|stale| {
        let size = usize::try_from(stale.size.0).unwrap_or(usize::MAX);
        Instead::Stale(StaleRule { time: stale.time.0, size })
    });
    let to = peer.or(stale).or_else(respond)?;
    Some(Arc::new(Fallback { to, statuses: set.statuses.0.iter().map(|status| status.value.0).collect() }))
}

/// Looks at the peers that fallbacks name, once all are known.
pub fn check(config: &Config, parts: &mut Parts<'_>) {
    let inbound = config.inbound.iter().flat_map(|inbound| &inbound.routes.0);
    for set in inbound.filter_map(|route| route.fallback.as_ref()) {
        if let Some(peer) = &set.peer {
            peer.refuse(parts.problems, "what comes in goes to the service: no peer can stand in for it");
        }
    }
    for (name, peer) in &config.peers.0 {
        let routes = peer.routes.0.iter().filter_map(|route| route.fallback.as_ref());
        for set in peer.fallback.iter().chain(routes) {
            named(name, set, config, parts);
        }
    }
}

fn named(of: &str, set: &Set<said::StandIn>, config: &Config, parts: &mut Parts<'_>) {
    let Some(to) = &set.peer else { return };
    if peer_named(&to.value.0, to, &parts.peers, parts.problems).is_none() {
        return;
    }
    if to.value.0 == of {
        to.refuse(parts.problems, "a peer cannot stand in for itself");
        return;
    }
    let Some((_, other)) = config.peers.0.iter().find(|(name, _)| *name == to.value.0) else { return };
    if let Some(onward) = other.fallback.as_ref().and_then(|onward| onward.peer.as_ref()) {
        let end = if onward.value.0 == of { "and leads back here: " } else { "" };
        let text =
            format!("`{}` has a fallback of its own, {end}it is not used, as none is for a fallback", to.value.0);
        to.warn(parts.problems, text);
    }
}

/// A mirror as planned.
pub fn mirror(set: &Set<SaidMirror>, peers: &[PeerPlan], problems: &mut Problems) -> Option<Mirror> {
    let name = set.peer.as_ref()?;
    let peer = peer_named(&name.value.0, name, peers, problems)?;
    if set.share.value.0 == 0 {
        set.share.warn(problems, "mirrors nothing");
    }
    Some(Mirror { peer, share: set.share.value.0 })
}
