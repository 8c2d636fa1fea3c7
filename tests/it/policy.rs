//! Who may ask what of the service, through the real binary: every protocol at the door meets the same rules.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};

use http::Request;

use crate::harness::http2::{App2, Caller2, certificate, soon};
use crate::harness::{App, Caller, Sidecar, field, inbound, until};
use crate::mtls::Authority;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

fn ask(sidecar: &Sidecar, method: &str, target: &str, fields: &str) -> String {
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send(format!("{method} {target} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).answer()
}

#[test]
fn what_no_rule_allows_never_reaches_the_app() {
    let app = App::http(OK);
    let sidecar = inbound(
        app.addr,
        ", allow: [{ methods: [GET], paths: ['/orders/*'] }, { hosts: [admin], headers: { x-key: '1' } }], deny: [{ paths: ['/orders/secret/*'] }], probes: [/healthz]",
    );
    for (method, target, fields, status) in [
        ("GET", "/orders", "", "200"),
        ("GET", "/orders/7?x=/../secret", "", "200"),
        ("GET", "/%6frders/7", "", "200"),
        ("GET", "/healthz", "", "200"),
        ("GET", "/x", "", "403"),
        ("GET", "/Orders/7", "", "403"),
        ("HEAD", "/orders/7", "", "403"),
        ("DELETE", "/orders/7", "X-HTTP-Method-Override: GET\r\n", "403"),
        ("GET", "/orders/secret", "", "403"),
        ("GET", "/orders/%73ecret/1", "", "403"),
        ("GET", "/orders/SECRET/1", "", "403"),
        ("GET", "/orders/x/../secret", "", "400"),
        ("GET", "/orders//secret", "", "400"),
        ("GET", "/orders%2fsecret", "", "400"),
        ("GET", "/orders/%73ecret%c0%af1", "", "400"),
    ] {
        let mut caller = Caller::connect(sidecar.inbound);
        let head = caller.send(format!("{method} {target} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).until(b"\r\n\r\n");
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {target}: {head}");
        if status == "200" {
            assert!(app.next().starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{target}");
        }
        app.unseen();
    }
    let answer = ask(&sidecar, "GET", "/orders/secret/7", "");
    let status = field(&answer, "proxy-status").unwrap();
    assert!(status.contains("error=http_request_denied") && status.contains("reason=denied; side=policy"), "{status}");
    assert!(!answer.contains("inbound") && !answer.contains("line"), "the caller learns no rule: {answer}");
    sidecar.says(&["path=/orders/secret/7", "reason=denied", "side=policy", "`inbound.deny[0]` (line 3) denies it"]);
    sidecar.says(&["path=/x", "reason=denied", "no rule of `inbound.allow` allows it"]);
    assert!(sidecar.metric(&["outrigger_failures_total", "door=\"inbound\"", "reason=\"denied\""]) >= 7.0);

    let mut caller = Caller::connect(sidecar.inbound);
    let answer = caller.send("GET /any HTTP/1.1\r\nHost: ADMIN.:8080\r\nx-key: 1\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let answer = caller.send("GET /any HTTP/1.1\r\nHost: admin\r\nx-key: 1\r\nConnection: x-key\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 403 "), "a field that is not forwarded is not judged: {answer}");
    let answer = caller.send("GET /orders HTTP/1.1\r\nHost: shop\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 200 "), "the connection goes on: {answer}");
}

#[test]
fn without_rules_that_allow_only_what_is_denied_is_kept_out() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, ", deny: [{ paths: ['/internal/*'] }, { addresses: [10.0.0.0/8] }]");
    assert!(ask(&sidecar, "GET", "/internal/x", "").starts_with("HTTP/1.1 403 "));
    assert!(ask(&sidecar, "GET", "/x", "").starts_with("HTTP/1.1 200 "));
    let mut open = Caller::connect(sidecar.inbound);
    assert!(open.send("GET /x HTTP/1.1\r\nHost: shop\r\n\r\n").answer().starts_with("HTTP/1.1 200 "));
    sidecar.rewrite(&format!(
        "service: server\nadmin: '{{admin}}'\ninbound: {{ listen: '{{in}}', app: '{}', deny: [{{ addresses: [127.0.0.0/8] }}] }}\noutbound: {{ listen: '{{out}}' }}\n",
        app.addr
    ));
    sidecar.signal("HUP");
    until("the new rules hold on an open connection", || {
        open.send("GET /x HTTP/1.1\r\nHost: shop\r\n\r\n").answer().starts_with("HTTP/1.1 403 ").then_some(())
    });
}

#[test]
fn opaque_bytes_do_not_slip_past_rules_for_requests() {
    let app = App::start(|mut stream, report| {
        report.send("called".into()).unwrap();
        stream.write_all(b"220 hello\r\n").unwrap();
        let _ = stream.read(&mut [0; 64]);
    });
    for (rules, passes) in [
        (", deny: [{ paths: ['/admin/*'] }]", false),
        (", allow: [{ paths: ['/*'] }]", false),
        (", allow: [{ methods: [GET] }], protocol: tcp", false),
        (", deny: [{ addresses: [127.0.0.1] }], protocol: tcp", false),
        (", allow: [{ addresses: [127.0.0.1] }]", true),
        (", allow: [{ addresses: [127.0.0.1] }], deny: [{ addresses: [10.0.0.1], paths: [/x] }]", true),
        (", allow: [{ addresses: [127.0.0.1] }], protocol: tcp", true),
    ] {
        let sidecar = inbound(app.addr, rules);
        // Neither words that are no request, nor such that only a forgiving server takes for one; the app, which would
        // speak first, is not called before either.
        for words in ["*1\r\n$4\r\nPING\r\n", "\0GET /admin HTTP/1.1\r\nHost: a\r\n\r\n"] {
            let mut caller = Caller::connect(sidecar.inbound);
            let heard = caller.send(words).rest();
            assert_eq!(heard == "220 hello\r\n", passes, "{rules}: {heard}");
            if passes {
                app.next();
            } else {
                assert_eq!(heard, "", "{rules}");
                sidecar.says(&["reason=denied", "side=policy", "bytes_out=0"]);
            }
            app.unseen();
        }
    }
    // What servers that skip an empty line take for a request is judged as one.
    let sidecar = inbound(app.addr, ", deny: [{ paths: ['/admin/*'] }]");
    let answer = Caller::connect(sidecar.inbound).send("\r\nGET /admin/x HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("reason=denied"), "{answer}");
    app.unseen();
    // One that connects and leaves, as a health check does, is nothing to tell of.
    let sidecar = inbound(app.addr, ", deny: [{ methods: [DELETE] }]");
    let caller = Caller::connect(sidecar.inbound);
    caller.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!({ caller }.rest(), "");
    assert_eq!(sidecar.metric(&["outrigger_failures_total", "reason=\"denied\""]), 0.0);
    assert!(!sidecar.log().contains("denied"), "{}", sidecar.log());
}

#[test]
fn tls_that_is_passed_through_is_judged_as_opaque_bytes() {
    let app = App::start(|mut stream, report| {
        report.send("called".into()).unwrap();
        let _ = stream.read(&mut [0; 64]);
    });
    let (_, _, config) = certificate(&[]);
    let mut hello = Vec::new();
    let name = "db.example".try_into().unwrap();
    rustls::ClientConnection::new(config, name).unwrap().write_tls(&mut hello).unwrap();
    for (rules, passes) in [("deny: [{ paths: [/x] }]", false), ("allow: [{ addresses: [127.0.0.1] }]", true)] {
        let sidecar = inbound(app.addr, &format!(", passthrough: [db.example], {rules}"));
        let mut caller = Caller::connect(sidecar.inbound);
        assert_eq!(caller.send(&hello).rest(), "");
        if passes {
            app.next();
        } else {
            sidecar.says(&["host=db.example", "reason=denied"]);
        }
        app.unseen();
    }
}

#[test]
fn a_silent_caller_hears_nothing_of_an_app_that_it_may_not_reach() {
    let app = App::start(|mut stream, report| {
        report.send("called".into()).unwrap();
        stream.write_all(b"220 hello\r\n").unwrap();
    });
    let sidecar = inbound(app.addr, ", deny: [{ methods: [DELETE] }], timeout: { head: 100ms, keep-alive: 300ms }");
    assert_eq!(Caller::connect(sidecar.inbound).rest(), "");
    app.unseen();
    let sidecar = inbound(app.addr, ", timeout: { head: 100ms, keep-alive: 300ms }");
    assert_eq!(Caller::connect(sidecar.inbound).rest(), "220 hello\r\n");
}

#[tokio::test]
async fn http2_and_tunnels_meet_the_same_rules() {
    let mut app = App2::start().await;
    let rules = ", protocol: http2, allow: [{ methods: [GET, POST], paths: ['/orders/*', /shop.Orders/Get] }], deny: [{ paths: [/orders/ws] }]";
    let addr = app.addr;
    let sidecar = tokio::task::spawn_blocking(move || inbound(addr, rules)).await.unwrap();
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for (method, path, status) in
        [("GET", "/x", 403), ("DELETE", "/orders/7", 403), ("GET", "/orders/ws", 403), ("GET", "/orders/./ws", 400)]
    {
        let request = Request::builder().method(method).uri(format!("http://shop{path}")).body("").unwrap();
        let got = soon("an answer", caller.send(request)).await.unwrap();
        assert_eq!(got.status(), status, "{method} {path}");
    }
    for (protocol, path, status) in [("websocket", "/orders/ws", 403), ("websocket", "/x", 403)] {
        let mut request = Request::connect(format!("http://shop{path}")).body(()).unwrap();
        request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        let (answer, _stream) = caller.open(request, false).await;
        let answer = soon("a refusal", answer).await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
    }
    let request = Request::post("http://shop/shop.Orders/Delete").header("content-type", "application/grpc");
    let got = soon("a status", caller.send(request.body("").unwrap())).await.unwrap();
    assert_eq!((got.status(), got.field("grpc-status")), (200, Some("7")));
    let message = got.field("grpc-message").unwrap();
    assert!(message.contains("denied (policy)") && !message.contains("inbound"), "{message}");
    app.unseen();
    let request = Request::get("http://shop/orders/7").body(()).unwrap();
    let (answer, _stream) = caller.open(request, true).await;
    soon("the app is called", app.next()).await.answer("hi");
    assert_eq!(soon("an answer", answer).await.unwrap().status(), 200);
}

#[test]
fn an_upgrade_is_judged_before_anything_is_switched() {
    let app = App::start(|mut stream, report| {
        let mut head = vec![0; 1024];
        let n = stream.read(&mut head).unwrap();
        report.send(String::from_utf8_lossy(&head[..n]).into_owned()).unwrap();
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
            .unwrap();
    });
    let sidecar = inbound(app.addr, ", allow: [{ methods: [GET], paths: [/ws] }], probes: [/healthz]");
    const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    for target in ["/healthz", "/other"] {
        assert!(ask(&sidecar, "GET", target, UPGRADE).starts_with("HTTP/1.1 403 "), "{target}");
        app.unseen();
    }
    let mut caller = Caller::connect(sidecar.inbound);
    let head = caller.send(format!("GET /ws HTTP/1.1\r\nHost: shop\r\n{UPGRADE}\r\n")).until(b"\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
}

#[test]
fn an_audit_lets_all_in_and_tells_what_it_would_not() {
    let app = App::http(OK);
    let sidecar = inbound(app.addr, ", authorization: audit, allow: [{ paths: [/orders] }]");
    for (target, told) in [("/orders", false), ("/x", true), ("//x", true)] {
        assert!(ask(&sidecar, "GET", target, "").starts_with("HTTP/1.1 200 "), "{target}");
        let line = sidecar.says(&[&format!("path={target} "), "status=200"]);
        assert_eq!(line.contains("would_deny="), told, "{line}");
    }
    sidecar.says(&["path=/x ", "would_deny=\"no rule of `inbound.allow` allows it\""]);
    sidecar.says(&["path=//x ", "would_deny=\"the path has an empty segment"]);
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send("PING\r\n\r\n");
    app.next();
    app.next();
    app.next();
    assert_eq!(app.next(), "PING\r\n\r\n");
    drop(caller);
    sidecar.says(&["would_deny=\"no rule of `inbound.allow` allows opaque bytes\"", "protocol=tcp"]);
    assert_eq!(sidecar.metric(&["outrigger_would_deny_total", "inbound"]), 3.0);
}

#[tokio::test]
async fn no_spelling_on_the_wire_evades_a_rule_that_denies() {
    let app = App::http(OK);
    let sidecar = inbound(
        app.addr,
        ", deny: [{ headers: { x-role: { regex: 'admin.*' } } }, { headers: { x-debug: '1' } }, { hosts: [10.0.0.9] }]",
    );
    let mut caller = Caller2::connect(sidecar.inbound).await;
    for (value, status) in [(" admin", 400), ("admin\t", 400), ("admin", 403)] {
        let request = Request::get("http://shop/").header("x-role", value).body("").unwrap();
        let got = soon("an answer", caller.send(request)).await.unwrap();
        assert_eq!(got.status(), status, "{value:?}");
    }
    let refused = [
        &b"Host: shop\r\nX-Role: \xff\r\n"[..],
        b"Host: shop\r\nX-Role:\t admin \r\n",
        b"Host: shop\r\nX_Debug: 1\r\n",
        b"Host: shop\r\nx.debug: 1\r\n",
        b"Host: shop\r\nX-Debug: 0, 1\r\n",
        b"Host: [::ffff:10.0.0.9]:80\r\n",
        b"Host: 167772169\r\n",
        b"Host: 10%2e0.0.9\r\n",
    ];
    for fields in refused {
        let mut caller = Caller::connect(sidecar.inbound);
        caller.0.write_all(&[b"GET / HTTP/1.1\r\n", fields, b"\r\n"].concat()).unwrap();
        let answer = caller.answer();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{}: {answer}", fields.escape_ascii());
    }
    app.unseen();
    assert!(ask(&sidecar, "GET", "/", "X-Role: user\r\nX-Debug: 0\r\n").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_listed_name_lets_no_plaintext_past_a_strict_door() {
    let authority = Authority::new();
    // An app that speaks in lines, and one that speaks TLS: what it hears, after it has answered.
    let app = |answer: &'static [u8]| {
        App::start(move |mut stream, report| {
            let mut heard = vec![0; 1 << 16];
            let n = stream.read(&mut heard).unwrap();
            heard.truncate(n);
            report.send(format!("{}", String::from_utf8_lossy(&heard).contains("FLUSHALL"))).unwrap();
            stream.write_all(answer).unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
            report.send(String::from_utf8_lossy(&rest).into_owned()).unwrap();
        })
    };
    let (lines, tls, other) = (app(b"-ERR\r\n"), app(b"\x16\x03\x03"), app(b"-ERR\r\n"));
    let port = crate::harness::free_port();
    let (at, beside) = (SocketAddr::from(([127, 0, 0, 1], port)), crate::harness::free_port());
    let other_at = SocketAddr::from(([127, 0, 0, 1], beside));
    let ports = format!(
        "ports: [{{ listen: '{at}', app: '{}' }}, {{ listen: '{other_at}', app: '{}' }}]",
        tls.addr, other.addr
    );
    let rules = format!(", {ports}, passthrough: [a.example, 'b.example:{port}']");
    let server = authority.server("server", lines.addr, &rules);
    let call = |to: SocketAddr, name: &'static str, apart: bool| {
        let config = crate::harness::http2::certificate(&[]).2;
        let mut client = rustls::ClientConnection::new(config, name.try_into().unwrap()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let mut caller = Caller::connect(to);
        if apart {
            caller.send(&hello).send("FLUSHALL\r\n");
        } else {
            hello.extend_from_slice(b"FLUSHALL\r\n");
            caller.send(&hello);
        }
        caller.0.shutdown(Shutdown::Write).unwrap();
        caller.rest()
    };
    for apart in [false, true] {
        // The service that speaks in lines gets the ClientHello alone, and its caller nothing.
        assert_eq!(call(server.inbound, "a.example", apart), "");
        assert_eq!((lines.next(), lines.next()), ("false".into(), String::new()));
        server.says(&["host=a.example", "reason=tls_failed", "something else than TLS"]);
        // One that speaks TLS gets all.
        assert_eq!(call(at, "b.example", apart), "\x16\x03\x03");
        assert_eq!((tls.next(), tls.next()), ("false".into(), "FLUSHALL\r\n".into()));
        // A name that is of no port is the main door's, and no other's.
        for (to, name) in
            [(at, "a.example"), (server.inbound, "b.example"), (other_at, "a.example"), (other_at, "b.example")]
        {
            assert!(!call(to, name, apart).contains("ERR"), "{to} {name}");
        }
    }
    lines.unseen();
    tls.unseen();
    other.unseen();
}
