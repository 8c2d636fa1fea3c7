//! Which addresses an unlisted name may lead to: not this machine, its neighbours on the link, its metadata service, or
//! this proxy itself.
//!
//! Judged at every answer: only addresses that passed become endpoints, and nothing else is dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::door::{Allow, Egress};
use super::virtual_ips::is_virtual;
use crate::ids::Addr;

/// The IPv6 address of the metadata service of one large cloud; unique-local, so no class of addresses covers it.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Judges an address that the unlisted name `host` (in lower case, or the literal itself) resolved to.
///
/// # Errors
/// The word for why it may not be dialled. `outbound.allow` lifts every refusal but that of an own listener.
pub fn judge(addr: SocketAddr, egress: &Egress, host: &str) -> Result<(), &'static str> {
    if is_own(&addr.into(), egress) {
        return Err("an own listener");
    }
    match refusal(addr.ip()) {
        Some(why) if !allowed(addr.ip(), egress, host) => Err(why),
        _ => Ok(()),
    }
}

/// Whether `addr` is one of the proxy's own listeners: the same address or socket, or, for a listener on all addresses,
/// any address of this machine that can be told from the address alone.
pub fn is_own(addr: &Addr, egress: &Egress) -> bool {
    egress.own.iter().any(|own| match (addr, own) {
        (Addr::Unix(addr), Addr::Unix(own)) => addr == own,
        (Addr::Tcp(addr), Addr::Tcp(own)) => {
            let (ip, listens) = (plain(addr.ip()), plain(own.ip()));
            let here = ip.is_loopback() || ip.is_unspecified();
            // Dialling 0.0.0.0 or :: means this machine's loopback.
            let reaches =
                listens == ip || (here && everywhere(*own, ip)) || (ip.is_unspecified() && listens.is_loopback());
            own.port() == addr.port() && reaches
        }
        _ => false,
    })
}

/// Whether `addr` would be an own listener if it were an address of this machine: one on all addresses has its port.
pub fn own_if_here(addr: SocketAddr, egress: &Egress) -> bool {
    let ip = plain(addr.ip());
    egress.own.iter().filter_map(Addr::tcp).any(|own| own.port() == addr.port() && everywhere(own, ip))
}

/// Whether a listener takes what comes to any address of the family of `ip`.
fn everywhere(own: SocketAddr, ip: IpAddr) -> bool {
    let listens = plain(own.ip());
    listens.is_unspecified() && (listens.is_ipv6() || ip.is_ipv4())
}

/// Whether the file lists the address, or a network with it, as one that may be dialled whatever it is.
pub fn is_listed(ip: IpAddr, egress: &Egress) -> bool {
    allowed(ip, egress, "")
}

fn allowed(ip: IpAddr, egress: &Egress, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    egress.allow.iter().any(|entry| match entry {
        Allow::Host(name) => name.strip_suffix('.').unwrap_or(name).eq_ignore_ascii_case(host),
        Allow::Net(net) => net.contains(&ip) || net.contains(&plain(ip)),
    })
}

/// An IPv4 address that is written as an IPv6 one (RFC 4291 §2.5.5) is that IPv4 address.
fn plain(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn refusal(ip: IpAddr) -> Option<&'static str> {
    match plain(ip) {
        // Another sidecar's, or a stranger's answer that wants to look like a peer.
        ip if is_virtual(ip) => Some("a virtual address"),
        IpAddr::V4(ip) => refusal_v4(ip),
        IpAddr::V6(ip) => refusal_v6(ip),
    }
}

fn refusal_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let [first, ..] = ip.octets();
    match () {
        () if ip.is_loopback() => Some("a loopback address"),
        () if ip.is_link_local() => Some("a link-local address"),
        // RFC 791 and RFC 6890: 0.0.0.0/8 is "this network".
        () if first == 0 => Some("an unspecified address"),
        () if ip.is_multicast() => Some("a multicast address"),
        () if ip.is_broadcast() => Some("a broadcast address"),
        () => None,
    }
}

fn refusal_v6(ip: Ipv6Addr) -> Option<&'static str> {
    match () {
        () if ip.is_loopback() => Some("a loopback address"),
        () if ip.is_unspecified() => Some("an unspecified address"),
        () if ip.is_unicast_link_local() => Some("a link-local address"),
        () if ip.is_multicast() => Some("a multicast address"),
        () if ip == METADATA_V6 => Some("a metadata service's address"),
        () => embedded(ip).and_then(refusal_v4),
    }
}

/// The IPv4 address inside a 6to4 (RFC 3056), NAT64 (RFC 6052, RFC 8215) or IPv4-compatible (RFC 4291) one.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let join = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match ip.segments() {
        [0x2002, high, low, ..] => Some(join(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low] => Some(join(high, low)),
        [0, 0, 0, 0, 0, 0, high, low] => Some(join(high, low)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::door::Otherwise;

    fn egress(allow: Vec<Allow>, own: &[&str]) -> Egress {
        let own: Arc<[Addr]> = own.iter().map(|own| own.parse().unwrap()).collect();
        Egress { otherwise: Otherwise::Pass, allow: allow.into(), own }
    }

    #[test]
    fn addresses_of_this_machine_and_its_link_are_refused() {
        let rules = egress(vec![], &[]);
        for (addr, want) in [
            ("93.184.216.34:80", None),
            ("10.0.0.1:80", None),
            ("192.168.1.1:80", None),
            ("[2001:db8::1]:80", None),
            ("[fd12::1]:80", None),
            ("127.0.0.1:80", Some("a loopback address")),
            ("127.255.0.9:80", Some("a loopback address")),
            ("[::1]:80", Some("a loopback address")),
            ("[::ffff:127.0.0.1]:80", Some("a loopback address")),
            ("[::127.0.0.1]:80", Some("a loopback address")),
            ("[2002:7f00:1::]:80", Some("a loopback address")),
            ("[64:ff9b::7f00:1]:80", Some("a loopback address")),
            ("[64:ff9b:1::7f00:1]:80", Some("a loopback address")),
            ("[64:ff9b::a00:1]:80", None),
            ("169.254.169.254:80", Some("a link-local address")),
            ("[::ffff:169.254.169.254]:80", Some("a link-local address")),
            ("[64:ff9b::a9fe:a9fe]:80", Some("a link-local address")),
            ("[2002:a9fe:a9fe::1]:80", Some("a link-local address")),
            ("[fe80::1]:80", Some("a link-local address")),
            ("[febf::1]:80", Some("a link-local address")),
            ("[fec0::1]:80", None),
            ("240.240.1.1:80", Some("a virtual address")),
            ("[2001:2::f0f0:101]:80", Some("a virtual address")),
            ("240.241.1.1:80", None),
            ("[fd00:ec2::254]:80", Some("a metadata service's address")),
            ("0.0.0.0:80", Some("an unspecified address")),
            ("0.1.2.3:80", Some("an unspecified address")),
            ("[::]:80", Some("an unspecified address")),
            ("[::ffff:0.0.0.0]:80", Some("an unspecified address")),
            ("224.0.0.1:80", Some("a multicast address")),
            ("[ff02::1]:80", Some("a multicast address")),
            ("255.255.255.255:80", Some("a broadcast address")),
            ("[::ffff:255.255.255.255]:80", Some("a broadcast address")),
        ] {
            assert_eq!(judge(addr.parse().unwrap(), &rules, "example.test").err(), want, "{addr}");
        }
    }

    #[test]
    fn a_listed_host_or_network_is_allowed() {
        let rules = egress(
            vec![Allow::Host("dev.test".into()), Allow::Net("127.0.0.0/29".parse().unwrap())],
            &["0.0.0.0:15006"],
        );
        for (addr, host, want) in [
            ("127.0.0.1:80", "any.test", true),
            ("[::ffff:127.0.0.1]:80", "any.test", true),
            ("127.0.0.9:80", "any.test", false),
            ("127.0.0.9:80", "dev.test", true),
            ("127.0.0.9:80", "DEV.test.", true),
            ("127.0.0.9:80", "not-dev.test", false),
            ("127.0.0.1:15006", "dev.test", false),
        ] {
            assert_eq!(judge(addr.parse().unwrap(), &rules, host).is_ok(), want, "{addr} {host}");
        }
    }

    #[test]
    fn own_listeners_are_never_dialled() {
        for (own, addr, want) in [
            ("127.0.0.1:15001", "127.0.0.1:15001", true),
            ("127.0.0.1:15001", "127.0.0.1:15002", false),
            ("127.0.0.1:15001", "127.0.0.2:15001", false),
            ("127.0.0.1:15001", "0.0.0.0:15001", true),
            ("127.0.0.1:15001", "[::ffff:127.0.0.1]:15001", true),
            ("[::1]:15001", "[::]:15001", true),
            ("10.0.0.5:15006", "10.0.0.5:15006", true),
            ("0.0.0.0:15006", "127.0.0.9:15006", true),
            ("0.0.0.0:15006", "0.0.0.0:15006", true),
            ("0.0.0.0:15006", "[::1]:15006", false),
            ("0.0.0.0:15006", "10.0.0.9:15006", false),
            ("[::]:15006", "127.0.0.1:15006", true),
            ("[::]:15006", "[::1]:15006", true),
            ("[::]:15006", "[::ffff:127.0.0.1]:15006", true),
            ("[::]:15006", "10.0.0.9:15006", false),
        ] {
            let everything = vec![
                Allow::Net("0.0.0.0/0".parse().unwrap()),
                Allow::Net("::/0".parse().unwrap()),
                Allow::Host("h".into()),
            ];
            let rules = egress(everything, &[own]);
            assert_eq!(judge(addr.parse().unwrap(), &rules, "h").is_err(), want, "{own} {addr}");
        }
    }

    #[test]
    fn other_addresses_of_this_machine_and_sockets_are_own_too() {
        for (own, addr, want) in [
            ("0.0.0.0:15006", "10.0.0.9:15006", true),
            ("0.0.0.0:15006", "[2001:db8::1]:15006", false),
            ("[::]:15006", "10.0.0.9:15006", true),
            ("[::]:15006", "10.0.0.9:80", false),
            ("10.0.0.5:15006", "10.0.0.9:15006", false),
        ] {
            assert_eq!(own_if_here(addr.parse().unwrap(), &egress(vec![], &[own])), want, "{own} {addr}");
        }
        let rules = egress(vec![], &["unix:/run/a"]);
        assert!(is_own(&"unix:/run/a".parse().unwrap(), &rules));
        assert!(!is_own(&"unix:/run/b".parse().unwrap(), &rules));
    }
}
