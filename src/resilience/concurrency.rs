//! The adaptive limit of requests in flight: it follows the service's latency against its latency at its best.
//!
//! Answers are gathered into rounds. A round whose median is slower than `tolerance` times the best one lowers the
//! limit in proportion; one that is not, and that used the limit, raises it by its square root. What "at its best" is
//! changes with time: at first and then every half minute it is measured anew. A service that is busy all the while is
//! measured by halving the limit for some rounds, until that no longer makes it faster: so a queue which has always
//! been there is not taken for the service's own latency.

use std::ops::Deref;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::priority::{Claim, Part, Why};
use crate::plan::rules::ConcurrencyRule;

/// A round lasts at least this long and has at least [`LEAST`] answers; the median is of the last [`KEPT`].
const ROUND: Duration = Duration::from_millis(100);
const LEAST: usize = 16;
const KEPT: usize = 64;

/// How long the best latency is believed.
const BELIEVED: Duration = Duration::from_secs(30);

/// The limit and what is in flight under it.
#[derive(Debug)]
pub struct Adaptive {
    in_flight: AtomicU32,
    /// 0 until the first question, which brings the rule.
    limit: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Latencies of this round in microseconds, the newest `KEPT`.
    kept: [u32; KEPT],
    answers: usize,
    /// The most that were in flight in this round.
    peak: u32,
    round_since: Instant,
    /// In microseconds; 0: not known.
    best: u32,
    best_since: Instant,
    measuring: Option<Measuring>,
}

/// The best latency is being measured.
#[derive(Debug, Clone, Copy)]
struct Measuring {
    /// The limit to return to.
    back: u32,
    /// Requests that began before are not looked at: they met the queue that is to leave.
    from: Instant,
    /// The median before the limit was halved, in microseconds.
    before: u32,
}

/// Why a request is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the adaptive limit of {limit} requests in flight is reached{}", Why(*part))]
pub struct Full {
    /// The limit as it stands.
    pub limit: u32,
    /// The part of it that the refused one could use; `None` is the whole.
    pub part: Option<Part>,
}

/// A request in flight, until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Slot<H: Deref<Target = Adaptive>> {
    held: H,
    began: Instant,
}

impl Adaptive {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        let inner =
            Inner { kept: [0; KEPT], answers: 0, peak: 0, round_since: now, best: 0, best_since: now, measuring: None };
        Self { in_flight: AtomicU32::new(0), limit: AtomicU32::new(0), inner: Mutex::new(inner) }
    }

    /// The limit as it stands, for `/state`; `None` before the first request.
    pub fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Admits a request until its slot is dropped, if the part of the limit that its claim may use has room; `held` is a
    /// reference or an `Arc`.
    ///
    /// # Errors
    /// The limit, or that part of it, is reached.
    pub fn admit<H: Deref<Target = Self>>(
        held: H,
        now: Instant,
        rule: &ConcurrencyRule,
        claim: Claim,
    ) -> Result<Slot<H>, Full> {
        let limit = within(held.limit().unwrap_or(rule.start), rule);
        if held.limit.load(Ordering::Relaxed) != limit {
            held.limit.store(limit, Ordering::Relaxed);
        }
        let part = claim.part(limit);
        let most = part.map_or(limit, |part| part.most);
        let taken =
            held.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < most).then(|| used + 1));
        match taken {
            Ok(_) => Ok(Slot { held, began: now }),
            Err(_) => Err(Full { limit, part }),
        }
    }

    fn answered(&self, began: Instant, now: Instant, rule: &ConcurrencyRule) {
        let in_flight = self.in_flight();
        let mut inner = self.inner.lock();
        if inner.measuring.is_some_and(|measuring| began < measuring.from) {
            return;
        }
        inner.peak = inner.peak.max(in_flight);
        let took = now.saturating_duration_since(began).as_micros();
        let at = inner.answers % KEPT;
        if let Some(slot) = inner.kept.get_mut(at) {
            *slot = u32::try_from(took).unwrap_or(u32::MAX).max(1);
        }
        inner.answers += 1;
        if inner.answers >= LEAST && now.saturating_duration_since(inner.round_since) >= ROUND {
            let limit = within(self.limit().unwrap_or(rule.start), rule);
            self.limit.store(within(inner.round(limit, now, rule), rule), Ordering::Relaxed);
        }
    }
}

fn within(limit: u32, rule: &ConcurrencyRule) -> u32 {
    limit.min(rule.most).max(rule.least).max(1)
}

impl Inner {
    /// Ends a round; returns the limit that follows.
    fn round(&mut self, limit: u32, now: Instant, rule: &ConcurrencyRule) -> u32 {
        let median = self.median();
        // A service that had little to do shows its own latency.
        let used = self.peak.saturating_mul(2) >= limit;
        (self.answers, self.peak, self.round_since) = (0, 0, now);
        if let Some(Measuring { back, before, .. }) = self.measuring.take() {
            // A quarter faster: there was a queue, and there may still be one.
            if median < before - before / 4 && limit > rule.least.max(1) {
                return self.measure(back, limit, median, now);
            }
            (self.best, self.best_since) = (median.min(before), now);
            return back;
        }
        if self.best != 0 && median <= self.best {
            (self.best, self.best_since) = (median, now);
        } else if self.best == 0 || now.saturating_duration_since(self.best_since) >= BELIEVED {
            if used {
                return self.measure(limit, limit, median, now);
            }
            (self.best, self.best_since) = (median, now);
        }
        let fits = (rule.tolerance.as_f64() * f64::from(self.best) / f64::from(median)).clamp(0.5, 1.0);
        if fits == 1.0 && !used {
            return limit;
        }
        let next = f64::from(limit) * fits + f64::from(limit).sqrt();
        // Half way, so that one odd round does not decide.
        ((f64::from(limit) + next) / 2.0).round() as u32
    }

    /// Halves the limit to see whether that makes the service faster.
    fn measure(&mut self, back: u32, limit: u32, median: u32, now: Instant) -> u32 {
        // Two answers' time for what is queued to leave.
        let from = now + Duration::from_micros(u64::from(median) * 2);
        self.measuring = Some(Measuring { back, from, before: median });
        limit / 2
    }

    fn median(&mut self) -> u32 {
        let kept = self.answers.min(KEPT);
        let Some(kept) = self.kept.get_mut(..kept) else { return 1 };
        let middle = kept.len() / 2;
        if middle == 0 { 1 } else { *kept.select_nth_unstable(middle).1 }
    }
}

impl<H: Deref<Target = Adaptive>> Slot<H> {
    /// The request was answered now, well or by its time being over. What failed at once is to be dropped without
    /// this: it says nothing about how fast the service is.
    pub fn answered(self, now: Instant, rule: &ConcurrencyRule) {
        self.held.answered(self.began, now, rule);
    }
}

impl<H: Deref<Target = Adaptive>> Drop for Slot<H> {
    fn drop(&mut self) {
        self.held.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::Priority;

    /// A service that does `abreast` requests at a time, each in `takes` milliseconds, and queues the others.
    struct Service {
        adaptive: Adaptive,
        rule: ConcurrencyRule,
        now: Instant,
        abreast: u32,
        takes: f64,
    }

    impl Service {
        fn new(abreast: u32) -> Self {
            let now = Instant::now();
            let rule = ConcurrencyRule::default();
            Self { adaptive: Adaptive::new(now), rule, now, abreast, takes: 25.0 }
        }

        /// `offered` requests at once, over and over for `time`; returns the most that were in flight.
        fn run(&mut self, offered: u32, time: Duration) -> u32 {
            let until = self.now + time;
            let mut most = 0;
            while self.now < until {
                let admitted = |_| Adaptive::admit(&self.adaptive, self.now, &self.rule, Claim::default()).ok();
                let slots: Vec<_> = (0..offered).map_while(admitted).collect();
                let busy = slots.len() as u32;
                most = most.max(busy);
                let queue = (f64::from(busy) / f64::from(self.abreast)).max(1.0);
                self.now += Duration::from_secs_f64(self.takes * queue / 1000.0);
                // The first one ends while all others are still in flight.
                slots.into_iter().for_each(|slot| slot.answered(self.now, &self.rule));
            }
            most
        }

        fn limit(&self) -> u32 {
            self.adaptive.limit().unwrap()
        }
    }

    #[test]
    fn it_finds_what_the_service_can_do_and_keeps_the_queue_short() {
        for (abreast, start) in [(10, 20), (50, 20), (200, 20), (10, 640)] {
            let mut service = Service::new(abreast);
            service.rule.start = start;
            service.run(2_000, Duration::from_secs(20));
            let limit = service.limit();
            assert!(limit >= abreast && limit <= abreast * 3, "{limit} for {abreast}");
        }
    }

    #[test]
    fn it_does_not_drift_upwards_in_a_long_overload() {
        let mut service = Service::new(50);
        let mut highest = 0;
        for _ in 0..20 {
            service.run(2_000, Duration::from_secs(31));
            highest = highest.max(service.limit());
        }
        assert!(highest <= 150, "{highest}");
    }

    #[test]
    fn it_falls_when_the_service_loses_strength_and_rises_again() {
        let mut service = Service::new(200);
        service.run(2_000, Duration::from_secs(60));
        service.abreast = 20;
        service.run(2_000, Duration::from_secs(20));
        assert!(service.limit() <= 80, "{}", service.limit());
        service.abreast = 200;
        service.run(2_000, Duration::from_secs(60));
        assert!(service.limit() >= 200, "{}", service.limit());
    }

    #[test]
    fn it_does_not_grow_unused_and_learns_that_the_service_became_slower_in_itself() {
        let mut service = Service::new(1_000);
        service.run(5, Duration::from_secs(60));
        assert_eq!(service.limit(), 20);
        service.takes = 50.0;
        service.run(5, Duration::from_secs(60));
        assert!(service.limit() >= 4);
        service.run(2_000, Duration::from_secs(60));
        assert!(service.limit() >= 500, "{}", service.limit());
    }

    #[test]
    fn a_refusal_names_the_limit_and_failures_teach_nothing() {
        let now = Instant::now();
        let rule = ConcurrencyRule { start: 2, least: 1, ..ConcurrencyRule::default() };
        let adaptive = Adaptive::new(now);
        let held: Vec<_> = (0..2).map(|_| Adaptive::admit(&adaptive, now, &rule, Claim::default()).unwrap()).collect();
        let refused = |claim| Adaptive::admit(&adaptive, now, &rule, claim).unwrap_err().to_string();
        let low = Claim { priority: Priority::Low, kept: false };
        assert_eq!(refused(Claim::default()), "the adaptive limit of 2 requests in flight is reached");
        assert!(refused(low).ends_with("is reached by the 1 that low priority may use"));
        drop(held);
        for n in 0..1_000 {
            drop(Adaptive::admit(&adaptive, now + Duration::from_millis(n), &rule, Claim::default()).unwrap());
        }
        assert_eq!((adaptive.limit(), adaptive.in_flight()), (Some(2), 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_limit_stays_within_its_rule_and_is_never_exceeded(
            least in 0u32..20, span in 0u32..100, start in 0u32..200,
            steps in prop::collection::vec((1u32..300, 1u32..100, 1u64..5_000), 1..20)
        ) {
            let mut service = Service::new(10);
            service.rule = ConcurrencyRule { least, most: least + span, start, ..service.rule };
            for (offered, abreast, time) in steps {
                service.abreast = abreast;
                let most = service.run(offered, Duration::from_millis(time));
                prop_assert!(most <= (least + span).max(1));
                prop_assert!((least.max(1)..=(least + span).max(1)).contains(&service.limit()));
                prop_assert_eq!(service.adaptive.in_flight(), 0);
            }
        }
    }
}
