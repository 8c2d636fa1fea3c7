//! Tokens as they should be and as they should not: what is believed, where they may stand, and what is remembered.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Request;
use http::request::Parts;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::keys::Keyset;
use super::known::{Known, MOST, MOST_BYTES, Verified};
use super::source::{ASK_AGAIN, Source};
use super::testing::{Signer, encoded, set};
use super::token::{Fault, read};
use super::tokens::Tokens;
use crate::config::jwt::Target;
use crate::plan::claims::Claims;
use crate::plan::jwt::{IssuerPlan, JwtPlan, KeysPlan, Place};
use crate::telemetry::metrics::Metrics;

pub(super) const NOW: u64 = 1_800_000_000;

pub(super) fn issuer(place: Place) -> IssuerPlan {
    IssuerPlan {
        issuer: "https://login.test".into(),
        audiences: Some(vec!["checkout".into(), "shop".into()]),
        keys: KeysPlan::Url {
            text: "https://login.test/k".into(),
            host: "login.test".into(),
            port: 443,
            target: Target("/k".into()),
            roots: None,
        },
        place,
        leeway: Duration::from_secs(60),
        strip: false,
    }
}

fn bearer() -> IssuerPlan {
    issuer(Place::Header(http::header::AUTHORIZATION))
}

pub(super) fn claims() -> Value {
    json!({ "iss": "https://login.test", "aud": "checkout", "exp": NOW + 300, "scope": "orders.write", "sub": "ann" })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    if value.is_null() {
        claims.as_object_mut().unwrap().remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

fn judged(token: &str, keys: &str) -> Result<u64, Fault> {
    read(token)?.verify(0, &bearer(), &Keyset::parse(keys.as_bytes()).unwrap(), NOW)
}

fn invalid(result: Result<u64, Fault>) -> &'static str {
    match result {
        Err(Fault::Invalid(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_kind_of_key_verifies_its_own_algorithms() {
    let keys = [Signer::rsa(), Signer::p256(), Signer::p384(), Signer::ed25519()];
    let names = ["rsa", "p256", "p384", "ed"];
    let jwks = set(&keys.iter().zip(names).map(|(key, name)| key.jwk(name)).collect::<Vec<_>>());
    for (key, (name, algorithm)) in [
        (&keys[0], ("rsa", "RS256")),
        (&keys[0], ("rsa", "PS512")),
        (&keys[1], ("p256", "ES256")),
        (&keys[2], ("p384", "ES384")),
        (&keys[3], ("ed", "EdDSA")),
    ] {
        let token = key.sign(&json!({ "alg": algorithm, "kid": name, "typ": "at+jwt" }), &claims());
        assert_eq!(judged(&token, &jwks), Ok(NOW + 360), "{algorithm}");
        // Without a name all fitting keys are tried.
        let token = key.sign(&json!({ "alg": algorithm }), &claims());
        assert_eq!(judged(&token, &jwks), Ok(NOW + 360), "{algorithm}");
        let token = key.sign(&json!({ "alg": algorithm, "kid": "else" }), &claims());
        assert_eq!(judged(&token, &jwks), Err(Fault::UnknownKey(0)), "{algorithm}");
        for (_, other) in names.iter().enumerate().filter(|(_, other)| **other != name) {
            let token = key.sign(&json!({ "alg": algorithm, "kid": other }), &claims());
            assert_eq!(invalid(judged(&token, &jwks)), "its algorithm (`alg`) is not one of its key's", "{other}");
        }
    }
}

#[test]
fn the_key_decides_the_algorithm() {
    const UNKNOWN: &str = "its algorithm (`alg`) is none that is taken here";
    let key = Signer::rsa();
    let jwks = set(&[key.jwk("k")]);
    let payload = encoded(claims().to_string().as_bytes());
    // Nobody's signature, in several spellings.
    for algorithm in ["none", "None", "NONE", "", "ES521", "HS1", "ES512", "ES256K", "Ed25519", "RSA-OAEP"] {
        let head = encoded(json!({ "alg": algorithm, "kid": "k" }).to_string().as_bytes());
        for signature in ["", "AA"] {
            assert_eq!(invalid(judged(&format!("{head}.{payload}.{signature}"), &jwks)), UNKNOWN, "{algorithm}");
        }
    }
    let head = encoded(json!({ "alg": "RSA-OAEP", "enc": "A256GCM", "kid": "k" }).to_string().as_bytes());
    let encrypted = "it is encrypted (a JWE), and only signed tokens are taken";
    assert_eq!(invalid(judged(&format!("{head}.AAAA.AAAA.AAAA.AAAA"), &jwks)), encrypted);
    let head = encoded(json!({ "alg": "RS256", "kid": "k" }).to_string().as_bytes());
    assert_eq!(invalid(judged(&format!("{head}.AA.AA"), &jwks)), "it is not of the form header.payload.signature");
    // The public key as the secret of an HMAC (RFC 8725 §2.1), as its JWK writes it and as its bytes.
    let public = key.jwk("k")["n"].as_str().unwrap().to_owned();
    let head = encoded(json!({ "alg": "HS256", "kid": "k" }).to_string().as_bytes());
    let signed = format!("{head}.{payload}");
    let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, public.as_bytes());
    let forged = format!("{signed}.{}", encoded(aws_lc_rs::hmac::sign(&secret, signed.as_bytes()).as_ref()));
    assert_eq!(invalid(judged(&forged, &jwks)), "its algorithm (`alg`) is not one of its key's");
    // A key that says what it is for is for nothing else.
    let mut only = key.jwk("k");
    only["alg"] = json!("PS512");
    let token = key.sign(&json!({ "alg": "RS256", "kid": "k" }), &claims());
    assert_eq!(invalid(judged(&token, &set(&[only]))), "its algorithm (`alg`) is not one of its key's");
    // Its own key in its head proves nothing.
    let mine = Signer::rsa();
    let token = mine.sign(&json!({ "alg": "RS256", "kid": "k", "jwk": mine.jwk("k") }), &claims());
    assert_eq!(invalid(judged(&token, &jwks)), "its signature is not by a key of its issuer");
    let token = key.sign(&json!({ "alg": "RS256", "kid": "k", "crit": ["b64"], "b64": false }), &claims());
    assert!(invalid(judged(&token, &jwks)).contains("crit"));
}

#[test]
fn what_a_token_says_must_hold_now_and_here() {
    let key = Signer::p256();
    let jwks = set(&[key.jwk("k")]);
    let judged = |claims: &Value| judged(&key.sign(&json!({ "alg": "ES256", "kid": "k" }), claims), &jwks);
    for good in [
        claims(),
        with("aud", json!(["other", "shop"])),
        with("exp", json!(NOW - 59)),
        with("exp", json!(NOW as f64 + 0.5)),
        with("exp", json!(1e300)),
        with("nbf", json!(NOW + 60)),
        with("iat", json!(NOW + 60)),
    ] {
        assert!(judged(&good).is_ok(), "{good}");
    }
    for (claims, why) in [
        (with("exp", json!(NOW - 60)), "it is expired (`exp`)"),
        (with("exp", json!(-1)), "it is expired (`exp`)"),
        (with("exp", json!(null)), "it has no end (`exp`)"),
        (with("exp", json!("4000000000")), "`exp`, `nbf` or `iat` is no number"),
        (with("nbf", json!("1")), "`exp`, `nbf` or `iat` is no number"),
        (with("nbf", json!(NOW + 61)), "it is not valid yet (`nbf`)"),
        (with("iat", json!(NOW + 61)), "it is from the future (`iat`)"),
        (with("aud", json!("checkout2")), "it is for another audience (`aud`)"),
        (with("aud", json!("Checkout")), "it is for another audience (`aud`)"),
        (with("aud", json!([])), "it is for another audience (`aud`)"),
        (with("aud", json!({ "checkout": 1 })), "it is for another audience (`aud`)"),
        (with("aud", json!(null)), "it is for another audience (`aud`)"),
        (with("iss", json!("https://login.test/")), "its issuer is not the one whose keys would verify it"),
        (with("iss", json!(["https://login.test"])), "its issuer is not the one whose keys would verify it"),
    ] {
        assert_eq!(invalid(judged(&claims)), why, "{claims}");
    }
}

#[test]
fn what_is_no_token_is_refused() {
    let key = Signer::p256();
    let jwks = set(&[key.jwk("k")]);
    let good = key.sign(&json!({ "alg": "ES256", "kid": "k" }), &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let deep = format!("{}.{}.AA", good.split_once('.').unwrap().0, encoded(deep.as_bytes()));
    for bad in [
        "",
        ".",
        "..",
        "a.b.c",
        "Basic x",
        message,
        &format!("{good}."),
        &format!(".{good}"),
        &format!("{good}="),
        &format!(" {good}"),
        &format!("{message}.{signature}{signature}"),
        &format!("{message}.{}", &signature[1..]),
        &format!("{message}."),
        &deep,
        &"a".repeat(16 * 1024 + 1),
    ] {
        assert!(judged(bad, &jwks).is_err(), "{bad}");
    }
    // Each byte counts: a changed one is either no token any more or not signed.
    for at in 0..good.len() {
        let mut bytes = good.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(bytes).unwrap();
        assert!(judged(&changed, &jwks).is_err(), "{at}");
    }
}

#[test]
fn a_set_without_usable_keys_is_refused() {
    let key = Signer::p256();
    let changed = |name: &str, value: Value| {
        let mut jwk = key.jwk("k");
        jwk[name] = value;
        jwk
    };
    let secret = json!({ "kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQ", "kid": "s" });
    let short = json!({ "kty": "RSA", "n": encoded(&[255; 128]), "e": "AQAB" });
    let padded = json!({ "kty": "RSA", "n": encoded(&[[0; 200], [255; 200]].concat()), "e": "AQAB" });
    for (text, why) in [
        ("".to_owned(), "it is no JSON"),
        ("[]".to_owned(), "it is no JWK set"),
        ("{\"keys\":[]}".to_owned(), "it has no keys"),
        (set(std::slice::from_ref(&secret)), "is a shared secret"),
        (set(&[short]), "is an RSA key of less than 2048 bits"),
        (set(&[padded]), "is an RSA key of less than 2048 bits"),
        (set(&[changed("use", json!("enc"))]), "is not for signatures (`use`)"),
        (set(&[changed("key_ops", json!(["sign"]))]), "is not for verifying (`key_ops`)"),
        (set(&[changed("alg", json!("RS256"))]), "has an `alg` that does not fit its kind"),
        (set(&[changed("alg", json!("HS256"))]), "has an `alg` that does not fit its kind"),
        (set(&[changed("crv", json!("secp256k1"))]), "is of an unknown kind or curve"),
        (set(&[changed("x", json!("***"))]), "has parts that are no base64url"),
        (set(&vec![secret.clone(); 257]), "at most 256 are read"),
    ] {
        let error = Keyset::parse(text.as_bytes()).err().unwrap();
        assert!(error.contains(why), "{text}: {error}");
    }
    let keys = Keyset::parse(set(&[secret, key.jwk("k")]).as_bytes()).unwrap();
    assert_eq!((keys.len(), keys.warning().unwrap().contains("shared secret")), (1, true));
    // A point that is not on the curve verifies nothing, and harms nothing.
    let off = set(&[changed("x", json!(encoded(&[1; 32])))]);
    let token = key.sign(&json!({ "alg": "ES256", "kid": "k" }), &claims());
    assert!(judged(&token, &off).is_err());
}

/// A service that believes in one issuer, whose keys are known.
pub(super) struct Stage {
    key: Signer,
    tokens: Arc<Tokens>,
    metrics: Arc<Metrics>,
}

impl Stage {
    pub(super) fn new(issuers: Vec<IssuerPlan>) -> Self {
        let (metrics, key) = (Arc::new(Metrics::default()), Signer::p256());
        let plan = Arc::new(JwtPlan { issuers });
        let tokens = Tokens::next(None, &plan, vec!["scope".into(), "realm.roles".into()], &metrics).unwrap();
        let stage = Self { key, tokens, metrics };
        stage.publish(&[stage.key.jwk("k")]);
        stage
    }

    fn publish(&self, keys: &[Value]) {
        for source in self.tokens.sources() {
            source.take(Keyset::parse(set(keys).as_bytes()), Instant::now());
        }
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        self.key.sign(&json!({ "alg": "ES256", "kid": "k" }), claims)
    }

    pub(super) fn judge(&self, parts: &Parts, now: u64) -> Result<Vec<Claims>, Fault> {
        let held = self.tokens.judge(parts, UNIX_EPOCH + Duration::from_secs(now))?;
        Ok(held.iter().map(|claims| (**claims).clone()).collect())
    }

    fn counts(&self) -> (u64, u64) {
        (self.metrics.tokens_verified.get(), self.metrics.tokens_known.get())
    }
}

pub(super) fn parts(uri: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn a_token_is_found_where_it_stands_and_never_twice() {
    let query = issuer(Place::Query("access_token".into()));
    let cookie = issuer(Place::Cookie("session".into()));
    let field = issuer(Place::Header(http::HeaderName::from_static("x-token")));
    let stage = Stage::new(vec![bearer(), field, cookie, query]);
    let token = stage.token(&claims());
    let auth = "authorization";
    let found = [
        parts("/", &[(auth, &format!("Bearer {token}"))]),
        parts("/", &[(auth, &format!("bEARER  {token} "))]),
        parts("/", &[("x-token", &token)]),
        parts("/", &[("x-token", &format!("Bearer {token}"))]),
        parts("/", &[("cookie", &format!("a=b; session={token}; c=d"))]),
        parts("/", &[("cookie", "a=b"), ("cookie", &format!("session=\"{token}\""))]),
        parts(&format!("/p?a=b&access_token={token}"), &[]),
    ];
    for parts in &found {
        assert_eq!(stage.judge(parts, NOW).map(|held| held.len()), Ok(1), "{parts:?}");
    }
    for parts in [
        parts("/", &[]),
        parts("/", &[(auth, "Basic dTpw")]),
        parts("/", &[(auth, "Bearerx y")]),
        parts("/", &[("cookie", "mysession=1; sessions=2")]),
        parts("/?xaccess_token=1&a=access_token&access%token=1&access%5=2", &[]),
    ] {
        assert_eq!(stage.judge(&parts, NOW), Ok(vec![]), "{parts:?}");
    }
    for parts in [
        parts("/", &[(auth, "Bearer")]),
        parts("/", &[(auth, "Bearer ")]),
        parts("/", &[(auth, &format!("Bearer {token}, Bearer {token}"))]),
        parts("/", &[(auth, &format!("Bearer {token}")), (auth, &format!("Bearer {token}"))]),
        parts("/", &[(auth, "Basic dTpw"), (auth, &format!("Bearer {token}"))]),
        parts("/", &[("cookie", &format!("session={token}; session={token}"))]),
        parts("/", &[("cookie", "session=")]),
        parts(&format!("/?access_token={token}&access_token={token}"), &[]),
        parts("/?access_token", &[]),
        // What only some services read as the same name.
        parts(&format!("/?access_token={token}&access%5Ftoken=x"), &[]),
        parts("/?%61ccess%5ftoken=x", &[]),
        parts(&format!("/?a=b;access_token={token}"), &[]),
        parts("/", &[("x_token", "x")]),
        parts("/", &[("x-token", &token), ("x_token", &token)]),
        // A good one does not excuse a bad one elsewhere.
        parts("/", &[("x-token", &token), (auth, "Bearer x")]),
    ] {
        assert!(stage.judge(&parts, NOW).is_err(), "{parts:?}");
    }
}

#[test]
fn only_what_rules_ask_for_is_kept() {
    let stage = Stage::new(vec![bearer()]);
    let mut said = claims();
    said["realm"] = json!({ "roles": ["a"] });
    let token = stage.token(&said);
    let held = stage.judge(&parts("/", &[("authorization", &format!("Bearer {token}"))]), NOW).unwrap();
    assert_eq!(Value::Object(held[0].0.clone()), json!({ "realm": { "roles": ["a"] }, "scope": "orders.write" }));
}

#[test]
fn a_verified_token_is_remembered_as_long_as_it_would_be_believed() {
    let stage = Stage::new(vec![bearer(), issuer(Place::Query("t".into()))]);
    let other = IssuerPlan { issuer: "https://other.test".into(), ..issuer(Place::Cookie("c".into())) };
    let only = Stage { key: Signer::p256(), ..Stage::new(vec![bearer(), other]) };
    let token = stage.token(&claims());
    let asked = parts("/", &[("authorization", &format!("Bearer {token}"))]);
    assert!(stage.judge(&asked, NOW).is_ok() && stage.judge(&asked, NOW + 359).is_ok());
    assert_eq!(stage.counts(), (1, 1));
    assert_eq!(stage.judge(&asked, NOW + 360), Err(Fault::Invalid("it is expired (`exp`)")));
    assert_eq!(stage.tokens.known().count(), 0, "what is over is forgotten");
    // The same keys again change nothing, others do.
    assert!(stage.judge(&asked, NOW).is_ok());
    stage.publish(&[stage.key.jwk("k")]);
    assert!(stage.judge(&asked, NOW).is_ok());
    assert_eq!(stage.counts(), (2, 2));
    stage.publish(&[stage.key.jwk("k"), Signer::p256().jwk("k2")]);
    assert!(stage.judge(&asked, NOW).is_ok());
    assert_eq!(stage.counts(), (3, 2));
    stage.publish(&[Signer::p256().jwk("k2")]);
    assert_eq!(stage.judge(&asked, NOW), Err(Fault::UnknownKey(0)));
    // What is remembered of one place is worth nothing at another.
    only.publish(&[only.key.jwk("k")]);
    let token = only.token(&claims());
    assert!(only.judge(&parts("/", &[("authorization", &format!("Bearer {token}"))]), NOW).is_ok());
    let elsewhere = only.judge(&parts("/", &[("cookie", &format!("c={token}"))]), NOW);
    assert!(matches!(elsewhere, Err(Fault::Invalid(why)) if why.contains("none of those")), "{elsewhere:?}");
}

#[test]
fn what_is_remembered_is_bounded() {
    let known = Known::default();
    let verified = |text: String| {
        let claims = Claims([("scope".to_owned(), json!(text))].into_iter().collect());
        Arc::new(Verified { issuer: 0, version: 1, until: u64::MAX, claims: Arc::new(claims) })
    };
    let print = |n: usize| super::known::print(&n.to_string());
    for n in 0..5 * MOST {
        known.put(print(n), verified("a".into()));
        known.get(&print(n / 2));
        assert!(known.count() <= MOST);
    }
    assert!(known.bytes() <= MOST_BYTES);
    assert!(known.count() > MOST / 2);
    for n in 0..1000 {
        known.put(print(n), verified("a".repeat(15_000 + n)));
        assert!(n % 50 > 0 || known.bytes() <= MOST_BYTES, "{}", known.bytes());
    }
    // What is asked for stays, however many come by.
    known.put(print(0), verified("a".into()));
    for n in 1..5 * MOST {
        known.put(print(n), verified("a".into()));
        assert!(known.get(&print(0)).is_some());
    }
    known.put(print(0), verified("a".repeat(MOST_BYTES)));
    assert!(known.bytes() <= MOST_BYTES);
}

#[tokio::test(start_paused = true)]
async fn a_server_is_asked_for_keys_at_most_once_in_ten_seconds() {
    let source = Source::new(&bearer());
    assert!(source.want(Instant::now()) && source.want(Instant::now()));
    source.wanted().await;
    assert!(source.take(Err("down".into()), Instant::now()));
    assert!(!source.take(Err("down".into()), Instant::now()), "the same trouble is no news");
    assert!(!source.want(Instant::now()));
    tokio::time::advance(ASK_AGAIN).await;
    assert!(source.want(Instant::now()));
    source.wanted().await;
    let keys = || Keyset::parse(set(&[Signer::ed25519().jwk("k")]).as_bytes());
    assert!(source.take(keys(), Instant::now()));
    let before = source.keys().unwrap().version();
    assert!(source.take(Err("down".into()), Instant::now()));
    assert_eq!(source.keys().unwrap().version(), before, "the last good ones stay");
    assert_eq!(source.state().problem.as_deref(), Some("down"));
    let file = IssuerPlan { keys: KeysPlan::File("/k".into()), ..bearer() };
    assert!(!Source::new(&file).want(Instant::now()), "a file is watched");
}

#[test]
fn a_clock_that_stands_before_all_tokens_believes_none() {
    let stage = Stage::new(vec![bearer()]);
    let token = stage.token(&with("iat", json!(NOW)));
    let asked = parts("/", &[("authorization", &format!("Bearer {token}"))]);
    assert!(stage.tokens.judge(&asked, UNIX_EPOCH - Duration::from_secs(5)).is_err());
    assert!(stage.tokens.judge(&asked, SystemTime::UNIX_EPOCH).is_err());
}

#[test]
fn a_reload_keeps_keys_and_memory_where_nothing_changed() {
    let stage = Stage::new(vec![bearer()]);
    let next = |issuer, claims: &[&str]| {
        let plan = Arc::new(JwtPlan { issuers: vec![issuer] });
        let claims = claims.iter().map(|&claim| claim.to_owned()).collect();
        Tokens::next(Some(&stage.tokens), &plan, claims, &stage.metrics).unwrap()
    };
    assert!(Arc::ptr_eq(&next(bearer(), &["scope", "realm.roles"]), &stage.tokens));
    // A rule that asks for more needs more of each token.
    let more = next(bearer(), &["scope", "sub"]);
    assert!(!Arc::ptr_eq(&more, &stage.tokens) && Arc::ptr_eq(&more.sources()[0], &stage.tokens.sources()[0]));
    let other = next(IssuerPlan { audiences: None, ..bearer() }, &["scope", "realm.roles"]);
    assert!(!Arc::ptr_eq(&other, &stage.tokens) && Arc::ptr_eq(&other.sources()[0], &stage.tokens.sources()[0]));
    let file = IssuerPlan { keys: KeysPlan::File("/nonexistent/k.json".into()), ..bearer() };
    let plan = Arc::new(JwtPlan { issuers: vec![file] });
    let error = Tokens::next(Some(&stage.tokens), &plan, vec![], &stage.metrics).err().unwrap();
    assert!(error.starts_with("/nonexistent/k.json: "), "{error}");
}
