//! Captured connections: whom they reach by name and by address, who speaks first, what fails as it would without us.

use std::net::SocketAddr;

use super::*;
use crate::plan::door::Protocol;

mod uncarried;

/// Everything that a captured connection may reach, each with the far ends of the connections to it.
struct Net {
    /// Two endpoints of the peer `a`.
    a: [(SocketAddr, mpsc::Receiver<DuplexStream>); 2],
    /// The endpoint of `b`.
    b: (SocketAddr, mpsc::Receiver<DuplexStream>),
    /// The endpoint of `db`, whose protocol is declared to be opaque.
    db: (SocketAddr, mpsc::Receiver<DuplexStream>),
    /// Nobody's.
    outside: (SocketAddr, mpsc::Receiver<DuplexStream>),
}

impl Net {
    /// The names of those that were connected to since, `.` where nobody was.
    fn reached(&mut self) -> &'static str {
        let [a1, a2] = &mut self.a;
        let all = [("a1", a1), ("a2", a2), ("b", &mut self.b), ("db", &mut self.db), ("out", &mut self.outside)];
        let reached: Vec<_> = all.into_iter().filter_map(|(name, it)| it.1.try_recv().ok().map(|_| name)).collect();
        match &reached[..] {
            [] => ".",
            [one] => one,
            more => panic!("{more:?}"),
        }
    }
}

fn house(more: &str) -> (House, Net) {
    let [a1, a2, b, db, outside] = [(); 5].map(|()| pipes::listen_tcp());
    let text = format!(
        "service: s\nadmin: {{ listen: off }}\nredirect: {{ mode: redirect }}\noutbound: {{ listen: [\"127.0.0.1:15001\", \"[::1]:15001\"]{more} }}\npeers:\n  \
         a: {{ static: [{}, {{ address: {}, weight: 0 }}], retry: off, routes: [{{ match: {{ path: /told }}, respond: {{ status: 204 }} }}] }}\n  \
         b: {{ static: [{}], hosts: [b, \"c:9\"] }}\n  db: {{ static: [{}], protocol: tcp }}\n",
        a1.0, a2.0, b.0, db.0
    );
    let (_, none) = mpsc::channel(1);
    let house = House::of(&text, none);
    (house, Net { a: [a1, a2], b, db, outside })
}

impl House {
    /// An address that stands for `a`.
    fn virtual_of_a(&self) -> SocketAddr {
        SocketAddr::from((self.plan.virtual_ips.find("a").unwrap().v4, 80))
    }

    /// A connection of the service that was going to `to`.
    async fn going(&self, to: impl Into<SocketAddr>, first: impl AsRef<[u8]>) -> DuplexStream {
        self.captured(Door::Outbound, to.into(), first.as_ref()).await
    }

    /// A connection of the network that was going to `to`.
    async fn coming(&self, to: SocketAddr, first: &str) -> DuplexStream {
        self.captured(Door::Inbound, to, first.as_bytes()).await
    }

    async fn captured(&self, side: Door, to: SocketAddr, first: &[u8]) -> DuplexStream {
        self.captured_from(ClientAddr(None), side, to, first).await
    }

    async fn captured_from(&self, client: ClientAddr, side: Door, to: SocketAddr, first: &[u8]) -> DuplexStream {
        let (mut ours, theirs) = duplex(PIPE);
        ours.write_all(first).await.unwrap();
        let door = match side {
            Door::Outbound => self.plan.doors.iter().find(|door| door.side == side).unwrap(),
            Door::Inbound => self.plan.capture.as_ref().unwrap().door(&self.plan.doors, to.port()).unwrap(),
        };
        let caller = crate::proxy::Caller { client, original: OriginalDst(Some(to)) };
        let learned = self.core.destinations.of(to, Instant::now());
        self.serve_at(door, caller, &learned, Io::boxed(theirs));
        ours
    }
}

fn get(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

/// A ClientHello for this name.
fn hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

const PING: &[u8] = b"*1\r\n$4\r\nPING\r\n";

#[tokio::test(start_paused = true)]
async fn a_name_leads_first_then_the_address_then_otherwise() {
    for otherwise in ["pass", "deny"] {
        let (house, mut net) = house(&format!(", otherwise: {otherwise}"));
        let virtual_ip = house.virtual_of_a();
        let passed = if otherwise == "pass" { "out" } else { "." };
        let [a1, a2, b, db, out] = [net.a[0].0, net.a[1].0, net.b.0, net.db.0, net.outside.0];
        let nine = SocketAddr::from(([192, 0, 2, 9], 9));
        for (first, to, expect) in [
            // A Host that a peer has: whatever was dialled. The endpoint of weight 0 takes none of what is balanced.
            (get("a"), a1, "a1"),
            (get("a"), a2, "a1"),
            (get("b"), a1, "b"),
            (get("a"), out, "a1"),
            (get("a"), virtual_ip, "a1"),
            (get("b"), virtual_ip, "b"),
            (get("c:9"), out, "b"),
            // One that nobody has: whose endpoint the address is, and this very one.
            (get("a-0.a.svc"), a1, "a1"),
            (get("a-1.a.svc"), a2, "a2"),
            (get(&a2.to_string()), a2, "a2"),
            (get("x"), b, "b"),
            (get("x"), virtual_ip, "a1"),
            (get("x"), out, passed),
            // The same by the names of TLS; what has no port goes by the one that was dialled.
            (hello("a"), a2, "a1"),
            (hello("b"), out, "b"),
            (hello("c"), nine, "b"),
            (hello("c"), a2, "a2"),
            (hello("a-1.a.svc"), a2, "a2"),
            (hello("x"), virtual_ip, "a1"),
            (PING.to_vec(), SocketAddr::from(([240, 240, 9, 9], 80)), "."),
            (hello("x"), out, passed),
            // And without any name.
            (PING.to_vec(), a2, "a2"),
            (PING.to_vec(), virtual_ip, "a1"),
            (PING.to_vec(), out, passed),
            // What is declared of a peer binds: not even HTTP is looked at.
            (get("a"), db, "db"),
            (PING.to_vec(), db, "db"),
            // A proxy that the service has chosen itself gets what is meant for it.
            (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n".to_vec(), out, passed),
            (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), out, passed),
        ] {
            let caller = house.going(to, &first).await;
            settle().await;
            assert_eq!(net.reached(), expect, "{otherwise}: {:?} to {to}", String::from_utf8_lossy(&first));
            drop(caller);
        }
        // Whom the caller dialled it gets: no route of the peer answers instead.
        let told = |host: &str| format!("GET /told HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let _caller = house.going(a2, told("x")).await;
        settle().await;
        assert_eq!(net.reached(), "a2");
        let mut caller = house.going(a2, told("a")).await;
        assert!(read_until(&mut caller, "\r\n\r\n").await.starts_with("HTTP/1.1 204"));
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_of_a_connection_goes_by_its_own_host() {
    let (house, mut net) = house("");
    let mut caller = house.going(net.outside.0, "").await;
    // One that was made while the caller was silent, and is not used.
    let mut unused = net.outside.1.recv().await.unwrap();
    for host in ["x", "a", "b", "y"] {
        caller.write_all(&get(host)).await.unwrap();
        let listener = match host {
            "a" => &mut net.a[0].1,
            "b" => &mut net.b.1,
            _ => &mut net.outside.1,
        };
        let mut server = listener.recv().await.unwrap();
        read_until(&mut server, &format!("\r\nHost: {host}\r\n")).await;
        say(&mut server, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi").await;
        read_until(&mut caller, "hi").await;
    }
    assert_eq!(rest(&mut unused).await, "");
}

#[tokio::test(start_paused = true)]
async fn the_line_tells_what_was_dialled_and_that_it_is_not_the_peers() {
    let (house, mut net) = house("");
    let (a2, outside) = (net.a[1].0, net.outside.0);
    for to in [a2, outside, house.virtual_of_a()] {
        let mut caller = house.going(to, get("a")).await;
        let mut server = net.a[0].1.recv().await.unwrap();
        read_until(&mut server, "\r\n\r\n").await;
        say(&mut server, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi").await;
        read_until(&mut caller, "hi").await;
    }
    let lines = house.lines().await;
    let mismatch: Vec<_> = lines.iter().map(|line| line.contains(" host_ip_mismatch=true")).collect();
    assert_eq!(mismatch, [false, true, false], "{lines:#?}");
    assert!(lines[1].contains(&format!(" original={outside} ")) && lines[1].contains(" peer=a "), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_speaks_first_is_heard_at_once_and_remembered() {
    let (house, mut net) = house("");
    let to = net.outside.0;
    let mut caller = house.going(to, "").await;
    let start = Instant::now();
    let mut server = net.outside.1.recv().await.unwrap();
    say(&mut server, "220 hello\r\n").await;
    read_until(&mut caller, "220 hello\r\n").await;
    assert_eq!(start.elapsed(), Duration::ZERO);
    // The ends pass one by one.
    caller.shutdown().await.unwrap();
    assert_eq!(rest(&mut server).await, "");
    say(&mut server, "221 bye\r\n").await;
    drop(server);
    assert_eq!(rest(&mut caller).await, "221 bye\r\n");
    let known = house.core.destinations.all(Instant::now());
    assert_eq!(
        known.iter().map(|(addr, it)| (*addr, it.spoken())).collect::<Vec<_>>(),
        [(to, Some(crate::proxy::Spoken::ServerFirst))]
    );
    let line = house.lines().await.remove(0);
    assert!(line.contains("protocol=tcp") && line.contains(&format!("peer={to} ")), "{line}");
}

#[tokio::test(start_paused = true)]
async fn what_answers_http_is_not_dialled_before_its_caller_speaks() {
    let (house, mut net) = house("");
    let to = net.a[1].0;
    let mut caller = house.going(to, get("x")).await;
    let mut server = net.a[1].1.recv().await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    say(&mut server, OK).await;
    read_until(&mut caller, "hi").await;
    let _silent = house.going(to, "").await;
    settle().await;
    assert_eq!(net.reached(), ".");
    // Another address of the same peer is another matter.
    let _silent = house.going(net.a[0].0, "").await;
    settle().await;
    assert_eq!(net.reached(), "a1");
}

#[tokio::test(start_paused = true)]
async fn an_end_without_a_word_passes_as_it_is() {
    let (house, mut net) = house("");
    // The caller's: it may want to hear something all the same.
    let mut caller = house.going(net.outside.0, "").await;
    caller.shutdown().await.unwrap();
    let mut server = net.outside.1.recv().await.unwrap();
    assert_eq!(rest(&mut server).await, "");
    say(&mut server, "Thu, 26 Nov 2026\r\n").await;
    drop(server);
    assert_eq!(rest(&mut caller).await, "Thu, 26 Nov 2026\r\n");
    // The server's.
    let mut caller = house.going(net.outside.0, "").await;
    let mut server = net.outside.1.recv().await.unwrap();
    server.shutdown().await.unwrap();
    assert_eq!(rest(&mut caller).await, "");
    say(&mut caller, "words").await;
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"words");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_reached_is_shown_as_without_us_and_a_peer_with_its_reason() {
    let (house, net) = house("");
    let (outside, a2) = (net.outside.0, net.a[1].0);
    drop(net);
    // Nobody answers for an address that is nobody's, whatever is spoken.
    for first in [&b""[..], &get("x"), PING, &hello("x")] {
        let mut caller = house.going(outside, first).await;
        assert_eq!(rest(&mut caller).await, "", "{:?}", String::from_utf8_lossy(first));
    }
    let mut caller = house.going(a2, get("x")).await;
    let answer = read_until(&mut caller, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("reason=connect_refused; side=peer"), "{answer}");
    drop(caller);
    let lines = house.lines().await;
    assert_eq!(lines.len(), 5, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("reason=connect_refused side=peer")), "{lines:#?}");
    assert!(lines[..4].iter().all(|line| !line.contains("status=")), "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn this_sidecar_is_never_dialled() {
    let (house, mut net) = house(", otherwise: pass");
    let itself = SocketAddr::from(([127, 0, 0, 1], 15001));
    let mut caller = house.going(itself, get("x")).await;
    let answer = read_until(&mut caller, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 508") && answer.contains("reason=looped"), "{answer}");
    for first in [&b""[..], PING, &hello("x")] {
        let mut caller = house.going(itself, first).await;
        if first.is_empty() {
            caller.shutdown().await.unwrap();
        }
        assert_eq!(rest(&mut caller).await, "");
    }
    assert_eq!(net.reached(), ".");
    drop(caller);
    let lines = house.lines().await;
    assert!(lines.len() == 4 && lines.iter().all(|line| line.contains("reason=looped side=proxy")), "{lines:#?}");
}

/// An inbound door with a listed app and one that is not.
fn service(more: &str) -> (House, SocketAddr, mpsc::Receiver<DuplexStream>) {
    let ((app, listed), (other, unlisted)) = (pipes::listen_tcp(), pipes::listen_tcp());
    let text = format!(
        "service: s\nadmin: {{ listen: off }}\nredirect: {{ mode: redirect }}\noutbound: {{ listen: [\"127.0.0.1:15001\", \"[::1]:15001\"] }}\n\
         inbound: {{ listen: \"[::]:15006\", app: \"{app}\"{more} }}\n"
    );
    (House::of(&text, listed), other, unlisted)
}

#[tokio::test(start_paused = true)]
async fn a_captured_port_leads_to_its_app_or_to_the_address_itself() {
    let (mut house, other, mut unlisted) = service(", protocol: http1");
    let app =
        house.plan.capture.as_ref().unwrap().ports.iter().find(|(port, _)| **port != 15006).map(|(port, _)| *port);
    let listed = SocketAddr::from(([10, 1, 1, 1], app.unwrap()));
    let mut caller = house.coming(listed, GET).await;
    let mut server = house.asked().await;
    say(&mut server, OK).await;
    read_until(&mut caller, "hi").await;
    // What is declared of the app says nothing about other ports.
    assert_eq!(house.plan.capture.as_ref().unwrap().unlisted.as_ref().unwrap().protocol, Protocol::Auto);
    // Nor does a port that is passed through.
    let passes = service(", passthrough: [15006]").0.plan.clone();
    let capture = passes.capture.as_ref().unwrap();
    assert!(!capture.unlisted.as_ref().unwrap().passes_all && passes.doors.iter().any(|door| door.passes_all));
    let mut caller = house.coming(other, "*1\r\n$4\r\nPING\r\n").await;
    let mut server = unlisted.recv().await.unwrap();
    read_until(&mut server, "PING\r\n").await;
    say(&mut server, "+PONG\r\n").await;
    read_until(&mut caller, "PONG\r\n").await;
    drop((caller, server));
    // An address of somebody else is not the service's, and this sidecar is not either.
    for (to, reason, status) in [
        (SocketAddr::from(([198, 51, 100, 7], other.port())), "address_refused", "403"),
        (SocketAddr::from(([127, 0, 0, 1], 15001)), "looped", "508"),
    ] {
        let mut caller = house.coming(to, GET).await;
        let answer = read_until(&mut caller, "\r\n\r\n").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(reason), "{answer}");
    }
    // A port where nobody listens is the app's fault.
    drop(unlisted);
    let mut caller = house.coming(other, GET).await;
    let answer = read_until(&mut caller, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("reason=connect_refused; side=app"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn the_routes_of_the_service_hold_at_every_port_of_it() {
    let routes = ", routes: [{ match: { path: /path }, respond: { status: 410 } }, { response-headers: { set: { x-by: route } } }]";
    let (house, other, mut unlisted) = service(routes);
    let mut caller = house.coming(other, GET).await;
    settle().await;
    assert!(unlisted.try_recv().is_err(), "the route answers");
    let answer = read_until(&mut caller, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 410"), "{answer}");
    // What a route only changes still goes to the port that was dialled.
    let mut caller = house.coming(other, "GET /else HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut server = unlisted.recv().await.unwrap();
    read_until(&mut server, "\r\n\r\n").await;
    say(&mut server, OK).await;
    let answer = read_until(&mut caller, "hi").await;
    assert!(answer.contains("x-by: route"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn the_app_is_called_from_its_callers_address_whatever_route_is_taken() {
    let (app, listed) = pipes::listen_tcp();
    for routes in ["", ", routes: [{ timeout: { request: 5s } }]"] {
        let text = format!(
            "service: s\nadmin: {{ listen: off }}\nredirect: {{ mode: tproxy }}\n\
             inbound: {{ listen: \"[::]:15006\", app: \"{app}\"{routes} }}\n"
        );
        let house = House::of(&text, mpsc::channel(1).1);
        let (mut ours, theirs) = duplex(PIPE);
        ours.write_all(GET.as_bytes()).await.unwrap();
        let door = house.plan.capture.as_ref().unwrap().door(&house.plan.doors, app.port()).unwrap();
        let client = ClientAddr(Some(SocketAddr::from(([192, 0, 2, 7], 4000))));
        let caller = crate::proxy::Caller { client, original: OriginalDst(Some(app)) };
        house.serve_at(door, caller, &house.learned, Io::boxed(theirs));
        settle().await;
        drop(ours);
        // Its peer is that of one caller, and not the one that all share.
        let lines = house.lines().await;
        assert!(lines.iter().any(|line| line.contains(&format!("peer=app:{app} "))), "{routes}: {lines:#?}");
    }
    drop(listed);
}

#[tokio::test(start_paused = true)]
async fn an_app_of_one_family_is_called_for_callers_of_the_other_too() {
    let text = "service: s\nadmin: { listen: off }\nredirect: { mode: tproxy }\n\
                inbound: { listen: \"[::]:15006\", app: \"192.0.2.1:8080\" }\n";
    let house = House::of(text, mpsc::channel(1).1);
    let door = house.plan.capture.as_ref().unwrap().door(&house.plan.doors, 8080).unwrap();
    let client = ClientAddr(Some("[2001:db8::7]:4000".parse().unwrap()));
    let caller = crate::proxy::Caller { client, original: OriginalDst(Some("[2001:db8::9]:8080".parse().unwrap())) };
    let drain = house.core.inbound.drain.watch();
    let conn = connection::accepted(&house.core, &house.plan, door, &house.learned, caller, drain);
    // Its caller's address it cannot be shown.
    let led = crate::proxy::target::of_conn(&conn, &house.core.world.load()).map_err(|failure| failure.detail);
    assert_eq!(led.map(|led| led.peer.name().to_string()), Ok("app".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_rules_of_the_service_see_the_port_that_was_dialled() {
    let (house, other, mut unlisted) = service("");
    let port = other.port();
    drop(house);
    for (rules, passes) in [
        (format!(", deny: {{ ports: [{port}] }}"), false),
        (", deny: { ports: [15006] }".to_owned(), true),
        (format!(", allow: {{ ports: [{port}] }}"), true),
        (", allow: { ports: [1] }".to_owned(), false),
    ] {
        let (house, ..) = service(&rules);
        for first in [GET, "*1\r\n$4\r\nPING\r\n"] {
            let caller = house.coming(other, first).await;
            settle().await;
            assert_eq!(unlisted.try_recv().is_ok(), passes, "{rules} {first}");
            drop(caller);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tls_of_the_services_own_is_carried_where_nothing_else_is_asked_for() {
    let (house, other, mut unlisted) = service("");
    let hello = hello("x");
    let mut caller = house.captured(Door::Inbound, other, &hello).await;
    let mut server = unlisted.recv().await.unwrap();
    let mut heard = vec![0; hello.len()];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(heard, hello);
    say(&mut server, "answer").await;
    read_until(&mut caller, "answer").await;
}
