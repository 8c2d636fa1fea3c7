//! One address of a peer: its load, its connections, and what went wrong with it last.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::Dialling;
use super::guards::Refusal;
use super::http1::One;
use super::http2::Many;
use super::lease::{ConnectError, Lease, ManyHold, OneHold, Version};
use super::peer::Peer;
use super::pool::{Bounds, Checkout, Grants, Offer, Pool, Waiter};
use super::room::{Home, NoRoom, Place, Room};
use super::state::{EndpointState, limits};
use crate::deadline::Deadline;
use crate::ids::Addr;
use crate::net::dial::dial;
use crate::net::io::Io;
use crate::plan::peer::EndpointSpec;
use crate::plan::rules::Rules;
use crate::reason::Reason;
use crate::resilience::limit::{Held, Limited, Limits};
use crate::resilience::load::Load;

/// The living state of one address of a peer.
pub struct Endpoint {
    addr: Addr,
    spec: ArcSwap<EndpointSpec>,
    load: Load,
    home: Home,
    limits: Arc<Limits>,
    pool: Mutex<Pool<One, Many, Line>>,
    /// TLS with sessions of its own, made when first needed.
    tls: OnceLock<Arc<ClientConfig>>,
    last_error: Mutex<Option<LastError>>,
}

/// A failure to connect, kept for `/state`.
#[derive(Clone, Debug)]
pub(super) struct LastError {
    pub(super) what: String,
    pub(super) when: SystemTime,
}

/// How someone in line hears that it is its turn.
type Line = oneshot::Sender<Given>;

impl Waiter for Line {
    fn gone(&self) -> bool {
        self.is_closed()
    }
}

/// An [`Offer`] that gives itself back when nobody takes it.
pub(super) enum Given {
    One(OneHold),
    Many(ManyHold),
    Connect(Dialling),
    Failed(ConnectError),
}

/// What a checkout came to.
pub(super) enum Turn {
    Now(Given),
    Wait(oneshot::Receiver<Given>),
    Full,
}

impl Endpoint {
    /// An endpoint without connections; `unlearned` is how long an idle one lives until the server's keep-alive is
    /// known.
    pub(super) fn new(spec: EndpointSpec, now: Instant, unlearned: Duration, home: Home, rules: &Rules) -> Arc<Self> {
        let limits = Arc::<Limits>::default();
        let room = Room::new(home.limits.clone(), limits.clone(), rules);
        Arc::new(Self {
            addr: spec.addr.clone(),
            spec: ArcSwap::from_pointee(spec),
            load: Load::new(now),
            pool: Mutex::new(Pool::new(Bounds::default(), unlearned).limited(room)),
            home,
            limits,
            tls: OnceLock::new(),
            last_error: Mutex::new(None),
        })
    }

    /// What discovery says about it.
    pub fn spec(&self) -> Arc<EndpointSpec> {
        self.spec.load_full()
    }

    /// Where it is.
    pub fn addr(&self) -> &Addr {
        &self.addr
    }

    /// Its load.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Counts an exchange for balancing, from now until the value is dropped.
    pub fn begin(self: &Arc<Self>, now: Instant) -> InFlight {
        self.load.begin();
        InFlight { endpoint: self.clone(), began: now, answered: false }
    }

    /// A connection on which one request can be sent now, waiting for a free or a new one until `deadline`.
    ///
    /// # Errors
    /// No connection could be made or none became free in time, or a limit is reached; see [`ConnectError`].
    pub async fn lease(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        want: Version,
        deadline: Deadline,
    ) -> Result<Lease, ConnectError> {
        let want = peer.wish(want);
        let in_flight = self.hold(peer, Limited::InFlight)?;
        let lease = match self.turn(Instant::now(), want) {
            Turn::Now(Given::One(hold)) if hold.is_ready() => Ok(Lease::one(hold)),
            // The rare ways are boxed, so that the common one stays small.
            turn => Box::pin(self.lease_slowly(peer, want, deadline, turn)).await,
        };
        lease.map(|lease| lease.keeping(in_flight))
    }

    /// A raw byte stream of its own (tunnels), TLS included where the peer says so.
    ///
    /// # Errors
    /// As [`Endpoint::lease`], but never `Overloaded`: there is no line for it, so a limit refuses it at once.
    pub async fn dial(&self, peer: &Peer, deadline: Deadline) -> Result<(Io, Place), ConnectError> {
        let room = self.pool.lock().room().enter().then(|| Place::taken(&self.home, &self.limits));
        let Some(mut place) = room else { return Err(self.no_room(peer, "no connection may be made to")) };
        let io = Box::pin(self.dial_raw(peer, deadline)).await?;
        place.connected();
        Ok((io, place))
    }

    /// Takes one under the limit of each endpoint.
    fn hold(&self, peer: &Peer, what: Limited) -> Result<Held, ConnectError> {
        let held = self.limits.hold(what, &peer.rules().endpoint_limits);
        held.map_err(|full| peer.full(full, Some(&self.addr)).into())
    }

    /// Room in line, under the limits of the peer and of the endpoint.
    fn stand(&self, peer: &Peer) -> Result<(Held, Held), ConnectError> {
        let of_peer = self.home.limits.hold(Limited::Pending, &peer.rules().limits);
        let of_peer = of_peer.map_err(|full| peer.full(full, None))?;
        Ok((of_peer, self.hold(peer, Limited::Pending)?))
    }

    /// Why no connection was made: a limit where one is reached.
    fn no_room(&self, peer: &Peer, what: &str) -> ConnectError {
        let full = self.pool.lock().room().full();
        match full {
            Some(NoRoom { full, endpoint }) => {
                peer.full(full, endpoint.then_some(&self.addr as &dyn std::fmt::Display)).into()
            }
            None => self.overloaded(what),
        }
    }

    async fn lease_slowly(
        self: &Arc<Self>,
        peer: &Arc<Peer>,
        want: Option<Version>,
        deadline: Deadline,
        mut turn: Turn,
    ) -> Result<Lease, ConnectError> {
        let limit = Deadline::after(Instant::now(), Some(peer.policy().connect_timeout)).min(deadline);
        loop {
            let given = match turn {
                Turn::Now(given) => given,
                Turn::Full => return Err(self.overloaded("too many requests wait for a connection to")),
                Turn::Wait(line) => {
                    let _in_line = self.stand(peer)?;
                    self.make_room(peer);
                    self.wait(peer, line, limit, deadline).await?
                }
            };
            match given {
                Given::One(mut hold) => {
                    // Just returned, its task may be a step behind; or it ended a moment ago.
                    let ready = match hold.one() {
                        Some(one) => within(limit, one.ready()).await.unwrap_or(false),
                        None => false,
                    };
                    if ready {
                        return Ok(Lease::one(hold));
                    }
                    // It still holds bytes of its last request, which its server does not read: given back it would be
                    // handed out again at once, for ever. In use it is ended by its drop.
                    hold.begin();
                    drop(hold);
                    if limit.passed(Instant::now()) {
                        return Err(self.overloaded("no connection became free in time to"));
                    }
                }
                Given::Many(mut hold) => {
                    if hold.many.is_usable() {
                        return Ok(Lease::many(hold));
                    }
                    self.gone(hold.id);
                }
                Given::Connect(dialling) => {
                    return dialling.run(peer, deadline, dial(&self.addr, Deadline::NONE)).await;
                }
                Given::Failed(error) => return Err(error),
            }
            turn = self.turn(Instant::now(), want);
        }
    }

    /// Stands in line. Dropping this leaves the line; what was handed over at that very moment gives itself back.
    async fn wait(
        &self,
        peer: &Peer,
        line: oneshot::Receiver<Given>,
        limit: Deadline,
        deadline: Deadline,
    ) -> Result<Given, ConnectError> {
        let waiting = &peer.metrics().waiting;
        waiting.add(1);
        let _guard = OnDrop(|| waiting.add(-1));
        match within(limit, line).await {
            Some(Ok(given)) => Ok(given),
            // The sender lives in the pool, which lives in `self`: only a line that was cleared ends here.
            Some(Err(_)) => Err(self.overloaded("no connection became free to")),
            None if deadline.passed(Instant::now()) => Err(late(&self.addr)),
            None => Err(self.no_room(peer, "no connection became free in time to")),
        }
    }

    /// Where a limit on connections is in the way, idle ones are given up for whoever waits: of this endpoint, whose idle
    /// ones are then of the other version, or of any other of the peer's.
    fn make_room(&self, peer: &Peer) {
        let Some(NoRoom { full, endpoint }) = self.pool.lock().room().full() else { return };
        if full.what == Limited::Connections && !self.shed() && !endpoint {
            let _ = peer.endpoints().all().iter().any(|other| other.shed());
        }
    }

    fn shed(&self) -> bool {
        self.pool.lock().shed()
    }

    pub(super) fn turn(self: &Arc<Self>, now: Instant, want: Option<Version>) -> Turn {
        let mut pool = self.pool.lock();
        match pool.checkout(now, want) {
            Checkout::Now(offer) => {
                drop(pool);
                Turn::Now(self.given(offer))
            }
            Checkout::Wait => {
                let (line, turn) = oneshot::channel();
                pool.wait(want, line);
                Turn::Wait(turn)
            }
            Checkout::Full => Turn::Full,
        }
    }

    fn given(self: &Arc<Self>, offer: Offer<One, Many>) -> Given {
        match offer {
            Offer::One(id, one) => Given::One(OneHold::new(self.clone(), id, one, true)),
            Offer::Many(id, many) => Given::Many(ManyHold::new(self.clone(), id, many, true)),
            Offer::Connect(expected) => {
                let place = Place::taken(&self.home, &self.limits);
                Given::Connect(Dialling::new(self.clone(), expected, place))
            }
            Offer::Failed(error) => Given::Failed(error),
        }
    }

    /// Hands out what a transition freed. Called without the lock: whoever has left the line drops what it was given,
    /// which locks again.
    fn deliver(self: &Arc<Self>, grants: Grants<One, Many, Line>) {
        for grant in grants {
            let _ = grant.to.send(self.given(grant.offer));
        }
    }

    fn overloaded(&self, what: &str) -> ConnectError {
        ConnectError { reason: Reason::Overloaded, detail: format!("{what} {}", self.addr) }
    }
}

/// The transitions of the pool, each under its short lock.
impl Endpoint {
    pub(super) fn returned(self: &Arc<Self>, now: Instant, id: u64, one: One, told: Option<Duration>) {
        let mut pool = self.pool.lock();
        // Asked under the lock: `closed` comes after the end, so either it is seen here or it finds the connection.
        if one.is_closed() {
            return;
        }
        let grants = pool.returned(now, id, one, told);
        drop(pool);
        self.deliver(grants);
    }

    pub(super) fn opened_one(self: &Arc<Self>, expected: Option<Version>) -> u64 {
        let (id, grants) = self.pool.lock().opened_one(Instant::now(), expected);
        self.deliver(grants);
        id
    }

    pub(super) fn opened_many(self: &Arc<Self>, expected: Option<Version>, many: Many, max: usize) -> u64 {
        let (id, grants) = self.pool.lock().opened_many(Instant::now(), expected, many, max);
        self.deliver(grants);
        id
    }

    pub(super) fn failed(self: &Arc<Self>, expected: Option<Version>, error: Option<&ConnectError>) {
        let grants = self.pool.lock().failed(Instant::now(), expected, error);
        self.deliver(grants);
    }

    pub(super) fn closed(self: &Arc<Self>, id: u64) {
        let grants = self.pool.lock().closed(Instant::now(), id);
        self.deliver(grants);
    }

    pub(super) fn released(self: &Arc<Self>, id: u64) {
        let grants = self.pool.lock().released(Instant::now(), id);
        self.deliver(grants);
    }

    pub(super) fn stream_limit(self: &Arc<Self>, id: u64, max: usize) {
        let grants = self.pool.lock().stream_limit(Instant::now(), id, max);
        self.deliver(grants);
    }

    pub(super) fn gone(self: &Arc<Self>, id: u64) {
        let grants = self.pool.lock().gone(Instant::now(), id);
        self.deliver(grants);
    }

    /// Drops connections that were idle for too long.
    pub(super) fn expire(self: &Arc<Self>, now: Instant) {
        let grants = self.pool.lock().expire(now);
        self.deliver(grants);
    }

    /// Whoever waits may find room now.
    pub(super) fn look_again(self: &Arc<Self>, now: Instant) {
        let grants = self.pool.lock().look_again(now);
        self.deliver(grants);
    }

    pub(super) fn set_rules(&self, rules: &Rules) {
        self.pool.lock().room().set_rules(rules);
    }

    /// It is no longer one of its peer's.
    pub(super) fn retire(&self) {
        self.pool.lock().retire();
    }

    pub(super) fn set_unlearned(&self, unlearned: Duration) {
        self.pool.lock().set_unlearned(unlearned);
    }

    pub(super) fn set_spec(&self, spec: EndpointSpec) {
        if **self.spec.load() != spec {
            self.spec.store(Arc::new(spec));
        }
    }

    /// Keeps a failure to connect for `/state`, and lets discovery know that the address may be out of date.
    pub(super) fn note(&self, peer: &Peer, error: &ConnectError) {
        if is_its_doing(error.reason) {
            peer.doubts().notify_one();
        }
        *self.last_error.lock() = Some(LastError { what: error.detail.clone(), when: SystemTime::now() });
    }

    /// The TLS configuration, made by the first connection.
    pub(super) fn tls(&self, make: impl FnOnce() -> Arc<ClientConfig>) -> Arc<ClientConfig> {
        self.tls.get_or_init(make).clone()
    }

    /// Whether its connections are TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.get().is_some()
    }

    /// What `/state` shows.
    pub(super) fn state(&self, now: Instant) -> EndpointState {
        let mut pool = self.pool.lock();
        let (counts, limits) = (pool.counts(), limits(&self.limits, pool.room().endpoint_rule()));
        drop(pool);
        let error = self.last_error.lock().clone();
        EndpointState { limits, ..EndpointState::new(&self.spec(), &self.load, counts, error, now) }
    }
}

/// An exchange in flight at an endpoint; dropped without an answer it was cancelled and leaves no sample.
pub struct InFlight {
    endpoint: Arc<Endpoint>,
    began: Instant,
    answered: bool,
}

impl InFlight {
    /// The answer's head came at `now`, or the attempt failed; only the first call counts.
    pub fn answered(&mut self, now: Instant, ok: bool) {
        if !std::mem::replace(&mut self.answered, true) {
            self.endpoint.load.answered(now, now.saturating_duration_since(self.began), ok);
        }
    }

    /// There was no connection, for `reason`. Only what the endpoint did is a sample of it: that our own line was full or
    /// the request's time short says nothing about whom to call next.
    pub fn unconnected(mut self, now: Instant, reason: Reason) {
        if is_its_doing(reason) {
            self.answered(now, false);
        }
    }

    /// Where it is.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.load.end();
    }
}

impl From<Refusal> for ConnectError {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason, detail: refusal.detail }
    }
}

/// Whether a failure to connect tells something about the endpoint, and not only about us or the caller.
fn is_its_doing(reason: Reason) -> bool {
    matches!(reason, Reason::ConnectRefused | Reason::ConnectFailed | Reason::ConnectTimeout | Reason::TlsFailed)
}

/// `DeadlinePassed`, for whoever ran out of time before there was a connection.
pub(super) fn late(addr: &Addr) -> ConnectError {
    ConnectError {
        reason: Reason::DeadlinePassed,
        detail: format!("the deadline passed before there was a connection to {addr}"),
    }
}

/// The value, or `None` once `deadline` has passed.
pub(super) async fn within<T>(deadline: Deadline, future: impl Future<Output = T>) -> Option<T> {
    match deadline.instant() {
        Some(at) => tokio::time::timeout_at(at, future).await.ok(),
        None => Some(future.await),
    }
}

/// Runs a closure when dropped.
struct OnDrop<F: FnMut()>(F);

impl<F: FnMut()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of_val;

    use futures_util::FutureExt;
    use h2::server;

    use super::*;
    use crate::plan::door::Protocol;
    use crate::upstream::pool::Counts;
    use crate::upstream::rig::{ADDR, CONNECT, Rig, get, read_until, write};

    /// Told to connect; nothing happens until the test says so.
    fn dialling(rig: &Rig, want: Version) -> Dialling {
        let Turn::Now(Given::Connect(dialling)) = rig.endpoint.turn(Instant::now(), rig.peer.wish(want)) else {
            panic!("expected to be told to connect");
        };
        dialling
    }

    /// Waits in line with its own task; yields once so that it stands there.
    async fn waiting(rig: &Rig, deadline: Deadline) -> tokio::task::JoinHandle<Result<Lease, ConnectError>> {
        let (endpoint, peer) = (rig.endpoint.clone(), rig.peer.clone());
        let before = rig.peer.metrics().waiting.get();
        let handle = rig.upstreams.tasks.run(async move { endpoint.lease(&peer, Version::Http2, deadline).await });
        while rig.peer.metrics().waiting.get() == before {
            tokio::task::yield_now().await;
        }
        handle
    }

    /// Lets `dialling` succeed over a pipe to a server that only keeps the connection alive.
    async fn succeed(rig: &Rig, dialling: Dialling, builder: server::Builder) -> Lease {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        rig.upstreams.tasks.spawn(async move {
            let mut server: server::Connection<_, bytes::Bytes> = builder.handshake(theirs).await.unwrap();
            while server.accept().await.is_some() {}
        });
        dialling.run(&rig.peer, Deadline::NONE, async { Ok(Io::boxed(ours)) }).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_the_connection_that_is_being_opened() {
        let rig = Rig::new(Protocol::Http2);
        let dialling = dialling(&rig, Version::Http2);
        let (a, b) = (waiting(&rig, Deadline::NONE).await, waiting(&rig, Deadline::NONE).await);
        assert_eq!(rig.peer.metrics().waiting.get(), 2);
        let first = succeed(&rig, dialling, server::Builder::new()).await;
        let (a, b) = (a.await.unwrap().unwrap(), b.await.unwrap().unwrap());
        assert!(!first.reused() && a.reused() && b.reused());
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts { http2: 1, streams: 3, ..Counts::default() });
        assert_eq!((rig.peer.metrics().connects.get(), rig.peer.metrics().waiting.get()), (1, 0));
        drop((first, a, b));
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts { http2: 1, ..Counts::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_the_line_takes_nothing_along() {
        let rig = Rig::new(Protocol::Http2);
        let mut one = server::Builder::new();
        one.max_concurrent_streams(1);
        let first = succeed(&rig, dialling(&rig, Version::Http2), one).await;
        let second = dialling(&rig, Version::Http2);
        let (a, b) = (waiting(&rig, Deadline::NONE).await, waiting(&rig, Deadline::NONE).await);
        // The stream that comes free is handed to `a`, which is aborted before it runs.
        drop(first);
        a.abort();
        assert!(a.await.err().unwrap().is_cancelled());
        assert!(b.await.unwrap().unwrap().reused());
        drop(second);
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts { http2: 1, ..Counts::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_that_was_abandoned_is_taken_up_by_the_next_in_line() {
        let rig = Rig::new(Protocol::Http2);
        let dialling = dialling(&rig, Version::Http2);
        let next = waiting(&rig, Deadline::NONE).await;
        drop(dialling);
        // It dials in earnest, where nobody listens.
        let error = next.await.unwrap().err().unwrap();
        assert_eq!(error.reason, Reason::ConnectRefused);
        assert!(error.detail.contains(ADDR), "{error}");
        assert!(rig.endpoint.state(Instant::now()).last_error.unwrap().contains(ADDR));
        assert_eq!(rig.peer.metrics().connect_failures.get(), 1);
        // Whoever follows the peer's name is told, once.
        let told = || rig.peer.doubts().notified().now_or_never().is_some();
        assert!(told() && !told());
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_is_without_a_clock() {
        let rig = Rig::new(Protocol::Http2);
        let dialling = dialling(&rig, Version::Http2);
        let start = Instant::now();
        let late = waiting(&rig, Deadline::after(start, Some(CONNECT / 5))).await.await.unwrap().err().unwrap();
        assert_eq!((late.reason, start.elapsed()), (Reason::DeadlinePassed, CONNECT / 5));
        let full = waiting(&rig, Deadline::NONE).await.await.unwrap().err().unwrap();
        assert_eq!((full.reason, start.elapsed()), (Reason::Overloaded, CONNECT / 5 + CONNECT));
        let hung = dialling.run(&rig.peer, Deadline::NONE, std::future::pending()).await.err().unwrap();
        assert_eq!(hung.reason, Reason::ConnectTimeout);
        let deadline = Deadline::after(Instant::now(), Some(CONNECT / 2));
        let short = self::dialling(&rig, Version::Http2).run(&rig.peer, deadline, std::future::pending()).await;
        assert_eq!(short.err().unwrap().reason, Reason::DeadlinePassed);
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_counts_from_its_beginning_to_its_drop() {
        let rig = Rig::new(Protocol::Auto);
        let start = Instant::now();
        let mut exchange = rig.endpoint.begin(start);
        assert_eq!(rig.endpoint.load().in_flight(), 1);
        exchange.answered(start + Duration::from_millis(20), true);
        exchange.answered(start + Duration::from_secs(20), false);
        drop(exchange);
        drop(rig.endpoint.begin(start));
        assert_eq!(rig.endpoint.load().in_flight(), 0);
        let latency = rig.endpoint.load().latency(start).unwrap();
        assert!(latency.abs_diff(Duration::from_millis(20)) < Duration::from_millis(1), "{latency:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_the_endpoint_did_is_a_sample_of_it() {
        for reason in Reason::ALL {
            let rig = Rig::new(Protocol::Auto);
            rig.endpoint.begin(Instant::now()).unconnected(Instant::now(), *reason);
            let sampled = rig.endpoint.load().latency(Instant::now()).is_some();
            let its_own = ["connect_refused", "connect_failed", "connect_timeout", "tls_failed"];
            assert_eq!(sampled, its_own.contains(&reason.word()), "{reason:?}");
            assert_eq!(rig.endpoint.load().in_flight(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_reference_gone_closes_the_connections() {
        let rig = Rig::new(Protocol::Auto);
        let (lease, mut server) = rig.connect(Version::Http1).await;
        let (answer, _) = tokio::join!(lease.unwrap().send(get("/"), None), async {
            read_until(&mut server, "\r\n\r\n").await;
            write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        });
        drop(answer);
        let tasks = rig.upstreams.tasks.clone();
        drop(rig);
        tasks.idle().await;
    }

    #[tokio::test]
    async fn futures_stay_within_their_budget() {
        let rig = Rig::new(Protocol::Auto);
        let (lease, _server) = rig.connect(Version::Http1).await;
        let lease = lease.unwrap();
        let waiting = rig.endpoint.lease(&rig.peer, Version::Http1, Deadline::NONE);
        assert!(size_of_val(&waiting) <= 256, "lease: {}", size_of_val(&waiting));
        assert!(size_of_val(&lease) <= 96, "Lease: {}", size_of_val(&lease));
        let sending = lease.send(get("/"), None);
        assert!(size_of_val(&sending) <= 1152, "send: {}", size_of_val(&sending));
        let body = size_of::<crate::upstream::lease::AnswerBody>();
        assert!(body <= 256, "AnswerBody: {body}");
    }
}
