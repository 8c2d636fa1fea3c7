//! When a second attempt is sent beside the first: after a fixed delay, or when the first has taken longer than nearly
//! all of the peer's recent answers.
//!
//! Whether it may be sent is decided by [`super::verdict::may_hedge`]: same safety, same budget as a retry.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::window::Clock;
use crate::plan::rules::{HedgeAfter, HedgeRule, Share};

/// Latencies are kept for one to two of these.
const GENERATION: Duration = Duration::from_secs(15);

/// Latencies below which a quantile is not believed: of fewer than twenty the 95th hundredth is the slowest.
const LEAST: u64 = 20;

/// The first bucket ends here, in microseconds, as a power of two; each further power has four buckets.
const FIRST_SHIFT: u32 = 6;

/// 1 + four for each power of two up to 2^27 µs (two minutes); the last takes what is slower.
const BUCKETS: usize = 1 + 4 * (27 - FIRST_SHIFT as usize);

/// The recent latencies of a peer, in two generations of buckets that are at most a quarter wide.
///
/// Adding is one atomic addition. A thread that adds at the very moment a generation is cleared may lose its sample.
#[derive(Debug)]
pub struct Latencies {
    clock: Clock,
    /// The generation that is being filled.
    generation: AtomicU64,
    even: [AtomicU32; BUCKETS],
    odd: [AtomicU32; BUCKETS],
}

impl Latencies {
    /// Nothing is known.
    pub fn new(now: Instant) -> Self {
        Self {
            clock: Clock::new(now, GENERATION),
            generation: AtomicU64::new(0),
            even: [const { AtomicU32::new(0) }; BUCKETS],
            odd: [const { AtomicU32::new(0) }; BUCKETS],
        }
    }

    /// An attempt's answer began after `took`. An attempt that was cancelled because its hedge won is to be recorded
    /// too, with the time it lasted: it was one of the slow ones, and without it the quantile would creep down.
    pub fn record(&self, now: Instant, took: Duration) {
        let generation = self.turn(now);
        let side = if generation.is_multiple_of(2) { &self.even } else { &self.odd };
        if let Some(bucket) = side.get(bucket(took)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A time within which at least `share` of the recent answers came: the upper end of the bucket, so never less
    /// than the true one and at most a quarter more. `None` while fewer than twenty are known.
    pub fn quantile(&self, now: Instant, share: Share) -> Option<Duration> {
        self.turn(now);
        let counts = || {
            self.even
                .iter()
                .zip(&self.odd)
                .map(|(even, odd)| u64::from(even.load(Ordering::Relaxed)) + u64::from(odd.load(Ordering::Relaxed)))
        };
        let all: u64 = counts().sum();
        if all < LEAST {
            return None;
        }
        let mut seen = 0;
        let at = counts().position(|count| {
            seen += count;
            share.reached(seen, all)
        });
        at.map(upper)
    }

    /// How long a first attempt is waited for; `None` is for ever.
    pub fn wait(&self, now: Instant, rule: &HedgeRule) -> Option<Duration> {
        let wait = match rule.after {
            HedgeAfter::Delay(delay) => Some(delay),
            HedgeAfter::Quantile(share) => self.quantile(now, share),
        };
        wait.map(|wait| wait.max(rule.at_least))
    }

    /// The generation of `now`; whoever is the first in a new one clears what is too old.
    fn turn(&self, now: Instant) -> u64 {
        let generation = self.clock.nanos(now) / GENERATION.as_nanos() as u64;
        let before = self.generation.load(Ordering::Acquire);
        if generation <= before {
            return before;
        }
        if self.generation.compare_exchange(before, generation, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            let clear = |side: &[AtomicU32]| side.iter().for_each(|bucket| bucket.store(0, Ordering::Relaxed));
            let odd = !generation.is_multiple_of(2);
            if odd || generation > before + 1 {
                clear(&self.odd);
            }
            if !odd || generation > before + 1 {
                clear(&self.even);
            }
        }
        generation
    }
}

fn bucket(took: Duration) -> usize {
    let micros = u64::try_from(took.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
    // What lies exactly on a border belongs to the bucket that ends there.
    let last = micros.saturating_sub(1);
    if last < 1 << FIRST_SHIFT {
        return 0;
    }
    let power = last.ilog2();
    let quarter = (last >> (power - 2)) & 3;
    (1 + 4 * (power - FIRST_SHIFT) as usize + quarter as usize).min(BUCKETS - 1)
}

/// Where a bucket ends.
fn upper(bucket: usize) -> Duration {
    let Some(above) = bucket.checked_sub(1) else { return Duration::from_micros(1 << FIRST_SHIFT) };
    let (power, quarter) = (above as u32 / 4 + FIRST_SHIFT, above as u64 % 4);
    Duration::from_micros((5 + quarter) << (power - 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn nothing_is_sent_twice_before_enough_is_known() {
        let now = Instant::now();
        let latencies = Latencies::new(now);
        let rule = HedgeRule::default();
        (0..19).for_each(|_| latencies.record(now, ms(10)));
        assert_eq!(latencies.wait(now, &rule), None);
        latencies.record(now, ms(10));
        let wait = latencies.wait(now, &rule).unwrap();
        assert!(wait >= ms(10) && wait <= ms(13), "{wait:?}");
        let fixed = HedgeRule { after: HedgeAfter::Delay(ms(70)), ..rule };
        assert_eq!(Latencies::new(now).wait(now, &fixed), Some(ms(70)));
        let soon = HedgeRule { after: HedgeAfter::Delay(ms(1)), ..rule };
        assert_eq!(Latencies::new(now).wait(now, &soon), Some(ms(5)));
    }

    #[test]
    fn what_is_old_is_forgotten() {
        let now = Instant::now();
        let latencies = Latencies::new(now);
        let at = |secs| now + Duration::from_secs(secs);
        (0..50).for_each(|_| latencies.record(at(1), ms(100)));
        assert!(latencies.quantile(at(29), Share::percent(95)).is_some());
        assert_eq!(latencies.quantile(at(31), Share::percent(95)), None);
        (0..50).for_each(|_| latencies.record(at(46), ms(100)));
        (0..5_000).for_each(|_| latencies.record(at(61), ms(1)));
        assert!(latencies.quantile(at(62), Share::percent(95)).unwrap() < ms(2));
        // A pause longer than all memory forgets both generations.
        assert_eq!(latencies.quantile(at(500), Share::percent(95)), None);
    }

    #[test]
    fn extremes_have_their_buckets() {
        for took in [Duration::ZERO, Duration::from_nanos(1), ms(1), Duration::from_secs(119), Duration::MAX] {
            assert!(bucket(took) < BUCKETS, "{took:?}");
        }
        assert_eq!((bucket(Duration::ZERO), bucket(Duration::MAX)), (0, BUCKETS - 1));
    }

    proptest! {
        #[test]
        fn it_is_never_below_the_true_quantile_and_at_most_a_quarter_above(
            micros in prop::collection::vec(1u64..100_000_000, 20..300), percent in 1u32..=100
        ) {
            let now = Instant::now();
            let latencies = Latencies::new(now);
            micros.iter().for_each(|micros| latencies.record(now, Duration::from_micros(*micros)));
            let mut sorted = micros.clone();
            sorted.sort_unstable();
            let rank = (sorted.len() * percent as usize).div_ceil(100).max(1);
            let exact = sorted[rank - 1];
            let got = latencies.quantile(now, Share::percent(percent)).unwrap().as_micros() as u64;
            prop_assert!(got >= exact && got <= (exact + exact / 4 + 1).max(64), "{} for {}", got, exact);
        }
    }
}
