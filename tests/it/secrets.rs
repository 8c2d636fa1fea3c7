//! What must not be told: keys and tokens stand in no log, page, answer or printed configuration, however much is logged.

use std::path::Path;
use std::process::Command;

use http::Request;
use serde_json::json;

use crate::harness::http2::{App2, Caller2, soon};
use crate::harness::{App, Caller, Folder, Sidecar, until};
use crate::jwt::Issuer;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// Everything that was said, by name, and what must not be in it.
#[derive(Default)]
struct Told {
    said: Vec<(String, String)>,
    secrets: Vec<(String, String)>,
}

impl Told {
    fn says(&mut self, who: &str, text: String) {
        self.said.push((who.to_owned(), text));
    }

    /// A token is as good as its parts: without its signature it tells what it says, and that part alone is secret too.
    fn token(&mut self, name: &str, token: &str) {
        for part in token.split('.').skip(1).filter(|part| part.len() > 20) {
            self.secrets.push((name.to_owned(), part.to_owned()));
        }
    }

    /// The lines of a key's PEM.
    fn key(&mut self, file: &Path) {
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('-') && line.len() > 8).collect();
        assert!(!lines.is_empty(), "{}", file.display());
        self.secrets.extend(lines.iter().map(|line| (file.display().to_string(), (*line).to_owned())));
    }

    fn all_of(&mut self, name: &str, sidecar: &Sidecar) {
        for page in ["/state", "/metrics", "/ready", "/nothing"] {
            self.says(&format!("{name} {page}"), sidecar.page(page));
        }
        let file = sidecar.folder.0.join("outrigger.yaml");
        for command in ["config", "check", "check --json", "explain http://server/x --inbound"] {
            let mut run = Command::new(env!("CARGO_BIN_EXE_outrigger"));
            let output = run.args(command.split(' ')).arg("-c").arg(&file).output().unwrap();
            self.says(&format!("{name} {command}"), format!("{output:?}"));
        }
        let log = sidecar.log();
        assert!(log.contains("TRACE") && log.contains("DEBUG"), "{name} says little: {log}");
        self.says(&format!("{name}'s log"), log);
    }

    fn judge(self) {
        assert!(self.secrets.len() > 8 && self.said.len() > 8);
        for (who, text) in &self.said {
            for (name, secret) in &self.secrets {
                assert!(!text.contains(secret), "{who} tells of {name}: {secret}");
            }
        }
    }
}

/// Certificates for two services; their folder, and the section `identity` for each.
fn identities() -> (Folder, [String; 2]) {
    let folder = Folder::new();
    for line in ["init --trust-domain shop", "issue --service server", "issue --service client"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let output = command.current_dir(&folder.0).arg("ca").args(line.split(' ')).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let section = |name: &str| {
        let at = folder.0.join("tls").join(name).display().to_string();
        format!("identity: {{ certificate: {at}/cert.pem, key: {at}/key.pem, roots: {at}/roots.pem }}\n")
    };
    let sections = [section("server"), section("client")];
    (folder, sections)
}

#[tokio::test]
async fn keys_and_tokens_are_told_nowhere() {
    let mut app2 = App2::start().await;
    let addr2 = app2.addr;
    let (told, pair) = tokio::task::spawn_blocking(move || over_http1(addr2)).await.unwrap();
    let mut caller = Caller2::connect(pair.client.outbound).await;
    for token in [&pair.good, &pair.bad] {
        let request = Request::get("http://second/x?access_token=in-the-query-of-http2")
            .header("authorization", format!("Bearer {token}"))
            .header("cookie", "session=a-cookie-of-http2-callers");
        let (answer, _stream) = caller.open(request.body(()).unwrap(), true).await;
        if token == &pair.good {
            soon("the app is called", app2.next()).await.answer("hi");
        }
        soon("an answer", answer).await.unwrap();
    }
    tokio::task::spawn_blocking(move || {
        let mut told = told;
        until("both are told of", || (pair.server.log().matches("protocol=HTTP/2").count() >= 2).then_some(()));
        told.all_of("the server", &pair.server);
        told.all_of("the client", &pair.client);
        told.judge();
    })
    .await
    .unwrap();
}

struct Pair {
    server: Sidecar,
    client: Sidecar,
    good: String,
    bad: String,
    _folders: (Folder, App),
}

/// A pair of sidecars that log all they can, after requests of all kinds over HTTP/1.
fn over_http1(second: std::net::SocketAddr) -> (Told, Pair) {
    let (folder, [server, client]) = identities();
    let (app, issuer, mut told) = (App::http(OK), Issuer::new(), Told::default());
    for key in ["root.key", "tls/server/key.pem", "tls/client/key.pem"] {
        let ca = folder.0.join("ca").join(key);
        told.key(&if ca.exists() { ca } else { folder.0.join(key) });
    }
    let keys = folder.write("keys.json", &issuer.jwks("one"));
    let admin = folder.write("admin", "the-admins-own-token-0123456789\n");
    Command::new("chmod").arg("600").arg(&admin).status().unwrap();
    let (port, nobody) = (crate::harness::free_port(), crate::harness::free_port());
    let server = Sidecar::start_telling_all(&format!(
        "service: server\n{server}admin: {{ listen: '{{admin}}', token: '{}' }}\noutbound: {{ listen: '{{out}}' }}\ninbound:\n  listen: '{{in}}'\n  \
         app: '{}'\n  ports: [{{ listen: '127.0.0.1:{port}', app: '{second}' }}]\n  jwt: [{{ issuer: 'https://login.test', audiences: checkout, jwks: '{}' }}, {{ issuer: other, audiences: any, jwks: 'http://127.0.0.1:{nobody}/keys?k=the-key-of-an-issuer' }}]\n  \
         allow: [{{ claims: {{ sub: ann }} }}]\n  routes: [{{ match: {{ path: /routed }}, respond: {{ status: 404 }} }}]\n\
         telemetry: {{ access-log: {{ log: all }} }}\n",
        admin.display(),
        app.addr,
        keys.display(),
    ));
    let client = Sidecar::start_telling_all(&format!(
        "service: client\n{client}admin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: ['{}'], mtls: {{ id: 'spiffe://shop/server' }} }}\n  \
         second: {{ static: ['127.0.0.1:{port}'], mtls: {{ id: 'spiffe://shop/server' }} }}\ntelemetry: {{ access-log: {{ log: all, format: json }} }}\n",
        server.inbound,
    ));
    let good = issuer.token("one", json!({ "sub": "ann" }));
    let (poor, bad) =
        (issuer.token("one", json!({ "sub": "bob" })), Issuer::new().token("one", json!({ "sub": "ann" })));
    let late = issuer.token("one", json!({ "exp": 5 }));
    for (name, token) in [("good", &good), ("poor", &poor), ("bad", &bad), ("late", &late)] {
        told.token(name, token);
    }
    for secret in [
        "the-admins-own-token",
        "dTphLXBhc3N3b3JkLW9mLWFubnM",
        "a-cookie-of-",
        "in-the-query-of-",
        "a-body-of-",
        "the-key-of-an-issuer",
    ] {
        told.secrets.push((secret.to_owned(), secret.to_owned()));
    }
    let others = "not.a.token-but-as-secret".to_owned();
    asked(&mut told, &client, &server, &[&good, &good, &poor, &bad, &late, &others]);
    // A key that does not fit is told of by its file.
    let (key, other) = (folder.0.join("tls/server/key.pem"), folder.0.join("tls/client/key.pem"));
    std::fs::copy(other, key).unwrap();
    server.signal("HUP");
    server.says(&["the file was refused"]);
    let _folders = (folder, app);
    (told, Pair { server, client, good, bad, _folders })
}

/// Requests with these tokens and other secrets, through both sidecars and to the admin server.
fn asked(told: &mut Told, client: &Sidecar, server: &Sidecar, tokens: &[&String]) {
    for (n, token) in tokens.iter().enumerate() {
        for path in ["/x", "/routed", "//not-normal"] {
            let mut caller = Caller::connect(client.outbound);
            caller.send(format!(
                "POST {path}?access_token=in-the-query-of-{n} HTTP/1.1\r\nHost: server\r\nAuthorization: Bearer {token}\r\n\
                 Cookie: session=a-cookie-of-{n}\r\nContent-Length: 11\r\n\r\na-body-of-{}", n % 10
            ));
            told.says("an answer", caller.answer());
        }
    }
    let mut caller = Caller::connect(client.outbound);
    caller.send("GET / HTTP/1.1\r\nHost: server\r\nAuthorization: Basic dTphLXBhc3N3b3JkLW9mLWFubnM=\r\n\r\n");
    told.says("an answer", caller.answer());
    let mut caller = Caller::connect(server.admin);
    caller.send("POST /reload HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer the-admins-own-token-wrong\r\n\r\n");
    told.says("the admin server", caller.answer());
}
