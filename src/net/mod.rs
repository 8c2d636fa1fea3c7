//! Bytes and sockets; knows no routes.

pub mod accept;
pub mod clocked;
pub mod dial;
pub mod here;
pub mod inside;
pub mod io;
pub mod lenient;
pub mod origdst;
pub mod ours;
pub mod passing;
#[cfg(test)]
pub mod pipes;
pub mod prefixed;
pub mod pump;
pub mod sniff;
