//! What the sidecars tell of themselves, read as any scraper would: `/metrics` for traffic, `/state` for endpoints.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{Method, StatusCode};

use super::load::share;
use super::mesh::Mesh;
use crate::control::admin::client::ask;
use crate::ids::Addr;

/// One question takes no longer.
const CLOCK: Duration = Duration::from_secs(10);

/// What one sidecar has counted of its service's inbound traffic, and why anything failed at either door.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) requests: u64,
    pub(super) failed: u64,
    /// Upper bound in seconds and cumulative count, in rising order.
    pub(super) buckets: Vec<(f64, u64)>,
    /// `reason (side)` and its count.
    pub(super) reasons: BTreeMap<String, u64>,
}

/// An endpoint as the sidecar that calls it sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Endpoint {
    pub(super) caller: &'static str,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) latency_ms: Option<f64>,
    pub(super) in_flight: u64,
    pub(super) connections: u64,
    pub(super) last_error: Option<String>,
}

/// Everything told at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// By instance, in the order of the calls.
    pub(super) counts: Vec<(&'static str, Counts)>,
    pub(super) endpoints: Vec<Endpoint>,
}

impl Told {
    /// What an instance's sidecar has counted; nothing where it was not asked yet.
    pub(super) fn of(&self, name: &str) -> Counts {
        self.counts.iter().find(|(known, _)| *known == name).map(|(_, counts)| counts.clone()).unwrap_or_default()
    }

    /// Asks every sidecar.
    pub(super) async fn ask(mesh: &Mesh) -> Result<Self, String> {
        let mut told = Self::default();
        for instance in &mesh.instances {
            let admin = Addr::Tcp(instance.admin);
            let text = page(&admin, "/metrics").await?;
            told.counts.push((instance.name, Counts::read(&text)));
            let state = serde_json::from_str(&page(&admin, "/state").await?).map_err(|error| error.to_string())?;
            told.endpoints.extend(endpoints(instance.name, &state, |address| mesh.name_of(address)));
        }
        Ok(told)
    }
}

async fn page(admin: &Addr, path: &str) -> Result<String, String> {
    match ask(admin, Method::GET, path, CLOCK).await {
        Ok((StatusCode::OK, body)) => Ok(String::from_utf8_lossy(&body).into_owned()),
        Ok((status, _)) => Err(format!("{admin}{path} answered {}", status.as_u16())),
        Err(error) => Err(error.to_string()),
    }
}

impl Counts {
    fn read(text: &str) -> Self {
        let mut counts = Self::default();
        for line in text.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let value = value.parse::<f64>().unwrap_or(0.0) as u64;
            let inbound = label(labels, "door") == Some("inbound");
            match name {
                "outrigger_requests_total" if inbound => {
                    counts.requests += value;
                    if matches!(label(labels, "status"), Some("5xx" | "none")) {
                        counts.failed += value;
                    }
                }
                "outrigger_request_duration_seconds_bucket" if inbound => {
                    let bound = label(labels, "le").and_then(|le| le.parse().ok()).unwrap_or(f64::INFINITY);
                    counts.buckets.push((bound, value));
                }
                "outrigger_failures_total" => {
                    let word = |key| label(labels, key).unwrap_or("?");
                    *counts.reasons.entry(format!("{} ({})", word("reason"), word("side"))).or_default() += value;
                }
                _ => {}
            }
        }
        counts
    }

    /// What came between `before` and now.
    pub(super) fn since(&self, before: &Self) -> Self {
        let buckets = self.buckets.iter().enumerate().map(|(at, (bound, count))| {
            let earlier = before.buckets.get(at).map_or(0, |(_, count)| *count);
            (*bound, count.saturating_sub(earlier))
        });
        let reasons = self.reasons.iter().filter_map(|(reason, count)| {
            let more = count.saturating_sub(before.reasons.get(reason).copied().unwrap_or(0));
            (more > 0).then(|| (reason.clone(), more))
        });
        Self {
            requests: self.requests.saturating_sub(before.requests),
            failed: self.failed.saturating_sub(before.failed),
            buckets: buckets.collect(),
            reasons: reasons.collect(),
        }
    }

    /// The share of requests without a 5xx, in percent.
    pub(super) fn percent(&self) -> f64 {
        share(self.requests.saturating_sub(self.failed), self.requests)
    }

    /// The duration below which the `part`th of all lies, by a straight line through its bucket.
    pub(super) fn quantile(&self, part: f64) -> Option<Duration> {
        let all = self.buckets.last()?.1;
        if all == 0 {
            return None;
        }
        let wanted = all as f64 * part;
        let (mut lower, mut below) = (0.0, 0);
        for &(upper, count) in &self.buckets {
            if count as f64 >= wanted && count > below {
                let within = (wanted - below as f64) / (count - below) as f64;
                let seconds = if upper.is_finite() { lower + (upper - lower) * within } else { lower };
                return Some(Duration::from_secs_f64(seconds));
            }
            (lower, below) = (upper, count);
        }
        None
    }
}

/// A label's value; the demo's names need no escapes.
fn label<'a>(labels: &'a str, key: &str) -> Option<&'a str> {
    labels.trim_end_matches('}').split(',').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        (name == key).then(|| value.trim_matches('"'))
    })
}

fn endpoints(
    caller: &'static str,
    state: &serde_json::Value,
    name_of: impl Fn(&str) -> Option<&'static str>,
) -> Vec<Endpoint> {
    let peers = state.pointer("/peers").and_then(|peers| peers.as_array()).map_or(&[][..], Vec::as_slice);
    let named = peers.iter().filter(|peer| peer.pointer("/kind").is_some_and(|kind| kind == "named"));
    let all = named.filter_map(|peer| peer.pointer("/endpoints")?.as_array()).flatten();
    let number = |endpoint: &serde_json::Value, at: &str| endpoint.pointer(at).and_then(|n| n.as_u64()).unwrap_or(0);
    let read = |endpoint: &serde_json::Value| {
        let address = endpoint.pointer("/address").and_then(|text| text.as_str()).unwrap_or("?");
        Endpoint {
            caller,
            name: name_of(address).unwrap_or("?").to_owned(),
            address: address.to_owned(),
            latency_ms: endpoint.pointer("/latency_ms").and_then(|n| n.as_f64()),
            in_flight: number(endpoint, "/in_flight"),
            connections: number(endpoint, "/pool/http1") + number(endpoint, "/pool/http2"),
            last_error: endpoint.pointer("/last_error").and_then(|text| text.as_str()).map(str::to_owned),
        }
    };
    all.map(read).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::ids::PeerName;
    use crate::reason::Reason;
    use crate::telemetry::exposition::{Facts, Process, render};
    use crate::telemetry::metrics::Metrics;

    fn scrape(metrics: &Arc<Metrics>) -> Counts {
        let facts = Facts {
            identity: None,
            service: "web".into(),
            apps: vec![PeerName::new("app")],
            started: UNIX_EPOCH,
            process: Process::default(),
        };
        Counts::read(&render(metrics, facts))
    }

    #[test]
    fn our_own_metrics_are_read() {
        let metrics = Arc::new(Metrics::default());
        let (app, cart) = (metrics.peer(&PeerName::new("app")), metrics.peer(&PeerName::new("cart")));
        let before = scrape(&metrics);
        assert_eq!((before.requests, before.quantile(0.5)), (0, None));
        app.answers[2].add(97);
        app.answers[5].add(3);
        cart.answers[5].add(1000);
        cart.reasons.inc(Reason::Reset);
        for _ in 0..100 {
            app.latency.observe(Duration::from_micros(1500));
        }
        let counts = scrape(&metrics).since(&before);
        assert_eq!((counts.requests, counts.failed), (100, 3));
        assert!((counts.percent() - 97.0).abs() < 1e-9);
        assert_eq!(counts.quantile(0.5), Some(Duration::from_micros(1500)));
        assert_eq!(counts.reasons, BTreeMap::from([("reset (peer)".to_owned(), 1)]));
        assert_eq!(scrape(&metrics).since(&scrape(&metrics)).requests, 0);
    }

    #[test]
    fn endpoints_of_named_peers_are_read() {
        let state = serde_json::json!({ "peers": [
            { "kind": "app", "endpoints": [{ "address": "127.0.0.1:1" }] },
            { "kind": "named", "endpoints": [
                { "address": "127.0.0.1:2", "latency_ms": 1.5, "in_flight": 3, "pool": { "http1": 4, "http2": 1 } },
                { "address": "127.0.0.1:3", "last_error": "refused" },
            ] },
        ] });
        let found = endpoints("cart", &state, |address| (address == "127.0.0.1:2").then_some("inventory-1"));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].name.as_str(), found[0].latency_ms, found[0].connections), ("inventory-1", Some(1.5), 5));
        assert_eq!(found[1].last_error.as_deref(), Some("refused"));
        assert!(endpoints("cart", &serde_json::Value::Null, |_| None).is_empty());
    }
}
