//! `Trust`: whose roots vouch for which trust domain, and the judgement of a chain by the X509-SVID standard.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{
    Cert, CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptions, RevocationOptionsBuilder,
    UnknownStatusPolicy, VerifiedPath,
};

use super::facts::{Facts, Validity};
use super::judged::{self, Judged};
use super::untrusted::{Role, Untrusted};
use crate::spiffe::SpiffeId;

/// Whom to believe.
pub struct Trust {
    domains: Vec<Domain>,
    crls: Vec<CertRevocationList<'static>>,
    /// Places in `crls`, each layer with one CRL of every issuer that has any. Of CRLs that compete, because a CA was
    /// renewed under its old name or an old list was left beside the new, webpki looks only at the first it is given.
    layers: Vec<Vec<usize>>,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
    /// Chains that were found good, where nobody is revoked: a CRL has dates of its own.
    judged: Judged,
}

/// The roots of one trust domain.
pub(super) struct Domain {
    pub(super) name: Arc<str>,
    pub(super) anchors: Vec<TrustAnchor<'static>>,
    /// When each of them is valid, in their order.
    pub(super) validity: Vec<Validity>,
    /// How many CAs each allows below it, where it says so.
    pub(super) most_below: Vec<Option<usize>>,
}

impl Trust {
    /// Believes the roots of `domains` but for whom `crls` revoke.
    pub(super) fn new(
        domains: Vec<Domain>,
        crls: Vec<CertRevocationList<'static>>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Self {
        let layers = layers(&crls);
        Self { domains, crls, layers, algorithms, judged: Judged::default() }
    }

    /// Whether there is any list of the revoked.
    pub(super) fn revokes(&self) -> bool {
        !self.crls.is_empty()
    }

    /// Who the holder of `leaf` is, if the roots of its own trust domain vouch for it at `now`. Nothing but the one
    /// URI counts as identity: no common name, no DNS name (X509-SVID §5).
    ///
    /// # Errors
    /// The first rule that the certificate or its chain breaks.
    pub fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<SpiffeId, Untrusted> {
        if self.layers.is_empty() {
            return self.judge_once(leaf, intermediates, role, now);
        }
        let mut refused = None;
        for layer in &self.layers {
            let crls: Vec<_> = layer.iter().filter_map(|at| self.crls.get(*at)).collect();
            match self.judge_with(leaf, intermediates, role, now, revocation(&crls)) {
                Err(why) if why != Untrusted::Revoked => drop(refused.get_or_insert(why)),
                verdict => return verdict,
            }
        }
        Err(refused.unwrap_or(Untrusted::UnknownRevocation))
    }

    /// Where nobody is revoked: signatures are checked once, dates always. A handshake asks twice, a resumed one again.
    fn judge_once(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<SpiffeId, Untrusted> {
        let shown = judged::shown(role, leaf, intermediates);
        if let Some(id) = self.judged.find(&shown, now) {
            return Ok(id);
        }
        let id = self.judge_with(leaf, intermediates, role, now, None)?;
        let roots = self.domains.iter().find(|domain| *domain.name == *id.trust_domain());
        let chain = std::iter::once(leaf).chain(intermediates).map(judged::validity_of);
        let roots = roots.map_or(&[][..], |domain| &domain.validity);
        self.judged.keep(shown, &id, judged::while_all_hold(chain, roots, now));
        Ok(id)
    }

    /// The same as if nobody were revoked.
    pub(super) fn judge_signatures(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Result<SpiffeId, Untrusted> {
        self.judge_with(leaf, intermediates, role, now, None)
    }

    fn judge_with(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<SpiffeId, Untrusted> {
        // webpki's reading is the stricter one (no extension twice, minimal lengths), so it comes first.
        let certificate = EndEntityCert::try_from(leaf).map_err(|error| told(error, role))?;
        let facts = Facts::read(leaf).ok_or(Untrusted::BadEncoding)?;
        let id = facts.id()?;
        facts.is_a_workloads(role)?;
        let domain = self.domains.iter().find(|domain| *domain.name == *id.trust_domain());
        let domain = domain.ok_or_else(|| Untrusted::TrustDomain { id: id.clone() })?;
        let asked = Asked { role, now, algorithms: self.algorithms, revocation };
        domain.vouches(&certificate, intermediates, asked, &|path| self.check_competing(path))?;
        Ok(id)
    }

    /// Where lists compete, webpki has seen one good list of each issuer; here all of that issuer's name count,
    /// because a serial number that any of them has is none to be believed.
    fn check_competing(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        if self.layers.len() < 2 {
            return Ok(());
        }
        let leaf: &Cert<'_> = path.end_entity();
        for certificate in path.intermediate_certificates().chain([leaf]) {
            for crl in self.crls.iter().filter(|crl| crl.issuer() == certificate.issuer()) {
                if crl.find_serial(certificate.serial())?.is_some() {
                    return Err(webpki::Error::CertRevoked);
                }
            }
        }
        Ok(())
    }
}

/// What a chain is wanted for, and by what it is judged.
struct Asked<'a> {
    role: Role,
    now: UnixTime,
    algorithms: WebPkiSupportedAlgorithms,
    revocation: Option<RevocationOptions<'a>>,
}

impl Domain {
    /// Without roots.
    pub(super) fn new(name: Arc<str>) -> Self {
        Self { name, anchors: Vec::new(), validity: Vec::new(), most_below: Vec::new() }
    }

    /// Takes a root, and says when it is valid.
    ///
    /// # Errors
    /// As [`usable_root`].
    pub(super) fn add(&mut self, root: &CertificateDer<'static>) -> Result<Validity, &'static str> {
        let (facts, anchor) = root_of(root)?;
        self.anchors.push(anchor);
        self.validity.push(facts.validity);
        self.most_below.push(facts.most_below);
        Ok(facts.validity)
    }

    /// Whether a root vouches for a certificate by way of `intermediates`; `also` may refuse a way.
    fn vouches(
        &self,
        certificate: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        asked: Asked<'_>,
        also: &dyn Fn(&VerifiedPath<'_>) -> Result<(), webpki::Error>,
    ) -> Result<(), Untrusted> {
        if intermediates.iter().any(|issuer| Facts::read(issuer).is_some_and(|facts| facts.has_weak_key())) {
            return Err(Untrusted::Weak);
        }
        let Asked { role, now, algorithms, revocation } = asked;
        let usage = match role {
            Role::Client => KeyUsage::client_auth(),
            Role::Server => KeyUsage::server_auth(),
        };
        let check = |path: &VerifiedPath<'_>| {
            check_issuers(path)?;
            self.check_root(path, now)?;
            also(path)
        };
        certificate
            .verify_for_usage(algorithms.all, &self.anchors, intermediates, now, usage, revocation, Some(&check))
            .map_err(|error| told(error, role))?;
        Ok(())
    }

    /// webpki never looks at a root's dates, nor at how many CAs it allows below it; OpenSSL and Go do, and so the whole
    /// mesh judges alike. A CA that only passes its own name on to a new key is not counted (RFC 5280 §6.1.4).
    fn check_root(&self, path: &VerifiedPath<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let below = path.intermediate_certificates().filter(|issuer| issuer.subject() != issuer.issuer()).count();
        let mut verdict = Ok(());
        let roots = self.anchors.iter().zip(&self.validity).zip(&self.most_below);
        for ((_, validity), most) in roots.filter(|((anchor, _), _)| *anchor == path.anchor()) {
            verdict = match most {
                Some(most) if below > *most => Err(webpki::Error::PathLenConstraintViolated),
                _ => validity.check(now),
            };
            // The same root with other dates is another certificate: one that allows it is enough.
            if verdict.is_ok() {
                break;
            }
        }
        verdict
    }
}

/// webpki asks of an issuer that it is a CA, and not what its key is for (RFC 5280 §6.1.4 (n), X509-SVID §4.3).
fn check_issuers(path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
    let signs = |issuer: &Cert<'_>| Facts::read(&issuer.der()).is_some_and(|facts| facts.signs_certificates());
    match path.intermediate_certificates().all(signs) {
        true => Ok(()),
        false => Err(webpki::Error::EndEntityUsedAsCa),
    }
}

/// Whether one of `roots` vouches for the first of `chain` at `now` as for a server, whose names are not looked at: the
/// rules are those by which the mesh is judged. Roots that cannot be used count for nothing.
///
/// # Errors
/// The first rule that the chain breaks.
pub fn verify(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'static>],
    algorithms: WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Untrusted> {
    let (leaf, intermediates) = chain.split_first().ok_or(Untrusted::NoCertificate)?;
    let role = Role::Server;
    let certificate = EndEntityCert::try_from(leaf).map_err(|error| told(error, role))?;
    let mut domain = Domain::new("".into());
    for root in roots {
        // Why one cannot be used is told of elsewhere.
        let _ = domain.add(root);
    }
    domain.vouches(&certificate, intermediates, Asked { role, now, algorithms, revocation: None }, &|_| Ok(()))
}

/// Whether a certificate can be a root at all.
///
/// # Errors
/// Why not, to follow "a root".
pub fn usable_root(root: &CertificateDer<'static>) -> Result<(), &'static str> {
    root_of(root).map(drop)
}

fn root_of<'a>(root: &'a CertificateDer<'static>) -> Result<(Facts<'a>, TrustAnchor<'static>), &'static str> {
    let facts = Facts::read(root).ok_or("cannot be read")?;
    if !facts.is_ca {
        return Err("is no CA, so it cannot be a root");
    }
    if !facts.signs_certificates() {
        return Err("may not issue any: its key usage lists no keyCertSign, so it cannot be a root");
    }
    if facts.has_weak_key() {
        return Err("has an RSA key under 2048 bits, which is refused");
    }
    let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| "cannot be read")?.to_owned();
    Ok((facts, anchor))
}

/// What competes is of one issuer and of one scope (RFC 5280 §5.2.5).
fn layers(crls: &[CertRevocationList<'_>]) -> Vec<Vec<usize>> {
    let mut competing: Vec<Vec<usize>> = Vec::new();
    for (at, crl) in crls.iter().enumerate() {
        let scope = |crl: &CertRevocationList<'_>| {
            (crl.issuer().to_vec(), crl.issuing_distribution_point().map(<[u8]>::to_vec))
        };
        let known = competing.iter_mut().find(|known| {
            known.first().and_then(|first| crls.get(*first)).is_some_and(|first| scope(first) == scope(crl))
        });
        match known {
            Some(known) => known.push(at),
            None => competing.push(vec![at]),
        }
    }
    let deepest = competing.iter().map(Vec::len).max().unwrap_or_default();
    let layer = |depth| competing.iter().filter_map(move |these| these.iter().cycle().nth(depth).copied()).collect();
    (0..deepest).map(layer).collect()
}

/// The whole chain is looked up. An issuer without a CRL among the files revokes nobody; one whose CRL is there is
/// believed only while that is in date, because a CRL held back would bring the revoked back. webpki goes by the
/// issuer's name, so a CA that was renewed under its old name needs a CRL as soon as its predecessor has one.
fn revocation<'a>(crls: &'a [&'a CertRevocationList<'a>]) -> Option<RevocationOptions<'a>> {
    let options = RevocationOptionsBuilder::new(crls).ok()?;
    Some(
        options
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Enforce)
            .build(),
    )
}

/// What webpki found wrong, in our words.
fn told(error: webpki::Error, role: Role) -> Untrusted {
    use webpki::Error as E;
    match error {
        E::CertExpired { not_after, .. } => Untrusted::Expired { since: not_after },
        E::CertNotValidYet { not_before, .. } => Untrusted::NotYetValid { from: not_before },
        // A root of the same name with another key is another root.
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => Untrusted::UnknownIssuer,
        E::CaUsedAsEndEntity => Untrusted::LeafIsCa,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => Untrusted::NotForThis { role },
        E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            Untrusted::Weak
        }
        E::UnsupportedCriticalExtension => Untrusted::CriticalExtension,
        E::CertRevoked => Untrusted::Revoked,
        E::CrlExpired { next_update, .. } => Untrusted::StaleRevocation { since: next_update },
        E::UnknownRevocationStatus
        | E::InvalidCrlSignatureForPublicKey
        | E::IssuerNotCrlSigner
        | E::UnsupportedCrlSignatureAlgorithmContext(_)
        | E::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_) => Untrusted::UnknownRevocation,
        E::EndEntityUsedAsCa => Untrusted::Chain("one that signed is no CA, or its key usage lists no keyCertSign"),
        E::PathLenConstraintViolated => Untrusted::Chain("a CA allows fewer CAs below it"),
        E::NameConstraintViolation => Untrusted::Chain("a CA constrains names"),
        E::MaximumPathDepthExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded
        | E::MaximumNameConstraintComparisonsExceeded => Untrusted::Chain("too many certificates"),
        _ => Untrusted::BadEncoding,
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roots = self.domains.iter().map(|domain| (&domain.name, domain.anchors.len()));
        f.debug_struct("Trust").field("roots", &roots.collect::<Vec<_>>()).field("crls", &self.crls.len()).finish()
    }
}
