//! Opaque bytes: whoever speaks first decides, and half-closes pass.

use std::io::{Read, Write};
use std::net::Shutdown;

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
