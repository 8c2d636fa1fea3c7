//! One file per command; `main.rs` reads the arguments and calls them.

pub mod demo;
pub mod wait;
