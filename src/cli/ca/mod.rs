//! `outrigger ca`: a certificate authority for development and small meshes, and a look at certificates.

pub mod authority;
mod connect;
mod folder;
mod inspect;
#[cfg(test)]
mod testing;
pub(super) mod words;

use std::fmt::Write as _;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, Subcommand};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{DnsName, PrivateKeyDer};

use super::complain;
use crate::files::{MOST_PEM, read};
use crate::spiffe::{SpiffeId, is_trust_domain};
use crate::tls::certificate::Facts;
use crate::tls::files;
use authority::{Authority, Leaf, Wanted};
use folder::{Readers, Set};

/// The files of an authority.
const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const INTERMEDIATE: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate.key";

/// The files of a workload.
pub(super) const CERTIFICATE: &str = "cert.pem";
pub(super) const KEY: &str = "key.pem";
pub(super) const ROOTS: &str = "roots.pem";

const DAY: Duration = Duration::from_secs(86_400);

/// Longer than anybody watches the demo.
const THROWN_AWAY_AFTER: Duration = Duration::from_secs(30 * 86_400);

/// What the authority is asked to do.
#[derive(Subcommand)]
pub enum Command {
    /// Make the root of a trust domain; its key stays on this disk
    #[command(after_help = "Example: outrigger ca init --trust-domain shop --intermediate")]
    Init(Init),
    /// Make a service's certificate and key, or new ones in their place
    #[command(after_help = "Example: outrigger ca issue --service checkout --dns checkout.shop.internal")]
    Issue(Issue),
    /// Say what a certificate is, or who answers at an address, in plain words
    #[command(after_help = "Examples: outrigger ca inspect tls/checkout/cert.pem --roots ca/root.pem\n          \
        outrigger ca inspect 10.0.0.7:15006 --cert tls/web/cert.pem --key tls/web/key.pem\n\
        Exit codes: 0 nothing is wrong with it, 1 something is and was said.")]
    Inspect(Inspect),
}

/// `ca init`.
#[derive(Args)]
pub struct Init {
    /// Where its files go: root.pem, root.key and perhaps intermediate.pem, intermediate.key
    #[arg(long, default_value = "ca")]
    dir: PathBuf,
    /// The trust domain, the first part of every SPIFFE ID of the mesh
    #[arg(long, default_value = "mesh.local", value_parser = trust_domain, value_name = "NAME")]
    trust_domain: String,
    /// Make an intermediate that signs, so that root.key can be kept elsewhere
    #[arg(long)]
    intermediate: bool,
    /// How many days it is valid
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
}

/// `ca issue`.
#[derive(Args)]
pub struct Issue {
    /// The service: its SPIFFE ID is spiffe://TRUST-DOMAIN/SERVICE
    #[arg(long, required_unless_present = "id", value_parser = service)]
    service: Option<String>,
    /// The trust domain [default: the CA's own]
    #[arg(long, conflicts_with = "id", value_parser = trust_domain, value_name = "NAME")]
    trust_domain: Option<String>,
    /// The whole SPIFFE ID instead
    #[arg(long, value_name = "SPIFFE-ID")]
    id: Option<SpiffeId>,
    /// A DNS name that it is valid for too, for clients that know no SPIFFE; more than once if needed
    #[arg(long, value_name = "NAME", value_parser = dns_name)]
    dns: Vec<String>,
    /// An IP address that it is valid for too; more than once if needed
    #[arg(long, value_name = "ADDR")]
    ip: Vec<IpAddr>,
    /// How long it is valid
    #[arg(long, default_value = "24h", value_parser = super::duration, value_name = "TIME")]
    ttl: Duration,
    /// Where the authority's files are
    #[arg(long, default_value = "ca", value_name = "DIR")]
    ca: PathBuf,
    /// Where cert.pem, key.pem and roots.pem go [default: tls/SERVICE]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `ca inspect`.
#[derive(Args)]
pub struct Inspect {
    /// A file of certificates (PEM or DER), or an address to connect to
    #[arg(value_name = "FILE|HOST:PORT")]
    target: String,
    /// The name to ask the server for [default: HOST]
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// Whom to trust: says whether the chain verifies up to one of these
    #[arg(long, value_name = "FILE")]
    roots: Option<PathBuf>,
    /// The certificate to show to a server that asks for one
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

fn trust_domain(text: &str) -> Result<String, String> {
    let why = "a trust domain has lower-case letters, digits, `.`, `-` and `_`, as in `shop.internal`";
    if is_trust_domain(text) { Ok(text.to_owned()) } else { Err(why.to_owned()) }
}

fn service(text: &str) -> Result<String, String> {
    let id: Result<SpiffeId, _> = format!("spiffe://domain/{text}").parse();
    id.map(|_| text.to_owned()).map_err(|error| error.to_string())
}

fn dns_name(text: &str) -> Result<String, String> {
    let exact = text.strip_prefix("*.").unwrap_or(text);
    DnsName::try_from(exact).map(|_| text.to_owned()).map_err(|_| {
        let hint = if text.parse::<IpAddr>().is_ok() { "; for an address there is --ip" } else { "" };
        format!("not a DNS name{hint}")
    })
}

/// Runs the command at the moment `now`. Exit codes: 0 done, 1 something is wrong and was said.
pub fn run(command: Command, now: SystemTime, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let done = match command {
        Command::Init(init) => init.run(now).map(|text| (text, true)),
        Command::Issue(issue) => issue.run(now).map(|text| (text, true)),
        Command::Inspect(asked) => inspect::run(&asked, now).map(|shown| (shown.text, shown.sound)),
    };
    match done {
        Ok((text, fine)) => match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) if fine => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Err(why) => complain(err, &why),
    }
}

impl Init {
    fn run(&self, now: SystemTime) -> Result<String, String> {
        let mut set = Set::open(&self.dir)?;
        for name in [ROOT, ROOT_KEY, INTERMEDIATE, INTERMEDIATE_KEY] {
            let path = set.path(name);
            if path.symlink_metadata().is_ok() {
                return Err(folder::taken(&path));
            }
        }
        let made = authority::found(&self.trust_domain, DAY * self.days, self.intermediate, now)?;
        set.add(ROOT, &made.root.certificate, Readers::All)?;
        set.add(ROOT_KEY, &made.root.key, Readers::Owner)?;
        if let Some(below) = &made.intermediate {
            set.add(INTERMEDIATE, &below.certificate, Readers::All)?;
            set.add(INTERMEDIATE_KEY, &below.key, Readers::Owner)?;
        }
        set.create()?;
        let (at, until) = (|name: &str| self.dir.join(name), words::moment(made.root.until));
        let mut text = format!(
            "{}: the root of trust domain `{}`, until {until} ({} days)\n{}: its key; whoever reads it can be anyone in the mesh\n",
            at(ROOT).display(),
            self.trust_domain,
            self.days,
            at(ROOT_KEY).display()
        );
        if made.intermediate.is_some() {
            let (certificate, key) = (at(INTERMEDIATE), at(INTERMEDIATE_KEY));
            let _ = writeln!(
                text,
                "{}, {}: what signs; root.key is not needed for that",
                certificate.display(),
                key.display()
            );
        }
        let _ = writeln!(text, "next: outrigger ca issue --service NAME --ca {}", self.dir.display());
        Ok(text)
    }
}

impl Issue {
    fn run(&self, now: SystemTime) -> Result<String, String> {
        let at = |error: String| format!("{}: {error}", self.ca.display());
        let authority = open(&self.ca)?;
        let id = self.id(&authority).map_err(at)?;
        let wanted = Wanted { id: id.clone(), dns: self.dns.clone(), addresses: self.ip.clone(), ttl: self.ttl };
        let leaf = authority.issue(&wanted, now).map_err(at)?;
        let name = self.service.as_deref().unwrap_or_else(|| id.path().trim_start_matches('/'));
        let folder = self.out.clone().unwrap_or_else(|| Path::new("tls").join(name));
        stage(&folder, &leaf, &id)?.replace()?;
        let at = |name: &str| folder.join(name).display().to_string();
        let quoted = |name: &str| serde_json::Value::from(at(name)).to_string();
        Ok(format!(
            "{}: {id}, until {} ({})\n{}: its key, for its owner's eyes only\n{}: whom to trust\n\
             in outrigger.yaml:\nidentity:\n  {{ certificate: {}, key: {}, roots: {} }}\n",
            at(CERTIFICATE),
            words::moment(leaf.until),
            words::span(self.ttl),
            at(KEY),
            at(ROOTS),
            quoted(CERTIFICATE),
            quoted(KEY),
            quoted(ROOTS),
        ))
    }

    fn id(&self, authority: &Authority) -> Result<SpiffeId, String> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        let domain = self.trust_domain.clone().or_else(|| authority.trust_domain());
        let domain = domain.ok_or("this CA names no trust domain: say which with --trust-domain")?;
        let id = format!("spiffe://{domain}/{}", self.service.as_deref().unwrap_or_default());
        id.parse().map_err(|error| format!("`{id}`: {error}"))
    }
}

/// Reads an authority's files: the intermediate signs where there is one.
fn open(folder: &Path) -> Result<Authority, String> {
    let text = |name: &str| {
        let path = folder.join(name);
        let text = read(&path, MOST_PEM).and_then(|text| String::from_utf8(text).map_err(std::io::Error::other));
        text.map_err(|error| (error.kind(), format!("{}: {error}", path.display())))
    };
    let missing = |(kind, error): (std::io::ErrorKind, String)| match kind {
        std::io::ErrorKind::NotFound => {
            format!("{error}: make a CA with `outrigger ca init` or name its folder with --ca")
        }
        _ => error,
    };
    let roots = text(ROOT).map_err(missing)?;
    let (intermediates, key) = match text(INTERMEDIATE) {
        Ok(text) => (Some(text), INTERMEDIATE_KEY),
        Err((std::io::ErrorKind::NotFound, _)) => (None, ROOT_KEY),
        Err((_, error)) => return Err(error),
    };
    let key = files::private_key(&folder.join(key))?;
    Authority::read(&roots, intermediates.as_deref(), &key).map_err(|error| format!("{}: {error}", folder.display()))
}

/// A throw-away authority, whose key is never written: issues for each service of `domain` into a folder of its name
/// below `folder`.
pub(super) fn throw_away(
    domain: &str,
    services: &[(&str, &str)],
    folder: &Path,
    now: SystemTime,
) -> Result<(), String> {
    let made = authority::found(domain, THROWN_AWAY_AFTER + DAY, false, now)?;
    let key = PrivateKeyDer::from_pem_slice(made.root.key.as_bytes()).map_err(|error| error.to_string())?;
    let authority = Authority::read(&made.root.certificate, None, &key)?;
    for (name, service) in services {
        let id: SpiffeId =
            format!("spiffe://{domain}/{service}").parse().map_err(|error| format!("{service}: {error}"))?;
        let wanted = Wanted { id: id.clone(), dns: Vec::new(), addresses: Vec::new(), ttl: THROWN_AWAY_AFTER };
        stage(&folder.join(name), &authority.issue(&wanted, now)?, &id)?.replace()?;
    }
    Ok(())
}

/// A workload's files, ready to be put into place.
fn stage(folder: &Path, leaf: &Leaf, id: &SpiffeId) -> Result<Set, String> {
    let mut set = Set::open(folder)?;
    is_its_own(&set, id)?;
    // From the first rename to the last, key and certificate do not fit each other: a sidecar that looks in between
    // refuses them and keeps what it has.
    set.add(KEY, &leaf.key, Readers::Owner)?;
    set.add(ROOTS, &leaf.roots, Readers::All)?;
    set.add(CERTIFICATE, &leaf.chain, Readers::All)?;
    Ok(set)
}

/// Refuses to put a service's files where those of another are.
fn is_its_own(set: &Set, id: &SpiffeId) -> Result<(), String> {
    let there = |name| Some(set.path(name)).filter(|path| path.symlink_metadata().is_ok());
    let Some(path) = there(CERTIFICATE) else {
        let stray = there(KEY).or_else(|| there(ROOTS));
        return stray.map_or(Ok(()), |path| Err(foreign(&path, id)));
    };
    let chain = files::certificates(&path).unwrap_or_default();
    let whose = chain.first().and_then(|leaf| Facts::read(leaf).ok()?.spiffe_id().ok());
    if whose.as_ref() == Some(id) { Ok(()) } else { Err(foreign(&path, id)) }
}

fn foreign(path: &Path, id: &SpiffeId) -> String {
    format!("{} is there already and is not of {id}: name another folder with --out, or move it away", path.display())
}

#[cfg(test)]
mod tests;
