//! Peers for names that the file does not list.

/// The ad-hoc peers that are alive.
#[derive(Default)]
pub struct Adhoc {}
