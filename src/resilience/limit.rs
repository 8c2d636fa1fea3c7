//! Exact limits that all workers share: one counter each, never above the limit, given back when a permit is dropped.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::priority::{Claim, Part, Why};
use crate::plan::rules::LimitsRule;

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limited {
    /// Open connections.
    Connections,
    /// Connections being made.
    Connecting,
    /// Requests sent and not fully answered.
    InFlight,
    /// Requests waiting for a connection.
    Pending,
    /// Retries and hedges in flight.
    Retries,
}

impl Limited {
    /// Every one, in the order of [`Limited::index`].
    pub const ALL: [Self; 5] = [Self::Connections, Self::Connecting, Self::InFlight, Self::Pending, Self::Retries];

    /// The place in [`Limited::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }

    /// What a rule says about it.
    pub fn of(self, rule: &LimitsRule) -> Option<u32> {
        match self {
            Self::Connections => rule.connections,
            Self::Connecting => rule.connecting,
            Self::InFlight => rule.in_flight,
            Self::Pending => rule.pending,
            Self::Retries => rule.retries,
        }
    }

    /// The key in the file, also the word in answers and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Connecting => "connecting",
            Self::InFlight => "in-flight",
            Self::Pending => "pending",
            Self::Retries => "retries",
        }
    }
}

/// Why a permit was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit `{}: {limit}` is reached{}", what.word(), Why(*part))]
pub struct Full {
    /// Which limit.
    pub what: Limited,
    /// Its value.
    pub limit: u32,
    /// The part of it that the refused one could use; `None` is the whole.
    pub part: Option<Part>,
}

/// One counter. Its limit comes with each question, so that a reload changes it and keeps the count.
pub struct Limit {
    what: Limited,
    used: AtomicU32,
}

impl Limit {
    /// A counter of which nothing is used.
    pub fn new(what: Limited) -> Self {
        Self { what, used: AtomicU32::new(0) }
    }

    /// How many are used now.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes one until the permit is dropped; `held` is a reference, an `Arc`, or anything that leads to the counter,
    /// so that a request that already holds its peer need not count another reference. Without a limit it only counts.
    ///
    /// # Errors
    /// The limit is reached; nothing was taken.
    pub fn take<H: Deref<Target = Self>>(held: H, limit: Option<u32>) -> Result<Permit<H>, Full> {
        held.raise(limit)?;
        Ok(Permit(held))
    }

    /// As [`Limit::take`] for whoever gives it back by [`Limit::lower`] itself.
    ///
    /// # Errors
    /// The limit is reached; nothing was taken.
    pub fn raise(&self, limit: Option<u32>) -> Result<(), Full> {
        let most = limit.unwrap_or(u32::MAX);
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            if used < most { used.checked_add(1) } else { None }
        });
        taken.map(drop).map_err(|_| Full { what: self.what, limit: most, part: None })
    }

    /// Gives back one that was taken by [`Limit::raise`].
    pub fn lower(&self) {
        self.used.fetch_sub(1, Ordering::Relaxed);
    }

    /// What a question would be refused with now.
    pub fn full(&self, limit: Option<u32>) -> Option<Full> {
        let limit = limit.filter(|limit| self.used() >= *limit)?;
        Some(Full { what: self.what, limit, part: None })
    }
}

impl fmt::Debug for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} used", self.what.word(), self.used())
    }
}

/// One taken from a [`Limit`], given back on drop.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit<H: Deref<Target = Limit>>(H);

impl<H: Deref<Target = Limit>> Drop for Permit<H> {
    fn drop(&mut self) {
        self.0.lower();
    }
}

/// Leads to one of the five counters, so that a permit keeps them alive.
#[derive(Debug)]
pub struct Counter {
    limits: Arc<Limits>,
    what: Limited,
}

impl Deref for Counter {
    type Target = Limit;

    fn deref(&self) -> &Limit {
        self.limits.of(self.what)
    }
}

/// A permit of one of the five counters.
pub type Held = Permit<Counter>;

/// The five counters of a peer or an endpoint.
#[derive(Debug)]
pub struct Limits {
    /// Open connections.
    pub connections: Limit,
    /// Connections being made.
    pub connecting: Limit,
    /// Requests sent and not fully answered.
    pub in_flight: Limit,
    /// Requests waiting for a connection.
    pub pending: Limit,
    /// Retries and hedges in flight.
    pub retries: Limit,
}

impl Limits {
    /// One of the five.
    pub fn of(&self, what: Limited) -> &Limit {
        match what {
            Limited::Connections => &self.connections,
            Limited::Connecting => &self.connecting,
            Limited::InFlight => &self.in_flight,
            Limited::Pending => &self.pending,
            Limited::Retries => &self.retries,
        }
    }

    /// Takes one until the permit is dropped.
    ///
    /// # Errors
    /// The limit that `rule` sets is reached.
    pub fn hold(self: &Arc<Self>, what: Limited, rule: &LimitsRule) -> Result<Held, Full> {
        Limit::take(Counter { limits: Arc::clone(self), what }, what.of(rule))
    }

    /// Takes a place in flight until the permit is dropped, if the part of `limit` that this claim may use has one.
    ///
    /// # Errors
    /// The limit, or that part of it, is reached.
    pub fn enter(self: &Arc<Self>, limit: Option<u32>, claim: Claim) -> Result<Held, Full> {
        let counter = Counter { limits: Arc::clone(self), what: Limited::InFlight };
        let part = limit.and_then(|limit| claim.part(limit));
        let most = part.map_or(limit, |part| Some(part.most));
        Limit::take(counter, most).map_err(|full| Full { limit: limit.unwrap_or(full.limit), part, ..full })
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: Limit::new(Limited::Connections),
            connecting: Limit::new(Limited::Connecting),
            in_flight: Limit::new(Limited::InFlight),
            pending: Limit::new(Limited::Pending),
            retries: Limit::new(Limited::Retries),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::Priority;

    #[test]
    fn a_refusal_names_the_limit_and_its_value() {
        let limits = Limits::default();
        let _one = Limit::take(&limits.in_flight, Some(1)).unwrap();
        let full = Limit::take(&limits.in_flight, Some(1)).unwrap_err();
        assert_eq!(full.to_string(), "the limit `in-flight: 1` is reached");
        assert_eq!(
            Limit::take(&limits.pending, Some(0)).unwrap_err(),
            Full { what: Limited::Pending, limit: 0, part: None }
        );
        assert!(Limit::take(&limits.in_flight, None).is_ok(), "without a limit it only counts");
        assert_eq!((limits.in_flight.used(), limits.connections.used()), (1, 0));
    }

    #[test]
    fn low_priority_leaves_the_last_part_and_a_refusal_says_so() {
        let limits = Arc::new(Limits::default());
        let enter = |priority| limits.enter(Some(10), Claim { priority, kept: true });
        let fill = |priority| std::iter::from_fn(|| enter(priority).ok()).collect::<Vec<_>>();
        let (low, normal, high) = (fill(Priority::Low), fill(Priority::Normal), fill(Priority::High));
        assert_eq!((low.len(), normal.len(), high.len()), (8, 1, 1));
        for (priority, text) in [
            (Priority::Low, "the limit `in-flight: 10` is reached by the 8 that low priority may use"),
            (Priority::Normal, "the limit `in-flight: 10` is reached by the 9 that normal priority may use"),
            (Priority::High, "the limit `in-flight: 10` is reached"),
        ] {
            assert_eq!(enter(priority).unwrap_err().to_string(), text);
        }
        // Whoever is in flight counts, not only their like.
        drop(low);
        assert_eq!(fill(Priority::Low).len(), 6);
    }

    #[test]
    fn a_limit_that_shrinks_below_what_is_used_refuses_until_enough_is_given_back() {
        let limit = Arc::new(Limit::new(Limited::Retries));
        let mut held: Vec<_> = (0..3).map(|_| Limit::take(limit.clone(), Some(3)).unwrap()).collect();
        assert!(Limit::take(limit.clone(), Some(2)).is_err());
        held.truncate(2);
        assert!(Limit::take(limit.clone(), Some(2)).is_err());
        held.truncate(1);
        assert!(Limit::take(limit.clone(), Some(2)).is_ok());
    }

    #[test]
    fn threads_never_exceed_it_by_one() {
        let (limit, peak, inside) = (Limit::new(Limited::InFlight), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Ok(permit) = Limit::take(&limit, Some(2)) else { continue };
                        peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                });
            }
        });
        assert!(peak.into_inner() <= 2);
        assert_eq!(limit.used(), 0);
    }

    proptest! {
        #[test]
        fn it_counts_like_a_list_of_permits(ops in prop::collection::vec((any::<bool>(), 0u32..5), 1..100)) {
            let limit = Limit::new(Limited::Connections);
            let mut held = Vec::new();
            for (take, most) in ops {
                if take {
                    let got = Limit::take(&limit, Some(most));
                    prop_assert_eq!(got.is_ok(), held.len() < most as usize);
                    held.extend(got);
                } else {
                    held.pop();
                }
                prop_assert_eq!(limit.used() as usize, held.len());
            }
        }
    }
}
