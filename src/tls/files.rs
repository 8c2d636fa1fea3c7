//! Reads certificates, keys and CRLs from PEM files; every error names the file and what was expected in it.

use std::path::Path;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use crate::files::MOST_PEM;

/// Every certificate in a file, in its order; at least one.
///
/// # Errors
/// One line: the file cannot be read, is not PEM, or holds no certificate.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read(path)?;
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        found.push(
            certificate.map_err(|error| format!("{}: not a PEM certificate: {}", path.display(), broken(&error)))?,
        );
    }
    if found.is_empty() {
        return Err(format!("{}: expected at least one PEM certificate (BEGIN CERTIFICATE)", path.display()));
    }
    Ok(found)
}

/// Every list of the revoked in a file; at least one.
///
/// # Errors
/// In the same way.
pub(super) fn crls(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(path)?;
    let mut found = Vec::new();
    for crl in CertificateRevocationListDer::pem_slice_iter(&bytes) {
        found.push(crl.map_err(|error| format!("{}: not a PEM CRL: {}", path.display(), broken(&error)))?);
    }
    if found.is_empty() {
        return Err(format!(
            "{}: expected at least one PEM CRL (BEGIN X509 CRL); of a DER one, `openssl crl -inform DER` makes it",
            path.display()
        ));
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

/// What is wrong with a block, without the reader's own words: these quote the file, and there may be a key in it.
fn broken(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a block has no END line of its own",
        pem::Error::IllegalSectionStart { .. } => "a BEGIN line has something else in it",
        pem::Error::Base64Decode(_) => "a block is not base64",
        pem::Error::SectionTooLarge => "a block is too large",
        _ => "it cannot be read",
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    crate::files::read(path, MOST_PEM).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertifiedKey, KeyPair};

    use super::*;

    #[test]
    fn an_error_names_the_file_and_what_was_expected() {
        let missing = Path::new("/nonexistent/roots.pem");
        assert!(certificates(missing).unwrap_err().starts_with("/nonexistent/roots.pem: "));
        let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert!(certificates(&other).unwrap_err().contains("expected at least one PEM certificate"));
        assert!(private_key(&other).unwrap_err().contains("expected a PEM private key"));
    }

    /// A file that holds certificate and key together, broken in every way that editing and templating break one.
    fn broken_files(pair: &CertifiedKey<KeyPair>) -> Vec<(&'static str, String)> {
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let both = |key: &str| format!("{certificate}{key}");
        let end = "-----END PRIVATE KEY-----";
        vec![
            ("no newlines in the key", both(&key.replace('\n', ""))),
            ("blanks for the key's newlines", both(&key.replace('\n', " "))),
            ("blanks for all newlines", both(&key).replace('\n', " ")),
            ("the key's first line joined", both(&key.replace("KEY-----\n", "KEY-----"))),
            ("no end of the key", both(key.split(end).next().unwrap())),
            ("a shorter end of the key", both(&key.replace(end, "-----END PRIVATE"))),
            ("no base64", both(&key.replacen("MIG", "M\u{e9}!", 1))),
            ("a line too few", both(&key.lines().filter(|line| !line.ends_with('=')).collect::<Vec<_>>().join("\n"))),
            ("dashes before the key", both(&key.replace("\nMIG", "\n-----BEGIN MIG"))),
            ("one long line", both(&format!("-----BEGIN {}", key.replace(['\n', '-'], "").repeat(3000)))),
            ("the key before the certificate", format!("{}{certificate}", key.replace('\n', " "))),
        ]
    }

    #[test]
    fn no_part_of_a_key_is_told_of_a_broken_file() {
        let pair = rcgen::generate_simple_self_signed(vec!["shop".to_owned()]).unwrap();
        let key = pair.signing_key.serialize_pem();
        let lines: Vec<&str> = key.lines().filter(|line| !line.starts_with('-')).collect();
        let text = lines.concat();
        let folder = std::env::temp_dir().join(format!("outrigger-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("both.pem");
        let mut refused = 0;
        for (name, content) in broken_files(&pair) {
            std::fs::write(&path, content).unwrap();
            let told = [certificates(&path).err(), private_key(&path).err(), crls(&path).err()];
            refused += told.iter().flatten().count();
            for told in told.into_iter().flatten() {
                assert!(told.starts_with(&path.display().to_string()) && told.len() < 400, "{name}: {told}");
                for part in text.as_bytes().windows(8) {
                    let bytes = format!("{part:?}");
                    let part = std::str::from_utf8(part).unwrap();
                    assert!(!told.contains(part) && !told.contains(bytes.trim_matches(['[', ']'])), "{name}: {told}");
                }
            }
        }
        assert!(refused > 20, "{refused}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
