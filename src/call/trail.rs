//! What a call did so far, for whoever tells of it.

use std::sync::Arc;

use http::{Method, Request};
use tokio::time::Instant;

use crate::http::body::Body;
use crate::reason::Reason;
use crate::resilience::limit::Held;
use crate::resilience::verdict::Skip;
use crate::tls::proof::Proof;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::http1::Tunnelled;
use crate::upstream::in_flight::InFlight;
use crate::upstream::lease::Version;
use crate::upstream::peer::Peer;
use crate::upstream::room::Place;

/// What a call did so far, kept up to date so that a cancelled one can still be told of.
#[derive(Default)]
pub struct Trail {
    /// The endpoint of the last attempt.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Its share in the load, until it is answered.
    pub in_flight: Option<InFlight>,
    /// A tunnel's place among the connections, until its end.
    pub place: Option<Place>,
    /// The same for one that was an HTTP/1 connection before.
    pub tunnelled: Option<Tunnelled>,
    /// Attempts made.
    pub attempts: u32,
    /// Why the last failure was not followed by another attempt, where it was worth one.
    pub skipped: Option<Skip>,
    /// The place of the last further attempt among those of its peer.
    pub retrying: Option<Held>,
    /// Whether the last attempt used a kept-alive connection.
    pub reused: bool,
    /// The version spoken to the peer.
    pub version: Option<Version>,
    /// What the endpoint of the last attempt has proven of itself, where mutual TLS is spoken to it.
    pub proof: Option<Arc<Proof>>,
    /// Whether an attempt may have been processed, whatever became of the later ones.
    pub doubtful: bool,
    /// Whether the request of a call that failed is to be given back.
    pub give_back: bool,
    /// The request of a call that failed, where it was asked for, and provably nothing was done with it or doing it
    /// elsewhere does no harm.
    pub unsent: Option<Box<Request<Body>>>,
}

impl Trail {
    /// Who the endpoint of the last attempt has proven to be; empty without mutual TLS.
    pub fn peer_id(&self) -> &str {
        self.proof.as_deref().map_or("", |proof| proof.id().as_str())
    }

    /// Another attempt began, at `endpoint`; whether it is made is not known yet.
    pub(super) fn begin(&mut self, endpoint: &Arc<Endpoint>, in_flight: InFlight) {
        (self.in_flight, self.proof) = (Some(in_flight), None);
        self.endpoint = Some(endpoint.clone());
    }

    /// The attempt that began is made: no limit of ours kept it from its endpoint.
    pub(super) fn made(&mut self, peer: &Peer) {
        self.attempts += 1;
        peer.metrics().attempts.inc();
    }

    /// The attempt that was made last was none after all.
    pub(super) fn unmade(&mut self) {
        self.attempts = self.attempts.saturating_sub(1);
    }

    /// Leaves the request of a call that failed for whoever may stand in, where that can do nothing twice.
    pub(super) fn leave(&mut self, method: &Method, request: impl FnOnce() -> Option<Request<Body>>) {
        if self.give_back && (!self.doubtful || method.is_idempotent()) {
            self.unsent = request().map(Box::new);
        }
    }

    /// The attempt got no answer, for `reason`.
    pub(super) fn failed(&mut self, reason: Reason) {
        if let Some(mut in_flight) = self.in_flight.take() {
            in_flight.failed(Instant::now(), reason);
        }
    }

    /// There was no connection, for `reason`.
    pub(super) fn unconnected(&mut self, now: Instant, reason: Reason) {
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.unconnected(now, reason);
        }
    }

    /// An attempt that began later was faster.
    pub(super) fn overtaken(&mut self, by: Self) {
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.overtaken(Instant::now());
        }
        self.follow(by);
    }

    /// From now on an attempt that began later is the one to tell of.
    pub(super) fn follow(&mut self, by: Self) {
        (self.endpoint, self.in_flight) = (by.endpoint, by.in_flight);
        if by.retrying.is_some() {
            self.retrying = by.retrying;
        }
    }
}
