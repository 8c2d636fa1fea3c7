//! Heads of HTTP/2: their limits, and those that must never reach an app.

use std::net::SocketAddr;

use http::{HeaderValue, Method, Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::OK;
use crate::harness::http2::{
    App2, Caller2, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, block, frame, read, soon,
};
use crate::harness::{App, field, inbound, outbound};

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

/// Fields that no head may have beside its own.
type Fields = &'static [(&'static [u8], &'static [u8])];

const NOT_ALLOWED: &[(&str, Fields)] = &[
    ("upper case", &[(b"X-Upper", b"x")]),
    ("an empty name", &[(b"", b"x")]),
    ("a name with a space", &[(b"a b", b"x")]),
    ("a name with a colon", &[(b"a:b", b"x")]),
    ("a name with a high byte", &[(b"a\x85", b"x")]),
    ("LF in a value", &[(b"x", b"a\nb: c")]),
    ("CR in a value", &[(b"x", b"a\rb")]),
    ("NUL in a value", &[(b"x", b"a\0b")]),
    ("connection", &[(b"connection", b"close")]),
    ("transfer-encoding", &[(b"transfer-encoding", b"chunked")]),
    ("keep-alive", &[(b"keep-alive", b"1")]),
    ("proxy-connection", &[(b"proxy-connection", b"close")]),
    ("upgrade", &[(b"upgrade", b"h2c")]),
    ("te", &[(b"te", b"gzip")]),
    ("an unknown pseudo-field", &[(b":path", b"/b")]),
    ("Host against :authority", &[(b"host", b"other")]),
    ("two hosts", &[(b"host", b"server"), (b"host", b"server")]),
];

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
    let asked = |method: &[u8], authority: &[u8], path: &[u8]| {
        vec![bare(&[(b":method", method), (b":scheme", b"http"), (b":authority", authority), (b":path", path)])]
    };
    assert_eq!(fate(sidecar.outbound, &[head(&[])]).await, Fate::Answered(200));
    app.next();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
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
        ("no path", vec![bare(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"server")])]),
        ("a path with a space", asked(b"GET", b"server", b"/a b")),
        ("a path with a line", asked(b"GET", b"server", b"/ HTTP/1.1\r\nx: y")),
        ("a path that is none", asked(b"GET", b"server", b"a")),
        ("an empty path", asked(b"GET", b"server", b"")),
        ("a method that is no token", asked(b"G T", b"server", b"/")),
        ("CONNECT with a path", asked(b"CONNECT", b"server", b"/")),
        ("userinfo", asked(b"GET", b"u@server", b"/")),
    ];
    let fields = NOT_ALLOWED.iter().map(|(what, extra)| (*what, vec![head(extra)]));
    for (what, frames) in fields.chain(cases) {
        let fate = fate(sidecar.outbound, &frames).await;
        assert!(matches!(fate, Fate::Answered(400) | Fate::Reset | Fate::Closed), "{what}: {fate:?}");
        // A head may go ahead of its broken body, but the app must not get a whole request.
        assert_eq!(app.seen.try_recv().ok(), None, "{what}");
    }
    assert_eq!(fate(sidecar.outbound, &[head(&[])]).await, Fate::Answered(200));
}
