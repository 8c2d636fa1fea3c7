//! What a lookup came to, each address family on its own: one may fail while the other answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// What is known about the addresses of one family after a lookup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Family {
    /// The servers answered; no address is a positive answer that there is none.
    Known {
        /// The addresses.
        ips: Vec<IpAddr>,
        /// The shortest time to live on the way (RFC 2308's for an empty answer); `None` where nothing says.
        ttl: Option<Duration>,
    },
    /// No server answered, or not with an answer.
    Failed {
        /// What happened, for people.
        why: String,
    },
}

impl Family {
    /// An answer without an address and without a time to live.
    pub const NONE: Self = Self::Known { ips: Vec::new(), ttl: None };

    /// The addresses, if any are known.
    pub fn ips(&self) -> &[IpAddr] {
        match self {
            Self::Known { ips, .. } => ips,
            Self::Failed { .. } => &[],
        }
    }
}

/// The addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// From A records.
    pub v4: Family,
    /// From AAAA records.
    pub v6: Family,
    /// Whether the servers say that the name does not exist (NXDOMAIN), rather than that it has no address.
    pub absent: bool,
}

impl Found {
    /// Addresses known without asking a server.
    pub fn known(ips: impl IntoIterator<Item = IpAddr>, ttl: Option<Duration>) -> Self {
        let (v4, v6) = ips.into_iter().partition(IpAddr::is_ipv4);
        Self { v4: Family::Known { ips: v4, ttl }, v6: Family::Known { ips: v6, ttl }, absent: false }
    }

    /// All addresses, those of IPv4 first.
    pub fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.v4.ips().iter().chain(self.v6.ips()).copied()
    }

    /// The addresses at one port, as a peer's answer.
    pub fn at(self, host: &str, port: u16) -> Answers {
        let target = Target { name: host.into(), port, priority: 0, weight: 1, found: self };
        Answers { targets: vec![target], ttl: None, absent: false }
    }
}

/// Everything a lookup for a peer brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The hosts; none is a positive answer that there are none.
    pub targets: Vec<Target>,
    /// The time to live of the list itself (the SRV records), beside those of the addresses.
    pub ttl: Option<Duration>,
    /// Whether the list's own name does not exist (NXDOMAIN).
    pub absent: bool,
}

/// One host of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: Arc<str>,
    /// Its port.
    pub port: u16,
    /// RFC 2782: the lowest that can be reached is used.
    pub priority: u16,
    /// RFC 2782: share among those of one priority, at least 1.
    pub weight: u32,
    /// Its addresses.
    pub found: Found,
}

/// Why a lookup brought nothing at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// The text is no name that DNS could hold.
    #[error("`{name}` is not a host name: {why}")]
    BadName {
        /// The text.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// No server answered, or none with an answer.
    #[error("{0}")]
    Failed(String),
}
