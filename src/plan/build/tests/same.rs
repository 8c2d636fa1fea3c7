//! Files that mean the same.

use super::*;

#[test]
fn every_key_at_its_default_means_the_same_as_none() {
    assert_eq!(plan(FULL), plan(MINIMAL));
}

#[test]
fn the_values_in_force_are_a_file_that_means_the_same() {
    for text in [FULL, MINIMAL, QUICKSTART, EVERYTHING] {
        let (document, built) = built_with(text, &Facts::PLAIN).unwrap();
        let printed = values(&document.config, "f");
        assert_eq!(plan(&printed), built.plan, "{printed}");
    }
}
