//! The document as written: every key once, with its type, default and words; unknown keys are errors with a place.
//!
//! The order of reading: text → `tree` (YAML, places) → `expand` (environment) → `section` (the readers that
//! `section!` makes) → [`Config`] → `settle` (defaults that follow from other keys). Nothing here opens a file.

pub mod collect;
pub mod expand;
pub mod facts;
pub mod fallback;
pub mod identity;
pub mod jwt;
pub mod kind;
pub mod limits;
pub mod listener;
pub mod pattern;
pub mod peer;
pub mod places;
pub mod policy;
pub mod print;
pub mod problem;
pub mod redirect;
pub mod reference;
pub mod retry;
pub mod route;
pub mod schema;
pub mod section;
pub mod settle;
pub mod shape;
pub mod split;
pub mod standing;
pub mod telemetry;
pub mod tree;
pub mod units;
pub mod values;

use collect::{Named, OrOff};
use expand::{Variables, expand};
use facts::Facts;
use identity::Identity;
use kind::{Kind, Reader, Set};
use listener::{Dns, Inbound, Outbound};
use peer::{ControlFile, Peer};
use places::Places;
use problem::Problems;
use redirect::Interception;
use section::section;
use telemetry::{Admin, Telemetry};
use tree::{Entry, Node, Trail, What, parse};
use units::{Count, Span};
use values::{Label, Name, TcpListen};

/// Where the admin server listens, unless the file says it, and where the client commands ask.
pub const ADMIN_VARIABLE: &str = "OUTRIGGER_ADMIN";

/// Where this sidecar runs, unless the file says it.
pub const ZONE_VARIABLE: &str = "OUTRIGGER_ZONE";

/// Where the Workload API is served (SPIFFE_Workload_Endpoint §4), if `identity.workload-api` is `on`.
pub const WORKLOAD_API_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

section! {
    /// The configuration of one sidecar.
    Config {
        /// The name of the service that this sidecar stands beside.
        service "service": Option<Set<Name>> = Required("checkout");
        /// Where this sidecar runs: endpoints of the same zone are preferred.
        zone "zone": Option<Set<Label>> = Unset("eu-1a");
        /// Data threads; by default the CPU quota of the control group in whole CPUs, without a quota 1.
        workers "workers": Set<Count<1, 1024>> = Asks(Facts::workers);
        /// How long a shutdown may take in all.
        grace "grace": Set<Span> = Is("25s");
        /// The admin server: metrics, state, reload, drain.
        admin "admin": Set<Admin> = Is("{}");
        /// A second server with /live, /ready and /metrics only, for probes and scrapers elsewhere, or `off`.
        status "status": Set<OrOff<TcpListen>> = Is("off");
        /// Who this sidecar is and whom it trusts; without this section nothing speaks mutual TLS.
        identity "identity": Option<Set<Identity>> = Unset("{}");
        /// From the network to the service; without this section there is no inbound door.
        inbound "inbound": Option<Set<Inbound>> = Sample("{}");
        /// From the service to its peers.
        outbound "outbound": Set<Outbound> = Is("{}");
        /// The services that are called, by name.
        peers "peers": Set<Named<Peer>> = Is("{}");
        /// Transparent interception: what the rules of `outrigger redirect` send to the doors.
        redirect "redirect": Option<Set<Interception>> = Unset("{}");
        /// How names are resolved.
        dns "dns": Set<Dns> = Is("{}");
        /// What the sidecar says about its work.
        telemetry "telemetry": Set<Telemetry> = Is("{}");
    }
}

/// A file as read: what it says, and where it says it.
#[derive(Clone, Debug)]
pub struct Document {
    /// What it says, every default filled in.
    pub config: Config,
    /// Where each key stands.
    pub places: Places,
}

/// Reads a configuration; `None` if it is no mapping at all. All problems go to `problems`, and where there are errors
/// the document is only good for finding more of them.
pub fn read(text: &str, facts: &Facts, variables: Variables<'_>, problems: &mut Problems) -> Option<Document> {
    let mut root = parse(text, problems)?;
    expand(&mut root, &Trail::Root, variables, problems);
    admin_from_environment(&mut root, variables);
    zone_from_environment(&mut root, variables);
    workload_api_from_environment(&mut root, variables);
    let places = Places::of(&root, problems.file());
    let mut config = Config::read(&root, &Trail::Root, &mut Reader { facts, problems })?;
    settle::settle(&mut config);
    Some(Document { config, places })
}

/// Puts the address that OUTRIGGER_ADMIN names where the file says none; the client commands go by the same variable.
fn admin_from_environment(root: &mut Node<'_>, variables: Variables<'_>) {
    let What::Map(entries) = &mut root.what else { return };
    let Some(addr) = variables(ADMIN_VARIABLE).filter(|addr| !addr.trim().is_empty()) else { return };
    let node = |what| Node { at: None, what };
    let listen = Entry { key: "listen".into(), at: None, value: node(What::Expanded(addr, ADMIN_VARIABLE.into())) };
    match entries.iter_mut().find(|entry| entry.key == "admin") {
        None => {
            let value = node(What::Map(vec![listen]));
            entries.push(Entry { key: "admin".into(), at: None, value });
        }
        Some(admin) => match &mut admin.value.what {
            What::Map(keys) if keys.iter().all(|entry| entry.key != "listen") => keys.push(listen),
            _ => {}
        },
    }
}

/// Puts the zone that OUTRIGGER_ZONE names where the file says none.
fn zone_from_environment(root: &mut Node<'_>, variables: Variables<'_>) {
    let What::Map(entries) = &mut root.what else { return };
    if entries.iter().any(|entry| entry.key == "zone") {
        return;
    }
    if let Some(zone) = variables(ZONE_VARIABLE).filter(|zone| !zone.trim().is_empty()) {
        let value = Node { at: None, what: What::Expanded(zone, ZONE_VARIABLE.into()) };
        entries.push(Entry { key: "zone".into(), at: None, value });
    }
}

/// Puts the socket that SPIFFE_ENDPOINT_SOCKET names where the file says `on`.
fn workload_api_from_environment(root: &mut Node<'_>, variables: Variables<'_>) {
    let said = value_of(root, "identity").and_then(|identity| value_of(identity, "workload-api"));
    let Some(said) = said.filter(|node| matches!(&node.what, What::Text(word) if word == "on")) else { return };
    if let Some(socket) = variables(WORKLOAD_API_VARIABLE).filter(|socket| !socket.trim().is_empty()) {
        said.what = What::Expanded(socket, WORKLOAD_API_VARIABLE.into());
    }
}

fn value_of<'n, 't>(node: &'n mut Node<'t>, key: &str) -> Option<&'n mut Node<'t>> {
    let What::Map(entries) = &mut node.what else { return None };
    entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.value)
}

/// Reads a control file, in which variables are not expanded.
pub fn read_control_file(text: &str, problems: &mut Problems) -> Option<ControlFile> {
    let root = parse(text, problems)?;
    ControlFile::read(&root, &Trail::Root, &mut Reader { facts: &Facts::PLAIN, problems })
}
