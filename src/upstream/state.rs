//! What `/state` shows of the peers, as values to be serialized.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::time::Instant;

use super::endpoint::LastError;
use super::peer::{Discovery, Peer};
use super::pool::Counts;
use super::roster::Standing;
use crate::plan::door::Protocol;
use crate::plan::peer::{Addresses, EndpointSpec, PeerKind};
use crate::plan::rules::LimitsRule;
use crate::resilience::limit::{Limited, Limits};
use crate::resilience::load::Load;

/// A peer as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct PeerState {
    /// Its name.
    pub name: String,
    /// `app`, `named` or `adhoc`.
    pub kind: &'static str,
    /// Where its endpoints come from, in words.
    pub source: String,
    /// What is spoken to it.
    pub protocol: &'static str,
    /// Whether TLS is spoken to it.
    pub tls: bool,
    /// How an endpoint is chosen.
    pub balance: &'static str,
    /// `closed`, `open` or `half-open`; absent where it has no breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<&'static str>,
    /// Its limits, each with what is used of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<&'static str, LimitState>,
    /// Where discovery stands.
    pub discovery: DiscoveryState,
    /// Whether all its endpoints are out, so that requests go to any of them.
    pub fails_open: bool,
    /// Its endpoints.
    pub endpoints: Vec<EndpointState>,
}

/// A limit as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct LimitState {
    /// What is used.
    pub used: u32,
    /// Its value.
    pub limit: u32,
}

/// Where discovery stands.
#[derive(Debug, Clone, Serialize)]
pub struct DiscoveryState {
    /// `pending`, `ready`, `stale`, `empty` or `failed`.
    pub state: &'static str,
    /// What failed last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// For how many seconds the endpoints have been those of an earlier answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_for_seconds: Option<u64>,
}

/// An endpoint as it is now.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointState {
    /// Where it is.
    pub address: String,
    /// Share of the traffic relative to the others.
    pub weight: u32,
    /// SRV priority.
    pub priority: u16,
    /// Where it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The identity it must prove.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Free facts about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Arc<BTreeMap<String, String>>>,
    /// Its limits, each with what is used of it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<&'static str, LimitState>,
    /// Exchanges under way.
    pub in_flight: u32,
    /// The moving average of the time to an answer; absent without a sample.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<f64>,
    /// How it is ejected, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejected: Option<EjectedState>,
    /// How it is unhealthy, where health checks say so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy: Option<UnhealthyState>,
    /// Its connections.
    pub pool: Counts,
    /// The last failure to connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How many seconds ago that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error_seconds_ago: Option<u64>,
}

/// An endpoint that is out of the choice by what became of requests.
#[derive(Debug, Clone, Serialize)]
pub struct EjectedState {
    /// The cause, by its word in the metric.
    pub why: &'static str,
    /// For how long.
    pub seconds: u64,
    /// Until a request may try it; 0 where the next one does.
    pub next_probe_ms: u64,
}

/// An endpoint that is out of the choice by health checks.
#[derive(Debug, Clone, Serialize)]
pub struct UnhealthyState {
    /// What the last failed check found.
    pub why: String,
    /// For how long.
    pub seconds: u64,
}

impl PeerState {
    pub(super) fn new(peer: &Peer, now: Instant) -> Self {
        let (policy, guards) = (peer.policy(), peer.guards());
        let mut limits = limits(&guards.limits, &policy.rules.limits);
        if let Some(rule) = &policy.rules.concurrency {
            let limit = guards.adaptive.limit().unwrap_or(rule.start);
            limits.insert("adaptive", LimitState { used: guards.adaptive.in_flight(), limit });
        }
        Self {
            name: peer.name().to_string(),
            kind: match peer.kind() {
                PeerKind::App => "app",
                PeerKind::Named => "named",
                PeerKind::Adhoc => "adhoc",
            },
            source: source(&peer.source().addresses),
            protocol: match peer.source().protocol {
                Protocol::Auto => "auto",
                Protocol::Http1 => "http1",
                Protocol::Http2 => "http2",
                Protocol::Tcp => "tcp",
            },
            tls: peer.source().tls.is_some(),
            balance: policy.balance.word(),
            breaker: policy.rules.breaker.map(|_| guards.breaker.state().word()),
            limits,
            discovery: DiscoveryState::new(peer.discovery()),
            fails_open: peer.fails_open(),
            endpoints: peer.endpoints().all().iter().map(|endpoint| endpoint.state(now)).collect(),
        }
    }
}

impl DiscoveryState {
    fn new(discovery: Discovery) -> Self {
        let (state, why, since) = match discovery {
            Discovery::Pending => ("pending", None, None),
            Discovery::Ready => ("ready", None, None),
            Discovery::Stale { why, since } => ("stale", Some(why), Some(since)),
            Discovery::Empty { why } => ("empty", Some(why), None),
            Discovery::Failed { why } => ("failed", Some(why), None),
        };
        Self { state, why, stale_for_seconds: since.map(seconds_ago) }
    }
}

impl EndpointState {
    pub(super) fn new(
        spec: &EndpointSpec,
        (load, standing): (&Load, &Standing),
        pool: Counts,
        error: Option<LastError>,
        now: Instant,
    ) -> Self {
        let (what, when) = error.map(|error| (error.what, error.when)).unzip();
        Self {
            address: spec.addr.to_string(),
            weight: spec.weight,
            priority: spec.priority,
            zone: spec.zone.as_deref().map(str::to_owned),
            identity: spec.identity.as_ref().map(ToString::to_string),
            metadata: spec.metadata.clone(),
            limits: BTreeMap::new(),
            in_flight: load.in_flight(),
            latency_ms: load.latency(now).map(milliseconds),
            ejected: standing.ejected(now),
            unhealthy: standing.unhealthy(now),
            pool,
            last_error: what,
            last_error_seconds_ago: when.map(seconds_ago),
        }
    }
}

/// Every limit that has a value.
pub(super) fn limits(used: &Limits, rule: &LimitsRule) -> BTreeMap<&'static str, LimitState> {
    let state = |what: Limited| Some((what.word(), LimitState { used: used.of(what).used(), limit: what.of(rule)? }));
    Limited::ALL.into_iter().filter_map(state).collect()
}

fn source(addresses: &Addresses) -> String {
    match addresses {
        Addresses::Static(_) => "static".into(),
        Addresses::Dns { host, port } => format!("dns {host}:{port}"),
        Addresses::Srv { name } => format!("srv {name}"),
        Addresses::File { path } => format!("file {}", path.display()),
    }
}

/// To the microsecond.
fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

fn seconds_ago(when: SystemTime) -> u64 {
    SystemTime::now().duration_since(when).unwrap_or_default().as_secs()
}
