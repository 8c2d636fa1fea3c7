//! The sections about doing things again: which failed attempts are followed by another, how many, and when.

use http::StatusCode;

use super::collect::{List, Pairs};
use super::kind::{Scalar, Set, Wrong, words};
use super::problem::nearest;
use super::section::section;
use super::units::{Count, Share, Span};
use crate::condition::Condition;

section! {
    /// When a failed attempt is followed by another. Only what provably did no work, or does no harm twice, is repeated.
    Retry {
        /// Attempts in all, the first included; 1 is no retry.
        attempts "attempts": Set<Count<1, 10>> = Is("2");
        /// Conditions and statuses.
        on "on": Set<List<RetryOn>> = Is("[connect-failure, reset-before-request, refused-stream, reset]");
        /// Which may be repeated after they may have been processed: idempotent or any.
        methods "methods": Set<Repeatable> = Is("idempotent");
        /// Fields that ask for another attempt; an empty text means any.
        headers "headers": Option<Set<Pairs>> = Unset("{ x-again: \"\" }");
        /// How many retries there may be in all.
        budget "budget": Set<Budget> = Is("{}");
        /// How long to wait before a retry.
        backoff "backoff": Set<Backoff> = Is("{}");
    }
}

section! {
    /// Retries (and hedges) of the last ten seconds: at most the larger of a share of the requests and a floor.
    Budget = "share" {
        /// Part of the requests.
        share "share": Set<Share> = Is("20%");
        /// A second, whatever the traffic.
        floor "floor": Set<Count<0, 10_000>> = Is("3");
    }
}

section! {
    /// The wait before a retry: random, up to a bound that doubles.
    Backoff {
        /// The bound before the first retry.
        base "base": Set<Span> = Is("25ms");
        /// The highest bound.
        cap "cap": Set<Span> = Is("250ms");
        /// The longest pause that a server may ask for.
        asked "asked": Set<Span> = Is("5s");
    }
}

words! {
    /// Which requests may be repeated.
    Repeatable {
        /// GET, HEAD, OPTIONS, TRACE, PUT, DELETE (RFC 9110).
        Idempotent "idempotent";
        /// All, because doing the work twice does no harm; gRPC needs it.
        Any "any";
    }
}

/// What makes an attempt worth another one: a condition by its name, or a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryOn {
    /// A condition.
    Condition(Condition),
    /// A status.
    Status(StatusCode),
}

impl Scalar for RetryOn {
    const NAME: &'static str = "retry-on";

    fn expected() -> String {
        let words: Vec<_> = Self::conditions().collect();
        format!("a status from 400 to 599, or one of {}", words.join(", "))
    }

    fn pattern() -> String {
        "^([45][0-9][0-9]|5xx|[a-z0-9-]+)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let status = text.parse::<StatusCode>().ok().filter(|status| (400..600).contains(&status.as_u16()));
        if let Some(status) = status {
            return Ok(Self::Status(status));
        }
        let found = Condition::ALL.iter().copied().find(|one| one.word() == text);
        match found.filter(|one| !Self::listed(*one)) {
            Some(condition) => Ok(Self::Condition(condition)),
            None => Err(nearest(text, Self::conditions()).map_or_else(Wrong::default, Wrong::meant)),
        }
    }

    fn write(&self) -> String {
        match self {
            Self::Condition(condition) => condition.word().into(),
            Self::Status(status) => status.as_str().into(),
        }
    }
}

impl RetryOn {
    /// Conditions that are said by listing statuses and fields instead.
    fn listed(one: Condition) -> bool {
        matches!(one, Condition::StatusCodes | Condition::Headers)
    }

    fn conditions() -> impl Iterator<Item = &'static str> {
        Condition::ALL.iter().copied().filter(|one| !Self::listed(*one)).map(Condition::word)
    }
}
