//! Reads certificates and keys from PEM files; every error names the file and what was expected in it.

use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Every certificate in a file, in its order; at least one.
///
/// # Errors
/// One line: the file cannot be read, is not PEM, or holds no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        found.push(certificate.map_err(|error| format!("{}: not a PEM certificate: {error}", path.display()))?);
    }
    if found.is_empty() {
        return Err(format!("{}: expected at least one PEM certificate (BEGIN CERTIFICATE)", path.display()));
    }
    Ok(found)
}

/// The first private key in a file: PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
/// One line: the file cannot be read or holds no private key. The text never holds a byte of the key.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    PrivateKeyDer::from_pem_slice(&read(path)?)
        .map_err(|_| format!("{}: expected a PEM private key (PKCS#8, PKCS#1 or SEC1)", path.display()))
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file_and_what_was_expected() {
        let missing = Path::new("/nonexistent/roots.pem");
        assert!(certificates(missing).unwrap_err().starts_with("/nonexistent/roots.pem: "));
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(certificates(&other).unwrap_err().contains("expected at least one PEM certificate"));
        assert!(private_key(&other).unwrap_err().contains("expected a PEM private key"));
    }
}
