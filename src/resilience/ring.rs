//! A ring of hashes: a key belongs to the endpoint whose point follows its own (Karger et al., 1997), with bounded load.
//!
//! An endpoint's points depend on itself and on its weight relative to the largest only, so that one that comes or goes
//! moves its own keys and no others. Built when the group changes; a pick is a binary search.

use crate::plan::keyhash::nth;
use crate::plan::rules::Share;

/// Points of an endpoint of the largest weight: its share is then within about a tenth of what it should be.
const POINTS: u32 = 256;

/// Points in all; larger groups have fewer points each, halved until they fit. Maglev suits them better.
const MOST_POINTS: usize = 1 << 18;

/// Points a pick passes over before it looks at the endpoints in turn.
const STEPS: usize = 256;

/// An endpoint as the hashes know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its own number, the same in every sidecar: [`crate::plan::keyhash::hash`] of its address.
    pub id: u64,
    /// Its weight; one of 0 is taken as 1 (who takes no traffic is no member).
    pub weight: u32,
}

/// The ring of one group of endpoints.
#[derive(Debug, Clone, Default)]
pub struct HashRing {
    /// In ascending order; the endpoint of each stands at the same place in `owners`.
    points: Box<[u64]>,
    owners: Box<[u32]>,
    members: usize,
}

impl HashRing {
    /// Builds the ring; a pick's index is that of `members`.
    pub fn new(members: &[Member]) -> Self {
        let largest = members.iter().map(|member| member.weight.max(1)).max().unwrap_or(1);
        let mut each = POINTS;
        while each > 1 && members.len() * each as usize > MOST_POINTS {
            each /= 2;
        }
        let mut ring: Vec<(u64, u32)> = Vec::new();
        for (at, member) in (0u32..).zip(members) {
            let points = u64::from(each) * u64::from(member.weight.max(1)) / u64::from(largest);
            ring.extend((0..points.max(1)).map(|n| (nth(member.id, n), at)));
        }
        // Equal points, should there be any, are settled by the endpoint's own number, not by discovery's order.
        ring.sort_unstable_by_key(|(point, at)| (*point, members.get(*at as usize).map(|member| member.id)));
        let (points, owners): (Vec<_>, Vec<_>) = ring.into_iter().unzip();
        Self { points: points.into(), owners: owners.into(), members: members.len() }
    }

    /// The endpoint of `key` (a hash), or the next on the ring that is not avoided; `None` if all are.
    pub fn pick(&self, key: u64, avoided: impl Fn(usize) -> bool) -> Option<usize> {
        if self.members == 0 {
            return None;
        }
        let start = self.points.partition_point(|point| *point < key);
        let steps = (start..self.points.len()).chain(0..start).take(STEPS);
        let mut last = usize::MAX;
        for owner in steps.filter_map(|at| self.owners.get(at)).map(|owner| *owner as usize) {
            if owner != last && !avoided(owner) {
                return Some(owner);
            }
            last = owner;
        }
        let start = last.min(self.members - 1);
        (start..self.members).chain(0..start).find(|at| !avoided(*at))
    }
}

/// Whether an endpoint may take one more under bounded load (Mirrokni et al., 2016): its requests in flight stay within
/// `factor` (125 % is usual, 100 % the least that makes sense) of its fair part of all. Ask it within `avoided`;
/// `relative` is the endpoint's weight relative to the mean, `all` what the whole group has in flight.
pub fn has_room(in_flight: u32, all: u64, members: usize, relative: f64, factor: Share) -> bool {
    let fair = (all as f64 + 1.0) / members.max(1) as f64 * relative;
    f64::from(in_flight) + 1.0 <= (fair * factor.as_f64().max(1.0)).ceil()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::keyhash::hash;

    pub(in crate::resilience) fn members(weights: &[u32]) -> Vec<Member> {
        let id = |n| hash(format!("10.0.{}.{}:80", n / 256, n % 256).as_bytes());
        weights.iter().enumerate().map(|(n, weight)| Member { id: id(n), weight: *weight }).collect()
    }

    pub(in crate::resilience) fn keys(n: u64) -> impl Iterator<Item = u64> {
        (0..n).map(|n| hash(&n.to_le_bytes()))
    }

    #[test]
    fn keys_follow_the_weights() {
        for weights in [&[1u32, 1, 1, 1][..], &[3, 1], &[10, 5, 1, 1]] {
            let ring = HashRing::new(&members(weights));
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0u32; weights.len()];
            keys(20_000).for_each(|key| counts[ring.pick(key, |_| false).unwrap()] += 1);
            for (count, weight) in counts.iter().zip(weights) {
                let want = f64::from(*weight) / f64::from(total) * 20_000.0;
                assert!((f64::from(*count) - want).abs() < want * 0.25 + 200.0, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn who_comes_or_goes_moves_its_own_keys_only() {
        let all = members(&[1; 12]);
        let (before, mut fewer) = (HashRing::new(&all), all.clone());
        fewer.remove(5);
        let after = HashRing::new(&fewer);
        let mut moved = 0;
        for key in keys(5_000) {
            let (was, is) = (before.pick(key, |_| false).unwrap(), after.pick(key, |_| false).unwrap());
            if was == 5 {
                moved += 1;
                // It goes where it would also go if the endpoint were there and avoided.
                assert_eq!(before.pick(key, |at| at == 5).map(|at| all[at].id), Some(fewer[is].id));
            } else {
                assert_eq!(all[was].id, fewer[is].id);
            }
        }
        assert!((300..550).contains(&moved), "{moved}");
    }

    #[test]
    fn large_groups_stay_within_the_points_allowed() {
        let ring = HashRing::new(&members(&vec![1; 10_000]));
        assert!(ring.points.len() <= MOST_POINTS && ring.points.len() >= 10_000);
        assert_eq!(HashRing::new(&[]).pick(7, |_| false), None);
        assert!(HashRing::new(&members(&[0, 5])).pick(7, |at| at == 1) == Some(0));
    }

    #[test]
    fn bounded_load_is_never_exceeded_and_always_leaves_room() {
        // One key for all: the worst there is.
        for (n, factor) in [(10, 125), (10, 100), (3, 150), (1, 100)] {
            let ring = HashRing::new(&members(&vec![1; n]));
            let mut load = vec![0u32; n];
            for all in 0..500u64 {
                let room = |at: usize| has_room(load[at], all, n, 1.0, Share::percent(factor));
                let at = ring.pick(42, |at| !room(at)).unwrap();
                load[at] += 1;
                let most = ((all + 1) as f64 / n as f64 * f64::from(factor) / 100.0).ceil();
                assert!(load.iter().all(|one| f64::from(*one) <= most), "{load:?} over {most}");
            }
        }
    }

    proptest! {
        #[test]
        fn it_gives_one_that_is_not_avoided_while_there_is_one(
            weights in prop::collection::vec(1u32..20, 1..30), avoid in prop::collection::vec(0usize..30, 0..40),
            key in any::<u64>()
        ) {
            let ring = HashRing::new(&members(&weights));
            let left = (0..weights.len()).any(|at| !avoid.contains(&at));
            match ring.pick(key, |at| avoid.contains(&at)) {
                Some(at) => prop_assert!(at < weights.len() && !avoid.contains(&at)),
                None => prop_assert!(!left),
            }
        }

        #[test]
        fn the_order_of_discovery_does_not_matter(
            weights in prop::collection::vec(1u32..9, 1..20), key in any::<u64>(), turn in 0usize..20
        ) {
            let straight = members(&weights);
            let mut turned = straight.clone();
            turned.rotate_left(turn % weights.len());
            let picked = |list: &[Member]| HashRing::new(list).pick(key, |_| false).map(|at| list[at].id);
            prop_assert_eq!(picked(&straight), picked(&turned));
        }
    }
}
