//! The named peers: one source each, hosts that belong to one peer only, and how they are called.

use std::collections::HashMap;
use std::sync::Arc;

use super::fallback::fallback;
use super::{Content, Parts, retry, standing};
use crate::config::Config;
use crate::config::collect::{List, OrNone, twice};
use crate::config::kind::Set;
use crate::config::peer::{ClientTls, Endpoint, Peer, PeerTimeout};
use crate::config::problem::Problems;
use crate::config::tree::Mark;
use crate::config::units::Timer;
use crate::ids::{Addr, PeerName};
use crate::plan::peer::{
    Addresses, ClientTlsPlan, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource, Roots, Routes,
};
use crate::plan::rules::{Rules, SlowStartRule};

/// All of them, in the order of the file.
pub fn peers(config: &Config, parts: &mut Parts<'_>) {
    let mut hosts = Hosts::default();
    let mut names = HashMap::new();
    for (name, peer) in &config.peers.0 {
        reserved(name, peer, &mut names, parts.problems);
        connect_before_request(&peer.timeout.connect, &peer.timeout.request, parts.problems);
        let attempt = &peer.timeout.attempt;
        retry::attempt_before_request(attempt, (attempt.0, peer.timeout.request.0), parts.problems);
        hosts.add(peer, parts);
        let source = PeerSource {
            addresses: addresses(name, peer, parts),
            protocol: super::doors::protocol(peer.protocol.value),
            tls: peer.tls.as_ref().and_then(|tls| tls_plan(tls, peer, parts)),
            mtls: super::identity::peer(config, name, peer, parts.problems),
            to_app: None,
        };
        let zone = config.zone.as_ref().map(|zone| zone.0.as_str().into());
        let policy = PeerPolicy { zone, ..policy(name, peer, parts.problems) };
        retry::hedge_happens(&peer.hedge, &policy.rules, parts.problems);
        let policy = super::balance::balanced(peer, policy, parts.problems);
        let (name, kind, policy) = (PeerName::new(name), PeerKind::Named, Arc::new(policy));
        parts.peers.push(PeerPlan { name, kind, source, policy, routes: Routes::default() });
    }
}

/// Which peer has which host, and the line that says so.
#[derive(Default)]
struct Hosts(HashMap<(String, Option<u16>), Owner>);

/// A peer's path, and where it claims a host.
type Owner = (Arc<str>, Option<Mark>);

impl Hosts {
    /// Adds the hosts of the peer that is about to be planned.
    fn add(&mut self, peer: &Set<Peer>, parts: &mut Parts<'_>) {
        for host in peer.hosts.iter().flat_map(|hosts| &hosts.0) {
            let (name, port) = &host.value.0;
            let at = host.origin.at().or(peer.origin.at());
            match self.0.get(&(name.clone(), *port)) {
                Some((other, place)) if *other != peer.path => {
                    let line = place.map_or_else(String::new, |at| format!(" (line {})", at.line));
                    let todo = if host.is_default() { ": give `hosts` to one of them" } else { "" };
                    let text =
                        format!("the host `{name}` belongs to {other} already{line}; a host means one peer{todo}");
                    parts.problems.error(&host.path, at, text, None);
                }
                _ => {
                    parts.hosts.add(name, *port, parts.peers.len());
                    self.0.insert((name.clone(), *port), (Arc::clone(&peer.path), at));
                }
            }
        }
    }
}

/// Names that mean something else, and names that only differ in case, which hosts do not.
fn reserved(name: &str, peer: &Set<Peer>, names: &mut HashMap<String, Arc<str>>, problems: &mut Problems) {
    if name == "app" {
        peer.refuse(problems, "`app` is the name of the service behind the inbound door: choose another");
    }
    if let Some(other) = names.insert(name.to_ascii_lowercase(), Arc::clone(&peer.path)) {
        peer.refuse(problems, format!("differs from {other} only in the case of letters"));
    }
}

fn addresses(name: &str, peer: &Set<Peer>, parts: &mut Parts<'_>) -> Addresses {
    one_source(peer, parts.problems);
    if let Some(dns) = &peer.dns {
        let (host, port) = dns.value.0.clone();
        return Addresses::Dns { host, port };
    }
    if let Some(srv) = &peer.srv {
        return Addresses::Srv { name: srv.value.0.clone() };
    }
    if let Some(file) = &peer.file {
        return Addresses::File { path: parts.file(file, Content::Endpoints(PeerName::new(name))) };
    }
    Addresses::Static(peer.fixed.as_ref().map(|list| fixed(list, parts.problems)).unwrap_or_default())
}

/// Reports a peer with several sources, or with none.
fn one_source(peer: &Set<Peer>, problems: &mut Problems) {
    fn said<T>(key: &'static str, set: &Option<Set<T>>) -> Option<(&'static str, Arc<str>, Option<Mark>)> {
        set.as_ref().map(|set| (key, Arc::clone(&set.path), set.origin.at()))
    }
    let all = [said("dns", &peer.dns), said("srv", &peer.srv), said("file", &peer.file), said("static", &peer.fixed)];
    let mut given = all.into_iter().flatten();
    let Some((first, ..)) = given.next() else {
        if !["dns", "srv", "file", "static"].iter().any(|key| problems.mention(&peer.path, key)) {
            peer.refuse(problems, "does not say where it is: give one of `dns`, `srv`, `file` or `static`");
        }
        return;
    };
    for (_, path, at) in given {
        problems.error(path, at, format!("a peer has one source, and `{first}` is given already: remove one"), None);
    }
}

fn fixed(list: &Set<List<Endpoint>>, problems: &mut Problems) -> Vec<EndpointSpec> {
    if list.0.is_empty() {
        list.refuse(problems, "expected at least one address, such as `10.0.0.7:9000`");
    }
    endpoints(list, problems)
}

/// The endpoints of a list, each address once.
pub fn endpoints(list: &List<Endpoint>, problems: &mut Problems) -> Vec<EndpointSpec> {
    let address = |endpoint: &Endpoint| endpoint.address.as_ref().map(|address| address.value.0.clone());
    for (first, second) in twice(&list.0, address).into_iter().filter(|(first, _)| first.address.is_some()) {
        let line = first.origin.at().map_or(0, |at| at.line);
        second.refuse(problems, format!("this address is given twice, first in line {line}"));
    }
    list.0.iter().filter_map(|endpoint| spec(endpoint)).collect()
}

fn spec(said: &Endpoint) -> Option<EndpointSpec> {
    Some(EndpointSpec {
        addr: said.address.as_ref()?.value.0.clone(),
        weight: u32::try_from(said.weight.0).unwrap_or(u32::MAX),
        priority: u16::try_from(said.priority.0).unwrap_or(u16::MAX),
        zone: said.zone.as_ref().map(|zone| zone.value.0.as_str().into()),
        identity: said.identity.as_ref().map(|id| id.value.0.clone()),
        metadata: said.metadata.as_ref().map(|pairs| Arc::new(pairs.value.0.iter().cloned().collect())),
    })
}

fn tls_plan(tls: &Set<ClientTls>, peer: &Set<Peer>, parts: &mut Parts<'_>) -> Option<ClientTlsPlan> {
    let roots = match &tls.roots.value.0 {
        None => Roots::System,
        Some(file) => {
            let (key, at) = (Arc::clone(&tls.roots.path), tls.roots.origin.at());
            Roots::File(parts.file_at(file, key, at, Content::Certificates))
        }
    };
    let Some(sni) = &tls.sni else {
        if parts.problems.mention(&tls.path, "sni") || (peer.fixed.is_none() && peer.file.is_none()) {
            return None;
        }
        let text = "is missing: expected the DNS name that the certificate proves; only `dns` and `srv` give one";
        parts.problems.error(format_args!("{}.sni", tls.path), tls.origin.at(), text, None);
        return None;
    };
    Some(ClientTlsPlan { roots, sni: sni.value.0.trim_end_matches('.').to_ascii_lowercase() })
}

fn policy(name: &str, peer: &Peer, problems: &mut Problems) -> PeerPolicy {
    let timeout: &PeerTimeout = &peer.timeout;
    let mut rules = Rules::default();
    super::limits::breaker(&peer.breaker, &mut rules, problems);
    PeerPolicy {
        connection_age: peer.connection_age.0.map(|age| age.0),
        connect_timeout: timeout.connect.0,
        request_timeout: timeout.request.0.map(|timer| timer.0),
        body_idle: timeout.idle.0,
        tunnel_idle: timeout.tunnel.0,
        keep_alive: timeout.keep_alive.0,
        fallback: fallback(peer.fallback.as_ref(), problems),
        rules: Rules {
            retry: retry::rule(&peer.retry, timeout.attempt.0.map(|timer| timer.0), problems),
            hedge: retry::hedge(&peer.hedge),
            slow_start: peer.slow_start.0.map(|over| SlowStartRule::over(over.0)),
            eject: standing::eject(peer, problems),
            ..rules
        },
        health: standing::health(name, peer, problems),
        ..PeerPolicy::default()
    }
}

/// A connection that may take longer than the whole request is a mistake in one of the two.
pub fn connect_before_request(connect: &Set<Timer>, request: &Set<OrNone<Timer>>, problems: &mut Problems) {
    if request.0.is_some_and(|request| connect.0 > request.0) {
        connect.refuse(problems, "must not be longer than `request`, the time for the whole");
    }
}

/// Whether an address reaches a listener of this machine: the same one, or by loopback one that listens everywhere.
pub fn reaches(target: &Addr, own: &Addr) -> bool {
    match (target, own) {
        (Addr::Unix(target), Addr::Unix(own)) => target == own,
        (Addr::Tcp(target), Addr::Tcp(own)) => {
            let (to, at) = (target.ip().to_canonical(), own.ip().to_canonical());
            let everywhere = at.is_unspecified() && (to.is_loopback() || to.is_unspecified());
            target.port() == own.port() && own.port() != 0 && (to == at || everywhere)
        }
        _ => false,
    }
}
