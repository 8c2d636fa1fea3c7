//! Names and addresses as types of their own, so that no two of them can be swapped by accident.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// The name of a peer as the file gives it; the app behind the inbound door is a peer called `app`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerName(Arc<str>);

impl PeerName {
    /// Wraps a name.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place that can be listened on or connected to: `ip:port`, `[ip6]:port` or `unix:/path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Addr {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix stream socket's path.
    Unix(Arc<Path>),
}

impl Addr {
    /// The TCP address, if it is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(addr) => Some(*addr),
            Self::Unix(_) => None,
        }
    }

    /// Whether only this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Tcp(addr)
    }
}

/// Why a text is not an [`Addr`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`")]
pub struct NotAnAddr;

impl FromStr for Addr {
    type Err = NotAnAddr;

    fn from_str(text: &str) -> Result<Self, NotAnAddr> {
        match text.strip_prefix("unix:") {
            Some(path) if path.len() > 1 && path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path).into())),
            Some(_) => Err(NotAnAddr),
            None => text.parse().map(Self::Tcp).map_err(|_| NotAnAddr),
        }
    }
}

/// Which door a connection came through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Door {
    /// From the network to the app.
    Inbound,
    /// From the app to the network.
    Outbound,
}

impl Door {
    /// The word in logs, metrics and answers.
    pub fn word(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The address of the party at the other end of an accepted connection; a Unix socket has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddr(pub Option<SocketAddr>);

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_and_write_the_same_text() {
        for text in ["127.0.0.1:80", "[::1]:8080", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<Addr>().unwrap().to_string(), text);
        }
        for text in ["localhost:80", "127.0.0.1", "unix:", "unix:/", "unix:relative", ":80", ""] {
            assert_eq!(text.parse::<Addr>(), Err(NotAnAddr), "{text}");
        }
    }
}
