//! `Judged`: chains that were found good under one `Trust`, so that who comes again costs no check of signatures. A
//! verdict depends on the bytes, the role and the time alone; of the time, on nothing but dates that are kept with it.

use std::collections::HashMap;

use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::facts::{Facts, Validity};
use super::untrusted::Role;
use crate::spiffe::SpiffeId;

/// Chains that are remembered; then all are forgotten at once, which costs a check for each that comes again.
const MOST: usize = 1024;

/// What was shown: SHA-256 over the role and the chain.
pub(super) type Shown = [u8; 32];

/// The chains that were found good.
#[derive(Default)]
pub(super) struct Judged(Mutex<HashMap<Shown, (SpiffeId, Validity)>>);

impl Judged {
    /// Who showed it, if it was found good and its dates still say so.
    pub(super) fn find(&self, shown: &Shown, now: UnixTime) -> Option<SpiffeId> {
        let known = self.0.lock();
        let (id, validity) = known.get(shown)?;
        validity.check(now).is_ok().then(|| id.clone())
    }

    /// Remembers a chain that was found good and is so for as long as `validity`, if it has any.
    pub(super) fn keep(&self, shown: Shown, id: &SpiffeId, validity: Option<Validity>) {
        let Some(validity) = validity else { return };
        let mut known = self.0.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(shown, (id.clone(), validity));
    }
}

/// The mark of a chain in a role.
pub(super) fn shown(role: Role, leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Shown {
    let mut sum = digest::Context::new(&digest::SHA256);
    sum.update(&[role as u8]);
    for certificate in std::iter::once(leaf).chain(intermediates) {
        sum.update(&certificate.len().to_be_bytes());
        sum.update(certificate);
    }
    let mut shown = [0; 32];
    shown.copy_from_slice(sum.finish().as_ref());
    shown
}

/// While all that was shown and all of `roots` that hold at `now` are valid: the path is one of these, whichever it is.
/// `None` where that is not sure.
pub(super) fn while_all_hold(
    chain: impl Iterator<Item = Option<Validity>>,
    roots: &[Validity],
    now: UnixTime,
) -> Option<Validity> {
    let holding = roots.iter().filter(|validity| validity.check(now).is_ok()).map(|validity| Some(*validity));
    let both = |one: Validity, two: Option<Validity>| {
        let two = two?;
        Some(Validity { from: one.from.max(two.from), until: one.until.min(two.until) })
    };
    let mut all = chain.chain(holding);
    let first = all.next()??;
    all.try_fold(first, both).filter(|validity| validity.check(now).is_ok())
}

/// When a certificate is valid, if it can be read.
pub(super) fn validity_of(certificate: &CertificateDer<'_>) -> Option<Validity> {
    Facts::read(certificate).map(|facts| facts.validity)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(second))
    }

    fn span(from: u64, until: u64) -> Validity {
        Validity { from: at(from), until: at(until) }
    }

    #[test]
    fn the_dates_of_all_that_may_have_counted() {
        let of = |chain: &[Option<Validity>], roots: &[Validity]| {
            while_all_hold(chain.iter().copied(), roots, at(50)).map(|it| (it.from.as_secs(), it.until.as_secs()))
        };
        assert_eq!(of(&[Some(span(10, 90)), Some(span(20, 80))], &[span(0, 99), span(0, 70)]), Some((20, 70)));
        // A root that does not hold now did not count; one that cannot be read may have.
        assert_eq!(of(&[Some(span(10, 90))], &[span(0, 40), span(60, 99), span(0, 99)]), Some((10, 90)));
        assert_eq!(of(&[Some(span(10, 90)), None], &[span(0, 99)]), None);
        // An intermediate that was not needed, and is out of date: not worth remembering.
        assert_eq!(of(&[Some(span(10, 90)), Some(span(10, 40))], &[span(0, 99)]), None);
        assert_eq!(of(&[], &[]), None);
    }

    #[test]
    fn no_more_than_so_many_are_remembered() {
        let (judged, id) = (Judged::default(), "spiffe://shop/a".parse::<SpiffeId>().unwrap());
        let mark = |number: usize| {
            let mut shown = [0; 32];
            shown[..8].copy_from_slice(&number.to_be_bytes());
            shown
        };
        for number in 0..3 * MOST + 1 {
            judged.keep(mark(number), &id, Some(span(0, 100)));
            assert!(judged.0.lock().len() <= MOST);
        }
        assert_eq!(judged.find(&mark(3 * MOST), at(100)), Some(id));
        assert_eq!((judged.find(&mark(3 * MOST), at(101)), judged.find(&mark(0), at(5))), (None, None));
    }
}
