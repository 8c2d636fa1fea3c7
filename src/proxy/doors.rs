//! The set of listeners: start, reload and drain all use it. New doors are bound before anything changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout};

use super::{Caller, Core, Learned};
use super::{captured, connection};
use crate::ids::{Addr, ClientAddr, Door};
use crate::life::drain::{Drain, Phase, Watch};
use crate::life::tasks::Tasks;
use crate::net::accept::{Backoff, Bound, Listener, bind, bind_for_app};
use crate::net::io::Io;
use crate::plan::Plan;
use crate::plan::capture::How;
use crate::plan::door::{DoorPlan, Mtls};
use crate::reason::Reason;
use crate::upstream::world::World;

/// How long a closing door finishes handshakes that had begun: a long way there and back.
pub(super) const LAST_HANDSHAKES: std::time::Duration = std::time::Duration::from_millis(100);

/// A listener that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}: {source}{}", hint(source))]
pub struct DoorError {
    /// Which way its traffic goes.
    pub side: Door,
    /// Where.
    pub addr: Addr,
    /// What the system said.
    pub source: std::io::Error,
}

impl DoorError {
    fn of(door: &DoorPlan, source: std::io::Error) -> Self {
        Self { side: door.side, addr: door.listen.clone(), source }
    }
}

/// An open socket cannot be handed from one side to the other: its connections are drained with the side.
fn other_side(wanted: Door) -> std::io::Error {
    let is = match wanted {
        Door::Inbound => Door::Outbound,
        Door::Outbound => Door::Inbound,
    };
    std::io::Error::other(format!("it is open as an {} listener; changing sides needs a restart", is.word()))
}

/// Every open listener.
pub struct Doors {
    core: Arc<Core>,
    /// The runtime that serves connections; a reload comes from another one.
    data: Handle,
    /// What ends doors that a reload removed, and those with their side.
    accepting: Tasks,
    open: Mutex<Vec<Open>>,
    /// Doors that a reload removed and that may still hold their addresses: each watches what goes with its socket.
    closing: Mutex<Vec<Watch>>,
}

struct Open {
    side: Door,
    listen: Addr,
    drain: Drain,
    plaintext: Plaintext,
    /// Whether it takes connections to addresses of others.
    foreign: bool,
    /// The last World that has it.
    last: Last,
    /// Ends with its socket.
    bound: Watch,
}

/// By what those are served who come to a door that a reload has just removed.
type Last = Arc<Mutex<Arc<World>>>;

/// What those obey besides who came to a door without proving who they are: it begins once the door has become strict,
/// and is another one for those that come later.
type Plaintext = Arc<Mutex<Drain>>;

/// Listeners that are bound and not yet served.
pub struct Prepared {
    plan: Arc<Plan>,
    bound: Vec<(Arc<DoorPlan>, Bound)>,
}

impl Drop for Prepared {
    /// The socket files of doors that were not opened go with them.
    fn drop(&mut self) {
        for (door, _) in &self.bound {
            if let Addr::Unix(path) = &door.listen {
                // A file that is gone already is as good.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Doors {
    /// No listeners yet; connections will be served on `data`.
    pub fn new(core: Arc<Core>, data: Handle) -> Self {
        Self { core, data, accepting: Tasks::default(), open: Mutex::default(), closing: Mutex::default() }
    }

    /// Waits for doors that earlier reloads removed to let go of their addresses, which a new door may want.
    pub async fn closed(&self) {
        let closing = std::mem::take(&mut *self.closing.lock());
        let all = closing.into_iter().map(|mut bound| async move { bound.reached(Phase::Forced).await });
        // What takes longer has an address in use, which is told as that.
        let _ = timeout(10 * LAST_HANDSHAKES, futures_util::future::join_all(all)).await;
    }

    /// Binds the doors of `plan` that are not open yet. Dropping the result, or this, unbinds them.
    ///
    /// # Errors
    /// Every door that could not be bound; after one that was waited for in vain none is tried.
    pub async fn prepare(&self, plan: &Arc<Plan>) -> Result<Prepared, Vec<DoorError>> {
        let listening = self.listening();
        let (mut prepared, mut errors) = (Prepared { plan: plan.clone(), bound: Vec::new() }, Vec::new());
        for door in &plan.doors {
            let foreign = takes_foreign(plan, door);
            match listening.iter().find(|(_, listen)| *listen == door.listen) {
                Some((side, _)) if *side == door.side && self.takes_foreign(door) == foreign => continue,
                Some((side, _)) if *side == door.side => {
                    let text = "it is open already; changing `redirect.mode` needs a restart";
                    errors.push(DoorError::of(door, std::io::Error::other(text)));
                    continue;
                }
                Some(_) => {
                    errors.push(DoorError::of(door, other_side(door.side)));
                    continue;
                }
                None => {}
            }
            let socket = match door.side {
                Door::Inbound => bind(&door.listen, foreign),
                Door::Outbound => bind_for_app(&door.listen).await,
            };
            match socket {
                Ok(socket) => prepared.bound.push((door.clone(), socket)),
                Err(error) if door.optional && is_missing_family(&error) => {}
                Err(error) if error.kind() == std::io::ErrorKind::TimedOut => {
                    errors.push(DoorError::of(door, error));
                    break;
                }
                Err(error) => errors.push(DoorError::of(door, error)),
            }
        }
        if errors.is_empty() { Ok(prepared) } else { Err(errors) }
    }

    /// Serves the prepared doors of one side; used at start, where the sides open one after the other.
    pub fn open(&self, prepared: &mut Prepared, side: Door) {
        let (now, later) = std::mem::take(&mut prepared.bound).into_iter().partition(|(door, _)| door.side == side);
        prepared.bound = later;
        for (door, bound) in now {
            self.serve(&door, bound, takes_foreign(&prepared.plan, &door));
        }
    }

    /// Serves all prepared doors and closes those that the plan no longer has; their connections drain.
    pub fn commit(&self, mut prepared: Prepared) {
        let world = self.core.world.load_full();
        self.open.lock().retain(|open| {
            let stays = prepared.plan.doors.iter().any(|door| door.listen == open.listen && door.side == open.side);
            if stays {
                *open.last.lock() = world.clone();
            } else {
                open.drain.advance(Phase::Draining);
                self.closing.lock().push(open.bound.clone());
            }
            stays
        });
        self.end_plaintext(&prepared.plan);
        self.open(&mut prepared, Door::Outbound);
        self.open(&mut prepared, Door::Inbound);
    }

    /// Ends what came in plaintext through doors that are strict by now.
    fn end_plaintext(&self, plan: &Plan) {
        let strict = |open: &&Open| {
            let mut doors = plan.doors.iter();
            doors.any(|door| door.listen == open.listen && door.side == open.side && door.mtls == Mtls::Strict)
        };
        for open in self.open.lock().iter().filter(strict) {
            let before = std::mem::take(&mut *open.plaintext.lock());
            if !before.is_watched() {
                continue;
            }
            before.advance(Phase::Draining);
            let _runtime = self.data.enter();
            let grace = plan.grace;
            self.accepting.spawn(async move {
                tokio::time::sleep(grace).await;
                before.advance(Phase::Forced);
            });
        }
    }

    /// Every open door: its side and its address.
    pub fn listening(&self) -> Vec<(Door, Addr)> {
        self.open.lock().iter().map(|open| (open.side, open.listen.clone())).collect()
    }

    /// Whether the open listener of a door takes connections to addresses of others.
    fn takes_foreign(&self, door: &DoorPlan) -> bool {
        let open = self.open.lock();
        open.iter().any(|open| open.side == door.side && open.listen == door.listen && open.foreign)
    }

    fn serve(&self, door: &Arc<DoorPlan>, bound: Bound, foreign: bool) {
        let drain = Drain::default();
        let local = bound.local_addr().map_or_else(|| door.listen.clone(), Addr::Tcp);
        tracing::info!(door = door.side.word(), listen = %local, "listening");
        let (plaintext, holds) = (Plaintext::default(), Drain::default());
        let last = Last::new(Mutex::new(self.core.world.load_full()));
        let open = Open {
            side: door.side,
            listen: door.listen.clone(),
            drain: drain.clone(),
            plaintext: plaintext.clone(),
            foreign,
            last: last.clone(),
            bound: holds.watch(),
        };
        let side = self.core.direction(door.side).drain.watch();
        let follow = follow(side, drain.clone(), self.core.clone());
        let accept = accept(self.core.clone(), door.clone(), bound, drain, plaintext, last);
        let accept = async move {
            accept.await;
            drop(holds);
        };
        let _runtime = self.data.enter();
        self.core.direction(door.side).doors.spawn(accept);
        self.accepting.spawn(follow);
        self.open.lock().push(open);
    }
}

/// Whether connections come to a door as they are, with the addresses of others.
fn takes_foreign(plan: &Plan, door: &DoorPlan) -> bool {
    plan.capture.as_ref().and_then(|capture| capture.at(door)) == Some(How::Tproxy)
}

/// IPv6 is off, or this machine has no such address.
fn is_missing_family(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::AddrNotAvailable
        || error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another process has it: end that one, or listen elsewhere",
        std::io::ErrorKind::PermissionDenied => "; take a port of 1024 or above, or grant CAP_NET_BIND_SERVICE",
        std::io::ErrorKind::AddrNotAvailable => "; this machine does not have that address",
        std::io::ErrorKind::NotFound => "; the socket's folder does not exist",
        _ => "",
    }
}

/// A door's own drain follows its side's; one that a reload removed is given the grace and then forced.
async fn follow(mut side: Watch, door: Drain, core: Arc<Core>) {
    let mut own = door.watch();
    tokio::select! {
        _ = side.reached(Phase::Draining) => door.advance(Phase::Draining),
        _ = own.reached(Phase::Draining) => {
            let grace = core.world.load().plan.grace;
            tokio::select! {
                () = tokio::time::sleep(grace) => {}
                _ = side.reached(Phase::Forced) => {}
            }
            return door.advance(Phase::Forced);
        }
    }
    side.reached(Phase::Forced).await;
    door.advance(Phase::Forced);
}

/// Counts a connection while it is open.
pub struct Place {
    core: Arc<Core>,
    side: Door,
    open: Arc<AtomicUsize>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
        self.core.metrics.door(self.side).open.add(-1);
    }
}

/// Accepts until the door drains. What a connection is subject to is read anew for each, from the World of that moment.
async fn accept(
    mut core: Arc<Core>,
    first: Arc<DoorPlan>,
    bound: Bound,
    drain: Drain,
    plaintext: Plaintext,
    last: Last,
) {
    let listener = match bound.listen() {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(listen = %first.listen, %error, "cannot listen"),
    };
    let learned = Learned::new(Instant::now());
    let open = Arc::new(AtomicUsize::new(0));
    let mut closing = Closing { watch: drain.watch(), until: None };
    let (mut backoff, mut full) = (Backoff::default(), false);
    let (all, side) = (core.metrics.clone(), first.side);
    let metrics = all.door(side);
    while let Some(accepted) = closing.next(&listener, &first).await {
        let (io, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                metrics.accept_errors.inc();
                pause(&mut backoff, &first.listen, &error).await;
                continue;
            }
        };
        if backoff.worked() {
            tracing::info!(listen = %first.listen, "accepting again");
        }
        // Before the World: a reload that makes the door strict in between ends what watched until then.
        let watch = watched(first.side, &drain, &plaintext);
        let mut world = core.world.load_full();
        if found_in(&world.plan, &first).is_none() {
            world = last.lock().clone();
            core = Arc::new(core.as_of(world.clone()));
        }
        let Some(door) = found_in(&world.plan, &first) else { continue };
        let is_full = open.load(Ordering::Acquire) >= door.limits.connections;
        if is_full != full {
            full = is_full;
            told_full(full, door);
        }
        if full {
            metrics.refused.inc();
            metrics.reasons.inc(Reason::Overloaded);
            continue;
        }
        metrics.accepted.inc();
        metrics.open.add(1);
        open.fetch_add(1, Ordering::AcqRel);
        let place = Place { core: core.clone(), side: first.side, open: open.clone() };
        let (door, original) = captured::arrived(&world.plan, door, &io, client);
        let known = original.0.map(|addr| core.destinations.of(addr, Instant::now()));
        let (learned, caller) = (known.as_ref().unwrap_or(&learned), Caller { client, original });
        let mut conn = connection::accepted(&core, &world.plan, door, learned, caller, watch);
        conn.place = Some(place);
        core.direction(first.side).open.spawn(connection::serve(conn, io));
    }
}

/// The door as a plan has it.
fn found_in<'a>(plan: &'a Plan, first: &DoorPlan) -> Option<&'a Arc<DoorPlan>> {
    plan.doors.iter().find(|door| door.listen == first.listen && door.side == first.side)
}

/// How a door comes to its end.
struct Closing {
    watch: Watch,
    /// With it nobody new can come any more, and until then those are taken who came just before.
    until: Option<Instant>,
}

impl Closing {
    /// The next connection; `None` when there will be none. Cancel-safe.
    async fn next(&mut self, listener: &Listener, door: &DoorPlan) -> Option<std::io::Result<(Io, ClientAddr)>> {
        if self.until.is_none() {
            tokio::select! {
                accepted = listener.accept() => return Some(accepted),
                _ = self.watch.reached(Phase::Draining) => {}
            }
            if let Addr::Unix(path) = &door.listen {
                // A file that is gone already is as good.
                let _ = std::fs::remove_file(path);
            }
            // Who calls the service is another's: the app itself has ended when the outbound door does.
            if door.side == Door::Outbound {
                return None;
            }
            listener.refuse_others();
            self.until = Some(Instant::now() + LAST_HANDSHAKES);
        }
        let until = self.until?;
        tokio::select! {
            accepted = listener.accept() => Some(accepted),
            () = tokio::time::sleep_until(until) => None,
            _ = self.watch.reached(Phase::Forced) => None,
        }
    }
}

/// What a new connection of a door heeds.
fn watched(side: Door, drain: &Drain, plaintext: &Plaintext) -> Watch {
    match side {
        Door::Inbound => drain.watch().beside(&plaintext.lock()),
        Door::Outbound => drain.watch(),
    }
}

fn told_full(full: bool, door: &DoorPlan) {
    if full {
        tracing::warn!(listen = %door.listen, connections = door.limits.connections, "the door is full: new connections are closed at once");
    } else {
        tracing::info!(listen = %door.listen, "the door has room again");
    }
}

async fn pause(backoff: &mut Backoff, listen: &Addr, error: &std::io::Error) {
    let (wait, begins) = backoff.failed(error);
    if begins {
        tracing::error!(%listen, %error, "cannot accept connections; trying again");
    }
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}
