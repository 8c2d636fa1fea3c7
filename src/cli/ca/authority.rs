//! The authority itself: roots, intermediates and leaves made from what is asked and a moment; opens no file, reads no
//! clock.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::words;
use crate::spiffe::SpiffeId;
use crate::tls::certificate::{Facts, Link, link, public_key};

/// How far a certificate's validity begins before it is made, for clocks that go a little wrong.
const LEEWAY: Duration = Duration::from_secs(60);

/// The last moment that X.509 can write, in seconds since 1970.
const END_OF_TIME: u64 = 253_402_300_799;

/// The longest that a name in a subject may be (RFC 5280, ub-common-name).
const LONGEST_NAME: usize = 64;

/// A CA's certificate and key as PEM. No `Debug`: the key is secret.
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key, as PKCS#8.
    pub key: String,
    /// Until when it is valid.
    pub until: SystemTime,
}

/// A new authority.
pub struct Founded {
    /// What peers trust.
    pub root: Pair,
    /// What signs in its stead, where that is wanted: the root's key can then be kept elsewhere.
    pub intermediate: Option<Pair>,
}

/// Makes the authority of a trust domain, valid for `lifetime` from `now`.
///
/// # Errors
/// The domain is no trust domain's name, or the time cannot be written in a certificate.
pub fn found(domain: &str, lifetime: Duration, intermediate: bool, now: SystemTime) -> Result<Founded, String> {
    let id: SpiffeId = format!("spiffe://{domain}").parse().map_err(|error| format!("`{domain}`: {error}"))?;
    let until = now + lifetime;
    let params = |name: &str, constraints| -> Result<CertificateParams, String> {
        let mut params = blank((now - LEEWAY, until), &id)?;
        // No two roots share a name: who trusts another one is told that, and not that a signature is wrong.
        let own: String = params
            .serial_number
            .iter()
            .flat_map(SerialNumber::to_bytes)
            .take(4)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        params.distinguished_name.push(DnType::CommonName, format!("{name} {own}"));
        if domain.len() <= LONGEST_NAME {
            params.distinguished_name.push(DnType::OrganizationName, domain);
        }
        params.is_ca = IsCa::Ca(constraints);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(params)
    };
    let root = CertifiedIssuer::self_signed(params("Outrigger root CA", BasicConstraints::Unconstrained)?, new_key()?)
        .map_err(unmade)?;
    let below = if intermediate {
        let mut params = params("Outrigger intermediate CA", BasicConstraints::Constrained(0))?;
        params.use_authority_key_identifier_extension = true;
        Some(CertifiedIssuer::signed_by(params, new_key()?, &root).map_err(unmade)?)
    } else {
        None
    };
    let pair =
        |made: &CertifiedIssuer<'_, KeyPair>| Pair { certificate: made.pem(), key: made.key().serialize_pem(), until };
    Ok(Founded { root: pair(&root), intermediate: below.as_ref().map(pair) })
}

/// What an existing authority issues with. No `Debug`: it holds a key.
pub struct Authority {
    roots: String,
    /// The signer's and those between it and a root; none where the root itself signs.
    intermediates: String,
    /// From the signer to the root.
    path: Vec<Facts>,
    signer: CertificateDer<'static>,
    key: KeyPair,
}

/// What a leaf is to be.
pub struct Wanted {
    /// Whose it is.
    pub id: SpiffeId,
    /// Its DNS names.
    pub dns: Vec<String>,
    /// Its IP addresses.
    pub addresses: Vec<IpAddr>,
    /// How long it is valid.
    pub ttl: Duration,
}

/// A workload's certificate as PEM. No `Debug`: the key is secret.
pub struct Leaf {
    /// The leaf, then what stands between it and the root.
    pub chain: String,
    /// Its key, as PKCS#8.
    pub key: String,
    /// The authority's roots, as they stand in its own file.
    pub roots: String,
    /// Until when it is valid.
    pub until: SystemTime,
}

impl Authority {
    /// Reads one from PEM: all its roots, the intermediates with the signer first (none: a root signs), the signer's key.
    ///
    /// # Errors
    /// Something is not what it should be, or these do not belong together.
    pub fn read(roots: &str, intermediates: Option<&str>, key: &PrivateKeyDer<'_>) -> Result<Self, String> {
        let key = KeyPair::try_from(key)
            .map_err(|_| "the key is of a kind that cannot sign here: ECDSA, Ed25519 or RSA is needed".to_owned())?;
        let (trusted, between) = (
            certificates(roots, "root.pem")?,
            match intermediates {
                Some(text) => certificates(text, "intermediate.pem")?,
                None => Vec::new(),
            },
        );
        let own = key.subject_public_key_info();
        let (signer, root) = match between.first() {
            None => {
                let fits = |root: &&CertificateDer<'_>| public_key(root).is_ok_and(|theirs| theirs == own);
                let root = trusted.iter().find(fits);
                (root, root)
            }
            Some(first) => {
                let fits = public_key(first)? == own;
                (fits.then_some(first), above(&between, &trusted)?)
            }
        };
        let whose = if between.is_empty() {
            "root.key does not fit root.pem"
        } else {
            "intermediate.key does not fit intermediate.pem"
        };
        let signer = signer.ok_or(whose)?.clone();
        let root = root.ok_or("intermediate.pem was not issued by a root in root.pem")?;
        let path = between.iter().chain([root]).map(|one| Facts::read(one)).collect::<Result<Vec<_>, _>>()?;
        if let Some(other) = path.iter().find(|facts| !facts.is_ca) {
            return Err(format!("`{}` is not a CA's certificate", words::safe(&other.subject)));
        }
        Ok(Self {
            roots: roots.to_owned(),
            intermediates: intermediates.unwrap_or_default().to_owned(),
            path,
            signer,
            key,
        })
    }

    /// The trust domain that its own certificate names, if it names one.
    pub fn trust_domain(&self) -> Option<String> {
        let id = self.path.iter().find_map(|facts| facts.spiffe_id().ok())?;
        Some(id.trust_domain().to_owned())
    }

    /// Makes a workload's certificate.
    ///
    /// # Errors
    /// The authority is not valid now or ends too early, or is another trust domain's.
    pub fn issue(&self, wanted: &Wanted, now: SystemTime) -> Result<Leaf, String> {
        let until = now + wanted.ttl;
        let not_before = self.may_issue(wanted, now, until)?;
        let mut params = blank((not_before, until), &wanted.id)?;
        let service = wanted.id.path().trim_start_matches('/');
        if service.len() <= LONGEST_NAME {
            params.distinguished_name.push(DnType::CommonName, service);
        }
        for name in &wanted.dns {
            let ascii = name.as_str().try_into().map_err(|_| format!("`{name}` is not a DNS name"))?;
            params.subject_alt_names.push(SanType::DnsName(ascii));
        }
        params.subject_alt_names.extend(wanted.addresses.iter().copied().map(SanType::IpAddress));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (key, issuer) = (new_key()?, Issuer::from_ca_cert_der(&self.signer, &self.key).map_err(unmade)?);
        let leaf = params.signed_by(&key, &issuer).map_err(unmade)?;
        match link(leaf.der(), &self.signer)? {
            Link::Verified => {}
            Link::NotCa => return Err("the CA's own certificate does not let its key sign certificates".into()),
            // A CA of someone else's may have a name that is written back in another form; no verifier would take that.
            _ => return Err("the CA has a name that cannot be written as an issuer's: make one with `ca init`".into()),
        }
        Ok(Leaf {
            chain: format!("{}{}", leaf.pem(), self.intermediates),
            key: key.serialize_pem(),
            roots: self.roots.clone(),
            until,
        })
    }

    /// From when the leaf may be valid.
    fn may_issue(&self, wanted: &Wanted, now: SystemTime, until: SystemTime) -> Result<SystemTime, String> {
        if wanted.id.path().is_empty() {
            return Err(format!("`{}` names a trust domain and no workload: add a path, such as /checkout", wanted.id));
        }
        if let Some(own) = self.trust_domain().filter(|own| own != wanted.id.trust_domain()) {
            return Err(format!(
                "this CA is that of trust domain `{own}`, so nobody would take `{}` from it: ask for spiffe://{own}{} or name another CA with --ca",
                wanted.id,
                wanted.id.path()
            ));
        }
        if wanted.ttl < Duration::from_secs(1) {
            return Err("--ttl is to be at least 1s".into());
        }
        let mut from = now - LEEWAY;
        for facts in &self.path {
            let name = words::safe(&facts.subject);
            if now > facts.not_after {
                let ago = words::span(now.duration_since(facts.not_after).unwrap_or_default());
                return Err(format!("`{name}` expired {ago} ago: make a new one with `outrigger ca init`"));
            }
            if now < facts.not_before {
                let wait = words::span(facts.not_before.duration_since(now).unwrap_or_default());
                return Err(format!("`{name}` is valid only in {wait}: look at this machine's clock"));
            }
            if until > facts.not_after {
                let left = words::span(facts.not_after.duration_since(now).unwrap_or_default());
                return Err(format!(
                    "a certificate of {} would outlive `{name}`, which ends in {left}: ask for a shorter --ttl or make a new CA with `outrigger ca init`",
                    words::span(wanted.ttl)
                ));
            }
            from = from.max(facts.not_before);
        }
        Ok(from)
    }
}

/// The root that issued the last of `between`, once each of them is known to be issued by the next.
fn above<'a>(
    between: &[CertificateDer<'_>],
    trusted: &'a [CertificateDer<'static>],
) -> Result<Option<&'a CertificateDer<'static>>, String> {
    for (child, issuer) in between.iter().zip(between.iter().skip(1)) {
        if link(child, issuer)? != Link::Verified {
            return Err("intermediate.pem holds certificates that are not each issued by the next".into());
        }
    }
    let Some(last) = between.last() else { return Ok(None) };
    for root in trusted {
        if link(last, root)? == Link::Verified {
            return Ok(Some(root));
        }
    }
    Ok(None)
}

fn certificates(text: &str, name: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    if text.contains("PRIVATE KEY-----") {
        // It is copied beside each leaf.
        return Err(format!("{name} holds a private key: it is for certificates only"));
    }
    let found = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(format!("{name} holds no PEM certificate (BEGIN CERTIFICATE)")),
    }
}

/// What all certificates have: validity, one SPIFFE ID, a serial number of 128 random bits, and an empty subject.
fn blank((from, until): (SystemTime, SystemTime), id: &SpiffeId) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(1970, 1, 1) + since_1970(from)?;
    params.not_after = date_time_ymd(1970, 1, 1) + since_1970(until)?;
    let uri = id.as_str().try_into().map_err(|_| format!("`{id}` cannot be written in a certificate"))?;
    params.subject_alt_names = vec![SanType::URI(uri)];
    let mut serial = [0; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| "the system gives no random numbers".to_owned())?;
    params.serial_number = Some(serial.to_vec().into());
    Ok(params)
}

fn since_1970(moment: SystemTime) -> Result<Duration, String> {
    let seconds = moment.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if seconds == 0 || seconds > END_OF_TIME {
        return Err("the time lies before 1970 or after 9999: look at this machine's clock".into());
    }
    Ok(Duration::from_secs(seconds))
}

fn new_key() -> Result<KeyPair, String> {
    KeyPair::generate().map_err(unmade)
}

fn unmade(error: rcgen::Error) -> String {
    format!("the certificate cannot be made: {error}")
}

#[cfg(test)]
mod tests {
    use rcgen::PKCS_ECDSA_P384_SHA384;

    use super::*;
    use crate::cli::ca::inspect;

    const DAY: Duration = Duration::from_secs(86_400);

    fn start() -> SystemTime {
        UNIX_EPOCH + 20_000 * DAY
    }

    fn read(founded: &Founded) -> Result<Authority, String> {
        let signing = founded.intermediate.as_ref().unwrap_or(&founded.root);
        let between = founded.intermediate.as_ref().map(|pair| pair.certificate.as_str());
        Authority::read(&founded.root.certificate, between, &key(signing))
    }

    fn key(pair: &Pair) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap()
    }

    fn wanted(id: &str, ttl: Duration) -> Wanted {
        Wanted { id: id.parse().unwrap(), dns: Vec::new(), addresses: Vec::new(), ttl }
    }

    fn all(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn what_is_issued_is_a_valid_svid_that_verifies() {
        for intermediate in [false, true] {
            let founded = found("shop", 3650 * DAY, intermediate, start()).unwrap();
            let authority = read(&founded).unwrap();
            assert_eq!(authority.trust_domain().as_deref(), Some("shop"));
            let asked = Wanted {
                dns: vec!["checkout.shop".into(), "*.checkout.shop".into()],
                addresses: vec!["10.0.0.1".parse().unwrap()],
                ..wanted("spiffe://shop/checkout", DAY)
            };
            let leaf = authority.issue(&asked, start()).unwrap();
            let (chain, roots) = (all(&leaf.chain), all(&leaf.roots));
            assert_eq!((chain.len(), roots.len()), (1 + usize::from(intermediate), 1));
            let facts = Facts::read(&chain[0]).unwrap();
            assert_eq!(facts.svid(), Ok("spiffe://shop/checkout".parse().unwrap()));
            assert_eq!((facts.subject.as_str(), facts.key.as_str()), ("CN=checkout", "ECDSA P-256"));
            assert_eq!(facts.dns, ["checkout.shop", "*.checkout.shop"]);
            assert_eq!(facts.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
            assert_eq!((facts.not_before, facts.not_after), (start() - LEEWAY, start() + DAY));
            for (moment, good) in [
                (start(), true),
                (start() + DAY, true),
                (start() + DAY + Duration::from_secs(1), false),
                (start() - LEEWAY, true),
                (start() - LEEWAY - Duration::from_secs(1), false),
            ] {
                assert_eq!(inspect::verified(&chain, &roots, moment).is_ok(), good, "{moment:?}");
            }
            let fits = KeyPair::from_pem(&leaf.key).unwrap().subject_public_key_info();
            assert_eq!(public_key(&chain[0]).unwrap(), fits);
            let signer = Facts::read(chain.get(1).unwrap_or(&roots[0])).unwrap();
            assert_eq!(
                (signer.path_length, signer.uris),
                (intermediate.then_some(0), vec!["spiffe://shop".to_owned()])
            );
            assert_eq!(Facts::read(&roots[0]).unwrap().not_after, start() + 3650 * DAY);
        }
    }

    #[test]
    fn serial_numbers_are_random_and_long() {
        let authority = read(&found("shop", DAY, false, start()).unwrap()).unwrap();
        let serial = || {
            let leaf = authority.issue(&wanted("spiffe://shop/a", Duration::from_secs(1)), start()).unwrap();
            Facts::read(&all(&leaf.chain)[0]).unwrap().serial
        };
        let (one, two) = (serial(), serial());
        assert!(one != two && one.len() > 30 && two.len() > 30, "{one} {two}");
    }

    #[test]
    fn a_moved_clock_is_refused_in_words() {
        let authority = read(&found("shop", 10 * DAY, true, start()).unwrap()).unwrap();
        for (after, ttl, says) in [
            (10 * DAY + Duration::from_secs(1), DAY, "expired 1 s ago"),
            (9 * DAY, 2 * DAY, ", O=shop`, which ends in 1 d"),
            (9 * DAY, 2 * DAY, "a certificate of 2 d would outlive `CN=Outrigger intermediate CA "),
            (Duration::ZERO, 11 * DAY, "would outlive"),
            (Duration::ZERO, Duration::ZERO, "--ttl is to be at least 1s"),
        ] {
            let error = authority.issue(&wanted("spiffe://shop/a", ttl), start() + after).err().unwrap();
            assert!(error.contains(says), "{error}");
        }
        assert!(authority.issue(&wanted("spiffe://shop/a", DAY), start() + 9 * DAY).is_ok());
        let error = authority.issue(&wanted("spiffe://shop/a", DAY), start() - DAY).err().unwrap();
        assert!(error.contains("is valid only in 23 h 59 m"), "{error}");
        for moment in [UNIX_EPOCH + Duration::from_secs(1), UNIX_EPOCH + 2_932_896 * DAY] {
            assert!(found("shop", DAY, false, moment).err().unwrap().contains("clock"));
        }
    }

    #[test]
    fn what_is_asked_wrongly_is_refused() {
        let authority = read(&found("shop", DAY, false, start()).unwrap()).unwrap();
        for (id, says) in
            [("spiffe://shop", "names a trust domain and no workload"), ("spiffe://bank/a", "ask for spiffe://shop/a")]
        {
            let error = authority.issue(&wanted(id, Duration::from_secs(9)), start()).err().unwrap();
            assert!(error.contains(says), "{error}");
        }
        assert!(found("Shop", DAY, false, start()).err().unwrap().starts_with("`Shop`: a trust domain has"));
        let asked = Wanted { dns: vec!["ä".into()], ..wanted("spiffe://shop/a", Duration::from_secs(9)) };
        assert!(authority.issue(&asked, start()).err().unwrap().contains("`ä` is not a DNS name"));
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let (one, two) = (found("shop", DAY, true, start()).unwrap(), found("shop", DAY, true, start()).unwrap());
        let (below, other) = (one.intermediate.as_ref().unwrap(), two.intermediate.as_ref().unwrap());
        let refused = |roots: &str, between: Option<&str>, pair: &Pair| {
            Authority::read(roots, between, &key(pair)).err().unwrap()
        };
        assert!(refused(&one.root.certificate, None, &two.root).contains("root.key does not fit"));
        assert!(
            refused(&one.root.certificate, Some(&below.certificate), other).contains("intermediate.key does not fit")
        );
        assert!(refused(&two.root.certificate, Some(&below.certificate), below).contains("not issued by a root"));
        let apart = format!("{}{}", below.certificate, other.certificate);
        assert!(refused(&one.root.certificate, Some(&apart), below).contains("not each issued by the next"));
        let with_key = format!("{}{}", one.root.certificate, one.root.key);
        assert!(refused(&with_key, None, &one.root).contains("holds a private key"));
        assert!(refused("", None, &one.root).contains("root.pem holds no PEM certificate"));
        // Several roots at once: the one whose key is there signs.
        let both = format!("{}{}", two.root.certificate, one.root.certificate);
        let leaf = Authority::read(&both, None, &key(&one.root)).unwrap();
        let leaf = leaf.issue(&wanted("spiffe://shop/a", Duration::from_secs(9)), start()).unwrap();
        assert_eq!(leaf.roots, both);
        assert!(inspect::verified(&all(&leaf.chain), &all(&one.root.certificate), start()).is_ok());
    }

    #[test]
    fn a_leafs_certificate_signs_nothing_and_a_foreign_ca_is_taken() {
        let authority = read(&found("shop", DAY, false, start()).unwrap()).unwrap();
        let leaf = authority.issue(&wanted("spiffe://shop/a", Duration::from_secs(9)), start()).unwrap();
        let pair = Pair { certificate: leaf.chain, key: leaf.key, until: leaf.until };
        let error = Authority::read(&pair.certificate, None, &key(&pair)).err().unwrap();
        assert!(error.contains("`CN=a` is not a CA's certificate"), "{error}");

        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::CrlSign];
        let revoker = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let pair = Pair { certificate: revoker.pem(), key: revoker.key().serialize_pem(), until: start() };
        let authority = Authority::read(&pair.certificate, None, &key(&pair)).unwrap();
        let error = authority.issue(&wanted("spiffe://shop/a", DAY), start()).err().unwrap();
        assert!(error.contains("does not let its key sign"), "{error}");

        // Without a SPIFFE ID of its own, and with another kind of key.
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CountryName, "DE");
        let theirs = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        let foreign = CertifiedIssuer::self_signed(params, theirs).unwrap();
        let pair = Pair { certificate: foreign.pem(), key: foreign.key().serialize_pem(), until: start() };
        let authority = Authority::read(&pair.certificate, None, &key(&pair)).unwrap();
        assert_eq!(authority.trust_domain(), None);
        let leaf = authority.issue(&wanted("spiffe://shop/a", DAY), start()).unwrap();
        assert!(inspect::verified(&all(&leaf.chain), &all(&leaf.roots), start()).is_ok());
    }

    #[test]
    fn a_name_too_long_for_a_subject_stands_in_the_id_alone() {
        let domain = "d".repeat(200);
        let authority = read(&found(&domain, DAY, true, start()).unwrap()).unwrap();
        let id = format!("spiffe://{domain}/{}", "s".repeat(65));
        let leaf = authority.issue(&wanted(&id, Duration::from_secs(9)), start()).unwrap();
        let facts = Facts::read(&all(&leaf.chain)[0]).unwrap();
        assert_eq!((facts.subject.as_str(), facts.svid().unwrap().as_str()), ("", id.as_str()));
        assert!(inspect::verified(&all(&leaf.chain), &all(&leaf.roots), start()).is_ok());
    }
}
