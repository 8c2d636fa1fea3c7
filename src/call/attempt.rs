//! Attempts: pick an endpoint, lease a connection, send; again only where provably nothing was sent.

use std::sync::Arc;

use http::Request;
use tokio::time::Instant;

use super::Failure;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::plan::peer::Addresses;
use crate::reason::Reason;
use crate::upstream::endpoint::{Endpoint, InFlight};
use crate::upstream::lease::Version;
use crate::upstream::lease::{Answer, OnInformational, SendError};
use crate::upstream::peer::{Discovery, Peer};

/// Endpoints tried while none can be connected to.
const MOST_ENDPOINTS: usize = 2;

/// Connections tried while each turns out to be dead before anything was written to it.
const MOST_STALE: usize = 3;

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
    let mut unreachable: smallvec::SmallVec<[Arc<Endpoint>; MOST_ENDPOINTS]> = smallvec::SmallVec::new();
    let mut stale = 0;
    let metrics = call.peer.metrics();
    // A clock read is as dear as a small allocation: the first attempt, which is nearly always the last, needs none.
    let mut now = call.now;
    loop {
        let endpoint = pick(call.peer, now, &unreachable)?;
        trail.in_flight = Some(endpoint.begin(now));
        trail.endpoint = Some(endpoint.clone());
        trail.attempts += 1;
        metrics.attempts.inc();
        let lease = match endpoint.lease(call.peer, call.version, call.deadline).await {
            Ok(lease) => lease,
            Err(error) => {
                now = Instant::now();
                if let Some(in_flight) = trail.in_flight.take() {
                    in_flight.unconnected(now, error.reason);
                }
                unreachable.push(endpoint);
                if unreachable.len() < MOST_ENDPOINTS && call.peer.endpoints().len() > unreachable.len() {
                    continue;
                }
                return Err(Failure::new(error.reason, error.detail));
            }
        };
        trail.reused = lease.reused();
        trail.version = Some(lease.version());
        // hyper's HTTP/1 server cannot send informational answers on: to be told of them only to count them would cost
        // each request a callback, a fiftieth of all that is done for it.
        let deaf = call.version == Version::Http1 && lease.version() == Version::Http1;
        let informational = call.informational.filter(|_| !deaf).cloned();
        match lease.send(request, informational).await {
            Ok(answer) => return Ok(answer),
            Err(SendError { unsent: Some(unsent), .. }) if stale < MOST_STALE => {
                stale += 1;
                now = Instant::now();
                metrics.reconnects.inc();
                request = unsent;
            }
            Err(error) => {
                answered(trail, false);
                return Err(Failure::new(error.reason, error.detail));
            }
        }
    }
}

fn pick(peer: &Arc<Peer>, now: Instant, unreachable: &[Arc<Endpoint>]) -> Result<Arc<Endpoint>, Failure> {
    peer.pick(now, unreachable).ok_or_else(|| no_endpoint(peer))
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

fn answered(trail: &mut Trail, ok: bool) {
    if let Some(mut in_flight) = trail.in_flight.take() {
        in_flight.answered(Instant::now(), ok);
    }
}
