//! Who speaks first, apps that are not there, declared protocols.

use super::*;

#[tokio::test(start_paused = true)]
async fn whoever_speaks_first_decides() {
    // The app: a protocol in which the server speaks first.
    let mut house = House::new("");
    let mut caller = house.caller("").await;
    let mut app = house.app().await;
    sleep(Duration::from_secs(100)).await;
    say(&mut app, "220 hello\r\n").await;
    read_until(&mut caller, "220 hello\r\n").await;
    // What the caller says now is no HTTP, whatever it looks like.
    say(&mut caller, GET).await;
    read_until(&mut app, "\r\n\r\n").await;
    drop((caller, app));
    let line = house.line().await;
    assert!(line.contains("protocol=tcp") && line.contains("bytes_out=11"), "{line}");

    // The caller, late: the connection that was dialled early is not used for HTTP.
    let mut house = House::new("");
    let mut caller = house.caller("").await;
    let mut unused = house.app().await;
    sleep(Duration::from_secs(100)).await;
    say(&mut caller, GET).await;
    let mut app = house.asked().await;
    assert_eq!(rest(&mut unused).await, "");
    say(&mut app, OK).await;
    read_until(&mut caller, "hi").await;
    drop(caller);
    let line = house.line().await;
    assert!(line.contains("protocol=HTTP/1.1") && line.contains("status=200"), "{line}");

    // Having answered HTTP, the app is not dialled early again.
    let mut house = House::new("");
    let mut caller = house.caller(GET).await;
    let mut app = house.asked().await;
    say(&mut app, OK).await;
    read_until(&mut caller, "hi").await;
    let silent = house.caller("").await;
    settle().await;
    assert!(house.app.try_recv().is_err());
    drop((caller, silent));

    // The caller, late, in bytes of its own: they go to the connection that is there.
    let mut house = House::new("");
    let mut caller = house.caller("").await;
    let mut app = house.app().await;
    say(&mut caller, "*1\r\n$4\r\nPING\r\n").await;
    read_until(&mut app, "PING\r\n").await;
    drop((caller, app));
    assert!(house.line().await.contains("bytes_in=14"));
}

#[tokio::test(start_paused = true)]
async fn what_an_app_began_to_say_is_not_lost_when_its_caller_speaks() {
    let mut house = House::new("");
    let mut caller = house.caller("").await;
    let mut app = house.app().await;
    // So far it may become HTTP/2's SETTINGS.
    say(&mut app, "\0\0").await;
    settle().await;
    say(&mut caller, "*1\r\n$4\r\nPING\r\n").await;
    read_until(&mut app, "PING\r\n").await;
    say(&mut app, "+").await;
    let mut heard = [1; 3];
    let whole = tokio::time::timeout(Duration::from_secs(60), caller.read_exact(&mut heard)).await;
    assert!(whole.is_ok() && &heard == b"\0\0+", "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_app_is_told_to_callers_that_speak_and_shown_to_others() {
    let mut house = House::new("");
    house.app.close();
    let mut caller = house.caller("").await;
    settle().await;
    say(&mut caller, GET).await;
    let answer = read_until(&mut caller, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("reason=connect_refused; side=app"), "{answer}");
    drop(caller);
    house.line().await;

    let mut house = House::new("");
    house.app.close();
    let mut caller = house.caller("").await;
    assert_eq!(rest(&mut caller).await, "");
    let line = house.line().await;
    assert!(line.contains("reason=connect_refused side=app"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_declared_protocol_binds() {
    // tcp: nothing is looked at.
    let mut house = House::new(", protocol: tcp");
    let mut caller = house.caller(GET).await;
    let mut app = house.app().await;
    assert_eq!(read_until(&mut app, "\r\n\r\n").await, GET);
    say(&mut app, "whatever").await;
    read_until(&mut caller, "whatever").await;
    drop((caller, app));
    assert!(house.line().await.contains("protocol=tcp"));

    // http1: the app is not dialled for a silent caller, and other bytes are refused.
    let mut house = House::new(", protocol: http1");
    let silent = house.caller("").await;
    let mut wrong = house.caller("*1\r\n$4\r\nPING\r\n").await;
    let answer = rest(&mut wrong).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(house.app.try_recv().is_err());
    drop(silent);
    let line = house.line().await;
    assert!(line.contains("reason=bad_head"), "{line}");

    // http2: HTTP/1 is not served.
    let mut house = House::new(", protocol: http2");
    let mut wrong = house.caller(GET).await;
    let answer = rest_bytes(&mut wrong).await;
    assert!(!answer.windows(8).any(|bytes| bytes == b"HTTP/1.1"), "{answer:?}");
    assert!(house.app.try_recv().is_err());
}
