//! What stands still or streams through moves memory by no more than the documented buffers.

use std::io::{BufReader, Read, Write};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use crate::harness::http2::{
    App2, Caller2, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, WINDOW_UPDATE, app, block, caller, frame, pour,
    read, soon,
};
use crate::harness::{App, Caller, Sidecar, inbound, read_head};

const MIB: i64 = 1 << 20;

/// Streams that stand still, on as many connections as they need.
const STALLED: usize = 2000;

/// Streams that a caller may open on one connection (`src/proxy/serve_http2.rs`).
const ON_ONE: usize = 250;

/// What one HTTP/2 connection may hold unread (`src/http/window.rs`, and the same towards peers).
const UNREAD: i64 = MIB;

/// What one stream costs beside its bytes: its task, its call and h2's own state on both legs, and a frame in hand, of
/// 16 KiB where the machine is busy.
const STREAM: i64 = 24 << 10;

const BIG: Bytes = Bytes::from_static(&[b'x'; 1 << 20]);

/// A line of /proc/PID/status, in bytes.
fn status(sidecar: &Sidecar, name: &str) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<i64>().unwrap() << 10
}

/// The most resident memory until it has stopped growing. Looking too early could only find less.
async fn settled(sidecar: &Sidecar) -> i64 {
    let (mut most, mut calm) = (0, 0);
    while calm < 10 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = status(sidecar, "VmRSS");
        calm = if now > most { 0 } else { calm + 1 };
        most = most.max(now);
    }
    most
}

/// An app that takes as many streams as a caller may open, a sidecar that has served one exchange, so that what is made
/// once is there, and its memory.
async fn warm() -> (App2, Sidecar, i64) {
    let mut builder = app();
    builder.max_concurrent_streams(ON_ONE as u32);
    let mut app = App2::with(builder).await;
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let (answer, _) = caller.open(Request::get("http://a/").body(()).unwrap(), true).await;
    app.next().await.answer("x");
    read(answer).await.unwrap();
    let before = settled(&sidecar).await;
    (app, sidecar, before)
}

/// Fails if memory has grown by more than `most` bytes.
async fn within(sidecar: &Sidecar, before: i64, most: i64, what: &str) {
    let grown = settled(sidecar).await - before;
    assert!(grown <= most, "{} KiB for {what}, {} KiB at most", grown >> 10, most >> 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn callers_that_do_not_read_hold_no_more_than_the_windows() {
    let (mut app, sidecar, before) = warm().await;
    let (mut held, mut kept) = (Vec::new(), Vec::new());
    let mut connections = 0;
    for _ in 0..STALLED / ON_ONE {
        let mut caller = Caller2::connect(sidecar.inbound).await;
        let mut answers = Vec::new();
        for _ in 0..ON_ONE {
            answers.push(caller.open(Request::get("http://a/").body(()).unwrap(), true).await.0);
            let mut arrived = app.next().await;
            connections = connections.max(arrived.connection);
            let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
            down.send_data(BIG, true).unwrap();
            held.push((arrived, down));
        }
        // The heads are taken; of the bodies nothing is.
        let mut bodies = Vec::new();
        for answer in answers {
            bodies.push(soon("a head", answer).await.unwrap().into_body());
        }
        kept.push((caller, bodies));
    }
    assert_eq!(sidecar.metric(&["outrigger_peer_requests_in_flight", "app"]), STALLED as f64);
    let most = (connections as i64 + 1) * UNREAD + STALLED as i64 * STREAM;
    within(&sidecar, before, most, "stalled answers").await;
}

/// What all answers on a caller's connection may have unsent (`src/http/unsent.rs`).
const UNSENT: i64 = 256 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_caller_that_gives_all_window_and_does_not_read_holds_no_more_than_the_budget() {
    let (mut app, sidecar, before) = warm().await;
    // The largest windows there are, for its streams and for the connection.
    let mut frames = PREFACE.to_vec();
    frames.extend(frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]));
    frames.extend(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0, 0]));
    let head = block(&[(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]);
    for n in 0..ON_ONE as u32 {
        frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head));
    }
    let mut deaf = std::net::TcpStream::connect(sidecar.inbound).unwrap();
    deaf.write_all(&frames).unwrap();
    let mut held = Vec::new();
    for _ in 0..ON_ONE {
        let mut arrived = app.next().await;
        let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
        down.send_data(BIG, true).unwrap();
        held.push((arrived, down));
    }
    let most = UNSENT + 2 * UNREAD + ON_ONE as i64 * STREAM;
    within(&sidecar, before, most, "answers that nobody reads").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn apps_that_do_not_read_hold_no_more_than_the_windows() {
    let (mut app, sidecar, before) = warm().await;
    let (mut held, mut kept) = (Vec::new(), Vec::new());
    for _ in 0..STALLED / ON_ONE {
        let mut caller = Caller2::connect(sidecar.inbound).await;
        for _ in 0..ON_ONE {
            let (answer, mut up) = caller.open(Request::post("http://a/").body(()).unwrap(), false).await;
            up.send_data(BIG, true).unwrap();
            held.push((answer, up, app.next().await));
        }
        kept.push(caller);
    }
    assert_eq!(sidecar.metric(&["outrigger_peer_requests_in_flight", "app"]), STALLED as f64);
    let most = kept.len() as i64 * UNREAD + STALLED as i64 * STREAM;
    within(&sidecar, before, most, "stalled uploads").await;
}

const LARGE: usize = 256 << 20;

/// Most that a stream of any length may add.
const STREAMED: i64 = 16 * MIB;

#[test]
fn a_large_upload_and_a_large_download_stream_through_http1() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::with_capacity(1 << 20, stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            if head.starts_with("PUT") {
                let took = std::io::copy(&mut (&mut reader).take(LARGE as u64), &mut std::io::sink()).unwrap();
                report.send(took.to_string()).unwrap();
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").unwrap();
            } else {
                writer.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n").as_bytes()).unwrap();
                for _ in 0..LARGE / BIG.len() {
                    writer.write_all(&BIG).unwrap();
                }
            }
        }
    });
    let sidecar = inbound(app.addr, "");
    let mut caller = Caller::connect(sidecar.inbound);
    let before = status(&sidecar, "VmRSS");
    caller.send(format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n"));
    for _ in 0..LARGE / BIG.len() {
        caller.send(&BIG);
    }
    assert!(caller.answer().ends_with("hi"));
    assert_eq!(app.next(), LARGE.to_string());
    caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").until(b"\r\n\r\n");
    let took = std::io::copy(&mut (&mut caller.0).take(LARGE as u64), &mut std::io::sink()).unwrap();
    assert_eq!(took as usize, LARGE);
    let grown = status(&sidecar, "VmHWM") - before;
    assert!(grown <= STREAMED, "{} KiB", grown >> 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_large_upload_and_a_large_download_stream_through_http2() {
    let mut wide = app();
    wide.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let mut app = App2::with(wide).await;
    let sidecar = inbound(app.addr, "");
    let mut wide = caller();
    wide.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let mut caller = Caller2::with(&wide, sidecar.inbound).await;
    let before = status(&sidecar, "VmRSS");

    let (answer, mut up) = caller.open(Request::put("http://a/").body(()).unwrap(), false).await;
    let sending = tokio::spawn(async move {
        for n in 1..=LARGE / BIG.len() {
            pour(&mut up, BIG, n == LARGE / BIG.len()).await.unwrap();
        }
    });
    let mut arrived = app.next().await;
    assert_eq!(sink(arrived.request.body_mut()).await, LARGE);
    sending.await.unwrap();
    arrived.answer("hi");
    assert_eq!(read(answer).await.unwrap().body, "hi");

    let (answer, _) = caller.open(Request::get("http://a/").body(()).unwrap(), true).await;
    let mut arrived = app.next().await;
    let mut down = arrived.respond.send_response(Response::new(()), false).unwrap();
    let sending = tokio::spawn(async move {
        for n in 1..=LARGE / BIG.len() {
            pour(&mut down, BIG, n == LARGE / BIG.len()).await.unwrap();
        }
    });
    let mut answer = soon("a head", answer).await.unwrap();
    assert_eq!(sink(answer.body_mut()).await, LARGE);
    sending.await.unwrap();
    let grown = status(&sidecar, "VmHWM") - before;
    assert!(grown <= STREAMED, "{} KiB", grown >> 10);
}

/// Reads a body without keeping it.
async fn sink(stream: &mut h2::RecvStream) -> usize {
    let mut took = 0;
    while let Some(piece) = soon("a piece", stream.data()).await {
        let piece = piece.unwrap();
        took += piece.len();
        stream.flow_control().release_capacity(piece.len()).unwrap();
    }
    took
}
