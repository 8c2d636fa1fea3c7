//! Brings the keys of the issuers in `inbound.jwt`: files are watched, servers are asked again and again.
//!
//! Keys that are known stay where the next ones cannot be had; requests judge by whatever is known at their moment.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::fetch::{Fetched, Url, fetch};
use super::refresh::Refresher;
use super::watch::{Pace, watch};
use crate::jwt::keys::Keyset;
use crate::jwt::source::{MOST_BYTES, Source};
use crate::jwt::tokens::Tokens;
use crate::life::tasks::Tasks;
use crate::plan::jwt::KeysPlan;
use crate::telemetry::metrics::Metrics;

/// How long one attempt may take: resolving, connecting, TLS and the answer.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A server is asked again after this time, unless its answer says another (`Cache-Control: max-age`) between these.
const USUAL: Duration = Duration::from_secs(300);
const FLOOR: Duration = Duration::from_secs(60);
const CEILING: Duration = Duration::from_secs(3600);

/// The pause after a first failure, doubled with each further one up to the other.
const AFTER_FAILURE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The owner of the tasks; dropping it ends them.
pub struct Jwks {
    tasks: Tasks,
    refresher: Arc<Refresher>,
    metrics: Arc<Metrics>,
    pace: Pace,
    jobs: Mutex<HashMap<usize, Job>>,
}

/// Brings the keys of one source; dropping it ends that.
struct Job {
    /// Keeps the address that it is known by its own.
    _source: Arc<Source>,
    task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Jwks {
    /// Nobody is asked yet; names are looked up as the refresher does.
    pub fn new(tasks: Tasks, refresher: Arc<Refresher>, metrics: Arc<Metrics>) -> Self {
        Self { tasks, refresher, metrics, pace: Pace::default(), jobs: Mutex::default() }
    }

    /// Takes over the issuers of a World: those of before go on undisturbed.
    pub fn set(&self, tokens: Option<&Arc<Tokens>>) {
        let mut jobs = self.jobs.lock();
        let mut before = std::mem::take(&mut *jobs);
        for source in tokens.map_or(&[][..], |tokens| tokens.sources()) {
            let id = Arc::as_ptr(source) as usize;
            jobs.entry(id).or_insert_with(|| before.remove(&id).unwrap_or_else(|| self.begin(source)));
        }
    }

    fn begin(&self, source: &Arc<Source>) -> Job {
        let task = match &source.plan {
            KeysPlan::File(path) => {
                let watched = watch(&self.tasks, path.clone(), self.pace);
                self.tasks.spawn(follow(source.clone(), watched, self.metrics.clone()))
            }
            KeysPlan::Url { .. } => {
                self.tasks.spawn(ask_for_ever(source.clone(), self.refresher.clone(), self.metrics.clone()))
            }
        };
        Job { _source: source.clone(), task }
    }
}

/// Takes over each new content of a file.
async fn follow(source: Arc<Source>, mut watched: super::watch::Watched, metrics: Arc<Metrics>) {
    while let Some(seen) = watched.changed().await {
        let keys = match seen {
            Ok(content) if content.bytes.len() > MOST_BYTES => Err("it is larger than 1 MiB".to_owned()),
            Ok(content) => Keyset::parse(&content.bytes),
            Err(why) => Err(why.to_string()),
        };
        take(&source, keys, &metrics);
    }
}

/// Asks a server, again when its keys are old, and earlier when a token names a key that is not known.
async fn ask_for_ever(source: Arc<Source>, refresher: Arc<Refresher>, metrics: Arc<Metrics>) {
    let KeysPlan::Url { host, port, target, roots, .. } = &source.plan else { return };
    let url = Url { host, port: *port, target: &target.0, roots: roots.as_ref() };
    let mut failed = 0;
    loop {
        let fetched = timeout(ATTEMPT, fetch(&url, &refresher.resolver(), MOST_BYTES)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {ATTEMPT:?}")));
        let (keys, age) = match fetched {
            Ok(Fetched { body, max_age }) => (Keyset::parse(&body), max_age),
            Err(why) => (Err(why), None),
        };
        failed = if keys.is_ok() { 0 } else { failed + 1 };
        take(&source, keys, &metrics);
        tokio::select! {
            () = sleep(pause(failed, age, fastrand::f64())) => {}
            // Cancel-safe: a wish that was told stays.
            () = source.wanted() => {}
        }
    }
}

/// The time to the next attempt, up to a tenth less; `roll` is between 0 and 1.
fn pause(failed: u32, max_age: Option<Duration>, roll: f64) -> Duration {
    let (first, most) = AFTER_FAILURE;
    let whole = match failed {
        0 => max_age.unwrap_or(USUAL).clamp(FLOOR, CEILING),
        n => first.saturating_mul(1 << (n - 1).min(16)).min(most),
    };
    whole.mul_f64(1.0 - roll / 10.0)
}

fn take(source: &Source, keys: Result<Keyset, String>, metrics: &Metrics) {
    let (count, trouble) = match &keys {
        Ok(keys) => (keys.len(), keys.warning()),
        Err(why) => (0, Some(why.clone())),
    };
    let read = keys.is_ok();
    if read {
        metrics.jwks_read.inc()
    } else {
        metrics.jwks_failures.inc()
    }
    let new = source.take(keys, Instant::now());
    let state = source.state();
    let (issuer, jwks) = (&state.issuer, &state.jwks);
    match trouble {
        _ if !new => {}
        Some(why) if !read && state.keys > 0 => warn!(%issuer, jwks, "keys cannot be read, the last ones stay: {why}"),
        Some(why) if !read => warn!(%issuer, jwks, "keys cannot be read, and none are known: {why}"),
        Some(why) => warn!(%issuer, jwks, keys = count, "keys in force; {why}"),
        None => info!(%issuer, jwks, keys = count, "keys in force"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_again_as_it_says_within_bounds() {
        let seconds = Duration::from_secs;
        for (failed, max_age, expect) in [
            (0, None, 300),
            (0, Some(0), 60),
            (0, Some(600), 600),
            (0, Some(u64::MAX), 3600),
            (1, Some(600), 1),
            (2, None, 2),
            (7, None, 60),
            (u32::MAX, None, 60),
        ] {
            assert_eq!(pause(failed, max_age.map(seconds), 0.0), seconds(expect), "{failed} {max_age:?}");
            assert_eq!(pause(failed, max_age.map(seconds), 1.0), seconds(expect).mul_f64(0.9));
        }
    }
}
