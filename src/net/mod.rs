//! Bytes and sockets; knows no routes.

pub mod io;
