//! Names to addresses, with their time to live; the last good answer is kept.

pub mod answer;
pub mod cache;
pub mod forward;
pub mod hosts;
pub mod keeper;
pub mod message;
pub mod own;
pub mod resolver;
pub mod routes;
pub mod servers;
pub mod sockets;
pub mod system;
#[cfg(test)]
pub mod testserver;
pub mod ttl;
pub mod wire;
