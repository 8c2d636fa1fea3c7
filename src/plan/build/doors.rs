//! The listeners: the inbound doors with the apps behind them, the shared outbound doors, the ports of single peers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Content, Parts};
use crate::config::Config;
use crate::config::collect::List;
use crate::config::kind::Set;
use crate::config::listener::{self, Inbound, InboundTimeout, Limits, OutboundTimeout, Port};
use crate::config::units::Timer;
use crate::config::values::{Listen, Network, Upgrade};
use crate::ids::{Addr, Door, PeerName};
use crate::plan::door::{DoorLimits, DoorPlan, Leads, Mtls, PassedName, Protocol, ServerTlsPlan};
use crate::plan::peer::{Addresses, Balance, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource, Routes};
use crate::plan::rules::{Condition, Conditions, RetryRule, Rules};

/// How long an idle HTTP/1 connection to the app is kept until the app's own keep-alive is learned.
const APP_KEEP_ALIVE: Duration = Duration::from_secs(4);

/// The inbound doors, each before the app it leads to.
pub fn inbound(config: &Config, parts: &mut Parts<'_>) {
    let Some(inbound) = &config.inbound else { return };
    combinations(inbound, parts);
    passed_ports(inbound, config.redirect.is_some(), parts);
    let like =
        DoorPlan { tls: tls(inbound, parts), mtls: super::identity::door(config, inbound, parts), ..pattern(inbound) };
    if let Some(app) = &inbound.app {
        let leads = app_peer(&app.value.0, inbound.protocol.value, &inbound.timeout, parts);
        for listen in &inbound.listen.0 {
            let passes_all = passes_port(inbound, &listen.0);
            let passthrough = passed_names(inbound, &[&listen.0, &app.value.0], true);
            let (listen_at, leads) = (listen.0.clone(), Leads::Peer(leads));
            let door = DoorPlan { listen: listen_at, leads, passthrough, passes_all, ..like.clone() };
            parts.door(listen, door);
        }
    }
    for port in &inbound.ports.0 {
        port_door(port, inbound, &like, parts);
    }
}

fn port_door(port: &Port, inbound: &Inbound, like: &DoorPlan, parts: &mut Parts<'_>) {
    let (Some(listen), Some(app)) = (&port.listen, &port.app) else { return };
    let leads = app_peer(&app.value.0, port.protocol.value, &inbound.timeout, parts);
    let protocol = protocol(port.protocol.value);
    let passthrough = passed_names(inbound, &[&listen.value.0, &app.value.0], false);
    let passes_all = passes_port(inbound, &listen.value.0);
    let (listen_at, leads) = (listen.value.0.clone(), Leads::Peer(leads));
    let door = DoorPlan { listen: listen_at, leads, protocol, passthrough, passes_all, ..like.clone() };
    parts.door(listen, door);
}

/// Whether `passthrough` lists the port of a listener.
fn passes_port(inbound: &Inbound, listen: &Addr) -> bool {
    let port = listen.tcp().map(|addr| addr.port()).filter(|port| *port != 0);
    port.is_some_and(|port| inbound.passthrough.0.iter().any(|one| one.value.0 == (None, Some(port))))
}

/// The names that are handed through at a door with these addresses; those that are of no port are the main door's: behind
/// another one stands another protocol, for which nobody has vouched.
fn passed_names(inbound: &Inbound, at: &[&Addr], main: bool) -> Arc<[PassedName]> {
    let here = |port: u16| at.iter().any(|addr| addr.tcp().is_some_and(|addr| addr.port() == port));
    let all = inbound.passthrough.0.iter().filter(|one| one.value.0.1.map_or(main, here));
    all.filter_map(|one| one.value.0.0.clone()).map(|name| PassedName { name, port: None }).collect()
}

/// The names of ports that the file may not list.
pub fn passed_anywhere(config: &Config) -> Arc<[PassedName]> {
    let all = config.inbound.iter().flat_map(|inbound| &inbound.passthrough.0).map(|one| one.value.0.clone());
    all.filter_map(|(name, port)| Some(PassedName { name: name?, port: Some(port?) })).collect()
}

/// What is listed for ports that are none, or cannot be looked at.
fn passed_ports(inbound: &Inbound, captured: bool, parts: &mut Parts<'_>) {
    let listens = super::policy::listens(inbound);
    let ports = inbound.ports.0.iter().filter(|port| port.protocol.value != listener::Protocol::Auto);
    let declared: Vec<u16> = ports.filter_map(|port| Some(port.listen.as_ref()?.value.0.tcp()?.port())).collect();
    for one in &inbound.passthrough.0 {
        match &one.value.0 {
            (name, Some(port)) if !listens.contains(port) && (name.is_none() || !captured) => {
                let text =
                    format!("no inbound port has this number: list the port where callers connect to ({listens:?})");
                one.refuse(parts.problems, text);
            }
            (Some(_), Some(port)) if declared.contains(port) => {
                one.refuse(parts.problems, "needs `protocol: auto` at that port: no server name is looked at there");
            }
            (Some(name), None) if inbound.app.is_none() => {
                let text = format!("is of no port: without `app` say `{name}:PORT`, with a port under `ports`");
                one.refuse(parts.problems, text);
            }
            _ => {}
        }
    }
}

/// What cannot be meant.
fn combinations(inbound: &Set<Inbound>, parts: &mut Parts<'_>) {
    let said = |key| parts.problems.mention(&inbound.path, key);
    if inbound.app.is_none() && inbound.ports.0.is_empty() && !said("app") && !said("ports") {
        let text = "is missing: expected the address where the service listens, such as `127.0.0.1:8080`, or `ports`";
        parts.problems.error(format_args!("{}.app", inbound.path), inbound.origin.at(), text, None);
    }
    if inbound.app.is_none() && !inbound.listen.is_default() && !inbound.ports.0.is_empty() {
        inbound.listen.refuse(parts.problems, "leads nowhere without `app`; the ports under `ports` have their own");
    }
    let declared = inbound.protocol.value != listener::Protocol::Auto;
    if declared && inbound.passthrough.0.iter().any(|one| matches!(one.value.0, (Some(_), None))) {
        let text = "needs `protocol: auto`: with a declared protocol no server name is looked at";
        inbound.passthrough.refuse(parts.problems, text);
    }
    super::peers::connect_before_request(&inbound.timeout.connect, &inbound.timeout.request, parts.problems);
}

/// What all inbound doors share; where it listens and leads is filled in for each.
fn pattern(inbound: &Inbound) -> DoorPlan {
    DoorPlan {
        side: Door::Inbound,
        listen: Addr::Tcp(SocketAddr::from(([0, 0, 0, 0], 0))),
        optional: false,
        leads: Leads::ByAuthority,
        protocol: protocol(inbound.protocol.value),
        tls: None,
        mtls: Mtls::Off,
        passthrough: Arc::from([]),
        passes_all: false,
        upgrades: upgrades(&inbound.upgrades),
        trusted: trusted(&inbound.trusted),
        limits: inbound_limits(&inbound.limits, &inbound.timeout),
    }
}

fn tls(inbound: &Inbound, parts: &mut Parts<'_>) -> Option<ServerTlsPlan> {
    let tls = inbound.tls.as_ref()?;
    let certificate = tls.certificate.as_ref().map(|file| parts.file(file, Content::Certificates));
    let key = tls.key.as_ref().map(|file| parts.file(file, Content::Key));
    Some(ServerTlsPlan { certificate: certificate?, key: key? })
}

/// The app is asked again only where it provably did nothing, or where a connection ended before the answer to an
/// idempotent request began: one that the app closes while it is idle may meet a request that is already on its way
/// (RFC 9110 §9.2.2). For all else, who calls it has other instances to turn to.
fn app_rules() -> Rules {
    let on = Conditions::of(&[Condition::ResetBeforeRequest, Condition::RefusedStream, Condition::Reset]);
    Rules { retry: RetryRule { on, ..RetryRule::default() }, eject: None, ..Rules::default() }
}

/// The peer for an app; ports that lead to the same app in the same way share it.
fn app_peer(app: &Addr, spoken: listener::Protocol, timeout: &InboundTimeout, parts: &mut Parts<'_>) -> usize {
    let source = PeerSource {
        addresses: Addresses::Static(vec![EndpointSpec::bare(app.clone())]),
        protocol: protocol(spoken),
        tls: None,
        mtls: None,
        to_app: None,
    };
    if let Some(at) = parts.peers.iter().position(|peer| peer.source == source) {
        return at;
    }
    let taken = |name: &str, parts: &Parts<'_>| parts.peers.iter().any(|peer| peer.name.as_str() == name);
    let short = match app {
        _ if parts.peers.is_empty() => "app".to_owned(),
        Addr::Tcp(addr) => format!("app:{}", addr.port()),
        Addr::Unix(path) => format!("app:{}", path.display()),
    };
    let long = format!("app:{app}");
    let name = match (taken(&short, parts), taken(&long, parts)) {
        (false, _) => short,
        (true, false) => long,
        (true, true) => format!("{long}/{}", parts.peers.len()),
    };
    let policy = PeerPolicy {
        balance: Balance::PeakEwma,
        connect_timeout: timeout.connect.0,
        request_timeout: timeout.request.0.map(|timer| timer.0),
        body_idle: timeout.idle.0,
        tunnel_idle: timeout.tunnel.0,
        keep_alive: APP_KEEP_ALIVE,
        // One place, which nothing is to be spread over.
        connection_age: None,
        rules: app_rules(),
        ..PeerPolicy::default()
    };
    let (name, kind, policy) = (PeerName::new(name), PeerKind::App, Arc::new(policy));
    parts.peers.push(PeerPlan { name, kind, source, policy, routes: Routes::default() });
    parts.peers.len() - 1
}

/// The shared outbound doors, then the ports of peers that have one; peers begin at index `apps` of the plan.
pub fn outbound(config: &Config, apps: usize, parts: &mut Parts<'_>) {
    let outbound = &config.outbound;
    let like = DoorPlan {
        side: Door::Outbound,
        listen: Addr::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        optional: false,
        leads: Leads::ByAuthority,
        protocol: Protocol::Auto,
        tls: None,
        mtls: Mtls::Off,
        passthrough: Arc::from([]),
        passes_all: false,
        upgrades: upgrades(&outbound.upgrades),
        trusted: trusted(&outbound.trusted),
        limits: outbound_limits(&outbound.limits, &outbound.timeout),
    };
    for listen in &outbound.listen.0 {
        let optional = twin(&listen.0).is_some_and(|twin| outbound.listen.0.iter().any(|other| other.0 == twin));
        parts.door(listen, DoorPlan { listen: listen.0.clone(), optional, ..like.clone() });
    }
    for (n, (_, peer)) in config.peers.0.iter().enumerate() {
        let own: &[Set<Listen>] = peer.listen.as_ref().map_or(&[], |listen| &listen.0);
        for listen in own {
            let (leads, protocol) = (Leads::Peer(apps + n), protocol(peer.protocol.value));
            parts.door(listen, DoorPlan { listen: listen.0.clone(), leads, protocol, ..like.clone() });
        }
    }
}

/// The IPv4 loopback address beside which an IPv6 one is a courtesy.
fn twin(listen: &Addr) -> Option<Addr> {
    let addr = listen.tcp().filter(|addr| addr.ip() == Ipv6Addr::LOCALHOST)?;
    Some(Addr::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, addr.port()))))
}

/// The plan's word for the file's.
pub fn protocol(said: listener::Protocol) -> Protocol {
    match said {
        listener::Protocol::Auto => Protocol::Auto,
        listener::Protocol::Http1 => Protocol::Http1,
        listener::Protocol::Http2 => Protocol::Http2,
        listener::Protocol::Tcp => Protocol::Tcp,
    }
}

fn upgrades(said: &List<Upgrade>) -> Arc<[String]> {
    said.0.iter().map(|upgrade| upgrade.0.clone()).collect()
}

fn trusted(said: &List<Network>) -> Arc<[ipnet::IpNet]> {
    said.0.iter().map(|network| network.0).collect()
}

fn limits(said: &Limits, [head, keep_alive, idle, tunnel]: [Timer; 4]) -> DoorLimits {
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    DoorLimits {
        connections: number(said.connections.0),
        head: number(said.head.0),
        fields: number(said.fields.0),
        body: said.body.0.map(|size| size.0),
        head_timeout: head.0,
        keep_alive: keep_alive.0,
        body_idle: idle.0,
        tunnel_idle: tunnel.0,
    }
}

fn inbound_limits(said: &Limits, timeout: &InboundTimeout) -> DoorLimits {
    let InboundTimeout { head, keep_alive, idle, tunnel, .. } = timeout;
    limits(said, [head.value, keep_alive.value, idle.value, tunnel.value])
}

fn outbound_limits(said: &Limits, timeout: &OutboundTimeout) -> DoorLimits {
    let OutboundTimeout { head, keep_alive, idle, tunnel, .. } = timeout;
    limits(said, [head.value, keep_alive.value, idle.value, tunnel.value])
}
