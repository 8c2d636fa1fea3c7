//! The services that are called: hosts with a bounded queue, and the faults that a script gives them.

use std::collections::VecDeque;
use std::ops::Range;

use crate::clock::{MS, Micros, SECOND};

/// When the fault is.
pub(crate) const FAULT: Range<Micros> = 5 * SECOND..15 * SECOND;
/// When a run's last request comes.
pub(crate) const END: Micros = 25 * SECOND;

/// Requests that a host works on at one time.
const WORKERS: u32 = 4;
/// Requests that wait at a host; it answers 503 to any more.
const QUEUE: usize = 64;

/// What is wrong with the deepest service while the fault lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// The first host's process is gone: what it had is reset, what comes is refused.
    OneDead,
    /// The first host's answers come 200 ms later.
    OneSlow,
    /// The first host answers 503 to three of ten requests.
    OneFlaky,
    /// All hosts are gone but the last.
    AllButOneDead,
    /// All hosts are gone.
    AllDead,
    /// All answer 503.
    AllFail,
    /// Each answers 503 to three of ten requests.
    AllFlaky,
    /// Each answers 503 to one of two hundred requests.
    FewErrors,
    /// Work takes seven times as long: the hosts can do seven tenths of what is asked of them.
    BrownOut,
    /// The first host is gone for one second of every two.
    Flapping,
    /// Each host in turn is gone for a second, then comes back.
    Rolling,
}

/// How a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It serves.
    Well,
    /// Nobody listens.
    Gone,
    /// It answers 503 to so many of a thousand.
    Fails(u64),
    /// It answers so much later.
    Late(Micros),
    /// Its work takes so many times as long.
    Labours(u64),
}

impl Fault {
    /// How host `at` of `hosts` is.
    pub(crate) fn state(self, at: usize, hosts: usize, now: Micros) -> State {
        if !FAULT.contains(&now) {
            return State::Well;
        }
        let (first, since) = (at == 0, now - FAULT.start);
        match self {
            Self::OneDead if first => State::Gone,
            Self::OneSlow if first => State::Late(200 * MS),
            Self::OneFlaky if first => State::Fails(300),
            Self::AllButOneDead if at + 1 < hosts => State::Gone,
            Self::AllDead => State::Gone,
            Self::AllFail => State::Fails(1_000),
            Self::AllFlaky => State::Fails(300),
            Self::FewErrors => State::Fails(5),
            Self::BrownOut => State::Labours(7),
            Self::Flapping if first && (since / SECOND).is_multiple_of(2) => State::Gone,
            Self::Rolling if (since / SECOND) as usize % hosts == at => State::Gone,
            _ => State::Well,
        }
    }

    /// In words, as the heading of a table.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::None => "nothing",
            Self::OneDead => "one host of ten is dead",
            Self::OneSlow => "one host of ten is slow by 200 ms",
            Self::OneFlaky => "one host of ten fails three of ten requests",
            Self::AllButOneDead => "nine hosts of ten are dead; the last can do half of the work",
            Self::AllDead => "all hosts are dead",
            Self::AllFail => "all hosts fail",
            Self::AllFlaky => "all hosts fail three of ten requests",
            Self::FewErrors => "all hosts fail one of two hundred requests",
            Self::BrownOut => "brown-out: work takes seven times as long, queues fill",
            Self::Flapping => "one host of ten flaps: a second gone, a second there",
            Self::Rolling => "rolling restart: each host in turn is gone for a second",
        }
    }

    /// When hosts die.
    pub(crate) fn deaths(self, hosts: usize) -> Vec<(Micros, usize)> {
        let seconds = (FAULT.start..FAULT.end).step_by(SECOND as usize);
        let all = seconds.flat_map(|at| (0..hosts).map(move |host| (at, host)));
        let gone = |at, host| self.state(host, hosts, at) == State::Gone;
        all.filter(|(at, host)| gone(*at, *host) && !gone(at - 1, *host)).collect()
    }
}

/// A host of a service.
#[derive(Default)]
pub(crate) struct Host {
    busy: u32,
    queue: VecDeque<usize>,
    /// Attempts that it has not answered.
    inside: Vec<usize>,
    /// How often it died: what it did before is lost.
    pub(crate) life: u32,
}

/// What becomes of an attempt that has come to a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Work on it begins.
    Begins,
    /// It waits.
    Waits,
    /// There is no room.
    Full,
}

impl Host {
    /// An attempt comes.
    pub(crate) fn takes(&mut self, attempt: usize) -> Arrival {
        if self.busy >= WORKERS && self.queue.len() >= QUEUE {
            return Arrival::Full;
        }
        self.inside.push(attempt);
        if self.busy >= WORKERS {
            self.queue.push_back(attempt);
            return Arrival::Waits;
        }
        self.busy += 1;
        Arrival::Begins
    }

    /// Work on one is done; the next that is to be worked on.
    pub(crate) fn worked(&mut self) -> Option<usize> {
        let next = self.queue.pop_front();
        self.busy -= u32::from(next.is_none());
        next
    }

    /// An attempt is answered.
    pub(crate) fn answers(&mut self, attempt: usize) {
        if let Some(at) = self.inside.iter().position(|one| *one == attempt) {
            self.inside.swap_remove(at);
        }
    }

    /// It dies; the attempts that it had.
    pub(crate) fn dies(&mut self) -> Vec<usize> {
        (self.busy, self.life) = (0, self.life + 1);
        self.queue.clear();
        std::mem::take(&mut self.inside)
    }
}
