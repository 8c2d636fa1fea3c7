//! When a name is looked up again: floor, ceiling and jitter of a time to live, and the back-off while servers fail.

use std::time::Duration;

use crate::plan::DnsPlan;

/// How long a negative answer without an SOA record holds; RFC 2308 §5 gives such answers no time to live of their own.
pub const WITHOUT_SOA: Duration = Duration::from_secs(10);

/// No name is asked for more often than this, whatever the floor and the time to live.
const LEAST: Duration = Duration::from_millis(100);

const BACKOFF_FIRST: Duration = Duration::from_millis(500);
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// The bounds within which answers are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// An answer is used at least this long.
    pub floor: Duration,
    /// An answer is used at most this long.
    pub ceiling: Duration,
    /// How long the last good answer is kept once the servers fail.
    pub stale_for: Duration,
}

impl From<&DnsPlan> for Times {
    fn from(plan: &DnsPlan) -> Self {
        Self { floor: plan.floor, ceiling: plan.ceiling.max(plan.floor), stale_for: plan.stale_for }
    }
}

impl Times {
    /// How soon a name may be asked for again, whatever the reason.
    pub fn soonest(&self) -> Duration {
        self.floor.max(LEAST)
    }

    /// How long an answer with this time to live (`None`: it has no end) is used before the name is asked for again.
    ///
    /// `roll`, from 0 to 1, places the moment between 0.8 and 1.0 of the time to live, so that many sidecars that
    /// started together do not ask together for ever; at the floor the spread goes upwards instead.
    pub fn refresh_in(&self, ttl: Option<Duration>, roll: f64) -> Duration {
        let ttl = ttl.unwrap_or(self.ceiling).clamp(self.floor, self.ceiling);
        let least = ttl.mul_f64(0.8).max(self.floor);
        let most = ttl.max(self.floor.mul_f64(1.25));
        (least + most.saturating_sub(least).mul_f64(roll.clamp(0.0, 1.0))).max(LEAST)
    }
}

/// How long to wait after the `tries`th failure in a row (from 1): half a second doubling up to half a minute, of which
/// `roll`, from 0 to 1, takes off up to a half.
pub fn backoff(tries: u32, roll: f64) -> Duration {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << tries.saturating_sub(1).min(10));
    doubled.min(BACKOFF_MOST).mul_f64(0.5 + 0.5 * roll.clamp(0.0, 1.0))
}

/// A time to live as RFC 2181 §8 reads it: values with the top bit set are zero.
pub fn seconds(ttl: u32) -> Duration {
    if ttl > i32::MAX.unsigned_abs() { Duration::ZERO } else { Duration::from_secs(u64::from(ttl)) }
}

/// The earlier end of two; `None` has no end.
pub fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Times =
        Times { floor: Duration::from_secs(1), ceiling: Duration::from_secs(300), stale_for: Duration::from_secs(600) };

    #[test]
    fn a_refresh_lies_between_four_fifths_and_the_whole_of_the_time_to_live() {
        for (ttl, roll, millis) in [
            (Some(100), 0.0, 80_000),
            (Some(100), 0.5, 90_000),
            (Some(100), 1.0, 100_000),
            (Some(0), 0.0, 1_000),
            (Some(0), 1.0, 1_250),
            (Some(1), 1.0, 1_250),
            (Some(86_400), 0.0, 240_000),
            (Some(86_400), 1.0, 300_000),
            (None, 1.0, 300_000),
            (Some(100), 7.0, 100_000),
            (Some(100), -7.0, 80_000),
        ] {
            let got = TIMES.refresh_in(ttl.map(Duration::from_secs), roll);
            assert_eq!(got.as_millis(), millis, "ttl {ttl:?} roll {roll}");
        }
    }

    #[test]
    fn without_a_floor_an_answer_of_no_time_is_still_no_hot_loop() {
        let none = Times { floor: Duration::ZERO, ceiling: Duration::from_millis(1), ..TIMES };
        assert_eq!(none.refresh_in(Some(Duration::ZERO), 0.0), LEAST);
        assert_eq!(none.refresh_in(None, 1.0), LEAST);
    }

    #[test]
    fn a_back_off_doubles_to_its_bound_and_is_halved_at_most() {
        for (tries, roll, millis) in
            [(1, 1.0, 500), (1, 0.0, 250), (2, 1.0, 1_000), (3, 1.0, 2_000), (7, 1.0, 30_000), (u32::MAX, 0.0, 15_000)]
        {
            assert_eq!(backoff(tries, roll).as_millis(), millis, "{tries} {roll}");
        }
    }

    #[test]
    fn a_time_to_live_with_the_top_bit_set_is_zero() {
        assert_eq!(seconds(5), Duration::from_secs(5));
        assert_eq!(seconds(0x8000_0000), Duration::ZERO);
    }
}
