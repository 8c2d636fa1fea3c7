//! Counts over the last seconds: a ring of time buckets that threads add to without a lock.
//!
//! Each bucket is one word of its tick and its count, so that a bucket whose time is over can neither be counted nor
//! added to. A sum covers the running bucket and the ones before it: with ten buckets of a second between nine and ten
//! seconds, with eleven between ten and eleven.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Buckets in a span, and in a ring unless it says otherwise.
const BUCKETS: usize = 10;

/// The first tick; above the length of any ring, so that an empty word is never current.
const FIRST: u32 = 16;

/// Which bucket a moment falls into; shared by the rings of one machine.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    base: Instant,
    /// A bucket's length in nanoseconds.
    bucket: u64,
}

impl Clock {
    /// Buckets that together last `span`; `now` is no later than any moment asked for.
    pub(super) fn new(now: Instant, span: Duration) -> Self {
        let bucket = u64::try_from(span.as_nanos() / BUCKETS as u128).unwrap_or(u64::MAX);
        Self { base: now, bucket: bucket.max(1) }
    }

    /// Nanoseconds from the clock's start to `now`.
    pub(super) fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.base).as_nanos()).unwrap_or(u64::MAX)
    }

    /// The number of the bucket of `now`.
    pub(super) fn tick(&self, now: Instant) -> u32 {
        (self.nanos(now) / self.bucket).min(u64::from(u32::MAX - 2 * FIRST)) as u32 + FIRST
    }
}

/// One count over the last `N` buckets of a [`Clock`].
#[derive(Debug)]
pub(super) struct Ring<const N: usize = BUCKETS>([AtomicU64; N]);

impl<const N: usize> Default for Ring<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

impl<const N: usize> Ring<N> {
    /// Adds `n` to the bucket of `tick`; what is older than the whole ring is dropped.
    pub(super) fn add(&self, tick: u32, n: u32) {
        let Some(word) = self.0.get(tick as usize % N) else { return };
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            let (then, count) = unpack(old);
            match then.cmp(&tick) {
                std::cmp::Ordering::Less => Some(pack(tick, n)),
                std::cmp::Ordering::Equal => Some(pack(tick, count.saturating_add(n))),
                std::cmp::Ordering::Greater => None,
            }
        });
    }

    /// Takes one back from the bucket of `tick`, if it is still there.
    pub(super) fn take(&self, tick: u32) {
        let Some(word) = self.0.get(tick as usize % N) else { return };
        let _ = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |old| {
            let (then, count) = unpack(old);
            (then == tick && count > 0).then(|| pack(tick, count - 1))
        });
    }

    /// What was added in the ring's time up to `tick`.
    pub(super) fn sum(&self, tick: u32) -> u64 {
        let words = self.0.iter().map(|word| unpack(word.load(Ordering::Acquire)));
        words
            .filter(|(then, _)| *then <= tick && ((tick - *then) as usize) < N)
            .map(|(_, count)| u64::from(count))
            .sum()
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

fn pack(tick: u32, count: u32) -> u64 {
    u64::from(tick) << 32 | u64::from(count)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_unused_ring_is_empty_at_any_time() {
        let now = Instant::now();
        let clock = Clock::new(now, Duration::from_secs(10));
        for later in [0, 1, 9, 10, 100, u64::from(u32::MAX)] {
            assert_eq!(<Ring>::default().sum(clock.tick(now + Duration::from_secs(later))), 0);
        }
    }

    #[test]
    fn what_comes_too_late_is_dropped() {
        let ring = <Ring>::default();
        ring.add(30, 1);
        ring.add(20, 5);
        assert_eq!((ring.sum(30), ring.sum(20)), (1, 0));
        ring.clear();
        assert_eq!(ring.sum(30), 0);
    }

    proptest! {
        #[test]
        fn a_sum_is_what_a_list_of_all_events_gives(
            events in prop::collection::vec((0u64..4_000, 0u32..9), 1..80)
        ) {
            let base = Instant::now();
            let clock = Clock::new(base, Duration::from_secs(10));
            let (ring, longer, mut list, mut at) = (<Ring>::default(), Ring::<11>::default(), Vec::new(), 0);
            for (wait, n) in events {
                at += wait;
                let tick = clock.tick(base + Duration::from_millis(at));
                ring.add(tick, n);
                longer.add(tick, n);
                list.push((at / 1000, u64::from(n)));
                let naive = |buckets| -> u64 {
                    list.iter().filter(|(then, _)| at / 1000 - then < buckets).map(|(_, n)| n).sum()
                };
                prop_assert_eq!((ring.sum(tick), longer.sum(tick)), (naive(10), naive(11)));
            }
        }
    }
}
