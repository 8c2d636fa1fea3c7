//! The connections of one endpoint as a machine without IO: who gets which, who waits, who is to connect.
//!
//! ```text
//! HTTP/1   connecting -> in use <-> idle -> closed          (newest idle first)
//! HTTP/2   connecting -> shared (streams 0..max) -> gone    (first with a free stream)
//! ```
//! Connecting is a state that is counted here; the dialling itself happens outside, by whoever was told `Connect`. Who
//! can be given nothing waits in line; every transition that frees something says who is next. The machine never
//! dials, never sleeps, and every method takes `now`.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::keepalive::KeepAlive;
use super::lease::{ConnectError, Version};

/// An HTTP/2 connection without streams is closed after this.
const SHARED_IDLE: Duration = Duration::from_secs(300);

/// After a further HTTP/2 connection could not be opened, the ones at hand must do for this long.
const HOLD: Duration = Duration::from_secs(1);

/// Bounds of one endpoint's pool.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// HTTP/1 connections, open and being opened.
    pub open: usize,
    /// HTTP/1 connections being opened at one time.
    pub connecting: usize,
    /// HTTP/2 connections.
    pub shared: usize,
    /// Requests waiting, in each line.
    pub waiting: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { open: 16_384, connecting: 256, shared: 64, waiting: 16_384 }
    }
}

/// Someone who waits in line and may have left it.
pub trait Waiter {
    /// Whether nobody listens any more.
    fn gone(&self) -> bool;
}

/// What a request gets: a connection of its own (`O`), a stream on a shared one (`M`), or work.
#[derive(Debug, PartialEq)]
pub enum Offer<O, M> {
    /// An idle HTTP/1 connection.
    One(u64, O),
    /// A stream on a shared HTTP/2 connection.
    Many(u64, M),
    /// Open a connection; the version is the one to be expected, `None` if the handshake decides. Every `Connect`
    /// must be answered by `opened_one`, `opened_many` or `failed` with this same value.
    Connect(Option<Version>),
    /// The connection it waited for could not be made.
    Failed(ConnectError),
}

/// What a checkout says.
#[derive(Debug, PartialEq)]
pub enum Checkout<O, M> {
    /// Here it is.
    Now(Offer<O, M>),
    /// Nothing is free: call `wait`.
    Wait,
    /// Nothing is free and the line is full.
    Full,
}

/// An offer for someone who waited.
#[derive(Debug, PartialEq)]
pub struct Grant<O, M, W> {
    /// Who waited.
    pub to: W,
    /// What it gets.
    pub offer: Offer<O, M>,
}

/// Offers to be handed out after the lock is released.
pub type Grants<O, M, W> = Vec<Grant<O, M, W>>;

/// How many connections are in which state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// HTTP/1 connections open, idle ones included.
    pub http1: usize,
    /// HTTP/1 connections idle.
    pub idle: usize,
    /// HTTP/2 connections open.
    pub http2: usize,
    /// Streams on them.
    pub streams: usize,
    /// Connections being opened.
    pub connecting: usize,
    /// Requests waiting.
    pub waiting: usize,
}

/// The connections of one endpoint.
pub struct Pool<O, M, W> {
    bounds: Bounds,
    /// Oldest first.
    idle: VecDeque<Idle<O>>,
    open: usize,
    shared: Vec<Shared<M>>,
    connecting: PerWish<usize>,
    lines: PerWish<VecDeque<W>>,
    /// What the last handshake agreed on; decides for those who take either.
    spoken: Option<Version>,
    keep_alive: KeepAlive,
    unlearned: Duration,
    hold: Option<Instant>,
    retired: bool,
    next_id: u64,
}

struct Idle<O> {
    id: u64,
    conn: O,
    since: Instant,
}

struct Shared<M> {
    id: u64,
    conn: M,
    streams: usize,
    max: usize,
    since: Instant,
}

/// One of each for those who take either version, HTTP/1 and HTTP/2.
#[derive(Default)]
struct PerWish<T> {
    either: T,
    http1: T,
    http2: T,
}

impl<T> PerWish<T> {
    fn of(&mut self, want: Option<Version>) -> &mut T {
        match want {
            None => &mut self.either,
            Some(Version::Http1) => &mut self.http1,
            Some(Version::Http2) => &mut self.http2,
        }
    }

    fn all(&self) -> [&T; 3] {
        [&self.either, &self.http1, &self.http2]
    }
}

const WISHES: [Option<Version>; 3] = [None, Some(Version::Http1), Some(Version::Http2)];

impl<O, M: Clone, W: Waiter> Pool<O, M, W> {
    /// An empty pool; `unlearned` is how long an idle connection lives until the server's keep-alive is known.
    pub fn new(bounds: Bounds, unlearned: Duration) -> Self {
        Self {
            bounds,
            idle: VecDeque::new(),
            open: 0,
            shared: Vec::new(),
            connecting: PerWish::default(),
            lines: PerWish { either: VecDeque::new(), http1: VecDeque::new(), http2: VecDeque::new() },
            spoken: None,
            keep_alive: KeepAlive::default(),
            unlearned,
            hold: None,
            retired: false,
            next_id: 0,
        }
    }

    /// Asks for a connection; `want` is `None` where the handshake decides the version.
    pub fn checkout(&mut self, now: Instant, want: Option<Version>) -> Checkout<O, M> {
        if let Some(offer) = self.find(now, want) {
            return Checkout::Now(offer);
        }
        let line = self.lines.of(want);
        if line.len() >= self.bounds.waiting {
            line.retain(|waiter| !waiter.gone());
        }
        if line.len() < self.bounds.waiting { Checkout::Wait } else { Checkout::Full }
    }

    /// Stands in line after a checkout said `Wait`, without anything in between.
    pub fn wait(&mut self, want: Option<Version>, waiter: W) {
        self.lines.of(want).push_back(waiter);
    }

    /// A `Connect` gave an HTTP/1 connection, which the one who connected uses first. Returns its id.
    pub fn opened_one(&mut self, now: Instant, expected: Option<Version>) -> (u64, Grants<O, M, W>) {
        self.connected(expected, Version::Http1);
        self.open += 1;
        (self.new_id(), self.serve(now))
    }

    /// A `Connect` gave an HTTP/2 connection that allows `max` streams, of which the one who connected has the first.
    pub fn opened_many(
        &mut self,
        now: Instant,
        expected: Option<Version>,
        conn: M,
        max: usize,
    ) -> (u64, Grants<O, M, W>) {
        self.connected(expected, Version::Http2);
        let id = self.new_id();
        if !self.retired {
            self.shared.push(Shared { id, conn, streams: 1, max, since: now });
        }
        (id, self.serve(now))
    }

    /// A `Connect` gave nothing; without `error` it was abandoned. Those who can hope for nothing else share the
    /// error; where each opens its own connection the next in line tries.
    pub fn failed(&mut self, now: Instant, expected: Option<Version>, error: Option<&ConnectError>) -> Grants<O, M, W> {
        let connecting = self.connecting.of(expected);
        *connecting = connecting.saturating_sub(1);
        let mut grants = Vec::new();
        if let Some(error) = error.filter(|_| expected != Some(Version::Http1)) {
            if self.shared.is_empty() {
                self.fail(expected, error, &mut grants);
            } else {
                self.hold = now.checked_add(HOLD);
            }
        }
        grants.append(&mut self.serve(now));
        grants
    }

    /// An HTTP/1 connection's exchange is over and it can take another one; `told` is the server's `Keep-Alive`.
    pub fn returned(&mut self, now: Instant, id: u64, conn: O, told: Option<Duration>) -> Grants<O, M, W> {
        if let Some(told) = told {
            self.keep_alive.told(told);
        }
        if self.retired {
            return Vec::new();
        }
        self.idle.push_back(Idle { id, conn, since: now });
        self.serve(now)
    }

    /// An HTTP/1 connection ended; called once for each that was opened. If it was idle, the server's keep-alive is
    /// learned.
    pub fn closed(&mut self, now: Instant, id: u64) -> Grants<O, M, W> {
        self.open = self.open.saturating_sub(1);
        if let Some(at) = self.idle.iter().rposition(|idle| idle.id == id)
            && let Some(idle) = self.idle.remove(at)
        {
            self.keep_alive.closed_idle(now, now.saturating_duration_since(idle.since));
        }
        self.serve(now)
    }

    /// A stream on a shared connection ended.
    pub fn released(&mut self, now: Instant, id: u64) -> Grants<O, M, W> {
        if let Some(shared) = self.shared.iter_mut().find(|shared| shared.id == id) {
            shared.streams = shared.streams.saturating_sub(1);
            shared.since = now;
        }
        self.serve(now)
    }

    /// A shared connection's peer changed how many streams it takes.
    pub fn stream_limit(&mut self, now: Instant, id: u64, max: usize) -> Grants<O, M, W> {
        if let Some(shared) = self.shared.iter_mut().find(|shared| shared.id == id) {
            shared.max = max;
        }
        self.serve(now)
    }

    /// A shared connection takes no new streams: it is ending or has ended.
    pub fn gone(&mut self, now: Instant, id: u64) -> Grants<O, M, W> {
        self.shared.retain(|shared| shared.id != id);
        self.serve(now)
    }

    /// Drops what has been idle for too long.
    pub fn expire(&mut self, now: Instant) {
        let limit = self.keep_alive.limit(now, self.unlearned);
        while self.idle.front().is_some_and(|idle| now.saturating_duration_since(idle.since) >= limit) {
            self.idle.pop_front();
        }
        self.shared.retain(|shared| shared.streams > 0 || now.saturating_duration_since(shared.since) < SHARED_IDLE);
    }

    /// The endpoint is no longer one of the peer's: what is idle is dropped, what is in use ends after its exchange.
    pub fn retire(&mut self) {
        self.retired = true;
        self.idle.clear();
        self.shared.clear();
    }

    /// Changes how long an idle connection lives until the server's keep-alive is known.
    pub fn set_unlearned(&mut self, unlearned: Duration) {
        self.unlearned = unlearned;
    }

    /// How many connections are in which state.
    pub fn counts(&self) -> Counts {
        Counts {
            http1: self.open,
            idle: self.idle.len(),
            http2: self.shared.len(),
            streams: self.shared.iter().map(|shared| shared.streams).sum(),
            connecting: self.connecting.all().into_iter().sum(),
            waiting: self.lines.all().into_iter().map(VecDeque::len).sum(),
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn connected(&mut self, expected: Option<Version>, got: Version) {
        let connecting = self.connecting.of(expected);
        *connecting = connecting.saturating_sub(1);
        self.spoken = Some(got);
        self.hold = None;
    }

    /// Gives whatever is free to whoever is next, until nothing is free or nobody waits.
    fn serve(&mut self, now: Instant) -> Grants<O, M, W> {
        let mut grants = Vec::new();
        for want in WISHES {
            while let Some(waiter) = self.lines.of(want).pop_front() {
                if waiter.gone() {
                    continue;
                }
                match self.find(now, want) {
                    Some(offer) => grants.push(Grant { to: waiter, offer }),
                    None => {
                        self.lines.of(want).push_front(waiter);
                        break;
                    }
                }
            }
        }
        grants
    }

    fn fail(&mut self, expected: Option<Version>, error: &ConnectError, grants: &mut Grants<O, M, W>) {
        for want in WISHES.into_iter().filter(|want| want.is_none() || *want == expected) {
            let line = std::mem::take(self.lines.of(want));
            grants.extend(line.into_iter().map(|to| Grant { to, offer: Offer::Failed(error.clone()) }));
        }
    }

    fn find(&mut self, now: Instant, want: Option<Version>) -> Option<Offer<O, M>> {
        match want {
            Some(Version::Http1) => self.find_one(now),
            Some(Version::Http2) => self.find_many(now),
            None => match self.spoken {
                Some(Version::Http1) => self.stream().or_else(|| self.find_one(now)),
                Some(Version::Http2) => self.find_many(now),
                None => self.connect(None, 1),
            },
        }
    }

    fn find_one(&mut self, now: Instant) -> Option<Offer<O, M>> {
        if let Some(newest) = self.idle.back() {
            if now.saturating_duration_since(newest.since) < self.keep_alive.limit(now, self.unlearned) {
                return self.idle.pop_back().map(|idle| Offer::One(idle.id, idle.conn));
            }
            // The newest is the youngest: all are too old.
            self.idle.clear();
        }
        let connecting = self.connecting.http1;
        let room = self.open + connecting < self.bounds.open;
        if room { self.connect(Some(Version::Http1), self.bounds.connecting) } else { None }
    }

    fn find_many(&mut self, now: Instant) -> Option<Offer<O, M>> {
        if let Some(offer) = self.stream() {
            return Some(offer);
        }
        let held = !self.shared.is_empty() && self.hold.is_some_and(|until| now < until);
        if held || self.shared.len() >= self.bounds.shared {
            return None;
        }
        self.connect(Some(Version::Http2), 1)
    }

    fn stream(&mut self) -> Option<Offer<O, M>> {
        let shared = self.shared.iter_mut().find(|shared| shared.streams < shared.max)?;
        shared.streams += 1;
        Some(Offer::Many(shared.id, shared.conn.clone()))
    }

    fn connect(&mut self, expected: Option<Version>, at_most: usize) -> Option<Offer<O, M>> {
        let connecting = self.connecting.of(expected);
        (*connecting < at_most).then(|| {
            *connecting += 1;
            Offer::Connect(expected)
        })
    }
}
