//! A peer's endpoints as a pick wants them: by priority and zone, with the tables of keys and the subsets that routes name.
//!
//! Made when the endpoints or what the file asks for change, never on the way of a request.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use crate::plan::peer::{Balance, EndpointSpec, PeerPolicy};
use crate::plan::rules::{Share, SlowStartRule, SubsetRule};
use crate::resilience::keyhash::{hash, nth};
use crate::resilience::levels::{Levels, Strength};
use crate::resilience::maglev::Maglev;
use crate::resilience::pick::{Draw, Shares, warmth};
use crate::resilience::ring::{HashRing, Member, has_room};
use crate::resilience::subset::fitting;
use crate::telemetry::metrics::Gauge;

/// How much more than its even part a group of endpoints is trusted to take before the next one gets some: until more
/// than two of seven are out.
pub(super) const HEADROOM: Share = Share::percent(140);

/// What a request says about where it wants to go.
#[derive(Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Requests with the same key go to the same endpoint, where the balance goes by one.
    pub key: Option<u64>,
    /// Only endpoints of this subset.
    pub subset: Option<&'a Arc<SubsetRule>>,
}

/// What one pick goes by.
pub(super) struct Pick<'a> {
    pub(super) draw: &'a Draw,
    pub(super) policy: &'a PeerPolicy,
    /// Exchanges in flight at all endpoints of the peer.
    pub(super) crowd: &'a Gauge,
    pub(super) now: Instant,
    pub(super) ask: Ask<'a>,
    /// Already tried.
    pub(super) avoid: &'a [Arc<Endpoint>],
}

/// A peer's endpoints, prepared for picking.
#[derive(Default)]
pub struct EndpointSet {
    all: Vec<Arc<Endpoint>>,
    whole: Prepared,
    subsets: Vec<(Arc<SubsetRule>, Prepared)>,
    spill: Share,
}

impl EndpointSet {
    /// Prepares endpoints; `spill` is how much of its even part a priority takes before the next one gets some.
    pub(super) fn new(all: Vec<Arc<Endpoint>>, policy: &PeerPolicy, spill: Share) -> Self {
        let known = facts(&all);
        let subset = |rule: &Arc<SubsetRule>| (rule.clone(), Prepared::new(&part(&known, rule), policy, spill));
        let subsets = policy.subsets.iter().map(subset).collect();
        Self { whole: Prepared::new(&known, policy, spill), subsets, spill, all }
    }

    /// Every endpoint, also those of weight 0, in the order discovery gave them.
    pub fn all(&self) -> &[Arc<Endpoint>] {
        &self.all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Divides the traffic anew among priorities and zones; to be called when an endpoint was ejected or came back.
    pub(super) fn divide(&self) {
        self.whole.divide();
        self.subsets.iter().for_each(|(_, prepared)| prepared.divide());
    }

    pub(super) fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Endpoint>> {
        let Some(wanted) = pick.ask.subset else { return self.whole.pick(pick) };
        let same = |rule: &Arc<SubsetRule>| Arc::ptr_eq(rule, wanted) || rule == wanted;
        match self.subsets.iter().find(|(rule, _)| same(rule)) {
            Some((_, prepared)) => prepared.pick(pick),
            // The request is of a plan that a reload has just replaced: rare enough to be made for it alone.
            None => Prepared::new(&part(&facts(&self.all), wanted), pick.policy, self.spill).pick(pick),
        }
    }
}

/// An endpoint with what is known about it.
type Known = (Arc<Endpoint>, Arc<EndpointSpec>);

/// Those that take traffic.
fn facts(all: &[Arc<Endpoint>]) -> Vec<Known> {
    let known = all.iter().map(|endpoint| (endpoint.clone(), endpoint.spec()));
    known.filter(|(_, spec)| spec.weight > 0).collect()
}

fn part(known: &[Known], rule: &SubsetRule) -> Vec<Known> {
    let fit = fitting(known.iter().map(|(_, spec)| spec.metadata.as_deref()), rule);
    fit.into_iter().filter_map(|at| known.get(at).cloned()).collect()
}

/// Whether an endpoint may be chosen, as far as ejection knows.
fn is_well(_: &Endpoint) -> bool {
    true
}

/// The endpoints that one kind of request may go to.
#[derive(Default)]
struct Prepared {
    /// By priority, the lowest first; each by zone, our own first.
    tiers: Vec<Vec<Group>>,
    /// `None` where there is only one group.
    division: Option<ArcSwap<Division>>,
    spill: Share,
    /// When the last endpoint joined that was not there from the beginning.
    youngest: Option<Instant>,
}

/// What each group takes.
struct Division {
    tiers: Levels,
    zones: Vec<Levels>,
}

/// Endpoints of one priority and zone.
struct Group {
    members: Vec<Arc<Endpoint>>,
    weights: Vec<u32>,
    shares: Shares,
    table: Option<Table>,
}

/// Which endpoint a key belongs to.
enum Table {
    Ring(HashRing),
    Maglev(Maglev),
}

impl Prepared {
    fn new(known: &[Known], policy: &PeerPolicy, spill: Share) -> Self {
        let mut sorted: Vec<&Known> = known.iter().collect();
        let own = |spec: &EndpointSpec| policy.zone.is_some() && spec.zone == policy.zone;
        sorted.sort_by(|(_, a), (_, b)| (a.priority, !own(a), &a.zone).cmp(&(b.priority, !own(b), &b.zone)));
        let tier = |tier: &[&Known]| match tier.first() {
            // Without an endpoint in our own zone none is nearer than another.
            Some((_, first)) if own(first) => {
                tier.chunk_by(|(_, a), (_, b)| a.zone == b.zone).map(|zone| Group::new(zone, policy.balance)).collect()
            }
            _ => vec![Group::new(tier, policy.balance)],
        };
        let tiers: Vec<Vec<Group>> = sorted.chunk_by(|(_, a), (_, b)| a.priority == b.priority).map(tier).collect();
        let youngest = known.iter().filter_map(|(endpoint, _)| endpoint.joined()).max();
        let mut prepared = Self { division: None, tiers, spill, youngest };
        if prepared.tiers.iter().map(Vec::len).sum::<usize>() > 1 {
            prepared.division = Some(ArcSwap::from_pointee(prepared.divided()));
        }
        prepared
    }

    fn divide(&self) {
        if let Some(division) = &self.division {
            division.store(Arc::new(self.divided()));
        }
    }

    fn divided(&self) -> Division {
        let zones: Vec<Vec<Strength>> =
            self.tiers.iter().map(|groups| groups.iter().map(Group::strength).collect()).collect();
        let whole = |zones: &Vec<Strength>| {
            let sum = |of: fn(&Strength) -> u64| zones.iter().map(of).sum();
            Strength { well: sum(|zone| zone.well), all: sum(|zone| zone.all) }
        };
        let tiers: Vec<Strength> = zones.iter().map(whole).collect();
        Division {
            tiers: Levels::by_priority(&tiers, self.spill),
            zones: zones.iter().map(|zones| Levels::by_zone(zones, 0, HEADROOM)).collect(),
        }
    }

    /// An endpoint that was not tried: of the group that the traffic's division gives, else of any other, the lowest
    /// priority first; if all were tried, one of the first group again.
    fn pick(&self, pick: &Pick<'_>) -> Option<Arc<Endpoint>> {
        let (group, part) = self.group(pick)?;
        let young = pick.policy.rules.slow_start.as_ref().filter(|rule| {
            self.youngest.is_some_and(|joined| pick.now.saturating_duration_since(joined) < rule.window)
        });
        let from = |group: &Group, avoid: &[Arc<Endpoint>]| group.pick(pick, avoid, young, part);
        let fresh = from(group, pick.avoid);
        if fresh.is_some() || pick.avoid.is_empty() {
            return fresh;
        }
        let mut groups = self.tiers.iter().flatten();
        groups.find_map(|group| from(group, pick.avoid)).or_else(|| from(group, &[]))
    }

    /// The group that takes this request, and the part of all requests that it takes. A key always leads to the same
    /// group while the division stays as it is.
    fn group(&self, pick: &Pick<'_>) -> Option<(&Group, f64)> {
        let Some(division) = &self.division else {
            return self.tiers.first().and_then(|tier| tier.first()).map(|group| (group, 1.0));
        };
        let division = division.load();
        let point = |n: u64| match pick.ask.key {
            Some(key) => nth(key, n),
            None => pick.draw.roll(),
        };
        let tier = division.tiers.at(point(0));
        let (groups, zones) = (self.tiers.get(tier)?, division.zones.get(tier)?);
        let zone = if groups.len() > 1 { zones.at(point(1)) } else { 0 };
        let part = |levels: &Levels, at: usize| levels.parts().nth(at).unwrap_or(1.0);
        groups.get(zone).map(|group| (group, part(&division.tiers, tier) * part(zones, zone)))
    }
}

impl Group {
    fn new(known: &[&Known], balance: Balance) -> Self {
        let weights: Vec<u32> = known.iter().map(|(_, spec)| spec.weight).collect();
        let member = |(_, spec): &&Known| Member { id: hash(spec.addr.to_string().as_bytes()), weight: spec.weight };
        let members = || known.iter().map(member).collect::<Vec<_>>();
        let table = match balance {
            Balance::RingHash => Some(Table::Ring(HashRing::new(&members()))),
            Balance::Maglev => Some(Table::Maglev(Maglev::new(&members()))),
            Balance::PeakEwma | Balance::LeastRequest | Balance::RoundRobin | Balance::Random => None,
        };
        let members = known.iter().map(|(endpoint, _)| endpoint.clone()).collect();
        Self { members, shares: Shares::new(&weights), weights, table }
    }

    fn strength(&self) -> Strength {
        let mut sums = Strength { well: 0, all: 0 };
        for (member, weight) in self.members.iter().zip(&self.weights) {
            sums.all += u64::from(*weight);
            sums.well += if is_well(member) { u64::from(*weight) } else { 0 };
        }
        sums
    }

    fn pick(
        &self,
        pick: &Pick<'_>,
        avoid: &[Arc<Endpoint>],
        young: Option<&SlowStartRule>,
        part: f64,
    ) -> Option<Arc<Endpoint>> {
        let tried =
            |at: usize| self.members.get(at).is_some_and(|member| avoid.iter().any(|tried| Arc::ptr_eq(tried, member)));
        let at = match &self.table {
            Some(table) => self.by_key(table, pick, &tried, part),
            None => match young {
                None => self.by_load(pick, tried),
                Some(rule) => {
                    // If chance passes over all of them, they are equally young.
                    let fresh = self.by_load(pick, |at| tried(at) || self.is_cold(at, pick, rule));
                    fresh.or_else(|| self.by_load(pick, tried))
                }
            },
        };
        self.members.get(at?).cloned()
    }

    fn by_load(&self, pick: &Pick<'_>, avoided: impl Fn(usize) -> bool) -> Option<usize> {
        let balance = pick.policy.balance;
        let of = |at: usize, share| self.members.get(at).map_or(f64::MAX, |one| cost(balance, one, pick.now, share));
        pick.draw.pick(balance, &self.shares, avoided, of)
    }

    /// The endpoint of the request's key; a request without one is spread by chance.
    fn by_key(&self, table: &Table, pick: &Pick<'_>, tried: &dyn Fn(usize) -> bool, part: f64) -> Option<usize> {
        let key = pick.ask.key.unwrap_or_else(|| pick.draw.roll());
        let Some(most) = pick.policy.bounded_load else { return table.pick(key, tried) };
        let all = (pick.crowd.get().max(0) as f64 * part).ceil() as u64;
        let full = |at: usize| {
            let in_flight = self.members.get(at).map_or(0, |member| member.load().in_flight());
            !has_room(in_flight, all, self.members.len(), self.shares.relative(at), most)
        };
        table.pick(key, &|at| tried(at) || full(at)).or_else(|| table.pick(key, tried))
    }

    fn is_cold(&self, at: usize, pick: &Pick<'_>, rule: &SlowStartRule) -> bool {
        let joined = self.members.get(at).and_then(|member| member.joined());
        joined.is_some_and(|joined| pick.draw.too_cold(warmth(pick.now.saturating_duration_since(joined), rule)))
    }
}

impl Table {
    fn pick(&self, key: u64, avoided: &dyn Fn(usize) -> bool) -> Option<usize> {
        match self {
            Self::Ring(ring) => ring.pick(key, avoided),
            Self::Maglev(maglev) => maglev.pick(key, avoided),
        }
    }
}

fn cost(balance: Balance, endpoint: &Endpoint, now: Instant, share: f64) -> f64 {
    match balance {
        Balance::PeakEwma => endpoint.load().cost(now, share),
        Balance::LeastRequest | Balance::RoundRobin | Balance::Random | Balance::RingHash | Balance::Maglev => {
            1.0 + f64::from(endpoint.load().in_flight()) / share
        }
    }
}
