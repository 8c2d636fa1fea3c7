//! `Config` → `Plan`, or all that is wrong: one file per section, then the checks that need the whole.

pub mod balance;
pub mod capture;
pub mod check;
pub mod dns;
pub mod doors;
pub mod fallback;
pub mod identity;
pub mod jwt;
pub mod limits;
pub mod lint;
pub mod peers;
pub mod policy;
pub mod redirect;
pub mod retry;
pub mod routes;
pub mod standing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::door::{Allow, DoorPlan, Egress, Mtls, Otherwise};
use super::hosts::HostTable;
use super::peer::PeerPlan;
use super::{AccessLog, AccessLogPlan, AdminPlan, LogFormat, Plan};
use crate::config::Config;
use crate::config::kind::Set;
use crate::config::listener::{self, Outbound};
use crate::config::problem::Problems;
use crate::config::telemetry::{self, Admin, Telemetry};
use crate::config::tree::Mark;
use crate::config::values::{AllowEntry, FilePath};
use crate::ids::{Addr, PeerName};

/// A plan, and what the file says about its parts. Where problems were found it is only good for finding more.
#[derive(Debug)]
pub struct Built {
    /// The plan.
    pub plan: Plan,
    /// The key of each listener, in the order of [`Plan::doors`].
    pub door_keys: Vec<Arc<str>>,
    /// Every file that the plan names.
    pub files: Vec<FileUse>,
}

/// A file that the plan names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileUse {
    /// The key that names it.
    pub key: Arc<str>,
    /// Where that key's value stands.
    pub at: Option<Mark>,
    /// The file, made absolute.
    pub path: PathBuf,
    /// What it is read for.
    pub content: Content,
}

/// What a file is read for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// PEM certificates.
    Certificates,
    /// A PEM private key.
    Key,
    /// PEM CRLs.
    Crls,
    /// A JWK set.
    Jwks,
    /// The admin server's token.
    Token,
    /// The endpoints of this peer.
    Endpoints(PeerName),
}

/// Makes the plan; relative paths are seen from `folder`.
pub fn build(config: &Config, folder: &Path, problems: &mut Problems) -> Built {
    let mut parts = Parts::new(folder, problems);
    let identity = identity::identity(config, &mut parts);
    doors::inbound(config, &mut parts);
    let apps = parts.peers.len();
    peers::peers(config, &mut parts);
    routes::routes(config, apps, &mut parts);
    fallback::check(config, &mut parts);
    doors::outbound(config, apps, &mut parts);
    let admin = admin(&config.admin, &mut parts);
    let status = config.status.0.as_ref().map(|listen| listen.0);
    if let Some(listen) = status {
        parts.own.push(Own::of(&config.status, Addr::Tcp(listen)));
    }
    let dns = dns::dns(config, &mut parts);
    let virtual_ips = dns::virtual_ips(&mut parts);
    check::addresses(config, &mut parts);
    let gates = limits::doors(config, parts.problems);
    let policy = policy::policy(config, parts.problems);
    // `outrigger redirect` can do without the section; for the doors it is what turns capture on.
    let rules = if config.redirect.is_some() { redirect::capture(config, parts.problems) } else { None };
    let capture = rules.as_ref().map(|rules| capture::capture(rules, config, &parts.doors, &mut parts.peers));
    let jwt = jwt::jwt(config, &mut parts);
    // What is probably not meant is only worth saying where nothing is certainly wrong.
    if !parts.problems.has_errors() {
        let asks = asks_identity(&parts.doors);
        lint::lint(config, asks, parts.problems);
        if let Some(inbound) = &config.inbound {
            let captured = capture.as_ref().is_some_and(|capture| capture.inbound.is_some());
            policy::lint(inbound, &policy, &policy::Doors::of(&parts.doors, captured), parts.problems);
            jwt::lint(inbound, parts.problems);
        }
    }
    let judged_fields = policy::judged_fields(&policy, jwt.as_deref());
    let Parts { doors, door_keys, peers, hosts, files, own, .. } = parts;
    let plan = Plan {
        service: config.service.as_ref().map_or("", |name| &name.0).into(),
        workers: usize::try_from(config.workers.0).unwrap_or(1),
        grace: config.grace.0,
        admin,
        status,
        identity,
        doors,
        peers,
        hosts,
        virtual_ips,
        egress: egress(&config.outbound, &own),
        capture,
        redirect: rules.map(Arc::new),
        dns,
        access_log: access_log(&config.telemetry),
        gates,
        policy,
        jwt,
        judged_fields,
    };
    Built { plan, door_keys, files }
}

/// Whether any inbound door learns who calls.
fn asks_identity(doors: &[Arc<DoorPlan>]) -> bool {
    doors.iter().any(|door| door.mtls != Mtls::Off)
}

/// What the sections add to while the plan is made.
pub struct Parts<'p> {
    folder: &'p Path,
    problems: &'p mut Problems,
    doors: Vec<Arc<DoorPlan>>,
    door_keys: Vec<Arc<str>>,
    peers: Vec<PeerPlan>,
    hosts: HostTable,
    files: Vec<FileUse>,
    own: Vec<Own>,
}

/// An address that this sidecar listens at.
struct Own {
    addr: Addr,
    key: Arc<str>,
    at: Option<Mark>,
}

impl Own {
    fn of<T>(set: &Set<T>, addr: Addr) -> Self {
        Self { addr, key: Arc::clone(&set.path), at: set.origin.at() }
    }
}

impl<'p> Parts<'p> {
    fn new(folder: &'p Path, problems: &'p mut Problems) -> Self {
        Self {
            folder,
            problems,
            doors: Vec::new(),
            door_keys: Vec::new(),
            peers: Vec::new(),
            hosts: HostTable::default(),
            files: Vec::new(),
            own: Vec::new(),
        }
    }

    /// A file's path made absolute; the file will be looked at when the plan is loaded.
    fn file(&mut self, set: &Set<FilePath>, content: Content) -> PathBuf {
        self.file_at(&set.value, Arc::clone(&set.path), set.origin.at(), content)
    }

    fn file_at(&mut self, file: &FilePath, key: Arc<str>, at: Option<Mark>, content: Content) -> PathBuf {
        let path = self.folder.join(&file.0);
        self.files.push(FileUse { key, at, path: path.clone(), content });
        path
    }

    fn door<T>(&mut self, set: &Set<T>, door: DoorPlan) {
        self.own.push(Own::of(set, door.listen.clone()));
        self.door_keys.push(Arc::clone(&set.path));
        self.doors.push(Arc::new(door));
    }
}

fn admin(admin: &Set<Admin>, parts: &mut Parts<'_>) -> Option<AdminPlan> {
    let token = admin.token.as_ref().map(|token| parts.file(token, Content::Token));
    let Some(listen) = &admin.listen.0 else {
        if let Some(token) = &admin.token {
            token.refuse(parts.problems, "there is no admin server to guard: `listen` is `off`");
        }
        return None;
    };
    parts.own.push(Own::of(&admin.listen, listen.0.clone()));
    Some(AdminPlan { listen: listen.0.clone(), token })
}

fn egress(outbound: &Outbound, own: &[Own]) -> Egress {
    let allow = |entry: &Set<AllowEntry>| match &entry.value {
        AllowEntry::Host(host) => Allow::Host(host.clone()),
        AllowEntry::Net(net) => Allow::Net(*net),
    };
    Egress {
        otherwise: match outbound.otherwise.as_ref().map(|set| set.value) {
            Some(listener::Otherwise::Pass) => Otherwise::Pass,
            Some(listener::Otherwise::Deny) | None => Otherwise::Deny,
        },
        allow: outbound.allow.0.iter().map(allow).collect(),
        own: own.iter().map(|own| own.addr.clone()).collect(),
    }
}

fn access_log(telemetry: &Telemetry) -> AccessLogPlan {
    AccessLogPlan {
        log: match telemetry.access_log.log.value {
            telemetry::AccessLog::Off => AccessLog::Off,
            telemetry::AccessLog::Failures => AccessLog::Failures,
            telemetry::AccessLog::All => AccessLog::All,
        },
        format: match telemetry.access_log.format.value {
            telemetry::Format::Text => LogFormat::Text,
            telemetry::Format::Json => LogFormat::Json,
        },
    }
}

#[cfg(test)]
mod doors_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod routes_tests;
#[cfg(test)]
mod spelling_tests;
#[cfg(test)]
mod tests;
