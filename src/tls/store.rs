//! `IdentityStore`: the identity in force, replaced whole or not at all.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::UnixTime;

use super::identity::Identity;
use crate::plan::identity::IdentityPlan;

/// Holds the identity in force. Whoever brings a new one calls [`replace`](Self::replace): the files' watcher through
/// [`reload`](Self::reload), or another source that fills in a `Material`. One at a time.
pub struct IdentityStore(ArcSwap<Identity>);

impl IdentityStore {
    /// Starts with `identity`.
    pub fn new(identity: Identity) -> Self {
        Self(ArcSwap::from_pointee(identity))
    }

    /// The one in force. A connection keeps it to the end of its handshake and is judged by it; what is built from it
    /// is out of date once `Arc::ptr_eq` with a later one fails.
    pub fn current(&self) -> Arc<Identity> {
        self.0.load_full()
    }

    /// Puts `identity` in force, and says whether anything is new: the same again keeps its sessions.
    pub fn replace(&self, identity: Identity) -> bool {
        let new = !self.0.load().is_same_as(&identity);
        if new {
            self.0.store(Arc::new(identity));
        }
        new
    }

    /// Reads the files again; on any problem the identity in force stays. `Ok(true)` if something is new.
    ///
    /// # Errors
    /// As [`Identity::read`].
    pub fn reload(&self, plan: &IdentityPlan, now: UnixTime) -> Result<bool, String> {
        Ok(self.replace(Identity::read(plan, now)?))
    }
}
