//! A point in time that is carried down a call; every wait on the way is cut to what remains of it.

use std::time::Duration;

use tokio::time::Instant;

/// The latest moment at which an answer is still of use; `NONE` never passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Never passes.
    pub const NONE: Self = Self(None);

    /// Passes at `at`.
    pub fn at(at: Instant) -> Self {
        Self(Some(at))
    }

    /// Passes `limit` after `now`; without a limit, or past the end of time, never.
    pub fn after(now: Instant, limit: Option<Duration>) -> Self {
        Self(limit.and_then(|limit| now.checked_add(limit)))
    }

    /// The earlier of the two.
    pub fn min(self, other: Self) -> Self {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Self(Some(a.min(b))),
            (a, b) => Self(a.or(b)),
        }
    }

    /// The moment, if there is one.
    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// What is left at `now`: `None` without a deadline, zero once it has passed.
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(now))
    }

    /// Whether it has passed at `now`.
    pub fn passed(self, now: Instant) -> bool {
        self.0.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_deadline_wins() {
        let now = Instant::now();
        let (soon, late) =
            (Deadline::after(now, Some(Duration::from_secs(1))), Deadline::after(now, Some(Duration::from_secs(2))));
        assert_eq!(soon.min(late), soon);
        assert_eq!(Deadline::NONE.min(late), late);
        assert_eq!(late.min(Deadline::NONE), late);
        assert_eq!(Deadline::after(now, Some(Duration::MAX)), Deadline::NONE);
        assert_eq!(soon.remaining(now + Duration::from_secs(3)), Some(Duration::ZERO));
        assert!(soon.passed(now + Duration::from_secs(1)) && !soon.passed(now) && !Deadline::NONE.passed(now));
    }
}
