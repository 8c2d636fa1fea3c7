//! What is in force where a peer is called: its addresses, times, retries, limits, ejection, checks and fallback.

use std::time::Duration;

use super::Explained;
use crate::config::kind::Scalar as _;
use crate::config::units::Span;
use crate::control::load::Loaded;
use crate::plan::door::Protocol;
use crate::plan::fallback::{Fallback, Instead};
use crate::plan::health::{HealthCheck, HealthRule};
use crate::plan::peer::{Addresses, Balance, PeerKind, PeerPlan, PeerPolicy, Roots};
use crate::plan::rules::{
    ConcurrencyRule, Condition, EjectRule, GateRule, HedgeAfter, LimitsRule, Methods, RateRule, Rules, Share,
};

/// The key of the section that a peer's rules stand in.
pub(super) fn section(loaded: &Loaded, peer: &PeerPlan) -> String {
    match peer.kind {
        PeerKind::App => "inbound".to_owned(),
        PeerKind::Named | PeerKind::Adhoc => {
            let named = loaded.config.peers.0.iter().find(|(name, _)| *name == peer.name.as_str());
            named.map_or_else(|| format!("peers.{}", peer.name), |(_, set)| set.path.to_string())
        }
    }
}

/// Where a peer's endpoints come from and what is spoken to them.
pub(super) fn source(loaded: &Loaded, peer: &PeerPlan, said: &mut Explained<'_>) {
    let section = section(loaded, peer);
    let keyed = |word: &str| Some(format!("{section}.{word}"));
    let (key, text) = match &peer.source.addresses {
        Addresses::Static(specs) if peer.kind == PeerKind::App => {
            (app_key(loaded, peer).and_then(|word| keyed(&word)), list(specs))
        }
        Addresses::Static(specs) => (keyed("static"), list(specs)),
        Addresses::Dns { host, port } => (keyed("dns"), format!("the A and AAAA records of {host}, port {port}")),
        Addresses::Srv { name } => (keyed("srv"), format!("the SRV records of {name}")),
        Addresses::File { path } => (keyed("file"), format!("the control file {}", path.display())),
    };
    let text = format!("{}: {text}", peer.name);
    match key {
        Some(key) => said.keyed("endpoints", &[key], text),
        None => said.plain("endpoints", text),
    }
    spoken(loaded, peer, said);
}

/// What is spoken to a peer.
pub(super) fn spoken(loaded: &Loaded, peer: &PeerPlan, said: &mut Explained<'_>) {
    let section = section(loaded, peer);
    let protocol = match peer.source.protocol {
        Protocol::Auto => "the caller's own version, or what ALPN says",
        Protocol::Http1 => "HTTP/1.1",
        Protocol::Http2 => "HTTP/2",
        Protocol::Tcp => "opaque bytes",
    };
    said.keyed("protocol", &[format!("{section}.protocol")], protocol);
    if let Some(tls) = &peer.source.tls {
        let roots = match &tls.roots {
            Roots::System => "the system's roots".to_owned(),
            Roots::File(path) => format!("the roots in {}", path.display()),
        };
        said.keyed("tls", &[format!("{section}.tls")], format!("the name {} is verified by {roots}", tls.sni));
    }
}

fn list(specs: &[crate::plan::peer::EndpointSpec]) -> String {
    specs.iter().map(|spec| spec.addr.to_string()).collect::<Vec<_>>().join(", ")
}

/// The key below `inbound` that names this app; `None` for a port that the file does not list.
fn app_key(loaded: &Loaded, peer: &PeerPlan) -> Option<String> {
    let Addresses::Static(specs) = &peer.source.addresses else { return None };
    let same = |app: &crate::ids::Addr| specs.iter().any(|spec| spec.addr == *app);
    let mut ports = loaded.config.inbound.iter().flat_map(|inbound| inbound.ports.0.iter().enumerate());
    let own = loaded.config.inbound.as_ref().and_then(|inbound| inbound.app.as_ref());
    if own.is_some_and(|app| same(&app.value.0)) {
        return Some("app".to_owned());
    }
    let port = ports.find(|(_, port)| port.app.as_ref().is_some_and(|app| same(&app.value.0)));
    port.map(|(n, _)| format!("ports[{n}].app"))
}

/// How a peer is called: by its own rules, with what the route of this key says on top.
pub(super) fn policy(
    loaded: &Loaded,
    peer: &PeerPlan,
    policy: &PeerPolicy,
    route: Option<&str>,
    said: &mut Explained<'_>,
) {
    let section = section(loaded, peer);
    told(
        &|key| route.iter().map(|route| format!("{route}.{key}")).chain([format!("{section}.{key}")]).collect(),
        policy,
        said,
    );
}

/// How a peer is called that the file does not know.
pub(super) fn plain_policy(policy: &PeerPolicy, said: &mut Explained<'_>) {
    told(&|key| vec![format!("peers.NAME.{key}")], policy, said);
}

/// The keys that can say a thing, the strongest first.
type Keys<'k> = &'k dyn Fn(&str) -> Vec<String>;

/// What the gate of a door or a route asks; `key` is that of its limits.
pub(super) fn gate(about: &'static str, key: &str, rule: &GateRule, said: &mut Explained<'_>) {
    let kept = if rule.kept { ", the last tenth for high priority" } else { "" };
    if let Some(most) = rule.in_flight {
        said.keyed(about, &[format!("{key}.in-flight")], format!("{most} requests in flight{kept}"));
    }
    if let Some(rule) = &rule.adaptive {
        said.keyed(about, &[format!("{key}.adaptive")], format!("{}{kept}", follows_latency(rule)));
    }
    for meter in &rule.rates {
        let RateRule { count, period, burst } = meter.rate;
        let each = meter.per.as_ref().map_or_else(String::new, |per| format!(" of each {}", per.each()));
        let told = if meter.told { "; answers tell what is left" } else { "" };
        let text = format!("{count} requests{each} in {}, {burst} at once{told}", time(period));
        said.keyed(about, &[format!("{key}.rate")], text);
    }
}

fn follows_latency(rule: &ConcurrencyRule) -> String {
    format!("adaptive, {} to {} requests in flight", rule.least, rule.most)
}

fn told(keys: Keys<'_>, policy: &PeerPolicy, said: &mut Explained<'_>) {
    let balance = match policy.balance {
        Balance::PeakEwma => "peak-ewma: the lower of latency times load of two",
        Balance::LeastRequest => "least-request: the fewer in flight of two",
        Balance::RoundRobin => "round-robin",
        Balance::Random => "random",
        Balance::RingHash => "ring-hash: by a key, on a ring",
        Balance::Maglev => "maglev: by a key, in a table",
    };
    said.keyed("balance", &keys("balance"), balance);
    let none = || "none".to_owned();
    for (about, key, text) in [
        ("timeout.connect", "timeout.connect", time(policy.connect_timeout)),
        ("timeout.attempt", "timeout.attempt", policy.rules.retry.attempt_timeout.map_or_else(none, time)),
        ("timeout.request", "timeout.request", policy.request_timeout.map_or_else(none, time)),
        ("timeout.idle", "timeout.idle", time(policy.body_idle)),
        ("timeout.tunnel", "timeout.tunnel", time(policy.tunnel_idle)),
    ] {
        said.keyed(about, &keys(key), text);
    }
    retry(keys, &policy.rules, said);
    limits(keys, &policy.rules, said);
    match &policy.rules.eject {
        Some(rule) => said.keyed("ejection", &keys("eject"), ejection(rule)),
        None => said.keyed("ejection", &keys("eject"), "off"),
    }
    said.keyed(
        "health checks",
        &keys("health"),
        policy.health.as_ref().map_or_else(|| "off".into(), |rule| health(rule)),
    );
    let slow_start = policy.rules.slow_start.as_ref();
    let slow_start = slow_start.map(|rule| format!("over {}, from {}", time(rule.window), share(rule.least)));
    said.keyed("slow start", &keys("slow-start"), slow_start.unwrap_or_else(|| "off".into()));
    said.keyed("fallback", &keys("fallback"), policy.fallback.as_ref().map_or_else(none, |rule| fallback(rule)));
}

fn health(rule: &HealthRule) -> String {
    let how = match &rule.check {
        HealthCheck::Http { path, .. } => format!("GET {path}"),
        HealthCheck::Grpc { service, .. } if service.is_empty() => "the gRPC health of the server".to_owned(),
        HealthCheck::Grpc { service, .. } => format!("the gRPC health of {service}"),
        HealthCheck::Tcp => "a connection".to_owned(),
    };
    let (every, timeout) = (time(rule.every), time(rule.timeout));
    format!("{how} every {every}, within {timeout}; out after {} failed, back after {}", rule.unhealthy, rule.healthy)
}

fn fallback(rule: &Fallback) -> String {
    let what = match &rule.to {
        Instead::Peer(name) => format!("the answer of {name}"),
        Instead::Respond(respond) => format!("{} from the file", respond.status.as_u16()),
        Instead::Stale(stale) => format!("an earlier answer to the same GET, up to {} old", time(stale.time)),
    };
    let statuses: Vec<_> = rule.statuses.iter().map(|status| status.as_u16().to_string()).collect();
    let also = if statuses.is_empty() { String::new() } else { format!(", also for {}", statuses.join(", ")) };
    format!("{what} where there is none{also}")
}

fn retry(keys: Keys<'_>, rules: &Rules, said: &mut Explained<'_>) {
    let rule = &rules.retry;
    let both = |key: &str| [keys(key), keys("retry")].concat();
    if rule.attempts <= 1 {
        said.keyed("retry", &both("retry.attempts"), "none: one attempt");
    } else {
        let on: Vec<_> = Condition::ALL.iter().filter(|one| rule.on.has(**one)).map(|one| one.word()).collect();
        let who = match rule.methods {
            Methods::Idempotent => "idempotent methods, or what was provably not processed",
            Methods::Any => "any method",
        };
        said.keyed("retry", &both("retry.attempts"), format!("at most {} attempts, {who}", rule.attempts));
        said.keyed("retry.on", &both("retry.on"), on.join(", "));
        let wait = format!("up to {}, doubled to {}", time(rule.backoff.base), time(rule.backoff.cap));
        said.keyed("retry.backoff", &both("retry.backoff"), wait);
        let budget = format!("{} of the requests, at least {} a second", share(rule.budget.share), rule.budget.floor);
        said.keyed("retry.budget", &both("retry.budget"), budget);
    }
    if let Some(hedge) = &rules.hedge {
        let after = match hedge.after {
            HedgeAfter::Delay(delay) => time(delay),
            HedgeAfter::Quantile(part) => format!("the time that {} of its answers take", share(part)),
        };
        said.keyed("hedge", &keys("hedge"), format!("a second attempt after {after}"));
    }
}

fn limits(keys: Keys<'_>, rules: &Rules, said: &mut Explained<'_>) {
    let whole = bounds(&rules.limits);
    let each = bounds(&rules.endpoint_limits);
    let text = match (whole.is_empty(), each.is_empty()) {
        (true, true) => "none".to_owned(),
        (false, true) => whole,
        (true, false) => format!("each endpoint: {each}"),
        (false, false) => format!("{whole}; each endpoint: {each}"),
    };
    let kept = if rules.kept { "; of those in flight the last tenth is kept for high priority" } else { "" };
    said.keyed("limits", &keys("breaker"), format!("{text}{kept}"));
    if let Some(rule) = &rules.breaker {
        // More than the whole is slowness alone.
        let failures = Some(rule.failure_share).filter(|part| *part <= Share::WHOLE);
        let failures = failures.map(|part| format!("{} failures", share(part)));
        let slow = rule.slow.map(|(part, from)| format!("{} slower than {}", share(part), time(from)));
        let when = failures.into_iter().chain(slow).collect::<Vec<_>>().join(" or ");
        let both = [keys("breaker.failures"), keys("breaker.slow")].concat();
        said.keyed("breaker", &both, format!("opens at {when}, for {}", time(rule.open_for)));
    }
    if let Some(rule) = &rules.concurrency {
        said.keyed("adaptive limit", &keys("breaker.adaptive"), follows_latency(rule));
    }
    if let Some(rule) = &rules.admission {
        let text = format!("refuses at most {} of what the peer would refuse", share(rule.most));
        said.keyed("admission", &keys("breaker.admission"), text);
    }
}

fn bounds(rule: &LimitsRule) -> String {
    let all = [
        ("connections", rule.connections),
        ("connecting", rule.connecting),
        ("in flight", rule.in_flight),
        ("pending", rule.pending),
        ("retries", rule.retries),
    ];
    let given = all.into_iter().filter_map(|(word, bound)| Some(format!("{} {word}", bound?)));
    given.collect::<Vec<_>>().join(", ")
}

fn ejection(rule: &EjectRule) -> String {
    let in_a_row = |n: Option<u32>, what| n.map(|n| format!("{n} {what} in a row"));
    let causes = [
        in_a_row(rule.server_errors, "answers of 5xx"),
        in_a_row(rule.gateway_errors, "answers of 502 to 504"),
        in_a_row(rule.local_failures, "failures to answer"),
        rule.failure_share.map(|part| format!("{} failed, clearly more than elsewhere", share(part))),
        rule.latency.map(|latency| format!("latency of {} of the others'", share(latency.times))),
    ];
    let causes: Vec<_> = causes.into_iter().flatten().collect();
    format!("after {}; tried again after {} to {}", causes.join(", or "), time(rule.probe_after), time(rule.longest))
}

/// A time as the file writes it.
pub(super) fn time(time: Duration) -> String {
    Span(time).write()
}

fn share(share: Share) -> String {
    percent(share.as_f64())
}

/// A part of 1 as the file writes it, rounded to a hundredth of a percent.
pub(super) fn percent(part: f64) -> String {
    let text = format!("{:.2}", part * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}
