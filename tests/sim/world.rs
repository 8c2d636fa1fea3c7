//! The tree: one front, and three services of ten hosts, each of which calls the next service through its own sidecar.

use crate::clock::{Clock, MS, Micros, SECOND, around};
use crate::report::Record;
use crate::services::{Arrival, END, Fault, Host, State};
use crate::sidecar::{Course, Got, Pick, Sidecar, Then, Ticket};

/// Services on the way of a request.
pub(crate) const HOPS: usize = 3;
/// Hosts of a service where nothing else is said.
pub(crate) const HOSTS: usize = 10;
/// Requests a second at the front, so that each host's sidecar sees a hundred.
const RATE: u64 = 1_000;
/// One way between two hosts.
const WAY: Micros = 250;
/// What a request takes in the services before the deepest, on average.
const WORK: Micros = 2 * MS;
/// What it takes to answer that nothing can be done.
const FAILING: Micros = MS;

/// One run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Equal seeds give equal runs.
    pub(crate) seed: u64,
    /// What is wrong.
    pub(crate) fault: Fault,
    /// Hosts of the deepest service.
    pub(crate) hosts: usize,
    /// What a request takes there, on average.
    pub(crate) work: Micros,
    /// Whether calls are gRPC: POST, and failures are UNAVAILABLE.
    pub(crate) grpc: bool,
    /// Whether services pass on the mark of a sidecar's further attempt.
    pub(crate) propagates: bool,
}

impl Setting {
    /// GETs with this fault.
    pub(crate) fn of(fault: Fault) -> Self {
        Self { seed: 1, fault, hosts: HOSTS, work: 8 * MS, grpc: false, propagates: true }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A request comes to the front.
    Comes,
    /// A call's sidecar chooses a host.
    Tries(usize),
    /// An attempt reaches its host.
    Reaches(usize),
    /// A host has worked on an attempt, in so manieth life.
    Worked(usize, u32),
    /// A sidecar learns what became of an attempt.
    Lands(usize, Got),
    /// A host of the deepest service dies.
    Dies(usize),
}

struct Call {
    hop: usize,
    /// Which of the callers of that hop makes it.
    by: usize,
    /// The attempt that it is made for; none at the front.
    parent: Option<usize>,
    course: Course,
}

struct Attempt {
    call: usize,
    host: usize,
    marked: bool,
    /// Taken when it is over.
    ticket: Option<Ticket>,
}

/// The tree at work.
pub(crate) struct World<S> {
    setting: Setting,
    clock: Clock<Event>,
    sidecars: [Vec<S>; HOPS],
    services: [Vec<Host>; HOPS],
    calls: Vec<Call>,
    attempts: Vec<Attempt>,
    record: Record,
}

impl<S: Sidecar> World<S> {
    /// A run from its beginning to its end; `sidecar` makes one for a service of so many hosts. To be called where
    /// tokio's time stands still, because what the product knows of time begins with it.
    pub(crate) fn run(setting: Setting, sidecar: impl Fn(usize) -> S) -> Record {
        fastrand::seed(setting.seed);
        let hosts = [HOSTS, HOSTS, setting.hosts];
        let callers = [1, HOSTS, HOSTS];
        let mut world = Self {
            setting,
            clock: Clock::new(),
            sidecars: std::array::from_fn(|hop| (0..callers[hop]).map(|_| sidecar(hosts[hop])).collect()),
            services: hosts.map(|hosts| (0..hosts).map(|_| Host::default()).collect()),
            calls: Vec::new(),
            attempts: Vec::new(),
            record: Record::new(callers, setting.hosts),
        };
        world.clock.after(0, Event::Comes);
        for (at, host) in setting.fault.deaths(setting.hosts) {
            world.clock.after(at, Event::Dies(host));
        }
        while let Some(event) = world.clock.next() {
            world.happens(event);
        }
        world.record
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Comes => {
                self.calls(0, 0, None, false);
                if self.clock.now() < END {
                    self.clock.after(around(SECOND / RATE), Event::Comes);
                }
            }
            Event::Tries(call) => self.tries(call),
            Event::Reaches(attempt) => self.reaches(attempt),
            Event::Worked(attempt, life) => self.worked(attempt, life),
            Event::Lands(attempt, got) => self.lands(attempt, got),
            Event::Dies(host) => {
                for attempt in self.services[HOPS - 1][host].dies() {
                    self.clock.after(WAY, Event::Lands(attempt, Got::Reset));
                }
            }
        }
    }

    fn calls(&mut self, hop: usize, by: usize, parent: Option<usize>, marked: bool) {
        let course = Course { came: self.clock.now(), marked, ..Course::default() };
        self.calls.push(Call { hop, by, parent, course });
        self.record.called(hop, by, self.clock.now());
        self.tries(self.calls.len() - 1);
    }

    fn tries(&mut self, at: usize) {
        let now = self.clock.now();
        let call = &mut self.calls[at];
        match self.sidecars[call.hop][call.by].begin(now, &mut call.course) {
            Pick::To(ticket) => {
                self.record.tried(call.hop, call.by, now, 1);
                let marked = call.course.marked || call.course.attempts > 1;
                self.attempts.push(Attempt { call: at, host: ticket.host, marked, ticket: Some(ticket) });
                self.clock.after(WAY, Event::Reaches(self.attempts.len() - 1));
            }
            Pick::Wait(wait) => self.clock.after(wait, Event::Tries(at)),
            Pick::Nobody => self.ends(at, false),
        }
    }

    fn reaches(&mut self, at: usize) {
        let (hop, host) = (self.calls[self.attempts[at].call].hop, self.attempts[at].host);
        let lands = match self.state(hop, host) {
            State::Gone => Some((WAY, Got::Refused)),
            State::Fails(part) if fastrand::u64(..1_000) < part => Some((WAY + FAILING, Got::Failure)),
            _ => None,
        };
        if let Some((wait, got)) = lands {
            return self.clock.after(wait, Event::Lands(at, got));
        }
        if hop == HOPS - 1 {
            self.record.served(host, self.clock.now());
        }
        match self.services[hop][host].takes(at) {
            Arrival::Begins => self.works(at),
            Arrival::Waits => {}
            Arrival::Full => self.clock.after(WAY + FAILING, Event::Lands(at, Got::Failure)),
        }
    }

    fn works(&mut self, at: usize) {
        let (hop, host) = (self.calls[self.attempts[at].call].hop, self.attempts[at].host);
        let times = if let State::Labours(times) = self.state(hop, host) { times } else { 1 };
        self.clock.after(
            around(if hop < HOPS - 1 { WORK } else { self.setting.work }) * times,
            Event::Worked(at, self.services[hop][host].life),
        );
    }

    fn worked(&mut self, at: usize, life: u32) {
        let (hop, host) = (self.calls[self.attempts[at].call].hop, self.attempts[at].host);
        if self.services[hop][host].life != life {
            return;
        }
        if let Some(next) = self.services[hop][host].worked() {
            self.works(next);
        }
        if hop + 1 < HOPS {
            let marked = self.attempts[at].marked && self.setting.propagates;
            return self.calls(hop + 1, host, Some(at), marked);
        }
        let late = if let State::Late(late) = self.state(hop, host) { late } else { 0 };
        self.clock.after(WAY + late, Event::Lands(at, Got::Answer));
    }

    fn lands(&mut self, at: usize, got: Got) {
        // A host's death may have been quicker than its answer.
        let Some(ticket) = self.attempts[at].ticket.take() else { return };
        let (now, which) = (self.clock.now(), self.attempts[at].call);
        let call = &mut self.calls[which];
        self.services[call.hop][ticket.host].answers(at);
        let began = ticket.began;
        match self.sidecars[call.hop][call.by].ended(now, &mut call.course, ticket, got) {
            Then::Over => self.ends(which, got == Got::Answer),
            Then::Again(wait) => self.clock.after(wait, Event::Tries(which)),
            Then::Elsewhere => {
                self.record.tried(call.hop, call.by, began, -1);
                self.tries(which);
            }
        }
    }

    /// A service whose call fails answers 503 itself.
    fn ends(&mut self, at: usize, ok: bool) {
        let Call { parent, course, .. } = &self.calls[at];
        match parent {
            Some(parent) => {
                let got = if ok { Got::Answer } else { Got::Failure };
                self.clock.after(WAY, Event::Lands(*parent, got));
            }
            None => self.record.answered(course.came, self.clock.now(), ok),
        }
    }

    fn state(&self, hop: usize, host: usize) -> State {
        if hop < HOPS - 1 {
            return State::Well;
        }
        self.setting.fault.state(host, self.setting.hosts, self.clock.now())
    }
}
