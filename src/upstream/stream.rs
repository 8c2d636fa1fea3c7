//! One exchange on a shared HTTP/2 connection: the head out, the body with back-pressure, the answer in.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;

use super::http1::reason_of_body;
use super::lease::{Answer, AnswerBody, Hold, ManyHold, OnInformational, SendError};
use super::outgoing::{Flow, Outgoing};
use crate::http::body::{Body, BodyError, Http2Body, content_length};
use crate::http::h2io::StreamIo;
use crate::net::io::Io;
use crate::reason::Reason;

/// Pieces of a body that are sent before others get a turn.
const BURST: usize = 32;

/// Sends one request and waits for the answer's head.
pub(super) async fn send(
    mut hold: ManyHold,
    request: Request<Body>,
    informational: Option<OnInformational>,
) -> Result<Answer, SendError> {
    let (parts, body) = request.into_parts();
    let (body, flow) = Outgoing::new(body, &parts.headers);
    let head = head(&parts);
    // A body that is empty from the start has no flow.
    let (response, stream) = match hold.many.send.send_request(head, flow.is_none()) {
        Ok(opened) => opened,
        Err(error) => return Err(not_opened(&hold, &error, Some(Request::from_parts(parts, body.into_body())))),
    };
    let done = flow.is_none();
    let mut exchange = Exchange { response, informational, flow, pump: Pump { body, stream, done } };
    match poll_fn(|cx| exchange.poll(cx)).await {
        Ok(response) => Ok(answered(hold, exchange, response, parts.method == Method::HEAD)),
        Err(Broken::Body(error)) => Err(body_broke(&hold, &error)),
        Err(Broken::Stream(error)) => {
            let body = Some(exchange.pump.body).filter(|body| !body.touched());
            Err(refused(&hold, error, body.map(|body| (parts, body))))
        }
    }
}

/// Opens a tunnel by extended CONNECT.
pub(super) async fn open_tunnel(
    mut hold: ManyHold,
    request: Request<()>,
) -> Result<(Response<()>, Option<Io>), SendError> {
    let (parts, ()) = request.into_parts();
    let opened = hold.many.send.send_request(head(&parts), false);
    let (response, send) = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(not_opened(&hold, &error, None)),
    };
    let (head, recv) = response.await.map_err(|error| refused(&hold, error, None))?.into_parts();
    let io = head.status.is_success().then(|| Io::boxed(StreamIo::new(send, recv, hold)));
    Ok((Response::from_parts(head, ()), io))
}

/// The head as h2 takes it. The original is kept, to be given back if the peer refuses the stream; the copy leaves out
/// what HTTP/2 says otherwise (`Host` is `:authority`).
fn head(parts: &Parts) -> Request<()> {
    let mut fields = HeaderMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        if name != HOST && name != TRANSFER_ENCODING {
            fields.append(name.clone(), value.clone());
        }
    }
    let mut head = Request::new(());
    *head.method_mut() = parts.method.clone();
    *head.uri_mut() = parts.uri.clone();
    *head.version_mut() = Version::HTTP_2;
    *head.headers_mut() = fields;
    if let Some(protocol) = parts.extensions.get::<Protocol>() {
        head.extensions_mut().insert(protocol.clone());
    }
    head
}

fn answered(hold: ManyHold, exchange: Exchange, response: Response<h2::RecvStream>, to_head: bool) -> Answer {
    let Exchange { flow, pump, .. } = exchange;
    if let Some(flow) = &flow {
        flow.answered();
    }
    // The answer began before the request ended: from here on they advance on their own, because whoever reads the
    // answer may pause and must not stop the request by it. The answer's end does.
    let rest = (!pump.done).then(|| {
        hold.many.life().tasks().spawn(async move {
            let _ = pump.await;
        })
    });
    let bodiless = to_head || matches!(response.status(), StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let promised = if bodiless { None } else { content_length(response.headers()) };
    response.map(|stream| AnswerBody::new(Body::Http2(Http2Body::new(stream, promised)), Hold::Many(hold, rest)))
}

/// Both directions until the answer's head is here.
struct Exchange {
    response: ResponseFuture,
    informational: Option<OnInformational>,
    flow: Option<Arc<Flow>>,
    pump: Pump,
}

enum Broken {
    Body(BodyError),
    Stream(h2::Error),
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<h2::RecvStream>, Broken>> {
        if !self.pump.done
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.pump).poll(cx)
        {
            return Poll::Ready(Err(Broken::Body(error)));
        }
        while let Poll::Ready(Some(Ok(head))) = self.response.poll_informational(cx) {
            if let (Some(flow), StatusCode::CONTINUE) = (&self.flow, head.status()) {
                flow.go_on();
            }
            if let Some(informational) = &self.informational {
                informational(head);
            }
        }
        Pin::new(&mut self.response).poll(cx).map_err(Broken::Stream)
    }
}

/// Carries a request's body into its stream: a piece is asked for only when there is window to send it.
struct Pump {
    body: Outgoing,
    stream: SendStream<Bytes>,
    done: bool,
}

impl Future for Pump {
    type Output = Result<(), BodyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BodyError>> {
        let this = self.get_mut();
        for _ in 0..BURST {
            if ready!(this.poll_piece(cx))? {
                this.done = true;
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Pump {
    /// Sends one piece; true when the body is done with. That the stream ended is no error here: the answer's side
    /// says what it means.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, BodyError>> {
        self.stream.reserve_capacity(1);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Poll::Ready(Ok(true)),
            }
        }
        if self.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Ok(true));
        }
        let sent = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
            None => self.stream.send_data(Bytes::new(), true).map(|()| true),
            Some(Err(error)) => {
                self.stream.send_reset(h2::Reason::CANCEL);
                self.done = true;
                return Poll::Ready(Err(error));
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    let end = self.body.is_end_stream();
                    if data.is_empty() && !end { Ok(()) } else { self.stream.send_data(data, end) }.map(|()| end)
                }
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => self.stream.send_trailers(trailers).map(|()| true),
                    Err(_) => Ok(false),
                },
            },
        };
        Poll::Ready(Ok(sent.unwrap_or(true)))
    }
}

#[cold]
fn body_broke(hold: &ManyHold, error: &BodyError) -> SendError {
    SendError {
        reason: reason_of_body(error),
        unsent: None,
        unprocessed: false,
        reused: hold.reused,
        code: None,
        detail: format!("the request to {} broke off: {error}", hold.endpoint().addr()),
    }
}

/// The stream was never opened, so nothing was written.
#[cold]
fn not_opened(hold: &ManyHold, error: &h2::Error, request: Option<Request<Body>>) -> SendError {
    let ended = error.is_io() || error.is_go_away() || error.reason().is_some();
    SendError {
        // Else h2 finds fault with the head itself, and would again.
        reason: if ended { Reason::Reset } else { Reason::Internal },
        unsent: request.filter(|_| ended),
        unprocessed: true,
        reused: hold.reused,
        code: error.reason(),
        detail: format!("HTTP/2 with {}: {error}", hold.endpoint().addr()),
    }
}

/// Names what h2 says; `request` is given back where the peer did nothing with it.
#[cold]
fn refused(hold: &ManyHold, error: h2::Error, request: Option<(Parts, Outgoing)>) -> SendError {
    let not_done = error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM));
    let reason = match error.reason() {
        _ if not_done => Reason::RefusedStream,
        // The answer broke a rule, or its fields are larger than the limit: h2 does not tell which.
        Some(_) if error.is_library() => Reason::BadResponse,
        _ => Reason::Reset,
    };
    let why = if hold.many.life().is_dead() { "it did not answer a PING".to_owned() } else { error.to_string() };
    SendError {
        reason,
        unsent: request.filter(|_| not_done).map(|(parts, body)| Request::from_parts(parts, body.into_body())),
        unprocessed: not_done,
        reused: hold.reused,
        code: error.reason(),
        detail: format!("HTTP/2 with {}: {why}", hold.endpoint().addr()),
    }
}
