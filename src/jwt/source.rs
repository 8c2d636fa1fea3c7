//! An issuer's keys as they are known now: read on the path of requests, brought by the control side.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::keys::Keyset;
use crate::files;
use crate::plan::jwt::{IssuerPlan, KeysPlan};

/// Requests have keys asked for at most this often, whatever keys their tokens name.
pub const ASK_AGAIN: Duration = Duration::from_secs(10);

/// The keys of one issuer.
pub struct Source {
    /// Whose they are.
    pub issuer: Arc<str>,
    /// Where they come from.
    pub plan: KeysPlan,
    keys: ArcSwapOption<Keyset>,
    state: Mutex<State>,
    /// Counts the attempts to bring keys.
    rounds: watch::Sender<u64>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    /// Whether keys are being brought, or will be at once.
    coming: bool,
    /// When the last attempt ended.
    last: Option<Instant>,
    /// Why it brought nothing.
    trouble: Option<String>,
}

/// A file of keys larger than this is refused, and what a server sends too.
pub const MOST_BYTES: usize = 1024 * 1024;

/// Reads a file of keys.
///
/// # Errors
/// One line with the path.
pub fn read_file(path: &std::path::Path) -> Result<Keyset, String> {
    let why = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let text = files::read(path, MOST_BYTES as u64).map_err(|error| why(&error))?;
    Keyset::parse(&text).map_err(|error| why(&error))
}

/// What `/state` tells of an issuer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct SourceState {
    /// Whose tokens are meant.
    pub issuer: Arc<str>,
    /// Where the keys come from.
    pub jwks: String,
    /// How many there are.
    pub keys: usize,
    /// Why the last attempt to read them failed.
    pub problem: Option<String>,
}

impl Source {
    /// Without keys.
    pub fn new(issuer: &IssuerPlan) -> Self {
        Self {
            issuer: issuer.issuer.clone(),
            plan: issuer.keys.clone(),
            keys: ArcSwapOption::empty(),
            state: Mutex::default(),
            rounds: watch::Sender::new(0),
            wanted: Notify::new(),
        }
    }

    /// Whether it has the keys of this issuer.
    pub fn is_of(&self, issuer: &IssuerPlan) -> bool {
        self.issuer == issuer.issuer && self.plan == issuer.keys
    }

    /// The keys known now.
    pub fn keys(&self) -> Option<Arc<Keyset>> {
        self.keys.load_full()
    }

    /// Takes in what was brought; keys known before stay where there is a problem. Whether anything is new.
    pub fn take(&self, brought: Result<Keyset, String>, now: Instant) -> bool {
        let (new, trouble) = match brought {
            Ok(keys) => {
                let new = !self.keys.load().as_ref().is_some_and(|known| known.is_same_as(&keys));
                // The same again keeps its version, and so the tokens that are remembered.
                if new {
                    self.keys.store(Some(Arc::new(keys)));
                }
                (new, None)
            }
            Err(why) => (self.state.lock().trouble.as_deref() != Some(&why), Some(why)),
        };
        *self.state.lock() = State { coming: false, last: Some(now), trouble };
        self.rounds.send_modify(|rounds| *rounds += 1);
        new
    }

    /// Asks for keys; whether any are on their way. A server is not asked more often than [`ASK_AGAIN`] says; a file
    /// is watched and need not be.
    pub fn want(&self, now: Instant) -> bool {
        if matches!(self.plan, KeysPlan::File(_)) {
            return false;
        }
        let mut state = self.state.lock();
        if !state.coming {
            if state.last.is_some_and(|last| now.saturating_duration_since(last) < ASK_AGAIN) {
                return false;
            }
            state.coming = true;
            self.wanted.notify_one();
        }
        true
    }

    /// Tells of the end of each attempt to bring keys.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.rounds.subscribe()
    }

    /// Waits until keys are asked for; for whoever brings them.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// What is told of it.
    pub fn state(&self) -> SourceState {
        let jwks = match &self.plan {
            KeysPlan::File(path) => path.display().to_string(),
            KeysPlan::Url { text, .. } => text.to_string(),
        };
        let problem = self.state.lock().trouble.clone();
        SourceState { issuer: self.issuer.clone(), jwks, keys: self.keys().map_or(0, |keys| keys.len()), problem }
    }
}
