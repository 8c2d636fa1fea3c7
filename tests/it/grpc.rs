//! gRPC's shapes through the binary: status in trailers, failures told as trailers only, deadlines, cancellation.

use bytes::Bytes;
use h2::Reason;
use http::request::Builder;
use http::{HeaderMap, HeaderValue, Request, Response};

use crate::harness::http2::{App2, Arrived, Caller2, drain, end_of, piece, pour, read, soon};
use crate::harness::{App, Caller, free_port, inbound, outbound};

fn call(method: &str) -> Builder {
    Request::post(format!("http://a/shop.Cart/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn status(code: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert("grpc-status", HeaderValue::from_static(code));
    map.insert("grpc-message", HeaderValue::from_static("so%20it%20is"));
    map
}

/// A message with gRPC's five-byte prefix.
fn message(text: &str) -> Bytes {
    let mut all = vec![0];
    all.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
    all.extend_from_slice(text.as_bytes());
    all.into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_dead_app_is_told_in_trailers_only() {
    let dead = ([127, 0, 0, 1], free_port()).into();
    let sidecar = inbound(dead, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, mut up) = caller.open(call("Get").body(()).unwrap(), false).await;
    up.send_data(message("x"), true).unwrap();
    let answer = soon("a head", answer).await.unwrap();
    // Trailers-Only: one HEADERS frame that ends the stream.
    assert!(answer.body().is_end_stream(), "{answer:?}");
    let fields = answer.headers();
    assert_eq!((answer.status().as_u16(), &fields["grpc-status"]), (200, &HeaderValue::from_static("14")));
    assert_eq!(fields["content-type"], "application/grpc");
    let words = fields["grpc-message"].to_str().unwrap();
    assert!(words.contains("connect_refused") && words.contains("app"), "{words}");
    assert!(fields["proxy-status"].to_str().unwrap().contains("reason=connect_refused; side=app"));
    sidecar.says(&["path=/shop.Cart/Get", "reason=connect_refused", "side=app"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_apps_own_status_passes_in_every_place() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;

    let (answer, mut up) = caller.open(call("Get").body(()).unwrap(), false).await;
    up.send_data(message("ask"), true).unwrap();
    let mut arrived = app.next().await;
    assert_eq!(arrived.field("te"), Some("trailers"));
    let mut down = arrived.respond.send_response(head(), false).unwrap();
    down.send_data(message("told"), false).unwrap();
    down.send_trailers(status("0")).unwrap();
    let got = read(answer).await.unwrap();
    assert_eq!((got.body, got.trailers.as_ref().unwrap()["grpc-status"].to_str().unwrap()), (message("told"), "0"));

    // After no message, and in the head itself.
    let (answer, _) = caller.open(call("Get").body(()).unwrap(), true).await;
    app.next().await.respond.send_response(head(), false).unwrap().send_trailers(status("5")).unwrap();
    let got = read(answer).await.unwrap();
    assert_eq!(
        (got.body.len(), got.field("grpc-status"), got.field("grpc-message")),
        (0, Some("5"), Some("so%20it%20is"))
    );
    let (answer, _) = caller.open(call("Get").body(()).unwrap(), true).await;
    let mut only = head();
    only.headers_mut().insert("grpc-status", HeaderValue::from_static("7"));
    app.next().await.respond.send_response(only, true).unwrap();
    let got = read(answer).await.unwrap();
    assert!(got.trailers.is_none() && got.field("grpc-status") == Some("7"), "{got:?}");
    let line = sidecar.says(&["path=/shop.Cart/Get"]);
    assert!(!line.contains("reason="), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn messages_flow_both_ways_one_by_one() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, mut up) = caller.open(call("Chat").body(()).unwrap(), false).await;
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(head(), false).unwrap();
    let mut answer = soon("a head", answer).await.unwrap();
    for n in 0..50 {
        let text = message(&n.to_string());
        up.send_data(text.clone(), false).unwrap();
        assert_eq!(piece(arrived.request.body_mut()).await, text);
        down.send_data(text.clone(), false).unwrap();
        assert_eq!(piece(answer.body_mut()).await, text);
    }
    // The caller has said all; the app has more to say.
    up.send_data(Bytes::new(), true).unwrap();
    end_of(arrived.request.body_mut()).await.unwrap();
    down.send_data(message("last"), false).unwrap();
    down.send_trailers(status("0")).unwrap();
    let (rest, trailers) = drain(answer.into_body()).await.unwrap();
    assert_eq!((rest, trailers.unwrap()["grpc-status"].to_str().unwrap()), (message("last"), "0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_of_four_mebibytes_passes_both_ways() {
    let big = Bytes::from(vec![7; 4 << 20]);
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, mut up) = caller.open(call("Big").body(()).unwrap(), false).await;
    let sent = big.clone();
    let sending = tokio::spawn(async move { pour(&mut up, sent, true).await.unwrap() });
    let mut arrived = app.next().await;
    assert_eq!(drain(arrived.request.into_body()).await.unwrap().0, big);
    sending.await.unwrap();
    let mut down = arrived.respond.send_response(head(), false).unwrap();
    let back = big.clone();
    tokio::spawn(async move {
        pour(&mut down, back, false).await.unwrap();
        down.send_trailers(status("0")).unwrap();
    });
    let got = read(answer).await.unwrap();
    assert!(got.body == big && got.field("grpc-status") == Some("0"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_deadline_passes_as_deadline_exceeded_and_reaches_the_app() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, _up) = caller.open(call("Slow").header("grpc-timeout", "1S").body(()).unwrap(), false).await;
    let Arrived { mut request, .. } = app.next().await;
    assert!(request.headers().contains_key("grpc-timeout"));
    let got = read(answer).await.unwrap();
    assert_eq!((got.status(), got.field("grpc-status"), got.reason()), (200, Some("4"), "deadline_passed"));
    assert!(end_of(request.body_mut()).await.is_err(), "the app must learn that nobody waits");
    sidecar.says(&["path=/shop.Cart/Slow", "reason=deadline_passed"]);

    // Its time ends while messages still come: the stream is cancelled on both legs.
    let (answer, _up) = caller.open(call("Drip").header("grpc-timeout", "1S").body(()).unwrap(), false).await;
    let Arrived { mut request, mut respond, .. } = app.next().await;
    let mut down = respond.send_response(head(), false).unwrap();
    down.send_data(message("one"), false).unwrap();
    let mut answer = soon("a head", answer).await.unwrap();
    assert_eq!(piece(answer.body_mut()).await, message("one"));
    assert!(end_of(answer.body_mut()).await.is_err());
    assert!(end_of(request.body_mut()).await.is_err());
    sidecar.says(&["path=/shop.Cart/Drip", "reason=deadline_passed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_cancelled_call_is_cancelled_at_the_app() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for answered in [false, true] {
        let (answer, mut up) = caller.open(call("Watch").body(()).unwrap(), false).await;
        let Arrived { mut request, mut respond, .. } = app.next().await;
        let down = answered.then(|| respond.send_response(head(), false).unwrap());
        let answer = if answered { Ok(soon("a head", answer).await.unwrap()) } else { Err(answer) };
        up.send_reset(Reason::CANCEL);
        assert_eq!(end_of(request.body_mut()).await.unwrap_err().reason(), Some(Reason::CANCEL));
        drop((answer, down));
    }
    sidecar.says(&["path=/shop.Cart/Watch", "reason=client_gone"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_app_that_breaks_off_is_unavailable_or_reset() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, _) = caller.open(call("Get").body(()).unwrap(), true).await;
    app.next().await.respond.send_reset(Reason::INTERNAL_ERROR);
    let got = read(answer).await.unwrap();
    assert_eq!((got.field("grpc-status"), got.reason()), (Some("14"), "reset"));
    let (answer, _) = caller.open(call("Get").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(head(), false).unwrap();
    down.send_data(message("one"), false).unwrap();
    let mut answer = soon("a head", answer).await.unwrap();
    assert_eq!(piece(answer.body_mut()).await, message("one"));
    down.send_reset(Reason::INTERNAL_ERROR);
    assert!(end_of(answer.body_mut()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_call_over_http1_still_gets_its_status() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send("POST /shop.Cart/Get HTTP/1.1\r\nHost: server\r\nContent-Type: application/grpc\r\nTE: trailers\r\nContent-Length: 0\r\n\r\n");
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(head(), false).unwrap();
    down.send_data(message("x"), false).unwrap();
    down.send_trailers(status("0")).unwrap();
    let answer = caller.answer().to_ascii_lowercase();
    assert!(answer.contains("grpc-status: 0\r\n") && answer.contains("grpc-message: so%20it%20is"), "{answer}");
    // What is no HTTP/2 at all is told as gRPC does, too.
    let old = App::http("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let sidecar = outbound(old.addr, "http2");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let request = Request::post("http://server/x").header("content-type", "application/grpc").body("").unwrap();
    let got = caller.send(request).await.unwrap();
    assert_eq!((got.status(), got.field("grpc-status")), (200, Some("14")), "{got:?}");
}
