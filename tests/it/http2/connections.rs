//! Connections of HTTP/2: how they begin, what they share, how they end.

use h2::Reason;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::OK;
use crate::harness::http2::{
    App2, Caller2, GOAWAY, PREFACE, SETTINGS, caller, certificate, end_of, frame, piece, read, soon, tls,
};
use crate::harness::{App, Caller, Sidecar, inbound, inbound_file};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_whose_settings_come_first_is_no_opaque_one() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    // The caller is silent until the app was dialled and has sent its SETTINGS, as grpc-go does at once.
    let io = TcpStream::connect(sidecar.inbound).await.unwrap();
    crate::harness::until("an early dial", || {
        (sidecar.metric(&["outrigger_peer_connects_total", "app"]) == 1.0).then_some(())
    });
    let mut caller = Caller2::over(&caller(), io).await;
    let (answer, _) = caller.open(Request::get("http://a/seen").body(()).unwrap(), true).await;
    app.next().await.answer("x");
    assert_eq!(read(answer).await.unwrap().body, "x");
    sidecar.says(&["path=/seen", "protocol=HTTP/2", "peer_protocol=HTTP/2", "status=200"]);
    assert_eq!(sidecar.metric(&["outrigger_peer_tunnels_total", "app"]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_exchanges_share_one_connection_to_an_http2_app() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let mut answers = Vec::new();
    for n in 0..100 {
        answers.push(caller.open(Request::get(format!("http://a/{n}")).body(()).unwrap(), true).await.0);
    }
    for _ in 0..100 {
        let mut arrived = app.next().await;
        assert_eq!(arrived.connection, 0);
        arrived.answer("x");
    }
    for answer in answers {
        assert_eq!(read(answer).await.unwrap().body, "x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_versions_are_served_over_tls() {
    let mut app = App2::start().await;
    let (pem, key, config) = certificate(&[b"h2"]);
    let folder = crate::harness::Folder::new();
    let (pem, key) = (folder.write("cert.pem", &pem), folder.write("key.pem", &key));
    let more = format!(", tls: {{ certificate: '{}', key: '{}' }}", pem.display(), key.display());
    let sidecar = inbound(app.addr, &more);
    let stream = tls(config.clone(), sidecar.inbound).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut caller = Caller2::over(&caller(), stream).await;
    let (answer, _) = caller.open(Request::get("https://localhost/s").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    assert_eq!(arrived.field("x-forwarded-proto"), Some("https"));
    arrived.answer("secret");
    assert_eq!(read(answer).await.unwrap().body, "secret");
    sidecar.says(&["scheme=https", "path=/s", "status=200"]);

    for alpn in [&[&b"http/1.1"[..]][..], &[]] {
        let mut config = (*config).clone();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let mut stream = tls(config.into(), sidecar.inbound).await;
        assert_eq!(stream.get_ref().1.alpn_protocol(), alpn.first().copied());
        stream.write_all(b"GET /1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
        // The app speaks HTTP/2 only; that it was dialled in HTTP/1 is all that is looked at here.
        let mut answer = String::new();
        let _ = soon("an answer", stream.read_to_string(&mut answer)).await;
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_declared_protocol_is_binding() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, ", protocol: http2");
    let answer = Caller::connect(sidecar.inbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").rest();
    assert!(!answer.contains("HTTP/1.1 200"), "{answer:?}");
    sidecar.says(&["reason=wrong_protocol"]);
    app.unseen();
    let old = App::http(OK);
    let sidecar = Sidecar::start(&inbound_file(old.addr, ", protocol: http1"));
    let rest = Caller::connect(sidecar.inbound).send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").rest();
    assert!(!rest.contains("200"), "{rest:?}");
    old.unseen();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_drain_says_goaway_and_lets_the_stream_under_way_finish() {
    let mut app = App2::start().await;
    let mut sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, _) = caller.open(Request::get("http://a/late").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
    down.send_data("first ".into(), false).unwrap();
    let mut answer = soon("a head", answer).await.unwrap();
    assert_eq!(piece(answer.body_mut()).await, "first ");
    sidecar.signal("TERM");
    // GOAWAY makes the caller's end refuse new streams.
    while soon("a refusal of new streams", caller.send.clone().ready()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    down.send_data("last".into(), true).unwrap();
    assert_eq!(piece(answer.body_mut()).await, "last");
    end_of(answer.body_mut()).await.unwrap();
    soon("the connection's end", caller.end).await.unwrap().unwrap();
    assert_eq!(sidecar.exit(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_idle_connection_is_ended_in_order() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, ", timeout: { keep-alive: 1s }");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, _) = caller.open(Request::get("http://a/").body(()).unwrap(), true).await;
    app.next().await.answer("x");
    assert_eq!(read(answer).await.unwrap().body, "x");
    soon("the connection's end", caller.end).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn connections_that_break_the_rules_are_told_of_and_those_that_only_end_are_not() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, ", protocol: http2, timeout: { head: 1s }");
    let whole = || [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let goaway = |code: u8| frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, code]);
    let cases = [
        ("nothing", vec![], None),
        ("half a preface", PREFACE[..10].to_vec(), None),
        ("a preface alone", whole(), None),
        ("an orderly end", [whole(), goaway(0)].concat(), None),
        ("DATA on no stream", [whole(), frame(0, 0, 0, b"x")].concat(), Some("bad_head")),
        ("SETTINGS of five bytes", [whole(), frame(SETTINGS, 0, 0, &[0; 5])].concat(), Some("bad_head")),
        ("a complaint", [whole(), goaway(1)].concat(), Some("client_gone")),
    ];
    let mut told = Vec::new();
    for (what, bytes, reason) in cases {
        let mut io = TcpStream::connect(sidecar.inbound).await.unwrap();
        io.write_all(&bytes).await.unwrap();
        if let Some(reason) = reason {
            let _ = soon("the connection's end", io.read_to_end(&mut Vec::new())).await;
            told.push(reason);
        }
        drop(io);
        let lines = crate::harness::until(what, || {
            let log = sidecar.log();
            let lines: Vec<_> = log.lines().filter(|line| line.contains("reason=")).map(str::to_owned).collect();
            (lines.len() >= told.len()).then_some(lines)
        });
        // One that should not be there is found here, or in a later turn.
        assert!(lines.iter().zip(&told).all(|(line, reason)| line.contains(&format!("reason={reason} "))), "{lines:?}");
        assert_eq!(lines.len(), told.len(), "{what}: {lines:?}");
    }
    assert_eq!(sidecar.metric(&["outrigger_failures_total", "bad_head"]), 2.0);
    // A preface that stops.
    let mut io = TcpStream::connect(sidecar.inbound).await.unwrap();
    io.write_all(&PREFACE[..10]).await.unwrap();
    let _ = soon("the connection's end", io.read_to_end(&mut Vec::new())).await;
    sidecar.says(&["reason=head_timeout", "preface"]);
    app.unseen();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_flood_of_cancelled_requests_ends_its_connection_alone() {
    const BATCH: usize = 100;
    let mut app = App2::start().await;
    let sidecar = Sidecar::start(&inbound_file(app.addr, "").replace("log: all", "log: failures"));
    let mut neighbour = Caller2::connect(sidecar.inbound).await;
    let mut caller = Caller2::connect(sidecar.inbound).await;
    // What arrived is kept: dropped, it would be answered.
    let (mut cancelled, mut streams, mut arrived) = (0, Vec::new(), Vec::new());
    let ended = 'flood: loop {
        for _ in 0..BATCH {
            let Ok(mut ready) = soon("room for a stream", caller.send.clone().ready()).await else {
                break 'flood soon("the end", &mut caller.end).await;
            };
            streams.push(ready.send_request(Request::post("http://a/flood").body(()).unwrap(), false).unwrap());
        }
        // All of them have begun, so none is dropped before it is sent.
        for _ in 0..streams.len() {
            tokio::select! {
                request = app.next() => arrived.push(request),
                ended = &mut caller.end => break 'flood ended,
            }
        }
        for (_, mut up) in streams.drain(..) {
            up.send_reset(Reason::CANCEL);
            cancelled += 1;
        }
        assert!(cancelled < 20_000, "a flood without an end");
    };
    assert!(cancelled >= 2000, "ended after {cancelled}");
    let error = ended.unwrap().expect_err("not an orderly end");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    sidecar.says(&["reason=flood", "side=client"]);
    while app.try_next().is_some() {}
    let (answer, _) = neighbour.open(Request::get("http://a/calm").body(()).unwrap(), true).await;
    app.next().await.answer("calm");
    assert_eq!(read(answer).await.unwrap().body, "calm");
}
