//! What stands in where a peer gave no answer: another peer, an answer from the file, or an earlier answer.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response};
use tokio::time::Instant;

use super::Conn;
use super::failure::{PROXY_STATUS, proxy_status};
use super::record::Exchange;
use super::route::told;
use super::stale::{self, Filling};
use crate::call::Failure;
use crate::call::attempt::{Call, Trail};
use crate::call::retry::call;
use crate::http::body::Body;
use crate::plan::fallback::{Fallback, Instead};
use crate::plan::peer::PeerPolicy;
use crate::reason::{Reason, Side};
use crate::upstream::choice::Ask;
use crate::upstream::lease::Answer;
use crate::upstream::peer::Peer;
use crate::upstream::world::World;

/// What is kept of a request whose peer has a fallback.
pub struct Kept {
    fallback: Arc<Fallback>,
    /// Its head, where the fallback needs it.
    head: Option<Parts>,
}

/// What the caller gets.
#[expect(clippy::large_enum_variant, reason = "the large variant is the common one")]
pub enum Got {
    /// A peer's answer; what was kept of the request is given back if it is the answer of its own peer.
    Answer(Answer, Option<Box<Kept>>),
    /// An answer without a peer.
    Told(Box<Response<Bytes>>),
}

/// Whether another answer may stand in where this is why there is none: the peer or the way to it failed, or its guards
/// kept the request from it.
fn stands_in(reason: Reason) -> bool {
    let guarded = matches!(reason, Reason::CircuitOpen | Reason::Throttled | Reason::LimitReached);
    guarded || matches!(reason.side(), Side::Peer | Side::Network)
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
            | R::DnsFailed
            | R::ConnectRefused
            | R::ConnectFailed
            | R::ConnectTimeout
            | R::RefusedStream
    ) || reason.is_tls_with_peer()
}

impl Kept {
    /// What a fallback will need of a request that is about to be sent; `None` where there is no fallback.
    pub fn of(policy: &PeerPolicy, parts: &Parts, body: &Body, trail: &mut Trail) -> Option<Box<Self>> {
        let fallback = policy.fallback.clone()?;
        let head = match fallback.to {
            Instead::Peer(_) => matches!(body, Body::Empty),
            Instead::Respond(_) => false,
            Instead::Stale(_) => true,
        };
        trail.give_back = matches!(fallback.to, Instead::Peer(_));
        Some(Box::new(Self { fallback, head: head.then(|| parts.clone()) }))
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
            Instead::Respond(respond) => {
                let mut told = told(respond);
                if let Err(failure) = &answer {
                    told.headers_mut().insert(PROXY_STATUS, proxy_status(failure, Some(first.peer.kind())));
                }
                record.falls_back(&fallback, answer.map(|answer| answer.status()));
                Ok(Got::Told(Box::new(told)))
            }
            Instead::Stale(_) => {
                let head = self.head.as_ref().filter(|head| stale::may_be_kept(head));
                let store = conn.core.stale.of(first.peer.name());
                let why = answer.as_ref().map(Answer::status).map_err(|failure| failure.reason);
                let Some(old) = head.and_then(|head| store.find(head, why, Instant::now())) else {
                    return answer.map(|answer| Got::Answer(answer, None));
                };
                record.falls_back(&fallback, answer.map(|answer| answer.status()));
                Ok(Got::Told(Box::new(old)))
            }
            Instead::Peer(name) => {
                let peer = world.peers.iter().find(|peer| peer.name() == name);
                let request = self.again(&answer, first, &mut record.trail);
                let (Some(peer), Some(request)) = (peer, request) else {
                    return answer.map(|answer| Got::Answer(answer, None));
                };
                let answer = answer.map(|answer| answer.status());
                record.falls_back(&fallback, answer.clone());
                let failure = answer.err();
                let policy = peer.policy();
                // Its endpoints have subsets of their own.
                let ask = Ask { subset: None, ..first.ask };
                let second = Call { peer, rules: &policy.rules, ask, now: Instant::now(), ..*first };
                let answer = call(&second, request, &mut record.trail).await;
                let both = |second: Failure| both(failure, name.as_str(), second);
                answer.map(|answer| Got::Answer(answer, None)).map_err(|failure| both(record.own_fault(failure)))
            }
        }
    }

    /// The request once more: what came back untouched, or one without a body that does no harm twice.
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
        if let (Some(unsent), Err(_)) = (unsent, answer) {
            return Some(*unsent);
        }
        let head = self.head.take()?;
        let undone = answer.as_ref().is_err_and(|failure| undone(failure.reason));
        (undone || head.method.is_idempotent()).then(|| Request::from_parts(head, Body::Empty))
    }

    /// What takes a copy of its own peer's good answer, where those are kept; `answer` is as the caller gets it but for
    /// what its route changes.
    pub fn filling(&self, conn: &Conn, peer: &Peer, answer: &Answer) -> Option<Box<Filling>> {
        let Instead::Stale(rule) = self.fallback.to else { return None };
        let head = self.head.as_ref()?;
        let store = conn.core.stale.of(peer.name());
        if !head.method.is_safe() {
            // RFC 9111 §4.4: what was changed is no longer what it was.
            if !answer.status().is_client_error() && !answer.status().is_server_error() {
                store.forget(head);
            }
            return None;
        }
        store.filling(head, answer.status(), answer.headers(), rule).map(Box::new)
    }
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
