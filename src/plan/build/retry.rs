//! What the file says about doing things again, as rules; what cannot be meant is refused.

use std::time::Duration;

use http::HeaderValue;

use crate::config::collect::OrOff;
use crate::config::kind::Set;
use crate::config::problem::Problems;
use crate::config::retry::{self as said, HedgeAfter as After, Repeatable, RetryOn};
use crate::config::units::Timer;
use crate::config::values::field_name;
use crate::plan::rules::{
    BackoffRule, BudgetRule, Condition, Conditions, HeaderCondition, HedgeAfter, HedgeRule, Methods, RetryRule, Rules,
    Share,
};

/// The rule of a peer or a route; `off` leaves one attempt. `attempt` is how long one may take.
pub fn rule(set: &Set<OrOff<said::Retry>>, attempt: Option<Duration>, problems: &mut Problems) -> RetryRule {
    let Some(retry) = &set.0 else {
        return RetryRule { attempts: 1, attempt_timeout: attempt, ..RetryRule::default() };
    };
    let mut rule = RetryRule {
        attempts: u32::try_from(retry.attempts.0).unwrap_or(u32::MAX),
        on: Conditions::default(),
        statuses: Box::default(),
        headers: headers(retry, problems),
        methods: match retry.methods.value {
            Repeatable::Idempotent => Methods::Idempotent,
            Repeatable::Any => Methods::Any,
        },
        attempt_timeout: attempt,
        backoff: BackoffRule { base: retry.backoff.base.0, cap: retry.backoff.cap.0, asked_cap: retry.backoff.asked.0 },
        budget: BudgetRule {
            share: Share::millionths(retry.budget.share.0),
            floor: u32::try_from(retry.budget.floor.0).unwrap_or(u32::MAX),
        },
    };
    conditions(retry, &mut rule);
    if retry.backoff.base.0 > retry.backoff.cap.0 {
        retry.backoff.refuse(problems, "`base`, the first bound, must not be longer than `cap`, the highest");
    }
    if rule.attempts > 1 && rule.on == Conditions::default() {
        retry.on.refuse(problems, "names nothing that could be retried: `retry: off` says so in fewer words");
    }
    rule
}

fn conditions(retry: &said::Retry, rule: &mut RetryRule) {
    let mut statuses = Vec::new();
    for on in &retry.on.0 {
        match on.value {
            RetryOn::Condition(condition) => rule.on = rule.on.with(condition),
            RetryOn::Status(status) => statuses.push(status.as_u16()),
        }
    }
    if !statuses.is_empty() {
        rule.on = rule.on.with(Condition::StatusCodes);
    }
    if !rule.headers.is_empty() {
        rule.on = rule.on.with(Condition::Headers);
    }
    rule.statuses = statuses.into();
}

fn headers(retry: &said::Retry, problems: &mut Problems) -> Box<[HeaderCondition]> {
    let Some(set) = &retry.headers else { return Box::default() };
    let mut listed = Vec::new();
    for (name, value) in &set.value.0 {
        let (field, text) = (field_name(name), HeaderValue::from_str(value));
        match (field, text) {
            (Some(name), Ok(text)) => {
                listed.push(HeaderCondition { name, value: Some(text).filter(|text| !text.is_empty()) });
            }
            _ => set.refuse(problems, format!("`{name}: {value}` is no field")),
        }
    }
    listed.into()
}

/// What is sent beside a slow attempt.
pub fn hedge(set: &Set<OrOff<said::Hedge>>) -> Option<HedgeRule> {
    let hedge = set.0.as_ref()?;
    let after = match hedge.after.value {
        After::Delay(delay) => HedgeAfter::Delay(delay),
        After::Quantile(parts) => HedgeAfter::Quantile(Share::millionths(parts)),
    };
    Some(HedgeRule { after, at_least: hedge.at_least.0 })
}

/// A hedge that the other `rules` in force never let happen is a mistake in one of them.
pub fn hedge_happens(set: &Set<OrOff<said::Hedge>>, rules: &Rules, problems: &mut Problems) {
    let Some(hedge) = &rules.hedge else { return };
    if rules.retry.attempts < 2 {
        set.refuse(problems, "is a further attempt, and `retry` allows none: let `retry.attempts` be 2 or more");
    }
    let least = match hedge.after {
        HedgeAfter::Delay(delay) => delay.max(hedge.at_least),
        HedgeAfter::Quantile(_) => hedge.at_least,
    };
    if rules.retry.attempt_timeout.is_some_and(|attempt| least >= attempt) {
        set.refuse(problems, "must be sooner than `timeout.attempt`, when the attempt is given up");
    }
}

/// An attempt that may take longer than the whole request is a mistake in one of the two.
pub fn attempt_before_request<T>(
    attempt: &Set<T>,
    (time, request): (Option<Timer>, Option<Timer>),
    problems: &mut Problems,
) {
    if let (Some(time), Some(request)) = (time, request)
        && time.0 > request.0
    {
        attempt.refuse(problems, "must not be longer than `request`, the time for all attempts");
    }
}
