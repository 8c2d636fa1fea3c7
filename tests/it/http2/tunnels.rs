//! Tunnels of HTTP/2: CONNECT, extended CONNECT and what upgrades become.

use std::io::{BufReader, Read, Write};

use bytes::Bytes;
use http::{Method, Request, Response};

use crate::harness::http2::{App2, Caller2, app, end_of, piece, read, soon};
use crate::harness::{App, Caller, field, inbound, outbound, read_head};

const UPGRADED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_extended_connect_becomes_an_upgrade_for_an_http1_app() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        report.send(read_head(&mut reader).unwrap()).unwrap();
        writer.write_all(UPGRADED).unwrap();
        let mut word = [0; 4];
        reader.read_exact(&mut word).unwrap();
        writer.write_all(&word).unwrap();
    });
    let sidecar = outbound(app.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    // The offer comes with the which the first answer proves to have come.
    assert_eq!(caller.get("http://127.0.0.1:1/").await.unwrap().reason(), "address_refused");
    assert!(caller.send.is_extended_connect_protocol_enabled());
    let mut request = Request::connect("http://server/ws").header("sec-websocket-version", "13").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, mut up) = caller.open(request, false).await;
    let answer = soon("a head", answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    for gone in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!answer.headers().contains_key(gone), "{answer:?}");
    }
    up.send_data("ping".into(), false).unwrap();
    let mut body = answer.into_body();
    assert_eq!(piece(&mut body).await, "ping");
    end_of(&mut body).await.unwrap();
    up.send_data(Bytes::new(), true).unwrap();
    let seen = app.next();
    assert!(seen.starts_with("GET /ws HTTP/1.1\r\n"), "{seen}");
    assert_eq!(field(&seen, "upgrade").as_deref(), Some("websocket"));
    assert_eq!(field(&seen, "host").as_deref(), Some("server"));
    assert!(field(&seen, "sec-websocket-key").is_some());
    let line = sidecar.says(&["path=/ws", "status=200"]);
    assert!(!line.contains("reason="), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_http1_app_that_does_not_switch_opens_no_tunnel() {
    for (answer, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 502),
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", 404),
    ] {
        let app = App::http(answer);
        let sidecar = outbound(app.addr, "http1");
        let mut caller = Caller2::connect(sidecar.outbound).await;
        assert_eq!(caller.get("http://127.0.0.1:1/").await.unwrap().reason(), "address_refused");
        let mut request = Request::connect("http://server/ws").body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (answer, _up) = caller.open(request, false).await;
        assert_eq!(read(answer).await.unwrap().status(), status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_upgrade_becomes_an_extended_connect_where_it_is_offered() {
    let mut builder = app();
    builder.enable_connect_protocol();
    let mut offering = App2::with(builder).await;
    let sidecar = outbound(offering.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    const ASK: &str = "GET /ws HTTP/1.1\r\nHost: server\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    caller.send(ASK);
    let mut arrived = offering.next().await;
    assert_eq!(arrived.request.method(), Method::CONNECT);
    assert_eq!(arrived.request.extensions().get::<h2::ext::Protocol>().unwrap().as_str(), "websocket");
    let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
    let head = caller.until(b"\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!(field(&head, "sec-websocket-accept").as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    caller.send("ping");
    assert_eq!(piece(arrived.request.body_mut()).await, "ping");
    down.send_data("pong".into(), true).unwrap();
    caller.until(b"pong");
    assert_eq!(caller.rest(), "");
    drop(caller);
    end_of(arrived.request.body_mut()).await.unwrap();

    // A refusal is the app's own answer, whole.
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(ASK);
    let mut arrived = offering.next().await;
    let no = Response::builder().status(403).header("x-why", "closed").header("content-length", 8).body(()).unwrap();
    let mut down = arrived.respond.send_response(no, false).unwrap();
    down.send_data("not here".into(), true).unwrap();
    let answer = caller.answer();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.ends_with("not here"), "{answer}");
    assert_eq!(field(&answer, "x-why").as_deref(), Some("closed"));

    let mut silent = App2::start().await;
    let sidecar = outbound(silent.addr, "http2");
    let answer = Caller::connect(sidecar.outbound).send(ASK).answer();
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("reason=upgrade_failed"), "{answer}");
    silent.unseen();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_http2_connect_tunnels_at_the_outbound_door() {
    let app = App::start(|mut stream, _| {
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
    });
    let sidecar = outbound(app.addr, "tcp");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let connect = Request::builder().method(Method::CONNECT).uri("server:80").body(()).unwrap();
    let (answer, mut up) = caller.open(connect, false).await;
    let mut answer = soon("a head", answer).await.unwrap();
    assert_eq!(answer.status(), 200);
    up.send_data("echo".into(), true).unwrap();
    assert_eq!(piece(answer.body_mut()).await, "echo");
    end_of(answer.body_mut()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_app_that_refuses_an_upgrade_takes_nothing_of_the_next_request_for_its_body() {
    // It reads as many bytes as a length says, whatever it answers.
    let app = App::http("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone");
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    // The offer comes with the settings, which the first answer proves to have come.
    let probe = caller.send(Request::connect("a:80").body("").unwrap()).await.unwrap();
    assert_eq!(probe.reason(), "method_not_allowed");
    assert!(caller.send.is_extended_connect_protocol_enabled());
    let mut request = Request::builder().method(Method::CONNECT).uri("http://a/ws").header("content-length", "99");
    request.extensions_mut().unwrap().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, _up) = caller.open(request.body(()).unwrap(), false).await;
    let got = read(answer).await.unwrap();
    assert_eq!((got.status(), got.reason()), (400, "bad_head"));
    let mut other = Caller::connect(sidecar.inbound);
    other.send("POST /next HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc");
    assert!(other.answer().starts_with("HTTP/1.1 404"));
    let seen = app.next();
    assert!(seen.starts_with("POST /next") && seen.ends_with("\r\n\r\nabc"), "{seen}");
}
