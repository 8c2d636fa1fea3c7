//! Where this sidecar's own identity is read from, and whom it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityPlan {
    /// PEM: the certificate with the SPIFFE ID, then the intermediates that lead to a root.
    pub certificate: PathBuf,
    /// PEM: its private key.
    pub key: PathBuf,
    /// The roots of each trust domain, at least those of the own one.
    pub roots: Vec<RootsPlan>,
    /// PEM: who is revoked.
    pub crls: Vec<PathBuf>,
    /// Whether TLS 1.2 is spoken with whoever has no 1.3.
    pub tls12: bool,
}

impl IdentityPlan {
    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let roots = self.roots.iter().map(|roots| &roots.file);
        [&self.certificate, &self.key].into_iter().chain(roots).chain(&self.crls).map(PathBuf::as_path)
    }
}

/// A file of roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootsPlan {
    /// Whose they are; `None` for the own trust domain.
    pub domain: Option<Arc<str>>,
    /// PEM: one or several.
    pub file: PathBuf,
}
