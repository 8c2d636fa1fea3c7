//! How busy and how slow an endpoint is: requests in flight and a peak-sensitive moving average, without a lock.
//!
//! A slower answer is believed at once, faster ones pull the average down over [`DECAY`]. A failed answer counts as a
//! slow one, so that an endpoint which fails fast does not draw traffic.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The time constant of the moving average.
pub const DECAY: Duration = Duration::from_secs(10);

/// What a failed answer counts at least.
pub const FAILURE: Duration = Duration::from_secs(1);

/// What a failed answer counts at most, unless it took even longer.
pub const FAILURE_MAX: Duration = Duration::from_secs(60);

/// What an endpoint without a sample costs for each request it has already been given.
const UNTRIED: f64 = 1e12;

/// The clock's unit, in nanoseconds as a power of two: about a millisecond, so that 32 bits last 52 days.
const TICK_SHIFT: u32 = 20;

/// The load of one endpoint.
#[derive(Debug)]
pub struct Load {
    base: Instant,
    in_flight: AtomicU32,
    /// The average in microseconds as `f32` bits (high half) and the tick of its last change (low half). Both in one
    /// word, so that a reader never sees the value of one sample with the time of another. Zero: no sample yet.
    average: AtomicU64,
}

impl Load {
    /// An endpoint that nothing is known about; `now` is where its clock starts.
    pub fn new(now: Instant) -> Self {
        Self { base: now, in_flight: AtomicU32::new(0), average: AtomicU64::new(0) }
    }

    /// A request was given to it.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request given to it ended.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Requests given to it and not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// An answer came after `took`; a failed one counts as slow.
    pub fn answered(&self, now: Instant, took: Duration, ok: bool) {
        let tick = self.tick(now);
        // Losing a race only drops one sample's weight, but the newest peak must not be lost: so try again.
        let _ = self.average.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let before = unpack(word);
            let sample = micros(if ok { took } else { failure(took, before) });
            let value = match before {
                Some((value, then)) if sample < value => {
                    let keep = (-seconds(then, tick) / DECAY.as_secs_f64()).exp();
                    value * keep + sample * (1.0 - keep)
                }
                _ => sample,
            };
            Some(pack(value, tick))
        });
    }

    /// The average as it stands at `now`; `None` before the first answer. Without news it fades, slowly at first and
    /// ever faster after [`DECAY`], so that half a minute after a failure the endpoint is worth another try.
    pub fn latency(&self, now: Instant) -> Option<Duration> {
        self.faded(now).map(|micros| Duration::from_secs_f64(micros / 1e6))
    }

    /// What a further request would cost here; `share` is the endpoint's weight relative to the mean of its group.
    ///
    /// An endpoint without a sample is free while it has nothing to do and dearer than any other after that: it is
    /// tried, one request at a time, and not flooded.
    pub fn cost(&self, now: Instant, share: f64) -> f64 {
        let busy = f64::from(self.in_flight());
        match self.faded(now) {
            Some(average) => average * (1.0 + busy / share),
            None if busy == 0.0 => 0.0,
            None => UNTRIED * (1.0 + busy / share),
        }
    }

    fn faded(&self, now: Instant) -> Option<f64> {
        let (value, then) = unpack(self.average.load(Ordering::Relaxed))?;
        let age = seconds(then, self.tick(now)) / DECAY.as_secs_f64();
        Some(value * (-(age * age.max(1.0))).exp())
    }

    /// The low 32 bits of the clock; differences are taken modulo 2^32.
    fn tick(&self, now: Instant) -> u32 {
        (now.saturating_duration_since(self.base).as_nanos() >> TICK_SHIFT) as u32
    }
}

/// What a failure counts: at least [`FAILURE`], and twice what the endpoint was known for, so that it is a penalty
/// for slow services too.
fn failure(took: Duration, before: Option<(f64, u32)>) -> Duration {
    let known = before.map_or(Duration::ZERO, |(value, _)| Duration::from_secs_f64(value / 1e6));
    took.max((known * 2).clamp(FAILURE, FAILURE_MAX))
}

fn micros(took: Duration) -> f64 {
    // A sample is never zero: the word zero means "no sample".
    (took.as_secs_f64() * 1e6).max(1.0)
}

fn seconds(then: u32, now: u32) -> f64 {
    // A sample of another thread may be a tick ahead of this `now`; that is no time, not 52 days.
    let ticks = now.wrapping_sub(then) as i32;
    f64::from(ticks.max(0)) * f64::from(1u32 << TICK_SHIFT) / 1e9
}

fn pack(value: f64, tick: u32) -> u64 {
    (u64::from((value as f32).to_bits()) << 32) | u64::from(tick)
}

fn unpack(word: u64) -> Option<(f64, u32)> {
    let bits = (word >> 32) as u32;
    (bits != 0).then(|| (f64::from(f32::from_bits(bits)), word as u32))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn near(got: Option<Duration>, want: Duration) {
        let (got, want) = (got.unwrap().as_secs_f64(), want.as_secs_f64());
        assert!((got - want).abs() <= want * 0.02 + 1e-6, "{got} is not near {want}");
    }

    #[test]
    fn a_slower_answer_counts_at_once_and_a_faster_one_slowly() {
        let t = Instant::now();
        let load = Load::new(t);
        assert_eq!(load.latency(t), None);
        load.answered(t, ms(10), true);
        near(load.latency(t), ms(10));
        load.answered(t + ms(1), ms(100), true);
        near(load.latency(t + ms(1)), ms(100));
        load.answered(t + ms(1001), ms(10), true);
        let keep = (-0.1f64).exp();
        near(load.latency(t + ms(1001)), Duration::from_secs_f64(0.1 * keep + 0.01 * (1.0 - keep)));
    }

    #[test]
    fn a_failure_counts_as_slow_and_fades_within_half_a_minute() {
        let t = Instant::now();
        let load = Load::new(t);
        load.answered(t, ms(1), true);
        load.answered(t, ms(1), false);
        near(load.latency(t), FAILURE);
        load.answered(t, ms(1), false);
        near(load.latency(t), FAILURE * 2);
        for _ in 0..20 {
            load.answered(t, ms(1), false);
        }
        near(load.latency(t), FAILURE_MAX);
        load.answered(t, Duration::from_secs(90), false);
        near(load.latency(t), Duration::from_secs(90));

        let other = Load::new(t);
        other.answered(t, ms(1), false);
        assert!(other.latency(t + Duration::from_secs(15)).unwrap() > ms(50));
        assert!(other.latency(t + Duration::from_secs(30)).unwrap() < ms(1));
    }

    #[test]
    fn an_untried_endpoint_takes_one_request_at_a_time() {
        let t = Instant::now();
        let (known, untried) = (Load::new(t), Load::new(t));
        known.answered(t, Duration::from_secs(5), false);
        assert!(untried.cost(t, 1.0) < known.cost(t, 1.0));
        untried.begin();
        known.begin();
        assert!(untried.cost(t, 1.0) > known.cost(t, 1.0));
        untried.answered(t, ms(2), true);
        assert!(untried.cost(t, 1.0) < known.cost(t, 1.0));
        untried.end();
        assert_eq!(untried.in_flight(), 0);
    }

    #[test]
    fn a_share_divides_what_is_in_flight() {
        let t = Instant::now();
        let load = Load::new(t);
        load.answered(t, ms(10), true);
        load.begin();
        load.begin();
        assert!((load.cost(t, 1.0) - 30_000.0).abs() < 1.0);
        assert!((load.cost(t, 2.0) - 20_000.0).abs() < 1.0);
    }

    proptest! {
        #[test]
        fn the_average_stays_between_zero_and_the_slowest_sample(
            samples in prop::collection::vec((0u64..5_000, 0u64..20_000, any::<bool>()), 1..60)
        ) {
            let mut now = Instant::now();
            let load = Load::new(now);
            let mut slowest = Duration::ZERO;
            for (took, wait, ok) in samples {
                now += ms(wait);
                load.answered(now, ms(took), ok);
                slowest = slowest.max(ms(took)).max(if ok { Duration::ZERO } else { FAILURE_MAX });
                let latency = load.latency(now).unwrap();
                prop_assert!(latency <= slowest + ms(1), "{latency:?} over {slowest:?}");
                prop_assert!(load.cost(now, 1.0).is_finite());
            }
        }
    }
}
