//! What is in force where a peer is called: its addresses, times, retries, limits and ejection.

use std::time::Duration;

use super::Explained;
use crate::config::kind::Scalar as _;
use crate::config::units::Span;
use crate::control::load::Loaded;
use crate::plan::door::Protocol;
use crate::plan::peer::{Addresses, Balance, PeerKind, PeerPlan, PeerPolicy, Roots};
use crate::plan::rules::{Condition, EjectRule, HedgeAfter, LimitsRule, Methods, Rules, Share};

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
    let (word, text) = match &peer.source.addresses {
        Addresses::Static(specs) if peer.kind == PeerKind::App => (app_key(loaded, peer), list(specs)),
        Addresses::Static(specs) => ("static".to_owned(), list(specs)),
        Addresses::Dns { host, port } => ("dns".to_owned(), format!("the A and AAAA records of {host}, port {port}")),
        Addresses::Srv { name } => ("srv".to_owned(), format!("the SRV records of {name}")),
        Addresses::File { path } => ("file".to_owned(), format!("the control file {}", path.display())),
    };
    said.keyed("endpoints", &[format!("{section}.{word}")], format!("{}: {text}", peer.name));
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

/// The key below `inbound` that names this app.
fn app_key(loaded: &Loaded, peer: &PeerPlan) -> String {
    let Addresses::Static(specs) = &peer.source.addresses else { return "app".to_owned() };
    let same = |app: &crate::ids::Addr| specs.iter().any(|spec| spec.addr == *app);
    let ports = loaded.config.inbound.iter().flat_map(|inbound| inbound.ports.0.iter().enumerate());
    let own = loaded.config.inbound.as_ref().and_then(|inbound| inbound.app.as_ref());
    if own.is_some_and(|app| same(&app.value.0)) {
        return "app".to_owned();
    }
    let port = ports.into_iter().find(|(_, port)| port.app.as_ref().is_some_and(|app| same(&app.value.0)));
    port.map_or_else(|| "app".to_owned(), |(n, _)| format!("ports[{n}].app"))
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
    said.keyed("limits", &keys("breaker"), text);
    if let Some(rule) = &rules.breaker {
        let text = format!("opens at {} failures for {}", share(rule.failure_share), time(rule.open_for));
        said.keyed("breaker", &keys("breaker"), text);
    }
    if let Some(rule) = &rules.concurrency {
        let text = format!("adaptive, {} to {} requests in flight", rule.least, rule.most);
        said.keyed("concurrency", &keys("concurrency"), text);
    }
    if let Some(rule) = &rules.admission {
        let text = format!("refuses at most {} of what the peer would refuse", share(rule.most));
        said.keyed("admission", &keys("admission"), text);
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
