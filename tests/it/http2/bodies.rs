//! Bodies of HTTP/2: their lengths, their ends and the resets that cut them.

use bytes::Bytes;
use h2::Reason;
use http::{Request, Response};

use super::{chunked_app, told_well, trailers};
use crate::harness::http2::{App2, Arrived, Caller2, drain, end_of, piece, pour, read, soon};
use crate::harness::{App, Caller, field, inbound, outbound};

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn thousands_of_tiny_frames_unread_do_not_end_the_connection() {
    const FRAMES: usize = 4000;
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, mut up) = caller.open(Request::post("http://a/").body(()).unwrap(), false).await;
    // Neither end reads until all is sent: every frame lies unread somewhere.
    for _ in 0..FRAMES {
        up.send_data("x".into(), false).unwrap();
    }
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
    for _ in 0..FRAMES {
        down.send_data("y".into(), false).unwrap();
    }
    // The neighbour's answer comes behind them on the same connections.
    let (neighbour, _) = caller.open(Request::get("http://a/n").body(()).unwrap(), true).await;
    app.next().await.answer("n");
    assert_eq!(read(neighbour).await.unwrap().body, "n");
    up.send_data("x".into(), true).unwrap();
    assert_eq!(drain(arrived.request.into_body()).await.unwrap().0.len(), FRAMES + 1);
    down.send_data("y".into(), true).unwrap();
    assert_eq!(read(answer).await.unwrap().body.len(), FRAMES + 1);
}

/// Begins an answer that promises this length, and sends `part` of it.
fn begun(arrived: &mut Arrived, length: Option<u32>) -> h2::SendStream<Bytes> {
    let mut response = Response::builder();
    if let Some(length) = length {
        response = response.header("content-length", length);
    }
    let mut down = arrived.respond.send_response(response.body(()).unwrap(), false).unwrap();
    down.send_data("part".into(), false).unwrap();
    down
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_cut_by_no_error_is_not_taken_for_whole() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for length in [Some(10), None] {
        let (answer, _) = caller.open(Request::get("http://a/cut").body(()).unwrap(), true).await;
        let mut arrived = app.next().await;
        let mut down = begun(&mut arrived, length);
        let mut body = soon("a head", answer).await.unwrap().into_body();
        assert_eq!(piece(&mut body).await, "part");
        down.send_reset(Reason::NO_ERROR);
        let error = end_of(&mut body).await.expect_err("a truncated body must not end cleanly");
        assert!(error.is_reset(), "{length:?}: {error}");
        sidecar.says(&["reason=response_incomplete", "path=/cut", "side=app"]);
    }
    // A caller of HTTP/1 sees its connection end before the promised length or the last chunk.
    let sidecar = outbound(app.addr, "http2");
    for length in [Some(10), None] {
        let mut caller = Caller::connect(sidecar.outbound);
        caller.send("GET /cut1 HTTP/1.1\r\nHost: server\r\n\r\n");
        let mut arrived = app.next().await;
        let mut down = begun(&mut arrived, length);
        caller.until(b"part");
        down.send_reset(Reason::NO_ERROR);
        let rest = caller.rest();
        assert!(!rest.ends_with("0\r\n\r\n"), "{rest:?}");
        sidecar.says(&["reason=response_incomplete", "path=/cut1"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_early_answer_with_a_reset_that_wants_no_more_is_whole() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, mut up) = caller.open(Request::post("http://a/early").body(()).unwrap(), false).await;
    up.send_data("begin".into(), false).unwrap();
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
    down.send_data("enough".into(), false).unwrap();
    down.send_trailers(trailers("x-sum", "9")).unwrap();
    // h2 follows the end with RST_STREAM(NO_ERROR), because the request's has not come.
    drop((arrived, down));
    let got = read(answer).await.unwrap();
    assert_eq!((&got.body[..], got.field("x-sum")), (&b"enough"[..], Some("9")));
    // The caller is told that the rest of its request is not wanted, as the app was.
    let told = soon("a reset of the upload", std::future::poll_fn(|cx| up.poll_reset(cx))).await.unwrap();
    assert_eq!(told, Reason::NO_ERROR);
    told_well(&sidecar, "/early");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_code_of_a_reset_passes_both_ways() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for reason in [Reason::ENHANCE_YOUR_CALM, Reason::CANCEL, Reason::INTERNAL_ERROR] {
        let (answer, _) = caller.open(Request::get("http://a/down").body(()).unwrap(), true).await;
        let mut arrived = app.next().await;
        let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
        down.send_data("part".into(), false).unwrap();
        let mut body = soon("a head", answer).await.unwrap().into_body();
        assert_eq!(piece(&mut body).await, "part");
        down.send_reset(reason);
        assert_eq!(end_of(&mut body).await.expect_err("reset").reason(), Some(reason));
    }
    // A caller's reset cancels the call, whatever its code: while the answer is awaited, and while it is under way.
    for reason in [Reason::CANCEL, Reason::INTERNAL_ERROR] {
        for answered in [false, true] {
            let (answer, mut up) = caller.open(Request::post("http://a/up").body(()).unwrap(), false).await;
            up.send_data("part".into(), false).unwrap();
            let mut arrived = app.next().await;
            assert_eq!(piece(arrived.request.body_mut()).await, "part");
            let mut answers = Vec::new();
            if answered {
                answers.push(arrived.respond.send_response(Response::new(()), false).unwrap());
                let _ = soon("a head", answer).await.unwrap();
            } else {
                answers.clear();
                drop(answer);
            }
            up.send_reset(reason);
            let error = end_of(arrived.request.body_mut()).await.expect_err("reset");
            assert!(error.is_reset(), "{error}");
            assert_eq!(error.reason(), Some(Reason::CANCEL), "answered: {answered}");
        }
    }
    // The connections outlive all of it.
    let (answer, _) = caller.open(Request::get("http://a/after").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    assert_eq!(arrived.connection, 0);
    arrived.answer("fine");
    assert_eq!(read(answer).await.unwrap().body, "fine");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reset_before_any_answer_is_a_502_that_says_so() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, _) = caller.open(Request::post("http://a/").body(()).unwrap(), true).await;
    app.next().await.respond.send_reset(Reason::INTERNAL_ERROR);
    let got = read(answer).await.unwrap();
    assert_eq!((got.status(), got.reason()), (502, "reset"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_http1_app_is_told_how_long_bodies_are() {
    let app = chunked_app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let sidecar = outbound(app.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    assert_eq!(caller.send(Request::post("http://server/").body("").unwrap()).await.unwrap().body, "hi");
    assert_eq!(field(&app.next(), "content-length").as_deref(), Some("0"));
    // Unusual, but a GET may have a body; without a length of its own it would be lost.
    assert_eq!(caller.send(Request::get("http://server/").body("query").unwrap()).await.unwrap().body, "hi");
    let seen = app.next();
    assert!(seen.ends_with("5\r\nquery\r\n0\r\n\r\n"), "{seen}");
    assert_eq!(caller.get("http://server/").await.unwrap().body, "hi");
    let seen = app.next();
    assert!(field(&seen, "content-length").is_none() && field(&seen, "transfer-encoding").is_none(), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bodies_of_all_lengths_cross_between_versions() {
    let big: &'static str = Box::leak("0123456789abcdef".repeat(64 * 1024).into_boxed_str());
    let answer: &'static str =
        Box::leak(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{big}", big.len()).into_boxed_str());
    let old = App::http(answer);
    let sidecar = outbound(old.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let request = Request::post("http://server/").header("content-length", big.len()).body(()).unwrap();
    let (got, mut up) = caller.open(request, false).await;
    pour(&mut up, Bytes::from_static(big.as_bytes()), true).await.unwrap();
    assert_eq!(read(got).await.unwrap().body, big);
    assert!(old.next().ends_with(big));

    let mut new = App2::start().await;
    let sidecar = outbound(new.addr, "http2");
    let to = sidecar.outbound;
    let caller = std::thread::spawn(move || {
        let mut caller = Caller::connect(to);
        caller.send(format!("POST / HTTP/1.1\r\nHost: server\r\nContent-Length: {}\r\n\r\n{big}", big.len())).answer()
    });
    let mut arrived = new.next().await;
    let (body, _) = drain(arrived.request.into_body()).await.unwrap();
    assert_eq!(body, big);
    let head = Response::builder().header("content-length", big.len()).body(()).unwrap();
    let mut down = arrived.respond.send_response(head, false).unwrap();
    pour(&mut down, body, true).await.unwrap();
    assert!(caller.join().unwrap().ends_with(big));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heads_without_bodies_keep_their_framing() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    for (method, status, length) in
        [("HEAD", 200, Some("7")), ("GET", 204, None), ("GET", 304, None), ("GET", 200, Some("0"))]
    {
        caller.send(format!("{method} / HTTP/1.1\r\nHost: server\r\n\r\n"));
        let mut response = Response::builder().status(status);
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        app.next().await.respond.send_response(response.body(()).unwrap(), true).unwrap();
        let head = caller.until(b"\r\n\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        assert_eq!(field(&head, "content-length").as_deref(), length, "{head}");
        assert_eq!(field(&head, "transfer-encoding"), None, "{head}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_caller_that_leaves_cancels_its_calls() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (_answer, _up) = caller.open(Request::post("http://a/gone").body(()).unwrap(), false).await;
    let mut arrived = app.next().await;
    caller.end.abort();
    drop(caller);
    let error = end_of(arrived.request.body_mut()).await.expect_err("a reset");
    assert_eq!(error.reason(), Some(Reason::CANCEL));
    sidecar.says(&["path=/gone", "reason=client_gone"]);
    assert_eq!(sidecar.metric(&["outrigger_peer_requests_in_flight", "app"]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_stream_is_sent_again_whatever_its_method_and_although_its_body_was_sent() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    for (method, marked) in [("POST", ""), ("PUT", ""), ("PUT", "X-Outrigger-Attempt: 2\r\n")] {
        let mut caller = Caller::connect(sidecar.outbound);
        caller.send(format!("{method} /r HTTP/1.1\r\nHost: server\r\n{marked}Content-Length: 5\r\n\r\nhello"));
        let mut refused = app.next().await;
        assert_eq!(&piece(refused.request.body_mut()).await[..], b"hello");
        refused.respond.send_reset(Reason::REFUSED_STREAM);
        let mut again = app.next().await;
        assert_eq!(&piece(again.request.body_mut()).await[..], b"hello");
        again.answer("hi");
        assert!(caller.answer().starts_with("HTTP/1.1 200 "), "{method} {marked}");
    }
    // Any other reset says nothing about what was done.
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send("POST /unknown HTTP/1.1\r\nHost: server\r\nContent-Length: 5\r\n\r\nhello");
    app.next().await.respond.send_reset(Reason::INTERNAL_ERROR);
    assert!(caller.answer().starts_with("HTTP/1.1 502 "));
    sidecar.says(&["path=/unknown", "reason=reset", "retry_skipped=not_idempotent"]);
    app.unseen();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_refused_request_that_may_not_be_sent_twice_waits_for_no_hedge() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2, hedge: 5ms, retry: { on: [refused-stream], attempts: 3 }");
    let mut post = Caller::connect(sidecar.outbound);
    post.send("POST /r HTTP/1.1\r\nHost: server\r\nContent-Length: 5\r\n\r\nhello");
    let mut refused = app.next().await;
    assert_eq!(&piece(refused.request.body_mut()).await[..], b"hello");
    refused.respond.send_reset(Reason::REFUSED_STREAM);
    let mut again = app.next().await;
    // One that began later is hedged: the time of an earlier one is over.
    let mut get = Caller::connect(sidecar.outbound);
    get.send("GET / HTTP/1.1\r\nHost: server\r\n\r\n");
    let (_slow, mut hedge) = (app.next().await, app.next().await);
    again.answer("hi");
    hedge.answer("hi");
    assert!(post.answer().starts_with("HTTP/1.1 200 ") && get.answer().starts_with("HTTP/1.1 200 "));
    assert_eq!(sidecar.metric(&["outrigger_hedges_total", "server"]), 1.0);
    assert_eq!(sidecar.metric(&["outrigger_hedges_skipped_total", "server"]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_end_that_comes_apart_is_no_departure_of_a_caller_who_reads_by_the_length() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send("GET /apart HTTP/1.1\r\nHost: server\r\n\r\n");
    let mut arrived = app.next().await;
    let head = Response::builder().header("content-length", 2).body(()).unwrap();
    let mut stream = arrived.respond.send_response(head, false).unwrap();
    stream.send_data("hi".into(), false).unwrap();
    assert!(caller.answer().ends_with("\r\n\r\nhi"));
    told_well(&sidecar, "/apart");
    stream.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_answer_with_two_lengths_is_whole_for_callers_of_either_version() {
    const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";
    for (head, body) in [
        ("Content-Length: 2\r\nTransfer-Encoding: chunked", CHUNKS),
        ("Transfer-Encoding: chunked\r\nContent-Length: 99", CHUNKS),
        ("Content-Length: 5\r\nContent-Length: 5", "hello"),
    ] {
        let answer: &'static str = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}").leak();
        let sidecar = outbound(App::http(answer).addr, "http1");
        let got = Caller::connect(sidecar.outbound).send("GET / HTTP/1.1\r\nHost: server\r\n\r\n").answer();
        assert!(got.contains("hello"), "{head}: {got}");
        let got = Caller2::connect(sidecar.outbound).await.get("http://server/").await;
        assert_eq!(got.expect(head).body, "hello", "{head}");
    }
}
