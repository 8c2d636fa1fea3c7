//! The section `redirect`: what the kernel's rules send to the doors, so that the service need not know of them.

use super::collect::{List, OneOrMore, OrAll, OrOff};
use super::facts::Facts;
use super::kind::{Reader, Scalar, Set, Wrong, words};
use super::problem::Problems;
use super::section::{read_section, section};
use super::tree::{Node, Trail, What};
use super::units::Count;
use super::values::Network;

words! {
    /// How inbound connections are sent to the inbound door.
    Mode {
        /// Their destination is changed; the app sees the sidecar's address, and the sidecar needs no privilege.
        Redirect "redirect";
        /// They stay as they are, so that the app can be shown the caller's address; the sidecar needs CAP_NET_RAW.
        Tproxy "tproxy";
    }
}

words! {
    /// How an app is captured that `run -- APP` starts.
    AppMode {
        /// The first of the others that works here.
        Auto "auto";
        /// By rules of the kernel that match its sockets alone; needs CAP_NET_ADMIN.
        Rules "rules";
        /// By a network namespace of its own.
        Namespace "namespace";
        /// Not: it is told of the outbound door by HTTP_PROXY.
        Proxy "proxy";
        /// Not at all.
        Off "off";
    }
}

section! {
    /// What `outrigger redirect` has the kernel send to the doors; `run` itself sets rules only for an app that it starts.
    Interception {
        /// `redirect`, or `tproxy`: callers keep their address; needs CAP_NET_RAW.
        mode "mode": Set<Mode> = Is("redirect");
        /// The user that the sidecar runs as: what it sends itself is left alone.
        uid "uid": Set<UserId> = Is("1337");
        /// A group whose traffic is left alone as well.
        gid "gid": Option<Set<UserId>> = Unset("1337");
        /// What the service sends, or `off`.
        outbound "outbound": Set<OrOff<OutboundCapture>> = Is("{}");
        /// What the service is sent, or `off`; nothing without an inbound door.
        inbound "inbound": Set<OrOff<InboundCapture>> = Is("{}");
        /// Questions to these name servers, or to `all`, go to the DNS door; or `off`.
        dns "dns": Set<OrOff<OrAll<OneOrMore<Network>>>> = Is("off");
        /// With `tproxy` the mark of packets and the number of their routing table.
        mark "mark": Set<Count<256, 2_147_483_647>> = Is("15006");
        /// How `run -- APP` captures: rules, namespace, proxy, off; auto: what works.
        app "app": Set<AppMode> = Is("auto");
        /// With `rules`: the user that the app runs as; without it, it gets a control group.
        app_uid "app-uid": Option<Set<UserId>> = Unset("1000");
        /// Its group, if that has another number.
        app_gid "app-gid": Option<Set<UserId>> = Unset("1000");
    }
}

section! {
    /// Which outbound connections are sent to the outbound door; loopback and what the sidecar sends never are.
    OutboundCapture {
        /// If anything stands here, only connections for which each of these keys has a match.
        only "only": Set<OutboundPick> = Is("{}");
        /// Connections that match one of these are left alone.
        except "except": Set<OutboundPick> = Is("{}");
    }
}

section! {
    /// Outbound connections.
    OutboundPick {
        /// By the port that is called.
        ports "ports": Set<List<PortRange>> = Is("[]");
        /// By the address that is called.
        networks "networks": Set<List<Network>> = Is("[]");
        /// By the user that calls.
        uids "uids": Set<List<UserId>> = Is("[]");
        /// By the interface they leave through.
        interfaces "interfaces": Set<List<Interface>> = Is("[]");
    }
}

section! {
    /// Which inbound connections are sent to the inbound door; loopback and the sidecar's own ports never are.
    InboundCapture {
        /// If anything stands here, only connections for which each of these keys has a match.
        only "only": Set<InboundPick> = Is("{}");
        /// Connections that match one of these are left alone.
        except "except": Set<InboundPick> = Is("{}");
    }
}

section! {
    /// Inbound connections.
    InboundPick {
        /// By the port that is called.
        ports "ports": Set<List<PortRange>> = Is("[]");
        /// By the caller's address.
        networks "networks": Set<List<Network>> = Is("[]");
        /// By the interface they come through.
        interfaces "interfaces": Set<List<Interface>> = Is("[]");
    }
}

/// What holds where the file has no such section.
pub fn defaults() -> Option<Interception> {
    let (empty, mut problems) = (Node { at: None, what: What::Map(Vec::new()) }, Problems::new(""));
    let mut reader = Reader { facts: &Facts::PLAIN, problems: &mut problems };
    read_section(&empty, &Trail::Root, &mut reader)
}

/// A port, or ports from one to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    /// The first of them, not 0.
    pub first: u16,
    /// The last of them, not less than the first.
    pub last: u16,
}

impl Scalar for PortRange {
    const NAME: &'static str = "ports";

    fn expected() -> String {
        "a port, or a range such as `8000-8999`".into()
    }

    fn pattern() -> String {
        // A single port reaches a validator as a number.
        String::new()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let port = |text: &str| match text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>()) {
            Some(Ok(port)) if port != 0 => Ok(port),
            _ => Err(Wrong::default()),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self { first: port(first)?, last: port(last)? };
        match range.first <= range.last {
            true => Ok(range),
            false => Err(Wrong::meant(format!("{}-{}", range.last, range.first))),
        }
    }

    fn write(&self) -> String {
        if self.first == self.last { self.first.to_string() } else { format!("{}-{}", self.first, self.last) }
    }
}

/// The number of a user or group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserId(pub u32);

impl Scalar for UserId {
    const NAME: &'static str = "id";

    fn expected() -> String {
        "the number of a user or group".into()
    }

    fn pattern() -> String {
        "^[0-9]{1,10}$".into()
    }

    fn range() -> Option<(u64, u64)> {
        // The last number means "no user" to the kernel.
        Some((0, u64::from(u32::MAX) - 1))
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match text.parse() {
            Ok(u32::MAX) => Err(Wrong::default()),
            Ok(id) if text.bytes().all(|b| b.is_ascii_digit()) => Ok(Self(id)),
            _ if text.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                Err(Wrong::because("names are not looked up: `id -u NAME` tells the number"))
            }
            _ => Err(Wrong::default()),
        }
    }

    fn write(&self) -> String {
        self.0.to_string()
    }
}

/// The name of a network interface; `*` at its end stands for any rest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Interface(pub String);

impl Scalar for Interface {
    const NAME: &'static str = "interface";

    fn expected() -> String {
        "the name of an interface such as `eth0` or `docker*`".into()
    }

    fn pattern() -> String {
        r"^[A-Za-z0-9_.:@-]{1,15}\*?$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let name = text.strip_suffix('*').unwrap_or(text);
        // The kernel allows more, but no quotes or blanks are needed in scripts this way.
        let fits = |b: u8| b.is_ascii_alphanumeric() || b"_.:@-".contains(&b);
        match (1..=15).contains(&name.len()) && name.bytes().all(fits) {
            true => Ok(Self(text.to_owned())),
            false => Err(Wrong::default()),
        }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_ids_and_interfaces() {
        let ports = |text| PortRange::parse(text).map(|range| range.write()).map_err(|wrong| wrong.hint);
        for (text, expect) in [
            ("22", Ok("22")),
            ("8000-8999", Ok("8000-8999")),
            ("80-80", Ok("80")),
            ("9-8", Err(Some("8-9"))),
            ("0", Err(None)),
            ("70000", Err(None)),
            ("-5", Err(None)),
            ("+5", Err(None)),
            ("5-", Err(None)),
        ] {
            assert_eq!(ports(text), expect.map(str::to_owned).map_err(|hint| hint.map(str::to_owned)), "{text}");
        }
        for (text, fine) in
            [("0", true), ("1337", true), ("4294967294", true), ("4294967295", false), ("+1", false), ("root", false)]
        {
            assert_eq!(UserId::parse(text).is_ok(), fine, "{text}");
        }
        for (text, fine) in
            [("eth0", true), ("docker*", true), ("*", false), ("", false), ("a b", false), ("abcdefghijklmnop", false)]
        {
            assert_eq!(Interface::parse(text).is_ok(), fine, "{text}");
        }
    }
}
