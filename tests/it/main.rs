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

mod balance;
mod ca;
mod check;
mod demo;
mod drain;
mod ejection;
mod failure;
mod fallback;
mod grpc;
mod heads;
mod health;
mod hedge;
mod http1;
mod http2;
mod limits;
mod memory;
mod mtls;
mod names;
mod policy;
mod reload;
mod retries;
mod routes;
mod start;
mod tcp;
mod together;
mod traps;
