//! Whether this sidecar takes traffic, and if not, why not.
//!
//! Never waits for the app (it would wait for us), nor longer than a second for peers: two services that wait for each
//! other's names would never start. For an identity it waits as long as that takes, where the service can be called by
//! nobody or can call nobody without one: it comes from this machine's agent, which waits for no service.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout};

use super::House;
use crate::ids::Addr;
use crate::life::drain::Phase;
use crate::net::inside::inside;
use crate::plan::Plan;
use crate::plan::door::Mtls;
use crate::plan::peer::{Addresses, PeerKind};

/// How long after the start peers may hold readiness back.
const PEERS_HOLD: Duration = Duration::from_secs(1);
/// How long the app may take to accept a connection when it is asked.
const APP_CLOCK: Duration = Duration::from_secs(1);

/// Whether the doors are open; cheap to clone.
#[derive(Clone, Default)]
pub struct Opened(Arc<AtomicBool>);

impl Opened {
    /// Every door is open from now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// Why it is not ready, one line each; empty when it is.
pub fn reasons(house: &House, now: Instant) -> Vec<String> {
    let mut reasons = Vec::new();
    match house.stop.phase() {
        Phase::Open => {}
        Phase::Draining => reasons.push("draining: a shutdown has begun".to_owned()),
        Phase::Forced => reasons.push("draining: a shutdown is being forced".to_owned()),
    }
    if !house.opened.get() {
        reasons.push("starting: the doors are not open yet".to_owned());
    }
    reasons.extend(no_identity(&house.rooms.plan(), house.rooms.lacks_identity()));
    if now.saturating_duration_since(house.since) < PEERS_HOLD {
        let waits = |peer| format!("starting: peer {peer} has no addresses yet (waited for at most 1 s)");
        reasons.extend(house.rooms.pending().into_iter().map(waits));
    }
    reasons
}

/// The lack of an identity as a reason, where one is needed.
pub fn no_identity(plan: &Plan, lack: Option<Arc<str>>) -> Option<String> {
    lack.filter(|_| needs_identity(plan)).map(|why| format!("no identity: {why}"))
}

/// Whether anything is refused for want of an identity. A door that is permissive still serves plaintext.
fn needs_identity(plan: &Plan) -> bool {
    plan.doors.iter().any(|door| door.mtls == Mtls::Strict) || plan.peers.iter().any(|peer| peer.source.mtls.is_some())
}

/// Asks the app, at each of its addresses, for a connection; one line for each that does not take one.
pub async fn app_reasons(plan: &Plan) -> Vec<String> {
    let apps = plan.peers.iter().filter(|peer| peer.kind == PeerKind::App);
    let addresses = apps.flat_map(|peer| match &peer.source.addresses {
        Addresses::Static(specs) => specs.as_slice(),
        _ => &[],
    });
    let asked = join_all(addresses.map(|spec| ask(&spec.addr))).await;
    asked.into_iter().flatten().collect()
}

async fn ask(addr: &Addr) -> Option<String> {
    let connect = async {
        match addr {
            Addr::Tcp(to) => match inside() {
                Some(inside) => inside.socket(to.is_ipv6()).await?.connect(*to).await.map(drop),
                None => TcpStream::connect(to).await.map(drop),
            },
            Addr::Unix(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    match timeout(APP_CLOCK, connect).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("app: {addr} does not take connections: {error}")),
        Err(_) => Some(format!("app: {addr} did not take a connection within 1 s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::{House as Fake, app, plan};
    use crate::ids::PeerName;

    #[tokio::test(start_paused = true)]
    async fn each_reason_is_said_and_peers_hold_for_a_second_only() {
        let fake = Fake::new(plan());
        let house = &fake.house;
        fake.pending(&[PeerName::new("payments")]);
        let now = house.since;
        assert_eq!(reasons(house, now).len(), 2);
        house.opened.set();
        assert!(reasons(house, now)[0].contains("payments"));
        assert!(reasons(house, now + PEERS_HOLD).is_empty());
        house.stop.advance(Phase::Draining);
        assert_eq!(reasons(house, now + PEERS_HOLD), ["draining: a shutdown has begun"]);
    }

    #[test]
    fn an_identity_is_waited_for_as_long_as_it_takes_where_it_is_needed() {
        let late = |house: &House| reasons(house, house.since + PEERS_HOLD * 100);
        for (needed, want) in [(true, &["no identity: nobody answers"][..]), (false, &[])] {
            let mut plan = plan();
            plan.peers[0].source.mtls = needed.then(|| Arc::from([]));
            let fake = Fake::new(plan);
            fake.house.opened.set();
            assert_eq!(late(&fake.house), [""; 0]);
            fake.lacks("nobody answers");
            assert_eq!(late(&fake.house), want);
        }
    }

    #[tokio::test]
    async fn the_app_is_asked_at_each_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let up = listener.local_addr().unwrap();
        let down = {
            let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            gone.local_addr().unwrap()
        };
        let mut plan = plan();
        plan.peers = vec![app(up.into()), app(down.into()), app("unix:/no/such/socket".parse().unwrap())];
        let reasons = app_reasons(&plan).await;
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        assert!(reasons[0].contains(&down.to_string()) && reasons[1].contains("unix:/no/such"), "{reasons:?}");
    }
}
