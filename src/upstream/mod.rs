//! The living side of the plan: peers, endpoints, pools, connections.

pub mod adhoc;
#[cfg(test)]
mod again_tests;
pub mod choice;
#[cfg(test)]
mod choice_tests;
pub mod connect;
pub mod dialled;
pub mod endpoint;
pub mod guards;
pub mod http1;
pub mod http2;
pub mod in_flight;
pub mod keepalive;
pub mod lease;
mod mesh;
pub mod outgoing;
pub mod peer;
pub mod ping;
pub mod pool;
pub mod room;
mod roster;
pub mod state;
pub mod stream;
pub mod unread;
pub mod world;

#[cfg(test)]
mod guards_tests;
#[cfg(test)]
mod patience_tests;
#[cfg(test)]
mod rig;
#[cfg(test)]
mod roster_tests;
