//! How tasks are owned and how the program ends.

pub mod drain;
pub mod shutdown;
pub mod tasks;
