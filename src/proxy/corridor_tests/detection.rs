//! Who speaks first, apps that are not there, declared protocols.

use super::*;
use crate::plan::door::{Leads, Mtls, Protocol};
use crate::proxy::doors::Doors;
use crate::tls::tests::kit::{ALL_VERSIONS, stranger_client};

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

#[tokio::test(start_paused = true)]
async fn a_request_in_disguise_is_judged_as_one_or_refused() {
    const FORGED: &str = "Host: a\r\nX-Forwarded-Client-Cert: URI=spiffe://a/b\r\n\r\n";
    for start in ["\r\nGET / HTTP/1.1\r\n", "\n\n", "THE-METHOD-OF-A-SERVER-THAT-TAKES-ANY"] {
        let mut house = House::new("");
        let mut caller = house.caller(start).await;
        settle().await;
        let rest = match start {
            "\n\n" => "GET / HTTP/1.1\r\n",
            start if start.ends_with('\n') => "",
            _ => " / HTTP/1.1\r\n",
        };
        say(&mut caller, &format!("{rest}{FORGED}")).await;
        let mut app = house.app().await;
        if !rest.is_empty() {
            // Dialled while nothing told the protocol.
            app = house.app().await;
        }
        let head = read_until(&mut app, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(head.contains("x-outrigger-hops: 1") && !head.contains("client-cert"), "{start:?}: {head}");
    }
    for line in [
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET\x0b/ HTTP/1.1",
        "FOO / HTTP/1.10",
        "PLAY / RTSP/1.0",
        // Python reads fields after HTTP/0.9 too.
        "GET admin",
        "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1",
        "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET / HTTP/1.1",
    ] {
        let mut house = House::new("");
        let mut caller = house.caller(&format!("{line}\r\n{FORGED}")).await;
        let answer = rest(&mut caller).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{line:?}: {answer}");
        assert!(house.app.try_recv().is_err(), "{line:?}");
        let told = house.line().await;
        assert!(told.contains("reason=bad_head"), "{line:?}: {told}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_of_tls_without_a_word_inside_heeds_the_drain() {
    let house = House::new("");
    let door = house.plan.doors.iter().find(|door| door.side == Door::Inbound).unwrap();
    let caller = crate::proxy::Caller { client: ClientAddr(None), original: OriginalDst::EXPLICIT };
    let direction = house.core.direction(Door::Inbound);
    let conn = connection::accepted(&house.core, &house.plan, door, &house.learned, caller, direction.drain.watch());
    let (mut ours, theirs) = duplex(PIPE);
    direction.open.spawn(connection::inside(Arc::new(conn), Io::boxed(theirs)));
    settle().await;
    // Who came just now may be about to speak.
    sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    direction.drain.advance(Phase::Draining);
    assert_eq!(rest(&mut ours).await, "");
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn who_came_at_the_last_moment_is_heard() {
    let mut house = House::new("");
    // An app that has answered HTTP is not dialled before its caller speaks.
    let mut first = house.caller(GET).await;
    say(&mut house.asked().await, OK).await;
    read_until(&mut first, "hi").await;
    let (mut caller, mut silent) = (house.caller("").await, house.caller("").await);
    settle().await;
    let start = Instant::now();
    house.core.inbound.drain.advance(Phase::Draining);
    sleep(Duration::from_millis(50)).await;
    say(&mut caller, GET).await;
    let mut app = house.asked().await;
    say(&mut app, OK).await;
    let answer = rest(&mut caller).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.to_ascii_lowercase().contains("connection: close"),
        "{answer}"
    );
    assert_eq!(rest(&mut silent).await, "");
    assert_eq!(start.elapsed(), Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn who_came_at_the_last_moment_is_heard_whatever_it_comes_by() {
    let dir = std::env::temp_dir().join(format!("outrigger-last-moment-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let made = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let tls = format!(", tls: {{ certificate: {0}/cert.pem, key: {0}/key.pem }}", dir.display());
    let alpn: &[u8] = b"http/1.1";
    for (more, offered) in [(", protocol: http1", None), (&*tls, Some(vec![alpn.to_vec()])), (&*tls, Some(Vec::new()))]
    {
        let mut house = House::new(more);
        let mut callers = Vec::new();
        for _ in 0..2 {
            let plain = house.caller("").await;
            callers.push(match &offered {
                None => Io::boxed(plain),
                Some(offered) => {
                    let mut config = stranger_client(None, ALL_VERSIONS);
                    config.alpn_protocols.clone_from(offered);
                    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
                    let stream = connector.connect("a".try_into().unwrap(), plain).await.unwrap();
                    Io::boxed(stream)
                }
            });
        }
        settle().await;
        let start = Instant::now();
        house.core.inbound.drain.advance(Phase::Draining);
        sleep(Duration::from_millis(50)).await;
        callers[0].write_all(GET.as_bytes()).await.unwrap();
        callers[0].flush().await.unwrap();
        let mut app = house.asked().await;
        say(&mut app, OK).await;
        let mut answer = String::new();
        callers[0].read_to_string(&mut answer).await.unwrap();
        let last = answer.to_ascii_lowercase().contains("connection: close");
        assert!(answer.starts_with("HTTP/1.1 200") && last, "{more} {offered:?}: {answer}");
        assert!(start.elapsed() < Duration::from_millis(60), "{more} {offered:?}: {:?}", start.elapsed());
        let mut silent = String::new();
        let _ = callers[1].read_to_string(&mut silent).await;
        assert_eq!((&*silent, start.elapsed()), ("", Duration::from_millis(100)), "{more} {offered:?}");
    }
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_has_proven_nothing_may_be_silent_for_as_long_as_a_head_takes() {
    // What stops short of a ClientHello is told of, silence is not.
    for (mtls, said, expect, told) in [
        (Mtls::Strict, "", 10, 0),
        (Mtls::Strict, "\x16\x03", 10, 1),
        (Mtls::Off, "", 75, 0),
        (Mtls::Off, "\x16\x03", 11, 1),
    ] {
        let house = House::new(", protocol: http1");
        let door = house.plan.doors.iter().find(|door| door.side == Door::Inbound).unwrap();
        let door = Arc::new(DoorPlan { mtls, protocol: Protocol::Auto, leads: Leads::ByAuthority, ..(**door).clone() });
        let (mut ours, theirs) = duplex(PIPE);
        let caller = crate::proxy::Caller { client: ClientAddr(None), original: OriginalDst::EXPLICIT };
        let start = Instant::now();
        house.serve_at(&door, caller, &house.learned, Io::boxed(theirs));
        sleep(Duration::from_secs(1)).await;
        say(&mut ours, said).await;
        assert_eq!(rest(&mut ours).await, "");
        assert_eq!(seconds(start), expect, "{mtls:?}");
        let lines = house.lines().await;
        assert_eq!(
            lines.iter().filter(|line| line.contains("reason=head_timeout")).count(),
            told,
            "{mtls:?} {lines:?}"
        );
    }
}

/// On the machine's own clock: there are sockets in it.
#[tokio::test]
async fn a_door_that_a_reload_removes_serves_who_had_connected_and_can_come_back() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = free.local_addr().unwrap();
    drop(free);
    let (app, listener) = pipes::listen();
    let text = format!("service: s\nadmin: {{ listen: off }}\ninbound: {{ listen: \"{at}\", app: \"{app}\" }}\n");
    let mut house = House::of(&text, listener);
    let doors = Doors::new(house.core.clone(), tokio::runtime::Handle::current());
    let bare =
        House::of("service: s\nadmin: { listen: off }\npeers: { a: { static: ['127.0.0.1:1'] } }\n", pipes::listen().1);
    let plan_of = |plan: &Arc<Plan>| {
        let inbound = plan.doors.iter().filter(|door| door.side == Door::Inbound).cloned().collect();
        Arc::new(Plan { doors: inbound, ..Plan::clone(plan) })
    };
    let (plan, without) = (plan_of(&house.plan), plan_of(&bare.plan));
    doors.commit(doors.prepare(&plan).await.unwrap());
    settle().await;
    // It waits in the kernel; nothing of ours runs before the reload is over.
    let mut early = std::net::TcpStream::connect(at).unwrap();
    std::io::Write::write_all(&mut early, GET.as_bytes()).unwrap();
    house.core.world.store(bare.core.world.load_full());
    doors.commit(doors.prepare(&without).await.unwrap());
    let asked = tokio::time::timeout(Duration::from_secs(20), house.asked()).await;
    say(&mut asked.expect("to be served"), OK).await;
    early.set_nonblocking(true).unwrap();
    let mut answer = String::new();
    tokio::net::TcpStream::from_std(early).unwrap().read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hi"), "{answer}");
    // At once again.
    doors.closed().await;
    assert_eq!(doors.listening(), []);
    let prepared = doors.prepare(&plan).await;
    assert!(prepared.is_ok(), "{:?}", prepared.err());
}
