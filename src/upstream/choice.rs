//! A peer's endpoints as a pick wants them: by priority and zone, with the tables of keys and the subsets that routes name.
//!
//! Made when the endpoints or what the file asks for change, never on the way of a request.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use arc_swap::{ArcSwap, Guard};
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::roster::Roster;
use crate::plan::keyhash::{hash, nth, scale};
use crate::plan::peer::{Balance, EndpointSpec, PeerPolicy};
use crate::plan::rules::{Share, SlowStartRule, SubsetRule};
use crate::resilience::levels::{Levels, Strength};
use crate::resilience::maglev::Maglev;
use crate::resilience::pick::{Choice, Draw, Shares, warmth};
use crate::resilience::ring::{HashRing, Member, has_room};
use crate::resilience::subset::fitting;
use crate::telemetry::metrics::Gauge;

/// How much more than its even part a group of endpoints is trusted to take before the next one gets some: until more
/// than two of seven are out.
pub(super) const HEADROOM: Share = Share::percent(140);

/// Endpoints that are looked at for a further attempt.
const LOOKS: usize = 64;

/// Endpoints of a group that is out which a request looks at for one to be tried.
const LOOKED_AT: usize = 32;

/// What a request says about where it wants to go.
#[derive(Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Requests with the same key go to the same endpoint, where the balance goes by one.
    pub key: Option<u64>,
    /// Only endpoints of this subset.
    pub subset: Option<&'a Arc<SubsetRule>>,
    /// This endpoint and no other, whatever is known of it: the caller dialled it itself.
    pub only: Option<&'a Arc<Endpoint>>,
}

/// What one pick goes by.
pub(super) struct Pick<'a> {
    pub(super) draw: &'a Draw,
    pub(super) policy: &'a PeerPolicy,
    /// Who is in the choice.
    pub(super) roster: &'a Roster,
    /// Exchanges in flight at all endpoints of the peer.
    pub(super) crowd: &'a Gauge,
    pub(super) now: Instant,
    pub(super) ask: Ask<'a>,
    /// Already tried.
    pub(super) avoid: &'a [Arc<Endpoint>],
    /// Only IPv6 addresses count as untried, or only IPv4 ones.
    pub(super) ipv6: Option<bool>,
}

impl Pick<'_> {
    fn tried(&self, endpoint: &Arc<Endpoint>) -> bool {
        if self.ipv6.is_some_and(|wanted| endpoint.is_ipv6() != Some(wanted)) {
            return true;
        }
        self.avoid.iter().any(|tried| Arc::ptr_eq(tried, endpoint))
    }
}

/// An endpoint that was chosen; `open` where it is out, because all are.
pub(super) struct Picked {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) open: bool,
}

/// A peer's endpoints, prepared for picking.
#[derive(Default)]
pub struct EndpointSet {
    all: Vec<Arc<Endpoint>>,
    whole: Prepared,
    subsets: Vec<(Arc<SubsetRule>, Prepared)>,
    spill: Share,
    /// Whether there are addresses of both IP families.
    mixed: bool,
    /// By address, IPv4 as such; made when a captured connection first asks.
    by_addr: OnceLock<HashMap<SocketAddr, usize>>,
    /// The machines that they are on; made in the same way.
    hosts: OnceLock<HashSet<IpAddr>>,
}

impl EndpointSet {
    /// Prepares endpoints; `spill` is how much of its even part a priority takes before the next one gets some.
    pub(super) fn new(all: Vec<Arc<Endpoint>>, roster: &Roster, spill: Share) -> Self {
        let (known, policy) = (facts(&all), &**roster.policy.load());
        let prepared = |known: &[Known]| Prepared::new(known, policy, roster.changes(), spill);
        let subset = |rule: &Arc<SubsetRule>| (rule.clone(), prepared(&part(&known, rule)));
        let subsets = policy.subsets.iter().map(subset).collect();
        let has = |ipv6: bool| known.iter().any(|(endpoint, _)| endpoint.is_ipv6() == Some(ipv6));
        let (whole, mixed) = (prepared(&known), has(true) && has(false));
        Self { whole, subsets, spill, mixed, all, by_addr: OnceLock::new(), hosts: OnceLock::new() }
    }

    /// The endpoint at an address, whatever weight it has.
    pub fn at(&self, addr: SocketAddr) -> Option<&Arc<Endpoint>> {
        let index = || {
            let all = self.all.iter().enumerate();
            // In reverse, so that of two that are one the first counts.
            all.rev().filter_map(|(at, endpoint)| Some((canonical(endpoint.addr().tcp()?), at))).collect()
        };
        self.all.get(*self.by_addr.get_or_init(index).get(&canonical(addr))?)
    }

    /// Whether one has this IP address, at whatever port.
    pub fn is_on(&self, host: IpAddr) -> bool {
        let hosts = || self.all.iter().filter_map(|endpoint| Some(canonical(endpoint.addr().tcp()?).ip())).collect();
        self.hosts.get_or_init(hosts).contains(&host.to_canonical())
    }

    /// Whether there are addresses of both IP families.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed
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

    /// An endpoint that is in the choice and was not tried, as the traffic is divided; then one that was tried, and only
    /// if all are out one that is. See [`Draw::choose`].
    pub(super) fn choose(&self, pick: &Pick<'_>) -> Option<Picked> {
        let Some(wanted) = pick.ask.subset else { return self.whole.choose(pick) };
        let same = |rule: &Arc<SubsetRule>| Arc::ptr_eq(rule, wanted) || rule == wanted;
        if let Some((_, prepared)) = self.subsets.iter().find(|(rule, _)| same(rule)) {
            return prepared.choose(pick);
        }
        // The request is of a plan that a reload has just replaced: rare enough to be made for it alone.
        let known = part(&facts(&self.all), wanted);
        Prepared::new(&known, pick.policy, pick.roster.changes(), self.spill).choose(pick)
    }
}

/// An IPv4 address that is written as an IPv6 one is that IPv4 address; a scope is no part of where it is.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
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
    /// Where [`Roster::changes`] stood.
    at: u64,
    tiers: Levels,
    zones: Vec<Levels>,
    /// The groups of which nobody is well, by tier and zone.
    dark: Vec<(usize, usize)>,
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
    /// `at` is where [`Roster::changes`] stood before.
    fn new(known: &[Known], policy: &PeerPolicy, at: u64, spill: Share) -> Self {
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
            prepared.division = Some(ArcSwap::from_pointee(prepared.divided(at)));
        }
        prepared
    }

    fn divided(&self, at: u64) -> Division {
        let zones: Vec<Vec<Strength>> =
            self.tiers.iter().map(|groups| groups.iter().map(Group::strength).collect()).collect();
        let whole = |zones: &Vec<Strength>| {
            let sum = |of: fn(&Strength) -> u64| zones.iter().map(of).sum();
            Strength { well: sum(|zone| zone.well), all: sum(|zone| zone.all) }
        };
        let tiers: Vec<Strength> = zones.iter().map(whole).collect();
        let each = |(tier, zones): (usize, &Vec<Strength>)| {
            let dark = zones.iter().enumerate().filter(|(_, zone)| zone.well == 0);
            dark.map(|(zone, _)| (tier, zone)).collect::<Vec<_>>()
        };
        Division {
            at,
            dark: zones.iter().enumerate().flat_map(each).collect(),
            tiers: Levels::by_priority(&tiers, self.spill),
            zones: zones.iter().map(|zones| Levels::by_zone(zones, 0, HEADROOM)).collect(),
        }
    }

    /// Of the group that the traffic's division gives, else of any other, the lowest priority first; if all were tried
    /// or are out, of the first group again.
    fn choose(&self, pick: &Pick<'_>) -> Option<Picked> {
        let young = pick.policy.rules.slow_start.as_ref().filter(|rule| {
            self.youngest.is_some_and(|joined| pick.now.saturating_duration_since(joined) < rule.window)
        });
        let from = |group: &Group, part: f64| group.choose(pick, young, part);
        let fresh = |picked: &Picked| !picked.open && !pick.tried(&picked.endpoint);
        let Some(division) = &self.division else { return from(self.group(0, 0)?, 1.0) };
        let division = self.in_force(division, pick.roster);
        let (tier, zone, part) = division.point(pick);
        // Nothing else would bring back a group that is out as a whole: nothing of the traffic comes to it. One that
        // would get none if it were well is left alone. A further attempt may be the last and tries nobody out.
        let (short, first) = (division.tiers.short(), pick.avoid.is_empty());
        let out = division.dark.iter().filter(|(of, _)| first && (*of <= tier || short));
        if let Some(probe) = out.filter_map(|(tier, zone)| self.group(*tier, *zone)?.due(pick)).next() {
            return Some(probe);
        }
        let mut best: Option<Picked> = None;
        for group in self.group(tier, zone).into_iter().chain(self.tiers.iter().flatten()) {
            let Some(picked) = from(group, part) else { continue };
            if fresh(&picked) {
                return Some(picked);
            }
            let rank = |picked: &Picked| (picked.open, pick.tried(&picked.endpoint));
            if best.as_ref().is_none_or(|best| rank(&picked) < rank(best)) {
                best = Some(picked);
            }
        }
        best
    }

    fn group(&self, tier: usize, zone: usize) -> Option<&Group> {
        self.tiers.get(tier)?.get(zone)
    }

    /// The division, made anew if an endpoint was ejected, found unhealthy or came back since it was made.
    fn in_force(&self, division: &ArcSwap<Division>, roster: &Roster) -> Guard<Arc<Division>> {
        let (known, at) = (division.load(), roster.changes());
        if known.at == at {
            return known;
        }
        // Several requests may do that at once; if an older one is the last to store, the next request sees it.
        division.store(Arc::new(self.divided(at)));
        division.load()
    }
}

impl Division {
    /// The group that takes this request, and the part of all requests that it takes. A key always leads to the same
    /// group while the division stays as it is.
    fn point(&self, pick: &Pick<'_>) -> (usize, usize, f64) {
        let point = |n: u64| match pick.ask.key {
            Some(key) => nth(key, n),
            None => pick.draw.roll(),
        };
        let part = |levels: &Levels, at: usize| levels.parts().nth(at).unwrap_or(1.0);
        let tier = self.tiers.at(point(0));
        let whole = part(&self.tiers, tier);
        match self.zones.get(tier) {
            Some(zones) if zones.parts().nth(1).is_some() => {
                let zone = zones.at(point(1));
                (tier, zone, whole * part(zones, zone))
            }
            _ => (tier, 0, whole),
        }
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
            sums.well += if member.standing().is_well() { u64::from(*weight) } else { 0 };
        }
        sums
    }

    /// One of a group that is out which may be tried. A large group is not searched through for each request: some of
    /// it are looked at, others by the next one.
    fn due(&self, pick: &Pick<'_>) -> Option<Picked> {
        let at = scale(pick.draw.roll(), self.members.len() as u64) as usize;
        let (before, from) = self.members.split_at_checked(at)?;
        let fits = |one: &&Arc<Endpoint>| !one.standing().is_out(pick.now) && !pick.tried(one);
        let endpoint = from.iter().chain(before).take(LOOKED_AT).find(fits)?;
        Some(Picked { endpoint: endpoint.clone(), open: false })
    }

    /// Whom a further attempt goes to. It may be the last one, so nothing is left to chance and nobody is tried out with it:
    /// whoever fails nobody, then the cheapest. An endpoint that has just failed several in a row, this request among
    /// them, is a worse guess than one that was ejected some time ago.
    fn again(&self, pick: &Pick<'_>) -> Option<Picked> {
        let look = |at: usize| {
            let (endpoint, share) = (self.members.get(at)?, self.shares.relative(at));
            let (standing, tried) = (endpoint.standing(), pick.tried(endpoint));
            let open = !standing.is_well();
            let rank = match (tried, open, standing.failing()) {
                (false, false, 0) => 0,
                (false, false, 1) => 1,
                // One misfortune is none, two are no chance.
                (true, false, 0 | 1) if pick.avoid.len() == 1 => 2,
                (false, ..) => 3,
                (true, false, _) => 4,
                (true, true, _) => 5,
            };
            // With this request on it, so that a small weight counts although there is nothing to do yet.
            let cost = load(pick.policy.balance, endpoint, pick.now, share) * (1.0 + 1.0 / share);
            Some((rank, cost, Picked { endpoint: endpoint.clone(), open }))
        };
        let looks = pick.draw.several(&self.shares, LOOKS).filter_map(look);
        looks.min_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1))).map(|(.., picked)| picked)
    }

    fn choose(&self, pick: &Pick<'_>, young: Option<&SlowStartRule>, part: f64) -> Option<Picked> {
        // Every app is alone behind its door.
        if let [only] = self.members.as_slice()
            && pick.avoid.is_empty()
            && only.standing().is_well()
        {
            return Some(Picked { endpoint: only.clone(), open: false });
        }
        if !pick.avoid.is_empty() && pick.ipv6.is_none() && self.table.is_none() {
            // In a large group nobody who is well may have been among those that were looked at.
            let again = self.again(pick).filter(|picked| !picked.open || self.members.len() <= LOOKS);
            if again.is_some() {
                return again;
            }
        }
        let tried = |at: usize| self.members.get(at).is_some_and(|member| pick.tried(member));
        let out = |at: usize| self.members.get(at).is_some_and(|member| member.standing().is_out(pick.now));
        let choice = match &self.table {
            Some(table) => self.by_key(table, pick, &tried, &out, part),
            None => {
                // If chance passes over all of them, they are equally young.
                let warm = young.filter(|_| !pick.roster.all_ejected()).and_then(|rule| {
                    let of = |at, share| self.cost(pick, at, share);
                    let avoided = |at: usize| tried(at) || out(at) || self.is_cold(at, pick, rule);
                    pick.draw.pick(pick.policy.balance, &self.shares, avoided, of)
                });
                warm.map(|at| Choice { at, open: false }).or_else(|| self.by_load(pick, tried, out))
            }
        }?;
        Some(Picked { endpoint: self.members.get(choice.at)?.clone(), open: choice.open })
    }

    fn by_load(&self, pick: &Pick<'_>, tried: impl Fn(usize) -> bool, out: impl Fn(usize) -> bool) -> Option<Choice> {
        let of = |at, share| self.cost(pick, at, share);
        pick.draw.choose(pick.policy.balance, &self.shares, pick.roster.all_ejected(), tried, out, of)
    }

    fn cost(&self, pick: &Pick<'_>, at: usize, share: f64) -> f64 {
        self.members.get(at).map_or(f64::MAX, |one| cost(pick.policy.balance, one, pick.now, share))
    }

    /// The endpoint of the request's key; a request without one is spread by chance. As [`Draw::choose`], with regard to
    /// what was tried and what is out.
    fn by_key(
        &self,
        table: &Table,
        pick: &Pick<'_>,
        tried: &dyn Fn(usize) -> bool,
        out: &dyn Fn(usize) -> bool,
        part: f64,
    ) -> Option<Choice> {
        let key = pick.ask.key.unwrap_or_else(|| pick.draw.roll());
        // Known beforehand, it spares a look at each entry of the table.
        if !pick.roster.all_ejected() {
            let fits = |at: usize| !tried(at) && !out(at);
            let bounded = pick.policy.bounded_load.and_then(|most| {
                let all = (pick.crowd.get().max(0) as f64 * part).ceil() as u64;
                // What those that are out would carry is carried by the others.
                let left = (self.members.len() as f64 * pick.roster.left()).ceil() as usize;
                let full = |at: usize| {
                    let in_flight = self.members.get(at).map_or(0, |member| member.load().in_flight());
                    !has_room(in_flight, all, left, self.shares.relative(at), most)
                };
                table.pick(key, &|at| !fits(at) || full(at))
            });
            let well = bounded.or_else(|| table.pick(key, &|at| !fits(at))).or_else(|| table.pick(key, out));
            if let Some(at) = well {
                return Some(Choice { at, open: false });
            }
        }
        let any = table.pick(key, tried).or_else(|| table.pick(key, &|_| false));
        any.map(|at| Choice { at, open: true })
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
    // Its load still tells of its failures; nothing else would bring it back.
    if endpoint.standing().probe_due(now) {
        return 0.0;
    }
    load(balance, endpoint, now, share)
}

/// What a further request costs at an endpoint, whether it is out or not.
fn load(balance: Balance, endpoint: &Endpoint, now: Instant, share: f64) -> f64 {
    match balance {
        Balance::PeakEwma => endpoint.load().cost(now, share),
        Balance::LeastRequest | Balance::RoundRobin | Balance::Random | Balance::RingHash | Balance::Maglev => {
            1.0 + f64::from(endpoint.load().in_flight()) / share
        }
    }
}
