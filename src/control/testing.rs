//! What the tests of this floor share.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{Addr, PeerName};
use crate::plan::door::{Egress, Otherwise, Protocol};
use crate::plan::peer::{Addresses, Balance, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource};
use crate::plan::{AccessLog, AccessLogPlan, DnsPlan, LogFormat, Plan};
use crate::upstream::state::{DiscoveryState, PeerState};

/// A plan with one app at 127.0.0.1:1 and no doors.
pub(crate) fn plan() -> Plan {
    Plan {
        service: "checkout".into(),
        workers: 1,
        grace: Duration::from_secs(25),
        admin: None,
        status: None,
        doors: Vec::new(),
        peers: vec![app(Addr::Tcp(([127, 0, 0, 1], 1).into()))],
        hosts: Default::default(),
        virtual_ips: Default::default(),
        egress: Egress { otherwise: Otherwise::Deny, allow: Arc::new([]), own: Arc::new([]) },
        capture: None,
        redirect: None,
        dns: DnsPlan {
            listen: Vec::new(),
            servers: Vec::new(),
            floor: Duration::from_secs(1),
            ceiling: Duration::from_secs(300),
            stale_for: Duration::from_secs(600),
            timeout: Duration::from_secs(5),
            hosts_file: true,
        },
        access_log: AccessLogPlan { log: AccessLog::Off, format: LogFormat::Text },
        gates: Default::default(),
        policy: Default::default(),
        jwt: None,
        judged_fields: None,
        identity: None,
    }
}

/// An app that listens at `addr`.
pub(crate) fn app(addr: Addr) -> PeerPlan {
    PeerPlan {
        name: PeerName::new("app"),
        kind: PeerKind::App,
        source: PeerSource {
            addresses: Addresses::Static(vec![EndpointSpec::bare(addr)]),
            protocol: Protocol::Auto,
            tls: None,
            mtls: None,
            to_app: None,
        },
        policy: Arc::new(PeerPolicy {
            balance: Balance::PeakEwma,
            connect_timeout: Duration::from_secs(1),
            request_timeout: None,
            body_idle: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(4),
            ..PeerPolicy::default()
        }),
        routes: crate::plan::peer::Routes::default(),
    }
}

/// A house of plain values.
pub(crate) struct House {
    pub(crate) house: Arc<super::House>,
    rooms: Arc<Plain>,
    /// Kept so that asking for a reload waits rather than fails.
    pub(crate) reloader: Option<crate::control::reload::Reloader<Never>>,
}

struct Plain {
    plan: Arc<Plan>,
    pending: parking_lot::Mutex<Vec<PeerName>>,
    lacks: parking_lot::Mutex<Option<Arc<str>>>,
}

impl super::Rooms for Plain {
    fn plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    fn peers(&self) -> Vec<PeerState> {
        let state = |peer: &PeerPlan| PeerState {
            name: peer.name.to_string(),
            kind: "app",
            source: "static".into(),
            protocol: "auto",
            tls: false,
            balance: "peak-ewma",
            breaker: None,
            limits: Default::default(),
            discovery: DiscoveryState { state: "ready", why: None, stale_for_seconds: None },
            fails_open: false,
            endpoints: Vec::new(),
        };
        self.plan.peers.iter().map(state).collect()
    }

    fn lacks_identity(&self) -> Option<Arc<str>> {
        self.lacks.lock().clone()
    }

    fn pending(&self) -> Vec<PeerName> {
        self.pending.lock().clone()
    }
}

/// Steps of a reload that refuse the file while it says `bad`.
pub(crate) struct Never(Arc<Plan>, Arc<std::sync::atomic::AtomicBool>);

impl Never {
    /// The flag of a reloader's steps.
    pub(crate) fn flag(reloader: &super::reload::Reloader<Self>) -> Arc<std::sync::atomic::AtomicBool> {
        reloader.works().1.clone()
    }
}

impl super::reload::Works for Never {
    type Bound = ();

    fn in_force(&self) -> Arc<Plan> {
        self.0.clone()
    }

    fn captured(&self) -> super::reload::Captured {
        super::reload::Captured::Not
    }

    fn read(&mut self) -> super::reload::Reading {
        let bad = self.1.load(std::sync::atomic::Ordering::Relaxed);
        let plan = if bad { Err(vec!["outrigger.yaml:1:1: bad".to_owned()]) } else { Ok((*self.0).clone()) };
        super::reload::Reading { hash: Some(super::reload::Hash::of(b"new")), plan }
    }

    async fn bind(&mut self, _: &Arc<Plan>) -> Result<(), Vec<String>> {
        Ok(())
    }

    fn apply(&mut self, plan: Arc<Plan>, (): ()) {
        self.0 = plan;
    }
}

impl House {
    /// A house with this plan in force, its doors not open.
    pub(crate) fn new(plan: Plan) -> Self {
        let (plan, metrics) = (Arc::new(plan), Arc::new(crate::telemetry::metrics::Metrics::default()));
        let works = Never(plan.clone(), Arc::default());
        let hash = super::reload::Hash::of(b"old");
        let (reloader, reloads) = super::reload::Reloader::new(works, hash, metrics.clone());
        let rooms = Arc::new(Plain { plan, pending: Default::default(), lacks: Default::default() });
        let house = Arc::new(super::House {
            rooms: rooms.clone(),
            metrics,
            started: std::time::UNIX_EPOCH,
            // Peers may hold readiness back for as long as the test runs.
            since: tokio::time::Instant::now() + Duration::from_secs(3600),
            stop: Default::default(),
            opened: Default::default(),
            reloads,
        });
        Self { house, rooms, reloader: Some(reloader) }
    }

    /// Says why there is no identity.
    pub(crate) fn lacks(&self, why: &str) {
        *self.rooms.lacks.lock() = Some(why.into());
    }

    /// Says which peers have no addresses yet.
    pub(crate) fn pending(&self, peers: &[PeerName]) {
        *self.rooms.pending.lock() = peers.to_vec();
    }
}
