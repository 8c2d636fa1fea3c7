//! One exchange on a shared HTTP/2 connection: the head out, the body with back-pressure, the answer in.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::ext::Protocol;
use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use tokio::time::{Instant, Sleep};

use super::http1::reason_of_body;
use super::lease::{Answer, AnswerBody, Hold, ManyHold, OnInformational, Opened, SendError};
use super::outgoing::{Flow, Outgoing};
use crate::http::body::{Body, BodyError, Http2Body, content_length};
use crate::http::h2io::StreamIo;
use crate::http::length;
use crate::http::unsent::Sending;
use crate::net::io::Io;
use crate::reason::Reason;

/// Informational answers that a peer may send before the one that counts; 100 of them are passed on.
const MOST_INFORMATIONAL: u32 = 1000;

/// Pieces of a body that are sent before others get a turn.
const BURST: usize = 32;

/// Sends one request and waits for the answer's head.
pub(super) async fn send(
    mut hold: ManyHold,
    request: Request<Body>,
    informational: Option<OnInformational>,
) -> Result<Answer, SendError> {
    let (parts, body) = request.into_parts();
    let idle = body.idle();
    let (body, flow) = Outgoing::new(body, &parts.headers);
    let head = head(&parts, hold.endpoint().is_secure());
    // A body that is empty from the start has no flow.
    let (response, stream) = match hold.many.send.send_request(head, flow.is_none()) {
        Ok(opened) => opened,
        Err(error) => return Err(not_opened(&hold, &error, Some(Request::from_parts(parts, body.into_body())))),
    };
    let done = flow.is_none();
    let pump = Pump::new(body, Sending::new(stream, hold.many.life().unsent()), idle, done);
    let mut exchange = Exchange { response, informational, heard: 0, flow, pump };
    match poll_fn(|cx| exchange.poll(cx)).await {
        Ok(mut response) => match length::answer(response.status(), response.headers_mut(), false) {
            Ok(_) => Ok(answered(hold, exchange, response, parts.method == Method::HEAD)),
            Err(why) => Err(unsound(&hold, why)),
        },
        Err(Broken::Body(error)) => Err(body_broke(&hold, &error)),
        Err(Broken::Stalled(idle)) => Err(stalled(&hold, idle)),
        Err(Broken::Endless) => Err(endless(&hold)),
        Err(Broken::Stream(error)) => {
            let body = Some(exchange.pump.body).filter(|body| !body.touched());
            Err(refused(&hold, error, body.map(|body| (parts, body))))
        }
    }
}

/// Opens a tunnel by extended CONNECT.
pub(super) async fn open_tunnel(mut hold: ManyHold, request: Request<()>) -> Result<Opened, SendError> {
    let (parts, ()) = request.into_parts();
    let head = head(&parts, hold.endpoint().is_secure());
    let (response, send) = match hold.many.send.send_request(head, false) {
        Ok(opened) => opened,
        Err(error) => return Err(not_opened(&hold, &error, Some(Request::from_parts(parts, Body::Empty)))),
    };
    let (head, recv) = match response.await {
        Ok(response) => response.into_parts(),
        Err(error) => {
            let (body, _) = Outgoing::new(Body::Empty, &parts.headers);
            return Err(refused(&hold, error, Some((parts, body))));
        }
    };
    let mut send = Sending::new(send, hold.many.life().unsent());
    if head.status.is_success() {
        return Ok(Opened::Tunnel(Response::from_parts(head, ()), Io::boxed(StreamIo::new(send, recv, hold))));
    }
    // An ordinary answer to a request that has no more to say. An error means that the stream is over already.
    let _ = send.send(Bytes::new(), true);
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let promised = if bodiless { None } else { content_length(&head.headers) };
    let body = AnswerBody::new(Body::Http2(Http2Body::new(recv, promised)), Hold::Many(hold, None));
    Ok(Opened::Refused(Response::from_parts(head, body)))
}

/// The head as h2 takes it. The original is kept, to be given back if the peer refuses the stream; the copy leaves out
/// what HTTP/2 says otherwise (`Host` is `:authority`).
fn head(parts: &Parts, secure: bool) -> Request<()> {
    let mut fields = HeaderMap::with_capacity(parts.headers.len());
    for (name, value) in &parts.headers {
        if name != HOST && name != TRANSFER_ENCODING {
            fields.append(name.clone(), value.clone());
        }
    }
    let mut head = Request::new(());
    *head.method_mut() = parts.method.clone();
    *head.uri_mut() = absolute(parts, secure);
    *head.version_mut() = Version::HTTP_2;
    *head.headers_mut() = fields;
    if let Some(protocol) = parts.extensions.get::<Protocol>() {
        head.extensions_mut().insert(protocol.clone());
    }
    head
}

/// The target with scheme and authority, which h2 insists on; the call hands over an origin-form target and `Host`.
fn absolute(parts: &Parts, secure: bool) -> http::Uri {
    let mut uri = parts.uri.clone().into_parts();
    if uri.authority.is_none() {
        uri.authority = parts.headers.get(HOST).and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok());
    }
    if uri.authority.is_some() && uri.scheme.is_none() && uri.path_and_query.is_some() {
        uri.scheme = Some(if secure { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
    }
    http::Uri::from_parts(uri).unwrap_or_else(|_| parts.uri.clone())
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
    heard: u32,
    flow: Option<Arc<Flow>>,
    pump: Pump,
}

enum Broken {
    Body(BodyError),
    Stalled(Duration),
    /// One informational answer after another, and no end.
    Endless,
    Stream(h2::Error),
}

impl Exchange {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<h2::RecvStream>, Broken>> {
        if !self.pump.done
            && let Poll::Ready(Err(error)) = Pin::new(&mut self.pump).poll(cx)
        {
            return Poll::Ready(Err(error));
        }
        // The answer is asked for only when no informational one can stand before it: h2 drops those that it then meets,
        // and one may arrive between two questions where another thread drives the connection.
        while let Some(Ok(head)) = ready!(self.response.poll_informational(cx)) {
            self.heard += 1;
            if self.heard > MOST_INFORMATIONAL {
                return Poll::Ready(Err(Broken::Endless));
            }
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
    sending: Sending,
    /// What was taken of the body and has no window yet, and whether it is the last.
    rest: Bytes,
    last: bool,
    /// How long the peer may give no window; `None` for bodies without a clock of their own.
    idle: Option<Duration>,
    /// Made only once the pump has had to wait for window.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether the timer runs for this wait.
    waiting: bool,
    done: bool,
}

impl Future for Pump {
    type Output = Result<(), Broken>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
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
    fn new(body: Outgoing, sending: Sending, idle: Option<Duration>, done: bool) -> Self {
        Self { body, sending, rest: Bytes::new(), last: false, idle, timer: None, waiting: false, done }
    }

    /// Sends one piece; true when the body is done with. That the stream ended is no error here: the answer's side
    /// says what it means.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        self.sending.stream.reserve_capacity(self.rest.len().max(1));
        match self.sending.poll_room(cx) {
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(_) => return Poll::Ready(Ok(true)),
            Poll::Pending => return self.poll_stalled(cx).map(Err),
        }
        self.waiting = false;
        if self.sending.stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Ok(true));
        }
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.last = true,
                Some(Err(error)) => {
                    self.give_up();
                    return Poll::Ready(Err(Broken::Body(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => (self.rest, self.last) = (data, self.body.is_end_stream()),
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { return Poll::Ready(Ok(false)) };
                        if self.sending.stream.send_trailers(trailers).is_err() {
                            // The stream has ended, or h2 finds fault with them and leaves it open: the peer would wait.
                            self.give_up();
                        }
                        return Poll::Ready(Ok(true));
                    }
                },
            }
            if self.rest.is_empty() && !self.last {
                return Poll::Ready(Ok(false));
            }
        }
        // Until here a single byte was asked for.
        self.sending.stream.reserve_capacity(self.rest.len());
        let part = self.rest.split_to(self.sending.stream.capacity().min(self.rest.len()));
        let end = self.last && self.rest.is_empty();
        Poll::Ready(Ok(self.sending.send(part, end).is_err() || end))
    }

    /// There is no window: runs out when that has lasted too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        let Some(idle) = self.idle else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
        if !std::mem::replace(&mut self.waiting, true) {
            timer.as_mut().reset(Instant::now() + idle);
        }
        ready!(timer.as_mut().poll(cx));
        self.give_up();
        Poll::Ready(Broken::Stalled(idle))
    }

    fn give_up(&mut self) {
        self.sending.stream.send_reset(h2::Reason::CANCEL);
        self.done = true;
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

/// The peer gave no window for the request's body.
#[cold]
fn stalled(hold: &ManyHold, idle: Duration) -> SendError {
    SendError {
        reason: Reason::ResponseTimeout,
        unsent: None,
        unprocessed: false,
        reused: hold.reused,
        code: None,
        detail: format!("{} took nothing of the request's body for {idle:?}", hold.endpoint().addr()),
    }
}

fn endless(hold: &ManyHold) -> SendError {
    unsound(hold, &format!("more than {MOST_INFORMATIONAL} informational ones before it"))
}

/// An answer that cannot be passed on.
#[cold]
fn unsound(hold: &ManyHold, why: &str) -> SendError {
    SendError {
        reason: Reason::BadResponse,
        unsent: None,
        unprocessed: false,
        reused: hold.reused,
        code: None,
        detail: format!("HTTP/2 with {}: its answer has {why}", hold.endpoint().addr()),
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

#[cfg(test)]
mod tests {
    use h2::server::{Connection, SendResponse};
    use h2::{RecvStream, SendStream, server};
    use http::HeaderValue;
    use http_body_util::BodyExt;
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::{mpsc, oneshot};

    use super::*;
    use crate::deadline::Deadline;
    use crate::http::guard::{Guard, Guarded};
    use crate::plan::door::Protocol as Declared;
    use crate::upstream::lease::Version as Spoken;
    use crate::upstream::pool::Counts;
    use crate::upstream::rig::{CONNECT, Rig, get, post, text};

    type Server = Connection<DuplexStream, Bytes>;
    type Arrived = (Request<RecvStream>, SendResponse<Bytes>);

    /// A server that hands every request to the test and goes on driving its connection.
    fn hand_over(to: mpsc::Sender<Arrived>) -> impl FnOnce(Server) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        move |mut server| {
            Box::pin(async move {
                while let Some(Ok(arrived)) = server.accept().await {
                    let _ = to.send(arrived).await;
                }
            })
        }
    }

    async fn connected() -> (Rig, crate::upstream::lease::Lease, mpsc::Receiver<Arrived>) {
        let (rig, (to, from)) = (Rig::new(Declared::Http2), mpsc::channel(16));
        let lease = rig.connect_http2(server::Builder::new(), hand_over(to)).await;
        (rig, lease, from)
    }

    fn ok() -> Response<()> {
        Response::new(())
    }

    async fn settle() {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }

    fn pool(rig: &Rig) -> Counts {
        rig.endpoint.state(Instant::now()).pool
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_with_trailers_leaves_its_stream_free() {
        let (rig, lease, mut requests) = connected().await;
        assert!(lease.version() == Spoken::Http2 && !lease.reused() && !lease.extended_connect());
        let (answer, _) = tokio::join!(lease.send(get("/a?b"), None), async {
            let (request, mut respond) = requests.recv().await.unwrap();
            assert_eq!(request.uri(), "http://payments/a?b");
            assert!(request.headers().is_empty() && request.body().is_end_stream(), "{request:?}");
            let mut stream = respond.send_response(ok(), false).unwrap();
            stream.send_data("hello".into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            stream.send_trailers(trailers).unwrap();
        });
        let answer = answer.unwrap();
        assert_eq!(pool(&rig), Counts { http2: 1, streams: 1, ..Counts::default() });
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(body.to_bytes(), "hello");
        assert_eq!(pool(&rig), Counts { http2: 1, ..Counts::default() });
        assert!(rig.lease(Spoken::Http2).await.unwrap().reused());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_stream_gives_the_request_back() {
        let (rig, lease, mut requests) = connected().await;
        for (lease, body) in [(Some(lease), Body::Empty), (None, Body::text("hello"))] {
            let lease = match lease {
                Some(lease) => lease,
                None => rig.lease(Spoken::Http2).await.unwrap(),
            };
            let (reused, empty) = (lease.reused(), body.is_end_stream());
            let (error, _) = tokio::join!(lease.send(post(body), None), async {
                requests.recv().await.unwrap().1.send_reset(h2::Reason::REFUSED_STREAM);
            });
            let error = error.err().unwrap();
            assert!(error.unprocessed && error.reason == Reason::RefusedStream, "{error:?}");
            assert!(error.reused == reused && error.code == Some(h2::Reason::REFUSED_STREAM), "{error:?}");
            // A body of which a piece was taken cannot be given back.
            assert_eq!(error.unsent.is_some(), empty);
            if let Some(unsent) = error.unsent {
                assert_eq!(unsent.headers()["host"], "payments");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_before_the_answer_keeps_its_code() {
        let (_rig, lease, mut requests) = connected().await;
        let (error, _) = tokio::join!(lease.send(get("/"), None), async {
            requests.recv().await.unwrap().1.send_reset(h2::Reason::ENHANCE_YOUR_CALM);
        });
        let error = error.err().unwrap();
        assert!(error.reason == Reason::Reset && !error.unprocessed && error.unsent.is_none(), "{error:?}");
        assert_eq!(error.code, Some(h2::Reason::ENHANCE_YOUR_CALM));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_within_the_answer_reaches_its_reader() {
        let (_rig, lease, mut requests) = connected().await;
        let (answer, mut stream) = tokio::join!(lease.send(get("/"), None), async {
            let mut stream = requests.recv().await.unwrap().1.send_response(ok(), false).unwrap();
            stream.send_data("part".into(), false).unwrap();
            stream
        });
        let mut body = answer.unwrap().into_body();
        assert!(body.frame().await.unwrap().is_ok());
        stream.send_reset(h2::Reason::INTERNAL_ERROR);
        let error = body.frame().await.unwrap().err().unwrap();
        assert!(matches!(&error, BodyError::Http2(e) if e.reason() == Some(h2::Reason::INTERNAL_ERROR)), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_going_away_takes_no_new_stream() {
        let (rig, stop) = (Rig::new(Declared::Http2), oneshot::channel::<()>());
        let (to, mut requests) = mpsc::channel(16);
        let lease = rig
            .connect_http2(server::Builder::new(), |mut server: Server| async move {
                to.send(server.accept().await.unwrap().unwrap()).await.unwrap();
                tokio::select! {
                    _ = server.accept() => panic!("nothing more was sent"),
                    _ = stop.1 => server.graceful_shutdown(),
                }
                while server.accept().await.is_some() {}
            })
            .await;
        let (answer, mut stream) = tokio::join!(lease.send(get("/"), None), async {
            requests.recv().await.unwrap().1.send_response(ok(), false).unwrap()
        });
        let answer = answer.unwrap();
        stop.0.send(()).unwrap();
        settle().await;
        // A new one is dialled, in vain here, instead of the old one used.
        assert_eq!(rig.lease(Spoken::Http2).await.err().unwrap().reason, Reason::ConnectRefused);
        assert_eq!(pool(&rig), Counts::default());
        stream.send_data("end".into(), true).unwrap();
        assert_eq!(text(answer).await, "end");
    }

    #[tokio::test(start_paused = true)]
    async fn when_streams_run_out_a_second_connection_is_opened() {
        let (rig, (to, mut requests)) = (Rig::new(Declared::Http2), mpsc::channel(16));
        let mut one = server::Builder::new();
        one.max_concurrent_streams(1);
        let first = rig.connect_http2(one.clone(), hand_over(to.clone())).await;
        let second = rig.connect_http2(one, hand_over(to)).await;
        assert_eq!(pool(&rig), Counts { http2: 2, streams: 2, ..Counts::default() });
        drop(second);
        assert!(rig.lease(Spoken::Http2).await.unwrap().reused());
        let (answer, _) = tokio::join!(first.send(get("/"), None), async {
            requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        });
        assert_eq!(text(answer.unwrap()).await, "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_peer_is_found_by_ping() {
        let rig = Rig::new(Declared::Http2);
        let (to, mut requests) = mpsc::channel(1);
        let lease = rig
            .connect_http2(server::Builder::new(), |mut server: Server| async move {
                to.send(server.accept().await.unwrap().unwrap()).await.unwrap();
                // Neither reads nor closes.
                let _stalled = server;
                std::future::pending().await
            })
            .await;
        let start = Instant::now();
        let (error, _arrived) = tokio::join!(lease.send(get("/"), None), requests.recv());
        let error = error.err().unwrap();
        assert!(error.reason == Reason::Reset && error.detail.contains("did not answer a PING"), "{error:?}");
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(13) && took < Duration::from_secs(16), "{took:?}");
        settle().await;
        assert_eq!(pool(&rig), Counts::default());
        assert_eq!(rig.peer.metrics().connections.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_stalls_after_a_pause_is_found_as_well() {
        let (rig, (to, mut requests)) = (Rig::new(Declared::Http2), mpsc::channel(1));
        let lease = rig
            .connect_http2(server::Builder::new(), |mut server: Server| async move {
                for _ in 0..2 {
                    to.send(server.accept().await.unwrap().unwrap()).await.unwrap();
                }
                let _stalled = server;
                std::future::pending().await
            })
            .await;
        let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
            requests.recv().await.unwrap().1.send_response(ok(), true).unwrap();
        });
        drop(answer.unwrap());
        // No timer runs while nothing is asked.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let (lease, start) = (rig.lease(Spoken::Http2).await.unwrap(), Instant::now());
        assert!(lease.reused());
        let (error, _arrived) = tokio::join!(lease.send(get("/"), None), requests.recv());
        assert!(error.err().unwrap().detail.contains("did not answer a PING"));
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(13) && took < Duration::from_secs(16), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_only_slow_is_left_alone() {
        let (_rig, lease, mut requests) = connected().await;
        let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
            let (_, mut respond) = requests.recv().await.unwrap();
            tokio::time::sleep(Duration::from_secs(3600)).await;
            respond.send_response(ok(), true).unwrap();
        });
        assert!(answer.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_goes_away_resets_the_stream() {
        let (rig, lease, mut requests) = connected().await;
        let send = tokio::time::timeout(Duration::from_secs(1), lease.send(get("/"), None));
        let (gone, arrived) = tokio::join!(send, requests.recv());
        assert!(gone.is_err());
        let (_, mut respond) = arrived.unwrap();
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), h2::Reason::CANCEL);

        let lease = rig.lease(Spoken::Http2).await.unwrap();
        let (answer, mut stream) = tokio::join!(lease.send(get("/"), None), async {
            requests.recv().await.unwrap().1.send_response(ok(), false).unwrap()
        });
        drop(answer);
        assert_eq!(poll_fn(|cx| stream.poll_reset(cx)).await.unwrap(), h2::Reason::CANCEL);
        assert_eq!(pool(&rig), Counts { http2: 1, ..Counts::default() });
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_all_that_was_promised_does_not_cancel() {
        // The end comes at once, a moment later, or never; with or without trailers.
        for (wait, trailers) in [(0, false), (300, false), (300, true), (60_000, false)] {
            let (rig, lease, mut requests) = connected().await;
            let (answer, mut stream) = tokio::join!(lease.send(get("/"), None), async {
                let ok = Response::builder().header("content-length", 5).body(()).unwrap();
                let mut stream = requests.recv().await.unwrap().1.send_response(ok, false).unwrap();
                stream.send_data("hello".into(), false).unwrap();
                stream
            });
            let mut answer = answer.unwrap();
            let frame = answer.body_mut().frame().await.unwrap().unwrap();
            assert!(
                frame.into_data().unwrap() == "hello" && answer.body().is_whole() && !answer.body().is_end_stream()
            );
            drop(answer);
            assert_eq!(pool(&rig), Counts { http2: 1, streams: 1, ..Counts::default() });
            tokio::time::sleep(Duration::from_millis(wait)).await;
            settle().await;
            if wait > 1000 {
                assert_eq!(poll_fn(|cx| stream.poll_reset(cx)).await.unwrap(), h2::Reason::CANCEL);
            } else if trailers {
                stream.send_trailers(HeaderMap::new()).unwrap();
            } else {
                stream.send_data(Bytes::new(), true).unwrap();
            }
            settle().await;
            assert_eq!(pool(&rig), Counts { http2: 1, ..Counts::default() }, "{wait}");
        }
    }

    /// A caller's HTTP/2 request whose body the test feeds.
    async fn fed(rig: &Rig) -> (Body, SendStream<Bytes>) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (to, from) = oneshot::channel();
        rig.upstreams.tasks.spawn(async move {
            let mut server: Server = server::handshake(theirs).await.unwrap();
            let (request, _respond) = server.accept().await.unwrap().unwrap();
            let _ = to.send(request.into_body());
            while server.accept().await.is_some() {}
        });
        let (mut send, caller) = h2::client::handshake(ours).await.unwrap();
        rig.upstreams.tasks.spawn(async move {
            let _ = caller.await;
        });
        let (_response, stream) = send.send_request(Request::post("http://a/").body(()).unwrap(), false).unwrap();
        // The response future may go; the stream's sending half keeps the stream.
        rig.upstreams.tasks.spawn(async move {
            let (_send, _response) = (send, _response);
            std::future::pending().await
        });
        (Body::Http2(Http2Body::new(from.await.unwrap(), None)), stream)
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_body_only_what_may_be_asked_for_again_is_kept() {
        let (rig, _lease, _requests) = connected().await;
        for (pieces_before, pieces_after) in [(0, 3), (2, 3)] {
            let (body, mut feed) = fed(&rig).await;
            let (mut replay, spare) = crate::http::replay::Replay::new(body);
            let mut next = async |replay: &mut crate::http::replay::Replay| {
                feed.send_data("12345".into(), false).unwrap();
                assert_eq!(replay.frame().await.unwrap().unwrap().into_data().unwrap(), "12345");
                replay.kept()
            };
            for n in 0..pieces_before {
                assert_eq!(next(&mut replay).await, (n + 1) * 5);
            }
            // The answer began: whatever comes now is for this attempt alone.
            drop(spare);
            for _ in 0..pieces_after {
                assert_eq!(next(&mut replay).await, 0);
            }
            feed.send_data("end".into(), true).unwrap();
            assert_eq!(replay.collect().await.unwrap().to_bytes(), "end");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn both_directions_stream_after_the_answer_began() {
        let (rig, lease, mut requests) = connected().await;
        let (body, mut feed) = fed(&rig).await;
        let (answer, (mut up, mut down)) = tokio::join!(lease.send(post(body), None), async {
            let (request, mut respond) = requests.recv().await.unwrap();
            (request.into_body(), respond.send_response(ok(), false).unwrap())
        });
        let mut answer = answer.unwrap().into_body();
        for word in ["one", "two"] {
            feed.send_data(word.into(), false).unwrap();
            assert_eq!(up.data().await.unwrap().unwrap(), word);
            down.send_data(word.into(), false).unwrap();
            assert_eq!(answer.frame().await.unwrap().unwrap().into_data().unwrap(), word);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("6"));
        feed.send_trailers(trailers).unwrap();
        assert!(up.data().await.is_none());
        assert_eq!(up.trailers().await.unwrap().unwrap()["x-sum"], "6");
        down.send_data(Bytes::new(), true).unwrap();
        assert!(answer.frame().await.is_none_or(|frame| frame.unwrap().into_data().unwrap().is_empty()));
        assert_eq!(pool(&rig).streams, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_complete_before_the_request_stops_it() {
        let (rig, lease, mut requests) = connected().await;
        let (body, _feed) = fed(&rig).await;
        let (answer, mut up) = tokio::join!(lease.send(post(body), None), async {
            let (request, mut respond) = requests.recv().await.unwrap();
            respond.send_response(ok(), true).unwrap();
            request.into_body()
        });
        drop(answer.unwrap());
        let error = up.data().await.unwrap().err().unwrap();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_breaks_off_resets_the_stream() {
        let (rig, lease, mut requests) = connected().await;
        let (body, mut feed) = fed(&rig).await;
        let (error, mut up) = tokio::join!(lease.send(post(body), None), async {
            feed.send_data("part".into(), false).unwrap();
            let mut up = requests.recv().await.unwrap().0.into_body();
            assert_eq!(up.data().await.unwrap().unwrap(), "part");
            feed.send_reset(h2::Reason::CANCEL);
            up
        });
        let error = error.err().unwrap();
        assert!(error.reason == Reason::ClientGone && error.unsent.is_none(), "{error:?}");
        assert_eq!(up.data().await.unwrap().err().unwrap().reason(), Some(h2::Reason::CANCEL));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_taken_only_as_the_peer_takes_it() {
        let (rig, lease, mut requests) = connected().await;
        let (body, mut feed) = fed(&rig).await;
        let _send = rig.upstreams.tasks.run(lease.send(post(body), None));
        let (request, _respond) = requests.recv().await.unwrap();
        // Far more than every window on the way; a stalled reader stops the writer.
        feed.reserve_capacity(10 * 1024 * 1024);
        let mut written = 0;
        loop {
            let more = tokio::time::timeout(Duration::from_secs(5), poll_fn(|cx| feed.poll_capacity(cx))).await;
            let Ok(Some(Ok(window))) = more else { break };
            let window = window.min(feed.capacity());
            feed.send_data(vec![0; window].into(), false).unwrap();
            written += window;
        }
        // Not more than the windows on the way, 64 KiB each, and what is between them.
        assert!((64 * 1024 - 1..256 * 1024).contains(&written), "{written}");
        drop(request);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_of_a_body_is_given_up() {
        let upload = || {
            let guard = Guard::new(Duration::from_secs(60), Deadline::NONE, None);
            // More than the peer's window, in one piece.
            let body = Body::text(vec![0; 100_000]);
            post(Body::Guarded(Box::new(Guarded::new(body, guard, Arc::default()))))
        };
        let (rig, lease, mut requests) = connected().await;
        let start = Instant::now();
        let (error, arrived) = tokio::join!(lease.send(upload(), None), requests.recv());
        let error = error.err().unwrap();
        assert!(error.reason == Reason::ResponseTimeout && error.detail.contains("took nothing"), "{error:?}");
        assert_eq!(start.elapsed().as_secs(), 60);
        assert_eq!(pool(&rig), Counts { http2: 1, ..Counts::default() });

        // As well when the answer has begun, by which the rest is sent in a task of its own.
        drop(arrived);
        settle().await;
        let (lease, start) = (rig.lease(Spoken::Http2).await.unwrap(), Instant::now());
        let (answer, (mut up, _down)) = tokio::join!(lease.send(upload(), None), async {
            let (request, mut respond) = requests.recv().await.unwrap();
            (request.into_body(), respond.send_response(ok(), false).unwrap())
        });
        let _answer = answer.unwrap();
        let mut taken = 0;
        let error = loop {
            match up.data().await.unwrap() {
                Ok(data) => taken += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!((taken, error.reason()), (65_535, Some(h2::Reason::CANCEL)));
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn informational_answers_are_passed_on_and_100_lets_the_body_go() {
        let (_rig, lease, mut requests) = connected().await;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = seen.clone();
        let informational: OnInformational = Arc::new(move |head: Response<()>| told.lock().push(head.status()));
        let mut request = post(Body::text("hello"));
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let (answer, _) = tokio::join!(lease.send(request, Some(informational)), async {
            let (request, mut respond) = requests.recv().await.unwrap();
            let mut body = request.into_body();
            let early = tokio::time::timeout(Duration::from_millis(900), body.data()).await;
            assert!(early.is_err(), "{early:?}");
            for status in [100, 103] {
                let head = Response::builder().status(status).body(()).unwrap();
                respond.send_informational(head).unwrap();
            }
            assert_eq!(body.data().await.unwrap().unwrap(), "hello");
            respond.send_response(ok(), true).unwrap();
        });
        assert_eq!(answer.unwrap().status(), 200);
        assert_eq!(*seen.lock(), [100, 103]);
    }

    #[tokio::test(start_paused = true)]
    async fn informational_answers_without_end_are_none() {
        for (many, ended) in [(MOST_INFORMATIONAL, None), (MOST_INFORMATIONAL + 1, Some(Reason::BadResponse))] {
            let (_rig, lease, mut requests) = connected().await;
            let (answer, _) = tokio::join!(lease.send(get("/"), None), async {
                let (_, mut respond) = requests.recv().await.unwrap();
                for _ in 0..many {
                    respond.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
                }
                if ended.is_none() {
                    respond.send_response(ok(), true).unwrap();
                }
                respond
            });
            assert_eq!(answer.err().map(|error| error.reason), ended, "{many}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_of_small_messages_do_not_end_the_connection() {
        let (rig, lease, mut requests) = connected().await;
        let (answer, mut stream) = tokio::join!(lease.send(get("/"), None), async {
            requests.recv().await.unwrap().1.send_response(ok(), false).unwrap()
        });
        // All of them arrive before the first is read.
        for _ in 0..20_000 {
            stream.send_data("12345678".into(), false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(text(answer.unwrap()).await.len(), 160_000);
        assert_eq!(pool(&rig).http2, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_carries_bytes_both_ways_and_keeps_half_close() {
        let (rig, (to, mut requests)) = (Rig::new(Declared::Http2), mpsc::channel(1));
        let mut builder = server::Builder::new();
        builder.enable_connect_protocol();
        let lease = rig.connect_http2(builder, hand_over(to)).await;
        assert!(lease.extended_connect());
        let mut connect = Request::builder().method("CONNECT").uri("http://payments/chat").body(()).unwrap();
        connect.extensions_mut().insert(Protocol::from_static("websocket"));
        let (opened, (mut up, mut down)) = tokio::join!(lease.open_tunnel(connect), async {
            let (request, mut respond) = requests.recv().await.unwrap();
            assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
            (request.into_body(), respond.send_response(ok(), false).unwrap())
        });
        let Opened::Tunnel(head, mut io) = opened.unwrap() else { panic!("refused") };
        assert_eq!(head.status(), 200);
        io.write_all(b"ping").await.unwrap();
        assert_eq!(up.data().await.unwrap().unwrap(), "ping");
        io.shutdown().await.unwrap();
        while let Some(data) = up.data().await {
            assert!(data.unwrap().is_empty());
        }
        down.send_data("pong".into(), true).unwrap();
        let mut rest = String::new();
        io.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "pong");
        assert_eq!(pool(&rig).streams, 1);
        drop(io);
        assert_eq!(pool(&rig).streams, 0);
    }

    #[test]
    fn a_tunnels_scheme_is_that_of_its_leg() {
        for (secure, expected) in [(false, "http://payments/chat?a"), (true, "https://payments/chat?a")] {
            let request = Request::connect("/chat?a").header("host", "payments").body(()).unwrap();
            assert_eq!(head(&request.into_parts().0, secure).uri(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_that_is_not_offered_or_not_granted_is_none() {
        let (_rig, lease, _requests) = connected().await;
        let connect = Request::builder().method("CONNECT").uri("http://payments/").body(()).unwrap();
        assert_eq!(lease.open_tunnel(connect).await.err().unwrap().reason, Reason::UpgradeFailed);

        let (rig, (to, mut requests)) = (Rig::new(Declared::Http2), mpsc::channel(1));
        let mut builder = server::Builder::new();
        builder.enable_connect_protocol();
        let lease = rig.connect_http2(builder, hand_over(to)).await;
        let mut connect = Request::builder().method("CONNECT").uri("http://payments/").body(()).unwrap();
        connect.extensions_mut().insert(Protocol::from_static("websocket"));
        let (opened, _) = tokio::join!(lease.open_tunnel(connect), async {
            let no = Response::builder().status(403).body(()).unwrap();
            let (request, mut respond) = requests.recv().await.unwrap();
            assert_eq!(request.uri().scheme_str(), Some("http"));
            respond.send_response(no, false).unwrap().send_data("no".into(), true).unwrap();
            let mut body = request.into_body();
            assert!(body.data().await.is_none_or(|data| data.unwrap().is_empty()));
        });
        let Opened::Refused(answer) = opened.unwrap() else { panic!("granted") };
        assert_eq!((answer.status().as_u16(), text(answer).await.as_str()), (403, "no"));
        assert_eq!(pool(&rig).streams, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_speak_http2_is_found_before_the_request() {
        let rig = Rig::new(Declared::Http2);
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let (lease, _) = tokio::join!(rig.connect_over(Spoken::Http2, ours), async {
            theirs.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await.unwrap();
        });
        let error = lease.err().unwrap();
        assert_eq!(error.reason, Reason::ConnectFailed);
        assert!(error.detail.contains("HTTP/2"), "{error}");
        // One that says nothing at all is given up with the connect timeout.
        let (ours, _theirs) = tokio::io::duplex(64 * 1024);
        let start = Instant::now();
        let error = rig.connect_over(Spoken::Http2, ours).await.err().unwrap();
        assert_eq!((error.reason, start.elapsed()), (Reason::ConnectTimeout, CONNECT));
        assert_eq!(rig.peer.metrics().connect_failures.get(), 2);
        assert_eq!(pool(&rig), Counts::default());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_http2_cannot_say_is_not_retried() {
        let (_rig, lease, _requests) = connected().await;
        let mut request = get("/");
        request.headers_mut().insert("connection", HeaderValue::from_static("close"));
        let error = lease.send(request, None).await.err().unwrap();
        assert!(error.reason == Reason::Internal && error.unsent.is_none(), "{error:?}");
    }
}
