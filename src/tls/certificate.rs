//! What a certificate says, read from its DER: names, times, key, signature, and whether it can be an X509-SVID.
//!
//! For people, metrics and tools. Whether a peer is let in is decided by its verifier, never here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::spiffe::{NotSpiffe, SpiffeId};

/// What one certificate says. Its texts are the issuer's words: escape them before they reach a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The subject's name, empty where there is none.
    pub subject: String,
    /// The issuer's name.
    pub issuer: String,
    /// Its URI names (RFC 5280 §4.2.1.6), as they are written.
    pub uris: Vec<String>,
    /// Its DNS names.
    pub dns: Vec<String>,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
    /// The serial number in hexadecimal, bytes parted by colons.
    pub serial: String,
    /// Kind and size of the key, such as `ECDSA P-256`.
    pub key: String,
    /// How the issuer signed, such as `ECDSA with SHA-256`.
    pub signature: String,
    /// The first moment at which it is valid.
    pub not_before: SystemTime,
    /// The last.
    pub not_after: SystemTime,
    /// Whether it may issue others.
    pub is_ca: bool,
    /// Of a CA: how many CAs may stand between it and a leaf, where that is bounded.
    pub path_length: Option<u32>,
    usage: Usage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Usage {
    signs_handshakes: bool,
    signs_others: bool,
    /// Both ends of TLS, where purposes are listed at all.
    both_ends: bool,
}

/// Why a certificate is no X509-SVID of a workload (X509-SVID §2, §4 and §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSvid {
    /// There is no URI name.
    #[error("it has no URI name")]
    NoUri,
    /// There are this many.
    #[error("it has {0} URI names, where exactly one is allowed")]
    ManyUris(usize),
    /// The URI name is no SPIFFE ID.
    #[error("its URI name is no SPIFFE ID: {0}")]
    Uri(#[from] NotSpiffe),
    /// It is the ID of a trust domain, not of a workload.
    #[error("its SPIFFE ID has no path, so it names a trust domain and no workload")]
    NoPath,
    /// It may issue others.
    #[error("it is a CA's, or its key may sign certificates or revocation lists")]
    Signs,
    /// Its key may not sign a handshake.
    #[error("its key usage does not list digitalSignature")]
    KeyUsage,
    /// It lists purposes, and not both ends of TLS.
    #[error("its extended key usage does not list both server and client authentication")]
    Purpose,
}

impl Facts {
    /// Reads a certificate.
    ///
    /// # Errors
    /// What cannot be read in it.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, String> {
        let certificate = parsed(der)?;
        let broken = |error: X509Error| format!("a broken certificate: {error}");
        let (usage, purposes) =
            (certificate.key_usage().map_err(broken)?, certificate.extended_key_usage().map_err(broken)?);
        let constraints = certificate.basic_constraints().map_err(broken)?;
        let mut facts = Self {
            subject: certificate.subject().to_string(),
            issuer: certificate.issuer().to_string(),
            uris: Vec::new(),
            dns: Vec::new(),
            addresses: Vec::new(),
            serial: certificate.raw_serial_as_string(),
            key: key(certificate.public_key()),
            signature: signature(&certificate.signature_algorithm.algorithm.to_id_string()),
            not_before: moment(certificate.validity().not_before.timestamp()),
            not_after: moment(certificate.validity().not_after.timestamp()),
            is_ca: constraints.as_ref().is_some_and(|extension| extension.value.ca),
            path_length: constraints.and_then(|extension| extension.value.path_len_constraint),
            usage: Usage {
                signs_handshakes: usage.as_ref().is_some_and(|usage| usage.value.digital_signature()),
                signs_others: usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()),
                both_ends: purposes.is_none_or(|listed| listed.value.server_auth && listed.value.client_auth),
            },
        };
        if let Some(names) = certificate.subject_alternative_name().map_err(broken)? {
            names.value.general_names.iter().for_each(|name| facts.add(name));
        }
        Ok(facts)
    }

    fn add(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::URI(uri) => self.uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => self.dns.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => self.addresses.extend(address(bytes)),
            _ => {}
        }
    }

    /// The one SPIFFE ID, be it a workload's or, of a CA, its trust domain's.
    ///
    /// # Errors
    /// No URI name, more than one, or one that is no SPIFFE ID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, NotSvid> {
        match self.uris.as_slice() {
            [] => Err(NotSvid::NoUri),
            [one] => Ok(one.parse()?),
            many => Err(NotSvid::ManyUris(many.len())),
        }
    }

    /// The workload's identity, if it is the X509-SVID of one.
    ///
    /// # Errors
    /// Why it is not.
    pub fn svid(&self) -> Result<SpiffeId, NotSvid> {
        if self.is_ca || self.usage.signs_others {
            return Err(NotSvid::Signs);
        }
        let id = self.spiffe_id()?;
        if id.path().is_empty() {
            return Err(NotSvid::NoPath);
        }
        if !self.usage.signs_handshakes {
            return Err(NotSvid::KeyUsage);
        }
        if self.usage.both_ends { Ok(id) } else { Err(NotSvid::Purpose) }
    }
}

/// What a certificate's signature says about who could have issued it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// The name of the issuer is another's.
    Stranger,
    /// Name, right to issue and signature fit.
    Verified,
    /// The name fits and the signature was not made with that key.
    Forged,
    /// Name and signature fit, and that certificate is not a CA's, or its key may not sign certificates.
    NotCa,
    /// The name fits, and the signature is of a kind that is not known here.
    Unknown,
}

/// Whether `child` was issued by `issuer`; times are not looked at.
///
/// # Errors
/// One of them cannot be read.
pub fn link(child: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> Result<Link, String> {
    let (child, issuer) = (parsed(child)?, parsed(issuer)?);
    if child.issuer().as_raw() != issuer.subject().as_raw() {
        return Ok(Link::Stranger);
    }
    Ok(match child.verify_signature(Some(issuer.public_key())) {
        Ok(()) if may_issue(&issuer) => Link::Verified,
        Ok(()) => Link::NotCa,
        Err(X509Error::SignatureVerificationError) => Link::Forged,
        Err(_) => Link::Unknown,
    })
}

/// RFC 5280 §4.2.1.3 and §4.2.1.9; a CA without a key usage may use its key for anything.
fn may_issue(certificate: &X509Certificate<'_>) -> bool {
    certificate.is_ca()
        && certificate.key_usage().is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()))
}

/// The public key in the form of RFC 5280's SubjectPublicKeyInfo.
///
/// # Errors
/// The certificate cannot be read.
pub fn public_key(der: &CertificateDer<'_>) -> Result<Vec<u8>, String> {
    Ok(parsed(der)?.public_key().raw.to_vec())
}

fn parsed<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, String> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| format!("not a certificate: {error}"))?;
    if !rest.is_empty() {
        return Err(format!("not a certificate: {} bytes after its end", rest.len()));
    }
    for extension in certificate.extensions() {
        // Left alone, what cannot be read would count as not there.
        if let ParsedExtension::ParseError { .. } = extension.parsed_extension() {
            return Err(format!("a broken certificate: its extension {} cannot be read", extension.oid));
        }
    }
    Ok(certificate)
}

fn moment(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let moment = if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) };
    moment.unwrap_or(UNIX_EPOCH)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

/// The shortest RSA key that TLS here takes (webpki's floor).
const SHORTEST_RSA: usize = 2048;

fn key(info: &SubjectPublicKeyInfo<'_>) -> String {
    let oid = info.algorithm.algorithm.to_id_string();
    match (oid.as_str(), info.parsed()) {
        ("1.3.101.112", _) => "Ed25519".to_owned(),
        (_, Ok(PublicKey::RSA(rsa))) => {
            let bits = bits(rsa.modulus);
            let weak = if bits < SHORTEST_RSA { " (too short, not accepted)" } else { "" };
            format!("RSA {bits} bits{weak}")
        }
        (_, Ok(PublicKey::EC(_))) => {
            let curve = info.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
            match curve.map(|oid| oid.to_id_string()).as_deref() {
                Some("1.2.840.10045.3.1.7") => "ECDSA P-256".to_owned(),
                Some("1.3.132.0.34") => "ECDSA P-384".to_owned(),
                Some("1.3.132.0.35") => "ECDSA P-521".to_owned(),
                other => format!("ECDSA on the curve {}", other.unwrap_or("that it describes itself")),
            }
        }
        _ => format!("of the kind {oid}"),
    }
}

/// The length of a number without its leading zeros.
fn bits(number: &[u8]) -> usize {
    let significant = number.iter().skip_while(|byte| **byte == 0).count();
    let first = number.iter().find(|byte| **byte != 0).map_or(0, |byte| byte.leading_zeros() as usize);
    significant * 8 - first
}

fn signature(oid: &str) -> String {
    match oid {
        "1.2.840.10045.4.3.2" => "ECDSA with SHA-256",
        "1.2.840.10045.4.3.3" => "ECDSA with SHA-384",
        "1.2.840.10045.4.3.4" => "ECDSA with SHA-512",
        "1.2.840.113549.1.1.11" => "RSA with SHA-256",
        "1.2.840.113549.1.1.12" => "RSA with SHA-384",
        "1.2.840.113549.1.1.13" => "RSA with SHA-512",
        "1.2.840.113549.1.1.10" => "RSA-PSS",
        "1.3.101.112" => "Ed25519",
        "1.2.840.10045.4.1" => "ECDSA with SHA-1 (broken, not accepted)",
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => "RSA with SHA-1 (broken, not accepted)",
        "1.2.840.113549.1.1.4" => "RSA with MD5 (broken, not accepted)",
        other => return format!("of the kind {other}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
        PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SanType, date_time_ymd,
    };

    use super::*;

    /// The parameters of a good X509-SVID.
    fn svid() -> CertificateParams {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI("spiffe://shop/a".try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params
    }

    fn read(params: &CertificateParams) -> Facts {
        let key = KeyPair::generate().unwrap();
        Facts::read(params.self_signed(&key).unwrap().der()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let mut params = svid();
        params.serial_number = Some(vec![0x7f, 1, 2].into());
        (params.not_before, params.not_after) = (date_time_ymd(1969, 12, 31), date_time_ymd(2060, 1, 1));
        params.subject_alt_names.extend([
            SanType::DnsName("a.example".try_into().unwrap()),
            SanType::IpAddress("10.0.0.1".parse().unwrap()),
            SanType::IpAddress("::1".parse().unwrap()),
        ]);
        let facts = read(&params);
        assert_eq!(
            (facts.subject.as_str(), facts.issuer.as_str()),
            ("CN=rcgen self signed cert", "CN=rcgen self signed cert")
        );
        assert_eq!((facts.uris, facts.dns), (vec!["spiffe://shop/a".to_owned()], vec!["a.example".to_owned()]));
        assert_eq!(facts.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
        assert_eq!(facts.serial, "7f:01:02");
        assert_eq!((facts.key.as_str(), facts.signature.as_str()), ("ECDSA P-256", "ECDSA with SHA-256"));
        assert_eq!(facts.not_before, UNIX_EPOCH - Duration::from_secs(86_400));
        assert_eq!(facts.not_after, UNIX_EPOCH + Duration::from_secs(2_840_140_800));
        assert_eq!((facts.is_ca, facts.path_length), (false, None));
    }

    #[test]
    fn keys_and_signatures_have_their_names() {
        for (algorithm, key, signature) in
            [(&PKCS_ED25519, "Ed25519", "Ed25519"), (&PKCS_ECDSA_P384_SHA384, "ECDSA P-384", "ECDSA with SHA-384")]
        {
            let pair = KeyPair::generate_for(algorithm).unwrap();
            let facts = Facts::read(svid().self_signed(&pair).unwrap().der()).unwrap();
            assert_eq!((facts.key.as_str(), facts.signature.as_str()), (key, signature));
        }
        for (number, length) in [(&[0u8, 0x80, 0][..], 16), (&[0x7f, 0], 15), (&[0, 0], 0), (&[], 0), (&[1], 1)] {
            assert_eq!(bits(number), length, "{number:?}");
        }
    }

    #[test]
    fn an_svid_follows_the_standard() {
        let uri = |text: &str| SanType::URI(text.try_into().unwrap());
        let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
        let wrong = |change: &dyn Fn(&mut CertificateParams)| {
            let mut params = svid();
            change(&mut params);
            read(&params).svid()
        };
        assert_eq!(wrong(&|_| ()), Ok("spiffe://shop/a".parse().unwrap()));
        assert_eq!(
            wrong(&|params| params.extended_key_usages = vec![server.clone(), client.clone()]).map(|_| ()),
            Ok(())
        );
        type Change<'a> = &'a dyn Fn(&mut CertificateParams);
        let cases: [(NotSvid, Change<'_>); 14] = [
            (NotSvid::NoUri, &|p| p.subject_alt_names.clear()),
            (NotSvid::ManyUris(2), &|p| p.subject_alt_names.push(uri("spiffe://shop/b"))),
            (NotSvid::ManyUris(2), &|p| p.subject_alt_names.push(uri("https://shop/b"))),
            (NotSvid::Uri(NotSpiffe::Scheme), &|p| p.subject_alt_names = vec![uri("https://shop/a")]),
            (NotSvid::Uri(NotSpiffe::TrustDomain), &|p| p.subject_alt_names = vec![uri("spiffe://Shop/a")]),
            (NotSvid::Uri(NotSpiffe::Path), &|p| p.subject_alt_names = vec![uri("spiffe://shop/a\0b")]),
            (NotSvid::NoPath, &|p| p.subject_alt_names = vec![uri("spiffe://shop")]),
            (NotSvid::Signs, &|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            (NotSvid::Signs, &|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            (NotSvid::Signs, &|p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
            (NotSvid::KeyUsage, &|p| p.key_usages.clear()),
            (NotSvid::KeyUsage, &|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
            (NotSvid::Purpose, &|p| p.extended_key_usages = vec![server.clone()]),
            (NotSvid::Purpose, &|p| p.extended_key_usages = vec![client.clone()]),
        ];
        for (error, change) in cases {
            assert_eq!(wrong(change), Err(error));
        }
    }

    #[test]
    fn a_link_needs_name_right_and_signature() {
        let named = |name: &str, is_ca| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = if is_ca { IsCa::Ca(BasicConstraints::Constrained(0)) } else { IsCa::NoCa };
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (root, twin, other, no_ca) = (named("r", true), named("r", true), named("o", true), named("n", false));
        let mut revoker = CertificateParams::default();
        revoker.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        revoker.key_usages = vec![KeyUsagePurpose::CrlSign];
        let revoker = CertifiedIssuer::self_signed(revoker, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = svid().signed_by(&key, &root).unwrap();
        let of_no_ca = svid().signed_by(&key, &no_ca).unwrap();
        for (child, issuer, expected) in [
            (leaf.der(), root.der(), Link::Verified),
            (root.der(), root.der(), Link::Verified),
            (leaf.der(), twin.der(), Link::Forged),
            (leaf.der(), other.der(), Link::Stranger),
            (of_no_ca.der(), no_ca.der(), Link::NotCa),
            (revoker.der(), revoker.der(), Link::NotCa),
        ] {
            assert_eq!(link(child, issuer), Ok(expected));
        }
        assert_eq!(Facts::read(root.der()).unwrap().path_length, Some(0));
        assert_eq!(public_key(leaf.der()).unwrap(), rcgen::PublicKeyData::subject_public_key_info(&key));
    }

    #[test]
    fn what_is_no_certificate_is_told() {
        let key = KeyPair::generate().unwrap();
        let good = svid().self_signed(&key).unwrap().der().to_vec();
        let mut longer = good.clone();
        longer.push(0);
        let half = good.get(..good.len() / 2).unwrap().to_vec();
        for (bytes, says) in [(Vec::new(), "not a certificate"), (half, "not a certificate"), (longer, "1 bytes after")]
        {
            let error = Facts::read(&bytes.into()).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        let mut broken = svid();
        broken.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![1, 2, 3])];
        let error = Facts::read(broken.self_signed(&key).unwrap().der()).unwrap_err();
        assert!(error.contains("2.5.29.19"), "{error}");
    }

    /// One good certificate for all runs of the property: making a key costs more than reading.
    static GOOD: LazyLock<Vec<u8>> =
        LazyLock::new(|| svid().self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec());

    proptest::proptest! {
        /// Whatever bytes a peer shows, reading them ends and does not panic.
        #[test]
        fn any_bytes_are_read_or_refused(at in 0usize..600, byte: u8, cut in 0usize..600) {
            let mut der = GOOD.clone();
            let length = der.len();
            der[at % length] = byte;
            let _ = Facts::read(&der.clone().into()).map(|facts| facts.svid());
            der.truncate(cut);
            let _ = Facts::read(&der.into());
        }
    }
}
