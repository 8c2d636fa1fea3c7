//! The machines together: a caller and its endpoints in simulated time, with faults as a script.
//!
//! Each endpoint serves one request at a time and queues the others; 200 GETs a second come for half a minute in even
//! steps. Serving takes so long that all endpoints together are four tenths busy; one of ten alone is overwhelmed. The
//! script's fault lasts from second 10 to second 20.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, Method, StatusCode};
use tokio::time::Instant;

use super::budget::Budget;
use super::load::Load;
use super::outlier::{Begun, Outlier, Seen};
use super::pick::{Dice, Draw, Shares};
use super::verdict::{Asking, Fate, Moment, Outcome, Verdict, judge};
use super::ward::Ward;
use crate::deadline::Deadline;
use crate::plan::peer::Balance;
use crate::plan::rules::{Condition, EjectRule, RetryRule};
use crate::reason::Reason;

/// What an endpoint does to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Serves,
    Refuses,
    Fails,
    Swallows,
    /// Serves, after so many milliseconds more.
    Dawdles(u64),
    /// Serves, and it takes so many times as long.
    Labours(u64),
}

/// By endpoint, millisecond and chance.
type Script = fn(usize, u64, u64) -> Does;

const STEP: u64 = 5;
const END: u64 = 30_000;
const FAULT: std::ops::Range<u64> = 10_000..20_000;
/// What serving takes, in milliseconds for each endpoint there is.
const TAKES: u64 = 2;
const ATTEMPT: u64 = 300;

struct Host {
    load: Load,
    outlier: Outlier,
    free_at: u64,
}

struct Attempt {
    request: usize,
    at: usize,
    begun: Begun,
    since: u64,
    does: Does,
    late: bool,
}

#[derive(Default, Clone)]
struct Request {
    came: u64,
    attempts: u32,
    tried: Vec<usize>,
    ended: Option<(u64, bool)>,
}

struct World {
    base: Instant,
    hosts: Vec<Host>,
    ward: std::sync::Arc<Ward>,
    shares: Shares,
    draw: Draw,
    dice: Dice,
    budget: Budget,
    retry: RetryRule,
    eject: EjectRule,
    script: Script,
    requests: Vec<Request>,
    running: Vec<Option<Attempt>>,
    /// When, and the request that makes an attempt or the attempt that ends.
    events: BinaryHeap<Reverse<(u64, bool, usize)>>,
    opened: u32,
}

impl World {
    fn run(hosts: usize, script: Script) -> Self {
        let on = RetryRule::default().on.with(Condition::GatewayError);
        Self::with(hosts, script, RetryRule { on, ..RetryRule::default() }, EjectRule::default())
    }

    fn with(hosts: usize, script: Script, retry: RetryRule, eject: EjectRule) -> Self {
        let base = Instant::now();
        let ward = Ward::new(base);
        ward.set_members(hosts as u32);
        let host = |_| Host { load: Load::new(base), outlier: Outlier::new(ward.clone()), free_at: 0 };
        let mut world = Self {
            base,
            hosts: (0..hosts).map(host).collect(),
            shares: Shares::new(&vec![1; hosts]),
            draw: Draw::new(11),
            dice: Dice::new(12),
            budget: Budget::new(base),
            retry,
            eject,
            ward,
            script,
            requests: (0..END / STEP).map(|n| Request { came: n * STEP, ..Request::default() }).collect(),
            running: Vec::new(),
            events: BinaryHeap::new(),
            opened: 0,
        };
        (0..world.requests.len()).for_each(|n| world.events.push(Reverse((n as u64 * STEP, false, n))));
        while let Some(Reverse((at, ends, n))) = world.events.pop() {
            if ends { world.end(at, n) } else { world.attempt(at, n) }
        }
        world
    }

    fn at(&self, ms: u64) -> Instant {
        self.base + Duration::from_millis(ms)
    }

    fn attempt(&mut self, ms: u64, n: usize) {
        let now = self.at(ms);
        let (hosts, tried) = (&self.hosts, self.requests[n].tried.clone());
        let cost =
            |at: usize, share| if hosts[at].outlier.probe_due(now) { 0.0 } else { hosts[at].load.cost(now, share) };
        let out = |at: usize| hosts[at].outlier.is_out(now);
        let choice =
            self.draw.choose(Balance::PeakEwma, &self.shares, self.ward.all_out(), |at| tried.contains(&at), out, cost);
        let choice = choice.unwrap();
        let takes = TAKES * self.hosts.len() as u64;
        let host = &mut self.hosts[choice.at];
        let begun = if choice.open {
            self.opened += 1;
            host.outlier.begin_open(now, &self.eject)
        } else {
            host.outlier.begin(now, &self.eject).unwrap()
        };
        host.load.begin();
        let does = (self.script)(choice.at, ms, self.dice.roll());
        let end = match does {
            Does::Refuses => ms + 1,
            Does::Fails => ms + 2,
            Does::Swallows => u64::MAX,
            Does::Serves | Does::Dawdles(_) | Does::Labours(_) => {
                let (more, times) = match does {
                    Does::Dawdles(more) => (more, 1),
                    Does::Labours(times) => (0, times),
                    _ => (0, 1),
                };
                let begins = host.free_at.max(ms);
                // Who has left the queue by then is not served.
                if begins - ms < ATTEMPT {
                    host.free_at = begins + takes * times;
                }
                begins + takes * times + more
            }
        };
        let late = end > ms + ATTEMPT;
        let attempt = Attempt { request: n, at: choice.at, begun, since: ms, does, late };
        let request = &mut self.requests[n];
        if request.attempts == 0 {
            self.budget.deposit(now);
        }
        request.attempts += 1;
        request.tried.push(choice.at);
        self.events.push(Reverse((end.min(ms + ATTEMPT), true, self.running.len())));
        self.running.push(Some(attempt));
    }

    fn end(&mut self, ms: u64, which: usize) {
        let now = self.at(ms);
        let Attempt { request, at, begun, since, does, late } = self.running[which].take().unwrap();
        let took = Duration::from_millis(ms - since);
        let none = HeaderMap::new();
        let (seen, outcome) = match does {
            _ if late => (Seen::LocalFailure, Outcome::TimedOut),
            Does::Refuses => {
                (Seen::LocalFailure, Outcome::Failed { reason: Reason::ConnectRefused, fate: Fate::Unsent })
            }
            Does::Fails => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                (Seen::GatewayError, Outcome::Answered { status, fields: &none, trailers: None })
            }
            _ => (Seen::Well, Outcome::Answered { status: StatusCode::OK, fields: &none, trailers: None }),
        };
        let host = &self.hosts[at];
        host.load.end();
        host.load.answered(now, took, seen == Seen::Well);
        host.outlier.report(begun, now, seen, took, &self.eject, self.dice.roll());
        if seen == Seen::Well {
            self.requests[request].ended = Some((ms, true));
            return;
        }
        let attempts = self.requests[request].attempts;
        let asking =
            Asking { method: &Method::GET, attempts, replayable: true, marked: false, deadline: Deadline::NONE };
        let moment = Moment { now, wall: UNIX_EPOCH, roll: self.dice.roll() };
        match judge(&self.retry, &asking, &outcome, &self.budget, moment) {
            Verdict::Retry { after, .. } => {
                self.events.push(Reverse((ms + after.as_millis() as u64, false, request)));
            }
            Verdict::GiveUp(_) => self.requests[request].ended = Some((ms, false)),
        }
    }

    fn came(&self, during: std::ops::Range<u64>) -> impl Iterator<Item = &Request> {
        self.requests.iter().filter(move |request| during.contains(&request.came))
    }

    fn failures(&self, during: std::ops::Range<u64>) -> usize {
        self.came(during).filter(|request| !request.ended.unwrap().1).count()
    }

    fn slowest_hundredth(&self, during: std::ops::Range<u64>) -> u64 {
        let mut took: Vec<_> = self.came(during).map(|request| request.ended.unwrap().0 - request.came).collect();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }

    fn amplification(&self, during: std::ops::Range<u64>) -> f64 {
        let attempts: u32 = self.came(during.clone()).map(|request| request.attempts).sum();
        f64::from(attempts) / self.came(during).count() as f64
    }
}

fn during(ms: u64, does: Does) -> Does {
    if FAULT.contains(&ms) { does } else { Does::Serves }
}

#[test]
fn without_a_fault_nothing_fails_and_nothing_is_repeated() {
    let world = World::run(10, |_, _, _| Does::Serves);
    assert_eq!((world.failures(0..END), world.opened), (0, 0));
    assert_eq!(world.amplification(0..END), 1.0);
}

#[test]
fn one_dead_of_ten_is_not_noticed() {
    for script in [
        (|at, ms, _| during(ms, if at == 3 { Does::Refuses } else { Does::Serves })) as Script,
        |at, ms, _| during(ms, if at == 3 { Does::Swallows } else { Does::Serves }),
        |at, ms, _| during(ms, if at == 3 { Does::Fails } else { Does::Serves }),
    ] {
        let world = World::run(10, script);
        assert_eq!((world.failures(0..END), world.opened), (0, 0));
        assert!(world.amplification(FAULT) < 1.02, "{}", world.amplification(FAULT));
        assert!(!world.hosts[3].outlier.is_out(world.at(END)), "it is not back");
    }
}

#[test]
fn one_dead_of_two_is_not_noticed_either() {
    for script in
        [(|at, ms, _| during(ms, if at == 0 { Does::Refuses } else { Does::Serves })) as Script, |at, ms, _| {
            during(ms, if at == 0 { Does::Swallows } else { Does::Serves })
        }]
    {
        let world = World::run(2, script);
        assert_eq!((world.failures(0..END), world.opened), (0, 0));
        assert!(world.amplification(FAULT) < 1.05, "{}", world.amplification(FAULT));
        assert_eq!(world.ward.ejected(), 0);
    }
}

#[test]
fn one_that_fails_now_and_then_is_not_noticed() {
    let world =
        World::run(10, |at, ms, roll| if at == 3 && roll % 10 < 3 { during(ms, Does::Fails) } else { Does::Serves });
    assert!(world.failures(0..END) <= 1, "{}", world.failures(0..END));
    assert!(world.amplification(FAULT) < 1.05);
}

#[test]
fn one_slow_of_ten_does_not_slow_the_whole() {
    let world = World::run(10, |at, ms, _| during(ms, if at == 3 { Does::Dawdles(200) } else { Does::Serves }));
    let (slow, usual) = (world.slowest_hundredth(FAULT), world.slowest_hundredth(0..10_000));
    assert!(slow * 10 <= usual * 13, "{slow} ms against {usual} ms");
    assert_eq!(world.failures(0..END), 0);
}

#[test]
fn when_all_fail_the_budget_holds_and_all_are_back_at_once() {
    for script in [
        (|_, ms, _| during(ms, Does::Fails)) as Script,
        |_, ms, _| during(ms, Does::Refuses),
        |_, ms, _| during(ms, Does::Swallows),
    ] {
        let world = World::run(10, script);
        assert!(world.amplification(FAULT) <= 1.2, "{}", world.amplification(FAULT));
        assert!(world.opened > 1_000, "it did not fail open");
        // Two seconds after the fault nothing fails any more, although one endpoint alone would be overwhelmed.
        assert_eq!(world.failures(22_000..END), 0);
        assert_eq!(world.ward.ejected(), 0);
        let (slow, usual) = (world.slowest_hundredth(22_000..END), world.slowest_hundredth(0..10_000));
        assert!(slow <= usual * 2, "{slow} ms against {usual} ms");
    }
}

#[test]
fn one_that_flaps_costs_little() {
    let world = World::run(10, |at, ms, _| if at == 3 && ms / 3_000 % 2 == 1 { Does::Refuses } else { Does::Serves });
    assert_eq!(world.failures(0..END), 0);
    assert!(world.amplification(0..END) < 1.02);
}

#[test]
fn a_brown_out_is_not_made_worse_and_ends_with_its_cause() {
    // All take five times as long: twice what they can do is asked of them.
    let script: Script = |_, ms, _| during(ms, Does::Labours(5));
    let world = World::run(10, script);
    assert!(world.amplification(FAULT) <= 1.2, "{}", world.amplification(FAULT));
    let eject = EjectRule { local_failures: None, failure_share: None, ..EjectRule::default() };
    let bare = World::with(10, script, RetryRule { attempts: 1, ..RetryRule::default() }, eject);
    let (with, without) = (world.failures(FAULT), bare.failures(FAULT));
    assert!(with <= without, "{with} failed with retries and ejection, {without} without");
    assert_eq!((world.failures(22_000..END), world.ward.ejected()), (0, 0));
}

#[test]
fn nine_dead_of_ten_are_back_soon_after() {
    let world = World::run(10, |at, ms, _| during(ms, if at == 9 { Does::Serves } else { Does::Refuses }));
    assert!(world.amplification(FAULT) <= 1.2, "{}", world.amplification(FAULT));
    assert_eq!((world.failures(22_500..END), world.ward.ejected()), (0, 0));
}
