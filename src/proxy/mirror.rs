//! Copies of requests for a peer that is tried out: bounded in number, size and time, and nobody waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{EXPECT, HeaderValue};
use http::request::Parts;
use http::{Request, Version};
use tokio::time::Instant;

use super::Conn;
use crate::call::attempt::Call;
use crate::call::retry::call;
use crate::call::trail::Trail;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::http::head::MIRROR;
use crate::http::tee::Teed;
use crate::life::tasks::Tasks;
use crate::plan::route::{Edits, Route};
use crate::plan::rules::Priority;
use crate::reason::Side;
use crate::resilience::outlier::Seen;
use crate::resilience::verdict::grpc_code;
use crate::upstream::guards::Outcome;
use crate::upstream::lease::Version as Leg;
use crate::upstream::peer::Peer;
use crate::upstream::unread;
use crate::upstream::world::World;

/// Copies under way at one time.
const MOST: usize = 100;

/// Bytes of a body that is copied.
const MOST_BODY: usize = 64 * 1024;

/// Bytes of an answer that are read, so that its connection can serve again.
const MOST_ANSWER: usize = 1024 * 1024;

/// How long a copy may take where its peer has no shorter `timeout.request`.
const LONGEST: Duration = Duration::from_secs(10);

/// The copies under way.
#[derive(Clone, Default)]
pub struct Mirrors {
    running: Arc<AtomicUsize>,
    tasks: Tasks,
}

/// A copy's place among those under way.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Mirrors {
    /// Waits until no copy is under way.
    pub async fn idle(&self) {
        self.tasks.idle().await;
    }

    fn place(&self) -> Option<Place> {
        let more = |running: usize| (running < MOST).then_some(running + 1);
        self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Place(self.running.clone()))
    }
}

/// A copy of a request whose body is still on its way.
struct Copy {
    head: Parts,
    /// Whether the request itself is a sidecar's further attempt.
    marked: bool,
    peer: Arc<Peer>,
    tasks: Tasks,
    place: Place,
}

/// Copies the request if its route says so: at once where it has no body, else when its body has passed. `marked` says
/// that it is a further attempt, which is not to be multiplied, and `admitted` that its own peer's guards let it through: who
/// is tried out gets what the peer gets, and no copies are made of a flood that they keep out.
pub fn copied(
    conn: &Conn,
    world: &World,
    (route, marked): (Option<&Route>, bool),
    parts: &Parts,
    (body, admitted): (Body, bool),
) -> Body {
    let mirror = route.and_then(|route| route.mirror).filter(|mirror| admitted && mirror.takes(fastrand::u64(..)));
    let Some(peer) = mirror.and_then(|mirror| world.peers.get(mirror.peer)) else { return body };
    let Some(place) = conn.core.mirrors.place() else {
        peer.metrics().mirror_dropped.inc();
        return body;
    };
    let mut head = parts.clone();
    // Nobody waits for the copy's 100.
    Edits { remove: vec![EXPECT], ..Edits::default() }.make(&mut head.headers);
    head.headers.insert(MIRROR, HeaderValue::from_static("1"));
    let copy = Copy { head, marked, peer: peer.clone(), tasks: conn.core.mirrors.tasks.clone(), place };
    if matches!(body, Body::Empty) {
        copy.send(None);
        return body;
    }
    let done = move |whole: Option<Bytes>| match whole {
        Some(whole) => copy.send(Some(whole)),
        None => copy.peer.metrics().mirror_dropped.inc(),
    };
    Body::Teed(Box::new(Teed::new(body, MOST_BODY, Box::new(done))))
}

impl Copy {
    fn send(self, body: Option<Bytes>) {
        let Self { head, marked, peer, tasks, place } = self;
        let version = if head.version == Version::HTTP_2 { Leg::Http2 } else { Leg::Http1 };
        let request = Request::from_parts(head, body.map_or(Body::Empty, Body::Text));
        tasks.spawn(async move {
            let now = Instant::now();
            let policy = peer.policy();
            let Ok(mut admitted) = peer.admit(&policy, Priority::Low, now) else {
                peer.metrics().mirror_dropped.inc();
                return drop(place);
            };
            peer.metrics().mirrored.inc();
            let time = policy.request_timeout.unwrap_or(LONGEST).min(LONGEST);
            let deadline = Deadline::after(now, Some(time));
            let to = Call { marked, version, deadline, ..Call::plain(&peer, &policy.rules, now) };
            let mut trail = Trail::default();
            match call(&to, request, &mut trail).await {
                Ok(answer) => {
                    let (head, status, code) = (Instant::now(), answer.status(), grpc_code(answer.headers()));
                    if let Some(mut in_flight) = trail.in_flight.take() {
                        in_flight.answered(head, Seen::answer(status, code));
                    }
                    admitted.tell(Outcome::answered(status, code), head, head);
                    if !status.is_server_error() {
                        admitted.teach(head);
                    }
                    // What is not read in time is dropped with its connection.
                    let _ = tokio::time::timeout_at(now + time, unread::read(answer.into_body(), MOST_ANSWER)).await;
                }
                Err(failure) if matches!(failure.reason.side(), Side::Peer | Side::Network) => {
                    let late = Instant::now();
                    if let Some(mut in_flight) = trail.in_flight.take() {
                        in_flight.failed(late, failure.reason);
                    }
                    admitted.tell(Outcome::FAILED, late, late);
                }
                Err(_) => {}
            }
            drop((place, admitted));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_copies_than_there_are_places() {
        let mirrors = Mirrors::default();
        let mut places: Vec<_> = (0..MOST).map(|_| mirrors.place().unwrap()).collect();
        assert!(mirrors.place().is_none());
        places.pop();
        assert!(mirrors.place().is_some());
    }
}
