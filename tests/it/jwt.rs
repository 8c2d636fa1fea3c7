//! JSON Web Tokens through the real binary: what is believed, what callers are told, and where the keys come from.

use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use http::Request;
use serde_json::{Value, json};

use crate::harness::http2::{App2, Caller2, soon};
use crate::harness::{App, Caller, Folder, Sidecar, field, inbound, inbound_file, read_head, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// Someone who signs tokens.
pub(crate) struct Issuer(EcdsaKeyPair);

impl Issuer {
    pub(crate) fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    /// Its key set, under this name.
    pub(crate) fn jwks(&self, id: &str) -> String {
        let point = &self.0.public_key().as_ref()[1..];
        let (x, y) = (encoded(&point[..32]), encoded(&point[32..]));
        json!({ "keys": [{ "kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": id }] }).to_string()
    }

    /// A token for `checkout` that lives five minutes, with these further claims.
    pub(crate) fn token(&self, id: &str, more: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut claims = json!({ "iss": "https://login.test", "aud": ["checkout"], "exp": now + 300, "iat": now });
        claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let head = json!({ "alg": "ES256", "typ": "JWT", "kid": id });
        let message = format!("{}.{}", encoded(head.to_string().as_bytes()), encoded(claims.to_string().as_bytes()));
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encoded(signature.as_ref()))
    }
}

/// Base64url without padding (RFC 4648 §5).
fn encoded(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for n in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * n)) as usize & 63]));
        }
    }
    text
}

fn ask(sidecar: &Sidecar, target: &str, fields: &str) -> String {
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send(format!("GET {target} HTTP/1.1\r\nHost: shop\r\n{fields}\r\n")).answer()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\n")
}

/// The file's text about an issuer whose keys are in this file.
fn believes(keys: &std::path::Path) -> String {
    format!(", jwt: [{{ issuer: 'https://login.test', audiences: checkout, jwks: '{}' }}]", keys.display())
}

const ORDERS: &str = ", allow: [{ claims: { scope: orders.write }, paths: ['/orders/*'] }, { paths: [/open] }]";

#[test]
fn a_rule_that_asks_for_claims_lets_in_who_proves_them() {
    let (app, folder, issuer) = (App::http(OK), Folder::new(), Issuer::new());
    let keys = folder.write("keys.json", &issuer.jwks("one"));
    let sidecar = inbound(app.addr, &format!("{}{ORDERS}", believes(&keys)));
    let good = issuer.token("one", json!({ "scope": "openid orders.write", "sub": "ann" }));
    let poor = issuer.token("one", json!({ "scope": "openid" }));
    let stranger = Issuer::new().token("one", json!({ "scope": "orders.write" }));
    let late = issuer.token("one", json!({ "scope": "orders.write", "exp": 1_000_000_000 }));
    let table = [
        ("/orders/7", bearer(&good), 200, "", ""),
        ("/orders/7", bearer(&good), 200, "", ""),
        ("/open", String::new(), 200, "", ""),
        ("/open", bearer(&poor), 200, "", ""),
        ("/orders/7", String::new(), 401, "token_missing", "Bearer"),
        ("/orders/7", "Authorization: Basic dTpw\r\n".into(), 401, "token_missing", "Bearer"),
        ("/orders/7", bearer(&poor), 403, "denied", ""),
        ("/other", bearer(&good), 403, "denied", ""),
        ("/other", String::new(), 403, "denied", ""),
        ("/orders/7", bearer(&stranger), 401, "token_invalid", "Bearer error=\"invalid_token\""),
        ("/orders/7", bearer(&late), 401, "token_invalid", "Bearer error=\"invalid_token\""),
        ("/orders/7", bearer(&issuer.token("two", json!({}))), 401, "token_invalid", "Bearer error=\"invalid_token\""),
        // Also where no rule asks for one.
        ("/open", bearer(&stranger), 401, "token_invalid", "Bearer error=\"invalid_token\""),
        ("/open", bearer("x"), 401, "token_invalid", "Bearer error=\"invalid_token\""),
    ];
    for (target, fields, status, reason, challenge) in table {
        let answer = ask(&sidecar, target, &fields);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{target} {fields}: {answer}");
        assert_eq!(field(&answer, "www-authenticate").unwrap_or_default(), challenge, "{target} {fields}");
        if status == 200 {
            assert!(app.next().contains(&fields), "the token goes on as it came");
        } else {
            assert!(answer.contains(&format!("reason={reason};")), "{target} {fields}: {answer}");
            app.unseen();
        }
    }
    sidecar.says(&["reason=token_invalid", "side=client", "it is expired (`exp`)"]);
    assert_eq!(sidecar.metric(&["tokens_believed_total", "known"]), 3.0);
    assert_eq!(sidecar.metric(&["outrigger_failures_total", "reason=\"token_missing\""]), 2.0);
    // A WebSocket is a request until it is switched; what is no request has no claims.
    let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
    assert!(ask(&sidecar, "/orders/ws", upgrade).starts_with("HTTP/1.1 401 "));
    assert_eq!(Caller::connect(sidecar.inbound).send("*1\r\n$4\r\nPING\r\n").rest(), "");
    sidecar.says(&["reason=denied", "no rule of `inbound.allow` allows opaque bytes"]);
    app.unseen();
}

#[tokio::test]
async fn grpc_callers_are_told_in_their_own_words() {
    let (app, folder, issuer) = (App2::start().await, Folder::new(), Issuer::new());
    let keys = folder.write("keys.json", &issuer.jwks("one"));
    let rules = format!("{}, protocol: http2, allow: [{{ claims: {{ sub: ann }} }}]", believes(&keys));
    let addr = app.addr;
    let sidecar = tokio::task::spawn_blocking(move || inbound(addr, &rules)).await.unwrap();
    let mut caller = Caller2::connect(sidecar.inbound).await;
    let poor = format!("Bearer {}", issuer.token("one", json!({ "sub": "bob" })));
    for (token, code) in [(None, "16"), (Some("Bearer x"), "16"), (Some(&*poor), "7")] {
        let mut request = Request::post("http://shop/shop.Orders/Get").header("content-type", "application/grpc");
        if let Some(token) = token {
            request = request.header("authorization", token);
        }
        let got = soon("a status", caller.send(request.body("").unwrap())).await.unwrap();
        assert_eq!((got.status(), got.field("grpc-status")), (200, Some(code)), "{token:?}");
    }
}

#[test]
fn new_keys_in_the_file_replace_the_old_ones() {
    let (app, folder, old, new) = (App::http(OK), Folder::new(), Issuer::new(), Issuer::new());
    let keys = folder.write("keys.json", &old.jwks("old"));
    let sidecar = inbound(app.addr, &believes(&keys));
    let (by_old, by_new) = (bearer(&old.token("old", json!({}))), bearer(&new.token("new", json!({}))));
    assert!(ask(&sidecar, "/", &by_old).starts_with("HTTP/1.1 200 "));
    assert!(ask(&sidecar, "/", &by_new).starts_with("HTTP/1.1 401 "));
    folder.write("keys.json", "{ broken");
    sidecar.says(&["keys cannot be read, the last ones stay", "it is no JSON"]);
    assert!(ask(&sidecar, "/", &by_old).starts_with("HTTP/1.1 200 "));
    assert!(sidecar.page("/state").contains("it is no JSON"));
    assert!(sidecar.metric(&["jwks_reads_total", "failed"]) >= 1.0);
    folder.write("keys.json", &new.jwks("new"));
    until("the new keys are in force", || ask(&sidecar, "/", &by_new).starts_with("HTTP/1.1 200 ").then_some(()));
    // Also a token that was remembered.
    assert!(ask(&sidecar, "/", &by_old).starts_with("HTTP/1.1 401 "));
    assert!(!sidecar.page("/state").contains("it is no JSON"));
}

/// A server of keys, which answers with what it was given last.
struct KeyServer {
    app: App,
    says: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
}

impl KeyServer {
    fn start(answer: &str) -> Self {
        let (says, asked) = (Arc::new(Mutex::new(answer.to_owned())), Arc::new(AtomicUsize::new(0)));
        let (text, count) = (says.clone(), asked.clone());
        let app = App::start(move |mut stream: TcpStream, report| {
            let head = read_head(&mut BufReader::new(stream.try_clone().unwrap()));
            count.fetch_add(1, Ordering::SeqCst);
            let _ = report.send(head.unwrap_or_default());
            let answer = text.lock().unwrap().clone();
            let _ = stream.write_all(answer.as_bytes());
        });
        Self { app, says, asked }
    }

    fn says(&self, answer: String) {
        *self.says.lock().unwrap() = answer;
    }

    fn believes(&self) -> String {
        let url = format!("http://{}/keys?v=1", self.app.addr);
        format!(", jwt: [{{ issuer: 'https://login.test', audiences: checkout, jwks: '{url}' }}]")
    }
}

fn answer(keys: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nContent-Length: {}\r\n\r\n{keys}", keys.len())
}

#[test]
fn keys_come_from_a_server_and_again_when_a_token_names_a_new_one() {
    let (app, issuer, next) = (App::http(OK), Issuer::new(), Issuer::new());
    let server = KeyServer::start(&answer(&issuer.jwks("one")));
    let sidecar = inbound(app.addr, &server.believes());
    let head = server.app.next();
    assert!(head.starts_with("GET /keys?v=1 HTTP/1.1\r\n"), "{head}");
    sidecar.says(&["keys in force", "https://login.test", "keys=1"]);
    assert!(ask(&sidecar, "/", &bearer(&issuer.token("one", json!({})))).starts_with("HTTP/1.1 200 "));
    // Unknown names make it ask again, but not each time.
    let asked = server.asked.load(Ordering::SeqCst);
    server.says(answer(&next.jwks("two")));
    for n in 0..20 {
        let unknown = bearer(&issuer.token(&format!("x{n}"), json!({})));
        assert!(ask(&sidecar, "/", &unknown).starts_with("HTTP/1.1 401 "));
    }
    assert!(server.asked.load(Ordering::SeqCst) <= asked + 1);
    // Once that is allowed, the very request that names the new key waits for it and passes.
    until("the new key is believed", || {
        ask(&sidecar, "/", &bearer(&next.token("two", json!({})))).starts_with("HTTP/1.1 200 ").then_some(())
    });
    assert!(server.asked.load(Ordering::SeqCst) <= asked + 2);
}

#[test]
fn without_keys_a_token_is_neither_believed_nor_called_wrong() {
    let (app, issuer) = (App::http(OK), Issuer::new());
    let server = KeyServer::start("HTTP/1.1 302 Found\r\nLocation: /else\r\nContent-Length: 0\r\n\r\n");
    let sidecar = inbound(app.addr, &server.believes());
    sidecar.says(&["none are known", "redirects are not followed"]);
    let token = bearer(&issuer.token("one", json!({})));
    let refused = ask(&sidecar, "/", &token);
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("reason=keys_unavailable; side=proxy"),
        "{refused}"
    );
    assert!(ask(&sidecar, "/", "").starts_with("HTTP/1.1 200 "), "who has no token is not asked for one");
    for (bad, why) in [
        ("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_owned(), "answers 500"),
        (answer(&"x".repeat(1_100_000)), "length limit exceeded"),
        (answer("[]"), "it is no JWK set"),
    ] {
        server.says(bad);
        sidecar.says(&["none are known", why]);
    }
    server.says(answer(&issuer.jwks("one")));
    until("the keys have come", || ask(&sidecar, "/", &token).starts_with("HTTP/1.1 200 ").then_some(()));
}

#[test]
fn an_audit_tells_of_tokens_and_lets_them_in() {
    let (app, folder, issuer) = (App::http(OK), Folder::new(), Issuer::new());
    let keys = folder.write("keys.json", &issuer.jwks("one"));
    let sidecar = inbound(app.addr, &format!("{}{ORDERS}, authorization: audit", believes(&keys)));
    for (target, fields, told) in [
        ("/orders/a", bearer("x"), "would_deny=\"the token is not believed: "),
        ("/orders/b", String::new(), "would_deny=\"the rules of this service ask for a token"),
        ("/orders/c", bearer(&issuer.token("one", json!({}))), "would_deny=\"no rule of `inbound.allow` allows it\""),
    ] {
        assert!(ask(&sidecar, target, &fields).starts_with("HTTP/1.1 200 "), "{target}");
        sidecar.says(&[&format!("path={target} "), told]);
    }
}

#[test]
fn a_token_that_the_service_is_not_to_get_is_taken_away() {
    let (app, folder, issuer) = (App::http(OK), Folder::new(), Issuer::new());
    let keys = folder.write("keys.json", &issuer.jwks("one"));
    let more = format!(
        ", jwt: [{{ issuer: 'https://login.test', audiences: any, jwks: '{}', token: x-token, forward: strip }}]",
        keys.display()
    );
    let sidecar = inbound(app.addr, &more);
    let token = issuer.token("one", json!({}));
    let fields = format!("A: 1\r\nX-Token: {token}\r\nB: 2\r\nAuthorization: Bearer other\r\nC: 3\r\n");
    assert!(ask(&sidecar, "/", &fields).starts_with("HTTP/1.1 200 "));
    let seen = app.next();
    assert!(seen.contains("A: 1\r\nB: 2\r\nAuthorization: Bearer other\r\nC: 3\r\n"), "{seen}");
    assert!(!seen.to_ascii_lowercase().contains("x-token") && !seen.contains(&token), "{seen}");
}

#[test]
fn what_the_service_told_by_a_token_stands_in_for_no_other_answer() {
    const OWN: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nann's";
    for (forward, stale) in [("forward: keep", false), ("forward: strip", true)] {
        let (folder, issuer) = (Folder::new(), Issuer::new());
        let app = App::script([OWN, ""]);
        let keys = folder.write("keys.json", &issuer.jwks("one"));
        let more = format!(
            ", routes: [{{ fallback: {{ stale: {{ for: 1h }} }} }}], jwt: [{{ issuer: 'https://login.test', audiences: any, jwks: '{}', token: x-token, {forward} }}]",
            keys.display()
        );
        let sidecar = inbound(app.addr, &more);
        let by = |name: &str| format!("X-Token: {}\r\n", issuer.token("one", json!({ "sub": name })));
        assert!(ask(&sidecar, "/", &by("ann")).ends_with("ann's"));
        // What never sees a token tells everybody the same.
        let answer = ask(&sidecar, "/", &by("bob"));
        assert_eq!(answer.ends_with("ann's"), stale, "{answer}");
    }
}

#[test]
fn a_file_of_keys_that_cannot_be_used_is_refused_with_its_place() {
    let (folder, file) = (Folder::new(), Folder::new());
    let keys = folder.write("keys.json", "{\"keys\":[{\"kty\":\"oct\",\"k\":\"c2VjcmV0\"}]}");
    let text = inbound_file("127.0.0.1:1".parse().unwrap(), &believes(&keys));
    let text = text.replace("{in}", "127.0.0.1:2").replace("{out}", "127.0.0.1:3").replace("{admin}", "127.0.0.1:4");
    let path = file.write("outrigger.yaml", &text);
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("check").arg("-c").arg(path).output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned() + &String::from_utf8_lossy(&run.stdout);
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("inbound.jwt[0].jwks: ") && said.contains("is a shared secret"), "{said}");
    assert!(!said.contains("c2VjcmV0"), "{said}");
}
