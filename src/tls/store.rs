//! `IdentityStore`: the identity in force, replaced whole or not at all, and the connections that were proven to it.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use serde::Serialize;
use tokio::sync::Notify;

use super::identity::Identity;
use super::proof::Proofs;
use crate::plan::identity::IdentityPlan;
use crate::telemetry::metrics::Counter;
use crate::telemetry::stamp::Stamp;

/// Holds the identity in force. Whoever brings a new one calls [`replace`](Self::replace): the files' watcher through
/// [`reload`](Self::reload), or another source that fills in a `Material`. One at a time.
pub struct IdentityStore {
    current: ArcSwap<Identity>,
    /// What open connections have proven.
    pub proofs: Proofs,
    /// Identities that took the place of another one.
    pub rotations: Counter,
    /// Replacements that were refused.
    pub refusals: Counter,
    news: Mutex<News>,
    changed: Notify,
}

/// What became of replacements last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct News {
    /// Since when the identity in force is.
    pub changed: Stamp,
    /// The replacement that was refused, if none was taken since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// A replacement that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// When.
    pub at: Stamp,
    /// Why; it names the file and never holds a secret.
    pub why: String,
}

impl IdentityStore {
    /// Starts with `identity`.
    pub fn new(identity: Identity) -> Self {
        Self {
            current: ArcSwap::from_pointee(identity),
            proofs: Proofs::default(),
            rotations: Counter::default(),
            refusals: Counter::default(),
            news: Mutex::new(News { changed: Stamp(SystemTime::now()), refused: None }),
            changed: Notify::new(),
        }
    }

    /// The one in force. A connection keeps it to the end of its handshake and is judged by it; what is built from it
    /// is out of date once `Arc::ptr_eq` with a later one fails.
    pub fn current(&self) -> Arc<Identity> {
        self.current.load_full()
    }

    /// Puts `identity` in force, and says whether anything is new: the same again keeps its sessions.
    pub fn replace(&self, identity: Identity) -> bool {
        self.news.lock().refused = None;
        let new = !self.current.load().is_same_as(&identity);
        if new {
            self.current.store(Arc::new(identity));
            self.rotations.inc();
            self.news.lock().changed = Stamp(SystemTime::now());
            self.changed.notify_one();
        }
        new
    }

    /// Notes that a replacement was refused; what is in force stays.
    pub fn refuse(&self, why: &str) {
        self.refusals.inc();
        self.news.lock().refused = Some(Refused { at: Stamp(SystemTime::now()), why: why.to_owned() });
    }

    /// What became of replacements last.
    pub fn news(&self) -> News {
        self.news.lock().clone()
    }

    /// Waits for the next identity; one that came since the last wait is enough. For one who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Reads the files again; on any problem the identity in force stays. `Ok(true)` if something is new.
    ///
    /// # Errors
    /// As [`Identity::read`].
    pub fn reload(&self, plan: &IdentityPlan, now: UnixTime) -> Result<bool, String> {
        Ok(self.replace(Identity::read(plan, now)?))
    }
}
