//! `Proof`: what the other end of an open connection has proven, judged again as long as the connection is open.
//!
//! A connection is judged anew when whom we trust has changed, when something in its chain or among the roots and CRLs
//! expires, when a reload means somebody else by its peer, or makes nobody of us, and when we are somebody else than we
//! were to the other end. One that still verifies notices nothing of it, but that a server which was shown a leaf that we
//! have replaced is sent nothing new over HTTP/1.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::task::AbortHandle;

use super::facts::Facts;
use super::identity::Identity;
use super::untrusted::{Role, Untrusted};
use super::verify::{Meant, Wanted};
use crate::life::drain::{Drain, Phase};
use crate::spiffe::SpiffeId;

/// Who is at the other end of a connection, and whether that still holds.
pub struct Proof {
    id: SpiffeId,
    /// Who we were to it.
    own: SpiffeId,
    /// The leaf that we have shown it.
    shown: [u8; 32],
    chain: Chain,
    judged: Mutex<Judged>,
    /// Why it holds no longer.
    over: OnceLock<Untrusted>,
    /// Whether a server would be shown another leaf now.
    outlived: AtomicBool,
    /// The connection's own drain.
    drain: Drain,
    /// The task of a connection that obeys no drain, ended by force.
    task: OnceLock<AbortHandle>,
}

/// Who is called.
pub struct Called {
    /// Who it must be.
    pub wanted: Wanted,
    /// Who its peer may be from now on.
    pub meant: Arc<Meant>,
}

/// What a proof was judged by.
struct Judged {
    /// Who was called; `None` where the other end called us.
    called: Option<Called>,
    /// Whom we trusted.
    trust: [u8; 32],
    /// When the verdict may be another without any change of ours.
    due: UnixTime,
}

/// Verdicts of one look at many connections: those of one caller have one chain.
#[derive(Default)]
pub struct Verdicts(HashMap<(bool, Chain), Result<SpiffeId, Untrusted>>);

/// The leaf first.
type Chain = Arc<[CertificateDer<'static>]>;

impl Proof {
    /// Judges who is at the other end by what holds at `now`; `called` is `None` for a caller. To be asked on every
    /// connection: a resumed one brings the chain of its first handshake, which rustls does not judge again.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn new(
        identity: &Identity,
        chain: Option<&[CertificateDer<'_>]>,
        called: Option<Called>,
        now: UnixTime,
    ) -> Result<Arc<Self>, Untrusted> {
        let id = match &called {
            None => identity.identify_client(chain, now)?,
            Some(called) => identity.identify_peer(chain, &called.wanted, now)?,
        };
        let chain: Chain = chain.unwrap_or_default().iter().map(|der| der.clone().into_owned()).collect();
        let judged = Judged { called, trust: identity.trust(), due: due(&chain, identity, now) };
        Ok(Arc::new(Self {
            id,
            own: identity.id().clone(),
            shown: identity.leaf(),
            chain,
            judged: Mutex::new(judged),
            over: OnceLock::new(),
            outlived: AtomicBool::new(false),
            drain: Drain::default(),
            task: OnceLock::new(),
        }))
    }

    /// Who is there.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Whether it still holds.
    pub fn holds(&self) -> bool {
        self.over.get().is_none()
    }

    /// Whether it holds, and the other end would be shown today what it was shown. An HTTP/1 server that no longer believes
    /// an old leaf closes without a word, and a request that is on its way then is lost (RFC 9112 §9.5): who calls it by a
    /// new one goes first.
    pub fn is_current(&self) -> bool {
        self.holds() && !self.outlived.load(Ordering::Relaxed)
    }

    /// Why it holds no longer.
    pub fn over(&self) -> Option<&Untrusted> {
        self.over.get()
    }

    /// What the other end is.
    pub fn role(&self) -> Role {
        if self.judged.lock().called.is_some() { Role::Server } else { Role::Client }
    }

    /// Begins to drain once it holds no longer, and is forced some time after.
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Names the task that is ended where the drain is forced.
    pub fn forces(&self, task: AbortHandle) {
        // A connection has one task. It may be named after all was ended by force.
        let _ = self.task.set(task);
        if self.drain.phase() == Phase::Forced {
            self.force();
        }
    }

    /// Ends what is left of the connection.
    pub fn force(&self) {
        self.drain.advance(Phase::Forced);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Judges it by what holds at `now`; once refused it stays so. Without an identity of our own nothing holds.
    ///
    /// # Errors
    /// Why it is refused: told once.
    pub fn judge(&self, identity: Option<&Identity>, seen: &mut Verdicts, now: UnixTime) -> Result<(), Untrusted> {
        let verdict = match identity {
            Some(identity) => self.verdict(identity, seen, now),
            None => Err(Untrusted::NoIdentity),
        };
        let Err(why) = verdict else {
            if identity.is_some_and(|identity| identity.leaf() != self.shown) {
                self.outlived.store(true, Ordering::Relaxed);
            }
            return Ok(());
        };
        if self.over.set(why.clone()).is_err() {
            return Ok(());
        }
        self.drain.advance(Phase::Draining);
        Err(why)
    }

    fn verdict(&self, identity: &Identity, seen: &mut Verdicts, now: UnixTime) -> Result<(), Untrusted> {
        if self.own != *identity.id() {
            return Err(Untrusted::OtherSelf { was: self.own.clone(), is: identity.id().clone() });
        }
        let mut judged = self.judged.lock();
        let role = if judged.called.is_some() { Role::Server } else { Role::Client };
        let verdict = seen.0.entry((role == Role::Server, self.chain.clone()));
        let verdict = verdict.or_insert_with(|| identity.identify(Some(&self.chain), role, now)).clone();
        let verdict = verdict.and_then(|id| {
            let Some(called) = &mut judged.called else { return Ok(()) };
            called.wanted.follow(&called.meant);
            called.wanted.check(&id)
        });
        (judged.trust, judged.due) = (identity.trust(), due(&self.chain, identity, now));
        verdict
    }

    fn is_due(&self, identity: Option<&Identity>, now: UnixTime) -> bool {
        let Some(identity) = identity else { return self.holds() };
        let judged = self.judged.lock();
        let meant = judged.called.as_ref().is_none_or(|called| called.wanted.is_of(&called.meant));
        let outlives =
            judged.called.is_some() && self.shown != identity.leaf() && !self.outlived.load(Ordering::Relaxed);
        let news = self.own != *identity.id() || judged.trust != identity.trust() || outlives;
        self.holds() && (!meant || news || judged.due <= now)
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proof").field("id", &self.id).field("over", &self.over.get()).finish_non_exhaustive()
    }
}

/// The first second at which something that the verdict rests on, or may rest on, is out of date.
fn due(chain: &[CertificateDer<'_>], identity: &Identity, now: UnixTime) -> UnixTime {
    let chain = chain.iter().filter_map(|certificate| Some(Facts::read(certificate)?.validity.until));
    let ours = identity.expiries().iter().map(|expiry| expiry.validity.until);
    let next = chain.chain(ours).filter(|until| *until >= now).min();
    let after = |until: UnixTime| UnixTime::since_unix_epoch(Duration::from_secs(until.as_secs().saturating_add(1)));
    next.map_or(UnixTime::since_unix_epoch(Duration::MAX), after)
}

/// The proofs of all open connections.
#[derive(Default)]
pub struct Proofs(Mutex<Vec<Weak<Proof>>>);

impl Proofs {
    /// Judges `proof` again from now on.
    pub fn keep(&self, proof: &Arc<Proof>) {
        self.0.lock().push(Arc::downgrade(proof));
    }

    /// Those that are to be judged again, all of them without an identity; forgets the connections that have ended.
    pub fn due(&self, identity: Option<&Identity>, now: UnixTime) -> Vec<Arc<Proof>> {
        // Looked through without the lock, which new connections take on their way.
        let mut all = std::mem::take(&mut *self.0.lock());
        let mut due = Vec::new();
        all.retain(|proof| {
            let Some(proof) = proof.upgrade() else { return false };
            let stays = proof.holds();
            if proof.is_due(identity, now) {
                due.push(proof);
            }
            stays
        });
        let mut kept = self.0.lock();
        all.append(&mut kept);
        *kept = all;
        due
    }

    /// How many there are, those of connections that have ended since the last look included.
    pub fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
