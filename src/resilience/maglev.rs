//! Maglev's table (Eisenbud et al., NSDI 2016): a key finds its endpoint by one look, and shares are nearly exact.
//!
//! Every endpoint fills places of the table in an order of its own, in turns that follow the weights. One that comes or
//! goes moves its own keys and few others. Built when the group changes.

use super::ring::Member;
use crate::plan::keyhash::{nth, scale};

/// Sizes of tables, each a prime; the first that has a hundred places for each endpoint is used, or the last. 256 KiB,
/// 1 MiB, 4 MiB. A group that grows past a size moves all keys once.
const SIZES: [u32; 3] = [65_537, 262_147, 1_048_583];

/// Places for each endpoint, so that shares are within about a hundredth.
const EACH: usize = 100;

/// Other places a pick tries before it looks at the endpoints in turn.
const REDRAWS: u64 = 16;

/// An empty place while the table is filled.
const EMPTY: u32 = u32::MAX;

/// The table of one group of endpoints.
#[derive(Debug, Clone, Default)]
pub struct Maglev {
    table: Box<[u32]>,
    members: usize,
}

/// An endpoint while the table is filled.
struct Turn {
    at: u32,
    next: u32,
    skip: u32,
    weight: u64,
    /// How much weight it must have gathered for its next place.
    owed: u64,
}

impl Maglev {
    /// Builds the table; a pick's index is that of `members`.
    pub fn new(members: &[Member]) -> Self {
        if members.is_empty() {
            return Self::default();
        }
        let [.., last] = SIZES;
        let size = SIZES.into_iter().find(|size| members.len() * EACH <= *size as usize).unwrap_or(last);
        Self { table: fill(members, size), members: members.len() }
    }

    /// The endpoint of `key` (a hash), or another one that is the same for the same key if that is avoided; `None` if
    /// all are.
    pub fn pick(&self, key: u64, avoided: impl Fn(usize) -> bool) -> Option<usize> {
        let mut at = 0;
        for turn in 0..=REDRAWS {
            let point = if turn == 0 { key } else { nth(key, turn) };
            at = *self.table.get(scale(point, self.table.len() as u64) as usize)? as usize;
            if !avoided(at) {
                return Some(at);
            }
        }
        (at..self.members).chain(0..at.min(self.members)).find(|at| !avoided(*at))
    }
}

fn fill(members: &[Member], size: u32) -> Box<[u32]> {
    let mut turns: Vec<Turn> = (0u32..)
        .zip(members)
        .map(|(at, member)| Turn {
            at,
            next: scale(nth(member.id, 0), u64::from(size)) as u32,
            skip: scale(nth(member.id, 1), u64::from(size) - 1) as u32 + 1,
            weight: u64::from(member.weight.max(1)),
            owed: 0,
        })
        .collect();
    // Turns are taken in the order of the endpoints' own numbers, not in that of discovery.
    turns.sort_by_key(|turn| members.get(turn.at as usize).map(|member| member.id));
    let largest = turns.iter().map(|turn| turn.weight).max().unwrap_or(1);
    let mut table = vec![EMPTY; size as usize].into_boxed_slice();
    let mut left = size;
    for round in 1u64.. {
        for turn in &mut turns {
            if turn.weight * round < turn.owed {
                continue;
            }
            turn.owed += largest;
            turn.take(&mut table);
            left -= 1;
            if left == 0 {
                return table;
            }
        }
    }
    table
}

impl Turn {
    /// Takes the next free place in its order. There is one: the size is a prime, so the order visits every place.
    fn take(&mut self, table: &mut [u32]) {
        let size = table.len() as u32;
        for _ in 0..size {
            let here = self.next;
            self.next = ((u64::from(self.next) + u64::from(self.skip)) % u64::from(size)) as u32;
            if let Some(place) = table.get_mut(here as usize).filter(|place| **place == EMPTY) {
                *place = self.at;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::resilience::ring::tests::{keys, members};

    #[test]
    fn places_follow_the_weights() {
        for weights in [&[1u32, 1, 1, 1][..], &[3, 1], &[100, 50, 1], &[u32::MAX, u32::MAX / 2]] {
            let maglev = Maglev::new(&members(weights));
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            let mut counts = vec![0u32; weights.len()];
            maglev.table.iter().for_each(|at| counts[*at as usize] += 1);
            for (count, weight) in counts.iter().zip(weights) {
                let want = f64::from(*weight) / total * maglev.table.len() as f64;
                assert!((f64::from(*count) - want).abs() < want * 0.01 + 2.0, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn who_comes_or_goes_moves_few_other_keys() {
        let all = members(&[1; 20]);
        let (before, mut fewer) = (Maglev::new(&all), all.clone());
        fewer.remove(7);
        let after = Maglev::new(&fewer);
        let moved = keys(10_000).filter(|key| {
            let (was, is) = (before.pick(*key, |_| false).unwrap(), after.pick(*key, |_| false).unwrap());
            was != 7 && all[was].id != fewer[is].id
        });
        let moved = moved.count();
        assert!(moved < 500, "{moved} of 10 000 keys moved without need");
    }

    #[test]
    fn large_groups_get_larger_tables() {
        assert_eq!(Maglev::new(&members(&[1; 655])).table.len(), 65_537);
        assert_eq!(Maglev::new(&members(&[1; 656])).table.len(), 262_147);
        let large = Maglev::new(&members(&vec![1; 10_000]));
        let mut counts = vec![0u32; 10_000];
        large.table.iter().for_each(|at| counts[*at as usize] += 1);
        assert!(counts.iter().all(|count| (104..=105).contains(count)));
        assert_eq!(Maglev::new(&[]).pick(7, |_| false), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn it_gives_one_that_is_not_avoided_while_there_is_one(
            weights in prop::collection::vec(1u32..20, 1..30), avoid in prop::collection::vec(0usize..30, 0..40),
            keys in prop::collection::vec(any::<u64>(), 1..50)
        ) {
            let list = members(&weights);
            let maglev = Maglev::new(&list);
            let left = (0..weights.len()).any(|at| !avoid.contains(&at));
            let mut turned = list.clone();
            turned.rotate_left(weights.len() / 2);
            let same = Maglev::new(&turned);
            for key in keys {
                match maglev.pick(key, |at| avoid.contains(&at)) {
                    Some(at) => prop_assert!(at < weights.len() && !avoid.contains(&at)),
                    None => prop_assert!(!left),
                }
                // The order of discovery does not matter.
                let (one, other) = (maglev.pick(key, |_| false).unwrap(), same.pick(key, |_| false).unwrap());
                prop_assert_eq!(list[one].id, turned[other].id);
            }
        }
    }
}
