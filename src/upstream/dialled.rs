//! Peers for addresses that the file does not list and a captured connection was going to: made when first needed, kept
//! in a bounded table, dropped when no one has used them for a while.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::adhoc::{AdhocError, Rules};
use super::peer::Peer;
use super::world::Upstreams;
use crate::ids::{Addr, PeerName};
use crate::net::here::{is_here, is_itself};
use crate::plan::door::Protocol;
use crate::plan::peer::{Addresses, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource, Routes, ToApp};
use crate::plan::rules::{RetryRule, Rules as CallRules};
use crate::reason::Reason;
use crate::telemetry::metrics::PeerMetrics;

/// Addresses that are kept.
pub const MOST: usize = 1024;
/// An address that no one has used for this long is dropped.
const IDLE: Duration = Duration::from_secs(300);
/// How often the table is looked through for such.
const TIDY: Duration = Duration::from_secs(60);
/// How long connecting may take that the caller believes has happened: about as patient as callers are themselves.
const PATIENCE: Duration = Duration::from_secs(30);
/// The name under which the ports of the service are counted that the file does not list.
pub const APPS: &str = "(app)";

/// Where a connection was going.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Going {
    /// Out, to an address that is no peer's.
    Out(SocketAddr),
    /// In, to a port of the service.
    In {
        /// The address.
        to: SocketAddr,
        /// What is spoken there.
        protocol: Protocol,
        /// The caller's own address, where it is kept.
        from: Option<IpAddr>,
    },
}

/// How an address outside is called, where unlisted names are called by `policy`.
pub fn outside(policy: &PeerPolicy) -> PeerPolicy {
    let retry = RetryRule { attempts: 1, ..policy.rules.retry.clone() };
    let rules = CallRules { retry, ..policy.rules.clone() };
    PeerPolicy { connect_timeout: PATIENCE, rules, ..policy.clone() }
}

struct Entry {
    peer: Arc<Peer>,
    used: Instant,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Going, Entry>,
    tidied: Option<Instant>,
}

/// The addresses in use.
pub struct Dialled {
    shared: Arc<Upstreams>,
    /// How an address outside is called.
    out: Arc<PeerPolicy>,
    /// Held from the first address on, so that the counters outlive the addresses.
    metrics: OnceLock<Arc<PeerMetrics>>,
    table: Mutex<Table>,
}

impl Dialled {
    /// An empty table. Addresses outside are called as `policy` says of unlisted names, but for what would show the
    /// caller that somebody stands between.
    pub(super) fn new(shared: Arc<Upstreams>, policy: &PeerPolicy) -> Self {
        let out = Arc::new(outside(policy));
        Self { shared, out, metrics: OnceLock::new(), table: Mutex::default() }
    }

    /// Forgets every address; connections that are open go on.
    pub(super) fn clear(&self) {
        self.table.lock().entries.clear();
    }

    /// The peer at an address, by the rules of the file in force. `outside` counts those that are not the service.
    ///
    /// # Errors
    /// `Looped` for this sidecar itself, `AddressRefused` for a port of the service that is not on this machine,
    /// `Overloaded` or `Internal`.
    pub(super) fn peer(
        &self,
        going: Going,
        rules: &Rules,
        outside: &dyn Fn() -> Arc<PeerMetrics>,
        now: Instant,
    ) -> Result<Arc<Peer>, AdhocError> {
        if let Some(entry) = self.table.lock().entries.get_mut(&going) {
            entry.used = now;
            return Ok(entry.peer.clone());
        }
        // Without the lock: the system is asked.
        let metrics = || match going {
            Going::Out(_) => outside(),
            Going::In { .. } => self.metrics.get_or_init(|| self.shared.metrics.peer(&PeerName::new(APPS))).clone(),
        };
        let peer = self.make(going, rules, metrics)?;
        let mut table = self.table.lock();
        table.make_room(now);
        let entry = table.entries.entry(going).or_insert(Entry { peer, used: now });
        Ok(entry.peer.clone())
    }

    /// The peers in use, for `/state`.
    pub(super) fn peers(&self) -> Vec<Arc<Peer>> {
        self.table.lock().entries.values().map(|entry| entry.peer.clone()).collect()
    }

    fn make(
        &self,
        going: Going,
        rules: &Rules,
        metrics: impl FnOnce() -> Arc<PeerMetrics>,
    ) -> Result<Arc<Peer>, AdhocError> {
        let (to, protocol, mut to_app) = match going {
            Going::Out(to) => (to, Protocol::Auto, None),
            Going::In { to, protocol, from } => (to, protocol, Some(ToApp { from })),
        };
        let mut addr = Addr::Tcp(to);
        if is_itself(&addr, &rules.egress) {
            let looped = || AdhocError::new(Reason::Looped, format!("{to} is a listener of this sidecar itself"));
            addr = rules.itself_at(to).filter(|_| going == Going::Out(to)).ok_or_else(looped)?;
            to_app = Some(ToApp { from: None });
        }
        let (name, kind, policy) = match going {
            Going::Out(_) if to_app.is_some() => (format!("app:{to}"), PeerKind::App, &rules.app),
            Going::Out(_) => (format!("{to}"), PeerKind::Adhoc, &self.out),
            // An inbound door is never a way to somebody else.
            Going::In { .. } if !is_here(to) => {
                return Err(AdhocError::new(Reason::AddressRefused, format!("{to} is not an address of this machine")));
            }
            Going::In { .. } => (format!("app:{to}"), PeerKind::App, &rules.app),
        };
        let addresses = Addresses::Static(vec![EndpointSpec::bare(addr)]);
        let source = PeerSource { addresses, protocol, tls: None, mtls: None, to_app };
        let plan =
            PeerPlan { name: PeerName::new(name), kind, source, policy: policy.clone(), routes: Routes::default() };
        Peer::new(&plan, metrics(), &self.shared).map_err(|error| AdhocError::new(Reason::Internal, error))
    }
}

impl Rules {
    /// Where the service is that others call at this address of this machine.
    fn itself_at(&self, to: SocketAddr) -> Option<Addr> {
        let same =
            |listen: &SocketAddr| listen.ip().is_unspecified() || listen.ip().to_canonical() == to.ip().to_canonical();
        let mut doors = self.itself.iter().filter(|(listen, _)| listen.port() == to.port() && same(listen));
        doors.next().map(|(_, app)| app.clone())
    }
}

impl Table {
    /// Makes room for one: those unused for long go, and if the table is still full the one unused for longest.
    fn make_room(&mut self, now: Instant) {
        let old = |entry: &Entry| now.saturating_duration_since(entry.used) >= IDLE;
        if self.tidied.is_none_or(|at| now.saturating_duration_since(at) >= TIDY) {
            self.tidied = Some(now);
            self.entries.retain(|_, entry| !old(entry));
        }
        if self.entries.len() >= MOST {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(going, _)| *going);
            oldest.map(|oldest| self.entries.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::tasks::Tasks;
    use crate::plan::door::{Egress, Otherwise};
    use crate::upstream::adhoc::default_policy;

    fn table() -> (Dialled, Rules) {
        let shared = Arc::new(Upstreams::new(Arc::default(), Tasks::default()));
        let own = Arc::from([Addr::Tcp(SocketAddr::from(([0, 0, 0, 0], 15006)))]);
        let egress = Egress { otherwise: Otherwise::Pass, allow: Arc::from([]), own };
        let rules =
            Rules { egress, timeout: Duration::from_secs(1), app: Arc::new(default_policy()), itself: Arc::default() };
        (Dialled::new(shared, &default_policy()), rules)
    }

    fn find(table: &Dialled, rules: &Rules, going: Going, now: Instant) -> Result<Arc<Peer>, Reason> {
        table.peer(going, rules, &Arc::default, now).map_err(|error| error.reason)
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_keeps_its_peer_and_the_table_its_bound() {
        let (table, rules) = table();
        let start = Instant::now();
        let out = |n: usize| Going::Out(SocketAddr::from(([10, 0, (n / 250) as u8, (n % 250) as u8], 80)));
        let first = find(&table, &rules, out(0), start).unwrap();
        assert_eq!((first.kind(), first.name().as_str()), (PeerKind::Adhoc, "10.0.0.0:80"));
        for n in 1..MOST {
            find(&table, &rules, out(n), start + Duration::from_secs(1)).unwrap();
        }
        // Used a moment ago: it is the second that goes.
        let later = start + Duration::from_secs(2);
        assert!(Arc::ptr_eq(&first, &find(&table, &rules, out(0), later).unwrap()));
        find(&table, &rules, out(MOST), later).unwrap();
        assert_eq!(table.peers().len(), MOST);
        assert!(Arc::ptr_eq(&first, &find(&table, &rules, out(0), later).unwrap()));
        // After five unused minutes an address is gone as soon as another one comes.
        find(&table, &rules, out(MOST + 1), later + IDLE).unwrap();
        assert_eq!(table.peers().len(), 1);
        table.clear();
        assert!(table.peers().is_empty());
    }

    #[test]
    fn neither_itself_nor_somebody_else_is_called_as_the_service() {
        let (table, rules) = table();
        let now = Instant::now();
        let here = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let app = |to| Going::In { to, protocol: Protocol::Auto, from: None };
        let other = SocketAddr::from(([192, 0, 2, 9], 8080));
        for (going, expect) in [
            (app(here(8080)), None),
            (app(here(15006)), Some(Reason::Looped)),
            (Going::Out(here(15006)), Some(Reason::Looped)),
            (app(other), Some(Reason::AddressRefused)),
            (Going::Out(other), None),
            (Going::Out(SocketAddr::from(([192, 0, 2, 9], 15006))), None),
            // What the service dials itself is its own affair.
            (Going::Out(SocketAddr::from(([169, 254, 169, 254], 80))), None),
        ] {
            assert_eq!(find(&table, &rules, going, now).err(), expect, "{going:?}");
        }
        // In a network of its own the service is itself behind that listener, and no other.
        let (_, mut within) = self::table();
        within.itself = Arc::from([(SocketAddr::from(([0, 0, 0, 0], 15006)), Addr::Tcp(here(9000)))]);
        assert_eq!(find(&table, &within, app(here(15006)), now).err(), Some(Reason::Looped));
        let found = find(&table, &within, Going::Out(here(15006)), now).unwrap();
        assert_eq!((found.kind(), found.to_app()), (PeerKind::App, Some(ToApp { from: None })));
        assert!(
            matches!(&found.source().addresses, Addresses::Static(specs) if specs[0].addr == Addr::Tcp(here(9000)))
        );
        let found = find(&table, &rules, app(here(8080)), now).unwrap();
        assert_eq!((found.kind(), found.name().as_str()), (PeerKind::App, "app:127.0.0.1:8080"));
    }
}
