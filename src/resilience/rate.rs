//! Rate limits: a token bucket in one atomic word (the generic cell rate algorithm), alone or one for each key.
//!
//! The word is the moment at which the bucket would be full again ("theoretical arrival time", ITU-T I.371): a token
//! moves it on by one interval, and a token is there as long as that does not reach further ahead than the burst.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::window::Clock;
use crate::plan::rules::RateRule;

/// The answer to a request for a token, with what `RateLimit` and `Retry-After` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Whether the token was there, and is taken.
    pub ok: bool,
    /// What the bucket holds when full.
    pub limit: u32,
    /// Tokens left now.
    pub remaining: u32,
    /// Until the bucket is full again.
    pub reset: Duration,
    /// Until the next token; zero if there is one. [`Duration::MAX`] if there will never be one.
    pub retry_after: Duration,
}

/// The rule in nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Between two tokens; rounded up, so that never more than allowed pass.
    interval: u64,
    /// How far ahead the word may reach.
    ahead: u64,
    limit: u32,
}

impl Pace {
    fn of(rule: &RateRule) -> Option<Self> {
        let period = u64::try_from(rule.period.as_nanos()).unwrap_or(u64::MAX).max(1);
        let limit = rule.burst.max(1);
        let interval = (rule.count > 0).then(|| period.div_ceil(u64::from(rule.count)))?;
        Some(Self { interval, ahead: interval.saturating_mul(u64::from(limit)), limit })
    }

    /// The word after a token was taken at `now`; `None` if there is none.
    fn next(self, word: u64, now: u64) -> Option<u64> {
        let next = word.max(now).saturating_add(self.interval);
        (next - now <= self.ahead).then_some(next)
    }

    /// The word of a bucket that is empty at `now`.
    fn empty(self, now: u64) -> u64 {
        now.saturating_add(self.ahead)
    }

    fn answer(self, ok: bool, word: u64, now: u64) -> Answer {
        let ahead = word.saturating_sub(now);
        let free = self.ahead.saturating_sub(ahead);
        Answer {
            ok,
            limit: self.limit,
            remaining: u32::try_from(free / self.interval).unwrap_or(u32::MAX),
            reset: Duration::from_nanos(ahead),
            retry_after: Duration::from_nanos(ahead.saturating_add(self.interval).saturating_sub(self.ahead)),
        }
    }
}

fn closed() -> Answer {
    Answer { ok: false, limit: 0, remaining: 0, reset: Duration::MAX, retry_after: Duration::MAX }
}

/// One bucket that all workers share.
#[derive(Debug)]
pub struct Bucket {
    clock: Clock,
    word: AtomicU64,
}

impl Bucket {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { clock: Clock::new(now, Duration::from_secs(1)), word: AtomicU64::new(0) }
    }

    /// Takes a token if there is one.
    pub fn take(&self, now: Instant, rule: &RateRule) -> Answer {
        let Some(pace) = Pace::of(rule) else { return closed() };
        let now = self.clock.nanos(now);
        let taken = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| pace.next(word, now));
        match taken {
            Ok(before) => pace.answer(true, before.max(now).saturating_add(pace.interval), now),
            Err(word) => pace.answer(false, word, now),
        }
    }

    /// From `now` on it goes by `rule`: of what is owed no more stays than empties a bucket of that size. A request that
    /// still goes by the rule of before may owe one interval of that rule more.
    pub fn follow(&self, now: Instant, rule: &RateRule) {
        if let Some(pace) = Pace::of(rule) {
            self.word.fetch_min(pace.empty(self.clock.nanos(now)), Ordering::AcqRel);
        }
    }
}

/// A bucket for each key (an identity, a header's value), at most `capacity` of them.
///
/// Making room cannot be used to get around the limit: only a bucket that is full again is forgotten, which is what a
/// new one would be. While none is, keys without a bucket share one, and a key that gets its own afterwards takes the
/// shared one's debt along; so no key ever gets more than the rule says, and a flood of invented keys together gets
/// what one key gets. The price: during such a flood an honest new key shares that one bucket too.
///
/// Keys are kept as 64-bit hashes; with a secret hasher nobody can make two collide.
#[derive(Debug)]
pub struct Keyed<S = RandomState> {
    clock: Clock,
    hasher: S,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    capacity: usize,
    places: HashMap<u64, u32>,
    slots: Vec<Slot>,
    /// The ends of the list of slots in order of use.
    newest: u32,
    oldest: u32,
    /// The bucket of keys that have none.
    shared: u64,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    key: u64,
    word: u64,
    newer: u32,
    older: u32,
}

/// No slot.
const END: u32 = u32::MAX;

impl<S: BuildHasher> Keyed<S> {
    /// An empty table; `capacity` is at least 1, and `hasher` should be seeded with a secret.
    pub fn new(now: Instant, capacity: u32, hasher: S) -> Self {
        let table = Table {
            capacity: capacity.clamp(1, END - 1) as usize,
            places: HashMap::new(),
            slots: Vec::new(),
            newest: END,
            oldest: END,
            shared: 0,
        };
        Self { clock: Clock::new(now, Duration::from_secs(1)), hasher, table: Mutex::new(table) }
    }

    /// Takes one of the key's tokens if there is one.
    pub fn take(&self, now: Instant, rule: &RateRule, key: &(impl Hash + ?Sized)) -> Answer {
        let Some(pace) = Pace::of(rule) else { return closed() };
        let (hash, now) = (self.hasher.hash_one(key), self.clock.nanos(now));
        let mut table = self.table.lock();
        let word = table.word(hash, now);
        match pace.next(*word, now) {
            Some(next) => {
                *word = next;
                pace.answer(true, next, now)
            }
            None => pace.answer(false, *word, now),
        }
    }

    /// As [`Bucket::follow`], for the bucket of each key.
    pub fn follow(&self, now: Instant, rule: &RateRule) {
        let Some(pace) = Pace::of(rule) else { return };
        let empty = pace.empty(self.clock.nanos(now));
        let mut table = self.table.lock();
        table.shared = table.shared.min(empty);
        table.slots.iter_mut().for_each(|slot| slot.word = slot.word.min(empty));
    }

    /// How many keys have a bucket of their own.
    pub fn len(&self) -> usize {
        self.table.lock().slots.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// The bucket of a key: its own, a new one, one that is free again, or the shared one.
    fn word(&mut self, key: u64, now: u64) -> &mut u64 {
        let at = match self.places.get(&key) {
            Some(at) => {
                let at = *at;
                self.unlink(at);
                at
            }
            None => match self.make_room(now) {
                Some(at) => {
                    self.places.insert(key, at);
                    let word = self.shared;
                    if let Some(slot) = self.slots.get_mut(at as usize) {
                        (slot.key, slot.word) = (key, word);
                    }
                    at
                }
                None => return &mut self.shared,
            },
        };
        self.link(at);
        match self.slots.get_mut(at as usize) {
            Some(slot) => &mut slot.word,
            None => &mut self.shared,
        }
    }

    /// A slot that is in no list: a new one, or that of the longest unused key if its bucket is full again.
    fn make_room(&mut self, now: u64) -> Option<u32> {
        if self.slots.len() < self.capacity {
            self.slots.push(Slot { key: 0, word: 0, newer: END, older: END });
            return u32::try_from(self.slots.len() - 1).ok();
        }
        let at = self.oldest;
        let slot = *self.slots.get(at as usize)?;
        if slot.word > now {
            return None;
        }
        self.places.remove(&slot.key);
        self.unlink(at);
        Some(at)
    }

    fn unlink(&mut self, at: u32) {
        let Some(Slot { newer, older, .. }) = self.slots.get(at as usize).copied() else { return };
        match self.slots.get_mut(newer as usize) {
            Some(slot) => slot.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.newer = newer,
            None => self.oldest = newer,
        }
    }

    fn link(&mut self, at: u32) {
        let before = self.newest;
        if let Some(slot) = self.slots.get_mut(at as usize) {
            (slot.newer, slot.older) = (END, before);
        }
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.newer = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn rule(count: u32, burst: u32) -> RateRule {
        RateRule { count, period: Duration::from_secs(1), burst }
    }

    #[test]
    fn an_answer_says_what_is_left_and_when_to_come_back() {
        let now = Instant::now();
        let (bucket, rule) = (Bucket::new(now), rule(10, 3));
        for (at, ok, remaining, reset, retry_after) in [
            (0, true, 2, 100, 0),
            (0, true, 1, 200, 0),
            (0, true, 0, 300, 100),
            (0, false, 0, 300, 100),
            (50, false, 0, 250, 50),
            (100, true, 0, 300, 100),
            (1000, true, 2, 100, 0),
        ] {
            let want = Answer { ok, limit: 3, remaining, reset: ms(reset), retry_after: ms(retry_after) };
            assert_eq!(bucket.take(now + ms(at), &rule), want, "at {at}");
        }
    }

    #[test]
    fn odd_rules_do_no_harm() {
        let now = Instant::now();
        let none = Bucket::new(now).take(now, &rule(0, 5));
        assert!(!none.ok && none.retry_after == Duration::MAX);
        assert!(Bucket::new(now).take(now, &rule(5, 0)).ok, "a bucket holds at least one");
        for rule in [
            RateRule { count: 1, period: Duration::MAX, burst: u32::MAX },
            RateRule { count: u32::MAX, period: Duration::ZERO, burst: u32::MAX },
        ] {
            let bucket = Bucket::new(now);
            assert!((0..5).all(|_| bucket.take(now, &rule).retry_after <= Duration::MAX));
        }
        assert_eq!(RateRule::per_second(500), rule(500, 500));
    }

    #[test]
    fn a_reload_changes_the_pace_and_keeps_the_debt() {
        let now = Instant::now();
        let bucket = Bucket::new(now);
        assert_eq!((0..9).filter(|_| bucket.take(now, &rule(10, 5)).ok).count(), 5);
        // Half a second is owed; a burst of twenty at ten a second is two seconds.
        assert_eq!((0..99).filter(|_| bucket.take(now, &rule(10, 20)).ok).count(), 15);
        assert!(!bucket.take(now, &rule(10, 5)).ok);
    }

    #[test]
    fn a_smaller_bucket_owes_no_more_than_it_holds() {
        let now = Instant::now();
        let (bucket, table) = (Bucket::new(now), Keyed::new(now, 1, RandomState::new()));
        let (large, small) = (rule(10, 100), rule(10, 3));
        // One key has the table's place, the other goes by the bucket that is shared.
        let took = |rule: &RateRule, at: u64| {
            let count = |ok: &dyn Fn(Instant) -> bool| (0..200).filter(|_| ok(now + ms(at))).count();
            [
                count(&|now| bucket.take(now, rule).ok),
                count(&|now| table.take(now, rule, "a").ok),
                count(&|now| table.take(now, rule, "b").ok),
            ]
        };
        assert_eq!(took(&large, 0), [100; 3]);
        let follow = |rule: &RateRule, at: u64| {
            bucket.follow(now + ms(at), rule);
            table.follow(now + ms(at), rule);
        };
        // The same rule once more gives nothing, and a larger bucket no more than it has over the smaller.
        follow(&large, 0);
        assert_eq!(took(&large, 0), [0; 3]);
        follow(&small, 1000);
        assert_eq!(took(&small, 1000), [0; 3], "what was taken is not given again");
        assert_eq!(took(&small, 1100), [1; 3]);
        assert_eq!(took(&small, 9000), [3; 3]);
        follow(&rule(0, 3), 9000);
        assert_eq!(took(&rule(0, 3), 9000), [0; 3]);
    }

    #[test]
    fn threads_take_exactly_the_burst() {
        let now = Instant::now();
        let (bucket, taken) = (Bucket::new(now), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let got = (0..5_000).filter(|_| bucket.take(now, &rule(1, 7_777)).ok).count();
                    taken.fetch_add(got as u32, Ordering::Relaxed);
                });
            }
        });
        assert_eq!(taken.into_inner(), 7_777);
    }

    #[test]
    fn a_flood_of_keys_gets_no_more_than_one_key_and_pushes_none_out() {
        let now = Instant::now();
        let (table, rule) = (Keyed::new(now, 10, RandomState::new()), rule(10, 5));
        let mine = |now| (0..99).filter(|_| table.take(now, &rule, "mine").ok).count();
        assert_eq!(mine(now), 5);
        let flood = (0..1_000).filter(|n| table.take(now, &rule, &format!("invented {n}")).ok).count();
        // Nine found a place and took one each; all others together got what one key gets.
        assert_eq!((flood, table.len()), (9 + 5, 10));
        assert_eq!(mine(now), 0, "the flood did not make a new bucket of it");
        // When buckets are full again, the longest unused ones make room.
        let later = now + Duration::from_secs(1);
        assert_eq!(mine(later), 5);
        assert_eq!((0..5).filter(|_| table.take(later, &rule, "new").ok).count(), 5);
        assert_eq!(table.len(), 10);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_bucket_that_is_filled_drop_by_drop(
            count in 1u32..50, burst in 1u32..20, waits in prop::collection::vec(0u64..400, 1..200)
        ) {
            let base = Instant::now();
            let (bucket, rule) = (Bucket::new(base), rule(count, burst));
            let interval = u64::from(1_000_000_000u32.div_ceil(count));
            // The naive bucket holds nanoseconds of time; a token is an interval's worth.
            let full = interval * u64::from(burst);
            let (mut held, mut at) = (full, 0u64);
            for wait in waits {
                at += wait * 1_000_000;
                held = (held + wait * 1_000_000).min(full);
                let got = bucket.take(base + Duration::from_nanos(at), &rule);
                prop_assert_eq!(got.ok, held >= interval);
                if got.ok { held -= interval; }
                prop_assert_eq!(u64::from(got.remaining), held / interval);
                prop_assert_eq!(got.reset, Duration::from_nanos(full - held));
                prop_assert_eq!(got.retry_after, Duration::from_nanos(interval.saturating_sub(held)));
            }
        }

        #[test]
        fn no_key_ever_gets_more_than_its_rule(
            capacity in 1u32..5, count in 1u32..6, burst in 1u32..4,
            events in prop::collection::vec((0u8..8, 0u64..300), 1..300)
        ) {
            let base = Instant::now();
            let (table, rule) = (Keyed::new(base, capacity, RandomState::new()), rule(count, burst));
            let mut own: Vec<Bucket> = (0..8).map(|_| Bucket::new(base)).collect();
            let mut at = 0;
            for (key, wait) in events {
                at += wait;
                let now = base + ms(at);
                let got = table.take(now, &rule, &key).ok;
                // A bucket of its own, of which only what was really given is taken.
                let own = &mut own[key as usize];
                prop_assert!(!got || own.take(now, &rule).ok, "key {} got more than its own bucket had", key);
                prop_assert!(table.len() <= capacity as usize);
            }
        }

        #[test]
        fn while_there_is_room_each_key_has_its_own_bucket(
            events in prop::collection::vec((0u8..8, 0u64..300), 1..200), count in 1u32..6, burst in 1u32..4
        ) {
            let base = Instant::now();
            let (table, rule) = (Keyed::new(base, 8, RandomState::new()), rule(count, burst));
            let own: Vec<Bucket> = (0..8).map(|_| Bucket::new(base)).collect();
            let mut at = 0;
            for (key, wait) in events {
                at += wait;
                let now = base + ms(at);
                prop_assert_eq!(table.take(now, &rule, &key), own[key as usize].take(now, &rule));
            }
        }
    }
}
