//! What an identity is made of, as read and not yet believed; each part knows where it came from, so that every
//! problem can name the place.

use std::path::Path;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use super::files;
use crate::plan::identity::{FilesPlan, RootsPlan};

/// Something and where it came from: a file, or a name for another source.
pub struct Sourced<T> {
    /// For messages, as `/etc/outrigger/roots.pem`.
    pub origin: String,
    /// The thing.
    pub it: T,
}

/// Roots of one trust domain.
pub struct Roots {
    /// Whose; `None` for the own trust domain.
    pub domain: Option<Arc<str>>,
    /// At least one.
    pub certificates: Sourced<Vec<CertificateDer<'static>>>,
}

/// The parts of an identity. Whoever has them from elsewhere than files fills this in.
pub struct Material {
    /// The leaf first.
    pub chain: Sourced<Vec<CertificateDer<'static>>>,
    /// The leaf's.
    pub key: Sourced<PrivateKeyDer<'static>>,
    /// One trust domain may have several entries.
    pub roots: Vec<Roots>,
    /// Who is revoked.
    pub crls: Vec<Sourced<Vec<CertificateRevocationListDer<'static>>>>,
    /// Whether TLS 1.2 is spoken with whoever has no 1.3.
    pub tls12: bool,
}

impl Material {
    /// Reads all files of `plan`, or nothing: a file that ends in the middle of something is an error.
    ///
    /// # Errors
    /// One line that names the file and what was expected of it.
    pub fn read(plan: &FilesPlan) -> Result<Self, String> {
        let roots = |RootsPlan { domain, file }: &RootsPlan| {
            Ok(Roots { domain: domain.clone(), certificates: sourced(file, files::certificates)? })
        };
        Ok(Self {
            chain: sourced(&plan.certificate, files::certificates)?,
            key: sourced(&plan.key, files::private_key)?,
            roots: plan.roots.iter().map(roots).collect::<Result<_, String>>()?,
            crls: plan.crls.iter().map(|file| sourced(file, files::crls)).collect::<Result<_, _>>()?,
            tls12: plan.tls12,
        })
    }
}

fn sourced<T>(file: &Path, read: impl Fn(&Path) -> Result<T, String>) -> Result<Sourced<T>, String> {
    Ok(Sourced { origin: file.display().to_string(), it: read(file)? })
}
