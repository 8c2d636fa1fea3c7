//! Where this sidecar's own identity comes from, and whom it trusts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::Addr;
use crate::spiffe::SpiffeId;

/// Where an identity comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentityPlan {
    /// Files, which are there at the start.
    Files(FilesPlan),
    /// SPIFFE's Workload API, which brings it, and the next ones, when it likes.
    WorkloadApi(WorkloadApiPlan),
}

/// The files of an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesPlan {
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

impl FilesPlan {
    /// Where all of them are.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
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

/// An agent that speaks the Workload API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApiPlan {
    /// Where it listens; only this machine reaches it.
    pub agent: Addr,
    /// Which of several identities is the own one; `None` for the first, which is the default one by the standard.
    pub id: Option<SpiffeId>,
    /// Whether TLS 1.2 is spoken with whoever has no 1.3.
    pub tls12: bool,
}

impl IdentityPlan {
    /// The files, where it comes from files.
    pub fn files(&self) -> Option<&FilesPlan> {
        match self {
            Self::Files(files) => Some(files),
            Self::WorkloadApi(_) => None,
        }
    }
}
