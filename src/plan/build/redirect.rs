//! The section `redirect`, together with the doors that the rules lead to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

use ipnet::IpNet;

use crate::config::Config;
use crate::config::collect::{List, OneOrMore, OrAll};
use crate::config::kind::Set;
use crate::config::problem::Problems;
use crate::config::redirect::{self, Interface, PortRange, UserId};
use crate::config::tree::Mark;
use crate::config::values::{Listen, Network};
use crate::plan::redirect::{AppCapture, By, Capture, DNS_PORT, DoorPorts, Mode, Pick, Way};

/// What is to be captured, or what is wrong with it.
pub fn capture(config: &Config, problems: &mut Problems) -> Option<Capture> {
    let unsaid = if config.redirect.is_none() { Some(redirect::defaults()?) } else { None };
    let said = config.redirect.as_ref().map(|said| &said.value).or(unsaid.as_ref())?;
    let outbound = said.outbound.value.0.as_ref().map(|way| {
        let door = door(&config.outbound.listen.0, Reach::Loopback, "outbound.listen", problems);
        door.map(|door| Way { door, only: outbound(&way.only), except: outbound(&way.except) })
    });
    let captured = said.inbound.value.0.as_ref().zip(config.inbound.as_ref());
    let inbound = captured.map(|(way, section)| {
        let door = door(&section.listen.0, Reach::All, "inbound.listen", problems);
        door.map(|door| Way { door, only: inbound(&way.only), except: inbound(&way.except) })
    });
    let capture = Capture {
        mode: match said.mode.value {
            redirect::Mode::Redirect => Mode::Redirect,
            redirect::Mode::Tproxy => Mode::Tproxy,
        },
        uid: said.uid.0,
        gid: said.gid.as_ref().map(|gid| gid.0),
        outbound: sound(outbound)?,
        inbound: sound(inbound)?,
        own: own_ports(config),
        dns: questions(said.dns.value.0.as_ref(), said.dns.origin.at(), config, problems)?,
        mark: u32::try_from(said.mark.0).unwrap_or_default(),
        app: app(said, problems),
    };
    if capture.outbound.is_none() && capture.inbound.is_none() && capture.dns.is_none() {
        let text = "captures nothing: `outbound` is off, and there is nothing inbound or of DNS";
        problems.error("redirect", config.redirect.as_ref().and_then(|said| said.origin.at()), text, None);
        return None;
    }
    Some(capture)
}

/// How an app is captured that `run` starts.
fn app(said: &redirect::Interception, problems: &mut Problems) -> AppCapture {
    let by = match said.app.value {
        redirect::AppMode::Auto => By::Auto,
        redirect::AppMode::Rules => By::Rules,
        redirect::AppMode::Namespace => By::Namespace,
        redirect::AppMode::Proxy => By::Proxy,
        redirect::AppMode::Off => By::Off,
    };
    if matches!(by, By::Rules | By::Namespace) && said.mode.value == redirect::Mode::Tproxy {
        let text = "an app alone cannot be captured with `mode: tproxy`: leave that away, or set `off` and run `outrigger redirect apply`";
        said.app.refuse(problems, text);
    }
    if by == By::Namespace && said.outbound.value.0.is_none() {
        said.app
            .refuse(problems, "nothing leaves a network namespace but what is captured: leave `outbound: off` away");
    }
    let users = [("app-uid", &said.app_uid), ("app-gid", &said.app_gid)];
    for (key, set) in users.into_iter().filter_map(|(key, set)| Some((key, set.as_ref()?))) {
        if !matches!(by, By::Auto | By::Rules) {
            set.refuse(problems, format!("`{key}` is for `app: rules`"));
        } else if said.app_uid.is_none() {
            set.refuse(problems, "`app-gid` needs `app-uid` beside it".to_owned());
        }
    }
    let id = |set: &Option<Set<UserId>>| set.as_ref().map(|id| id.0);
    AppCapture { by, uid: id(&said.app_uid), gid: id(&said.app_gid).or(id(&said.app_uid)) }
}

/// Nothing where a way is wrong, else the way if there is one.
fn sound(way: Option<Option<Way>>) -> Option<Option<Way>> {
    match way {
        None => Some(None),
        Some(way) => way.map(Some),
    }
}

/// From where the kernel leads to a door.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// What leaves goes to the loopback address.
    Loopback,
    /// What comes in goes to the address of its interface.
    All,
}

impl Reach {
    /// Where a listener has to be for what comes over a family.
    fn place(self, v6: bool) -> IpAddr {
        match (self, v6) {
            (Self::Loopback, false) => Ipv4Addr::LOCALHOST.into(),
            (Self::Loopback, true) => Ipv6Addr::LOCALHOST.into(),
            (Self::All, false) => Ipv4Addr::UNSPECIFIED.into(),
            (Self::All, true) => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// Whether a listener is there: `[::]` takes both families.
    fn takes(self, v6: bool, addr: SocketAddr) -> bool {
        let unspecified = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let all = addr.ip() == unspecified || (addr.ip().is_unspecified() && !v6);
        addr.port() != 0 && (all || addr.ip() == self.place(v6))
    }
}

/// The port for each family; what comes over a family that no listener takes ends there, rather than passing the sidecar by.
fn door(listeners: &[Set<Listen>], reach: Reach, key: &str, problems: &mut Problems) -> Option<DoorPorts> {
    let first = listeners.first();
    let port = |v6| {
        let mut there = listeners.iter().filter_map(|listen| listen.0.tcp());
        there.find(|addr| reach.takes(v6, *addr)).map(|addr| addr.port())
    };
    let lacks = |v6, found| {
        let (family, place) = (if v6 { "IPv6" } else { "IPv4" }, SocketAddr::new(reach.place(v6), found));
        format!(
            "takes no connections over {family}: those that are captured reach nobody; add `{place}`, unless {family} is off"
        )
    };
    let (ports, lacking) = match (port(false), port(true)) {
        (Some(v4), Some(v6)) => (DoorPorts { v4, v6 }, None),
        (Some(v4), None) => (DoorPorts { v4, v6: v4 }, Some(lacks(true, v4))),
        (None, Some(v6)) => (DoorPorts { v4: v6, v6 }, Some(lacks(false, v6))),
        (None, None) => {
            let place =
                SocketAddr::new(reach.place(reach == Reach::All), 15006 - 5 * u16::from(reach == Reach::Loopback));
            let text = format!(
                "the rules of `redirect` lead to no listener here: add `{place}`, or another port than 0 there"
            );
            problems.error(key, first.and_then(|first| first.origin.at()), text, None);
            return None;
        }
    };
    // The default knows whether there is IPv6.
    if let (Some(first), Some(text)) = (first.filter(|first| !first.is_default()), lacking) {
        first.warn(problems, text);
    }
    Some(ports)
}

/// The name servers whose questions are captured, with an empty list all of them. Without a DNS door where the kernel
/// leads them the service could look nothing up any more.
fn questions(
    said: Option<&OrAll<OneOrMore<Network>>>,
    at: Option<Mark>,
    config: &Config,
    problems: &mut Problems,
) -> Option<Option<Vec<IpNet>>> {
    let Some(said) = said else { return Some(None) };
    let servers: Vec<IpNet> = said.0.iter().flat_map(|listed| &listed.0).map(|network| network.0.trunc()).collect();
    let listeners: Vec<_> = config.dns.listen.iter().flat_map(|listen| &listen.0).collect();
    let asked = |v6: &bool| servers.is_empty() || servers.iter().any(|net| matches!(net, IpNet::V6(_)) == *v6);
    let doors = [false, true].into_iter().filter(asked).map(|v6| SocketAddr::new(Reach::Loopback.place(v6), DNS_PORT));
    let (there, lacking): (Vec<_>, Vec<_>) = doors.partition(|door| listeners.iter().any(|listen| listen.0 == *door));
    let list = lacking.iter().map(|door| format!("`{door}`")).collect::<Vec<_>>().join(" and ");
    match (there.is_empty(), lacking.first()) {
        (true, Some(_)) => {
            let text = format!("sends questions to the DNS door, and there is none: add {list} to `dns.listen`");
            problems.error("redirect.dns", at, text, None);
            return None;
        }
        (false, Some(door)) => {
            let family = if door.is_ipv4() { "IPv4" } else { "IPv6" };
            let text = format!(
                "takes no questions over {family}: those that `redirect.dns` captures get no answer; add {list}, unless {family} is off"
            );
            config.dns.listen.iter().for_each(|listen| listen.warn(problems, text.clone()));
        }
        (_, None) => {}
    }
    Some(Some(servers))
}

/// Ports at which this sidecar listens for others.
fn own_ports(config: &Config) -> Vec<u16> {
    let inbound = config.inbound.iter().flat_map(|inbound| {
        let more = inbound.ports.0.iter().filter_map(|port| port.listen.as_ref());
        inbound.listen.0.iter().chain(more)
    });
    let peers = config.peers.0.iter().flat_map(|(_, peer)| peer.listen.iter().flat_map(|listen| listen.0.iter()));
    let doors = inbound.chain(&config.outbound.listen.0).chain(peers).filter_map(|listen| listen.0.tcp());
    let status = config.status.0.as_ref().map(|listen| listen.0);
    let mut ports: Vec<u16> = doors
        .chain(status)
        .filter(|addr| !addr.ip().to_canonical().is_loopback() && addr.port() != 0)
        .map(|addr| addr.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn outbound(pick: &redirect::OutboundPick) -> Pick {
    let uids = |list: &List<UserId>| list.0.iter().map(|id| id.0).collect();
    Pick {
        ports: ports(&pick.ports),
        networks: networks(&pick.networks),
        uids: uids(&pick.uids),
        interfaces: interfaces(&pick.interfaces),
    }
}

fn inbound(pick: &redirect::InboundPick) -> Pick {
    Pick {
        ports: ports(&pick.ports),
        networks: networks(&pick.networks),
        uids: Vec::new(),
        interfaces: interfaces(&pick.interfaces),
    }
}

fn ports(list: &List<PortRange>) -> Vec<RangeInclusive<u16>> {
    list.0.iter().map(|range| range.first..=range.last).collect()
}

fn networks(list: &List<Network>) -> Vec<IpNet> {
    list.0.iter().map(|network| network.0.trunc()).collect()
}

fn interfaces(list: &List<Interface>) -> Vec<String> {
    list.0.iter().map(|interface| interface.0.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::facts::Facts;

    /// The ports of both doors, and all that is said.
    fn check(text: &str, ports: Option<[(u16, u16); 2]>, said: &str) {
        let mut problems = Problems::new("FILE");
        let document = crate::config::read(&format!("service: a\n{text}"), &Facts::PLAIN, &|_| None, &mut problems);
        let capture = document.and_then(|document| capture(&document.config, &mut problems));
        let found = capture.map(|capture| {
            [capture.outbound, capture.inbound].map(|way| way.map_or((0, 0), |way| (way.door.v4, way.door.v6)))
        });
        assert_eq!(found, ports, "{text}");
        let listed: Vec<&str> = problems.list().iter().map(|problem| problem.text.as_str()).collect();
        assert!(if said.is_empty() { listed.is_empty() } else { listed.concat().contains(said) }, "{text}: {listed:?}");
    }

    #[test]
    fn doors_are_found_for_each_family() {
        let inbound = |listen: &str| format!("inbound: {{ listen: {listen}, app: '127.0.0.1:80' }}");
        let fine = |inbound| Some([(15001, 15001), inbound]);
        check("", fine((0, 0)), "");
        check(&inbound("'[::]:15006'"), fine((15006, 15006)), "");
        check(&inbound("['0.0.0.0:1', '[::]:2']"), fine((1, 2)), "");
        check(&inbound("'0.0.0.0:1'"), fine((1, 1)), "takes no connections over IPv6");
        check(&inbound("'127.0.0.1:1'"), None, "lead to no listener here: add `[::]:15006`");
        check(&inbound("'[::]:0'"), None, "lead to no listener");
        let outbound = |listen: &str| format!("outbound: {{ listen: {listen}, otherwise: deny }}");
        check(&outbound("'unix:/x'"), None, "add `127.0.0.1:15001`");
        check(&outbound("'127.0.0.2:1'"), None, "lead to no listener");
        check(&outbound("'[::]:7'"), Some([(7, 7), (0, 0)]), "");
        check(&outbound("'[::1]:7'"), Some([(7, 7), (0, 0)]), "takes no connections over IPv4");
        // What is not captured needs no door.
        let dns = "dns: { listen: ['127.0.0.1:15053', '[::1]:15053'] }";
        check(
            &format!("outbound: {{ listen: 'unix:/x' }}\nredirect: {{ outbound: off, dns: all }}\n{dns}"),
            Some([(0, 0), (0, 0)]),
            "",
        );
        check("redirect: { outbound: off }", None, "captures nothing");
    }

    #[test]
    fn captured_questions_need_a_dns_door() {
        let fine = Some([(15001, 15001), (0, 0)]);
        let both = "add `127.0.0.1:15053` and `[::1]:15053` to `dns.listen`";
        for (servers, listen, ports, said) in [
            ("all", "", None, both),
            ("all", "127.0.0.1:53", None, both),
            ("[192.0.2.1]", "'[::1]:15053'", None, "add `127.0.0.1:15053` to `dns.listen`"),
            ("all", "127.0.0.1:15053", fine, "takes no questions over IPv6"),
            ("all", "'[::1]:15053'", fine, "takes no questions over IPv4"),
            ("[192.0.2.1]", "127.0.0.1:15053", fine, ""),
            ("['fd00::53']", "'[::1]:15053'", fine, ""),
            ("off", "", fine, ""),
        ] {
            let door = if listen.is_empty() { String::new() } else { format!("dns: {{ listen: {listen} }}") };
            check(&format!("redirect: {{ dns: {servers} }}\n{door}"), ports, said);
        }
    }

    #[test]
    fn a_file_without_the_section_is_not_judged_by_it() {
        let said = |text: &str| {
            let mut problems = Problems::new("FILE");
            let document = crate::config::read(text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
            crate::plan::build::build(&document.config, std::path::Path::new("/"), &mut problems);
            problems.to_string()
        };
        let explicit = "service: a\npeers: { b: { static: ['127.0.0.1:1'] } }\noutbound: { listen: 'unix:/x' }\n";
        assert_eq!(said(explicit), "");
        assert!(said(&format!("{explicit}redirect: {{ mode: tproxy }}")).contains("lead to no listener"));
    }

    #[test]
    fn an_app_is_captured_by_what_the_file_has() {
        let check = |redirect: &str, expect: Result<AppCapture, &str>| {
            let mut problems = Problems::new("FILE");
            let dns = "dns: { listen: ['127.0.0.1:15053', '[::1]:15053'] }";
            let text = format!("service: a\n{dns}\nredirect: {{ {redirect} }}\n");
            let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
            let found = capture(&document.config, &mut problems);
            match expect {
                Ok(app) => assert_eq!((found.map(|found| found.app), problems.to_string()), (Some(app), String::new())),
                Err(words) => assert!(problems.to_string().contains(words), "{redirect}: {problems}"),
            }
        };
        let app = |by, uid, gid| Ok(AppCapture { by, uid, gid });
        check("", app(By::Auto, None, None));
        check("mode: tproxy", app(By::Auto, None, None));
        check("app: 'off', mode: tproxy", app(By::Off, None, None));
        check("app-uid: 7", app(By::Auto, Some(7), Some(7)));
        check("app: rules, app-uid: 7, app-gid: 8", app(By::Rules, Some(7), Some(8)));
        check("app: rules, mode: tproxy", Err("redirect.app: an app alone cannot be captured with `mode: tproxy`"));
        check("app: namespace, outbound: 'off', dns: all", Err("redirect.app: nothing leaves a network namespace"));
        check("app: namespace, app-uid: 7", Err("redirect.app-uid: `app-uid` is for `app: rules`"));
        check("app-gid: 7", Err("redirect.app-gid: `app-gid` needs `app-uid`"));
        check("app: ruls", Err("did you mean `rules`"));
    }
}
