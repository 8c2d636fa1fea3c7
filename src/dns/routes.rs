//! Leaves out addresses of a family that this machine has no route for, as long as others remain.
//!
//! A container without IPv6 would otherwise balance half of its calls to a dual-stack name into "network unreachable".

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use super::answer::{Family, Found};

/// Drops what cannot be reached from a name that has addresses of both families.
pub fn prefer_reachable(found: &mut Found) {
    keep(found, |family, ips| {
        let probe = probe(family);
        ips.iter().map(|ip| probe.as_ref().is_some_and(|probe| routed(probe, *ip))).collect()
    });
}

/// Whether there is a route to an address.
pub fn is_reachable(ip: IpAddr) -> bool {
    let unspecified = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    probe(unspecified).is_some_and(|probe| routed(&probe, ip))
}

/// `test` says for each address of a list whether there is a route.
fn keep(found: &mut Found, test: impl Fn(IpAddr, &[IpAddr]) -> Vec<bool>) {
    if found.v4.ips().is_empty() || found.v6.ips().is_empty() {
        return;
    }
    let v4 = test(Ipv4Addr::UNSPECIFIED.into(), found.v4.ips());
    let v6 = test(Ipv6Addr::UNSPECIFIED.into(), found.v6.ips());
    if !v4.contains(&true) && !v6.contains(&true) {
        return;
    }
    for (family, routed) in [(&mut found.v4, v4), (&mut found.v6, v6)] {
        if let Family::Known { ips, .. } = family {
            let mut routed = routed.into_iter();
            ips.retain(|_| routed.next().unwrap_or(true));
        }
    }
}

/// A socket of the family; `None` where the machine does not have the family at all.
fn probe(unspecified: IpAddr) -> Option<UdpSocket> {
    UdpSocket::bind(SocketAddr::new(unspecified, 0)).ok()
}

/// Connecting a UDP socket sends nothing, it only looks for a route and a source address.
fn routed(probe: &UdpSocket, ip: IpAddr) -> bool {
    match probe.connect(SocketAddr::new(ip, 9)) {
        Ok(()) => true,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_route_is_kept_unless_nothing_has() {
        for (addresses, without, want) in [
            (&["10.0.0.1", "2001:db8::1"][..], &["2001:db8::1"][..], &["10.0.0.1"][..]),
            (&["10.0.0.1", "2001:db8::1"], &["10.0.0.1"], &["2001:db8::1"]),
            (&["10.0.0.1", "2001:db8::1"], &["10.0.0.1", "2001:db8::1"], &["10.0.0.1", "2001:db8::1"]),
            (&["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], &["10.0.0.1", "10.0.0.2"]),
            (&["2001:db8::1"], &["2001:db8::1"], &["2001:db8::1"]),
            (&["10.0.0.1", "::1", "2001:db8::1"], &["2001:db8::1"], &["10.0.0.1", "::1"]),
        ] {
            let parse = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
            let mut found = Found::known(parse(addresses), None);
            let without = parse(without);
            keep(&mut found, |_, ips| ips.iter().map(|ip| !without.contains(ip)).collect());
            assert_eq!(found.ips().collect::<Vec<_>>(), parse(want), "{addresses:?}");
        }
    }

    #[test]
    fn loopback_has_a_route() {
        let mut found = Found::known(["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()], None);
        prefer_reachable(&mut found);
        assert!(found.v4.ips() == ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    }
}
