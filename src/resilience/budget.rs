//! The retry budget of a peer: how many further attempts the last ten seconds' first attempts allow.
//!
//! A first attempt is a deposit (one atomic word, no lock); a retry or a hedge is a withdrawal, decided under a short
//! lock, so that the allowance is exact however many threads ask. What was withdrawn counts until it leaves the
//! window, whether it helped or not. First attempts are counted over at most ten seconds and further ones over at least
//! ten, so that in no ten seconds there are more than the rule says.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::window::{Clock, Ring};
use crate::plan::rules::BudgetRule;

/// How far back attempts count.
pub const WINDOW: Duration = Duration::from_secs(10);

/// The budget of one peer.
#[derive(Debug)]
pub struct Budget {
    clock: Clock,
    first: Ring,
    further: Mutex<Further>,
}

#[derive(Debug, Default)]
struct Further {
    ring: Ring<11>,
    /// The latest bucket a withdrawal was made in; a thread whose `now` is older is taken along to it, so that no
    /// withdrawal escapes its count.
    latest: u32,
}

/// Why a withdrawal was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the retry budget allows {allowed} further attempts in ten seconds, {used} were made")]
pub struct Spent {
    /// Further attempts of the last ten seconds.
    pub used: u64,
    /// How many the rule and the traffic allow.
    pub allowed: u64,
}

impl Budget {
    /// A budget without history; `now` is where its clock starts.
    pub fn new(now: Instant) -> Self {
        Self { clock: Clock::new(now, WINDOW), first: Ring::default(), further: Mutex::default() }
    }

    /// A request's first attempt is made.
    pub fn deposit(&self, now: Instant) {
        self.first.add(self.clock.tick(now), 1);
    }

    /// Asks for one further attempt, to be made at once or after its pause.
    ///
    /// # Errors
    /// The budget is spent; nothing was taken.
    pub fn withdraw(&self, now: Instant, rule: &BudgetRule) -> Result<(), Spent> {
        let mut further = self.further.lock();
        let tick = self.clock.tick(now).max(further.latest);
        let used = further.ring.sum(tick);
        let allowed = self.allowed(tick, rule);
        if used >= allowed {
            return Err(Spent { used, allowed });
        }
        further.latest = tick;
        further.ring.add(tick, 1);
        Ok(())
    }

    /// Takes back what was withdrawn at `now` for an attempt that is not made after all.
    pub fn give_back(&self, now: Instant) {
        let further = self.further.lock();
        further.ring.take(self.clock.tick(now).max(further.latest));
    }

    /// Further attempts of the last ten seconds, and how many are allowed; for `/state`.
    pub fn standing(&self, now: Instant, rule: &BudgetRule) -> Spent {
        let further = self.further.lock();
        let tick = self.clock.tick(now).max(further.latest);
        Spent { used: further.ring.sum(tick), allowed: self.allowed(tick, rule) }
    }

    fn allowed(&self, tick: u32, rule: &BudgetRule) -> u64 {
        rule.share.of(self.first.sum(tick)).max(u64::from(rule.floor) * WINDOW.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_given_back_can_be_withdrawn_again() {
        let now = Instant::now();
        let (budget, rule) = (Budget::new(now), BudgetRule { share: crate::plan::rules::Share::NONE, floor: 1 });
        for _ in 0..100 {
            budget.withdraw(now, &rule).unwrap();
            budget.give_back(now);
        }
        assert_eq!(budget.standing(now, &rule).used, 0);
        budget.give_back(now);
        assert_eq!(budget.standing(now, &rule).used, 0);
    }
    use crate::plan::rules::Share;

    fn rule(percent: u32, floor: u32) -> BudgetRule {
        BudgetRule { share: Share::percent(percent), floor }
    }

    fn taken(budget: &Budget, now: Instant, rule: &BudgetRule) -> usize {
        (0..1_000_000).take_while(|_| budget.withdraw(now, rule).is_ok()).count()
    }

    #[test]
    fn the_larger_of_share_and_floor_is_allowed() {
        for (first, percent, floor, want) in
            [(1000, 20, 3, 200), (100, 20, 3, 30), (0, 20, 3, 30), (0, 20, 0, 0), (9, 20, 0, 1), (1000, 0, 0, 0)]
        {
            let now = Instant::now();
            let budget = Budget::new(now);
            (0..first).for_each(|_| budget.deposit(now));
            assert_eq!(taken(&budget, now, &rule(percent, floor)), want, "{first} {percent}% {floor}/s");
            let spent = budget.withdraw(now, &rule(percent, floor)).unwrap_err();
            assert_eq!(spent, Spent { used: want as u64, allowed: want as u64 });
        }
    }

    #[test]
    fn what_left_the_window_counts_no_more() {
        let now = Instant::now();
        let budget = Budget::new(now);
        (0..100).for_each(|_| budget.deposit(now));
        let rule = rule(20, 0);
        assert_eq!(taken(&budget, now, &rule), 20);
        assert_eq!(taken(&budget, now + Duration::from_millis(9_999), &rule), 0);
        let later = now + WINDOW;
        (0..10).for_each(|_| budget.deposit(later));
        assert_eq!(taken(&budget, later, &rule), 0, "the deposits left, the withdrawals do so later");
        assert_eq!(taken(&budget, later + Duration::from_secs(1), &rule), 2);
    }

    #[test]
    fn a_thread_whose_clock_lags_gets_nothing_extra() {
        let now = Instant::now();
        let budget = Budget::new(now);
        let (rule, later) = (rule(0, 1), now + Duration::from_secs(30));
        assert_eq!(taken(&budget, later, &rule), 10);
        assert_eq!(taken(&budget, now, &rule), 0);
    }

    #[test]
    fn threads_together_take_exactly_what_is_allowed() {
        let now = Instant::now();
        let (budget, got) = (Budget::new(now), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        budget.deposit(now);
                        if budget.withdraw(now, &rule(20, 0)).is_ok() {
                            got.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    while budget.withdraw(now, &rule(20, 0)).is_ok() {
                        got.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(got.into_inner(), 4_000);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_all_attempts(
            events in prop::collection::vec((0u64..3_000, any::<bool>()), 1..200),
            percent in 0u32..150, floor in 0u32..2
        ) {
            let base = Instant::now();
            let (budget, rule) = (Budget::new(base), rule(percent, floor));
            let (mut at, mut first, mut further) = (0, Vec::new(), Vec::new());
            for (wait, is_first) in events {
                at += wait / 4;
                let recent = |list: &[u64], seconds| {
                    list.iter().filter(|then| at / 1000 - **then / 1000 < seconds).count() as u64
                };
                if is_first {
                    budget.deposit(base + Duration::from_millis(at));
                    first.push(at);
                    continue;
                }
                let at_least = u64::from(floor) * 10;
                let allowed = (recent(&first, 10) * u64::from(percent) / 100).max(at_least);
                let got = budget.withdraw(base + Duration::from_millis(at), &rule);
                prop_assert_eq!(got.is_ok(), recent(&further, 11) < allowed);
                if got.is_ok() {
                    further.push(at);
                    // The promise itself, without buckets.
                    let exact = |list: &[u64]| list.iter().filter(|then| at - **then < 10_000).count() as u64;
                    prop_assert!(exact(&further) <= (exact(&first) * u64::from(percent) / 100).max(at_least));
                }
            }
        }
    }
}
