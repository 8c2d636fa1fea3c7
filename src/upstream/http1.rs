//! HTTP/1 towards a peer, by hyper: one exchange at a time on a connection of its own.

use std::error::Error as _;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version as HttpVersion};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, Connection, SendRequest};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::keepalive;
use super::lease::{Answer, AnswerBody, Hold, OnInformational, OneHold, SendError};
use super::outgoing::{Flow, Outgoing};
use crate::http::body::{Body, BodyError};
use crate::http::length;
use crate::http::promised::Promised;
use crate::net::io::Io;
use crate::net::lenient::Lenient;
use crate::reason::Reason;
use crate::resilience::limit;
use crate::tls::proof::Proof;
use crate::tls::untrusted::refused_by_peer;

/// Bytes in an answer's head. Its fields are 100 at most: what hyper's parser keeps on the stack.
const HEAD: usize = 64 * 1024;

/// Bytes that are buffered in either direction.
const BUFFER: usize = 64 * 1024;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The connection task's part of a connection.
pub(super) type Driver = Connection<TokioIo<Lenient<Io>>, Outgoing>;

/// The sending end of a connection.
pub struct One {
    sender: SendRequest<Outgoing>,
    task: AbortHandle,
    /// Boxed once for a connection, so that what is moved with each answer stays small.
    kept: Box<Kept>,
}

/// What is held as long as the connection is used.
struct Kept {
    /// Dropped when nothing uses the connection any more: its task, which has its place under the limits, waits for that.
    _used: oneshot::Sender<()>,
    /// What its endpoint has proven of itself, where mutual TLS is spoken to it.
    proof: Option<Arc<Proof>>,
}

/// A connection that became a tunnel, under the limits until this is dropped.
#[derive(Clone)]
pub struct Tunnelled(#[expect(dead_code, reason = "it is only held")] Arc<(Box<Kept>, Option<limit::Held>)>);

impl One {
    pub(super) fn new(
        sender: SendRequest<Outgoing>,
        task: AbortHandle,
        used: oneshot::Sender<()>,
        proof: Option<Arc<Proof>>,
    ) -> Self {
        Self { sender, task, kept: Box::new(Kept { _used: used, proof }) }
    }

    pub(super) fn proof(&self) -> Option<&Arc<Proof>> {
        self.kept.proof.as_ref()
    }

    /// Whether its endpoint is still believed to be who it has proven to be, and has seen who we are today.
    pub(super) fn is_believed(&self) -> bool {
        self.kept.proof.as_ref().is_none_or(|proof| proof.is_current())
    }

    /// It is a tunnel from now on, which has this place among the requests in flight at the endpoint.
    pub(super) fn part(self, in_flight: Option<limit::Held>) -> Tunnelled {
        Tunnelled(Arc::new((self.kept, in_flight)))
    }

    /// Ends the connection at once.
    pub(super) fn abort(self) {
        self.task.abort();
    }

    /// Whether a request can be sent at once.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready() && self.is_believed()
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Waits until a request can be sent; false if the connection ends instead, or may not be used any more.
    pub(super) async fn ready(&mut self) -> bool {
        self.sender.ready().await.is_ok() && self.is_believed()
    }
}

/// Begins to speak HTTP/1 over `io`; nothing is sent yet.
///
/// # Errors
/// hyper has none today.
pub(super) async fn handshake(io: Io) -> Result<(SendRequest<Outgoing>, Driver), hyper::Error> {
    Builder::new()
        .preserve_header_case(true)
        .max_buf_size(BUFFER)
        .max_header_size(HEAD)
        .handshake(TokioIo::new(Lenient::new(io)))
        .await
}

/// The peer's stream after an upgrade, as it was dialled: hyper hides it, and its leniency is for HTTP.
pub fn taken_back(upgraded: Upgraded) -> Io {
    match upgraded.downcast::<TokioIo<Lenient<Io>>>() {
        Ok(parts) => parts.io.into_inner().into_inner().prefixed(parts.read_buf),
        Err(other) => Io::boxed(TokioIo::new(other)),
    }
}

/// Sends one request; the future waits for the answer's head. What can be done at once is done before it is polled, so
/// that it does not carry the request.
pub(super) fn send(
    mut hold: OneHold,
    request: Request<Body>,
    informational: Option<OnInformational>,
) -> impl Future<Output = Result<Answer, SendError>> + Send {
    // Only a target that is rewritten for this leg has to be put back.
    let uri = request.uri().authority().is_some().then(|| Box::new(request.uri().clone()));
    let (request, flow) = prepare(request, informational);
    let sent = match hold.begin() {
        Some(one) => Ok(one.sender.try_send_request(request)),
        None => Err(Box::new(lost(request, uri.clone()))),
    };
    async move {
        match sent.map_err(|lost| *lost)?.await {
            Ok(mut response) => {
                let (status, empty) = (response.status(), response.body().is_end_stream());
                match length::answer(status, response.headers_mut(), empty) {
                    Ok(unheeded) => Ok(answer(response, hold, flow, unheeded)),
                    Err(why) => Err(unsound(&hold, why)),
                }
            }
            Err(mut error) => {
                let unsent = error.take_message().map(|request| restore(request, uri));
                Err(describe(&hold, error.into_error(), unsent))
            }
        }
    }
}

/// Turns the request into what hyper is to write: origin-form, HTTP/1.1, the body with its gate.
fn prepare(request: Request<Body>, informational: Option<OnInformational>) -> (Request<Outgoing>, Option<Arc<Flow>>) {
    let (mut parts, body) = request.into_parts();
    frame(&mut parts, body.is_end_stream(), body.size_hint().exact());
    if let Some(host) = parts.uri.authority() {
        if !parts.headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::from_str(host.as_str())
        {
            parts.headers.insert(HOST, host);
        }
        parts.uri = origin_form(&parts.uri);
    }
    parts.version = HttpVersion::HTTP_11;
    let (body, flow) = Outgoing::new(body, &parts.headers);
    let mut request = Request::from_parts(parts, body);
    listen(&mut request, informational, flow.as_ref());
    (request, flow)
}

/// Says how long the body is where hyper would not: it drops a GET's body of unknown length, and writes no length for
/// an empty one, which some servers ask for. It leaves an empty one any length that its head claims: a server would take
/// the next request of this connection for it.
fn frame(parts: &mut http::request::Parts, empty: bool, length: Option<u64>) {
    if empty && parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        parts.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    // An HTTP/1 caller that wrote no length knew its server.
    let from_http2 = parts.version >= HttpVersion::HTTP_2;
    let (name, value) = match parts.method {
        Method::POST | Method::PUT | Method::PATCH if empty && from_http2 => (CONTENT_LENGTH, "0"),
        Method::GET | Method::HEAD if !empty && length.is_none() => (TRANSFER_ENCODING, "chunked"),
        _ => return,
    };
    if !parts.headers.contains_key(CONTENT_LENGTH) {
        parts.headers.insert(name, HeaderValue::from_static(value));
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

fn answer(
    mut response: Response<Incoming>,
    mut hold: OneHold,
    flow: Option<Arc<Flow>>,
    unheeded: Option<u64>,
) -> Answer {
    if let Some(flow) = &flow {
        flow.answered();
    }
    if let Some(field) = response.headers().get(KEEP_ALIVE) {
        hold.told = field.to_str().ok().and_then(keepalive::parse);
    }
    // hyper reads on until the server closes.
    hold.last = unheeded.is_some();
    let hold = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // The connection is a tunnel now, which hyper hands out by the answer's extension.
        if let Some(tunnelled) = hold.part() {
            response.extensions_mut().insert(tunnelled);
        }
        Hold::None
    } else {
        Hold::One(hold, flow)
    };
    response.map(|body| {
        let body = Body::Http1(body);
        let body = match unheeded {
            Some(length) => Body::Promised(Box::new(Promised::new(body, length))),
            None => body,
        };
        AnswerBody::new(body, hold)
    })
}

/// An answer that would be another one if it were passed on.
#[cold]
fn unsound(hold: &OneHold, why: &str) -> SendError {
    SendError {
        reason: Reason::BadResponse,
        unsent: None,
        unprocessed: false,
        reused: hold.reused(),
        code: None,
        detail: format!("HTTP/1 with {}: its answer has {why}", hold.endpoint().addr()),
    }
}

fn restore(request: Request<Outgoing>, uri: Option<Box<Uri>>) -> Request<Body> {
    let mut request = request.map(Outgoing::into_body);
    if let Some(uri) = uri {
        *request.uri_mut() = *uri;
    }
    request
}

#[cold]
fn lost(request: Request<Outgoing>, uri: Option<Box<Uri>>) -> SendError {
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
    // The first thing that a server says may be that it refuses our certificate: then it has read nothing (RFC 8446 §4.4.3).
    // Any other alert, and any on a connection that has served, may come after the request was read.
    let untrusted = refusal(&error).filter(|_| !hold.reused());
    let reason = match body_error(&error) {
        Some(error) => reason_of_body(error),
        None if untrusted.is_some() => Reason::RefusedByPeer,
        None if error.is_parse_too_large() => Reason::ResponseHeadTooLarge,
        None if error.is_parse() => Reason::BadResponse,
        None => Reason::Reset,
    };
    let addr = hold.endpoint().addr();
    let detail = match untrusted {
        Some(why) => format!("{addr}: {why}"),
        None => {
            let cause = error.source().map_or_else(String::new, |cause| format!(": {cause}"));
            format!("HTTP/1 with {addr}: {error}{cause}")
        }
    };
    SendError {
        reason,
        unprocessed: untrusted.is_some() || unsent.is_some(),
        unsent,
        reused: hold.reused(),
        code: None,
        detail,
    }
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
        BodyError::Superseded => Reason::Internal,
        BodyError::Short => Reason::BadBody,
        BodyError::Http1(error) if error.is_parse() => Reason::BadBody,
        BodyError::Http1(_) | BodyError::Http2(_) => Reason::ClientGone,
    }
}

/// What the peer says of our certificate in the alert that ended the connection.
fn refusal(error: &hyper::Error) -> Option<&'static str> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return refused_by_peer(io);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, ready};
    use std::time::Duration;

    use http_body_util::BodyExt;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;
    use crate::plan::door::Protocol;
    use crate::upstream::lease::{Lease, Version};
    use crate::upstream::pool::Counts;
    use crate::upstream::rig::{ADDR, Rig, ended, get, post, read_until, text, write};

    const HEAD_END: &str = "\r\n\r\n";

    async fn connected() -> (Rig, Lease, DuplexStream) {
        let rig = Rig::new(Protocol::Auto);
        let (lease, server) = rig.connect(Version::Http1).await;
        (rig, lease.unwrap(), server)
    }

    /// Lets every task run that can.
    async fn settle() {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    /// One exchange, so that the connection is in the pool.
    async fn used() -> (Rig, DuplexStream) {
        let (rig, lease, mut server) = connected().await;
        let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
            read_until(&mut server, HEAD_END).await;
            write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        });
        assert_eq!(text(answer.unwrap()).await, "ok");
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts { http1: 1, idle: 1, ..Counts::default() });
        (rig, server)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_written_in_origin_form_and_its_connection_reused() {
        let (rig, lease, mut server) = connected().await;
        assert!(!lease.reused() && lease.version() == Version::Http1 && !lease.extended_connect());
        let (answer, head) = tokio::join!(lease.send(get("/a?b=c"), None), async {
            let head = read_until(&mut server, HEAD_END).await;
            write(&mut server, "HTTP/1.1 200 OK\r\nServer: x\r\ntransfer-encoding: chunked\r\n\r\n").await;
            write(&mut server, "5\r\nhello\r\n0\r\n\r\n").await;
            head
        });
        assert_eq!(head, "GET /a?b=c HTTP/1.1\r\nhost: payments\r\n\r\n");
        assert_eq!(text(answer.unwrap()).await, "hello");
        assert!(rig.lease(Version::Http1).await.unwrap().reused());
        // The lease that was dropped unused gave the connection back.
        assert_eq!(rig.endpoint.state(Instant::now()).pool.idle, 1);
        assert_eq!(rig.peer.metrics().connects.get(), 1);
        assert_eq!(rig.peer.metrics().connections.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_answer_to_head_and_empty_answers_free_the_connection_at_once() {
        for (method, head) in [("HEAD", "200 OK\r\ncontent-length: 5"), ("GET", "204 No Content"), ("GET", "304 X")] {
            let (rig, lease, mut server) = connected().await;
            let mut request = get("/");
            *request.method_mut() = method.parse().unwrap();
            let (answer, _) = tokio::join!(lease.send(request, None), async {
                read_until(&mut server, HEAD_END).await;
                write(&mut server, &format!("HTTP/1.1 {head}\r\n\r\n")).await;
            });
            let answer = answer.unwrap();
            assert_eq!(rig.endpoint.state(Instant::now()).pool.idle, 1, "{method} {head}");
            drop(answer);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reused_connection_that_is_already_dead_gives_the_request_back() {
        let (rig, server) = used().await;
        let lease = rig.lease(Version::Http1).await.unwrap();
        drop(server);
        let error = lease.send(get("/again"), None).await.err().unwrap();
        let unsent = error.unsent.as_ref().expect("the request").uri();
        assert_eq!(unsent, "http://payments/again");
        assert!(error.reused && error.unprocessed && error.reason == Reason::Reset, "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_before_the_answer_is_a_reset() {
        let (rig, mut server) = used().await;
        let lease = rig.lease(Version::Http1).await.unwrap();
        let (error, _) = tokio::join!(lease.send(get("/"), None), async move {
            read_until(&mut server, HEAD_END).await;
        });
        let error = error.err().unwrap();
        assert!(error.reason == Reason::Reset && error.reused && !error.unprocessed, "{error:?}");
        assert!(error.unsent.is_none() && error.detail.contains(ADDR), "{error:?}");
        settle().await;
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
        assert_eq!(rig.peer.metrics().connections.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_breaks_the_rules_is_named() {
        let many: String = (0..101).map(|n| format!("x-{n}: y\r\n")).collect();
        let cases = [
            ("SSH-2.0-OpenSSH\r\n\r\n".to_owned(), Reason::BadResponse),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(), Reason::BadResponse),
            // Passed on, its coding would be lost, or its end.
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(), Reason::BadResponse),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx".to_owned(), Reason::BadResponse),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".to_owned(),
                Reason::BadResponse,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n"
                    .to_owned(),
                Reason::BadResponse,
            ),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: +1\r\n\r\n".to_owned(),
                Reason::BadResponse,
            ),
            ("HTTP/1.1 304 No\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(), Reason::BadResponse),
            (format!("HTTP/1.1 200 OK\r\n{many}\r\n"), Reason::ResponseHeadTooLarge),
            (format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(HEAD)), Reason::ResponseHeadTooLarge),
        ];
        for (answer, reason) in cases {
            let (_rig, lease, mut server) = connected().await;
            let (error, _) = tokio::join!(lease.send(get("/"), None), async {
                read_until(&mut server, HEAD_END).await;
                let _ = server.write_all(answer.as_bytes()).await;
            });
            assert_eq!(error.err().unwrap().reason, reason, "{}", answer.get(..60).unwrap_or(&answer));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_one_length_and_only_where_it_counts() {
        for (head, rest, lengths, body) in [
            ("200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked", "5\r\nhello\r\n0\r\n\r\n", &[][..], "hello"),
            ("200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 0", "5\r\nhello\r\n0\r\n\r\n", &[], "hello"),
            ("200 OK\r\ntransfer-encoding: Chunked", "5\r\nhello\r\n0\r\n\r\n", &[], "hello"),
            ("200 OK\r\ncontent-length: 5\r\ncontent-length: 5", "hello", &["5"], "hello"),
            ("200 OK\r\ncontent-length: 5, 5", "hello", &["5"], "hello"),
            ("200 OK\r\ncontent-length: 5", "hello", &["5"], "hello"),
            ("204 No\r\ncontent-length: 5\r\na: b", "", &[], ""),
            ("304 No\r\ncontent-length: 5\r\ncontent-length: 5", "", &["5"], ""),
            // No coding at all, as servers of RFC 2616 spell it.
            ("200 OK\r\ntransfer-encoding: identity\r\nconnection: close", "hello", &[], "hello"),
            (
                "200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 5\r\nconnection: close",
                "hello",
                &["5"],
                "hello",
            ),
            ("200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 5", "hello", &["5"], "hello"),
            ("200 OK\r\ncontent-length: 5, 5\r\ntransfer-encoding: Identity", "hello, world", &["5"], "hello"),
            ("200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 0", "", &["0"], ""),
        ] {
            let (_rig, lease, mut server) = connected().await;
            let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
                read_until(&mut server, HEAD_END).await;
                write(&mut server, &format!("HTTP/1.1 {head}\r\n\r\n{rest}")).await;
                // Who has said how long it is need not close.
                if lengths.is_empty() {
                    server.shutdown().await.unwrap();
                }
            });
            let answer = answer.unwrap();
            let told = answer.headers().get_all(CONTENT_LENGTH).iter().map(|n| n.to_str().unwrap().to_owned());
            assert_eq!(told.collect::<Vec<_>>(), lengths, "{head}");
            let read = tokio::time::timeout(Duration::from_secs(60), text(answer)).await;
            assert_eq!(read.as_deref(), Ok(body), "{head}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_length_beside_identity_is_the_last_of_its_connection_and_is_kept_to() {
        const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\ncontent-length: 5\r\n\r\n";
        for (rest, whole) in [("hello", true), ("hel", false)] {
            let (_rig, lease, mut server) = connected().await;
            let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
                read_until(&mut server, HEAD_END).await;
                write(&mut server, &format!("{HEAD}{rest}")).await;
                if !whole {
                    server.shutdown().await.unwrap();
                }
            });
            let read = tokio::time::timeout(Duration::from_secs(60), answer.unwrap().into_body().collect()).await;
            assert_eq!(read.unwrap().is_ok(), whole);
            // hyper still waits for a close.
            let ended = tokio::time::timeout(Duration::from_secs(1), server.read(&mut [0])).await;
            assert!(matches!(ended, Ok(Ok(0))), "{ended:?}");
        }
    }

    /// A pipe whose end is an alert.
    struct Alerting(DuplexStream, rustls::AlertDescription);

    impl tokio::io::AsyncRead for Alerting {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
            match buf.filled().len() == before {
                true => Poll::Ready(Err(std::io::Error::other(rustls::Error::AlertReceived(self.1)))),
                false => Poll::Ready(Ok(())),
            }
        }
    }

    impl tokio::io::AsyncWrite for Alerting {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_first_word_of_a_server_can_say_that_it_has_read_nothing() {
        use rustls::AlertDescription as A;
        for (alert, used, reason, unprocessed) in [
            (A::UnknownCA, false, Reason::RefusedByPeer, true),
            (A::UnknownCA, true, Reason::Reset, false),
            (A::BadRecordMac, false, Reason::Reset, false),
            (A::BadRecordMac, true, Reason::Reset, false),
        ] {
            let rig = Rig::new(Protocol::Auto);
            let (ours, mut server) = tokio::io::duplex(64 * 1024);
            let mut lease = rig.connect_over(Version::Http1, Alerting(ours, alert)).await.unwrap();
            if used {
                let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
                    read_until(&mut server, HEAD_END).await;
                    write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                });
                assert_eq!(text(answer.unwrap()).await, "ok");
                lease = rig.lease(Version::Http1).await.unwrap();
            }
            let (error, _) = tokio::join!(lease.send(get("/"), None), async move {
                read_until(&mut server, HEAD_END).await;
                drop(server);
            });
            let error = error.err().unwrap();
            assert_eq!((error.reason, error.unprocessed, error.reused), (reason, unprocessed, used), "{error:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_fields_are_taken() {
        let many: String = (0..99).map(|n| format!("x-{n}: y\r\n")).collect();
        let (_rig, lease, mut server) = connected().await;
        let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
            read_until(&mut server, HEAD_END).await;
            write(&mut server, &format!("HTTP/1.1 200 OK\r\n{many}content-length: 0\r\n\r\n")).await;
        });
        assert_eq!(answer.unwrap().headers().len(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn informational_answers_are_passed_on_and_100_lets_the_body_go() {
        let (rig, lease, mut server) = connected().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let informational: OnInformational = Arc::new(move |head: Response<()>| {
            told.lock().push((head.status().as_u16(), head.headers().get("link").cloned()));
        });
        let mut request = post(Body::text("hello"));
        request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
        let start = Instant::now();
        let (answer, _) = tokio::join!(lease.send(request, Some(informational)), async {
            let head = read_until(&mut server, HEAD_END).await;
            assert!(head.contains("expect: 100-continue"), "{head}");
            // Nothing of the body comes before the 100, not even in 900 ms.
            let early = tokio::time::timeout(Duration::from_millis(900), server.read_u8()).await;
            assert!(early.is_err(), "{early:?}");
            write(&mut server, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
            read_until(&mut server, "hello").await;
            write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        });
        assert_eq!(start.elapsed(), Duration::from_millis(900));
        drop(answer.unwrap());
        assert_eq!(*seen.lock(), [(100, None), (103, Some(HeaderValue::from_static("</a>")))]);
        assert_eq!(rig.endpoint.state(Instant::now()).pool.idle, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_expectation_sends_no_body_and_costs_the_connection() {
        let (rig, lease, mut server) = connected().await;
        let mut request = post(Body::text("hello"));
        request.headers_mut().insert(EXPECT, HeaderValue::from_static("100-continue"));
        let (answer, _) = tokio::join!(lease.send(request, None), async {
            read_until(&mut server, HEAD_END).await;
            write(&mut server, "HTTP/1.1 417 No\r\ncontent-length: 4\r\n\r\nno").await;
        });
        let answer = answer.unwrap();
        assert_eq!(answer.status(), 417);
        // The rest of the answer comes after the second for which a body is held; the body is still not sent.
        let (body, _) = tokio::join!(text(answer), async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            write(&mut server, "no").await;
        });
        assert_eq!(body, "nono");
        assert!(ended(&mut server).await);
        settle().await;
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
    }

    /// A caller that uploads `hello` and then stands still, as an HTTP/1 leg sees it: hyper's own `Incoming`.
    async fn stuck_upload(rig: &Rig) -> (Body, DuplexStream) {
        let (mut caller, ours) = tokio::io::duplex(1024);
        let (to, from) = tokio::sync::oneshot::channel();
        let to = Arc::new(Mutex::new(Some(to)));
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let _ = to.lock().take().unwrap().send(request.into_body());
            std::future::pending::<Result<Response<String>, std::convert::Infallible>>()
        });
        rig.upstreams.tasks.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(ours), service).await;
        });
        write(&mut caller, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhello").await;
        (Body::Http1(from.await.unwrap()), caller)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_complete_before_the_request_closes_the_connection() {
        let (rig, lease, mut server) = connected().await;
        let (body, _caller) = stuck_upload(&rig).await;
        let (answer, _) = tokio::join!(lease.send(post(body), None), async {
            read_until(&mut server, "hello").await;
            write(&mut server, "HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno").await;
        });
        assert_eq!(text(answer.unwrap()).await, "no");
        assert!(ended(&mut server).await);
        settle().await;
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_closes_the_connection() {
        // While waiting for the head.
        let (rig, lease, mut server) = connected().await;
        let send = tokio::time::timeout(Duration::from_secs(1), lease.send(get("/"), None));
        assert!(send.await.is_err());
        read_until(&mut server, HEAD_END).await;
        assert!(ended(&mut server).await);
        drop(rig);
        // While reading the body.
        let (rig, lease, mut server) = connected().await;
        let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
            read_until(&mut server, HEAD_END).await;
            write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
        });
        let mut body = answer.unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok());
        drop(body);
        assert!(ended(&mut server).await);
        settle().await;
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_ends_early_is_an_error() {
        let (_rig, lease, mut server) = connected().await;
        let (answer, _) = tokio::join!(lease.send(get("/"), None), async move {
            read_until(&mut server, HEAD_END).await;
            write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
        });
        let error = answer.unwrap().into_body().collect().await.err().unwrap();
        assert!(matches!(&error, BodyError::Http1(_)), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_that_the_server_closes_leaves_the_pool_and_teaches() {
        let (rig, server) = used().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        drop(server);
        settle().await;
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
        // A fifth less than two seconds is now the limit: at 1.7 s the connection is not used again.
        let (lease, mut server) = rig.connect(Version::Http1).await;
        let (answer, _) = tokio::join!(lease.unwrap().send(get("/"), None), async {
            read_until(&mut server, HEAD_END).await;
            write(&mut server, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        });
        drop(answer);
        tokio::time::sleep(Duration::from_millis(1_700)).await;
        rig.upstreams.tasks.spawn(rig.upstreams.sweep());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(ended(&mut server).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_upgraded_connection_is_a_stream_of_bytes() {
        let (rig, lease, mut server) = connected().await;
        let mut request = get("/chat");
        request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
        let (answer, _) = tokio::join!(lease.send(request, None), async {
            read_until(&mut server, HEAD_END).await;
            let head = "HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nearly";
            write(&mut server, head).await;
        });
        let answer = answer.unwrap();
        let mut upgraded = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let mut early = [0; 5];
        upgraded.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        upgraded.write_all(b"late").await.unwrap();
        read_until(&mut server, "late").await;
        assert_eq!(rig.endpoint.state(Instant::now()).pool, Counts::default());
    }

    #[test]
    fn a_length_is_written_where_servers_need_one() {
        let cases = [
            ("POST", HttpVersion::HTTP_2, Body::Empty, Some("content-length: 0")),
            ("POST", HttpVersion::HTTP_11, Body::Empty, None),
            ("GET", HttpVersion::HTTP_2, Body::Empty, None),
            ("DELETE", HttpVersion::HTTP_2, Body::Empty, None),
            ("GET", HttpVersion::HTTP_2, Body::text("x"), None),
        ];
        for (method, version, body, want) in cases {
            let request = Request::builder().method(method).version(version).uri("http://a/").body(body).unwrap();
            let (request, _) = prepare(request, None);
            let got = request.headers().get(CONTENT_LENGTH).map(|v| format!("content-length: {}", v.to_str().unwrap()));
            assert_eq!(got.as_deref(), want, "{method} {version:?}");
            assert_eq!(request.headers().get(HOST).unwrap(), "a");
        }
        // A length that nothing follows is never told.
        for claimed in ["5", "00", "0, 5"] {
            let request = Request::post("http://a/").header(CONTENT_LENGTH, claimed).header(CONTENT_LENGTH, "5");
            let (request, _) = prepare(request.body(Body::Empty).unwrap(), None);
            assert_eq!(request.headers().get_all(CONTENT_LENGTH).iter().collect::<Vec<_>>(), ["0"], "{claimed}");
        }
        // Of unknown length: hyper would take a GET's for none, whichever leg it came from.
        for version in [HttpVersion::HTTP_11, HttpVersion::HTTP_2] {
            let mut parts = Request::get("/").version(version).body(()).unwrap().into_parts().0;
            frame(&mut parts, false, None);
            assert_eq!(parts.headers[TRANSFER_ENCODING], "chunked", "{version:?}");
        }
    }

    #[test]
    fn uris_become_origin_form() {
        for (uri, want) in [
            ("http://a/b?c", "/b?c"),
            ("http://a", "/"),
            ("https://a:1/%2F//x", "/%2F//x"),
            ("/plain", "/plain"),
            ("*", "*"),
        ] {
            assert_eq!(origin_form(&uri.parse().unwrap()), want);
        }
    }
}
