//! A peer as planned: where its endpoints come from (`PeerSource`) and how it is called (`PeerPolicy`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::door::Protocol;
use super::fallback::Fallback;
use super::health::HealthRule;
use super::route::{Route, Sticky};
use super::rules::{Rules, Share, SubsetRule};
use crate::ids::{Addr, PeerName};
use crate::spiffe::{IdMatch, SpiffeId};

/// One peer. A reload that changes only the policy keeps the living state of the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPlan {
    /// Its name; unique.
    pub name: PeerName,
    /// Whether it is the service behind the inbound door, a named peer or one made up for an unlisted name.
    pub kind: PeerKind,
    /// Where its endpoints come from.
    pub source: PeerSource,
    /// How it is called.
    pub policy: Arc<PeerPolicy>,
    /// What happens to some of its requests.
    pub routes: Routes,
}

/// The routes of a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routes {
    /// In the order of the file; the first that means a request takes it.
    pub list: Vec<Arc<Route>>,
    /// Whether one of them looks at paths, which must be normal then.
    pub by_path: bool,
}

/// What sort of peer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// The service behind an inbound door.
    App,
    /// Listed under `peers:`.
    Named,
    /// An unlisted name that was passed.
    Adhoc,
}

/// What, when changed, makes it another peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerSource {
    /// Where the addresses come from.
    pub addresses: Addresses,
    /// What is spoken to it.
    pub protocol: Protocol,
    /// TLS with a server certificate, where asked for.
    pub tls: Option<ClientTlsPlan>,
    /// Mutual TLS, and who the peer may prove to be: any of these.
    pub mtls: Option<Arc<[IdMatch]>>,
    /// How connections to it are made, where it is the service behind doors that captured connections come to.
    pub to_app: Option<ToApp>,
}

/// Connections to the service past the kernel's rules, which would capture them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ToApp {
    /// The caller's address, from which they are made so that the service sees it (TPROXY); `None` is this machine's.
    pub from: Option<IpAddr>,
}

/// Where the addresses of a peer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Addresses {
    /// From the file itself.
    Static(Vec<EndpointSpec>),
    /// A and AAAA records of a name, and a port.
    Dns {
        /// The name as written.
        host: String,
        /// The port.
        port: u16,
    },
    /// SRV records of a name (RFC 2782).
    Srv {
        /// The name as written.
        name: String,
    },
    /// The control file, watched.
    File {
        /// Its path, made absolute against the configuration's folder.
        path: PathBuf,
    },
}

/// TLS towards a peer outside the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientTlsPlan {
    /// Whom to trust.
    pub roots: Roots,
    /// The name in the ClientHello and to check the certificate against.
    pub sni: String,
}

/// Whom to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// The system's store.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// One address of a peer with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Where to connect.
    pub addr: Addr,
    /// Share of the traffic relative to the others; 0 takes none.
    pub weight: u32,
    /// SRV priority: the lowest with an endpoint is used (RFC 2782).
    pub priority: u16,
    /// Where it runs.
    pub zone: Option<Arc<str>>,
    /// The SPIFFE ID it must prove once identity is in force.
    pub identity: Option<SpiffeId>,
    /// Free facts about it; `None` where there are none.
    pub metadata: Option<Arc<BTreeMap<String, String>>>,
}

impl EndpointSpec {
    /// An address with nothing else known about it.
    pub fn bare(addr: Addr) -> Self {
        Self { addr, weight: 1, priority: 0, zone: None, identity: None, metadata: None }
    }
}

/// How a peer is called; may change without touching its connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerPolicy {
    /// Which endpoint takes the next request.
    pub balance: Balance,
    /// What requests stick to an endpoint by; given where the balance goes by a key.
    pub affinity: Option<Affinity>,
    /// Where requests stick: what an endpoint takes at most, relative to its fair part; `None` is no bound.
    pub bounded_load: Option<Share>,
    /// Where this sidecar runs: endpoints of the same zone are preferred.
    pub zone: Option<Arc<str>>,
    /// The parts of its endpoints that routes name, each once.
    pub subsets: Vec<Arc<SubsetRule>>,
    /// The age, give or take a tenth, at which an HTTP/2 connection is replaced; `None` is never.
    pub connection_age: Option<Duration>,
    /// One connection attempt, TCP and TLS together.
    pub connect_timeout: Duration,
    /// From the request's head to the answer's last byte; `None` is no limit.
    pub request_timeout: Option<Duration>,
    /// An answer's body, or a request's, that stands still.
    pub body_idle: Duration,
    /// Tunnels that stand still.
    pub tunnel_idle: Duration,
    /// Idle HTTP/1 connections, until the server's own keep-alive is learned.
    pub keep_alive: Duration,
    /// What the machines of resilience go by.
    pub rules: Rules,
    /// How its endpoints are asked whether they are well; `None` is not at all.
    pub health: Option<Arc<HealthRule>>,
    /// What a caller gets where there is no answer.
    pub fallback: Option<Arc<Fallback>>,
}

impl Default for PeerPolicy {
    fn default() -> Self {
        Self {
            balance: Balance::PeakEwma,
            affinity: None,
            bounded_load: None,
            zone: None,
            subsets: Vec::new(),
            connection_age: Some(Duration::from_secs(600)),
            connect_timeout: Duration::from_secs(1),
            request_timeout: None,
            body_idle: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(4),
            rules: Rules::default(),
            health: None,
            fallback: None,
        }
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// Peak EWMA of latency times load over two random choices; failures count as slow.
    PeakEwma,
    /// Fewest requests in flight over two random choices.
    LeastRequest,
    /// In turn.
    RoundRobin,
    /// By chance.
    Random,
    /// By a key, on a ring of hashes: an endpoint that comes or goes moves its own keys only.
    RingHash,
    /// By a key, in Maglev's table: more even than a ring, and few other keys move.
    Maglev,
}

impl Balance {
    /// Its name in the file and in `/state`.
    pub fn word(self) -> &'static str {
        match self {
            Self::PeakEwma => "peak-ewma",
            Self::LeastRequest => "least-request",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::RingHash => "ring-hash",
            Self::Maglev => "maglev",
        }
    }

    /// Whether requests with the same key go to the same endpoint.
    pub fn goes_by_key(self) -> bool {
        matches!(self, Self::RingHash | Self::Maglev)
    }
}

/// What requests stick to an endpoint by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affinity {
    /// The address of the caller.
    Source,
    /// Something in its fields.
    Sticky(Sticky),
}
