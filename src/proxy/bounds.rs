//! Where a request meets the limits of its door, its route and its peer: all before its body is read or anything is done
//! for it upstream. What it holds of them stands in its record and goes back with it.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Conn;
use super::record::Exchange;
use crate::call::Failure;
use crate::http::head::Facts;
use crate::ids::Door;
use crate::plan::peer::PeerPolicy;
use crate::plan::route::Route;
use crate::plan::rules::{GateRule, MeterRule, Priority};
use crate::reason::Reason;
use crate::resilience::gate::{Asking, Gate, Least, Shut, Through};
use crate::resilience::rate::Answer;
use crate::upstream::guards::Refusal;
use crate::upstream::peer::Peer;
use crate::upstream::world::World;

/// `draft-ietf-httpapi-ratelimit-headers-10`.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// What a request is worth where a limit in flight is nearly reached. Nobody waits for a copy; of what a route leaves
/// open, further attempts come last: they are what an overload is made of, and who sends them can wait.
pub fn priority(route: Option<Priority>, facts: &Facts) -> Priority {
    match route {
        _ if facts.copied => Priority::Low,
        Some(said) => said,
        None if facts.marked => Priority::Low,
        None => Priority::Normal,
    }
}

/// Passes the gate of the door.
///
/// # Errors
/// `LimitReached` or `RateLimited`.
pub fn door(conn: &Conn, world: &World, parts: &Parts, record: &mut Exchange) -> Result<(), Failure> {
    let (gates, rules) = (&world.gates, &world.plan.gates);
    let through = match conn.side() {
        Door::Inbound => through(conn, &gates.inbound, &rules.inbound, "inbound", (parts, record.priority), record),
        Door::Outbound => through(conn, &gates.outbound, &rules.outbound, "outbound", (parts, record.priority), record),
    };
    record.through[0] = Some(through?);
    Ok(())
}

/// Passes the gate of a route.
///
/// # Errors
/// `LimitReached` or `RateLimited`.
pub fn route(conn: &Conn, world: &World, route: &Route, parts: &Parts, record: &mut Exchange) -> Result<(), Failure> {
    let Some(gate) = &route.gate else { return Ok(()) };
    // A route's gate is made with the World of its plan.
    let Some(living) = world.gates.routes.get(&gate.key) else { return Ok(()) };
    // What a route says is against other routes; its own limits are for its own requests.
    let own = route.priority == Some(record.priority);
    let priority = if own { Priority::High } else { record.priority };
    record.through[1] = Some(through(conn, living, &gate.rule, &gate.key, (parts, priority), record)?);
    Ok(())
}

/// Asks the guards of a peer that is to be called at `now`.
///
/// # Errors
/// `LimitReached`, `Throttled` or `CircuitOpen`.
pub fn peer(peer: &Arc<Peer>, policy: &PeerPolicy, now: Instant, record: &mut Exchange) -> Result<(), Failure> {
    let admitted = peer.admit(policy, record.priority, now).map_err(|refusal| {
        if refusal.reason == Reason::LimitReached {
            shed(record.conn(), record.priority);
        }
        refused(refusal)
    })?;
    record.admitted = Some(admitted);
    Ok(())
}

fn through(
    conn: &Conn,
    gate: &Gate,
    rule: &GateRule,
    name: &str,
    (parts, priority): (&Parts, Priority),
    record: &mut Exchange,
) -> Result<Through, Failure> {
    let address = conn.caller.client.0.map(|addr| addr.ip());
    let (now, identity) = (record.started(), conn.identity());
    let asking = Asking { now, address, identity, headers: &parts.headers, priority };
    let admitted = gate.admit(rule, &asking).map_err(|shut| match shut {
        Shut::Full(full) => limit_reached(conn, record, format!("{full} for {name}")),
        Shut::Slow(full) => limit_reached(conn, record, format!("{full} for {name}")),
        Shut::Rate { at, answer } => match rule.rates.get(at) {
            Some(meter) => too_often(meter, &answer, name),
            None => Failure::new(Reason::RateLimited, format!("a rate of {name} is reached")),
        },
    });
    let (through, least) = admitted?;
    if let Some(Least { at, answer }) = least
        && let Some(meter) = rule.rates.get(at)
    {
        quota(meter, name, (answer.remaining, answer.reset), record.quotas.get_or_insert_default());
    }
    Ok(through)
}

fn limit_reached(conn: &Conn, record: &Exchange, detail: String) -> Failure {
    shed(conn, record.priority);
    Failure::new(Reason::LimitReached, detail)
}

fn shed(conn: &Conn, priority: Priority) {
    if let Some(cell) = conn.core.metrics.door(conn.side()).shed.get(priority as usize) {
        cell.inc();
    }
}

/// Tells what is left of the rates that the request has passed, where the answer does not speak of rates itself.
pub fn tell(quotas: Option<&HeaderMap>, headers: &mut HeaderMap) {
    if let Some(quotas) = quotas
        && !headers.contains_key(RATE_LIMIT)
        && !headers.contains_key(RATE_LIMIT_POLICY)
    {
        headers.extend(quotas.clone());
    }
}

/// Adds what a rate allows and what is left of it; `time` is until there is more.
fn quota(meter: &MeterRule, name: &str, (left, time): (u32, Duration), fields: &mut HeaderMap) {
    let (count, window, seconds) = (meter.rate.count, meter.rate.period.as_secs(), whole_seconds(time));
    for (field, text) in [
        (RATE_LIMIT_POLICY, format!("\"{name}\";q={count};w={window}")),
        (RATE_LIMIT, format!("\"{name}\";r={left};t={seconds}")),
    ] {
        if let Ok(value) = HeaderValue::try_from(text) {
            fields.append(field, value);
        }
    }
}

fn too_often(meter: &MeterRule, answer: &Answer, name: &str) -> Failure {
    let (count, window) = (meter.rate.count, meter.rate.period.as_secs());
    let unit = match window {
        60 => "m",
        3600 => "h",
        _ => "s",
    };
    let each = meter.per.as_ref().map_or_else(String::new, |per| format!(" of each {}", per.each()));
    let mut fields = HeaderMap::with_capacity(3);
    fields.insert(header::RETRY_AFTER, HeaderValue::from(whole_seconds(answer.retry_after)));
    quota(meter, name, (answer.remaining, answer.retry_after), &mut fields);
    let detail = format!("the limit `rate: {count}/{unit}`{each} is reached for {name}");
    Failure { fields: Some(Box::new(fields)), ..Failure::new(Reason::RateLimited, detail) }
}

fn refused(refusal: Refusal) -> Failure {
    let fields = refusal
        .retry_after
        .map(|wait| Box::new(HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from(whole_seconds(wait)))])));
    Failure { fields, ..Failure::new(refusal.reason, refusal.detail) }
}

/// `Retry-After` knows whole seconds, and none is no pause (RFC 9110 §10.2.3).
fn whole_seconds(time: Duration) -> u64 {
    let seconds = time.as_secs();
    if time.subsec_nanos() > 0 { seconds.saturating_add(1) } else { seconds.max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::rules::{RateKey, RateRule};

    #[test]
    fn a_rate_that_is_reached_says_when_to_come_back() {
        let user = Some(RateKey::Header(HeaderName::from_static("x-user")));
        for (count, seconds, per, wait, field, detail) in [
            (10, 1, None, 100, "1", "the limit `rate: 10/s` is reached for inbound"),
            (10, 60, user, 5_001, "6", "the limit `rate: 10/m` of each x-user is reached for inbound"),
            (
                1,
                3600,
                Some(RateKey::Address),
                3_600_000,
                "3600",
                "the limit `rate: 1/h` of each address is reached for inbound",
            ),
        ] {
            let rate = RateRule { count, period: Duration::from_secs(seconds), burst: count };
            let retry_after = Duration::from_millis(wait);
            let answer = Answer { ok: false, limit: count, remaining: 0, reset: retry_after, retry_after };
            let failure = too_often(&MeterRule { rate, per, keys: 1, told: false }, &answer, "inbound");
            let fields = failure.fields.unwrap();
            assert_eq!((failure.reason, &*failure.detail), (Reason::RateLimited, detail));
            assert_eq!(fields["retry-after"], field);
            assert_eq!(fields["ratelimit"], format!("\"inbound\";r=0;t={field}"));
            assert_eq!(fields["ratelimit-policy"], format!("\"inbound\";q={count};w={seconds}"));
        }
    }
}
