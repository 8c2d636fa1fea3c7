//! What transparent mode adds to the plan: which door a captured port belongs to, and the door of all others.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::Config;
use crate::config::listener;
use crate::ids::{Addr, Door};
use crate::plan::capture::{Capture, How};
use crate::plan::door::{DoorPlan, Leads, Otherwise, Protocol};
use crate::plan::peer::{Addresses, PeerKind, PeerPlan, PeerPolicy, ToApp};
use crate::plan::redirect::{Capture as Rules, Mode};

/// Makes it for doors and peers that are planned already; the service is called past the rules from now on.
pub fn capture(rules: &Rules, config: &Config, doors: &[Arc<DoorPlan>], peers: &mut [PeerPlan]) -> Capture {
    for app in peers.iter_mut().filter(|peer| peer.kind == PeerKind::App) {
        app.source.to_app = Some(ToApp { from: None });
    }
    let apps = || peers.iter().filter(|peer| peer.kind == PeerKind::App);
    let app = apps().next().map(|peer| peer.policy.clone());
    // All apps that speak HTTP share them.
    let routes = apps().find(|peer| !peer.routes.list.is_empty()).map(|peer| peer.routes.clone()).unwrap_or_default();
    let first = doors.iter().find(|door| door.side == Door::Inbound);
    let passthrough = super::doors::passed_anywhere(config);
    // What is said of the port of a door says nothing about others.
    let unlisted = |like: &Arc<DoorPlan>| DoorPlan {
        leads: Leads::Dialled,
        protocol: Protocol::Auto,
        passthrough: passthrough.clone(),
        passes_all: false,
        ..(**like).clone()
    };
    let how = || match rules.mode {
        Mode::Redirect => How::Redirect,
        Mode::Tproxy => How::Tproxy,
    };
    Capture {
        outbound: rules.outbound.is_some(),
        inbound: rules.inbound.is_some().then(how),
        otherwise: otherwise(config),
        ports: ports(doors, peers),
        unlisted: first.map(|like| Arc::new(unlisted(like))),
        app: app.unwrap_or_else(|| Arc::new(PeerPolicy::default())),
        routes,
    }
}

/// The service dialled these addresses itself, so they pass unless the file says otherwise; that a listener is not on
/// loopback is about who else may reach it.
fn otherwise(config: &Config) -> Otherwise {
    match config.outbound.otherwise.as_ref().filter(|said| !said.is_default()).map(|said| said.value) {
        Some(listener::Otherwise::Deny) => Otherwise::Deny,
        Some(listener::Otherwise::Pass) | None => Otherwise::Pass,
    }
}

/// The ports at which the service listens, then those at which the file lets its callers come.
fn ports(doors: &[Arc<DoorPlan>], peers: &[PeerPlan]) -> HashMap<u16, usize> {
    let app = |door: &DoorPlan| match door.leads {
        Leads::Peer(index) => match &peers.get(index)?.source.addresses {
            Addresses::Static(specs) => specs.first()?.addr.tcp(),
            _ => None,
        },
        Leads::ByAuthority | Leads::Dialled => None,
    };
    let inbound = || doors.iter().enumerate().filter(|(_, door)| door.side == Door::Inbound);
    let apps = inbound().filter_map(|(at, door)| Some((app(door)?.port(), at)));
    let listens = inbound().filter_map(|(at, door)| Some((Addr::tcp(&door.listen)?.port(), at)));
    let mut ports = HashMap::new();
    for (port, at) in apps.chain(listens) {
        ports.entry(port).or_insert(at);
    }
    ports
}
