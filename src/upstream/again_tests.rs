//! Whom further attempts go to.

use std::sync::Arc;

use tokio::time::Instant;

use super::choice::Ask;
use super::endpoint::Endpoint;
use super::peer::Peer;
use super::rig::{plan, policy};
use super::world::Upstreams;
use crate::life::tasks::Tasks;
use crate::plan::door::Protocol;
use crate::plan::peer::{Balance, EndpointSpec, PeerPlan, PeerPolicy};
use crate::reason::Reason;

fn peer(ports: impl Iterator<Item = u16>, balance: Balance) -> Arc<Peer> {
    let upstreams = Upstreams::new(Arc::default(), Tasks::default());
    let spec = |port| EndpointSpec::bare(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into());
    let policy = Arc::new(PeerPolicy { balance, ..policy() });
    let plan = PeerPlan { policy, ..plan(Protocol::Auto, ports.map(spec).collect()) };
    Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap()
}

fn port(endpoint: &Endpoint) -> u16 {
    endpoint.addr().tcp().unwrap().port()
}

/// The ports that a request's attempts go to one after another, all failing, in a peer where requests have failed so often
/// in a row at each of its ports.
fn attempts(balance: Balance, rows: &[(u16, usize)], times: usize) -> Vec<u16> {
    let peer = peer(rows.iter().map(|(port, _)| *port), balance);
    let all = peer.endpoints().all().to_vec();
    for (endpoint, (_, row)) in all.iter().zip(rows) {
        (0..*row).for_each(|_| endpoint.begin(Instant::now()).failed(Instant::now(), Reason::Reset));
    }
    let (mut tried, mut ports): (Vec<Arc<Endpoint>>, Vec<u16>) = (Vec::new(), Vec::new());
    for _ in 0..times {
        let mut in_flight = peer.begin(Ask::default(), Instant::now(), &tried).unwrap();
        let endpoint = in_flight.endpoint().clone();
        in_flight.failed(Instant::now(), Reason::Reset);
        ports.push(port(&endpoint));
        if !tried.iter().any(|one| Arc::ptr_eq(one, &endpoint)) {
            tried.push(endpoint);
        }
    }
    assert!(!peer.fails_open() || rows.iter().all(|(_, row)| *row >= 5), "not all are out");
    ports
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_leaves_nothing_to_chance() {
    for balance in [Balance::PeakEwma, Balance::LeastRequest, Balance::RoundRobin, Balance::Random] {
        for _ in 0..50 {
            // The second goes to one that fails nobody, although others are in the choice as well.
            let ports = attempts(balance, &[(1, 3), (2, 4), (3, 2), (4, 0), (5, 3)], 2);
            assert!(ports.contains(&4), "{balance:?}: {ports:?}");
            // The only one in the choice is tried once more; that failing too, one that is out.
            let ports = attempts(balance, &[(1, 5), (2, 0), (3, 5)], 3);
            assert!(ports[..2] == [2, 2] && ports[2] != 2, "{balance:?}: {ports:?}");
            // Two that have failed it are no chance any more.
            let ports = attempts(balance, &[(1, 5), (2, 0), (3, 0)], 3);
            assert!(ports[2] == 1, "{balance:?}: {ports:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_many_endpoints_a_further_attempt_finds_the_few_that_are_well() {
    let peer = peer(1..=1000, Balance::PeakEwma);
    let all = peer.endpoints().all().to_vec();
    for endpoint in &all[3..] {
        (0..5).for_each(|_| endpoint.begin(Instant::now()).failed(Instant::now(), Reason::Reset));
    }
    for _ in 0..20 {
        let further = peer.begin(Ask::default(), Instant::now(), &all[..1]).unwrap();
        assert!((2..=3).contains(&port(further.endpoint())), "{}", port(further.endpoint()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_further_attempt_tries_out_nobody_of_a_priority_that_is_out() {
    let upstreams = Upstreams::new(Arc::default(), Tasks::default());
    let spec = |port: u16| EndpointSpec {
        priority: u16::from(port > 3),
        ..EndpointSpec::bare(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into())
    };
    let plan = plan(Protocol::Auto, (1..=6).map(spec).collect());
    let peer = Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap();
    let all = peer.endpoints().all().to_vec();
    for endpoint in &all[..3] {
        (0..5).for_each(|_| endpoint.begin(Instant::now()).failed(Instant::now(), Reason::Reset));
        assert!(!endpoint.standing().is_well());
    }
    tokio::time::advance(std::time::Duration::from_secs(60)).await;
    // The first request is the one that finds out whether they are back; failing there, it goes where all are well.
    let mut probe = peer.begin(Ask::default(), Instant::now(), &[]).unwrap();
    assert!(port(probe.endpoint()) <= 3);
    probe.failed(Instant::now(), Reason::Reset);
    let further = peer.begin(Ask::default(), Instant::now(), &[probe.endpoint().clone()]).unwrap();
    assert!(port(further.endpoint()) > 3, "{}", port(further.endpoint()));
}
