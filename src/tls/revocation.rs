//! Lists of the revoked beside the CAs that are known when an identity is made. webpki goes by an issuer's name: a list that
//! another key has signed would have nobody of that name believed, and a list of a stranger would revoke nobody, unsaid.

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Name;

use super::material::Sourced;

/// Characters of a name.
const MOST_WORDS: usize = 200;

struct List<'a> {
    /// Which it is, as `crl.pem: CRL 2`.
    place: String,
    it: CertificateRevocationList<'a>,
    /// Whether any CA that is known has its issuer's name.
    known: bool,
}

/// Whether each of `authorities` has a list that it signed, if any has its name; warnings of lists that no CA known here
/// can have signed.
///
/// # Errors
/// One line for the first list of a CA that it did not sign, where that CA has no better one.
pub(super) fn fit<'a>(
    crls: &[Sourced<Vec<CertificateRevocationListDer<'_>>>],
    authorities: impl Iterator<Item = &'a CertificateDer<'static>>,
) -> Result<Vec<String>, String> {
    let mut lists = read(crls);
    if lists.is_empty() {
        return Ok(Vec::new());
    }
    for authority in authorities {
        let Ok((_, authority)) = X509Certificate::from_der(authority) else { continue };
        let (mut first, mut fits) = (None, false);
        for list in lists.iter_mut().filter(|list| list.it.issuer().as_raw() == authority.subject().as_raw()) {
            list.known = true;
            // What is signed in a way that is not known here is left to webpki.
            let verdict = list.it.verify_signature(authority.public_key());
            fits |= !matches!(verdict, Err(X509Error::SignatureVerificationError));
            first.get_or_insert_with(|| list.place.clone());
        }
        if let Some(place) = first.filter(|_| !fits) {
            return Err(format!(
                "{place}: is not signed by the CA whose name it has, `{}`, nor is another one: nobody that this CA has \
                 issued would be believed",
                shown(authority.subject())
            ));
        }
    }
    let strangers = lists.iter().filter(|list| !list.known);
    Ok(strangers.map(|List { place, it, .. }| stranger(place, it.issuer())).collect())
}

fn read<'a>(crls: &'a [Sourced<Vec<CertificateRevocationListDer<'_>>>]) -> Vec<List<'a>> {
    let all = crls.iter().flat_map(|Sourced { origin, it }| it.iter().enumerate().map(move |list| (origin, list)));
    all.filter_map(|(origin, (index, crl))| {
        let (_, it) = CertificateRevocationList::from_der(crl).ok()?;
        Some(List { place: format!("{origin}: CRL {}", index + 1), it, known: false })
    })
    .collect()
}

fn stranger(place: &str, issuer: &X509Name<'_>) -> String {
    format!(
        "{place}: is of `{}`, which is none of the roots and no CA of our own chain: it counts only for certificates that \
         come with that CA",
        shown(issuer)
    )
}

/// A name for a line of ours.
fn shown(name: &X509Name<'_>) -> String {
    name.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).take(MOST_WORDS).collect()
}
