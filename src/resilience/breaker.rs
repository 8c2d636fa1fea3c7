//! The failure-rate breaker of a peer: closed, open, half-open.
//!
//! ```text
//!            too much failed or was slow                   open_for is over, one request tries
//!   closed ─────────────────────────────▶ open ───────────────────────────────────────▶ half-open
//!     ▲                                    ▲                                              │    │
//!     │                                    └───────────────────────────── it failed ──────┘    │
//!     └───────────────────────────────────────────────────────────────── it succeeded ─────────┘
//! ```
//!
//! Closed, it costs one load to pass and one atomic word to report. Passes of an earlier state report nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::window::{Clock, Ring};
use crate::plan::rules::BreakerRule;

/// How far back requests count.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The breaker of one peer.
#[derive(Debug)]
pub struct Breaker {
    clock: Clock,
    all: Ring,
    failed: Ring,
    slow: Ring,
    /// 0: closed. Else the nanosecond from which on one request may try; its claim moves it on.
    gate: AtomicU64,
    /// Counts the times it opened or closed.
    era: AtomicU32,
    /// Taken for each change of state; holds whether a request is trying.
    trying: Mutex<bool>,
}

/// What the breaker does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Lets all through.
    Closed,
    /// Lets none through.
    Open,
    /// Has let one through and waits for what becomes of it.
    HalfOpen,
}

impl State {
    /// The word in `/state`, logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Why it opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// So many failed.
    Failures,
    /// So many were slow.
    Slow,
    /// The one request that tried failed.
    Trial,
}

/// What a report changed; for log and metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is open.
    Opened {
        /// Why.
        cause: Cause,
        /// Requests of the last ten seconds that failed, or were slow.
        bad: u64,
        /// Requests of the last ten seconds.
        all: u64,
    },
    /// It is closed again.
    Closed,
}

/// A request that was let through; it is to be reported or abandoned.
#[derive(Debug)]
#[must_use = "the breaker learns from what became of its requests"]
pub struct Pass {
    era: u32,
    /// What the gate was moved to, if this is the one that tries; else 0.
    claim: u64,
}

/// Why a request is not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the breaker is open for another {} ms", wait.as_millis())]
pub struct Open {
    /// Until one request may try; for `Retry-After`.
    pub wait: Duration,
}

impl Breaker {
    /// A closed breaker.
    pub fn new(now: Instant) -> Self {
        Self {
            clock: Clock::new(now, WINDOW),
            all: Ring::default(),
            failed: Ring::default(),
            slow: Ring::default(),
            gate: AtomicU64::new(0),
            era: AtomicU32::new(0),
            trying: Mutex::new(false),
        }
    }

    /// What it does now.
    pub fn state(&self) -> State {
        let trying = self.trying.lock();
        match (self.gate.load(Ordering::Acquire), *trying) {
            (0, _) => State::Closed,
            (_, false) => State::Open,
            (_, true) => State::HalfOpen,
        }
    }

    /// Lets a request through, or not.
    ///
    /// # Errors
    /// It is open, or another request is trying.
    pub fn admit(&self, now: Instant, rule: &BreakerRule) -> Result<Pass, Open> {
        // The era first: a pass of an older era is ignored, one of a newer era would count what was asked before it.
        let era = self.era.load(Ordering::Acquire);
        let (gate, nanos) = (self.gate.load(Ordering::Acquire), self.clock.nanos(now));
        if gate == 0 {
            return Ok(Pass { era, claim: 0 });
        }
        if nanos >= gate {
            let mut trying = self.trying.lock();
            if self.gate.load(Ordering::Acquire) == gate {
                *trying = true;
                return Ok(Pass { era, claim: self.shut(now, rule) });
            }
        }
        Err(Open { wait: Duration::from_nanos(gate.saturating_sub(nanos)) })
    }

    /// What became of a request; `took` is the time to the answer's head.
    pub fn report(&self, pass: Pass, now: Instant, ok: bool, took: Duration, rule: &BreakerRule) -> Option<Change> {
        if pass.claim != 0 {
            return self.tried(&pass, now, ok, rule);
        }
        if self.era.load(Ordering::Acquire) != pass.era {
            return None;
        }
        let tick = self.clock.tick(now);
        let slow = rule.slow.is_some_and(|(_, from)| took >= from);
        self.all.add(tick, 1);
        if !ok {
            self.failed.add(tick, 1);
        }
        if slow {
            self.slow.add(tick, 1);
        }
        if ok && !slow {
            return None;
        }
        let (cause, bad, all) = self.too_much(tick, rule)?;
        self.open(&pass, now, rule).then_some(Change::Opened { cause, bad, all })
    }

    /// Nothing was learned: the next request may try instead.
    pub fn abandon(&self, pass: Pass, now: Instant) {
        if pass.claim == 0 {
            return;
        }
        let mut trying = self.trying.lock();
        if self.gate.load(Ordering::Acquire) == pass.claim {
            *trying = false;
            self.gate.store(self.clock.nanos(now).max(1), Ordering::Release);
        }
    }

    /// It was turned off: closed, it knows nothing, and what was let through before tells nothing.
    pub fn reset(&self) {
        let mut trying = self.trying.lock();
        *trying = false;
        self.era.fetch_add(1, Ordering::AcqRel);
        [&self.all, &self.failed, &self.slow].into_iter().for_each(Ring::clear);
        self.gate.store(0, Ordering::Release);
    }

    /// The rule has changed: if it is open for longer than that allows, a request may try sooner.
    pub fn hurry(&self, now: Instant, rule: &BreakerRule) {
        let trying = self.trying.lock();
        let wait = u64::try_from(rule.open_for.as_nanos()).unwrap_or(u64::MAX);
        let latest = self.clock.nanos(now).saturating_add(wait).max(1);
        if !*trying && self.gate.load(Ordering::Acquire) > latest {
            self.gate.store(latest, Ordering::Release);
        }
    }

    fn too_much(&self, tick: u32, rule: &BreakerRule) -> Option<(Cause, u64, u64)> {
        let (all, failed, slow) = (self.all.sum(tick), self.failed.sum(tick), self.slow.sum(tick));
        if all < u64::from(rule.volume.max(1)) {
            return None;
        }
        if rule.failure_share.reached(failed, all) && failed > 0 {
            return Some((Cause::Failures, failed, all));
        }
        let too_slow = rule.slow.is_some_and(|(share, _)| share.reached(slow, all) && slow > 0);
        too_slow.then_some((Cause::Slow, slow, all))
    }

    fn open(&self, pass: &Pass, now: Instant, rule: &BreakerRule) -> bool {
        let _change = self.trying.lock();
        if self.era.load(Ordering::Acquire) != pass.era {
            return false;
        }
        self.era.fetch_add(1, Ordering::AcqRel);
        self.shut(now, rule);
        true
    }

    fn tried(&self, pass: &Pass, now: Instant, ok: bool, rule: &BreakerRule) -> Option<Change> {
        let mut trying = self.trying.lock();
        if self.gate.load(Ordering::Acquire) != pass.claim {
            // It took so long that another one tries.
            return None;
        }
        *trying = false;
        if !ok {
            self.shut(now, rule);
            return Some(Change::Opened { cause: Cause::Trial, bad: 1, all: 1 });
        }
        [&self.all, &self.failed, &self.slow].into_iter().for_each(Ring::clear);
        self.era.fetch_add(1, Ordering::AcqRel);
        self.gate.store(0, Ordering::Release);
        Some(Change::Closed)
    }

    /// Moves the gate to the end of the next wait. Never to where it was, so that no two claims are equal.
    fn shut(&self, now: Instant, rule: &BreakerRule) -> u64 {
        let wait = u64::try_from(rule.open_for.as_nanos()).unwrap_or(u64::MAX);
        let until = self.clock.nanos(now).saturating_add(wait);
        let until = until.max(self.gate.load(Ordering::Acquire).saturating_add(1));
        self.gate.store(until, Ordering::Release);
        until
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::Share;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn tell(breaker: &Breaker, now: Instant, ok: bool, took: u64, rule: &BreakerRule) -> Option<Change> {
        let pass = breaker.admit(now, rule).unwrap();
        breaker.report(pass, now, ok, ms(took), rule)
    }

    fn opened(now: Instant, rule: &BreakerRule) -> Breaker {
        let breaker = Breaker::new(now);
        let changes = (0..rule.volume).filter_map(|_| tell(&breaker, now, false, 1, rule)).count();
        assert_eq!((changes, breaker.state()), (1, State::Open));
        breaker
    }

    #[test]
    fn it_opens_at_its_share_but_not_below_its_volume() {
        let slow = BreakerRule { slow: Some((Share::percent(50), ms(100))), ..BreakerRule::default() };
        for (rule, good, bad, took, want) in [
            (BreakerRule::default(), 0, 19, 1, None),
            (BreakerRule::default(), 0, 20, 1, Some((Cause::Failures, 20, 20))),
            (BreakerRule::default(), 11, 10, 1, None),
            (BreakerRule::default(), 10, 10, 1, Some((Cause::Failures, 10, 20))),
            (slow, 10, 9, 100, None),
            (slow, 10, 10, 100, Some((Cause::Slow, 10, 20))),
            (slow, 10, 10, 99, None),
            (BreakerRule { failure_share: Share::NONE, volume: 0, ..slow }, 50, 1, 1, Some((Cause::Failures, 1, 51))),
        ] {
            let now = Instant::now();
            let breaker = Breaker::new(now);
            let mut changes: Vec<_> = (0..good).filter_map(|_| tell(&breaker, now, true, 1, &rule)).collect();
            let slow = took > 1;
            for n in 0..bad {
                changes.extend(tell(&breaker, now, slow, took, &rule));
                assert!(changes.is_empty() || n == bad - 1);
            }
            let want = want.map(|(cause, bad, all)| Change::Opened { cause, bad, all });
            assert_eq!(changes.first().copied(), want, "{good} {bad} {took}");
        }
    }

    #[test]
    fn one_request_tries_and_decides() {
        let now = Instant::now();
        let rule = BreakerRule::default();
        let breaker = opened(now, &rule);
        assert_eq!(breaker.admit(now + ms(4_000), &rule).unwrap_err(), Open { wait: ms(1_000) });
        let due = now + rule.open_for;
        let trial = breaker.admit(due, &rule).unwrap();
        assert_eq!(breaker.state(), State::HalfOpen);
        assert!(breaker.admit(due, &rule).is_err());
        let again = breaker.report(trial, due, false, ms(1), &rule);
        assert_eq!(again, Some(Change::Opened { cause: Cause::Trial, bad: 1, all: 1 }));
        assert_eq!(breaker.state(), State::Open);
        assert!(breaker.admit(due + ms(4_999), &rule).is_err());
        let trial = breaker.admit(due + ms(5_001), &rule).unwrap();
        assert_eq!(breaker.report(trial, due + ms(5_001), true, ms(1), &rule), Some(Change::Closed));
        assert_eq!(breaker.state(), State::Closed);
        // What opened it is forgotten.
        assert_eq!(tell(&breaker, due + ms(5_001), false, 1, &rule), None);
    }

    #[test]
    fn a_trial_that_is_given_up_or_lost_is_followed_by_another() {
        let now = Instant::now();
        let rule = BreakerRule::default();
        let breaker = opened(now, &rule);
        let due = now + rule.open_for;
        let trial = breaker.admit(due, &rule).unwrap();
        breaker.abandon(trial, due);
        let lost = breaker.admit(due, &rule).unwrap();
        assert!(breaker.admit(due + ms(4_999), &rule).is_err());
        let trial = breaker.admit(due + ms(5_001), &rule).unwrap();
        assert_eq!(breaker.report(lost, due + ms(5_001), true, ms(1), &rule), None);
        assert_eq!(breaker.state(), State::HalfOpen);
        assert_eq!(breaker.report(trial, due + ms(5_002), true, ms(1), &rule), Some(Change::Closed));
    }

    #[test]
    fn what_was_asked_before_it_opened_says_nothing_afterwards() {
        let now = Instant::now();
        let rule = BreakerRule { volume: 2, ..BreakerRule::default() };
        let breaker = Breaker::new(now);
        let old: Vec<_> = (0..10).map(|_| breaker.admit(now, &rule).unwrap()).collect();
        tell(&breaker, now, false, 1, &rule);
        assert!(tell(&breaker, now, false, 1, &rule).is_some());
        let due = now + rule.open_for;
        let trial = breaker.admit(due, &rule).unwrap();
        assert_eq!(breaker.report(trial, due, true, ms(1), &rule), Some(Change::Closed));
        for pass in old {
            assert_eq!(breaker.report(pass, due, false, ms(1), &rule), None);
        }
        // Nor do they count beside what is asked now.
        assert_eq!(tell(&breaker, due, false, 1, &rule), None);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn threads_open_it_once_and_one_of_them_tries() {
        let now = Instant::now();
        let rule = BreakerRule::default();
        let breaker = Breaker::new(now);
        let (openings, trials) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        let Ok(pass) = breaker.admit(now, &rule) else { continue };
                        let change = breaker.report(pass, now, false, ms(1), &rule);
                        openings.fetch_add(u32::from(change.is_some()), Ordering::Relaxed);
                    }
                    let trial = breaker.admit(now + rule.open_for, &rule);
                    trials.fetch_add(u32::from(trial.is_ok()), Ordering::Relaxed);
                });
            }
        });
        assert_eq!((openings.into_inner(), trials.into_inner()), (1, 1));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_all_requests(
            events in prop::collection::vec((0u64..1_500, any::<bool>(), any::<bool>()), 1..150),
            percent in 1u32..100, volume in 1u32..20, slow in prop::option::of(1u32..100)
        ) {
            let base = Instant::now();
            let slow = slow.map(|percent| (Share::percent(percent), ms(50)));
            let rule = BreakerRule { failure_share: Share::percent(percent), slow, volume, ..BreakerRule::default() };
            let breaker = Breaker::new(base);
            // Until when it is open, and what was reported since it closed: (second, failed, slow).
            let (mut open_until, mut list, mut at): (Option<u64>, Vec<(u64, bool, bool)>, u64) = (None, Vec::new(), 0);
            for (wait, ok, slow) in events {
                at += wait;
                let now = base + ms(at);
                let admitted = breaker.admit(now, &rule);
                prop_assert_eq!(admitted.is_ok(), open_until.is_none_or(|until| at >= until));
                let Ok(pass) = admitted else { continue };
                let change = breaker.report(pass, now, ok, ms(if slow { 50 } else { 49 }), &rule);
                if open_until.is_some() {
                    if ok { open_until = None; list.clear(); }
                    // A trial moves the gate on from where it was.
                    else { open_until = Some(at + 5_001); }
                    prop_assert!(change.is_some());
                    continue;
                }
                let slow = slow && rule.slow.is_some();
                list.push((at / 1000, !ok, slow));
                let recent: Vec<_> = list.iter().filter(|(then, ..)| at / 1000 - then < 10).collect();
                let count = |pick: fn(&&&(u64, bool, bool)) -> bool| recent.iter().filter(pick).count() as u64;
                let (failed, slowed) = (count(|one| one.1), count(|one| one.2));
                let all = recent.len() as u64;
                let over = |n: u64, share: Share| n > 0 && share.reached(n, all);
                let too_much = over(failed, rule.failure_share) || rule.slow.is_some_and(|(share, _)| over(slowed, share));
                let opens = (!ok || slow) && all >= u64::from(volume) && too_much;
                prop_assert_eq!(change.is_some(), opens);
                if opens {
                    open_until = Some(at + 5_000);
                }
            }
        }
    }
}
