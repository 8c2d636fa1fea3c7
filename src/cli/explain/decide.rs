//! The way of a request through the plan, step by step, with the code that the corridor itself asks.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Uri};

use super::rules::{self, percent};
use super::{Asking, Explained, Outcome, dialled, sender, tokens};
use crate::call::Failure;
use crate::config::units::Share;
use crate::config::values::plain;
use crate::control::load::Loaded;
use crate::http::authority::Authority;
use crate::http::head::Facts;
use crate::ids::Door;
use crate::plan::Plan;
use crate::plan::door::{DoorPlan, Leads, Mtls, Otherwise, Protocol};
use crate::plan::egress::judge;
use crate::plan::matching::Asked;
use crate::plan::peer::{PeerKind, PeerPlan};
use crate::plan::policy::{Facts as Who, Ports, Verdict};
use crate::plan::route::{self as planned, NewPath, Route, Split, Sticky};
use crate::plan::rules::Priority;
use crate::proxy::bounds;
use crate::proxy::connection::TLS_AT_PLAIN_DOOR;
use crate::proxy::policy;
use crate::proxy::route::Taken;
use crate::proxy::target::unlisted;
use crate::reason::Reason;
use crate::upstream::adhoc::default_policy;

/// Decides what becomes of the request, or of the connection.
///
/// # Errors
/// There is no door that it could come through.
pub(super) fn decide<'l>(loaded: &'l Loaded, asking: &Asking) -> Result<Explained<'l>, String> {
    let mut said = Explained::new(&loaded.places);
    let door = match asking.dialled {
        Some(to) if !dialled::is_captured(loaded, asking, to, &mut said)? => return Ok(said),
        Some(to) => dialled::door(loaded, asking.inbound, to, &mut said)?,
        None => door(loaded, asking, &mut said)?,
    };
    let tls = asking.scheme() == Some("https");
    if let (Door::Outbound, Some(to)) = (door.side, asking.dialled) {
        let declared = dialled::declared(loaded, &dialled::way(loaded, asking, to));
        if asking.url.is_none() || tls || declared == Some(Protocol::Tcp) {
            let sni = asking.url.as_ref().filter(|_| tls).and_then(Uri::host).map(plain);
            return Ok(dialled::bytes(loaded, asking, (to, sni.as_deref()), said));
        }
    }
    let made = asking.dialled.and_then(|to| dialled::app(loaded, to));
    let single = dialled::behind(loaded, door, made.as_ref());
    if let Some(peer) = single
        && (door.protocol == Protocol::Tcp || asking.url.is_none() || (tls && door.tls.is_none()))
    {
        return Ok(unseen(loaded, door, peer, asking, said));
    }
    Ok(request(loaded, asking, door, single, said))
}

/// What becomes of a request at a door that looks at it, and that leads to `single` if to one peer alone.
fn request<'l>(
    loaded: &'l Loaded,
    asking: &Asking,
    door: &DoorPlan,
    single: Option<&PeerPlan>,
    mut said: Explained<'l>,
) -> Explained<'l> {
    let mut parts = parts(asking, door);
    let tls = asking.scheme() == Some("https") && door.tls.is_some();
    let facts = match sender::judge(loaded, asking, door, tls, &mut parts) {
        Ok(facts) => facts,
        Err(error) => return said.refused(&Failure::new(error.reason, error.detail)),
    };
    if door.mtls == Mtls::Strict
        && asking.identity.is_none()
        && let Err(failure) = policy::plaintext(&loaded.plan.policy, &parts, &facts, tls)
    {
        return said.refused(&failure);
    }
    sender::tell(loaded, asking, &parts, &mut said);
    let judged = tokens::held(loaded, asking, &parts, &mut said).and_then(|held| {
        let verdict = policy::judge(&loaded.plan.policy, &who(loaded, asking, door), &parts, &facts, (tls, &held));
        verdict.and_then(|verdict| policy::settled(verdict).map(|()| verdict))
    });
    if let Err(failure) = authorized(loaded, door, judged, &mut said) {
        return said.refused(&failure);
    }
    match door.side {
        Door::Inbound => rules::gate("door limits", "inbound.limits", &loaded.plan.gates.inbound, &mut said),
        Door::Outbound => rules::gate("door limits", "outbound.limits", &loaded.plan.gates.outbound, &mut said),
    }
    if let Some(peer) = single {
        return routed(loaded, peer, parts, &facts, tls, said);
    }
    match by_authority(loaded, &facts.authority, if tls { 443 } else { 80 }, &mut said) {
        Some((index, peer)) => {
            if let Some(to) = asking.dialled {
                dialled::elsewhere(loaded, asking, index, to, &mut said);
            }
            routed(loaded, peer, parts, &facts, tls, said)
        }
        None => match asking.dialled {
            None => nobodys(loaded, &facts.authority, said),
            Some(to) => by_address(loaded, asking, to, (parts, &facts), said),
        },
    }
}

/// A captured request whose host no peer has.
fn by_address<'l>(
    loaded: &'l Loaded,
    asking: &Asking,
    to: SocketAddr,
    (parts, facts): (Parts, &Facts),
    mut said: Explained<'l>,
) -> Explained<'l> {
    said.plain("host", format!("`{}` is no peer's: what was dialled decides", facts.authority.host()));
    let way = dialled::way(loaded, asking, to);
    match dialled::tell_way(loaded, asking, to, way, &mut said) {
        Ok(Some(peer)) => routed(loaded, peer, parts, facts, false, said),
        Ok(None) => said,
        Err(failure) => said.refused(&failure),
    }
}

/// What is known of the caller.
fn who<'a>(loaded: &Loaded, asking: &'a Asking, door: &DoorPlan) -> Who<'a> {
    let app = match door.leads {
        Leads::Peer(index) => loaded.plan.peers.get(index),
        Leads::ByAuthority | Leads::Dialled => None,
    };
    Who {
        identity: asking.identity.as_ref(),
        address: asking.address.map(|ip| ip.to_canonical()),
        ports: Ports::of(door, app, asking.dialled),
        request: None,
    }
}

/// Tells what the rules of the service say.
///
/// # Errors
/// Why it is kept out.
fn authorized(
    loaded: &Loaded,
    door: &DoorPlan,
    judged: Result<Verdict<'_>, Failure>,
    said: &mut Explained<'_>,
) -> Result<(), Failure> {
    let policy = &loaded.plan.policy;
    if door.side == Door::Outbound || (policy.is_empty() && judged.is_ok()) {
        return Ok(());
    }
    let audit = [String::from("inbound.authorization")];
    match judged {
        Ok(Verdict::Allowed(rule)) => {
            said.keyed("authorization", &[rule.name.to_string()], format!("`{}` allows it", rule.name));
        }
        Ok(Verdict::Probe) => said.keyed("authorization", &["inbound.probes".to_owned()], "it is a probe"),
        Ok(_) => said.plain("authorization", "no rule denies it"),
        Err(failure) if policy.audit => {
            said.keyed("authorization", &audit, format!("let in by the audit alone: {}", failure.detail));
        }
        Err(failure) => return Err(failure),
    }
    Ok(())
}

/// The door that the request comes through.
fn door<'l>(loaded: &'l Loaded, asking: &Asking, said: &mut Explained<'_>) -> Result<&'l Arc<DoorPlan>, String> {
    let side = if asking.inbound { Door::Inbound } else { Door::Outbound };
    let mut all = loaded.plan.doors.iter().enumerate().filter(|(_, door)| door.side == side);
    let addressed = |door: &DoorPlan| asking.url.as_ref().is_some_and(|url| addresses(door, url));
    let shared = |door: &DoorPlan| asking.inbound || door.leads == Leads::ByAuthority;
    let found = all.clone().find(|(_, door)| addressed(door)).or_else(|| all.find(|(_, door)| shared(door)));
    let Some((at, door)) = found else {
        let todo = if asking.inbound { "give it `inbound`" } else { "give it `outbound.listen`" };
        return Err(format!("{} has no {} door: {todo}", loaded.places.file(), side.word()));
    };
    tell_door(loaded, at, door, said);
    Ok(door)
}

/// Tells of the door, which has this index in the plan.
pub(super) fn tell_door(loaded: &Loaded, at: usize, door: &DoorPlan, said: &mut Explained<'_>) {
    let key = loaded.door_keys.get(at).map(ToString::to_string).unwrap_or_default();
    let index = key.split('[').next().unwrap_or_default().to_owned();
    said.keyed("door", &[key, index], format!("{} {}", door.side.word(), door.listen));
}

/// Whether a URL names the place where a door listens: an inbound one by its port alone, because callers reach it by
/// whatever address this machine has.
fn addresses(door: &DoorPlan, url: &Uri) -> bool {
    let (Some(listen), Some(host)) = (door.listen.tcp(), url.host()) else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.eq_ignore_ascii_case("localhost") { "127.0.0.1" } else { host };
    url.port_u16() == Some(listen.port()) && (door.side == Door::Inbound || host.parse() == Ok(listen.ip()))
}

/// The request as the door gets it: in absolute-form at the shared outbound one, by CONNECT for https, else in
/// origin-form.
fn parts(asking: &Asking, door: &DoorPlan) -> Parts {
    let mut request = Request::new(());
    let url = asking.url.clone().unwrap_or_default();
    *request.method_mut() = asking.method.clone();
    *request.uri_mut() = url.clone();
    let forwarded = door.leads == Leads::ByAuthority && asking.dialled.is_none() && !addresses(door, &url);
    let authority = url.authority().map(ToString::to_string).unwrap_or_default();
    if forwarded && asking.scheme() == Some("https") {
        let port = if url.port().is_some() { "" } else { ":443" };
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = format!("{authority}{port}").parse().unwrap_or_default();
    } else if !forwarded {
        *request.uri_mut() = url.path_and_query().cloned().map_or(Uri::from_static("/"), Uri::from);
    }
    let headers = request.headers_mut();
    for (name, value) in &asking.fields {
        headers.append(name, value.clone());
    }
    if !headers.contains_key(HOST)
        && let Ok(host) = HeaderValue::from_str(&authority)
    {
        headers.insert(HOST, host);
    }
    request.into_parts().0
}

/// What is not looked at, at a door that leads to one peer.
fn unseen<'l>(
    loaded: &'l Loaded,
    door: &DoorPlan,
    peer: &PeerPlan,
    asking: &Asking,
    mut said: Explained<'l>,
) -> Explained<'l> {
    let sni = asking.url.as_ref().and_then(Uri::host).map(plain).unwrap_or_default();
    let port = who(loaded, asking, door).ports.dialled;
    let is_opaque = matches!(door.protocol, Protocol::Auto | Protocol::Tcp);
    // Nobody notices that captured TLS is carried.
    let ends = door.protocol != Protocol::Tcp && door.mtls == Mtls::Off && !(is_opaque && asking.dialled.is_some());
    if asking.url.is_none() && !is_opaque {
        return said.refused(&Failure::new(Reason::WrongProtocol, "this port speaks HTTP, and these bytes are none"));
    }
    if ends && asking.url.is_some() && door.side == Door::Inbound && !door.passes(&sni, port) {
        return said.refused(&Failure::new(Reason::ClientTlsFailed, TLS_AT_PLAIN_DOOR));
    }
    if door.mtls == Mtls::Strict && asking.identity.is_none() && !door.passes(&sni, port) {
        let detail = "this door takes mutual TLS only (`inbound.mtls: strict`); `--identity` says who calls";
        return said.refused(&Failure::new(Reason::PlaintextRefused, detail));
    }
    let judged = policy::opaque(&loaded.plan.policy, &who(loaded, asking, door));
    if let Err(failure) = authorized(loaded, door, judged, &mut said) {
        return said.refused(&failure);
    }
    said.plain("tunnel", "the bytes are passed on as they come: no route and no retry can see requests in them");
    said.outcome = Outcome::Tunnelled;
    rules::source(loaded, peer, &mut said);
    rules::policy(loaded, peer, &peer.policy, None, &mut said);
    said
}

/// The peer that an authority names, and which of its hosts does.
fn by_authority<'l>(
    loaded: &'l Loaded,
    authority: &Authority,
    default_port: u16,
    said: &mut Explained<'_>,
) -> Option<(usize, &'l PeerPlan)> {
    let (host, port) = (authority.host(), authority.port().unwrap_or(default_port));
    let (index, entry) = loaded.plan.hosts.entry(&host, port)?;
    let peer = loaded.plan.peers.get(index)?;
    let (_, set) = loaded.config.peers.0.iter().find(|(name, _)| *name == peer.name.as_str())?;
    let bare = |name: &str| plain(name.trim_start_matches('[').trim_end_matches(']'));
    let hosts = set.hosts.iter().flat_map(|hosts| &hosts.0);
    let named = hosts.filter(|one| one.value.0.1 == entry && bare(&one.value.0.0) == *host).map(|one| &one.path).next();
    let with = entry.map_or_else(|| "with any port".to_owned(), |port| format!("with port {port}"));
    let keys = [named.map(ToString::to_string).unwrap_or_default(), set.path.to_string()];
    said.keyed("peer", &keys, format!("{}, by its host `{host}` {with}", peer.name));
    Some((index, peer))
}

/// A name that no peer has.
fn nobodys<'l>(loaded: &'l Loaded, authority: &Authority, mut said: Explained<'l>) -> Explained<'l> {
    let (host, egress) = (authority.host(), &loaded.plan.egress);
    let otherwise = if egress.otherwise == Otherwise::Pass { "pass" } else { "deny" };
    let text = format!("none has the host `{host}`, so `otherwise` decides: {otherwise}");
    said.keyed("peer", &["outbound.otherwise".to_owned()], text);
    if let Err(failure) = unlisted(egress, &host) {
        return said.refused(&failure);
    }
    if let Ok(ip) = host.parse()
        && let Err(why) = judge(SocketAddr::new(ip, authority.port().unwrap_or(80)), egress, &host)
    {
        let detail = format!("{host} is {why}; outbound.allow lifts it unless it is an own listener");
        return said.refused(&Failure::new(Reason::AddressRefused, detail));
    }
    let text = format!("`{host}` is looked up when it is called; addresses of this machine and its link are refused");
    said.keyed("endpoints", &["outbound.allow".to_owned()], text);
    rules::plain_policy(&default_policy(), &mut said);
    said
}

/// What the peer's routes make of the request.
fn routed<'l>(
    loaded: &'l Loaded,
    peer: &PeerPlan,
    mut parts: Parts,
    facts: &Facts,
    tls: bool,
    mut said: Explained<'l>,
) -> Explained<'l> {
    if peer.kind == PeerKind::App {
        said.plain("peer", format!("{}, the service itself", peer.name));
    }
    let taken = match Taken::find(&peer.routes, &parts) {
        Ok(taken) => taken,
        Err(failure) => return said.refused(&failure),
    };
    let section = rules::section(loaded, peer);
    passed_over(peer, &section, &parts, taken.as_ref(), &mut said);
    let Some(taken) = taken else {
        worth(None, facts, "", &mut said);
        if !peer.routes.list.is_empty() {
            said.plain("route", "none means it: it goes to its peer as it is");
        }
        if parts.method == Method::CONNECT {
            said.plain("tunnel", "CONNECT opens a tunnel: its bytes are passed on as they come");
            said.outcome = Outcome::Tunnelled;
        }
        rules::source(loaded, peer, &mut said);
        rules::policy(loaded, peer, &peer.policy, None, &mut said);
        return said;
    };
    let at = peer.routes.list.iter().position(|one| Arc::ptr_eq(one, &taken.route)).unwrap_or(0);
    let key = format!("{section}.routes[{at}]");
    said.keyed("route", std::slice::from_ref(&key), format!("`{}` means it", taken.route.name));
    worth(taken.route.priority, facts, &key, &mut said);
    if let Some(gate) = &taken.route.gate {
        rules::gate("route limits", &format!("{key}.limits"), &gate.rule, &mut said);
    }
    faults(&taken.route, &key, &mut said);
    match taken.answer(&parts, &facts.authority, tls) {
        Err(failure) => return said.refused(&failure),
        Ok(Some(answer)) => {
            answered(&answer, &taken.route, &key, &mut said);
            return said;
        }
        Ok(None) => {}
    }
    if let planned::Leads::To(split) = &taken.route.leads {
        shares(&loaded.plan, split, &parts, &key, &mut said);
    }
    if let Err(failure) = rewritten(&taken, &mut parts, &key, &mut said) {
        return said.refused(&failure);
    }
    mirrored(&loaded.plan, &taken.route, &key, &mut said);
    destinations(loaded, peer, &taken.route, &key, &mut said);
    said
}

/// The routes before the one that takes it, each with why it does not.
fn passed_over(peer: &PeerPlan, section: &str, parts: &Parts, taken: Option<&Taken>, said: &mut Explained<'_>) {
    let asked = Asked { method: &parts.method, uri: &parts.uri, headers: &parts.headers };
    let before = peer.routes.list.iter().take_while(|one| taken.is_none_or(|t| !Arc::ptr_eq(one, &t.route)));
    for (n, route) in before.enumerate() {
        let why: Vec<_> =
            route.matches.iter().filter_map(|one| one.miss(&asked)).map(|miss| miss.to_string()).collect();
        let text = format!("`{}` does not mean it: {}", route.name, why.join("; nor: "));
        said.keyed("passed over", &[format!("{section}.routes[{n}]")], text);
    }
}

/// What it is worth where a limit in flight is nearly reached; nothing is said of what is worth as much as most.
fn worth(route: Option<Priority>, facts: &Facts, key: &str, said: &mut Explained<'_>) {
    let priority = bounds::priority(route, facts);
    let text = match priority {
        Priority::Low => "low: four fifths of a limit in flight at most",
        Priority::Normal => "normal",
        Priority::High => "high: the last tenth of each limit in flight is kept for it",
    };
    match route {
        Some(own) if own == priority => said.keyed("priority", &[format!("{key}.priority")], text),
        _ if facts.copied => said.plain("priority", format!("{text}, being a copy")),
        _ if facts.marked => said.plain("priority", format!("{text}, being a further attempt")),
        _ => {}
    }
}

fn mirrored(plan: &Plan, route: &Route, key: &str, said: &mut Explained<'_>) {
    let Some(mirror) = route.mirror else { return };
    let name = plan.peers.get(mirror.peer).map_or("", |peer| peer.name.as_str());
    let part = crate::config::kind::Scalar::write(&Share(mirror.share));
    said.keyed("mirror", &[format!("{key}.mirror")], format!("copies of {part} go to {name}"));
}

fn faults(route: &Route, key: &str, said: &mut Explained<'_>) {
    let Some(fault) = &route.fault else { return };
    let who = match &fault.header {
        Some(name) => format!("of the requests with the field `{name}`"),
        None => "of the requests".to_owned(),
    };
    let delay = fault.delay.map(|delay| format!("waits {} first", rules::time(delay)));
    let abort = fault.abort.map(|status| format!("is answered {} instead of being forwarded", status.as_u16()));
    let what: Vec<_> = delay.into_iter().chain(abort).collect();
    let text = format!("{} {who} {}", crate::config::kind::Scalar::write(&Share(fault.share)), what.join(" and "));
    said.keyed("fault", &[format!("{key}.fault")], text);
}

/// An answer that the file gives.
fn answered(answer: &http::Response<bytes::Bytes>, route: &Route, key: &str, said: &mut Explained<'_>) {
    let status = answer.status().as_u16();
    let location = answer.headers().get(http::header::LOCATION).map(|to| String::from_utf8_lossy(to.as_bytes()));
    let (word, text) = match (&route.leads, location) {
        (planned::Leads::Redirect(_), Some(to)) => ("redirect", format!("{status}, the caller is sent to {to}")),
        _ => ("respond", format!("{status} with {} bytes from the file", answer.body().len())),
    };
    said.keyed("answer", &[format!("{key}.{word}")], text);
    edits("answer fields", &route.response, &format!("{key}.response-headers"), said);
    said.outcome = Outcome::Answered;
}

/// The peers of a split with their shares.
fn shares(plan: &Plan, split: &Split, parts: &Parts, key: &str, said: &mut Explained<'_>) {
    let name = |peer: usize| plan.peers.get(peer).map_or("", |peer| peer.name.as_str());
    let total: u64 = split.to.iter().map(|one| u64::from(one.weight)).sum();
    if split.to.len() > 1 {
        let share = |weight: u32| percent(f64::from(weight) / total.max(1) as f64);
        let each: Vec<_> = split.to.iter().map(|one| format!("{} {}", name(one.peer), share(one.weight))).collect();
        said.keyed("split", &[format!("{key}.split")], each.join(", "));
    }
    let Some(sticky) = &split.sticky else { return };
    let by = match sticky {
        Sticky::Header(name) => format!("the field `{name}`"),
        Sticky::Cookie(name) => format!("the cookie `{name}`"),
    };
    let text = match (sticky.text(&parts.headers), sticky) {
        (Some(text), _) => {
            let to = split.choose(Some(text), 0).map_or("", |one| name(one.peer));
            format!("by {by}: this request goes to {to}")
        }
        (None, Sticky::Header(_)) => format!("by {by}, which this request has not: it is split by chance"),
        (None, Sticky::Cookie(_)) => format!("by {by}, which this caller has not: it is given one"),
    };
    said.keyed("sticky", &[format!("{key}.sticky")], text);
}

/// What is changed on the way.
fn rewritten(taken: &Taken, parts: &mut Parts, key: &str, said: &mut Explained<'_>) -> Result<(), Failure> {
    let before = parts.uri.clone();
    taken.rewrite(parts)?;
    let route = &taken.route;
    if let Some(path) = &route.rewrite.path {
        let word = if matches!(path, NewPath::Whole(_)) { "path" } else { "prefix" };
        said.keyed("rewrite", &[format!("{key}.rewrite.{word}")], format!("{before} becomes {}", parts.uri));
    }
    if let Some(host) = &route.rewrite.host {
        let text = format!("the host becomes {}", String::from_utf8_lossy(host.as_bytes()));
        said.keyed("rewrite", &[format!("{key}.rewrite.host")], text);
    }
    edits("request fields", &route.request, &format!("{key}.request-headers"), said);
    edits("answer fields", &route.response, &format!("{key}.response-headers"), said);
    Ok(())
}

fn edits(about: &'static str, edits: &planned::Edits, key: &str, said: &mut Explained<'_>) {
    let pair = |(name, value): &(http::HeaderName, HeaderValue)| {
        format!("`{name}: {}`", String::from_utf8_lossy(value.as_bytes()))
    };
    let remove: Vec<_> = edits.remove.iter().map(|name| format!("`{name}`")).collect();
    let groups = [
        ("remove", "are removed", remove),
        ("set", "are set", edits.set.iter().map(pair).collect()),
        ("add", "are added", edits.add.iter().map(pair).collect()),
    ];
    for (word, what, fields) in groups.into_iter().filter(|(_, _, fields)| !fields.is_empty()) {
        said.keyed(about, &[format!("{key}.{word}"), key.to_owned()], format!("{} {what}", fields.join(", ")));
    }
}

/// Each peer that may get it, and how it is called.
fn destinations(loaded: &Loaded, of: &PeerPlan, route: &Route, key: &str, said: &mut Explained<'_>) {
    let planned::Leads::To(split) = &route.leads else { return };
    for one in split.to.iter().filter(|one| one.weight > 0) {
        // What comes in goes to the port that was called, whatever route it takes.
        let peer = if of.kind == PeerKind::App { Some(of) } else { loaded.plan.peers.get(one.peer) };
        let Some(peer) = peer else { continue };
        rules::source(loaded, peer, said);
        rules::policy(loaded, peer, &one.policy, Some(key), said);
    }
}
