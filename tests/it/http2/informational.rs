//! Answers before the answer: 100 and 103.

use http::{HeaderValue, Request, Response, StatusCode};

use crate::harness::http2::{App2, Caller2, drain, read, soon};
use crate::harness::{App, Caller, Sidecar, inbound, inbound_file, outbound};

fn informational(status: u16) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn expectations_are_answered_by_the_app_on_http2_legs_too() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let expecting = || Request::put("http://a/e").header("expect", "100-continue").body(()).unwrap();

    let (mut answer, mut stream) = caller.open(expecting(), false).await;
    let mut arrived = app.next().await;
    assert_eq!(arrived.field("expect"), Some("100-continue"));
    arrived.respond.send_informational(informational(100)).unwrap();
    let first = soon("100", std::future::poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!(first.status(), 100);
    stream.send_data("body".into(), true).unwrap();
    assert_eq!(drain(arrived.request.into_body()).await.unwrap().0, "body");
    arrived.respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(read(answer).await.unwrap().status(), 200);

    let (answer, _stream) = caller.open(expecting(), false).await;
    let mut arrived = app.next().await;
    let mut no = Response::new(());
    *no.status_mut() = StatusCode::EXPECTATION_FAILED;
    arrived.respond.send_response(no, true).unwrap();
    assert_eq!(read(answer).await.unwrap().status(), 417);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_http1_caller_hears_the_100_of_an_http2_app() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send("PUT / HTTP/1.1\r\nHost: server\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n");
    let mut arrived = app.next().await;
    arrived.respond.send_informational(informational(100)).unwrap();
    assert!(caller.until(b"\r\n\r\n").starts_with("HTTP/1.1 100"));
    caller.send("body");
    assert_eq!(drain(arrived.request.into_body()).await.unwrap().0, "body");
    arrived.respond.send_response(Response::new(()), true).unwrap();
    assert!(caller.until(b"\r\n\r\n").starts_with("HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn no_informational_answer_is_lost_between_two_threads() {
    let mut app = App2::start().await;
    // While one thread looks after an exchange because a piece of its body came, the other may read the next 103.
    let sidecar = Sidecar::start(&format!("workers: 2\n{}", inbound_file(app.addr, "")));
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for _ in 0..40 {
        let (mut answer, mut up) = caller.open(Request::post("http://a/").body(()).unwrap(), false).await;
        let mut arrived = app.next().await;
        let feeding = tokio::spawn(async move {
            for _ in 0..10 * HINTS {
                up.send_data("x".into(), false).unwrap();
                tokio::task::yield_now().await;
            }
            up
        });
        for _ in 0..HINTS {
            arrived.respond.send_informational(informational(103)).unwrap();
            tokio::task::yield_now().await;
        }
        for n in 0..HINTS {
            let hint = soon("103", std::future::poll_fn(|cx| answer.poll_informational(cx))).await;
            assert_eq!(hint.unwrap_or_else(|| panic!("only {n}")).unwrap().status(), 103);
        }
        drop(feeding.await.unwrap());
        arrived.respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(read(answer).await.unwrap().status(), 200);
    }
}

/// Informational answers to one request, as many as are passed on (`src/proxy/serve_http2.rs`).
const HINTS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn informational_answers_without_an_end_do_not_pile_up() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (mut answer, _) = caller.open(Request::get("http://a/").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    for _ in 0..HINTS + 7 {
        arrived.respond.send_informational(informational(103)).unwrap();
    }
    arrived.answer("x");
    let mut hints = 0;
    while soon("103", std::future::poll_fn(|cx| answer.poll_informational(cx))).await.is_some() {
        hints += 1;
    }
    assert_eq!((hints, &read(answer).await.unwrap().body[..]), (HINTS, &b"x"[..]));
    assert_eq!(sidecar.metric(&["outrigger_informational_dropped_total", "inbound"]), 7.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn early_hints_reach_http2_callers_from_apps_of_both_versions() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (mut answer, _) = caller.open(Request::get("http://a/").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    let mut hint = informational(103);
    hint.headers_mut().insert("link", HeaderValue::from_static("</a.css>"));
    arrived.respond.send_informational(hint).unwrap();
    let hint = soon("103", std::future::poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!((hint.status().as_u16(), &hint.headers()["link"]), (103, &HeaderValue::from_static("</a.css>")));
    arrived.answer("done");
    assert_eq!(read(answer).await.unwrap().body, "done");

    let old = App::http(
        "HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\nConnection: keep-alive\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    );
    let sidecar = outbound(old.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let (mut answer, _) = caller.open(Request::get("http://server/").body(()).unwrap(), true).await;
    let hint = soon("103", std::future::poll_fn(|cx| answer.poll_informational(cx))).await.unwrap().unwrap();
    assert_eq!(hint.headers()["link"], "</b.css>");
    assert!(!hint.headers().contains_key("connection"));
    assert_eq!(read(answer).await.unwrap().body, "hi");

    // hyper cannot send any to an HTTP/1 caller: they are left out, and its answer is whole.
    let mut caller = Caller::connect(sidecar.outbound);
    assert!(caller.send("GET / HTTP/1.1\r\nHost: server\r\n\r\n").answer().starts_with("HTTP/1.1 200"));
}
