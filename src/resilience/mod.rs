//! Small machines that decide; every method takes `now`, none awaits.

pub mod backoff;
pub mod budget;
pub mod load;
pub mod pick;
pub mod verdict;
mod window;
