//! `IdentityStore`: the identity in force, replaced whole or not at all, and the connections that were proven to it; empty
//! until a source has brought the first.

use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;
use serde::Serialize;
use tokio::sync::Notify;

use super::identity::Identity;
use super::proof::Proofs;
use crate::plan::identity::FilesPlan;
use crate::telemetry::metrics::Counter;
use crate::telemetry::stamp::Stamp;

/// What is said where no source has said anything.
const NOTHING_YET: &str = "no identity has come yet";

/// Holds the identity in force. Whoever brings a new one calls [`replace`](Self::replace): the files' watcher through
/// [`reload`](Self::reload), or another source that fills in a `Material`. One at a time.
#[derive(Default)]
pub struct IdentityStore {
    current: ArcSwapOption<Identity>,
    /// Why the source has brought nothing, in its last words.
    why: Mutex<Option<Arc<str>>>,
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct News {
    /// Since when the identity in force is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed: Option<Stamp>,
    /// The replacement that was refused, if none was taken since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
}

/// An identity that is not taken, because it does not hold now and the one in force does.
#[derive(Debug)]
pub struct OutOfDate {
    /// The identity, for another attempt.
    pub identity: Box<Identity>,
    /// Why, in one line.
    pub why: String,
}

/// Why files are not taken.
#[derive(Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// In one line.
    pub why: String,
    /// Whether time may change that.
    pub dates: bool,
}

/// A replacement that was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// When.
    pub at: Stamp,
    /// Why; it names where it came from and never holds a secret.
    pub why: String,
}

impl IdentityStore {
    /// Starts with `identity`.
    pub fn new(identity: Identity) -> Self {
        let store = Self::default();
        // Nothing is in force that could hold.
        let _ = store.replace(identity, UnixTime::now());
        store
    }

    /// The one in force; `None` until the first has come. A connection keeps it to the end of its handshake and is
    /// judged by it; what is built from it is out of date once `Arc::ptr_eq` with a later one fails.
    pub fn current(&self) -> Option<Arc<Identity>> {
        self.current.load_full()
    }

    /// Why there is none, for who is refused because of it; `None` where there is one.
    pub fn lack(&self) -> Option<Arc<str>> {
        if self.current.load().is_some() {
            return None;
        }
        Some(self.why.lock().clone().unwrap_or_else(|| NOTHING_YET.into()))
    }

    /// Notes why the source has brought nothing.
    pub fn lacks(&self, why: &str) {
        *self.why.lock() = Some(why.into());
    }

    /// Whether [`replace`](Self::replace) would take it: one that holds at `now` gives way only to one that does too.
    ///
    /// # Errors
    /// Why not.
    pub fn would_take(&self, identity: &Identity, now: UnixTime) -> Result<(), String> {
        let Err(why) = identity.holds(now) else { return Ok(()) };
        match self.current.load().as_ref().filter(|before| !before.is_same_as(identity) && before.holds(now).is_ok()) {
            Some(_) => Err(format!("{}: {why}; the one in force still holds and is kept", identity.origin())),
            None => Ok(()),
        }
    }

    /// Puts `identity` in force, and says whether anything is new: the same again keeps its sessions.
    ///
    /// # Errors
    /// As [`would_take`](Self::would_take); what is in force stays.
    pub fn replace(&self, identity: Identity, now: UnixTime) -> Result<bool, OutOfDate> {
        if let Err(why) = self.would_take(&identity, now) {
            return Err(OutOfDate { identity: Box::new(identity), why });
        }
        self.news.lock().refused = None;
        let before = self.current.load_full();
        if before.as_ref().is_some_and(|before| before.is_same_as(&identity)) {
            return Ok(false);
        }
        self.current.store(Some(Arc::new(identity)));
        self.news.lock().changed = Some(Stamp(SystemTime::now()));
        if before.is_some() {
            self.rotations.inc();
        }
        self.changed.notify_one();
        Ok(true)
    }

    /// Forgets the one in force: this sidecar is nobody any more.
    pub fn clear(&self) {
        self.current.store(None);
        *self.why.lock() = None;
        *self.news.lock() = News::default();
        self.changed.notify_one();
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

    /// Waits for the next identity, or for the end of the one in force; what came since the last wait is enough. For one
    /// who waits.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Reads the files again; on any problem the identity in force stays. `Ok(true)` if something is new.
    ///
    /// # Errors
    /// As [`Identity::read`] and [`replace`](Self::replace).
    pub fn reload(&self, files: &FilesPlan, now: UnixTime) -> Result<bool, NotTaken> {
        let identity = Identity::read(files, now).map_err(|why| NotTaken { why, dates: false })?;
        self.replace(identity, now).map_err(|OutOfDate { why, .. }| NotTaken { why, dates: true })
    }
}
