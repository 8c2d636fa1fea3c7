//! Everything that watches or changes the house; never on the path of a request.

pub mod files;
pub mod lookups;
pub mod refresh;
pub mod watch;
