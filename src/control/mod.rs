//! Everything that watches or changes the house; never on the path of a request.

pub mod admin;
pub mod certs;
pub mod child;
pub mod dnsdoor;
pub mod fetch;
pub mod files;
pub mod inside;
pub mod judge;
pub mod jwks;
pub mod load;
pub mod lookups;
pub mod probe;
pub mod ready;
pub mod refresh;
pub mod reload;
pub mod signals;
pub mod spiffe;
#[cfg(test)]
pub(crate) mod testing;
pub mod unlisted;
pub mod watch;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::ids::PeerName;
use crate::jwt::source::SourceState;
use crate::life::drain::Drain;
use crate::plan::Plan;
use crate::telemetry::metrics::Metrics;
use crate::tls::state::IdentityState;
use crate::upstream::state::{LimitState, PeerState};
use dnsdoor::DnsState;

/// What is in force, as the admin server asks for it.
pub trait Rooms: Send + Sync + 'static {
    /// The plan in force.
    fn plan(&self) -> Arc<Plan>;
    /// The peers' living state, those made up for unlisted names included.
    fn peers(&self) -> Vec<PeerState>;
    /// The limits of each door and route, with what is used of them.
    fn gates(&self) -> BTreeMap<String, BTreeMap<&'static str, LimitState>> {
        BTreeMap::new()
    }
    /// What is remembered of the addresses that captured connections were going to.
    fn destinations(&self) -> Vec<Destination> {
        Vec::new()
    }
    /// The DNS door, where there is one.
    fn dns(&self) -> Option<DnsState> {
        None
    }
    /// Who this sidecar is; `None` without an identity.
    fn identity(&self) -> Option<IdentityState> {
        None
    }

    /// Why this sidecar has no identity, where its file says that it has one.
    fn lacks_identity(&self) -> Option<Arc<str>> {
        None
    }

    /// The issuers whose tokens are believed.
    fn issuers(&self) -> Vec<SourceState> {
        Vec::new()
    }
    /// Peers whose first discovery answer has not come.
    fn pending(&self) -> Vec<PeerName>;
}

/// An address that captured connections were going to.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Destination {
    /// The address.
    pub address: SocketAddr,
    /// What the last connection there spoke: `http`, `tls`, `opaque` or `server-first`; absent before it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spoken: Option<&'static str>,
    /// Whether it is known to answer HTTP, so that it is not dialled before the caller has spoken.
    pub answers_http: bool,
}

/// The whole as seen from the control thread.
pub struct House {
    /// What is in force.
    pub rooms: Arc<dyn Rooms>,
    /// Everything that is counted.
    pub metrics: Arc<Metrics>,
    /// When the process started, by the wall clock.
    pub started: SystemTime,
    /// The same, for durations.
    pub since: Instant,
    /// The program's own drain: `Draining` begins the shutdown.
    pub stop: Drain,
    /// Set once every door is open.
    pub opened: ready::Opened,
    /// Asks for reloads.
    pub reloads: reload::Handle,
}
