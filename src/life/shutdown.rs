//! The order in which the program ends: inbound first, then the app, outbound last, and one `grace` over all of it.
//!
//! ```text
//! stop asked ── inbound drains ──┬─ the app is asked to end ── it ends ──┬─ outbound drains ── done
//!   (half of the grace at most)  │            (no app of ours) ──────────┘
//! second signal, or the grace nearly over, at any point: the app is killed, both doors are forced, done
//! ```
//! Inbound drains at once, without a pause in which callers could notice that we are no longer ready: only who deploys
//! knows how long they need, and there the pause has its place already (`preStop` in Kubernetes, the deregistration
//! delay of a load balancer); anywhere else it would make every end slower for nothing.
//!
//! Outbound stays open while inbound drains because the app needs it to finish its last requests.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tracing::{info, warn};

use super::drain::{Drain, Phase, Watch};
use super::tasks::Tasks;

/// The part of the grace that is kept for what is forced to end, at most [`LONGEST_TAIL`].
const TAIL_SHARE: u32 = 10;
const LONGEST_TAIL: Duration = Duration::from_secs(1);

/// One direction's doors as the shutdown sees them.
#[derive(Clone, Default)]
pub struct Direction {
    /// Told to drain and, if need be, to end.
    pub drain: Drain,
    /// One task per open connection, and nothing else: it is drained when none is left.
    pub open: Tasks,
    /// One task per door, which ends when nobody can come through it any more.
    pub doors: Tasks,
}

impl Direction {
    /// Waits until nobody can come, and who came has left.
    pub async fn idle(&self) {
        self.doors.idle().await;
        self.open.idle().await;
    }
}

/// The service that was started by us, if it was.
pub trait App: Send {
    /// Whether it has been asked to end already, by a terminal's key that reached it as well as us.
    fn asked(&self) -> bool;
    /// Asks it to end; may be called when it has ended.
    fn terminate(&mut self);
    /// Ends it; may be called when it has ended.
    fn kill(&mut self);
    /// Waits for its end; cancel-safe, and at once when it has ended.
    fn ended(&mut self) -> impl Future<Output = ()> + Send;
}

/// What has to end, and how long that may take.
pub struct Steps<A> {
    /// From callers to the app.
    pub inbound: Direction,
    /// From the app to peers.
    pub outbound: Direction,
    /// The app, where it runs under us.
    pub app: Option<A>,
    /// The program's own drain: `Forced` on it (a second signal) cuts everything short.
    pub stop: Watch,
    /// The whole shutdown takes no longer.
    pub grace: Duration,
}

/// How a shutdown went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Everything that was begun was finished.
    Finished,
    /// Some was not, and `connections` did not even end when they were forced to.
    Forced {
        /// Why it was forced.
        why: Why,
        /// What was still open when the tail of the grace ended.
        connections: usize,
    },
}

/// Why a shutdown was cut short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The grace was nearly over.
    GraceOver,
    /// A second signal came.
    SecondSignal,
}

/// Ends everything in order. Returns after `steps.grace` at the latest.
pub async fn shutdown<A: App>(mut steps: Steps<A>) -> End {
    let begun = Instant::now();
    let tail = (steps.grace / TAIL_SHARE).min(LONGEST_TAIL);
    let last = begun + steps.grace;
    let mut stop = steps.stop.clone();
    // Whichever comes first; the orderly end is dropped in the middle of a wait and holds nothing that matters then.
    let why = tokio::select! {
        () = orderly(&mut steps, begun) => return End::Finished,
        _ = stop.reached(Phase::Forced) => Why::SecondSignal,
        () = sleep_until(last - tail) => Why::GraceOver,
    };
    let (inbound, outbound) = (steps.inbound.open.running(), steps.outbound.open.running());
    warn!(?why, inbound, outbound, "ending now what is still open");
    force(&mut steps, last.min(Instant::now() + tail)).await;
    End::Forced { why, connections: steps.inbound.open.running() + steps.outbound.open.running() }
}

async fn orderly<A: App>(steps: &mut Steps<A>, begun: Instant) {
    let half = begun + steps.grace / 2;
    info!(open = steps.inbound.open.running(), "inbound drains");
    steps.inbound.drain.advance(Phase::Draining);
    match &mut steps.app {
        Some(app) => {
            end_app(app, &steps.inbound, half).await;
            // What the app answered may still be on its way to a slow caller.
            steps.inbound.idle().await;
        }
        None => {
            steps.inbound.idle().await;
            // An app that is not ours ends on its own terms: its connections ending is what tells us.
            let _ = timeout_at(half, steps.outbound.open.idle()).await;
        }
    }
    info!(open = steps.outbound.open.running(), "inbound has drained, outbound drains");
    steps.outbound.drain.advance(Phase::Draining);
    steps.outbound.idle().await;
}

/// Asks the app to end once inbound has drained or half of the grace is over, and waits for its end. One that has been
/// asked already has until half of the grace: many take a second signal for an order to drop everything.
async fn end_app<A: App>(app: &mut A, inbound: &Direction, half: Instant) {
    let asked = app.asked();
    let turn = async {
        if asked {
            sleep_until(half).await;
        } else {
            // Drained or half over: either way its turn has come.
            let _ = timeout_at(half, inbound.idle()).await;
        }
    };
    tokio::select! {
        // The app first: one that has ended already is not asked to.
        biased;
        () = app.ended() => return,
        () = turn => {}
    }
    info!(open = inbound.open.running(), "the app is asked to end");
    app.terminate();
    app.ended().await;
}

async fn force<A: App>(steps: &mut Steps<A>, until: Instant) {
    steps.inbound.drain.advance(Phase::Forced);
    steps.outbound.drain.advance(Phase::Forced);
    let ended = async {
        if let Some(app) = &mut steps.app {
            app.kill();
            app.ended().await;
        }
        steps.inbound.idle().await;
        steps.outbound.idle().await;
    };
    // What is still open then is ended by the end of the process.
    let _ = timeout_at(until, ended).await;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use proptest::prelude::*;

    use tokio::time::sleep;

    use super::*;

    const GRACE: Duration = Duration::from_secs(20);

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// What happened, with the second at which it did.
    #[derive(Clone)]
    struct Diary(Instant, Arc<Mutex<Vec<(u64, &'static str)>>>);

    impl Diary {
        fn note(&self, what: &'static str) {
            self.1.lock().push((self.0.elapsed().as_secs(), what));
        }

        fn read(&self) -> Vec<(u64, &'static str)> {
            self.1.lock().clone()
        }
    }

    /// An app that ends some time after it was asked to; `None` never does.
    struct Fake {
        diary: Diary,
        takes: Option<Duration>,
        ends: Option<Instant>,
        asked: bool,
    }

    impl App for Fake {
        fn asked(&self) -> bool {
            self.asked
        }

        fn terminate(&mut self) {
            self.diary.note("app asked");
            self.ends = self.takes.map(|takes| Instant::now() + takes);
        }

        fn kill(&mut self) {
            self.diary.note("app killed");
            self.ends = Some(Instant::now());
        }

        async fn ended(&mut self) {
            match self.ends {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        }
    }

    /// When connections end by themselves after the start, `None` only when forced.
    type Ends = Option<Duration>;

    struct House {
        diary: Diary,
        stop: Drain,
        steps: Steps<Fake>,
    }

    fn connection(direction: &Direction, diary: &Diary, names: [&'static str; 2], ends: Ends) {
        let (mut watch, diary, from) = (direction.drain.watch(), diary.clone(), diary.0);
        direction.open.spawn(async move {
            watch.reached(Phase::Draining).await;
            diary.note(names[0]);
            let end = async {
                match ends {
                    Some(after) => sleep_until(from + after).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased; // one that ends at the very moment of force has ended
                () = end => {}
                _ = watch.reached(Phase::Forced) => diary.note(names[1]),
            }
        });
    }

    fn house(inbound: Ends, outbound: Ends, app: Option<(Ends, bool)>) -> House {
        let diary = Diary(Instant::now(), Arc::default());
        let stop = Drain::default();
        let ends = |gone: bool| gone.then(Instant::now);
        let steps = Steps {
            inbound: Direction::default(),
            outbound: Direction::default(),
            app: app.map(|(takes, gone)| Fake { diary: diary.clone(), takes, ends: ends(gone), asked: false }),
            stop: stop.watch(),
            grace: GRACE,
        };
        connection(&steps.inbound, &diary, ["inbound drains", "inbound forced"], inbound);
        connection(&steps.outbound, &diary, ["outbound drains", "outbound forced"], outbound);
        House { diary, stop, steps }
    }

    async fn check(house: House, end: End, expected: &[(u64, &'static str)]) {
        assert_eq!(shutdown(house.steps).await, end);
        assert!(house.diary.0.elapsed() <= GRACE);
        assert_eq!(house.diary.read(), expected);
    }

    const FORCED: End = End::Forced { why: Why::GraceOver, connections: 0 };

    #[tokio::test(start_paused = true)]
    async fn without_an_app_outbound_waits_for_inbound() {
        let house = house(Some(secs(4)), Some(secs(12)), None);
        check(house, End::Finished, &[(0, "inbound drains"), (10, "outbound drains")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_app_is_asked_when_inbound_has_drained() {
        let house = house(Some(secs(3)), Some(secs(9)), Some((Some(secs(5)), false)));
        check(house, End::Finished, &[(0, "inbound drains"), (3, "app asked"), (8, "outbound drains")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_app_is_asked_at_half_of_the_grace() {
        let house = house(Some(secs(15)), Some(secs(16)), Some((Some(secs(1)), false)));
        check(house, End::Finished, &[(0, "inbound drains"), (10, "app asked"), (15, "outbound drains")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_the_terminal_asked_is_not_asked_twice_in_a_row() {
        for (ends, diary) in [
            (7, &[(0, "inbound drains"), (7, "outbound drains")][..]),
            (12, &[(0, "inbound drains"), (10, "app asked"), (11, "outbound drains")]),
        ] {
            let mut house = house(Some(secs(2)), Some(secs(3)), Some((Some(secs(1)), false)));
            if let Some(app) = &mut house.steps.app {
                (app.asked, app.ends) = (true, Some(Instant::now() + secs(ends)));
            }
            check(house, End::Finished, diary).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_app_that_has_ended_is_not_asked() {
        let house = house(Some(secs(2)), Some(secs(3)), Some((None, true)));
        check(house, End::Finished, &[(0, "inbound drains"), (2, "outbound drains")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_app_is_killed_before_the_grace_ends() {
        let house = house(Some(secs(3)), None, Some((None, false)));
        let diary = &[
            (0, "inbound drains"),
            (3, "app asked"),
            (19, "app killed"),
            (19, "outbound drains"),
            (19, "outbound forced"),
        ];
        check(house, FORCED, diary).await;
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_never_end_are_forced() {
        let house = house(None, Some(secs(1)), None);
        check(house, FORCED, &[(0, "inbound drains"), (19, "inbound forced"), (19, "outbound drains")]).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_when_forced_does_not_hold_the_end() {
        let house = house(Some(secs(1)), Some(secs(1)), None);
        house.steps.inbound.open.spawn(std::future::pending());
        let begun = Instant::now();
        assert_eq!(shutdown(house.steps).await, End::Forced { why: Why::GraceOver, connections: 1 });
        assert_eq!(begun.elapsed(), GRACE);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn never_longer_than_the_grace_and_a_second_signal_forces(
            inbound in proptest::option::of(0..30_u64),
            outbound in proptest::option::of(0..30_u64),
            app in proptest::option::of(proptest::option::of(0..30_u64)),
            second in proptest::option::of(0..25_u64),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let with_app = app.map(|takes| (takes.map(secs), false));
                let house = house(inbound.map(secs), outbound.map(secs), with_app);
                let stop = house.stop.clone();
                let signal = async {
                    match second {
                        Some(at) => { sleep(secs(at)).await; stop.advance(Phase::Forced); }
                        None => std::future::pending().await,
                    }
                    std::future::pending::<()>().await;
                };
                let (inbound, outbound) = (house.steps.inbound.clone(), house.steps.outbound.clone());
                let end = tokio::select! { end = shutdown(house.steps) => end, () = signal => unreachable!() };
                let took = house.diary.0.elapsed();
                assert!(took <= GRACE);
                assert_eq!((inbound.open.running(), outbound.open.running()), (0, 0));
                match end {
                    End::Forced { why: Why::SecondSignal, .. } => {
                        assert!(took <= secs(second.unwrap()) + LONGEST_TAIL);
                    }
                    End::Forced { .. } => assert!(took >= GRACE - LONGEST_TAIL),
                    End::Finished => {}
                }
                let diary = house.diary.read();
                let at = |what| diary.iter().position(|(_, noted)| *noted == what);
                if end == End::Finished {
                    assert!(at("inbound drains") < at("outbound drains"));
                    assert!(at("app asked").is_none_or(|asked| Some(asked) < at("outbound drains")));
                    assert_eq!(at("app killed"), None);
                }
            });
        }
    }
}
