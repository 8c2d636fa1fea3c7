//! A living peer: its endpoints, the policy in force, and where discovery stands.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::choice::{Ask, EndpointSet, HEADROOM, Pick, Picked};
use super::endpoint::Endpoint;
use super::guards::Guards;
use super::in_flight::InFlight;
use super::lease::Version;
use super::mesh::Mesh;
use super::room::Home;
use super::roster::Roster;
use super::state::PeerState;
use super::unread::MOST_AT_ONCE;
use super::world::Upstreams;
use crate::ids::{Addr, PeerName};
use crate::life::tasks::Tasks;
use crate::net::inside::inside;
use crate::plan::door::Protocol;
use crate::plan::peer::{Addresses, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource, ToApp};
use crate::plan::rules::Rules;
use crate::resilience::budget::Budget;
use crate::resilience::hedge::Latencies;
use crate::resilience::levels::NO_OVERFLOW;
use crate::resilience::limit::Limits;
use crate::resilience::pick::Draw;
use crate::telemetry::metrics::{Gauge, PeerMetrics};
use crate::tls::client::ClientTls;

/// A named service with its endpoints.
pub struct Peer {
    name: PeerName,
    kind: PeerKind,
    source: PeerSource,
    /// The policy, and who is in the choice.
    roster: Arc<Roster>,
    metrics: Arc<PeerMetrics>,
    endpoints: ArcSwap<EndpointSet>,
    /// Held while the set is being replaced; never on the request path.
    updating: Mutex<()>,
    discovery: Mutex<Discovery>,
    doubts: Arc<Notify>,
    draw: Draw,
    budget: Budget,
    /// How long its answers took, as far as hedging wants to know.
    latencies: Latencies,
    /// Exchanges in flight at all endpoints.
    crowd: Arc<Gauge>,
    tls: Option<ClientTls>,
    mesh: Option<Mesh>,
    tasks: Tasks,
    /// Places for answers of which the rest is read for nobody.
    unread: Arc<Semaphore>,
    guards: Guards,
    me: Weak<Self>,
}

/// Where discovery stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// No answer yet.
    Pending,
    /// The endpoints are those of the last answer.
    Ready,
    /// The endpoints are those of an earlier answer; newer ones failed.
    Stale {
        /// What failed.
        why: String,
        /// Since when.
        since: SystemTime,
    },
    /// The source answered that there is no endpoint.
    Empty {
        /// In which way.
        why: String,
    },
    /// There was never an answer, or the last one is too old.
    Failed {
        /// What failed.
        why: String,
    },
}

impl Peer {
    /// Makes a peer; static addresses are in force at once.
    ///
    /// # Errors
    /// One line: the TLS roots cannot be read.
    pub fn new(plan: &PeerPlan, metrics: Arc<PeerMetrics>, shared: &Upstreams) -> Result<Arc<Self>, String> {
        let tls = client_tls(plan, shared)?;
        let mesh = Mesh::of(plan, shared);
        let peer = Arc::new_cyclic(|me| Self {
            name: plan.name.clone(),
            kind: plan.kind,
            source: plan.source.clone(),
            roster: Roster::new(plan.name.clone(), metrics.clone(), plan.policy.clone(), Instant::now()),
            metrics,
            endpoints: ArcSwap::from_pointee(EndpointSet::default()),
            updating: Mutex::new(()),
            discovery: Mutex::new(Discovery::Pending),
            doubts: Arc::default(),
            draw: Draw::new(fastrand::u64(..)),
            budget: Budget::new(Instant::now()),
            latencies: Latencies::new(Instant::now()),
            crowd: Arc::default(),
            tls,
            mesh,
            tasks: shared.tasks.clone(),
            unread: Arc::new(Semaphore::new(MOST_AT_ONCE)),
            guards: Guards::new(Instant::now()),
            me: me.clone(),
        });
        if let Addresses::Static(specs) = &plan.source.addresses {
            peer.update(specs.clone());
            peer.set_discovery(Discovery::Ready);
        }
        shared.watch(&peer);
        Ok(peer)
    }

    /// Its name.
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    /// What sort of peer it is.
    pub fn kind(&self) -> PeerKind {
        self.kind
    }

    /// Where its endpoints come from.
    pub fn source(&self) -> &PeerSource {
        &self.source
    }

    /// How the service is called past the rules, if this is the service and there are any. In a network of its own it is
    /// never looked for outside, whatever the file says by now.
    pub fn to_app(&self) -> Option<ToApp> {
        let within = self.kind == PeerKind::App && inside().is_some();
        self.source.to_app.or_else(|| within.then_some(ToApp { from: None }))
    }

    /// How it is called.
    pub fn policy(&self) -> Arc<PeerPolicy> {
        self.roster.policy.load_full()
    }

    /// Changes how it is called, from the next request on; connections stay.
    pub fn set_policy(&self, policy: Arc<PeerPolicy>) {
        let before = self.roster.policy.swap(policy.clone());
        self.set_guards(&before.rules, &policy.rules);
        if before.keep_alive != policy.keep_alive {
            for endpoint in self.endpoints().all() {
                endpoint.set_unlearned(policy.keep_alive);
            }
        }
        let prepared = |policy: &PeerPolicy| (policy.balance, policy.zone.clone(), policy.subsets.clone());
        if prepared(&before) != prepared(&policy) {
            let _one_at_a_time = self.updating.lock();
            let all = self.endpoints.load().all().to_vec();
            self.prepare(all);
        }
        if before.rules != policy.rules {
            for endpoint in self.endpoints().all() {
                endpoint.set_rules(&policy.rules);
                endpoint.look_again(Instant::now());
            }
        }
    }

    /// What is turned off forgets what it knew, and nobody waits for longer than the rule in force says.
    fn set_guards(&self, before: &Rules, rules: &Rules) {
        let now = Instant::now();
        match &rules.eject {
            None if before.eject.is_none() => {}
            None => self.endpoints().all().iter().for_each(|endpoint| endpoint.standing().pardon()),
            Some(rule) if before.eject.as_ref() == Some(rule) => {}
            Some(rule) => self.endpoints().all().iter().for_each(|endpoint| endpoint.standing().hurry(now, rule)),
        }
        match &rules.breaker {
            None => self.guards.forget_breaker(&self.metrics),
            Some(rule) => self.guards.breaker.hurry(now, rule),
        }
    }

    /// Puts these endpoints in force; to be called by one at a time.
    fn prepare(&self, all: Vec<Arc<Endpoint>>) {
        // The lowest priority of SRV records that can be reached takes all (RFC 2782).
        let spill = if matches!(self.source.addresses, Addresses::Srv { .. }) { NO_OVERFLOW } else { HEADROOM };
        self.endpoints.store(Arc::new(EndpointSet::new(all, &self.roster, spill)));
    }

    /// The rules in force, without counting a reference.
    pub(super) fn rules(&self) -> impl Deref<Target = Rules> {
        InForce(self.roster.policy.load())
    }

    pub(super) fn guards(&self) -> &Guards {
        &self.guards
    }

    /// A connection ended or was made at the endpoint that counts by `at`: where it is limited, whoever waits there may be
    /// next; where those of the whole peer are, whoever waits at any endpoint.
    pub(super) fn room_again(&self, at: &Arc<Limits>) {
        let (whole, each) = {
            let rules = self.rules();
            (rules.limits, rules.endpoint_limits)
        };
        let [whole, each] = [whole, each].map(|rule| rule.connections.or(rule.connecting).is_some());
        if !whole && !each {
            return;
        }
        let now = Instant::now();
        for endpoint in self.endpoints.load().all().iter().filter(|endpoint| whole || endpoint.counts_by(at)) {
            endpoint.look_again(now);
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &Arc<PeerMetrics> {
        &self.metrics
    }

    /// What further attempts it may be given.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// How long its recent answers took, of the requests that may be hedged.
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    /// Which endpoint takes the next attempt; `avoid` (already tried) is passed over while others exist. `None`: no
    /// endpoint takes traffic.
    pub fn pick(&self, now: Instant, avoid: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        self.pick_for(Ask::default(), now, avoid)
    }

    /// As [`Peer::pick`], for a request that asks for more than any endpoint.
    pub fn pick_for(&self, ask: Ask<'_>, now: Instant, avoid: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        if let Some(only) = ask.only {
            return Some(only.clone());
        }
        self.choose(&self.roster.policy.load(), ask, now, avoid).map(|picked| picked.endpoint)
    }

    /// As [`Peer::pick_for`], and gives the endpoint the attempt. One that is ejected gets a single request at a time,
    /// so whoever comes second chooses again.
    pub fn begin(&self, ask: Ask<'_>, now: Instant, avoid: &[Arc<Endpoint>]) -> Option<InFlight> {
        if let Some(only) = ask.only {
            return Some(only.begin(now));
        }
        let policy = self.roster.policy.load();
        for _ in 0..CHOICES {
            let Picked { endpoint, open } = self.choose(&policy, ask, now, avoid)?;
            if open {
                // A further attempt goes to one that is out also where the others have just failed it.
                if avoid.is_empty() || self.roster.all_ejected() {
                    // That a subset is out says nothing about the others.
                    self.roster.opened(ask.subset.is_none());
                }
                return Some(endpoint.begin(now));
            }
            if let Some(in_flight) = endpoint.claim(now, policy.rules.eject.as_ref()) {
                if self.roster.fails_open() && endpoint.standing().is_well() {
                    self.roster.closed();
                }
                return Some(in_flight);
            }
        }
        self.choose(&policy, ask, now, avoid).map(|picked| picked.endpoint.begin(now))
    }

    fn choose(&self, policy: &PeerPolicy, ask: Ask<'_>, now: Instant, avoid: &[Arc<Endpoint>]) -> Option<Picked> {
        let (draw, roster, crowd) = (&self.draw, &*self.roster, &*self.crowd);
        self.endpoints.load().choose(&Pick { draw, policy, roster, crowd, now, ask, avoid, ipv6: None })
    }

    /// An endpoint to try beside `slow`, whose address is of the other IP family. `None` where there is none, or where
    /// a limit of ours keeps from `slow`, which says nothing about its family.
    pub fn pick_beside(
        &self,
        slow: &Endpoint,
        ask: Ask<'_>,
        now: Instant,
        avoid: &[Arc<Endpoint>],
    ) -> Option<Arc<Endpoint>> {
        let (set, wanted) = (self.endpoints.load(), !slow.is_ipv6()?);
        if !set.is_mixed() || slow.is_full() || ask.only.is_some() {
            return None;
        }
        let (draw, roster, crowd) = (&self.draw, &*self.roster, &*self.crowd);
        let policy = &self.roster.policy.load();
        let picked = set.choose(&Pick { draw, policy, roster, crowd, now, ask, avoid, ipv6: Some(wanted) })?;
        let fits = picked.endpoint.is_ipv6() == Some(wanted) && !picked.open;
        let tried = avoid.iter().any(|tried| Arc::ptr_eq(tried, &picked.endpoint));
        (fits && !tried).then_some(picked.endpoint)
    }

    /// Whether so long a wait without an answer is by far longer than answers of this peer take.
    pub fn is_overdue(&self, now: Instant, waited: Duration) -> bool {
        self.roster.is_overdue(now, waited)
    }

    /// Whether all its endpoints are out, so that requests go to any of them.
    pub(super) fn fails_open(&self) -> bool {
        self.roster.fails_open()
    }

    /// Replaces the set of endpoints; equal addresses keep their [`Endpoint`] (load, connections), of two equal ones
    /// the first counts. Returns how many were added and removed.
    pub fn update(&self, specs: Vec<EndpointSpec>) -> (usize, usize) {
        let _one_at_a_time = self.updating.lock();
        let (old, now) = (self.endpoints.load_full(), Instant::now());
        if is_known(&old, &specs) {
            return (0, 0);
        }
        let policy = self.roster.policy.load();
        let mut known: HashMap<&Addr, &Arc<Endpoint>> =
            old.all().iter().map(|endpoint| (endpoint.addr(), endpoint)).collect();
        // Who comes with the first answer has nobody to leave its share to while it grows.
        let joined = (!old.is_empty()).then_some(now);
        let (mut all, mut added, mut takers) = (HashMap::with_capacity(specs.len()), 0, 0);
        let mut order = Vec::with_capacity(specs.len());
        for spec in specs {
            if all.contains_key(&spec.addr) {
                continue;
            }
            let (addr, takes) = (spec.addr.clone(), spec.weight > 0);
            // Whoever must be somebody else now is another one: what was connected proved who was meant before.
            let same = known.get(&addr).is_some_and(|known| known.spec().identity == spec.identity);
            let endpoint = match same.then(|| known.remove(&addr)).flatten() {
                Some(endpoint) => {
                    endpoint.set_spec(spec);
                    endpoint.clone()
                }
                None => {
                    added += 1;
                    let home = Home { peer: self.me.clone(), limits: self.guards.limits.clone() };
                    let endpoint = Endpoint::new(spec, now, policy.keep_alive, &self.roster, home, &policy.rules);
                    endpoint.introduce(self.crowd.clone(), joined);
                    endpoint
                }
            };
            takers += usize::from(takes);
            all.insert(addr, ());
            order.push(endpoint);
        }
        let removed = known.len();
        let gone: Vec<_> = known.into_values().cloned().collect();
        self.prepare(order);
        // Only then: an endpoint that is gone and ejected, counted against those that are left, would look as if all
        // were out.
        for endpoint in gone {
            endpoint.retire();
        }
        for endpoint in self.endpoints.load().all() {
            endpoint.standing().set_member(endpoint.spec().weight > 0);
        }
        self.roster.set_members(takers);
        self.metrics.endpoints.add(added as i64 - removed as i64);
        (added, removed)
    }

    /// Begins with what an earlier peer knows that has its addresses from the same place.
    pub fn inherit(&self, before: &Self) {
        self.update(before.specs());
        self.set_discovery(before.discovery());
    }

    /// What is known of the endpoints in force.
    pub fn specs(&self) -> Vec<EndpointSpec> {
        self.endpoints.load().all().iter().map(|endpoint| (*endpoint.spec()).clone()).collect()
    }

    /// Where discovery stands, for /ready, /state and for the reason when there is no endpoint.
    pub fn discovery(&self) -> Discovery {
        self.discovery.lock().clone()
    }

    /// Notes where discovery stands.
    pub fn set_discovery(&self, discovery: Discovery) {
        *self.discovery.lock() = discovery;
    }

    /// Told of each failure to connect. The data path does not look up: whoever follows the peer's name waits here, and
    /// many failures are one word.
    pub fn doubts(&self) -> &Arc<Notify> {
        &self.doubts
    }

    /// What `/state` shows.
    pub fn state(&self) -> PeerState {
        PeerState::new(self, Instant::now())
    }

    /// The endpoint at an address, whatever weight it has.
    pub fn endpoint_at(&self, addr: SocketAddr) -> Option<Arc<Endpoint>> {
        self.endpoints.load().at(addr).cloned()
    }

    /// The endpoints in force.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    pub(super) fn tls(&self) -> Option<&ClientTls> {
        self.tls.as_ref()
    }

    pub(super) fn mesh(&self) -> Option<&Mesh> {
        self.mesh.as_ref()
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Places for answers of which the rest is read for nobody.
    pub(super) fn unread(&self) -> &Arc<Semaphore> {
        &self.unread
    }

    /// Which version a connection for a caller of `version` should have: the declared one, else what ALPN gives
    /// (`None`), else the caller's own: also within mutual TLS, where the app behind the peer's sidecar is to get what
    /// its callers speak.
    pub fn wish(&self, version: Version) -> Option<Version> {
        match self.source.protocol {
            Protocol::Http1 => Some(Version::Http1),
            Protocol::Http2 => Some(Version::Http2),
            Protocol::Auto | Protocol::Tcp if self.tls.is_some() => None,
            Protocol::Auto | Protocol::Tcp => Some(version),
        }
    }
}

/// Whether these are the endpoints in force, in whatever order. Most answers of discovery say what is known, and then
/// nothing is prepared anew, however many there are.
fn is_known(set: &EndpointSet, specs: &[EndpointSpec]) -> bool {
    let mut left: HashMap<&Addr, &Arc<Endpoint>> = set.all().iter().map(|one| (one.addr(), one)).collect();
    let mut seen = HashSet::with_capacity(specs.len());
    // Of two equal addresses the first counts.
    let first = specs.iter().filter(|spec| seen.insert(&spec.addr));
    first.into_iter().all(|spec| left.remove(&spec.addr).is_some_and(|one| *one.spec() == *spec)) && left.is_empty()
}

/// Choices made anew because another request was quicker to try an ejected endpoint.
const CHOICES: usize = 3;

/// The rules of a policy that is read.
struct InForce(arc_swap::Guard<Arc<PeerPolicy>>);

impl Deref for InForce {
    type Target = Rules;

    fn deref(&self) -> &Rules {
        &self.0.rules
    }
}

/// The TLS that a peer is to speak, where it speaks any.
pub(super) fn client_tls(plan: &PeerPlan, shared: &Upstreams) -> Result<Option<ClientTls>, String> {
    let Some(tls) = &plan.source.tls else { return Ok(None) };
    let made = ClientTls::new(tls, plan.source.protocol, shared.roots());
    made.map(Some).map_err(|error| format!("peer `{}`: {error}", plan.name))
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.metrics.endpoints.add(-(self.endpoints.load().len() as i64));
        self.guards.forget_breaker(&self.metrics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::peer::Balance;
    use crate::resilience::outlier::Seen;
    use crate::upstream::rig::{plan, policy};

    fn spec(port: u16) -> EndpointSpec {
        EndpointSpec::bare(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())
    }

    fn peer(specs: Vec<EndpointSpec>) -> Arc<Peer> {
        let upstreams = Upstreams::new(Arc::default(), Tasks::default());
        let plan = plan(Protocol::Auto, specs);
        Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap()
    }

    fn ports(peer: &Peer, picks: usize, avoid: &[Arc<Endpoint>]) -> Vec<u16> {
        let mut ports: Vec<u16> =
            (0..picks).filter_map(|_| Some(peer.pick(Instant::now(), avoid)?.addr().tcp()?.port())).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    #[test]
    fn what_discovery_says_again_is_not_prepared_again() {
        let peer = peer(vec![spec(1), spec(2)]);
        let before = peer.endpoints();
        assert_eq!(peer.update(vec![spec(1), spec(2)]), (0, 0));
        assert!(Arc::ptr_eq(&before, &peer.endpoints()));
        // In another order they are the same too, in other words not.
        assert_eq!(peer.update(vec![spec(2), spec(1)]), (0, 0));
        assert!(Arc::ptr_eq(&before, &peer.endpoints()));
        let heavier = EndpointSpec { weight: 7, ..spec(2) };
        assert_eq!(peer.update(vec![spec(1), heavier.clone()]), (0, 0));
        assert_eq!(*peer.endpoints().all()[1].spec(), heavier);
    }

    #[test]
    fn an_update_keeps_the_endpoints_that_stay() {
        let peer = peer(vec![spec(1), spec(2)]);
        assert_eq!(peer.discovery(), Discovery::Ready);
        let before = peer.endpoints();
        before.all()[1].begin(Instant::now()).answered(Instant::now(), Seen::ServerError);
        let heavier = EndpointSpec { weight: 7, ..spec(2) };
        assert_eq!(peer.update(vec![heavier.clone(), spec(3), spec(3), EndpointSpec { weight: 9, ..spec(2) }]), (1, 1));
        let after = peer.endpoints();
        assert_eq!(after.len(), 2);
        assert!(Arc::ptr_eq(&after.all()[0], &before.all()[1]));
        assert_eq!(*after.all()[0].spec(), heavier);
        assert!(after.all()[0].load().latency(Instant::now()).is_some());
        assert_eq!(peer.metrics().endpoints.get(), 2);
        assert_eq!(peer.update(Vec::new()), (0, 2));
        assert!(peer.pick(Instant::now(), &[]).is_none());
        let metrics = peer.metrics().clone();
        drop(peer);
        assert_eq!(metrics.endpoints.get(), 0);
    }

    #[test]
    fn weight_zero_takes_none_and_the_lowest_priority_takes_all() {
        let backup = EndpointSpec { priority: 5, ..spec(3) };
        let peer = peer(vec![backup, EndpointSpec { weight: 0, ..spec(1) }, spec(2), spec(4)]);
        assert_eq!(ports(&peer, 100, &[]), [2, 4]);
        let of = |port| peer.endpoints().all().iter().find(|e| e.addr().tcp().unwrap().port() == port).unwrap().clone();
        assert_eq!(ports(&peer, 100, &[of(2)]), [4]);
        assert_eq!(ports(&peer, 100, &[of(2), of(4)]), [3]);
        // When every one was tried, the first group is tried again.
        assert_eq!(ports(&peer, 100, &[of(2), of(3), of(4)]), [2, 4]);
        peer.update(vec![EndpointSpec { weight: 0, ..spec(1) }]);
        assert!(ports(&peer, 10, &[]).is_empty());
    }

    #[test]
    fn traffic_leaves_an_endpoint_that_fails() {
        let peer = peer(vec![spec(1), spec(2)]);
        let now = Instant::now();
        for endpoint in peer.endpoints().all() {
            endpoint.begin(now).answered(now, Seen::Well);
        }
        peer.endpoints().all()[0].begin(now).answered(now, Seen::ServerError);
        assert_eq!(ports(&peer, 100, &[]), [2]);
    }

    #[test]
    fn ten_thousand_endpoints_are_all_reached() {
        let peer = peer((1..=10_000).map(spec).collect());
        let mut policy = policy();
        policy.balance = Balance::RoundRobin;
        peer.set_policy(Arc::new(policy));
        assert_eq!(ports(&peer, 10_000, &[]).len(), 10_000);
    }

    #[test]
    fn the_declared_protocol_is_binding_and_auto_follows_the_caller() {
        let upstreams = Upstreams::new(Arc::default(), Tasks::default());
        for (declared, http1, http2) in [
            (Protocol::Auto, Version::Http1, Version::Http2),
            (Protocol::Http1, Version::Http1, Version::Http1),
            (Protocol::Http2, Version::Http2, Version::Http2),
        ] {
            let peer = Peer::new(&plan(declared, Vec::new()), Arc::default(), &upstreams).unwrap();
            assert_eq!(peer.wish(Version::Http1), Some(http1));
            assert_eq!(peer.wish(Version::Http2), Some(http2));
        }
    }
}
