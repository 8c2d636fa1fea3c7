//! Tunnels: only their own clock counts, and they are opened by the rule of requests.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_stands_still_is_ended() {
    let mut house = House::new("");
    let start = Instant::now();
    let mut caller = house.caller("*1\r\n$4\r\nPING\r\n").await;
    let mut app = house.app().await;
    read_until(&mut app, "PING\r\n").await;
    sleep(Duration::from_secs(3599)).await;
    say(&mut app, "+PONG\r\n").await;
    read_until(&mut caller, "PONG\r\n").await;
    assert_eq!(rest(&mut caller).await, "");
    assert_eq!(seconds(start), 3599 + 3600);
    assert_eq!(rest(&mut app).await, "");
    let line = house.line().await;
    assert!(
        line.contains("reason=tunnel_idle") && line.contains("bytes_in=14") && line.contains("bytes_out=7"),
        "{line}"
    );
}

#[tokio::test(start_paused = true)]
async fn in_a_tunnel_only_its_idle_time_counts() {
    let mut house = House::new("");
    let mut caller = house.caller(UPGRADE).await;
    let mut app = house.asked().await;
    say(&mut app, SWITCHED).await;
    read_until(&mut caller, "\r\n\r\n").await;
    let length = 4 * PIPE;
    let talk = async {
        app.write_all(&vec![b'x'; length]).await.unwrap();
        app
    };
    // Longer than an HTTP answer may wait for its reader.
    let listen = async {
        sleep(Duration::from_secs(3000)).await;
        let mut all = vec![0; length];
        caller.read_exact(&mut all).await.unwrap();
        caller
    };
    let both = tokio::join!(talk, listen);
    drop(both);
    let line = house.line().await;
    assert!(line.contains("status=101") && line.contains(&format!("bytes_out={length}")), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_greeting_that_nobody_takes_has_a_clock_and_heeds_the_drain() {
    for forced in [false, true] {
        let mut house = House::new("");
        let (_caller, theirs) = duplex(4);
        house.serve(theirs);
        let mut app = house.app().await;
        say(&mut app, "220 hello\r\n").await;
        settle().await;
        let start = Instant::now();
        if forced {
            house.core.inbound.drain.advance(Phase::Forced);
        }
        assert_eq!(rest(&mut app).await, "");
        assert_eq!(seconds(start), if forced { 0 } else { 3600 });
        let line = house.line().await;
        assert!(line.contains(if forced { "reason=grace_over" } else { "reason=tunnel_idle" }), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_on_a_connection_that_the_app_has_just_closed_is_sent_again() {
    let mut house = House::new("");
    let mut caller = house.caller(GET).await;
    let mut app = house.asked().await;
    say(&mut app, OK).await;
    read_until(&mut caller, "hi").await;
    settle().await;
    // The caller's connection is woken first: it takes the app's before that one knows of its end.
    say(&mut caller, UPGRADE).await;
    drop(app);
    let mut app = house.asked().await;
    say(&mut app, SWITCHED).await;
    let head = read_until(&mut caller, "\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert_eq!((house.metrics().attempts.get(), house.metrics().reconnects.get()), (3, 1));
    drop((caller, app));
    let lines = house.lines().await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines.iter().all(|line| line.contains(" attempts=1 ")), "{lines:?}");
}
