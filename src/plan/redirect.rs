//! What the kernel's rules are to send to the doors: the section `redirect` made true, with the doors' ports.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Where captured questions to name servers go.
pub const DNS_PORT: u16 = 15053;

/// Whether connections to it are never captured, because their sockets are bound to an interface: IPv6's addresses of one link.
pub fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip.to_canonical(), IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// What is captured in a network namespace, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// How inbound connections are sent to their door.
    pub mode: Mode,
    /// The user that the sidecar runs as.
    pub uid: u32,
    /// A group whose traffic is left alone as well.
    pub gid: Option<u32>,
    /// What the service sends; `None` leaves it alone.
    pub outbound: Option<Way>,
    /// What the service is sent; `None` leaves it alone.
    pub inbound: Option<Way>,
    /// Ports of the sidecar that others may connect to: never captured.
    pub own: Vec<u16>,
    /// The name servers whose questions are captured, with an empty list those of all; `None` captures none.
    pub dns: Option<Vec<IpNet>>,
    /// The mark of packets and the number of the routing table, with [`Mode::Tproxy`].
    pub mark: u32,
    /// How an app is captured that runs under the sidecar.
    pub app: AppCapture,
}

impl Capture {
    /// Whether the rules let go what a user of a group sends.
    pub fn lets_go(&self, uid: u32, gid: u32) -> bool {
        self.uid == uid || self.gid == Some(gid)
    }

    /// Whom they let go for being the sidecar, in words.
    pub fn sidecar(&self) -> String {
        let group = self.gid.map_or_else(String::new, |gid| format!(" or group {gid}"));
        format!("user {}{group}", self.uid)
    }
}

/// How an app is captured that runs under the sidecar, where the rules for the whole network namespace are not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AppCapture {
    /// By which means.
    pub by: By,
    /// The user that the app runs as, with [`By::Rules`]; `None` gives it a control group of its own instead.
    pub uid: Option<u32>,
    /// The group that it runs as then.
    pub gid: Option<u32>,
}

/// By which means an app is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum By {
    /// The first of the others that this machine allows.
    #[default]
    Auto,
    /// Rules in this network namespace that match the app's sockets alone.
    Rules,
    /// A network namespace of the app's own.
    Namespace,
    /// Nothing is captured: the app is told of the outbound door by `HTTP_PROXY`.
    Proxy,
    /// Not at all.
    Off,
}

/// How inbound connections are sent to the inbound door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By changing their destination.
    Redirect,
    /// As they are.
    Tproxy,
}

/// One direction of what is captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// Where it goes.
    pub door: DoorPorts,
    /// With any entry, what does not match each kind of entry is left alone.
    pub only: Pick,
    /// What matches any entry is left alone.
    pub except: Pick,
}

impl Way {
    /// The entries that leave a connection alone, by the port that is called and the address that counts, as far as that is
    /// known; what user and interface say, only the kernel sees.
    pub fn leaves_alone(&self, port: u16, ip: Option<IpAddr>) -> Option<&'static str> {
        let ports = |pick: &Pick| pick.ports.iter().any(|range| range.contains(&port));
        let networks = |pick: &Pick, ip: IpAddr| pick.networks.iter().any(|net| net.contains(&ip));
        let (only, except) = (&self.only, &self.except);
        match ip.map(|ip| ip.to_canonical()) {
            _ if ports(except) => Some("except.ports"),
            Some(ip) if networks(except, ip) => Some("except.networks"),
            _ if !only.ports.is_empty() && !ports(only) => Some("only.ports"),
            Some(ip) if !only.networks.is_empty() && !networks(only, ip) => Some("only.networks"),
            _ => None,
        }
    }
}

/// The port of a door, for each family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorPorts {
    /// Over IPv4.
    pub v4: u16,
    /// Over IPv6.
    pub v6: u16,
}

/// Connections by what they are; an empty list says nothing about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pick {
    /// The port that is called.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Outbound the address that is called, inbound the caller's.
    pub networks: Vec<IpNet>,
    /// The user that calls; of outbound ones only.
    pub uids: Vec<u32>,
    /// The interface; `*` at the end stands for any rest.
    pub interfaces: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_alone_is_told_by_the_entry() {
        let pick = |ports: &[RangeInclusive<u16>], net: &str| Pick {
            ports: ports.to_vec(),
            networks: net.parse().into_iter().collect(),
            ..Pick::default()
        };
        let door = DoorPorts { v4: 1, v6: 1 };
        let way = Way { door, only: pick(&[1..=99], "10.0.0.0/8"), except: pick(&[22..=23], "10.9.0.0/16") };
        for (port, ip, expect) in [
            (22, Some("10.1.1.1"), Some("except.ports")),
            (24, Some("10.9.1.1"), Some("except.networks")),
            (24, Some("::ffff:10.9.1.1"), Some("except.networks")),
            (100, Some("10.1.1.1"), Some("only.ports")),
            (24, Some("192.0.2.1"), Some("only.networks")),
            (24, Some("10.1.1.1"), None),
            (24, None, None),
        ] {
            assert_eq!(way.leaves_alone(port, ip.map(|ip| ip.parse().unwrap())), expect, "{ip:?}:{port}");
        }
        let all = Way { door, only: Pick::default(), except: Pick::default() };
        assert_eq!(all.leaves_alone(22, None), None);
    }
}
