//! Handshakes as only a process meets them: in pieces, without an end, of old versions, and TLS where none is spoken.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::harness::{App, Caller, PATIENCE, Sidecar, field, until};
use crate::mtls::{Authority, ask, serving};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const GET: &[u8] = b"GET /x HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";

/// Handshakes that are begun and left, of each kind.
const LEFT: usize = 150;

/// What one of them may hold: its buffers, and rustls' own of a server that has sent its flight.
const ONE: i64 = 96 << 10;

/// A strict door of `server`, whose certificate a client that knows no SPIFFE takes too.
fn strict(authority: &Authority, app: SocketAddr, more: &str) -> Sidecar {
    let identity = authority.identity("server");
    authority.run("issue --service server --dns server.test");
    Sidecar::start(&serving(&identity, "server", app, more))
}

/// A client of rustls with the certificate of a service.
fn client(authority: &Authority, service: &str) -> ClientConnection {
    authority.identity(service);
    let at = |name: &str| authority.0.0.join("tls").join(service).join(name);
    let certificates = |name: &str| CertificateDer::pem_file_iter(at(name)).unwrap().map(Result::unwrap);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("roots.pem"));
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("cert.pem").collect(), PrivateKeyDer::from_pem_file(at("key.pem")).unwrap())
        .unwrap();
    ClientConnection::new(Arc::new(config), ServerName::try_from("server.test").unwrap()).unwrap()
}

/// The ClientHello that it would send.
fn hello(authority: &Authority) -> Vec<u8> {
    let (mut client, mut bytes) = (client(authority, "client"), Vec::new());
    while client.wants_write() {
        client.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Whatever comes until the end, be it a reset.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let _ = stream.read_to_end(&mut heard);
    heard
}

/// Each byte in a packet of its own.
struct Bytewise(TcpStream);

impl Write for Bytewise {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes.get(..1).unwrap_or_default())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl Read for Bytewise {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let one = bytes.len().min(1);
        self.0.read(bytes.get_mut(..one).unwrap_or_default())
    }
}

fn resident(sidecar: &Sidecar) -> i64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", sidecar.child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<i64>().unwrap() << 10
}

fn failures(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar.metric(&["outrigger_failures_total", &format!("reason=\"{reason}\"")])
}

#[test]
fn a_handshake_in_pieces_of_one_byte() {
    let (authority, app) = (Authority::new(), App::http(OK));
    for more in ["", ", mtls: permissive", ", protocol: http1"] {
        let server = strict(&authority, app.addr, more);
        let (mut client, mut pieces) = (client(&authority, "client"), Bytewise(connect(server.inbound)));
        let mut stream = Stream::new(&mut client, &mut pieces);
        stream.write_all(GET).unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{more}: {}", String::from_utf8_lossy(&answer));
        assert!(field(&app.next(), "x-forwarded-client-cert").unwrap().ends_with("URI=spiffe://shop/client"));
    }
}

#[test]
fn handshakes_without_an_end_are_ended_by_the_clock_and_cost_little() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = strict(&authority, app.addr, ", timeout: { head: 3s }");
    let identity = authority.identity("client");
    let good = Sidecar::start(&crate::mtls::calling(&identity, server.inbound, "spiffe://shop/server", ""));
    assert!(ask(good.outbound, "/warm", "").starts_with("HTTP/1.1 200 "));
    let (hello, before) = (hello(&authority), resident(&server));
    let (half, whole) = (&hello[..hello.len() / 2], &hello[..]);
    let mut left = Vec::new();
    for _ in 0..LEFT {
        for part in [half, whole] {
            let mut stream = connect(server.inbound);
            stream.write_all(part).unwrap();
            left.push(stream);
        }
    }
    // The last one has its answer, so all before it have been looked at; and those who mean it are served meanwhile.
    assert_eq!(left.last_mut().unwrap().read(&mut [0]).unwrap(), 1);
    assert!(ask(good.outbound, "/meanwhile", "").starts_with("HTTP/1.1 200 "));
    let grown = resident(&server) - before;
    assert!(grown < 2 * LEFT as i64 * ONE, "{grown} bytes for {} handshakes", 2 * LEFT);
    let all = LEFT as f64;
    until("the clock ends all of them", || {
        (failures(&server, "head_timeout") == all && failures(&server, "client_tls_failed") == all).then_some(())
    });
    server.says(&["reason=client_tls_failed", "side=client", "the handshake took too long"]);
    for stream in left {
        rest(stream);
    }
    assert!(ask(good.outbound, "/after", "").starts_with("HTTP/1.1 200 "));
}

#[test]
fn what_is_no_handshake_of_today_gets_an_alert_and_one_word() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = strict(&authority, app.addr, "");
    let hello_of = |version: u8| {
        let body = [&[3, version][..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
        let message = [&[1, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat();
        [&[0x16, 3, 1, 0, u8::try_from(message.len()).unwrap()][..], &message].concat()
    };
    let hello = hello(&authority);
    let mut bent = hello.clone();
    bent[5] = 2;
    for (name, bytes, alert, reason) in [
        ("SSL 3.0", hello_of(0), true, "client_tls_failed"),
        ("TLS 1.0", hello_of(1), true, "client_tls_failed"),
        ("TLS 1.1", hello_of(2), true, "client_tls_failed"),
        ("TLS 1.2", hello_of(3), true, "client_tls_failed"),
        ("a ServerHello", bent, true, "client_tls_failed"),
        ("a record too long", [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 300]].concat(), true, "client_tls_failed"),
        // rustls says nothing of a message that it would not hold.
        ("garbage in a record", [&[0x16, 3, 1, 0, 200][..], &[0x5a; 200]].concat(), false, "client_tls_failed"),
        ("half a ClientHello, and no more", hello[..90].to_vec(), false, "client_tls_failed"),
        ("data first", vec![0x17, 3, 3, 0, 4, 0, 0, 0, 0], false, "plaintext_refused"),
        ("an alert first", vec![0x15, 3, 3, 0, 2, 2, 40], false, "plaintext_refused"),
        ("SSL 2.0", [&[0x80, 0x2e, 1, 0, 2][..], &[0; 64]].concat(), false, "plaintext_refused"),
        ("garbage", (0..200u32).map(|at| (128 + at * 37 % 97) as u8).collect(), false, "plaintext_refused"),
        ("zeros", vec![0; 200], false, "plaintext_refused"),
        ("NUL in a request", b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), false, "bad_head"),
    ] {
        let before = failures(&server, reason);
        let mut stream = connect(server.inbound);
        stream.write_all(&bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let heard = rest(stream);
        // A fatal alert in the clear (RFC 8446 §6).
        assert_eq!(heard.starts_with(&[0x15, 3]) && heard[5] == 2, alert, "{name}: {heard:?}");
        until(name, || (failures(&server, reason) == before + 1.0).then_some(()));
        app.unseen();
    }
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn tls_where_none_is_spoken_is_told_so_on_both_sides() {
    let (authority, app) = (Authority::new(), App::http(OK));
    // Our own TLS to a door of ours that has it off.
    let server = strict(&authority, app.addr, ", mtls: off");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let answer = ask(client.outbound, "/secret", "");
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("reason=tls_failed"), "{answer}");
    assert!(answer.contains("if it speaks none, turn on its sidecar's `inbound.mtls`, or say `mtls: off`"), "{answer}");
    server.says(&[
        "reason=client_tls_failed",
        "the caller speaks TLS, and this door does not",
        "`inbound.mtls` is off",
    ]);
    app.unseen();

    // Our own TLS to who answers in plaintext.
    let plain = App::http("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    let client = authority.client(plain.addr, "spiffe://shop/server", "");
    let answer = ask(client.outbound, "/secret", "");
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("reason=tls_failed"), "{answer}");

    // Plaintext to a door that is strict: its answer passes, and says which side is to change.
    let server = strict(&authority, app.addr, "");
    let identity = authority.identity("client");
    let client = Sidecar::start(
        &crate::mtls::calling(&identity, server.inbound, "off", "").replace("mtls: { id: 'off' }", "mtls: off"),
    );
    let answer = ask(client.outbound, "/x", "");
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("reason=plaintext_refused"), "{answer}");
    let opaque = Caller::connect(client.inbound).send("*1\r\n").rest();
    assert_eq!(opaque, "");
    server.says(&["reason=plaintext_refused", "side=client", "mutual TLS only"]);
    app.unseen();
}
