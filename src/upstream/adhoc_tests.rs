//! The table of unlisted names by itself: the test plays the control thread.

use super::*;
use crate::life::tasks::Tasks;
use crate::plan::door::Otherwise;
use crate::telemetry::metrics::Metrics;

const TIMEOUT: Duration = Duration::from_secs(5);

fn rules() -> Rules {
    let egress = Egress { otherwise: Otherwise::Pass, allow: Arc::new([]), own: Arc::new([]) };
    Rules { egress, timeout: TIMEOUT, app: Arc::default(), itself: Arc::default() }
}

fn table() -> (Arc<Adhoc>, mpsc::Receiver<Ask>) {
    let shared = Upstreams::new(Arc::new(Metrics::default()), Tasks::default());
    Adhoc::new(Arc::new(shared), Arc::new(default_policy()), rules())
}

fn failed() -> AdhocError {
    AdhocError::new(Reason::DnsFailed, "gone.test cannot be resolved")
}

/// Asks for a name in a task of its own and waits until the control thread would see the question.
async fn ask(
    table: &Arc<Adhoc>,
    asks: &mut mpsc::Receiver<Ask>,
    host: &'static str,
) -> (tokio::task::JoinHandle<Result<Arc<Peer>, AdhocError>>, Ask) {
    let asking = table.clone();
    let waiter = Tasks::default().run(async move { asking.peer(host, 80, Deadline::NONE).await });
    (waiter, asks.recv().await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn one_question_serves_all_who_wait_and_all_who_come_later() {
    let (table, mut asks) = table();
    let (first, ask) = ask(&table, &mut asks, "db.test").await;
    let other = table.clone();
    let second = Tasks::default().run(async move { other.peer("db.test", 80, Deadline::NONE).await });
    tokio::task::yield_now().await;
    ask.decide(State::Ready);
    let (first, second) = (first.await.unwrap().unwrap(), second.await.unwrap().unwrap());
    assert!(Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&first, &ask.peer));
    assert!(Arc::ptr_eq(&first, &table.peer("db.test", 80, Deadline::NONE).await.unwrap()));
    assert!(asks.try_recv().is_err(), "one question only");
    assert_eq!(first.name().as_str(), "db.test:80");
    assert_eq!(first.kind(), PeerKind::Adhoc);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_remembered_until_the_control_thread_thinks_better() {
    let (table, mut asks) = table();
    let (first, ask) = ask(&table, &mut asks, "gone.test").await;
    ask.decide(State::Failed(failed()));
    assert_eq!(first.await.unwrap().err().unwrap(), failed());
    assert_eq!(table.peer("gone.test", 80, Deadline::NONE).await.err().unwrap(), failed());
    ask.decide(State::Ready);
    assert!(table.peer("gone.test", 80, Deadline::NONE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn every_wait_has_a_clock() {
    let (table, mut asks) = table();
    let soon = Deadline::after(Instant::now(), Some(Duration::from_secs(1)));
    assert_eq!(table.peer("slow.test", 80, soon).await.err().unwrap().reason, Reason::DeadlinePassed);
    assert_eq!(table.peer("slow.test", 80, Deadline::NONE).await.err().unwrap().reason, Reason::DnsFailed);
    // A question that is dropped fails those who wait, and the next one is asked anew.
    let ask = asks.recv().await.unwrap();
    let waiting = table.clone();
    let waiter = Tasks::default().run(async move { waiting.peer("slow.test", 80, Deadline::NONE).await });
    tokio::task::yield_now().await;
    drop(ask);
    assert_eq!(waiter.await.unwrap().err().unwrap().reason, Reason::Internal);
    let (_waiter, ask) = self::ask(&table, &mut asks, "slow.test").await;
    assert_eq!(&*ask.host, "slow.test");
}

#[tokio::test(start_paused = true)]
async fn too_many_questions_are_refused_at_once() {
    let (table, mut asks) = table();
    let waiters = Tasks::default();
    for n in 0..MOST_ASKED {
        let table = table.clone();
        waiters.spawn(async move {
            let _ = table.peer(&format!("n{n}.test"), 80, Deadline::NONE).await;
        });
    }
    while asks.len() < MOST_ASKED {
        tokio::task::yield_now().await;
    }
    assert_eq!(table.peer("more.test", 80, Deadline::NONE).await.err().unwrap().reason, Reason::Overloaded);
    asks.close();
    while asks.recv().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn the_table_is_bounded_and_the_longest_unused_goes() {
    let (table, mut asks) = table();
    let mut held = Vec::new();
    for n in 0..MOST {
        table.find(&format!("n{n}.test"), 80, Instant::now()).unwrap();
        let ask = asks.recv().await.unwrap();
        ask.decide(State::Ready);
        held.push(ask);
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    // The first one is used again, so the second one is the oldest.
    table.find("n0.test", 80, Instant::now()).unwrap();
    table.find("new.test", 80, Instant::now()).unwrap();
    assert_eq!(table.peers().len(), MOST);
    assert_eq!(held[1].idle(Instant::now()), None);
    held[1].forgotten().await;
    assert!(held[0].idle(Instant::now()).is_some() && held[2].idle(Instant::now()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_name_is_forgotten_when_no_one_uses_it() {
    let (table, mut asks) = table();
    let (waiter, ask) = ask(&table, &mut asks, "db.test").await;
    ask.decide(State::Ready);
    waiter.await.unwrap().unwrap();
    tokio::time::advance(IDLE / 2).await;
    assert!(!ask.forget(Instant::now(), IDLE));
    table.peer("db.test", 80, Deadline::NONE).await.unwrap();
    tokio::time::advance(IDLE - Duration::from_secs(1)).await;
    assert!(!ask.forget(Instant::now(), IDLE));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(ask.forget(Instant::now(), IDLE));
    assert!(table.peers().is_empty());
}

#[tokio::test(start_paused = true)]
async fn other_rules_forget_every_name() {
    let (table, mut asks) = table();
    let (_waiter, ask) = ask(&table, &mut asks, "db.test").await;
    table.set_rules(Rules { timeout: TIMEOUT * 2, ..rules() });
    assert_eq!(table.peers().len(), 1);
    let mut other = rules();
    other.egress.own = Arc::new(["127.0.0.1:15001".parse().unwrap()]);
    table.set_rules(other);
    assert!(table.peers().is_empty());
    // Who waited already is answered all the same.
    assert_eq!(ask.idle(Instant::now()), Some(Duration::ZERO));
}
