//! Who is picked, as distributions and as properties over whole peers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::choice::Ask;
use super::endpoint::Endpoint;
use super::in_flight::InFlight;
use super::peer::Peer;
use super::rig::{plan, policy};
use super::world::Upstreams;
use crate::life::tasks::Tasks;
use crate::plan::door::Protocol;
use crate::plan::keyhash::hash;
use crate::plan::peer::{Balance, EndpointSpec, PeerPolicy};
use crate::plan::rules::{Rules, Share, SlowStartRule, SubsetFallback, SubsetRule};

fn spec(port: u16) -> EndpointSpec {
    EndpointSpec::bare(std::net::SocketAddr::from(([10, 0, 0, 1], port)).into())
}

fn weighted(port: u16, weight: u32) -> EndpointSpec {
    EndpointSpec { weight, ..spec(port) }
}

fn zoned(port: u16, zone: &str) -> EndpointSpec {
    EndpointSpec { zone: Some(zone.into()), ..spec(port) }
}

fn versioned(port: u16, version: &str) -> EndpointSpec {
    let metadata = BTreeMap::from([("version".to_owned(), version.to_owned())]);
    EndpointSpec { metadata: Some(Arc::new(metadata)), ..spec(port) }
}

fn peer(specs: Vec<EndpointSpec>, policy: PeerPolicy) -> Arc<Peer> {
    let upstreams = Upstreams::new(Arc::default(), Tasks::default());
    let mut plan = plan(Protocol::Auto, specs);
    plan.policy = Arc::new(policy);
    Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap()
}

fn by(balance: Balance) -> PeerPolicy {
    PeerPolicy { balance, ..policy() }
}

/// The port of the endpoint that takes this request; 0 is none.
fn port(peer: &Peer, ask: Ask<'_>) -> u16 {
    peer.pick_for(ask, Instant::now(), &[]).map_or(0, |endpoint| endpoint.addr().tcp().unwrap().port())
}

fn key(n: u64) -> Ask<'static> {
    Ask { key: Some(hash(&n.to_le_bytes())), ..Ask::default() }
}

/// How many of so many requests each port takes.
fn counts<'a>(peer: &Peer, picks: u64, ask: impl Fn(u64) -> Ask<'a>) -> BTreeMap<u16, u64> {
    let mut counts = BTreeMap::new();
    (0..picks).for_each(|n| *counts.entry(port(peer, ask(n))).or_default() += 1);
    counts
}

/// Whether each port takes its part of the requests, within so many hundredths of all.
fn near(counts: &BTreeMap<u16, u64>, want: &[(u16, f64)], hundredths: f64) -> bool {
    let total: u64 = counts.values().sum();
    let part = |port: &u16| counts.get(port).map_or(0.0, |count| *count as f64 / total as f64);
    let all = want.iter().all(|(port, want)| (part(port) - want).abs() <= hundredths / 100.0);
    all && counts.keys().all(|port| want.iter().any(|(known, _)| known == port))
}

#[test]
fn keys_stick_and_follow_the_weights() {
    for (balance, hundredths) in [(Balance::RingHash, 6.0), (Balance::Maglev, 2.0)] {
        let peer = peer(vec![weighted(1, 3), weighted(2, 1), weighted(3, 0), weighted(4, 4)], by(balance));
        let want = [(1, 3.0 / 8.0), (2, 1.0 / 8.0), (4, 4.0 / 8.0)];
        let keyed = counts(&peer, 20_000, key);
        assert!(near(&keyed, &want, hundredths), "{balance:?}: {keyed:?}");
        assert!((0..500).all(|n| port(&peer, key(n)) == port(&peer, key(n))));
        // Requests without a key are spread as others are.
        let others = counts(&peer, 20_000, |_| Ask::default());
        assert!(near(&others, &want, hundredths), "{balance:?}: {others:?}");
    }
}

#[test]
fn a_key_whose_endpoint_was_tried_goes_to_one_other() {
    for balance in [Balance::RingHash, Balance::Maglev] {
        let peer = peer((1..=8).map(spec).collect(), by(balance));
        for n in 0..200 {
            let first = peer.pick_for(key(n), Instant::now(), &[]).unwrap();
            let tried = [first];
            let pick = || peer.pick_for(key(n), Instant::now(), &tried).unwrap();
            let second = pick();
            assert!(!Arc::ptr_eq(&second, &tried[0]) && Arc::ptr_eq(&second, &pick()), "{balance:?}");
        }
    }
}

#[test]
fn a_new_balance_is_in_force_at_once() {
    let peer = peer((1..=8).map(spec).collect(), by(Balance::Random));
    assert!(counts(&peer, 200, |_| key(7)).len() == 8);
    peer.set_policy(Arc::new(by(Balance::Maglev)));
    assert!(counts(&peer, 200, |_| key(7)).len() == 1);
}

#[test]
fn no_endpoint_takes_more_than_its_bounded_load() {
    for balance in [Balance::RingHash, Balance::Maglev] {
        for percent in [100, 125, 200] {
            let policy = PeerPolicy { bounded_load: Some(Share::percent(percent)), ..by(balance) };
            let peer = peer((1..=5).map(spec).collect(), policy);
            let mut held: Vec<InFlight> = Vec::new();
            for all in 0..200u32 {
                // One key for all: the worst there is.
                held.push(peer.pick_for(key(1), Instant::now(), &[]).unwrap().begin(Instant::now()));
                let most = (f64::from(all + 1) / 5.0 * f64::from(percent) / 100.0).ceil();
                let loads: Vec<u32> = peer.endpoints().all().iter().map(|one| one.load().in_flight()).collect();
                assert!(loads.iter().all(|load| f64::from(*load) <= most), "{balance:?} {percent}: {loads:?}");
            }
            // With nothing in flight it is back where it belongs.
            held.clear();
            assert_eq!(counts(&peer, 50, |_| key(1)).len(), 1);
        }
    }
}

#[test]
fn the_own_zone_is_preferred_and_overflows_in_proportion() {
    let zones = |own: &str, specs: &[(u16, &str)], want: &[(u16, f64)], balance: Balance| {
        let policy = PeerPolicy { zone: Some(own.into()), ..by(balance) };
        let peer = peer(specs.iter().map(|(port, zone)| zoned(*port, zone)).collect(), policy);
        let taken = counts(&peer, 20_000, |_| Ask::default());
        assert!(near(&taken, want, 2.0), "{own} of {specs:?}: {taken:?}");
    };
    let even = [(1, "a"), (2, "a"), (3, "b"), (4, "b")];
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        zones("a", &even, &[(1, 0.5), (2, 0.5)], balance);
        zones("b", &even, &[(3, 0.5), (4, 0.5)], balance);
        // Nobody is near: all are equally far.
        zones("c", &even, &[(1, 0.25), (2, 0.25), (3, 0.25), (4, 0.25)], balance);
    }
    // One of four endpoints is half of an even part; with the headroom it keeps seven of ten requests.
    let small = [(1, "a"), (2, "b"), (3, "b"), (4, "b")];
    zones("a", &small, &[(1, 0.7), (2, 0.1), (3, 0.1), (4, 0.1)], Balance::Random);
    // Five of seven of an even part is just enough.
    zones("a", &[(1, "a"), (2, "b")], &[(1, 1.0)], Balance::Random);
}

#[test]
fn a_key_stays_in_the_zone_that_it_fell_to() {
    let policy = PeerPolicy { zone: Some("a".into()), ..by(Balance::RingHash) };
    let peer = peer(vec![zoned(1, "a"), zoned(2, "b"), zoned(3, "b"), zoned(4, "b")], policy);
    assert!((0..500).all(|n| port(&peer, key(n)) == port(&peer, key(n))));
    let taken = counts(&peer, 20_000, key);
    assert!(near(&taken, &[(1, 0.7), (2, 0.1), (3, 0.1), (4, 0.1)], 3.0), "{taken:?}");
}

#[test]
fn the_lowest_priority_comes_first_and_each_has_zones() {
    let of = |port, zone: &str, priority| EndpointSpec { priority, ..zoned(port, zone) };
    let specs = vec![of(1, "b", 1), of(2, "a", 1), of(3, "b", 0), of(4, "c", 0), of(5, "a", 1)];
    let peer = peer(specs, PeerPolicy { zone: Some("a".into()), ..by(Balance::Random) });
    assert!(near(&counts(&peer, 5_000, |_| Ask::default()), &[(3, 0.5), (4, 0.5)], 3.0));
    // Of the next priority the own zone is tried first.
    let tried: Vec<_> = peer.endpoints().all()[2..4].to_vec();
    for _ in 0..50 {
        let next = peer.pick(Instant::now(), &tried).unwrap();
        assert!([2, 5].contains(&next.addr().tcp().unwrap().port()));
    }
}

fn subset(version: &str, otherwise: SubsetFallback) -> Arc<SubsetRule> {
    Arc::new(SubsetRule { wanted: BTreeMap::from([("version".to_owned(), version.to_owned())]), otherwise })
}

#[test]
fn a_subset_is_all_that_its_requests_may_reach() {
    let specs = || vec![versioned(1, "1"), versioned(2, "2"), versioned(3, "2"), weighted(4, 9)];
    let (one, two) = (subset("1", SubsetFallback::None), subset("2", SubsetFallback::None));
    let (three, any) = (subset("3", SubsetFallback::None), subset("3", SubsetFallback::Any));
    for prepared in [true, false] {
        let subsets = if prepared { vec![one.clone(), two.clone(), three.clone(), any.clone()] } else { Vec::new() };
        let peer = peer(specs(), PeerPolicy { subsets, ..by(Balance::Random) });
        for (rule, want) in [
            (&one, &[(1, 1.0)][..]),
            (&two, &[(2, 0.5), (3, 0.5)]),
            // An equal rule of another plan is the same.
            (&subset("2", SubsetFallback::None), &[(2, 0.5), (3, 0.5)]),
            (&three, &[(0, 1.0)]),
            (&any, &[(1, 1.0 / 12.0), (2, 1.0 / 12.0), (3, 1.0 / 12.0), (4, 9.0 / 12.0)]),
        ] {
            let ask = Ask { subset: Some(rule), ..Ask::default() };
            let taken = counts(&peer, 4_000, |_| ask);
            assert!(near(&taken, want, 4.0), "{rule:?} prepared {prepared}: {taken:?}");
        }
        // It follows discovery.
        peer.update(vec![versioned(1, "1"), versioned(5, "3")]);
        let ask = |rule| Ask { subset: Some(rule), ..Ask::default() };
        assert_eq!((port(&peer, ask(&three)), port(&peer, ask(&any)), port(&peer, ask(&two))), (5, 5, 0));
    }
}

#[test]
fn keys_stick_within_a_subset() {
    let rule = subset("2", SubsetFallback::None);
    let mut specs: Vec<_> = (1..=6).map(|port| versioned(port, "2")).collect();
    specs.push(versioned(7, "1"));
    let peer = peer(specs, PeerPolicy { subsets: vec![rule.clone()], ..by(Balance::RingHash) });
    let ask = |n| Ask { subset: Some(&rule), ..key(n) };
    let taken = counts(&peer, 3_000, ask);
    assert!(taken.len() == 6 && !taken.contains_key(&7), "{taken:?}");
    assert!((0..200).all(|n| port(&peer, ask(n)) == port(&peer, ask(n))));
}

#[tokio::test(start_paused = true)]
async fn who_joins_later_grows_into_its_share() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        let window = Duration::from_secs(30);
        let rules = Rules { slow_start: Some(SlowStartRule::over(window)), ..Rules::default() };
        let peer = peer(vec![spec(1), spec(2), spec(3)], PeerPolicy { rules, ..by(balance) });
        let even = [(1, 1.0 / 3.0), (2, 1.0 / 3.0), (3, 1.0 / 3.0)];
        assert!(near(&counts(&peer, 6_000, |_| Ask::default()), &even, 3.0), "those of the first answer are warm");
        peer.update(vec![spec(1), spec(2), spec(3), spec(4)]);
        for (step, warmth) in [(0, 0.1), (15, 0.5), (15, 1.0)] {
            tokio::time::advance(Duration::from_secs(step)).await;
            let taken = counts(&peer, 20_000, |_| Ask::default());
            let part = *taken.get(&4).unwrap_or(&0) as f64 / (20_000 - taken.get(&4).unwrap_or(&0)) as f64 * 3.0;
            assert!((part - warmth).abs() < 0.12, "{balance:?} at {warmth}: {part}, {taken:?}");
        }
    }
}

/// A closed loop of requests that each take as many steps everywhere: who is heavier has more of them in flight.
#[test]
fn fewest_requests_hold_the_weights_under_load() {
    for weights in [[1u32, 1, 1], [4, 2, 1], [8, 1, 1]] {
        let specs = (1u16..).zip(weights).map(|(port, weight)| weighted(port, weight)).collect();
        let peer = peer(specs, by(Balance::LeastRequest));
        let mut held: std::collections::VecDeque<InFlight> = std::collections::VecDeque::new();
        let mut taken = BTreeMap::new();
        for _ in 0..20_000 {
            let endpoint = peer.pick(Instant::now(), &[]).unwrap();
            *taken.entry(endpoint.addr().tcp().unwrap().port()).or_default() += 1u64;
            held.push_back(endpoint.begin(Instant::now()));
            if held.len() > 60 {
                held.pop_front();
            }
        }
        let total = f64::from(weights.iter().sum::<u32>());
        let want: Vec<_> = (1u16..).zip(weights.map(|weight| f64::from(weight) / total)).collect();
        assert!(near(&taken, &want, 4.0), "{weights:?}: {taken:?}");
    }
}

#[test]
fn one_of_the_other_family_stands_beside_one_that_is_slow() {
    let v6 = |port: u16| EndpointSpec::bare(std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port)).into());
    for balance in [Balance::PeakEwma, Balance::RoundRobin, Balance::RingHash] {
        let peer = peer((1..=5_000).map(spec).chain((1..=3).map(v6)).collect(), by(balance));
        let all = peer.endpoints().all().to_vec();
        let beside = |slow: usize, tried: &[Arc<Endpoint>]| {
            let one = peer.pick_beside(&all[slow], Ask::default(), Instant::now(), tried)?;
            Some(one.addr().tcp().unwrap().is_ipv6())
        };
        assert_eq!((beside(7, &[]), beside(5_001, &[])), (Some(true), Some(false)));
        assert_eq!((beside(7, &all[5_000..5_002]), beside(7, &all[5_000..])), (Some(true), None));
        // Of a single family there is none, and nobody looks for it.
        peer.update((1..=5_000).map(spec).collect());
        assert_eq!(beside(7, &[]), None);
    }
}

#[test]
fn ten_thousand_endpoints_are_prepared_once() {
    let zones = ["a", "b", "c"];
    let specs: Vec<_> = (1..=10_000u16).map(|port| zoned(port, zones[usize::from(port) % 3])).collect();
    let policy = PeerPolicy { zone: Some("b".into()), ..by(Balance::Maglev) };
    let peer = peer(specs, policy);
    let set = peer.endpoints();
    for n in 0..5_000 {
        assert!(port(&peer, key(n)) % 3 == 1);
    }
    assert!(Arc::ptr_eq(&set, &peer.endpoints()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_endpoint_that_goes_moves_its_own_keys_and_comes_back_to_them(
        weights in prop::collection::vec(1u32..6, 2..20), gone in 0usize..20, turn in 0usize..20, seed in any::<u64>()
    ) {
        // The largest weight stays, because points are counted relative to it.
        let mut specs: Vec<_> = (1u16..).zip(&weights).map(|(port, weight)| weighted(port, *weight)).collect();
        specs.push(weighted(100, 6));
        let mut fewer = specs.clone();
        let gone = fewer.remove(gone % weights.len()).addr.tcp().unwrap().port();
        fewer.rotate_left(turn % weights.len());
        for balance in [Balance::RingHash, Balance::Maglev] {
            let peer = peer(specs.clone(), by(balance));
            let keys: Vec<_> = (0..400).map(|n| key(seed.wrapping_add(n))).collect();
            let before: Vec<_> = keys.iter().map(|key| port(&peer, *key)).collect();
            peer.update(fewer.clone());
            let after: Vec<_> = keys.iter().map(|key| port(&peer, *key)).collect();
            let moved = before.iter().zip(&after).filter(|(was, is)| **was != gone && was != is).count();
            // Maglev moves a few others.
            prop_assert!(moved <= if balance == Balance::RingHash { 0 } else { 80 }, "{:?} moved {}", balance, moved);
            prop_assert!(!after.contains(&gone));
            peer.update(specs.clone());
            let again: Vec<_> = keys.iter().map(|key| port(&peer, *key)).collect();
            prop_assert_eq!(before, again);
        }
    }

    #[test]
    fn whatever_is_prepared_gives_one_that_may_be_given(
        list in prop::collection::vec((0u32..4, 0u16..3, prop::option::of(0usize..3), 0usize..3), 1..25),
        own in prop::option::of(0usize..4), kind in 0usize..6, tried in prop::collection::vec(0usize..25, 0..10),
        wanted in 0usize..3, keyed in any::<bool>(), bounded in any::<bool>()
    ) {
        let all = [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random, Balance::RingHash,
            Balance::Maglev];
        let name = |n: usize| ["a", "b", "c", "d"][n];
        let specs: Vec<_> = (1u16..).zip(&list).map(|(port, (weight, priority, zone, version))| EndpointSpec {
            weight: *weight,
            priority: *priority,
            zone: zone.map(|zone| name(zone).into()),
            ..versioned(port, name(*version))
        }).collect();
        let rule = subset(name(wanted), SubsetFallback::None);
        let policy = PeerPolicy {
            zone: own.map(|zone| name(zone).into()),
            subsets: vec![rule.clone()],
            bounded_load: bounded.then(|| Share::percent(125)),
            ..by(all[kind])
        };
        let peer = peer(specs.clone(), policy);
        let endpoints = peer.endpoints();
        let avoid: Vec<_> = tried.iter().filter_map(|at| endpoints.all().get(*at).cloned()).collect();
        for within in [None, Some(&rule)] {
            let fits = |spec: &EndpointSpec| {
                spec.weight > 0 && (within.is_none() || spec.metadata.as_ref().unwrap()["version"] == name(wanted))
            };
            let may = specs.iter().filter(|spec| fits(spec)).count();
            let untried = specs.iter().filter(|spec| fits(spec) && !avoid.iter().any(|one| *one.addr() == spec.addr));
            let untried = untried.count();
            for n in 0..10 {
                let ask = Ask { key: keyed.then_some(n), subset: within, ..Ask::default() };
                match peer.pick_for(ask, Instant::now(), &avoid) {
                    None => prop_assert_eq!(may, 0),
                    Some(one) => {
                        prop_assert!(fits(&one.spec()));
                        let again = avoid.iter().any(|tried| Arc::ptr_eq(tried, &one));
                        prop_assert!(!again || untried == 0, "tried again although {} were left", untried);
                    }
                }
            }
        }
    }
}
