//! From a path to a plan, the one way in for `run`, reload and `check`; opens the files that the plan names.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::expand::Variables;
use crate::config::facts::Facts;
use crate::config::places::Places;
use crate::config::problem::{Problem, Problems, Severity};
use crate::config::{self, Config};
use crate::plan::Plan;
use crate::plan::build::{Built, Content, FileUse, build};
use crate::plan::control_file;

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
    /// A hash of the file's text: equal where nothing was changed.
    pub fingerprint: u64,
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
    look_at(&files, &mut problems);
    let problems = problems.sorted();
    if problems.has_errors() {
        return Err(problems);
    }
    let warnings = problems.list().iter().filter(|problem| problem.severity == Severity::Warning).cloned().collect();
    Ok(Loaded { plan, config, places, door_keys, warnings, fingerprint: fingerprint(text) })
}

fn fingerprint(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn folder(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    absolute.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned)
}

/// The text of a file; what is not UTF-8 has a place too.
fn read_text(path: &Path) -> Result<String, String> {
    let bytes = fs::read(path).map_err(|error| why(&error))?;
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
        _ => error.to_string(),
    }
}

/// Opens every file that the plan names and says which cannot be used.
fn look_at(files: &[FileUse], problems: &mut Problems) {
    let mut read: Vec<(&Path, Result<control_file::ControlFile, ()>)> = Vec::new();
    for file in files {
        let verdict = match &file.content {
            Content::Endpoints(peer) => {
                let known = read.iter().position(|(path, _)| *path == file.path);
                let at = known.unwrap_or_else(|| {
                    read.push((&file.path, endpoints(&file.path, problems, file)));
                    read.len() - 1
                });
                match read.get(at) {
                    Some((path, Ok(said))) if !said.peers.contains_key(peer.as_str()) => {
                        Err(format!("{} has no peer `{peer}`", path.display()))
                    }
                    _ => Ok(()),
                }
            }
            Content::Certificates => pem(
                &file.path,
                |text| {
                    let mut all = CertificateDer::pem_slice_iter(text);
                    matches!(all.next(), Some(Ok(_))) && all.all(|certificate| certificate.is_ok())
                },
                "certificate",
            ),
            Content::Key => pem(&file.path, |text| PrivateKeyDer::from_pem_slice(text).is_ok(), "private key"),
            Content::Token => match fs::read_to_string(&file.path) {
                Ok(text) if text.trim().is_empty() => Err(format!("{} is empty", file.path.display())),
                Ok(_) => Ok(()),
                Err(error) => Err(unreadable(&file.path, &error)),
            },
        };
        if let Err(text) = verdict {
            problems.error(&file.key, file.at, text, None);
        }
    }
}

fn unreadable(path: &Path, error: &io::Error) -> String {
    format!("{} cannot be read: {}", path.display(), why(error))
}

fn pem(path: &Path, holds: impl Fn(&[u8]) -> bool, what: &str) -> Result<(), String> {
    match fs::read(path) {
        Ok(text) if holds(&text) => Ok(()),
        Ok(_) => Err(format!("{} holds no {what} in PEM form", path.display())),
        Err(error) => Err(unreadable(path, &error)),
    }
}

/// A control file's endpoints, its problems added to those of the configuration.
fn endpoints(path: &Path, problems: &mut Problems, file: &FileUse) -> Result<control_file::ControlFile, ()> {
    let text = match read_text(path) {
        Ok(text) => text,
        Err(why) => {
            problems.error(&file.key, file.at, format!("{} cannot be read: {why}", path.display()), None);
            return Err(());
        }
    };
    control_file::parse(&text, &path.display().to_string()).map_err(|wrong| problems.append(wrong))
}
