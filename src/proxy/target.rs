//! Where a request may go: the peer of its door, or the one that its authority names.

use std::sync::Arc;

use tokio::time::Instant;

use super::Conn;
use crate::call::Failure;
use crate::deadline::Deadline;
use crate::http::authority::Authority;
use crate::http::head::Facts;
use crate::plan::door::{Leads, Otherwise};
use crate::plan::peer::PeerPolicy;
use crate::reason::Reason;
use crate::upstream::peer::Peer;
use crate::upstream::world::World;

/// Where a request may go, and for how long.
pub struct Target {
    /// Whom it goes to.
    pub peer: Arc<Peer>,
    /// How.
    pub policy: Arc<PeerPolicy>,
    /// Until when.
    pub deadline: Deadline,
}

/// The target of a request with these facts.
///
/// # Errors
/// Why it may go nowhere.
pub async fn target(conn: &Conn, world: &Arc<World>, facts: &Facts, now: Instant) -> Result<Target, Failure> {
    let peer = match conn.door.leads {
        Leads::Peer(index) => of_door(conn, world, index)?,
        Leads::ByAuthority => named(world, &facts.authority, default_port(conn), facts.patience_from(now)).await?,
    };
    let policy = peer.policy();
    let deadline = Deadline::after(now, policy.request_timeout).min(facts.patience_from(now));
    Ok(Target { peer, policy, deadline })
}

fn default_port(conn: &Conn) -> u16 {
    if conn.tls { 443 } else { 80 }
}

/// The peer a door leads to, in the World of this request: after a reload it may stand elsewhere, or nowhere.
///
/// # Errors
/// `NoRoute` when a reload took it away.
pub fn of_door(conn: &Conn, world: &World, index: usize) -> Result<Arc<Peer>, Failure> {
    if Arc::ptr_eq(&conn.plan, &world.plan)
        && let Some(peer) = world.peers.get(index)
    {
        return Ok(peer.clone());
    }
    let name = conn.plan.peers.get(index).map(|peer| &peer.name);
    world
        .peers
        .iter()
        .find(|peer| Some(peer.name()) == name)
        .cloned()
        .ok_or_else(|| Failure::new(Reason::NoRoute, "the peer of this door was removed by a reload"))
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
    let host = authority.host();
    let port = authority.port().unwrap_or(default_port);
    if let Some(peer) = world.plan.routes.find(&host, port).and_then(|index| world.peers.get(index)) {
        return Ok(peer.clone());
    }
    match world.plan.egress.otherwise {
        Otherwise::Deny => Err(Failure::new(
            Reason::NoRoute,
            format!("no peer has the host {host}; list it under peers, or set outbound.otherwise to pass"),
        )),
        // Boxed: the rare branch must not make every exchange larger.
        Otherwise::Pass => Box::pin(world.adhoc.peer(&host, port, deadline))
            .await
            .map_err(|error| Failure::new(error.reason, error.detail)),
    }
}
