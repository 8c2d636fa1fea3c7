//! Where a request may go: the peer of its door, or the one that its authority names.

use std::sync::Arc;

use http::request::Parts;
use tokio::time::Instant;

use super::Conn;
use super::captured::{self, Bytes, Way};
use super::route::Taken;
use crate::call::Failure;
use crate::deadline::Deadline;
use crate::http::authority::Authority;
use crate::http::head::Facts;
use crate::plan::Plan;
use crate::plan::door::{DoorPlan, Egress, Leads, Otherwise};
use crate::plan::peer::{PeerKind, PeerPolicy, Routes};
use crate::plan::rules::{Priority, SubsetRule};
use crate::reason::Reason;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::peer::Peer;
use crate::upstream::world::World;

/// Where a request may go, and for how long.
pub struct Target {
    /// Whom it goes to.
    pub peer: Arc<Peer>,
    /// How.
    pub policy: Arc<PeerPolicy>,
    /// Which of its endpoints may be used; `None` is all.
    pub subset: Option<Arc<SubsetRule>>,
    /// The one that the caller dialled, where it is meant and no other.
    pub only: Option<Arc<Endpoint>>,
    /// Until when.
    pub deadline: Deadline,
    /// The route it takes, if one of its peer's means it.
    pub route: Option<Box<Taken>>,
}

/// Where a request wants to go, as far as the plan alone tells: known before a limit is asked and a name looked up.
pub struct Aim {
    /// The peer; `None` for a name that no peer has.
    peer: Option<Arc<Peer>>,
    /// Its endpoint that the caller dialled, where it is meant and no other.
    only: Option<Arc<Endpoint>>,
    /// Boxed: routes are rare, and must not make every exchange larger.
    taken: Option<Box<Taken>>,
}

impl Aim {
    fn of(led: Led) -> Self {
        Self { peer: Some(led.peer), only: led.only, taken: None }
    }

    /// What the route says the request is worth.
    pub fn priority(&self) -> Option<Priority> {
        self.taken.as_ref().and_then(|taken| taken.route.priority)
    }
}

/// The peer and the route that the plan has for a request with these facts.
///
/// # Errors
/// `NoRoute` when a reload took the peer of the door away, `PathNotNormal` where a route cannot judge the path.
pub fn aim(conn: &Conn, world: &World, parts: &Parts, facts: &Facts) -> Result<Aim, Failure> {
    let index = match conn.door.leads {
        Leads::Peer(index) => in_force(conn, world, index),
        Leads::ByAuthority => match (listed(world, &facts.authority, default_port(conn)), conn.caller.original.0) {
            (index @ Some(_), _) => index,
            (None, None) => return Ok(Aim { peer: None, only: None, taken: None }),
            (None, Some(to)) => match captured::way(world, to)? {
                Way::Peer(index) => Some(index),
                // Whom the caller dialled it gets: no route leads elsewhere.
                Way::Endpoint(..) | Way::Passed => return captured::led(world, to, Bytes::Plain).map(Aim::of),
            },
        },
        Leads::Dialled => {
            let led = of_conn(conn, world)?;
            let routes = world.plan.capture.as_ref().map(|capture| &capture.routes);
            return Ok(Aim { taken: take(routes, parts)?, ..Aim::of(led) });
        }
    };
    let peer = Some(captured::from_caller(conn, world, living(world, index)?)?);
    // The routes stand in the plan of the request's own World: their indices belong to it.
    let routes = index.and_then(|index| world.plan.peers.get(index)).map(|plan| &plan.routes);
    Ok(Aim { peer, only: None, taken: take(routes, parts)? })
}

/// The route that means the request, if there is one.
fn take(routes: Option<&Routes>, parts: &Parts) -> Result<Option<Box<Taken>>, Failure> {
    match routes {
        Some(routes) if !routes.list.is_empty() => Ok(Taken::find(routes, parts)?.map(Box::new)),
        _ => Ok(None),
    }
}

/// The target of a request with this aim.
///
/// # Errors
/// Why it may go nowhere.
pub async fn target(
    conn: &Conn,
    world: &Arc<World>,
    Aim { peer, only, taken }: Aim,
    parts: &Parts,
    facts: &Facts,
    now: Instant,
) -> Result<Target, Failure> {
    let patience = facts.patience_from(now);
    let peer = match peer {
        Some(peer) => peer,
        None => named(world, &facts.authority, default_port(conn), patience).await?,
    };
    let Some(mut taken) = taken else {
        let policy = peer.policy();
        let deadline = Deadline::after(now, policy.request_timeout).min(patience);
        return Ok(Target { peer, policy, subset: None, only, deadline, route: None });
    };
    let (peer, policy, subset) = match taken.destination(&parts.headers) {
        // What comes in goes to the service, at the port and from the address that are found already.
        Some(to) if peer.kind() == PeerKind::App => (peer, to.policy, None),
        Some(to) => match world.peers.get(to.peer) {
            Some(other) => (other.clone(), to.policy, to.subset),
            None => (peer.clone(), peer.policy(), None),
        },
        None => (peer.clone(), peer.policy(), None),
    };
    let deadline = Deadline::after(now, policy.request_timeout).min(patience);
    Ok(Target { peer, policy, subset, only: None, deadline, route: Some(taken) })
}

fn default_port(conn: &Conn) -> u16 {
    if conn.tls { 443 } else { 80 }
}

/// Whom a connection leads to.
pub struct Led {
    /// The peer.
    pub peer: Arc<Peer>,
    /// Its endpoint that the caller dialled, where it is meant and no other.
    pub only: Option<Arc<Endpoint>>,
}

/// Whom a connection leads to in this World where nothing that is said on it tells: its door's peer, or by the address
/// that its caller dialled.
///
/// # Errors
/// Why it may go nowhere.
pub fn of_conn(conn: &Conn, world: &World) -> Result<Led, Failure> {
    match (conn.door.leads, conn.caller.original.0) {
        (Leads::Peer(index), _) => {
            let peer = captured::from_caller(conn, world, of_door(conn, world, index)?)?;
            Ok(Led { peer, only: None })
        }
        (Leads::Dialled, Some(to)) => captured::app(conn, world, to),
        (Leads::ByAuthority, Some(to)) => captured::led(world, to, Bytes::Plain),
        (Leads::Dialled | Leads::ByAuthority, None) => Err(Failure::new(
            Reason::WrongProtocol,
            "this port speaks HTTP and CONNECT; give an opaque peer a port of its own with peers.NAME.listen",
        )),
    }
}

/// The peer a door leads to, in the World of this request: after a reload it may stand elsewhere, or nowhere.
///
/// # Errors
/// `NoRoute` when a reload took it away.
fn of_door(conn: &Conn, world: &World, index: usize) -> Result<Arc<Peer>, Failure> {
    living(world, in_force(conn, world, index))
}

/// The index in the request's World of the peer that a door leads to.
pub(super) fn in_force(conn: &Conn, world: &World, index: usize) -> Option<usize> {
    let same = Arc::ptr_eq(&conn.plan, &world.plan);
    if same { Some(index) } else { after_reload(&conn.plan, &conn.door, index, &world.plan) }
}

fn living(world: &World, index: Option<usize>) -> Result<Arc<Peer>, Failure> {
    let gone = || Failure::new(Reason::NoRoute, "the peer of this door was removed by a reload");
    index.and_then(|index| world.peers.get(index)).cloned().ok_or_else(gone)
}

/// The index of the listed peer that an authority names.
fn listed(world: &World, authority: &Authority, default_port: u16) -> Option<usize> {
    world.plan.hosts.find(&authority.host(), authority.port().unwrap_or(default_port))
}

/// Where a door of an earlier plan leads in the one in force, by the index of the peer. The door itself is what is
/// looked for: apps are named by their position, which another port may have taken. A door that is gone (its
/// connections drain) still leads to the peer that it had, where one of that name and with those addresses is left.
fn after_reload(old: &Plan, door: &DoorPlan, index: usize, new: &Plan) -> Option<usize> {
    match new.doors.iter().find(|now| now.side == door.side && now.listen == door.listen).map(|now| now.leads) {
        Some(Leads::Peer(index)) => Some(index),
        Some(Leads::ByAuthority | Leads::Dialled) => None,
        None => {
            let before = old.peers.get(index)?;
            new.peers
                .iter()
                .position(|peer| peer.name == before.name && peer.source.addresses == before.source.addresses)
        }
    }
}

/// The peer that an authority names, or an ad-hoc one where unlisted names pass.
///
/// # Errors
/// `NoRoute`, or why the name could not be resolved or may not be dialled.
pub async fn named(
    world: &Arc<World>,
    authority: &Authority,
    default_port: u16,
    deadline: Deadline,
) -> Result<Arc<Peer>, Failure> {
    if let index @ Some(_) = listed(world, authority, default_port) {
        return living(world, index);
    }
    let host = authority.host();
    let port = authority.port().unwrap_or(default_port);
    unlisted(&world.plan.egress, &host)?;
    // Boxed: the rare branch must not make every exchange larger.
    let adhoc = Box::pin(world.adhoc.peer(&host, port, deadline)).await;
    adhoc.map_err(|error| Failure::new(error.reason, error.detail))
}

/// Whether a name that no peer has may be looked up and dialled.
///
/// # Errors
/// `NoRoute` where `otherwise` is `deny`.
pub fn unlisted(egress: &Egress, host: &str) -> Result<(), Failure> {
    match egress.otherwise {
        Otherwise::Pass => Ok(()),
        Otherwise::Deny => Err(Failure::new(
            Reason::NoRoute,
            format!("no peer has the host {host}; list it under peers, or set outbound.otherwise to pass"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::facts::Facts;
    use crate::config::problem::Problems;
    use crate::plan::build::build;
    use crate::plan::peer::Addresses;

    fn plan(text: &str) -> Plan {
        let mut problems = Problems::new("f");
        let document = crate::config::read(text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        let built = build(&document.config, Path::new("/"), &mut problems);
        assert!(!problems.has_errors(), "{problems}");
        built.plan
    }

    /// Where `listen` of `old` leads in `new`.
    fn follow(old: &str, listen: &str, new: &str) -> Option<String> {
        let (old, new) = (plan(old), plan(new));
        let door = old.doors.iter().find(|door| door.listen.to_string() == listen).unwrap();
        let Leads::Peer(index) = door.leads else { panic!("leads to a peer") };
        let peer = &new.peers[after_reload(&old, door, index, &new)?];
        let Addresses::Static(specs) = &peer.source.addresses else { panic!("static") };
        Some(specs[0].addr.to_string())
    }

    #[test]
    fn an_open_connection_stays_with_its_port() {
        let two = "service: x\ninbound: { ports: [{ listen: \"0.0.0.0:1\", app: \"127.0.0.1:11\" }, { listen: \"0.0.0.0:2\", app: \"127.0.0.1:12\" }] }\n";
        let turned = "service: x\ninbound: { ports: [{ listen: \"0.0.0.0:2\", app: \"127.0.0.1:12\" }, { listen: \"0.0.0.0:1\", app: \"127.0.0.1:11\" }] }\n";
        let first = "service: x\ninbound: { ports: [{ listen: \"0.0.0.0:1\", app: \"127.0.0.1:11\" }] }\n";
        let second = "service: x\ninbound: { ports: [{ listen: \"0.0.0.0:2\", app: \"127.0.0.1:12\" }] }\n";
        let moved = "service: x\ninbound: { ports: [{ listen: \"0.0.0.0:2\", app: \"127.0.0.1:13\" }] }\n";
        let own_port = "service: x\npeers: { a: { static: [10.0.0.1:1], listen: 127.0.0.1:9 } }\n";
        let shared = "service: x\noutbound: { listen: 127.0.0.1:9 }\npeers: { a: { static: [10.0.0.1:1] } }\n";
        for (old, listen, new, expect) in [
            (two, "0.0.0.0:1", turned, Some("127.0.0.1:11")),
            (two, "0.0.0.0:2", second, Some("127.0.0.1:12")),
            (two, "0.0.0.0:2", moved, Some("127.0.0.1:13")),
            // The door is gone: its peer, or none, and never the one that has taken its name.
            (first, "0.0.0.0:1", second, None),
            (two, "0.0.0.0:2", first, None),
            (own_port, "127.0.0.1:9", "service: x\npeers: { a: { static: [10.0.0.1:1] } }\n", Some("10.0.0.1:1")),
            (own_port, "127.0.0.1:9", shared, None),
        ] {
            assert_eq!(follow(old, listen, new).as_deref(), expect, "{listen}: {old} -> {new}");
        }
    }
}
