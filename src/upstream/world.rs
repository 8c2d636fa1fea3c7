//! `World`: the plan with its living peers; replaced whole at a reload, keeping what is equal.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls_pki_types::UnixTime;
use tokio::time::{Instant, MissedTickBehavior};

use super::adhoc::Adhoc;
use super::mesh::Mesh;
use super::peer::{Peer, client_tls};
use crate::ids::PeerName;
use crate::jwt::tokens::Tokens;
use crate::life::tasks::Tasks;
use crate::plan::Plan;
use crate::plan::identity::IdentityPlan;
use crate::plan::peer::PeerPlan;
use crate::resilience::gate::Gates;
use crate::telemetry::metrics::Metrics;
use crate::tls;
use crate::tls::client::SystemRoots;
use crate::tls::identity::Identity;
use crate::tls::store::IdentityStore;

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
    /// Who this sidecar is; `None` where nothing speaks mutual TLS.
    pub identity: Option<Arc<IdentityStore>>,
    /// Whose tokens are believed; `None` where none are looked at.
    pub jwt: Option<Arc<Tokens>>,
    /// What its doors and routes let through.
    pub gates: Gates,
    /// Peers for unlisted names; they outlive reloads.
    pub adhoc: Arc<Adhoc>,
}

/// A World that is made and not in force: until it is, what serves has changed in nothing.
pub struct Next {
    world: World,
    /// What was read of the files that are its identity.
    read: Option<Identity>,
    /// Peers of before of whose name nobody is called by mutual TLS any more.
    gone: Vec<Arc<Peer>>,
}

impl Next {
    /// What it will be.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Puts in force what goes with it and is shared with the World of before: policies of peers that live on, who is meant
    /// by the others, and the identity. To be stored at once.
    pub fn into_force(self, shared: &Upstreams) -> World {
        let Self { world, read, gone } = self;
        for (peer, planned) in world.peers.iter().zip(&world.plan.peers) {
            peer.set_policy(planned.policy.clone());
            if let Some(mesh) = peer.mesh() {
                mesh.prevail();
            }
        }
        gone.iter().filter_map(|peer| peer.mesh()).for_each(Mesh::abandon);
        world.gates.follow(&world.plan, Instant::now());
        shared.metrics.plaintext.follow(world.plan.is_permissive(), SystemTime::now());
        match (read, &world.identity) {
            (Some(read), _) => drop(shared.identity.replace(read, UnixTime::now())),
            // What another source brings stands in when it comes; until then what was in force goes on.
            (None, Some(_)) => {}
            (None, None) => shared.identity.clear(),
        }
        world
    }
}

impl World {
    /// Brings a plan to life.
    ///
    /// # Errors
    /// One line: a certificate, key or root file cannot be used.
    pub fn first(plan: Arc<Plan>, shared: &Upstreams, adhoc: Arc<Adhoc>) -> Result<Self, String> {
        Ok(Self::build(plan, shared, adhoc, &HashMap::new(), None)?.into_force(shared))
    }

    /// The World after `old`: a peer of the same name, kind and source keeps its living self and gets the new policy;
    /// changed and new ones are made, the changed ones with the addresses known so far where these come from the same
    /// place; the others are not carried over, and what was proven to them is let go of. `old` is served by as it was until
    /// the next one is put in force.
    ///
    /// # Errors
    /// As [`World::first`]; nothing has changed then, no policy either.
    pub fn next(old: &Self, plan: Arc<Plan>, shared: &Upstreams) -> Result<Next, String> {
        let known: HashMap<_, _> = old.peers.iter().map(|peer| (peer.name(), peer)).collect();
        let mut next = Self::build(plan, shared, old.adhoc.clone(), &known, Some(old))?;
        let named = next.world.peers.iter().filter(|peer| peer.mesh().is_some()).map(|peer| peer.name());
        let names: HashSet<_> = named.collect();
        next.gone = old.peers.iter().filter(|peer| !names.contains(peer.name())).cloned().collect();
        Ok(next)
    }

    fn build(
        plan: Arc<Plan>,
        shared: &Upstreams,
        adhoc: Arc<Adhoc>,
        known: &HashMap<&PeerName, &Arc<Peer>>,
        old: Option<&Self>,
    ) -> Result<Next, String> {
        shared.roots.forget();
        let files = plan.identity.as_deref().and_then(IdentityPlan::files);
        let now = UnixTime::now();
        let read = files.map(|files| Identity::read(files, now)).transpose();
        let read = read.map_err(|error| format!("identity: {error}"))?;
        if let Some(Err(why)) = read.as_ref().map(|read| shared.identity.would_take(read, now)) {
            // The same files are followed: whoever does so tells of them, and takes them when their time has come.
            if old.is_none_or(|old| old.plan.identity != plan.identity) {
                return Err(format!("identity: {why}"));
            }
        }
        // The peers keep it.
        let identity = plan.identity.is_some().then(|| shared.identity.clone());
        let peers = plan.peers.iter().map(|planned| living(planned, shared, known)).collect::<Result<_, _>>()?;
        let tls = plan
            .doors
            .iter()
            .map(|door| {
                let config = door.tls.as_ref().map(tls::server::config).transpose();
                config.map_err(|error| format!("{} listener {}: {error}", door.side.word(), door.listen))
            })
            .collect::<Result<_, _>>()?;
        let tokens =
            |jwt| Tokens::next(old.and_then(|old| old.jwt.as_ref()), jwt, plan.policy.claims(), &shared.metrics);
        let jwt = plan.jwt.as_ref().map(tokens).transpose()?;
        let gates = Gates::after(old.map(|old| &old.gates), &plan, Instant::now());
        Ok(Next { world: Self { plan, peers, tls, identity, jwt, gates, adhoc }, read, gone: Vec::new() })
    }
}

fn living(planned: &PeerPlan, shared: &Upstreams, known: &HashMap<&PeerName, &Arc<Peer>>) -> Result<Arc<Peer>, String> {
    match known.get(&planned.name) {
        Some(peer) if is_same(peer, planned, shared)? => Ok(Arc::clone(peer)),
        before => {
            let peer = Peer::new(planned, shared.metrics.peer(&planned.name), shared)?;
            if let (Some(mesh), Some(before)) = (peer.mesh(), before.and_then(|before| before.mesh())) {
                mesh.succeed(before);
            }
            if let Some(before) = before
                && before.source().addresses == planned.source.addresses
            {
                peer.inherit(before);
            }
            Ok(peer)
        }
    }
}

/// Whether a peer can go on as planned. Files of roots are read again: a new content makes another peer.
fn is_same(peer: &Peer, planned: &PeerPlan, shared: &Upstreams) -> Result<bool, String> {
    if peer.kind() != planned.kind || *peer.source() != planned.source {
        return Ok(false);
    }
    match (peer.tls(), client_tls(planned, shared)?) {
        (Some(before), Some(now)) => Ok(before.trusts_as(&now)),
        _ => Ok(true),
    }
}

/// What all peers share; made once, before the first World.
pub struct Upstreams {
    /// All counters.
    pub metrics: Arc<Metrics>,
    /// The connections' tasks.
    pub tasks: Tasks,
    roots: SystemRoots,
    /// Who this sidecar is: one for the whole process, in which reloads put what is new.
    identity: Arc<IdentityStore>,
    /// Every peer that may be alive, for the sweep.
    peers: Arc<Mutex<Vec<Weak<Peer>>>>,
}

impl Upstreams {
    /// Nothing yet. Whoever makes it also runs [`Upstreams::sweep`] on the data runtime.
    pub fn new(metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        Self { metrics, tasks, roots: SystemRoots::default(), identity: Arc::default(), peers: Arc::default() }
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
                        if let Some(dialling) = endpoint.expire(now) {
                            peer.tasks().spawn(dialling.beforehand(peer.clone()));
                        }
                    }
                }
            }
        }
    }

    /// Where the identity in force is kept.
    pub(super) fn identity(&self) -> &Arc<IdentityStore> {
        &self.identity
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::date_time_ymd;
    use tokio::io::{AsyncWriteExt, DuplexStream};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::server::TlsStream;

    use super::*;
    use crate::deadline::Deadline;
    use crate::ids::Door;
    use crate::life::drain::Phase;
    use crate::net::io::Io;
    use crate::plan::door::{DoorLimits, DoorPlan, Egress, Leads, Otherwise, Protocol, ServerTlsPlan};
    use crate::plan::identity::WorkloadApiPlan;
    use crate::plan::peer::{Addresses, ClientTlsPlan, EndpointSpec, Roots};
    use crate::plan::{AccessLog, AccessLogPlan, DnsPlan, LogFormat};
    use crate::reason::Reason;
    use crate::tls::proof::Verdicts;
    use crate::tls::tests::kit::Authority;
    use crate::tls::untrusted::Untrusted;
    use crate::upstream::adhoc::Rules;
    use crate::upstream::endpoint::{Given, Turn};
    use crate::upstream::lease::{Lease, Version};
    use crate::upstream::peer::Discovery;
    use crate::upstream::rig;

    fn peer(name: &str, port: u16) -> PeerPlan {
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        PeerPlan { name: PeerName::new(name), ..rig::plan(Protocol::Auto, vec![EndpointSpec::bare(addr.into())]) }
    }

    fn plan(peers: Vec<PeerPlan>, tls: Option<ServerTlsPlan>) -> Arc<Plan> {
        let second = Duration::from_secs(1);
        let limits = DoorLimits {
            connections: 1,
            head: 1,
            fields: 1,
            body: None,
            head_timeout: second,
            keep_alive: second,
            body_idle: second,
            tunnel_idle: second,
        };
        let door = DoorPlan {
            side: Door::Inbound,
            listen: "127.0.0.1:0".parse().unwrap(),
            optional: false,
            leads: Leads::Peer(0),
            protocol: Protocol::Auto,
            tls,
            mtls: Default::default(),
            passthrough: Arc::default(),
            passes_all: false,
            upgrades: Arc::default(),
            trusted: Arc::default(),
            limits,
        };
        Arc::new(Plan {
            service: "test".into(),
            workers: 1,
            grace: second,
            admin: None,
            status: None,
            identity: None,
            doors: vec![Arc::new(door)],
            peers,
            hosts: Default::default(),
            virtual_ips: Default::default(),
            egress: Egress { otherwise: Otherwise::Deny, allow: Arc::default(), own: Arc::default() },
            capture: None,
            redirect: None,
            dns: DnsPlan {
                listen: Vec::new(),
                servers: Vec::new(),
                floor: second,
                ceiling: second,
                stale_for: second,
                timeout: second,
                hosts_file: false,
            },
            access_log: AccessLogPlan { log: AccessLog::Off, format: LogFormat::Text },
            gates: Default::default(),
            policy: Default::default(),
            jwt: None,
            judged_fields: None,
        })
    }

    fn upstreams() -> Arc<Upstreams> {
        Arc::new(Upstreams::new(Arc::default(), Tasks::default()))
    }

    /// What comes next, in force.
    fn followed(old: &World, plan: Arc<Plan>, shared: &Upstreams) -> Result<World, String> {
        Ok(World::next(old, plan, shared)?.into_force(shared))
    }

    fn first(plan: Arc<Plan>, shared: &Arc<Upstreams>) -> World {
        let (adhoc, _) = Adhoc::new(shared.clone(), Arc::new(rig::policy()), Rules::from(&*plan));
        World::first(plan, shared, adhoc).unwrap()
    }

    #[test]
    fn the_next_world_keeps_what_is_equal_and_swaps_policies() {
        let shared = upstreams();
        let first = first(plan(vec![peer("a", 1), peer("b", 2)], None), &shared);
        let mut patient = peer("a", 1);
        patient.policy = Arc::new(crate::plan::peer::PeerPolicy { connect_timeout: SWEEP * 60, ..rig::policy() });
        let next = followed(&first, plan(vec![peer("b", 3), patient, peer("c", 1)], None), &shared).unwrap();
        assert!(Arc::ptr_eq(&next.peers[1], &first.peers[0]));
        assert_eq!(first.peers[0].policy().connect_timeout, SWEEP * 60);
        assert!(!Arc::ptr_eq(&next.peers[0], &first.peers[1]));
        assert_eq!(next.peers[2].name().as_str(), "c");
        drop(first);
        assert_eq!(alive(&shared.peers).len(), 3);
    }

    #[test]
    fn a_peer_that_is_spoken_to_otherwise_begins_with_the_addresses_known() {
        let shared = upstreams();
        let named = |host: &str, protocol| {
            let mut peer = peer("a", 1);
            peer.source.addresses = Addresses::Dns { host: host.into(), port: 1 };
            peer.source.protocol = protocol;
            plan(vec![peer], None)
        };
        let first = first(named("a.test", Protocol::Auto), &shared);
        let found = EndpointSpec::bare(std::net::SocketAddr::from(([10, 0, 0, 1], 1)).into());
        first.peers[0].update(vec![found.clone()]);
        first.peers[0].set_discovery(Discovery::Ready);
        let next = followed(&first, named("a.test", Protocol::Http2), &shared).unwrap();
        assert!(!Arc::ptr_eq(&next.peers[0], &first.peers[0]));
        assert_eq!((next.peers[0].specs(), next.peers[0].discovery()), (vec![found], Discovery::Ready));
        let moved = followed(&first, named("b.test", Protocol::Auto), &shared).unwrap();
        assert_eq!((moved.peers[0].specs(), moved.peers[0].discovery()), (vec![], Discovery::Pending));
    }

    #[test]
    fn new_roots_in_the_same_file_make_another_peer() {
        let shared = upstreams();
        let file = std::env::temp_dir().join(format!("outrigger-world-roots-{}.pem", std::process::id()));
        let roots = || rcgen::generate_simple_self_signed(["ca".to_owned()]).unwrap().cert.pem();
        let mut secure = peer("a", 1);
        secure.source.tls = Some(ClientTlsPlan { roots: Roots::File(file.clone()), sni: "a.example".into() });
        let planned = plan(vec![secure], None);
        std::fs::write(&file, roots()).unwrap();
        let first = first(planned.clone(), &shared);
        let kept = followed(&first, planned.clone(), &shared).unwrap();
        std::fs::write(&file, roots()).unwrap();
        let next = followed(&first, planned, &shared).unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(Arc::ptr_eq(&kept.peers[0], &first.peers[0]));
        assert!(!Arc::ptr_eq(&next.peers[0], &first.peers[0]));
    }

    #[test]
    fn a_world_that_cannot_be_changes_nothing() {
        let shared = upstreams();
        let first = first(plan(vec![peer("a", 1)], None), &shared);
        let before = first.peers[0].policy();
        let mut changed = peer("a", 1);
        changed.policy = Arc::new(crate::plan::peer::PeerPolicy { keep_alive: SWEEP, ..rig::policy() });
        let mut secure = peer("b", 2);
        let roots = Roots::File(PathBuf::from("/nonexistent/ca.pem"));
        secure.source.tls = Some(ClientTlsPlan { roots, sni: "b.example".into() });
        let error = followed(&first, plan(vec![changed.clone(), secure], None), &shared).err().unwrap();
        assert!(error.starts_with("peer `b`: /nonexistent/ca.pem: "), "{error}");
        let certificate = ServerTlsPlan { certificate: "/nonexistent/tls.crt".into(), key: "/nonexistent/k".into() };
        let error = followed(&first, plan(vec![changed], Some(certificate)), &shared).err().unwrap();
        assert!(error.starts_with("inbound listener 127.0.0.1:0: /nonexistent/tls.crt: "), "{error}");
        assert!(Arc::ptr_eq(&before, &first.peers[0].policy()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweep_ends_with_what_it_sweeps() {
        let shared = upstreams();
        let sweep = shared.tasks.run(shared.sweep());
        tokio::time::sleep(SWEEP * 3).await;
        assert!(!sweep.is_finished());
        drop(shared);
        sweep.await.unwrap();
    }

    const SERVER: &str = "spiffe://shop/server";

    /// Who is `id` by `root`, whenever this runs.
    fn identity(root: &Authority, id: &str) -> Identity {
        let chain = root.issue_with(id, |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(3000, 1, 1));
        });
        Identity::new(chain.material(&[(None, &[root.der()])]), UnixTime::now()).unwrap()
    }

    fn authority() -> Authority {
        Authority::root_with("root", |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(3000, 1, 1));
        })
    }

    /// A plan of a sidecar with an identity that calls `a`, which must be one of `ids`, by mutual TLS; none for plaintext.
    fn meshed(ids: &[&str]) -> Arc<Plan> {
        let mut called = peer("a", 1);
        called.source.mtls = (!ids.is_empty()).then(|| ids.iter().map(|id| id.parse().unwrap()).collect());
        with_identity(vec![called])
    }

    fn with_identity(peers: Vec<PeerPlan>) -> Arc<Plan> {
        let agent = "unix:/nonexistent/agent.sock".parse().unwrap();
        let api = IdentityPlan::WorkloadApi(WorkloadApiPlan { agent, id: None, tls12: false });
        Arc::new(Plan { identity: Some(Arc::new(api)), ..(*plan(peers, None)).clone() })
    }

    /// Has `peer` shake hands with `server`; `meanwhile` happens when it has begun to.
    async fn shake(peer: &Arc<Peer>, server: &Identity, meanwhile: impl FnOnce()) -> (Lease, TlsStream<DuplexStream>) {
        let endpoint = peer.endpoints().all()[0].clone();
        let Turn::Now(Given::Connect(dialling)) = endpoint.turn(Instant::now(), Some(Version::Http1)) else {
            panic!("expected to be told to connect");
        };
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let accept = async {
            meanwhile();
            TlsAcceptor::from(server.door_config(Protocol::Http1)).accept(theirs).await.unwrap()
        };
        let connect = dialling.run(peer, Deadline::NONE, async { Ok(Io::boxed(ours)) });
        let (lease, stream) = tokio::join!(biased; connect, accept);
        (lease.unwrap(), stream)
    }

    /// Whom a look at all connections refuses.
    fn refused(shared: &Upstreams) -> Vec<Untrusted> {
        let (identity, mut seen, now) = (shared.identity.current().unwrap(), Verdicts::default(), UnixTime::now());
        let due = shared.identity.proofs.due(Some(&identity), now);
        due.iter().filter_map(|proof| proof.judge(Some(&identity), &mut seen, now).err()).collect()
    }

    #[tokio::test]
    async fn a_handshake_that_a_reload_overtakes_goes_by_what_is_meant_then() {
        let (root, shared) = (authority(), upstreams());
        let first = first(meshed(&[SERVER]), &shared);
        shared.identity.replace(identity(&root, "spiffe://shop/client"), UnixTime::now()).unwrap();
        let server = identity(&root, SERVER);
        let reload = |world: &World, ids: &[&str]| followed(world, meshed(ids), &shared).unwrap();
        // Twice while it lasts: what counts is the last.
        let overtaken = |ids: [&'static [&'static str]; 2]| {
            let (first, server, reload) = (&first, &server, &reload);
            async move {
                let meanwhile = || drop(reload(&reload(first, ids[0]), ids[1]));
                shake(&first.peers[0], server, meanwhile).await
            }
        };
        let other: &[&str] = &["spiffe://shop/other"];
        let (stays, _stream) = overtaken([other, &["spiffe://shop/*"]]).await;
        assert_eq!(refused(&shared), [], "it is one of those");
        assert!(stays.proof().unwrap().holds());
        let (goes, _stream) = overtaken([&["spiffe://shop/*"], other]).await;
        let refused = refused(&shared);
        // The one of before is called by the same name.
        assert!(matches!(&*refused, [Untrusted::WrongIdentity { .. }, Untrusted::WrongIdentity { .. }]), "{refused:?}");
        assert!(!goes.proof().unwrap().holds());
    }

    #[tokio::test]
    async fn a_server_that_was_shown_an_older_leaf_is_sent_nothing_new_over_http1() {
        let (root, shared) = (authority(), upstreams());
        let first = first(meshed(&[SERVER]), &shared);
        let us = || identity(&root, "spiffe://shop/client");
        shared.identity.replace(us(), UnixTime::now()).unwrap();
        let server = identity(&root, SERVER);
        let (lease, _stream) = shake(&first.peers[0], &server, || {}).await;
        let (proof, endpoint) = (lease.proof().unwrap().clone(), first.peers[0].endpoints().all()[0].clone());
        let idle = || endpoint.state(Instant::now()).pool.idle;
        drop(lease);
        assert_eq!((refused(&shared), idle()), (vec![], 1));
        shared.identity.replace(us(), UnixTime::now()).unwrap();
        assert_eq!((refused(&shared), proof.holds()), (vec![], true));
        // No later than by the sweep it is closed, from here: no request of ours can be on its way then.
        drop(endpoint.expire(Instant::now()));
        assert_eq!(idle(), 0);
        assert!(matches!(endpoint.turn(Instant::now(), Some(Version::Http1)), Turn::Now(Given::Connect(_))));
        // Neither does one come back that was in use meanwhile.
        let (lease, _stream) = shake(&first.peers[0], &server, || {}).await;
        shared.identity.replace(us(), UnixTime::now()).unwrap();
        assert_eq!(refused(&shared), []);
        drop(lease);
        assert_eq!(idle(), 0);
    }

    #[tokio::test]
    async fn until_it_is_in_force_the_next_world_changes_nothing() {
        let (root, shared) = (authority(), upstreams());
        let mut before = Plan::clone(&meshed(&[SERVER]));
        before.peers.push(peer("b", 1));
        let first = first(Arc::new(before), &shared);
        shared.identity.replace(identity(&root, "spiffe://shop/client"), UnixTime::now()).unwrap();
        let server = identity(&root, SERVER);
        let (lease, _stream) = shake(&first.peers[0], &server, || {}).await;
        let mut patient = peer("b", 1);
        patient.policy = Arc::new(crate::plan::peer::PeerPolicy { connect_timeout: SWEEP * 60, ..rig::policy() });
        let ready = World::next(&first, plan(vec![patient], None), &shared).unwrap();
        // Who is called is judged anew, too.
        let held = || shared.identity.current().is_some() && refused(&shared).is_empty();
        let waits = || first.peers[1].policy().connect_timeout == SWEEP * 60;
        assert!(Arc::ptr_eq(&ready.world().peers[0], &first.peers[1]));
        assert_eq!((held(), lease.proof().unwrap().holds(), waits()), (true, true, false));
        ready.into_force(&shared);
        assert_eq!((held(), waits()), (false, true));
    }

    #[tokio::test]
    async fn peers_that_are_gone_or_in_plaintext_now_are_let_go_of() {
        for after in [with_identity(Vec::new()), meshed(&[])] {
            let (root, shared) = (authority(), upstreams());
            let first = first(meshed(&[SERVER]), &shared);
            shared.identity.replace(identity(&root, "spiffe://shop/client"), UnixTime::now()).unwrap();
            let server = identity(&root, SERVER);
            let (lease, _stream) = shake(&first.peers[0], &server, || {}).await;
            let next = followed(&first, after, &shared).unwrap();
            // A call that began under the plan of before.
            let (late, _stream) = shake(&first.peers[0], &server, || {}).await;
            assert_eq!(refused(&shared), [Untrusted::Unmeant, Untrusted::Unmeant]);
            for proof in [lease.proof().unwrap(), late.proof().unwrap()] {
                assert_eq!((proof.holds(), proof.drain().phase()), (false, Phase::Draining));
            }
            // Meant again, it begins again.
            let again = followed(&next, meshed(&[SERVER]), &shared).unwrap();
            let (lease, _stream) = shake(&again.peers[0], &server, || {}).await;
            assert_eq!((refused(&shared), lease.proof().unwrap().holds()), (vec![], true));
        }
    }

    #[tokio::test]
    async fn what_is_refused_before_it_could_be_used_is_never_used() {
        for another in [false, true] {
            let (root, shared) = (authority(), upstreams());
            let first = first(meshed(&[SERVER]), &shared);
            shared.identity.replace(identity(&root, "spiffe://shop/client"), UnixTime::now()).unwrap();
            let (peer, server) = (&first.peers[0], identity(&root, SERVER));
            let Turn::Now(Given::Connect(dialling)) =
                peer.endpoints().all()[0].turn(Instant::now(), Some(Version::Http2))
            else {
                panic!("expected to be told to connect");
            };
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            let accept = async {
                let acceptor = TlsAcceptor::from(server.door_config(Protocol::Http2));
                let mut stream = acceptor.accept(theirs).await.unwrap();
                // The other end is known, and HTTP/2 has not begun.
                if another {
                    shared.identity.replace(identity(&root, "spiffe://shop/another"), UnixTime::now()).unwrap();
                }
                assert_eq!(refused(&shared).len(), usize::from(another));
                stream.write_all(b"\0\0\0\x04\0\0\0\0\0").await.unwrap();
                stream.flush().await.unwrap();
                stream
            };
            let connect = dialling.run(peer, Deadline::NONE, async { Ok(Io::boxed(ours)) });
            let (lease, _stream) = tokio::join!(connect, accept);
            assert_eq!(lease.err().map(|error| error.reason), another.then_some(Reason::NoIdentity));
        }
    }
}
