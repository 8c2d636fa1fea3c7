//! Virtual time: what happens next, and chance that is the same for every run of a seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Microseconds since the beginning of a run.
pub(crate) type Micros = u64;

/// A millisecond.
pub(crate) const MS: Micros = 1_000;
/// A second.
pub(crate) const SECOND: Micros = 1_000_000;

/// What is still to happen, the soonest first; of two at one time the one that was said first.
pub(crate) struct Clock<E> {
    now: Micros,
    said: u64,
    events: BinaryHeap<Reverse<(Micros, u64, E)>>,
}

impl<E: Ord> Clock<E> {
    /// Nothing is to happen yet.
    pub(crate) fn new() -> Self {
        Self { now: 0, said: 0, events: BinaryHeap::new() }
    }

    /// How late it is.
    pub(crate) fn now(&self) -> Micros {
        self.now
    }

    /// Something is to happen after so long.
    pub(crate) fn after(&mut self, wait: Micros, event: E) {
        self.said += 1;
        self.events.push(Reverse((self.now + wait, self.said, event)));
    }

    /// Goes on to what happens next.
    pub(crate) fn next(&mut self) -> Option<E> {
        let Reverse((at, _, event)) = self.events.pop()?;
        self.now = at;
        Some(event)
    }
}

/// A time between two events, or that work takes: exponential around `mean`, at most eight times that.
pub(crate) fn around(mean: Micros) -> Micros {
    let even = fastrand::f64().max(f64::MIN_POSITIVE);
    (mean as f64 * (-even.ln()).min(8.0)) as Micros
}
