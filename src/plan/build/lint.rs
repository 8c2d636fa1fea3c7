//! What is allowed and probably not meant: rules that can match nothing, doors that stand too open.

use crate::config::Config;
use crate::config::collect::{OneOrMore, OrOff};
use crate::config::kind::Set;
use crate::config::limits::{Rate, RateKey};
use crate::config::listener::{Limits, Otherwise, Protocol};
use crate::config::peer::Peer;
use crate::config::problem::Problems;
use crate::config::retry::Retry;
use crate::config::route::Route;

/// Reports it as warnings.
pub fn lint(config: &Config, asks_identity: bool, problems: &mut Problems) {
    if config.inbound.is_none() && config.peers.0.is_empty() {
        problems.warning("", None, "neither `inbound` nor `peers`: this sidecar only forwards what it does not know");
    }
    priorities(config, problems);
    per_identity(config, asks_identity, problems);
    // What is captured comes to the doors by whatever address or port it was going to.
    let captured = config.redirect.is_some();
    if !captured {
        app_in_the_open(config, problems);
    }
    open_proxy(config, problems);
    super::dns::lint(config, problems);
    for (_, peer) in &config.peers.0 {
        if captured {
            only_at_a_sidecars_port(config, peer, problems);
        } else {
            opaque_without_port(peer, problems);
        }
        port_in_the_open(peer, problems);
        hosts(peer, captured, problems);
        weights(peer, problems);
        one_source(config, peer, problems);
        retries(&peer.retry, problems);
        peer.routes.0.iter().filter_map(|route| route.retry.as_ref()).for_each(|retry| retries(retry, problems));
    }
}

/// Retries that multiply from hop to hop, and such as no budget ever allows.
fn retries(set: &Set<OrOff<Retry>>, problems: &mut Problems) {
    let Some(retry) = set.0.as_ref().filter(|retry| retry.attempts.0 > 1) else { return };
    let (attempts, share) = (retry.attempts.0, retry.budget.share.0);
    if share == 0 && retry.budget.floor.0 == 0 {
        retry.budget.warn(problems, "allows no retry at all: `retry: off` says so in fewer words");
    }
    if attempts > 3 {
        let three = attempts.pow(3);
        let text =
            format!("retries multiply: where each of three hops makes {attempts} attempts, the last gets {three}");
        retry.attempts.warn(problems, text);
    }
    if share > 500_000 {
        retry.budget.warn(problems, "lets a failing peer be asked half as much again, and more, at each hop");
    }
}

/// Where no limit in flight can be reached, a priority is never asked for.
fn priorities(config: &Config, problems: &mut Problems) {
    let door = |limits: &Limits| limits.in_flight.0.is_some() || limits.adaptive.0.is_some();
    let peer = |peer: &Set<Peer>| peer.breaker.in_flight.0.is_some() || peer.breaker.adaptive.0.is_some();
    let inbound = config.inbound.iter().filter(|inbound| !door(&inbound.limits));
    for priority in inbound.flat_map(|inbound| &inbound.routes.0).filter_map(|route| route.priority.as_ref()) {
        priority.warn(problems, "means nothing: `inbound.limits` has neither `in-flight` nor `adaptive`");
    }
    if door(&config.outbound.limits) || config.peers.0.iter().any(|(_, one)| peer(one)) {
        return;
    }
    let routes = config.peers.0.iter().flat_map(|(_, peer)| &peer.routes.0);
    for priority in routes.filter_map(|route| route.priority.as_ref()) {
        let text = "means nothing: neither `outbound.limits` nor a peer's `breaker` has `in-flight` or `adaptive`";
        priority.warn(problems, text);
    }
}

/// Where nobody proves who they are, a rate of each identity is one rate for all. The callers of an outbound door are this
/// service.
fn per_identity(config: &Config, asks_identity: bool, problems: &mut Problems) {
    let by_identity = |problems: &mut Problems, limits: Option<&Set<OneOrMore<Rate>>>, why: &str| {
        let pers = limits.into_iter().flat_map(|rates| &rates.0).filter_map(|rate| rate.per.as_ref());
        for per in pers.filter(|per| per.value == RateKey::Identity) {
            per.warn(problems, format!("is one rate for all: {why}"));
        }
    };
    if let Some(inbound) = config.inbound.as_ref().filter(|_| !asks_identity) {
        let why = "without mutual TLS (`identity`, and not `inbound.mtls: off`) no caller has one";
        by_identity(problems, inbound.limits.rate.as_ref(), why);
        inbound.routes.0.iter().for_each(|route| by_identity(problems, rate_of(route), why));
    }
    let why = "whoever calls through an outbound door is this service";
    by_identity(problems, config.outbound.limits.rate.as_ref(), why);
    let routes = config.peers.0.iter().flat_map(|(_, peer)| &peer.routes.0);
    routes.for_each(|route| by_identity(problems, rate_of(route), why));
}

fn rate_of(route: &Route) -> Option<&Set<OneOrMore<Rate>>> {
    route.limits.as_ref().and_then(|limits| limits.rate.as_ref())
}

fn app_in_the_open(config: &Config, problems: &mut Problems) {
    let Some(inbound) = &config.inbound else { return };
    for app in inbound.app.iter().chain(inbound.ports.0.iter().filter_map(|port| port.app.as_ref())) {
        if !app.value.0.is_local() {
            app.warn(problems, "is not loopback: others can reach the service there, past this sidecar");
        }
    }
}

fn open_proxy(config: &Config, problems: &mut Problems) {
    let outbound = &config.outbound;
    let Some(otherwise) = &outbound.otherwise else { return };
    let open = outbound.listen.0.iter().find(|listen| !listen.0.is_local());
    match (otherwise.value, open) {
        (Otherwise::Pass, Some(listen)) => {
            let text =
                format!("`{}` is not loopback: whoever reaches it can use this sidecar as an open proxy", listen.0);
            otherwise.warn(problems, text);
        }
        (Otherwise::Deny, _) if !outbound.allow.0.is_empty() => {
            outbound.allow.warn(problems, "matches nothing while `otherwise` is `deny`: only peers are called");
        }
        _ => {}
    }
}

fn opaque_without_port(peer: &Set<Peer>, problems: &mut Problems) {
    if peer.protocol.value == Protocol::Tcp && peer.listen.is_none() {
        let text = "`tcp` without a `listen` of its own: the shared outbound port reaches it by CONNECT only";
        peer.protocol.warn(problems, text);
    }
}

/// The port at which a sidecar takes what is for its service, unless its file says otherwise.
const SIDECAR: u16 = 15006;

/// A service dials the port of the other one, which is nobody's where the addresses have that of its sidecar.
fn only_at_a_sidecars_port(config: &Config, peer: &Set<Peer>, problems: &mut Problems) {
    let outbound = config.redirect.as_ref().is_some_and(|redirect| redirect.outbound.0.is_some());
    let meshed = peer.mtls.as_ref().is_some_and(|mtls| mtls.value.0.is_some());
    if !outbound || config.dns.listen.is_some() || !meshed || peer.protocol.value != Protocol::Tcp {
        return;
    }
    let fixed = peer.fixed.iter().flat_map(|list| &list.0).filter_map(|endpoint| endpoint.address.as_ref());
    let fixed = fixed.filter_map(|address| Some(address.value.0.tcp()?.port()));
    let mut ports = fixed.chain(peer.dns.iter().map(|name| name.value.0.1)).peekable();
    if ports.peek().is_some() && ports.all(|port| port == SIDECAR) {
        let text = "only who dials a sidecar's port reaches it, as that is all its addresses have: other ports there are \
                    refused (`address_refused`); list those that the service dials, or have it ask the DNS door (`dns.listen`)";
        peer.protocol.warn(problems, text);
    }
}

fn port_in_the_open(peer: &Set<Peer>, problems: &mut Problems) {
    for listen in peer.listen.iter().flat_map(|listen| &listen.0).filter(|listen| !listen.0.is_local()) {
        listen.warn(problems, "is not loopback: whoever reaches it reaches this peer as if they were this service");
    }
}

/// A host with a port beside the same host without one changes nothing.
fn hosts(peer: &Set<Peer>, captured: bool, problems: &mut Problems) {
    let Some(hosts) = &peer.hosts else { return };
    for host in &hosts.0 {
        let (name, port) = &host.value.0;
        if port.is_some() && hosts.0.iter().any(|other| other.value.0 == (name.clone(), None)) {
            host.warn(problems, format!("adds nothing: `{name}` with any port is listed too"));
        }
    }
    if hosts.0.is_empty() && peer.listen.is_none() && !captured {
        hosts.warn(problems, "is empty and there is no `listen`: no request can reach this peer");
    }
}

fn weights(peer: &Set<Peer>, problems: &mut Problems) {
    let Some(list) = &peer.fixed else { return };
    if !list.0.is_empty() && list.0.iter().all(|endpoint| endpoint.weight.0 == 0) {
        list.warn(problems, "every weight is 0: this peer takes no traffic");
    }
}

/// Behind doors that only this machine can reach every caller has the same address.
fn one_source(config: &Config, peer: &Set<Peer>, problems: &mut Problems) {
    let own = peer.listen.iter().flat_map(|listen| &listen.0);
    let local = config.outbound.listen.0.iter().chain(own).all(|listen| listen.0.is_local());
    if let Some(key) = peer.balance.key.as_ref().filter(|key| key.0.is_none() && local) {
        key.warn(problems, "only this machine can call: all requests would go to one endpoint");
    }
}
