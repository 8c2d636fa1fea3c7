//! What connections have proven, judged again under a clock that the tests move and trust that they change.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};

use super::kit::*;
use crate::life::drain::Phase;
use crate::life::tasks::Tasks;
use crate::spiffe::IdMatch;
use crate::tls::identity::Identity;
use crate::tls::proof::{Called, Proof, Verdicts};
use crate::tls::store::IdentityStore;
use crate::tls::untrusted::{Role, Untrusted};
use crate::tls::verify::{Meant, Wanted};

const OWN: &str = "spiffe://shop/server";
const CALLER: &str = "spiffe://shop/client";

/// An identity of the mesh that trusts these roots and lists.
fn identity(own: &Chain, roots: &[&Authority], crl: Option<(&Authority, &[u64], i64)>) -> Identity {
    let roots: Vec<CertificateDer<'static>> = roots.iter().map(|root| root.der()).collect();
    let mut material = own.material(&[(None, &roots)]);
    material.crls = crl.into_iter().map(|(of, revoked, until)| sourced("crl", vec![of.crl(revoked, until)])).collect();
    Identity::new(material, now()).unwrap()
}

/// Keeps the proof of a connection whose end shows `chain`.
fn keep(store: &IdentityStore, chain: &Chain, called: Option<Called>) -> Arc<Proof> {
    let proof = Proof::new(&store.current().unwrap(), Some(&chain.certificates), called, now()).unwrap();
    store.proofs.keep(&proof);
    proof
}

fn ids(id: &str) -> Arc<[IdMatch]> {
    Arc::from([id.parse().unwrap()])
}

/// A peer that is meant to be `id`, and who is called where it is.
fn peer(id: &str) -> (Arc<Meant>, impl Fn() -> Option<Called>) {
    let ids = ids(id);
    let meant = Meant::new(ids.clone());
    let same = meant.clone();
    (meant, move || Some(Called { wanted: Wanted::new(ids.clone(), None), meant: same.clone() }))
}

/// Why connections are refused by a look at `at`, and how many were looked at.
fn look(store: &IdentityStore, at: UnixTime) -> (Vec<Untrusted>, usize) {
    let (identity, mut seen) = (store.current().unwrap(), Verdicts::default());
    let due = store.proofs.due(Some(&identity), at);
    (due.iter().filter_map(|proof| proof.judge(Some(&identity), &mut seen, at).err()).collect(), due.len())
}

fn second_after(time: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(time.as_secs() + 1))
}

#[test]
fn an_expired_caller_is_ended_at_the_second_and_nobody_else() {
    let root = Authority::root("root");
    let until = |hours| root.issue_with(CALLER, |params| dates(params, -1, hours));
    let store = IdentityStore::new(identity(&until(24), &[&root], None));
    let (short, long) = (keep(&store, &until(1), None), keep(&store, &until(2), None));
    assert_eq!(look(&store, now()), (vec![], 0));
    assert_eq!(look(&store, time(1)), (vec![], 0), "its last second");
    let expired = Untrusted::Expired { since: time(1) };
    assert_eq!(look(&store, second_after(time(1))), (vec![expired.clone()], 1));
    assert_eq!((short.over(), short.drain().phase()), (Some(&expired), Phase::Draining));
    assert_eq!((long.holds(), long.drain().phase()), (true, Phase::Open));
    assert_eq!(look(&store, time(2)), (vec![], 0), "told once");
    drop(short);
    assert_eq!(look(&store, second_after(time(2))).1, 1);
    drop(long);
    look(&store, time(3));
    assert!(store.proofs.is_empty(), "ended connections are forgotten");
}

#[test]
fn roots_that_go_end_whom_they_vouched_for_and_nothing_else_does() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let (own_old, own_new) = (old.issue(OWN), new.issue(OWN));
    let store = IdentityStore::new(identity(&own_old, &[&old, &new], None));
    let by_old = keep(&store, &old.issue(CALLER), None);
    let peer_by_old = keep(&store, &old.issue(CALLER), peer(CALLER).1());
    let by_new = keep(&store, &new.issue(CALLER), None);
    // Another leaf of our own is no news of others; only whom we call has seen the old one, and is looked at once.
    assert!(store.replace(identity(&own_new, &[&old, &new], None), now()).unwrap());
    assert!(peer_by_old.is_current());
    assert_eq!((look(&store, now()), look(&store, now())), ((vec![], 1), (vec![], 0)));
    assert_eq!((peer_by_old.holds(), peer_by_old.is_current(), by_old.is_current()), (true, false, true));
    assert_eq!(peer_by_old.drain().phase(), Phase::Open);
    // A root more is looked at, and hurts nobody.
    let third = Authority::root("third");
    assert!(store.replace(identity(&own_new, &[&old, &new, &third], None), now()).unwrap());
    assert_eq!(look(&store, now()), (vec![], 3));
    assert!(store.replace(identity(&own_new, &[&new], None), now()).unwrap());
    assert_eq!(look(&store, now()), (vec![Untrusted::UnknownIssuer; 2], 3));
    assert_eq!((by_old.holds(), peer_by_old.holds(), by_new.holds()), (false, false, true));
    assert_eq!((by_old.role(), peer_by_old.role()), (Role::Client, Role::Server));
    // No way back: whoever was told to go is gone.
    assert!(store.replace(identity(&own_new, &[&old, &new], None), now()).unwrap());
    look(&store, now());
    assert!(!by_old.holds());
    // Proven under the roots of before, after these were looked at.
    let late = Proof::new(&store.current().unwrap(), Some(&old.issue(CALLER).certificates), None, now()).unwrap();
    assert!(store.replace(identity(&own_new, &[&new], None), now()).unwrap());
    look(&store, now());
    store.proofs.keep(&late);
    assert_eq!(look(&store, now()), (vec![Untrusted::UnknownIssuer], 1));
}

#[test]
fn a_crl_ends_whom_it_lists_and_all_of_its_issuer_when_it_is_out_of_date() {
    let root = Authority::root("root");
    let own = root.issue(OWN);
    let numbered = |n: u64| root.issue_with(CALLER, |params| params.serial_number = Some(n.into()));
    let store = IdentityStore::new(identity(&own, &[&root], None));
    let (listed, other) = (keep(&store, &numbered(7), None), keep(&store, &numbered(8), None));
    assert!(store.replace(identity(&own, &[&root], Some((&root, &[7], 5))), now()).unwrap());
    assert_eq!(look(&store, now()), (vec![Untrusted::Revoked], 2));
    assert_eq!((listed.holds(), other.holds()), (false, true));
    assert_eq!(look(&store, time(4)), (vec![], 0));
    assert_eq!(look(&store, time(6)), (vec![Untrusted::StaleRevocation { since: time(5) }], 1));
}

#[test]
fn a_peer_that_is_to_be_somebody_else_is_ended() {
    let root = Authority::root("root");
    let store = IdentityStore::new(identity(&root.issue(OWN), &[&root], None));
    let ((meant, called), (_, of_another)) = (peer(CALLER), peer(CALLER));
    let chain = root.issue(CALLER);
    let (judged, of_another_peer) = (keep(&store, &chain, called()), keep(&store, &chain, of_another()));
    assert_eq!(look(&store, now()), (vec![], 0));
    meant.set(ids("spiffe://shop/*"));
    assert_eq!(look(&store, now()), (vec![], 1), "it is one of those");
    assert_eq!(look(&store, now()), (vec![], 0));
    // Of a handshake that began before that and ends after the next change.
    meant.set(ids("spiffe://shop/other"));
    let late = keep(&store, &chain, called());
    let (refused, looked) = look(&store, now());
    assert!(refused.iter().all(|why| matches!(why, Untrusted::WrongIdentity { .. })) && looked == 2, "{refused:?}");
    assert_eq!((judged.holds(), late.holds(), of_another_peer.holds()), (false, false, true));
}

#[test]
fn who_is_meant_may_change_while_connections_are_looked_through() {
    let root = Authority::root("root");
    let (store, chain) = (IdentityStore::new(identity(&root.issue(OWN), &[&root], None)), root.issue(CALLER));
    for round in 0..50 {
        let (meant, called) = peer(CALLER);
        let open: Vec<_> = (0..500).map(|_| keep(&store, &chain, called())).collect();
        let together = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                together.wait();
                look(&store, now());
            });
            together.wait();
            meant.set(ids("spiffe://shop/other"));
        });
        look(&store, now());
        let missed = open.iter().filter(|proof| proof.holds()).count();
        assert_eq!(missed, 0, "round {round}");
    }
}

#[test]
fn our_own_expired_leaf_keeps_being_shown_and_others_are_still_judged() {
    let root = Authority::root("root");
    let own = root.issue_with(OWN, |params| dates(params, -2, -1));
    let store = IdentityStore::new(identity(&own, &[&root], None));
    assert!(
        store
            .current()
            .unwrap()
            .warnings(now())
            .iter()
            .any(|warning| warning.contains("our own certificate expired at"))
    );
    let caller = keep(&store, &root.issue(CALLER), None);
    assert_eq!(look(&store, time(1)), (vec![], 0));
    assert!(caller.holds());
    let other = root.issue(CALLER).identity(&root);
    let refused = Proof::new(&other, Some(&own.certificates), peer(OWN).1(), now()).unwrap_err();
    assert_eq!(refused, Untrusted::Expired { since: time(-1) });
    // A step back of the clock does not bring the past into force.
    assert_eq!(look(&store, time(-1)), (vec![], 0));
}

#[test]
fn what_was_proven_to_whom_we_were_is_let_go_of_once_we_are_another() {
    let root = Authority::root("root");
    let us = |id: &str| identity(&root.issue(id), &[&root], None);
    let store = IdentityStore::new(us(OWN));
    let (caller, peer) = (keep(&store, &root.issue(CALLER), None), keep(&store, &root.issue(CALLER), peer(CALLER).1()));
    // A handshake that goes on meanwhile.
    let late = Proof::new(&store.current().unwrap(), Some(&root.issue(CALLER).certificates), None, now()).unwrap();
    // After a renewal of the same only new requests go another way.
    assert!(store.replace(us(OWN), now()).unwrap());
    assert_eq!((look(&store, now()), caller.is_current(), peer.holds()), ((vec![], 1), true, true));
    assert!(store.replace(us("spiffe://shop/other"), now()).unwrap());
    let (refused, looked) = look(&store, now());
    let why = Untrusted::OtherSelf { was: OWN.parse().unwrap(), is: "spiffe://shop/other".parse().unwrap() };
    assert_eq!((refused, looked), (vec![why.clone(); 2], 2));
    assert_eq!((caller.over(), peer.over()), (Some(&why), Some(&why)));
    store.proofs.keep(&late);
    assert_eq!((look(&store, now()).0.len(), late.holds()), (1, false));
    let after = keep(&store, &root.issue(CALLER), None);
    assert_eq!((look(&store, now()), after.holds()), ((vec![], 0), true));
}

#[tokio::test]
async fn a_task_that_is_named_after_its_proof_was_forced_ends() {
    let root = Authority::root("root");
    let store = IdentityStore::new(identity(&root.issue(OWN), &[&root], None));
    for forced_first in [false, true] {
        let (proof, tasks) = (keep(&store, &root.issue(CALLER), None), Tasks::default());
        let task = tasks.spawn(std::future::pending::<()>());
        if forced_first {
            proof.force();
            proof.forces(task);
        } else {
            proof.forces(task);
            proof.force();
        }
        let ended = tokio::time::timeout(std::time::Duration::from_secs(20), tasks.idle()).await;
        assert!(ended.is_ok(), "forced first: {forced_first}");
    }
}
