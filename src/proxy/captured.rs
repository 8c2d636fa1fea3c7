//! Captured connections: where one leads by the address that its caller dialled, and what passes as it came.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustix::process::geteuid;
use tokio::time::Instant;

use super::Conn;
use super::connection::{detect, opaque};
use super::target::{Led, of_conn};
use super::tunnel::Opaque;
use crate::call::Failure;
use crate::ids::{ClientAddr, Door};
use crate::net::here::is_here;
use crate::net::io::{Io, Resets};
use crate::net::origdst::OriginalDst;
use crate::net::ours::came_back;
use crate::net::sniff::is_for_a_proxy;
use crate::plan::Plan;
use crate::plan::capture::How;
use crate::plan::door::{DoorPlan, Leads, Otherwise, Protocol};
use crate::plan::egress::is_listed;
use crate::plan::peer::{Addresses, PeerKind};
use crate::plan::redirect::Capture as Rules;
use crate::plan::virtual_ips::is_virtual;
use crate::reason::Reason;
use crate::upstream::dialled::Going;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::peer::Peer;
use crate::upstream::world::World;

/// The door that a connection at `door` belongs to by the port its caller dialled, and what that was. Where nothing can be
/// captured the system is not asked.
pub fn arrived<'p>(
    plan: &'p Plan,
    door: &'p Arc<DoorPlan>,
    io: &Io,
    client: ClientAddr,
) -> (&'p Arc<DoorPlan>, OriginalDst) {
    let explicit = (door, OriginalDst::EXPLICIT);
    let Some((capture, how)) = plan.capture.as_ref().and_then(|capture| Some((capture, capture.at(door)?))) else {
        return explicit;
    };
    let (Some(stream), Some(listen), Some(client)) = (io.tcp(), door.listen.tcp(), client.0) else { return explicit };
    let original = OriginalDst::of(stream, listen, client.is_ipv4(), how);
    match original.0 {
        Some(to) if door.side == Door::Inbound => (capture.door(&plan.doors, to.port()).unwrap_or(door), original),
        _ => (door, original),
    }
}

/// Where an address leads that the service dialled, where no name says more; `E` is how an endpoint is known.
pub enum Way<E = Arc<Endpoint>> {
    /// To a peer with all its endpoints: the address stands for it.
    Peer(usize),
    /// To this endpoint of a peer and no other.
    Endpoint(usize, E),
    /// To the address itself, which is nobody's.
    Passed,
}

/// Whether what is sent says on its way what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    /// Whoever is on the way can read it.
    Plain,
    /// It is the service's own TLS.
    Tls,
}

/// The way of plain bytes to an address in this World. Where two peers have an endpoint there, it is the first one's in
/// the file.
///
/// # Errors
/// `NoRoute` where it is nobody's and `otherwise` is `deny`, `AddressRefused` where it is of a host of the mesh.
pub fn way(world: &World, to: SocketAddr) -> Result<Way, Failure> {
    way_of(world, to, Bytes::Plain)
}

fn way_of(world: &World, to: SocketAddr, bytes: Bytes) -> Result<Way, Failure> {
    let named = || world.peers.iter().enumerate().filter(|(_, peer)| peer.kind() == PeerKind::Named);
    let held = || named().find_map(|(index, peer)| Some((index, peer.endpoint_at(to)?)));
    let meshed =
        || named().find(|(_, peer)| peer.source().mtls.is_some() && peer.is_on(to.ip())).map(|(index, _)| index);
    decide(&world.plan, (to, bytes), held, meshed)
}

/// The way of an address by the plan; `held` finds the peer that has an endpoint there, `meshed` one that is called by
/// mutual TLS and has an endpoint at that IP address.
///
/// # Errors
/// `NoRoute` where it is nobody's and `otherwise` is `deny`, `AddressRefused` where it is of a host of the mesh.
pub fn decide<E>(
    plan: &Plan,
    (to, bytes): (SocketAddr, Bytes),
    held: impl FnOnce() -> Option<(usize, E)>,
    meshed: impl FnOnce() -> Option<usize>,
) -> Result<Way<E>, Failure> {
    if let Some(index) = plan.virtual_peer(to) {
        return Ok(Way::Peer(index));
    }
    if is_virtual(to.ip()) {
        return Err(Failure::new(Reason::NoRoute, format!("{to} is a virtual address that no peer has at this port")));
    }
    if let Some((index, endpoint)) = held() {
        return Ok(Way::Endpoint(index, endpoint));
    }
    match plan.capture.as_ref().map(|capture| capture.otherwise) {
        Some(Otherwise::Pass) => match meshed().filter(|_| bytes == Bytes::Plain) {
            Some(index) if downgrades(plan, to) => Err(downgraded(plan, index, to)),
            _ => Ok(Way::Passed),
        },
        Some(Otherwise::Deny) | None => {
            let todo = "list it under peers, or set outbound.otherwise to pass";
            Err(Failure::new(Reason::NoRoute, format!("no peer has an endpoint at {to}; {todo}")))
        }
    }
}

/// Whether plain bytes to a host of the mesh, at a port that no peer has, are what mutual TLS is to prevent. A service
/// dials the port of the other one, where the file has that of its sidecar: passed on as they are, the bytes would reach
/// the peer readable by all on the way and from nobody, and nobody would notice. What else runs on that host cannot be
/// told from it by its address, so the file has to. What stays on this machine is on no way.
fn downgrades(plan: &Plan, to: SocketAddr) -> bool {
    !is_listed(to.ip(), &plan.egress) && !is_here(to)
}

fn downgraded(plan: &Plan, index: usize, to: SocketAddr) -> Failure {
    let peer = plan.peers.get(index).map_or("", |peer| peer.name.as_str());
    let detail = format!(
        "{to} is at an address of the peer `{peer}`, which is called by mutual TLS, and no peer has this port: nothing is \
         sent there in plaintext; add it to the addresses of `{peer}` if its sidecar takes that port, else give it a peer \
         with `mtls: off`, or list {} under outbound.allow",
        to.ip()
    );
    Failure::new(Reason::AddressRefused, detail)
}

/// The peer that a server name names, at the port that was dialled.
pub fn by_server_name(plan: &Plan, sni: &str, port: u16) -> Option<usize> {
    if sni.is_empty() { None } else { plan.hosts.find(sni.strip_suffix('.').unwrap_or(sni), port) }
}

/// Whom a connection of the service leads to by the address it dialled.
///
/// # Errors
/// `NoRoute`, `AddressRefused`, `Looped`, or why there is no peer for the address.
pub fn led(world: &World, to: SocketAddr, bytes: Bytes) -> Result<Led, Failure> {
    let of = |index: usize, only| world.peers.get(index).map(|peer| Led { peer: peer.clone(), only });
    let led = match way_of(world, to, bytes)? {
        Way::Peer(index) => of(index, None),
        Way::Endpoint(index, endpoint) => of(index, Some(endpoint)),
        Way::Passed => return at(world, Going::Out(to)),
    };
    led.ok_or_else(|| Failure::new(Reason::Internal, format!("the plan has no peer for {to}")))
}

/// The service at a port that the file does not list.
///
/// # Errors
/// `AddressRefused`, `Looped`, or why there is no peer for the address.
pub fn app(conn: &Conn, world: &World, to: SocketAddr) -> Result<Led, Failure> {
    at(world, Going::In { to, protocol: Protocol::Auto, from: kept_address(conn, world) })
}

/// The service as a door's peer says it, called from its caller's own address where that is kept.
///
/// # Errors
/// Why there is no peer for the address.
pub fn from_caller(conn: &Conn, world: &World, peer: Arc<Peer>) -> Result<Arc<Peer>, Failure> {
    let (Some(from), Some(to)) = (kept_address(conn, world), conn.caller.original.0) else { return Ok(peer) };
    let listens = match &peer.source().addresses {
        Addresses::Static(specs) if peer.kind() == PeerKind::App => specs.first().and_then(|spec| spec.addr.tcp()),
        _ => None,
    };
    let to = match listens {
        // No packet of somebody else comes to loopback: the service must be at the address that was dialled too.
        Some(addr) if addr.ip().is_loopback() => SocketAddr::new(to.ip(), addr.port()),
        Some(addr) if addr.is_ipv4() == from.is_ipv4() => addr,
        // No connection has addresses of two families.
        Some(_) | None => return Ok(peer),
    };
    at(world, Going::In { to, protocol: peer.source().protocol, from: Some(from) }).map(|led| led.peer)
}

/// The caller's address, where the service is to see it.
fn kept_address(conn: &Conn, world: &World) -> Option<IpAddr> {
    let kept = world.plan.capture.as_ref()?.inbound == Some(How::Tproxy) && conn.side() == Door::Inbound;
    let (to, client) = (conn.caller.original.0?.ip(), conn.caller.client.0?.ip());
    // One that calls its own machine is there already.
    (kept && client != to && !client.is_loopback()).then_some(client)
}

fn at(world: &World, going: Going) -> Result<Led, Failure> {
    let peer = world.adhoc.at(going, Instant::now()).map_err(|error| Failure::new(error.reason, error.detail))?;
    Ok(Led { peer, only: None })
}

/// Serves a captured connection of the service. What the file declares of a peer binds here as at a port of its own.
pub async fn serve(conn: Conn, io: Io) {
    if let (Some(client), Some(to)) = (conn.caller.client.0, conn.caller.original.0)
        && came_back(client, to)
    {
        return refused(&conn, &io, &Failure::new(Reason::Looped, brought_back(&conn.core.world.load().plan)));
    }
    match declared(&conn) {
        Some(Protocol::Tcp) => opaque(Arc::new(conn), io).await,
        _ => detect(conn, io).await,
    }
}

/// Said of a connection of this process that the kernel's rules brought back to it.
fn brought_back(plan: &Plan) -> String {
    let (own, spared) = (geteuid().as_raw(), plan.redirect.as_deref().map(Rules::sidecar).unwrap_or_default());
    format!(
        "the kernel's rules brought this sidecar's own connection back to it: it runs as user {own}, and by the file they \
         let {spared} go; run it as whom they let go, or set `redirect.uid: {own}` and run `outrigger redirect apply` again"
    )
}

/// What the file declares to be spoken at the address.
fn declared(conn: &Conn) -> Option<Protocol> {
    let world = conn.core.world.load();
    let (Way::Peer(index) | Way::Endpoint(index, _)) = way(&world, conn.caller.original.0?).ok()? else { return None };
    Some(world.peers.get(index)?.source().protocol)
}

/// Why the address that was dialled leads nowhere, whatever is said but a name.
pub fn astray(conn: &Conn) -> Option<Failure> {
    let to = conn.caller.original.0.filter(|_| conn.is_led_by_address())?;
    way(&conn.core.world.load(), to).err()
}

/// Whether a request is for an HTTP proxy that the service itself has chosen, which gets the bytes as they are.
pub fn is_for_another_proxy(conn: &Conn, seen: &[u8]) -> bool {
    let Some(to) = conn.caller.original.0.filter(|_| conn.is_led_by_address() && is_for_a_proxy(seen)) else {
        return false;
    };
    matches!(way(&conn.core.world.load(), to), Ok(Way::Passed))
}

/// Carries TLS that is not ours to end: to the peer that its name names, else where the connection leads without one.
/// `dialled` is a connection that was made before the name was known.
pub async fn tls(conn: Arc<Conn>, io: Io, sni: &str, dialled: Option<(Opaque, Io)>) {
    let world = conn.core.world.load_full();
    let led = match named(&conn, &world, sni) {
        Some(peer) => Ok(Led { peer, only: None }),
        None => match conn.caller.original.0.filter(|_| conn.is_led_by_address()) {
            Some(to) => led(&world, to, Bytes::Tls),
            None => of_conn(&conn, &world),
        },
    };
    let mut record = match (led, dialled) {
        (Ok(led), Some((mut record, peer))) if record.leads_to(&led) => {
            record.named("tls", sni);
            return record.carry(io, peer).await;
        }
        (Ok(led), dialled) => {
            unused(dialled);
            Opaque::begin(&conn, led, "tls", sni)
        }
        (Err(failure), dialled) => {
            unused(dialled);
            return refused(&conn, &io, &failure);
        }
    };
    match record.dial().await {
        Ok(peer) => record.carry(io, peer).await,
        Err(_) => io.reset_on_close(),
    }
}

/// The peer that the server name of a connection names.
fn named(conn: &Conn, world: &World, sni: &str) -> Option<Arc<Peer>> {
    let to = conn.caller.original.0.filter(|_| conn.is_led_by_address())?;
    world.peers.get(by_server_name(&world.plan, sni, to.port())?).cloned()
}

/// Lets go of a connection that was made early.
pub fn unused(dialled: Option<(Opaque, Io)>) {
    if let Some((mut record, _)) = dialled {
        record.unused();
    }
}

/// Tells of a connection that may go nowhere. Whoever was captured believes to be connected: it is shown otherwise.
pub fn refused(conn: &Conn, io: &Io, failure: &Failure) {
    super::record::refused(conn, failure.reason, &failure.detail);
    if conn.is_captured() {
        io.reset_on_close();
    }
}

/// Whether the address that was dialled is none of the peer's that took it.
pub fn is_elsewhere(conn: &Conn, peer: &Peer) -> bool {
    let Some(to) = conn.caller.original.0.filter(|_| conn.is_led_by_address() && peer.kind() == PeerKind::Named) else {
        return false;
    };
    let world = conn.core.world.load();
    match world.plan.virtual_peer(to).and_then(|index| world.peers.get(index)) {
        Some(other) => other.name() != peer.name(),
        None => peer.endpoint_at(to).is_none(),
    }
}

/// Whether a failure on the way to an address that is nobody's is shown as it would be without this sidecar: nothing was
/// sent, and a caller of HTTP/1 has the connection for itself.
pub fn is_shown_as_reset(conn: &Conn, peer: Option<&Arc<Peer>>, failure: &Failure) -> bool {
    let unsent = matches!(failure.reason, Reason::ConnectRefused | Reason::ConnectFailed | Reason::ConnectTimeout);
    unsent && conn.is_led_by_address() && peer.is_some_and(|peer| peer.kind() == PeerKind::Adhoc)
}

impl Conn {
    /// Whether the kernel brought it here, and its caller believes to speak with somebody else.
    pub fn is_captured(&self) -> bool {
        self.caller.original.0.is_some()
    }

    /// Whether it leads where its caller dialled, where no name says more.
    pub fn is_led_by_address(&self) -> bool {
        self.is_captured() && self.door.leads == Leads::ByAuthority
    }

    /// The port that its caller dialled.
    pub fn port(&self) -> Option<u16> {
        self.caller.original.0.or(self.door.listen.tcp()).map(|addr| addr.port())
    }
}
