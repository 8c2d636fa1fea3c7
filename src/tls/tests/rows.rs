//! The hostile certificates, each with the reason for which it must be refused.

use std::sync::OnceLock;

use rcgen::{
    BasicConstraints, CustomExtension, ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, KeyPair,
    KeyUsagePurpose as Usage, NameConstraints, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::kit::*;
use crate::spiffe::SpiffeId;
use crate::tls::identity::Identity;
use crate::tls::untrusted::{Role, Untrusted};

pub(super) const DNS: u8 = 0x82;
pub(super) const IP: u8 = 0x87;
const MAIL: u8 = 0x81;
pub(super) const ID: &str = "spiffe://shop/service";

pub(super) const NO_ISSUER: &str = "one that signed is no CA, or its key usage lists no keyCertSign";

const PATH: &str = "a path has segments of letters, digits, `.`, `-` and `_`, none empty, `.` or `..`";
const DOMAIN: &str = "a trust domain has lower-case letters, digits, `.`, `-` and `_`";

/// Who signs, and the identity that judges.
pub(super) struct World {
    pub(super) shop: Authority,
    pub(super) issuing: Authority,
    pub(super) partner: Authority,
    pub(super) old: Authority,
    /// Allows no CA below it.
    pub(super) narrow: Authority,
    pub(super) stale: Authority,
    pub(super) forged: Authority,
    pub(super) us: Identity,
}

pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let shop = Authority::root("shop root");
        let issuing = shop.below("shop issuing", |_| {});
        let (partner, stale) = (Authority::root("partner root"), Authority::root("stale root"));
        let forged_root = Authority::root("forged root");
        let forged = forged_root.below("forged issuing", |_| {});
        let narrow = Authority::root_with("narrow root", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        });
        let old = Authority::root_with("old root", |params| dates(params, -1000, -5));
        let mut material = shop.issue("spiffe://shop/us").material(&[
            (None, &[shop.der()]),
            (Some("partner"), &[partner.der()]),
            (Some("old"), &[old.der()]),
            (Some("stale"), &[stale.der()]),
            (Some("forged"), &[forged_root.der()]),
            (Some("narrow"), &[narrow.der()]),
            (Some("weak"), &weak(include_bytes!("weak/root.pem"))),
        ]);
        let namesake = Authority::root("forged issuing");
        material.crls = vec![sourced("crl.pem", vec![shop.crl(&[666, 667], 100), partner.crl(&[1], 100)])];
        material.crls.push(sourced("others.pem", vec![stale.crl(&[1], -3), namesake.crl(&[1], 100)]));
        let us = Identity::new(material, now()).unwrap();
        World { shop, issuing, partner, old, narrow, stale, forged, us }
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

pub(super) type Rows = Vec<(&'static str, Chain, Untrusted)>;

fn bad(id: &str, why: &str) -> Untrusted {
    Untrusted::BadId { id: id.to_owned(), why: why.to_owned() }
}

/// What it calls itself.
fn names_rows() -> Rows {
    let shop = &world().shop;
    let named = |list: &[(u8, &[u8])]| shop.issue_names(list, |_| {});
    let (path, domain) = (PATH, DOMAIN);
    let several = |count| Untrusted::SeveralIds { count };
    vec![
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
    ]
}

/// How its one URI is spelt.
fn spelling_rows() -> Rows {
    let (path, domain) = (PATH, DOMAIN);
    let (scheme, own) =
        ("a SPIFFE ID begins with `spiffe://`", "a workload's has a path; this is the trust domain's own");
    let long = format!("spiffe://shop/{}", "a".repeat(2040));
    let cut = format!("{}…", &long[..80]);
    let list = [
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
    ];
    list.map(|(name, uri, shown, why)| (name, world().shop.issue(uri), bad(shown, why))).into()
}

/// Who signed it.
fn issuer_rows() -> Rows {
    let World { shop, issuing, partner, .. } = world();
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
    ]
}

/// What those who signed allow.
fn rule_rows() -> Rows {
    let shop = &world().shop;
    let deep = (1..8).fold(shop.below("depth 0", |_| {}), |deep, depth| deep.below(&format!("depth {depth}"), |_| {}));
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
    let no_issuer = |usages: Vec<Usage>| shop.below("no issuer", |params| params.key_usages = usages);
    let crls_only = no_issuer(vec![Usage::CrlSign]);
    let below_crls_only = crls_only.below("below one for CRLs", |_| {});
    let below_root = world().narrow.below("below a narrow root", |_| {});
    let for_mail = shop.below("mail issuing", |params| params.extended_key_usages = vec![Eku::EmailProtection]);
    vec![
        ("too many intermediates", deep.issue(ID), Untrusted::Chain("too many certificates")),
        ("signed by a leaf", no_ca.issue(ID), Untrusted::Chain(NO_ISSUER)),
        ("signed by one without constraints", plain_leaf.issue(ID), Untrusted::Chain(NO_ISSUER)),
        ("intermediate for CRLs only", crls_only.issue(ID), Untrusted::Chain(NO_ISSUER)),
        ("CA signed by one for CRLs only", below_crls_only.issue(ID), Untrusted::Chain(NO_ISSUER)),
        (
            "intermediate for handshakes only",
            no_issuer(vec![Usage::DigitalSignature]).issue(ID),
            Untrusted::Chain(NO_ISSUER),
        ),
        (
            "CA below a root's path of none",
            below_root.issue("spiffe://narrow/a"),
            Untrusted::Chain("a CA allows fewer CAs below it"),
        ),
        ("CA below a path of none", below_narrow.issue(ID), Untrusted::Chain("a CA allows fewer CAs below it")),
        (
            "name constraint broken",
            constrained.issue_names(&evil_dns, |_| {}),
            Untrusted::Chain("a CA constrains names"),
        ),
        ("URI constraint", uri_constrained.issue(ID), Untrusted::Chain("a CA constrains names")),
        ("intermediate for mail", for_mail.issue(ID), Untrusted::NotForThis { role: Role::Client }),
    ]
}

/// What no longer holds, or not yet.
fn time_rows() -> Rows {
    let World { shop, old, stale, forged, .. } = world();
    let expired = shop.below("expired issuing", |params| dates(params, -100, -2));
    let future = shop.below("future issuing", |params| dates(params, 2, 100));
    let gone = shop.below("revoked issuing", |params| params.serial_number = Some(SerialNumber::from(667)));
    let revoked = shop.issue_with(ID, |params| params.serial_number = Some(SerialNumber::from(666)));
    vec![
        ("expired intermediate", expired.issue(ID), Untrusted::Expired { since: time(-2) }),
        ("intermediate not yet valid", future.issue(ID), Untrusted::NotYetValid { from: time(2) }),
        ("expired root", old.issue("spiffe://old/a"), Untrusted::Expired { since: time(-5) }),
        ("revoked", revoked, Untrusted::Revoked),
        ("revoked intermediate", gone.issue(ID), Untrusted::Revoked),
        ("CRL out of date", stale.issue("spiffe://stale/a"), Untrusted::StaleRevocation { since: time(-3) }),
        ("CRL by a namesake", forged.issue("spiffe://forged/a"), Untrusted::UnknownRevocation),
    ]
}

/// What was made with weak keys or signatures.
fn weak_rows() -> Rows {
    vec![
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

/// All of them: what is shown, by whom it is signed, and why it is refused.
pub(super) fn hostile() -> Rows {
    [names_rows, spelling_rows, issuer_rows, rule_rows, time_rows, weak_rows, leaf_rows]
        .iter()
        .flat_map(|rows| rows())
        .collect()
}
