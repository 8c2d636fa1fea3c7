//! A request's attempts: each sends it on a connection, and what fails is sent again where that is safe and allowed.

use http::{Method, Request};
use tokio::time::{Instant, timeout_at};

use super::Failure;
use super::attempt::{Call, Tries, in_time};
use super::hedge;
use super::trail::Trail;
use crate::http::body::Body;
use crate::http::head;
use crate::http::replay::{self, Replay};
use crate::plan::rules::{Methods, RetryRule, Rules};
use crate::upstream::lease::{Answer, Lease, OnInformational, SendError, Version};

/// Calls the peer and returns its answer's head, with the body to come.
///
/// # Errors
/// Why there is no answer; `trail` tells how far it came.
pub async fn call(call: &Call<'_>, request: Request<Body>, trail: &mut Trail) -> Result<Answer, Failure> {
    // Pinned here: a future of this size is not worth moving.
    let attempts = std::pin::pin!(attempts(call, request, trail));
    in_time(call.deadline, attempts).await
}

async fn attempts(call: &Call<'_>, request: Request<Body>, trail: &mut Trail) -> Result<Answer, Failure> {
    let rule = &call.rules.retry;
    let mut tries = Tries::new(call);
    let (mut request, mut spare) = Spare::of(call.rules, call.marked, request);
    let method = request.method().clone();
    // A spare that is made later is for what a peer refuses, and not to be sent twice.
    let hedge = call.rules.hedge.as_ref().filter(|_| spare.is_some());
    loop {
        // What is rare is boxed here and below, so that it does not make every exchange larger.
        let sent = match spare.as_ref().zip(hedge) {
            None => {
                let lease = match tries.lease(trail, call.version).await {
                    Ok(lease) => lease,
                    Err(failure) => {
                        trail.leave(&method, || Some(request));
                        return Err(failure);
                    }
                };
                if spare.is_none() && lease.version() == Version::Http2 {
                    (request, spare) = Spare::of_refusable(rule, request);
                }
                head::pass_deadline(request.headers_mut(), call.deadline);
                let informational = informational(call, &lease);
                send(tries.attempt_ends(), lease, request, informational).await
            }
            Some((spare, hedge)) => Box::pin(hedge::either(&mut tries, trail, request, spare, hedge)).await?,
        };
        request = match sent {
            Some(Ok(answer)) => match spare.as_ref().filter(|_| rule.on.looks_at_answers()) {
                None => return Ok(answer),
                Some(spare) => match Box::pin(tries.after_answer(trail, answer, spare)).await {
                    Ok(request) => request,
                    Err(answer) => return Ok(answer),
                },
            },
            Some(Err(error)) => Box::pin(tries.after_failure(trail, error, &method, spare.as_ref())).await?,
            None => Box::pin(tries.after_timeout(trail, &method, spare.as_ref())).await?,
        };
    }
}

/// hyper's HTTP/1 server cannot send informational answers on: to be told of them only to count them would cost each
/// request a callback, a fiftieth of all that is done for it.
pub(super) fn informational(call: &Call<'_>, lease: &Lease) -> Option<OnInformational> {
    let deaf = call.version == Version::Http1 && lease.version() == Version::Http1;
    call.informational.filter(|_| !deaf).cloned()
}

/// Sends the request; `None` if the attempt's own time was over first.
pub(super) async fn send(
    ends: Option<Instant>,
    lease: Lease,
    request: Request<Body>,
    informational: Option<OnInformational>,
) -> Option<Result<Answer, SendError>> {
    let sending = lease.send(request, informational);
    match ends {
        // No timer is made where no limit was asked for.
        None => Some(sending.await),
        Some(at) => Box::pin(timeout_at(at, sending)).await.ok(),
    }
}

/// What it takes to send a request once more although a connection took it: its head, and its body as far as it is kept.
pub struct Spare {
    head: Request<()>,
    body: Option<replay::Spare>,
}

impl Spare {
    /// The request, and a spare of it if the rules may ever ask for one.
    pub fn of(rules: &Rules, marked: bool, request: Request<Body>) -> (Request<Body>, Option<Self>) {
        let rule = &rules.retry;
        let repeatable = rule.methods == Methods::Any || request.method().is_idempotent();
        let asked = rule.on.acts_on_unknown() || rules.hedge.is_some();
        if rule.attempts < 2 || marked || !repeatable || !asked {
            return (request, None);
        }
        Self::keep(request)
    }

    /// A spare of a request that may only be sent again if the peer refuses it: HTTP/2 can say so after its body was taken
    /// (REFUSED_STREAM, GOAWAY). What has no body comes back by itself then.
    pub fn of_refusable(rule: &RetryRule, request: Request<Body>) -> (Request<Body>, Option<Self>) {
        if rule.attempts < 2 || matches!(request.body(), Body::Empty | Body::Replay(_)) || !rule.on.acts_on_refusal() {
            return (request, None);
        }
        Self::keep(request)
    }

    fn keep(request: Request<Body>) -> (Request<Body>, Option<Self>) {
        let (parts, body) = request.into_parts();
        let head = Request::from_parts(parts.clone(), ());
        if matches!(body, Body::Empty) {
            return (Request::from_parts(parts, body), Some(Self { head, body: None }));
        }
        let (body, spare) = Replay::new(body);
        (Request::from_parts(parts, Body::Replay(Box::new(body))), Some(Self { head, body: Some(spare) }))
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        self.head.method()
    }

    /// Whether it can be sent again as a whole.
    pub fn is_whole(&self) -> bool {
        self.body.as_ref().is_none_or(replay::Spare::is_whole)
    }

    /// Whether all of it is here already, so that two attempts can send it at the same time.
    pub fn is_complete(&self) -> bool {
        self.body.as_ref().is_none_or(replay::Spare::is_complete)
    }

    /// The request for another attempt; earlier ones read no more of its body. `None` if too much of that was read.
    pub fn again(&self) -> Option<Request<Body>> {
        let body = match &self.body {
            None => Body::Empty,
            Some(spare) => Body::Replay(Box::new(spare.again()?)),
        };
        Some(self.head.clone().map(|()| body))
    }
}
