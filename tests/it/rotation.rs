//! The life of an identity: files that change, and connections that are closed once what was proven on them holds no
//! longer. Real sidecars, and certificates that `outrigger ca` makes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::{App, Caller, Folder, PATIENCE, Sidecar, field, read_head, until};
use crate::mtls::{Authority, ask, calling, serving};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
const GET: &str = "GET /x HTTP/1.1\r\nHost: server\r\n\r\n";

/// Gives back what it hears, as long as anybody speaks.
fn echo() -> App {
    App::start(|mut stream, report| {
        let mut heard = [0; 64];
        while let Ok(length @ 1..) = stream.read(&mut heard) {
            let _ = stream.write_all(&heard[..length]);
        }
        let _ = report.send("ended".into());
    })
}

/// An app that answers requests for `/slow` when it is told to.
fn patient() -> (App, mpsc::Sender<()>) {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let app = App::start(move |stream, report| {
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        let mut writer = stream;
        while let Some(head) = read_head(&mut reader) {
            let waits = head.contains("/slow");
            report.send(head).unwrap();
            if waits {
                gate.lock().unwrap().recv().unwrap();
            }
            let _ = writer.write_all(OK.as_bytes());
        }
    });
    (app, go)
}

/// The file of a sidecar that is `service` by the files in `folder`.
fn identity(folder: &std::path::Path) -> String {
    let at = folder.display();
    format!("identity: {{ certificate: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }}\n")
}

fn tunnel(to: SocketAddr) -> Caller {
    let mut caller = Caller::connect(to);
    caller.send("*1\r\n");
    assert_eq!(caller.until(b"*1\r\n"), "*1\r\n");
    caller
}

/// Whether bytes still come back through a tunnel.
fn is_open(tunnel: &mut Caller) -> bool {
    let mut heard = [0; 4];
    tunnel.0.write_all(b"*2\r\n").is_ok() && tunnel.0.read_exact(&mut heard).is_ok()
}

fn rotations(sidecar: &Sidecar, result: &str) -> f64 {
    sidecar.metric(&["outrigger_identity_rotations_total", result])
}

fn distrusted(sidecar: &Sidecar, door: &str, reason: &str) -> f64 {
    sidecar.metric(&["outrigger_distrusted_connections_total", door, reason])
}

/// The serial number of the certificate that a sidecar shows to `client`.
fn shown(sidecar: &Sidecar, authority: &Authority) -> String {
    let inspect = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(["ca", "inspect", &sidecar.inbound.to_string(), "--cert", "tls/client/cert.pem"])
        .args(["--key", "tls/client/key.pem"])
        .current_dir(&authority.0.0)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&inspect.stdout).into_owned();
    text.lines().find(|line| line.contains("serial")).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[test]
fn files_that_change_are_in_force_at_once_and_a_pair_that_does_not_fit_is_not() {
    let (authority, app) = (Authority::new(), App::http(OK));
    authority.identity("client");
    let server = authority.server("server", app.addr, "");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let mut caller = Caller::connect(client.outbound);
    assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));
    let before = shown(&server, &authority);
    authority.run("issue --service server");
    until("the new certificate is shown", || (shown(&server, &authority) != before).then_some(()));
    server.says(&["the files of the identity have changed and are in force"]);
    assert!((rotations(&server, "applied"), rotations(&server, "refused")) == (1.0, 0.0));
    assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));

    // A key that is another's is no identity: told once, and what was in force stays.
    let (shows, key) = (shown(&server, &authority), authority.0.0.join("tls/server/key.pem"));
    let good = fs::read_to_string(&key).unwrap();
    authority.0.write("tls/server/key.pem", &fs::read_to_string(authority.0.0.join("tls/client/key.pem")).unwrap());
    until("the refusal", || (rotations(&server, "refused") == 1.0).then_some(()));
    server.says(&["identity: ", "key.pem: not the private key of", "what was in force stays so"]);
    let state: serde_json::Value = serde_json::from_str(&server.page("/state")).unwrap();
    let identity = &state["identity"];
    assert_eq!(identity["id"], "spiffe://shop/server");
    assert!(identity["refused"]["why"].as_str().unwrap().contains("not the private key of"), "{identity}");
    assert!(identity["source"].as_str().unwrap().ends_with("tls/server/cert.pem"), "{identity}");
    assert_eq!(identity["expiries"].as_array().unwrap().len(), 2, "{identity}");
    assert!(!server.page("/state").contains("PRIVATE"));
    assert_eq!(shown(&server, &authority), shows);
    assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));

    // Overwritten in place, in pieces.
    let mut file = fs::File::create(&key).unwrap();
    for piece in [&good[..40], &good[40..]] {
        file.write_all(piece.as_bytes()).unwrap();
        file.flush().unwrap();
    }
    drop(file);
    until("the refusal is history", || (!server.page("/state").contains("\"refused\"")).then_some(()));
    authority.run("issue --service server");
    until("the next one", || (rotations(&server, "applied") == 2.0).then_some(()));
    assert_eq!(rotations(&server, "refused"), 1.0);
    assert_eq!(server.log().matches("what was in force stays so").count(), 1, "{}", server.log());
    // The connection was never another one.
    assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));
    assert_eq!(client.metric(&["outrigger_peer_connects_total", "server"]), 1.0);
    let leaf = server.metric(&["outrigger_certificate_expires_seconds", "of=\"leaf\""]);
    let left = leaf - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((86_000.0..=86_400.0).contains(&left), "{left}");
    assert!(server.metric(&["outrigger_certificate_expires_seconds", "of=\"root\"", "trust_domain=\"shop\""]) > leaf);
}

#[test]
fn a_folder_that_is_swapped_by_its_link_is_followed() {
    let (authority, app, folder) = (Authority::new(), App::http(OK), Folder::new());
    authority.identity("client");
    let issue = |name: &str| authority.run(&format!("issue --service server --out {}", folder.0.join(name).display()));
    issue("first");
    std::os::unix::fs::symlink("first", folder.0.join("..data")).unwrap();
    for file in ["cert.pem", "key.pem", "roots.pem"] {
        std::os::unix::fs::symlink(format!("..data/{file}"), folder.0.join(file)).unwrap();
    }
    let server = Sidecar::start(&serving(&identity(&folder.0), "server", app.addr, ""));
    let before = shown(&server, &authority);
    issue("second");
    std::os::unix::fs::symlink("second", folder.0.join("..data.new")).unwrap();
    fs::rename(folder.0.join("..data.new"), folder.0.join("..data")).unwrap();
    until("the new certificate is shown", || (shown(&server, &authority) != before).then_some(()));
    assert_eq!(rotations(&server, "refused"), 0.0);
}

#[test]
fn callers_whose_root_is_gone_are_closed_in_order_and_others_notice_nothing() {
    let (mesh, other) = (Authority::new(), Authority::new());
    let ((app, go), bytes) = (patient(), echo());
    let (own, others) = (mesh.identity("server"), other.identity("stranger"));
    let root = fs::read_to_string(mesh.0.0.join("tls/server/roots.pem")).unwrap();
    let both = format!("{root}{}", fs::read_to_string(other.0.0.join("tls/stranger/roots.pem")).unwrap());
    mesh.0.write("tls/server/roots.pem", &both);
    other.0.write("tls/stranger/roots.pem", &both);
    let opaque = Sidecar::start(&serving(&own, "server", bytes.addr, ", protocol: tcp"));
    let server = Sidecar::start(&serving(&own, "server", app.addr, ""));
    let calls =
        |identity: &str, to| Sidecar::start(&calling(identity, to, "spiffe://shop/server", ", protocol: http1"));
    let tunnels =
        |identity: &str| Sidecar::start(&calling(identity, opaque.inbound, "spiffe://shop/server", ", protocol: tcp"));
    let friend_id = mesh.identity("client");
    let (friend, stranger) = (calls(&friend_id, server.inbound), calls(&others, server.inbound));
    let (friend_bytes, stranger_bytes) = (tunnels(&friend_id), tunnels(&others));
    let (mut stays, mut goes) = (tunnel(friend_bytes.inbound), tunnel(stranger_bytes.inbound));
    for client in [&friend, &stranger] {
        assert!(ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 "));
        app.next();
    }
    // One request of the stranger is under way, and one of its connections idle.
    let mut running = Caller::connect(stranger.outbound);
    running.send("GET /slow HTTP/1.1\r\nHost: server\r\n\r\n");
    app.next();
    mesh.0.write("tls/server/roots.pem", &root);
    for sidecar in [&server, &opaque] {
        until("the stranger is told to go", || {
            (distrusted(sidecar, "inbound", "client_untrusted") >= 1.0).then_some(())
        });
        sidecar.says(&["id=spiffe://shop/stranger", "no root of its trust domain has signed its certificate"]);
    }
    assert_eq!(goes.rest(), "");
    opaque.says(&["client_id=spiffe://shop/stranger", "reason=client_untrusted", "not believed any more"]);
    go.send(()).unwrap();
    assert!(running.answer().starts_with("HTTP/1.1 200 "), "what was under way is answered");
    let refused = ask(stranger.outbound, "/x", "");
    assert!(refused.contains("reason=tls_refused_by_peer"), "{refused}");
    assert!(is_open(&mut stays));
    assert!(ask(friend.outbound, "/x", "").starts_with("HTTP/1.1 200 "));
    assert_eq!(friend.metric(&["outrigger_peer_connects_total", "server"]), 1.0, "on the connection of before");
}

#[test]
fn a_peer_whose_root_is_gone_gets_nothing_more() {
    let (mesh, other, (app, go)) = (Authority::new(), Authority::new(), patient());
    let server_id = other.identity("server");
    mesh.identity("client");
    let root = fs::read_to_string(mesh.0.0.join("tls/client/roots.pem")).unwrap();
    let both = format!("{root}{}", fs::read_to_string(other.0.0.join("tls/server/roots.pem")).unwrap());
    other.0.write("tls/server/roots.pem", &both);
    mesh.0.write("tls/client/roots.pem", &both);
    let server = Sidecar::start(&serving(&server_id, "server", app.addr, ""));
    let id = identity(&mesh.0.0.join("tls/client"));
    let client =
        Sidecar::start(&calling(&id, server.inbound, "spiffe://shop/server", ", timeout: { keep-alive: 60s }"));
    let (mut running, mut idle) = (Caller::connect(client.outbound), Caller::connect(client.outbound));
    running.send("GET /slow HTTP/1.1\r\nHost: server\r\n\r\n");
    app.next();
    assert!(idle.send(GET).answer().starts_with("HTTP/1.1 200 "));
    app.next();
    mesh.0.write("tls/client/roots.pem", &root);
    until("both connections are judged", || (distrusted(&client, "outbound", "peer_untrusted") == 2.0).then_some(()));
    // At once, before anything has swept.
    let answer = idle.send(GET).answer();
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("reason=peer_untrusted"), "{answer}");
    until("the idle one is closed", || {
        (client.metric(&["outrigger_peer_connections{", "server"]) == 1.0).then_some(())
    });
    go.send(()).unwrap();
    assert!(running.answer().starts_with("HTTP/1.1 200 "), "what was under way is answered");
    until("the other one too", || (client.metric(&["outrigger_peer_connections{", "server"]) == 0.0).then_some(()));
    app.unseen();
}

#[test]
fn an_expired_caller_is_closed_and_an_expired_server_goes_on_showing_its_certificate() {
    let (authority, app, bytes) = (Authority::new(), App::http(OK), echo());
    authority.identity("server");
    let server = authority.server("server", app.addr, "");
    let opaque = authority.server("server", bytes.addr, ", protocol: tcp");
    authority.run("issue --service brief --ttl 8s");
    let brief = identity(&authority.0.0.join("tls/brief"));
    let client = Sidecar::start(&calling(&brief, server.inbound, "spiffe://shop/server", ", protocol: http1"));
    let tunnels = Sidecar::start(&calling(&brief, opaque.inbound, "spiffe://shop/server", ", protocol: tcp"));
    let expiring = Sidecar::start(&serving(&brief, "brief", app.addr, ""));
    let mut open = tunnel(tunnels.inbound);
    assert!(ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 "));
    until("the certificate has expired", || {
        // Its connection for requests is kept in use, so that it is there when its time has come.
        ask(client.outbound, "/x", "");
        let of = |sidecar| distrusted(sidecar, "inbound", "client_certificate_expired");
        ((of(&opaque), of(&server)) == (1.0, 1.0)).then_some(())
    });
    let expired = client.metric(&["outrigger_certificate_expires_seconds", "of=\"leaf\""]);
    let late = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() - expired;
    assert!(late < 5.0, "{late} s late");
    assert_eq!(open.rest(), "");
    opaque.says(&["client_id=spiffe://shop/brief", "reason=client_certificate_expired"]);
    let answer = ask(client.outbound, "/x", "");
    assert!(field(&answer, "proxy-status").unwrap().contains("reason=tls_refused_by_peer"), "{answer}");
    server.says(&["reason=client_certificate_expired", "expired at"]);
    // Said while it runs, once.
    client.says(&["our own certificate expired at", "replace it now"]);
    // As a server it shows what it has: whoever calls says why it is refused.
    let caller = Sidecar::start(&calling(&authority.identity("client"), expiring.inbound, "spiffe://shop/brief", ""));
    let answer = ask(caller.outbound, "/x", "");
    assert!(field(&answer, "proxy-status").unwrap().contains("reason=peer_certificate_expired"), "{answer}");
    // Replaced, it is back without a restart.
    authority.run("issue --service brief");
    until("all is well again", || ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 ").then_some(()));
    until("as a server too", || ask(caller.outbound, "/x", "").starts_with("HTTP/1.1 200 ").then_some(()));
    assert_eq!(client.log().matches("our own certificate expired at").count(), 1, "{}", client.log());
}

#[test]
fn a_tunnel_ends_when_its_peer_is_to_be_somebody_else() {
    let (authority, bytes) = (Authority::new(), echo());
    let server = authority.server("server", bytes.addr, ", protocol: tcp");
    let own = authority.identity("client");
    let text = |id: &str| calling(&own, server.inbound, id, ", protocol: tcp");
    let client = Sidecar::start(&text("spiffe://shop/server"));
    let mut open = tunnel(client.inbound);
    client.rewrite(&text("spiffe://shop/*"));
    client.signal("HUP");
    until("the reload", || (client.metric(&["outrigger_reloads_total"]) >= 1.0).then_some(()));
    assert!(is_open(&mut open), "it is one of those too");
    client.rewrite(&text("spiffe://shop/other"));
    client.signal("HUP");
    assert_eq!(open.rest(), "");
    client.says(&["peer_id=spiffe://shop/server", "reason=peer_identity_mismatch", "must be `spiffe://shop/other`"]);
    assert_eq!(distrusted(&client, "outbound", "peer_identity_mismatch"), 1.0);
}

#[test]
fn a_peer_that_a_reload_removes_is_let_go_of_in_order() {
    let (authority, (app, go), bytes) = (Authority::new(), patient(), echo());
    let server = authority.server("server", app.addr, "");
    let opaque = authority.server("server", bytes.addr, ", protocol: tcp");
    let own = authority.identity("client");
    let text = |name: &str, to: SocketAddr, more: &str| {
        calling(&own, to, "spiffe://shop/server", more).replace("  server: {", &format!("  {name}: {{"))
    };
    let client = Sidecar::start(&text("server", server.inbound, ""));
    let tunnels = Sidecar::start(&text("server", opaque.inbound, ", protocol: tcp"));
    let mut open = tunnel(tunnels.inbound);
    let mut running = Caller::connect(client.outbound);
    running.send("GET /slow HTTP/1.1\r\nHost: server\r\n\r\n");
    app.next();
    for (sidecar, to, more) in [(&client, &server, ""), (&tunnels, &opaque, ", protocol: tcp")] {
        sidecar.rewrite(&text("renamed", to.inbound, more));
        sidecar.signal("HUP");
        until("its connection is judged", || {
            (distrusted(sidecar, "outbound", "peer_identity_mismatch") == 1.0).then_some(())
        });
    }
    assert_eq!(open.rest(), "");
    tunnels.says(&["peer_id=spiffe://shop/server", "reason=peer_identity_mismatch", "no peer of the file"]);
    go.send(()).unwrap();
    assert!(running.answer().starts_with("HTTP/1.1 200 "), "what was under way is answered");
    assert!(is_open(&mut tunnel(tunnels.inbound)), "by its new name");
}

#[test]
fn who_is_nobody_any_more_lets_go_of_all_in_order() {
    let (authority, (app, go), bytes) = (Authority::new(), patient(), echo());
    let own = authority.identity("server");
    let opaque_text = |identity: &str| serving(identity, "server", bytes.addr, ", protocol: tcp");
    let (server, opaque) = (Sidecar::start(&serving(&own, "server", app.addr, "")), Sidecar::start(&opaque_text(&own)));
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let tunnels = authority.client(opaque.inbound, "spiffe://shop/server", ", protocol: tcp");
    let mut open = tunnel(tunnels.inbound);
    let mut running = Caller::connect(client.outbound);
    running.send("GET /slow HTTP/1.1\r\nHost: server\r\n\r\n");
    app.next();
    for (sidecar, text) in [(&server, serving("", "server", app.addr, "")), (&opaque, opaque_text(""))] {
        sidecar.rewrite(&text);
        sidecar.signal("HUP");
        until("its connection is judged", || (distrusted(sidecar, "inbound", "no_identity") == 1.0).then_some(()));
    }
    assert_eq!(open.rest(), "");
    opaque.says(&["client_id=spiffe://shop/client", "reason=no_identity"]);
    go.send(()).unwrap();
    assert!(running.answer().starts_with("HTTP/1.1 200 "), "what was under way is answered");
    // Somebody again, it is believed again.
    opaque.rewrite(&opaque_text(&own));
    opaque.signal("HUP");
    until("it is back", || {
        let mut caller = Caller::connect(tunnels.inbound);
        is_open(&mut caller).then_some(())
    });
}

#[test]
fn a_door_that_becomes_strict_ends_tunnels_in_plaintext_and_no_others() {
    let (authority, bytes) = (Authority::new(), echo());
    let own = authority.identity("server");
    let text = |mtls: &str| serving(&own, "server", bytes.addr, &format!(", protocol: tcp, mtls: {mtls}"));
    let server = Sidecar::start(&text("permissive"));
    let client = authority.client(server.inbound, "spiffe://shop/server", ", protocol: tcp");
    let (mut proven, mut plain) = (tunnel(client.inbound), tunnel(server.inbound));
    server.rewrite(&text("strict"));
    server.signal("HUP");
    assert_eq!(plain.rest(), "");
    server.says(&["reason=plaintext_refused", "the door has become strict"]);
    assert!(is_open(&mut proven));
    assert!(is_open(&mut tunnel(client.inbound)));
    assert_eq!(Caller::connect(server.inbound).send("*1\r\n").rest(), "");
}

#[test]
fn who_would_be_refused_is_said_before_a_door_becomes_strict() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let server = authority.server("server", app.addr, ", mtls: permissive, probes: [/healthz]");
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let check = |sidecar: &Sidecar| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let said = command.args(["check", "--strict", "--admin", &sidecar.admin.to_string()]).output().unwrap();
        (said.status.code().unwrap(), String::from_utf8([said.stdout, said.stderr].concat()).unwrap())
    };
    assert!(ask(client.outbound, "/x", "").starts_with("HTTP/1.1 200 "));
    assert!(ask(server.inbound, "/healthz", "").starts_with("HTTP/1.1 200 "), "a probe would pass");
    let (code, said) = check(&server);
    assert!(code == 0 && said.starts_with("No client would be refused under `strict`: nobody came"), "{said}");
    for _ in 0..2 {
        let mut caller = Caller::connect(server.inbound);
        // One connection, however much it asks.
        for _ in 0..2 {
            assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));
        }
    }
    let (code, said) = check(&server);
    let says = "1 client would be refused under `strict`: 127.0.0.1 (2 connections, last ";
    assert!(code == 1 && said.starts_with(says), "{said}");
    let (code, said) = check(&client);
    assert!(code == 1 && said.contains("no inbound door is `mtls: permissive`"), "{said}");
    client.says(&["peer_id=spiffe://shop/server", "path=/x", "status=200"]);
}

#[test]
fn who_came_before_a_door_was_permissive_is_counted_too() {
    let (authority, app) = (Authority::new(), App::http(OK));
    let identity = authority.identity("server");
    let (plain, permissive) =
        (serving("", "server", app.addr, ""), serving(&identity, "server", app.addr, ", mtls: permissive"));
    let server = Sidecar::start(&plain);
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let said = command.args(["check", "--strict", "--admin", &server.admin.to_string()]).output().unwrap();
        (said.status.code().unwrap(), String::from_utf8([said.stdout, said.stderr].concat()).unwrap())
    };
    let mut caller = Caller::connect(server.inbound);
    assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));
    for round in 0..2 {
        server.rewrite(&permissive);
        server.signal("HUP");
        until("the door is permissive", || server.page("/state").contains("permissive_seconds").then_some(()));
        let (code, said) = check();
        assert!(code == 0 && said.contains("nobody came in plaintext in the "), "{round}: {said}");
        // The connection from before asks again.
        assert!(caller.send(GET).answer().starts_with("HTTP/1.1 200 "));
        let (code, said) = check();
        let says = "1 client would be refused under `strict`: 127.0.0.1 (1 connection, last ";
        assert!(
            code == 1 && said.starts_with(says) && said.contains("that it has been `permissive`"),
            "{round}: {said}"
        );
        // What follows begins anew.
        server.rewrite(&plain);
        server.signal("HUP");
        until("the door asks nothing", || (!server.page("/state").contains("permissive_seconds")).then_some(()));
    }
}

#[test]
fn a_reload_that_takes_the_identity_away_serves_as_before_while_a_new_name_has_no_answer() {
    let (authority, app) = (Authority::new(), echo());
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let dns = format!("dns: {{ servers: ['{}'], hosts-file: false }}\n", silent.local_addr().unwrap());
    let text = |identity: &str, peers: &str| format!("{}{dns}{peers}", serving(identity, "server", app.addr, ""));
    let server = Sidecar::start(&text(&authority.identity("server"), ""));
    let client = authority.client(server.inbound, "spiffe://shop/server", "");
    let mut open = tunnel(client.inbound);
    server.rewrite(&text("", "peers:\n  new: { dns: 'new.test:80' }\n"));
    server.signal("HUP");
    silent.recv(&mut [0; 512]).expect("the new name is asked for");
    // Each by a handshake of its own, until nobody is served under the old file any more: then the new one is in force.
    while is_open(&mut open) && is_open(&mut Caller::connect(client.inbound)) {}
    assert!(is_open(&mut Caller::connect(server.inbound)), "{}", server.log());
    until("the reload", || (server.metric(&["outrigger_reloads_total", "applied"]) == 1.0).then_some(()));
}

#[test]
fn certificates_outside_the_mesh_are_followed_too() {
    let (authority, app) = (Authority::new(), App::http(OK));
    authority.run("issue --service client");
    authority.run("issue --service web --dns web.test");
    let at = authority.0.0.join("tls/web").display().to_string();
    let tls = format!(", tls: {{ certificate: {at}/cert.pem, key: {at}/key.pem }}");
    let server = Sidecar::start(&serving("", "web", app.addr, &tls));
    let before = shown(&server, &authority);
    authority.run("issue --service web --dns web.test");
    until("the new certificate is shown", || (shown(&server, &authority) != before).then_some(()));
    server.says(&["the file is in force", "Certificates"]);
    assert_eq!(server.metric(&["outrigger_reloads_total", "rejected"]), 0.0);
}
