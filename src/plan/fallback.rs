//! What a caller gets where a peer gives no answer, as plain data.

use std::time::Duration;

use http::StatusCode;

use super::route::Respond;
use crate::ids::PeerName;

/// What a caller gets where a peer gives no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// What it is.
    pub to: Instead,
    /// Answers that count as none.
    pub statuses: Box<[StatusCode]>,
}

/// What stands in for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instead {
    /// The answer of this peer; by name, because a policy outlives the plan that peers are numbered in.
    Peer(PeerName),
    /// This.
    Respond(Respond),
    /// An earlier answer to the same GET.
    Stale(StaleRule),
}

impl Instead {
    /// Its word in the access line: the peer's name, `respond` or `stale`.
    pub fn word(&self) -> &str {
        match self {
            Self::Peer(name) => name.as_str(),
            Self::Respond(_) => "respond",
            Self::Stale(_) => "stale",
        }
    }
}

/// Which earlier answers are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleRule {
    /// How long after it came an answer may be given.
    pub time: Duration,
    /// Bytes that are kept for one peer.
    pub size: usize,
}
