//! The whole program as a process on loopback, seen from outside: one binary of integration tests.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests may fail loudly"
)]

mod harness;

mod all_on;
mod balance;
mod ca;
mod check;
mod demo;
mod drain;
mod ejection;
mod failure;
mod fallback;
mod grpc;
mod handshakes;
mod heads;
mod health;
mod hedge;
mod http1;
mod http2;
mod jwt;
mod limits;
mod memory;
mod mtls;
mod mtls_peers;
mod names;
mod policy;
mod redirect;
mod reload;
mod retries;
mod rotation;
mod routes;
mod secrets;
mod start;
mod tcp;
mod together;
mod traps;
#[cfg(feature = "spiffe")]
mod workload_api;
