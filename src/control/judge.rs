//! Time and news pass over open connections: what they have proven is judged again, and those that no longer verify are
//! ended in order. Runs beside the requests, never among them.

use std::collections::{BTreeMap, HashSet};
use std::ptr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustls_pki_types::UnixTime;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::certs::{Followed, Following};
use crate::ids::Door;
use crate::telemetry::metrics::Metrics;
use crate::tls::identity::Identity;
use crate::tls::proof::{Proof, Verdicts};
use crate::tls::untrusted::Role;

/// How often it is asked whether something has expired; a new identity is looked at as it comes.
const TICK: Duration = Duration::from_secs(1);

/// Proofs judged in one go; the admin server shares the thread.
const AT_ONCE: usize = 32;

/// Lines of the log for one look; those of many callers would hide everything else.
const LINES: usize = 20;

/// Judges open connections and warns of what expires, until the sender is gone; `clock` is the time of day.
pub async fn judge(mut following: Following, metrics: Arc<Metrics>, clock: impl Fn() -> UnixTime) {
    let (mut draining, mut warnings) = (Draining::default(), Warnings::default());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut reloaded, mut followed) = (true, None::<Arc<Followed>>);
    loop {
        // What was proven under an identity that a reload took away is open and to be judged all the same.
        followed = following.borrow_and_update().clone().or(followed);
        if let Some(followed) = &followed {
            let identity = followed.store.current();
            // What a start or a reload has found was told there.
            let fresh = identity.as_ref().map(|identity| warnings.fresh(identity, clock()));
            for warning in fresh.into_iter().flatten().filter(|_| !reloaded) {
                warn!("{warning}");
            }
            draining.look(followed, identity.as_deref(), &metrics, clock()).await;
        }
        draining.force(Instant::now());
        let renewed = async {
            match &followed {
                Some(followed) => followed.store.changed().await,
                None => std::future::pending().await,
            }
        };
        reloaded = false;
        tokio::select! {
            _ = tick.tick() => {}
            () = renewed => {}
            changed = following.changed() => {
                if changed.is_err() {
                    return;
                }
                reloaded = true;
            }
        }
    }
}

/// Connections that no longer verify, and when what is left of them is ended.
#[derive(Default)]
struct Draining(Vec<(Instant, Weak<Proof>)>);

impl Draining {
    async fn look(&mut self, followed: &Followed, identity: Option<&Identity>, metrics: &Metrics, now: UnixTime) {
        let (mut seen, mut refused) = (Verdicts::default(), BTreeMap::<_, usize>::new());
        for (at, proof) in followed.store.proofs.due(identity, now).into_iter().enumerate() {
            if at % AT_ONCE == AT_ONCE - 1 {
                tokio::task::yield_now().await;
                // Whoever is refused stays so: what is left is for the identity that came meanwhile to judge.
                if followed.store.current().as_deref().map(ptr::from_ref) != identity.map(ptr::from_ref) {
                    break;
                }
            }
            let Err(why) = proof.judge(identity, &mut seen, now) else { continue };
            let role = proof.role();
            metrics.door(door(role)).distrusted.inc(why.reason(role));
            *refused.entry((proof.id().to_string(), door(role).word(), why.to_string())).or_default() += 1;
            let end = Instant::now().checked_add(followed.grace);
            self.0.extend(end.map(|end| (end, Arc::downgrade(&proof))));
        }
        for ((id, door, why), connections) in refused.iter().take(LINES) {
            info!(%id, door, connections, "connections are closed after what they are doing: {why}");
        }
        if let Some(more) = refused.len().checked_sub(LINES).filter(|more| *more > 0) {
            info!("and so are connections of {more} others");
        }
    }

    fn force(&mut self, now: Instant) {
        self.0.retain(|(at, proof)| match proof.upgrade() {
            Some(proof) if *at <= now => {
                proof.force();
                false
            }
            Some(_) => true,
            None => false,
        });
    }
}

fn door(role: Role) -> Door {
    match role {
        Role::Client => Door::Inbound,
        Role::Server => Door::Outbound,
    }
}

/// What was warned of.
#[derive(Default)]
struct Warnings(HashSet<String>);

impl Warnings {
    /// What is to be told at `now` and was not before.
    fn fresh(&mut self, identity: &Identity, now: UnixTime) -> Vec<String> {
        let before = std::mem::replace(&mut self.0, identity.warnings(now).into_iter().collect());
        self.0.difference(&before).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::drain::Phase;
    use crate::plan::identity::{IdentityPlan, WorkloadApiPlan};
    use crate::tls::store::IdentityStore;
    use crate::tls::tests::kit::{Authority, now};
    use crate::tls::untrusted::Untrusted;

    fn followed(store: &Arc<IdentityStore>) -> Followed {
        let agent = "unix:/nonexistent/agent.sock".parse().unwrap();
        let plan = Arc::new(IdentityPlan::WorkloadApi(WorkloadApiPlan { agent, id: None, tls12: false }));
        Followed { plan, store: store.clone(), grace: TICK }
    }

    #[tokio::test]
    async fn what_a_newer_identity_believes_is_not_ended_by_an_older_one() {
        let (old, new) = (Authority::root("old"), Authority::root("new"));
        let own = new.issue("spiffe://shop/server");
        let trusting = |roots: &[&Authority]| {
            let roots: Vec<_> = roots.iter().map(|root| root.der()).collect();
            Identity::new(own.material(&[(None, &roots)]), now()).unwrap()
        };
        let store = Arc::new(IdentityStore::new(trusting(&[&old, &new])));
        let caller = old.issue("spiffe://shop/client");
        let open = || {
            let proof = Proof::new(&store.current().unwrap(), Some(&caller.certificates), None, now()).unwrap();
            store.proofs.keep(&proof);
            proof
        };
        let all: Vec<_> = (0..3 * AT_ONCE).map(|_| open()).collect();
        assert!(store.replace(trusting(&[&new]), now()).unwrap());
        let (followed, metrics, mut draining) = (followed(&store), Metrics::default(), Draining::default());
        let identity = store.current().unwrap();
        // A look lets others go first now and then: here, whoever brings the next identity.
        let look = draining.look(&followed, Some(&identity), &metrics, now());
        tokio::join!(biased; look, async { assert!(store.replace(trusting(&[&old, &new]), now()).unwrap()) });
        let ended = || all.iter().filter(|proof| !proof.holds()).count();
        assert_eq!(ended(), AT_ONCE - 1);
        draining.look(&followed, store.current().as_deref(), &metrics, now()).await;
        assert_eq!(ended(), AT_ONCE - 1);
        // Nobody was forgotten over it.
        assert!(store.replace(trusting(&[&new]), now()).unwrap());
        draining.look(&followed, store.current().as_deref(), &metrics, now()).await;
        assert_eq!(ended(), all.len());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_nobody_any_more_believes_nobody() {
        let root = Authority::root("root");
        let own = root.issue("spiffe://shop/server");
        let store = Arc::new(IdentityStore::new(own.identity(&root)));
        let caller = root.issue("spiffe://shop/client");
        let open = || Proof::new(&store.current().unwrap(), Some(&caller.certificates), None, now()).unwrap();
        let (early, late) = (open(), open());
        store.proofs.keep(&early);
        let (follow, following) = tokio::sync::watch::channel(Some(Arc::new(followed(&store))));
        let metrics = Arc::<Metrics>::default();
        let judge = judge(following, metrics.clone(), now);
        let told = || metrics.door(Door::Inbound).distrusted.get(Untrusted::NoIdentity.reason(Role::Client));
        let reloads = async {
            tokio::time::sleep(TICK * 3).await;
            assert!(early.holds());
            store.clear();
            follow.send_replace(None);
            // A handshake that was not over then.
            tokio::task::yield_now().await;
            store.proofs.keep(&late);
            let mut ends = (early.drain().watch(), late.drain().watch());
            ends.0.reached(Phase::Draining).await;
            ends.1.reached(Phase::Draining).await;
            assert_eq!(
                (early.over(), late.over(), told()),
                (Some(&Untrusted::NoIdentity), Some(&Untrusted::NoIdentity), 2)
            );
            // What is left of them is ended when their time is over.
            ends.0.reached(Phase::Forced).await;
            ends.1.reached(Phase::Forced).await;
            // Somebody again, and everything new is believed.
            store.replace(own.identity(&root), now()).unwrap();
            follow.send_replace(Some(Arc::new(followed(&store))));
            let again = open();
            store.proofs.keep(&again);
            tokio::time::sleep(TICK * 3).await;
            assert!(again.holds());
            drop(follow);
        };
        let both = async { tokio::join!(judge, reloads) };
        tokio::time::timeout(TICK * 60, both).await.expect("all of them end");
    }
}
