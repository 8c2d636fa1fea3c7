//! What becomes of an exchange, told to the endpoint that has it: for its load and for ejection.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::endpoint::{Endpoint, is_its_doing};
use crate::reason::{Reason, Side};
use crate::resilience::outlier::{Begun, Seen};

/// An exchange in flight at an endpoint. It is how the endpoint learns what became of it; dropped without a word it was
/// cancelled, and tells nothing.
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    began: Instant,
    /// For ejection; `None` where nothing is to be learned.
    begun: Option<Begun>,
    answered: bool,
    sent: bool,
}

impl InFlight {
    /// Counts it for balancing, until it is dropped.
    pub(super) fn new(endpoint: Arc<Endpoint>, began: Instant, begun: Option<Begun>) -> Self {
        endpoint.load().begin();
        endpoint.count(1);
        Self { endpoint, began, begun, answered: false, sent: false }
    }

    /// What the answer's head says, which came at `now` (see [`Seen::answer`]); only the first word counts.
    pub fn answered(&mut self, now: Instant, seen: Seen) {
        self.sample(now, seen == Seen::Well);
        self.report(now, seen);
    }

    /// The answer's head came at `now` and leaves open how the call ends: gRPC tells it in the trailers. `None` where
    /// nobody wants to know.
    pub fn headed(mut self, now: Instant) -> Option<Owed> {
        self.sample(now, true);
        let took = now.saturating_duration_since(self.began);
        self.begun.take().map(|begun| Owed { endpoint: self.endpoint.clone(), begun: Some(begun), took })
    }

    /// There was no answer, for `reason`.
    pub fn failed(&mut self, now: Instant, reason: Reason) {
        if reason == Reason::DeadlinePassed {
            return self.late(now);
        }
        if matches!(reason.side(), Side::Peer | Side::Network) {
            self.sample(now, false);
        }
        if let Some(seen) = Seen::failure(reason) {
            self.report(now, seen);
        }
    }

    /// The request's time was over. How much that was the caller decides: it is held against the endpoint as far as the
    /// others do better, see [`Seen::Late`], and not at all where a limit of ours took the time.
    fn late(&mut self, now: Instant) {
        if !self.sent && self.endpoint.is_full() {
            return;
        }
        let took = now.saturating_duration_since(self.began);
        let overdue = self.endpoint.standing().is_overdue(now, took);
        // Its answer would have taken longer still. That it took at least so long is news only if others were faster.
        if overdue || self.endpoint.load().latency(now).is_some_and(|known| known < took) {
            self.sample(now, !overdue);
        }
        self.report(now, Seen::Late);
    }

    /// There was no connection, for `reason`. Only what the endpoint did is a sample of it: that our own line was full or
    /// the request's time short says nothing about whom to call next.
    pub fn unconnected(mut self, now: Instant, reason: Reason) {
        if is_its_doing(reason) {
            self.answered(now, Seen::LocalFailure);
        }
    }

    /// It has a connection: from now on its endpoint is waited for, and not a place in a line of ours.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// It is about to ask for a connection, and nobody will say when it has one: whether it stands in a line of ours first
    /// is decided now.
    pub fn asks(&mut self) {
        self.sent = !self.endpoint.is_full();
    }

    /// There is a connection, for a tunnel. That is no sample of its latency: its peer answers nothing.
    pub fn connected(mut self, now: Instant) {
        self.report(now, Seen::Well);
    }

    /// An attempt that began later was faster. It counts as slow, so that the next call avoids it, and not as failed.
    pub fn overtaken(mut self, now: Instant) {
        self.sample(now, false);
    }

    /// It was cancelled, because another attempt was answered sooner: it would have taken longer than it lasted.
    pub fn outrun(mut self, now: Instant) {
        self.sample(now, true);
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    fn sample(&mut self, now: Instant, ok: bool) {
        if !std::mem::replace(&mut self.answered, true) {
            self.endpoint.load().answered(now, now.saturating_duration_since(self.began), ok);
        }
    }

    fn report(&mut self, now: Instant, seen: Seen) {
        if let Some(begun) = self.begun.take() {
            let took = now.saturating_duration_since(self.began);
            self.endpoint.standing().report(self.endpoint.addr(), begun, now, seen, took);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.load().end();
        self.endpoint.count(-1);
        if let Some(begun) = self.begun.take() {
            self.endpoint.standing().abandon(begun);
        }
    }
}

/// A call whose end an endpoint is still to learn; dropped it was cancelled, and tells nothing.
pub struct Owed {
    endpoint: Arc<Endpoint>,
    begun: Option<Begun>,
    took: Duration,
}

impl Owed {
    /// Whether it is the one request that tries an ejected endpoint.
    pub fn is_probe(&self) -> bool {
        self.begun.as_ref().is_some_and(Begun::is_probe)
    }

    /// How it ended.
    pub fn ended(mut self, now: Instant, seen: Seen) {
        if let Some(begun) = self.begun.take() {
            self.endpoint.standing().report(self.endpoint.addr(), begun, now, seen, self.took);
        }
    }

    /// It broke off, for `reason`. A stream that is still open when its time is over is no failure.
    pub fn failed(self, now: Instant, reason: Reason) {
        if let Some(seen) = Seen::failure(reason).filter(|seen| *seen != Seen::Late) {
            self.ended(now, seen);
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.endpoint.standing().abandon(begun);
        }
    }
}
