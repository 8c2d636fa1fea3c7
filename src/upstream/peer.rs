//! A living peer: its endpoints, the policy in force, and where discovery stands.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::guards::Guards;
use super::lease::Version;
use super::room::Home;
use super::state::PeerState;
use super::world::Upstreams;
use crate::ids::{Addr, PeerName};
use crate::life::tasks::Tasks;
use crate::plan::door::Protocol;
use crate::plan::peer::{Addresses, Balance, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource};
use crate::plan::rules::Rules;
use crate::resilience::budget::Budget;
use crate::resilience::pick::{Draw, Shares};
use crate::telemetry::metrics::PeerMetrics;
use crate::tls::client::ClientTls;

/// A named service with its endpoints.
pub struct Peer {
    name: PeerName,
    kind: PeerKind,
    source: PeerSource,
    policy: ArcSwap<PeerPolicy>,
    metrics: Arc<PeerMetrics>,
    endpoints: ArcSwap<EndpointSet>,
    /// Held while the set is being replaced; never on the request path.
    updating: Mutex<()>,
    discovery: Mutex<Discovery>,
    doubts: Arc<Notify>,
    draw: Draw,
    budget: Budget,
    tls: Option<ClientTls>,
    tasks: Tasks,
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
        let peer = Arc::new_cyclic(|me| Self {
            name: plan.name.clone(),
            kind: plan.kind,
            source: plan.source.clone(),
            policy: ArcSwap::new(plan.policy.clone()),
            metrics,
            endpoints: ArcSwap::from_pointee(EndpointSet::default()),
            updating: Mutex::new(()),
            discovery: Mutex::new(Discovery::Pending),
            doubts: Arc::default(),
            draw: Draw::new(fastrand::u64(..)),
            budget: Budget::new(Instant::now()),
            tls,
            tasks: shared.tasks.clone(),
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

    /// How it is called.
    pub fn policy(&self) -> Arc<PeerPolicy> {
        self.policy.load_full()
    }

    /// Changes how it is called, from the next request on; connections stay.
    pub fn set_policy(&self, policy: Arc<PeerPolicy>) {
        let before = self.policy.swap(policy.clone());
        if before.keep_alive != policy.keep_alive {
            for endpoint in self.endpoints().all() {
                endpoint.set_unlearned(policy.keep_alive);
            }
        }
        if before.rules != policy.rules {
            for endpoint in self.endpoints().all() {
                endpoint.set_rules(&policy.rules);
                endpoint.look_again(Instant::now());
            }
            if policy.rules.breaker.is_none() {
                self.metrics.breaker_open.set(0);
            }
        }
    }

    /// The rules in force, without counting a reference.
    pub(super) fn rules(&self) -> impl Deref<Target = Rules> {
        InForce(self.policy.load())
    }

    pub(super) fn guards(&self) -> &Guards {
        &self.guards
    }

    /// A connection ended or was made: where the whole peer's connections are limited, whoever waits at any endpoint
    /// may be next.
    pub(super) fn room_again(&self) {
        let limits = self.rules().limits;
        if limits.connections.or(limits.connecting).is_none() {
            return;
        }
        let now = Instant::now();
        for endpoint in self.endpoints.load().all() {
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

    /// Which endpoint takes the next attempt; `avoid` (already tried) is passed over while others exist. `None`: no
    /// endpoint takes traffic.
    pub fn pick(&self, now: Instant, avoid: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let balance = self.policy.load().balance;
        self.endpoints.load().pick(&self.draw, balance, now, avoid)
    }

    /// Replaces the set of endpoints; equal addresses keep their [`Endpoint`] (load, connections), of two equal ones
    /// the first counts. Returns how many were added and removed.
    pub fn update(&self, specs: Vec<EndpointSpec>) -> (usize, usize) {
        let _one_at_a_time = self.updating.lock();
        let (old, now) = (self.endpoints.load_full(), Instant::now());
        let policy = self.policy.load();
        let mut known: HashMap<&Addr, &Arc<Endpoint>> =
            old.all.iter().map(|endpoint| (endpoint.addr(), endpoint)).collect();
        let (mut all, mut added) = (HashMap::with_capacity(specs.len()), 0);
        let mut order = Vec::with_capacity(specs.len());
        for spec in specs {
            if all.contains_key(&spec.addr) {
                continue;
            }
            let (addr, traits) = (spec.addr.clone(), (spec.weight, spec.priority));
            let endpoint = match known.remove(&addr) {
                Some(endpoint) => {
                    endpoint.set_spec(spec);
                    endpoint.clone()
                }
                None => {
                    added += 1;
                    {
                        let home = Home { peer: self.me.clone(), limits: self.guards.limits.clone() };
                        Endpoint::new(spec, now, policy.keep_alive, home, &policy.rules)
                    }
                }
            };
            all.insert(addr, ());
            order.push((endpoint, traits));
        }
        let removed = known.len();
        let gone: Vec<_> = known.into_values().cloned().collect();
        self.endpoints.store(Arc::new(EndpointSet::new(order)));
        for endpoint in gone {
            endpoint.retire();
        }
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
        self.endpoints.load().all.iter().map(|endpoint| (*endpoint.spec()).clone()).collect()
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

    /// The endpoints in force.
    pub fn endpoints(&self) -> Arc<EndpointSet> {
        self.endpoints.load_full()
    }

    pub(super) fn tls(&self) -> Option<&ClientTls> {
        self.tls.as_ref()
    }

    pub(super) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Which version a connection for a caller of `version` should have: the declared one, else what ALPN gives
    /// (`None`), else the caller's own.
    pub(super) fn wish(&self, version: Version) -> Option<Version> {
        match self.source.protocol {
            Protocol::Http1 => Some(Version::Http1),
            Protocol::Http2 => Some(Version::Http2),
            Protocol::Auto | Protocol::Tcp if self.tls.is_some() => None,
            Protocol::Auto | Protocol::Tcp => Some(version),
        }
    }
}

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
        self.metrics.endpoints.add(-(self.endpoints.load().all.len() as i64));
    }
}

/// A peer's endpoints, prepared for picking.
#[derive(Default)]
pub struct EndpointSet {
    all: Vec<Arc<Endpoint>>,
    /// Those that take traffic, by SRV priority, lowest first.
    groups: Vec<Group>,
}

struct Group {
    members: Vec<Arc<Endpoint>>,
    shares: Shares,
}

impl EndpointSet {
    fn new(endpoints: Vec<(Arc<Endpoint>, (u32, u16))>) -> Self {
        let mut taking: Vec<_> = endpoints.iter().filter(|(_, (weight, _))| *weight > 0).collect();
        taking.sort_by_key(|(_, (_, priority))| *priority);
        let groups = taking
            .chunk_by(|(_, (_, a)), (_, (_, b))| a == b)
            .map(|group| Group {
                members: group.iter().map(|(endpoint, _)| endpoint.clone()).collect(),
                shares: Shares::new(&group.iter().map(|(_, (weight, _))| *weight).collect::<Vec<_>>()),
            })
            .collect();
        Self { groups, all: endpoints.into_iter().map(|(endpoint, _)| endpoint).collect() }
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

    /// The lowest priority with an endpoint that was not tried is used (RFC 2782); if all were tried, the first again.
    fn pick(&self, draw: &Draw, balance: Balance, now: Instant, avoid: &[Arc<Endpoint>]) -> Option<Arc<Endpoint>> {
        let from = |group: &Group, avoid: &[Arc<Endpoint>]| {
            let at = draw.pick(
                balance,
                &group.shares,
                |at| group.members.get(at).is_some_and(|member| avoid.iter().any(|tried| Arc::ptr_eq(tried, member))),
                |at, share| group.members.get(at).map_or(f64::MAX, |member| cost(balance, member, now, share)),
            )?;
            group.members.get(at).cloned()
        };
        let fresh = self.groups.iter().find_map(|group| from(group, avoid));
        if avoid.is_empty() { fresh } else { fresh.or_else(|| self.groups.first().and_then(|group| from(group, &[]))) }
    }
}

fn cost(balance: Balance, endpoint: &Endpoint, now: Instant, share: f64) -> f64 {
    match balance {
        Balance::PeakEwma => endpoint.load().cost(now, share),
        Balance::LeastRequest | Balance::RoundRobin | Balance::Random => {
            1.0 + f64::from(endpoint.load().in_flight()) / share
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn an_update_keeps_the_endpoints_that_stay() {
        let peer = peer(vec![spec(1), spec(2)]);
        assert_eq!(peer.discovery(), Discovery::Ready);
        let before = peer.endpoints();
        before.all()[1].begin(Instant::now()).answered(Instant::now(), false);
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
            endpoint.begin(now).answered(now, true);
        }
        peer.endpoints().all()[0].begin(now).answered(now, false);
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
