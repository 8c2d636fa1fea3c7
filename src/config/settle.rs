//! Defaults that follow from other keys: `otherwise` from where the door listens, `hosts` and `sni` from the peer's
//! name, `connect` from a shorter `request`.

use super::Config;
use super::collect::{List, OrNone};
use super::kind::Set;
use super::listener::Otherwise;
use super::peer::Peer;
use super::units::Timer;
use super::values::{DnsName, HostEntry, is_host, plain};

/// Fills in what the file leaves to follow from the rest.
pub fn settle(config: &mut Config) {
    let outbound = &mut config.outbound.value;
    if outbound.otherwise.is_none() {
        let local = outbound.listen.0.iter().all(|listen| listen.0.is_local());
        let word = if local { Otherwise::Pass } else { Otherwise::Deny };
        outbound.otherwise = Some(Set::derived(word, "outbound.otherwise"));
    }
    for (name, peer) in &mut config.peers.value.0 {
        let path = peer.path.to_string();
        hosts(name, &mut peer.value, &path);
        server_name(&mut peer.value, &path);
        if let Some(eject) = &mut peer.value.eject.value.0 {
            eject.settle(&format!("{path}.eject"));
        }
        if let Some(health) = peer.value.health.as_mut().and_then(|health| health.value.0.as_mut()) {
            health.settle();
        }
        connect(&mut peer.value.timeout.value.connect, &peer.value.timeout.value.request);
    }
    if let Some(inbound) = &mut config.inbound {
        let timeout = &mut inbound.value.timeout.value;
        connect(&mut timeout.connect, &timeout.request);
    }
}

/// Nobody who shortens `request` should have to shorten the default of `connect` too.
fn connect(connect: &mut Set<Timer>, request: &Set<OrNone<Timer>>) {
    if let Some(request) = request.value.0
        && connect.is_default()
    {
        connect.value = connect.value.min(request);
    }
}

fn hosts(name: &str, peer: &mut Peer, path: &str) {
    if peer.hosts.is_some() {
        return;
    }
    let dns = peer.dns.as_ref().map(|dns| plain(&dns.0.0));
    let mut hosts: Vec<String> = Some(plain(name)).filter(|name| is_host(name)).into_iter().chain(dns).collect();
    hosts.dedup();
    let entry = |host| Set::derived(HostEntry((host, None)), format_args!("{path}.hosts"));
    let list = List(hosts.into_iter().map(entry).collect());
    peer.hosts = Some(Set::derived(list, format_args!("{path}.hosts")));
}

fn server_name(peer: &mut Peer, path: &str) {
    let Some(tls) = peer.tls.as_mut().map(|tls| &mut tls.value) else { return };
    if tls.sni.is_some() {
        return;
    }
    // RFC 6186 and 4985: what a certificate behind SRV records proves is the domain, not the target.
    let domain = |srv: &str| srv.split('.').skip_while(|label| label.starts_with('_')).collect::<Vec<_>>().join(".");
    let name = match (&peer.dns, &peer.srv) {
        (Some(dns), _) => plain(&dns.0.0),
        (None, Some(srv)) => plain(&domain(&srv.0)),
        (None, None) => return,
    };
    if is_host(&name) {
        tls.sni = Some(Set::derived(DnsName(name), format_args!("{path}.tls.sni")));
    }
}
