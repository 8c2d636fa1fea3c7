//! The document made true: immutable, complete, checked. Pure: it never awaits, reads a clock or opens anything.

pub mod build;
pub mod capture;
pub mod claims;
pub mod control_file;
pub mod door;
pub mod egress;
pub mod fallback;
pub mod health;
pub mod host;
pub mod hosts;
pub mod identity;
pub mod jwt;
pub mod keyhash;
pub mod matching;
pub mod path;
pub mod peer;
pub mod policy;
pub mod redirect;
pub mod route;
pub mod rules;
pub mod virtual_ips;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::ids::Addr;
use crate::telemetry::{access, line};
use capture::Capture;
use door::{DoorPlan, Egress, Mtls};
use hosts::HostTable;
use identity::IdentityPlan;
use jwt::JwtPlan;
use peer::PeerPlan;
use policy::Policy;
use rules::DoorGates;
use virtual_ips::VirtualIps;

/// Everything the file means, with every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The name of the service this sidecar stands beside.
    pub service: Arc<str>,
    /// Data threads, at least 1.
    pub workers: usize,
    /// How long a shutdown may take in all.
    pub grace: Duration,
    /// The admin server; `None` where the file says `off`.
    pub admin: Option<AdminPlan>,
    /// A second, read-only server for probes and scrapers.
    pub status: Option<SocketAddr>,
    /// Who this sidecar is and whom it trusts; `None` where nothing speaks mutual TLS.
    pub identity: Option<Arc<IdentityPlan>>,
    /// Every listener, in the order they are bound.
    pub doors: Vec<Arc<DoorPlan>>,
    /// Every peer: first the apps behind the inbound doors, then the named ones in the file's order.
    pub peers: Vec<PeerPlan>,
    /// Which authority belongs to which peer; used by the shared outbound doors.
    pub hosts: HostTable,
    /// The virtual address of each host of a peer.
    pub virtual_ips: VirtualIps,
    /// What happens to names that no peer has.
    pub egress: Egress,
    /// What is captured; `None` in explicit mode.
    pub capture: Option<Capture>,
    /// What rules of the kernel are to send here, with `capture`.
    pub redirect: Option<Arc<redirect::Capture>>,
    /// How names are resolved.
    pub dns: DnsPlan,
    /// What is written for each exchange.
    pub access_log: AccessLogPlan,
    /// What may come through each side in all.
    pub gates: DoorGates,
    /// Who may ask what of the service.
    pub policy: Policy,
    /// Whose tokens are believed; `None` where none are looked at.
    pub jwt: Option<Arc<JwtPlan>>,
    /// Fields that rules or tokens judge in heads, and that no trailer may bring to the service after that.
    pub judged_fields: Option<Arc<[HeaderName]>>,
}

impl Plan {
    /// Whether any door asks for mutual TLS and lets plaintext in too.
    pub fn is_permissive(&self) -> bool {
        self.doors.iter().any(|door| door.mtls == Mtls::Permissive)
    }

    /// The peer that is meant by who dials a virtual address: the one that the host has at this port. `None` for an
    /// address that is nobody's, and where the host's peers have other ports only.
    pub fn virtual_peer(&self, addr: SocketAddr) -> Option<usize> {
        self.hosts.find(self.virtual_ips.name(addr.ip())?, addr.port())
    }
}

/// Where the admin server listens and who may change things through it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminPlan {
    /// Loopback or a Unix socket.
    pub listen: Addr,
    /// A file (mode 0600) whose text a mutation must carry as a bearer token when it comes over TCP.
    pub token: Option<PathBuf>,
}

/// How names are resolved (RFC 1035, 2308, 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsPlan {
    /// Where the DNS door listens, UDP and TCP at each; empty where there is none. Never asked by ourselves.
    pub listen: Vec<SocketAddr>,
    /// Servers to ask; empty means those of the system's resolv.conf.
    pub servers: Vec<SocketAddr>,
    /// An answer is used at least this long.
    pub floor: Duration,
    /// An answer is used at most this long.
    pub ceiling: Duration,
    /// How long the last good answer is kept when the servers fail.
    pub stale_for: Duration,
    /// How long one lookup may take in all.
    pub timeout: Duration,
    /// Whether /etc/hosts is read first.
    pub hosts_file: bool,
}

/// What is written for each exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLogPlan {
    /// Which exchanges are written.
    pub log: AccessLog,
    /// How a line looks.
    pub format: LogFormat,
}

impl AccessLogPlan {
    /// The same, in the access log's own words.
    pub fn choice(self) -> (access::Which, line::Format) {
        let which = match self.log {
            AccessLog::Off => access::Which::Off,
            AccessLog::Failures => access::Which::Failures,
            AccessLog::All => access::Which::All,
        };
        let format = match self.format {
            LogFormat::Text => line::Format::Text,
            LogFormat::Json => line::Format::Json,
        };
        (which, format)
    }
}

/// Which exchanges are written to the access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// None.
    Off,
    /// Those with a reason, or with a 5xx status.
    Failures,
    /// All.
    All,
}

/// How a line of the access log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value` words.
    Text,
    /// One JSON object.
    Json,
}
