//! Tests of identities with real handshakes over pipes in memory.

mod chains;
mod files;
mod handshakes;
pub(crate) mod kit;
mod proofs;
mod properties;
mod resumption;
mod rows;
