//! Which part of a limit in flight a request may use: what is worth least is turned away first.

use std::fmt;

use crate::plan::rules::Priority;

/// What low priority may use, in hundredths.
const LOW: u32 = 80;

/// What is not of high priority may use where some is kept for that, in hundredths.
const NOT_HIGH: u32 = 90;

/// A request's claim to a place under a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    /// What it is worth.
    pub priority: Priority,
    /// Whether the last tenth of the limit is kept for high priority.
    pub kept: bool,
}

/// The part of a limit that a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// What the request is worth.
    pub priority: Priority,
    /// How many of its like may be in flight together with all others.
    pub most: u32,
}

impl Claim {
    /// The part of `limit` that it may use; `None` is the whole. A part is rounded up, yet leaves one to those who may
    /// use more, unless there is only one.
    pub fn part(self, limit: u32) -> Option<Part> {
        let hundredths = match (self.priority, self.kept) {
            (Priority::Low, _) => LOW,
            (Priority::Normal, true) => NOT_HIGH,
            (Priority::Normal, false) | (Priority::High, _) => return None,
        };
        let part = (u64::from(limit) * u64::from(hundredths)).div_ceil(100);
        let most = u32::try_from(part).unwrap_or(limit).min(limit.saturating_sub(1)).max(1);
        (most < limit).then_some(Part { priority: self.priority, most })
    }
}

/// What follows the limit in a refusal.
pub(super) struct Why(pub(super) Option<Part>);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => Ok(()),
            Some(Part { priority, most }) => write!(f, " by the {most} that {} priority may use", priority.word()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_priority_has_its_part_of_a_limit() {
        use Priority::{High, Low, Normal};
        for (limit, low, normal) in [
            (1, 1, 1),
            (2, 1, 1),
            (3, 2, 2),
            (5, 4, 4),
            (10, 8, 9),
            (20, 16, 18),
            (1000, 800, 900),
            (u32::MAX, 3_435_973_836, 3_865_470_566),
        ] {
            let most = |priority, kept| Claim { priority, kept }.part(limit).map_or(limit, |part| part.most);
            assert_eq!((most(Low, false), most(Low, true), most(Normal, true)), (low, low, normal), "of {limit}");
            assert_eq!((most(Normal, false), most(High, false), most(High, true)), (limit, limit, limit));
        }
        assert_eq!(Claim { priority: Low, kept: false }.part(0), None);
    }
}
