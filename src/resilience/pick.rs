//! Which of a group of endpoints takes the next request: an index, in constant time whatever the size of the group.
//!
//! Weights are turned into [`Shares`] once, when the group changes. Of two choices the second must be better to win,
//! so at equal cost the traffic follows the weights.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::plan::peer::Balance;

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
        let mut z = self.0.fetch_add(GOLDEN, Ordering::Relaxed).wrapping_add(GOLDEN);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
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

/// `point` as a fraction of 2^64, times `n`.
fn scale(point: u64, n: u64) -> u64 {
    ((u128::from(point) * u128::from(n)) >> 64) as u64
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
            Balance::RoundRobin | Balance::Random => false,
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
