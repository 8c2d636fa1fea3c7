//! A steady open-loop load: requests begin by the clock, whether or not earlier ones have been answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::caller::Caller;
use crate::life::tasks::Tasks;

/// Requests per second.
pub(super) const RATE: u32 = 200;
/// Requests under way at once; above it, one that is due counts as failed.
const MOST: usize = 512;

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    pub(super) succeeded: u64,
    /// Those that did not succeed, by what came instead.
    pub(super) failed: BTreeMap<String, u64>,
    /// From the moment a request was due to its answer.
    pub(super) latency: Spread,
}

impl Tally {
    /// All of them.
    pub(super) fn requests(&self) -> u64 {
        self.succeeded + self.failed.values().sum::<u64>()
    }

    /// The share that succeeded in percent; 100 where there were none.
    pub(super) fn percent(&self) -> f64 {
        share(self.succeeded, self.requests())
    }
}

/// Percent.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 }
}

/// Sends requests until dropped, adding what becomes of them to `tally`.
pub(super) async fn run(caller: Arc<Caller>, tally: Arc<Mutex<Tally>>) {
    let tasks = Tasks::default();
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    // Requests that were due while this machine was busy are sent late, not left out.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        let due = ticks.tick().await;
        if tasks.running() >= MOST {
            *tally.lock().failed.entry(format!("more than {MOST} requests under way")).or_default() += 1;
            continue;
        }
        let (caller, tally) = (caller.clone(), tally.clone());
        tasks.spawn(async move {
            let answer = caller.get().await;
            let mut tally = tally.lock();
            tally.latency.add(Instant::now().saturating_duration_since(due));
            match answer {
                Ok((StatusCode::OK, _)) => tally.succeeded += 1,
                Ok((status, body)) => {
                    let said = String::from_utf8_lossy(&body);
                    let what = format!("{}: {}", status.as_u16(), said.trim_end());
                    *tally.failed.entry(what).or_default() += 1;
                }
                Err(why) => *tally.failed.entry(why).or_default() += 1,
            }
        });
    }
}

/// Durations in buckets, each at most an eighth wider than the one before.
#[derive(Debug, Clone)]
pub(super) struct Spread([u64; Self::CELLS]);

impl Default for Spread {
    fn default() -> Self {
        Self([0; Self::CELLS])
    }
}

impl Spread {
    const CELLS: usize = 8 * 40;

    fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(8);
        let octave = micros.ilog2() - 3;
        let eighth = (micros >> octave) & 7;
        let at = (octave as usize * 8 + eighth as usize).min(Self::CELLS - 1);
        if let Some(cell) = self.0.get_mut(at) {
            *cell += 1;
        }
    }

    /// The upper end of the bucket in which the `part`th of all lies; `None` without any.
    pub(super) fn quantile(&self, part: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().sum();
        let wanted = ((all as f64 * part).ceil() as u64).max(1);
        let mut seen = 0;
        let at = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        let upper = (8 + (at as u64 % 8) + 1) << (at / 8);
        Some(Duration::from_micros(upper))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_an_eighth_off_at_most() {
        let mut spread = Spread::default();
        assert_eq!(spread.quantile(0.5), None);
        for millis in 1..=1000 {
            spread.add(Duration::from_millis(millis));
        }
        for (part, millis) in [(0.0, 1.0), (0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = spread.quantile(part).unwrap().as_secs_f64() * 1e3;
            assert!((millis..=millis * 1.13).contains(&found), "{part}: {found} for {millis}");
        }
        spread.add(Duration::MAX);
        spread.add(Duration::ZERO);
        assert!(spread.quantile(1.0).unwrap() > Duration::from_secs(3600));
    }

    #[test]
    fn shares() {
        assert_eq!((share(0, 0), share(1, 4), share(4, 4)), (100.0, 25.0, 100.0));
    }
}
