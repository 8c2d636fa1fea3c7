//! From a path to a plan, the one way in for `run`, reload and `check`; opens the files that the plan names.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};

use crate::config::expand::Variables;
use crate::config::facts::Facts;
use crate::config::places::Places;
use crate::config::problem::{Problem, Problems, Severity};
use crate::config::{self, Config};
use crate::control::admin::guard::read_token;
use crate::control::reload::Hash;
use crate::control::watch::MOST_BYTES;
use crate::files;
use crate::ids::PeerName;
use crate::jwt::source::read_file as read_keys;
use crate::plan::Plan;
use crate::plan::build::identity::lint as lint_identities;
use crate::plan::build::{Built, Content, FileUse, build};
use crate::plan::control_file::{self, ControlFile};
use crate::plan::door::Egress;
use crate::plan::egress::is_own;
use crate::plan::identity::{FilesPlan, IdentityPlan};
use crate::spiffe::SpiffeId;
use crate::tls;
use crate::tls::client::{ClientTls, SystemRoots};
use crate::tls::identity::Identity;

/// A configuration in which nothing is wrong.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it means.
    pub plan: Plan,
    /// What it says, every default filled in; for `outrigger config`.
    pub config: Config,
    /// Where it says it.
    pub places: Places,
    /// The key of each listener, in the order of [`Plan::doors`].
    pub door_keys: Vec<Arc<str>>,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Problem>,
    /// Who the service is, as far as its files and the file itself tell.
    pub own: Option<SpiffeId>,
    /// The hash of the text that was read.
    pub hash: Hash,
}

impl Loaded {
    /// Why a listener could not be bound, with the line that asked for it. `door` is its index in [`Plan::doors`].
    pub fn bind_problem(&self, door: usize, error: &io::Error) -> Problem {
        let key = self.door_keys.get(door).map_or("", |key| key);
        let addr = self.plan.doors.get(door).map(|door| door.listen.to_string()).unwrap_or_default();
        self.places.problem(key, bind_text(&addr, error))
    }

    /// The same for a server that is no door: `key` is `admin.listen` or `status`.
    pub fn server_problem(&self, key: &str, addr: &str, error: &io::Error) -> Problem {
        self.places.problem(key, bind_text(addr, error))
    }
}

fn bind_text(addr: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("address {addr} is in use by another process: stop it, or listen at another address")
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "address {addr} may not be bound by this user: take a port above 1023, or grant CAP_NET_BIND_SERVICE"
            )
        }
        io::ErrorKind::AddrNotAvailable => format!("address {addr} is not an address of this machine"),
        _ => format!("address {addr} cannot be bound: {error}"),
    }
}

/// Reads a configuration, or says all that is wrong with it.
pub fn load(path: &Path, facts: &Facts, variables: Variables<'_>) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    let mut problems = Problems::new(name.as_str());
    match read_text(path) {
        Ok(text) => load_text(&text, path, facts, variables),
        Err(error) => {
            problems.error("", None, format!("cannot be read: {error}"), None);
            Err(problems)
        }
    }
}

/// The same for a text that was read already; `path` says from where relative paths are seen.
pub fn load_text(text: &str, path: &Path, facts: &Facts, variables: Variables<'_>) -> Result<Loaded, Problems> {
    let mut problems = Problems::new(path.display().to_string());
    let document = config::read(text, facts, variables, &mut problems);
    let Some(config::Document { config, places }) = document else { return Err(problems) };
    let Built { plan, door_keys, files } = build(&config, &folder(path), &mut problems);
    look_at(&files, &plan.egress, &mut problems);
    let mut own = match plan.identity.as_deref() {
        Some(IdentityPlan::WorkloadApi(api)) => api.id.clone(),
        Some(IdentityPlan::Files(_)) | None => None,
    };
    if !problems.has_errors() {
        let identity = try_tls(&plan, &places, &mut problems);
        if let (Some(identity), Some(files)) = (identity, plan.identity.as_deref().and_then(IdentityPlan::files)) {
            lint_identities(&config, files, identity.id().trust_domain(), &mut problems);
            own = Some(identity.id().clone());
        }
    }
    let problems = problems.sorted();
    if problems.has_errors() {
        return Err(problems);
    }
    let warnings = problems.list().iter().filter(|problem| problem.severity == Severity::Warning).cloned().collect();
    Ok(Loaded { plan, config, places, door_keys, warnings, own, hash: Hash::of(text.as_bytes()) })
}

fn folder(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// The bytes of a regular file of bounded size: a device or a pipe would be waited for, or never end.
///
/// # Errors
/// Why they cannot be read, without the path.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, MOST_BYTES).map_err(|error| why(&error))
}

/// The text of a file; what is not UTF-8 has a place too.
fn read_text(path: &Path) -> Result<String, String> {
    let bytes = read_bytes(path)?;
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = error.as_bytes().iter().take(good).filter(|byte| **byte == b'\n').count() + 1;
        format!("line {line} is not UTF-8")
    })
}

/// An error of the system without its number.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "this user may not read it".into(),
        io::ErrorKind::IsADirectory => "it is a directory".into(),
        io::ErrorKind::InvalidInput | io::ErrorKind::FileTooLarge => format!("it {error}"),
        _ => error.to_string(),
    }
}

/// Opens every file that the plan names and says which cannot be used.
fn look_at(all: &[FileUse], egress: &Egress, problems: &mut Problems) {
    let mut known = HashMap::new();
    for file in all {
        let verdict = match &file.content {
            Content::Endpoints(peer) => endpoints(file, peer, egress, &mut known, problems),
            Content::Certificates => pem(&file.path, "certificate", |text| {
                let mut all = CertificateDer::pem_slice_iter(text).peekable();
                all.peek().is_some() && all.all(|certificate| certificate.is_ok())
            }),
            Content::Crls => pem(&file.path, "CRL", |text| {
                let mut all = CertificateRevocationListDer::pem_slice_iter(text).peekable();
                all.peek().is_some() && all.all(|crl| crl.is_ok())
            }),
            Content::Key => pem(&file.path, "private key", |text| PrivateKeyDer::from_pem_slice(text).is_ok()),
            Content::Jwks => keys(file, problems),
            Content::Token => read_token(&file.path).map(drop).map_err(|why| format!("{}: {why}", file.path.display())),
        };
        if let Err(text) = verdict {
            problems.error(&file.key, file.at, text, None);
        }
    }
}

/// Makes each TLS configuration as it will be used, once all its files can be read; gives the identity that files hold.
fn try_tls(plan: &Plan, places: &Places, problems: &mut Problems) -> Option<Identity> {
    let (mut said, mut warnings, mut own) = (HashSet::new(), Vec::new(), None);
    let mut say = |key: String, text: String| {
        if said.insert((key.clone(), text.clone())) {
            let problem = places.problem(&key, text);
            problems.error(&problem.key, problem.at, problem.text, None);
        }
    };
    match plan
        .identity
        .as_deref()
        .and_then(IdentityPlan::files)
        .map(|files| (files, Identity::read(files, UnixTime::now())))
    {
        Some((files, Err(why))) => say(identity_key(files, &why).to_owned(), why),
        Some((_, Ok(identity))) => {
            for warning in identity.warnings(UnixTime::now()) {
                let problem = places.problem("identity", warning);
                warnings.push(problem);
            }
            own = Some(identity);
        }
        None => {}
    }
    for door in &plan.doors {
        if let Some(Err(why)) = door.tls.as_ref().map(tls::server::config) {
            say(format!("{}.tls.certificate", door.side.word()), why);
        }
    }
    let system = SystemRoots::default();
    for peer in &plan.peers {
        let Some(wanted) = &peer.source.tls else { continue };
        if let Err(why) = ClientTls::new(wanted, peer.source.protocol, &system) {
            let key = if why.starts_with("`tls.sni") { "sni" } else { "roots" };
            say(format!("peers.{}.tls.{key}", peer.name), why);
        }
    }
    for warning in warnings {
        problems.warning(&warning.key, warning.at, warning.text);
    }
    own
}

/// The key of the identity's file that a problem begins with.
fn identity_key(files: &FilesPlan, why: &str) -> &'static str {
    let about = |file: &Path| why.strip_prefix(&*file.to_string_lossy()).is_some_and(|rest| rest.starts_with(": "));
    match () {
        () if about(&files.key) => "identity.key",
        () if about(&files.certificate) => "identity.certificate",
        () if files.crls.iter().any(|file| about(file)) => "identity.crls",
        () => "identity.roots",
    }
}

/// A file of keys; keys that are passed over are told of.
fn keys(file: &FileUse, problems: &mut Problems) -> Result<(), String> {
    let keys = read_keys(&file.path)?;
    if let Some(warning) = keys.warning() {
        problems.warning(&file.key, file.at, format!("{}: {warning}", file.path.display()));
    }
    Ok(())
}

fn unreadable(path: &Path, why: &str) -> String {
    format!("{} cannot be read: {why}", path.display())
}

fn pem(path: &Path, what: &str, holds: impl Fn(&[u8]) -> bool) -> Result<(), String> {
    match files::read(path, files::MOST_PEM) {
        Ok(text) if holds(&text) => Ok(()),
        Ok(_) => Err(format!("{} holds no {what} in PEM form", path.display())),
        Err(error) => Err(unreadable(path, &why(&error))),
    }
}

/// The control files read so far, by path; `None` for one with problems, which were reported.
type Known<'f> = HashMap<&'f Path, Option<ControlFile>>;

/// Looks into a peer's control file, whose own problems are added to those of the configuration once.
fn endpoints<'f>(
    file: &'f FileUse,
    peer: &PeerName,
    egress: &Egress,
    known: &mut Known<'f>,
    problems: &mut Problems,
) -> Result<(), String> {
    let name = file.path.display().to_string();
    let said = match known.entry(&file.path) {
        Entry::Occupied(said) => said.into_mut(),
        Entry::Vacant(free) => {
            let text = read_text(&file.path).map_err(|why| unreadable(&file.path, &why))?;
            free.insert(control_file::parse(&text, &name).map_err(|wrong| problems.append(wrong)).ok())
        }
    };
    let Some(said) = said else { return Ok(()) };
    let Some(specs) = said.peers.get(peer.as_str()) else { return Err(format!("{name} says nothing of `{peer}`")) };
    for spec in specs.iter().filter(|spec| is_own(&spec.addr, egress)) {
        let addr = &spec.addr;
        let text = format!("{name} lists {addr} for `{peer}`, which is this sidecar itself: it is left out");
        problems.warning(&file.key, file.at, text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A folder of files that goes away at the end of the test.
    struct Folder(PathBuf);

    impl Folder {
        fn of(files: &[(&str, &[u8])]) -> Self {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let own = format!("outrigger-load-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let folder = std::env::temp_dir().join(own);
            fs::create_dir_all(&folder).unwrap();
            for (name, text) in files {
                fs::write(folder.join(name), text).unwrap();
            }
            Self(folder)
        }

        /// What loading `outrigger.yaml` says, the folder's name taken out.
        fn load(&self) -> Result<Loaded, String> {
            let path = self.0.join("outrigger.yaml");
            let loaded = load(&path, &Facts::PLAIN, &|_| None);
            loaded.map_err(|problems| problems.to_string().replace(&format!("{}/", self.0.display()), ""))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_shipped_examples_are_fine() {
        for name in ["full", "minimal", "quickstart"] {
            let path = PathBuf::from(format!("{}/config/{name}.yaml", env!("CARGO_MANIFEST_DIR")));
            let loaded = load(&path, &Facts::PLAIN, &|_| None).unwrap_or_else(|problems| panic!("{problems}"));
            assert_eq!(loaded.warnings, [], "{name}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_problems_of_the_keys_that_name_them() {
        let pair = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap();
        let (certificate, key) = (pair.cert.pem(), pair.signing_key.serialize_pem());
        let yaml = |tls: &str, peers: &str| {
            format!("service: x\ninbound: {{ app: 127.0.0.1:1, tls: {{ {tls} }} }}\npeers: {{ {peers} }}\n")
        };
        let fine = "certificate: cert.pem, key: key.pem";
        let search = "peers:\n  search:\n    - 10.0.0.1:1\n";
        for (tls, peers, control, expect) in [
            (fine, "search: { file: peers.yaml }", search, ""),
            (
                fine,
                "other: { file: peers.yaml }",
                search,
                "outrigger.yaml:3:25: peers.other.file: peers.yaml says nothing of `other`",
            ),
            (
                fine,
                "search: { file: none.yaml }",
                search,
                "outrigger.yaml:3:26: peers.search.file: none.yaml cannot be read: there is no such file",
            ),
            (
                fine,
                "a: { file: peers.yaml }, b: { file: peers.yaml }",
                "peers: { a: [x] }",
                "peers.yaml:1:14: peers.a[0].address: expected an address to connect to, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`, found `x`",
            ),
            (
                "certificate: key.pem, key: cert.pem",
                "",
                search,
                "outrigger.yaml:2:50: inbound.tls.certificate: key.pem holds no certificate in PEM form\noutrigger.yaml:2:64: inbound.tls.key: cert.pem holds no private key in PEM form",
            ),
            (
                "certificate: ., key: none.pem",
                "",
                search,
                "outrigger.yaml:2:50: inbound.tls.certificate: . cannot be read: it is a directory\noutrigger.yaml:2:58: inbound.tls.key: none.pem cannot be read: there is no such file",
            ),
        ] {
            let folder = Folder::of(&[
                ("outrigger.yaml", yaml(tls, peers).as_bytes()),
                ("cert.pem", certificate.as_bytes()),
                ("key.pem", key.as_bytes()),
                ("peers.yaml", control.as_bytes()),
            ]);
            assert_eq!(folder.load().err().unwrap_or_default(), expect, "{tls} {peers}");
        }
    }

    #[test]
    fn what_run_would_refuse_check_refuses() {
        let pair = |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (one, other) = (pair("x"), pair("y"));
        let tls = "inbound: { app: 127.0.0.1:1, tls: { certificate: cert.pem, key: key.pem } }\n";
        let roots = "peers: { a: { dns: \"a.test:443\", tls: { roots: bad.pem } } }\n";
        let token = "admin: { listen: 127.0.0.1:15000, token: token }\n";
        let own = "peers: { search: { file: peers.yaml } }\n";
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (yaml, expect) in [
            (tls, "outrigger.yaml:2:50: inbound.tls.certificate: cert.pem does not fit the key key.pem"),
            (roots, "outrigger.yaml:2:48: peers.a.tls.roots: bad.pem: "),
            (token, "outrigger.yaml:2:42: admin.token: token: a token needs at least 22 characters"),
            (own, ""),
        ] {
            let folder = Folder::of(&[
                ("outrigger.yaml", format!("service: x\n{yaml}").as_bytes()),
                ("cert.pem", one.cert.pem().as_bytes()),
                ("key.pem", other.signing_key.serialize_pem().as_bytes()),
                ("bad.pem", bad.as_bytes()),
                ("token", b"short"),
                ("peers.yaml", b"peers: { search: [127.0.0.1:15001] }\n"),
            ]);
            fs::set_permissions(folder.0.join("token"), fs::Permissions::from_mode(0o600)).unwrap();
            match folder.load() {
                Err(said) => assert!(said.starts_with(expect) && !expect.is_empty(), "{yaml}: {said}"),
                Ok(loaded) => {
                    assert_eq!(expect, "", "{yaml}");
                    let warning = loaded.warnings[0].to_string();
                    assert!(warning.contains("peers.search.file") && warning.contains("127.0.0.1:15001"), "{warning}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_no_text_or_not_there_is_one_problem() {
        assert_eq!(Folder::of(&[]).load().unwrap_err(), "outrigger.yaml: cannot be read: there is no such file");
        let folder = Folder::of(&[("outrigger.yaml", b"service: x\n\xff\xfe\n")]);
        assert_eq!(folder.load().unwrap_err(), "outrigger.yaml: cannot be read: line 2 is not UTF-8");
    }

    #[test]
    fn an_address_in_use_names_the_line_that_asked_for_it() {
        let yaml = b"service: x\ninbound:\n  listen: 0.0.0.0:15006\n  app: 127.0.0.1:1\n";
        let folder = Folder::of(&[("outrigger.yaml", yaml)]);
        let loaded = folder.load().unwrap();
        let said = |door| {
            let problem = loaded.bind_problem(door, &io::ErrorKind::AddrInUse.into()).to_string();
            problem.replace(&format!("{}/", folder.0.display()), "")
        };
        let todo = "is in use by another process: stop it, or listen at another address";
        assert_eq!(said(0), format!("outrigger.yaml:3:11: inbound.listen: address 0.0.0.0:15006 {todo}"));
        assert_eq!(said(1), format!("outrigger.yaml: outbound.listen[0]: address 127.0.0.1:15001 {todo}"));
        said(99);
    }

    #[test]
    fn the_hash_is_of_the_text() {
        let read = |text: &str| load_text(text, Path::new("f"), &Facts::PLAIN, &|_| None).unwrap().hash;
        assert_eq!(read("service: x"), Hash::of(b"service: x"));
        assert_ne!(read("service: x"), read("service: x "));
    }
}
