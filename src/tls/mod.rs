//! TLS to callers and to peers outside the mesh.

pub mod client;
pub mod files;
pub mod server;
