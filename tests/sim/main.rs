//! A tree of services under scripted faults, in virtual time: what our defaults make of them beside those of others.
//!
//! `cargo test --test sim` asserts our targets; `cargo test --test sim -- --ignored --nocapture` prints the tables and
//! writes them and the plot to `docs/`. `docs/simulation.md` says what is modelled and what is not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may fail loudly")]

mod clock;
mod contenders;
mod others;
mod ours;
mod plot;
mod report;
mod services;
mod sidecar;
mod tables;
mod targets;
mod world;
