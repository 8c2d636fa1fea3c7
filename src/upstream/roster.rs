//! Which endpoints of a peer are in the choice: what they share (`Roster`), and how each stands (`Standing`).
//!
//! Two things take an endpoint out: ejection, by what became of requests, and health checks. Either is said in one log
//! line when it begins and when it ends, and so is the time in which all are out and the choice is among all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::state::{EjectedState, UnhealthyState};
use crate::ids::{Addr, PeerName};
use crate::plan::health::HealthRule;
use crate::plan::peer::PeerPolicy;
use crate::plan::rules::EjectRule;
use crate::resilience::outlier::{Begun, Cause, Change, Outlier, Seen};
use crate::resilience::ward::Ward;
use crate::telemetry::metrics::{Gauge, PeerMetrics};

/// What the endpoints of a peer share.
pub(super) struct Roster {
    peer: PeerName,
    metrics: Arc<PeerMetrics>,
    /// How the peer is called.
    pub(super) policy: ArcSwap<PeerPolicy>,
    ward: Arc<Ward>,
    /// Whether requests go to endpoints that are out, because all are.
    open: AtomicBool,
    /// How often an endpoint left the choice or came back.
    changes: AtomicU64,
}

impl Roster {
    /// A peer without endpoints.
    pub(super) fn new(peer: PeerName, metrics: Arc<PeerMetrics>, policy: Arc<PeerPolicy>, now: Instant) -> Arc<Self> {
        let (policy, ward, open) = (ArcSwap::new(policy), Ward::new(now), AtomicBool::new(false));
        Arc::new(Self { peer, metrics, policy, ward, open, changes: AtomicU64::new(0) })
    }

    /// So many endpoints take traffic now.
    pub(super) fn set_members(&self, members: usize) {
        self.ward.set_members(u32::try_from(members).unwrap_or(u32::MAX));
    }

    /// Whether all are known to be ejected, which spares a large group a look at each member.
    pub(super) fn all_ejected(&self) -> bool {
        self.ward.all_out()
    }

    /// The part of all endpoints that is in the choice, about: one that is ejected and unhealthy counts twice.
    pub(super) fn left(&self) -> f64 {
        let (all, unhealthy) = (f64::from(self.ward.members()), self.metrics.standing.unhealthy.get().max(0));
        let out = f64::from(self.ward.ejected()) + unhealthy as f64;
        if out < all { 1.0 - out / all } else { 1.0 }
    }

    /// Whether so long a wait without an answer is by far longer than answers of this peer take.
    pub(super) fn is_overdue(&self, now: Instant, waited: Duration) -> bool {
        self.ward.is_overdue(now, waited)
    }

    /// Whether requests go to endpoints that are out.
    pub(super) fn fails_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// How often an endpoint left the choice or came back: what was divided among them is to be divided anew when that
    /// has changed.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// A request goes to an endpoint that is out, because all are that it may go to; `all` if that is all of them.
    #[cold]
    pub(super) fn opened(&self, all: bool) {
        self.metrics.standing.failed_open.inc();
        if all && !self.open.swap(true, Ordering::AcqRel) {
            warn!(peer = %self.peer, "all endpoints are out of the choice: until one is back, requests go to any of them");
        }
    }

    /// A request goes to an endpoint that is in the choice.
    #[cold]
    pub(super) fn closed(&self) {
        if self.open.swap(false, Ordering::AcqRel) {
            info!(peer = %self.peer, "an endpoint is back: requests go only to those in the choice again");
        }
    }
}

/// How an endpoint stands among those of its peer.
pub(super) struct Standing {
    roster: Arc<Roster>,
    outlier: Outlier,
    /// Whether it counts among those that are ejected, in the metric.
    counted: AtomicBool,
    unhealthy: AtomicBool,
    checks: Mutex<Checks>,
}

/// What health checks have found.
#[derive(Default)]
struct Checks {
    passed: u32,
    failed: u32,
    since: Option<Instant>,
    why: String,
}

impl Standing {
    /// An endpoint in good standing.
    pub(super) fn new(roster: Arc<Roster>) -> Self {
        let outlier = Outlier::new(roster.ward.clone());
        let (counted, unhealthy) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { roster, outlier, counted, unhealthy, checks: Mutex::default() }
    }

    /// Whether a pick must pass over it now.
    pub(super) fn is_out(&self, now: Instant) -> bool {
        self.unhealthy.load(Ordering::Relaxed) || self.outlier.is_out(now)
    }

    /// Whether it is ejected and the next request may try it.
    pub(super) fn probe_due(&self, now: Instant) -> bool {
        self.outlier.probe_due(now)
    }

    /// How many requests in a row it has failed.
    pub(super) fn failing(&self) -> u32 {
        self.outlier.failing()
    }

    /// Whether it is neither ejected nor unhealthy.
    pub(super) fn is_well(&self) -> bool {
        !self.unhealthy.load(Ordering::Relaxed) && !self.outlier.is_ejected()
    }

    /// Gives it a request, whether it is out or not. `None` where nothing is to be learned from it: ejection is off, or
    /// there is no other endpoint to choose.
    pub(super) fn begin(&self, now: Instant) -> Option<Begun> {
        if self.roster.ward.members() < 2 && !self.outlier.is_ejected() {
            return None;
        }
        let policy = self.roster.policy.load();
        policy.rules.eject.as_ref().map(|rule| self.outlier.begin_open(now, rule))
    }

    /// As [`Standing::begin`] for one that was found not to be out; an error where another request was quicker to try it.
    pub(super) fn claim(&self, now: Instant, rule: Option<&EjectRule>) -> Result<Option<Begun>, Taken> {
        match rule {
            Some(rule) if self.roster.ward.members() >= 2 || self.outlier.is_ejected() => {
                self.outlier.begin(now, rule).map(Some).ok_or(Taken)
            }
            _ => Ok(None),
        }
    }

    /// See [`Roster::is_overdue`].
    pub(super) fn is_overdue(&self, now: Instant, waited: Duration) -> bool {
        self.roster.is_overdue(now, waited)
    }

    /// The rule has changed.
    pub(super) fn hurry(&self, now: Instant, rule: &EjectRule) {
        self.outlier.hurry(now, rule);
    }

    /// Nothing was learned.
    pub(super) fn abandon(&self, begun: Begun) {
        // Only a probe has something to give back, and only that is worth reading the clock.
        if begun.is_probe() {
            self.outlier.abandon(begun, Instant::now());
        }
    }

    /// What became of a request at `addr`, `took` after it began.
    pub(super) fn report(&self, addr: &Addr, begun: Begun, now: Instant, seen: Seen, took: Duration) {
        let policy = self.roster.policy.load();
        let Some(rule) = &policy.rules.eject else { return };
        if let Some(change) = self.outlier.report(begun, now, seen, took, rule, fastrand::u64(..)) {
            self.changed(addr, change);
            // Ejection was turned off meanwhile, perhaps after the others were pardoned: nobody would try it.
            if self.roster.policy.load().rules.eject.is_none() {
                self.pardon();
            }
        }
    }

    /// It takes traffic from now on, or none any more.
    pub(super) fn set_member(&self, takes: bool) {
        if takes {
            self.outlier.rejoin();
        } else {
            self.outlier.retire();
            self.count();
        }
    }

    /// Ejection was turned off.
    pub(super) fn pardon(&self) {
        self.outlier.retire();
        self.outlier.rejoin();
        self.count();
    }

    /// What a health check found, or why it failed.
    pub(super) fn checked(&self, addr: &Addr, now: Instant, found: Result<(), String>, rule: &HealthRule) {
        let (peer, metrics) = (&self.roster.peer, &self.roster.metrics.standing);
        let mut checks = self.checks.lock();
        // Asked under the lock: checks were turned off while this one was under way, and no other would follow.
        if self.roster.policy.load().health.is_none() {
            return;
        }
        match found {
            Ok(()) => {
                metrics.checks_passed.inc();
                (checks.passed, checks.failed) = (checks.passed.saturating_add(1), 0);
                if checks.passed >= rule.healthy && self.set_unhealthy(false) {
                    let after = checks.since.take().map(|since| now.saturating_duration_since(since));
                    let after = after.unwrap_or_default();
                    info!(%peer, endpoint = %addr, "endpoint is healthy again after {after:.1?}");
                }
            }
            Err(why) => {
                metrics.checks_failed.inc();
                (checks.passed, checks.failed) = (0, checks.failed.saturating_add(1));
                if checks.failed >= rule.unhealthy && self.set_unhealthy(true) {
                    checks.since = Some(now);
                    warn!(%peer, endpoint = %addr, "endpoint is unhealthy after {} failed checks: {why}", checks.failed);
                }
                checks.why = why;
            }
        }
    }

    /// Health checks were turned off: what they found no longer counts.
    pub(super) fn unchecked(&self) {
        let mut checks = self.checks.lock();
        *checks = Checks::default();
        self.set_unhealthy(false);
    }

    /// How it is ejected, for `/state`.
    pub(super) fn ejected(&self, now: Instant) -> Option<EjectedState> {
        let out = self.outlier.out(now)?;
        Some(EjectedState {
            why: out.cause.word(),
            seconds: now.saturating_duration_since(out.since).as_secs(),
            next_probe_ms: u64::try_from(out.probe_in.as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// How it is unhealthy, for `/state`.
    pub(super) fn unhealthy(&self, now: Instant) -> Option<UnhealthyState> {
        let checks = self.checks.lock();
        let since = checks.since?;
        Some(UnhealthyState { why: checks.why.clone(), seconds: now.saturating_duration_since(since).as_secs() })
    }

    #[cold]
    fn changed(&self, addr: &Addr, change: Change) {
        let (peer, metrics) = (&self.roster.peer, &self.roster.metrics.standing);
        match change {
            Change::Ejected { cause, pause } => {
                if let Some(cell) = metrics.ejections.get(cause.index()) {
                    cell.inc();
                }
                self.count();
                let (cause, why) = (cause.word(), words(cause));
                warn!(%peer, endpoint = %addr, cause, "endpoint is ejected: {why}; a request tries it again in {pause:.1?}");
            }
            Change::Spared { cause } => {
                metrics.spared.inc();
                debug!(%peer, endpoint = %addr, cause = cause.word(), "endpoint stays: `eject.most` are out already");
            }
            Change::ProbeFailed { pause } => {
                debug!(%peer, endpoint = %addr, "endpoint stays ejected; a request tries it again in {pause:.1?}");
            }
            Change::Returned { after } => {
                self.count();
                info!(%peer, endpoint = %addr, "endpoint is back after {after:.1?}");
            }
        }
    }

    /// Counts it as it is. Who ejects it and who brings it back may come here in the wrong order: the last one sees how
    /// it ended.
    fn count(&self) {
        loop {
            let ejected = self.outlier.is_ejected();
            self.turn(&self.counted, ejected, &self.roster.metrics.standing.ejected);
            if self.outlier.is_ejected() == ejected {
                return;
            }
        }
    }

    /// Whether that changed something.
    fn set_unhealthy(&self, unhealthy: bool) -> bool {
        self.turn(&self.unhealthy, unhealthy, &self.roster.metrics.standing.unhealthy)
    }

    /// Turns a flag that a gauge counts; whether it was the other way before.
    fn turn(&self, flag: &AtomicBool, on: bool, gauge: &Gauge) -> bool {
        let turned = flag.swap(on, Ordering::AcqRel) != on;
        if turned {
            gauge.add(if on { 1 } else { -1 });
            // After the flag: whoever sees the new count sees what it counts.
            self.roster.changes.fetch_add(1, Ordering::AcqRel);
        }
        turned
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.outlier.retire();
        self.count();
        self.set_unhealthy(false);
    }
}

/// Another request was quicker to try an ejected endpoint.
#[derive(Debug)]
pub(super) struct Taken;

fn words(cause: Cause) -> &'static str {
    match cause {
        Cause::ServerErrors => "too many 5xx answers in a row",
        Cause::GatewayErrors => "too many 502, 503 or 504 answers in a row",
        Cause::LocalFailures => "too many requests in a row without an answer",
        Cause::FailureShare => "it fails clearly more often than the others",
        Cause::Latency => "it is clearly slower than the others",
    }
}
