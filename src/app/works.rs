//! What a reload does to the running house, and what the admin server sees of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{FIRST_ENDPOINTS, Running};
use crate::config::facts::Facts;
use crate::control::certs::{self, Followed};
use crate::control::dnsdoor::{self, DnsDoor, DnsState};
use crate::control::judge::judge;
use crate::control::jwks::Jwks;
use crate::control::load::{Loaded, load_text, read_bytes};
use crate::control::probe::Prober;
use crate::control::refresh::Refresher;
use crate::control::reload::{Captured, Handle, Hash, Reading, Trigger, Works};
use crate::control::spiffe::Source;
use crate::control::{Destination, Rooms};
use crate::ids::{Addr, Door, PeerName};
use crate::jwt::source::SourceState;
use crate::life::tasks::Tasks;
use crate::net::inside::inside;
use crate::plan::Plan;
use crate::plan::build::check::collide;
use crate::plan::door::DoorPlan;
use crate::plan::rules::GateRule;
use crate::proxy::doors::{DoorError, Doors, Prepared};
use crate::proxy::{Core, Learned, Spoken};
use crate::resilience::gate::Gate;
use crate::tls::state::IdentityState;
use crate::upstream::peer::Discovery;
use crate::upstream::state::{LimitState, PeerState};
use crate::upstream::world::{Next, Upstreams, World};

/// The steps of a reload, tied to what runs.
pub(super) struct Wiring {
    core: Arc<Core>,
    doors: Arc<Doors>,
    refresher: Arc<Refresher>,
    prober: Arc<Prober>,
    dns: Arc<DnsDoor>,
    jwks: Arc<Jwks>,
    agent: Arc<Source>,
    upstreams: Arc<Upstreams>,
    follow: Arc<Follow>,
    path: PathBuf,
    facts: Facts,
    variables: Arc<HashMap<String, String>>,
    captured: Captured,
    /// What was read last, for the places and warnings that the plan does not have.
    loaded: Option<Loaded>,
}

/// What a reload has made ready and not yet put in force.
pub(super) struct Ready {
    next: Next,
    prepared: Prepared,
    names: dnsdoor::Prepared,
}

impl Wiring {
    pub(super) fn new(
        running: &Running,
        upstreams: Arc<Upstreams>,
        path: &Path,
        facts: &Facts,
        variables: Arc<HashMap<String, String>>,
    ) -> Self {
        Self {
            core: running.core.clone(),
            doors: running.doors.clone(),
            refresher: running.refresher.clone(),
            prober: running.prober.clone(),
            dns: running.dns.clone(),
            jwks: running.jwks.clone(),
            agent: running.agent.clone(),
            upstreams,
            follow: running.follow.clone(),
            path: path.to_owned(),
            facts: facts.clone(),
            variables,
            captured: running.captured,
            loaded: None,
        }
    }
}

impl Wiring {
    /// What is told where `addr` is in use by a listener of our own, which is closed only after the new ones are bound.
    fn ours(&self, side: Door, addr: &Addr, error: &io::Error) -> Option<io::Error> {
        if error.kind() != io::ErrorKind::AddrInUse {
            return None;
        }
        let doors = self.doors.listening().into_iter().map(|(side, listen)| (side, side.word(), listen));
        let names = self.dns.listening().into_iter().map(|listen| (Door::Outbound, "DNS", Addr::Tcp(listen)));
        let beside = |other| inside().is_none() || other == side;
        let (_, word, listen) =
            doors.chain(names).find(|(other, _, listen)| beside(*other) && collide(listen, addr))?;
        Some(io::Error::other(format!(
            "it overlaps this sidecar's own open {word} listener {listen}; restart, or reload once without either"
        )))
    }

    /// Binds what `plan` has and is not open, doors and names.
    async fn bind_new(&self, plan: &Arc<Plan>) -> Result<(Prepared, dnsdoor::Prepared), Vec<String>> {
        futures_util::future::join(self.doors.closed(), self.dns.closed()).await;
        let prepared = self.doors.prepare(plan).await.map_err(|mut errors| {
            for error in &mut errors {
                if let Some(ours) = self.ours(error.side, &error.addr, &error.source) {
                    error.source = ours;
                }
            }
            door_problems(self.loaded.as_ref(), &errors)
        })?;
        let names = self.dns.prepare(plan).await.map_err(|mut errors| {
            for (addr, error) in &mut errors {
                if let Some(ours) = self.ours(Door::Outbound, &Addr::Tcp(*addr), error) {
                    *error = ours;
                }
            }
            dns_problems(self.loaded.as_ref(), &errors)
        })?;
        Ok((prepared, names))
    }
}

impl Works for Wiring {
    type Bound = Ready;

    fn in_force(&self) -> Arc<Plan> {
        self.core.world.load().plan.clone()
    }

    fn captured(&self) -> Captured {
        self.captured
    }

    fn read(&mut self) -> Reading {
        self.loaded = None;
        let text = match read_bytes(&self.path) {
            Ok(text) => text,
            Err(why) => {
                let problem = format!("{}: cannot be read: {why}", self.path.display());
                return Reading { hash: None, plan: Err(vec![problem]) };
            }
        };
        let hash = Some(Hash::of(&text));
        let Ok(text) = String::from_utf8(text) else {
            return Reading { hash, plan: Err(vec![format!("{}: is not UTF-8 text", self.path.display())]) };
        };
        let loaded = load_text(&text, &self.path, &self.facts, &|name| self.variables.get(name).cloned());
        let plan = loaded.map(|loaded| self.loaded.insert(loaded).plan.clone());
        Reading { hash, plan: plan.map_err(|problems| problems.to_string().lines().map(str::to_owned).collect()) }
    }

    async fn bind(&mut self, plan: &Arc<Plan>) -> Result<Ready, Vec<String>> {
        let (prepared, names) = self.bind_new(plan).await?;
        let before = self.core.world.load_full();
        let next = World::next(&before, plan.clone(), &self.upstreams).map_err(|error| vec![error])?;
        let world = next.world();
        // At once: what an agent gives must not replace the files' that the World will put in force.
        self.agent.set(plan.identity.as_ref(), world.identity.as_ref());
        // New names are asked for while the old World still serves, so that few requests meet a peer without addresses.
        self.refresher.also(&before, world);
        futures_util::future::join(self.refresher.first_answers(FIRST_ENDPOINTS), self.agent.first(FIRST_ENDPOINTS))
            .await;
        Ok(Ready { next, prepared, names })
    }

    fn apply(&mut self, plan: Arc<Plan>, ready: Ready) {
        for warning in self.loaded.take().iter().flat_map(|loaded| &loaded.warnings) {
            warn!("{warning}");
        }
        let world = Arc::new(ready.next.into_force(&self.upstreams));
        self.core.world.store(world.clone());
        self.core.stale.keep(&world.peers);
        let (which, format) = plan.access_log.choice();
        self.core.access.choose(which, format);
        self.refresher.set_world(&world);
        self.prober.set(&world.peers);
        if let Err(error) = self.dns.commit(ready.names, &world.plan) {
            error!(%error, "the DNS door cannot be opened");
        }
        self.follow.set(&world);
        self.jwks.set(world.jwt.as_ref());
        self.doors.commit(ready.prepared);
    }
}

/// Tells whoever follows files of certificates which these are.
pub(super) struct Follow {
    identity: watch::Sender<Option<Arc<Followed>>>,
    plain: watch::Sender<BTreeSet<PathBuf>>,
}

impl Follow {
    /// Lets the identity live: its files are followed, and open connections judged.
    pub(super) fn start(core: &Arc<Core>, tasks: &Tasks) -> Arc<Self> {
        let follow = Self { identity: watch::Sender::new(None), plain: watch::Sender::default() };
        follow.set(&core.world.load());
        tasks.spawn(certs::follow(follow.identity.subscribe(), tasks.clone()));
        tasks.spawn(judge(follow.identity.subscribe(), core.metrics.clone(), UnixTime::now));
        Arc::new(follow)
    }

    /// Has other files of certificates followed too, which take a reload.
    pub(super) fn plain(&self, tasks: &Tasks, reloads: Handle) {
        let ask = move || reloads.ask(Trigger::Certificates);
        tasks.spawn(certs::follow_plain(self.plain.subscribe(), tasks.clone(), ask));
    }

    /// These are in force from now on.
    fn set(&self, world: &World) {
        let (plan, grace) = (world.plan.identity.clone(), world.plan.grace);
        let followed = plan.zip(world.identity.clone()).map(|(plan, store)| Arc::new(Followed { plan, store, grace }));
        self.identity.send_replace(followed);
        let plain = certs::plain_files(&world.plan);
        self.plain.send_if_modified(|before| std::mem::replace(before, plain.clone()) != plain);
    }
}

/// The house as the admin server sees it.
pub(super) struct InForce(pub(super) Arc<Core>, pub(super) Arc<DnsDoor>);

impl Rooms for InForce {
    fn plan(&self) -> Arc<Plan> {
        self.0.world.load().plan.clone()
    }

    fn peers(&self) -> Vec<PeerState> {
        let world = self.0.world.load_full();
        world.peers.iter().chain(&world.adhoc.peers()).map(|peer| peer.state()).collect()
    }

    fn gates(&self) -> BTreeMap<String, BTreeMap<&'static str, LimitState>> {
        let world = self.0.world.load_full();
        let (gates, plan) = (&world.gates, &world.plan);
        let routes = plan.peers.iter().flat_map(|peer| &peer.routes.list).filter_map(|route| route.gate.as_ref());
        let routes = routes.filter_map(|gate| Some((&*gate.key, gates.routes.get(&gate.key)?, &gate.rule)));
        let doors =
            [("inbound", &gates.inbound, &plan.gates.inbound), ("outbound", &gates.outbound, &plan.gates.outbound)];
        let all = doors.into_iter().chain(routes);
        all.filter(|(_, _, rule)| !rule.is_open())
            .map(|(key, gate, rule)| (key.to_owned(), gate_state(gate, rule)))
            .collect()
    }

    fn destinations(&self) -> Vec<Destination> {
        let now = Instant::now();
        let shown = |(address, learned): (SocketAddr, Arc<Learned>)| Destination {
            address,
            spoken: learned.spoken().map(Spoken::word),
            answers_http: !learned.may_speak_first(now),
        };
        self.0.destinations.all(now).into_iter().map(shown).collect()
    }

    fn dns(&self) -> Option<DnsState> {
        self.1.state()
    }

    fn identity(&self) -> Option<IdentityState> {
        self.0.world.load().identity.as_deref().and_then(IdentityState::of)
    }

    fn lacks_identity(&self) -> Option<Arc<str>> {
        self.0.world.load().identity.as_ref().and_then(|store| store.lack())
    }

    fn issuers(&self) -> Vec<SourceState> {
        let world = self.0.world.load();
        world.jwt.iter().flat_map(|tokens| tokens.sources()).map(|source| source.state()).collect()
    }

    fn pending(&self) -> Vec<PeerName> {
        let world = self.0.world.load();
        let pending = world.peers.iter().filter(|peer| matches!(peer.discovery(), Discovery::Pending));
        pending.map(|peer| peer.name().clone()).collect()
    }
}

fn gate_state(gate: &Gate, rule: &GateRule) -> BTreeMap<&'static str, LimitState> {
    let used = gate.in_flight();
    let fixed = rule.in_flight.map(|limit| ("in-flight", LimitState { used, limit }));
    let adaptive = rule.adaptive.as_ref().map(|rule| gate.adaptive().unwrap_or(rule.start));
    fixed.into_iter().chain(adaptive.map(|limit| ("adaptive", LimitState { used, limit }))).collect()
}

/// The doors that could not be bound, each with the line of the file that asked for it.
pub(super) fn door_problems(loaded: Option<&Loaded>, errors: &[DoorError]) -> Vec<String> {
    let place = |error: &DoorError| {
        let loaded = loaded?;
        let same = |door: &Arc<DoorPlan>| door.listen == error.addr && door.side == error.side;
        Some(loaded.bind_problem(loaded.plan.doors.iter().position(same)?, &error.source).to_string())
    };
    errors.iter().map(|error| place(error).unwrap_or_else(|| error.to_string())).collect()
}

/// The addresses of the DNS door that could not be bound, each with the line of the file that asked for it.
pub(super) fn dns_problems(loaded: Option<&Loaded>, errors: &[(SocketAddr, io::Error)]) -> Vec<String> {
    let line = |(addr, error): &(SocketAddr, io::Error)| match loaded {
        Some(loaded) => loaded.server_problem("dns.listen", &addr.to_string(), error).to_string(),
        None => format!("dns.listen: cannot listen on {addr}: {error}"),
    };
    errors.iter().map(line).collect()
}
