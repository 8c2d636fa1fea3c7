//! One address of a peer: its load, its connections, and what went wrong with it last.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::Dialling;
use super::http1::One;
use super::http2::Many;
use super::in_flight::InFlight;
use super::lease::{ConnectError, Dialled, Lease, ManyHold, OneHold, Version};
use super::mesh::Kept;
use super::peer::Peer;
use super::pool::{Bounds, Checkout, Grants, Offer, Pool, Waiter};
use super::room::{Home, Place, Room};
use super::roster::{Roster, Standing};
use super::state::{EndpointState, limits};
use crate::deadline::Deadline;
use crate::ids::Addr;
use crate::net::dial::dial_to;
use crate::plan::health::HealthRule;
use crate::plan::peer::EndpointSpec;
use crate::plan::rules::{EjectRule, Rules};
use crate::reason::Reason;
use crate::resilience::limit::{Limited, Limits};
use crate::resilience::load::Load;
use crate::resilience::outlier::Begun;
use crate::telemetry::metrics::Gauge;

mod limited;

/// The living state of one address of a peer.
pub struct Endpoint {
    addr: Addr,
    spec: ArcSwap<EndpointSpec>,
    load: Load,
    standing: Standing,
    home: Home,
    limits: Arc<Limits>,
    pool: Mutex<Pool<One, Many, Line>>,
    /// When it joined others that were there already; unset where it came with the first answer.
    joined: OnceLock<Instant>,
    /// Exchanges in flight at all endpoints of its peer; unset where nobody counts them.
    crowd: OnceLock<Arc<Gauge>>,
    /// TLS with sessions of its own, made when first needed.
    tls: OnceLock<Arc<ClientConfig>>,
    /// Mutual TLS with sessions of its own, as long as the identity in force is the one it was made of.
    mesh: Mutex<Option<Kept>>,
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
    pub(super) fn new(
        spec: EndpointSpec,
        now: Instant,
        unlearned: Duration,
        roster: &Arc<Roster>,
        home: Home,
        rules: &Rules,
    ) -> Arc<Self> {
        let limits = Arc::<Limits>::default();
        let room = Room::new(home.limits.clone(), limits.clone(), rules);
        Arc::new(Self {
            addr: spec.addr.clone(),
            spec: ArcSwap::from_pointee(spec),
            load: Load::new(now),
            standing: Standing::new(roster.clone()),
            pool: Mutex::new(Pool::new(Bounds::default(), unlearned).limited(room)),
            joined: OnceLock::new(),
            crowd: OnceLock::new(),
            home,
            limits,
            tls: OnceLock::new(),
            mesh: Mutex::default(),
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

    /// Said once, before anyone can pick it: what counts the exchanges of its whole peer, and since when it is there if
    /// others were there before.
    pub(super) fn introduce(&self, crowd: Arc<Gauge>, joined: Option<Instant>) {
        // Set twice it would keep the first, which is the same.
        let _ = self.crowd.set(crowd);
        if let Some(joined) = joined {
            let _ = self.joined.set(joined);
        }
    }

    /// Since when it is there, if others were there before.
    pub(super) fn joined(&self) -> Option<Instant> {
        self.joined.get().copied()
    }

    /// Whether its address is one of IPv6; `None` where it has no IP address.
    pub(super) fn is_ipv6(&self) -> Option<bool> {
        self.addr.tcp().map(|addr| addr.is_ipv6())
    }

    /// Its load.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Whether it is in the choice of its peer.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Gives it an exchange, whether it is in the choice or not; counted from now until the value is dropped.
    pub fn begin(self: &Arc<Self>, now: Instant) -> InFlight {
        self.in_flight(now, self.standing.begin(now))
    }

    /// Gives it an exchange for which it was chosen; `None` where it is ejected and another request was quicker to
    /// try it.
    pub(super) fn claim(self: &Arc<Self>, now: Instant, rule: Option<&EjectRule>) -> Option<InFlight> {
        let begun = self.standing.claim(now, rule).ok()?;
        Some(self.in_flight(now, begun))
    }

    fn in_flight(self: &Arc<Self>, now: Instant, begun: Option<Begun>) -> InFlight {
        InFlight::new(self.clone(), now, begun)
    }

    /// What a health check found at `now`, or why it failed; counts as `rule` says.
    pub fn checked(&self, now: Instant, found: Result<(), String>, rule: &HealthRule) {
        self.standing.checked(&self.addr, now, found, rule);
    }

    /// Its health is no longer checked: what was found no longer counts.
    pub fn unchecked(&self) {
        self.standing.unchecked();
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
    pub async fn dial(&self, peer: &Peer, deadline: Deadline) -> Result<Dialled, ConnectError> {
        let room = self.pool.lock().room().enter().then(|| Place::taken(&self.home, &self.limits));
        let Some(mut place) = room else { return Err(self.no_room(peer, "no connection may be made to")) };
        let (io, proof) = Box::pin(self.dial_raw(peer, deadline)).await?;
        place.connected();
        Ok(Dialled { io, place, proof })
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
                    return dialling.run(peer, deadline, dial_to(peer.to_app(), &self.addr)).await;
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
            // Where a limit of ours is reached, it is the limit that took the time.
            None if deadline.passed(Instant::now()) && !self.is_full() => Err(late(&self.addr)),
            None => Err(self.no_room(peer, "no connection became free in time to")),
        }
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

    /// So many more exchanges of its peer are in flight.
    pub(super) fn count(&self, n: i64) {
        if let Some(crowd) = self.crowd.get() {
            crowd.add(n);
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
        if one.is_closed() || !one.is_believed() {
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

    /// `age` is when the connection is to be replaced by a new one.
    pub(super) fn opened_many(
        self: &Arc<Self>,
        expected: Option<Version>,
        many: Many,
        max: usize,
        age: Option<Duration>,
    ) -> u64 {
        let now = Instant::now();
        let mut pool = self.pool.lock();
        let (id, grants) = pool.opened_many(now, expected, many, max);
        pool.replace_at(id, age.and_then(|age| now.checked_add(age)));
        drop(pool);
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

    /// Drops connections that were idle for too long, or whose end is not believed any more. Where one is past its age and in use, whoever calls this is to
    /// open another in its place.
    pub(super) fn expire(self: &Arc<Self>, now: Instant) -> Option<Dialling> {
        let mut pool = self.pool.lock();
        pool.retain(One::is_believed, Many::is_believed);
        let (grants, replacement) = (pool.expire(now), pool.replace(now));
        drop(pool);
        self.deliver(grants);
        // The pool has taken room for it.
        let place = || Place::taken(&self.home, &self.limits);
        replacement.map(|expected| Dialling::new(self.clone(), expected, place()))
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
        self.standing.set_member(false);
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

    /// What is kept for mutual TLS with it.
    pub(super) fn mesh(&self) -> &Mutex<Option<Kept>> {
        &self.mesh
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
        let told = (&self.load, &self.standing);
        EndpointState { limits, ..EndpointState::new(&self.spec(), told, counts, error, now) }
    }
}

/// Whether a failure to connect tells something about the endpoint, and not only about us or the caller.
pub(super) fn is_its_doing(reason: Reason) -> bool {
    matches!(reason, Reason::ConnectRefused | Reason::ConnectFailed | Reason::ConnectTimeout)
        || reason.is_tls_with_peer()
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
    use crate::net::io::Io;
    use crate::plan::door::Protocol;
    use crate::reason::Side;
    use crate::resilience::outlier::Seen;
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
    async fn a_tunnel_that_ends_makes_room_at_its_endpoint_at_once() {
        let rig = Rig::new(Protocol::Auto);
        let mut policy = (*rig.peer.policy()).clone();
        policy.rules.endpoint_limits.connections = Some(1);
        rig.peer.set_policy(Arc::new(policy));
        // As `Endpoint::dial` does.
        assert!(rig.endpoint.pool.lock().room().enter());
        let mut tunnel = Place::taken(&rig.endpoint.home, &rig.endpoint.limits);
        tunnel.connected();
        let start = Instant::now();
        let next = waiting(&rig, Deadline::NONE).await;
        drop(tunnel);
        // Nobody listens there.
        assert_eq!(next.await.unwrap().err().map(|error| error.reason), Some(Reason::ConnectRefused));
        assert_eq!(start.elapsed(), Duration::ZERO);
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
    async fn an_old_connection_serves_until_another_is_there_and_ends_with_its_streams() {
        let rig = Rig::new(Protocol::Http2);
        let first = succeed(&rig, dialling(&rig, Version::Http2), server::Builder::new()).await;
        let age = rig.peer.policy().connection_age.unwrap();
        tokio::time::advance(age.mul_f64(0.89)).await;
        assert!(rig.endpoint.expire(Instant::now()).is_none());
        tokio::time::advance(age.mul_f64(0.22)).await;
        let replacement = rig.endpoint.expire(Instant::now()).unwrap();
        let Turn::Now(Given::Many(meanwhile)) = rig.endpoint.turn(Instant::now(), Some(Version::Http2)) else {
            panic!("the old connection is to serve");
        };
        drop(succeed(&rig, replacement, server::Builder::new()).await);
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts { http2: 1, ..Counts::default() });
        assert_eq!(rig.peer.metrics().connections.get(), 2, "its streams hold it open");
        drop((first, meanwhile));
        while rig.peer.metrics().connections.get() > 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.peer.metrics().connects.get(), 2);
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
    async fn a_wait_in_our_own_line_is_not_held_against_the_endpoint() {
        let rig = Rig::new(Protocol::Http1);
        let mut policy = (*rig.peer.policy()).clone();
        policy.rules.endpoint_limits.connections = Some(1);
        rig.peer.set_policy(Arc::new(policy));
        let (held, _server) = rig.connect(Version::Http1).await;
        let mut waits = rig.endpoint.begin(Instant::now());
        let soon = Deadline::after(Instant::now(), Some(CONNECT / 5));
        let full = rig.endpoint.lease(&rig.peer, Version::Http1, soon).await.err().unwrap();
        assert_eq!(full.reason, Reason::LimitReached, "{full}");
        waits.failed(Instant::now(), Reason::DeadlinePassed);
        assert!(rig.endpoint.load().latency(Instant::now()).is_none());
        // Once it has a connection, it does wait for the endpoint.
        let mut waits = rig.endpoint.begin(Instant::now());
        waits.sent();
        tokio::time::advance(CONNECT).await;
        waits.failed(Instant::now(), Reason::DeadlinePassed);
        assert!(rig.endpoint.load().latency(Instant::now()).is_some_and(|latency| latency >= CONNECT));
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_counts_from_its_beginning_to_its_drop() {
        let rig = Rig::new(Protocol::Auto);
        let start = Instant::now();
        let mut exchange = rig.endpoint.begin(start);
        assert_eq!(rig.endpoint.load().in_flight(), 1);
        exchange.answered(start + Duration::from_millis(20), Seen::Well);
        exchange.answered(start + Duration::from_secs(20), Seen::ServerError);
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
            let its_own = ["connect_refused", "connect_failed", "connect_timeout"].contains(&reason.word());
            assert_eq!(sampled, its_own || reason.is_tls_with_peer(), "{reason:?}");
            assert_eq!(rig.endpoint.load().in_flight(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_on_our_side_is_no_sample_of_it() {
        for reason in Reason::ALL.iter().filter(|reason| **reason != Reason::DeadlinePassed) {
            let rig = Rig::new(Protocol::Auto);
            rig.endpoint.begin(Instant::now()).failed(Instant::now(), *reason);
            let sampled = rig.endpoint.load().latency(Instant::now()).is_some();
            assert_eq!(sampled, matches!(reason.side(), Side::Peer | Side::Network), "{reason:?}");
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
