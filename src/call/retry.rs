//! A request's attempts: each sends it on a connection, and what fails is sent again where that is safe and allowed.

use futures_util::FutureExt as _;
use futures_util::future::Either;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use tokio::time::{Instant, timeout_at};

use super::Failure;
use super::attempt::{Call, Tries, in_time};
use super::hedge;
use super::trail::Trail;
use crate::http::body::Body;
use crate::http::replay::{self, Replay};
use crate::http::time_left;
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

async fn attempts(call: &Call<'_>, mut request: Request<Body>, trail: &mut Trail) -> Result<Answer, Failure> {
    let rule = &call.rules.retry;
    let mut tries = Tries::new(call);
    let mut spare = Spare::of(call.rules, call.marked, &mut request);
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
                    spare = Spare::of_refusable(rule, &mut request);
                }
                time_left::pass_deadline(request.headers_mut(), call.deadline);
                let informational = informational(call, &lease);
                send(tries.attempt_ends(), lease, request, informational).await
            }
            Some((spare, hedge)) => Box::pin(hedge::either(&mut tries, trail, request, spare, hedge)).await?,
        };
        request = match sent {
            Some(Ok(answer)) if !rule.on.looks_at_answers() => return Ok(answer),
            Some(Ok(answer)) => match &spare {
                None => return Ok(tries.passed_on(trail, answer, &method)),
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

/// Sends the request; `None` if the attempt's own time was over first. As in [`Lease::send`], the future does not carry
/// the request.
pub(super) fn send(
    ends: Option<Instant>,
    lease: Lease,
    request: Request<Body>,
    informational: Option<OnInformational>,
) -> impl Future<Output = Option<Result<Answer, SendError>>> + Send {
    let sending = lease.send(request, informational);
    match ends {
        // No timer is made where no limit was asked for.
        None => Either::Left(sending.map(Some)),
        Some(at) => Either::Right(Box::pin(timeout_at(at, sending)).map(Result::ok)),
    }
}

/// What it takes to send a request once more although a connection took it: its head, and its body as far as it is kept.
///
/// Nearly every request leaves one unused, so its fields are a list: copying a map costs several times as much.
pub struct Spare {
    method: Method,
    uri: Uri,
    version: http::Version,
    fields: Box<[(HeaderName, HeaderValue)]>,
    /// Among them how HTTP/1 wrote the names of the fields.
    extensions: Extensions,
    body: Option<replay::Spare>,
}

impl Spare {
    /// A spare of the request if the rules may ever ask for one.
    pub fn of(rules: &Rules, marked: bool, request: &mut Request<Body>) -> Option<Self> {
        let rule = &rules.retry;
        let repeatable = rule.methods == Methods::Any || request.method().is_idempotent();
        let asked = rule.on.acts_on_unknown() || rules.hedge.is_some();
        (rule.attempts > 1 && !marked && repeatable && asked).then(|| Self::keep(request))
    }

    /// A spare of a request that may only be sent again if the peer refuses it: HTTP/2 can say so after its body was taken
    /// (REFUSED_STREAM, GOAWAY). What has no body comes back by itself then.
    pub fn of_refusable(rule: &RetryRule, request: &mut Request<Body>) -> Option<Self> {
        if rule.attempts < 2 || matches!(request.body(), Body::Empty | Body::Replay(_)) || !rule.on.acts_on_refusal() {
            return None;
        }
        Some(Self::keep(request))
    }

    fn keep(request: &mut Request<Body>) -> Self {
        let body = (!matches!(request.body(), Body::Empty)).then(|| {
            let (body, spare) = Replay::new(std::mem::replace(request.body_mut(), Body::Empty));
            *request.body_mut() = Body::Replay(Box::new(body));
            spare
        });
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            fields: listed(request.headers()),
            extensions: request.extensions().clone(),
            body,
        }
    }

    /// The request's method.
    pub fn method(&self) -> &Method {
        &self.method
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
        let mut request = Request::new(body);
        (*request.method_mut(), *request.uri_mut()) = (self.method.clone(), self.uri.clone());
        (*request.version_mut(), *request.extensions_mut()) = (self.version, self.extensions.clone());
        // In their order, fields of one name together, as the map had them.
        let headers = request.headers_mut();
        headers.reserve(self.fields.len());
        for (name, value) in &self.fields {
            headers.append(name, value.clone());
        }
        Some(request)
    }
}

fn listed(headers: &HeaderMap) -> Box<[(HeaderName, HeaderValue)]> {
    let mut fields = Vec::with_capacity(headers.len());
    fields.extend(headers.iter().map(|(name, value)| (name.clone(), value.clone())));
    fields.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spare_is_the_request_field_by_field_in_its_order() {
        let mut request = Request::put("http://payments/a?b").version(http::Version::HTTP_2).body(Body::Empty).unwrap();
        for (name, value) in [("x-z", "1"), ("cookie", "a"), ("x-a", "2"), ("cookie", "b"), ("host", "c"), ("x-z", "3")]
        {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        request.extensions_mut().insert("as it was written");
        let again = Spare::keep(&mut request).again().unwrap();
        let head = |request: &Request<Body>| {
            let fields: Vec<_> = request.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
            (request.method().clone(), request.uri().clone(), request.version(), fields)
        };
        assert_eq!(head(&again), head(&request));
        assert_eq!(again.extensions().get(), Some(&"as it was written"));
    }
}
