//! HTTP/2 through the binary, and what meets it on the other leg: trailers, informational answers, resets, limits,
//! tunnels, ends of connections.

use std::io::{BufReader, Read, Write};
use std::net::SocketAddr;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::http2::{
    App2, Caller2, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, app, block, caller,
    certificate, drain, end_of, frame, piece, pour, read, soon, tls,
};
use crate::harness::{App, Caller, Sidecar, field, inbound, inbound_file, outbound, read_head};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn trailers(name: &'static str, value: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(name, HeaderValue::from_static(value));
    map
}

/// An exchange went well, as its access line has it.
fn told_well(sidecar: &Sidecar, path: &str) {
    let line = sidecar.says(&[&format!("path={path}")]);
    assert!(!line.contains("reason="), "{line}");
}

/// An HTTP/1 app that reads one whole request, chunks and trailers included, reports it and sends `answer`.
fn chunked_app(answer: &'static str) -> App {
    App::start(move |stream, report| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let mut all = head.clone();
            if field(&head, "transfer-encoding").is_some() {
                let mut byte = [0];
                while !(all.contains("\r\n0\r\n") && all.ends_with("\r\n\r\n")) {
                    if reader.read_exact(&mut byte).is_err() {
                        return;
                    }
                    all.push(char::from(byte[0]));
                }
            }
            report.send(all).unwrap();
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_pass_between_two_http2_legs_whether_announced_or_not() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for announced in [false, true] {
        let mut request = Request::post(format!("http://a/{announced}"));
        if announced {
            request = request.header("trailer", "x-sent").header("te", "trailers");
        }
        let (answer, mut stream) = caller.open(request.body(()).unwrap(), false).await;
        stream.send_data("up".into(), false).unwrap();
        stream.send_trailers(trailers("x-sent", "1")).unwrap();
        let mut arrived = app.next().await;
        assert_eq!(arrived.field("te"), announced.then_some("trailers"));
        let (body, sent) = drain(arrived.request.into_body()).await.unwrap();
        assert_eq!((&body[..], &sent.unwrap()["x-sent"]), (&b"up"[..], &HeaderValue::from_static("1")));
        let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
        down.send_data("down".into(), false).unwrap();
        down.send_trailers(trailers("x-sum", "9")).unwrap();
        let got = read(answer).await.unwrap();
        assert_eq!((&got.body[..], got.field("x-sum")), (&b"down"[..], Some("9")));
        told_well(&sidecar, &format!("/{announced}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_of_an_http1_app_reach_an_http2_caller_and_its_own_need_an_announcement() {
    let app = chunked_app("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n");
    let sidecar = outbound(app.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    for announced in [true, false] {
        let mut request = Request::post(format!("http://server/{announced}"));
        if announced {
            request = request.header("trailer", "x-sent");
        }
        let (answer, mut stream) = caller.open(request.body(()).unwrap(), false).await;
        stream.send_data("up".into(), false).unwrap();
        stream.send_trailers(trailers("x-sent", "1")).unwrap();
        let got = read(answer).await.unwrap();
        assert_eq!((&got.body[..], got.field("x-sum")), (&b"abc"[..], Some("9")));
        let seen = app.next().to_ascii_lowercase();
        assert!(seen.contains("2\r\nup\r\n0\r\n"), "{seen}");
        assert_eq!(seen.contains("x-sent: 1\r\n"), announced, "{seen}");
        told_well(&sidecar, &format!("/{announced}"));
    }
    // A body with trailers ends the exchange like any other: the connection served both.
    assert_eq!(sidecar.metric(&["outrigger_peer_connects_total", "server"]), 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_cross_from_an_http1_caller_to_an_http2_app_and_back() {
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    for (te, announced) in [(true, true), (false, true), (true, false)] {
        let te_fields = if te { "TE: trailers\r\nConnection: TE\r\n" } else { "" };
        caller.send(format!(
            "POST /{te}{announced} HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n{te_fields}\r\n2\r\nup\r\n0\r\nX-Sent: 1\r\n\r\n"
        ));
        let mut arrived = app.next().await;
        let (body, sent) = drain(arrived.request.into_body()).await.unwrap();
        assert_eq!((&body[..], &sent.unwrap()["x-sent"]), (&b"up"[..], &HeaderValue::from_static("1")));
        let mut response = Response::new(());
        if announced {
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
        }
        let mut down = arrived.respond.send_response(response, false).unwrap();
        down.send_data("down".into(), false).unwrap();
        down.send_trailers(trailers("x-sum", "9")).unwrap();
        let answer = caller.answer().to_ascii_lowercase();
        assert!(answer.contains("4\r\ndown\r\n0\r\n"), "{answer}");
        assert_eq!(answer.contains("x-sum: 9\r\n"), te && announced, "{answer}");
        told_well(&sidecar, &format!("/{te}{announced}"));
    }
}

#[test]
fn trailers_between_two_http1_legs_end_the_exchange_well() {
    let app = chunked_app(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 9\r\n\r\n",
    );
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    for te in [true, false] {
        let te_fields = if te { "TE: trailers\r\nConnection: TE\r\n" } else { "" };
        caller.send(format!(
            "POST /{te} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sent\r\n{te_fields}\r\n2\r\nup\r\n0\r\nX-Sent: 1\r\n\r\n"
        ));
        let answer = caller.answer().to_ascii_lowercase();
        assert!(answer.contains("3\r\nabc\r\n0\r\n"), "{answer}");
        assert_eq!(answer.contains("x-sum: 9\r\n"), te, "{answer}");
        let seen = app.next().to_ascii_lowercase();
        assert!(seen.ends_with("2\r\nup\r\n0\r\nx-sent: 1\r\n\r\n"), "{seen}");
        told_well(&sidecar, &format!("/{te}"));
    }
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

fn informational(status: u16) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
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

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connect_with_a_content_length_does_not_cut_its_neighbours() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (neighbour, _) = caller.open(Request::get("http://a/n").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    let connect =
        Request::builder().method(Method::CONNECT).uri("a:80").header("content-length", "5").body(()).unwrap();
    let (refused, _up) = caller.open(connect, false).await;
    // Refused by us with an answer, or by h2 with a reset of this stream alone.
    match read(refused).await {
        Ok(got) => assert!(got.head.status.is_client_error(), "{got:?}"),
        Err(error) => assert!(error.is_reset(), "{error}"),
    }
    arrived.answer("still here");
    assert_eq!(read(neighbour).await.unwrap().body, "still here");
    app.unseen();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heads_up_to_the_limit_pass_both_ways() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for size in [17_000, 50_000, 60_000] {
        let value = "v".repeat(size);
        let request = Request::get("http://a/big").header("x-big", &value).body(()).unwrap();
        let (answer, _) = caller.open(request, true).await;
        let mut arrived = app.next().await;
        assert_eq!(arrived.field("x-big").unwrap().len(), size);
        let mut response = Response::new(());
        response.headers_mut().insert("x-big", HeaderValue::from_str(&value).unwrap());
        arrived.respond.send_response(response, true).unwrap();
        assert_eq!(read(answer).await.unwrap().field("x-big").unwrap().len(), size);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn heads_over_the_limit_are_refused_and_their_neighbours_live() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (neighbour, _) = caller.open(Request::get("http://a/n").body(()).unwrap(), true).await;
    let mut first = app.next().await;
    let value = HeaderValue::from_str(&"v".repeat(70_000)).unwrap();

    let request = Request::get("http://a/over").header("x-big", value.clone()).body(()).unwrap();
    let (answer, _) = caller.open(request, true).await;
    let got = read(answer).await.unwrap();
    assert_eq!((got.status(), got.reason()), (431, "head_too_large"));
    sidecar.says(&["reason=head_too_large", "status=431"]);
    app.unseen();

    // Well over it, h2 itself refuses, without a word of ours.
    let far = HeaderValue::from_str(&"v".repeat(140_000)).unwrap();
    let request = Request::get("http://a/far").header("x-big", far).body(()).unwrap();
    let (answer, _) = caller.open(request, true).await;
    assert_eq!(read(answer).await.unwrap().status(), 431);
    app.unseen();

    let (answer, _) = caller.open(Request::get("http://a/answer").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    assert_eq!(arrived.connection, first.connection);
    let mut response = Response::new(());
    response.headers_mut().insert("x-big", value);
    arrived.respond.send_response(response, true).unwrap();
    let got = read(answer).await.unwrap();
    assert_eq!(got.status(), 502);
    assert!(["bad_response", "response_head_too_large"].contains(&got.reason()), "{got:?}");

    first.answer("still here");
    assert_eq!(read(neighbour).await.unwrap().body, "still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_cut_by_no_error_is_not_taken_for_whole() {
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for length in [Some(10), None] {
        let (answer, _) = caller.open(Request::get("http://a/cut").body(()).unwrap(), true).await;
        let mut arrived = app.next().await;
        let mut response = Response::builder();
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        let mut down = arrived.respond.send_response(response.body(()).unwrap(), false).unwrap();
        down.send_data("part".into(), false).unwrap();
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
        let mut response = Response::builder();
        if let Some(length) = length {
            response = response.header("content-length", length);
        }
        let mut down = arrived.respond.send_response(response.body(()).unwrap(), false).unwrap();
        down.send_data("part".into(), false).unwrap();
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
async fn crumbs_of_a_cookie_are_one_field_for_an_http1_app() {
    let app = App::http(OK);
    let sidecar = outbound(app.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let request = Request::get("http://server/")
        .header("cookie", "a=1")
        .header("x-between", "x")
        .header("cookie", "b=2")
        .header("cookie", "c=3");
    assert_eq!(caller.send(request.body("").unwrap()).await.unwrap().body, "hi");
    let seen = app.next();
    assert_eq!(field(&seen, "cookie").as_deref(), Some("a=1; b=2; c=3"));
    assert_eq!(seen.to_ascii_lowercase().matches("cookie:").count(), 1);
    assert_eq!(field(&seen, "host").as_deref(), Some("server"));
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
    // The offer comes with the SETTINGS, which the first answer proves to have come.
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

/// What became of stream 1.
#[derive(Debug, PartialEq, Eq)]
enum Fate {
    Answered(u16),
    Reset,
    Closed,
}

async fn fate(to: SocketAddr, frames: &[Vec<u8>]) -> Fate {
    let mut io = TcpStream::connect(to).await.unwrap();
    io.write_all(PREFACE).await.unwrap();
    io.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    for frame in frames {
        io.write_all(frame).await.unwrap();
    }
    soon("an end of stream 1", async {
        let mut head = [0; 9];
        loop {
            if io.read_exact(&mut head).await.is_err() {
                return Fate::Closed;
            }
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            if io.read_exact(&mut payload).await.is_err() {
                return Fate::Closed;
            }
            match (head[3], head[8]) {
                // HPACK's static table, RFC 7541 appendix A.
                (HEADERS, 1) => match payload[0] {
                    0x88 => return Fate::Answered(200),
                    0x8c => return Fate::Answered(400),
                    0x48 => return Fate::Answered(0),
                    other => panic!("a head that begins with {other:#x}"),
                },
                (RST_STREAM, 1) => return Fate::Reset,
                (GOAWAY, _) => return Fate::Closed,
                _ => {}
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn malformed_http2_never_reaches_an_http1_app() {
    let app = App::http(OK);
    let sidecar = outbound(app.addr, "http1");
    let head = |extra: &[(&[u8], &[u8])]| {
        let mut fields: Vec<(&[u8], &[u8])> =
            vec![(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"server"), (b":path", b"/")];
        fields.extend_from_slice(extra);
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&fields))
    };
    let bare = |fields: &[(&[u8], &[u8])]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields));
    assert_eq!(fate(sidecar.outbound, &[head(&[])]).await, Fate::Answered(200));
    app.next();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("upper case", vec![head(&[(b"X-Upper", b"x")])]),
        ("an empty name", vec![head(&[(b"", b"x")])]),
        ("a name with a space", vec![head(&[(b"a b", b"x")])]),
        ("a name with a colon", vec![head(&[(b"a:b", b"x")])]),
        ("a name with a high byte", vec![head(&[(b"a\x85", b"x")])]),
        ("LF in a value", vec![head(&[(b"x", b"a\nb: c")])]),
        ("CR in a value", vec![head(&[(b"x", b"a\rb")])]),
        ("NUL in a value", vec![head(&[(b"x", b"a\0b")])]),
        ("connection", vec![head(&[(b"connection", b"close")])]),
        ("transfer-encoding", vec![head(&[(b"transfer-encoding", b"chunked")])]),
        ("keep-alive", vec![head(&[(b"keep-alive", b"1")])]),
        ("proxy-connection", vec![head(&[(b"proxy-connection", b"close")])]),
        ("upgrade", vec![head(&[(b"upgrade", b"h2c")])]),
        ("te", vec![head(&[(b"te", b"gzip")])]),
        ("an unknown pseudo-field", vec![head(&[(b":path", b"/b")])]),
        ("Host against :authority", vec![head(&[(b"host", b"other")])]),
        ("two hosts", vec![head(&[(b"host", b"server"), (b"host", b"server")])]),
        (
            "content-length against DATA",
            vec![
                frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &block(&[
                        (b":method", b"POST"),
                        (b":scheme", b"http"),
                        (b":authority", b"server"),
                        (b":path", b"/"),
                        (b"content-length", b"9"),
                    ]),
                ),
                frame(0, END_STREAM, 1, b"x"),
            ],
        ),
        (
            "a path with a space",
            vec![bare(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"server"), (b":path", b"/a b")])],
        ),
        (
            "a path with a line",
            vec![bare(&[
                (b":method", b"GET"),
                (b":scheme", b"http"),
                (b":authority", b"server"),
                (b":path", b"/ HTTP/1.1\r\nx: y"),
            ])],
        ),
        (
            "a path that is none",
            vec![bare(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"server"), (b":path", b"a")])],
        ),
        (
            "an empty path",
            vec![bare(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"server"), (b":path", b"")])],
        ),
        ("no path", vec![bare(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"server")])]),
        (
            "a method that is no token",
            vec![bare(&[(b":method", b"G T"), (b":scheme", b"http"), (b":authority", b"server"), (b":path", b"/")])],
        ),
        (
            "CONNECT with a path",
            vec![bare(&[
                (b":method", b"CONNECT"),
                (b":scheme", b"http"),
                (b":authority", b"server"),
                (b":path", b"/"),
            ])],
        ),
        (
            "userinfo",
            vec![bare(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"u@server"), (b":path", b"/")])],
        ),
    ];
    for (what, frames) in cases {
        let fate = fate(sidecar.outbound, &frames).await;
        assert!(matches!(fate, Fate::Answered(400) | Fate::Reset | Fate::Closed), "{what}: {fate:?}");
        // A head may go ahead of its broken body, but the app must not get a whole request.
        assert_eq!(app.seen.try_recv().ok(), None, "{what}");
    }
    assert_eq!(fate(sidecar.outbound, &[head(&[])]).await, Fate::Answered(200));
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
