//! Attempts: pick an endpoint, lease a connection, send; again only where provably nothing was sent.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::Request;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::Failure;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::net::io::Io;
use crate::plan::peer::Addresses;
use crate::reason::Reason;
use crate::upstream::endpoint::{Endpoint, InFlight};
use crate::upstream::lease::{Answer, ConnectError, Lease, OnInformational, SendError, Version};
use crate::upstream::peer::{Discovery, Peer};
use crate::upstream::room::Place;

/// Endpoints tried while none can be connected to.
const MOST_ENDPOINTS: usize = 2;

/// Connections tried while each turns out to be dead before anything was written to it.
const MOST_STALE: usize = 3;

/// How long a connection may take before one over the other address family is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);

/// What to call and how.
pub struct Call<'a> {
    /// Whom.
    pub peer: &'a Arc<Peer>,
    /// The version the caller speaks; used where the peer's protocol is `auto` and no ALPN decides.
    pub version: Version,
    /// When the answer's head must be there.
    pub deadline: Deadline,
    /// When the request's head was complete; the first attempt begins then.
    pub now: Instant,
    /// Whom to tell of informational answers.
    pub informational: Option<&'a OnInformational>,
}

/// What a call did so far, kept up to date so that a cancelled one can still be told of.
#[derive(Default)]
pub struct Trail {
    /// The endpoint of the last attempt.
    pub endpoint: Option<Arc<Endpoint>>,
    /// Its share in the load, until it is answered.
    pub in_flight: Option<InFlight>,
    /// A tunnel's place among the connections, until its end.
    pub place: Option<Place>,
    /// Attempts made.
    pub attempts: u32,
    /// Whether the last attempt used a kept-alive connection.
    pub reused: bool,
    /// The version spoken to the peer.
    pub version: Option<Version>,
}

/// Calls the peer and returns its answer's head, with the body to come.
///
/// # Errors
/// Why there is no answer; `trail` tells how far it came.
pub async fn call(call: &Call<'_>, request: Request<Body>, trail: &mut Trail) -> Result<Answer, Failure> {
    // Pinned here: a future of this size is not worth moving.
    let attempts = std::pin::pin!(attempts(call, request, trail));
    in_time(call.deadline, attempts).await
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

async fn attempts(call: &Call<'_>, mut request: Request<Body>, trail: &mut Trail) -> Result<Answer, Failure> {
    // A clock read is as dear as a small allocation: the first attempt, which is nearly always the last, needs none.
    let mut tries = Tries::new(call.peer, call.now);
    loop {
        let lease = tries.lease(trail, call.version, call.deadline).await?;
        // hyper's HTTP/1 server cannot send informational answers on: to be told of them only to count them would cost
        // each request a callback, a fiftieth of all that is done for it.
        let deaf = call.version == Version::Http1 && lease.version() == Version::Http1;
        let informational = call.informational.filter(|_| !deaf).cloned();
        match lease.send(request, informational).await {
            Ok(answer) => return Ok(answer),
            Err(error) => request = tries.again(trail, error)?,
        }
    }
}

/// What may still be tried, for requests and for tunnels.
pub struct Tries<'a> {
    peer: &'a Arc<Peer>,
    now: Instant,
    unreachable: SmallVec<[Arc<Endpoint>; MOST_ENDPOINTS]>,
    stale: usize,
}

impl<'a> Tries<'a> {
    /// Nothing of `peer` was tried yet; the first attempt begins at `now`.
    pub fn new(peer: &'a Arc<Peer>, now: Instant) -> Self {
        Self { peer, now, unreachable: SmallVec::new(), stale: 0 }
    }

    /// A connection for one request.
    ///
    /// # Errors
    /// Why no endpoint could be reached; `trail` tells of the last one.
    pub async fn lease(&mut self, trail: &mut Trail, version: Version, deadline: Deadline) -> Result<Lease, Failure> {
        let peer = self.peer;
        let lease = |endpoint: Arc<Endpoint>| async move { endpoint.lease(peer, version, deadline).await };
        let lease = self.connect(trail, lease).await?;
        trail.reused = lease.reused();
        trail.version = Some(lease.version());
        Ok(lease)
    }

    /// A stream of bytes of its own, for a tunnel. It leaves no sample: its peer answers nothing.
    ///
    /// # Errors
    /// As [`Tries::lease`].
    pub async fn dial(&mut self, trail: &mut Trail, deadline: Deadline) -> Result<Io, Failure> {
        let peer = self.peer;
        let dial = |endpoint: Arc<Endpoint>| async move { endpoint.dial(peer, deadline).await };
        let (io, place) = self.connect(trail, dial).await?;
        trail.place = Some(place);
        trail.in_flight = None;
        Ok(io)
    }

    /// The request, where provably nothing of it was sent and it may be sent again.
    ///
    /// # Errors
    /// What it failed by.
    pub fn again(&mut self, trail: &mut Trail, error: SendError) -> Result<Request<Body>, Failure> {
        match error {
            SendError { unsent: Some(unsent), .. } if self.stale < MOST_STALE => {
                self.stale += 1;
                self.now = Instant::now();
                self.peer.metrics().reconnects.inc();
                Ok(unsent)
            }
            error => {
                trail.failed();
                Err(Failure::new(error.reason, error.detail))
            }
        }
    }

    /// Connects to an endpoint, and to another one where the first cannot be reached.
    async fn connect<T, F>(&mut self, trail: &mut Trail, connect: impl Fn(Arc<Endpoint>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, ConnectError>>,
    {
        loop {
            let endpoint = self.pick().ok_or_else(|| no_endpoint(self.peer))?;
            trail.begin(self.peer, &endpoint, endpoint.begin(self.now));
            let mut connecting = std::pin::pin!(connect(endpoint));
            let connected = match futures_util::poll!(connecting.as_mut()) {
                Poll::Ready(connected) => connected,
                // What takes its time is boxed, so that a connection that is at hand costs nothing.
                Poll::Pending => Box::pin(self.patiently(trail, connecting, &connect)).await,
            };
            let error = match connected {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            self.now = Instant::now();
            trail.unconnected(self.now, error.reason);
            self.unreachable.extend(trail.endpoint.clone());
            // An endpoint that a limit of ours keeps from was not tried: all others may be.
            let enough = error.reason != Reason::LimitReached && self.unreachable.len() >= MOST_ENDPOINTS;
            if enough || self.pick().is_none() {
                return Err(Failure::new(error.reason, error.detail));
            }
        }
    }

    /// Waits for a connection. If it takes too long and the peer has addresses of the other family, one of them is
    /// tried beside it, and the first that succeeds is used (RFC 8305 §5).
    async fn patiently<T, F>(
        &mut self,
        trail: &mut Trail,
        mut first: Pin<&mut F>,
        connect: &impl Fn(Arc<Endpoint>) -> F,
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
        trail.attempts += 1;
        beside.begin(self.peer, &other, other.begin(Instant::now()));
        let mut second = std::pin::pin!(connect(other));
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
                    self.unreachable.extend(beside.endpoint);
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
                self.unreachable.extend(beside.endpoint);
                Err(error)
            }
        }
    }

    /// An endpoint that was not found unreachable.
    fn pick(&self) -> Option<Arc<Endpoint>> {
        let picked = self.peer.pick(self.now, &self.unreachable)?;
        let tried = self.unreachable.iter().any(|tried| Arc::ptr_eq(tried, &picked));
        (!tried).then_some(picked)
    }

    /// An endpoint whose address is of the IP family that `slow` is not of.
    fn of_other_family(&self, slow: &Endpoint) -> Option<Arc<Endpoint>> {
        let family = |endpoint: &Endpoint| endpoint.addr().tcp().map(|addr| addr.is_ipv6());
        let (slow, all) = (family(slow)?, self.peer.endpoints());
        let same: Vec<_> = all.all().iter().filter(|one| family(one) != Some(!slow)).cloned().collect();
        let picked = self.peer.pick(Instant::now(), &same)?;
        let tried = self.unreachable.iter().any(|tried| Arc::ptr_eq(tried, &picked));
        (family(&picked) == Some(!slow) && !tried).then_some(picked)
    }
}

impl Trail {
    /// Another attempt began, at `endpoint`.
    fn begin(&mut self, peer: &Peer, endpoint: &Arc<Endpoint>, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
        self.endpoint = Some(endpoint.clone());
        self.attempts += 1;
        peer.metrics().attempts.inc();
    }

    /// The attempt failed.
    fn failed(&mut self) {
        if let Some(mut in_flight) = self.in_flight.take() {
            in_flight.answered(Instant::now(), false);
        }
    }

    /// There was no connection, for `reason`.
    fn unconnected(&mut self, now: Instant, reason: Reason) {
        if let Some(in_flight) = self.in_flight.take() {
            in_flight.unconnected(now, reason);
        }
    }

    /// An attempt that began later was faster: the earlier one counts as failed, so that the next call avoids it.
    fn overtaken(&mut self, by: Self) {
        self.failed();
        (self.endpoint, self.in_flight) = (by.endpoint, by.in_flight);
    }
}

/// Why a peer has no endpoint, as far as discovery knows.
pub fn no_endpoint(peer: &Peer) -> Failure {
    let name = peer.name();
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
            source: PeerSource { addresses: Addresses::Static(specs), protocol: Protocol::Auto, tls: None },
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
        let connected = Tries::new(peer, start)
            .connect(&mut trail, |endpoint| async move {
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
            let tries = &mut Tries::new(&peer, start);
            let connected = tries.connect(&mut trail, |endpoint| async move {
                let v6 = endpoint.addr().to_string() == V6;
                tokio::time::sleep(Duration::from_millis(manners[usize::from(!v6)].1)).await;
                Ok(())
            });
            connected.await.unwrap();
            trail.in_flight.take().unwrap().answered(Instant::now(), true);
            slow += u32::from(start.elapsed() >= STAGGER);
        }
        assert!(slow <= 1, "{slow}");
    }
}
