//! A captured connection: whether the kernel's rules bring it here, to which door, and where what was dialled leads, by
//! the data path's own decisions.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::decide::tell_door;
use super::{Asking, Explained, Outcome, rules};
use crate::call::Failure;
use crate::config::problem::Problems;
use crate::control::load::Loaded;
use crate::ids::{Addr, Door, PeerName};
use crate::net::here::is_itself;
use crate::plan::build::redirect;
use crate::plan::capture::How;
use crate::plan::door::{DoorPlan, Leads, Otherwise, Protocol};
use crate::plan::peer::{Addresses, EndpointSpec, PeerKind, PeerPlan, PeerSource, ToApp};
use crate::plan::redirect::{Capture as Rules, is_link_local};
use crate::plan::virtual_ips::is_virtual;
use crate::proxy::captured::{self, Bytes, Way};
use crate::reason::Reason;
use crate::upstream::adhoc::default_policy;
use crate::upstream::dialled::outside;

/// Whether the kernel's rules bring the connection to a door, as far as the file tells.
///
/// # Errors
/// The file has nothing of that side captured.
pub(super) fn is_captured(
    loaded: &Loaded,
    asking: &Asking,
    to: SocketAddr,
    said: &mut Explained<'_>,
) -> Result<bool, String> {
    let side = if asking.inbound { Door::Inbound } else { Door::Outbound }.word();
    let none = || {
        format!(
            "{} has no {side} connections captured: give it `redirect`, or leave --dialled away",
            said.places.file()
        )
    };
    let rules = loaded.config.redirect.as_ref().and_then(|_| redirect::capture(&loaded.config, &mut Problems::new("")));
    let rules = rules.ok_or_else(none)?;
    let way = if asking.inbound { &rules.inbound } else { &rules.outbound }.as_ref().ok_or_else(none)?;
    let address = if asking.inbound { asking.address } else { Some(to.ip()) };
    let entry = way.leaves_alone(to.port(), address).map(|entry| format!("redirect.{side}.{entry}"));
    let alone = match before_the_door(&rules, asking.inbound, to) {
        Some((key, text)) => Some((key.to_owned(), text)),
        None => entry.map(|entry| (entry, "leaves it alone: it goes past this sidecar, where it was dialled")),
    };
    if let Some((key, text)) = alone {
        let text = if key.is_empty() { format!("no, {text}") } else { format!("no, `{key}` {text}") };
        if key.is_empty() {
            said.plain("captured", text)
        } else {
            said.keyed("captured", &[key], text)
        }
        said.outcome = Outcome::Uncaptured;
        return Ok(false);
    }
    said.keyed(
        "captured",
        &[format!("redirect.{side}"), "redirect".to_owned()],
        "yes, from all users and interfaces that are not excepted",
    );
    Ok(true)
}

/// What takes the connection before the entries of the file are asked, with the key that says so.
fn before_the_door(rules: &Rules, inbound: bool, to: SocketAddr) -> Option<(&'static str, &'static str)> {
    let asks = |servers: &Vec<ipnet::IpNet>| servers.is_empty() || servers.iter().any(|net| net.contains(&to.ip()));
    match inbound {
        true if rules.own.contains(&to.port()) => {
            Some(("", "it is a port of the sidecar itself: leave --dialled away"))
        }
        false if is_link_local(to.ip()) => Some(("", "a link-local address never is: it goes where it was dialled")),
        false if to.port() == 53 && rules.dns.as_ref().is_some_and(asks) => {
            Some(("redirect.dns", "sends it to the DNS door"))
        }
        _ if to.ip().is_unspecified() => Some(("", "the kernel takes it for loopback, which never is captured")),
        _ if to.ip().is_loopback() => Some(("", "loopback never is: it goes where it was dialled")),
        _ => None,
    }
}

/// The door that it comes to.
///
/// # Errors
/// There is none.
pub(super) fn door<'l>(
    loaded: &'l Loaded,
    inbound: bool,
    to: SocketAddr,
    said: &mut Explained<'_>,
) -> Result<&'l Arc<DoorPlan>, String> {
    let doors = &loaded.plan.doors;
    let capture = loaded.plan.capture.as_ref();
    let found = if inbound {
        capture.and_then(|capture| capture.door(doors, to.port()))
    } else {
        let takes = |door: &DoorPlan| {
            door.listen.tcp().is_some_and(|at| at.is_ipv4() == to.is_ipv4() || at.ip().is_unspecified())
        };
        let shared =
            || doors.iter().filter(|door| capture.and_then(|it| it.at(door)).is_some() && door.side == Door::Outbound);
        shared().find(|door| takes(door)).or_else(|| shared().next())
    };
    let door = found.ok_or_else(|| format!("{} has no door for it", said.places.file()))?;
    let first = || doors.iter().position(|one| one.side == door.side);
    let at = doors.iter().position(|one| Arc::ptr_eq(one, door)).or_else(first);
    tell_door(loaded, at.unwrap_or_default(), door, said);
    if capture.is_some_and(|capture| inbound && capture.inbound == Some(How::Tproxy)) {
        let text = format!("its caller's: the app is called at {} and not on loopback", to.ip());
        said.keyed("address shown", &["redirect.mode".to_owned()], text);
    }
    Ok(door)
}

/// The service at a port that the file does not list.
pub(super) fn app(loaded: &Loaded, to: SocketAddr) -> Option<PeerPlan> {
    let capture = loaded.plan.capture.as_ref()?;
    let addresses = Addresses::Static(vec![EndpointSpec::bare(Addr::Tcp(to))]);
    let to_app = Some(ToApp { from: None });
    let source = PeerSource { addresses, protocol: Protocol::Auto, tls: None, mtls: None, to_app };
    let (name, kind) = (PeerName::new(format!("app:{to}")), PeerKind::App);
    Some(PeerPlan { name, kind, source, policy: capture.app.clone(), routes: capture.routes.clone() })
}

/// Where the address leads by itself, for what is no TLS.
///
/// # Errors
/// It leads nowhere.
pub(super) fn way(loaded: &Loaded, asking: &Asking, to: SocketAddr) -> Result<Way<()>, Failure> {
    way_of(loaded, asking, to, Bytes::Plain)
}

fn way_of(loaded: &Loaded, asking: &Asking, to: SocketAddr, bytes: Bytes) -> Result<Way<()>, Failure> {
    let held = || named(loaded).find(|(_, peer)| holds(asking, peer, to) == Some(true)).map(|(index, _)| (index, ()));
    let on = |peer: &PeerPlan| peer.source.mtls.is_some() && is_on(asking, peer, to.ip());
    let meshed = || named(loaded).find(|(_, peer)| on(peer)).map(|(index, _)| index);
    let way = captured::decide(&loaded.plan, (to, bytes), held, meshed)?;
    if matches!(way, Way::Passed) && is_itself(&Addr::Tcp(to), &loaded.plan.egress) {
        return Err(Failure::new(Reason::Looped, format!("{to} is a listener of this sidecar itself")));
    }
    Ok(way)
}

fn named(loaded: &Loaded) -> impl Iterator<Item = (usize, &PeerPlan)> {
    loaded.plan.peers.iter().enumerate().filter(|(_, peer)| peer.kind == PeerKind::Named)
}

/// Whether the peer has an endpoint there; `None` where only a running sidecar can tell.
fn holds(asking: &Asking, peer: &PeerPlan, to: SocketAddr) -> Option<bool> {
    match (&asking.living, &peer.source.addresses) {
        (Some(living), _) => Some(living.has(peer.name.as_str(), &to.to_string())),
        (None, Addresses::Static(specs)) => Some(specs.iter().any(|spec| spec.addr.tcp() == Some(to))),
        (None, _) => None,
    }
}

/// Whether the peer is known to have an endpoint at this IP address.
fn is_on(asking: &Asking, peer: &PeerPlan, host: IpAddr) -> bool {
    let same = |addr: SocketAddr| addr.ip().to_canonical() == host.to_canonical();
    match (&asking.living, &peer.source.addresses) {
        (Some(living), _) => living.addresses(peer.name.as_str()).any(same),
        (None, Addresses::Static(specs)) => specs.iter().filter_map(|spec| spec.addr.tcp()).any(same),
        (None, _) => false,
    }
}

/// Bytes that nobody looks into, or TLS for this server name: where they lead, and how whom they lead to is called.
pub(super) fn bytes<'l>(
    loaded: &'l Loaded,
    asking: &Asking,
    (to, sni): (SocketAddr, Option<&str>),
    mut said: Explained<'l>,
) -> Explained<'l> {
    let way = way_of(loaded, asking, to, if sni.is_some() { Bytes::Tls } else { Bytes::Plain });
    let binds = declared(loaded, &way) == Some(Protocol::Tcp);
    let by_name = sni.filter(|_| !binds).and_then(|sni| captured::by_server_name(&loaded.plan, sni, to.port()));
    let peer = by_name.and_then(|index| Some((index, loaded.plan.peers.get(index)?)));
    if let (Some(sni), Some((index, peer))) = (sni, peer) {
        let key = format!("{}.hosts", rules::section(loaded, peer));
        said.keyed("peer", &[key, rules::section(loaded, peer)], format!("{}, by the server name `{sni}`", peer.name));
        elsewhere(loaded, asking, index, to, &mut said);
        said = tunnelled(said);
        rules::source(loaded, peer, &mut said);
        rules::policy(loaded, peer, &peer.policy, None, &mut said);
        return said;
    }
    if let Some(sni) = sni {
        let why =
            if binds { "is not looked at: `protocol: tcp` binds" } else { "is no peer's: what was dialled decides" };
        said.plain("server name", format!("`{sni}` {why}"));
    }
    if way.is_ok() {
        said = tunnelled(said);
    }
    match tell_way(loaded, asking, to, way, &mut said) {
        Ok(None) => said,
        Ok(Some(peer)) => {
            rules::source(loaded, peer, &mut said);
            rules::policy(loaded, peer, &peer.policy, None, &mut said);
            said
        }
        Err(failure) => {
            said.plain("shown as", "a reset of the connection");
            said.refused(&failure)
        }
    }
}

fn tunnelled(mut said: Explained<'_>) -> Explained<'_> {
    said.plain("tunnel", "the bytes are passed on as they come: no route and no retry can see requests in them");
    said.outcome = Outcome::Tunnelled;
    said
}

/// What the peer that an address leads to is declared to speak.
pub(super) fn declared(loaded: &Loaded, way: &Result<Way<()>, Failure>) -> Option<Protocol> {
    let Ok(Way::Peer(index) | Way::Endpoint(index, ())) = way else { return None };
    Some(loaded.plan.peers.get(*index)?.source.protocol)
}

/// Tells of the way and how whom it leads to is called; gives the peer whose routes hold, if it is one.
///
/// # Errors
/// It leads nowhere.
pub(super) fn tell_way<'l>(
    loaded: &'l Loaded,
    asking: &Asking,
    to: SocketAddr,
    way: Result<Way<()>, Failure>,
    said: &mut Explained<'_>,
) -> Result<Option<&'l PeerPlan>, Failure> {
    let peer = |index: usize| loaded.plan.peers.get(index);
    let section = |peer: &PeerPlan| rules::section(loaded, peer);
    match way {
        Ok(Way::Peer(index)) => {
            let Some(peer) = peer(index) else { return Ok(None) };
            let host = loaded.plan.virtual_ips.name(to.ip()).unwrap_or_default();
            said.keyed("peer", &[section(peer)], format!("{}: {to} stands for its host `{host}`", peer.name));
            Ok(Some(peer))
        }
        Ok(Way::Endpoint(index, ())) => {
            let Some(peer) = peer(index) else { return Ok(None) };
            unknown(loaded, asking, to, index, said);
            let keys = [format!("{}.static", section(peer)), section(peer)];
            said.keyed("peer", &keys, format!("{}, which has an endpoint at {to}", peer.name));
            said.plain(
                "endpoint",
                format!("{to} and no other, past the routes: it was dialled under no name that a peer has"),
            );
            rules::spoken(loaded, peer, said);
            rules::policy(loaded, peer, &peer.policy, None, said);
            Ok(None)
        }
        Ok(Way::Passed) => {
            unknown(loaded, asking, to, usize::MAX, said);
            nobodys(loaded, to, said);
            said.plain("endpoint", format!("{to} itself, as it is"));
            rules::plain_policy(&outside(&default_policy()), said);
            Ok(None)
        }
        Err(failure) => {
            if failure.reason == Reason::NoRoute && !is_virtual(to.ip()) {
                unknown(loaded, asking, to, usize::MAX, said);
                nobodys(loaded, to, said);
            }
            Err(failure)
        }
    }
}

fn nobodys(loaded: &Loaded, to: SocketAddr, said: &mut Explained<'_>) {
    let pass = loaded.plan.capture.as_ref().is_some_and(|capture| capture.otherwise == Otherwise::Pass);
    let otherwise = if pass { "pass" } else { "deny" };
    let text = format!("none has an endpoint at {to}, so `otherwise` decides: {otherwise}");
    said.keyed("peer", &["outbound.otherwise".to_owned()], text);
}

/// Says whose endpoints are not known here, of the peers that would come before.
fn unknown(loaded: &Loaded, asking: &Asking, to: SocketAddr, before: usize, said: &mut Explained<'_>) {
    let earlier = named(loaded).filter(|(index, peer)| *index < before && holds(asking, peer, to).is_none());
    let names: Vec<_> = earlier.map(|(_, peer)| peer.name.as_str()).collect();
    if !names.is_empty() {
        let text = format!(
            "where {} can be found now: if there, it is theirs; --admin asks the sidecar that runs",
            names.join(", ")
        );
        said.plain("not known", text);
    }
}

/// Says that the address is none of the peer's that a name led to.
pub(super) fn elsewhere(loaded: &Loaded, asking: &Asking, index: usize, to: SocketAddr, said: &mut Explained<'_>) {
    let virtual_peer = loaded.plan.virtual_peer(to);
    let there = match (virtual_peer, loaded.plan.peers.get(index)) {
        (Some(other), _) => Some(other == index),
        (None, Some(peer)) => holds(asking, peer, to),
        (None, None) => None,
    };
    if there == Some(false) {
        said.plain(
            "dialled",
            format!(
                "{to}, which is none of its endpoints: the name counts; `host_ip_mismatch=true` in the access line"
            ),
        );
    }
}

/// The peer of an inbound door.
pub(super) fn behind<'p>(loaded: &'p Loaded, door: &DoorPlan, made: Option<&'p PeerPlan>) -> Option<&'p PeerPlan> {
    match door.leads {
        Leads::Peer(index) => loaded.plan.peers.get(index),
        Leads::Dialled => made,
        Leads::ByAuthority => None,
    }
}
