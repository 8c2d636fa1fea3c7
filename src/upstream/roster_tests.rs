//! Which endpoints are in the choice, in virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::time::{Instant, advance};

use super::choice::Ask;
use super::endpoint::Endpoint;
use super::in_flight::InFlight;
use super::peer::Peer;
use super::rig::{plan, policy};
use super::world::Upstreams;
use crate::life::tasks::Tasks;
use crate::plan::door::Protocol;
use crate::plan::health::{HealthCheck, HealthRule};
use crate::plan::peer::{Balance, EndpointSpec, PeerPlan, PeerPolicy};
use crate::plan::rules::{EjectRule, Rules, Share, SubsetFallback, SubsetRule};
use crate::reason::Reason;
use crate::resilience::outlier::{Cause, Seen};
use crate::telemetry::metrics::{CAUSES, StandingMetrics};

pub(super) fn spec(port: u16) -> EndpointSpec {
    EndpointSpec::bare(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())
}

/// A peer whose endpoints are chosen in turn, so that every one is met.
pub(super) fn peer(specs: Vec<EndpointSpec>) -> Arc<Peer> {
    let upstreams = Upstreams::new(Arc::default(), Tasks::default());
    let health = Some(Arc::new(checks()));
    let policy = Arc::new(PeerPolicy { balance: Balance::RoundRobin, health, ..policy() });
    let plan = PeerPlan { policy, ..plan(Protocol::Auto, specs) };
    Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap()
}

pub(super) fn port(endpoint: &Endpoint) -> u16 {
    endpoint.addr().tcp().unwrap().port()
}

pub(super) fn begin(peer: &Peer) -> InFlight {
    peer.begin(Ask::default(), Instant::now(), &[]).unwrap()
}

/// One request; `fails` says by its endpoint's port whether it fails. Gives the port.
fn ask(peer: &Peer, fails: impl Fn(u16) -> bool) -> u16 {
    let mut in_flight = begin(peer);
    let at = port(in_flight.endpoint());
    let status = if fails(at) { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    in_flight.answered(Instant::now(), Seen::answer(status, None));
    at
}

/// So many requests.
fn asks(peer: &Peer, times: usize, fails: impl Fn(u16) -> bool) {
    for _ in 0..times {
        ask(peer, &fails);
    }
}

pub(super) fn standing(peer: &Peer) -> &StandingMetrics {
    &peer.metrics().standing
}

/// How many of a hundred requests go to each of the ports.
pub(super) fn traffic(peer: &Peer, ports: &[u16]) -> Vec<usize> {
    let went: Vec<u16> = (0..100).map(|_| ask(peer, |_| false)).collect();
    ports.iter().map(|port| went.iter().filter(|at| *at == port).count()).collect()
}

fn checks() -> HealthRule {
    HealthRule { check: HealthCheck::Tcp, every: SECOND, timeout: SECOND, healthy: 2, unhealthy: 3 }
}

fn unhealthy(peer: &Peer, at: usize, times: u32) {
    let endpoint = peer.endpoints().all()[at].clone();
    (0..times).for_each(|_| endpoint.checked(Instant::now(), Err("GET /healthz: 503".into()), &checks()));
}

fn healthy(peer: &Peer, at: usize, times: u32) {
    let endpoint = peer.endpoints().all()[at].clone();
    (0..times).for_each(|_| endpoint.checked(Instant::now(), Ok(()), &checks()));
}

pub(super) const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn one_that_fails_is_out_until_a_probe_brings_it_back() {
    let peer = peer(vec![spec(1), spec(2)]);
    asks(&peer, 20, |port| port == 1);
    assert_eq!(standing(&peer).ejections[Cause::ServerErrors.index()].get(), 1);
    assert_eq!(standing(&peer).ejected.get(), 1);
    assert_eq!(traffic(&peer, &[1, 2]), [0, 100]);
    let state = peer.state();
    let out = state.endpoints[0].ejected.as_ref().unwrap();
    assert_eq!((out.why, out.seconds), ("server_errors", 0));
    assert!((1000..=1250).contains(&out.next_probe_ms), "{out:?}");
    assert!(state.endpoints[1].ejected.is_none() && !state.fails_open);
    advance(SECOND * 2).await;
    // Due, it is tried once; it fails, and the others do not notice.
    let failed: Vec<u16> = (0..10).map(|_| ask(&peer, |port| port == 1)).filter(|port| *port == 1).collect();
    assert_eq!(failed, [1]);
    advance(SECOND * 3).await;
    let went = traffic(&peer, &[1, 2]);
    assert!(went[0] >= 49, "{went:?}");
    assert_eq!((standing(&peer).ejected.get(), standing(&peer).failed_open.get()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_probe_is_one_request_at_a_time_and_given_up_another_follows() {
    let peer = peer(vec![spec(1), spec(2)]);
    asks(&peer, 20, |port| port == 1);
    advance(SECOND * 2).await;
    for _ in 0..3 {
        let under_way: Vec<InFlight> = (0..10).map(|_| begin(&peer)).collect();
        assert_eq!(under_way.iter().filter(|one| port(one.endpoint()) == 1).count(), 1);
        // All of them are cancelled.
    }
    let state = peer.state();
    assert_eq!(state.endpoints[0].ejected.as_ref().unwrap().next_probe_ms, 0);
}

#[tokio::test(start_paused = true)]
async fn when_all_are_out_any_is_chosen_and_the_first_success_ends_it() {
    let peer = peer(vec![spec(1), spec(2)]);
    asks(&peer, 20, |_| true);
    assert_eq!(standing(&peer).ejected.get(), 2);
    let before = standing(&peer).failed_open.get();
    assert!(before > 0 && peer.state().fails_open);
    let both: Vec<u16> = (0..20).map(|_| ask(&peer, |_| true)).collect();
    assert!(both.contains(&1) && both.contains(&2));
    assert_eq!(standing(&peer).failed_open.get(), before + 20);
    advance(SECOND / 1000).await;
    ask(&peer, |_| false);
    // The other is pardoned and tried at once.
    let went = traffic(&peer, &[1, 2]);
    assert!(went[0] > 40 && went[1] > 40, "{went:?}");
    assert_eq!(standing(&peer).ejected.get(), 0);
    assert!(!peer.state().fails_open && standing(&peer).failed_open.get() <= before + 21);
}

#[tokio::test(start_paused = true)]
async fn what_a_caller_did_is_not_held_against_an_endpoint() {
    let peer = peer(vec![spec(1), spec(2)]);
    for _ in 0..100 {
        drop(begin(&peer));
        for reason in [Reason::ClientGone, Reason::BodyTimeout, Reason::BadBody, Reason::Overloaded] {
            begin(&peer).failed(Instant::now(), reason);
            begin(&peer).unconnected(Instant::now(), reason);
        }
        begin(&peer).unconnected(Instant::now(), Reason::DeadlinePassed);
    }
    assert_eq!(standing(&peer).ejected.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_connects_ends_the_row_of_those_that_did_not() {
    let peer = peer(vec![spec(1), spec(2)]);
    for _ in 0..20 {
        (0..8).for_each(|_| begin(&peer).unconnected(Instant::now(), Reason::ConnectRefused));
        (0..2).for_each(|_| begin(&peer).connected(Instant::now()));
        // Out of the window of shares, which is judged by itself.
        advance(SECOND * 20).await;
    }
    assert_eq!(standing(&peer).ejections.iter().map(|cell| cell.get()).sum::<u64>(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_judged_by_its_trailers() {
    let peer = peer(vec![spec(1), spec(2)]);
    let call = |code: u32| {
        let owed = begin(&peer).headed(Instant::now()).unwrap();
        let probe = owed.is_probe();
        owed.ended(Instant::now(), Seen::answer(StatusCode::OK, Some(code)));
        probe
    };
    (0..20).for_each(|_| assert!(!call(5)));
    assert_eq!(standing(&peer).ejected.get(), 0);
    (0..10).for_each(|_| assert!(!call(14)));
    assert_eq!(standing(&peer).ejections[Cause::GatewayErrors.index()].get(), 2);
    // A call that was cancelled tells nothing, and leaves the probe to the next.
    advance(SECOND * 2).await;
    drop(begin(&peer).headed(Instant::now()).unwrap());
    assert!(call(0) || call(0));
}

#[tokio::test(start_paused = true)]
async fn one_endpoint_alone_is_not_watched() {
    let peer = peer(vec![spec(1)]);
    asks(&peer, 100, |_| true);
    assert_eq!((standing(&peer).ejected.get(), standing(&peer).failed_open.get()), (0, 0));
    assert!(begin(&peer).headed(Instant::now()).is_none());
}

#[tokio::test(start_paused = true)]
async fn who_leaves_or_takes_no_traffic_no_longer_counts_as_out() {
    let peer = peer(vec![spec(1), spec(2), spec(3)]);
    asks(&peer, 60, |port| port != 3);
    assert_eq!(standing(&peer).ejected.get(), 2);
    peer.update(vec![spec(1), EndpointSpec { weight: 0, ..spec(2) }, spec(3)]);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[1, 3])), (1, vec![0, 100]));
    peer.update(vec![spec(2), spec(3)]);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[2, 3])), (0, vec![50, 50]));
    asks(&peer, 60, |port| port == 2);
    let metrics = peer.metrics().clone();
    assert_eq!(metrics.standing.ejected.get(), 1);
    drop(peer);
    assert_eq!(metrics.standing.ejected.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_one_left_comes_back_by_a_request_like_any_other() {
    let peer = peer(vec![spec(1), spec(2)]);
    asks(&peer, 20, |port| port == 1);
    peer.update(vec![spec(1)]);
    assert!(peer.state().endpoints[0].ejected.is_some());
    advance(SECOND / 1000).await;
    ask(&peer, |_| false);
    assert!(peer.state().endpoints[0].ejected.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reload_changes_the_rule_or_turns_it_off() {
    let peer = peer(vec![spec(1), spec(2)]);
    let set = |eject: Option<EjectRule>| {
        let mut policy = (*peer.policy()).clone();
        policy.rules.eject = eject;
        peer.set_policy(Arc::new(policy));
    };
    set(Some(EjectRule { server_errors: Some(2), ..EjectRule::default() }));
    asks(&peer, 4, |port| port == 1);
    assert_eq!(standing(&peer).ejected.get(), 1);
    set(None);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[1, 2])), (0, vec![50, 50]));
    asks(&peer, 100, |port| port == 1);
    assert_eq!(standing(&peer).ejected.get(), 0);
    set(Some(EjectRule::default()));
    asks(&peer, 20, |port| port == 1);
    assert_eq!(standing(&peer).ejected.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_next_priority_stands_in_for_one_that_is_all_out() {
    let backup = EndpointSpec { priority: 5, ..spec(3) };
    let peer = peer(vec![spec(1), spec(2), backup]);
    asks(&peer, 40, |port| port != 3);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[3])), (2, vec![100]));
    assert_eq!(standing(&peer).failed_open.get(), 0);
    advance(SECOND * 3).await;
    asks(&peer, 30, |_| false);
    assert_eq!(traffic(&peer, &[1, 2, 3]), [50, 50, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_is_well_again_is_found_though_the_first_priority_stays_dead() {
    let backup = |port| EndpointSpec { priority: 5, ..spec(port) };
    let peer = peer(vec![spec(1), spec(2), backup(3), backup(4)]);
    asks(&peer, 100, |_| true);
    assert_eq!(standing(&peer).ejected.get(), 4);
    for _ in 0..8 {
        advance(SECOND / 2).await;
        asks(&peer, 20, |port| port < 3);
    }
    let went: Vec<u16> = (0..100).map(|_| ask(&peer, |port| port < 3)).collect();
    assert!(went.iter().filter(|port| **port > 2).count() >= 98, "{went:?}");
    assert!(!peer.state().fails_open);
}

#[tokio::test(start_paused = true)]
async fn a_backup_that_is_out_is_tried_while_the_first_priority_cannot_take_all() {
    let backup = |port| EndpointSpec { priority: 5, ..spec(port) };
    let mut specs: Vec<_> = (1..=10).map(spec).collect();
    specs.extend((11..=14).map(backup));
    let peer = peer(specs);
    asks(&peer, 400, |port| port > 1);
    assert_eq!(standing(&peer).ejected.get(), 13);
    for _ in 0..10 {
        advance(SECOND / 2).await;
        asks(&peer, 60, |port| (2..=10).contains(&port));
    }
    // A tenth of the first priority is well: with the headroom it takes 14 of 100.
    let went = (0..400).filter(|_| ask(&peer, |port| (2..=10).contains(&port)) > 10).count();
    assert!((300..=370).contains(&went), "{went}");
}

#[tokio::test(start_paused = true)]
async fn a_zone_that_is_out_leaves_its_traffic_to_the_others_until_a_probe_brings_it_back() {
    let zoned = |port, zone: &str| EndpointSpec { zone: Some(zone.into()), ..spec(port) };
    let peer = peer(vec![zoned(1, "a"), zoned(2, "a"), zoned(3, "b"), zoned(4, "b")]);
    let own = PeerPolicy { zone: Some("a".into()), ..(*peer.policy()).clone() };
    peer.set_policy(Arc::new(PeerPolicy {
        rules: Rules {
            eject: Some(EjectRule { most: Share::percent(100), ..EjectRule::default() }),
            ..Rules::default()
        },
        ..own
    }));
    assert_eq!(traffic(&peer, &[1, 2, 3, 4]), [50, 50, 0, 0]);
    asks(&peer, 60, |port| port < 3);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[3, 4])), (2, vec![50, 50]));
    assert_eq!(standing(&peer).failed_open.get(), 0);
    advance(SECOND * 3).await;
    asks(&peer, 30, |_| false);
    assert_eq!(traffic(&peer, &[1, 2, 3, 4]), [50, 50, 0, 0]);
    unhealthy(&peer, 0, 3);
    unhealthy(&peer, 1, 3);
    assert_eq!(traffic(&peer, &[3, 4]), [50, 50]);
}

#[tokio::test(start_paused = true)]
async fn a_key_leaves_an_endpoint_that_is_out_and_returns_with_it() {
    for balance in [Balance::RingHash, Balance::Maglev] {
        let peer = peer((1..=4).map(spec).collect());
        peer.set_policy(Arc::new(PeerPolicy { balance, ..(*peer.policy()).clone() }));
        let ask = |fails: bool| {
            let mut in_flight = peer.begin(Ask { key: Some(7), ..Ask::default() }, Instant::now(), &[]).unwrap();
            in_flight.answered(Instant::now(), if fails { Seen::ServerError } else { Seen::Well });
            port(in_flight.endpoint())
        };
        let home = ask(false);
        let mut last = home;
        (0..20).for_each(|_| last = if last == home { ask(true) } else { last });
        let away = ask(false);
        assert!(away != home && (0..20).all(|_| ask(false) == away), "{balance:?}");
        assert_eq!(standing(&peer).ejected.get(), 1);
        advance(SECOND * 2).await;
        assert!((0..20).all(|_| ask(false) == home), "{balance:?}");
        assert_eq!((standing(&peer).ejected.get(), standing(&peer).failed_open.get()), (0, 0));
        // If all are out, it is the key's own endpoint again.
        (0..4).for_each(|at| unhealthy(&peer, at, 3));
        assert_eq!((ask(true), peer.state().fails_open), (home, true), "{balance:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn bounded_load_is_shared_by_those_that_are_left() {
    for balance in [Balance::RingHash, Balance::Maglev] {
        let peer = peer((1..=8).map(spec).collect());
        let bounded_load = Some(Share::percent(125));
        peer.set_policy(Arc::new(PeerPolicy { balance, bounded_load, ..(*peer.policy()).clone() }));
        (2..8).for_each(|at| unhealthy(&peer, at, 3));
        // One key for all.
        let ask = Ask { key: Some(7), ..Ask::default() };
        let held: Vec<InFlight> = (0..100).map(|_| peer.begin(ask, Instant::now(), &[]).unwrap()).collect();
        let most = peer.endpoints().all().iter().map(|one| one.load().in_flight()).max().unwrap();
        assert!((50..=63).contains(&most), "{balance:?}: {most} of {}", held.len());
    }
}

#[tokio::test(start_paused = true)]
async fn a_shorter_pause_of_a_new_rule_is_in_force_for_those_that_are_out() {
    let peer = peer(vec![spec(1), spec(2)]);
    let set = |probe_after: Duration| {
        let mut policy = (*peer.policy()).clone();
        policy.rules.eject = Some(EjectRule { probe_after, longest: probe_after, ..EjectRule::default() });
        peer.set_policy(Arc::new(policy));
    };
    set(SECOND * 3600);
    asks(&peer, 20, |port| port == 1);
    advance(SECOND * 10).await;
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[1])), (1, vec![0]));
    set(SECOND);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[1])), (1, vec![0]));
    advance(SECOND * 5 / 4).await;
    assert!(traffic(&peer, &[1])[0] > 40);
}

#[tokio::test(start_paused = true)]
async fn a_subset_that_is_out_says_nothing_about_the_others() {
    let versioned = |port, version: &str| {
        let metadata = BTreeMap::from([("version".to_owned(), version.to_owned())]);
        EndpointSpec { metadata: Some(Arc::new(metadata)), ..spec(port) }
    };
    let peer = peer(vec![versioned(1, "1"), versioned(2, "2"), versioned(3, "2")]);
    let wanted = BTreeMap::from([("version".to_owned(), "1".to_owned())]);
    let rule = Arc::new(SubsetRule { wanted, otherwise: SubsetFallback::None });
    peer.set_policy(Arc::new(PeerPolicy { subsets: vec![rule.clone()], ..(*peer.policy()).clone() }));
    asks(&peer, 30, |port| port == 1);
    assert_eq!((standing(&peer).ejected.get(), traffic(&peer, &[1])), (1, vec![0]));
    let only = peer.begin(Ask { subset: Some(&rule), ..Ask::default() }, Instant::now(), &[]).unwrap();
    assert_eq!((port(only.endpoint()), standing(&peer).failed_open.get()), (1, 1));
    assert!(!peer.state().fails_open);
}

#[tokio::test(start_paused = true)]
async fn one_that_checks_find_unhealthy_is_out_until_they_find_it_well() {
    let peer = peer(vec![spec(1), spec(2)]);
    unhealthy(&peer, 0, 2);
    assert_eq!(traffic(&peer, &[1, 2]), [50, 50]);
    unhealthy(&peer, 0, 1);
    assert_eq!(traffic(&peer, &[1, 2]), [0, 100]);
    assert_eq!((standing(&peer).unhealthy.get(), standing(&peer).checks_failed.get()), (1, 3));
    advance(SECOND * 5).await;
    let told = peer.state().endpoints[0].unhealthy.clone().unwrap();
    assert_eq!((told.why.as_str(), told.seconds), ("GET /healthz: 503", 5));
    healthy(&peer, 0, 1);
    unhealthy(&peer, 0, 1);
    healthy(&peer, 0, 1);
    assert_eq!(traffic(&peer, &[1, 2]), [0, 100]);
    healthy(&peer, 0, 1);
    assert_eq!((standing(&peer).unhealthy.get(), traffic(&peer, &[1, 2])), (0, vec![50, 50]));
    assert!(peer.state().endpoints[0].unhealthy.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_check_that_ends_after_checks_were_turned_off_does_not_count() {
    let peer = peer(vec![spec(1), spec(2)]);
    peer.set_policy(Arc::new(PeerPolicy { health: None, ..(*peer.policy()).clone() }));
    peer.endpoints().all()[0].unchecked();
    unhealthy(&peer, 0, 3);
    assert_eq!((standing(&peer).unhealthy.get(), traffic(&peer, &[1, 2])), (0, vec![50, 50]));
}

#[tokio::test(start_paused = true)]
async fn unhealthy_and_ejected_together_are_all_out_too() {
    let peer = peer(vec![spec(1), spec(2)]);
    asks(&peer, 20, |port| port == 1);
    unhealthy(&peer, 1, 3);
    let went = traffic(&peer, &[1, 2]);
    assert!(went[1] > 0 && peer.state().fails_open && standing(&peer).failed_open.get() > 0, "{went:?}");
    peer.endpoints().all()[1].unchecked();
    ask(&peer, |_| false);
    assert!(!peer.state().fails_open);
    assert_eq!(standing(&peer).unhealthy.get(), 0);
}

#[test]
fn four_threads_leave_nothing_behind() {
    let peer = peer((1..=4).map(spec).collect());
    let (base, step) = (Instant::now(), Duration::from_micros(500));
    let begin = |now| peer.begin(Ask::default(), now, &[]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for turn in 0..20_000 {
                    let now = base + step * turn;
                    let (mut one, later) = (begin(now), now + step);
                    // At times one fails, at times all do.
                    let ill = turn / 500 % 2 == 0 && (turn / 2000 % 2 == 0 || port(one.endpoint()) == 1);
                    let seen = if ill { Seen::ServerError } else { Seen::Well };
                    match fastrand::u8(..8) {
                        0 => drop(one),
                        1 if ill => one.failed(later, Reason::Reset),
                        2 if ill => one.failed(later, Reason::DeadlinePassed),
                        3 => drop(one.headed(later)),
                        4 => drop(one.headed(later).map(|owed| owed.ended(later, seen))),
                        _ => one.answered(later, seen),
                    }
                }
            });
        }
    });
    assert!(standing(&peer).ejections[Cause::ServerErrors.index()].get() > 0);
    for turn in 0..400 {
        let now = base + SECOND * 20 + SECOND / 10 * turn;
        begin(now).answered(now, Seen::Well);
    }
    let state = peer.state();
    assert!(state.endpoints.iter().all(|one| one.in_flight == 0 && one.ejected.is_none()), "{state:?}");
    assert_eq!((standing(&peer).ejected.get(), state.fails_open), (0, false));
}

#[test]
fn the_causes_are_named_as_in_the_metric() {
    assert_eq!(Cause::ALL.map(Cause::word), CAUSES);
}
