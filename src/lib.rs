//! Outrigger, a service-mesh sidecar proxy: two doors (inbound, outbound), one corridor (the exchange), one wall map
//! (the `World`) that is replaced whole and never edited.
//!
//! The rooms stand in reading order, ground floor first; a room imports only from rooms on lower floors
//! (`tests/tidy.rs` enforces it, `ARCHITECTURE.md` explains it).

#![forbid(unsafe_code)]

// floor 0: names and facts
pub mod condition;
pub mod deadline;
pub mod ids;
pub mod reason;
pub mod spiffe;
// floor 1: tasks, shutdown, files, telemetry
pub mod files;
pub mod life;
pub mod telemetry;
// floor 2: the document as written
pub mod config;
// floor 3: the document made true
pub mod plan;
// floor 4: machines that decide
pub mod resilience;
// floor 5: bytes, names, heads
pub mod dns;
pub mod http;
pub mod jwt;
pub mod net;
pub mod redirect;
pub mod tls;
// floor 6: the living side of the plan
pub mod upstream;
// floor 7: one call to a peer
pub mod call;
// floor 8: the life of a request
pub mod proxy;
// floor 9: what watches or changes the house
pub mod control;
// floor 10: wiring
pub mod app;
pub mod cli;
