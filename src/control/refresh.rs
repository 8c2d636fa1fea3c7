//! Keeps the endpoints of every peer true: one task per name or control file, for as long as a peer wants it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};

use super::files::{self, Parse};
use super::lookups::{self, Question};
use super::watch::Pace;
use crate::dns::keeper::Standing;
use crate::dns::resolver::Resolver;
use crate::ids::PeerName;
use crate::life::tasks::Tasks;
use crate::net::here::is_itself;
use crate::plan::DnsPlan;
use crate::plan::door::{Egress, Otherwise};
use crate::plan::peer::{Addresses, EndpointSpec};
use crate::telemetry::metrics::Metrics;
use crate::upstream::adhoc::Rules;
use crate::upstream::peer::{Discovery, Peer};
use crate::upstream::world::World;

/// What discovery writes to.
pub trait Target: Send + Sync + 'static {
    /// Whose endpoints these are.
    fn name(&self) -> &PeerName;
    /// The endpoints it has: those that it began with, before anything was said to it.
    fn endpoints(&self) -> Vec<EndpointSpec>;
    /// Replaces the endpoints; how many were added and removed.
    fn replace(&self, endpoints: Vec<EndpointSpec>) -> (usize, usize);
    /// Notes how discovery stands.
    fn stand(&self, standing: &Standing);
    /// Counts an answer that failed.
    fn count_failure(&self);
    /// Where it tells that an endpoint could not be connected to.
    fn doubts(&self) -> Arc<Notify>;
}

impl Target for Peer {
    fn name(&self) -> &PeerName {
        Self::name(self)
    }

    fn endpoints(&self) -> Vec<EndpointSpec> {
        self.specs()
    }

    fn replace(&self, endpoints: Vec<EndpointSpec>) -> (usize, usize) {
        self.update(endpoints)
    }

    fn stand(&self, standing: &Standing) {
        self.set_discovery(match standing {
            Standing::Ready => Discovery::Ready,
            Standing::Empty { why } => Discovery::Empty { why: why.clone() },
            Standing::Failed { why } => Discovery::Failed { why: why.clone() },
            Standing::Stale { why, since } => {
                let ago = Instant::now().saturating_duration_since(*since);
                let since = SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH);
                Discovery::Stale { why: why.clone(), since }
            }
        });
    }

    fn count_failure(&self) {
        self.metrics().discovery_failures.inc();
    }

    fn doubts(&self) -> Arc<Notify> {
        Self::doubts(self).clone()
    }
}

/// A peer and where its addresses come from.
#[derive(Clone)]
pub struct Wanted {
    /// The peer.
    pub target: Arc<dyn Target>,
    /// The source.
    pub addresses: Addresses,
}

/// What all tasks share.
pub(super) struct Shared {
    pub(super) tasks: Tasks,
    pub(super) metrics: Arc<Metrics>,
    pub(super) resolver: ArcSwap<Resolver>,
    /// For the listeners that are never dialled.
    egress: ArcSwap<Egress>,
    /// Grows when every name is to be asked for again.
    pub(super) round: watch::Sender<u64>,
    /// Peers that wait for their first answer.
    pending: watch::Sender<usize>,
}

/// The owner of the tasks; dropping it ends them.
pub struct Refresher {
    shared: Arc<Shared>,
    parse: Parse,
    jobs: Mutex<Jobs>,
}

#[derive(Default)]
struct Jobs {
    /// By the identity of the target, which the job keeps alive.
    names: HashMap<usize, (Arc<dyn Target>, Job)>,
    files: HashMap<PathBuf, (watch::Sender<Vec<Waiting>>, Job)>,
}

/// A target and, until its first answer, its place among those that are waited for.
#[derive(Clone)]
pub(super) struct Waiting {
    pub(super) target: Arc<dyn Target>,
    pub(super) first: Arc<Mutex<Option<First>>>,
}

/// Ends its task when dropped.
struct Job(AbortHandle);

impl Drop for Job {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One of those that are waited for, until dropped.
pub(super) struct First(Arc<Shared>);

impl First {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        shared.pending.send_modify(|pending| *pending += 1);
        Self(shared.clone())
    }
}

impl Drop for First {
    fn drop(&mut self) {
        self.0.pending.send_modify(|pending| *pending = pending.saturating_sub(1));
    }
}

impl Shared {
    /// Endpoints without those that are this proxy's own listeners: no answer may make it call itself.
    fn without_own(&self, endpoints: Vec<EndpointSpec>, standing: &Standing) -> (Vec<EndpointSpec>, Standing) {
        let egress = self.egress.load();
        let (own, left): (Vec<_>, Vec<_>) = endpoints.into_iter().partition(|spec| is_itself(&spec.addr, &egress));
        let Some(first) = own.first().map(|spec| spec.addr.clone()) else { return (left, standing.clone()) };
        let why = format!("{first} is a listener of this proxy itself and is not called");
        let standing = if left.is_empty() { Standing::Empty { why } } else { standing.clone() };
        (left, standing)
    }
}

impl Refresher {
    /// Nothing is looked up yet. The tasks run on whichever runtime calls [`Self::set`].
    pub fn new(tasks: Tasks, metrics: Arc<Metrics>, resolver: Arc<Resolver>, parse: Parse) -> Self {
        let nothing = Egress { otherwise: Otherwise::Deny, allow: Arc::new([]), own: Arc::new([]) };
        let shared = Shared {
            tasks,
            metrics,
            resolver: ArcSwap::new(resolver),
            egress: ArcSwap::from_pointee(nothing),
            round: watch::Sender::new(0),
            pending: watch::Sender::new(0),
        };
        Self { shared: Arc::new(shared), parse, jobs: Mutex::default() }
    }

    /// Takes over a World: its peers, its way to resolve, its rules for unlisted names.
    pub fn set_world(&self, world: &World) {
        self.set_dns(&world.plan.dns);
        self.set_egress(world.plan.egress.clone());
        world.adhoc.set_rules(Rules::from(&*world.plan));
        self.set(&world.peers.iter().map(wanted).collect::<Vec<_>>());
    }

    /// Looks for the peers of the next World too, before it is taken over.
    pub fn also(&self, world: &World, next: &World) {
        let known = |peer: &&Arc<Peer>| !world.peers.iter().any(|before| Arc::ptr_eq(before, peer));
        let new = next.peers.iter().filter(known);
        self.set(&world.peers.iter().chain(new).map(wanted).collect::<Vec<_>>());
    }

    /// Resolves by this plan from now on; every name is asked for again if it is another one.
    pub fn set_dns(&self, plan: &DnsPlan) {
        if self.resolver().plan() != plan {
            self.set_resolver(Resolver::new(plan));
        }
    }

    /// Leaves the listeners of these rules out of every answer from now on.
    pub fn set_egress(&self, egress: Egress) {
        if **self.shared.egress.load() != egress {
            self.shared.egress.store(Arc::new(egress));
            self.ask_again();
        }
    }

    /// Uses another resolver from now on and asks for every name again.
    pub fn set_resolver(&self, resolver: Arc<Resolver>) {
        self.shared.resolver.store(resolver);
        self.ask_again();
    }

    /// The resolver in use.
    pub fn resolver(&self) -> Arc<Resolver> {
        self.shared.resolver.load_full()
    }

    /// Asks for every name again now, whatever its time to live.
    pub fn ask_again(&self) {
        self.shared.round.send_modify(|round| *round += 1);
    }

    /// Takes over a new list of peers: those that were there already go on undisturbed, those that are gone end.
    pub fn set(&self, wanted: &[Wanted]) {
        let mut jobs = self.jobs.lock();
        let mut before = std::mem::take(&mut *jobs);
        let mut files: HashMap<PathBuf, Vec<Arc<dyn Target>>> = HashMap::new();
        for Wanted { target, addresses } in wanted {
            let question = match addresses {
                Addresses::Static(_) => continue,
                Addresses::File { path } => {
                    files.entry(path.clone()).or_default().push(target.clone());
                    continue;
                }
                Addresses::Dns { host, port } => Question::Host(host.clone(), *port),
                Addresses::Srv { name } => Question::Service(name.clone()),
            };
            let id = identity(target);
            let job = before.names.remove(&id).unwrap_or_else(|| (target.clone(), self.follow(target, question)));
            jobs.names.insert(id, job);
        }
        for (path, targets) in files {
            let job = match before.files.remove(&path) {
                Some((audience, job)) => {
                    let known = audience.borrow().clone();
                    let _ = audience.send(self.audience(targets, &known));
                    (audience, job)
                }
                None => self.read(path.clone(), targets),
            };
            jobs.files.insert(path, job);
        }
    }

    /// Waits until every peer has had its first answer, good or bad, or until `most` is over; whether they all have.
    pub async fn first_answers(&self, most: Duration) -> bool {
        let mut pending = self.shared.pending.subscribe();
        timeout(most, pending.wait_for(|pending| *pending == 0)).await.is_ok_and(|waited| waited.is_ok())
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn follow(&self, target: &Arc<dyn Target>, question: Question) -> Job {
        let report = Report::new(&self.shared, target.clone(), Some(First::new(&self.shared)));
        Job(self.shared.tasks.spawn(lookups::follow(self.shared.clone(), question, report)))
    }

    fn read(&self, path: PathBuf, targets: Vec<Arc<dyn Target>>) -> (watch::Sender<Vec<Waiting>>, Job) {
        let (sender, audience) = watch::channel(self.audience(targets, &[]));
        let job = files::follow(self.shared.clone(), path, Pace::default(), self.parse, audience);
        (sender, Job(self.shared.tasks.spawn(job)))
    }

    fn audience(&self, targets: Vec<Arc<dyn Target>>, known: &[Waiting]) -> Vec<Waiting> {
        let waiting = |target: Arc<dyn Target>| {
            let before = known.iter().find(|waiting| identity(&waiting.target) == identity(&target));
            before
                .cloned()
                .unwrap_or_else(|| Waiting { first: Arc::new(Mutex::new(Some(First::new(&self.shared)))), target })
        };
        targets.into_iter().map(waiting).collect()
    }
}

fn wanted(peer: &Arc<Peer>) -> Wanted {
    Wanted { target: peer.clone(), addresses: peer.source().addresses.clone() }
}

/// What tells one target from another, whatever their names.
pub(super) fn identity(target: &Arc<dyn Target>) -> usize {
    Arc::as_ptr(target).cast::<()>() as usize
}

/// How many names a log line gives before it stops.
const MOST_NAMES: usize = 8;

/// What was last said to a target, so that only changes are said and logged.
pub(super) struct Report {
    shared: Arc<Shared>,
    target: Arc<dyn Target>,
    first: Option<First>,
    endpoints: Vec<EndpointSpec>,
    /// Until when endpoints that the target began with outlive failures; none after the first answer.
    inherited: Option<Instant>,
    standing: Option<&'static str>,
}

impl Report {
    pub(super) fn new(shared: &Arc<Shared>, target: Arc<dyn Target>, first: Option<First>) -> Self {
        let endpoints = target.endpoints();
        let stale_for = shared.resolver.load().plan().stale_for;
        let inherited = if endpoints.is_empty() { None } else { Instant::now().checked_add(stale_for) };
        Self { shared: shared.clone(), target, first, endpoints, inherited, standing: None }
    }

    pub(super) fn target(&self) -> &Arc<dyn Target> {
        &self.target
    }

    pub(super) fn has_endpoints(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Passes on what changed, in one log line.
    pub(super) fn tell(&mut self, endpoints: Vec<EndpointSpec>, standing: &Standing, failed: bool) {
        if failed {
            self.target.count_failure();
        }
        if let (Standing::Failed { why }, Some(until)) = (standing, self.inherited)
            && Instant::now() < until
        {
            // Whoever asks for it is new and knows no last good answer; the target does.
            return self.tell_standing(&Standing::Stale { why: why.clone(), since: Instant::now() });
        }
        self.inherited = None;
        let (endpoints, standing) = self.shared.without_own(endpoints, standing);
        if endpoints != self.endpoints {
            let (added, removed) = self.target.replace(endpoints.clone());
            let names = difference(&self.endpoints, &endpoints);
            let (peer, total) = (self.target.name(), endpoints.len());
            tracing::info!(%peer, added, removed, total, "endpoints changed:{names}");
            self.endpoints = endpoints;
        }
        self.tell_standing(&standing);
    }

    /// Passes on how discovery stands, with the endpoints as they are.
    pub(super) fn tell_standing(&mut self, standing: &Standing) {
        let peer = self.target.name();
        let (word, why) = match standing {
            Standing::Ready => ("ready", ""),
            Standing::Empty { why } => ("empty", why.as_str()),
            Standing::Stale { why, .. } => ("stale", why.as_str()),
            Standing::Failed { why } => ("failed", why.as_str()),
        };
        if self.standing != Some(word) {
            match standing {
                Standing::Ready if self.standing.is_none() => {}
                Standing::Ready => tracing::info!(%peer, "discovery works again"),
                Standing::Empty { .. } => tracing::warn!(%peer, "no endpoint: {why}"),
                Standing::Stale { .. } => tracing::warn!(%peer, "discovery fails, the last good endpoints stay: {why}"),
                Standing::Failed { .. } => tracing::warn!(%peer, "discovery fails and no endpoint is left: {why}"),
            }
        }
        self.standing = Some(word);
        self.target.stand(standing);
        self.first = None;
    }
}

/// The addresses that came and went, each with its sign, up to a bound.
fn difference(before: &[EndpointSpec], after: &[EndpointSpec]) -> String {
    use std::collections::HashSet;
    use std::fmt::Write;
    let addrs = |list: &[EndpointSpec]| list.iter().map(|spec| spec.addr.clone()).collect::<HashSet<_>>();
    let (had, has) = (addrs(before), addrs(after));
    let came = after.iter().filter(|spec| !had.contains(&spec.addr)).map(|spec| ('+', &spec.addr));
    let went = before.iter().filter(|spec| !has.contains(&spec.addr)).map(|spec| ('-', &spec.addr));
    let mut names = String::new();
    let mut rest = 0;
    for (at, (sign, addr)) in came.chain(went).enumerate() {
        if at < MOST_NAMES {
            let _ = write!(names, " {sign}{addr}");
        } else {
            rest += 1;
        }
    }
    match (names.is_empty(), rest) {
        (true, _) => " facts about the same addresses".into(),
        (false, 0) => names,
        (false, rest) => names + &format!(" and {rest} more"),
    }
}

#[cfg(test)]
#[path = "refresh_tests.rs"]
pub(super) mod tests;
