//! Lists of the revoked beside the CAs that are known when an identity is made. webpki goes by an issuer's name: a list that
//! another key has signed would have nobody of that name believed, and a list of a stranger would revoke nobody, unsaid.

use std::collections::HashSet;

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

/// A CA whose name a list has that it has not signed.
struct Without<'a> {
    place: String,
    name: &'a X509Name<'a>,
    key: &'a [u8],
}

/// Whether one of `authorities` has signed a list, wherever any of its name has one; warnings of those whose lists are all a
/// namesake's, as while a CA gets another key, and of lists that no CA known here can have signed.
///
/// # Errors
/// One line for the first list of a name by which nobody who is known has signed any.
pub(super) fn fit<'a>(
    crls: &[Sourced<Vec<CertificateRevocationListDer<'_>>>],
    authorities: impl Iterator<Item = &'a CertificateDer<'static>>,
) -> Result<Vec<String>, String> {
    let mut lists = read(crls);
    if lists.is_empty() {
        return Ok(Vec::new());
    }
    let authorities: Vec<_> = authorities.filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    let (mut without, mut signers): (Vec<Without<'_>>, HashSet<&[u8]>) = Default::default();
    for authority in &authorities {
        let (mut first, mut fits) = (None, false);
        for list in lists.iter_mut().filter(|list| list.it.issuer().as_raw() == authority.subject().as_raw()) {
            list.known = true;
            // What is signed in a way that is not known here is left to webpki.
            let verdict = list.it.verify_signature(authority.public_key());
            fits |= !matches!(verdict, Err(X509Error::SignatureVerificationError));
            first.get_or_insert_with(|| list.place.clone());
        }
        if fits {
            signers.insert(authority.subject().as_raw());
        } else if let Some(place) = first {
            without.push(Without { place, name: authority.subject(), key: authority.public_key().raw });
        }
    }
    // The same CA may be there twice: a root under two domains, or cross-signed.
    let mut told = HashSet::new();
    without.retain(|without| told.insert((without.name.as_raw(), without.key)));
    if let Some(unsigned) = without.iter().find(|without| !signers.contains(without.name.as_raw())) {
        return Err(unsigned.refused());
    }
    let strangers = lists.iter().filter(|list| !list.known).map(|List { place, it, .. }| stranger(place, it.issuer()));
    Ok(without.iter().map(Without::warning).chain(strangers).collect())
}

impl Without<'_> {
    fn refused(&self) -> String {
        format!(
            "{}: is not signed by the CA whose name it has, `{}`, nor is another one: nobody that this CA has issued would \
             be believed",
            self.place,
            shown(self.name)
        )
    }

    fn warning(&self) -> String {
        format!(
            "{}: is of one CA called `{}`, and another of that name is known that has signed no CRL: nobody that the other \
             has issued is believed until its CRL is here too",
            self.place,
            shown(self.name)
        )
    }
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
