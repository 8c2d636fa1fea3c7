//! TLS to callers and to peers outside the mesh.

pub mod certificate;
pub mod client;
pub mod files;
pub mod server;
