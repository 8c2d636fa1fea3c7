//! A second attempt beside a slow one: the first good answer wins, and the other attempt is cancelled.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use http::Request;
use tokio::time::{Instant, timeout_at};

use super::Failure;
use super::attempt::{Call, Tries, is_of_our_limits, outcome};
use super::retry::{Spare, informational, send};
use super::trail::Trail;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::http::mark::mark;
use crate::http::time_left;
use crate::plan::rules::HedgeRule;
use crate::reason::Reason;
use crate::resilience::limit::Held;
use crate::resilience::outlier::Seen;
use crate::resilience::verdict::{self, Asking, Outcome};
use crate::tls::proof::Proof;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::in_flight::InFlight;
use crate::upstream::lease::{Answer, ConnectError, OnInformational, SendError, Version};
use crate::upstream::unread;

/// What became of an attempt.
enum Ended {
    /// There was no connection; the request is as it was.
    Unconnected(ConnectError, Request<Body>),
    /// It was sent; `None` if its time was over before it was answered.
    Sent { reused: bool, version: Version, proof: Option<Arc<Proof>>, sent: Option<Result<Answer, SendError>> },
}

/// An attempt on its way.
struct Leg<'a> {
    call: &'a Call<'a>,
    endpoint: Arc<Endpoint>,
    request: Request<Body>,
    /// When a connection must be there.
    until: Deadline,
    /// When the answer must have begun, where the rule says so.
    ends: Option<Instant>,
    /// Whether its informational answers are passed on; those of two attempts would be mixed up.
    speaks: bool,
}

impl Leg<'_> {
    async fn run(self) -> Ended {
        let Self { call, endpoint, mut request, until, ends, speaks } = self;
        let lease = match endpoint.lease(call.peer, call.version, until).await {
            Ok(lease) => lease,
            Err(error) => return Ended::Unconnected(error, request),
        };
        time_left::pass_deadline(request.headers_mut(), call.deadline);
        let (reused, version, proof) = (lease.reused(), lease.version(), lease.proof().cloned());
        let told: Option<OnInformational> = informational(call, &lease).filter(|_| speaks);
        Ended::Sent { reused, version, proof, sent: send(ends, lease, request, told).await }
    }
}

/// Which attempts a race was decided by.
#[derive(Clone, Copy)]
enum By {
    /// The first; the second is cancelled or was never made.
    First,
    /// The second, which began then; the first is cancelled.
    Second(Instant),
    /// The second, which began then; the first had failed.
    SecondAlone(Instant),
}

/// Makes an attempt, and a second one beside it if it takes too long; gives what the better of them came to. Where no
/// connection could be made, the next attempt follows here. As in [`super::retry`], `None` means that time was over.
///
/// # Errors
/// No endpoint could be reached.
pub(super) async fn either(
    tries: &mut Tries<'_>,
    trail: &mut Trail,
    mut request: Request<Body>,
    spare: &Spare,
    rule: &HedgeRule,
) -> Result<Option<Result<Answer, SendError>>, Failure> {
    loop {
        let endpoint = match tries.begin(trail) {
            Ok(endpoint) => endpoint,
            Err(failure) => {
                trail.leave(spare.method(), || Some(request));
                return Err(failure);
            }
        };
        trail.in_flight.iter_mut().for_each(InFlight::asks);
        let began = tries.now;
        let (ended, by) = raced(tries, trail, endpoint, request, spare, rule).await;
        let (error, unsent) = match ended {
            Ended::Sent { reused, version, proof, sent } => {
                (trail.reused, trail.version, trail.proof) = (reused, Some(version), proof);
                if let Some(Ok(_)) = &sent {
                    tries.note(began, by);
                }
                return Ok(sent);
            }
            Ended::Unconnected(error, unsent) => (error, unsent),
        };
        request = unsent;
        if let Err(failure) = tries.after_unconnected(trail, error).await {
            trail.leave(spare.method(), || Some(request));
            return Err(failure);
        }
    }
}

/// Sends `request` to `endpoint`, and a second attempt beside it when its time has come.
async fn raced(
    tries: &mut Tries<'_>,
    trail: &mut Trail,
    endpoint: Arc<Endpoint>,
    request: Request<Body>,
    spare: &Spare,
    rule: &HedgeRule,
) -> (Ended, By) {
    let (call, until, ends) = (tries.call, tries.until, tries.attempt_ends());
    let first = Leg { call, endpoint, request, until, ends, speaks: true };
    let mut first = pin!(first.run());
    let at_once = futures_util::poll!(first.as_mut());
    if !matches!(&at_once, Poll::Ready(Ended::Unconnected(error, _)) if is_of_our_limits(error)) {
        trail.made(call.peer);
    }
    if let Poll::Ready(ended) = at_once {
        return (ended, By::First);
    }
    let more = tries.attempts < call.rules.retry.attempts;
    let Some(wait) = call.peer.latencies().wait(tries.now, rule).filter(|_| more) else {
        return (first.await, By::First);
    };
    if let Ok(ended) = timeout_at(tries.now + wait, first.as_mut()).await {
        return (ended, By::First);
    }
    match tries.beside(trail, spare) {
        None => (first.await, By::First),
        Some((beside, second)) => race(tries, trail, first, beside, pin!(second.run())).await,
    }
}

/// Waits for the first good answer of two attempts, or for the end of both. `trail` goes with the one that counts.
async fn race(
    tries: &mut Tries<'_>,
    trail: &mut Trail,
    mut first: Pin<&mut impl Future<Output = Ended>>,
    mut beside: Trail,
    mut second: Pin<&mut impl Future<Output = Ended>>,
) -> (Ended, By) {
    let (hedges_won, began) = (&tries.call.peer.metrics().hedges_won, tries.now);
    tokio::select! {
        biased;
        mut ended = first.as_mut() => {
            if tries.is_good(&mut ended) {
                return (ended, By::First);
            }
            if !tries.told(trail, ended) {
                trail.unmade();
            }
            tries.tried(trail.endpoint.clone());
            trail.follow(beside);
            let mut ended = second.await;
            if tries.is_good(&mut ended) {
                hedges_won.inc();
            }
            (ended, By::SecondAlone(began))
        }
        mut ended = second.as_mut() => {
            if tries.is_good(&mut ended) {
                if let Some(in_flight) = trail.in_flight.take() {
                    in_flight.outrun(Instant::now());
                }
                trail.follow(beside);
                hedges_won.inc();
                return (ended, By::Second(began));
            }
            if !tries.told(&mut beside, ended) {
                trail.unmade();
            }
            trail.doubtful |= beside.doubtful;
            tries.tried(beside.endpoint.take());
            (first.await, By::First)
        }
    }
}

impl<'a> Tries<'a> {
    /// Another attempt beside the one that `trail` tells of, if it is safe and allowed.
    fn beside(&mut self, trail: &mut Trail, spare: &Spare) -> Option<(Trail, Leg<'a>)> {
        self.now = Instant::now();
        let call = self.call;
        let peer = call.peer;
        let begun = self.permit(spare).and_then(|held| {
            self.tried(trail.endpoint.clone());
            let begun = peer.begin(call.ask, self.now, &self.tried);
            if begun.is_none() {
                peer.budget().give_back(self.now);
            }
            Some((held, begun?))
        });
        let Some((held, mut in_flight)) = begun else {
            peer.metrics().hedges_skipped.inc();
            return None;
        };
        let mut request = spare.again()?;
        self.attempts += 1;
        trail.made(peer);
        mark(request.headers_mut(), self.attempts);
        in_flight.asks();
        let (endpoint, mut beside) = (in_flight.endpoint().clone(), Trail::default());
        beside.begin(&endpoint, in_flight);
        beside.retrying = Some(held);
        peer.metrics().hedges.inc();
        let until = self.attempt_until();
        let ends = self.ends_at(until);
        Some((beside, Leg { call, endpoint, request, until, ends, speaks: false }))
    }

    /// A place among the further attempts, if one may be made now.
    fn permit(&self, spare: &Spare) -> Option<Held> {
        let Call { peer, rules, marked, deadline, .. } = *self.call;
        let replayable = spare.is_complete();
        let asking = Asking { method: spare.method(), attempts: self.attempts, replayable, marked, deadline };
        let held = peer.admit_retry(&rules.limits).ok().filter(|_| replayable)?;
        verdict::may_hedge(&rules.retry, &asking, peer.budget(), self.now).ok().map(|()| held)
    }

    /// Whether this is what the caller is given although another attempt is still on its way.
    fn is_good(&self, ended: &mut Ended) -> bool {
        let Ended::Sent { sent: Some(Ok(answer)), .. } = ended else { return false };
        let trailers = self.early_trailers(answer);
        let (status, fields) = (answer.status(), answer.headers());
        !verdict::is_named(&self.call.rules.retry, &Outcome::Answered { status, fields, trailers: trailers.as_ref() })
    }

    /// Tells an endpoint what became of its attempt, of which nothing more is wanted; gives whether it was one.
    fn told(&mut self, trail: &mut Trail, ended: Ended) -> bool {
        self.now = Instant::now();
        match ended {
            Ended::Unconnected(error, _) => {
                trail.unconnected(self.now, self.unconnected_by(&error));
                return !is_of_our_limits(&error);
            }
            Ended::Sent { sent: None, .. } => {
                trail.doubtful = true;
                trail.failed(Reason::AttemptTimeout);
            }
            // It says nothing about its endpoint.
            Ended::Sent { sent: Some(Err(error)), .. } if self.was_stale(&error) => {
                trail.in_flight = None;
                return false;
            }
            Ended::Sent { sent: Some(Err(error)), .. } => {
                trail.doubtful |= verdict::may_be_done(&outcome(&error));
                trail.failed(error.reason);
            }
            Ended::Sent { sent: Some(Ok(mut answer)), .. } => {
                trail.doubtful = true;
                if let Some(mut in_flight) = trail.in_flight.take() {
                    let trailers = self.early_trailers(&mut answer);
                    let code = verdict::grpc_code(trailers.as_ref().unwrap_or(answer.headers()));
                    in_flight.answered(self.now, Seen::answer(answer.status(), code));
                }
                unread::discard(self.call.peer, answer);
            }
        }
        true
    }

    /// Keeps how long the attempts took of which the first began at `began`.
    fn note(&self, began: Instant, by: By) {
        let (latencies, now) = (self.call.peer.latencies(), Instant::now());
        let note = |began| latencies.record(now, now.saturating_duration_since(began));
        match by {
            By::First => note(began),
            // The first was cancelled: it would have taken longer still.
            By::Second(second) => [began, second].into_iter().for_each(note),
            By::SecondAlone(second) => note(second),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::tasks::Tasks;
    use crate::plan::door::Protocol;
    use crate::plan::peer::{Addresses, EndpointSpec, PeerKind, PeerPlan, PeerSource, Routes};
    use crate::plan::rules::Rules;
    use crate::upstream::adhoc::default_policy;
    use crate::upstream::peer::Peer;
    use crate::upstream::world::Upstreams;

    fn peer() -> Arc<Peer> {
        let specs = ["127.0.0.1:1", "127.0.0.2:1"].map(|addr| EndpointSpec::bare(addr.parse().unwrap()));
        let addresses = Addresses::Static(specs.into());
        let plan = PeerPlan {
            name: crate::ids::PeerName::new("payments"),
            kind: PeerKind::Named,
            source: PeerSource { addresses, protocol: Protocol::Auto, tls: None, mtls: None, to_app: None },
            policy: Arc::new(default_policy()),
            routes: Routes::default(),
        };
        let upstreams = Upstreams::new(Arc::default(), Tasks::default());
        Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap()
    }

    fn rules() -> Rules {
        Rules { hedge: Some(HedgeRule::default()), ..Rules::default() }
    }

    fn ended(reason: Reason) -> Ended {
        let unsent = Some(Request::new(Body::Empty));
        let error = SendError { reason, unsent, unprocessed: true, reused: true, code: None, detail: String::new() };
        Ended::Sent { reused: true, version: Version::Http1, proof: None, sent: Some(Err(error)) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_had_died_unused_is_no_attempt_beside_another_either() {
        for (reason, attempts, reconnects) in [(Reason::Reset, 1, 1), (Reason::RefusedStream, 2, 0)] {
            let (peer, rules) = (peer(), rules());
            let call = Call::plain(&peer, &rules, Instant::now());
            let (mut tries, mut trail) = (Tries::new(&call), Trail::default());
            tries.begin(&mut trail).unwrap();
            let spare = Spare::of(&rules, false, &mut Request::new(Body::Empty));
            let (mut beside, _) = tries.beside(&mut trail, &spare.unwrap()).unwrap();
            assert_eq!(tries.told(&mut beside, ended(reason)), attempts == 2);
            assert!(beside.in_flight.is_none());
            assert_eq!((tries.attempts, peer.metrics().reconnects.get()), (attempts, reconnects), "{reason:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hedge_that_finds_nobody_costs_no_budget() {
        let (peer, rules) = (peer(), rules());
        let call = Call::plain(&peer, &rules, Instant::now());
        let (mut tries, mut trail) = (Tries::new(&call), Trail::default());
        tries.begin(&mut trail).unwrap();
        peer.update(Vec::new());
        let spare = Spare::of(&rules, false, &mut Request::new(Body::Empty));
        assert!(tries.beside(&mut trail, &spare.unwrap()).is_none());
        assert_eq!(peer.budget().standing(Instant::now(), &rules.retry.budget).used, 0);
        assert_eq!((peer.metrics().hedges.get(), peer.metrics().hedges_skipped.get()), (0, 1));
    }
}
