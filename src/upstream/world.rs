//! `World`: the plan with its living peers; replaced whole at a reload, keeping what is equal.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::time::{Instant, MissedTickBehavior};

use super::adhoc::Adhoc;
use super::peer::Peer;
use crate::ids::PeerName;
use crate::life::tasks::Tasks;
use crate::plan::Plan;
use crate::plan::peer::PeerPlan;
use crate::telemetry::metrics::Metrics;
use crate::tls;
use crate::tls::client::SystemRoots;

/// How often idle connections are looked at; those handed out are judged exactly, at that moment.
const SWEEP: Duration = Duration::from_secs(1);

/// The plan made alive.
pub struct World {
    /// The plan.
    pub plan: Arc<Plan>,
    /// Its peers, with the indices of `plan.peers`.
    pub peers: Vec<Arc<Peer>>,
    /// TLS of its doors, with the indices of `plan.doors`; `None` where a door has no certificate.
    pub tls: Vec<Option<Arc<ServerConfig>>>,
    /// Peers for unlisted names; they outlive reloads.
    pub adhoc: Arc<Adhoc>,
}

impl World {
    /// Brings a plan to life.
    ///
    /// # Errors
    /// One line: a certificate, key or root file cannot be used.
    pub fn first(plan: Arc<Plan>, shared: &Upstreams, adhoc: Arc<Adhoc>) -> Result<Self, String> {
        Self::build(plan, shared, adhoc, &HashMap::new())
    }

    /// The World after `old`: a peer of the same name, kind and source keeps its living self and gets the new policy;
    /// changed and new ones are made; the others are simply not carried over.
    ///
    /// # Errors
    /// As [`World::first`]; nothing has changed then, no policy either.
    pub fn next(old: &Self, plan: Arc<Plan>, shared: &Upstreams) -> Result<Self, String> {
        let known = old.peers.iter().map(|peer| (peer.name(), peer)).collect();
        let next = Self::build(plan, shared, old.adhoc.clone(), &known)?;
        for (peer, planned) in next.peers.iter().zip(&next.plan.peers) {
            peer.set_policy(planned.policy.clone());
        }
        Ok(next)
    }

    fn build(
        plan: Arc<Plan>,
        shared: &Upstreams,
        adhoc: Arc<Adhoc>,
        known: &HashMap<&PeerName, &Arc<Peer>>,
    ) -> Result<Self, String> {
        shared.roots.forget();
        let peers = plan.peers.iter().map(|planned| living(planned, shared, known)).collect::<Result<_, _>>()?;
        let tls = plan
            .doors
            .iter()
            .map(|door| {
                let config = door.tls.as_ref().map(tls::server::config).transpose();
                config.map_err(|error| format!("{} listener {}: {error}", door.side.word(), door.listen))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { plan, peers, tls, adhoc })
    }
}

fn living(planned: &PeerPlan, shared: &Upstreams, known: &HashMap<&PeerName, &Arc<Peer>>) -> Result<Arc<Peer>, String> {
    match known.get(&planned.name) {
        Some(peer) if peer.kind() == planned.kind && *peer.source() == planned.source => Ok(Arc::clone(peer)),
        _ => Peer::new(planned, shared.metrics.peer(&planned.name), shared),
    }
}

/// What all peers share; made once, before the first World.
pub struct Upstreams {
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// The connections' tasks.
    pub tasks: Tasks,
    roots: SystemRoots,
    /// Every peer that may be alive, for the sweep.
    peers: Arc<Mutex<Vec<Weak<Peer>>>>,
}

impl Upstreams {
    /// Nothing yet. Whoever makes it also runs [`Upstreams::sweep`] on the data runtime.
    pub fn new(metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self { metrics, tasks, roots: SystemRoots::default(), peers: Arc::default() }
    }

    /// Retires idle connections until this value is dropped; keeps no peer alive.
    pub fn sweep(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let peers = Arc::downgrade(&self.peers);
        async move {
            let mut tick = tokio::time::interval_at(Instant::now() + SWEEP, SWEEP);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let now = tick.tick().await;
                let Some(peers) = peers.upgrade() else { return };
                for peer in alive(&peers) {
                    for endpoint in peer.endpoints().all() {
                        endpoint.expire(now);
                    }
                }
            }
        }
    }

    pub(super) fn roots(&self) -> &SystemRoots {
        &self.roots
    }

    pub(super) fn watch(&self, peer: &Arc<Peer>) {
        self.peers.lock().push(Arc::downgrade(peer));
    }
}

/// The peers that are alive; the others are forgotten.
fn alive(peers: &Mutex<Vec<Weak<Peer>>>) -> Vec<Arc<Peer>> {
    let mut alive = Vec::new();
    peers.lock().retain(|peer| {
        let peer = peer.upgrade();
        let keep = peer.is_some();
        alive.extend(peer);
        keep
    });
    alive
}
