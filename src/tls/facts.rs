//! What a certificate says of itself that the rules of SPIFFE ask for and `webpki` does not tell: every URI name
//! (webpki leaves out those that it cannot read), key usage, the size of an RSA key, and the dates.

use rustls_pki_types::UnixTime;

use super::der::{BIT_STRING, BOOLEAN, Der, INTEGER, OCTET_STRING, OID, SEQUENCE};
use super::untrusted::{Role, Untrusted};
use crate::spiffe::SpiffeId;

const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const URI: u8 = 0x86;

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

const DIGITAL_SIGNATURE: u8 = 0x80;
const SIGNS_CERTIFICATES: u8 = 0x04;
const SIGNS_CRLS: u8 = 0x02;

const SMALLEST_RSA: usize = 2048;

/// From when to when something is valid, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first second.
    pub from: UnixTime,
    /// Its last second.
    pub until: UnixTime,
}

impl Validity {
    /// # Errors
    /// `CertNotValidYet` or `CertExpired`.
    pub fn check(self, now: UnixTime) -> Result<(), webpki::Error> {
        match self {
            Self { from, .. } if now < from => Err(webpki::Error::CertNotValidYet { time: now, not_before: from }),
            Self { until, .. } if now > until => Err(webpki::Error::CertExpired { time: now, not_after: until }),
            _ => Ok(()),
        }
    }
}

/// The facts of one certificate; its signature is not looked at.
pub(super) struct Facts<'a> {
    pub(super) validity: Validity,
    pub(super) is_ca: bool,
    /// Of a CA: how many CAs may stand between it and a leaf, where that is bounded.
    pub(super) most_below: Option<usize>,
    uris: Vec<&'a [u8]>,
    /// The first byte of the key usage's bits.
    key_usage: Option<u8>,
    rsa_bits: Option<usize>,
}

impl<'a> Facts<'a> {
    /// Reads them (RFC 5280 §4.1); `None` where the bytes are no certificate.
    pub(super) fn read(certificate: &'a [u8]) -> Option<Self> {
        let mut certificate = Der(certificate).inside(SEQUENCE)?.inside(SEQUENCE)?;
        // Certificates of version 1, as some roots are, have neither a version nor extensions.
        certificate.expect(VERSION);
        certificate.expect(INTEGER)?;
        certificate.expect(SEQUENCE)?; // signature algorithm
        certificate.expect(SEQUENCE)?; // issuer
        let mut dates = certificate.inside(SEQUENCE)?;
        let validity = Validity { from: dates.time()?, until: dates.time()? };
        certificate.expect(SEQUENCE)?; // subject
        let rsa_bits = rsa_bits(certificate.inside(SEQUENCE)?);
        let mut facts = Self { validity, is_ca: false, most_below: None, uris: Vec::new(), key_usage: None, rsa_bits };
        while let Some((tag, content)) = certificate.any() {
            if tag == EXTENSIONS {
                let mut extensions = Der(content).inside(SEQUENCE)?;
                while let Some(extension) = extensions.inside(SEQUENCE) {
                    facts.take(extension)?;
                }
            }
        }
        Some(facts)
    }

    fn take(&mut self, mut extension: Der<'a>) -> Option<()> {
        let oid = extension.expect(OID)?;
        extension.expect(BOOLEAN); // critical
        let mut value = Der(extension.expect(OCTET_STRING)?);
        match oid {
            KEY_USAGE => self.key_usage = Some(value.expect(BIT_STRING)?.get(1).copied().unwrap_or_default()),
            BASIC_CONSTRAINTS => {
                let mut constraints = value.inside(SEQUENCE)?;
                self.is_ca = constraints.expect(BOOLEAN).is_some_and(|value| value != [0]);
                let digits = constraints.expect(INTEGER);
                let number = |sum: usize, digit: &u8| sum.saturating_mul(256).saturating_add((*digit).into());
                self.most_below = digits.map(|digits| digits.iter().fold(0, number));
            }
            SUBJECT_ALT_NAME => {
                let mut names = value.inside(SEQUENCE)?;
                while !names.0.is_empty() {
                    let (tag, name) = names.any()?;
                    if tag == URI {
                        self.uris.push(name);
                    }
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Whom it names: exactly one URI, which is a SPIFFE ID with a path (X509-SVID §2 and §5.2).
    ///
    /// # Errors
    /// `NoId`, `SeveralIds` or `BadId`.
    pub(super) fn id(&self) -> Result<SpiffeId, Untrusted> {
        let uri = match self.uris[..] {
            [] => return Err(Untrusted::NoId),
            [uri] => uri,
            _ => return Err(Untrusted::SeveralIds { count: self.uris.len() }),
        };
        let bad = |why: &str| Untrusted::BadId { id: shown(uri), why: why.to_owned() };
        let id: SpiffeId = std::str::from_utf8(uri)
            .map_err(|_| bad("it is not ASCII"))?
            .parse()
            .map_err(|why: crate::spiffe::NotSpiffe| bad(&why.to_string()))?;
        if id.path().is_empty() {
            return Err(bad("a workload's has a path; this is the trust domain's own"));
        }
        Ok(id)
    }

    /// Whether a workload may show it in a handshake (X509-SVID §4.1 and §4.3, RFC 8446 §4.4.2.2).
    ///
    /// # Errors
    /// `LeafIsCa`, `NotForThis` or `Weak`.
    pub(super) fn is_a_workloads(&self, role: Role) -> Result<(), Untrusted> {
        let usage = self.key_usage.unwrap_or(DIGITAL_SIGNATURE);
        if self.is_ca || usage & (SIGNS_CERTIFICATES | SIGNS_CRLS) != 0 {
            return Err(Untrusted::LeafIsCa);
        }
        if usage & DIGITAL_SIGNATURE == 0 {
            return Err(Untrusted::NotForThis { role });
        }
        if self.has_weak_key() { Err(Untrusted::Weak) } else { Ok(()) }
    }

    /// Whether its key may sign certificates: a CA that says nothing of its use may do all (RFC 5280 §4.2.1.3).
    pub(super) fn signs_certificates(&self) -> bool {
        self.key_usage.is_none_or(|usage| usage & SIGNS_CERTIFICATES != 0)
    }

    pub(super) fn has_weak_key(&self) -> bool {
        self.rsa_bits.is_some_and(|bits| bits < SMALLEST_RSA)
    }
}

/// From when a CRL counts and when the next is due (RFC 5280 §5.1.2).
pub(super) fn crl_validity(crl: &[u8]) -> Option<Validity> {
    let mut list = Der(crl).inside(SEQUENCE)?.inside(SEQUENCE)?;
    list.expect(INTEGER); // version
    list.expect(SEQUENCE)?; // signature algorithm
    list.expect(SEQUENCE)?; // issuer
    Some(Validity { from: list.time()?, until: list.time()? })
}

/// The length of an RSA key's modulus (RFC 3279 §2.3.1); `None` for keys of other kinds.
fn rsa_bits(mut key: Der<'_>) -> Option<usize> {
    if key.inside(SEQUENCE)?.expect(OID)? != RSA {
        return None;
    }
    let (_, bits) = key.expect(BIT_STRING)?.split_first()?;
    let modulus = Der(bits).inside(SEQUENCE)?.expect(INTEGER)?;
    let zeros = modulus.iter().take_while(|byte| **byte == 0).count();
    let top = modulus.get(zeros)?.leading_zeros() as usize;
    Some((modulus.len() - zeros) * 8 - top)
}

/// A stranger's bytes for a line of ours: short, and in printable ASCII.
fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 80;
    let cut = bytes.get(..LONGEST).unwrap_or(bytes);
    let dots = if cut.len() < bytes.len() { "…" } else { "" };
    format!("{}{dots}", cut.escape_ascii())
}
