//! Routes where HTTP is no plain request for a path: upgrades, `*`, and conditions that share a prefix.

use bytes::Bytes;
use http::Request;

use super::*;

/// An extended CONNECT that nobody has answered yet.
async fn extended_connect(house: &House) -> (h2::client::SendRequest<Bytes>, h2::client::ResponseFuture) {
    let (ours, theirs) = duplex(PIPE);
    // It speaks at once, so that the app is not dialled early.
    let (send, connection) = h2::client::handshake(ours).await.unwrap();
    house.serve(theirs);
    house.tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut send = send.ready().await.unwrap();
    settle().await;
    let mut request = Request::connect("http://a/chat").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
    let (answer, mut stream) = send.send_request(request, false).unwrap();
    house.tasks.spawn(async move {
        let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
    });
    (send, answer)
}

const EDITS: &str = ", routes: [{ rewrite: { host: b.example }, response-headers: { set: { x-by: mesh } } }]";
const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n";

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_asked_for_and_answered_as_its_route_says() {
    for answer in [SWITCHED, FORBIDDEN] {
        let mut house = House::new(EDITS);
        let mut caller = house.caller(UPGRADE).await;
        let mut app = house.app().await;
        let asked = read_until(&mut app, "\r\n\r\n").await;
        assert!(asked.contains("Host: b.example\r\n"), "{asked}");
        say(&mut app, answer).await;
        let head = read_until(&mut caller, "\r\n\r\n").await;
        assert!(head.contains("x-by: mesh\r\n"), "{head}");

        let mut house = House::new(EDITS);
        let (_caller, answered) = extended_connect(&house).await;
        // An app that knows no HTTP/2 is asked in HTTP/1.
        drop(house.app().await);
        let mut app = house.app().await;
        let asked = read_until(&mut app, "\r\n\r\n").await;
        assert!(asked.starts_with("GET /chat ") && asked.contains("ost: b.example\r\n"), "{asked}");
        say(&mut app, answer).await;
        assert_eq!(answered.await.unwrap().headers()["x-by"], "mesh");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_from_the_file_opens_no_tunnel() {
    let house = House::new(", routes: [{ respond: { status: 200, body: hi } }]");
    let (_caller, answered) = extended_connect(&house).await;
    assert_eq!(answered.await.unwrap().status(), 405);
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_content_has_none_whatever_the_file_says() {
    for status in [204, 205, 304] {
        let house = House::new(&format!(", routes: [{{ respond: {{ status: {status}, body: hi }} }}]"));
        let mut caller = house.caller("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        let answer = rest(&mut caller).await;
        assert!(answer.contains(&format!(" {status} ")) && answer.ends_with("\r\n\r\n"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_redirect_of_the_whole_server_names_no_path() {
    let house = House::new(", routes: [{ redirect: { host: b.example } }]");
    let mut caller = house.caller("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let head = read_until(&mut caller, "\r\n\r\n").await;
    assert!(head.contains("location: http://b.example\r\n"), "{head}");
}

#[tokio::test(start_paused = true)]
async fn the_prefix_that_is_replaced_is_one_that_led_here() {
    let mut house = House::new(
        ", routes: [{ match: [{ path: { prefix: /v2 }, methods: GET }, { path: { prefix: /v2/a }, methods: POST }], rewrite: { prefix: /v1 } }]",
    );
    let _caller = house.caller("GET /v2/a/b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let asked = read_until(&mut house.app().await, "\r\n\r\n").await;
    assert!(asked.starts_with("GET /v1/a/b "), "{asked}");
}
