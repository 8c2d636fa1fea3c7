//! The table of hostile certificates: each is shown by a caller and by a called service in a real handshake, and is
//! refused for its own reason with its own alert.

use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose as Usage, NameConstraints, SerialNumber,
};
use rustls::AlertDescription as Alert;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::kit::*;
use crate::spiffe::SpiffeId;
use crate::tls::identity::Identity;
use crate::tls::untrusted::{Role, Untrusted, refused_by_peer};
use crate::tls::verify::Wanted;

const DNS: u8 = 0x82;
const IP: u8 = 0x87;
const MAIL: u8 = 0x81;
const ID: &str = "spiffe://shop/service";

/// Who signs, and the identity that judges.
struct World {
    shop: Authority,
    issuing: Authority,
    partner: Authority,
    old: Authority,
    stale: Authority,
    forged: Authority,
    us: Identity,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let shop = Authority::root("shop root");
        let issuing = shop.below("shop issuing", |_| {});
        let (partner, stale, forged) =
            (Authority::root("partner root"), Authority::root("stale root"), Authority::root("forged root"));
        let old = Authority::root_with("old root", |params| dates(params, -1000, -5));
        let mut material = shop.issue("spiffe://shop/us").material(&[
            (None, &[shop.der()]),
            (Some("partner"), &[partner.der()]),
            (Some("old"), &[old.der()]),
            (Some("stale"), &[stale.der()]),
            (Some("forged"), &[forged.der()]),
            (Some("weak"), &weak(include_bytes!("weak/root.pem"))),
        ]);
        let namesake = Authority::root("forged root");
        material.crls = vec![sourced("crl.pem", vec![shop.crl(&[666, 667], 100), partner.crl(&[1], 100)])];
        material.crls.push(sourced("others.pem", vec![stale.crl(&[1], -3), namesake.crl(&[1], 100)]));
        let us = Identity::new(material, now()).unwrap();
        World { shop, issuing, partner, old, stale, forged, us }
    })
}

fn weak(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect()
}

/// Certificates made elsewhere, with a key that is not theirs: what is refused before the key is looked at.
fn made(certificates: Vec<CertificateDer<'static>>) -> Chain {
    Chain { certificates, key: KeyPair::generate().unwrap() }
}

/// With bytes of the leaf changed.
fn bent(mut chain: Chain, bend: impl FnOnce(&mut Vec<u8>)) -> Chain {
    let mut leaf = chain.certificates[0].to_vec();
    bend(&mut leaf);
    chain.certificates[0] = leaf.into();
    chain
}

type Rows = Vec<(&'static str, Chain, Untrusted)>;

fn bad(id: &str, why: &str) -> Untrusted {
    Untrusted::BadId { id: id.to_owned(), why: why.to_owned() }
}

/// What it calls itself.
fn names_rows() -> Rows {
    let shop = &world().shop;
    let named = |list: &[(u8, &[u8])]| shop.issue_names(list, |_| {});
    let (path, domain) = (
        "a path has segments of letters, digits, `.`, `-` and `_`, none empty, `.` or `..`",
        "a trust domain has lower-case letters, digits, `.`, `-` and `_`",
    );
    let (scheme, own) =
        ("a SPIFFE ID begins with `spiffe://`", "a workload's has a path; this is the trust domain's own");
    let several = |count| Untrusted::SeveralIds { count };
    let mut rows: Rows = vec![
        ("common name only", named(&[]), Untrusted::NoId),
        ("DNS name only", named(&[(DNS, b"service.shop")]), Untrusted::NoId),
        ("address only", named(&[(IP, &[127, 0, 0, 1])]), Untrusted::NoId),
        ("mail address only", named(&[(MAIL, b"spiffe://shop/service")]), Untrusted::NoId),
        ("the ID as DNS name", named(&[(DNS, b"spiffe://shop/service")]), Untrusted::NoId),
        ("no names in the list", shop.issue_names(&[], |p| p.custom_extensions.push(names(&[]))), Untrusted::NoId),
        ("two IDs", named(&[(URI, ID.as_bytes()), (URI, b"spiffe://shop/other")]), several(2)),
        ("the same ID twice", named(&[(URI, ID.as_bytes()), (URI, ID.as_bytes())]), several(2)),
        ("an ID and another URI", named(&[(URI, ID.as_bytes()), (URI, b"https://shop/")]), several(2)),
        ("another URI and an ID", named(&[(URI, b"https://shop/"), (URI, ID.as_bytes())]), several(2)),
        ("an ID and a URI that is no text", named(&[(URI, ID.as_bytes()), (URI, &[0xff])]), several(2)),
        ("an ID and an empty URI", named(&[(URI, ID.as_bytes()), (URI, b"")]), several(2)),
        ("three IDs", named(&[(URI, ID.as_bytes()); 3]), several(3)),
        (
            "NUL in the path",
            named(&[(URI, b"spiffe://shop/service\0.evil")]),
            bad("spiffe://shop/service\\x00.evil", path),
        ),
        (
            "NUL in the trust domain",
            named(&[(URI, b"spiffe://shop\0.evil/a")]),
            bad("spiffe://shop\\x00.evil/a", domain),
        ),
        ("no ASCII", named(&[(URI, "spiffe://shop/ä".as_bytes())]), bad("spiffe://shop/\\xc3\\xa4", path)),
        ("no text", named(&[(URI, b"spiffe://shop/\xff")]), bad("spiffe://shop/\\xff", "it is not ASCII")),
        ("a line break", named(&[(URI, b"spiffe://shop/a\nlevel=error")]), bad("spiffe://shop/a\\nlevel=error", path)),
    ];
    let long = format!("spiffe://shop/{}", "a".repeat(2040));
    let cut = format!("{}…", &long[..80]);
    for (name, uri, shown, why) in [
        ("empty URI", "", "", scheme),
        ("another scheme", "https://shop/service", "https://shop/service", scheme),
        ("upper-case scheme", "SPIFFE://shop/service", "SPIFFE://shop/service", scheme),
        ("one slash", "spiffe:/shop/service", "spiffe:/shop/service", scheme),
        ("no trust domain", "spiffe:///service", "spiffe:///service", domain),
        ("upper-case trust domain", "spiffe://Shop/service", "spiffe://Shop/service", domain),
        ("a port", "spiffe://shop:443/service", "spiffe://shop:443/service", domain),
        ("a user", "spiffe://me@shop/service", "spiffe://me@shop/service", domain),
        ("no path", "spiffe://shop", "spiffe://shop", own),
        ("root path", "spiffe://shop/", "spiffe://shop/", path),
        ("trailing slash", "spiffe://shop/service/", "spiffe://shop/service/", path),
        ("double slash", "spiffe://shop//service", "spiffe://shop//service", path),
        ("dot segments", "spiffe://shop/other/../service", "spiffe://shop/other/../service", path),
        ("percent-encoded", "spiffe://shop/a%2fb", "spiffe://shop/a%2fb", path),
        ("query", "spiffe://shop/service?a", "spiffe://shop/service?a", path),
        ("fragment", "spiffe://shop/service#a", "spiffe://shop/service#a", path),
        ("wildcard", "spiffe://shop/*", "spiffe://shop/*", path),
        ("space", "spiffe://shop/a b", "spiffe://shop/a b", path),
        ("too long", &long, &cut, "at most 2048 bytes, 255 of them the trust domain"),
    ] {
        rows.push((name, shop.issue(uri), bad(shown, why)));
    }
    rows
}

/// Who signed it.
fn issuers_rows() -> Rows {
    let World { shop, issuing, partner, old, stale, forged, .. } = world();
    let elsewhere: SpiffeId = "spiffe://elsewhere/service".parse().unwrap();
    let evil = Authority::root("evil root");
    let mut missing = issuing.issue(ID);
    missing.certificates.truncate(1);
    let mut itself = shop.issue(ID);
    itself.certificates = vec![{
        let mut params = rcgen::CertificateParams::default();
        params.custom_extensions.push(names(&[(URI, ID.as_bytes())]));
        params.self_signed(&itself.key).unwrap().der().clone()
    }];
    let mut deep = Authority::root("deep root").below("shop root", |_| {});
    for depth in 0..8 {
        deep = if depth == 0 { shop.below("depth 0", |_| {}) } else { deep.below(&format!("depth {depth}"), |_| {}) };
    }
    let no_ca = shop.below("no CA", |params| params.is_ca = IsCa::ExplicitNoCa);
    let plain_leaf = shop.below("leaf as CA", |params| params.is_ca = IsCa::NoCa);
    let narrow = shop.below("narrow", |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below_narrow = narrow.below("below narrow", |_| {});
    let only_dns = |params: &mut rcgen::CertificateParams| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("shop.example".into())],
            excluded_subtrees: Vec::new(),
        });
    };
    let constrained = shop.below("constrained", only_dns);
    let evil_dns = [(URI, ID.as_bytes()), (DNS, &b"evil.example"[..])];
    // permittedSubtrees with one URI, `shop` (RFC 5280 §4.2.1.10).
    let only_uri = element(0x30, &element(0xa0, &element(0x30, &element(URI, b"shop"))));
    let uri_constrained = shop.below("URI constrained", |params| {
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 30], only_uri));
    });
    let expired = shop.below("expired issuing", |params| dates(params, -100, -2));
    let future = shop.below("future issuing", |params| dates(params, 2, 100));
    let gone = shop.below("revoked issuing", |params| params.serial_number = Some(SerialNumber::from(667)));
    let revoked = shop.issue_with(ID, |params| params.serial_number = Some(SerialNumber::from(666)));
    let for_mail = shop.below("mail issuing", |params| params.extended_key_usages = vec![Eku::EmailProtection]);
    vec![
        ("trust domain without roots", shop.issue(elsewhere.as_str()), Untrusted::TrustDomain { id: elsewhere }),
        (
            "trust domain by prefix",
            shop.issue("spiffe://shop.evil/a"),
            Untrusted::TrustDomain { id: "spiffe://shop.evil/a".parse().unwrap() },
        ),
        ("another's ID under our root", shop.issue("spiffe://partner/a"), Untrusted::UnknownIssuer),
        ("our ID under another's root", partner.issue(ID), Untrusted::UnknownIssuer),
        ("unknown root", evil.issue(ID), Untrusted::UnknownIssuer),
        ("unknown root of the same name", Authority::root("shop root").issue(ID), Untrusted::UnknownIssuer),
        ("signed by itself", itself, Untrusted::UnknownIssuer),
        ("intermediate missing", missing, Untrusted::UnknownIssuer),
        ("too many intermediates", deep.issue(ID), Untrusted::Chain("too many certificates")),
        ("signed by a leaf", no_ca.issue(ID), Untrusted::Chain("one that signed is no CA")),
        ("signed by one without constraints", plain_leaf.issue(ID), Untrusted::Chain("one that signed is no CA")),
        ("CA below a path of none", below_narrow.issue(ID), Untrusted::Chain("a CA allows fewer CAs below it")),
        (
            "name constraint broken",
            constrained.issue_names(&evil_dns, |_| {}),
            Untrusted::Chain("a CA constrains names"),
        ),
        ("URI constraint", uri_constrained.issue(ID), Untrusted::Chain("a CA constrains names")),
        ("expired intermediate", expired.issue(ID), Untrusted::Expired { since: time(-2) }),
        ("intermediate not yet valid", future.issue(ID), Untrusted::NotYetValid { from: time(2) }),
        ("expired root", old.issue("spiffe://old/a"), Untrusted::Expired { since: time(-5) }),
        ("revoked", revoked, Untrusted::Revoked),
        ("revoked intermediate", gone.issue(ID), Untrusted::Revoked),
        ("CRL out of date", stale.issue("spiffe://stale/a"), Untrusted::StaleRevocation { since: time(-3) }),
        ("CRL by a namesake", forged.issue("spiffe://forged/a"), Untrusted::UnknownRevocation),
        ("intermediate for mail", for_mail.issue(ID), Untrusted::NotForThis { role: Role::Client }),
        ("SHA-1", made(weak(include_bytes!("weak/sha1.pem"))), Untrusted::Weak),
        ("RSA of 1024 bits", made(weak(include_bytes!("weak/rsa1024.pem"))), Untrusted::Weak),
        (
            "intermediate with RSA of 1024 bits",
            made([weak(include_bytes!("weak/below1024.pem")), weak(include_bytes!("weak/inter1024.pem"))].concat()),
            Untrusted::Weak,
        ),
        (
            "SHA-1 by an intermediate",
            made([weak(include_bytes!("weak/belowsha1.pem")), weak(include_bytes!("weak/intersha1.pem"))].concat()),
            Untrusted::Weak,
        ),
    ]
}

/// What it may be used for, when, and how it is written.
fn leaf_rows() -> Rows {
    let shop = &world().shop;
    let with = |tweak: &dyn Fn(&mut rcgen::CertificateParams)| shop.issue_with(ID, tweak);
    let usages = |list: Vec<Usage>| shop.issue_with(ID, |params| params.key_usages = list);
    let purposes = |list: Vec<Eku>| shop.issue_with(ID, |params| params.extended_key_usages = list);
    let extension = |oid: &[u64], content: Vec<u8>, critical| {
        shop.issue_with(ID, |params| {
            let mut extension = CustomExtension::from_oid_content(oid, content);
            extension.set_criticality(critical);
            params.custom_extensions.push(extension);
        })
    };
    let no_use = Untrusted::NotForThis { role: Role::Client };
    let mut others_key = shop.issue(ID);
    others_key.key = KeyPair::generate().unwrap();
    let mut ed25519_key = shop.issue(ID);
    ed25519_key.key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    vec![
        ("expired", with(&|params| dates(params, -24, -1)), Untrusted::Expired { since: time(-1) }),
        ("not yet valid", with(&|params| dates(params, 1, 24)), Untrusted::NotYetValid { from: time(1) }),
        ("dates reversed", with(&|params| dates(params, 24, -24)), Untrusted::BadEncoding),
        ("a CA", with(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), Untrusted::LeafIsCa),
        ("signs certificates", usages(vec![Usage::DigitalSignature, Usage::KeyCertSign]), Untrusted::LeafIsCa),
        ("signs CRLs", usages(vec![Usage::DigitalSignature, Usage::CrlSign]), Untrusted::LeafIsCa),
        ("does not sign", usages(vec![Usage::KeyEncipherment]), no_use.clone()),
        ("for code", purposes(vec![Eku::CodeSigning]), no_use.clone()),
        ("for any use", purposes(vec![Eku::Any]), no_use.clone()),
        ("for no use", extension(&[2, 5, 29, 37], element(0x30, &[]), false), Untrusted::BadEncoding),
        ("critical extension", extension(&[1, 2, 3, 4], vec![5, 0], true), Untrusted::CriticalExtension),
        ("names twice", extension(&[2, 5, 29, 17], element(0x30, &element(DNS, b"a")), false), Untrusted::BadEncoding),
        ("another's key", others_key, Untrusted::NotItsKey),
        ("a key of another kind", ed25519_key, Untrusted::NotItsKey),
        ("DSA", made(weak(include_bytes!("weak/dsa.pem"))), Untrusted::NotItsKey),
        ("garbage", made(vec![vec![0x5a; 300].into()]), Untrusted::BadEncoding),
        ("nothing in it", made(vec![vec![0x30, 0].into()]), Untrusted::BadEncoding),
        ("cut short", bent(shop.issue(ID), |leaf| leaf.truncate(leaf.len() - 1)), Untrusted::BadEncoding),
        ("a byte too long", bent(shop.issue(ID), |leaf| leaf.push(0)), Untrusted::BadEncoding),
        (
            "a bit of the signature",
            bent(shop.issue(ID), |leaf| *leaf.last_mut().unwrap() ^= 1),
            Untrusted::UnknownIssuer,
        ),
        (
            "another ID under an old signature",
            bent(shop.issue("spiffe://shop/serfice"), |leaf| {
                let at = leaf.windows(7).position(|seven| seven == b"serfice").unwrap();
                leaf[at + 3] = b'v';
            }),
            Untrusted::UnknownIssuer,
        ),
    ]
}

/// What the other side is told (RFC 8446 §6.2).
fn alert(why: &Untrusted) -> Alert {
    match why {
        Untrusted::NoCertificate => Alert::CertificateRequired,
        Untrusted::BadEncoding | Untrusted::CriticalExtension => Alert::BadCertificate,
        Untrusted::UnknownIssuer | Untrusted::UnknownRevocation | Untrusted::StaleRevocation { .. } => Alert::UnknownCA,
        Untrusted::Expired { .. } | Untrusted::NotYetValid { .. } => Alert::CertificateExpired,
        Untrusted::NotForThis { .. } => Alert::UnsupportedCertificate,
        Untrusted::Revoked => Alert::CertificateRevoked,
        Untrusted::NotItsKey => Alert::DecryptError,
        _ => Alert::CertificateUnknown,
    }
}

fn alert_in(error: &std::io::Error) -> Option<Alert> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

/// Shows `chain` in a handshake and gives what our side said and which alert the other saw.
async fn shown(chain: &Chain, role: Role, wanted: &Wanted) -> (Result<(), Option<Untrusted>>, Option<Alert>) {
    let (us, clock) = (&world().us, Clock::new());
    let (ours, theirs) = match role {
        Role::Client => {
            let client = Arc::new(stranger_client(Some(chain), ALL_VERSIONS));
            let (theirs, ours) = meet(client, server_at(&clock, &us.server_config(&[]))).await;
            (ours, theirs)
        }
        Role::Server => {
            let server = Arc::new(stranger_server(chain, ALL_VERSIONS));
            meet(client_at(&clock, &us.client_config(wanted.clone(), &[])), server).await
        }
    };
    let alert = theirs.as_ref().err().and_then(alert_in);
    let named = theirs.as_ref().err().and_then(refused_by_peer).is_some();
    assert_eq!(named, alert.is_some_and(|alert| alert != Alert::DecryptError), "{alert:?}");
    (ours.map(drop).map_err(|error| Untrusted::of_io(&error)), alert)
}

#[tokio::test]
async fn hostile_certificates() {
    let rows: Rows = [names_rows(), issuers_rows(), leaf_rows()].into_iter().flatten().collect();
    assert!(rows.len() >= 80, "{}", rows.len());
    let anyone = wanted(&["spiffe://shop/*", "spiffe://partner/*", "spiffe://old/*", "spiffe://weak/*"]);
    let mut wrong = Vec::new();
    for (name, chain, why) in &rows {
        for role in [Role::Client, Role::Server] {
            let why = match why {
                Untrusted::NotForThis { .. } => Untrusted::NotForThis { role },
                other => other.clone(),
            };
            let seen = shown(chain, role, &anyone).await;
            if seen != (Err(Some(why.clone())), Some(alert(&why))) {
                wrong.push(format!("{name} ({role}): {seen:?} instead of {why:?}"));
            }
            let line = why.to_string();
            assert!(line.chars().all(|c| !c.is_control()) && line.len() < 400, "{line:?}");
            // The same without a handshake, as after a resumption; there the key was proven before.
            let judged = match role {
                Role::Client => world().us.identify_client(Some(&chain.certificates), now()),
                Role::Server => world().us.identify_peer(Some(&chain.certificates), &anyone, now()),
            };
            if judged.as_ref() != Err(&why) && why != Untrusted::NotItsKey {
                wrong.push(format!("{name} ({role}), judged again: {judged:?} instead of {why:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn certificates_as_they_should_be() {
    let World { shop, issuing, partner, us, .. } = world();
    let of = |algorithm| {
        let key = KeyPair::generate_for(algorithm).unwrap();
        shop.issue_for(key, &[(URI, ID.as_bytes())], |_| {})
    };
    let mut unordered = issuing.below("third", |_| {}).issue(ID);
    unordered.certificates.insert(1, partner.der());
    unordered.certificates[1..].reverse();
    let renamed = shop.below("constrained well", |params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("shop.example".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    let dns_too = [(DNS, &b"service.shop.example"[..]), (URI, ID.as_bytes()), (IP, &[10, 0, 0, 1])];
    let rows = [
        ("plain", shop.issue(ID)),
        ("with an intermediate", issuing.issue(ID)),
        ("unordered, and one too many", unordered),
        ("other names beside", shop.issue_names(&dns_too, |_| {})),
        ("name constraint kept", renamed.issue_names(&dns_too[..2], |_| {})),
        ("no usage said", shop.issue_with(ID, |params| params.key_usages = Vec::new())),
        ("no extended usage said", shop.issue_with(ID, |params| params.extended_key_usages = Vec::new())),
        ("until this second", shop.issue_with(ID, |params| dates(params, -1, 0))),
        ("from this second", shop.issue_with(ID, |params| dates(params, 0, 1))),
        ("valid for long", shop.issue_with(ID, |params| dates(params, -1, 24 * 365 * 100))),
        ("Ed25519", of(&rcgen::PKCS_ED25519)),
        ("P-384", of(&rcgen::PKCS_ECDSA_P384_SHA384)),
        ("P-521", of(&rcgen::PKCS_ECDSA_P521_SHA512)),
        ("RSA of 2048 bits", of(&rcgen::PKCS_RSA_SHA256)),
        ("a partner", partner.issue("spiffe://partner/a.b-c_d/e")),
    ];
    let anyone = wanted(&["spiffe://shop/*", "spiffe://partner/*"]);
    for (name, chain) in &rows {
        for role in [Role::Client, Role::Server] {
            assert_eq!(shown(chain, role, &anyone).await, (Ok(()), None), "{name} ({role})");
        }
        let id = us.identify_client(Some(&chain.certificates), now()).unwrap();
        assert!(id.as_str() == ID || id.trust_domain() == "partner", "{name}: {id}");
    }
}

#[tokio::test]
async fn a_use_in_one_direction_only() {
    for (purpose, allowed) in [(Eku::ClientAuth, Role::Client), (Eku::ServerAuth, Role::Server)] {
        let chain = world().shop.issue_with(ID, |params| params.extended_key_usages = vec![purpose]);
        for role in [Role::Client, Role::Server] {
            let seen = shown(&chain, role, &wanted(&[ID])).await;
            let refused = (Err(Some(Untrusted::NotForThis { role })), Some(Alert::UnsupportedCertificate));
            assert_eq!(seen, if role == allowed { (Ok(()), None) } else { refused });
        }
    }
}

#[tokio::test]
async fn a_called_service_must_be_the_one_that_is_meant() {
    let id = |text: &str| text.parse::<SpiffeId>().unwrap();
    for (shows, rules, endpoint, told) in [
        ("spiffe://shop/pay", &["spiffe://shop/pay"][..], None, None),
        ("spiffe://shop/pay", &["spiffe://shop/cart", "spiffe://shop/pay"], None, None),
        ("spiffe://shop/pay/v2", &["spiffe://shop/pay/*"], None, None),
        ("spiffe://shop/pay", &["spiffe://shop/*"], Some("spiffe://shop/pay"), None),
        ("spiffe://shop/pay", &["spiffe://shop/cart"], None, Some("`spiffe://shop/cart`")),
        ("spiffe://shop/payments", &["spiffe://shop/pay/*"], None, Some("`spiffe://shop/pay/*`")),
        ("spiffe://shop/Pay", &["spiffe://shop/pay"], None, Some("`spiffe://shop/pay`")),
        ("spiffe://partner/pay", &["spiffe://shop/pay"], None, Some("`spiffe://shop/pay`")),
        ("spiffe://shop/pay", &[], None, Some("")),
        ("spiffe://shop/pay", &["spiffe://shop/*"], Some("spiffe://shop/cart"), Some("`spiffe://shop/cart`")),
        // What discovery says of an endpoint does not widen what the file allows.
        ("spiffe://shop/pay", &["spiffe://shop/cart"], Some("spiffe://shop/pay"), Some("`spiffe://shop/cart`")),
        (
            "spiffe://shop/pay",
            &["spiffe://shop/cart", "spiffe://shop/a/*"],
            None,
            Some("`spiffe://shop/cart` or `spiffe://shop/a/*`"),
        ),
    ] {
        let World { shop, partner, .. } = world();
        let shows = id(shows);
        let chain = if shows.trust_domain() == "shop" { shop } else { partner }.issue(shows.as_str());
        let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        let meant = Wanted::new(rules.into(), endpoint.map(id));
        let expected = told.map(|told| Untrusted::WrongIdentity { wanted: told.to_owned(), got: shows.clone() });
        let alert = expected.as_ref().map(|_| Alert::CertificateUnknown);
        let seen = shown(&chain, Role::Server, &meant).await;
        assert_eq!(seen, (expected.map_or(Ok(()), |why| Err(Some(why))), alert), "{shows} {meant:?}");
    }
}

#[test]
fn lists_of_the_revoked_that_compete() {
    // A CA renewed under its old name, and an old list left beside the new one of the same CA.
    let (old, new) = (Authority::root("root"), Authority::root("root"));
    let partner = Authority::root("partner");
    let numbered = |root: &Authority, number: u64| {
        root.issue_with(ID, |params| params.serial_number = Some(SerialNumber::from(number)))
    };
    let judged = |lists: Vec<_>, chain: &Chain| {
        let roots = [old.der(), new.der()];
        let mut material =
            new.issue("spiffe://shop/us").material(&[(None, &roots), (Some("partner"), &[partner.der()])]);
        material.crls = vec![sourced("crl.pem", lists)];
        let us = Identity::new(material, now()).unwrap();
        us.identify_client(Some(&chain.certificates), now()).map(drop)
    };
    let stale = Err(Untrusted::StaleRevocation { since: time(-1) });
    let lists = || vec![old.crl(&[1], 9), new.crl(&[2], 9), new.crl(&[3], -1), new.crl(&[4], 9), partner.crl(&[5], -1)];
    for turn in 0..5 {
        let lists = || {
            let mut lists = lists();
            lists.rotate_left(turn);
            lists
        };
        for (root, number, verdict) in [
            (&old, 1, Err(Untrusted::Revoked)),
            (&old, 9, Ok(())),
            (&new, 2, Err(Untrusted::Revoked)),
            (&new, 3, Err(Untrusted::Revoked)),
            (&new, 4, Err(Untrusted::Revoked)),
            (&new, 5, Ok(())),
            (&new, 9, Ok(())),
        ] {
            assert_eq!(judged(lists(), &numbered(root, number)), verdict, "turned by {turn}, number {number}");
        }
        // A list out of date is no list, unless there is a better one.
        let partners = partner.issue("spiffe://partner/a");
        assert_eq!(judged(lists(), &partners), stale);
        assert_eq!(judged([lists(), vec![partner.crl(&[], 9)]].concat(), &partners), Ok(()));
    }
    // webpki cannot tell whose list it is, and rather believes nobody.
    assert!(judged(vec![old.crl(&[1], 9)], &numbered(&new, 9)).is_err());
}
