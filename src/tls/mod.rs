//! TLS to callers and to peers: identities of the mesh by SPIFFE, and plain server certificates outside it.

pub mod certificate;
pub mod client;
mod der;
pub mod expiry;
pub mod facts;
pub mod files;
pub mod identity;
mod judged;
pub mod material;
pub mod proof;
mod revocation;
pub mod server;
pub mod state;
pub mod store;
#[cfg(test)]
pub(crate) mod tests;
pub mod trust;
pub mod untrusted;
pub mod verify;
