//! Client-side admission control: when a peer accepts too little, part of what it is asked is refused here already.
//!
//! "Adaptive throttling" (Site Reliability Engineering, ch. 21): with R requests and A accepted ones in the window, a
//! request is refused with the probability (R − K·A) / (R + 1). Refused requests count in R, so that the more the app
//! insists, the less gets through.

use std::time::Duration;

use tokio::time::Instant;

use super::window::{Clock, Ring};
use crate::plan::rules::AdmissionRule;

/// How far back requests count.
pub const WINDOW: Duration = Duration::from_secs(30);

/// The admission to one peer.
#[derive(Debug)]
pub struct Admission {
    clock: Clock,
    asked: Ring,
    accepted: Ring,
}

/// Why a request is not sent.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the peer accepted {accepted} of {asked} requests in thirty seconds; {:.0} % are refused here", share * 100.0)]
pub struct Refused {
    /// Requests of the last thirty seconds.
    pub asked: u64,
    /// How many of them the peer accepted.
    pub accepted: u64,
    /// The part that is refused now, the whole being 1.
    pub share: f64,
}

impl Admission {
    /// Nothing was asked yet.
    pub fn new(now: Instant) -> Self {
        Self { clock: Clock::new(now, WINDOW), asked: Ring::default(), accepted: Ring::default() }
    }

    /// A request wants to be sent; `roll` is any random number. It counts once it is known what became of it: what its
    /// caller gives up, or a limit of ours keeps back, says nothing about the peer.
    ///
    /// # Errors
    /// It is to be refused.
    pub fn admit(&self, now: Instant, rule: &AdmissionRule, roll: u64) -> Result<(), Refused> {
        let tick = self.clock.tick(now);
        let (asked, accepted) = (self.asked.sum(tick), self.accepted.sum(tick));
        if asked < u64::from(rule.volume) {
            return Ok(());
        }
        let excess = asked as f64 - rule.accepts.as_f64() * accepted as f64;
        let share = (excess / (asked as f64 + 1.0)).clamp(0.0, rule.most.as_f64().min(1.0));
        // The upper 53 bits are a number below 1 that a f64 holds exactly.
        let point = (roll >> 11) as f64 / (1u64 << 53) as f64;
        if point >= share {
            return Ok(());
        }
        self.asked.add(tick, 1);
        Err(Refused { asked, accepted, share })
    }

    /// What became of an admitted request: whether the peer answered, and not that it was overloaded (503, 429, gRPC
    /// UNAVAILABLE or RESOURCE_EXHAUSTED).
    pub fn told(&self, now: Instant, accepted: bool) {
        let tick = self.clock.tick(now);
        self.asked.add(tick, 1);
        if accepted {
            self.accepted.add(tick, 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::Share;

    #[test]
    fn a_well_peer_is_asked_everything_and_half_of_it_may_fail() {
        let now = Instant::now();
        let (admission, rule) = (Admission::new(now), AdmissionRule::default());
        for n in 0..1_000 {
            assert_eq!(admission.admit(now, &rule, 0), Ok(()), "after {n}");
            admission.told(now, n % 2 == 0);
        }
    }

    #[test]
    fn little_traffic_is_never_refused_and_a_dead_peer_still_gets_its_part() {
        let now = Instant::now();
        let (admission, rule) = (Admission::new(now), AdmissionRule::default());
        for n in 0..20 {
            // Those that nothing is heard of do not count.
            (0..9).for_each(|_| assert_eq!(admission.admit(now, &rule, 0), Ok(()), "after {n}"));
            admission.told(now, false);
        }
        let refused = admission.admit(now, &rule, 0).unwrap_err();
        assert_eq!((refused.asked, refused.accepted), (20, 0));
        assert!((refused.share - 0.8).abs() < 1e-9);
        assert_eq!(admission.admit(now, &rule, u64::MAX / 100 * 81), Ok(()));
        let whole = AdmissionRule { most: Share::percent(500), ..rule };
        assert!(admission.admit(now, &whole, u64::MAX / 100 * 90).is_err());
        assert_eq!(admission.admit(now, &whole, u64::MAX), Ok(()));
        // Half a minute later all is forgotten.
        assert_eq!(admission.admit(now + WINDOW, &rule, 0), Ok(()));
    }

    proptest! {
        #[test]
        fn it_follows_the_formula(
            asked in 0u64..300, accepted in 0u64..300, accepts in 100u32..400, most in 1u32..=100, roll in any::<u64>()
        ) {
            let now = Instant::now();
            let admission = Admission::new(now);
            let rule = AdmissionRule { accepts: Share::percent(accepts), most: Share::percent(most), volume: 10 };
            let accepted = accepted.min(asked);
            (0..asked).for_each(|n| admission.told(now, n < accepted));
            let want = (asked as f64 - f64::from(accepts) / 100.0 * accepted as f64) / (asked as f64 + 1.0);
            let want = want.clamp(0.0, f64::from(most) / 100.0);
            let point = roll as f64 / 2f64.powi(64);
            prop_assume!((point - want).abs() > 1e-9);
            prop_assert_eq!(admission.admit(now, &rule, roll).is_err(), asked >= 10 && point < want);
        }
    }
}
