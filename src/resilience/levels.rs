//! Priorities and zones: how the traffic is divided among groups of endpoints when a group's own strength falls.
//!
//! Computed when endpoints change, are ejected or return; a pick only finds the group of a random point.

use smallvec::SmallVec;

use crate::plan::rules::Share;

/// A group of endpoints: the sums of their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strength {
    /// Those that may be chosen.
    pub well: u64,
    /// All.
    pub all: u64,
}

/// How much of the traffic each group takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// Of the whole (1), up to and including each group.
    upto: SmallVec<[f64; 4]>,
    open: bool,
    short: bool,
}

impl Levels {
    /// By priority, the first group first. A group takes what comes to it as long as `headroom` times its well part is
    /// the whole (140 %: until more than two of seven are out); of what it cannot take the next takes as much as it
    /// can, and so on. If all together cannot take everything, each takes in proportion to what is well of it. A
    /// headroom of [`NO_OVERFLOW`] keeps everything in the first group that has a single well endpoint (RFC 2782).
    ///
    /// If none is well, the first group that has endpoints takes all and [`Levels::open`] says so.
    pub fn by_priority(groups: &[Strength], headroom: Share) -> Self {
        let able = |group: &Strength| {
            if group.all == 0 { 0.0 } else { (headroom.as_f64() * group.well as f64 / group.all as f64).min(1.0) }
        };
        let total: f64 = groups.iter().map(able).sum();
        if total == 0.0 {
            let first = groups.iter().position(|group| group.all > 0).unwrap_or(0);
            return Self::of((0..groups.len()).map(|at| f64::from(u8::from(at == first))), true);
        }
        let mut left = 1.0;
        let parts = groups.iter().map(|group| {
            let part = if total < 1.0 { able(group) / total } else { able(group).min(left) };
            left -= part;
            part
        });
        let short = total < 1.0;
        Self { short, ..Self::of(parts, false) }
    }

    /// By zone, from `own`. Callers are taken to be spread evenly over the zones that have endpoints: as long as the
    /// own zone has its even part of all strength (`headroom` times what is well of it), everything stays there; else
    /// the rest goes to the zones that have more than theirs, in proportion to what they have more.
    pub fn by_zone(zones: &[Strength], own: usize, headroom: Share) -> Self {
        let total: u64 = zones.iter().map(|zone| zone.well).sum();
        if total == 0 {
            let all = zones.iter().map(|zone| zone.all).sum::<u64>().max(1) as f64;
            return Self::of(zones.iter().map(|zone| zone.all as f64 / all), true);
        }
        let even = 1.0 / zones.iter().filter(|zone| zone.all > 0).count().max(1) as f64;
        let part = |zone: &Strength| zone.well as f64 / total as f64;
        let kept = zones.get(own).map_or(0.0, |zone| (part(zone) / even * headroom.as_f64()).min(1.0));
        let others = || zones.iter().enumerate().map(|(at, zone)| if at == own { 0.0 } else { part(zone) });
        let more = || others().map(|part| (part - even).max(0.0));
        let (spare, rest) = (more().sum::<f64>(), others().sum::<f64>());
        // Without a zone that has more than its part, and if only by rounding, all others share.
        let weigh = |(more, part): (f64, f64)| {
            if spare > 1e-9 {
                more / spare
            } else if rest > 0.0 {
                part / rest
            } else {
                0.0
            }
        };
        let kept = if rest > 0.0 { kept } else { 1.0 };
        let parts = more().zip(others()).map(weigh).enumerate();
        Self::of(parts.map(|(at, part)| if at == own { kept } else { (1.0 - kept) * part }), false)
    }

    /// Whether no group has an endpoint that is well, so that the choice is among all.
    pub fn open(&self) -> bool {
        self.open
    }

    /// Whether all groups together cannot take everything, so that each more of it that is well is needed.
    pub fn short(&self) -> bool {
        self.short
    }

    /// The group of a random point, a fraction of 2^64. There must be one.
    pub fn at(&self, point: u64) -> usize {
        let point = (point >> 11) as f64 / (1u64 << 53) as f64;
        let at = self.upto.partition_point(|upto| *upto <= point);
        // Sums of parts may end a hair below 1; what lies beyond belongs to the last group that takes anything.
        if at < self.upto.len() { at } else { self.last() }
    }

    /// What each group takes, the whole being 1; for `/state`.
    pub fn parts(&self) -> impl Iterator<Item = f64> + '_ {
        let before = std::iter::once(0.0).chain(self.upto.iter().copied());
        self.upto.iter().zip(before).map(|(upto, before)| upto - before)
    }

    fn last(&self) -> usize {
        let last = self.upto.last().copied().unwrap_or(0.0);
        self.upto.partition_point(|upto| *upto < last)
    }

    fn of(parts: impl Iterator<Item = f64>, open: bool) -> Self {
        let mut sum = 0.0;
        let upto = parts
            .map(|part| {
                sum += part;
                sum
            })
            .collect();
        Self { upto, open, short: open }
    }
}

/// The headroom with which a group keeps everything while any of it is well.
pub const NO_OVERFLOW: Share = Share::millionths(u32::MAX);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const USUAL: Share = Share::percent(140);

    fn groups(list: &[(u64, u64)]) -> Vec<Strength> {
        list.iter().map(|(well, all)| Strength { well: *well, all: *all }).collect()
    }

    fn near(levels: &Levels, want: &[f64]) -> bool {
        levels.parts().count() == want.len() && levels.parts().zip(want).all(|(got, want)| (got - want).abs() < 1e-9)
    }

    #[test]
    fn priorities_overflow_in_proportion() {
        for (list, headroom, want, open) in [
            (&[(10, 10), (10, 10)][..], USUAL, &[1.0, 0.0][..], false),
            (&[(8, 10), (10, 10)], USUAL, &[1.0, 0.0], false),
            (&[(5, 10), (10, 10)], USUAL, &[0.7, 0.3], false),
            (&[(0, 10), (10, 10)], USUAL, &[0.0, 1.0], false),
            (&[(5, 10), (1, 10), (10, 10)], USUAL, &[0.7, 0.14, 0.16], false),
            (&[(2, 10), (1, 10)], USUAL, &[2.0 / 3.0, 1.0 / 3.0], false),
            (&[(0, 10), (0, 10)], USUAL, &[1.0, 0.0], true),
            (&[(0, 0), (0, 10)], USUAL, &[0.0, 1.0], true),
            (&[(0, 0), (3, 3)], USUAL, &[0.0, 1.0], false),
            (&[(1, 1000), (9, 9)], NO_OVERFLOW, &[1.0, 0.0], false),
            (&[(0, 1000), (9, 9)], NO_OVERFLOW, &[0.0, 1.0], false),
        ] {
            let levels = Levels::by_priority(&groups(list), headroom);
            assert!(near(&levels, want) && levels.open() == open, "{list:?}: {levels:?}");
            let able: f64 = list.iter().map(|(well, all)| 1.4 * *well as f64 / (*all).max(1) as f64).sum();
            assert_eq!(levels.short(), headroom == USUAL && able < 1.0 || open, "{list:?}");
        }
    }

    #[test]
    fn a_zone_keeps_what_it_can_take() {
        let full = Share::WHOLE;
        for (list, own, headroom, want, open) in [
            (&[(4, 4), (4, 4)][..], 0, full, &[1.0, 0.0][..], false),
            (&[(6, 6), (2, 2)], 0, full, &[1.0, 0.0], false),
            (&[(6, 6), (2, 2)], 1, full, &[0.5, 0.5], false),
            (&[(6, 6), (4, 6)], 1, Share::percent(125), &[0.0, 1.0], false),
            (&[(0, 4), (4, 4), (4, 4)], 0, full, &[0.0, 0.5, 0.5], false),
            (&[(2, 2), (5, 5), (2, 2)], 0, full, &[2.0 / 3.0, 1.0 / 3.0, 0.0], false),
            (&[(3, 3)], 0, full, &[1.0], false),
            (&[(1, 9), (0, 9)], 0, full, &[1.0, 0.0], false),
            (&[(0, 1), (0, 3)], 0, full, &[0.25, 0.75], true),
        ] {
            let levels = Levels::by_zone(&groups(list), own, headroom);
            assert!(near(&levels, want) && levels.open() == open, "{list:?} from {own}: {levels:?}");
        }
    }

    #[test]
    fn a_point_finds_its_group() {
        let levels = Levels::by_priority(&groups(&[(5, 10), (0, 10), (10, 10), (10, 10)]), USUAL);
        for (point, want) in [(0.0, 0), (0.69, 0), (0.71, 2), (0.999_999, 2)] {
            assert_eq!(levels.at((point * 2f64.powi(64)) as u64), want, "{point}");
        }
        assert_eq!(levels.at(u64::MAX), 2);
    }

    fn strengths() -> impl Strategy<Value = Vec<Strength>> {
        let one = (0u64..50, 0u64..50).prop_map(|(well, ill)| Strength { well, all: well + ill });
        prop::collection::vec(one, 1..7)
    }

    proptest! {
        #[test]
        fn parts_are_a_whole_and_none_goes_where_none_is_well(
            groups in strengths(), own in 0usize..8, headroom in 100u32..300, point in any::<u64>()
        ) {
            prop_assume!(groups.iter().any(|group| group.all > 0));
            let headroom = Share::percent(headroom);
            for levels in [Levels::by_priority(&groups, headroom), Levels::by_zone(&groups, own, headroom)] {
                let parts: Vec<f64> = levels.parts().collect();
                prop_assert!((parts.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{:?}", parts);
                let well = groups.iter().any(|group| group.well > 0);
                prop_assert_eq!(levels.open(), !well);
                for (part, group) in parts.iter().zip(&groups) {
                    prop_assert!(*part >= -1e-12);
                    prop_assert!(group.well > 0 || !well || *part < 1e-9, "{:?} of {:?}", parts, groups);
                }
                let at = levels.at(point);
                prop_assert!(parts[at] > 0.0 && (groups[at].well > 0 || !well));
            }
        }

        #[test]
        fn if_every_zone_does_the_same_each_is_given_what_it_is_strong(
            wells in prop::collection::vec(1u64..50, 1..7)
        ) {
            let zones: Vec<_> = wells.iter().map(|well| Strength { well: *well, all: *well }).collect();
            let total: u64 = wells.iter().sum();
            let mut given = vec![0.0; zones.len()];
            for own in 0..zones.len() {
                let levels = Levels::by_zone(&zones, own, Share::WHOLE);
                given.iter_mut().zip(levels.parts()).for_each(|(sum, part)| *sum += part / zones.len() as f64);
            }
            for (given, well) in given.iter().zip(&wells) {
                prop_assert!((given - *well as f64 / total as f64).abs() < 1e-9);
            }
        }
    }
}
