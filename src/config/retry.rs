//! The sections about doing things again: which failed attempts are followed by another, how many, and when.

use std::time::Duration;

use http::StatusCode;

use super::collect::{List, Pairs};
use super::kind::{Scalar, Set, Wrong, words};
use super::problem::nearest;
use super::section::section;
use super::units::{Count, Share, Span, Timer, percentage};
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

section! {
    /// When a second attempt is sent beside one whose answer has not begun; the first answer wins, the other attempt is
    /// cancelled. It counts among `retry.attempts`, takes from `retry.budget`, and is sent only where a retry would be safe.
    Hedge = "after" {
        /// A time, or `p95`: as long as 95% of the recent answers took.
        after "after": Set<HedgeAfter> = Is("p95");
        /// Never sooner than this.
        at_least "at-least": Set<Span> = Is("5ms");
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

/// How long an attempt is waited for before another is sent beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// So long.
    Delay(Duration),
    /// As long as this part of the recent answers took, in parts per million.
    Quantile(u32),
}

impl Scalar for HedgeAfter {
    const NAME: &'static str = "hedge-after";

    fn expected() -> String {
        "a duration such as `50ms`, or a part of the peer's own answers from `p50` to `p99.99`".into()
    }

    fn pattern() -> String {
        r"^([1-9][0-9]*(ms|s|m|h|d)|p[5-9][0-9](\.[0-9]{1,2})?)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let Some(part) = text.strip_prefix('p') else {
            return Timer::parse(text).map(|delay| Self::Delay(delay.0));
        };
        let short = part.split_once('.').is_none_or(|(_, rest)| rest.len() <= 2);
        let parts = percentage(&format!("{part}%"))?;
        if short && (500_000..1_000_000).contains(&parts) { Ok(Self::Quantile(parts)) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        match self {
            Self::Delay(delay) => Timer(*delay).write(),
            Self::Quantile(parts) => format!("p{}", Share(*parts).write().trim_end_matches('%')),
        }
    }
}
