//! Bytes and sockets; knows no routes.

pub mod accept;
pub mod clocked;
pub mod io;
pub mod origdst;
pub mod prefixed;
pub mod pump;
pub mod sniff;
