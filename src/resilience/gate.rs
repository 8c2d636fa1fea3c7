//! What every request of a door or a route passes first: an exact limit in flight, one that follows the latency, and
//! rates. A request that is refused here has cost its head and nothing else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

use super::concurrency::{self, Adaptive, Slot};
use super::limit::{self, Held, Limits};
use super::priority::Claim;
use super::rate::{Answer, Bucket, Keyed};
use crate::plan::Plan;
use crate::plan::rules::{ConcurrencyRule, GateRule, MeterRule, Priority, RateKey, RateRule};
use crate::spiffe::SpiffeId;

/// The state of a gate. Its numbers come with each question, so that a reload changes them and keeps the state.
#[derive(Debug)]
pub struct Gate {
    limits: Arc<Limits>,
    adaptive: Arc<Adaptive>,
    /// One for each rate, in their order.
    meters: Vec<Arc<Meter>>,
}

/// The gates of a plan.
#[derive(Debug)]
pub struct Gates {
    /// Of all that comes in.
    pub inbound: Gate,
    /// Of all that goes out.
    pub outbound: Gate,
    /// Of routes, by their key.
    pub routes: HashMap<Arc<str>, Gate>,
}

impl Gates {
    /// Those of `plan`, which go on where `before` stood.
    pub fn after(before: Option<&Self>, plan: &Plan, now: Instant) -> Self {
        let mut routes = HashMap::new();
        for gate in plan.peers.iter().flat_map(|peer| &peer.routes.list).filter_map(|route| route.gate.as_ref()) {
            let known = before.and_then(|gates| gates.routes.get(&gate.key));
            routes.insert(gate.key.clone(), Gate::after(known, &gate.rule, now));
        }
        Self {
            inbound: Gate::after(before.map(|gates| &gates.inbound), &plan.gates.inbound, now),
            outbound: Gate::after(before.map(|gates| &gates.outbound), &plan.gates.outbound, now),
            routes,
        }
    }

    /// From `now` on they go by `plan`, theirs: what a rate is owed that has a smaller bucket now is no more than it holds.
    pub fn follow(&self, plan: &Plan, now: Instant) {
        self.inbound.follow(&plan.gates.inbound, now);
        self.outbound.follow(&plan.gates.outbound, now);
        for gate in plan.peers.iter().flat_map(|peer| &peer.routes.list).filter_map(|route| route.gate.as_ref()) {
            if let Some(living) = self.routes.get(&gate.key) {
                living.follow(&gate.rule, now);
            }
        }
    }
}

/// A rate's state, and what it was made for.
#[derive(Debug)]
struct Meter {
    per: Option<RateKey>,
    keys: u32,
    /// What is owed reaches as far ahead as this: what an hour's rate is owed would shut one of a second for the hour.
    period: Duration,
    all: Bucket,
    each: Option<Keyed>,
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    /// When.
    pub now: Instant,
    /// From which address; `None` from a Unix socket.
    pub address: Option<IpAddr>,
    /// Who the caller has proven to be.
    pub identity: Option<&'a SpiffeId>,
    /// With which fields.
    pub headers: &'a HeaderMap,
    /// What it is worth.
    pub priority: Priority,
}

/// Why a request does not pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shut {
    /// Too many are in flight.
    Full(limit::Full),
    /// Too many are in flight for the latency that they have.
    Slow(concurrency::Full),
    /// They come too often.
    Rate {
        /// The rate's place among those of the rule.
        at: usize,
        /// What the bucket says.
        answer: Answer,
    },
}

/// Of the rates that a request has passed and that tell what they have left: the one with the least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Least {
    /// The rate's place among those of the rule.
    pub at: usize,
    /// What the bucket says.
    pub answer: Answer,
}

/// A request that has passed; in flight until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the request"]
pub struct Through {
    _in_flight: Held,
    /// Boxed, because most have none.
    slot: Option<Box<(Slot<Arc<Adaptive>>, ConcurrencyRule)>>,
}

impl Through {
    /// Its answer, which began at `now`, is over: that tells how fast the service is.
    pub fn teach(&mut self, now: Instant) {
        if let Some(slot) = self.slot.take() {
            let (slot, rule) = *slot;
            slot.answered(now, &rule);
        }
    }

    /// It became a tunnel, which says nothing about latency and has no answer to wait for.
    pub fn tunnel(&mut self) {
        self.slot = None;
    }
}

impl Meter {
    fn new(rule: &MeterRule, now: Instant) -> Self {
        let each = rule.per.as_ref().map(|_| Keyed::new(now, rule.keys, Default::default()));
        Self { per: rule.per.clone(), keys: rule.keys, period: rule.rate.period, all: Bucket::new(now), each }
    }

    /// Whether a rule goes on where it stands.
    fn is_of(&self, rule: &MeterRule) -> bool {
        self.per == rule.per && self.keys == rule.keys && self.period == rule.rate.period
    }

    fn follow(&self, rule: &RateRule, now: Instant) {
        self.all.follow(now, rule);
        if let Some(each) = &self.each {
            each.follow(now, rule);
        }
    }

    fn take(&self, rule: &RateRule, asking: &Asking<'_>) -> Answer {
        match (&self.each, &self.per) {
            (Some(each), Some(RateKey::Address)) => each.take(asking.now, rule, &asking.address),
            (Some(each), Some(RateKey::Identity)) => each.take(asking.now, rule, &asking.identity),
            (Some(each), Some(RateKey::Header(name))) => each.take(asking.now, rule, &asking.headers.get(name)),
            _ => self.all.take(asking.now, rule),
        }
    }
}

impl Gate {
    /// A gate for `rule` that goes on where `before` stood: its counts, and its rates where they are of the same kind.
    pub fn after(before: Option<&Self>, rule: &GateRule, now: Instant) -> Self {
        let mut known: Vec<_> = before.map(|gate| gate.meters.clone()).unwrap_or_default();
        let meters = rule.rates.iter().map(|rule| {
            let same = known.iter().position(|meter| meter.is_of(rule));
            // In their order: there may be several of a kind.
            same.map_or_else(|| Arc::new(Meter::new(rule, now)), |at| known.remove(at))
        });
        let meters = meters.collect();
        match before {
            Some(gate) => Self { limits: gate.limits.clone(), adaptive: gate.adaptive.clone(), meters },
            None => Self { limits: Arc::default(), adaptive: Arc::new(Adaptive::new(now)), meters },
        }
    }

    fn follow(&self, rule: &GateRule, now: Instant) {
        self.meters.iter().zip(&rule.rates).for_each(|(meter, rule)| meter.follow(&rule.rate, now));
    }

    /// Lets a request through, or not. The limits in flight are asked first, so that what they refuse takes nothing from
    /// the rates. Without any rule it only counts.
    ///
    /// # Errors
    /// What is reached. Nothing was taken, but from rates that stand before the one that refused.
    pub fn admit(&self, rule: &GateRule, asking: &Asking<'_>) -> Result<(Through, Option<Least>), Shut> {
        let claim = Claim { priority: asking.priority, kept: rule.kept };
        let in_flight = self.limits.enter(rule.in_flight, claim).map_err(Shut::Full)?;
        let slot = match &rule.adaptive {
            None => None,
            Some(rule) => {
                let slot = Adaptive::admit(self.adaptive.clone(), asking.now, rule, claim).map_err(Shut::Slow)?;
                Some(Box::new((slot, *rule)))
            }
        };
        let mut least: Option<Least> = None;
        for (at, (meter, rule)) in self.meters.iter().zip(&rule.rates).enumerate() {
            let answer = meter.take(&rule.rate, asking);
            if !answer.ok {
                return Err(Shut::Rate { at, answer });
            }
            if rule.told && least.is_none_or(|least| answer.remaining < least.answer.remaining) {
                least = Some(Least { at, answer });
            }
        }
        Ok((Through { _in_flight: in_flight, slot }, least))
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.limits.in_flight.used()
    }

    /// The limit that follows the latency as it stands; `None` before it was first asked.
    pub fn adaptive(&self) -> Option<u32> {
        self.adaptive.limit()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn rate(count: u32, per: Option<RateKey>) -> MeterRule {
        MeterRule { rate: RateRule::per_second(count), told: per.is_some(), per, keys: 100 }
    }

    fn rule(in_flight: Option<u32>, rates: Vec<MeterRule>) -> GateRule {
        GateRule { in_flight, rates: rates.into(), ..GateRule::default() }
    }

    fn asking<'a>(now: Instant, headers: &'a HeaderMap, last: u8) -> Asking<'a> {
        let address = Some(IpAddr::from([10, 0, 0, last]));
        Asking { now, address, identity: None, headers, priority: Priority::Normal }
    }

    #[test]
    fn what_is_dropped_is_given_back_and_a_reload_keeps_what_is_held() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let (two, one) = (rule(Some(2), vec![]), rule(Some(1), vec![]));
        let gate = Gate::after(None, &two, now);
        let ask = |gate: &Gate, rule| gate.admit(rule, &asking(now, &none, 1));
        let held: Vec<_> = (0..2).map(|_| ask(&gate, &two).unwrap()).collect();
        assert!(matches!(ask(&gate, &two), Err(Shut::Full(limit::Full { limit: 2, .. }))));
        let next = Gate::after(Some(&gate), &one, now);
        drop(gate);
        assert_eq!(next.in_flight(), 2);
        assert!(matches!(ask(&next, &one), Err(Shut::Full(limit::Full { limit: 1, .. }))));
        drop(held);
        assert_eq!(next.in_flight(), 0);
        assert!(ask(&next, &one).is_ok());
    }

    #[test]
    fn each_key_has_its_own_rate_and_the_flood_of_one_takes_nothing_from_all() {
        let now = Instant::now();
        let user = HeaderName::from_static("x-user");
        let rule = rule(None, vec![rate(2, Some(RateKey::Header(user.clone()))), rate(5, None)]);
        let gate = Gate::after(None, &rule, now);
        let of = |name: &'static str| HeaderMap::from_iter([(user.clone(), HeaderValue::from_static(name))]);
        let passes = |headers: &HeaderMap, times: usize| {
            let answers = (0..times).map(|_| gate.admit(&rule, &asking(now, headers, 1)));
            answers.map(|answer| answer.map(drop)).collect::<Vec<_>>()
        };
        let flood = passes(&of("a"), 50);
        assert_eq!(flood.iter().filter(|answer| answer.is_ok()).count(), 2);
        assert!(flood[2..].iter().all(|answer| matches!(answer, Err(Shut::Rate { at: 0, .. }))));
        assert!(passes(&of("b"), 2).iter().all(Result::is_ok));
        let rest = passes(&HeaderMap::new(), 2);
        assert!(rest[0].is_ok() && matches!(rest[1], Err(Shut::Rate { at: 1, .. })), "{rest:?}");
    }

    #[test]
    fn each_identity_has_its_own_rate_wherever_it_calls_from_and_those_without_one_share_one() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let rule = rule(None, vec![rate(2, Some(RateKey::Identity))]);
        let gate = Gate::after(None, &rule, now);
        let ids: Vec<SpiffeId> = ["spiffe://shop/a", "spiffe://shop/b"].map(|id| id.parse().unwrap()).into();
        let passed = |identity, addresses: std::ops::Range<u8>| {
            let ask = |last| gate.admit(&rule, &Asking { identity, ..asking(now, &none, last) });
            addresses.filter(|last| ask(*last).is_ok()).count()
        };
        // What one has used up is still there for the others.
        assert_eq!([Some(&ids[0]), None, Some(&ids[1]), None].map(|id| passed(id, 0..5)), [2, 2, 2, 0]);
    }

    #[test]
    fn what_is_of_low_priority_leaves_room_under_both_limits() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let adaptive = ConcurrencyRule { start: 10, ..ConcurrencyRule::default() };
        for rule in [rule(Some(10), vec![]), GateRule { adaptive: Some(adaptive), ..GateRule::default() }] {
            let rule = GateRule { kept: true, ..rule };
            let gate = Gate::after(None, &rule, now);
            let fill = |priority| {
                let ask = || gate.admit(&rule, &Asking { priority, ..asking(now, &none, 1) }).ok();
                std::iter::from_fn(ask).collect::<Vec<_>>()
            };
            let held = [Priority::Low, Priority::Normal, Priority::High].map(fill);
            assert_eq!(held.map(|held| held.len()), [8, 1, 1]);
        }
    }

    #[test]
    fn the_least_that_is_left_is_told_but_not_of_what_all_share() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let user = || Some(RateKey::Header(HeaderName::from_static("x-user")));
        let shared = rate(3, None);
        for (rates, told) in [
            (vec![shared.clone()], None),
            (vec![rate(9, Some(RateKey::Address)), shared.clone()], Some((0, 8))),
            (vec![rate(9, Some(RateKey::Address)), rate(5, user()), shared.clone()], Some((1, 4))),
            (vec![rate(9, Some(RateKey::Address)), MeterRule { told: true, ..shared }], Some((1, 2))),
        ] {
            let rule = rule(None, rates);
            let (_, least) = Gate::after(None, &rule, now).admit(&rule, &asking(now, &none, 1)).unwrap();
            assert_eq!(least.map(|least| (least.at, least.answer.remaining)), told);
        }
    }

    #[test]
    fn a_rate_survives_a_reload_that_changes_its_number_and_not_one_that_changes_its_kind() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let before = rule(None, vec![rate(2, None), rate(1, Some(RateKey::Address))]);
        let gate = Gate::after(None, &before, now);
        assert!(gate.admit(&before, &asking(now, &none, 1)).is_ok());
        let same = rule(None, vec![rate(1, Some(RateKey::Address)), rate(9, None)]);
        let next = Gate::after(Some(&gate), &same, now);
        assert!(matches!(next.admit(&same, &asking(now, &none, 1)), Err(Shut::Rate { at: 0, .. })));
        assert!(next.admit(&same, &asking(now, &none, 2)).is_ok());
        let other = rule(None, vec![rate(1, Some(RateKey::Header(HeaderName::from_static("x-a"))))]);
        assert!(Gate::after(Some(&next), &other, now).admit(&other, &asking(now, &none, 1)).is_ok());
    }

    #[test]
    fn a_reload_leaves_each_of_several_rates_of_one_key_its_own_state() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let per = |count, seconds| {
            let rate = RateRule { count, period: Duration::from_secs(seconds), burst: count };
            MeterRule { rate, ..self::rate(count, None) }
        };
        let (second, minute, hour) = (per(100, 1), per(60, 60), per(10, 3600));
        let before = rule(None, vec![rate(100, Some(RateKey::Address)), second.clone(), minute.clone(), hour.clone()]);
        let gate = Gate::after(None, &before, now);
        let ask = |gate: &Gate, rule| gate.admit(rule, &asking(now, &none, 1)).map(drop);
        assert_eq!([(); 10].map(|()| ask(&gate, &before)), [(); 10].map(Ok));
        assert!(matches!(ask(&gate, &before), Err(Shut::Rate { at: 3, .. })));
        // Nothing has changed: it is still the hour's rate that refuses.
        let same = Gate::after(Some(&gate), &before, now);
        assert!(matches!(ask(&same, &before), Err(Shut::Rate { at: 3, .. })));
        // What the hour owes would shut the others for an hour.
        let without = rule(None, vec![second, minute]);
        assert_eq!(ask(&Gate::after(Some(&same), &without, now), &without), Ok(()));
        let other = rule(None, vec![per(1000, 1)]);
        let only = Gate::after(Some(&gate), &rule(None, vec![hour]), now);
        assert_eq!(ask(&Gate::after(Some(&only), &other, now), &other), Ok(()));
    }

    #[test]
    fn the_limit_that_follows_latency_is_taught_once_and_released_by_a_tunnel() {
        let (now, none) = (Instant::now(), HeaderMap::new());
        let adaptive = ConcurrencyRule { least: 1, start: 1, ..ConcurrencyRule::default() };
        let rule = GateRule { adaptive: Some(adaptive), ..GateRule::default() };
        let gate = Gate::after(None, &rule, now);
        let (mut first, _) = gate.admit(&rule, &asking(now, &none, 1)).unwrap();
        assert!(matches!(gate.admit(&rule, &asking(now, &none, 1)), Err(Shut::Slow(_))));
        assert_eq!(gate.in_flight(), 1, "a refused one holds nothing");
        first.tunnel();
        let (mut second, _) = gate.admit(&rule, &asking(now, &none, 1)).unwrap();
        second.teach(now + Duration::from_millis(5));
        assert!(gate.admit(&rule, &asking(now, &none, 1)).is_ok());
        assert_eq!(gate.in_flight(), 2);
        drop((first, second));
        assert_eq!(gate.in_flight(), 0);
    }
}
