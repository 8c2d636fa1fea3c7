//! What each listener does with the connections it accepts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::ids::{Addr, Door};

/// One listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoorPlan {
    /// Which way its traffic goes.
    pub side: Door,
    /// Where it listens.
    pub listen: Addr,
    /// Whether failing to bind it is no error (the `[::1]` half of a default where IPv6 is off).
    pub optional: bool,
    /// Where its traffic goes.
    pub leads: Leads,
    /// What is spoken on it; a declared protocol is binding.
    pub protocol: Protocol,
    /// A certificate to serve plain HTTPS with, inbound only.
    pub tls: Option<ServerTlsPlan>,
    /// Whether callers must prove who they are, inbound only.
    pub mtls: Mtls,
    /// Whose TLS is handed through untouched.
    pub passthrough: Arc<[PassedName]>,
    /// Whether all TLS is handed through untouched, whatever its SNI name.
    pub passes_all: bool,
    /// Upgrade tokens besides `websocket` that may tunnel, in lower case.
    pub upgrades: Arc<[String]>,
    /// The networks whose `Forwarded` and `X-Forwarded-*` are believed.
    pub trusted: Arc<[IpNet]>,
    /// Bounds on what one caller can take.
    pub limits: DoorLimits,
}

impl DoorPlan {
    /// Whether TLS for this server name, in lower case, at the port that the caller dialled is listed to be handed through.
    pub fn passes(&self, sni: &str, port: Option<u16>) -> bool {
        let at = |only: Option<u16>| only.is_none() || only == port;
        self.passes_all || self.passthrough.iter().any(|passed| at(passed.port) && passed.means(sni))
    }
}

/// A server name whose TLS is handed through untouched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedName {
    /// In lower case; `*.` matches one or more labels.
    pub name: String,
    /// Only where this port was dialled.
    pub port: Option<u16>,
}

impl PassedName {
    fn means(&self, sni: &str) -> bool {
        match self.name.strip_prefix("*.") {
            Some(suffix) => sni.strip_suffix(suffix).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.')),
            None => self.name == sni,
        }
    }
}

/// Where a door's traffic goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// To one peer, by its index in [`super::Plan::peers`]: the app, or the peer with a local port of its own.
    Peer(usize),
    /// To whichever peer the authority names; an HTTP forward proxy. A captured connection whose authority says nothing
    /// goes by its address.
    ByAuthority,
    /// To the very address and port that the caller dialled, which are this machine's.
    Dialled,
}

/// The protocol of a listener or peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// At a door: found by looking. At a peer: by ALPN, else the caller's own version.
    Auto,
    /// HTTP/1.0 and 1.1.
    Http1,
    /// HTTP/2, with prior knowledge or by ALPN.
    Http2,
    /// Opaque bytes.
    Tcp,
}

/// Whether the callers of a door must prove who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mtls {
    /// Nobody is asked.
    #[default]
    Off,
    /// Whoever speaks TLS; plaintext is served too.
    Permissive,
    /// All; plaintext is refused.
    Strict,
}

/// Bounds on what one caller, or all of a door's callers, can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoorLimits {
    /// Open connections at this door.
    pub connections: usize,
    /// Bytes in a head.
    pub head: usize,
    /// Fields in a head.
    pub fields: usize,
    /// Bytes in a request's body; `None` is no limit.
    pub body: Option<u64>,
    /// From the first byte of a head to its end.
    pub head_timeout: Duration,
    /// Between two requests of one connection.
    pub keep_alive: Duration,
    /// Request bodies and unread answers that stand still.
    pub body_idle: Duration,
    /// Tunnels that stand still.
    pub tunnel_idle: Duration,
}

/// A certificate for serving TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsPlan {
    /// PEM, leaf first.
    pub certificate: PathBuf,
    /// PEM, PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// What happens to names that no peer has (decisions: deny unless the door is local).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Whether such names are dialled at all.
    pub otherwise: Otherwise,
    /// Names, addresses or networks that may be dialled although they are loopback, link-local, ….
    pub allow: Arc<[Allow]>,
    /// Every address this sidecar listens on; never dialled from any door.
    pub own: Arc<[Addr]>,
}

/// What happens to a name that no peer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Otherwise {
    /// It is resolved and dialled as an ad-hoc peer.
    Pass,
    /// It is refused.
    Deny,
}

/// One entry of `outbound.allow`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allow {
    /// A host name in lower case, with any port.
    Host(String),
    /// A network, with any port.
    Net(IpNet),
}
