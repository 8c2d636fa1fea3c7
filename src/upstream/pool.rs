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
use super::room::Room;

/// An HTTP/2 connection without streams is closed after this.
const SHARED_IDLE: Duration = Duration::from_secs(300);

/// After a further HTTP/2 connection could not be opened, the ones at hand must do for this long.
const HOLD: Duration = Duration::from_secs(1);

/// After a connection that is past its age could not be replaced, it serves on for this long before the next try.
const SERVES_ON: Duration = Duration::from_secs(10);

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
    /// The limits of the file, which come before the bounds.
    room: Room,
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
    /// When it is to be replaced.
    replace_at: Option<Instant>,
    /// Another one is being opened in its place.
    leaving: bool,
}

impl<M> Shared<M> {
    fn is_old(&self, now: Instant) -> bool {
        self.replace_at.is_some_and(|at| at <= now)
    }
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
            room: Room::default(),
        }
    }

    /// Connections are made only where there is room.
    pub fn limited(mut self, room: Room) -> Self {
        self.room = room;
        self
    }

    /// The limits of the file.
    pub fn room(&mut self) -> &mut Room {
        &mut self.room
    }

    /// Gives up the connection that was idle longest; returns whether there was one.
    pub fn shed(&mut self) -> bool {
        if self.idle.pop_front().is_some() {
            return true;
        }
        let unused = self.shared.iter().position(|shared| shared.streams == 0);
        unused.map(|at| self.shared.remove(at)).is_some()
    }

    /// Looks again at who waits: there may be room now.
    pub fn look_again(&mut self, now: Instant) -> Grants<O, M, W> {
        self.serve(now)
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
            self.shared.push(Shared { id, conn, streams: 1, max, since: now, replace_at: None, leaving: false });
            // The streams that it has hold it open until they end.
            if let Some(at) = self.shared.iter().position(|shared| shared.leaving) {
                self.shared.remove(at);
            }
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

    /// Drops what has been idle for too long, and looks again at who waits; called now and then.
    pub fn expire(&mut self, now: Instant) -> Grants<O, M, W> {
        let limit = self.keep_alive.limit(now, self.unlearned);
        while self.idle.front().is_some_and(|idle| now.saturating_duration_since(idle.since) >= limit) {
            self.idle.pop_front();
        }
        let fresh =
            |shared: &Shared<M>| now.saturating_duration_since(shared.since) < SHARED_IDLE && !shared.is_old(now);
        self.shared.retain(|shared| shared.streams > 0 || fresh(shared));
        self.serve(now)
    }

    /// Lets go of connections that are to be used no more; what is in use ends after its exchange.
    pub fn retain(&mut self, one: impl Fn(&O) -> bool, many: impl Fn(&M) -> bool) {
        self.idle.retain(|idle| one(&idle.conn));
        self.shared.retain(|shared| many(&shared.conn));
    }

    /// Says when a shared connection is to be replaced.
    pub fn replace_at(&mut self, id: u64, at: Option<Instant>) {
        if let Some(shared) = self.shared.iter_mut().find(|shared| shared.id == id) {
            shared.replace_at = at;
        }
    }

    /// Whether a connection is to be opened in place of one that is past its age: what to answer the caller's dialling
    /// with, as for a `Connect`. The old one serves until the new one is there, so that no request waits or fails for
    /// it; called now and then.
    pub fn replace(&mut self, now: Instant) -> Option<Option<Version>> {
        let at = self.shared.iter().position(|shared| shared.is_old(now))?;
        // A server may have turned to HTTP/1 meanwhile, so that each try opens one of those.
        if self.open >= self.bounds.open.max(1) {
            return None;
        }
        let Offer::Connect(expected) = self.connect(Some(Version::Http2), 1)? else { return None };
        let old = self.shared.get_mut(at)?;
        old.leaving = true;
        old.replace_at = now.checked_add(SERVES_ON);
        Some(expected)
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
            grants.extend(
                line.into_iter().filter(|to| !to.gone()).map(|to| Grant { to, offer: Offer::Failed(error.clone()) }),
            );
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
        (*connecting < at_most && self.room.enter()).then(|| {
            *connecting += 1;
            Offer::Connect(expected)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::*;
    use crate::reason::Reason;

    const H1: Option<Version> = Some(Version::Http1);
    const H2: Option<Version> = Some(Version::Http2);
    const FOUR: Duration = Duration::from_secs(4);

    #[derive(Debug, Clone)]
    struct Seat {
        number: usize,
        left: Rc<Cell<bool>>,
    }

    impl Waiter for Seat {
        fn gone(&self) -> bool {
            self.left.get()
        }
    }

    type Machine = Pool<&'static str, &'static str, Seat>;

    fn seat(number: usize) -> Seat {
        Seat { number, left: Rc::default() }
    }

    fn pool(bounds: Bounds) -> Machine {
        Pool::new(bounds, FOUR)
    }

    fn small() -> Bounds {
        Bounds { open: 2, connecting: 1, shared: 2, waiting: 2 }
    }

    fn error() -> ConnectError {
        ConnectError { reason: Reason::ConnectRefused, detail: "refused".into() }
    }

    fn wait(pool: &mut Machine, now: Instant, want: Option<Version>, number: usize) -> Seat {
        assert_eq!(pool.checkout(now, want), Checkout::Wait);
        let seat = seat(number);
        pool.wait(want, seat.clone());
        seat
    }

    fn read(grants: Grants<&'static str, &'static str, Seat>) -> Vec<(usize, Offer<&'static str, &'static str>)> {
        grants.into_iter().map(|grant| (grant.to.number, grant.offer)).collect()
    }

    #[test]
    fn the_newest_idle_connection_is_used_first_and_an_old_one_never() {
        let (mut pool, t) = (pool(Bounds::default()), Instant::now());
        for id in 1..=3 {
            assert_eq!(pool.checkout(t, H1), Checkout::Now(Offer::Connect(H1)));
            assert_eq!(pool.opened_one(t, H1).0, id);
        }
        for (id, conn) in [(1, "a"), (2, "b"), (3, "c")] {
            assert_eq!(read(pool.returned(t + Duration::from_secs(id), id, conn, None)), []);
        }
        assert_eq!(pool.counts(), Counts { http1: 3, idle: 3, ..Counts::default() });
        let now = t + Duration::from_secs(3) + FOUR - Duration::from_millis(1);
        assert_eq!(pool.checkout(now, H1), Checkout::Now(Offer::One(3, "c")));
        assert_eq!(pool.checkout(now, H1), Checkout::Now(Offer::Connect(H1)));
        assert_eq!(pool.counts().idle, 0);
    }

    #[test]
    fn what_may_not_be_used_any_more_is_let_go() {
        let (mut pool, t) = (pool(Bounds::default()), Instant::now());
        for conn in ["a", "b"] {
            assert_eq!(pool.checkout(t, H1), Checkout::Now(Offer::Connect(H1)));
            let _ = pool.opened_one(t, H1);
            assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)));
            let _ = pool.opened_many(t, H2, conn, 1);
        }
        for (id, conn) in [(1, "a"), (3, "b")] {
            assert_eq!(read(pool.returned(t, id, conn, None)), []);
        }
        pool.retain(|one| *one == "a", |many| *many == "b");
        let left = Counts { http1: 2, idle: 1, http2: 1, streams: 1, ..Counts::default() };
        assert_eq!(pool.counts(), left);
        assert!(matches!(pool.checkout(t, H1), Checkout::Now(Offer::One(_, "a"))));
        assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)), "the stream of the other holds it open");
    }

    #[test]
    fn a_server_that_closes_idle_connections_is_believed() {
        let (mut pool, t) = (pool(Bounds::default()), Instant::now());
        let _ = pool.checkout(t, H1);
        let (id, _) = pool.opened_one(t, H1);
        let _ = pool.returned(t, id, "a", None);
        let _ = pool.closed(t + Duration::from_secs(2), id);
        assert_eq!(pool.counts(), Counts::default());

        let _ = pool.checkout(t, H1);
        let (id, _) = pool.opened_one(t, H1);
        let later = t + Duration::from_secs(10);
        let _ = pool.returned(later, id, "b", None);
        let _ = pool.expire(later + Duration::from_millis(1_599));
        assert_eq!(pool.counts().idle, 1);
        let _ = pool.expire(later + Duration::from_millis(1_600));
        assert_eq!(pool.counts().idle, 0);

        let _ = pool.returned(later, id, "b", Some(Duration::from_secs(75)));
        assert_eq!(pool.checkout(later + FOUR / 4, H1), Checkout::Now(Offer::One(id, "b")));
    }

    #[test]
    fn waiters_are_served_in_turn_one_for_each_connection() {
        let (mut pool, t) = (pool(small()), Instant::now());
        assert_eq!(pool.checkout(t, H1), Checkout::Now(Offer::Connect(H1)));
        wait(&mut pool, t, H1, 1);
        wait(&mut pool, t, H1, 2);
        assert_eq!(pool.checkout(t, H1), Checkout::Full);
        let (first, grants) = pool.opened_one(t, H1);
        assert_eq!(read(grants), [(1, Offer::Connect(H1))]);
        assert_eq!(read(pool.returned(t, first, "a", None)), [(2, Offer::One(first, "a"))]);
        let third = wait(&mut pool, t, H1, 3);
        wait(&mut pool, t, H1, 4);
        third.left.set(true);
        assert_eq!(read(pool.failed(t, H1, Some(&error()))), [(4, Offer::Connect(H1))]);
        assert_eq!(read(pool.closed(t, first)), []);
        assert_eq!(pool.counts(), Counts { connecting: 1, ..Counts::default() });
    }

    #[test]
    fn streams_are_counted_and_running_out_opens_another_connection() {
        let (mut pool, t) = (pool(small()), Instant::now());
        assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)));
        wait(&mut pool, t, H2, 1);
        wait(&mut pool, t, H2, 2);
        let (a, grants) = pool.opened_many(t, H2, "a", 2);
        assert_eq!(read(grants), [(1, Offer::Many(a, "a")), (2, Offer::Connect(H2))]);
        wait(&mut pool, t, H2, 3);
        let (b, grants) = pool.opened_many(t, H2, "b", 2);
        assert_eq!(read(grants), [(3, Offer::Many(b, "b"))]);
        wait(&mut pool, t, H2, 4);
        wait(&mut pool, t, H2, 5);
        assert_eq!(read(pool.stream_limit(t, a, 3)), [(4, Offer::Many(a, "a"))]);
        // A connection that is going away frees its place, not its streams.
        assert_eq!(read(pool.gone(t, a)), [(5, Offer::Connect(H2))]);
        assert_eq!(read(pool.released(t, a)), []);
        assert_eq!(pool.counts(), Counts { http2: 1, streams: 2, connecting: 1, ..Counts::default() });
    }

    #[test]
    fn a_shared_connection_that_fails_fails_those_who_waited_for_it() {
        let (mut pool, t) = (pool(Bounds::default()), Instant::now());
        assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)));
        wait(&mut pool, t, H2, 1);
        wait(&mut pool, t, H2, 2);
        let failed = read(pool.failed(t, H2, Some(&error())));
        assert_eq!(failed, [(1, Offer::Failed(error())), (2, Offer::Failed(error()))]);
        // One that was only abandoned proves nothing: the next in line tries.
        assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)));
        wait(&mut pool, t, H2, 3);
        assert_eq!(read(pool.failed(t, H2, None)), [(3, Offer::Connect(H2))]);
    }

    #[test]
    fn a_further_connection_that_fails_leaves_the_others_waiting_for_streams() {
        let (mut pool, t) = (pool(Bounds::default()), Instant::now());
        let _ = pool.checkout(t, H2);
        let (id, _) = pool.opened_many(t, H2, "a", 1);
        assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)));
        wait(&mut pool, t, H2, 1);
        assert_eq!(read(pool.failed(t, H2, Some(&error()))), []);
        assert_eq!(read(pool.released(t, id)), [(1, Offer::Many(id, "a"))]);
        wait(&mut pool, t, H2, 2);
        assert_eq!(read(pool.stream_limit(t + HOLD, id, 1)), [(2, Offer::Connect(H2))]);
    }

    #[test]
    fn a_connection_past_its_age_serves_until_another_takes_its_place() {
        let (mut pool, t, age) = (pool(Bounds::default()), Instant::now(), Duration::from_secs(60));
        let _ = pool.checkout(t, H2);
        let (old, _) = pool.opened_many(t, H2, "old", 9);
        pool.replace_at(old, Some(t + age));
        assert_eq!(pool.replace(t + age - Duration::from_millis(1)), None);
        let late = t + age;
        let _ = pool.expire(late);
        assert_eq!(pool.replace(late), Some(H2));
        // Nobody waits for the new one, and only one is opened.
        assert_eq!(pool.checkout(late, H2), Checkout::Now(Offer::Many(old, "old")));
        assert_eq!(pool.replace(late + SERVES_ON), None);
        // It cannot be opened: the old one goes on, and the next try is later.
        let _ = pool.failed(late, H2, Some(&error()));
        assert_eq!(pool.checkout(late, H2), Checkout::Now(Offer::Many(old, "old")));
        assert_eq!(pool.replace(late + SERVES_ON / 2), None);
        assert_eq!(pool.replace(late + SERVES_ON), Some(H2));
        let (new, _) = pool.opened_many(late + SERVES_ON, H2, "new", 9);
        assert_eq!(pool.checkout(late + SERVES_ON, H2), Checkout::Now(Offer::Many(new, "new")));
        let _ = pool.released(late + SERVES_ON, old);
        assert_eq!(pool.counts(), Counts { http2: 1, streams: 2, ..Counts::default() });
        // Without streams it needs no other in its place.
        pool.replace_at(new, Some(late + SERVES_ON));
        let _ = (pool.released(late + SERVES_ON, new), pool.released(late + SERVES_ON, new));
        let _ = pool.expire(late + SERVES_ON);
        assert_eq!((pool.counts(), pool.replace(late + SERVES_ON)), (Counts::default(), None));
    }

    #[test]
    fn an_unknown_protocol_is_decided_by_the_first_connection() {
        for (version, expect) in [(Version::Http1, H1), (Version::Http2, H2)] {
            let (mut pool, t) = (pool(Bounds::default()), Instant::now());
            assert_eq!(pool.checkout(t, None), Checkout::Now(Offer::Connect(None)));
            wait(&mut pool, t, None, 1);
            wait(&mut pool, t, None, 2);
            let grants = match version {
                Version::Http1 => pool.opened_one(t, None).1,
                Version::Http2 => pool.opened_many(t, None, "a", 2).1,
            };
            let want = match version {
                Version::Http1 => [(1, Offer::Connect(H1)), (2, Offer::Connect(H1))],
                Version::Http2 => [(1, Offer::Many(1, "a")), (2, Offer::Connect(H2))],
            };
            assert_eq!(read(grants), want);
            assert_eq!(pool.checkout(t, None) == Checkout::Wait, expect == H2);
        }
    }

    #[test]
    fn a_retired_pool_keeps_nothing() {
        let (mut pool, t) = (pool(Bounds::default()), Instant::now());
        let _ = pool.checkout(t, H1);
        let (id, _) = pool.opened_one(t, H1);
        pool.retire();
        let _ = pool.returned(t, id, "a", None);
        assert_eq!(pool.counts().idle, 0);
        assert_eq!(pool.checkout(t, H2), Checkout::Now(Offer::Connect(H2)));
        let (id, _) = pool.opened_many(t, H2, "b", 9);
        let _ = pool.released(t, id);
        assert_eq!(pool.counts(), Counts { http1: 1, ..Counts::default() });
    }

    /// What the property test knows by looking only at what goes in and comes out.
    #[derive(Default)]
    struct Model {
        /// Since when each HTTP/1 connection is idle; `None` in use.
        ones: BTreeMap<u64, Option<Instant>>,
        /// Streams and limit of each HTTP/2 connection.
        many: BTreeMap<u64, (usize, usize)>,
        connecting: Vec<Option<Version>>,
        /// Leases out.
        held: Vec<Offer<&'static str, &'static str>>,
        line: Vec<Seat>,
    }

    impl Model {
        fn take(&mut self, now: Instant, offer: Offer<&'static str, &'static str>) {
            match &offer {
                Offer::One(id, _) => {
                    let since = self.ones.get_mut(id).expect("an open connection").take().expect("an idle one");
                    assert!(now - since < FOUR, "a connection that was idle for too long");
                    self.held.push(offer);
                }
                Offer::Many(id, _) => {
                    let (streams, max) = self.many.get_mut(id).expect("a shared connection");
                    *streams += 1;
                    assert!(streams <= max, "more streams than the peer takes");
                    self.held.push(offer);
                }
                Offer::Connect(expected) => self.connecting.push(*expected),
                Offer::Failed(_) => {}
            }
        }

        fn grant(&mut self, now: Instant, grants: Grants<&'static str, &'static str, Seat>) {
            for grant in grants {
                assert!(!grant.to.gone(), "an offer to someone who left");
                let first = self.line.iter().position(|seat| !seat.gone()).expect("someone in line");
                assert_eq!(self.line.remove(first).number, grant.to.number, "out of turn");
                self.take(now, grant.offer);
            }
        }

        fn check(&self, pool: &mut Machine, now: Instant, want: Option<Version>, bounds: Bounds) {
            let counts = pool.counts();
            assert_eq!(counts.http1, self.ones.len());
            assert_eq!(counts.http2, self.many.len());
            assert_eq!(counts.streams, self.many.values().map(|(streams, _)| streams).sum::<usize>());
            assert_eq!(counts.connecting, self.connecting.len());
            assert!(counts.http1 + self.connecting.iter().filter(|c| **c == H1).count() <= bounds.open.max(1) + 1);
            if self.line.iter().any(|seat| !seat.gone()) {
                // Whoever waits could not be served if it asked now: no wake-up was lost.
                let found = pool.find(now, want);
                assert_eq!(found, None, "someone waits for nothing");
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Ask,
        Leave(usize),
        OpenOne(usize),
        OpenMany(usize, usize),
        Fail(usize, bool),
        GiveBack(usize),
        Close(usize),
        Limit(usize, usize),
        Gone(usize),
        Pass(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            6 => Just(Act::Ask),
            1 => (0usize..9).prop_map(Act::Leave),
            3 => (0usize..9).prop_map(Act::OpenOne),
            3 => (0usize..9, 1usize..4).prop_map(|(at, max)| Act::OpenMany(at, max)),
            1 => (0usize..9, any::<bool>()).prop_map(|(at, error)| Act::Fail(at, error)),
            4 => (0usize..9).prop_map(Act::GiveBack),
            1 => (0usize..9).prop_map(Act::Close),
            1 => (0usize..9, 0usize..4).prop_map(|(at, max)| Act::Limit(at, max)),
            1 => (0usize..9).prop_map(Act::Gone),
            2 => (1u64..5_000).prop_map(Act::Pass),
        ]
    }

    fn nth<T: Copy>(items: impl ExactSizeIterator<Item = T>, at: usize) -> Option<T> {
        let len = items.len();
        items.into_iter().nth(at.checked_rem(len)?)
    }

    fn run(want: Option<Version>, bounds: Bounds, acts: Vec<Act>) {
        let (mut pool, mut model, mut now) = (pool(bounds), Model::default(), Instant::now());
        // Learned keep-alive is judged in its own tests; here closes never happen while idle for long.
        for (number, act) in acts.into_iter().enumerate() {
            match act {
                Act::Ask => match pool.checkout(now, want) {
                    Checkout::Now(offer) => model.take(now, offer),
                    Checkout::Wait => {
                        let seat = seat(number);
                        pool.wait(want, seat.clone());
                        model.line.push(seat);
                    }
                    Checkout::Full => {
                        assert!(model.line.iter().filter(|seat| !seat.gone()).count() >= bounds.waiting);
                    }
                },
                Act::Leave(at) => {
                    if let Some(seat) = nth(model.line.iter(), at) {
                        seat.left.set(true);
                    }
                }
                Act::OpenOne(at) if want != H2 => {
                    let Some(at) = nth(0..model.connecting.len(), at) else { continue };
                    let (id, grants) = pool.opened_one(now, model.connecting.remove(at));
                    model.ones.insert(id, None);
                    model.held.push(Offer::One(id, "one"));
                    model.grant(now, grants);
                }
                Act::OpenMany(at, max) if want != H1 => {
                    let Some(at) = nth(0..model.connecting.len(), at) else { continue };
                    let (id, grants) = pool.opened_many(now, model.connecting.remove(at), "many", max);
                    pool.replace_at(id, (max == 3).then(|| now + Duration::from_secs(2)));
                    model.many.insert(id, (1, max));
                    // One whose replacement this is takes no new streams.
                    model.many.retain(|id, _| pool.shared.iter().any(|shared| shared.id == *id));
                    model.held.push(Offer::Many(id, "many"));
                    model.grant(now, grants);
                }
                Act::OpenOne(_) | Act::OpenMany(..) => {}
                Act::Fail(at, with) => {
                    let Some(at) = nth(0..model.connecting.len(), at) else { continue };
                    let grants = pool.failed(now, model.connecting.remove(at), with.then(error).as_ref());
                    model.grant(now, grants);
                }
                Act::GiveBack(at) => {
                    let Some(at) = nth(0..model.held.len(), at) else { continue };
                    let grants = match model.held.remove(at) {
                        Offer::One(id, conn) => {
                            if let Some(one) = model.ones.get_mut(&id) {
                                *one = Some(now);
                                pool.returned(now, id, conn, None)
                            } else {
                                Vec::new()
                            }
                        }
                        Offer::Many(id, _) => {
                            if let Some((streams, _)) = model.many.get_mut(&id) {
                                *streams -= 1;
                            }
                            pool.released(now, id)
                        }
                        _ => Vec::new(),
                    };
                    model.grant(now, grants);
                }
                Act::Close(at) => {
                    // In use, or idle for less than what teaches.
                    let fresh = |since: &Option<Instant>| since.is_none_or(|since| since == now);
                    let ids: Vec<u64> = model.ones.iter().filter(|(_, s)| fresh(s)).map(|(id, _)| *id).collect();
                    let Some(id) = nth(ids.into_iter(), at) else { continue };
                    model.ones.remove(&id);
                    let grants = pool.closed(now, id);
                    model.grant(now, grants);
                }
                Act::Limit(at, max) => {
                    let Some(id) = nth(model.many.keys().copied().collect::<Vec<_>>().into_iter(), at) else {
                        continue;
                    };
                    let shared = model.many.get_mut(&id).unwrap();
                    shared.1 = max.max(shared.0);
                    let grants = pool.stream_limit(now, id, shared.1);
                    model.grant(now, grants);
                }
                Act::Gone(at) => {
                    let Some(id) = nth(model.many.keys().copied().collect::<Vec<_>>().into_iter(), at) else {
                        continue;
                    };
                    model.many.remove(&id);
                    let grants = pool.gone(now, id);
                    model.grant(now, grants);
                }
                Act::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    // What waits only for time to pass is served by the sweep.
                    let grants = pool.expire(now);
                    model.many.retain(|id, _| pool.shared.iter().any(|shared| shared.id == *id));
                    model.grant(now, grants);
                    model.connecting.extend(pool.replace(now));
                }
            }
            // Connections that were dropped for their age end, and their task says so.
            let kept: Vec<u64> = pool.idle.iter().map(|idle| idle.id).collect();
            let dropped: Vec<u64> =
                model.ones.iter().filter(|(id, s)| s.is_some() && !kept.contains(id)).map(|(id, _)| *id).collect();
            for id in dropped {
                model.ones.remove(&id);
                let grants = pool.closed(now, id);
                model.grant(now, grants);
            }
            model.line.retain(|seat| !seat.gone());
            model.check(&mut pool, now, want, bounds);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn no_connection_is_given_twice_no_turn_is_lost(
            want in prop_oneof![Just(None), Just(H1), Just(H2)],
            bounds in (1usize..5, 1usize..3, 1usize..4, 1usize..5),
            acts in prop::collection::vec(act(), 1..120)
        ) {
            let (open, connecting, shared, waiting) = bounds;
            run(want, Bounds { open, connecting, shared, waiting }, acts);
        }
    }
}
