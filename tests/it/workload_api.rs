//! A sidecar whose identity comes from a Workload API that has none to give: who is refused, what is still served, and
//! what is said. What a real server gives is tests/clients' matter.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::harness::{App, Folder, Sidecar, field, get, until};
use crate::mtls::{Authority, OK, ask, calling, serving};

fn from(socket: &Path) -> String {
    format!("identity: {{ workload-api: 'unix:{}' }}\n", socket.display())
}

/// One whose agent gives nothing; it is up once its admin server answers.
fn launch(text: &str) -> Sidecar {
    let sidecar = Sidecar::launch(text, &[]);
    sidecar.says(&["ready"]);
    sidecar
}

fn unready(admin: SocketAddr) -> String {
    let answer = get(admin, "/ready");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    answer
}

#[test]
fn a_strict_door_without_an_identity_takes_nobody_and_is_not_ready() {
    let (authority, app, folder) = (Authority::new(), App::http(OK), Folder::new());
    let server = launch(&serving(&from(&folder.0.join("none.sock")), "server", app.addr, ""));
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let why = "no identity: the Workload API at unix:";
    until("it is said why", || unready(server.admin).contains("No such file or directory").then_some(()));
    assert!(unready(server.admin).contains(why));
    for _ in 0..2 {
        let answer = ask(client.outbound, "/x", "");
        assert!(field(&answer, "proxy-status").unwrap().contains("reason=tls_failed"), "{answer}");
    }
    server.says(&["reason=no_identity", "side=proxy", "No such file or directory"]);
    let answer = ask(server.inbound, "/x", "");
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("reason=plaintext_refused"), "{answer}");
    assert!(server.metric(&["outrigger_failures_total", "reason=\"no_identity\""]) >= 2.0);
    assert!(server.metric(&["outrigger_workload_api_failures_total"]) >= 1.0);
    app.unseen();
}

#[test]
fn a_permissive_door_without_an_identity_serves_plaintext_and_is_ready() {
    let (app, folder) = (App::http(OK), Folder::new());
    let identity = from(&folder.0.join("none.sock"));
    let server = Sidecar::start(&serving(&identity, "server", app.addr, ", mtls: permissive"));
    assert!(ask(server.inbound, "/x", "").starts_with("HTTP/1.1 200 "));
    app.next();
}

#[test]
fn a_caller_without_an_identity_sends_nothing_and_says_why() {
    let (authority, app, folder) = (Authority::new(), App::http(OK), Folder::new());
    let server = authority.server("server", app.addr, "");
    let more = ", health: { tcp: true, every: 50ms, unhealthy: 1 }";
    let text = calling(&from(&folder.0.join("none.sock")), server.inbound, "spiffe://shop/server", more);
    let client = launch(&text);
    let answer = ask(client.outbound, "/x", "");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    let status = field(&answer, "proxy-status").unwrap();
    assert!(status.contains("reason=no_identity; side=proxy") && status.contains("the Workload API at"), "{status}");
    assert!(unready(client.admin).contains("no identity: "));
    client.says(&["reason=no_identity", "attempts=2"]);
    let accepted = server.metric(&["outrigger_door_connections_accepted_total", "inbound"]);
    assert_eq!(accepted, 0.0, "nothing is dialled");
    // What is our own lack makes no endpoint ill.
    assert_eq!(client.metric(&["outrigger_peer_endpoints_unhealthy", "server"]), 0.0);
    // Files in its place: the reload brings an identity, and from then on the agent is not asked.
    let files = authority.identity("client");
    client.rewrite(&calling(&files, server.inbound, "spiffe://shop/server", more));
    client.signal("HUP");
    until("the reload", || (client.metric(&["outrigger_reloads_total"]) >= 1.0).then_some(()));
    assert!(ask(client.outbound, "/y", "").starts_with("HTTP/1.1 200 "));
    assert!(get(client.admin, "/ready").starts_with("HTTP/1.1 200 "));
    // And back: what was in force stays so.
    client.rewrite(&text);
    client.signal("HUP");
    until("the reload", || (client.metric(&["outrigger_reloads_total"]) >= 2.0).then_some(()));
    client.says(&["the last good identity stays in force"]);
    assert!(ask(client.outbound, "/z", "").starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_agent_that_speaks_nonsense_does_no_harm() {
    let (app, folder) = (App::http(OK), Folder::new());
    let socket = folder.0.join("odd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let agent = std::thread::spawn(move || {
        for nonsense in [&b""[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", &[0xff; 4096], b"\0\0\0\x04\0\0\0\0\0"] {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.write_all(nonsense);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.read(&mut [0; 4096]);
        }
    });
    let server = launch(&serving(&from(&socket), "server", app.addr, ""));
    agent.join().unwrap();
    until("all were failures", || (server.metric(&["outrigger_workload_api_failures_total"]) >= 4.0).then_some(()));
    assert!(unready(server.admin).contains("no identity: the Workload API at unix:"));
}
