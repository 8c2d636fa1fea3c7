//! What the endpoints of one peer share about ejection: how many there are, how many are out, and what all answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::load::Load;
use super::outlier::Seen;
use super::window::{Clock, Ring};
use crate::plan::rules::{EjectRule, LatencyRule, Share};

/// How far back shares and means look.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How surely an endpoint must be worse, in standard deviations of its own share of failures.
const SURELY: f64 = 2.0;

/// And how much worse than the others.
const WORSE: f64 = 1.5;

/// While half of the endpoints are out, one request in so many may be a probe.
const PART: f64 = 50.0;

/// Whoever waits in vain for less says nothing by itself.
const PATIENCE: Duration = super::load::FAILURE;

/// How many times longer than answers take is by far.
const BY_FAR: u32 = 3;

/// Latencies are added up in units of 2^16 nanoseconds, so that 32 bits hold 78 hours a bucket.
const LATENCY_SHIFT: u32 = 16;

/// What the endpoints of one peer share: how many there are and how many are out, in one word, and what all answered.
#[derive(Debug)]
pub struct Ward {
    clock: Clock,
    /// Members (high half) and how many of them are out (low half).
    heads: AtomicU64,
    /// How often an endpoint came back when all were out.
    pardons: AtomicU32,
    tally: Tally,
    /// Of the good answers, those that took long: how long answers may take here.
    long: Load,
}

/// Answers of the last ten seconds.
#[derive(Debug, Default)]
pub(super) struct Tally {
    all: Ring,
    failed: Ring,
    /// Good answers and their latencies; kept only where the rule looks at them.
    timed: Ring,
    latency: Ring,
}

impl Ward {
    /// A peer without endpoints.
    pub fn new(now: Instant) -> Arc<Self> {
        let clock = Clock::new(now, WINDOW);
        let (heads, pardons) = (AtomicU64::new(0), AtomicU32::new(0));
        Arc::new(Self { clock, heads, pardons, tally: Tally::default(), long: Load::new(now) })
    }

    /// Discovery found so many endpoints. What is out stays out even if that is now more than allowed.
    pub fn set_members(&self, members: u32) {
        let _ = self.heads.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            Some(u64::from(members) << 32 | u64::from(word as u32))
        });
    }

    /// How many endpoints there are.
    pub fn members(&self) -> u32 {
        (self.heads.load(Ordering::Acquire) >> 32) as u32
    }

    /// How many are out.
    pub fn ejected(&self) -> u32 {
        self.heads.load(Ordering::Acquire) as u32
    }

    /// Whether no endpoint is left, so that the choice must be among all.
    pub fn all_out(&self) -> bool {
        let word = self.heads.load(Ordering::Acquire);
        word as u32 > 0 && u64::from(word as u32) >= word >> 32
    }

    /// Whether half of the endpoints are out, or more.
    pub(super) fn half_out(&self) -> bool {
        let word = self.heads.load(Ordering::Acquire);
        u64::from(word as u32) * 2 >= word >> 32
    }

    /// The shortest time between two probes of one endpoint by which probes stay within their [`PART`] of the traffic.
    pub(super) fn bearable(&self, now: Instant) -> Duration {
        let asked = self.tally.all.sum(self.clock.tick(now)).max(1);
        (WINDOW * self.ejected()).mul_f64(PART / asked as f64)
    }

    /// One more is out, unless that were more than `most` of the members.
    pub(super) fn enter(&self, most: Share) -> bool {
        let entered = self.heads.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let (members, out) = (word >> 32, u64::from(word as u32));
            (out < most.of(members).max(1).min(members)).then_some(word + 1)
        });
        entered.is_ok()
    }

    pub(super) fn leave(&self) {
        self.heads.fetch_sub(1, Ordering::AcqRel);
    }

    pub(super) fn nanos(&self, now: Instant) -> u64 {
        self.clock.nanos(now)
    }

    /// How often an endpoint came back when all were out.
    pub(super) fn pardons(&self) -> u32 {
        self.pardons.load(Ordering::Acquire)
    }

    pub(super) fn pardon_if_all_out(&self) {
        if self.all_out() {
            self.pardons.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether somebody waited in vain for so long that it is no matter of patience: by far longer than answers take.
    pub fn is_overdue(&self, now: Instant, waited: Duration) -> bool {
        waited >= PATIENCE && self.long.latency(now).is_none_or(|usual| waited >= usual.saturating_mul(BY_FAR))
    }

    /// Counts an answer for an endpoint and for all.
    pub(super) fn count(&self, own: &Tally, now: Instant, seen: Seen, took: Duration, rule: &EjectRule) {
        let tick = self.clock.tick(now);
        // Of faster ones nobody asks, so they cost nothing.
        if seen == Seen::Well && took.saturating_mul(BY_FAR) > PATIENCE {
            self.long.answered(now, took, true);
        }
        let took = rule.latency.is_some().then_some(took);
        for tally in [own, &self.tally] {
            tally.all.add(tick, 1);
            if seen != Seen::Well {
                tally.failed.add(tick, 1);
            } else if let Some(took) = took {
                tally.timed.add(tick, 1);
                tally.latency.add(tick, u32::try_from(took.as_nanos() >> LATENCY_SHIFT).unwrap_or(u32::MAX));
            }
        }
    }

    /// Whether it fails more than `share` and, as surely as its few requests can tell, more than the others.
    pub(super) fn worse(&self, own: &Tally, now: Instant, share: Share, volume: u32) -> bool {
        let tick = self.clock.tick(now);
        let (failed, all) = (own.failed.sum(tick), own.all.sum(tick));
        if self.members() < 2 || all < u64::from(volume.max(1)) || !share.reached(failed, all) {
            return false;
        }
        let others_failed = self.tally.failed.sum(tick).saturating_sub(failed);
        let others = self.tally.all.sum(tick).saturating_sub(all);
        // Laplace's rule of succession: what the others' share is likely to be, also where they are hardly known.
        let likely = (others_failed as f64 + 1.0) / (others as f64 + 2.0);
        surely(failed.min(all), all) > likely * WORSE
    }

    /// Whether its mean latency is that much over the mean of the others.
    pub(super) fn slower(&self, own: &Tally, now: Instant, rule: &LatencyRule, volume: u32) -> bool {
        let tick = self.clock.tick(now);
        let (spent, timed) = (own.latency.sum(tick), own.timed.sum(tick));
        let others_spent = self.tally.latency.sum(tick).saturating_sub(spent);
        let others = self.tally.timed.sum(tick).saturating_sub(timed);
        let volume = u64::from(volume.max(1));
        if timed < volume || others < volume {
            return false;
        }
        let (mean, usual) = (spent as f64 / timed as f64, others_spent as f64 / others as f64);
        let margin = (rule.at_least.as_nanos() >> LATENCY_SHIFT) as f64;
        mean >= usual * rule.times.as_f64() && mean >= usual + margin
    }
}

impl Tally {
    pub(super) fn clear(&self) {
        [&self.all, &self.failed, &self.timed, &self.latency].into_iter().for_each(Ring::clear);
    }
}

/// The least that `part` of `whole` surely stands for: the lower end of Wilson's interval (1927).
fn surely(part: u64, whole: u64) -> f64 {
    let (n, share) = (whole as f64, part as f64 / whole as f64);
    let square = SURELY * SURELY;
    let spread = SURELY * (share * (1.0 - share) / n + square / (4.0 * n * n)).sqrt();
    (share + square / (2.0 * n) - spread) / (1.0 + square / n)
}
