//! Outrigger as a caller's sidecar: the product's own peer, its roster, balancer, budget and verdicts, in virtual time.
//!
//! What is not the product's own is only the order of the steps, which follows `call/attempt.rs`.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use outrigger::condition::Condition;
use outrigger::deadline::Deadline;
use outrigger::ids::PeerName;
use outrigger::life::tasks::Tasks;
use outrigger::plan::door::Protocol;
use outrigger::plan::peer::{Addresses, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource, Routes};
use outrigger::plan::rules::Rules;
use outrigger::reason::Reason;
use outrigger::resilience::outlier::Seen;
use outrigger::resilience::verdict::{Asking, Fate, Moment, Outcome, Verdict, grpc_code, judge};
use outrigger::upstream::choice::Ask;
use outrigger::upstream::endpoint::Endpoint;
use outrigger::upstream::peer::Peer;
use outrigger::upstream::world::Upstreams;
use tokio::time::Instant;

use crate::clock::Micros;
use crate::sidecar::{Course, Got, Pick, Sidecar, Then, Ticket};

/// Hosts are told apart by their port.
const FIRST_PORT: u16 = 9_000;

/// A sidecar of ours.
pub(crate) struct Ours {
    peer: Arc<Peer>,
    rules: Rules,
    endpoints: Vec<Arc<Endpoint>>,
    base: Instant,
    grpc: bool,
}

impl Ours {
    /// One that calls a service of so many hosts by `rules`.
    pub(crate) fn new(hosts: usize, rules: &Rules, grpc: bool) -> Self {
        let spec = |at| EndpointSpec::bare(std::net::SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + at as u16)).into());
        let addresses = Addresses::Static((0..hosts).map(spec).collect());
        let policy = PeerPolicy { rules: rules.clone(), ..PeerPolicy::default() };
        let plan = PeerPlan {
            name: PeerName::new("next"),
            kind: PeerKind::Named,
            source: PeerSource { addresses, protocol: Protocol::Auto, tls: None, mtls: None, to_app: None },
            policy: Arc::new(policy),
            routes: Routes::default(),
        };
        let upstreams = Upstreams::new(Arc::default(), Tasks::default());
        let peer = Peer::new(&plan, upstreams.metrics.peer(&plan.name), &upstreams).unwrap();
        let endpoints = peer.endpoints().all().to_vec();
        Self { peer, rules: rules.clone(), endpoints, base: Instant::now(), grpc }
    }

    fn at(&self, now: Micros) -> Instant {
        self.base + Duration::from_micros(now)
    }

    /// The verdict of `resilience::verdict`, and the pause as `Tries::judge` takes it.
    fn judge(&self, now: Instant, course: &Course, outcome: &Outcome<'_>) -> Then {
        let method = if self.grpc { &Method::POST } else { &Method::GET };
        let Course { attempts, marked, .. } = *course;
        let asking = Asking { method, attempts, replayable: true, marked, deadline: Deadline::NONE };
        let moment = Moment { now, wall: UNIX_EPOCH, roll: fastrand::u64(..) };
        match judge(&self.rules.retry, &asking, outcome, self.peer.budget(), moment) {
            Verdict::GiveUp(_) => Then::Over,
            Verdict::Retry { after, because } => {
                let elsewhere = self.endpoints.len() > course.tried.len() + 1;
                let nothing_done = matches!(because, Condition::ConnectFailure | Condition::ResetBeforeRequest);
                Then::Again(if elsewhere && nothing_done { 0 } else { after.as_micros() as Micros })
            }
        }
    }
}

impl Sidecar for Ours {
    fn begin(&mut self, now: Micros, course: &mut Course) -> Pick {
        let at = self.at(now);
        if course.attempts == 0 {
            self.peer.budget().deposit(at);
        }
        let tried: Vec<_> = course.tried.iter().map(|host| self.endpoints[*host].clone()).collect();
        let Some(held) = self.peer.begin(Ask::default(), at, &tried) else { return Pick::Nobody };
        let host = usize::from(held.endpoint().addr().tcp().unwrap().port() - FIRST_PORT);
        course.attempts += 1;
        Pick::To(Ticket { host, began: now, held: Some(held) })
    }

    fn ended(&mut self, now: Micros, course: &mut Course, ticket: Ticket, got: Got) -> Then {
        let (now, mut held) = (self.at(now), ticket.held.unwrap());
        let mut fields = HeaderMap::new();
        let (mut status, failed) = (StatusCode::OK, got == Got::Failure);
        if failed && self.grpc {
            fields.insert("grpc-status", HeaderValue::from_static("14"));
        } else if failed {
            status = StatusCode::SERVICE_UNAVAILABLE;
        }
        let outcome = match got {
            Got::Refused => {
                held.unconnected(now, Reason::ConnectRefused);
                Outcome::Failed { reason: Reason::ConnectRefused, fate: Fate::Unsent }
            }
            Got::Reset => {
                held.failed(now, Reason::Reset);
                Outcome::Failed { reason: Reason::Reset, fate: Fate::Unknown }
            }
            Got::Answer | Got::Failure => {
                held.answered(now, Seen::answer(status, grpc_code(&fields)));
                Outcome::Answered { status, fields: &fields, trailers: None }
            }
        };
        if got == Got::Answer {
            return Then::Over;
        }
        let then = self.judge(now, course, &outcome);
        course.tried.push(ticket.host);
        then
    }
}
