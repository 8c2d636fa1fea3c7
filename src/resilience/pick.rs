//! Which of a group of endpoints takes the next request: an index, in constant time whatever the size of the group.
//!
//! Weights are turned into [`Shares`] once, when the group changes. Of two choices the second must be better to win,
//! so at equal cost the traffic follows the weights.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::plan::keyhash::{mix, scale};
use crate::plan::peer::Balance;
use crate::plan::rules::SlowStartRule;

/// How much better the second choice must be where weights differ: what the file asks for is overridden by load only
/// where the difference is clear.
const CLEARLY: f64 = 2.0;

/// Draws before a pick that must pass over some endpoints looks at them in turn.
const REDRAWS: usize = 4;

/// The golden ratio's fraction of 2^64: its multiples spread evenly, however many are taken.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A source of random numbers that threads share without a lock (splitmix64).
#[derive(Debug)]
pub struct Dice(AtomicU64);

impl Dice {
    /// Starts at `seed`; equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number.
    pub fn roll(&self) -> u64 {
        mix(self.0.fetch_add(GOLDEN, Ordering::Relaxed).wrapping_add(GOLDEN))
    }
}

/// The weights of a group, prepared so that a point between 0 and 1 finds its endpoint in constant time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shares {
    len: usize,
    /// `None` where all weights are equal.
    table: Option<Table>,
}

#[derive(Debug, Clone, PartialEq)]
struct Table {
    /// The sum of the weights up to and including each.
    upto: Box<[u64]>,
    /// For each of `len` equal parts of the sum: the first endpoint that reaches into it.
    start: Box<[u32]>,
    total: u64,
}

impl Shares {
    /// Prepares `weights`; each must be positive (who takes none is no member of the group), at most 2^32 of them.
    pub fn new(weights: &[u32]) -> Self {
        let len = weights.len();
        let equal = weights.windows(2).all(|pair| matches!(pair, [a, b] if a == b));
        Self { len, table: (!equal).then(|| Table::new(weights)) }
    }

    /// How many endpoints the group has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The weight of endpoint `at` relative to the mean; 1 where all are equal.
    pub fn relative(&self, at: usize) -> f64 {
        let Some(table) = &self.table else { return 1.0 };
        let upto = |at: usize| table.upto.get(at).copied().unwrap_or(0);
        let before = at.checked_sub(1).map_or(0, upto);
        let weight = upto(at).saturating_sub(before).max(1);
        weight as f64 * self.len as f64 / table.total as f64
    }

    /// The endpoint at `point`, a fraction of 2^64. The group must not be empty.
    fn at(&self, point: u64) -> usize {
        match &self.table {
            None => scale(point, self.len as u64) as usize,
            Some(table) => table.at(point),
        }
    }
}

impl Table {
    fn new(weights: &[u32]) -> Self {
        let mut total = 0;
        let upto: Box<[u64]> = weights
            .iter()
            .map(|weight| {
                total += u64::from(*weight);
                total
            })
            .collect();
        let parts = weights.len() as u64;
        let mut at = 0;
        let start = (0..parts)
            .map(|part| {
                let from = scale_wide(part, total, parts);
                while upto.get(at).is_some_and(|upto| *upto <= from) {
                    at += 1;
                }
                at as u32
            })
            .collect();
        Self { upto, start, total }
    }

    fn at(&self, point: u64) -> usize {
        let target = scale(point, self.total);
        let part = scale_wide(target, self.start.len() as u64, self.total) as usize;
        let from = self.start.get(part).map_or(0, |at| *at as usize);
        let to = self.start.get(part + 1).map_or(self.upto.len(), |at| *at as usize + 1);
        // On average fewer than two endpoints reach into one part, so the search is short.
        let within = self.upto.get(from..to).unwrap_or_default().partition_point(|upto| *upto <= target);
        (from + within).min(self.upto.len().saturating_sub(1))
    }
}

/// `a * b / c` without overflow.
fn scale_wide(a: u64, b: u64, c: u64) -> u64 {
    (u128::from(a) * u128::from(b) / u128::from(c.max(1))) as u64
}

/// What a pick draws from; one per peer.
#[derive(Debug)]
pub struct Draw {
    dice: Dice,
    turn: AtomicU64,
}

/// An endpoint that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Its index.
    pub at: usize,
    /// Whether it was chosen although it is out, because all are: to be counted, and said in the log when it begins
    /// and ends.
    pub open: bool,
}

/// How much of its share an endpoint of this `age` takes, the whole being 1. Without effect where the whole group is
/// as young: see [`Draw::too_cold`].
pub fn warmth(age: Duration, rule: &SlowStartRule) -> f64 {
    let grown = age.as_secs_f64() / rule.window.as_secs_f64().max(f64::MIN_POSITIVE);
    grown.max(rule.least.as_f64()).min(1.0)
}

impl Draw {
    /// Starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self { dice: Dice::new(seed), turn: AtomicU64::new(0) }
    }

    /// Chooses an index of `shares`, never one for which `avoided` says yes; `None` if that leaves none.
    ///
    /// `cost` is asked only by the two-choice ways, twice, with the index and its relative weight; the balance says
    /// which cost is meant (see [`Balance`]), the caller gives it.
    pub fn pick(
        &self,
        balance: Balance,
        shares: &Shares,
        avoided: impl Fn(usize) -> bool,
        cost: impl Fn(usize, f64) -> f64,
    ) -> Option<usize> {
        if shares.is_empty() {
            return None;
        }
        let two_choices = match balance {
            Balance::PeakEwma | Balance::LeastRequest => true,
            Balance::RoundRobin | Balance::Random | Balance::RingHash | Balance::Maglev => false,
        };
        let first = self.first(balance, shares, &avoided)?;
        if !two_choices || shares.len() == 1 {
            return Some(first);
        }
        let Some(second) = self.second(shares, first, &avoided) else { return Some(first) };
        let margin = if shares.table.is_some() { CLEARLY } else { 1.0 };
        let better = cost(second, shares.relative(second)) * margin < cost(first, shares.relative(first));
        Some(if better { second } else { first })
    }

    /// As [`Draw::pick`], with regard to ejection and to endpoints already tried: first one that is neither tried nor
    /// out; then one that was tried, because "out" is the surer knowledge; and only if all are out (`all_out`, or no
    /// other is found) one that is out, if possible an untried one. `None` only if the group is empty.
    pub fn choose(
        &self,
        balance: Balance,
        shares: &Shares,
        all_out: bool,
        tried: impl Fn(usize) -> bool,
        out: impl Fn(usize) -> bool,
        cost: impl Fn(usize, f64) -> f64,
    ) -> Option<Choice> {
        let pick = |balance, avoided: &dyn Fn(usize) -> bool| self.pick(balance, shares, avoided, &cost);
        // Only the first look takes a turn: several in one choice would go round and round to the same endpoint.
        let again = if balance == Balance::RoundRobin { Balance::Random } else { balance };
        // Known beforehand, it spares a large group a look at each of its members.
        if !all_out {
            let well = pick(balance, &|at| out(at) || tried(at)).or_else(|| pick(again, &out));
            if let Some(at) = well {
                return Some(Choice { at, open: false });
            }
        }
        let any = pick(if all_out { balance } else { again }, &tried).or_else(|| pick(again, &|_| false));
        any.map(|at| Choice { at, open: true })
    }

    /// Some of a group in turn, all of them if there are not more than `most`: for the rare pick that must be a good one.
    pub fn several(&self, shares: &Shares, most: usize) -> impl Iterator<Item = usize> {
        let at = if shares.is_empty() { 0 } else { scale(self.dice.roll(), shares.len() as u64) as usize };
        from(at, shares.len()).take(most)
    }

    /// A number for whatever else is left to chance.
    pub fn roll(&self) -> u64 {
        self.dice.roll()
    }

    /// Whether an endpoint of this [`warmth`] is to be passed over this time, so that it takes its part of its share
    /// whatever the balance. Ask it within `avoided`; if then no endpoint is left, pick again without it: where all are
    /// equally young, none is favoured.
    pub fn too_cold(&self, warmth: f64) -> bool {
        warmth < 1.0 && (self.dice.roll() >> 11) as f64 / (1u64 << 53) as f64 >= warmth
    }

    fn first(&self, balance: Balance, shares: &Shares, avoided: impl Fn(usize) -> bool) -> Option<usize> {
        let mut at = if balance == Balance::RoundRobin { self.in_turn(shares) } else { shares.at(self.dice.roll()) };
        for _ in 0..REDRAWS {
            if !avoided(at) {
                return Some(at);
            }
            at = shares.at(self.dice.roll());
        }
        from(at, shares.len()).find(|at| !avoided(*at))
    }

    fn second(&self, shares: &Shares, first: usize, avoided: impl Fn(usize) -> bool) -> Option<usize> {
        let fits = |at: &usize| *at != first && !avoided(*at);
        if shares.table.is_none() {
            // Uniform over the others by leaving out `first`.
            let at = scale(self.dice.roll(), shares.len() as u64 - 1) as usize;
            let at = if at >= first { at + 1 } else { at };
            return Some(at).filter(fits).or_else(|| from(at, shares.len()).find(fits));
        }
        let mut at = first;
        for _ in 0..REDRAWS {
            at = shares.at(self.dice.roll());
            if fits(&at) {
                return Some(at);
            }
        }
        from(at, shares.len()).find(fits)
    }

    /// Equal weights go round; others follow multiples of the golden ratio, which never bunch.
    fn in_turn(&self, shares: &Shares) -> usize {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        match &shares.table {
            None => (turn % shares.len().max(1) as u64) as usize,
            Some(table) => table.at(turn.wrapping_mul(GOLDEN)),
        }
    }
}

/// Every index once, starting at `at`.
fn from(at: usize, len: usize) -> impl Iterator<Item = usize> {
    (at..len).chain(0..at.min(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Balance; 4] = [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random];

    fn counts(balance: Balance, weights: &[u32], picks: usize, cost: impl Fn(usize) -> f64) -> Vec<usize> {
        let (shares, draw) = (Shares::new(weights), Draw::new(7));
        let mut counts = vec![0; weights.len()];
        for _ in 0..picks {
            counts[draw.pick(balance, &shares, |_| false, |at, _| cost(at)).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn at_equal_cost_every_balance_follows_the_weights() {
        for balance in ALL {
            for weights in [&[1u32, 1, 1][..], &[3, 1], &[9, 1], &[100, 1, 50, 7], &[u32::MAX, 1, u32::MAX]] {
                let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
                let counts = counts(balance, weights, 20_000, |_| 1.0);
                for (count, weight) in counts.iter().zip(weights) {
                    let want = f64::from(*weight) / total * 20_000.0;
                    assert!((*count as f64 - want).abs() < 400.0, "{balance:?} {weights:?}: {counts:?}");
                }
            }
        }
    }

    #[test]
    fn round_robin_goes_round() {
        assert_eq!(counts(Balance::RoundRobin, &[5, 5, 5], 9, |_| 1.0), [3, 3, 3]);
        // A multiple of the golden ratio misses its share by less than two at any time.
        for picks in 1..200 {
            let counts = counts(Balance::RoundRobin, &[3, 1], picks, |_| 1.0);
            assert!((counts[0] as f64 - picks as f64 * 0.75).abs() < 2.0, "{picks}: {counts:?}");
        }
    }

    #[test]
    fn two_choices_pass_over_a_costly_endpoint() {
        for balance in [Balance::PeakEwma, Balance::LeastRequest] {
            // Of two both are always compared; of more the worst one never wins.
            for weights in [&[1u32, 1][..], &[1, 1, 1, 1], &[1, 5]] {
                let counts = counts(balance, weights, 1_000, |at| if at == 1 { 10.0 } else { 1.0 });
                assert_eq!(counts[1], 0, "{weights:?}: {counts:?}");
            }
        }
        for balance in [Balance::RoundRobin, Balance::Random] {
            assert!(counts(balance, &[1, 1], 1_000, |at| at as f64)[1] > 400);
        }
    }

    #[test]
    fn unequal_weights_bend_only_to_a_clear_difference() {
        let slightly = counts(Balance::PeakEwma, &[9, 1], 10_000, |at| if at == 0 { 1.5 } else { 1.0 });
        assert!((8_700..9_300).contains(&slightly[0]), "{slightly:?}");
        let clearly = counts(Balance::PeakEwma, &[9, 1], 10_000, |at| if at == 0 { 2.5 } else { 1.0 });
        assert_eq!(clearly[0], 0, "{clearly:?}");
    }

    #[test]
    fn an_empty_group_gives_none() {
        for balance in ALL {
            let picked = Draw::new(1).pick(balance, &Shares::new(&[]), |_| false, |_, _| 0.0);
            assert_eq!(picked, None);
        }
    }

    #[test]
    fn out_is_surer_than_tried_and_open_only_when_all_are_out() {
        // (tried, out) of three endpoints; which may be chosen, and whether that is failing open.
        for (tried, out, want, open) in [
            (&[][..], &[][..], &[0, 1, 2][..], false),
            (&[0], &[1], &[2], false),
            (&[0, 1], &[], &[2], false),
            (&[0, 1, 2], &[], &[0, 1, 2], false),
            (&[0], &[1, 2], &[0], false),
            (&[], &[0, 1, 2], &[0, 1, 2], true),
            (&[1], &[0, 1, 2], &[0, 2], true),
            (&[0, 1, 2], &[0, 1, 2], &[0, 1, 2], true),
        ] {
            for balance in ALL {
                for known in [false, out.len() == 3] {
                    let (shares, draw) = (Shares::new(&[1, 1, 1]), Draw::new(3));
                    let choose = || {
                        let (tried, out) = (|at| tried.contains(&at), |at| out.contains(&at));
                        draw.choose(balance, &shares, known, tried, out, |_, _| 1.0).unwrap()
                    };
                    let chosen: Vec<_> = (0..200).map(|_| choose()).collect();
                    assert!(chosen.iter().all(|one| want.contains(&one.at) && one.open == open), "{tried:?} {out:?}");
                    assert!(want.iter().all(|at| chosen.iter().any(|one| one.at == *at)), "{tried:?} {out:?}");
                }
            }
        }
        let none = Draw::new(1).choose(Balance::Random, &Shares::new(&[]), false, |_| false, |_| false, |_, _| 1.0);
        assert_eq!(none, None);
    }

    #[test]
    fn least_request_keeps_what_is_in_flight_in_proportion_to_the_weights() {
        let weights = [4u32, 2, 1, 1];
        let (shares, draw) = (Shares::new(&weights), Draw::new(5));
        let mut busy = [0u32; 4];
        for turn in 0..40_000usize {
            let cost = |at: usize, share: f64| 1.0 + f64::from(busy[at]) / share;
            busy[draw.pick(Balance::LeastRequest, &shares, |_| false, cost).unwrap()] += 1;
            // After a while as many end as begin, the fuller an endpoint the more of them its own.
            if turn >= 80 {
                let total: u32 = busy.iter().sum();
                let mut at = scale(draw.dice.roll(), u64::from(total)) as u32;
                let ended = busy
                    .iter()
                    .position(|n| {
                        if at < *n {
                            true
                        } else {
                            at -= *n;
                            false
                        }
                    })
                    .unwrap();
                busy[ended] -= 1;
            }
        }
        for (busy, weight) in busy.iter().zip(weights) {
            assert!(busy.abs_diff(weight * 10) <= weight * 5 + 3, "{busy} for weight {weight}");
        }
    }

    #[test]
    fn a_young_endpoint_takes_its_part_and_grows() {
        let secs = Duration::from_secs;
        let rule = SlowStartRule::over(secs(100));
        for (age, want) in [(0, 0.1), (5, 0.1), (50, 0.5), (100, 1.0), (1_000, 1.0)] {
            assert!((warmth(secs(age), &rule) - want).abs() < 1e-9, "{age}");
        }
        assert_eq!(warmth(Duration::ZERO, &SlowStartRule::over(Duration::ZERO)), 0.1);
        let (shares, draw) = (Shares::new(&[1, 1, 1, 1]), Draw::new(9));
        for (warm, want) in [(0.1, 0.1), (0.5, 0.5), (1.0, 1.0)] {
            let cold = |at: usize| at == 3 && draw.too_cold(warm);
            let mut counts = [0u32; 4];
            for _ in 0..40_000 {
                counts[draw.pick(Balance::Random, &shares, cold, |_, _| 1.0).unwrap()] += 1;
            }
            let part = f64::from(counts[3]) / (f64::from(counts[0] + counts[1] + counts[2]) / 3.0);
            assert!((part - want).abs() < 0.05, "{warm}: {counts:?}");
        }
    }

    proptest! {
        #[test]
        fn a_point_finds_the_endpoint_a_naive_walk_finds(
            weights in prop::collection::vec(1u32..=u32::MAX, 1..300), small in any::<bool>(), point in any::<u64>()
        ) {
            let weights: Vec<u32> = weights.into_iter().map(|w| if small { w % 5 + 1 } else { w }).collect();
            let shares = Shares::new(&weights);
            let total: u64 = weights.iter().map(|w| u64::from(*w)).sum();
            let mut left = scale(point, total);
            let naive = weights.iter().position(|weight| {
                let here = left < u64::from(*weight);
                left = left.saturating_sub(u64::from(*weight));
                here
            }).unwrap();
            match shares.table {
                // Equal weights divide the line by count, which rounds differently at the borders.
                None => prop_assert!(shares.at(point).abs_diff(naive) <= 1),
                Some(_) => prop_assert_eq!(shares.at(point), naive),
            }
            prop_assert!(shares.at(u64::MAX) < weights.len() && shares.at(0) == 0);
            let sum: f64 = (0..weights.len()).map(|at| shares.relative(at)).sum();
            prop_assert!((sum - weights.len() as f64).abs() < 1e-3);
        }

        #[test]
        fn an_avoided_endpoint_is_never_picked_while_another_is_left(
            weights in prop::collection::vec(1u32..6, 1..40), avoid in prop::collection::vec(0usize..40, 0..40),
            seed in any::<u64>(), kind in 0usize..4
        ) {
            let (shares, draw) = (Shares::new(&weights), Draw::new(seed));
            let left = (0..weights.len()).any(|at| !avoid.contains(&at));
            for _ in 0..20 {
                match draw.pick(ALL[kind], &shares, |at| avoid.contains(&at), |at, _| at as f64) {
                    Some(at) => prop_assert!(at < weights.len() && !avoid.contains(&at)),
                    None => prop_assert!(!left),
                }
            }
        }
    }
}
