//! What a pool hands out: a connection on which one request can be sent, and the answer that gives it back.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::endpoint::Endpoint;
use super::http1::{self, One, Tunnelled};
use super::http2::Many;
use super::outgoing::Flow;
use super::room::Place;
use super::stream;
use crate::http::body::{Body, BodyError};
use crate::net::io::Io;
use crate::reason::Reason;
use crate::resilience::limit;
use crate::tls::proof::Proof;

/// How long the end of a stream is waited for of which all promised bytes came.
const END: Duration = Duration::from_secs(1);

/// The body of a request.
pub type RequestBody = Body;

/// An answer whose body holds the connection until its end.
pub type Answer = Response<AnswerBody>;

/// Is told each informational answer (100, 103).
pub type OnInformational = Arc<dyn Fn(Response<()>) + Send + Sync>;

/// The version of HTTP on a leg.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// HTTP/1.0 or 1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct ConnectError {
    /// `ConnectRefused`, `ConnectFailed`, `ConnectTimeout`, `TlsFailed`, `Overloaded`, `LimitReached` or
    /// `DeadlinePassed`.
    pub reason: Reason,
    /// One line: what happened and where.
    pub detail: String,
}

/// Why a request got no answer.
pub struct SendError {
    /// What it is called.
    pub reason: Reason,
    /// The request itself, where provably nothing was done with it and nothing of its body was taken.
    pub unsent: Option<Request<RequestBody>>,
    /// The peer said, or HTTP/2 proves, that it did nothing (REFUSED_STREAM, above GOAWAY's last stream).
    pub unprocessed: bool,
    /// Whether the connection had served an earlier request.
    pub reused: bool,
    /// The code of the peer's RST_STREAM or GOAWAY.
    pub code: Option<h2::Reason>,
    /// One line: what happened and where.
    pub detail: String,
}

impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendError")
            .field("reason", &self.reason)
            .field("unsent", &self.unsent.is_some())
            .field("unprocessed", &self.unprocessed)
            .field("reused", &self.reused)
            .field("code", &self.code)
            .field("detail", &self.detail)
            .finish()
    }
}

/// What became of an extended CONNECT.
pub enum Opened {
    /// The peer agreed with this head: the stream carries bytes.
    Tunnel(Response<()>, Io),
    /// The peer answered with anything but 2xx.
    Refused(Answer),
}

/// A stream of bytes of its own, for a tunnel.
pub struct Dialled {
    /// The stream.
    pub io: Io,
    /// Its place among the connections, until its end.
    pub place: Place,
    /// What its endpoint has proven of itself, where mutual TLS is spoken to it.
    pub proof: Option<Arc<Proof>>,
}

/// A connection, or a stream on a shared one, for one request. Dropped without use it goes back to the pool.
pub struct Lease(Held);

enum Held {
    One(OneHold),
    Many(ManyHold),
}

impl Lease {
    pub(super) fn one(hold: OneHold) -> Self {
        Self(Held::One(hold))
    }

    pub(super) fn many(hold: ManyHold) -> Self {
        Self(Held::Many(hold))
    }

    /// Keeps its place among the requests in flight at the endpoint until the answer's end.
    pub(super) fn keeping(mut self, in_flight: limit::Held) -> Self {
        match &mut self.0 {
            Held::One(hold) => hold.in_flight = Some(in_flight),
            Held::Many(hold) => hold.in_flight = Some(in_flight),
        }
        self
    }

    /// The version that is spoken on it.
    pub fn version(&self) -> Version {
        match &self.0 {
            Held::One(_) => Version::Http1,
            Held::Many(_) => Version::Http2,
        }
    }

    /// Whether it has served an earlier request.
    pub fn reused(&self) -> bool {
        match &self.0 {
            Held::One(hold) => hold.reused,
            Held::Many(hold) => hold.reused,
        }
    }

    /// What its endpoint has proven of itself, where mutual TLS is spoken to it.
    pub fn proof(&self) -> Option<&Arc<Proof>> {
        match &self.0 {
            Held::One(hold) => hold.one.as_ref().and_then(One::proof),
            Held::Many(hold) => hold.many.life().proof(),
        }
    }

    /// Whether the peer offers extended CONNECT (RFC 8441).
    pub fn extended_connect(&self) -> bool {
        match &self.0 {
            Held::One(_) => false,
            Held::Many(hold) => hold.many.extended_connect(),
        }
    }

    /// Sends one request, with an absolute URI (scheme, authority, path) and, for HTTP/1, its `Host` field. Its body
    /// streams with back-pressure while the future and afterwards the answer are alive; dropping either before the
    /// end closes the HTTP/1 connection or resets the HTTP/2 stream.
    ///
    /// # Errors
    /// No answer's head came; see [`SendError`].
    pub fn send(
        self,
        request: Request<RequestBody>,
        informational: Option<OnInformational>,
    ) -> impl Future<Output = Result<Answer, SendError>> + Send {
        match self.0 {
            Held::One(hold) => Either::Left(http1::send(hold, request, informational)),
            // The larger of the two futures: boxed, so that the other stays small.
            Held::Many(hold) => Either::Right(Box::pin(stream::send(hold, request, informational))),
        }
    }

    /// HTTP/2 extended CONNECT (RFC 8441). The request carries [`h2::ext::Protocol`] among its extensions.
    ///
    /// # Errors
    /// `UpgradeFailed` on a connection that cannot do it; else as [`Lease::send`].
    pub async fn open_tunnel(self, request: Request<()>) -> Result<Opened, SendError> {
        match self.0 {
            Held::Many(hold) if hold.many.extended_connect() => Box::pin(stream::open_tunnel(hold, request)).await,
            held => Err(SendError {
                reason: Reason::UpgradeFailed,
                unsent: Some(request.map(|()| Body::Empty)),
                unprocessed: true,
                reused: Self(held).reused(),
                code: None,
                detail: "the peer does not offer extended CONNECT (RFC 8441)".into(),
            }),
        }
    }
}

/// A connection of the request's own. Untouched it goes back when dropped; once in use only a clean end gives it back.
pub(super) struct OneHold {
    endpoint: Arc<Endpoint>,
    id: u64,
    one: Option<One>,
    reused: bool,
    in_use: bool,
    /// The server's `Keep-Alive: timeout=`.
    pub(super) told: Option<Duration>,
    /// Whether the connection serves nothing after this exchange.
    pub(super) last: bool,
    in_flight: Option<limit::Held>,
}

impl OneHold {
    pub(super) fn new(endpoint: Arc<Endpoint>, id: u64, one: One, reused: bool) -> Self {
        Self { endpoint, id, one: Some(one), reused, in_use: false, told: None, last: false, in_flight: None }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    pub(super) fn is_ready(&self) -> bool {
        self.one.as_ref().is_some_and(One::is_ready)
    }

    pub(super) fn one(&mut self) -> Option<&mut One> {
        self.one.as_mut()
    }

    /// The connection became something else: its task goes on, the pool forgets it.
    pub(super) fn part(mut self) -> Option<Tunnelled> {
        let in_flight = self.in_flight.take();
        self.one.take().map(|one| one.part(in_flight))
    }

    /// From here on only [`OneHold::give_back`] returns it.
    pub(super) fn begin(&mut self) -> Option<&mut One> {
        self.in_use = true;
        self.one.as_mut()
    }

    /// Its exchange came to a clean end.
    fn give_back(mut self, now: Instant) {
        self.put(now);
    }

    fn put(&mut self, now: Instant) {
        if let Some(one) = self.one.take() {
            self.endpoint.returned(now, self.id, one, self.told);
        }
    }
}

impl Drop for OneHold {
    fn drop(&mut self) {
        if !self.in_use {
            self.put(Instant::now());
        } else if let Some(one) = self.one.take() {
            // In the middle of an exchange: whatever its task is doing is of no use to anyone.
            one.abort();
        }
    }
}

/// A stream on a shared connection, counted until dropped.
pub(super) struct ManyHold {
    endpoint: Arc<Endpoint>,
    pub(super) id: u64,
    pub(super) many: Many,
    pub(super) reused: bool,
    in_flight: Option<limit::Held>,
}

impl ManyHold {
    pub(super) fn new(endpoint: Arc<Endpoint>, id: u64, many: Many, reused: bool) -> Self {
        many.life().stream_began();
        Self { endpoint, id, many, reused, in_flight: None }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Every promised byte came, and whoever reads by the length asks for no more. Many servers end the stream in a frame
    /// of its own: a reset in place of reading that would be taken for a cancelled request, and those are rationed.
    fn see_end(self, mut body: Body) {
        let mut waker = Context::from_waker(std::task::Waker::noop());
        if Pin::new(&mut body).poll_frame(&mut waker).is_ready() {
            return;
        }
        let tasks = self.many.life().tasks().clone();
        tasks.spawn(async move {
            let end = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
            let _ = tokio::time::timeout(END, end).await;
            drop(self);
        });
    }
}

impl Drop for ManyHold {
    fn drop(&mut self) {
        self.many.life().stream_ended();
        self.endpoint.released(self.id);
    }
}

/// The body of an answer; its end gives the connection back, its drop before the end closes or resets it.
pub struct AnswerBody {
    body: Body,
    hold: Hold,
    /// A frame that was read before its turn.
    ahead: Option<Box<Result<Frame<Bytes>, BodyError>>>,
}

/// What an answer holds until its end.
pub(super) enum Hold {
    /// A connection, and the state of the request's body if it had one.
    One(OneHold, Option<Arc<Flow>>),
    /// A stream, and the task that still sends the request's body.
    Many(ManyHold, Option<AbortHandle>),
    /// Nothing: the answer is over, or the connection became a tunnel.
    None,
}

impl Hold {
    /// The answer is complete. A request that is still being sent now cannot matter to anyone and is stopped. That
    /// costs the HTTP/1 connection, whose framing promises the rest, and resets the HTTP/2 stream.
    fn finish(self) {
        match self {
            Self::One(hold, flow) if !hold.last && flow.as_ref().is_none_or(|flow| flow.ended()) => {
                hold.give_back(Instant::now())
            }
            other => other.break_off(),
        }
    }

    /// The answer broke off or nobody wants the rest.
    fn break_off(self) {
        if let Self::Many(hold, pump) = self {
            if let Some(pump) = pump {
                pump.abort();
            }
            drop(hold);
        }
    }
}

impl AnswerBody {
    pub(super) fn new(body: Body, hold: Hold) -> Self {
        let mut this = Self { body, hold, ahead: None };
        if this.body.is_end_stream() {
            this.take().finish();
        }
        this
    }

    /// The trailers, if they come next and are there already. What comes instead is kept for whoever reads the body.
    pub fn early_trailers(&mut self) -> Option<&HeaderMap> {
        if self.ahead.is_none() {
            let mut waker = Context::from_waker(std::task::Waker::noop());
            if let Poll::Ready(Some(frame)) = Pin::new(&mut *self).poll_frame(&mut waker) {
                self.ahead = Some(Box::new(frame));
            }
        }
        let ahead = self.ahead.as_deref().and_then(|frame| frame.as_ref().ok());
        ahead.and_then(Frame::trailers_ref)
    }

    /// Whether every promised byte of it came.
    pub fn is_whole(&self) -> bool {
        self.ahead.is_none() && self.body.is_whole()
    }

    /// Whether the request is still being sent, as far as is known.
    pub(super) fn still_sends(&self) -> bool {
        match &self.hold {
            Hold::One(_, flow) => flow.as_ref().is_some_and(|flow| !flow.ended()),
            Hold::Many(_, pump) => pump.as_ref().is_some_and(|pump| !pump.is_finished()),
            Hold::None => false,
        }
    }

    fn take(&mut self) -> Hold {
        std::mem::replace(&mut self.hold, Hold::None)
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        match self.take() {
            Hold::Many(hold, None) if self.is_whole() => hold.see_end(std::mem::replace(&mut self.body, Body::Empty)),
            hold => hold.break_off(),
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.ahead.take() {
            return Poll::Ready(Some(*frame));
        }
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            None => this.take().finish(),
            Some(Err(_)) => this.take().break_off(),
            // Whoever knows the length does not ask again after the last piece, and nobody does after trailers.
            Some(Ok(frame)) if frame.is_trailers() || this.body.is_end_stream() => this.take().finish(),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.ahead.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Only what is not known by its length is ever looked at before it is read.
        self.body.size_hint()
    }
}
