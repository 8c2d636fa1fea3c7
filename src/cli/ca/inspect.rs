//! `outrigger ca inspect`: what certificates are, from a file or from who answers at an address, in plain words.

use std::fmt::{self, Write as _};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::connect::{self, Asking};
use super::{Inspect, words};
use crate::files::open;
use crate::tls::certificate::{Facts, Link, NotSvid, link};
use crate::tls::{files, trust};

/// The largest file that is read: bundles of all public roots have a quarter of a MiB.
const LARGEST: u64 = 4 << 20;

/// What is said, and whether nothing is wrong.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) text: String,
    pub(super) sound: bool,
}

/// Looks at the target.
///
/// # Errors
/// One line: it cannot be read or reached, or is no certificate.
pub(super) fn run(asked: &Inspect, now: SystemTime) -> Result<Shown, String> {
    let roots = match &asked.roots {
        Some(path) => files::certificates(path)?,
        None => Vec::new(),
    };
    let path = Path::new(&asked.target);
    match connect::address(&asked.target) {
        Some((host, port)) if !path.exists() => {
            let client = match (&asked.cert, &asked.key) {
                (Some(chain), Some(key)) => Some((files::certificates(chain)?, files::private_key(key)?)),
                _ => None,
            };
            let seen = connect::look(Asking { host, port, name: asked.sni.clone(), client })?;
            Ok(with_server(&asked.target, &seen, &roots, now))
        }
        _ if !path.exists() => Err(format!("{}: no such file, and not HOST:PORT either", asked.target)),
        _ if asked.sni.is_some() || asked.cert.is_some() => {
            Err(format!("{}: this is a file: --sni, --cert and --key are for HOST:PORT", asked.target))
        }
        _ => in_file(path, &roots, now),
    }
}

fn with_server(target: &str, seen: &connect::Seen, roots: &[CertificateDer<'static>], now: SystemTime) -> Shown {
    let mut shown = chain(&seen.chain, roots, now);
    let mut text = format!("{target}\n");
    for line in &seen.lines {
        let _ = writeln!(text, "    {line}");
    }
    shown.text.insert_str(0, &text);
    shown.sound &= seen.accepted;
    shown
}

fn in_file(path: &Path, roots: &[CertificateDer<'static>], now: SystemTime) -> Result<Shown, String> {
    let at = |error: &dyn fmt::Display| format!("{}: {error}", path.display());
    let mut bytes = Vec::new();
    let (file, _) = open(path).map_err(|error| at(&error))?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(|error| at(&error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(at(&"larger than 4 MiB, so hardly a file of certificates"));
    }
    let (certificates, others) = sections(&bytes).map_err(|error| at(&error))?;
    let mut text = format!("{}\n", path.display());
    for other in &others {
        let _ = writeln!(text, "    {other}");
    }
    let shown = chain(&certificates, roots, now);
    Ok(Shown { text: text + &shown.text, sound: shown.sound })
}

/// The certificates of a file, and words for what else is in it.
fn sections(bytes: &[u8]) -> Result<(Vec<CertificateDer<'static>>, Vec<&'static str>), &'static str> {
    let (mut certificates, mut others) = (Vec::new(), Vec::new());
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
        // What the error says may be a line of a key.
        let (kind, der) = section.map_err(|_| "broken PEM: a block has no end or is not base64")?;
        match kind {
            SectionKind::Certificate => certificates.push(CertificateDer::from(der)),
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                others.push("a private key: not shown");
            }
            SectionKind::PublicKey => others.push("a public key"),
            SectionKind::Crl => others.push("a revocation list"),
            SectionKind::Csr => others.push("a request for a certificate"),
            _ => others.push("something else in PEM"),
        }
    }
    if bytes.windows(ENCRYPTED.len()).any(|window| window == ENCRYPTED) {
        others.push("an encrypted private key: not shown");
    }
    if certificates.is_empty() && others.is_empty() {
        let der = CertificateDer::from(bytes.to_vec());
        if Facts::read(&der).is_err() {
            return Err("neither a certificate nor a key, in PEM or DER");
        }
        certificates.push(der);
    }
    Ok((certificates, others))
}

const ENCRYPTED: &[u8] = b"-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// Each certificate in turn, and where there are roots whether the first verifies up to them.
fn chain(all: &[CertificateDer<'static>], roots: &[CertificateDer<'static>], now: SystemTime) -> Shown {
    let (mut text, mut sound) = (String::new(), true);
    for (at, der) in all.iter().enumerate() {
        let number = at + 1;
        match Facts::read(der) {
            Ok(facts) => {
                let (issuer, linked) = issuer(at, all, roots);
                let (standing, valid) = words::standing(&facts, now);
                sound &= linked && valid;
                block(&mut text, number, &facts, &standing, &issuer);
            }
            Err(error) => {
                sound = false;
                let _ = writeln!(text, "[{number}] {error}");
            }
        }
    }
    let leaf_first = all.first().is_some_and(|first| Facts::read(first).is_ok_and(|facts| !facts.is_ca));
    if leaf_first && !roots.is_empty() {
        let verdict = verified(all, roots, now);
        sound &= verdict.is_ok();
        let said = verdict.map_or_else(|why| format!("does NOT verify: {why}"), |()| "verifies".to_owned());
        let _ = writeln!(text, "the chain {said} up to the roots of --roots");
    }
    Shown { text, sound }
}

fn block(text: &mut String, number: usize, facts: &Facts, standing: &str, issuer: &str) {
    let kind = match (facts.is_ca, facts.path_length) {
        (false, _) => "leaf".to_owned(),
        (true, None) => "CA".to_owned(),
        (true, Some(0)) => "CA for leaves only".to_owned(),
        (true, Some(length)) => format!("CA with at most {length} more below it"),
    };
    let _ = writeln!(text, "[{number}] {kind}");
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "    {name:<11}{}", words::safe(value));
        }
    };
    line("subject", &facts.subject);
    line("issuer", &facts.issuer);
    match facts.spiffe_id() {
        Ok(id) => line("SPIFFE ID", id.as_str()),
        Err(_) => line("URI", &facts.uris.join(", ")),
    }
    line("DNS", &facts.dns.join(", "));
    line("IP", &facts.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    line("serial", &facts.serial);
    line("key", &facts.key);
    line("signature", &facts.signature);
    let (from, until) = (words::moment(facts.not_before), words::moment(facts.not_after));
    line("valid", &format!("{from} to {until}: {standing}"));
    line("signed by", issuer);
    line("X509-SVID", &svid(facts));
}

fn svid(facts: &Facts) -> String {
    match facts.svid() {
        Ok(_) => "yes".to_owned(),
        Err(NotSvid::Signs) if facts.is_ca => match facts.spiffe_id() {
            Ok(id) if id.path().is_empty() => format!("no, the CA of trust domain `{}`", id.trust_domain()),
            _ => "no, a CA".to_owned(),
        },
        Err(why) => format!("no: {why}"),
    }
}

/// Who signed the certificate at `at`, and whether nothing is wrong with that.
fn issuer(at: usize, all: &[CertificateDer<'static>], roots: &[CertificateDer<'static>]) -> (String, bool) {
    let Some(child) = all.get(at) else { return (String::new(), true) };
    let place = |number: usize| if number == at { "itself".to_owned() } else { format!("[{}]", number + 1) };
    let here = all.iter().enumerate().map(|(number, der)| (place(number), der));
    let given = roots.iter().map(|der| ("a root of --roots".to_owned(), der));
    let mut wrong = None;
    for (name, candidate) in here.chain(given) {
        let found = match link(child, candidate) {
            Ok(Link::Verified) => return (format!("{name}: verified"), true),
            Ok(Link::Stranger) | Err(_) => continue,
            Ok(Link::Forged) => (format!("NOT by {name}, whose name it gives: the signature does not fit"), false),
            Ok(Link::NotCa) if name == "itself" => {
                return ("itself, and it is not a CA's: whoever trusts it trusts it alone".into(), true);
            }
            Ok(Link::NotCa) => (format!("{name}, which may NOT issue any"), false),
            Ok(Link::Unknown) => (format!("{name} by name; signatures of this kind are not checked here"), true),
        };
        wrong.get_or_insert(found);
    }
    let absent = if roots.is_empty() {
        ("one that is not here: name it with --roots", true)
    } else {
        ("one that is neither here nor in --roots", false)
    };
    wrong.unwrap_or_else(|| (absent.0.to_owned(), absent.1))
}

/// Whether the first of `chain` verifies at `now` up to one of `roots` by way of the others, as a server's.
///
/// # Errors
/// Why it does not.
pub(super) fn verified(
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: SystemTime,
) -> Result<(), String> {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
    trust::verify(chain, roots, algorithms, UnixTime::since_unix_epoch(since)).map_err(|why| why.to_string())
}
