//! HTTP/2 callers: streams, silence, heads that do not end, callers that do not read, drains.

use bytes::Bytes;
use http::{Request, Response};

use super::*;
use crate::plan::door::Mtls;

type Arrived = (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>);

/// An HTTP/2 caller and app, each connection driven by a task.
struct Two {
    house: House,
    send: h2::client::SendRequest<Bytes>,
    pings: h2::PingPong,
    ended: tokio::task::JoinHandle<Result<(), h2::Error>>,
    arrived: Option<mpsc::Receiver<Arrived>>,
}

impl Two {
    async fn new(more: &str) -> Self {
        Self::at(House::new(&format!(", protocol: http2{more}")), House::serve).await
    }

    async fn at(house: House, serve: impl FnOnce(&House, DuplexStream)) -> Self {
        let (ours, theirs) = duplex(PIPE);
        serve(&house, theirs);
        let (send, mut connection) = h2::client::handshake(ours).await.unwrap();
        let pings = connection.ping_pong().unwrap();
        let ended = house.tasks.run(connection);
        Self { house, send, pings, ended, arrived: None }
    }

    async fn get(&mut self, path: &str) -> h2::client::ResponseFuture {
        let mut ready = self.send.clone().ready().await.unwrap();
        let request = Request::get(format!("http://a{path}")).body(()).unwrap();
        ready.send_request(request, true).unwrap().0
    }

    async fn next(&mut self) -> Arrived {
        if self.arrived.is_none() {
            let io = self.house.app().await;
            let (to, arrived) = mpsc::channel(16);
            self.house.tasks.spawn(async move {
                let mut serving = h2::server::handshake(io).await.unwrap();
                while let Some(Ok(arrived)) = serving.accept().await {
                    let _ = to.send(arrived).await;
                }
            });
            self.arrived = Some(arrived);
        }
        self.arrived.as_mut().unwrap().recv().await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_stream_outlives_the_end_of_others_and_the_silence_after_it() {
    let mut two = Two::new("").await;
    let long = two.get("/long").await;
    let (_request, mut respond) = two.next().await;
    let short = two.get("/short").await;
    two.next().await.1.send_response(Response::new(()), true).unwrap();
    assert_eq!(short.await.unwrap().status(), 200);
    // Bytes that are no request's head begin no head's clock.
    two.pings.ping(h2::Ping::opaque()).await.unwrap();
    sleep(Duration::from_secs(300)).await;
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(long.await.unwrap().status(), 200);
    drop(two.send);
    two.ended.await.unwrap().unwrap();
    assert_eq!(two.house.lines().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_told_to_go_and_closed_if_it_does_not() {
    let mut two = Two::new("").await;
    let start = Instant::now();
    let answer = two.get("/").await;
    two.next().await.1.send_response(Response::new(()), true).unwrap();
    answer.await.unwrap();
    (&mut two.ended).await.unwrap().unwrap();
    assert_eq!(seconds(start), 75);
    let line = two.house.line().await;
    assert!(!line.contains("reason="), "{line}");

    // A caller that neither reads nor leaves.
    let house = House::new(", protocol: http2");
    let start = Instant::now();
    let mut dead = house.caller("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    rest_bytes(&mut dead).await;
    assert!((75..90).contains(&seconds(start)), "{}", seconds(start));
    assert!(house.lines().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_http2_head_or_preface_that_does_not_end_is_no_wait_without_a_clock() {
    for start_of in [
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        // SETTINGS, then HEADERS without END_HEADERS.
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0\0\0\u{1}\u{1}\0\0\0\0\u{1}\0",
    ] {
        let house = House::new(", protocol: http2");
        let start = Instant::now();
        let mut caller = house.caller(start_of).await;
        rest_bytes(&mut caller).await;
        assert!(seconds(start) <= 90, "{}", seconds(start));
        house.core.inbound.open.idle().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_caller_that_does_not_read_is_reset_after_the_idle_time() {
    let mut two = Two::new("").await;
    let start = Instant::now();
    let answer = two.get("/").await;
    let (_request, mut respond) = two.next().await;
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    down.send_data(vec![0; 1 << 20].into(), true).unwrap();
    let mut body = answer.await.unwrap().into_body();
    let mut got = 0;
    let error = loop {
        // Taken, but never given back as window.
        match body.data().await.unwrap() {
            Ok(piece) => got += piece.len(),
            Err(error) => break error,
        }
    };
    assert_eq!((got, error.reason(), seconds(start)), (65_535, Some(h2::Reason::CANCEL), 60));
    drop((two.send, body));
    let line = two.house.line().await;
    assert!(line.contains("status=200 reason=client_gone"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_drained_http2_connection_that_does_not_go_is_not_waited_for() {
    let house = House::new(", protocol: http2");
    let mut dead = house.caller("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0").await;
    settle().await;
    let start = Instant::now();
    house.core.inbound.drain.advance(Phase::Draining);
    rest_bytes(&mut dead).await;
    assert_eq!(seconds(start), 5);
    house.core.inbound.open.idle().await;
}

/// Asks for a WebSocket with these fields, at a door whose app speaks HTTP/1.
async fn websocket(fields: &[(&str, &str)]) -> (House, h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    let house = House::new("");
    let (ours, theirs) = duplex(PIPE);
    house.serve(theirs);
    let (mut send, connection) = h2::client::handshake(ours).await.unwrap();
    house.tasks.spawn(async move {
        let _ = connection.await;
    });
    // Until the door's settings have come.
    while !send.is_extended_connect_protocol_enabled() {
        tokio::task::yield_now().await;
    }
    let mut request = Request::builder().method("CONNECT").uri("http://a/ws");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut request = request.body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, stream) = send.send_request(request, false).unwrap();
    (house, answer, stream)
}

#[tokio::test(start_paused = true)]
async fn an_extended_connect_with_a_length_is_refused_before_the_app_is_called() {
    let (mut house, answer, _stream) = websocket(&[("content-length", "40")]).await;
    assert_eq!(answer.await.unwrap().status(), 400);
    assert!(house.app.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_a_body_is_not_told_to_the_app_that_is_asked_for_a_tunnel() {
    let fields = [("content-length", "0"), ("expect", "100-continue"), ("trailer", "x"), ("x-other", "1")];
    let (mut house, answer, _stream) = websocket(&fields).await;
    // The app shows that it knows no HTTP/2.
    drop(house.app().await);
    let mut app = house.app().await;
    let head = read_until(&mut app, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.starts_with("get /ws http/1.1") && head.contains("x-other: 1"), "{head}");
    for name in ["content-length", "expect", "trailer"] {
        assert!(!head.contains(&format!("{name}: ")), "{head}");
    }
    say(&mut app, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(answer.await.unwrap().status(), 404);
}

/// A frame by hand, for what h2 would not send.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_is_told_to_go_and_does_not_answer_asks_in_vain_after_its_last_word() {
    const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
    let mut two = Two::new("").await;
    let (ours, theirs) = duplex(PIPE);
    two.house.serve(theirs);
    let (mut from, mut to) = tokio::io::split(ours);
    to.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    to.write_all(&frame(4, 0, 0, &[])).await.unwrap();
    // It reads, and answers neither SETTINGS nor PING.
    let heard = two.house.tasks.run(async move {
        let mut all = Vec::new();
        let _ = from.read_to_end(&mut all).await;
        all
    });
    // GET, http, / and an authority, from HPACK's own table.
    let ask = |stream| frame(1, 5, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
    // One that lasts, so that the connection does.
    to.write_all(&ask(1)).await.unwrap();
    let _lasting = two.next().await;
    two.house.core.inbound.drain.advance(Phase::Draining);
    let start = Instant::now();
    for second in 1..30_u32 {
        let _ = to.write_all(&ask(second * 2 + 1)).await;
        settle().await;
        let arrived = tokio::time::timeout(Duration::from_secs(1), two.next()).await;
        if let Ok((_, mut respond)) = arrived {
            assert!(seconds(start) <= 5, "served after {} s", seconds(start));
            respond.send_response(Response::new(()), true).unwrap();
            sleep(Duration::from_millis(900)).await;
        }
    }
    two.house.core.inbound.drain.advance(Phase::Forced);
    let heard = heard.await.unwrap();
    let resets = heard.windows(13).filter(|at| at[..5] == [0, 0, 4, 3, 0] && at[9..] == REFUSED_STREAM);
    assert!(resets.count() > 0, "{heard:?}");
}

/// A caller of a door that takes mutual TLS only, but for its probes.
fn strictly(house: &House, io: DuplexStream) {
    let door = house.plan.doors.iter().find(|door| door.side == Door::Inbound).unwrap();
    let door = Arc::new(DoorPlan { mtls: Mtls::Strict, ..DoorPlan::clone(door) });
    let caller = crate::proxy::Caller { client: ClientAddr(None), original: OriginalDst::EXPLICIT };
    house.serve_at(&door, caller, &house.learned, Io::boxed(io));
}

const PROBES: &str = ", protocol: http2, probes: [{ path: /healthz }]";

#[tokio::test(start_paused = true)]
async fn who_has_to_prove_itself_and_does_not_holds_an_http2_connection_for_a_few_seconds() {
    const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = format!("{PREFACE}\0\0\0\u{4}\0\0\0\0\0");
    for first in [PREFACE, &settings] {
        let house = House::new(PROBES);
        let start = Instant::now();
        let (mut caller, theirs) = duplex(PIPE);
        say(&mut caller, first).await;
        strictly(&house, theirs);
        rest_bytes(&mut caller).await;
        assert!((10..=15).contains(&seconds(start)), "{}", seconds(start));
        assert!(house.lines().await.is_empty());
    }
    // Its requests do not make that longer, and each that is let in is served to its end.
    let mut two = Two::at(House::new(PROBES), strictly).await;
    let start = Instant::now();
    sleep(Duration::from_secs(6)).await;
    let first = two.get("/healthz").await;
    two.next().await.1.send_response(Response::new(()), true).unwrap();
    assert_eq!(first.await.unwrap().status(), 200);
    let slow = two.get("/healthz").await;
    let (_request, mut respond) = two.next().await;
    sleep(Duration::from_secs(30)).await;
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(slow.await.unwrap().status(), 200);
    (&mut two.ended).await.unwrap().unwrap();
    assert_eq!(seconds(start), 36);
}

#[tokio::test(start_paused = true)]
async fn an_http2_connection_in_plaintext_ends_in_order_with_the_first_refusal_for_it() {
    let mut two = Two::at(House::new(PROBES), strictly).await;
    let start = Instant::now();
    let refused = two.get("/").await.await.unwrap();
    assert_eq!(refused.status(), 403);
    let why = refused.into_body().data().await.unwrap().unwrap();
    assert!(why.starts_with(b"outrigger: plaintext_refused"), "{why:?}");
    (&mut two.ended).await.unwrap().unwrap();
    assert_eq!(seconds(start), 0);
    let line = two.house.line().await;
    assert!(line.contains("status=403 reason=plaintext_refused"), "{line}");

    // One that gives no window for the answer is waited for no longer than one that does not leave.
    let house = House::new(PROBES);
    let (ours, theirs) = duplex(PIPE);
    strictly(&house, theirs);
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(0).handshake::<_, Bytes>(ours).await.unwrap();
    let ended = house.tasks.run(connection);
    let start = Instant::now();
    let mut ready = send.ready().await.unwrap();
    let (answer, _request) = ready.send_request(Request::get("http://a/").body(()).unwrap(), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 403);
    let _ = ended.await.unwrap();
    assert_eq!(seconds(start), 5);
}

#[tokio::test(start_paused = true)]
async fn a_trailer_brings_the_app_nothing_that_rules_or_tokens_judge_in_heads() {
    const DENY: &str = ", deny: [{ headers: { x-debug: \"1\" } }]";
    const ALLOW: &str = ", allow: [{ headers: { x-debug: { present: false } } }]";
    const TOKEN: &str = ", jwt: [{ issuer: i, audiences: any, jwks: \"https://i/k\", token: x-debug }]";
    for (rules, passes) in [
        ("", true),
        (DENY, false),
        (ALLOW, false),
        (TOKEN, false),
        (", deny: [{ paths: /y }]", true),
        (", authorization: audit, deny: [{ headers: { x-debug: \"1\" } }]", true),
    ] {
        let mut two = Two::new(rules).await;
        for (name, judged) in [("x-debug", true), ("x_debug", true), ("x-sum", false)] {
            let mut ready = two.send.clone().ready().await.unwrap();
            let request = Request::post("http://a/x").body(()).unwrap();
            let (answer, mut up) = ready.send_request(request, false).unwrap();
            up.send_data("hi".into(), false).unwrap();
            let trailers =
                [(name, "1"), ("x-other", "2")].map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            up.send_trailers(trailers.into_iter().collect()).unwrap();
            let (request, mut respond) = two.next().await;
            let mut body = request.into_body();
            while let Some(piece) = body.data().await {
                body.flow_control().release_capacity(piece.unwrap().len()).unwrap();
            }
            let got = body.trailers().await.unwrap().unwrap();
            assert_eq!(got.contains_key(name), passes || !judged, "{rules}: {name}: {got:?}");
            assert_eq!(got["x-other"], "2", "{rules}");
            respond.send_response(Response::new(()), true).unwrap();
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    }
}
