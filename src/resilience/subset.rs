//! Subsets: which endpoints of a group a route may use, as indexes; computed when either changes, not per pick.

use std::collections::BTreeMap;

use crate::plan::rules::{SubsetFallback, SubsetRule};

/// The indexes of the endpoints whose facts fit the rule, ascending; `facts` in the order of the group. The caller
/// builds the subset's `Shares`, ring or table from them.
pub fn fitting<'a>(facts: impl Iterator<Item = Option<&'a BTreeMap<String, String>>>, rule: &SubsetRule) -> Vec<usize> {
    let mut all = 0;
    let fits = |facts: Option<&BTreeMap<String, String>>| {
        rule.wanted.iter().all(|(key, value)| facts.and_then(|facts| facts.get(key)) == Some(value))
    };
    let found: Vec<usize> =
        facts.enumerate().inspect(|_| all += 1).filter(|(_, facts)| fits(*facts)).map(|(at, _)| at).collect();
    if found.is_empty() && rule.otherwise == SubsetFallback::Any { (0..all).collect() } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn every_wanted_fact_must_be_there() {
        let facts = [
            None,
            Some(map(&[("version", "v1"), ("stage", "canary")])),
            Some(map(&[("version", "v2")])),
            Some(map(&[("version", "v2"), ("stage", "canary")])),
        ];
        for (wanted, otherwise, want) in [
            (&[][..], SubsetFallback::None, &[0, 1, 2, 3][..]),
            (&[("version", "v2")], SubsetFallback::None, &[2, 3]),
            (&[("version", "v2"), ("stage", "canary")], SubsetFallback::Any, &[3]),
            (&[("version", "v3")], SubsetFallback::None, &[]),
            (&[("version", "v3")], SubsetFallback::Any, &[0, 1, 2, 3]),
            (&[("Version", "v2")], SubsetFallback::None, &[]),
        ] {
            let rule = SubsetRule { wanted: map(wanted), otherwise };
            assert_eq!(fitting(facts.iter().map(Option::as_ref), &rule), want, "{wanted:?}");
        }
    }
}
