//! The guards of a peer, in virtual time: what they learn, what they forget, and what a changed policy keeps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, advance};

use super::guards::{Admitted, Outcome, Refusal};
use super::peer::Peer;
use super::rig::{plan, policy};
use super::world::Upstreams;
use crate::life::tasks::Tasks;
use crate::plan::door::Protocol;
use crate::plan::peer::{EndpointSpec, PeerPlan, PeerPolicy};
use crate::plan::rules::{AdmissionRule, BreakerRule, LimitsRule, Priority, Rules, Share};
use crate::reason::Reason;

const WELL: Outcome = Outcome { ok: true, accepted: true };
const SECOND: Duration = Duration::from_secs(1);

fn peer_of(rules: Rules, shared: &Upstreams) -> Arc<Peer> {
    let policy = Arc::new(PeerPolicy { rules, ..policy() });
    let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
    let plan = PeerPlan { policy, ..plan(Protocol::Auto, vec![EndpointSpec::bare(addr.into())]) };
    Peer::new(&plan, shared.metrics.peer(&plan.name), shared).unwrap()
}

fn peer(rules: Rules) -> Arc<Peer> {
    peer_of(rules, &Upstreams::new(Arc::default(), Tasks::default()))
}

fn breaking() -> Rules {
    let rule = BreakerRule { volume: 4, open_for: SECOND * 5, ..BreakerRule::default() };
    Rules { breaker: Some(rule), ..Rules::default() }
}

fn admit(peer: &Arc<Peer>) -> Result<Admitted, Refusal> {
    peer.admit(&peer.policy(), Priority::Normal, Instant::now())
}

fn ask(peer: &Arc<Peer>, outcome: Outcome) -> Result<(), Reason> {
    let now = Instant::now();
    admit(peer).map(|mut admitted| admitted.tell(outcome, now, now)).map_err(|refusal| refusal.reason)
}

fn fail(peer: &Arc<Peer>, times: usize) {
    (0..times).for_each(|_| ask(peer, Outcome::FAILED).unwrap());
}

fn set(peer: &Peer, rules: Rules) {
    peer.set_policy(Arc::new(PeerPolicy { rules, ..(*peer.policy()).clone() }));
}

/// What `/state` and the metric say of the breaker.
fn told(peer: &Peer) -> (Option<&'static str>, i64) {
    (peer.state().breaker, peer.metrics().breaker_open.get())
}

#[tokio::test(start_paused = true)]
async fn a_breaker_opens_tries_and_closes_again() {
    let peer = peer(breaking());
    fail(&peer, 4);
    assert_eq!(told(&peer), (Some("open"), 1));
    advance(SECOND * 2).await;
    let refusal = admit(&peer).err().unwrap();
    assert_eq!((refusal.reason, refusal.retry_after), (Reason::CircuitOpen, Some(SECOND * 3)));
    assert_eq!(peer.state().limits.len(), 0);
    advance(SECOND * 3).await;
    // One tries, the others wait for what becomes of it; it fails, and the next one goes well.
    let trial = admit(&peer).unwrap();
    assert_eq!(told(&peer), (Some("half-open"), 1));
    assert!(admit(&peer).is_err());
    drop(trial);
    assert_eq!(ask(&peer, Outcome::FAILED), Ok(()));
    assert_eq!((told(&peer), ask(&peer, WELL)), ((Some("open"), 1), Err(Reason::CircuitOpen)));
    advance(SECOND * 5 + SECOND / 1000).await;
    assert_eq!((ask(&peer, WELL), told(&peer)), (Ok(()), (Some("closed"), 0)));
    // What failed before is forgotten.
    fail(&peer, 3);
    assert_eq!(told(&peer), (Some("closed"), 0));
    fail(&peer, 1);
    assert_eq!(told(&peer), (Some("open"), 1));
    let metrics = peer.metrics();
    assert_eq!((metrics.breaker_opened.get(), metrics.breaker_closed.get()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_changed_rule_keeps_what_the_breaker_knows_and_one_that_was_off_begins_anew() {
    let peer = peer(breaking());
    fail(&peer, 2);
    let changed = |change: fn(&mut BreakerRule)| {
        let mut rules = breaking();
        change(rules.breaker.as_mut().unwrap());
        set(&peer, rules);
    };
    changed(|rule| rule.volume = 3);
    fail(&peer, 1);
    assert_eq!(told(&peer), (Some("open"), 1));
    // Nobody waits for longer than the rule in force says.
    changed(|rule| rule.open_for = SECOND * 1000);
    advance(SECOND * 5).await;
    fail(&peer, 1);
    changed(|rule| rule.open_for = SECOND);
    advance(SECOND).await;
    let late = admit(&peer).unwrap();
    set(&peer, Rules::default());
    assert_eq!((told(&peer), ask(&peer, WELL)), ((None, 0), Ok(())));
    drop(late);
    set(&peer, breaking());
    assert_eq!(told(&peer), (Some("closed"), 0));
    fail(&peer, 3);
    assert_eq!(told(&peer), (Some("closed"), 0));
}

#[tokio::test(start_paused = true)]
async fn what_ends_after_the_breaker_was_turned_off_does_not_open_it() {
    let peer = peer(breaking());
    let mut late: Vec<_> = (0..9).map(|_| admit(&peer).unwrap()).collect();
    set(&peer, Rules::default());
    let now = Instant::now();
    late.iter_mut().for_each(|one| one.tell(Outcome::FAILED, now, now));
    assert_eq!((told(&peer), peer.metrics().breaker_opened.get()), ((None, 0), 0));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_is_no_longer_counted_as_open() {
    let shared = Upstreams::new(Arc::default(), Tasks::default());
    let (before, after) = (peer_of(breaking(), &shared), peer_of(breaking(), &shared));
    fail(&before, 4);
    assert_eq!(told(&after), (Some("closed"), 1));
    drop(before);
    assert_eq!(told(&after), (Some("closed"), 0));
    fail(&after, 4);
    assert_eq!(told(&after), (Some("open"), 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_given_up_is_not_taken_for_a_refusal_of_the_peer() {
    let rule = AdmissionRule { volume: 5, ..AdmissionRule::default() };
    let peer = peer(Rules { admission: Some(rule), ..breaking() });
    // Callers that leave.
    (0..500).for_each(|_| drop(admit(&peer).unwrap()));
    // And what the open breaker keeps back.
    fail(&peer, 4);
    (0..500).for_each(|_| assert_eq!(admit(&peer).err().unwrap().reason, Reason::CircuitOpen));
    advance(SECOND * 6).await;
    assert_eq!(ask(&peer, WELL), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_changed_limit_keeps_its_count() {
    let limited = |n| Rules {
        limits: LimitsRule { in_flight: Some(n), ..LimitsRule::default() },
        breaker: Some(BreakerRule { failure_share: Share::WHOLE, ..BreakerRule::default() }),
        ..Rules::default()
    };
    let peer = peer(limited(2));
    let mut held: Vec<_> = (0..2).map(|_| admit(&peer).unwrap()).collect();
    assert!(admit(&peer).is_err());
    set(&peer, limited(3));
    held.push(admit(&peer).unwrap());
    assert_eq!(admit(&peer).err().unwrap().detail, "the limit `in-flight: 3` is reached for peer payments");
    set(&peer, Rules::default());
    held.push(admit(&peer).unwrap());
    set(&peer, limited(4));
    assert!(admit(&peer).is_err());
    held.truncate(3);
    assert!(admit(&peer).is_ok());
}
