//! What is judged is what is sent: whatever is asked for, the app gets the very bytes that the rules looked at, or nothing.

use bytes::Bytes;
use http::{Request, Uri};
use proptest::prelude::*;

use super::*;
use crate::plan::path::{ambiguity, decoded};

const RULES: &str = ", allow: [{ paths: [\"/a/*\", /b], methods: GET }], deny: [{ paths: \"/a/admin/*\" }]";

/// Paths near those of the rules, in spellings of all kinds, with or without a query.
const TARGET: &str = "(/(a|a|b|A|%61|%41|admin|%61dmin|ADMIN|x|%78|\\.|\\.\\.|;x|%2f|%2e%2e|%5c|%25|%c3%a4|%c0%af|a%00|a%3fb|a%23|a%20|a%20b|%|)){1,4}(\\?(a|/|\\.\\.|%2f|;|=|&){0,4})?";

/// Whether the rules above let a path in, said in other words than the rules' own.
fn is_let_in(path: &str) -> bool {
    let meant = String::from_utf8(decoded(path).collect()).unwrap();
    let segments: Vec<&str> = meant.split('/').skip(1).collect();
    let lower: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
    let denied = lower.len() > 1 && lower[0] == "a" && lower[1] == "admin";
    !denied && (segments[0] == "a" || segments == ["b"])
}

/// What must become of a target: `None` where it is refused.
fn expected(target: &str) -> Option<String> {
    let path = target.parse::<Uri>().ok()?.path().to_owned();
    (ambiguity(&path).is_none() && is_let_in(&path)).then(|| target.to_owned())
}

/// The target that the app gets over HTTP/1, or none.
async fn over_http1(target: &str) -> Option<String> {
    let mut house = House::new(RULES);
    let mut caller = house.caller(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    tokio::select! {
        app = house.app.recv() => {
            let asked = read_until(&mut app.unwrap(), "\r\n\r\n").await;
            Some(asked.split(' ').nth(1).unwrap().to_owned())
        }
        head = read_until(&mut caller, "\r\n\r\n") => {
            assert!(head.starts_with("HTTP/1.1 40"), "{head}");
            None
        }
    }
}

/// The same over HTTP/2; `None` also where no client could say it.
async fn over_http2(target: &str) -> Option<String> {
    let mut house = House::new(RULES);
    let (ours, theirs) = duplex(PIPE);
    let (send, connection) = h2::client::handshake(ours).await.unwrap();
    house.serve(theirs);
    house.tasks.spawn(async move {
        let _ = connection.await;
    });
    let mut send: h2::client::SendRequest<Bytes> = send.ready().await.unwrap();
    let request = Request::get(format!("http://a{target}")).body(()).ok()?;
    let (answer, _) = send.send_request(request, true).unwrap();
    tokio::select! {
        app = house.app.recv() => {
            let mut app = h2::server::handshake(app.unwrap()).await.unwrap();
            let (request, _respond) = app.accept().await.unwrap().unwrap();
            Some(request.uri().path_and_query().unwrap().to_string())
        }
        answer = answer => {
            assert!(answer.unwrap().status().is_client_error());
            None
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_app_gets_the_bytes_that_were_judged_or_nothing(target in TARGET) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        let expect = expected(&target);
        let (first, second) = runtime.block_on(async { (over_http1(&target).await, over_http2(&target).await) });
        prop_assert_eq!(&first, &expect, "HTTP/1: {}", target);
        prop_assert_eq!(&second, &expect, "HTTP/2: {}", target);
    }
}

#[test]
fn the_property_meets_both_ends() {
    for (target, passes) in [
        ("/a/x?/../admin", true),
        ("/%61/x", true),
        ("/b", true),
        ("/b/", false),
        ("/A/x", false),
        ("/a/ADMIN", false),
        ("/a/%61dmin/x", false),
        ("/a//admin", false),
        ("/a/%2e%2e/b", false),
    ] {
        assert_eq!(expected(target).is_some(), passes, "{target}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_port_that_is_denied_is_so_for_open_connections_once_a_reload_has_led_them_there() {
    let ((open, app), (closed, other)) = (pipes::listen_tcp(), pipes::listen_tcp());
    let file = |inbound: String| {
        format!("service: s\nadmin: {{ listen: off }}\ninbound: {{ listen: \"127.0.0.1:1\", {inbound} }}\n")
    };
    let mut house = House::of(&file(format!("app: \"{open}\"")), app);
    let next = House::of(&file(format!("app: \"{closed}\", deny: {{ ports: [{}] }}", closed.port())), other);
    let mut caller = house.caller(GET).await;
    let mut app = house.asked().await;
    say(&mut app, OK).await;
    read_until(&mut caller, "hi").await;
    house.core.world.store(next.core.world.load_full());
    say(&mut caller, GET).await;
    let answer = tokio::time::timeout(Duration::from_secs(20), read_until(&mut caller, "\r\n\r\n")).await;
    assert!(answer.as_ref().is_ok_and(|answer| answer.starts_with("HTTP/1.1 403 ")), "{answer:?}");
}
