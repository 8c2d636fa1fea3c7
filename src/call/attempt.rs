//! One attempt after another: pick an endpoint, connect to it, and judge whether a failure is followed by another try.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, Method, Request};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Failure;
use super::retry::Spare;
use super::trail::Trail;
use crate::condition::Condition;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::http::head;
use crate::http::mark::mark;
use crate::net::io::Io;
use crate::plan::peer::Addresses;
use crate::plan::rules::Rules;
use crate::reason::Reason;
use crate::resilience::outlier::Seen;
use crate::resilience::verdict::{self, Asking, Fate, Moment, Outcome, Skip, Verdict};
use crate::upstream::choice::Ask;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::lease::{Answer, ConnectError, Dialled, Lease, OnInformational, SendError, Version};
use crate::upstream::peer::{Discovery, Peer};
use crate::upstream::unread;

/// Endpoints that a request passes over because a limit of ours is reached there.
const MOST_FULL: usize = 32;

/// Connections tried while each turns out to be dead before anything was written to it.
const MOST_STALE: usize = 3;

/// How long a connection may take before one over the other address family is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// What to call and how.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// Whom.
    pub peer: &'a Arc<Peer>,
    /// By which rules.
    pub rules: &'a Rules,
    /// Whether the request came as a sidecar's further attempt.
    pub marked: bool,
    /// The version the caller speaks; used where the peer's protocol is `auto` and no ALPN decides.
    pub version: Version,
    /// Which of its endpoints will do.
    pub ask: Ask<'a>,
    /// When the answer's head must be there.
    pub deadline: Deadline,
    /// When the request's head was complete; the first attempt begins then.
    pub now: Instant,
    /// Whom to tell of informational answers.
    pub informational: Option<&'a OnInformational>,
}

impl<'a> Call<'a> {
    /// A call in HTTP/1 without a deadline.
    pub fn plain(peer: &'a Arc<Peer>, rules: &'a Rules, now: Instant) -> Self {
        let (version, deadline) = (Version::Http1, Deadline::NONE);
        Self { peer, rules, marked: false, version, ask: Ask::default(), deadline, now, informational: None }
    }
}

/// Waits for an answer's head until `deadline`.
///
/// # Errors
/// `DeadlinePassed`, or what the answer itself failed by.
pub async fn in_time<T>(
    deadline: Deadline,
    answer: impl Future<Output = Result<T, Failure>> + Unpin,
) -> Result<T, Failure> {
    match deadline.instant() {
        // No timer is made where no limit was asked for.
        None => answer.await,
        Some(at) => tokio::time::timeout_at(at, answer).await.unwrap_or_else(|_| {
            Err(Failure::new(Reason::DeadlinePassed, "no answer began before the request's deadline"))
        }),
    }
}

/// What may still be tried, for requests and for tunnels.
pub struct Tries<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) now: Instant,
    /// When the attempt that is being made is to be over.
    pub(super) until: Deadline,
    pub(super) tried: SmallVec<[Arc<Endpoint>; 2]>,
    pub(super) attempts: u32,
    stale: usize,
}

impl<'a> Tries<'a> {
    /// Nothing was tried yet; the first attempt begins at the call's own `now`.
    pub fn new(call: &'a Call<'a>) -> Self {
        // A clock read is as dear as a small allocation: the first attempt, which is nearly always the last, needs none.
        call.peer.budget().deposit(call.now);
        Self::anew(call)
    }

    /// As [`Tries::new`], for a request that was counted before.
    pub fn anew(call: &'a Call<'a>) -> Self {
        Self { now: call.now, until: call.deadline, tried: SmallVec::new(), attempts: 0, stale: 0, call }
    }

    /// A connection for one request.
    ///
    /// # Errors
    /// Why no endpoint could be reached; `trail` tells of the last one.
    pub async fn lease(&mut self, trail: &mut Trail, version: Version) -> Result<Lease, Failure> {
        let peer = self.call.peer;
        let lease = |endpoint: Arc<Endpoint>, until| async move { endpoint.lease(peer, version, until).await };
        let lease = self.connect(trail, lease).await?;
        if let Some(in_flight) = &mut trail.in_flight {
            in_flight.sent();
        }
        trail.reused = lease.reused();
        trail.version = Some(lease.version());
        trail.proof = lease.proof().cloned();
        Ok(lease)
    }

    /// A stream of bytes of its own, for a tunnel. It leaves no sample: its peer answers nothing.
    ///
    /// # Errors
    /// As [`Tries::lease`].
    pub async fn dial(&mut self, trail: &mut Trail) -> Result<Io, Failure> {
        let peer = self.call.peer;
        let dial = |endpoint: Arc<Endpoint>, until| async move { endpoint.dial(peer, until).await };
        let Dialled { io, place, proof } = self.connect(trail, dial).await?;
        (trail.place, trail.proof) = (Some(place), proof);
        if let Some(in_flight) = trail.in_flight.take() {
            in_flight.connected(Instant::now());
        }
        Ok(io)
    }

    /// When the attempt that is being made has to be answered, where the rule bounds it more than the deadline does.
    pub fn attempt_ends(&self) -> Option<Instant> {
        self.ends_at(self.until)
    }

    /// As [`Tries::attempt_ends`], of an attempt that is to be over at `until`.
    pub(super) fn ends_at(&self, until: Deadline) -> Option<Instant> {
        let ends = self.call.rules.retry.attempt_timeout.and(until.instant());
        ends.filter(|_| until != self.call.deadline)
    }

    /// The request for another attempt after one without an answer.
    ///
    /// # Errors
    /// What it failed by, where there is no other.
    pub async fn after_failure(
        &mut self,
        trail: &mut Trail,
        error: SendError,
        method: &Method,
        spare: Option<&Spare>,
    ) -> Result<Request<Body>, Failure> {
        self.now = Instant::now();
        let (stale, outcome) = (self.was_stale(&error), outcome(&error));
        let SendError { reason, unsent, detail, .. } = error;
        if stale {
            trail.unmade();
            return unsent.ok_or_else(|| Failure::new(reason, detail));
        }
        trail.failed(reason);
        let replayable = unsent.is_some() || spare.is_some_and(Spare::is_whole);
        let Some(pause) = self.judge(trail, &outcome, method, replayable) else {
            trail.leave(method, || unsent.or_else(|| spare.and_then(Spare::again)));
            return Err(Failure::new(reason, detail));
        };
        self.rest(pause).await;
        let request = unsent.or_else(|| spare.and_then(Spare::again));
        let mut request = request.ok_or_else(|| Failure::new(reason, detail))?;
        mark(request.headers_mut(), self.attempts + 1);
        Ok(request)
    }

    /// The request for another attempt after one whose time was over.
    ///
    /// # Errors
    /// `AttemptTimeout`, where there is no other.
    pub async fn after_timeout(
        &mut self,
        trail: &mut Trail,
        method: &Method,
        spare: Option<&Spare>,
    ) -> Result<Request<Body>, Failure> {
        self.now = Instant::now();
        trail.failed(Reason::AttemptTimeout);
        let failure = || Failure::new(Reason::AttemptTimeout, "no answer began within `timeout.attempt`");
        let whole = spare.is_some_and(Spare::is_whole);
        let Some(pause) = self.judge(trail, &Outcome::TimedOut, method, whole) else {
            trail.leave(method, || spare.and_then(Spare::again));
            return Err(failure());
        };
        self.rest(pause).await;
        let mut request = spare.and_then(Spare::again).ok_or_else(failure)?;
        mark(request.headers_mut(), self.attempts + 1);
        Ok(request)
    }

    /// The request for another attempt in place of an answer that asks for one; else the answer itself.
    pub async fn after_answer(
        &mut self,
        trail: &mut Trail,
        mut answer: Answer,
        spare: &Spare,
    ) -> Result<Request<Body>, Answer> {
        self.now = Instant::now();
        let trailers = self.early_trailers(&mut answer);
        let status = answer.status();
        let outcome = Outcome::Answered { status, fields: answer.headers(), trailers: trailers.as_ref() };
        let Some(pause) = self.judge(trail, &outcome, spare.method(), spare.is_whole()) else { return Err(answer) };
        let Some(mut request) = spare.again() else { return Err(answer) };
        if let Some(mut in_flight) = trail.in_flight.take() {
            let code = verdict::grpc_code(answer.headers()).or_else(|| trailers.as_ref().and_then(verdict::grpc_code));
            in_flight.answered(self.now, Seen::answer(status, code));
        }
        unread::discard(self.call.peer, answer);
        self.rest(pause).await;
        mark(request.headers_mut(), self.attempts + 1);
        Ok(request)
    }

    /// The answer to a request of which nothing is kept to send it again; `trail` knows why, where the rule names it.
    pub(super) fn passed_on(&self, trail: &mut Trail, mut answer: Answer, method: &Method) -> Answer {
        let trailers = self.early_trailers(&mut answer);
        let outcome =
            Outcome::Answered { status: answer.status(), fields: answer.headers(), trailers: trailers.as_ref() };
        // It cannot be repeated, so this takes nothing from the budget.
        let never = self.judge(trail, &outcome, method, false);
        debug_assert!(never.is_none(), "nothing is there to be sent again");
        answer
    }

    /// A gRPC answer's trailers, if they are already there and the rule may name what they say.
    pub(super) fn early_trailers(&self, answer: &mut Answer) -> Option<HeaderMap> {
        let early = self.call.rules.retry.on.looks_at_grpc() && head::is_grpc_call(answer.headers());
        early.then(|| answer.body_mut().early_trailers().cloned()).flatten()
    }

    /// Whether the connection had died while nobody used it: then no attempt was made, and none is counted.
    pub(super) fn was_stale(&mut self, error: &SendError) -> bool {
        let unused = error.unsent.is_some() && error.reused && error.reason != Reason::RefusedStream;
        let stale = unused && self.stale < MOST_STALE;
        if stale {
            self.stale += 1;
            self.attempts = self.attempts.saturating_sub(1);
            self.call.peer.metrics().reconnects.inc();
        }
        stale
    }

    /// How long to wait before another attempt, or `None` if there is to be none; `trail` knows why then.
    fn judge(&self, trail: &mut Trail, outcome: &Outcome<'_>, method: &Method, replayable: bool) -> Option<Duration> {
        trail.doubtful |= verdict::may_be_done(outcome);
        let Call { peer, rules, marked, deadline, .. } = *self.call;
        let asking = Asking { method, attempts: self.attempts, replayable, marked, deadline };
        let at = Moment { now: self.now, wall: SystemTime::now(), roll: fastrand::u64(..) };
        match verdict::judge(&rules.retry, &asking, outcome, peer.budget(), at) {
            Verdict::Retry { after, because } => {
                // The place of an earlier one first: a request has one at most.
                trail.retrying = None;
                match peer.admit_retry(&rules.limits) {
                    Ok(held) => trail.retrying = Some(held),
                    Err(_) => {
                        peer.budget().give_back(self.now);
                        trail.skipped = Some(Skip::LimitReached);
                        peer.metrics().retries_skipped.inc();
                        return None;
                    }
                }
                peer.metrics().retries.inc();
                let elsewhere = peer.endpoints().len() > self.tried.len() + 1;
                // Nothing was done there, and another endpoint has nothing to recover from.
                let at_once = elsewhere && matches!(because, Condition::ConnectFailure | Condition::ResetBeforeRequest);
                Some(if at_once { Duration::ZERO } else { after })
            }
            Verdict::GiveUp(skip) => {
                if skip != Skip::NotNamed && rules.retry.attempts > 1 {
                    trail.skipped = Some(skip);
                    peer.metrics().retries_skipped.inc();
                }
                None
            }
        }
    }

    async fn rest(&mut self, pause: Duration) {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
            self.now = Instant::now();
        }
    }

    /// Whether the peer may have another endpoint than the last one, which is full. One that is met again means that
    /// there is none: what is left is ejected, takes no traffic or is not of the subset.
    fn may_pass_over(&self, trail: &Trail) -> bool {
        let again = |last: &Arc<Endpoint>| self.tried.iter().any(|tried| Arc::ptr_eq(tried, last));
        let others = self.call.peer.endpoints().len() > self.tried.len() + 1;
        others && self.tried.len() < MOST_FULL && !trail.endpoint.as_ref().is_some_and(again)
    }

    /// The endpoint was tried: others come first from now on.
    pub(super) fn tried(&mut self, endpoint: Option<Arc<Endpoint>>) {
        let known = |one: &Arc<Endpoint>| self.tried.iter().any(|tried| Arc::ptr_eq(tried, one));
        if let Some(endpoint) = endpoint.filter(|one| !known(one)) {
            self.tried.push(endpoint);
        }
    }

    /// Picks the endpoint of the next attempt; those that were tried come last.
    pub(super) fn begin(&mut self, trail: &mut Trail) -> Result<Arc<Endpoint>, Failure> {
        if self.attempts > 0 {
            self.tried(trail.endpoint.clone());
        }
        let begun = self.call.peer.begin(self.call.ask, self.now, &self.tried);
        let in_flight = begun.ok_or_else(|| no_endpoint(self.call.peer, self.call.ask))?;
        let endpoint = in_flight.endpoint().clone();
        self.attempts += 1;
        self.until = self.attempt_until();
        trail.begin(&endpoint, in_flight);
        Ok(endpoint)
    }

    /// When an attempt that begins now is to be over.
    pub(super) fn attempt_until(&self) -> Deadline {
        Deadline::after(self.now, self.call.rules.retry.attempt_timeout).min(self.call.deadline)
    }

    /// Connects to an endpoint, and to another one where the first cannot be reached.
    async fn connect<T, F>(
        &mut self,
        trail: &mut Trail,
        connect: impl Fn(Arc<Endpoint>, Deadline) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        loop {
            let endpoint = self.begin(trail)?;
            let mut connecting = std::pin::pin!(connect(endpoint, self.until));
            let at_once = futures_util::poll!(connecting.as_mut());
            if !matches!(&at_once, Poll::Ready(Err(error)) if is_of_our_limits(error)) {
                trail.made(self.call.peer);
            }
            let connected = match at_once {
                Poll::Ready(connected) => connected,
                // What takes its time is boxed, so that a connection that is at hand costs nothing.
                Poll::Pending => Box::pin(self.patiently(trail, connecting, &connect)).await,
            };
            let error = match connected {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            Box::pin(self.after_unconnected(trail, error)).await?;
        }
    }

    /// Waits for the next attempt where no connection was made.
    pub(super) async fn after_unconnected(&mut self, trail: &mut Trail, error: ConnectError) -> Result<(), Failure> {
        let begun = std::mem::replace(&mut self.now, Instant::now());
        let reason = self.unconnected_by(&error);
        trail.unconnected(self.now, reason);
        let patient = self.now.saturating_duration_since(begun) < self.call.peer.policy().connect_timeout;
        if reason == Reason::LimitReached && patient && self.may_pass_over(trail) {
            // An endpoint that a limit of ours keeps from was not tried.
            self.attempts = self.attempts.saturating_sub(1);
            self.tried(trail.endpoint.clone());
            return Ok(());
        }
        let outcome = Outcome::Failed { reason, fate: Fate::Unsent };
        // Whatever the method: it never left.
        match self.judge(trail, &outcome, &Method::GET, true) {
            Some(pause) => {
                self.rest(pause).await;
                Ok(())
            }
            None => Err(Failure::new(reason, error.detail)),
        }
    }

    /// Why there is no connection: what was over may be the attempt's time, not the caller's.
    pub(super) fn unconnected_by(&self, error: &ConnectError) -> Reason {
        let cut = error.reason == Reason::DeadlinePassed && !self.call.deadline.passed(self.now);
        if cut { Reason::ConnectTimeout } else { error.reason }
    }

    /// Waits for a connection. If it takes too long and the peer has addresses of the other family, one of them is
    /// tried beside it, and the first that succeeds is used (RFC 8305 §5).
    async fn patiently<T, F>(
        &mut self,
        trail: &mut Trail,
        mut first: Pin<&mut F>,
        connect: &impl Fn(Arc<Endpoint>, Deadline) -> F,
    ) -> Result<T, ConnectError>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        if let Ok(connected) = tokio::time::timeout(STAGGER, first.as_mut()).await {
            return connected;
        }
        let Some(other) = trail.endpoint.as_ref().and_then(|slow| self.of_other_family(slow)) else {
            return first.await;
        };
        let mut beside = Trail::default();
        self.attempts += 1;
        trail.made(self.call.peer);
        beside.begin(&other, other.begin(Instant::now()));
        let mut second = std::pin::pin!(connect(other, self.until));
        let error = tokio::select! {
            biased;
            connected = first.as_mut() => match connected {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            },
            connected = second.as_mut() => match connected {
                Ok(connected) => {
                    trail.overtaken(beside);
                    return Ok(connected);
                }
                Err(error) => {
                    beside.unconnected(Instant::now(), error.reason);
                    self.tried(beside.endpoint);
                    return first.await;
                }
            },
        };
        match second.await {
            Ok(connected) => {
                trail.overtaken(beside);
                Ok(connected)
            }
            Err(late) => {
                beside.unconnected(Instant::now(), late.reason);
                self.tried(beside.endpoint);
                Err(error)
            }
        }
    }

    /// An endpoint that was not tried and whose address is of the IP family that `slow` is not of.
    fn of_other_family(&self, slow: &Endpoint) -> Option<Arc<Endpoint>> {
        self.call.peer.pick_beside(slow, self.call.ask, Instant::now(), &self.tried)
    }
}

/// Whether a limit of ours kept an attempt from its endpoint: told at once, it means that none was made.
pub(super) fn is_of_our_limits(error: &ConnectError) -> bool {
    matches!(error.reason, Reason::LimitReached | Reason::Overloaded)
}

/// What is known of a request that got no answer.
pub(super) fn outcome(error: &SendError) -> Outcome<'static> {
    let fate = match (&error.unsent, error.unprocessed) {
        (Some(_), _) => Fate::Unsent,
        (None, true) => Fate::Unprocessed,
        (None, false) => Fate::Unknown,
    };
    Outcome::Failed { reason: error.reason, fate }
}

/// Why a peer has no endpoint, as far as discovery knows.
pub fn no_endpoint(peer: &Peer, ask: Ask<'_>) -> Failure {
    let name = peer.name();
    let others = peer.endpoints().len();
    if let Some(subset) = ask.subset.filter(|_| others > 0) {
        let facts: Vec<String> = subset.wanted.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let facts = facts.join(", ");
        return Failure::new(
            Reason::NoEndpoint,
            format!("peer {name} has no endpoint with {facts} among its {others}; `otherwise: any` would use them"),
        );
    }
    match peer.discovery() {
        Discovery::Failed { why } | Discovery::Stale { why, .. } => {
            let asked_dns = !matches!(peer.source().addresses, Addresses::File { .. });
            let reason = if asked_dns { Reason::DnsFailed } else { Reason::NoEndpoint };
            Failure::new(reason, format!("peer {name} has no endpoint: {why}"))
        }
        Discovery::Empty { why } => Failure::new(Reason::NoEndpoint, format!("peer {name} has no endpoint: {why}")),
        Discovery::Pending => Failure::new(Reason::NoEndpoint, format!("peer {name} is still being looked up")),
        Discovery::Ready => Failure::new(Reason::NoEndpoint, format!("peer {name} has no endpoint")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::tasks::Tasks;
    use crate::plan::door::Protocol;
    use crate::plan::peer::{Balance, EndpointSpec, PeerKind, PeerPlan, PeerSource};
    use crate::reason::Reason;
    use crate::upstream::adhoc::default_policy;
    use crate::upstream::world::Upstreams;

    const V6: &str = "[::1]:1";
    const V4: &str = "127.0.0.1:1";

    fn peer(addrs: &[&str]) -> Arc<Peer> {
        let specs = addrs.iter().map(|addr| EndpointSpec::bare(addr.parse().unwrap())).collect();
        let mut policy = default_policy();
        policy.balance = Balance::RoundRobin;
        let plan = PeerPlan {
            name: crate::ids::PeerName::new("payments"),
            kind: PeerKind::Named,
            source: PeerSource {
                addresses: Addresses::Static(specs),
                protocol: Protocol::Auto,
                tls: None,
                mtls: None,
                to_app: None,
            },
            policy: Arc::new(policy),
            routes: crate::plan::peer::Routes::default(),
        };
        let upstreams = Upstreams::new(Arc::default(), Tasks::default());
        Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap()
    }

    /// How an address behaves: after how many milliseconds it accepts, or refuses.
    type Manners = (&'static str, u64, bool);

    /// Which address was connected to, or why none, after how many milliseconds and attempts.
    async fn connect(peer: &Arc<Peer>, manners: &[Manners]) -> (Result<String, Reason>, u128, u32) {
        let (start, mut trail) = (Instant::now(), Trail::default());
        let rules = Rules::default();
        let connected = Tries::new(&Call::plain(peer, &rules, start))
            .connect(&mut trail, |endpoint, _| async move {
                let (_, wait, accepts) =
                    *manners.iter().find(|(addr, ..)| *addr == endpoint.addr().to_string()).unwrap();
                tokio::time::sleep(Duration::from_millis(wait)).await;
                let error = ConnectError { reason: Reason::ConnectRefused, detail: String::new() };
                if accepts { Ok(endpoint.addr().to_string()) } else { Err(error) }
            })
            .await;
        if let Ok(addr) = &connected {
            assert_eq!(*addr, trail.endpoint.as_ref().unwrap().addr().to_string());
            assert!(Arc::ptr_eq(trail.in_flight.as_ref().unwrap().endpoint(), trail.endpoint.as_ref().unwrap()));
        }
        assert_eq!(u64::from(trail.attempts), peer.metrics().attempts.get());
        (connected.map_err(|failure| failure.reason), start.elapsed().as_millis(), trail.attempts)
    }

    #[tokio::test(start_paused = true)]
    async fn a_family_that_hangs_is_passed_by() {
        const HANGS: u64 = 1_000_000;
        type Row = ([Manners; 2], Result<&'static str, Reason>, u128, u32);
        let table: &[Row] = &[
            ([(V6, 0, true), (V4, 0, true)], Ok(V6), 0, 1),
            ([(V6, 249, true), (V4, 0, true)], Ok(V6), 249, 1),
            ([(V6, HANGS, true), (V4, 20, true)], Ok(V4), 270, 2),
            ([(V6, 300, true), (V4, 100, true)], Ok(V6), 300, 2),
            ([(V6, 300, false), (V4, 100, true)], Ok(V4), 350, 2),
            ([(V6, 300, true), (V4, 10, false)], Ok(V6), 300, 2),
            ([(V6, 300, false), (V4, 10, false)], Err(Reason::ConnectRefused), 300, 2),
            ([(V6, 300, false), (V4, 100, false)], Err(Reason::ConnectRefused), 350, 2),
            // Refused at once, the other is tried at once.
            ([(V6, 5, false), (V4, 5, true)], Ok(V4), 10, 2),
        ];
        for (manners, expected, took, attempts) in table {
            // Round robin begins with the first.
            let got = connect(&peer(&[V6, V4]), manners).await;
            assert_eq!(got, ((*expected).map(str::to_owned), *took, *attempts), "{manners:?}");
        }
    }

    /// A call to a peer whose every endpoint is full by a limit of ours: how often one was asked for a connection.
    async fn full_everywhere(peer: &Arc<Peer>) -> usize {
        let asked = std::cell::Cell::new(0);
        let (rules, mut trail) = (Rules::default(), Trail::default());
        let connected = Tries::new(&Call::plain(peer, &rules, Instant::now()))
            .connect(&mut trail, |_, _| {
                asked.set(asked.get() + 1);
                assert!(asked.get() < 1000, "it goes round for ever");
                async { Err::<(), _>(ConnectError { reason: Reason::LimitReached, detail: String::new() }) }
            })
            .await;
        assert_eq!(connected.unwrap_err().reason, Reason::LimitReached);
        assert_eq!((trail.attempts, peer.metrics().attempts.get()), (0, 0), "none was made");
        asked.get()
    }

    #[tokio::test(start_paused = true)]
    async fn where_every_endpoint_is_full_each_is_asked_once() {
        let spec = |port: u16| EndpointSpec::bare(std::net::SocketAddr::from(([127, 0, 0, 1], port)).into());
        assert_eq!(full_everywhere(&peer(&[V4, "127.0.0.2:1", "127.0.0.3:1"])).await, 3);
        // One that takes no traffic is none to go to.
        let idle = peer(&[]);
        idle.update(vec![spec(1), EndpointSpec { weight: 0, ..spec(2) }]);
        assert_eq!(full_everywhere(&idle).await, 2);
        // Nor is one that is ejected.
        let ill = peer(&[V4, "127.0.0.2:1"]);
        for _ in 0..10 {
            ill.endpoints().all()[1].begin(Instant::now()).answered(Instant::now(), Seen::ServerError);
        }
        assert_eq!(full_everywhere(&ill).await, 2);
        // A request does not go through thousands of them.
        let many = peer(&[]);
        many.update((1..=5000).map(spec).collect());
        assert!(full_everywhere(&many).await <= MOST_FULL + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_of_one_family_is_waited_for() {
        let other = "127.0.0.2:1";
        let got = connect(&peer(&[V4, other]), &[(V4, 900, true), (other, 900, true)]).await;
        assert_eq!((got.0.is_ok(), got.1, got.2), (true, 900, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_overtaken_is_avoided_by_the_next_call() {
        let peer = peer(&[V6, V4]);
        let mut policy = (*peer.policy()).clone();
        policy.balance = Balance::PeakEwma;
        peer.set_policy(Arc::new(policy));
        let manners = [(V6, 1_000_000, true), (V4, 0, true)];
        let mut slow = 0;
        for _ in 0..20 {
            let (start, mut trail) = (Instant::now(), Trail::default());
            let rules = Rules::default();
            let call = Call::plain(&peer, &rules, start);
            let tries = &mut Tries::new(&call);
            let connected = tries.connect(&mut trail, |endpoint, _| async move {
                let v6 = endpoint.addr().to_string() == V6;
                tokio::time::sleep(Duration::from_millis(manners[usize::from(!v6)].1)).await;
                Ok(())
            });
            connected.await.unwrap();
            trail.in_flight.take().unwrap().answered(Instant::now(), crate::resilience::outlier::Seen::Well);
            slow += u32::from(start.elapsed() >= STAGGER);
        }
        assert!(slow <= 1, "{slow}");
    }
}
