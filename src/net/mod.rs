//! Bytes and sockets; knows no routes.

pub mod accept;
pub mod clocked;
pub mod dial;
pub mod here;
pub mod io;
pub mod lenient;
pub mod origdst;
#[cfg(test)]
pub mod pipes;
pub mod prefixed;
pub mod pump;
pub mod sniff;
