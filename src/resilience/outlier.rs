//! Ejection: which endpoints are out of the choice for a while, and how they come back.
//!
//! ```text
//!            a cause, and the ward allows it                    probe due, one request claims it
//!   well ──────────────────────────────────────▶ out (paused) ──────────────────────────────────▶ out (probed)
//!    ▲                                             ▲      │                                         │      │
//!    │                                             └──────│──────────── probe failed, pause doubled ┘      │
//!    └────────────────────────────────────────────────────┴── a request begun while it was out succeeded ──┘
//! ```
//!
//! An endpoint is judged by failures in a row (each kind by itself) and by its share of failures and its latency
//! against the other endpoints, with as few as two of them and a handful of requests. It comes back by a live request
//! only: the first is let through after [`EjectRule::probe_after`], one at a time. When all are out the choice is
//! among all (the caller's doing, see [`Ward::all_out`]); then every success brings its endpoint back at once, and
//! pardons the others: each may be probed at once, lest the one that came back first carries everything alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::backoff::part;
use super::ward::{Tally, Ward};
use crate::plan::rules::EjectRule;
use crate::reason::Reason;

/// The doubling ends here even if the rule's longest pause does not end it.
const MOST_DOUBLINGS: u32 = 16;

/// No nanosecond of a ward's clock.
const NEVER: u64 = u64::MAX;

/// What an attempt says about its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It answered, and not with a failure of its own.
    Well,
    /// It answered 500 to 599 other than below, or a gRPC code that means the same.
    ServerError,
    /// It answered 502, 503 or 504, or UNAVAILABLE.
    GatewayError,
    /// It did not answer: no connection, a reset, no answer in the time that an attempt is given.
    LocalFailure,
    /// It did not answer in the time that its caller gave it, be that a short one. It counts in the share, which is
    /// judged against the others, and in a row only where it was overdue: see [`Ward::is_overdue`].
    Late,
}

impl Seen {
    /// What an answer says; `grpc` is its `grpc-status`, once known.
    pub fn answer(status: StatusCode, grpc: Option<u32>) -> Self {
        match (status.as_u16(), grpc) {
            (502..=504, _) | (_, Some(14)) => Self::GatewayError,
            // UNKNOWN is what a handler's crash becomes; INTERNAL and DATA_LOSS are the server's by definition.
            (500..=599, _) | (_, Some(2 | 13 | 15)) => Self::ServerError,
            _ => Self::Well,
        }
    }

    /// What a missing answer says; `None` where the reason lies elsewhere and the attempt is to be abandoned.
    pub fn failure(reason: Reason) -> Option<Self> {
        match reason {
            Reason::ConnectRefused
            | Reason::ConnectFailed
            | Reason::ConnectTimeout
            | Reason::Reset
            | Reason::BadResponse
            | Reason::ResponseIncomplete
            | Reason::ResponseTimeout
            | Reason::AttemptTimeout => Some(Self::LocalFailure),
            Reason::DeadlinePassed => Some(Self::Late),
            tls if tls.is_tls_with_peer() => Some(Self::LocalFailure),
            _ => None,
        }
    }
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cause {
    /// 5xx in a row.
    ServerErrors,
    /// 502, 503, 504 in a row.
    GatewayErrors,
    /// Failures without an answer in a row.
    LocalFailures,
    /// Its share of failures.
    FailureShare,
    /// Its latency.
    Latency,
}

impl Cause {
    /// Every cause, in the order of [`Cause::index`].
    pub const ALL: [Self; 5] =
        [Self::ServerErrors, Self::GatewayErrors, Self::LocalFailures, Self::FailureShare, Self::Latency];

    /// The place in [`Cause::ALL`], for arrays with a cell per cause.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The word in logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::ServerErrors => "server_errors",
            Self::GatewayErrors => "gateway_errors",
            Self::LocalFailures => "local_failures",
            Self::FailureShare => "failure_share",
            Self::Latency => "latency",
        }
    }
}

/// An endpoint that is out, for `/state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub since: Instant,
    /// Until the next probe may go through; zero where it may now.
    pub probe_in: Duration,
}

/// What a report changed; for log and metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is out.
    Ejected {
        /// Why.
        cause: Cause,
        /// Until its first probe.
        pause: Duration,
    },
    /// It would be out, but as many as allowed are out already.
    Spared {
        /// Why it would be.
        cause: Cause,
    },
    /// Its probe failed; it stays out.
    ProbeFailed {
        /// Until the next probe.
        pause: Duration,
    },
    /// It is back.
    Returned {
        /// How long it was out.
        after: Duration,
    },
}

/// The standing of one endpoint.
#[derive(Debug)]
pub struct Outlier {
    ward: Arc<Ward>,
    tally: Tally,
    /// In a row: 5xx, gateway errors, local failures.
    server: AtomicU32,
    gateway: AtomicU32,
    local: AtomicU32,
    /// 0: in the choice. Else the nanosecond from which on a probe may be claimed; a claim moves it on, so that a
    /// probe that is never heard of again is followed by another.
    gate: AtomicU64,
    /// The nanosecond from which on a probe may be claimed while half of the endpoints are out; [`NEVER`] while there is
    /// one.
    early: AtomicU64,
    /// The nanosecond of its last return; what was begun before it tells of the time before.
    back: AtomicU64,
    /// The ward's pardons as far as they were used or do not apply.
    pardons: AtomicU32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    out_since: Option<Instant>,
    /// Why it is out, or was last.
    cause: Option<Cause>,
    back_since: Option<Instant>,
    /// How often the pause is doubled.
    doublings: u32,
    retired: bool,
}

/// A request that was given to an endpoint; it is to be reported or abandoned.
#[derive(Debug)]
#[must_use = "an endpoint learns from what became of its requests"]
pub struct Begun {
    at: Instant,
    /// What the gate was moved to, if this is its probe; else 0.
    claim: u64,
}

impl Begun {
    /// Whether it is the one request that tries an ejected endpoint.
    pub fn is_probe(&self) -> bool {
        self.claim != 0
    }
}

impl Outlier {
    /// An endpoint in good standing.
    pub fn new(ward: Arc<Ward>) -> Self {
        Self {
            ward,
            tally: Tally::default(),
            server: AtomicU32::new(0),
            gateway: AtomicU32::new(0),
            local: AtomicU32::new(0),
            gate: AtomicU64::new(0),
            early: AtomicU64::new(NEVER),
            back: AtomicU64::new(0),
            pardons: AtomicU32::new(0),
            inner: Mutex::default(),
        }
    }

    /// Whether a pick must pass over it now.
    pub fn is_out(&self, now: Instant) -> bool {
        let gate = self.gate.load(Ordering::Acquire);
        gate != 0 && !self.is_due(self.ward.nanos(now), gate)
    }

    /// Whether it is out and the next request may probe it. A pick should take such an endpoint for free (cost 0),
    /// as its load still tells of its failures, and preferably for a request that could be retried.
    pub fn probe_due(&self, now: Instant) -> bool {
        let gate = self.gate.load(Ordering::Acquire);
        gate != 0 && self.is_due(self.ward.nanos(now), gate)
    }

    /// How many requests in a row it has failed, as 5xx or without an answer.
    pub fn failing(&self) -> u32 {
        self.server.load(Ordering::Acquire).max(self.local.load(Ordering::Acquire))
    }

    /// Since when it is out; for `/state`.
    pub fn out_since(&self) -> Option<Instant> {
        self.inner.lock().out_since
    }

    /// Whether it is out, a probe being due or not.
    pub fn is_ejected(&self) -> bool {
        self.gate.load(Ordering::Acquire) != 0
    }

    /// How it is out; `None` where it is not.
    pub fn out(&self, now: Instant) -> Option<Out> {
        let inner = self.inner.lock();
        let (since, cause) = (inner.out_since?, inner.cause?);
        let (nanos, gate) = (self.ward.nanos(now), self.gate.load(Ordering::Acquire));
        let due = if self.ward.half_out() { gate.min(self.early.load(Ordering::Acquire)) } else { gate };
        let probe_in = if self.pardoned() { 0 } else { due.saturating_sub(nanos) };
        let probe_in = Duration::from_nanos(probe_in);
        Some(Out { cause, since, probe_in })
    }

    /// Gives it a request; `None` if it is out and no probe is due, or another request was quicker to claim it.
    pub fn begin(&self, now: Instant, rule: &EjectRule) -> Option<Begun> {
        let gate = self.gate.load(Ordering::Acquire);
        if gate == 0 {
            return Some(Begun { at: now, claim: 0 });
        }
        let nanos = self.ward.nanos(now);
        if nanos < gate && !self.use_early(nanos) && !self.use_pardon() {
            return None;
        }
        let claim = nanos.saturating_add(rule.longest.as_nanos() as u64).max(gate.saturating_add(1));
        self.gate.compare_exchange(gate, claim, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.early.store(NEVER, Ordering::Release);
        Some(Begun { at: now, claim })
    }

    /// Gives it a request whether it is out or not, because all are out.
    pub fn begin_open(&self, now: Instant, rule: &EjectRule) -> Begun {
        self.begin(now, rule).unwrap_or(Begun { at: now, claim: 0 })
    }

    /// Nothing was learned (the caller went away, a limit refused the request): the next one may probe instead.
    pub fn abandon(&self, begun: Begun, now: Instant) {
        if begun.claim != 0 {
            let due = self.ward.nanos(now).max(1);
            let _ = self.gate.compare_exchange(begun.claim, due, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// What became of a request. `took` is the time to the answer's head; `roll` is any random number.
    pub fn report(
        &self,
        begun: Begun,
        now: Instant,
        seen: Seen,
        took: Duration,
        rule: &EjectRule,
        roll: u64,
    ) -> Option<Change> {
        let overdue = seen == Seen::Late && self.ward.is_overdue(now, took);
        let seen = if overdue { Seen::LocalFailure } else { seen };
        if self.gate.load(Ordering::Acquire) != 0 {
            return self.tried(&begun, now, seen, rule, roll);
        }
        let back = self.back.load(Ordering::Acquire);
        if back != 0 && self.ward.nanos(begun.at) < back {
            return None;
        }
        self.ward.count(&self.tally, now, seen, took, rule);
        let cause = self.cause(now, seen, rule)?;
        self.eject(now, cause, rule, roll)
    }

    /// It is no longer among the peer's endpoints: it neither counts as out nor can be ejected any more.
    pub fn retire(&self) {
        let mut inner = self.inner.lock();
        inner.retired = true;
        if inner.out_since.take().is_some() {
            self.gate.store(0, Ordering::Release);
            self.ward.leave();
        }
    }

    /// The endpoint is among the peer's again (discovery flapped), in good standing.
    pub fn rejoin(&self) {
        self.inner.lock().retired = false;
    }

    fn is_due(&self, nanos: u64, gate: u64) -> bool {
        nanos >= gate || self.is_early(nanos) || self.pardoned()
    }

    fn is_early(&self, nanos: u64) -> bool {
        nanos >= self.early.load(Ordering::Acquire) && self.ward.half_out()
    }

    /// Whether so many are out that it may be tried before its time, and nobody does yet.
    fn use_early(&self, nanos: u64) -> bool {
        self.is_early(nanos) && self.early.swap(NEVER, Ordering::AcqRel) != NEVER
    }

    fn pardoned(&self) -> bool {
        self.pardons.load(Ordering::Acquire) != self.ward.pardons()
    }

    /// Whether there is a pardon that nobody has used yet.
    fn use_pardon(&self) -> bool {
        let (own, all) = (self.pardons.load(Ordering::Acquire), self.ward.pardons());
        own != all && self.pardons.compare_exchange(own, all, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Keeps the three rows and says what speaks against the endpoint now.
    fn cause(&self, now: Instant, seen: Seen, rule: &EjectRule) -> Option<Cause> {
        let longer = |row: &AtomicU32| row.fetch_add(1, Ordering::AcqRel).saturating_add(1);
        let reached = |row: u32, most: Option<u32>| most.is_some_and(|most| row >= most.max(1));
        match seen {
            Seen::Well => {
                ended(&[&self.server, &self.gateway, &self.local]);
                return rule
                    .latency
                    .filter(|latency| self.ward.slower(&self.tally, now, latency, rule.volume))
                    .map(|_| Cause::Latency);
            }
            Seen::LocalFailure if reached(longer(&self.local), rule.local_failures) => {
                return Some(Cause::LocalFailures);
            }
            Seen::LocalFailure | Seen::Late => {}
            Seen::ServerError => {
                ended(&[&self.gateway, &self.local]);
                if reached(longer(&self.server), rule.server_errors) {
                    return Some(Cause::ServerErrors);
                }
            }
            Seen::GatewayError => {
                ended(&[&self.local]);
                let (server, gateway) = (longer(&self.server), longer(&self.gateway));
                if reached(gateway, rule.gateway_errors) {
                    return Some(Cause::GatewayErrors);
                }
                if reached(server, rule.server_errors) {
                    return Some(Cause::ServerErrors);
                }
            }
        }
        rule.failure_share
            .filter(|share| self.ward.worse(&self.tally, now, *share, rule.volume))
            .map(|_| Cause::FailureShare)
    }

    fn eject(&self, now: Instant, cause: Cause, rule: &EjectRule, roll: u64) -> Option<Change> {
        let mut inner = self.inner.lock();
        if inner.retired || inner.out_since.is_some() {
            return None;
        }
        ended(&[&self.server, &self.gateway, &self.local]);
        if !self.ward.enter(rule.most) {
            return Some(Change::Spared { cause });
        }
        // Trust is won back one step for each of the longest pauses it stayed well.
        let well = inner.back_since.map_or(Duration::MAX, |back| now.saturating_duration_since(back));
        let steps = well.as_nanos().checked_div(rule.longest.as_nanos()).unwrap_or(u128::MAX);
        inner.doublings = inner.doublings.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX));
        (inner.out_since, inner.cause) = (Some(now), Some(cause));
        self.pardons.store(self.ward.pardons(), Ordering::Release);
        Some(Change::Ejected { cause, pause: self.wait(&mut inner, now, rule, roll) })
    }

    /// A request ended while the endpoint is out.
    fn tried(&self, begun: &Begun, now: Instant, seen: Seen, rule: &EjectRule, roll: u64) -> Option<Change> {
        let mut inner = self.inner.lock();
        let since = inner.out_since?;
        // What was begun before the ejection tells nothing new.
        if seen == Seen::Well && begun.at > since {
            inner.out_since = None;
            inner.back_since = Some(now);
            ended(&[&self.server, &self.gateway, &self.local]);
            self.tally.clear();
            self.back.store(self.ward.nanos(now), Ordering::Release);
            self.gate.store(0, Ordering::Release);
            self.ward.pardon_if_all_out();
            self.ward.leave();
            return Some(Change::Returned { after: now.saturating_duration_since(since) });
        }
        let newest = begun.claim != 0 && begun.claim == self.gate.load(Ordering::Acquire);
        if !newest {
            return None;
        }
        let doublings = inner.doublings;
        let pause = self.wait(&mut inner, now, rule, roll);
        if seen == Seen::Late {
            // Its caller had little patience: another one may have more.
            inner.doublings = doublings;
        }
        Some(Change::ProbeFailed { pause })
    }

    /// The rule has changed: whoever is out longer than it allows is tried sooner.
    pub fn hurry(&self, now: Instant, rule: &EjectRule) {
        let inner = self.inner.lock();
        let longest = rule.longest.max(rule.probe_after);
        let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
        let latest = self.ward.nanos(now).saturating_add(nanos).max(1);
        if inner.out_since.is_some() && self.gate.load(Ordering::Acquire) > latest {
            self.gate.store(latest, Ordering::Release);
        }
    }

    /// Shuts the gate for the next pause: doubled each time, with up to a quarter more so that the probes of several
    /// sidecars fall apart. The longest is shortened when fewer than half are well: then they are needed sooner. And while
    /// half are out, however long the pauses were made before, probes come as often as the traffic can bear.
    fn wait(&self, inner: &mut Inner, now: Instant, rule: &EjectRule, roll: u64) -> Duration {
        let (members, out) = (self.ward.members().max(1), self.ward.ejected());
        let longest = rule.longest.saturating_mul((members.saturating_sub(out) * 2).min(members)) / members;
        let pause = rule.probe_after.saturating_mul(1 << inner.doublings).min(longest.max(rule.probe_after));
        let pause = pause + part(pause / 4, roll);
        inner.doublings = (inner.doublings + 1).min(MOST_DOUBLINGS);
        let after = |pause: Duration| {
            let nanos = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
            self.ward.nanos(now).saturating_add(nanos).max(1)
        };
        let early = (rule.probe_after + part(rule.probe_after / 4, roll)).max(self.ward.bearable(now));
        self.early.store(after(early), Ordering::Release);
        self.gate.store(after(pause), Ordering::Release);
        pause
    }
}

impl Drop for Outlier {
    fn drop(&mut self) {
        self.retire();
    }
}

/// Ends rows; they are mostly zero, and reading is cheaper than writing.
fn ended(rows: &[&AtomicU32]) {
    for row in rows {
        if row.load(Ordering::Acquire) != 0 {
            row.store(0, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::rules::{LatencyRule, Share};

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// Only failures in a row count.
    fn rows() -> EjectRule {
        EjectRule { failure_share: None, ..EjectRule::default() }
    }

    fn group(n: u32, now: Instant) -> (Arc<Ward>, Vec<Outlier>) {
        let ward = Ward::new(now);
        ward.set_members(n);
        let members = (0..n).map(|_| Outlier::new(ward.clone())).collect();
        (ward, members)
    }

    fn tell(one: &Outlier, now: Instant, seen: Seen, rule: &EjectRule) -> Option<Change> {
        one.report(one.begin_open(now, rule), now, seen, ms(1), rule, 0)
    }

    fn ejected(change: Option<Change>) -> Option<Cause> {
        match change {
            Some(Change::Ejected { cause, .. }) => Some(cause),
            _ => None,
        }
    }

    #[test]
    fn each_kind_of_failure_is_counted_by_itself() {
        use Seen::{GatewayError as G, LocalFailure as L, ServerError as S, Well as W};
        let only = |server_errors, gateway_errors, local_failures| EjectRule {
            server_errors,
            gateway_errors,
            local_failures,
            ..rows()
        };
        for (rule, seen, want) in [
            (rows(), &[S, S, S, S][..], None),
            (rows(), &[S, S, S, S, S], Some(Cause::ServerErrors)),
            (rows(), &[G, G, G, G, G], Some(Cause::GatewayErrors)),
            (rows(), &[L, L, L, L, L], Some(Cause::LocalFailures)),
            (rows(), &[S, G, S, G, S], Some(Cause::ServerErrors)),
            (rows(), &[S, S, S, S, W, S, S, S, S], None),
            // An answer, even a bad one, ends the row of those that did not come.
            (rows(), &[L, L, L, L, S, L, L, L, L], None),
            // And a missing answer does not end the row of bad ones.
            (rows(), &[S, S, S, S, L, S], Some(Cause::ServerErrors)),
            (only(None, None, Some(2)), &[S, G, S, G, S, G, L, L], Some(Cause::LocalFailures)),
            (only(None, Some(2), None), &[S, S, L, G, S, G, G], Some(Cause::GatewayErrors)),
            (only(None, None, None), &[S, G, L, S, G, L, S, S, S, S, S, G, G, G, G, G, L, L, L, L, L], None),
            (only(Some(0), None, None), &[S], Some(Cause::ServerErrors)),
        ] {
            let now = Instant::now();
            let (_ward, members) = group(3, now);
            let changes: Vec<_> = seen.iter().map(|one| ejected(tell(&members[0], now, *one, &rule))).collect();
            assert_eq!(*changes.last().unwrap(), want, "{seen:?}");
            assert!(changes[..changes.len() - 1].iter().all(Option::is_none), "{seen:?}: {changes:?}");
        }
    }

    #[test]
    fn answers_and_reasons_are_told_apart() {
        for (status, grpc, want) in [
            (200, None, Seen::Well),
            (404, None, Seen::Well),
            (429, None, Seen::Well),
            (500, None, Seen::ServerError),
            (501, None, Seen::ServerError),
            (502, None, Seen::GatewayError),
            (504, None, Seen::GatewayError),
            (200, Some(0), Seen::Well),
            (200, Some(5), Seen::Well),
            (200, Some(13), Seen::ServerError),
            (200, Some(14), Seen::GatewayError),
        ] {
            assert_eq!(Seen::answer(StatusCode::from_u16(status).unwrap(), grpc), want, "{status} {grpc:?}");
        }
        assert_eq!(Seen::failure(Reason::ConnectRefused), Some(Seen::LocalFailure));
        for reason in [Reason::ClientGone, Reason::Overloaded, Reason::RefusedStream, Reason::BodyTimeout] {
            assert_eq!(Seen::failure(reason), None, "{reason:?}");
        }
    }

    #[test]
    fn two_hosts_and_a_few_requests_are_enough_for_a_share() {
        let rule =
            EjectRule { server_errors: None, gateway_errors: None, local_failures: None, ..EjectRule::default() };
        // (failed, all) of the judged host, then of the other; the last report is a failure.
        for (own, other, want) in [
            ((5, 5), (0, 5), true),
            ((4, 4), (0, 5), false),
            ((3, 10), (0, 50), true),
            ((30, 100), (0, 100), true),
            ((30, 100), (5, 100), true),
            ((30, 100), (25, 100), false),
            ((19, 100), (0, 100), false),
            ((5, 5), (0, 0), false),
            ((10, 10), (0, 0), false),
            ((20, 20), (0, 0), true),
            ((50, 50), (50, 50), false),
        ] {
            let now = Instant::now();
            let (_ward, members) = group(2, now);
            (0..other.1).for_each(|n| {
                tell(&members[1], now, if n < other.0 { Seen::LocalFailure } else { Seen::Well }, &rule);
            });
            // What the other was told of is not under test.
            members[1].inner.lock().retired = true;
            let rest = own.1 - own.0;
            (0..rest).for_each(|_| assert_eq!(tell(&members[0], now, Seen::Well, &rule), None));
            let mut got = None;
            (0..own.0).for_each(|_| got = got.or(ejected(tell(&members[0], now, Seen::ServerError, &rule))));
            assert_eq!(got.is_some(), want, "{own:?} against {other:?}");
        }
    }

    #[test]
    fn a_host_alone_is_not_compared() {
        let now = Instant::now();
        let rule = EjectRule { server_errors: None, ..EjectRule::default() };
        let (ward, members) = group(1, now);
        (0..100).for_each(|_| assert_eq!(tell(&members[0], now, Seen::ServerError, &rule), None));
        assert_eq!(ward.ejected(), 0);
    }

    #[test]
    fn a_slow_host_is_an_outlier_only_where_asked_for() {
        let latency = LatencyRule { times: Share::percent(300), at_least: ms(20) };
        for (rule, own, others, want) in [
            (EjectRule::default(), 1000, 10, None),
            (EjectRule { latency: Some(latency), ..EjectRule::default() }, 40, 10, Some(Cause::Latency)),
            (EjectRule { latency: Some(latency), ..EjectRule::default() }, 20, 10, None),
            (EjectRule { latency: Some(latency), ..EjectRule::default() }, 15, 1, None),
        ] {
            let now = Instant::now();
            let (_ward, members) = group(2, now);
            let told =
                |one: &Outlier, took| one.report(one.begin_open(now, &rule), now, Seen::Well, ms(took), &rule, 0);
            (0..10).for_each(|_| assert_eq!(told(&members[1], others), None));
            let got = (0..10).find_map(|_| ejected(told(&members[0], own)));
            assert_eq!(got, want, "{own} against {others}");
        }
    }

    fn out(one: &Outlier, now: Instant, rule: &EjectRule, roll: u64) -> Duration {
        let last =
            (0..5).filter_map(|_| one.report(one.begin_open(now, rule), now, Seen::LocalFailure, ms(1), rule, roll));
        match last.last() {
            Some(Change::Ejected { pause, .. }) => pause,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn while_half_are_out_probes_come_as_often_as_the_traffic_can_bear() {
        // Answers in ten seconds, how many of four are out, and after how many milliseconds the first may be tried
        // although its pause has grown to eight seconds.
        for (answers, gone, want) in [(2000, 1, 8000), (2000, 2, 1000), (2000, 3, 1000), (400, 2, 2500), (20, 2, 8000)]
        {
            let (mut now, rule) = (Instant::now(), rows());
            let (ward, members) = group(4, now);
            let one = &members[0];
            let mut pause = out(one, now, &rule, 0);
            for _ in 0..3 {
                now += pause;
                let probe = one.begin(now, &rule).unwrap();
                if pause == Duration::from_secs(4) {
                    (0..answers - 10).for_each(|_| assert_eq!(tell(&members[3], now, Seen::Well, &rule), None));
                    members[1..gone].iter().for_each(|other| assert!(out(other, now, &rule, 0) >= ms(1)));
                }
                match one.report(probe, now, Seen::LocalFailure, ms(1), &rule, 0) {
                    Some(Change::ProbeFailed { pause: next }) => pause = next,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(ward.ejected(), gone as u32);
            let due = (0..).find(|n| one.probe_due(now + ms(n * 10))).unwrap() * 10;
            let longest = u64::try_from(pause.as_millis()).unwrap();
            assert!(due.abs_diff(want.min(longest)) <= 150, "{answers} {gone}: {due}");
            // One at a time, as ever.
            let at = now + ms(due);
            assert!(one.out(at).unwrap().probe_in.is_zero());
            let probe = one.begin(at, &rule).unwrap();
            assert!(probe.is_probe() && one.begin(at, &rule).is_none() && one.is_out(at));
            assert!(matches!(one.report(probe, at, Seen::Well, ms(1), &rule, 0), Some(Change::Returned { .. })));
            assert!(!one.is_out(at));
        }
    }

    #[test]
    fn a_probe_goes_through_from_one_second_on_and_failed_ones_double_the_pause() {
        let mut now = Instant::now();
        let rule = rows();
        let (ward, members) = group(3, now);
        let one = &members[0];
        let mut pause = out(one, now, &rule, 0);
        for want in [1, 2, 4, 8, 10, 10] {
            assert_eq!(pause, Duration::from_secs(want));
            assert!(one.is_out(now) && one.begin(now + pause - ms(1), &rule).is_none());
            now += pause;
            assert!(one.probe_due(now) && !one.is_out(now));
            let probe = one.begin(now, &rule).unwrap();
            assert!(probe.is_probe() && one.begin(now, &rule).is_none() && one.is_out(now));
            match one.report(probe, now, Seen::GatewayError, ms(1), &rule, 0) {
                Some(Change::ProbeFailed { pause: next }) => pause = next,
                other => panic!("{other:?}"),
            }
        }
        now += pause;
        let probe = one.begin(now, &rule).unwrap();
        assert!(matches!(one.report(probe, now, Seen::Well, ms(1), &rule, 0), Some(Change::Returned { .. })));
        assert!(!one.is_out(now) && !one.probe_due(now) && ward.ejected() == 0);
        // It has not yet won back any trust; a minute later it has.
        assert_eq!(out(one, now, &rule, 0), Duration::from_secs(10));
        now += Duration::from_secs(10);
        assert!(tell(one, now, Seen::Well, &rule).is_some());
        assert_eq!(out(one, now + Duration::from_secs(100), &rule, 0), Duration::from_secs(1));
    }

    #[test]
    fn how_it_is_out_is_told() {
        let now = Instant::now();
        let (_ward, members) = group(2, now);
        let one = &members[0];
        assert!(one.out(now).is_none() && !one.is_ejected());
        let pause = out(one, now, &rows(), 0);
        let told = |at| one.out(at).map(|out| (out.cause, out.since, out.probe_in));
        assert_eq!(told(now + ms(300)), Some((Cause::LocalFailures, now, pause - ms(300))));
        assert_eq!(told(now + pause * 2), Some((Cause::LocalFailures, now, Duration::ZERO)));
        assert!(one.is_ejected());
        assert!(tell(one, now + pause, Seen::Well, &rows()).is_some());
        assert!(one.out(now + pause).is_none() && !one.is_ejected());
        assert!(Cause::ALL.iter().enumerate().all(|(at, cause)| cause.index() == at));
    }

    #[test]
    fn the_pause_has_jitter_and_never_ends_early() {
        let now = Instant::now();
        for (roll, want) in [(0, 1000), (1 << 63, 1125)] {
            let (_ward, members) = group(2, now);
            assert_eq!(out(&members[0], now, &rows(), roll), ms(want));
        }
    }

    #[test]
    fn a_probe_that_is_given_up_or_never_heard_of_lets_the_next_one_through() {
        let now = Instant::now();
        let rule = rows();
        let (_ward, members) = group(2, now);
        let one = &members[0];
        let due = now + out(one, now, &rule, 0);
        let probe = one.begin(due, &rule).unwrap();
        one.abandon(probe, due);
        let lost = one.begin(due, &rule).unwrap();
        assert!(one.begin(due + rule.longest - ms(1), &rule).is_none());
        let next = one.begin(due + rule.longest, &rule).unwrap();
        // The lost one's failure is no news any more, its success is.
        assert_eq!(one.report(lost, due + rule.longest, Seen::LocalFailure, ms(1), &rule, 0), None);
        assert!(one.report(next, due + rule.longest, Seen::Well, ms(1), &rule, 0).is_some());
    }

    #[test]
    fn a_success_begun_before_the_ejection_does_not_end_it() {
        let now = Instant::now();
        let rule = rows();
        let (_ward, members) = group(2, now);
        let early = members[0].begin(now, &rule).unwrap();
        out(&members[0], now + ms(5), &rule, 0);
        assert_eq!(members[0].report(early, now + ms(9), Seen::Well, ms(9), &rule, 0), None);
        let open = members[0].begin_open(now + ms(10), &rule);
        assert!(!open.is_probe());
        let returned = members[0].report(open, now + ms(11), Seen::Well, ms(1), &rule, 0);
        assert_eq!(returned, Some(Change::Returned { after: ms(6) }));
    }

    #[test]
    fn a_failure_begun_before_the_return_does_not_undo_it() {
        let now = Instant::now();
        let rule = rows();
        let (_ward, members) = group(2, now);
        let one = &members[0];
        let due = now + out(one, now, &rule, 0);
        let mut late: Vec<_> = (0..9).map(|_| one.begin_open(due - ms(1), &rule)).collect();
        assert!(tell(one, due, Seen::Well, &rule).is_some());
        let changes = late
            .drain(..)
            .filter_map(|one_late| one.report(one_late, due + ms(300), Seen::LocalFailure, ms(301), &rule, 0));
        assert_eq!(changes.count(), 0);
        out(one, due + ms(300), &rule, 0);
    }

    #[test]
    fn the_first_that_comes_back_when_all_were_out_pardons_the_others() {
        let now = Instant::now();
        let rule = rows();
        let (ward, members) = group(4, now);
        members.iter().for_each(|one| assert_eq!(out(one, now, &rule, 0), Duration::from_secs(1)));
        assert!(ward.all_out());
        let soon = now + ms(100);
        assert!(members.iter().all(|one| one.is_out(soon) && one.begin(soon, &rule).is_none()));
        assert!(matches!(tell(&members[0], soon, Seen::Well, &rule), Some(Change::Returned { .. })));
        // Each of the others may be probed once, at once; who fails is out for a pause of its own again.
        for one in &members[1..] {
            assert!(one.probe_due(soon) && !one.is_out(soon));
            let probe = one.begin(soon, &rule).unwrap();
            assert!(probe.is_probe() && one.begin(soon, &rule).is_none() && one.is_out(soon));
            let failed = one.report(probe, soon, Seen::LocalFailure, ms(1), &rule, 0);
            assert_eq!(failed, Some(Change::ProbeFailed { pause: Duration::from_secs(2) }));
            assert!(one.is_out(soon + ms(1_999)) && one.probe_due(soon + ms(2_000)));
        }
        // A pardon does not outlast an ejection that came after it.
        assert!(out(&members[0], soon, &rule, 0) >= Duration::from_secs(1));
        assert!(members[0].is_out(soon) && members[0].begin(soon + ms(500), &rule).is_none());
    }

    #[test]
    fn the_fewer_are_well_the_sooner_the_others_are_probed() {
        let rule = rows();
        for (ill, want) in [(1, 8_000), (5, 8_000), (8, 4_000), (9, 2_000), (10, 1_000)] {
            let now = Instant::now();
            let (_ward, members) = group(10, now);
            for one in &members[..ill] {
                one.inner.lock().doublings = 3;
                one.inner.lock().back_since = Some(now);
            }
            let last = members[..ill].iter().map(|one| out(one, now, &rule, 0)).last();
            assert_eq!(last, Some(ms(want)), "{ill} of ten are out");
        }
    }

    #[test]
    fn who_leaves_the_group_makes_room() {
        let now = Instant::now();
        let rule = EjectRule { most: Share::percent(50), ..rows() };
        let (ward, mut members) = group(4, now);
        out(&members[0], now, &rule, 0);
        out(&members[1], now, &rule, 0);
        let spared = (0..5).find_map(|_| tell(&members[2], now, Seen::ServerError, &rule));
        assert_eq!(spared, Some(Change::Spared { cause: Cause::ServerErrors }));
        drop(members.remove(0));
        ward.set_members(3);
        assert_eq!((ward.ejected(), ward.members()), (1, 3));
        members[0].retire();
        members[0].retire();
        assert_eq!(ward.ejected(), 0);
        let _ = (0..9).map(|_| assert_eq!(tell(&members[0], now, Seen::ServerError, &rule), None));
        out(&members[1], now, &rule, 0);
        assert!(!ward.all_out());
        ward.set_members(1);
        assert!(ward.all_out());
    }

    #[test]
    fn threads_eject_exactly_as_many_as_allowed_and_claim_one_probe() {
        let now = Instant::now();
        for (most, want) in [(50, 8), (33, 5), (1, 1), (100, 16)] {
            let rule = EjectRule { most: Share::percent(most), ..rows() };
            let (ward, members) = group(16, now);
            let probes = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (members, probes, ward) = (&members, &probes, &ward);
                    scope.spawn(move || {
                        for turn in 0..400 {
                            tell(&members[(turn * 7 + thread) % 16], now, Seen::LocalFailure, &rule);
                            assert!(ward.ejected() <= want);
                        }
                        let late = now + Duration::from_secs(60);
                        let claimed = members.iter().filter(|one| one.begin(late, &rule).is_some_and(|b| b.is_probe()));
                        probes.fetch_add(claimed.count() as u32, Ordering::Relaxed);
                    });
                }
            });
            assert_eq!(ward.ejected(), want);
            assert!(probes.into_inner() <= want, "a probe was claimed twice");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_count_is_true_and_never_grows_over_what_is_allowed(
            n in 1u32..7, most in 0u32..=100,
            events in prop::collection::vec((0usize..8, 0usize..6, 0u64..1500), 1..400)
        ) {
            let mut now = Instant::now();
            let rule = EjectRule {
                server_errors: Some(2), local_failures: Some(2), most: Share::percent(most), ..EjectRule::default()
            };
            let (ward, members) = group(n, now);
            let mut open: Vec<Vec<Begun>> = (0..n).map(|_| Vec::new()).collect();
            for (at, kind, wait) in events {
                now += ms(wait);
                let at = at % n as usize;
                let one = &members[at];
                let before = ward.ejected();
                match kind {
                    0 => open[at].extend(one.begin(now, &rule)),
                    1 => open[at].push(one.begin_open(now, &rule)),
                    2 => if let Some(begun) = open[at].pop() { one.abandon(begun, now) },
                    kind => {
                        let seen = [Seen::Well, Seen::ServerError, Seen::LocalFailure][kind - 3];
                        let begun = if open[at].is_empty() { one.begin_open(now, &rule) } else { open[at].remove(0) };
                        one.report(begun, now, seen, ms(1), &rule, wait << 50);
                    }
                }
                let out = members.iter().filter(|one| one.out_since().is_some()).count() as u32;
                prop_assert_eq!(ward.ejected(), out);
                prop_assert!(out <= before || out <= (n * most / 100).max(1));
                for one in &members {
                    let gated = one.is_out(now) || one.probe_due(now);
                    prop_assert_eq!(gated, one.out_since().is_some());
                    // A probe is never further away than the longest pause and its jitter, whatever happened.
                    prop_assert!(!one.is_out(now + rule.longest * 5 / 4));
                }
                prop_assert_eq!(ward.all_out(), out == n);
            }
        }
    }
}
