//! `IdentityStore`: the identity in force, replaced whole or not at all; empty until a source has brought the first.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls_pki_types::UnixTime;

use super::identity::Identity;
use crate::plan::identity::FilesPlan;

/// What is said where no source has said anything.
const NOTHING_YET: &str = "no identity has come yet";

/// Holds the identity in force. Whoever brings a new one calls [`replace`](Self::replace): the files' watcher through
/// [`reload`](Self::reload), or another source that fills in a `Material`. One at a time.
#[derive(Default)]
pub struct IdentityStore {
    current: ArcSwapOption<Identity>,
    /// Why the source has brought nothing, in its last words.
    why: Mutex<Option<Arc<str>>>,
}

impl IdentityStore {
    /// Starts with `identity`.
    pub fn new(identity: Identity) -> Self {
        Self { current: ArcSwapOption::from_pointee(identity), why: Mutex::default() }
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

    /// Puts `identity` in force, and says whether anything is new: the same again keeps its sessions.
    pub fn replace(&self, identity: Identity) -> bool {
        let new = self.current.load().as_ref().is_none_or(|current| !current.is_same_as(&identity));
        if new {
            self.current.store(Some(Arc::new(identity)));
        }
        new
    }

    /// Forgets the one in force: this sidecar is nobody any more.
    pub fn clear(&self) {
        self.current.store(None);
        *self.why.lock() = None;
    }

    /// Reads the files again; on any problem the identity in force stays. `Ok(true)` if something is new.
    ///
    /// # Errors
    /// As [`Identity::read`].
    pub fn reload(&self, files: &FilesPlan, now: UnixTime) -> Result<bool, String> {
        Ok(self.replace(Identity::read(files, now)?))
    }
}
