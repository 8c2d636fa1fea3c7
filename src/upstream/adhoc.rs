//! Peers for names that the file does not list: found or asked for here, looked up and kept true by the control thread.
//!
//! The data path never resolves: a miss sends one question over a bounded channel and awaits the answer with a clock;
//! everyone else who wants the same name meanwhile waits for the same answer. Names are dropped when no one has used
//! them for a while, when the table is full (the one unused for longest), and, after a failure, as soon as the
//! failure's time to live is over and no one has asked again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout_at};

use super::dialled::{Dialled, Going};
use super::peer::Peer;
use super::world::Upstreams;
use crate::deadline::Deadline;
use crate::ids::{Addr, Door, PeerName};
use crate::net::inside::inside;
use crate::plan::Plan;
use crate::plan::door::{Egress, Leads, Protocol};
use crate::plan::peer::{Addresses, Balance, PeerKind, PeerPlan, PeerPolicy, PeerSource};
use crate::reason::Reason;
use crate::telemetry::metrics::PeerMetrics;

/// Names that are kept.
pub const MOST: usize = 1024;
/// Names whose first lookup waits for the control thread.
const MOST_ASKED: usize = 128;
/// A name that no one has used for this long is dropped.
pub const IDLE: Duration = Duration::from_secs(300);
/// How much longer than the lookup itself its answer is awaited.
const SLACK: Duration = Duration::from_secs(1);
/// The name under which all of them are counted; no peer of the file can have it.
const COUNTED_AS: &str = "(unlisted)";

/// Why there is no peer for a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct AdhocError {
    /// `DnsFailed`, `NoEndpoint`, `AddressRefused`, `Overloaded`, `DeadlinePassed` or `Internal`.
    pub reason: Reason,
    /// What happened, for people.
    pub detail: String,
}

impl AdhocError {
    /// An error for this reason.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// Where a name stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its first lookup is under way.
    Waiting,
    /// Its peer has endpoints.
    Ready,
    /// It has none.
    Failed(AdhocError),
}

/// A host in lower case, and a port.
type Key = (Arc<str>, u16);

struct Entry {
    peer: Arc<Peer>,
    used: Instant,
    state: watch::Receiver<State>,
}

/// What the plan says about unlisted names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What they may lead to.
    pub egress: Egress,
    /// How long one lookup may take.
    pub timeout: Duration,
    /// How a port of the service is called that the file does not list.
    pub app: Arc<PeerPolicy>,
    /// Where the service is called by others and where it is then found, if it has a network of its own: who it is that
    /// dials such an address is itself.
    pub itself: Arc<[(SocketAddr, Addr)]>,
}

impl From<&Plan> for Rules {
    fn from(plan: &Plan) -> Self {
        let app = plan.capture.as_ref().map_or_else(Arc::default, |capture| capture.app.clone());
        let itself = if inside().is_some() { doors_to_apps(plan).collect() } else { Arc::default() };
        Self { egress: plan.egress.clone(), timeout: plan.dns.timeout, app, itself }
    }
}

/// The names in use. It outlives reloads.
pub struct Adhoc {
    shared: Arc<Upstreams>,
    policy: Arc<PeerPolicy>,
    /// Held here from the first name on, so that the counters outlive the names.
    metrics: OnceLock<Arc<PeerMetrics>>,
    rules: ArcSwap<Rules>,
    entries: Mutex<HashMap<Key, Entry>>,
    asks: mpsc::Sender<Ask>,
    /// Addresses that captured connections were going to.
    dialled: Dialled,
}

/// A name to be looked up and kept true for as long as [`Ask::idle`] gives a time; dropping it fails those who wait.
pub struct Ask {
    /// The host, as the caller named it in lower case.
    pub host: Arc<str>,
    /// The port.
    pub port: u16,
    /// The peer to fill.
    pub peer: Arc<Peer>,
    state: watch::Sender<State>,
    table: Weak<Adhoc>,
}

/// The inbound listeners that lead to the service where the file says that it is.
fn doors_to_apps(plan: &Plan) -> impl Iterator<Item = (SocketAddr, Addr)> {
    let inbound = plan.doors.iter().filter(|door| door.side == Door::Inbound);
    inbound.filter_map(|door| {
        let Leads::Peer(index) = door.leads else { return None };
        match &plan.peers.get(index)?.source.addresses {
            Addresses::Static(specs) => Some((door.listen.tcp()?, specs.first()?.addr.clone())),
            _ => None,
        }
    })
}

impl Adhoc {
    /// An empty table, and the questions that the control thread is to answer.
    pub fn new(shared: Arc<Upstreams>, policy: Arc<PeerPolicy>, rules: Rules) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, questions) = mpsc::channel(MOST_ASKED);
        let rules = ArcSwap::from_pointee(rules);
        let dialled = Dialled::new(shared.clone(), &policy);
        let (metrics, entries) = (OnceLock::new(), Mutex::default());
        (Arc::new(Self { shared, policy, metrics, rules, entries, asks, dialled }), questions)
    }

    /// Takes over another plan's rules. Where they differ every name is forgotten, so that none outlives its permit.
    pub fn set_rules(&self, rules: Rules) {
        let before = self.rules.swap(Arc::new(rules));
        let now = self.rules.load();
        if before.egress != now.egress {
            self.entries.lock().clear();
        }
        if before.egress != now.egress || before.app != now.app || before.itself != now.itself {
            self.dialled.clear();
        }
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The peer for `host`, which the caller gives in lower case; at once where it is known.
    ///
    /// # Errors
    /// The name cannot be resolved (remembered for its negative time to live), leads only to addresses that may not be
    /// dialled, or `deadline` passes.
    pub async fn peer(self: &Arc<Self>, host: &str, port: u16, deadline: Deadline) -> Result<Arc<Peer>, AdhocError> {
        let now = Instant::now();
        let (peer, mut state) = self.find(host, port, now)?;
        let latest = now + self.rules.load().timeout + SLACK;
        let until = deadline.instant().map_or(latest, |deadline| deadline.min(latest));
        loop {
            match &*state.borrow_and_update() {
                State::Ready => return Ok(peer),
                State::Failed(error) => return Err(error.clone()),
                State::Waiting => {}
            }
            match timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(AdhocError::new(Reason::Internal, format!("the lookup of {host} was given up")));
                }
                Err(_) if until < latest => {
                    let detail = format!("the deadline passed while {host} was being looked up");
                    return Err(AdhocError::new(Reason::DeadlinePassed, detail));
                }
                Err(_) => {
                    return Err(AdhocError::new(Reason::DnsFailed, format!("the lookup of {host} took too long")));
                }
            }
        }
    }

    /// The names and addresses in use, for `/state`.
    pub fn peers(&self) -> Vec<Arc<Peer>> {
        let mut peers = self.dialled.peers();
        peers.extend(self.entries.lock().values().map(|entry| entry.peer.clone()));
        peers
    }

    /// The peer at the address that a captured connection was going to.
    ///
    /// # Errors
    /// The address may not be dialled.
    pub fn at(&self, going: Going, now: Instant) -> Result<Arc<Peer>, AdhocError> {
        self.dialled.peer(going, &self.rules.load(), &|| self.metrics().clone(), now)
    }

    /// The counters of all that the file does not list.
    fn metrics(&self) -> &Arc<PeerMetrics> {
        self.metrics.get_or_init(|| self.shared.metrics.peer(&PeerName::new(COUNTED_AS)))
    }

    fn find(
        self: &Arc<Self>,
        host: &str,
        port: u16,
        now: Instant,
    ) -> Result<(Arc<Peer>, watch::Receiver<State>), AdhocError> {
        let key: Key = (host.into(), port);
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&key)
            && entry.state.has_changed().is_ok()
        {
            entry.used = now;
            return Ok((entry.peer.clone(), entry.state.clone()));
        }
        let full = |_| AdhocError::new(Reason::Overloaded, format!("too many names wait to be looked up, {host} too"));
        let place = self.asks.try_reserve().map_err(full)?;
        let peer = self.make(&key)?;
        let (sender, state) = watch::channel(State::Waiting);
        if entries.len() >= MOST {
            evict(&mut entries);
        }
        place.send(Ask { host: key.0.clone(), port, peer: peer.clone(), state: sender, table: Arc::downgrade(self) });
        entries.insert(key, Entry { peer: peer.clone(), used: now, state: state.clone() });
        Ok((peer, state))
    }

    fn make(&self, (host, port): &Key) -> Result<Arc<Peer>, AdhocError> {
        let plan = PeerPlan {
            name: PeerName::new(format!("{host}:{port}")),
            kind: PeerKind::Adhoc,
            source: PeerSource {
                addresses: Addresses::Dns { host: host.to_string(), port: *port },
                protocol: Protocol::Auto,
                tls: None,
                mtls: None,
                to_app: None,
            },
            policy: self.policy.clone(),
            routes: crate::plan::peer::Routes::default(),
        };
        Peer::new(&plan, self.metrics().clone(), &self.shared).map_err(|error| AdhocError::new(Reason::Internal, error))
    }
}

/// Makes room for one: the name unused for longest goes. Those who wait for it still get their answer.
fn evict(entries: &mut HashMap<Key, Entry>) {
    let oldest = entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
    if let Some(key) = oldest {
        entries.remove(&key);
    }
}

impl Ask {
    /// Tells everyone where the name stands now.
    pub fn decide(&self, state: State) {
        self.state.send_replace(state);
    }

    /// Where it was last said to stand.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// For how long no one has asked for the name; `None` when it is forgotten and no one waits any more.
    pub fn idle(&self, now: Instant) -> Option<Duration> {
        let table = self.table.upgrade()?;
        let entries = table.entries.lock();
        let entry = entries.get(&(self.host.clone(), self.port)).filter(|entry| Arc::ptr_eq(&entry.peer, &self.peer));
        match entry {
            Some(entry) => Some(now.saturating_duration_since(entry.used)),
            None => (self.state.receiver_count() > 0).then_some(Duration::ZERO),
        }
    }

    /// Forgets the name if no one has used it for `idle`; whether it is forgotten.
    pub fn forget(&self, now: Instant, idle: Duration) -> bool {
        let Some(table) = self.table.upgrade() else { return true };
        let key = (self.host.clone(), self.port);
        let mut entries = table.entries.lock();
        match entries.get(&key) {
            Some(entry) if Arc::ptr_eq(&entry.peer, &self.peer) => {
                let over = now.saturating_duration_since(entry.used) >= idle;
                if over {
                    entries.remove(&key);
                }
                over
            }
            _ => true,
        }
    }

    /// Ends when the table has forgotten the name and no one waits for it.
    pub async fn forgotten(&self) {
        self.state.closed().await;
    }
}

/// How a peer is called that the file says nothing about: as a listed one without `balance` and `timeout`.
pub fn default_policy() -> PeerPolicy {
    PeerPolicy {
        balance: Balance::PeakEwma,
        connect_timeout: Duration::from_secs(1),
        request_timeout: None,
        body_idle: Duration::from_secs(60),
        tunnel_idle: Duration::from_secs(3600),
        keep_alive: Duration::from_secs(4),
        ..PeerPolicy::default()
    }
}

#[cfg(test)]
#[path = "adhoc_tests.rs"]
mod tests;
