//! What the file says of limits, rates and breakers, as the rules that the machines go by.

use std::sync::Arc;

use crate::config::collect::{OneOrMore, OrNone, Switch};
use crate::config::kind::Set;
use crate::config::limits::{self as said, Breaker, EndpointLimits, Rate, RouteLimits};
use crate::config::listener::{Inbound, Limits};
use crate::config::problem::Problems;
use crate::config::route::{Priority as SaidPriority, Route};
use crate::config::units::{self, Count};
use crate::config::{Config, units::Percent};
use crate::plan::peer::PeerPlan;
use crate::plan::rules::{
    AdmissionRule, BreakerRule, ConcurrencyRule, DoorGates, GateRule, LimitsRule, MeterRule, Priority, RateKey,
    RateRule, RouteGate, Rules, Share,
};

/// Puts a peer's `breaker` into its rules.
pub fn breaker(set: &Set<Breaker>, rules: &mut Rules, problems: &mut Problems) {
    let each: &EndpointLimits = &set.endpoint;
    rules.limits = LimitsRule {
        connections: most(&set.connections),
        connecting: most(&set.connecting),
        in_flight: most(&set.in_flight),
        pending: most(&set.pending),
        retries: most(&set.retries),
    };
    rules.endpoint_limits = LimitsRule {
        connections: most(&each.connections),
        connecting: most(&each.connecting),
        in_flight: most(&each.in_flight),
        pending: most(&each.pending),
        retries: None,
    };
    rules.breaker = failing(set, problems);
    rules.concurrency = adaptive(&set.adaptive, problems);
    rules.admission = set.admission.0.as_ref().map(|admission| AdmissionRule {
        accepts: percent(&admission.accepts),
        most: share(&admission.most),
        volume: number(admission.volume.0),
    });
    wider_whole(set, problems);
}

fn failing(set: &Set<Breaker>, problems: &mut Problems) -> Option<BreakerRule> {
    let failures = set.failures.0.as_ref();
    let slow = set.slow.as_ref().and_then(|slow| Some((share(&slow.share), slow.from.as_ref()?.0)));
    if failures.is_none() && set.slow.is_none() {
        let usual = BreakerRule::default();
        let volume = number(set.volume.0) != usual.volume;
        for (key, given) in [("volume", volume), ("open-for", set.open_for.0 != usual.open_for)] {
            if given {
                set.refuse(problems, format!("`{key}` means nothing without `failures` or `slow`"));
            }
        }
        return None;
    }
    if failures.is_some_and(|share| share.0 == 0) {
        set.failures.refuse(problems, "a share of 0% is always reached: write `off`, or what is too much");
    }
    Some(BreakerRule {
        // More than the whole is never reached: slowness alone opens it then.
        failure_share: failures.map_or(Share::percent(101), |share| Share::millionths(share.0)),
        slow,
        volume: number(set.volume.0),
        open_for: set.open_for.0,
    })
}

/// A limit for one endpoint above that of the whole peer can never be reached.
fn wider_whole(set: &Set<Breaker>, problems: &mut Problems) {
    let each: &EndpointLimits = &set.endpoint;
    for (key, one, whole) in [
        ("connections", &each.connections, &set.connections),
        ("connecting", &each.connecting, &set.connecting),
        ("in-flight", &each.in_flight, &set.in_flight),
    ] {
        if let (Some(one_most), Some(whole_most)) = (most(one), most(whole))
            && one_most > whole_most
        {
            one.refuse(problems, format!("is never reached: `{key}` of the whole peer is {whole_most}"));
        }
    }
}

/// The gates of the two doors.
pub fn doors(config: &Config, problems: &mut Problems) -> DoorGates {
    let mut gate = |limits: &Limits, kept| GateRule {
        in_flight: most(&limits.in_flight),
        rates: rates(limits.rate.as_ref(), false),
        adaptive: adaptive(&limits.adaptive, problems),
        kept,
    };
    let inbound = |inbound: &Set<Inbound>| gate(&inbound.limits, inbound.routes.0.iter().any(is_high));
    DoorGates {
        inbound: config.inbound.as_ref().map(inbound).unwrap_or_default(),
        outbound: gate(
            &config.outbound.limits,
            config.peers.0.iter().any(|(_, peer)| peer.routes.0.iter().any(is_high)),
        ),
    }
}

/// Has the peers that a route of high priority leads to keep some of their limits in flight for it; before routes
/// take those peers' policies over.
pub fn keep_for_high(config: &Config, apps: usize, peers: &mut [PeerPlan]) {
    for (n, (_, peer)) in config.peers.0.iter().enumerate() {
        for route in peer.routes.0.iter().filter(|route| is_high(route)) {
            let parts = route.split.iter().flat_map(|split| &split.0);
            let named: Vec<&str> =
                parts.map(|(key, part)| part.peer.as_ref().map_or(key.as_str(), |peer| &peer.value.0)).collect();
            for (at, plan) in peers.iter_mut().enumerate().skip(apps) {
                let meant = if route.split.is_some() { named.contains(&plan.name.as_str()) } else { at == apps + n };
                if meant {
                    Arc::make_mut(&mut plan.policy).rules.kept = true;
                }
            }
        }
    }
}

fn is_high(route: &Set<Route>) -> bool {
    route.priority.as_ref().is_some_and(|priority| priority.value == SaidPriority::High)
}

/// What a route says its requests are worth.
pub fn priority(said: SaidPriority) -> Priority {
    match said {
        SaidPriority::Low => Priority::Low,
        SaidPriority::Normal => Priority::Normal,
        SaidPriority::High => Priority::High,
    }
}

/// The gate of a route.
pub fn route(set: &Set<Route>, problems: &mut Problems) -> Option<Box<RouteGate>> {
    let limits = set.limits.as_ref()?;
    let said: &RouteLimits = limits;
    let rule = GateRule {
        in_flight: most(&said.in_flight),
        rates: rates(said.rate.as_ref(), true),
        adaptive: adaptive(&said.adaptive, problems),
        kept: false,
    };
    if rule.is_open() {
        limits.refuse(problems, "does nothing: give `in-flight`, `rate` or `adaptive`");
    }
    let owner = set.path.rsplit_once('[').map_or(&*set.path, |(owner, _)| owner);
    let key = set.name.as_ref().map_or_else(|| Arc::clone(&set.path), |name| format!("{owner}/{}", name.0).into());
    Some(Box::new(RouteGate { key, rule }))
}

fn rates(said: Option<&Set<OneOrMore<Rate>>>, of_route: bool) -> Box<[MeterRule]> {
    let mut rates: Vec<_> = said.iter().flat_map(|rates| &rates.0).filter_map(|rate| meter(rate, of_route)).collect();
    rates.sort_by_key(|rate| rate.per.is_none());
    rates.into()
}

fn meter(rate: &Rate, of_route: bool) -> Option<MeterRule> {
    let pace = rate.limit.as_ref()?.value;
    let burst = rate.burst.as_ref().map_or(pace.count, |burst| number(burst.0));
    Some(MeterRule {
        rate: RateRule { count: pace.count, period: pace.period, burst },
        per: rate.per.as_ref().map(|per| match &per.value {
            said::RateKey::Address => RateKey::Address,
            said::RateKey::Header(name) => RateKey::Header(name.clone()),
            said::RateKey::Identity => RateKey::Identity,
        }),
        keys: number(rate.keys.0),
        told: of_route || rate.per.is_some(),
    })
}

fn adaptive(set: &Set<Switch<said::Adaptive>>, problems: &mut Problems) -> Option<ConcurrencyRule> {
    let said = set.value.0.as_ref()?;
    let (least, start, most) = (number(said.least.0), number(said.start.0), number(said.most.0));
    if !(least <= start && start <= most) {
        let text = format!("expected least <= start <= most, found {least}, {start} and {most}");
        set.refuse(problems, text);
    }
    Some(ConcurrencyRule { least, most, start, tolerance: percent(&said.tolerance) })
}

fn most<const MIN: u64, const MAX: u64>(set: &Set<OrNone<Count<MIN, MAX>>>) -> Option<u32> {
    set.value.0.map(|count| number(count.0))
}

fn number(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn share(set: &Set<units::Share>) -> Share {
    Share::millionths(set.value.0)
}

fn percent<const MIN: u64, const MAX: u64>(set: &Set<Percent<MIN, MAX>>) -> Share {
    Share::percent(number(set.value.0))
}
