//! Small machines that decide; every method takes `now`, none awaits.

pub mod calm;
pub mod load;
pub mod pick;
