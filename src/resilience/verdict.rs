//! Whether a failed attempt is followed by another: what happened, what the rule asks for, and what is safe.
//!
//! An attempt is repeated where the rule names what happened AND doing it twice can do no harm: the peer provably did
//! nothing, or the method is idempotent, or the user said so. Body, attempts, time and budget must allow it as well.
//! Every "no" has a word.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::backoff::{self, Asked, NoPause};
use super::budget::Budget;
use crate::deadline::Deadline;
use crate::plan::rules::{Condition, Conditions, Methods, RetryRule};
use crate::reason::Reason;

/// How one attempt ended.
#[derive(Debug, Clone, Copy)]
pub enum Outcome<'a> {
    /// Without an answer.
    Failed {
        /// Why.
        reason: Reason,
        /// What is known about the request's fate. Where no connection was made, nothing was sent whatever it says.
        fate: Fate,
    },
    /// The attempt's own time was over before an answer began.
    TimedOut,
    /// With an answer whose head, and where they are already there whose trailers, nobody has seen yet.
    Answered {
        /// Its status.
        status: StatusCode,
        /// Its fields.
        fields: &'a HeaderMap,
        /// Its trailers, if the answer is already complete.
        trailers: Option<&'a HeaderMap>,
    },
}

/// What is known about a request to which no answer began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing of it was written.
    Unsent,
    /// The peer said, or the protocol proves, that it did nothing with it (REFUSED_STREAM, above GOAWAY's last stream).
    Unprocessed,
    /// It may have been processed.
    Unknown,
}

/// The request, and how far its call has come.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Attempts made so far, hedges included; at least 1.
    pub attempts: u32,
    /// Whether the whole request can be sent again: nothing of the body was taken, or all that was taken is kept.
    pub replayable: bool,
    /// Whether it came marked as another sidecar's retry; then only provably unprocessed attempts are repeated, or
    /// each hop would multiply what the one before has multiplied.
    pub marked: bool,
    /// When the caller gives up.
    pub deadline: Deadline,
}

/// What follows a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another attempt, on another endpoint if there is one; it is already taken from the budget.
    Retry {
        /// After so long.
        after: Duration,
        /// What called for it, for log and metric.
        because: Condition,
    },
    /// What there is goes to the caller.
    GiveUp(Skip),
}

macro_rules! skips {
    ($($(#[$doc:meta])* $name:ident => $word:literal;)*) => {
        /// Why there is no further attempt.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Skip { $($(#[$doc])* $name),* }

        impl Skip {
            /// Every reason, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The word after `retry_skipped=`.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }
        }
    };
}

skips! {
    /// The rule does not name what happened. Nothing was skipped: not worth a word in the log.
    NotNamed => "not_named";
    /// The rule allows no more attempts.
    AttemptsUsed => "attempts_used";
    /// It may have been processed, and neither method nor rule says that twice does no harm.
    NotIdempotent => "not_idempotent";
    /// The request is another sidecar's retry.
    RetryOfRetry => "retry_of_retry";
    /// More of the body was taken than is kept for replay.
    BodyTooLarge => "body_too_large";
    /// The server asked not to be tried again.
    AskedNotTo => "asked_not_to";
    /// The server asked for a longer pause than the rule allows.
    PauseTooLong => "pause_too_long";
    /// The pause would outlast the caller's deadline.
    NoTime => "no_time";
    /// The budget is spent.
    BudgetSpent => "budget_spent";
    /// As many further attempts of the peer are under way as its limit allows.
    LimitReached => "limit_reached";
}

/// What of `now` and chance a verdict needs.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The monotonic clock.
    pub now: Instant,
    /// The wall clock, for `Retry-After` dates.
    pub wall: SystemTime,
    /// Any random number.
    pub roll: u64,
}

/// Judges an attempt; takes from `budget` only if the answer is [`Verdict::Retry`].
pub fn judge(rule: &RetryRule, asking: &Asking<'_>, outcome: &Outcome<'_>, budget: &Budget, at: Moment) -> Verdict {
    let judged = allowed(rule, asking, outcome).and_then(|because| {
        let after = pause(rule, asking, outcome, at)?;
        if asking.deadline.remaining(at.now).is_some_and(|left| left <= after) {
            return Err(Skip::NoTime);
        }
        budget.withdraw(at.now, &rule.budget).map_err(|_| Skip::BudgetSpent)?;
        Ok(Verdict::Retry { after, because })
    });
    judged.unwrap_or_else(Verdict::GiveUp)
}

/// Whether a hedge may be sent now; takes from `budget` if so. A hedge is always a repetition of what may be processed.
///
/// # Errors
/// Why not.
pub fn may_hedge(rule: &RetryRule, asking: &Asking<'_>, budget: &Budget, now: Instant) -> Result<(), Skip> {
    if asking.attempts >= rule.attempts {
        return Err(Skip::AttemptsUsed);
    }
    safe(rule, asking, Fate::Unknown)?;
    if asking.deadline.passed(now) {
        return Err(Skip::NoTime);
    }
    budget.withdraw(now, &rule.budget).map_err(|_| Skip::BudgetSpent)
}

/// Whether the rule names what happened, so that a better answer is worth waiting for.
pub fn is_named(rule: &RetryRule, outcome: &Outcome<'_>) -> bool {
    conditions(rule, outcome).and(rule.on).first().is_some()
}

/// The first condition of the rule that holds, if repeating is allowed at all.
fn allowed(rule: &RetryRule, asking: &Asking<'_>, outcome: &Outcome<'_>) -> Result<Condition, Skip> {
    let because = conditions(rule, outcome).and(rule.on).first().ok_or(Skip::NotNamed)?;
    if asking.attempts >= rule.attempts {
        return Err(Skip::AttemptsUsed);
    }
    safe(rule, asking, fate(outcome))?;
    Ok(because)
}

fn safe(rule: &RetryRule, asking: &Asking<'_>, fate: Fate) -> Result<(), Skip> {
    if fate == Fate::Unknown {
        if rule.methods == Methods::Idempotent && !asking.method.is_idempotent() {
            return Err(Skip::NotIdempotent);
        }
        if asking.marked {
            return Err(Skip::RetryOfRetry);
        }
    }
    if asking.replayable { Ok(()) } else { Err(Skip::BodyTooLarge) }
}

fn pause(rule: &RetryRule, asking: &Asking<'_>, outcome: &Outcome<'_>, at: Moment) -> Result<Duration, Skip> {
    let asked = match outcome {
        Outcome::Failed { .. } | Outcome::TimedOut => Asked::Nothing,
        Outcome::Answered { fields, trailers, .. } => match trailers.map(|map| backoff::asked(map, at.wall)) {
            None | Some(Asked::Nothing) => backoff::asked(fields, at.wall),
            Some(asked) => asked,
        },
    };
    backoff::pause(&rule.backoff, asking.attempts.saturating_sub(1), at.roll, asked).map_err(|why| match why {
        NoPause::Never => Skip::AskedNotTo,
        NoPause::TooLong => Skip::PauseTooLong,
    })
}

/// Whether what was sent may have been processed.
pub fn may_be_done(outcome: &Outcome<'_>) -> bool {
    fate(outcome) == Fate::Unknown
}

fn fate(outcome: &Outcome<'_>) -> Fate {
    match outcome {
        Outcome::Failed { reason, .. } if unconnected(*reason) => Fate::Unsent,
        Outcome::Failed { reason: Reason::RefusedStream, .. } => Fate::Unprocessed,
        Outcome::Failed { fate, .. } => *fate,
        Outcome::TimedOut | Outcome::Answered { .. } => Fate::Unknown,
    }
}

/// Whether no connection was made. A TLS alert that refuses our certificate may come after the request went out, but
/// before anything read it.
fn unconnected(reason: Reason) -> bool {
    use Reason as R;
    matches!(reason, R::ConnectRefused | R::ConnectFailed | R::ConnectTimeout | R::NoIdentity)
        || reason.is_tls_with_peer()
}

/// Every condition that holds, whether the rule asks for it or not.
fn conditions(rule: &RetryRule, outcome: &Outcome<'_>) -> Conditions {
    use Condition::{ConnectFailure, RefusedStream, Reset, ResetBeforeRequest, ServerError};
    match outcome {
        Outcome::TimedOut => Conditions::of(&[Reset, ServerError]),
        Outcome::Failed { reason, .. } if unconnected(*reason) => Conditions::of(&[ConnectFailure, ServerError]),
        Outcome::Failed { reason: Reason::RefusedStream, .. } => {
            Conditions::of(&[RefusedStream, ResetBeforeRequest, Reset, ServerError])
        }
        // It came, and would most likely come so again.
        Outcome::Failed { reason: Reason::BadResponse, .. } => Conditions::of(&[ServerError]),
        Outcome::Failed { reason: Reason::Reset, fate } => {
            let lost = Conditions::of(&[Reset, ServerError]);
            match fate {
                Fate::Unknown => lost,
                Fate::Unsent => lost.with(ResetBeforeRequest),
                Fate::Unprocessed => lost.with(ResetBeforeRequest).with(RefusedStream),
            }
        }
        // Anything else is the caller's doing, a limit, or the same wherever it is sent.
        Outcome::Failed { .. } => Conditions::default(),
        Outcome::Answered { status, fields, trailers } => answered(rule, *status, fields, *trailers),
    }
}

fn answered(rule: &RetryRule, status: StatusCode, fields: &HeaderMap, trailers: Option<&HeaderMap>) -> Conditions {
    let code = trailers.and_then(grpc_code).or_else(|| grpc_code(fields));
    let mut all = code.and_then(grpc_condition).map_or_else(Conditions::default, |one| Conditions::of(&[one]));
    if status.is_server_error() {
        all = all.with(Condition::ServerError);
    }
    if matches!(status.as_u16(), 502..=504) {
        all = all.with(Condition::GatewayError);
    }
    if status == StatusCode::CONFLICT {
        all = all.with(Condition::Retriable4xx);
    }
    if rule.statuses.contains(&status.as_u16()) {
        all = all.with(Condition::StatusCodes);
    }
    let listed = rule.headers.iter().any(|one| match &one.value {
        None => fields.contains_key(&one.name),
        Some(value) => fields.get_all(&one.name).iter().any(|got| got == value),
    });
    if listed { all.with(Condition::Headers) } else { all }
}

/// The `grpc-status` of a head without a body, or of trailers.
pub fn grpc_code(fields: &HeaderMap) -> Option<u32> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

fn grpc_condition(code: u32) -> Option<Condition> {
    match code {
        1 => Some(Condition::Cancelled),
        4 => Some(Condition::DeadlineExceeded),
        8 => Some(Condition::ResourceExhausted),
        10 => Some(Condition::Aborted),
        13 => Some(Condition::Internal),
        14 => Some(Condition::Unavailable),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::{BudgetRule, HeaderCondition, Share};

    const EVERY: [Condition; 15] = [
        Condition::ConnectFailure,
        Condition::ResetBeforeRequest,
        Condition::Reset,
        Condition::RefusedStream,
        Condition::ServerError,
        Condition::GatewayError,
        Condition::Retriable4xx,
        Condition::StatusCodes,
        Condition::Headers,
        Condition::Cancelled,
        Condition::DeadlineExceeded,
        Condition::ResourceExhausted,
        Condition::Aborted,
        Condition::Internal,
        Condition::Unavailable,
    ];

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn rule(on: &[Condition]) -> RetryRule {
        RetryRule {
            on: Conditions::of(on),
            statuses: [429].into(),
            headers: [
                HeaderCondition { name: "x-again".parse().unwrap(), value: None },
                HeaderCondition { name: "x-mood".parse().unwrap(), value: Some("bad".parse().unwrap()) },
            ]
            .into(),
            ..RetryRule::default()
        }
    }

    fn failed(reason: Reason, fate: Fate) -> Outcome<'static> {
        Outcome::Failed { reason, fate }
    }

    /// Which conditions, each alone in a rule, let an idempotent request be tried again.
    fn held(outcome: &Outcome<'_>) -> Vec<Condition> {
        let holds = |one: &Condition| {
            matches!(
                run(&rule(&[*one]), &Method::GET, outcome), Verdict::Retry { because, .. } if because == *one
            )
        };
        EVERY.iter().copied().filter(holds).collect()
    }

    fn run(rule: &RetryRule, method: &Method, outcome: &Outcome<'_>) -> Verdict {
        let asking = Asking { method, attempts: 1, replayable: true, marked: false, deadline: Deadline::NONE };
        judge_at(rule, &asking, outcome, Instant::now())
    }

    fn judge_at(rule: &RetryRule, asking: &Asking<'_>, outcome: &Outcome<'_>, now: Instant) -> Verdict {
        judge(rule, asking, outcome, &Budget::new(now), Moment { now, wall: UNIX_EPOCH, roll: u64::MAX })
    }

    #[test]
    fn each_outcome_has_its_standard_names() {
        use Condition::*;
        for (outcome, want) in [
            (failed(Reason::ConnectRefused, Fate::Unknown), &[ConnectFailure, ServerError][..]),
            (failed(Reason::ConnectTimeout, Fate::Unsent), &[ConnectFailure, ServerError]),
            (failed(Reason::TlsFailed, Fate::Unknown), &[ConnectFailure, ServerError]),
            (failed(Reason::NoIdentity, Fate::Unsent), &[ConnectFailure, ServerError]),
            (failed(Reason::Reset, Fate::Unknown), &[Reset, ServerError]),
            (failed(Reason::Reset, Fate::Unsent), &[ResetBeforeRequest, Reset, ServerError]),
            (failed(Reason::Reset, Fate::Unprocessed), &[ResetBeforeRequest, Reset, RefusedStream, ServerError]),
            (failed(Reason::RefusedStream, Fate::Unknown), &[ResetBeforeRequest, Reset, RefusedStream, ServerError]),
            (failed(Reason::BadResponse, Fate::Unknown), &[ServerError]),
            (Outcome::TimedOut, &[Reset, ServerError]),
            (failed(Reason::DeadlinePassed, Fate::Unknown), &[]),
            (failed(Reason::ClientGone, Fate::Unknown), &[]),
            (failed(Reason::Overloaded, Fate::Unsent), &[]),
            (failed(Reason::ResponseHeadTooLarge, Fate::Unknown), &[]),
        ] {
            assert_eq!(held(&outcome), want, "{outcome:?}");
        }
    }

    #[test]
    fn answers_are_known_by_status_field_and_grpc_code() {
        use Condition::*;
        let none = &[][..];
        let (ok, broken) = (&[("grpc-status", "0")][..], &[("grpc-status", "14")][..]);
        for (status, head, trailers, want) in [
            (200, none, None, &[][..]),
            (404, none, None, &[]),
            (409, none, None, &[Retriable4xx]),
            (429, none, None, &[StatusCodes]),
            (500, none, None, &[ServerError]),
            (502, none, None, &[ServerError, GatewayError]),
            (503, none, None, &[ServerError, GatewayError]),
            (504, none, None, &[ServerError, GatewayError]),
            (505, none, None, &[ServerError]),
            (200, &[("x-again", "")], None, &[Headers]),
            (200, &[("x-mood", "bad")], None, &[Headers]),
            (200, &[("x-mood", "good"), ("x-mood", "bad")], None, &[Headers]),
            (200, &[("x-mood", "good")], None, &[]),
            (200, broken, None, &[Unavailable]),
            (200, none, Some(broken), &[Unavailable]),
            (200, none, Some(ok), &[]),
            (200, ok, Some(broken), &[Unavailable]),
            (200, &[("grpc-status", "1")], None, &[Cancelled]),
            (200, &[("grpc-status", "4")], None, &[DeadlineExceeded]),
            (200, &[("grpc-status", "8")], None, &[ResourceExhausted]),
            (200, &[("grpc-status", "10")], None, &[Aborted]),
            (200, &[("grpc-status", "13")], None, &[Internal]),
            (200, &[("grpc-status", "16")], None, &[]),
            (200, &[("grpc-status", "x")], None, &[]),
        ] {
            let (head, trailers) = (fields(head), trailers.map(fields));
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = Outcome::Answered { status, fields: &head, trailers: trailers.as_ref() };
            assert_eq!(held(&outcome), want, "{outcome:?}");
        }
    }

    #[test]
    fn what_is_not_idempotent_is_repeated_only_where_nothing_was_done() {
        let rule = rule(&EVERY);
        let none = HeaderMap::new();
        let unavailable = Outcome::Answered { status: StatusCode::SERVICE_UNAVAILABLE, fields: &none, trailers: None };
        for (outcome, post) in [
            (failed(Reason::ConnectRefused, Fate::Unknown), true),
            (failed(Reason::Reset, Fate::Unsent), true),
            (failed(Reason::Reset, Fate::Unprocessed), true),
            (failed(Reason::RefusedStream, Fate::Unknown), true),
            (failed(Reason::Reset, Fate::Unknown), false),
            (failed(Reason::BadResponse, Fate::Unknown), false),
            (Outcome::TimedOut, false),
            (unavailable, false),
        ] {
            for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE, Method::OPTIONS, Method::TRACE] {
                assert!(matches!(run(&rule, &method, &outcome), Verdict::Retry { .. }), "{method} {outcome:?}");
            }
            for method in [Method::POST, Method::PATCH, Method::CONNECT, Method::from_bytes(b"LOCK").unwrap()] {
                match run(&rule, &method, &outcome) {
                    Verdict::Retry { .. } => assert!(post, "{method} {outcome:?}"),
                    other => assert!(!post && other == Verdict::GiveUp(Skip::NotIdempotent), "{method} {outcome:?}"),
                }
            }
            let any = RetryRule { methods: Methods::Any, ..rule.clone() };
            assert!(matches!(run(&any, &Method::POST, &outcome), Verdict::Retry { .. }), "{outcome:?}");
        }
    }

    #[test]
    fn each_skip_has_its_case() {
        let now = Instant::now();
        let rule = RetryRule { attempts: 3, ..rule(&EVERY) };
        let (reset, unsent) = (failed(Reason::Reset, Fate::Unknown), failed(Reason::Reset, Fate::Unsent));
        let absurd = fields(&[("retry-after", "86400")]);
        let never = fields(&[("grpc-retry-pushback-ms", "-1"), ("grpc-status", "14")]);
        let answer = |fields| Outcome::Answered { status: StatusCode::SERVICE_UNAVAILABLE, fields, trailers: None };
        let none = HeaderMap::new();
        let in_trailers = Outcome::Answered { status: StatusCode::OK, fields: &none, trailers: Some(&never) };
        let asking =
            Asking { method: &Method::GET, attempts: 1, replayable: true, marked: false, deadline: Deadline::NONE };
        let soon = Deadline::at(now + Duration::from_millis(20));
        for (asking, outcome, want) in [
            (asking, failed(Reason::ClientGone, Fate::Unknown), Skip::NotNamed),
            (Asking { attempts: 3, ..asking }, reset, Skip::AttemptsUsed),
            (Asking { method: &Method::POST, ..asking }, reset, Skip::NotIdempotent),
            (Asking { marked: true, ..asking }, reset, Skip::RetryOfRetry),
            (Asking { replayable: false, ..asking }, reset, Skip::BodyTooLarge),
            (Asking { replayable: false, ..asking }, unsent, Skip::BodyTooLarge),
            (asking, answer(&absurd), Skip::PauseTooLong),
            (asking, answer(&never), Skip::AskedNotTo),
            (asking, in_trailers, Skip::AskedNotTo),
            (Asking { deadline: soon, ..asking }, reset, Skip::NoTime),
            (Asking { deadline: Deadline::at(now), ..asking }, reset, Skip::NoTime),
        ] {
            assert_eq!(judge_at(&rule, &asking, &outcome, now), Verdict::GiveUp(want), "{asking:?} {outcome:?}");
        }
        // Even without a pause an attempt needs some time.
        let late = Asking { deadline: Deadline::at(now), ..asking };
        let at = Moment { now, wall: UNIX_EPOCH, roll: 0 };
        assert_eq!(judge(&rule, &late, &reset, &Budget::new(now), at), Verdict::GiveUp(Skip::NoTime));
        // A mark does not forbid what provably multiplies nothing.
        let marked = Asking { marked: true, ..asking };
        assert!(matches!(judge_at(&rule, &marked, &unsent, now), Verdict::Retry { .. }));
        let empty = RetryRule { budget: BudgetRule { share: Share::NONE, floor: 0 }, ..rule };
        assert_eq!(judge_at(&empty, &asking, &reset, now), Verdict::GiveUp(Skip::BudgetSpent));
    }

    #[test]
    fn a_hedge_obeys_the_same_rules() {
        let now = Instant::now();
        let rule = RetryRule::default();
        let asking =
            Asking { method: &Method::GET, attempts: 1, replayable: true, marked: false, deadline: Deadline::NONE };
        let budget = Budget::new(now);
        for (asking, want) in [
            (Asking { method: &Method::POST, ..asking }, Err(Skip::NotIdempotent)),
            (Asking { attempts: 2, ..asking }, Err(Skip::AttemptsUsed)),
            (Asking { marked: true, ..asking }, Err(Skip::RetryOfRetry)),
            (Asking { replayable: false, ..asking }, Err(Skip::BodyTooLarge)),
            (Asking { deadline: Deadline::at(now), ..asking }, Err(Skip::NoTime)),
            (asking, Ok(())),
        ] {
            assert_eq!(may_hedge(&rule, &asking, &budget, now), want, "{asking:?}");
        }
        assert_eq!(budget.standing(now, &rule.budget).used, 1, "only the one that was allowed was taken");
        while budget.withdraw(now, &rule.budget).is_ok() {}
        assert_eq!(may_hedge(&rule, &asking, &budget, now), Err(Skip::BudgetSpent));
    }

    #[test]
    fn words_are_unique() {
        let mut words: Vec<_> = Skip::ALL.iter().map(|skip| skip.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Skip::ALL.len());
    }

    proptest! {
        #[test]
        fn never_twice_what_may_do_harm(
            on in any::<u16>(), reason in 0..Reason::ALL.len(), fate in 0usize..3, kind in 0usize..3,
            status in 100u16..600, method in 0usize..6, marked in any::<bool>(), replayable in any::<bool>(),
            attempts in 1u32..5, left in prop::option::of(0u64..100), spent in any::<bool>(), any_method in any::<bool>()
        ) {
            let now = Instant::now();
            let methods = [Method::GET, Method::PUT, Method::POST, Method::PATCH, Method::DELETE, Method::CONNECT];
            let on: Vec<_> = EVERY.iter().enumerate().filter(|(n, _)| on & 1 << n != 0).map(|(_, one)| *one).collect();
            let methods_rule = if any_method { Methods::Any } else { Methods::Idempotent };
            let budget_rule = BudgetRule { share: Share::NONE, floor: u32::from(!spent) };
            let rule = RetryRule { attempts: 3, methods: methods_rule, budget: budget_rule, ..rule(&on) };
            let (reason, fate) = (Reason::ALL[reason], [Fate::Unsent, Fate::Unprocessed, Fate::Unknown][fate]);
            let none = HeaderMap::new();
            let status = StatusCode::from_u16(status).unwrap();
            let outcome = match kind {
                0 => Outcome::Failed { reason, fate },
                1 => Outcome::TimedOut,
                _ => Outcome::Answered { status, fields: &none, trailers: None },
            };
            let deadline = Deadline::after(now, left.map(Duration::from_millis));
            let asking = Asking { method: &methods[method], attempts, replayable, marked, deadline };
            let unprocessed = kind == 0 && (fate != Fate::Unknown || reason == Reason::RefusedStream || unconnected(reason));
            let budget = Budget::new(now);
            let verdict = judge(&rule, &asking, &outcome, &budget, Moment { now, wall: UNIX_EPOCH, roll: 1 << 63 });
            let used = budget.standing(now, &rule.budget).used;
            match verdict {
                Verdict::Retry { after, because } => {
                    prop_assert!(unprocessed || any_method || asking.method.is_idempotent());
                    prop_assert!(unprocessed || !marked);
                    prop_assert!(replayable && attempts < 3 && !spent && on.contains(&because));
                    prop_assert!(left.is_none_or(|left| after < Duration::from_millis(left)));
                    prop_assert!(!status.is_success() || kind != 2);
                    prop_assert_eq!(used, 1);
                }
                Verdict::GiveUp(_) => prop_assert_eq!(used, 0),
            }
        }
    }
}
