//! What is counted, as the text that Prometheus and its like scrape (OpenMetrics 1.0, which every one of them reads).
//!
//! Reads the cells at the moment of the scrape and holds none itself. Label values come from the file, from closed lists
//! and from the build; all peers made up for unlisted names share one.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::metrics::{
    BOUNDS_MICROS, CAUSES, Counter, DNS_ANSWERS, DnsMetrics, DoorMetrics, Gauge, Histogram, LIMITS, Metrics,
    PRIORITIES, PeerMetrics, Reasons, WorkloadApiMetrics,
};
use crate::ids::{Door, PeerName};
use crate::reason::{Reason, Side};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The `peer` label of what failed before a peer was known.
pub const NO_PEER: &str = "(none)";

/// The unit of CPU time in `/proc` (USER_HZ), whatever the kernel's own tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// What a scrape tells besides the counters.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The service beside which this sidecar stands.
    pub service: Arc<str>,
    /// The peers behind the inbound doors; all others belong to the outbound side.
    pub apps: Vec<PeerName>,
    /// When the process started.
    pub started: SystemTime,
    /// What the system says about the process.
    pub process: Process,
    /// Of the identity; `None` without one.
    pub identity: Option<IdentityFacts>,
}

/// What a scrape tells of the identity.
#[derive(Debug, Clone, Default)]
pub struct IdentityFacts {
    /// The first expiry, as unix time, of each kind of part and, of roots, each trust domain.
    pub expiries: Vec<(&'static str, String, u64)>,
    /// Replacements taken.
    pub rotations: u64,
    /// Replacements refused.
    pub refusals: u64,
}

/// What the system says about a process; what it does not say is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Process {
    /// Open file descriptors.
    pub open_fds: Option<u64>,
    /// Resident memory in bytes.
    pub resident_bytes: Option<u64>,
    /// CPU time used in seconds, user and system.
    pub cpu_seconds: Option<f64>,
}

impl Process {
    /// Reads `/proc/self`. It does not wait for a disk, yet belongs on the control thread.
    pub fn now() -> Self {
        let open_fds = std::fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64);
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        Self {
            // The descriptor through which the folder is read is among those counted.
            open_fds: open_fds.map(|count| count.saturating_sub(1)),
            resident_bytes: resident_bytes(&status),
            cpu_seconds: cpu_ticks(&stat).map(|ticks| ticks as f64 / TICKS_PER_SECOND),
        }
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Fields 14 and 15 of proc(5); the name before them may itself hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
}

/// The text of one scrape.
pub fn render(metrics: &Arc<Metrics>, facts: Facts) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { metrics: metrics.clone(), facts }));
    let mut out = String::with_capacity(16 * 1024);
    // Writing to a string fails only where our own collector does, which has no error of its own.
    let _ = text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    facts: Facts,
}

type Peers = [(PeerName, Arc<PeerMetrics>)];

/// A family's name and help, and where its cell is.
type Series<From, Cell> = (&'static str, &'static str, fn(&From) -> &Cell);

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let peers = self.metrics.peers();
        let mut families = Families(encoder);
        self.build(&mut families)?;
        self.requests(&mut families, &peers)?;
        self.failures(&mut families, &peers)?;
        self.doors(&mut families)?;
        peer_connections(&mut families, &peers)?;
        peer_traffic(&mut families, &peers)?;
        peer_standing(&mut families, &peers)?;
        peer_bounds(&mut families, &peers)?;
        dns(&mut families, &self.metrics.dns)?;
        self.control(&mut families)?;
        self.identity(&mut families)?;
        self.distrusted(&mut families)?;
        self.process(&mut families)
    }
}

impl Scrape {
    fn door_of(&self, peer: &PeerName) -> Door {
        if self.facts.apps.contains(peer) { Door::Inbound } else { Door::Outbound }
    }

    fn build(&self, families: &mut Families<'_>) -> fmt::Result {
        let mut family = families.gauge("outrigger_build_info", "Which build runs beside which service; always 1")?;
        gauge(&mut family, &[("service", &*self.facts.service), ("version", env!("CARGO_PKG_VERSION"))], 1)
    }

    fn requests(&self, families: &mut Families<'_>, peers: &Peers) -> fmt::Result {
        const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        let mut family = families.counter("outrigger_requests", "Exchanges ended, by the class of their status")?;
        for (name, cells) in peers {
            let door = self.door_of(name).word();
            for (class, cell) in CLASSES.iter().zip(&cells.answers) {
                count(&mut family, &[("door", door), ("peer", name.as_str()), ("status", class)], cell)?;
            }
        }
        let help = "From a request's head to its answer's head";
        let mut family = families.histogram("outrigger_request_duration_seconds", help)?;
        for (name, cells) in peers {
            let labels = [("door", self.door_of(name).word()), ("peer", name.as_str())];
            durations(&mut family.encode_family(&labels)?, &cells.latency)?;
        }
        Ok(())
    }

    /// Only reasons that occurred: the list is long, and most never do.
    fn failures(&self, families: &mut Families<'_>, peers: &Peers) -> fmt::Result {
        let help = "Exchanges and connections that failed, by reason and the side to look at first";
        let mut family = families.counter("outrigger_failures", help)?;
        for door in [Door::Inbound, Door::Outbound] {
            reasons(&mut family, door, NO_PEER, &self.metrics.door(door).reasons)?;
        }
        peers
            .iter()
            .try_for_each(|(name, cells)| reasons(&mut family, self.door_of(name), name.as_str(), &cells.reasons))
    }

    fn doors(&self, families: &mut Families<'_>) -> fmt::Result {
        let of = |door: Door| ([("door", door.word())], self.metrics.door(door));
        let both = [of(Door::Inbound), of(Door::Outbound)];
        let counters: [Series<DoorMetrics, Counter>; 6] = [
            ("outrigger_door_connections_accepted", "Connections accepted", |door| &door.accepted),
            ("outrigger_door_connections_refused", "Connections closed because the door was full", |door| {
                &door.refused
            }),
            ("outrigger_door_accept_errors", "Accept calls that failed", |door| &door.accept_errors),
            ("outrigger_would_deny", "Requests and connections let in that the rules would deny", |door| {
                &door.would_deny
            }),
            ("outrigger_plaintext_connections", "Plaintext served where mutual TLS is permissive", |door| {
                &door.plaintext
            }),
            ("outrigger_informational_dropped", "Informational answers that could not be passed on", |door| {
                &door.informational_dropped
            }),
        ];
        for (name, help, cell) in counters {
            let mut family = families.counter(name, help)?;
            both.iter().try_for_each(|(labels, door)| count(&mut family, labels, cell(door)))?;
        }
        let mut family = families.counter("outrigger_requests_shed", "Requests refused by a limit, by priority")?;
        for (labels, door) in &both {
            for (priority, cell) in PRIORITIES.iter().zip(&door.shed) {
                let [door] = *labels;
                count(&mut family, &[door, ("priority", priority)], cell)?;
            }
        }
        let mut family = families.gauge("outrigger_door_connections", "Connections from callers open now")?;
        both.iter().try_for_each(|(labels, door)| gauge(&mut family, labels, door.open.get()))
    }

    fn control(&self, families: &mut Families<'_>) -> fmt::Result {
        let metrics = &self.metrics;
        let mut family = families.counter("outrigger_reloads", "Reloads of the file, by how they ended")?;
        count(&mut family, &[("result", "applied")], &metrics.reloads)?;
        count(&mut family, &[("result", "rejected")], &metrics.reload_rejected)?;
        let help = "Control files that were refused";
        families.plain_counter("outrigger_control_file_rejected", help, &metrics.control_file_rejected)?;
        let help = "Tokens that were believed, by whether their signature was verified or known to be good";
        let mut family = families.counter("outrigger_tokens_believed", help)?;
        count(&mut family, &[("signature", "verified")], &metrics.tokens_verified)?;
        count(&mut family, &[("signature", "known")], &metrics.tokens_known)?;
        let help = "Times an issuer's keys were read, or could not be";
        let mut family = families.counter("outrigger_jwks_reads", help)?;
        count(&mut family, &[("result", "read")], &metrics.jwks_read)?;
        count(&mut family, &[("result", "failed")], &metrics.jwks_failures)?;
        self.workload_api(families)?;
        let help = "Lines of the access log and of our own log dropped because the output could not keep up";
        families.plain_counter("outrigger_log_lines_dropped", help, &metrics.lines_dropped)
    }

    fn identity(&self, families: &mut Families<'_>) -> fmt::Result {
        let Some(identity) = &self.facts.identity else { return Ok(()) };
        let help = "When the first of the identity's parts of a kind expires, in seconds since 1970";
        let mut family = families.gauge("outrigger_certificate_expires_seconds", help)?;
        for (of, domain, unix) in &identity.expiries {
            gauge(&mut family, &[("of", *of), ("trust_domain", domain)], i64::try_from(*unix).unwrap_or(i64::MAX))?;
        }
        let help = "Replacements of the identity, by how they ended";
        let mut family = families.counter("outrigger_identity_rotations", help)?;
        for (result, times) in [("applied", identity.rotations), ("refused", identity.refusals)] {
            family.encode_family(&[("result", result)])?.encode_counter::<NoLabelSet, u64, f64>(&times, None)?;
        }
        Ok(())
    }

    /// Where there is an identity, or was one until a reload.
    fn distrusted(&self, families: &mut Families<'_>) -> fmt::Result {
        let doors = [Door::Inbound, Door::Outbound];
        let counted =
            |door: &Door| Reason::ALL.iter().any(|reason| self.metrics.door(*door).distrusted.get(*reason) > 0);
        if self.facts.identity.is_none() && !doors.iter().any(counted) {
            return Ok(());
        }
        let help = "Connections closed because what their other end had proven held no longer";
        let mut family = families.counter("outrigger_distrusted_connections", help)?;
        for door in doors {
            let cells = &self.metrics.door(door).distrusted;
            for reason in Reason::ALL.iter().filter(|reason| cells.get(**reason) > 0) {
                let labels = [("door", door.word()), ("reason", reason.word())];
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&cells.get(*reason), None)?;
            }
        }
        Ok(())
    }

    /// Only where there is one.
    fn workload_api(&self, families: &mut Families<'_>) -> fmt::Result {
        let WorkloadApiMetrics { taken, refused, failures } = &self.metrics.workload_api;
        if [taken, refused, failures].iter().all(|cell| cell.get() == 0) {
            return Ok(());
        }
        let help = "Identities from the Workload API, by whether they could be used";
        let mut family = families.counter("outrigger_workload_api_updates", help)?;
        count(&mut family, &[("result", "taken")], taken)?;
        count(&mut family, &[("result", "refused")], refused)?;
        let help = "Times that the Workload API could not be asked or stopped answering";
        families.plain_counter("outrigger_workload_api_failures", help, failures)
    }

    /// The names that every client library of Prometheus uses.
    fn process(&self, families: &mut Families<'_>) -> fmt::Result {
        let process = &self.facts.process;
        if let Some(seconds) = process.cpu_seconds {
            let mut family = families.counter("process_cpu_seconds", "CPU time used, user and system")?;
            family.encode_counter::<NoLabelSet, f64, f64>(&seconds, None)?;
        }
        if let Some(count) = process.open_fds {
            families.gauge("process_open_fds", "File descriptors open now")?.encode_gauge(&count)?;
        }
        if let Some(bytes) = process.resident_bytes {
            families.gauge("process_resident_memory_bytes", "Resident memory")?.encode_gauge(&bytes)?;
        }
        let started = self.facts.started.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        families.gauge("process_start_time_seconds", "When the process started, since 1970")?.encode_gauge(&started)
    }
}

fn peer_connections(families: &mut Families<'_>, peers: &Peers) -> fmt::Result {
    let counters: [Series<PeerMetrics, Counter>; 4] = [
        ("outrigger_peer_connects", "Connections opened to a peer", |peer| &peer.connects),
        ("outrigger_peer_connect_failures", "Connections that could not be opened", |peer| &peer.connect_failures),
        ("outrigger_peer_tunnels", "Tunnels opened to a peer", |peer| &peer.tunnels),
        ("outrigger_discovery_failures", "Discovery answers that failed", |peer| &peer.discovery_failures),
    ];
    for (name, help, cell) in counters {
        families.counter_per_peer(name, help, peers, cell)?;
    }
    let gauges: [Series<PeerMetrics, Gauge>; 6] = [
        ("outrigger_peer_connections", "Connections to a peer open now", |peer| &peer.connections),
        ("outrigger_peer_requests_waiting", "Requests waiting for a connection", |peer| &peer.waiting),
        ("outrigger_peer_requests_in_flight", "Exchanges under way", |peer| &peer.in_flight),
        ("outrigger_peer_endpoints", "Endpoints known now", |peer| &peer.endpoints),
        ("outrigger_peer_endpoints_ejected", "Endpoints ejected now", |peer| &peer.standing.ejected),
        ("outrigger_peer_endpoints_unhealthy", "Endpoints that health checks find unhealthy", |peer| {
            &peer.standing.unhealthy
        }),
    ];
    for (name, help, cell) in gauges {
        let mut family = families.gauge(name, help)?;
        for (peer, cells) in peers {
            gauge(&mut family, &[("peer", peer.as_str())], cell(cells).get())?;
        }
    }
    Ok(())
}

fn peer_traffic(families: &mut Families<'_>, peers: &Peers) -> fmt::Result {
    let counters: [Series<PeerMetrics, Counter>; 12] = [
        ("outrigger_attempts", "Attempts sent to a peer, first and repeated ones", |peer| &peer.attempts),
        ("outrigger_retries", "Further attempts after a failed one", |peer| &peer.retries),
        ("outrigger_retries_skipped", "Failed attempts worth another one, which something forbade", |peer| {
            &peer.retries_skipped
        }),
        ("outrigger_hedges", "Attempts sent beside a slow one", |peer| &peer.hedges),
        ("outrigger_hedges_won", "Attempts sent beside a slow one that were answered first", |peer| &peer.hedges_won),
        ("outrigger_hedges_skipped", "Slow attempts worth another one beside them, which something forbade", |peer| {
            &peer.hedges_skipped
        }),
        ("outrigger_reconnects", "Attempts repeated because a reused connection was dead", |peer| &peer.reconnects),
        ("outrigger_fallbacks", "Exchanges that turned to the fallback of a peer", |peer| &peer.fallbacks),
        ("outrigger_mirrored", "Copies of requests sent to a peer", |peer| &peer.mirrored),
        ("outrigger_mirror_dropped", "Copies of requests that were not sent", |peer| &peer.mirror_dropped),
        ("outrigger_peer_sent_bytes", "Bytes from callers to a peer", |peer| &peer.sent_bytes),
        ("outrigger_peer_received_bytes", "Bytes from a peer to callers", |peer| &peer.received_bytes),
    ];
    counters.into_iter().try_for_each(|(name, help, cell)| families.counter_per_peer(name, help, peers, cell))
}

/// Which endpoints are in the choice, and why not.
fn peer_standing(families: &mut Families<'_>, peers: &Peers) -> fmt::Result {
    let mut family = families.counter("outrigger_ejections", "Endpoints taken out of the choice, by cause")?;
    for (peer, cells) in peers {
        for (cause, cell) in CAUSES.iter().zip(&cells.standing.ejections) {
            count(&mut family, &[("peer", peer.as_str()), ("cause", cause)], cell)?;
        }
    }
    let mut family = families.counter("outrigger_health_checks", "Health checks of endpoints, by result")?;
    for (peer, cells) in peers {
        let results = [("passed", &cells.standing.checks_passed), ("failed", &cells.standing.checks_failed)];
        for (result, cell) in results {
            count(&mut family, &[("peer", peer.as_str()), ("result", result)], cell)?;
        }
    }
    let counters: [Series<PeerMetrics, Counter>; 2] = [
        ("outrigger_ejections_spared", "Ejections that `eject.most` did not allow", |peer| &peer.standing.spared),
        ("outrigger_picks_failed_open", "Attempts given to endpoints that were out, because all were", |peer| {
            &peer.standing.failed_open
        }),
    ];
    counters.into_iter().try_for_each(|(name, help, cell)| families.counter_per_peer(name, help, peers, cell))
}

fn peer_bounds(families: &mut Families<'_>, peers: &Peers) -> fmt::Result {
    // Only limits that refused something: most peers have none.
    let mut family = families.counter("outrigger_peer_limit_rejections", "Requests refused by a limit, by its key")?;
    for (peer, cells) in peers {
        for (limit, cell) in LIMITS.iter().zip(&cells.limited).filter(|(_, cell)| cell.get() > 0) {
            count(&mut family, &[("peer", peer.as_str()), ("limit", limit)], cell)?;
        }
    }
    let mut family = families.counter("outrigger_peer_breaker_changes", "Times the breaker changed, by what to")?;
    for (peer, cells) in peers {
        for (to, cell) in [("open", &cells.breaker_opened), ("closed", &cells.breaker_closed)] {
            count(&mut family, &[("peer", peer.as_str()), ("to", to)], cell)?;
        }
    }
    let mut family = families.gauge("outrigger_peer_breaker_open", "1 while the breaker is open, else 0")?;
    peers.iter().try_for_each(|(peer, cells)| gauge(&mut family, &[("peer", peer.as_str())], cells.breaker_open.get()))
}

/// Where there is a DNS door, or was.
fn dns(families: &mut Families<'_>, dns: &DnsMetrics) -> fmt::Result {
    if dns.listeners.get() == 0 && dns.all().iter().all(|cell| cell.get() == 0) {
        return Ok(());
    }
    let mut family = families.counter("outrigger_dns_questions", "Questions at the DNS door, by their answer")?;
    for (answer, cell) in DNS_ANSWERS.iter().zip(dns.all()) {
        count(&mut family, &[("answer", *answer)], cell)?;
    }
    let help = "Packets at the DNS door that were no question, and answers that could not be sent";
    families.plain_counter("outrigger_dns_dropped", help, &dns.dropped)?;
    let help = "Connections to the DNS door closed because there were too many";
    families.plain_counter("outrigger_dns_connections_refused", help, &dns.connections_refused)?;
    families.gauge("outrigger_dns_connections", "Connections to the DNS door")?.encode_gauge(&dns.connections.get())?;
    let help = "What the DNS door's kept answers take";
    families.gauge("outrigger_dns_cache_bytes", help)?.encode_gauge(&dns.cache_bytes.get())
}

/// Opens families; counters are named without the `_total` that the format adds.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter<'s>(&'s mut self, name: &'s str, help: &str) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Counter)
    }

    fn gauge<'s>(&'s mut self, name: &'s str, help: &str) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)
    }

    fn histogram<'s>(&'s mut self, name: &'s str, help: &str) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Histogram)
    }

    fn plain_counter(&mut self, name: &str, help: &str, cell: &Counter) -> fmt::Result {
        self.counter(name, help)?.encode_counter::<NoLabelSet, u64, f64>(&cell.get(), None)
    }

    fn counter_per_peer(
        &mut self,
        name: &str,
        help: &str,
        peers: &Peers,
        cell: fn(&PeerMetrics) -> &Counter,
    ) -> fmt::Result {
        let mut family = self.counter(name, help)?;
        peers.iter().try_for_each(|(peer, cells)| count(&mut family, &[("peer", peer.as_str())], cell(cells)))
    }
}

fn count(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, cell: &Counter) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, f64>(&cell.get(), None)
}

fn gauge(family: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: i64) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value)
}

fn reasons(family: &mut MetricEncoder<'_>, door: Door, peer: &str, cells: &Reasons) -> fmt::Result {
    for &reason in Reason::ALL {
        let times = cells.get(reason);
        if times > 0 {
            let side = if reason.side() == Side::Peer && door == Door::Inbound { Side::App } else { reason.side() };
            let labels = [("door", door.word()), ("peer", peer), ("reason", reason.word()), ("side", side.word())];
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&times, None)?;
        }
    }
    Ok(())
}

fn durations(family: &mut MetricEncoder<'_>, histogram: &Histogram) -> fmt::Result {
    let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(histogram.counts()).collect();
    let total = buckets.iter().map(|(_, count)| count).sum();
    family.encode_histogram::<NoLabelSet>(histogram.sum().as_secs_f64(), total, &buckets, None)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::DnsAnswer;

    fn sample() -> String {
        let metrics = Arc::new(Metrics::default());
        let app = metrics.peer(&PeerName::new("app"));
        app.answers[2].add(3);
        app.reasons.inc(Reason::ConnectRefused);
        for millis in [0, 3, 700, 90_000] {
            app.latency.observe(Duration::from_millis(millis));
        }
        let odd = metrics.peer(&PeerName::new("a\"b\\c"));
        odd.answers[0].inc();
        odd.standing.ejections[1].inc();
        odd.standing.checks_failed.add(2);
        odd.reasons.inc(Reason::ConnectRefused);
        metrics.door(Door::Inbound).reasons.inc(Reason::BadHead);
        metrics.reload_rejected.inc();
        metrics.dns.answered(DnsAnswer::Stale);
        let facts = Facts {
            service: "checkout".into(),
            apps: vec![PeerName::new("app")],
            started: UNIX_EPOCH + Duration::from_millis(1500),
            identity: Some(IdentityFacts { expiries: vec![("leaf", String::new(), 7)], rotations: 2, refusals: 1 }),
            process: Process { open_fds: Some(7), resident_bytes: Some(4096), cpu_seconds: Some(0.5) },
        };
        render(&metrics, facts)
    }

    /// Reads the text by the rules of the format: a family's HELP and TYPE come once and before its samples, no sample
    /// comes twice, names end as their type demands.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut kinds: BTreeMap<&str, &str> = BTreeMap::new();
        let mut helped = BTreeSet::new();
        let mut current = "";
        let body = text.strip_suffix("# EOF\n").expect("ends with EOF");
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                current = rest.split_once(' ').unwrap().0;
                assert!(helped.insert(current), "{current} has two HELP lines");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert_eq!(name, current, "TYPE follows its HELP");
                assert!(kinds.insert(name, kind).is_none(), "{name} has two types");
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let name = series.split('{').next().unwrap();
                let suffix = name.strip_prefix(current).unwrap_or_else(|| panic!("{name} under {current}"));
                let allowed: &[&str] = match kinds[current] {
                    "counter" => &["_total"],
                    "histogram" => &["_sum", "_count", "_bucket"],
                    "gauge" => &[""],
                    other => panic!("{other}"),
                };
                assert!(allowed.contains(&suffix), "{name}");
                assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
            }
        }
        samples
    }

    #[test]
    fn the_text_keeps_the_rules_and_tells_the_numbers() {
        let samples = parse(&sample());
        for (series, value) in [
            ("outrigger_requests_total{door=\"inbound\",peer=\"app\",status=\"2xx\"}", 3.0),
            ("outrigger_requests_total{door=\"outbound\",peer=\"a\\\"b\\\\c\",status=\"none\"}", 1.0),
            ("outrigger_failures_total{door=\"inbound\",peer=\"app\",reason=\"connect_refused\",side=\"app\"}", 1.0),
            (
                "outrigger_failures_total{door=\"outbound\",peer=\"a\\\"b\\\\c\",reason=\"connect_refused\",side=\"peer\"}",
                1.0,
            ),
            ("outrigger_failures_total{door=\"inbound\",peer=\"(none)\",reason=\"bad_head\",side=\"client\"}", 1.0),
            ("outrigger_reloads_total{result=\"rejected\"}", 1.0),
            ("outrigger_reloads_total{result=\"applied\"}", 0.0),
            ("outrigger_ejections_total{peer=\"a\\\"b\\\\c\",cause=\"gateway_errors\"}", 1.0),
            ("outrigger_health_checks_total{peer=\"a\\\"b\\\\c\",result=\"failed\"}", 2.0),
            ("outrigger_dns_questions_total{answer=\"stale\"}", 1.0),
            ("outrigger_dns_questions_total{answer=\"own\"}", 0.0),
            ("outrigger_picks_failed_open_total{peer=\"app\"}", 0.0),
            ("process_start_time_seconds", 1.5),
            ("process_cpu_seconds_total", 0.5),
            ("process_open_fds", 7.0),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
        assert_eq!(samples.keys().filter(|series| series.starts_with("outrigger_failures")).count(), 3);
    }

    #[test]
    fn buckets_are_cumulative_and_end_at_the_count() {
        let text = sample();
        let of = |suffix: &str| format!("outrigger_request_duration_seconds_{suffix}{{door=\"inbound\",peer=\"app\"");
        let buckets: Vec<f64> = text
            .lines()
            .filter(|line| line.starts_with("outrigger_request_duration_seconds_bucket") && line.contains("\"app\""))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
            .collect();
        assert_eq!(buckets.len(), BOUNDS_MICROS.len() + 1);
        assert!(buckets.is_sorted(), "{buckets:?}");
        let samples = parse(&text);
        assert_eq!(samples[&format!("{}}}", of("count"))], 4.0);
        assert_eq!(buckets.last(), Some(&4.0));
        assert_eq!(buckets[0], 1.0);
        assert!((samples[&format!("{}}}", of("sum"))] - 90.703).abs() < 1e-6);
        assert!(text.contains("{le=\"+Inf\",door=\"inbound\",peer=\"app\"} 4\n"), "{text}");
    }

    #[test]
    fn the_system_is_read_by_place() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t    8 kB\nThreads:\t1\n"), Some(8192));
        assert_eq!(cpu_ticks("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 40 2 0 0"), Some(42));
        for broken in ["", "7 (a", "7 (a) S 1 2", "7 (a) S 1 2 3 4 5 6 7 8 9 10 x 2"] {
            assert_eq!(cpu_ticks(broken), None, "{broken}");
        }
        let now = Process::now();
        assert!(now.open_fds > Some(0) && now.resident_bytes > Some(0), "{now:?}");
    }
}
