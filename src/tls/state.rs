//! What `/state` and `/metrics` show of the identity in force; never a secret.

use std::collections::BTreeMap;

use serde::Serialize;

use super::expiry::{Expiry, Of, stamp};
use super::store::{IdentityStore, News};
use crate::telemetry::stamp::Stamp;

/// An identity as it is now.
#[derive(Clone, Debug, Serialize)]
pub struct IdentityState {
    /// Who this sidecar is.
    pub id: String,
    /// SHA-256 of its certificate.
    pub fingerprint: String,
    /// Where its certificate came from.
    pub source: String,
    /// When its parts expire.
    pub expiries: Vec<ExpiryState>,
    /// What became of replacements last.
    #[serde(flatten)]
    pub news: News,
    /// Replacements taken.
    pub rotations: u64,
    /// Replacements refused.
    pub refusals: u64,
}

/// When a part expires.
#[derive(Clone, Debug, Serialize)]
pub struct ExpiryState {
    /// `leaf`, `root` or `crl`.
    pub of: &'static str,
    /// A root's trust domain, a CRL's file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Its last second.
    pub expires: Stamp,
    /// The same for metrics.
    #[serde(skip)]
    pub unix: u64,
}

impl IdentityState {
    /// As of now; `None` as long as there is none.
    pub fn of(store: &IdentityStore) -> Option<Self> {
        let identity = store.current()?;
        Some(Self {
            id: identity.id().to_string(),
            fingerprint: identity.fingerprint(),
            source: identity.origin().to_owned(),
            expiries: identity.expiries().iter().map(ExpiryState::new).collect(),
            news: store.news(),
            rotations: store.rotations.get(),
            refusals: store.refusals.get(),
        })
    }

    /// The first expiry of each kind, and of roots for each trust domain: unix time by kind and trust domain.
    pub fn first_expiries(&self) -> BTreeMap<(&'static str, &str), u64> {
        let mut first = BTreeMap::new();
        for ExpiryState { of, from, unix, .. } in &self.expiries {
            let domain = from.as_deref().filter(|_| *of == "root").unwrap_or_default();
            let known = first.entry((*of, domain)).or_insert(*unix);
            *known = (*known).min(*unix);
        }
        first
    }
}

impl ExpiryState {
    fn new(expiry: &Expiry) -> Self {
        let (of, from) = match &expiry.of {
            Of::Leaf => ("leaf", None),
            Of::Root(domain) => ("root", Some(domain.to_string())),
            Of::Crl(origin) => ("crl", Some(origin.to_string())),
        };
        let until = expiry.validity.until;
        Self { of, from, expires: stamp(until), unix: until.as_secs() }
    }
}
