//! When the endpoints of a peer are out of its choice: ejection and health checks.

use std::sync::Arc;

use crate::config::collect::OrOff;
use crate::config::kind::Set;
use crate::config::listener::Protocol;
use crate::config::peer::Peer;
use crate::config::problem::Problems;
use crate::config::standing::{Eject, EjectLatency, Failures, Health};
use crate::plan::health::{HealthCheck, HealthRule};
use crate::plan::rules::{EjectRule, LatencyRule, Share};

/// When one is ejected; `None` where the file says `off`.
pub fn eject(peer: &Peer, problems: &mut Problems) -> Option<EjectRule> {
    let said: &Eject = peer.eject.value.0.as_ref()?;
    if said.probe.0 > said.longest.0 {
        said.probe.refuse(problems, "must not be longer than `for`, the longest time from one try to the next");
    }
    if said.most.0 == 0 {
        said.most.refuse(problems, "0% would still allow one: to eject none, say `eject: off`");
    }
    let row = |row: &Option<Set<OrOff<Failures>>>| {
        let row = row.as_ref().map_or(Some(said.after.value), |row| row.value.0);
        row.map(|Failures(row)| row)
    };
    let rule = EjectRule {
        server_errors: row(&said.server_errors),
        gateway_errors: row(&said.gateway_errors),
        local_failures: row(&said.local_failures),
        failure_share: said.failure_share.0.map(|share| Share::millionths(share.0)),
        latency: said.latency.as_ref().map(|latency| slow(latency)),
        volume: u32::try_from(said.volume.0).unwrap_or(u32::MAX),
        probe_after: said.probe.0,
        longest: said.longest.0,
        most: Share::millionths(said.most.0),
    };
    let rows = [rule.server_errors, rule.gateway_errors, rule.local_failures];
    if rows.iter().all(Option::is_none) && rule.failure_share.is_none() && rule.latency.is_none() {
        peer.eject.warn(problems, "ejects nothing, as every cause is off: say `eject: off`");
    }
    Some(rule)
}

fn slow(said: &EjectLatency) -> LatencyRule {
    let times = u32::try_from(said.times.0).unwrap_or(u32::MAX);
    LatencyRule { times: Share::percent(times.saturating_mul(100)), at_least: said.at_least.0 }
}

/// How they are asked whether they are well; `None` where they are not.
pub fn health(name: &str, peer: &Peer, problems: &mut Problems) -> Option<Arc<HealthRule>> {
    let set = peer.health.as_ref()?;
    let said: &Health = set.value.0.as_ref()?;
    if said.timeout.0 > said.every.0 {
        said.timeout.refuse(problems, "must not be longer than `every`, the time from one check to the next");
    }
    let host: Arc<str> = match (&said.host, peer.tls.as_ref().and_then(|tls| tls.sni.as_ref()), &peer.dns) {
        (Some(host), ..) | (None, Some(host), _) => host.value.0.as_str().into(),
        (None, None, Some(dns)) => dns.value.0.0.trim_end_matches('.').into(),
        (None, None, None) => name.into(),
    };
    let check = match (&said.http, &said.grpc, &said.tcp) {
        (Some(path), None, None) => HealthCheck::Http { path: path.value.0.as_str().into(), host },
        (None, Some(service), None) => {
            if matches!(peer.protocol.value, Protocol::Http1 | Protocol::Tcp) {
                service.refuse(problems, "gRPC needs HTTP/2, and this peer's `protocol` is another");
            }
            HealthCheck::Grpc { service: service.value.0.as_str().into(), host }
        }
        (None, None, Some(tcp)) => {
            if !tcp.value {
                tcp.refuse(problems, "expected `true`, or another check in its place");
            }
            HealthCheck::Tcp
        }
        (None, None, None) => {
            if !["http", "grpc", "tcp"].iter().any(|key| problems.mention(&set.path, key)) {
                set.refuse(problems, "does not say what to ask: give one of `http`, `grpc` or `tcp`");
            }
            return None;
        }
        _ => {
            set.refuse(problems, "an endpoint is asked in one way: give one of `http`, `grpc` and `tcp`");
            return None;
        }
    };
    let count = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let (healthy, unhealthy) = (count(said.healthy.0), count(said.unhealthy.0));
    let rule = HealthRule { check, every: said.every.0, timeout: said.timeout.0, healthy, unhealthy };
    Some(Arc::new(rule))
}
