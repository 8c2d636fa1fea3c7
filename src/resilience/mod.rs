//! Small machines that decide; every method takes `now`, none awaits.

pub mod load;
pub mod pick;
