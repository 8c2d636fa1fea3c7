//! What deciding costs: a pick among few and among ten thousand endpoints, what the resilience machines add to a good
//! request, what a token costs the first time and later, and taking over a control file of ten thousand endpoints.
//!
//! `cargo bench --bench deciding`

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use divan::{Bencher, black_box};
use outrigger::ids::PeerName;
use outrigger::jwt::tokens::Tokens;
use outrigger::life::tasks::Tasks;
use outrigger::plan::control_file;
use outrigger::plan::door::Protocol;
use outrigger::plan::jwt::{IssuerPlan, JwtPlan, KeysPlan, Place};
use outrigger::plan::peer::{Addresses, Balance, EndpointSpec, PeerKind, PeerPlan, PeerSource, Routes};
use outrigger::plan::rules::{BreakerRule, EjectRule};
use outrigger::resilience::breaker::Breaker;
use outrigger::resilience::budget::Budget;
use outrigger::resilience::limit::{Limit, Limits};
use outrigger::resilience::maglev::Maglev;
use outrigger::resilience::outlier::{Outlier, Seen};
use outrigger::resilience::ring::{HashRing, Member};
use outrigger::resilience::ward::Ward;
use outrigger::telemetry::metrics::Metrics;
use outrigger::upstream::adhoc::default_policy;
use outrigger::upstream::peer::Peer;
use outrigger::upstream::world::Upstreams;
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const MANY: usize = 10_000;

fn main() {
    divan::main();
}

fn file(endpoints: usize, every_field: bool) -> String {
    let mut text = String::from("peers:\n  search:\n");
    for n in 0..endpoints {
        let addr = format!("10.{}.{}.{}:9000", n >> 16, (n >> 8) & 255, n & 255);
        let line = if every_field {
            format!(
                "    - {{ address: \"{addr}\", weight: {}, zone: eu-{}, identity: \"spiffe://shop/search\", metadata: {{ version: \"{}\" }} }}",
                1 + n % 9,
                n % 3,
                n % 7
            )
        } else {
            format!("    - {addr}")
        };
        let _ = writeln!(text, "{line}");
    }
    text
}

fn specs(endpoints: usize, every_field: bool) -> Vec<EndpointSpec> {
    let mut file = control_file::parse(&file(endpoints, every_field), "peers.yaml").unwrap_or_default();
    file.peers.remove("search").unwrap_or_default()
}

fn peer(endpoints: usize, balance: Balance) -> Arc<Peer> {
    let metrics = Arc::new(Metrics::default());
    let shared = Upstreams::new(metrics.clone(), Tasks::default());
    let name = PeerName::new("search");
    let source = PeerSource {
        addresses: Addresses::Static(Vec::new()),
        protocol: Protocol::Http1,
        tls: None,
        mtls: None,
        to_app: None,
    };
    let mut policy = default_policy();
    policy.balance = balance;
    let plan = PeerPlan {
        name: name.clone(),
        kind: PeerKind::Named,
        source,
        policy: Arc::new(policy),
        routes: Routes::default(),
    };
    let peer = Peer::new(&plan, metrics.peer(&name), &shared).unwrap_or_else(|error| unreachable!("{error}"));
    peer.update(specs(endpoints, true));
    peer
}

#[divan::bench(args = [2, 10, MANY])]
fn pick_peak_ewma(bencher: Bencher<'_, '_>, endpoints: usize) {
    let (peer, now) = (peer(endpoints, Balance::PeakEwma), Instant::now());
    bencher.bench(|| black_box(peer.pick(now, &[])));
}

#[divan::bench(args = [2, 10, MANY])]
fn pick_round_robin(bencher: Bencher<'_, '_>, endpoints: usize) {
    let (peer, now) = (peer(endpoints, Balance::RoundRobin), Instant::now());
    bencher.bench(|| black_box(peer.pick(now, &[])));
}

fn members(endpoints: usize) -> Vec<Member> {
    let id = |n: usize| outrigger::plan::keyhash::hash(&n.to_le_bytes());
    (0..endpoints).map(|n| Member { id: id(n), weight: 1 + n as u32 % 9 }).collect()
}

#[divan::bench(args = [2, 10, MANY])]
fn pick_ring(bencher: Bencher<'_, '_>, endpoints: usize) {
    let (ring, mut key) = (HashRing::new(&members(endpoints)), 0u64);
    bencher.bench_local(|| {
        key = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
        black_box(ring.pick(key, |_| false))
    });
}

#[divan::bench(args = [2, 10, MANY])]
fn pick_maglev(bencher: Bencher<'_, '_>, endpoints: usize) {
    let (maglev, mut key) = (Maglev::new(&members(endpoints)), 0u64);
    bencher.bench_local(|| {
        key = key.wrapping_add(0x9E37_79B9_7F4A_7C15);
        black_box(maglev.pick(key, |_| false))
    });
}

/// What a request that goes well asks of budget, limits, breaker and ejection, all of them on.
#[divan::bench]
fn machines_of_a_good_request(bencher: Bencher<'_, '_>) {
    let now = Instant::now();
    let (budget, limits, breaker, ward) = (Budget::new(now), Limits::default(), Breaker::new(now), Ward::new(now));
    ward.set_members(10);
    let outlier = Outlier::new(ward);
    let (eject, brk, took) = (EjectRule::default(), BreakerRule::default(), Duration::from_millis(2));
    bencher.bench(|| {
        budget.deposit(now);
        let permit = Limit::take(&limits.in_flight, Some(1_000));
        if let (Ok(pass), Some(begun)) = (breaker.admit(now, &brk), outlier.begin(now, &eject)) {
            black_box(outlier.report(begun, now, Seen::Well, took, &eject, 7));
            black_box(breaker.report(pass, now, true, took, &brk));
        }
        black_box(permit.is_ok())
    });
}

/// The text of a control file to endpoints: 10 000 bare addresses, then with every field.
#[divan::bench(args = [false, true], sample_count = 20)]
fn read_control_file(bencher: Bencher<'_, '_>, every_field: bool) {
    let text = file(MANY, every_field);
    bencher.bench(|| control_file::parse(black_box(&text), "peers.yaml"));
}

/// Taking 10 000 endpoints over where one has changed.
#[divan::bench(args = [false, true], sample_count = 20)]
fn take_over_endpoints(bencher: Bencher<'_, '_>, every_field: bool) {
    let peer = peer(0, Balance::PeakEwma);
    let turn = std::sync::atomic::AtomicUsize::new(0);
    bencher
        .with_inputs(|| {
            let turn = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let mut specs = specs(MANY, every_field);
            specs.rotate_left(turn % MANY);
            specs.pop();
            specs
        })
        .bench_values(|specs| peer.update(specs));
}

/// A service that believes an issuer, and a request with its token (ES256).
fn token() -> Option<(impl Fn() -> Option<Arc<Tokens>>, http::request::Parts)> {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &aws_lc_rs::rand::SystemRandom::new());
    let key = jsonwebtoken::EncodingKey::from_ec_der(key.ok()?.as_ref());
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, jsonwebtoken::Algorithm::ES256).ok()?;
    let path = std::env::temp_dir().join(format!("outrigger-bench-{}.json", std::process::id()));
    std::fs::write(&path, serde_json::json!({ "keys": [jwk] }).to_string()).ok()?;
    let claims = serde_json::json!({ "iss": "i", "aud": "a", "exp": 4_000_000_000_u64, "scope": "orders.write" });
    let token = jsonwebtoken::encode(&jsonwebtoken::Header::new(jsonwebtoken::Algorithm::ES256), &claims, &key).ok()?;
    let request = http::Request::builder().header("authorization", format!("Bearer {token}")).body(()).ok()?;
    let issuer = IssuerPlan {
        issuer: "i".into(),
        audiences: Some(vec!["a".into()]),
        keys: KeysPlan::File(path),
        place: Place::Header(http::header::AUTHORIZATION),
        leeway: Duration::from_secs(60),
        strip: false,
    };
    let plan = Arc::new(JwtPlan { issuers: vec![issuer] });
    let tokens = move || Tokens::next(None, &plan, vec!["scope".into()], &Arc::default()).ok();
    Some((tokens, request.into_parts().0))
}

#[divan::bench]
fn token_first(bencher: Bencher<'_, '_>) {
    let Some((tokens, parts)) = token() else { return };
    let now = std::time::SystemTime::now();
    bencher
        .with_inputs(&tokens)
        .bench_values(|tokens| black_box(tokens.map(|tokens| tokens.judge(&parts, now).is_ok())));
}

#[divan::bench]
fn token_known(bencher: Bencher<'_, '_>) {
    let Some((tokens, parts)) = token() else { return };
    let (now, Some(tokens)) = (std::time::SystemTime::now(), tokens()) else { return };
    bencher.bench(|| black_box(tokens.judge(&parts, now).is_ok()));
}
