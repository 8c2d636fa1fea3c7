//! What stands in where a peer gave no answer: another peer, an answer from the file, or an earlier answer.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use tokio::time::Instant;

use super::Conn;
use super::bounds;
use super::failure::{PROXY_STATUS, proxy_status};
use super::record::Exchange;
use super::route::told;
use super::stale::{self, Filling, Part};
use super::tokens;
use crate::call::Failure;
use crate::call::attempt::Call;
use crate::call::retry::call;
use crate::call::trail::Trail;
use crate::http::body::Body;
use crate::http::mark::unmark;
use crate::plan::fallback::{Fallback, Instead};
use crate::plan::matching::is_grpc;
use crate::plan::peer::PeerPolicy;
use crate::reason::{Reason, Side};
use crate::upstream::choice::Ask;
use crate::upstream::lease::Answer;
use crate::upstream::peer::Peer;
use crate::upstream::unread;
use crate::upstream::world::World;

/// What is kept of a request whose peer has a fallback.
pub struct Kept {
    fallback: Arc<Fallback>,
    /// Its head, where the fallback needs it.
    head: Option<Parts>,
    /// Which part of its peer was asked, where only that may answer.
    part: Part,
}

/// What the caller gets.
#[expect(clippy::large_enum_variant, reason = "the large variant is the common one")]
pub enum Got {
    /// A peer's answer; what was kept of the request is given back if it is the answer of its own peer.
    Answer(Answer, Option<Box<Kept>>),
    /// An answer without a peer.
    Told(Box<Response<Bytes>>),
}

/// Whether another answer may stand in where this is why there is none: the peer or the way to it failed, its guards
/// kept the request from it, or we have no identity to call it with.
fn stands_in(reason: Reason) -> bool {
    use Reason as R;
    let kept_from_it = matches!(reason, R::CircuitOpen | R::Throttled | R::LimitReached | R::NoIdentity);
    kept_from_it || matches!(reason.side(), Side::Peer | Side::Network)
}

/// Whether the peer has certainly done nothing.
fn undone(reason: Reason) -> bool {
    use Reason as R;
    matches!(
        reason,
        R::NoEndpoint
            | R::CircuitOpen
            | R::Throttled
            | R::LimitReached
            | R::NoIdentity
            | R::DnsFailed
            | R::ConnectRefused
            | R::ConnectFailed
            | R::ConnectTimeout
            | R::RefusedStream
    ) || reason.is_tls_with_peer()
}

impl Kept {
    /// What a fallback will need of a request that is about to be sent; `None` where there is no fallback.
    pub fn of(
        conn: &Conn,
        world: &World,
        policy: &PeerPolicy,
        (parts, body): (&Parts, &Body),
        ask: Ask<'_>,
        trail: &mut Trail,
    ) -> Option<Box<Self>> {
        let fallback = policy.fallback.clone()?;
        let head = match fallback.to {
            Instead::Peer(_) => matches!(body, Body::Empty),
            Instead::Respond(_) => false,
            // What a GET's body says is no part of the key.
            Instead::Stale(_) if parts.method == Method::GET => {
                matches!(body, Body::Empty) && !tokens::are_told(conn, world, &parts.headers)
            }
            Instead::Stale(_) => true,
        };
        trail.give_back = matches!(fallback.to, Instead::Peer(_));
        let part = if matches!(fallback.to, Instead::Stale(_)) { Part::of(ask) } else { Part::default() };
        Some(Box::new(Self { fallback, head: head.then(|| parts.clone()), part }))
    }

    /// The answer, or what stands in for it.
    ///
    /// # Errors
    /// Why there was no answer, where nothing could stand in.
    pub async fn instead(
        mut self: Box<Self>,
        conn: &Conn,
        world: &World,
        answer: Result<Answer, Failure>,
        first: &Call<'_>,
        record: &mut Exchange,
    ) -> Result<Got, Failure> {
        match &answer {
            Ok(answer) if self.fallback.statuses.contains(&answer.status()) => {}
            Err(failure) if stands_in(failure.reason) => {}
            _ => return answer.map(|answer| Got::Answer(answer, Some(self))),
        }
        let fallback = self.fallback.clone();
        match &fallback.to {
            // An answer of HTTP is none to a gRPC call: what failed is told as it understands.
            Instead::Respond(respond) if record.grpc && !is_grpc(&respond.content_type) => {
                answer.map(|answer| Got::Answer(answer, None))
            }
            Instead::Respond(respond) => {
                let mut told = told(respond);
                if let Err(failure) = &answer {
                    told.headers_mut().insert(PROXY_STATUS, proxy_status(failure, Some(first.peer.kind())));
                }
                record.falls_back(&fallback, unread(first.peer, answer));
                Ok(without_peer(told, record))
            }
            Instead::Stale(_) => {
                let head = self.head.as_ref().filter(|head| stale::may_be_kept(head));
                let store = conn.core.stale.of(first.peer);
                let why = answer.as_ref().map(Answer::status).map_err(|failure| failure.reason);
                let Some(old) = head.and_then(|head| store.find(head, &self.part, why, Instant::now())) else {
                    return answer.map(|answer| Got::Answer(answer, None));
                };
                record.falls_back(&fallback, unread(first.peer, answer));
                Ok(without_peer(old, record))
            }
            Instead::Peer(name) => {
                // A part of a split may be the one that is to stand in.
                let other = |peer: &&Arc<Peer>| peer.name() == name && !Arc::ptr_eq(peer, first.peer);
                let peer = world.peers.iter().find(other);
                let request = self.again(&answer, first, &mut record.trail);
                let (Some(peer), Some(request)) = (peer, request) else {
                    return answer.map(|answer| Got::Answer(answer, None));
                };
                let answer = unread(first.peer, answer);
                record.falls_back(&fallback, answer.clone());
                let second = second(peer, request, first, record).await;
                second
                    .map(|answer| Got::Answer(answer, None))
                    .map_err(|second| both(answer.err(), name.as_str(), second))
            }
        }
    }

    /// The request once more: what the call gave back, or one without a body that does no harm twice.
    fn again(
        &mut self,
        answer: &Result<Answer, Failure>,
        first: &Call<'_>,
        trail: &mut Trail,
    ) -> Option<Request<Body>> {
        trail.give_back = false;
        let unsent = trail.unsent.take();
        if first.deadline.passed(Instant::now()) {
            return None;
        }
        if let (Some(mut unsent), Err(_)) = (unsent, answer) {
            if !first.marked {
                // To the peer that stands in it is no further attempt, wherever it was tried before.
                unmark(unsent.headers_mut());
            }
            return Some(*unsent);
        }
        let head = self.head.take()?;
        let undone = !trail.doubtful && answer.as_ref().is_err_and(|failure| undone(failure.reason));
        (undone || head.method.is_idempotent()).then(|| Request::from_parts(head, Body::Empty))
    }

    /// What takes a copy of its own peer's good answer, where those are kept; `answer` is as the caller gets it but for
    /// what its route changes.
    pub fn filling(&self, conn: &Conn, peer: &Arc<Peer>, answer: &Answer) -> Option<Box<Filling>> {
        let Instead::Stale(rule) = self.fallback.to else { return None };
        let head = self.head.as_ref()?;
        let store = conn.core.stale.of(peer);
        if !head.method.is_safe() {
            // RFC 9111 §4.4: what was changed is no longer what it was.
            if !answer.status().is_client_error() && !answer.status().is_server_error() {
                let subsets = peer.policy().subsets.iter().map(Part::of_subset).collect::<Vec<_>>();
                [&self.part, &Part::default()].into_iter().chain(&subsets).for_each(|part| store.forget(head, part));
            }
            return None;
        }
        let filling = store.clone().filling(head, &self.part, (answer.status(), answer.headers()), rule);
        if filling.is_none() {
            store.outdated(head, &self.part, answer.status());
        }
        filling.map(Box::new)
    }
}

/// What the peer answered, of which nobody will read more.
fn unread(peer: &Peer, answer: Result<Answer, Failure>) -> Result<StatusCode, Failure> {
    answer.map(|answer| {
        let status = answer.status();
        unread::discard(peer, answer);
        status
    })
}

/// An answer that no peer gives; the route changes it as any other.
fn without_peer(mut answer: Response<Bytes>, record: &Exchange) -> Got {
    if let Some(route) = &record.route {
        route.response.make(answer.headers_mut());
    }
    Got::Told(Box::new(answer))
}

/// Calls the peer that stands in, by its own rules and if its own guards let the request through.
async fn second(
    peer: &Arc<Peer>,
    request: Request<Body>,
    first: &Call<'_>,
    record: &mut Exchange,
) -> Result<Answer, Failure> {
    let policy = peer.policy();
    // Its endpoints have subsets of their own.
    let ask = Ask { subset: None, only: None, ..first.ask };
    let call_it = Call { peer, rules: &policy.rules, ask, now: Instant::now(), ..*first };
    bounds::peer(peer, &policy, call_it.now, record)?;
    call(&call_it, request, &mut record.trail).await.map_err(|failure| record.own_fault(failure))
}

/// What is told where a peer and the one that stood in for it failed.
fn both(first: Option<Failure>, name: &str, second: Failure) -> Failure {
    match first {
        None => second,
        Some(first) => {
            Failure { detail: format!("{}; its fallback {name} failed too: {second}", first.detail).into(), ..first }
        }
    }
}
