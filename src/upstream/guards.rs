//! What stands between a request and a peer before any work is done for it: the limit in flight, the limit that follows
//! the latency, admission control and the breaker. Whatever a request holds of them goes back when it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::peer::Peer;
use crate::plan::peer::PeerPolicy;
use crate::plan::rules::{BreakerRule, ConcurrencyRule, LimitsRule, Priority};
use crate::reason::Reason;
use crate::resilience::admission::Admission;
use crate::resilience::breaker::{Breaker, Cause, Change, Pass, State};
use crate::resilience::concurrency::{Adaptive, Slot};
use crate::resilience::limit::{Full, Held, Limited, Limits};
use crate::resilience::priority::Claim;
use crate::telemetry::metrics::{LIMITS, PeerMetrics};

/// The state of a peer's guards; a changed policy keeps it.
pub(super) struct Guards {
    pub(super) limits: Arc<Limits>,
    pub(super) breaker: Breaker,
    pub(super) admission: Admission,
    pub(super) adaptive: Arc<Adaptive>,
    /// Whether the metric counts the breaker as open: peers that follow each other under one name share it.
    counted: AtomicBool,
}

impl Guards {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            limits: Arc::default(),
            breaker: Breaker::new(now),
            admission: Admission::new(now),
            adaptive: Arc::new(Adaptive::new(now)),
            counted: AtomicBool::new(false),
        }
    }

    /// The breaker was turned off, or its peer is gone.
    pub(super) fn forget_breaker(&self, metrics: &PeerMetrics) {
        self.breaker.reset();
        self.count_breaker(metrics);
    }

    /// Counts the breaker as it is; as with endpoints, the last of several sees how it ended.
    fn count_breaker(&self, metrics: &PeerMetrics) {
        loop {
            let open = self.breaker.state() != State::Closed;
            if self.counted.swap(open, Ordering::AcqRel) != open {
                metrics.breaker_open.add(if open { 1 } else { -1 });
            }
            if (self.breaker.state() != State::Closed) == open {
                return;
            }
        }
    }
}

/// Why a request does not go to its peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// `LimitReached`, `CircuitOpen` or `Throttled`.
    pub reason: Reason,
    /// One line that names the rule and its value.
    pub detail: String,
    /// When it is worth to ask again, where that is known.
    pub retry_after: Option<Duration>,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it went well: no 5xx, no such code of gRPC, no failure of peer or network.
    pub ok: bool,
    /// Whether the peer took it, be it that it failed: it did not say that it was overloaded.
    pub accepted: bool,
}

impl Outcome {
    /// It was answered with this status and, where the call is gRPC's, this code.
    pub fn answered(status: http::StatusCode, grpc: Option<u32>) -> Self {
        // UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS are the 5xx of gRPC; 8 and 14 say "overloaded".
        let failed = status.is_server_error() || matches!(grpc, Some(2 | 4 | 13 | 14 | 15));
        let overloaded = matches!(status.as_u16(), 429 | 503) || matches!(grpc, Some(8 | 14));
        Self { ok: !failed, accepted: !overloaded }
    }

    /// There was no answer, or not all of it, through the peer's or the network's fault.
    pub const FAILED: Self = Self { ok: false, accepted: false };
}

/// A request that may go to its peer. Dropped without an outcome it was given up and teaches nothing.
#[must_use = "dropping it ends the request"]
pub struct Admitted {
    peer: Arc<Peer>,
    _in_flight: Held,
    /// Boxed, because most have none.
    slot: Option<Box<(Slot<Arc<Adaptive>>, ConcurrencyRule)>>,
    pass: Option<Box<(Pass, BreakerRule)>>,
    counted: bool,
    began: Instant,
}

impl Peer {
    /// Lets a request through to this peer, or not; the numbers are those of `policy`. The breaker is asked last, so
    /// that its one trial is not spent on a request that a limit refuses.
    ///
    /// # Errors
    /// What is in the way; nothing is held.
    pub fn admit(self: &Arc<Self>, policy: &PeerPolicy, priority: Priority, now: Instant) -> Result<Admitted, Refusal> {
        let (guards, rules) = (self.guards(), &policy.rules);
        let claim = Claim { priority, kept: rules.kept };
        let in_flight = guards.limits.enter(rules.limits.in_flight, claim);
        let in_flight = in_flight.map_err(|full| self.full(full, None))?;
        let slot = match &rules.concurrency {
            None => None,
            Some(rule) => {
                let slot = Adaptive::admit(guards.adaptive.clone(), now, rule, claim).map_err(|full| {
                    self.count_limit(LIMITS.len() - 1);
                    limit_reached(format!("{full} for peer {}", self.name()))
                })?;
                Some(Box::new((slot, *rule)))
            }
        };
        if let Some(rule) = &rules.admission {
            guards.admission.admit(now, rule, fastrand::u64(..)).map_err(|refused| Refusal {
                reason: Reason::Throttled,
                detail: format!("peer {}: {refused}", self.name()),
                retry_after: None,
            })?;
        }
        let pass = match &rules.breaker {
            None => None,
            Some(rule) => {
                let pass = guards.breaker.admit(now, rule).map_err(|open| Refusal {
                    reason: Reason::CircuitOpen,
                    detail: format!("peer {}: {open}", self.name()),
                    retry_after: Some(open.wait),
                })?;
                Some(Box::new((pass, *rule)))
            }
        };
        let counted = rules.admission.is_some();
        Ok(Admitted { peer: self.clone(), _in_flight: in_flight, slot, pass, counted, began: now })
    }

    /// Counts a retry or a hedge as long as what is returned lives.
    ///
    /// # Errors
    /// The limit is reached.
    pub fn admit_retry(&self, rule: &LimitsRule) -> Result<Held, Refusal> {
        let held = self.guards().limits.hold(Limited::Retries, rule);
        held.map_err(|full| self.full(full, None))
    }

    /// Counts and words what a limit of this peer, or of one of its endpoints, refuses.
    pub(super) fn full(&self, full: Full, endpoint: Option<&dyn std::fmt::Display>) -> Refusal {
        self.count_limit(full.what.index());
        let name = self.name();
        limit_reached(match endpoint {
            None => format!("{full} for peer {name}"),
            Some(addr) => format!("{full} for the endpoint {addr} of peer {name}"),
        })
    }

    fn count_limit(&self, at: usize) {
        if let Some(cell) = self.metrics().limited.get(at) {
            cell.inc();
        }
    }

    fn changed(&self, change: Change, rule: &BreakerRule) {
        let (name, metrics) = (self.name(), self.metrics());
        let wait = rule.open_for.as_millis();
        self.guards().count_breaker(metrics);
        match change {
            Change::Opened { cause, bad, all } => {
                metrics.breaker_opened.inc();
                match cause {
                    Cause::Failures => warn!(
                        "peer {name}: the breaker opened: {bad} of {all} requests failed in ten seconds; nothing is \
                         sent for {wait} ms, then one request tries"
                    ),
                    Cause::Slow => warn!(
                        "peer {name}: the breaker opened: {bad} of {all} requests were slow in ten seconds; nothing \
                         is sent for {wait} ms, then one request tries"
                    ),
                    Cause::Trial => {
                        warn!("peer {name}: the breaker stays open for {wait} ms: the request that tried failed");
                    }
                }
            }
            Change::Closed => {
                metrics.breaker_closed.inc();
                info!("peer {name}: the breaker closed: the request that tried went well");
            }
        }
    }
}

fn limit_reached(detail: String) -> Refusal {
    Refusal { reason: Reason::LimitReached, detail, retry_after: None }
}

impl Admitted {
    /// What became of it is known at `now`; only the first word counts. `first_byte` is when its answer began.
    pub fn tell(&mut self, outcome: Outcome, first_byte: Instant, now: Instant) {
        let guards = self.peer.guards();
        if std::mem::take(&mut self.counted) {
            guards.admission.told(now, outcome.accepted);
        }
        let Some(pass) = self.pass.take() else { return };
        let (pass, rule) = *pass;
        let took = first_byte.saturating_duration_since(self.began);
        if let Some(change) = guards.breaker.report(pass, now, outcome.ok, took, &rule) {
            self.peer.changed(change, &rule);
        }
    }

    /// It is over, and its answer began at `first_byte`, which tells how fast the peer is.
    pub fn teach(&mut self, first_byte: Instant) {
        if let Some(slot) = self.slot.take() {
            let (slot, rule) = *slot;
            slot.answered(first_byte, &rule);
        }
    }

    /// It became a tunnel, which says nothing about latency and has no answer to wait for.
    pub fn tunnel(&mut self) {
        self.slot = None;
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            let (pass, _) = *pass;
            self.peer.guards().breaker.abandon(pass, Instant::now());
        }
    }
}
