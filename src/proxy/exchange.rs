//! THE corridor: one request from its head to its answer, the same for both doors; it cannot fail, only answer.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::time::Instant;

use super::Conn;
use super::affinity::Stuck;
use super::answer::Reply;
use super::bounds;
use super::captured;
use super::failure;
use super::fallback::{Got, Kept};
use super::mirror;
use super::policy;
use super::record::Exchange;
use super::route::Taken;
use super::sender;
use super::stale::Filling;
use super::target::{Target, aim, target};
use super::tokens;
use super::upgrade::{self, Switch};
use crate::call::Failure;
use crate::call::attempt::{Call, in_time};
use crate::call::retry::call;
use crate::deadline::Deadline;
use crate::http::body::{Body, content_length};
use crate::http::guard::{Guard, Guarded, Progress};
use crate::http::head::{self, Facts};
use crate::http::hop;
use crate::ids::Door;
use crate::reason::Reason;
use crate::upstream::choice::Ask;
use crate::upstream::lease::Version as Leg;
use crate::upstream::lease::{Answer, OnInformational};
use crate::upstream::world::World;

/// Serves one request: judges its head, finds its target, calls it, and turns every failure into an answer.
/// `informational` is told of 100 and 103 answers. Dropping the future cancels the call.
pub async fn exchange(conn: &Arc<Conn>, request: Request<Body>, informational: &OnInformational) -> Response<Reply> {
    let (parts, body) = request.into_parts();
    let mut record = Exchange::begin(conn, &parts.method, &parts.uri, parts.version, Instant::now());
    match pass(conn, parts, body, informational, &mut record).await {
        Ok(Passed::Answer(answer, guard, filling)) => {
            let (parts, body) = answer.into_parts();
            let now = Instant::now();
            if record.grpc {
                record.answered_grpc(&parts, body.is_end_stream(), now);
            }
            record.answered(parts.status, now);
            record.concluded(&parts.headers, now);
            conn.learned.answered_http(record.started());
            Response::from_parts(parts, Reply::peer(body, guard, record).kept(filling))
        }
        Ok(Passed::Switched(switch)) => upgrade::take_over(*switch, record),
        Ok(Passed::Told(answer)) => tell(*answer, record),
        Err(failure) if record.http1() && captured::is_shown_as_reset(conn, record.peer.as_ref(), &failure) => {
            conn.clock.cut();
            record.cut(failure);
            Response::new(Reply::text(Bytes::new(), Some(record)))
        }
        Err(failure) => refuse(failure, record),
    }
}

/// What became of a request that was not refused.
#[expect(clippy::large_enum_variant, reason = "the large variant is the common one; a box would cost every request")]
enum Passed {
    Answer(Answer, Guard, Option<Box<Filling>>),
    Switched(Box<Switch>),
    /// A route ended it with an answer from the file.
    Told(Box<Response<Bytes>>),
}

async fn pass(
    conn: &Arc<Conn>,
    mut parts: Parts,
    body: Body,
    informational: &OnInformational,
    record: &mut Exchange,
) -> Result<Passed, Failure> {
    let mut facts = judge(conn, &mut parts, record)?;
    facts.body = !body.is_end_stream();
    let world = conn.core.world.load_full();
    let Target { peer, policy, subset, only, deadline, route } = led(conn, &world, &parts, &facts, record).await?;
    // From the caller's own fields, before a route changes them.
    let stuck = Stuck::of(&policy, conn, &parts.headers, route.as_deref());
    let ask = Ask { key: stuck.key, subset: subset.as_ref(), only: only.as_ref() };
    without_token(conn, &world, &mut parts);
    if let Some(taken) = &route {
        // Boxed: routes are rare, and must not make every exchange larger.
        let told = by_route(conn, &world, taken, &mut parts, &facts, deadline, record);
        if let Some(answer) = Box::pin(told).await? {
            return Ok(Passed::Told(Box::new(answer)));
        }
    }
    if upgrade::is_asked(&parts, &facts) {
        bounds::peer(&peer, &policy, record.called, record)?;
        without_body(&facts, &body)?;
        // Boxed: upgrades and CONNECT are rare, and must not make every exchange larger.
        let switched = upgrade::switch(conn, parts, body, &facts, &peer, ask, &policy, deadline, record);
        let mut switch = in_time(deadline, Box::pin(switched)).await?;
        given_back(route.as_deref(), &stuck, record, switch.headers_mut());
        return Ok(Passed::Switched(Box::new(switch)));
    }
    let version = if parts.version == Version::HTTP_2 { Leg::Http2 } else { Leg::Http1 };
    let http10 = parts.version == Version::HTTP_10;
    let body = guarded((conn, &world), &parts, body, deadline, policy.body_idle, record)?;
    parts.version = parts.version.max(Version::HTTP_11);
    let (rules, marked, now) = (&policy.rules, facts.marked, record.called);
    let admitted = bounds::peer(&peer, &policy, now, record);
    let body = mirror::copied(conn, &world, (record.route.as_deref(), marked), &parts, (body, admitted.is_ok()));
    let kept = Kept::of(conn, &world, &policy, (&parts, &body), ask, &mut record.trail);
    let to = Call { peer: &peer, rules, marked, version, ask, deadline, now, informational: Some(informational) };
    let request = Request::from_parts(parts, body);
    let answer = match admitted {
        Ok(()) => call(&to, request, &mut record.trail).await.map_err(|failure| record.own_fault(failure)),
        Err(refused) => Err(kept_back(refused, request, record)),
    };
    let (mut answer, kept) = match kept {
        None => (answer?, None),
        // Boxed: few peers have a fallback, and it must not make every exchange larger.
        Some(kept) => match Box::pin(kept.instead(conn, &world, answer, &to, record)).await? {
            Got::Answer(answer, kept) => (answer, kept),
            Got::Told(answer) => return Ok(Passed::Told(answer)),
        },
    };
    unswitched(&answer)?;
    dress(&mut answer, &facts, record.http1(), http10);
    let filling = kept.and_then(|kept| kept.filling(conn, &peer, &answer));
    given_back(route.as_deref(), &stuck, record, answer.headers_mut());
    Ok(Passed::Answer(answer, Guard::new(policy.body_idle, deadline, None), filling))
}

/// Takes away a token that the file keeps from the app.
fn without_token(conn: &Conn, world: &World, parts: &mut Parts) {
    if let Some(tokens) = world.jwt.as_ref().filter(|_| conn.side() == Door::Inbound) {
        tokens.strip(parts);
    }
}

/// Where the request leads, if its door's limits let it through.
async fn led(
    conn: &Arc<Conn>,
    world: &Arc<World>,
    parts: &Parts,
    facts: &Facts,
    record: &mut Exchange,
) -> Result<Target, Failure> {
    // Before the limits: who is kept out takes nothing from the others.
    policy::proven(conn, world, parts, facts)?;
    let tokens = tokens::held(conn, world, parts).await;
    record.would_deny = policy::request(conn, world, parts, facts, tokens)?;
    let aim = aim(conn, world, parts, facts)?;
    record.priority = bounds::priority(aim.priority(), facts);
    bounds::door(conn, world, parts, record)?;
    let target = target(conn, world, aim, parts, facts, record.started()).await?;
    record.to(&target.peer);
    in_time_yet(target.deadline, record.started())?;
    Ok(target)
}

/// The peer's guards let nothing through: the request is left for whoever may stand in.
#[cold]
fn kept_back(refused: Failure, request: Request<Body>, record: &mut Exchange) -> Failure {
    record.trail.unsent = record.trail.give_back.then(|| Box::new(request));
    refused
}

/// Passed on, a 101 that nobody asked for would make the caller take the next answer's bytes for another protocol.
fn unswitched(answer: &Answer) -> Result<(), Failure> {
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Failure::new(Reason::BadResponse, "the peer switched protocols without being asked to"));
    }
    Ok(())
}

/// The route's gate, and what the route does before a request is forwarded; an answer where it ends here.
async fn by_route(
    conn: &Conn,
    world: &World,
    taken: &Taken,
    parts: &mut Parts,
    facts: &Facts,
    deadline: Deadline,
    record: &mut Exchange,
) -> Result<Option<Response<Bytes>>, Failure> {
    record.route = Some(taken.route.clone());
    bounds::route(conn, world, &taken.route, parts, record)?;
    let told = routed(conn, taken, parts, facts, deadline).await;
    if taken.delays() {
        // The peer's time begins now.
        record.called = Instant::now();
    }
    told
}

/// A call that nobody waits for is not made.
fn in_time_yet(deadline: Deadline, now: Instant) -> Result<(), Failure> {
    if deadline.passed(now) {
        return Err(Failure::new(Reason::DeadlinePassed, "the request's deadline passed before it was sent"));
    }
    Ok(())
}

/// A body before an upgrade would be taken for the tunnel's.
fn without_body(facts: &Facts, body: &Body) -> Result<(), Failure> {
    if facts.upgrade.is_some() && !body.is_end_stream() {
        return Err(Failure::new(Reason::BadHead, "an upgrade with a body, which would be taken for the tunnel's"));
    }
    Ok(())
}

/// What the caller is given beside the peer's own answer: what is left of its rates, the route's changes, and a cookie
/// to stick by.
fn given_back(route: Option<&Taken>, stuck: &Stuck, record: &Exchange, headers: &mut HeaderMap) {
    bounds::tell(record.quotas.as_deref(), headers);
    if let Some(taken) = route {
        taken.dress(headers);
    }
    stuck.dress(headers);
}

/// What a route does before a request is forwarded; an answer where it ends here.
async fn routed(
    conn: &Conn,
    taken: &Taken,
    parts: &mut Parts,
    facts: &Facts,
    deadline: Deadline,
) -> Result<Option<Response<Bytes>>, Failure> {
    if taken.fault(&parts.headers, deadline).await? {
        in_time_yet(deadline, Instant::now())?;
    }
    let told = taken.answer(parts, &facts.authority, conn.tls)?;
    if told.is_none() {
        taken.rewrite(parts)?;
    }
    Ok(told)
}

/// The head's facts; the record learns who is meant.
fn judge(conn: &Conn, parts: &mut Parts, record: &mut Exchange) -> Result<Facts, Failure> {
    let facts = match sender::judge(&conn.door, &conn.sender(), parts) {
        Ok(facts) => facts,
        Err(error) => {
            // A refusal too is told as gRPC does.
            record.grpc = head::is_grpc_call(&parts.headers);
            return Err(Failure::new(error.reason, error.detail));
        }
    };
    record.grpc = facts.grpc;
    record.host = Some(facts.authority.raw().clone());
    record.id = Some(facts.id.clone());
    if facts.absolute && conn.side() == Door::Outbound {
        parts.headers.append(header::VIA, VIA);
    }
    Ok(facts)
}

/// A forward proxy names itself (RFC 9110 §7.6.3); a sidecar does not, because some servers stop compressing on it.
const VIA: HeaderValue = HeaderValue::from_static("1.1 outrigger");

/// Puts a request's body under guard; one that is known to be empty costs nothing.
fn guarded(
    (conn, world): (&Conn, &World),
    parts: &Parts,
    body: Body,
    deadline: Deadline,
    idle: std::time::Duration,
    record: &mut Exchange,
) -> Result<Body, Failure> {
    if body.is_end_stream() {
        return Ok(Body::Empty);
    }
    let most = conn.door.limits.body;
    if let (Some(most), Some(length)) = (most, content_length(&parts.headers))
        && length > most
    {
        return Err(Failure::new(Reason::BodyTooLarge, format!("content-length {length} is over the limit {most}")));
    }
    let progress = Arc::new(Progress::default());
    record.progress = Some(progress.clone());
    let guard = Guard::new(idle.min(conn.door.limits.body_idle), deadline, most);
    let judged = world.plan.judged_fields.as_ref().filter(|_| conn.side() == Door::Inbound).cloned();
    Ok(Body::Guarded(Box::new(Guarded::new(body, guard, progress).without(judged))))
}

/// Makes a peer's head one for the caller's leg.
fn dress(answer: &mut Answer, facts: &Facts, http1: bool, http10: bool) {
    hop::response(answer.status(), answer.headers_mut());
    if http1 {
        *answer.version_mut() = Version::HTTP_11;
        if facts.grpc && !http10 && !answer.headers().contains_key(header::TRAILER) {
            // HTTP/1 sends only the trailers that it announces.
            answer.headers_mut().insert(header::TRAILER, HeaderValue::from_static("grpc-status, grpc-message"));
        }
    }
    if facts.absolute {
        answer.headers_mut().append(header::VIA, VIA);
    }
}

/// The answer that a route gives from the file; the record ends when it is sent.
fn tell(answer: Response<Bytes>, mut record: Box<Exchange>) -> Response<Reply> {
    let answer = if record.grpc { failure::for_grpc(answer) } else { answer };
    let (mut parts, text) = answer.into_parts();
    bounds::tell(record.quotas.as_deref(), &mut parts.headers);
    record.answered(parts.status, Instant::now());
    if *record.method() != Method::HEAD {
        return Response::from_parts(parts, Reply::text(text, Some(record)));
    }
    if !text.is_empty() {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    Response::from_parts(parts, Reply::text(Bytes::new(), Some(record)))
}

/// Marks an answer over HTTP/2 after which its connection ends, as a field says it over HTTP/1.
#[derive(Clone, Copy)]
pub struct Last;

/// The invented answer; the record ends when it is sent.
fn refuse(failure: Failure, mut record: Box<Exchange>) -> Response<Reply> {
    let kind = record.peer.as_ref().map(|peer| peer.kind());
    let answer = failure::answer(&failure, kind, record.grpc, record.http1());
    let (mut parts, text) = answer.into_parts();
    bounds::tell(record.quotas.as_deref(), &mut parts.headers);
    if let Some(route) = &record.route {
        route.response.make(&mut parts.headers);
    }
    if failure.reason == Reason::PlaintextRefused && !record.http1() {
        parts.extensions.insert(Last);
    }
    let head_only = *record.method() == Method::HEAD;
    record.failed(failure, parts.status);
    if head_only && parts.status != StatusCode::OK {
        parts.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    let text = if head_only { Bytes::new() } else { text };
    Response::from_parts(parts, Reply::text(text, Some(record)))
}
