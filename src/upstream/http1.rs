//! HTTP/1 towards a peer, by hyper: one exchange at a time on a connection of its own.

use std::error::Error as _;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version as HttpVersion};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::AbortHandle;

use super::keepalive;
use super::lease::{Answer, AnswerBody, Hold, OnInformational, OneHold, SendError};
use super::outgoing::{Flow, Outgoing};
use crate::http::body::{Body, BodyError};
use crate::net::io::Io;
use crate::reason::Reason;

/// Bytes in an answer's head.
const HEAD: usize = 64 * 1024;

/// Fields in an answer's head.
const FIELDS: usize = 128;

/// Bytes that are buffered in either direction.
const BUFFER: usize = 128 * 1024;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The connection task's part of a connection.
pub(super) type Driver = Connection<TokioIo<Io>, Outgoing>;

/// The sending end of a connection.
pub struct One {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
}

impl One {
    pub(super) fn new(sender: SendRequest<Outgoing>, task: AbortHandle) -> Self {
        Self { sender, task }
    }

    /// Ends the connection at once.
    pub(super) fn abort(self) {
        self.task.abort();
    }

    /// Whether a request can be sent at once.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until a request can be sent; false if the connection ends instead.
    pub(super) async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok()
    }
}

/// Begins to speak HTTP/1 over `io`; nothing is sent yet.
///
/// # Errors
/// hyper has none today.
pub(super) async fn handshake(io: Io) -> Result<(SendRequest<Outgoing>, Driver), hyper::Error> {
    Builder::new()
        .preserve_header_case(true)
        .max_headers(FIELDS)
        .max_buf_size(BUFFER)
        .max_header_size(HEAD)
        .handshake(TokioIo::new(io))
        .await
}

/// Sends one request and waits for the answer's head.
pub(super) async fn send(
    mut hold: OneHold,
    request: Request<Body>,
    informational: Option<OnInformational>,
) -> Result<Answer, SendError> {
    let uri = request.uri().clone();
    let (request, flow) = prepare(request, informational);
    let Some(one) = hold.begin() else { return Err(lost(request, uri)) };
    match one.sender.try_send_request(request).await {
        Ok(response) => Ok(answer(response, hold, flow)),
        Err(mut error) => {
            let unsent = error.take_message().map(|request| restore(request, uri));
            Err(describe(&hold, error.into_error(), unsent))
        }
    }
}

/// Turns the request into what hyper is to write: origin-form, HTTP/1.1, the body with its gate.
fn prepare(request: Request<Body>, informational: Option<OnInformational>) -> (Request<Outgoing>, Option<Arc<Flow>>) {
    let (mut parts, body) = request.into_parts();
    frame(&mut parts, &body);
    if !parts.headers.contains_key(HOST)
        && let Some(host) = parts.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok())
    {
        parts.headers.insert(HOST, host);
    }
    parts.uri = origin_form(&parts.uri);
    parts.version = HttpVersion::HTTP_11;
    let (body, flow) = Outgoing::new(body, &parts.headers);
    let mut request = Request::from_parts(parts, body);
    listen(&mut request, informational, flow.as_ref());
    (request, flow)
}

/// Says how long the body is where hyper would not: it drops a GET's body of unknown length, and writes no length for
/// an empty one, which some servers ask for.
fn frame(parts: &mut http::request::Parts, body: &Body) {
    if parts.headers.contains_key(CONTENT_LENGTH) || parts.version < HttpVersion::HTTP_2 {
        return;
    }
    if body.is_end_stream() {
        if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    } else if body.size_hint().exact().is_none() && matches!(parts.method, Method::GET | Method::HEAD) {
        parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

fn origin_form(uri: &Uri) -> Uri {
    let mut parts = http::uri::Parts::default();
    parts.path_and_query = uri.path_and_query().cloned();
    // A path alone is always a URI; without one it is the root.
    Uri::from_parts(parts).unwrap_or_default()
}

/// Has informational answers passed on, and a 100 open the body's gate.
fn listen(request: &mut Request<Outgoing>, informational: Option<OnInformational>, flow: Option<&Arc<Flow>>) {
    let flow = flow.filter(|_| request.headers().contains_key(EXPECT)).cloned();
    if informational.is_none() && flow.is_none() {
        return;
    }
    hyper::ext::on_informational(request, move |head| {
        if let (Some(flow), StatusCode::CONTINUE) = (&flow, head.status()) {
            flow.go_on();
        }
        if let Some(informational) = &informational {
            let mut response = Response::new(());
            *response.status_mut() = head.status();
            *response.headers_mut() = head.headers().clone();
            informational(response);
        }
    });
}

fn answer(response: Response<Incoming>, mut hold: OneHold, flow: Option<Arc<Flow>>) -> Answer {
    if let Some(flow) = &flow {
        flow.answered();
    }
    if let Some(field) = response.headers().get(KEEP_ALIVE) {
        hold.told = field.to_str().ok().and_then(keepalive::parse);
    }
    let hold = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // The connection is a tunnel now, which hyper hands out by the answer's extension.
        hold.part();
        Hold::None
    } else {
        Hold::One(hold, flow)
    };
    response.map(|body| AnswerBody::new(Body::Http1(body), hold))
}

fn restore(request: Request<Outgoing>, uri: Uri) -> Request<Body> {
    let mut request = request.map(Outgoing::into_body);
    *request.uri_mut() = uri;
    request
}

#[cold]
fn lost(request: Request<Outgoing>, uri: Uri) -> SendError {
    SendError {
        reason: Reason::Internal,
        unsent: Some(restore(request, uri)),
        unprocessed: true,
        reused: false,
        code: None,
        detail: "a lease without its connection".into(),
    }
}

fn describe(hold: &OneHold, error: hyper::Error, unsent: Option<Request<Body>>) -> SendError {
    let alert = is_alert(&error);
    let reason = match body_error(&error) {
        Some(error) => reason_of_body(error),
        None if alert => Reason::TlsFailed,
        None if error.is_parse_too_large() => Reason::ResponseHeadTooLarge,
        None if error.is_parse() => Reason::BadResponse,
        None => Reason::Reset,
    };
    let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
    let detail = format!("HTTP/1 with {}: {error}{cause}", hold.endpoint().addr());
    SendError { reason, unprocessed: alert || unsent.is_some(), unsent, reused: hold.reused(), code: None, detail }
}

fn body_error(error: &hyper::Error) -> Option<&BodyError> {
    error.source().and_then(|cause| cause.downcast_ref())
}

/// What it is called when the caller's body broke before the answer came.
pub(super) fn reason_of_body(error: &BodyError) -> Reason {
    match error {
        BodyError::Idle => Reason::BodyTimeout,
        BodyError::TooLarge => Reason::BodyTooLarge,
        BodyError::Deadline => Reason::DeadlinePassed,
        BodyError::Forced => Reason::GraceOver,
        BodyError::Short => Reason::BadBody,
        BodyError::Http1(error) if error.is_parse() => Reason::BadBody,
        BodyError::Http1(_) | BodyError::Http2(_) => Reason::ClientGone,
    }
}

/// Whether the peer ended TLS with an alert: in TLS 1.3 that is how it refuses our certificate, after our handshake.
fn is_alert(error: &hyper::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            let tls = io.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            return matches!(tls, Some(rustls::Error::AlertReceived(_)));
        }
        cause = error.source();
    }
    false
}
