//! Identities from a SPIFFE Workload API: streams what the machine's agent gives and puts it in force.
//!
//! What the agent gives is believed only after `Identity::new` has judged it, as what files give. Whatever goes wrong,
//! the last good identity stays: an agent that restarts, a socket that is gone, an update that fits nothing together.

#[cfg_attr(not(feature = "spiffe"), path = "absent.rs")]
mod agent;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::error::Elapsed;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::life::tasks::Tasks;
use crate::plan::identity::{IdentityPlan, WorkloadApiPlan};
use crate::spiffe::SpiffeId;
use crate::telemetry::metrics::Metrics;
use crate::tls::expiry::Expiry;
use crate::tls::identity::Identity;
use crate::tls::material::{Material, Roots, Sourced};
use crate::tls::store::{IdentityStore, OutOfDate};
use crate::tls::trust::usable_root;

/// How long the agent may take to begin its answer, and then to give something. It may be asked again.
const OPEN_CLOCK: Duration = Duration::from_secs(10);
/// A certificate that is not renewed in time is asked for anew, over a new connection, but no more often than this.
const ASK_AGAIN: Duration = Duration::from_secs(60);
/// An identity that does not hold yet, while the last one does, is tried again this often.
const LATER: Duration = Duration::from_secs(5);
/// The pause after a first failure; it doubles, up to [`LONGEST_PAUSE`], and half of each is chance.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Agents learn of new entries every few seconds, so a longer pause would only keep the service waiting.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Characters of a complaint.
const MOST_WORDS: usize = 1000;

/// One message of the agent, as read and not yet believed.
pub struct Update {
    /// The default identity first.
    pub svids: Vec<Svid>,
    /// The roots of each trust domain, the own one's and those of domains that are federated with it.
    pub bundles: Vec<(Arc<str>, Vec<CertificateDer<'static>>)>,
}

/// One of the identities that the agent gives.
pub struct Svid {
    /// Its SPIFFE ID, to choose by.
    pub id: String,
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's.
    pub key: PrivateKeyDer<'static>,
}

/// Why there is no update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The agent knows nobody whom this process would be, in its own words.
    NoEntry(String),
    /// A message cannot be read; the stream goes on.
    Unreadable(String),
    /// There is no stream, or no more.
    Broken(String),
}

/// An agent that can be asked.
pub trait Agent: Send + 'static {
    /// Its answer.
    type Stream: Updates;
    /// Asks it; to be dropped by whoever loses patience.
    fn open(&mut self) -> impl Future<Output = Result<Self::Stream, Fault>> + Send;
}

/// What the agent says, as it comes.
pub trait Updates: Send {
    /// The next message; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Result<Update, Fault>>> + Send;
}

/// The owner of the task that listens to the agent of the plan in force.
pub struct Source {
    tasks: Tasks,
    metrics: Arc<Metrics>,
    running: Mutex<Option<Running>>,
}

struct Running {
    plan: Arc<IdentityPlan>,
    task: AbortHandle,
    /// Whether an identity has come from it.
    came: watch::Receiver<bool>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Source {
    /// Listens to nobody yet; its task will be one of `tasks`.
    pub fn new(tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self { tasks, metrics, running: Mutex::default() }
    }

    /// Listens to the agent of `plan`, to another one as before if that is the same, and to none where the plan names
    /// none. From the return on nothing comes from an earlier one: tasks of the control thread take turns.
    pub fn set(&self, plan: Option<&Arc<IdentityPlan>>, store: Option<&Arc<IdentityStore>>) {
        let mut running = self.running.lock();
        if running.as_ref().is_some_and(|running| Some(&running.plan) == plan) {
            return;
        }
        *running = None;
        if let (Some(plan), Some(store)) = (plan, store)
            && let IdentityPlan::WorkloadApi(wanted) = &**plan
        {
            *running = Some(self.begin(plan, wanted, store));
        }
    }

    fn begin(&self, plan: &Arc<IdentityPlan>, wanted: &WorkloadApiPlan, store: &Arc<IdentityStore>) -> Running {
        let (told, came) = watch::channel(false);
        let taking = Taking::new(wanted.clone(), store.clone(), self.metrics.clone(), told);
        let task = self.tasks.spawn(taking.for_ever(agent::Socket::of(wanted)));
        Running { plan: plan.clone(), task, came }
    }

    /// Waits for the first identity from the agent of the plan in force, for at most `limit`.
    pub async fn first(&self, limit: Duration) {
        let came = self.running.lock().as_ref().map(|running| running.came.clone());
        if let Some(mut came) = came {
            // Whether it came or not: who needs one is told.
            let _ = timeout(limit, came.wait_for(|came| *came)).await;
        }
    }
}

/// Takes what an agent gives.
pub struct Taking {
    plan: WorkloadApiPlan,
    store: Arc<IdentityStore>,
    metrics: Arc<Metrics>,
    came: watch::Sender<bool>,
    /// Failures since something good came.
    failures: u32,
    /// What was complained of last, so that it is said once and not at each attempt.
    said: Option<String>,
    /// What came and does not hold, while the one in force does.
    waiting: Option<Box<Identity>>,
}

impl Taking {
    /// Nothing has come yet; `came` will say when.
    pub fn new(
        plan: WorkloadApiPlan,
        store: Arc<IdentityStore>,
        metrics: Arc<Metrics>,
        came: watch::Sender<bool>,
    ) -> Self {
        Self { plan, store, metrics, came, failures: 0, said: None, waiting: None }
    }

    /// Asks the agent again and again; ends only with its task.
    pub async fn for_ever(mut self, mut agent: impl Agent) {
        loop {
            let fault = match timeout(OPEN_CLOCK, agent.open()).await {
                Ok(Ok(stream)) => Box::pin(self.listen(stream)).await,
                Ok(Err(fault)) => fault,
                Err(_) => Fault::Broken(format!("no answer began within {} s", OPEN_CLOCK.as_secs())),
            };
            self.metrics.workload_api.failures.inc();
            self.complain(&fault);
            sleep(pause(self.failures, fastrand::f64())).await;
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// Takes what comes until the stream ends, and says why that was.
    async fn listen(&mut self, mut stream: impl Updates) -> Fault {
        let mut patience = OPEN_CLOCK;
        loop {
            let next = self.meanwhile(patience, stream.next()).await;
            match next {
                Ok(Some(Ok(update))) => self.take(update, UnixTime::now()),
                Ok(Some(Err(fault @ Fault::Unreadable(_)))) => {
                    self.metrics.workload_api.refused.inc();
                    self.complain(&fault);
                }
                Ok(Some(Err(fault))) => return fault,
                Ok(None) => return Fault::Broken("the agent ended its answer".to_owned()),
                Err(_) => return Fault::Broken("nothing more came in time, so it is asked again".to_owned()),
            }
            patience = self.patience(UnixTime::now());
        }
    }

    /// Waits for what comes, and meanwhile for the time of what came before.
    async fn meanwhile<T>(&mut self, patience: Duration, next: impl Future<Output = T>) -> Result<T, Elapsed> {
        let mut next = std::pin::pin!(timeout(patience, next));
        loop {
            tokio::select! {
                next = next.as_mut() => return next,
                () = sleep(LATER), if self.waiting.is_some() => {
                    if let Some(identity) = self.waiting.take() {
                        self.put(*identity, UnixTime::now());
                    }
                }
            }
        }
    }

    /// How long nothing may come: until a renewal is overdue. Then the connection may be dead, or lead to an agent that
    /// another one has taken the socket from.
    fn patience(&self, now: UnixTime) -> Duration {
        let current = self.store.current();
        let overdue = current.as_ref().and_then(|identity| identity.expiries().first().map(Expiry::warn_at));
        let left = overdue.map(|overdue| overdue.as_secs().saturating_sub(now.as_secs()));
        Duration::from_secs(left.unwrap_or_default()).max(ASK_AGAIN)
    }

    fn take(&mut self, update: Update, now: UnixTime) {
        self.waiting = None;
        match self.material(update).and_then(|material| Identity::new(material, now)) {
            Ok(identity) => self.put(identity, now),
            Err(why) => self.refuse(why),
        }
    }

    fn put(&mut self, identity: Identity, now: UnixTime) {
        let id = identity.id().clone();
        match self.store.replace(identity, now) {
            Ok(new) => {
                self.metrics.workload_api.taken.inc();
                (self.failures, self.said) = (0, None);
                if new {
                    info!(%id, agent = %self.plan.agent, "an identity came from the Workload API");
                }
                self.came.send_replace(true);
            }
            Err(OutOfDate { identity, why }) => {
                self.waiting = Some(identity);
                // It is tried again and again, and counts once.
                if self.store.news().refused.is_none_or(|refused| refused.why != why) {
                    self.refuse(why);
                }
            }
        }
    }

    fn refuse(&mut self, why: String) {
        self.metrics.workload_api.refused.inc();
        self.store.refuse(&why);
        self.complain(&Fault::Unreadable(why));
    }

    /// What an identity is made of, without roots that could not be used in any case: one of a partner's must not keep
    /// our own certificate from being renewed.
    fn material(&self, update: Update) -> Result<Material, String> {
        let origin = format!("the Workload API at {}", self.plan.agent);
        let svid = chosen(update.svids, self.plan.id.as_ref()).map_err(|why| format!("{origin}: {why}"))?;
        let mut roots = Vec::new();
        for (domain, mut certificates) in update.bundles {
            let origin = format!("{origin}: the bundle of `{domain}`");
            certificates.retain(|root| match usable_root(root) {
                Ok(()) => true,
                Err(why) => {
                    warn!("identity: {origin}: a root {why}: it is left out");
                    false
                }
            });
            // Of a domain without roots nobody is believed.
            if !certificates.is_empty() {
                roots.push(Roots { domain: Some(domain), certificates: Sourced { origin, it: certificates } });
            }
        }
        Ok(Material {
            chain: Sourced { origin: origin.clone(), it: svid.chain },
            key: Sourced { origin, it: svid.key },
            roots,
            crls: Vec::new(),
            tls12: self.plan.tls12,
        })
    }

    fn complain(&mut self, fault: &Fault) {
        // Some of it is the agent's own: it becomes a line of a log and of `/ready`.
        let words: String =
            words(fault).chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST_WORDS).collect();
        let text = format!("the Workload API at {}: {words}", self.plan.agent);
        self.store.lacks(&text);
        if self.said.as_ref() == Some(&text) {
            debug!("identity: {text}");
            return;
        }
        let stays = if self.store.current().is_some() { "; the last good identity stays in force" } else { "" };
        warn!("identity: {text}{stays}");
        self.said = Some(text);
    }
}

/// The one that the file names, or the first.
fn chosen(svids: Vec<Svid>, id: Option<&SpiffeId>) -> Result<Svid, String> {
    let Some(id) = id else {
        return svids.into_iter().next().ok_or_else(|| "an update without an identity".to_owned());
    };
    let given: Vec<_> = svids.iter().map(|svid| svid.id.clone()).collect();
    svids
        .into_iter()
        .find(|svid| svid.id == id.as_str())
        .ok_or_else(|| format!("it does not give {id}, which `identity.id` asks for; it gives {}", given.join(", ")))
}

/// What went wrong, and what to do.
fn words(fault: &Fault) -> String {
    match fault {
        Fault::NoEntry(own) => {
            let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            format!(
                "the agent knows no identity for this workload ({own}): register an entry whose selectors fit it (uid \
                 {user}, gid {group})"
            )
        }
        Fault::Unreadable(why) | Fault::Broken(why) => why.clone(),
    }
}

/// The pause after the failure that `failures` others came before; `roll` is between 0 and 1.
fn pause(failures: u32, roll: f64) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
    longest.mul_f64(0.5 + roll / 2.0)
}
