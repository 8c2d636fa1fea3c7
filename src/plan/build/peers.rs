//! The named peers: one source each, hosts that belong to one peer only, and how they are called.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::{Content, Parts};
use crate::config::Config;
use crate::config::collect::{List, OrNone, twice};
use crate::config::peer::{self, ClientTls, Endpoint, Peer, PeerTimeout};
use crate::config::problem::Problems;
use crate::config::section::Set;
use crate::config::tree::Mark;
use crate::config::units::Timer;
use crate::ids::{Addr, PeerName};
use crate::plan::peer::{
    Addresses, Balance, ClientTlsPlan, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource, Roots,
};

/// All of them, in the order of the file.
pub fn peers(config: &Config, parts: &mut Parts<'_>) {
    let mut taken: HashMap<(String, Option<u16>), (Arc<str>, Option<Mark>)> = HashMap::new();
    let mut names: HashMap<String, Arc<str>> = HashMap::new();
    for (name, peer) in &config.peers.0 {
        reserved(name, peer, &mut names, parts.problems);
        let source = PeerSource {
            addresses: addresses(name, peer, parts),
            protocol: super::doors::protocol(peer.protocol.value),
            tls: peer.tls.as_ref().and_then(|tls| tls_plan(tls, parts)),
        };
        connect_before_request(&peer.timeout.connect, &peer.timeout.request, parts.problems);
        let at = parts.peers.len();
        for host in peer.hosts.iter().flat_map(|hosts| &hosts.0) {
            let (text, port) = &host.value.0;
            let own = (Arc::clone(&peer.path), host.origin.at().or(peer.origin.at()));
            match taken.get(&(text.clone(), *port)) {
                Some((other, place)) if *other != peer.path => {
                    let line = place.map_or_else(String::new, |at| format!(" (line {})", at.line));
                    let text = format!("the host `{text}` belongs to {other} already{line}; a host means one peer");
                    parts.problems.error(&host.path, own.1, text, None);
                }
                _ => {
                    parts.routes.add(text, *port, at);
                    taken.insert((text.clone(), *port), own);
                }
            }
        }
        let (name, kind, policy) = (PeerName::new(name), PeerKind::Named, Arc::new(policy(peer)));
        parts.peers.push(PeerPlan { name, kind, source, policy });
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
    let said: Vec<(&str, Arc<str>, Option<Mark>)> = [
        peer.dns.as_ref().map(|set| ("dns", &set.path, set.origin.at())),
        peer.srv.as_ref().map(|set| ("srv", &set.path, set.origin.at())),
        peer.file.as_ref().map(|set| ("file", &set.path, set.origin.at())),
        peer.fixed.as_ref().map(|set| ("static", &set.path, set.origin.at())),
    ]
    .into_iter()
    .flatten()
    .map(|(key, path, at)| (key, Arc::clone(path), at))
    .collect();
    if let [(first, ..), rest @ ..] = said.as_slice() {
        for (_, path, at) in rest {
            let text = format!("a peer has one source, and `{first}` is given already: remove one");
            parts.problems.error(path, *at, text, None);
        }
    }
    match peer {
        _ if peer.dns.is_some() => peer.dns.as_ref().map(|dns| {
            let (host, port) = dns.value.0.clone();
            Addresses::Dns { host, port }
        }),
        _ if peer.srv.is_some() => peer.srv.as_ref().map(|srv| Addresses::Srv { name: srv.value.0.clone() }),
        _ if peer.file.is_some() => peer
            .file
            .as_ref()
            .map(|file| Addresses::File { path: parts.file(file, Content::Endpoints(PeerName::new(name))) }),
        _ => peer.fixed.as_ref().map(|list| Addresses::Static(fixed(list, parts.problems))),
    }
    .unwrap_or_else(|| Addresses::Static(Vec::new()))
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
        priority: 0,
        zone: said.zone.as_ref().map(|zone| zone.value.0.as_str().into()),
        identity: said.identity.as_ref().map(|id| id.value.0.as_str().into()),
        metadata: said.metadata.as_ref().map(|pairs| Arc::new(pairs.value.0.iter().cloned().collect())),
    })
}

fn tls_plan(tls: &Set<ClientTls>, parts: &mut Parts<'_>) -> Option<ClientTlsPlan> {
    let roots = match &tls.roots.value.0 {
        None => Roots::System,
        Some(file) => {
            let (key, at) = (Arc::clone(&tls.roots.path), tls.roots.origin.at());
            Roots::File(parts.file_at(file, key, at, Content::Certificates))
        }
    };
    let Some(sni) = &tls.sni else {
        let text = "is missing: expected the DNS name that the certificate proves; only `dns` and `srv` give one";
        parts.problems.error(format_args!("{}.sni", tls.path), tls.origin.at(), text, None);
        return None;
    };
    Some(ClientTlsPlan { roots, sni: sni.value.0.trim_end_matches('.').to_ascii_lowercase() })
}

fn policy(peer: &Peer) -> PeerPolicy {
    let timeout: &PeerTimeout = &peer.timeout;
    PeerPolicy {
        balance: match peer.balance.value {
            peer::Balance::PeakEwma => Balance::PeakEwma,
            peer::Balance::LeastRequest => Balance::LeastRequest,
            peer::Balance::RoundRobin => Balance::RoundRobin,
            peer::Balance::Random => Balance::Random,
        },
        connect_timeout: timeout.connect.0,
        request_timeout: timeout.request.0.map(|timer| timer.0),
        body_idle: timeout.idle.0,
        tunnel_idle: timeout.tunnel.0,
        keep_alive: timeout.keep_alive.0,
    }
}

/// A connection that may take longer than the whole request is a mistake in one of the two.
pub fn connect_before_request(connect: &Set<Timer>, request: &Set<OrNone<Timer>>, problems: &mut Problems) {
    let Some(Timer(all)) = request.value.0 else { return };
    let Timer(Duration { .. }) = connect.value;
    if connect.value.0 > all {
        let said = if connect.is_default() { request.origin.at() } else { connect.origin.at() };
        let text = "must not be longer than `request`, the time for the whole";
        problems.error(&connect.path, said, text, None);
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
