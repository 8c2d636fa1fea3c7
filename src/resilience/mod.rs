//! Small machines that decide; every method takes `now`, none awaits.

pub mod admission;
pub mod backoff;
pub mod breaker;
pub mod budget;
pub mod calm;
pub mod concurrency;
pub mod gate;
pub mod hedge;
pub mod levels;
pub mod limit;
pub mod load;
pub mod maglev;
pub mod outlier;
pub mod pick;
pub mod priority;
pub mod rate;
pub mod ring;
pub mod subset;
#[cfg(test)]
mod together_tests;
pub mod verdict;
pub mod ward;
mod window;
