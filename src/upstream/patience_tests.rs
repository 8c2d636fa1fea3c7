//! What deadlines that pass say about an endpoint, in virtual time: much where the others do better, little by themselves.

use std::time::Duration;

use tokio::time::{Instant, advance};

use super::in_flight::InFlight;
use super::peer::Peer;
use super::roster_tests::{SECOND, begin, peer as peer_of, port, spec, standing, traffic};
use crate::reason::Reason;
use crate::resilience::outlier::{Cause, Seen};

/// So many requests at once whose callers wait so long for nothing where `hangs` says so, and else are answered at once.
async fn late(peer: &Peer, times: usize, wait: Duration, hangs: impl Fn(u16) -> bool) {
    let mut all: Vec<InFlight> = (0..times).map(|_| begin(peer)).collect();
    all.iter_mut().for_each(|one| one.sent());
    let (stuck, served): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| hangs(port(one.endpoint())));
    served.into_iter().for_each(|mut one| one.answered(Instant::now(), Seen::Well));
    advance(wait).await;
    stuck.into_iter().for_each(|mut one| one.failed(Instant::now(), Reason::DeadlinePassed));
}

#[tokio::test(start_paused = true)]
async fn a_callers_short_patience_ejects_nobody() {
    let peer = peer_of(vec![spec(1), spec(2)]);
    for _ in 0..50 {
        late(&peer, 20, SECOND / 200, |_| true).await;
    }
    assert_eq!((standing(&peer).ejected.get(), standing(&peer).spared.get()), (0, 0));
    // Nor is any taken for slow.
    let latency = |at: usize| peer.endpoints().all()[at].load().latency(Instant::now());
    assert!([0, 1].into_iter().all(|at| latency(at).is_none_or(|latency| latency < SECOND / 100)));
}

#[tokio::test(start_paused = true)]
async fn one_that_hangs_is_ejected_although_its_callers_have_little_patience() {
    let peer = peer_of(vec![spec(1), spec(2)]);
    late(&peer, 40, SECOND / 20, |port| port == 1).await;
    assert_eq!(standing(&peer).ejections[Cause::FailureShare.index()].get(), 1);
    assert_eq!(traffic(&peer, &[1, 2]), [0, 100]);
    // It is well again, but those who try it are in a hurry: they do not keep it out for longer and longer.
    for _ in 0..5 {
        advance(SECOND * 5 / 2).await;
        let mut probe = (0..4).map(|_| begin(&peer)).find(|one| port(one.endpoint()) == 1).expect("a probe");
        probe.sent();
        probe.failed(Instant::now(), Reason::DeadlinePassed);
    }
    advance(SECOND * 5 / 2).await;
    assert!(traffic(&peer, &[1])[0] > 40);
}

#[tokio::test(start_paused = true)]
async fn who_waits_in_vain_for_far_longer_than_others_did_has_met_a_failure() {
    let peer = peer_of(vec![spec(1), spec(2)]);
    // All hang: there is nobody to compare with.
    late(&peer, 10, SECOND, |_| true).await;
    assert_eq!(standing(&peer).ejections[Cause::LocalFailures.index()].get(), 2);
    // Where answers take three seconds, two of them are no failure.
    let slow = peer_of(vec![spec(1), spec(2)]);
    for _ in 0..10 {
        let mut served: Vec<InFlight> = (0..2).map(|_| begin(&slow)).collect();
        advance(SECOND * 3).await;
        served.iter_mut().for_each(|one| one.answered(Instant::now(), Seen::Well));
        late(&slow, 12, SECOND * 2, |_| true).await;
    }
    assert_eq!((standing(&slow).ejected.get(), standing(&slow).spared.get()), (0, 0));
}
