//! Opaque bytes: whoever speaks first decides, and half-closes pass.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::Duration;

use crate::harness::{App, Caller, Sidecar};

fn sidecar(app: &App) -> Sidecar {
    Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}' }}\noutbound: {{ listen: '{{out}}' }}\ntelemetry: {{ access-log: {{ log: all }} }}\n",
        app.addr
    ))
}

#[test]
fn a_server_that_speaks_first_is_heard_at_an_undeclared_port() {
    let app = App::start(|mut stream, report| {
        stream.write_all(b"220 hello\r\n").unwrap();
        let mut word = [0; 6];
        stream.read_exact(&mut word).unwrap();
        report.send(String::from_utf8_lossy(&word).into_owned()).unwrap();
        stream.write_all(b"221 bye\r\n").unwrap();
    });
    let sidecar = sidecar(&app);
    let mut caller = Caller::connect(sidecar.inbound);
    assert_eq!(caller.until(b"\r\n"), "220 hello\r\n");
    caller.send("QUIT\r\n");
    assert_eq!(caller.rest(), "221 bye\r\n");
    assert_eq!(app.next(), "QUIT\r\n");
}

#[test]
fn what_is_refused_after_the_app_was_called_is_no_whole_stream_of_nothing() {
    let app = App::start(|mut stream, report| {
        report.send("called".into()).unwrap();
        report.send(stream.read(&mut [0]).err().map_or("an end".into(), |error| error.kind().to_string())).unwrap();
    });
    let sidecar = sidecar(&app);
    let mut caller = TcpStream::connect(sidecar.inbound).unwrap();
    assert_eq!(app.next(), "called");
    // It may be a request, of a method without an end: who it is from would not be judged where it passed unseen.
    let _ = caller.write_all(&[b'a'; 32 * 1024]);
    assert_eq!(app.next(), ErrorKind::ConnectionReset.to_string());
}

#[test]
fn a_caller_that_speaks_first_and_half_closes_gets_the_whole_answer() {
    let app = App::start(|mut stream, report| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        report.send(String::from_utf8_lossy(&all).into_owned()).unwrap();
        stream.write_all(&vec![b'x'; 1_000_000]).unwrap();
    });
    let sidecar = sidecar(&app);
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send("*1\r\n$4\r\nPING\r\n");
    caller.0.shutdown(Shutdown::Write).unwrap();
    assert_eq!(caller.rest().len(), 1_000_000);
    assert_eq!(app.next(), "*1\r\n$4\r\nPING\r\n");
    sidecar.says(&["bytes_out=1000000"]);
}

#[test]
fn a_peer_with_a_port_of_its_own_is_reached_without_http() {
    let app = App::start(|mut stream, _| {
        let mut word = [0; 5];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
    });
    let port = crate::harness::free_port();
    let _sidecar = Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: ['{}'], protocol: tcp, listen: '127.0.0.1:{port}' }}\n",
        app.addr
    ));
    let mut caller = Caller::connect(([127, 0, 0, 1], port).into());
    caller.send("GET /");
    assert_eq!(caller.rest(), "GET /");
}

#[test]
fn connect_tunnels_on_the_outbound_side() {
    let app = App::start(|mut stream, _| {
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
    });
    let sidecar = Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: ['{}'] }}\n",
        app.addr
    ));
    let mut caller = Caller::connect(sidecar.outbound);
    let head = caller.send("CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n").until(b"\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert_eq!(caller.send("echo").rest(), "echo");
}

const SWITCHED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n";

/// What opens a tunnel, and whether the app sees it.
const OPENINGS: [(&str, &str, bool); 3] = [
    ("opaque", "", false),
    ("CONNECT", "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\n\r\n", false),
    ("upgrade", "GET /ws HTTP/1.1\r\nHost: db\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", true),
];

/// A tunnel of each kind: both ends of it.
fn tunnels(mut each: impl FnMut(&str, Caller, TcpStream)) {
    let (to, streams) = mpsc::channel();
    let to = Mutex::new(to);
    let app = App::start(move |stream, _| to.lock().unwrap().send(stream).unwrap());
    let port = crate::harness::free_port();
    let sidecar = Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: ['{0}'] }}\n  tcp: {{ static: ['{0}'], protocol: tcp, listen: '127.0.0.1:{port}' }}\n",
        app.addr
    ));
    for (name, opening, seen) in OPENINGS {
        let to = if opening.is_empty() { ([127, 0, 0, 1], port).into() } else { sidecar.outbound };
        let mut caller = Caller::connect(to);
        caller.send(opening);
        let mut stream = streams.recv_timeout(crate::harness::PATIENCE).unwrap();
        if seen {
            let mut head = vec![0; 1024];
            assert!(stream.read(&mut head).unwrap() > 0);
            stream.write_all(SWITCHED).unwrap();
        }
        if !opening.is_empty() {
            caller.until(b"\r\n\r\n");
        }
        // Both ways are open.
        caller.send("ping");
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(b"pong").unwrap();
        caller.until(b"pong");
        each(name, caller, stream);
    }
}

fn reset(stream: TcpStream) {
    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_reset_passes_through_a_tunnel_of_any_kind() {
    tunnels(|name, mut caller, app| {
        reset(app);
        let error = caller.0.read(&mut [0; 9]).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::ConnectionReset), "{name}: the app's");
    });
    tunnels(|name, caller, mut app| {
        reset(caller.0);
        let error = app.read(&mut [0; 9]).map_err(|error| error.kind());
        assert_eq!(error, Err(ErrorKind::ConnectionReset), "{name}: the caller's");
    });
}

#[test]
fn an_upgrade_and_a_connect_are_tried_at_a_second_endpoint() {
    let app = App::start(|mut stream, _| {
        let mut head = vec![0; 1024];
        let n = stream.read(&mut head).unwrap();
        if head[..n].starts_with(b"GET") {
            stream.write_all(SWITCHED).unwrap();
        }
        stream.write_all(b"here").unwrap();
    });
    for (name, opening, _) in &OPENINGS[1..] {
        let dead = crate::harness::free_port();
        let sidecar = Sidecar::start(&format!(
            "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  db: {{ static: ['127.0.0.1:{dead}', '{}'], balance: round-robin }}\n",
            app.addr
        ));
        let times = 6;
        for _ in 0..times {
            let mut caller = Caller::connect(sidecar.outbound);
            caller.send(opening);
            let head = caller.until(b"\r\n\r\n");
            assert!(head.starts_with("HTTP/1.1 101") || head.starts_with("HTTP/1.1 200"), "{name}: {head}");
            assert_eq!(caller.send("x").rest(), "here", "{name}");
        }
        let count = |name| sidecar.metric(&[name, "db"]);
        let retries = count("outrigger_retries_total");
        assert!(retries >= f64::from(times / 2), "{name}: {retries}");
        assert_eq!(count("outrigger_attempts_total"), f64::from(times) + retries, "{name}");
    }
}
