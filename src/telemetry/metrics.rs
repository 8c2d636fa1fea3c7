//! Counters that the request path touches: plain relaxed atomics, found once and then held, never looked up by label.
//!
//! Label values come only from configured names and closed lists, so the number of series is bounded by the file.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::plaintext::Plaintext;
use crate::ids::{Door, PeerName};
use crate::reason::Reason;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets it.
    pub fn set(&self, n: i64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Upper bounds of the latency buckets in microseconds; roughly half a decade each, from 0.5 ms to 60 s.
pub const BOUNDS_MICROS: [u64; 15] = [
    500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000,
    20_000_000, 60_000_000,
];

/// Durations counted in fixed buckets; the last cell takes what is above every bound.
#[derive(Debug, Default)]
pub struct Histogram {
    cells: [Counter; BOUNDS_MICROS.len() + 1],
    sum_micros: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, value: Duration) {
        let micros = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
        let at = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        if let Some(cell) = self.cells.get(at) {
            cell.inc();
        }
        self.sum_micros.add(micros);
    }

    /// The count of each bucket (not cumulative), the last being above every bound.
    pub fn counts(&self) -> [u64; BOUNDS_MICROS.len() + 1] {
        std::array::from_fn(|at| self.cells.get(at).map_or(0, Counter::get))
    }

    /// The sum of all durations.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_micros.get())
    }
}

/// A counter per [`Reason`].
#[derive(Debug)]
pub struct Reasons(Box<[Counter]>);

impl Default for Reasons {
    fn default() -> Self {
        Self(Reason::ALL.iter().map(|_| Counter::default()).collect())
    }
}

impl Reasons {
    /// Counts one.
    pub fn inc(&self, reason: Reason) {
        if let Some(cell) = self.0.get(reason.index()) {
            cell.inc();
        }
    }

    /// How often `reason` was counted.
    pub fn get(&self, reason: Reason) -> u64 {
        self.0.get(reason.index()).map_or(0, Counter::get)
    }
}

/// The words of the limits that refusals are counted by; the last is the one that follows the latency.
pub const LIMITS: [&str; 6] = ["connections", "connecting", "in-flight", "pending", "retries", "adaptive"];

/// What requests are worth under a limit, as label values; in the order of `plan::rules::Priority`.
pub const PRIORITIES: [&str; 3] = ["low", "normal", "high"];

/// What is counted per door.
#[derive(Debug, Default)]
pub struct DoorMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open now.
    pub open: Gauge,
    /// Connections closed at once because the door was full.
    pub refused: Counter,
    /// Accept calls that failed.
    pub accept_errors: Counter,
    /// Requests and connections that failed before a peer was known.
    pub reasons: Reasons,
    /// Connections in plaintext that were served where mutual TLS is asked for and not demanded.
    pub plaintext: Counter,
    /// Connections closed because what their other end had proven held no longer, by why.
    pub distrusted: Reasons,
    /// Requests and connections that the rules of the service would have kept out, where they are only audited.
    pub would_deny: Counter,
    /// Requests refused by a limit of the door, of a route or of a peer, by [`PRIORITIES`].
    pub shed: [Counter; PRIORITIES.len()],
    /// Informational answers (103) that could not be passed on, because the caller's leg is HTTP/1.
    pub informational_dropped: Counter,
}

/// Why an endpoint is ejected, as label values; in the order of `resilience::outlier::Cause`.
pub const CAUSES: [&str; 5] = ["server_errors", "gateway_errors", "local_failures", "failure_share", "latency"];

/// What is counted of which endpoints are in the choice.
#[derive(Debug, Default)]
pub struct StandingMetrics {
    /// Endpoints ejected, by [`CAUSES`].
    pub ejections: [Counter; CAUSES.len()],
    /// Ejections that did not happen because as many as allowed were out.
    pub spared: Counter,
    /// Endpoints ejected now.
    pub ejected: Gauge,
    /// Attempts given to endpoints that are out, because all were.
    pub failed_open: Counter,
    /// Health checks that were passed.
    pub checks_passed: Counter,
    /// Health checks that were not.
    pub checks_failed: Counter,
    /// Endpoints that health checks have found unhealthy.
    pub unhealthy: Gauge,
}

/// What is counted per peer; the app is a peer too.
#[derive(Debug, Default)]
pub struct PeerMetrics {
    /// Exchanges ended, by the hundreds digit of the status; cell 0 is those without an answer.
    pub answers: [Counter; 6],
    /// Exchanges and tunnels that failed, by reason.
    pub reasons: Reasons,
    /// From the request's head to the answer's head.
    pub latency: Histogram,
    /// Exchanges under way.
    pub in_flight: Gauge,
    /// Attempts sent, first ones and repeated ones.
    pub attempts: Counter,
    /// Attempts repeated on another connection because a reused one was already dead.
    pub reconnects: Counter,
    /// Further attempts after a failed one.
    pub retries: Counter,
    /// Failed attempts that were worth another one, which something forbade.
    pub retries_skipped: Counter,
    /// Attempts sent beside one that was still unanswered.
    pub hedges: Counter,
    /// Of these, the ones that were answered first.
    pub hedges_won: Counter,
    /// Attempts slow enough for another one beside them, which something forbade.
    pub hedges_skipped: Counter,
    /// Exchanges that turned to the fallback of this peer.
    pub fallbacks: Counter,
    /// Copies of requests sent to this peer.
    pub mirrored: Counter,
    /// Copies that were not sent, because too many were under way or their body was too large or broke off.
    pub mirror_dropped: Counter,
    /// Connections opened.
    pub connects: Counter,
    /// Connections that could not be opened.
    pub connect_failures: Counter,
    /// Connections open now.
    pub connections: Gauge,
    /// Requests waiting for a connection.
    pub waiting: Gauge,
    /// Tunnels opened (opaque TCP, CONNECT, upgrades).
    pub tunnels: Counter,
    /// Bytes from callers to the peer.
    pub sent_bytes: Counter,
    /// Bytes from the peer to callers.
    pub received_bytes: Counter,
    /// Requests refused by a limit, by [`LIMITS`].
    pub limited: [Counter; LIMITS.len()],
    /// 1 while the breaker is open, else 0.
    pub breaker_open: Gauge,
    /// Times the breaker opened.
    pub breaker_opened: Counter,
    /// Times the breaker closed.
    pub breaker_closed: Counter,
    /// Endpoints known now.
    pub endpoints: Gauge,
    /// Which of them are in the choice.
    pub standing: StandingMetrics,
    /// Discovery answers that failed and left the last good ones in force.
    pub discovery_failures: Counter,
}

/// How a question at the DNS door ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsAnswer {
    /// Our own answer: a peer's host, or a name that no server is asked for.
    Own,
    /// An earlier answer that still holds.
    Cached,
    /// A server's answer.
    Forwarded,
    /// An earlier answer, because the servers fail.
    Stale,
    /// No server answered.
    Failed,
    /// Malformed, or not what this door is for.
    Refused,
    /// Too many questions were under way.
    Overloaded,
}

/// The words of [`DnsAnswer`], in its order.
pub const DNS_ANSWERS: [&str; 7] = ["own", "cached", "forwarded", "stale", "failed", "refused", "overloaded"];

/// What is counted at the DNS door.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    answers: [Counter; DNS_ANSWERS.len()],
    /// Packets that were no question, and answers that could not be sent.
    pub dropped: Counter,
    /// TCP connections open now.
    pub connections: Gauge,
    /// TCP connections closed at once because there were too many.
    pub connections_refused: Counter,
    /// What the kept answers take.
    pub cache_bytes: Gauge,
    /// Addresses that the door listens at.
    pub listeners: Gauge,
}

impl DnsMetrics {
    /// Counts a question that ended this way.
    pub fn answered(&self, how: DnsAnswer) {
        if let Some(cell) = self.answers.get(how as usize) {
            cell.inc();
        }
    }

    /// The counts, in the order of [`DNS_ANSWERS`].
    pub fn all(&self) -> &[Counter] {
        &self.answers
    }
}

/// What is counted of identities that an agent gives.
#[derive(Debug, Default)]
pub struct WorkloadApiMetrics {
    /// Updates that were good, whether they brought anything new or not.
    pub taken: Counter,
    /// Updates that could not be used.
    pub refused: Counter,
    /// Times the agent could not be asked or stopped answering.
    pub failures: Counter,
}

/// Everything that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    inbound: DoorMetrics,
    outbound: DoorMetrics,
    peers: Mutex<BTreeMap<PeerName, Arc<PeerMetrics>>>,
    /// What is counted at the DNS door.
    pub dns: DnsMetrics,
    /// Who came in plaintext where mutual TLS is asked for and not demanded.
    pub plaintext: Plaintext,
    /// Reloads that took effect.
    pub reloads: Counter,
    /// Reloads that were refused.
    pub reload_rejected: Counter,
    /// Control files that were refused.
    pub control_file_rejected: Counter,
    /// Tokens whose signature was verified and that were believed.
    pub tokens_verified: Counter,
    /// Tokens that were believed because they had been verified before.
    pub tokens_known: Counter,
    /// Sets of keys that were read.
    pub jwks_read: Counter,
    /// Sets of keys that could not be read; the last good ones stay.
    pub jwks_failures: Counter,
    /// Identities from the Workload API.
    pub workload_api: WorkloadApiMetrics,
    /// Lines of the access log and of our own log dropped because the output could not keep up.
    pub lines_dropped: Counter,
}

impl Metrics {
    /// The cells of a door.
    pub fn door(&self, side: Door) -> &DoorMetrics {
        match side {
            Door::Inbound => &self.inbound,
            Door::Outbound => &self.outbound,
        }
    }

    /// The cells of a peer, made on first use and kept across reloads. All ad-hoc peers share the name given for them.
    pub fn peer(&self, name: &PeerName) -> Arc<PeerMetrics> {
        self.peers.lock().entry(name.clone()).or_default().clone()
    }

    /// Forgets the cells that nobody counts in any more: those of peers that were removed and have drained.
    pub fn forget_gone(&self) {
        self.peers.lock().retain(|_, cells| Arc::strong_count(cells) > 1);
    }

    /// Every peer's cells, by name.
    pub fn peers(&self) -> Vec<(PeerName, Arc<PeerMetrics>)> {
        self.peers.lock().iter().map(|(name, cells)| (name.clone(), cells.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 500, 501, 60_000_000, 60_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let counts = histogram.counts();
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
        assert_eq!(histogram.sum(), Duration::from_micros(120_001_002));
    }

    #[test]
    fn what_nobody_counts_in_is_forgotten() {
        let metrics = Metrics::default();
        let kept = metrics.peer(&PeerName::new("kept"));
        metrics.peer(&PeerName::new("gone")).attempts.inc();
        kept.attempts.inc();
        metrics.forget_gone();
        let left: Vec<_> =
            metrics.peers().into_iter().map(|(name, cells)| (name.to_string(), cells.attempts.get())).collect();
        assert_eq!(left, [("kept".to_owned(), 1)]);
    }
}
