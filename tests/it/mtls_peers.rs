//! Mutual TLS towards peers however they are found and watched: health checks, a control file, DNS.

use std::net::{SocketAddr, UdpSocket};

use crate::ejection::endpoints;
use crate::harness::{App, Folder, Sidecar, field, until};
use crate::mtls::{Authority, OK, ask};

fn caller(identity: &str, peer: &str, more: &str) -> String {
    format!(
        "service: client\n{identity}admin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ {peer} }}\n{more}\
         telemetry: {{ access-log: {{ log: all }} }}\n"
    )
}

#[test]
fn health_checks_prove_who_asks_and_who_answers() {
    let (authority, app) = (Authority::new(), App::http(OK));
    for check in
        ["{ http: /healthz, every: 50ms, unhealthy: 1, healthy: 1 }", "{ tcp: true, every: 50ms, unhealthy: 1 }"]
    {
        let right = authority.server("server", app.addr, "");
        let wrong = authority.server("other", app.addr, "");
        let peer = format!(
            "static: ['{}', '{}'], eject: off, mtls: {{ id: spiffe://shop/server }}, health: {check}",
            right.inbound, wrong.inbound
        );
        let client = Sidecar::start(&caller(&authority.identity("client"), &peer, ""));
        let line = client.says(&["endpoint is unhealthy", &wrong.inbound.to_string()]);
        assert!(line.contains("spiffe://shop/other"), "{line}");
        until("a check is passed", || {
            (client.metric(&["outrigger_health_checks_total", "passed"]) >= 2.0).then_some(())
        });
        for _ in 0..10 {
            assert!(ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 "), "{check}");
        }
        assert!(endpoints(&client)[0]["unhealthy"].is_null(), "{check}");
        if check.contains("/healthz") {
            right.says(&["client_id=spiffe://shop/client", "path=/healthz", "status=200"]);
        }
    }
}

#[test]
fn a_control_file_narrows_who_each_endpoint_must_be() {
    let (authority, app, folder) = (Authority::new(), App::http(OK), Folder::new());
    let (one, two) = (authority.server("one", app.addr, ""), authority.server("two", app.addr, ""));
    let file = |of_one: &str| {
        folder.write(
            "peers.yaml",
            &format!(
                "peers:\n  server:\n    - {{ address: '{}', identity: spiffe://shop/{of_one} }}\n    - {{ address: '{}', \
                 identity: spiffe://shop/two }}\n",
                one.inbound, two.inbound
            ),
        )
    };
    let peer = format!(
        "file: '{}', eject: off, retry: off, balance: round-robin, mtls: {{ id: 'spiffe://shop/*' }}",
        file("one").display()
    );
    let client = Sidecar::start(&caller(&authority.identity("client"), &peer, ""));
    (0..4).for_each(|_| assert!(ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 ")));
    // The file changes its mind about the first; its open connection and session were made under the old one.
    file("three");
    let mismatch = until("the first is somebody else", || {
        let answer = ask(client.outbound, "/y", "Connection: close\r\n");
        field(&answer, "proxy-status").filter(|status| status.contains("reason=peer_identity_mismatch"))
    });
    assert!(mismatch.contains("spiffe://shop/one"), "{mismatch}");
    let answers: Vec<_> = (0..4).map(|_| ask(client.outbound, "/z", "")).collect();
    assert!(answers.iter().any(|answer| answer.starts_with("HTTP/1.1 200 ")), "{answers:?}");
}

/// Answers every A question with 127.0.0.1 and every other with nothing.
fn name_server() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut asked = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut asked) {
            let name = asked[12..length].iter().position(|byte| *byte == 0).unwrap();
            let question = &asked[12..12 + name + 5];
            let is_a = question[question.len() - 3] == 1;
            let mut answer = [&asked[..2], &[0x84, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0], question].concat();
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    addr
}

#[test]
fn a_peer_by_name_is_called_by_its_name_and_known_by_its_id() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let (server, names) = (authority.server("server", app.addr, ""), name_server());
    for (id, reason) in [("server", None), ("somebody", Some("reason=peer_identity_mismatch"))] {
        let peer = format!("dns: 'server.test:{}', mtls: {{ id: spiffe://shop/{id} }}", server.inbound.port());
        let dns = format!("dns: {{ servers: ['{names}'], hosts-file: false }}\n");
        let client = Sidecar::start(&caller(&authority.identity("client"), &peer, &dns));
        // The second one's certificate has no such DNS name either: only the ID counts.
        let answer = ask(client.outbound, "/x", "");
        match reason {
            None => assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}"),
            Some(reason) => assert!(field(&answer, "proxy-status").unwrap().contains(reason), "{answer}"),
        }
    }
    app.next();
    app.unseen();
}
