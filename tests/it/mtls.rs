//! Mutual TLS through two real sidecars, with certificates that `outrigger ca` makes: who is proven, and what is refused
//! before anything is said.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::process::Command;

use http::Request;

use crate::harness::http2::{App2, Caller2, soon};
use crate::harness::{App, Caller, Folder, Sidecar, field, until};

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// An authority for the trust domain `shop`, and what it issued.
pub(crate) struct Authority(pub(crate) Folder);

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self(Folder::new());
        authority.run("init --trust-domain shop");
        authority
    }

    pub(crate) fn run(&self, line: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let output = command.current_dir(&self.0.0).arg("ca").args(line.split(' ')).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The section `identity` for a service of the mesh.
    pub(crate) fn identity(&self, service: &str) -> String {
        self.run(&format!("issue --service {service}"));
        let at = self.0.0.join("tls").join(service).display().to_string();
        format!("identity: {{ certificate: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }}\n")
    }

    /// A sidecar that is `service`, in front of `app`; `more` follows in its `inbound` section.
    pub(crate) fn server(&self, service: &str, app: SocketAddr, more: &str) -> Sidecar {
        Sidecar::start(&serving(&self.identity(service), service, app, more))
    }

    /// A sidecar that is `client` and calls `to`, which must be `id`; it has a port of its own at `inbound`.
    pub(crate) fn client(&self, to: SocketAddr, id: &str, more: &str) -> Sidecar {
        Sidecar::start(&calling(&self.identity("client"), to, id, more))
    }
}

pub(crate) fn serving(identity: &str, service: &str, app: SocketAddr, more: &str) -> String {
    format!(
        "service: {service}\n{identity}admin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{app}'{more} }}\n\
         outbound: {{ listen: '{{out}}' }}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

pub(crate) fn calling(identity: &str, to: SocketAddr, id: &str, more: &str) -> String {
    format!(
        "service: client\n{identity}admin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: \
         ['{to}'], listen: '{{in}}', mtls: {{ id: '{id}' }}{more} }}\ntelemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

pub(crate) fn ask(to: SocketAddr, path: &str, fields: &str) -> String {
    let mut caller = Caller::connect(to);
    caller.send(format!("GET {path} HTTP/1.1\r\nHost: server\r\n{fields}\r\n")).answer()
}

/// An app that greets first, and gives back what it hears.
pub(crate) fn greeter() -> App {
    App::start(|mut stream, report| {
        report.send("called".into()).unwrap();
        stream.write_all(b"220 hello\r\n").unwrap();
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        let _ = stream.write_all(&heard);
    })
}

#[test]
fn the_app_learns_who_calls_and_nobody_can_claim_it() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = authority.server("server", app.addr, ", allow: { from: spiffe://shop/client }");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let hash = {
        let pem = authority.0.0.join("tls/client/cert.pem");
        use rustls_pki_types::pem::PemObject;
        let leaf = rustls_pki_types::CertificateDer::from_pem_file(pem).unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &leaf);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let told = format!("By=spiffe://shop/server;Hash={hash};URI=spiffe://shop/client");
    for forged in ["", "X-Forwarded-Client-Cert: URI=spiffe://shop/admin\r\n", "x_forwarded_client_cert: a\r\n"] {
        let answer = ask(client.outbound, "/x", forged);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let heard = app.next();
        assert!(heard.starts_with("GET /x HTTP/1.1\r\n"), "{heard}");
        assert_eq!(field(&heard, "x-forwarded-client-cert").as_deref(), Some(&*told), "{heard}");
        assert_eq!(heard.to_ascii_lowercase().matches("client-cert").count(), 1, "{heard}");
        assert!(!heard.contains("x_forwarded"), "{heard}");
        assert_eq!(field(&heard, "x-forwarded-proto").as_deref(), Some("http"), "what the caller asked for: {heard}");
    }
    server.says(&["client_id=spiffe://shop/client", "path=/x", "status=200"]);
}

#[test]
fn where_a_request_came_from_is_believed_of_the_mesh_alone() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = authority.server("server", app.addr, ", mtls: permissive");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let said = "X-Forwarded-For: 6.6.6.6, 10.1.1.1\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-Proto: https\r\n";
    assert!(ask(client.outbound, "/mesh", said).starts_with("HTTP/1.1 200 "));
    let heard = app.next();
    for (name, value) in
        [("x-forwarded-for", "6.6.6.6, 10.1.1.1"), ("forwarded", "for=6.6.6.6"), ("x-forwarded-proto", "https")]
    {
        assert_eq!(field(&heard, name).as_deref(), Some(value), "{heard}");
    }
    assert!(ask(client.outbound, "/mesh", "").starts_with("HTTP/1.1 200 "));
    let heard = app.next();
    assert_eq!(field(&heard, "x-forwarded-for").as_deref(), Some("127.0.0.1"), "{heard}");
    // A caller in plaintext has proven nothing.
    assert!(ask(server.inbound, "/plain", said).starts_with("HTTP/1.1 200 "));
    let heard = app.next();
    assert_eq!(field(&heard, "x-forwarded-for").as_deref(), Some("127.0.0.1"), "{heard}");
    assert_eq!(field(&heard, "x-forwarded-proto").as_deref(), Some("http"), "{heard}");
    assert!(field(&heard, "forwarded").is_none() && !heard.contains("6.6.6.6"), "{heard}");
}

#[test]
fn a_port_that_is_passed_through_hands_all_tls_to_the_app() {
    let (authority, app) = (Authority::new(), App::http(OK));
    // The app's own TLS, whatever its name; here it is enough that the very bytes arrive.
    let tls = App::start(|mut stream, report| {
        let mut heard = [0; 16];
        let n = stream.read(&mut heard).unwrap();
        report.send(format!("{:02x?}", &heard[..n])).unwrap();
        // The beginning of an alert.
        let _ = stream.write_all(b"\x15\x03\x03own");
    });
    let hello = || {
        let mut hello = Vec::new();
        let config = crate::harness::http2::certificate(&[]).2;
        let mut client = rustls::ClientConnection::new(config, "any.example".try_into().unwrap()).unwrap();
        client.write_tls(&mut hello).unwrap();
        hello
    };
    for (rules, passes) in [
        ("", true),
        (", allow: { addresses: 127.0.0.1 }", true),
        // Who calls is not known there, and what is asked cannot be seen.
        (", allow: { from: 'spiffe://shop/*' }", false),
        (", allow: { paths: '/*' }", false),
        (", deny: { paths: /x }", false),
        (", deny: { addresses: 127.0.0.1 }", false),
    ] {
        for protocol in ["auto", "tcp", "http1"] {
            let port = crate::harness::free_port();
            let (at, to) = (SocketAddr::from(([127, 0, 0, 1], port)), tls.addr);
            let ports = format!("ports: [{{ listen: '{at}', app: '{to}', protocol: {protocol} }}]");
            let server = authority.server(
                "server",
                app.addr,
                &format!(", {ports}, passthrough: [{port}], timeout: {{ head: 300ms }}{rules}"),
            );
            let mut caller = Caller::connect(at);
            let heard = caller.send(hello()).rest();
            assert_eq!(heard, if passes { "\x15\x03\x03own" } else { "" }, "{rules} {protocol}");
            if passes {
                assert!(tls.next().starts_with("[16, 03, 01"), "{rules} {protocol}");
            } else {
                server.says(&["host=any.example", "reason=denied"]);
            }
            // Plaintext at that port is what it is elsewhere; and so is TLS at another.
            assert!(!Caller::connect(at).send("*1\r\n").rest().contains("own"), "{rules} {protocol}");
            assert!(!Caller::connect(server.inbound).send(hello()).rest().contains("own"));
            server.says(&["reason=client_"]);
            tls.unseen();
        }
    }
    app.unseen();
}

#[test]
fn bytes_pass_whoever_speaks_first_and_each_connection_is_known() {
    let (authority, app) = (Authority::new(), greeter());
    for (door, peer) in [("", ""), (", protocol: tcp", ", protocol: tcp")] {
        let rules = format!(", allow: {{ from: spiffe://shop/client }}{door}");
        let server = authority.server("server", app.addr, &rules);
        let client = authority.client(server.inbound, "spiffe://shop/server", peer);
        // The later ones resume the first one's session, which is no less an identity.
        for _ in 0..3 {
            let mut caller = Caller::connect(client.inbound);
            if !door.is_empty() {
                caller.send("*1\r\n");
            }
            assert_eq!(caller.until(b"hello\r\n"), "220 hello\r\n");
            caller.0.shutdown(Shutdown::Write).unwrap();
            assert_eq!(caller.rest(), if door.is_empty() { "" } else { "*1\r\n" });
            app.next();
        }
        until("a line for each, with who called", || {
            (server.log().matches("client_id=spiffe://shop/client").count() == 3).then_some(())
        });
    }
}

#[tokio::test]
async fn http2_and_grpc_go_through() {
    let mut app = App2::start().await;
    let addr = app.addr;
    let (_authority, server, client) = tokio::task::spawn_blocking(move || {
        let authority = Authority::new();
        let server = authority.server("server", addr, ", allow: { from: 'spiffe://shop/*' }");
        let client = authority.client(server.inbound, "spiffe://shop/server", "");
        (authority, server, client)
    })
    .await
    .unwrap();
    let mut caller = Caller2::connect(client.outbound).await;
    let request = Request::post("http://server/a.B/C").header("content-type", "application/grpc").body(()).unwrap();
    let (answer, _stream) = caller.open(request, true).await;
    let mut arrived = soon("the app is called", app.next()).await;
    assert!(arrived.field("x-forwarded-client-cert").unwrap().ends_with(";URI=spiffe://shop/client"));
    arrived.answer("hi");
    assert_eq!(soon("an answer", answer).await.unwrap().status(), 200);
    tokio::task::spawn_blocking(move || {
        server.says(&["client_id=spiffe://shop/client", "path=/a.B/C", "protocol=HTTP/2"]);
        drop(client);
    })
    .await
    .unwrap();
}

#[test]
fn a_peer_that_is_somebody_else_is_told_nothing() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = authority.server("server", app.addr, "");
    let client = authority.client(server.inbound, "spiffe://shop/payments", "");
    let answer = ask(client.outbound, "/secret", "");
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(field(&answer, "proxy-status").unwrap().contains("reason=peer_identity_mismatch"), "{answer}");
    assert!(answer.contains("it is `spiffe://shop/server`, but must be `spiffe://shop/payments`"), "{answer}");
    assert_eq!(Caller::connect(client.inbound).send("*1\r\n").rest(), "");
    app.unseen();
    server.says(&["reason=tls_refused_by_client"]);
    assert!(!server.log().contains("/secret"), "{}", server.log());

    // What discovery knows of an endpoint narrows who it may be.
    let at = server.inbound;
    let narrowed = format!(
        "service: client\n{}admin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: [{{ \
         address: '{at}', identity: spiffe://shop/b }}], mtls: {{ id: 'spiffe://shop/*' }} }}\n",
        authority.identity("client")
    );
    let client = Sidecar::start(&narrowed);
    let answer = ask(client.outbound, "/secret", "");
    assert!(answer.contains("it is `spiffe://shop/server`, but must be `spiffe://shop/b`"), "{answer}");

    // Who speaks no TLS is not spoken to without.
    let plain = App::http(OK);
    let client = authority.client(plain.addr, "spiffe://shop/server", "");
    let answer = ask(client.outbound, "/secret", "");
    assert!(field(&answer, "proxy-status").unwrap().contains("reason=tls_failed"), "{answer}");
    while let Ok(heard) = plain.seen.try_recv() {
        assert!(!heard.contains("secret"), "{heard}");
    }
}

#[test]
fn a_strict_door_refuses_plaintext_and_strangers_before_the_app_is_called() {
    let (authority, app) = (Authority::new(), greeter());
    for protocol in ["auto", "http1", "http2", "tcp"] {
        let server = authority.server("server", app.addr, &format!(", protocol: {protocol}"));
        // Silent, opaque, nearly HTTP; then a request.
        let silent = Caller::connect(server.inbound);
        silent.0.shutdown(Shutdown::Write).unwrap();
        assert_eq!({ silent }.rest(), "", "{protocol}");
        for words in ["*1\r\n$4\r\nPING\r\n", "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let heard = Caller::connect(server.inbound).send(words).rest();
            assert!(heard.is_empty() || heard.contains("plaintext_refused"), "{protocol}: {heard}");
        }
        let heard = Caller::connect(server.inbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").rest();
        if matches!(protocol, "auto" | "http1") {
            assert!(heard.starts_with("HTTP/1.1 403 ") && heard.contains("reason=plaintext_refused"), "{heard}");
        } else {
            assert_eq!(heard, "", "{protocol}");
        }
        app.unseen();
        server.says(&["reason=plaintext_refused", "side=client"]);
        assert!(server.metric(&["outrigger_failures_total", "reason=\"plaintext_refused\""]) >= 2.0);
    }
    let server = authority.server("server", app.addr, "");
    // `inspect` shows no certificate.
    let _ = Command::new(env!("CARGO_BIN_EXE_outrigger")).args(["ca", "inspect", &server.inbound.to_string()]).output();
    server.says(&["reason=client_certificate_missing"]);

    // The same name from another authority, which trusts this mesh and is not trusted by it.
    let stranger = Authority::new();
    let identity = stranger.identity("client");
    let roots = std::fs::read_to_string(stranger.0.0.join("tls/client/roots.pem")).unwrap();
    let both = roots + &std::fs::read_to_string(authority.0.0.join("tls/server/roots.pem")).unwrap();
    stranger.0.write("tls/client/roots.pem", &both);
    let client = Sidecar::start(&calling(&identity, server.inbound, "spiffe://shop/server", ""));
    for _ in 0..2 {
        let answer = ask(client.outbound, "/", "");
        assert!(field(&answer, "proxy-status").unwrap().contains("reason=tls_refused_by_peer"), "{answer}");
    }
    server.says(&["reason=client_untrusted"]);
    app.unseen();
}

#[test]
fn a_probe_needs_no_certificate() {
    let (authority, app) = (Authority::new(), App::http(OK));
    for rules in ["", ", allow: { from: spiffe://shop/client }"] {
        let server = authority.server("server", app.addr, &format!(", probes: [/healthz]{rules}"));
        assert!(ask(server.inbound, "/healthz", "").starts_with("HTTP/1.1 200 "));
        let heard = app.next();
        assert_eq!(field(&heard, "x-forwarded-client-cert"), None, "{heard}");
        assert!(ask(server.inbound, "/healthz/x", "").starts_with("HTTP/1.1 403 "));
        let post = Caller::connect(server.inbound).send("POST /healthz HTTP/1.1\r\nHost: a\r\n\r\n").answer();
        assert!(post.starts_with("HTTP/1.1 403 "), "{post}");
        // An app that does not read it would take the body for a request of its own.
        for body in [
            "Content-Length: 27\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let mut caller = Caller::connect(server.inbound);
            let answer = caller.send(format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{body}")).answer();
            assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        }
        app.unseen();
    }
}

#[test]
fn a_permissive_door_serves_both_and_counts_plaintext() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = authority.server("server", app.addr, ", mtls: permissive");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    assert!(ask(client.outbound, "/proven", "").starts_with("HTTP/1.1 200 "));
    assert!(field(&app.next(), "x-forwarded-client-cert").is_some());
    assert_eq!(server.metric(&["outrigger_plaintext_connections_total", "door=\"inbound\""]), 0.0);
    let forged = "X-Forwarded-Client-Cert: URI=spiffe://shop/client\r\n";
    assert!(ask(server.inbound, "/plain", forged).starts_with("HTTP/1.1 200 "));
    assert_eq!(field(&app.next(), "x-forwarded-client-cert"), None);
    assert_eq!(server.metric(&["outrigger_plaintext_connections_total", "door=\"inbound\""]), 1.0);
    assert!(!server.says(&["path=/plain"]).contains("client_id"));
}

#[test]
fn a_door_that_becomes_strict_is_so_for_connections_that_are_open() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let identity = authority.identity("server");
    let text = |mtls| serving(&identity, "server", app.addr, &format!(", mtls: {mtls}"));
    let server = Sidecar::start(&text("permissive"));
    let get = "GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut caller = Caller::connect(server.inbound);
    assert!(caller.send(get).answer().starts_with("HTTP/1.1 200 "));
    server.rewrite(&text("strict"));
    server.signal("HUP");
    until("the reload", || (server.metric(&["outrigger_reloads_total"]) >= 1.0).then_some(()));
    // It is closed; a request that crosses that on its way is refused.
    let _ = caller.0.write_all(get.as_bytes());
    let rest = caller.rest();
    assert!(rest.is_empty() || rest.contains("reason=plaintext_refused"), "{rest}");
}

#[test]
fn at_a_permissive_door_an_app_may_speak_first_to_both() {
    let (authority, app) = (Authority::new(), greeter());
    let server = authority.server("server", app.addr, ", mtls: permissive");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    for to in [client.inbound, server.inbound, client.inbound] {
        assert_eq!(Caller::connect(to).until(b"hello\r\n"), "220 hello\r\n");
    }
    assert_eq!(server.metric(&["outrigger_plaintext_connections_total", "door=\"inbound\""]), 1.0);
}

#[test]
fn rules_by_identity_hold_for_requests_and_for_bytes() {
    let (authority, app) = (Authority::new(), greeter());
    for (rules, passes) in [
        ("allow: { from: spiffe://shop/client }", true),
        ("allow: { from: spiffe://shop/admin }", false),
        ("deny: { from: spiffe://shop/client }", false),
    ] {
        let server = authority.server("server", app.addr, &format!(", {rules}"));
        let client = authority.client(server.inbound, "spiffe://shop/server", "");
        let mut caller = Caller::connect(client.inbound);
        caller.send("*1\r\n").0.shutdown(Shutdown::Write).unwrap();
        assert_eq!(caller.rest(), if passes { "220 hello\r\n*1\r\n" } else { "" }, "{rules}");
        if passes {
            app.next();
            continue;
        }
        let answer = ask(client.outbound, "/x", "");
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("reason=denied"), "{rules}: {answer}");
        server.says(&["client_id=spiffe://shop/client", "reason=denied"]);
        app.unseen();
    }
}

#[test]
fn a_reload_with_a_bad_identity_leaves_all_as_it_was() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = authority.server("server", app.addr, "");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let good = std::fs::read_to_string(authority.0.0.join("tls/server/key.pem")).unwrap();
    authority.0.write("tls/server/key.pem", "no key");
    server.signal("HUP");
    server.says(&["identity.key", "holds no private key"]);
    assert!(ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 "));
    authority.0.write("tls/server/key.pem", &good);
    // A new certificate is taken by the next reload, and the callers' next connections go by it.
    authority.identity("server");
    server.signal("HUP");
    until("the reload", || (server.metric(&["outrigger_reloads_total"]) >= 1.0).then_some(()));
    let second = authority.client(server.inbound, "spiffe://shop/server", "");
    assert!(ask(second.outbound, "/y", "").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_rate_of_each_identity_is_the_callers_own_and_plaintext_shares_one() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server =
        authority.server("server", app.addr, ", mtls: permissive, limits: { rate: { limit: 2/h, per: identity } }");
    let one = authority.client(server.inbound, "spiffe://shop/server", "");
    let other = Sidecar::start(&calling(&authority.identity("other"), server.inbound, "spiffe://shop/server", ""));
    // Whatever a caller says of itself, it is who it has proven to be.
    let claim = "X-Forwarded-Client-Cert: URI=spiffe://shop/other\r\n";
    let passed = |to: SocketAddr| {
        let answers = [(); 4].map(|()| ask(to, "/", claim));
        let refused = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 429 ")).collect::<Vec<_>>();
        assert!(refused.iter().all(|answer| answer.contains("`rate: 2/h` of each identity")), "{answers:?}");
        answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 200 ")).count()
    };
    assert_eq!([one.outbound, server.inbound, other.outbound, server.inbound].map(passed), [2, 2, 2, 0]);
}
