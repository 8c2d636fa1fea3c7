//! Hostile certificates are shown by a caller and by a called service in a real handshake, and each is refused for its
//! own reason with its own alert; good ones are not.

use std::sync::Arc;

use rcgen::{ExtendedKeyUsagePurpose as Eku, GeneralSubtree, KeyPair, NameConstraints, SerialNumber};
use rustls::AlertDescription as Alert;

use super::kit::*;
use super::rows::{DNS, ID, IP, World, hostile, world};
use crate::reason::Side;
use crate::spiffe::SpiffeId;
use crate::tls::identity::Identity;
use crate::tls::untrusted::{Role, Untrusted, refused_by_peer};
use crate::tls::verify::Wanted;

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
    let rows = hostile();
    assert!(rows.len() >= 80, "{}", rows.len());
    let anyone =
        wanted(&["spiffe://shop/*", "spiffe://partner/*", "spiffe://old/*", "spiffe://weak/*", "spiffe://narrow/*"]);
    let mut wrong = Vec::new();
    for (name, chain, why) in &rows {
        for role in [Role::Client, Role::Server] {
            let why = match why {
                Untrusted::NotForThis { .. } => Untrusted::NotForThis { role },
                other => other.clone(),
            };
            let side = if role == Role::Client { Side::Client } else { Side::Peer };
            assert_eq!(why.reason(role).side(), side, "{name}");
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
    let World { shop, issuing, partner, narrow, us, .. } = world();
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
        ("directly below a root with a path of none", narrow.issue("spiffe://narrow/a")),
        ("intermediate without usage", shop.below("any use", |params| params.key_usages = Vec::new()).issue(ID)),
        ("a partner", partner.issue("spiffe://partner/a.b-c_d/e")),
    ];
    let anyone = wanted(&["spiffe://shop/*", "spiffe://partner/*", "spiffe://narrow/*"]);
    for (name, chain) in &rows {
        for role in [Role::Client, Role::Server] {
            assert_eq!(shown(chain, role, &anyone).await, (Ok(()), None), "{name} ({role})");
        }
        let id = us.identify_client(Some(&chain.certificates), now()).unwrap();
        assert!(id.as_str() == ID || ["partner", "narrow"].contains(&id.trust_domain()), "{name}: {id}");
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
    let nobody = Wanted::new(Arc::default(), None);
    let seen = shown(&world().shop.issue("spiffe://shop/pay"), Role::Server, &nobody).await;
    assert_eq!(seen, (Err(Some(Untrusted::Unmeant)), Some(Alert::CertificateUnknown)));
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
        Identity::new(material, now()).map(|us| us.identify_client(Some(&chain.certificates), now()).map(drop))
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
            assert_eq!(judged(lists(), &numbered(root, number)), Ok(verdict), "turned by {turn}, number {number}");
        }
        // A list out of date is no list, unless there is a better one.
        let partners = partner.issue("spiffe://partner/a");
        assert_eq!(judged(lists(), &partners), Ok(stale.clone()));
        assert_eq!(judged([lists(), vec![partner.crl(&[], 9)]].concat(), &partners), Ok(Ok(())));
    }
    // webpki goes by the name, and would believe nobody of the new CA, so not us either.
    let told = judged(vec![old.crl(&[1], 9)], &numbered(&new, 9)).unwrap_err();
    assert!(told.contains("that issuer's key has not signed it"), "{told}");
}

#[test]
fn who_was_judged_before_is_judged_the_same() {
    let root = Authority::root_with("root", |params| dates(params, -40, 30));
    let renewed = Authority::root_with("renewed", |params| dates(params, -40, 12));
    let issuing = root.below("issuing", |params| dates(params, -20, 20));
    let day = |params: &mut rcgen::CertificateParams| dates(params, -10, 24);
    let chains = [root.issue_with(ID, day), issuing.issue_with(ID, day), renewed.issue_with(ID, day)];
    let us = || {
        let roots = [root.der(), renewed.der()];
        Identity::new(root.issue_with("spiffe://shop/us", day).material(&[(None, &roots)]), now()).unwrap()
    };
    let known = us();
    for chain in &chains {
        for hour in (-45..45).chain([0, 5, 13, 21, 25, 0]) {
            for role in [Role::Client, Role::Server] {
                let judged = |us: &Identity| match role {
                    Role::Client => us.identify_client(Some(&chain.certificates), time(hour)),
                    Role::Server => us.identify_peer(Some(&chain.certificates), &wanted(&[ID]), time(hour)),
                };
                assert_eq!(judged(&known), judged(&us()), "{hour} h, {role}");
            }
        }
    }
    // What is good for one use is not so for the other, and a changed byte is another chain.
    let one_way = root.issue_with(ID, |params| params.extended_key_usages = vec![Eku::ClientAuth]);
    assert!(known.identify_client(Some(&one_way.certificates), now()).is_ok());
    assert!(known.identify_peer(Some(&one_way.certificates), &wanted(&[ID]), now()).is_err());
    let mut bent = one_way.certificates[0].to_vec();
    *bent.last_mut().unwrap() ^= 1;
    assert!(known.identify_client(Some(&[bent.into()]), now()).is_err());
}
