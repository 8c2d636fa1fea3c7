//! Trailers through the binary, between both versions.

use http::{HeaderValue, Request, Response};

use super::{chunked_app, told_well, trailers};
use crate::harness::http2::{App2, Caller2, drain, read};
use crate::harness::{Caller, inbound, outbound};

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

/// What no trailer may say (RFC 9110 §6.5.1), and what only proxies may say at all, in spellings that servers fold into
/// one; then one that passes.
const FORGED: [(&str, &str); 14] = [
    ("x-forwarded-client-cert", "URI=spiffe://a/b"),
    ("x_forwarded_client_cert", "URI=spiffe://a/b"),
    ("x.forwarded.for", "6.6.6.6"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("forwarded", "for=6.6.6.6"),
    ("x-outrigger-hops", "0"),
    ("authorization", "Bearer x"),
    ("cookie", "a=b"),
    ("set-cookie", "a=b"),
    ("host", "b"),
    ("content-length", "9"),
    ("content_length", "9"),
    ("te", "trailers"),
    ("x-sent", "1"),
];

fn forged() -> http::HeaderMap {
    FORGED.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
}

fn names(trailers: Option<http::HeaderMap>) -> Vec<String> {
    trailers.unwrap_or_default().keys().map(|name| name.as_str().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn trailers_bring_no_field_past_those_that_judge_heads() {
    // HTTP/2 on both legs, both ways.
    let mut app = App2::start().await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, mut stream) = caller.open(Request::post("http://a/").body(()).unwrap(), false).await;
    stream.send_data("up".into(), false).unwrap();
    stream.send_trailers(forged()).unwrap();
    let mut arrived = app.next().await;
    let (body, sent) = drain(arrived.request.into_body()).await.unwrap();
    assert_eq!((&body[..], names(sent)), (&b"up"[..], vec!["x-sent".to_owned()]));
    let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
    down.send_data("down".into(), false).unwrap();
    down.send_trailers(forged()).unwrap();
    let got = read(answer).await.unwrap();
    assert_eq!((&got.body[..], names(got.trailers)), (&b"down"[..], vec!["x-sent".to_owned()]));

    // Nothing but what goes: the body ends as one without trailers.
    let (answer, mut stream) = caller.open(Request::post("http://a/").body(()).unwrap(), false).await;
    stream.send_trailers(trailers("authorization", "1")).unwrap();
    let mut arrived = app.next().await;
    assert_eq!(names(drain(arrived.request.into_body()).await.unwrap().1), Vec::<String>::new());
    arrived.respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(read(answer).await.unwrap().status(), 200);

    // An HTTP/1 caller's, announced, to an app of the same version.
    let app = chunked_app("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    let announced: Vec<_> = FORGED.iter().map(|(name, _)| *name).collect();
    let fields: String = FORGED.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    caller.send(format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: {}\r\n\r\n2\r\nup\r\n0\r\n{fields}\r\n",
        announced.join(", ")
    ));
    assert!(caller.answer().ends_with("hi"));
    let seen = app.next();
    assert!(seen.ends_with("2\r\nup\r\n0\r\nx-sent: 1\r\n\r\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_trailer_of_the_connection_alone_ends_no_exchange_badly() {
    // h2 refuses to send such a one, and would leave the stream open.
    const FIELDS: &str = "Connection: x\r\nKeep-Alive: 1\r\nTransfer-Encoding: chunked\r\nUpgrade: x\r\nX-Sent: 1\r\n";
    let mut app = App2::start().await;
    let sidecar = outbound(app.addr, "http2");
    let mut caller = Caller::connect(sidecar.outbound);
    caller.send(format!(
        "POST / HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nup\r\n0\r\n{FIELDS}\r\n"
    ));
    let mut arrived = app.next().await;
    let (body, sent) = drain(arrived.request.into_body()).await.unwrap();
    assert_eq!((&body[..], names(sent)), (&b"up"[..], vec!["x-sent".to_owned()]));
    arrived.respond.send_response(Response::builder().header("content-length", 0).body(()).unwrap(), true).unwrap();
    assert!(caller.answer().starts_with("HTTP/1.1 200"));
    told_well(&sidecar, "/");

    let answer =
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nConnection: x\r\nX-Sum: 9\r\n\r\n";
    let app = chunked_app(answer);
    let sidecar = outbound(app.addr, "http1");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let got = caller.get("http://server/").await.unwrap();
    assert_eq!((&got.body[..], names(got.trailers)), (&b"abc"[..], vec!["x-sum".to_owned()]));
}
