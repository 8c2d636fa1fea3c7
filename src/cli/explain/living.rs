//! The endpoints that the peers of a running sidecar have now, as its admin server tells.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::cli::strict::state;

/// Peers with the addresses of their endpoints.
#[derive(Debug, Deserialize)]
pub struct Living {
    peers: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
struct Peer {
    name: String,
    kind: String,
    endpoints: Vec<Endpoint>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    address: String,
}

impl Living {
    /// Asks the sidecar whose admin server listens there.
    ///
    /// # Errors
    /// It does not answer as one.
    pub fn ask(admin: &str) -> Result<Self, String> {
        state(admin)
    }

    /// The addresses of a peer of the file.
    pub fn addresses(&self, peer: &str) -> impl Iterator<Item = SocketAddr> {
        let named = self.peers.iter().filter(move |one| one.kind == "named" && one.name == peer);
        named.flat_map(|one| &one.endpoints).filter_map(|endpoint| endpoint.address.parse().ok())
    }

    /// Whether a peer of the file has an endpoint there.
    pub fn has(&self, peer: &str, address: &str) -> bool {
        let mut named = self.peers.iter().filter(|one| one.kind == "named" && one.name == peer);
        named.any(|one| one.endpoints.iter().any(|endpoint| endpoint.address == address))
    }
}
