//! Who this sidecar is, whom its doors ask who they are, and who its peers must be.

use std::sync::Arc;

use super::{Content, Parts};
use crate::config::identity::{self, Identity, TrustedRoots};
use crate::config::kind::Set;
use crate::config::listener::Inbound;
use crate::config::peer::Peer;
use crate::config::problem::Problems;
use crate::config::tree::Mark;
use crate::config::values::WorkloadApi;
use crate::config::{Config, WORKLOAD_API_VARIABLE};
use crate::plan::door::Mtls;
use crate::plan::identity::{FilesPlan, IdentityPlan, RootsPlan, WorkloadApiPlan};
use crate::spiffe::IdMatch;

/// Where the identity comes from, if there is one.
pub fn identity(config: &Config, parts: &mut Parts<'_>) -> Option<Arc<IdentityPlan>> {
    let set = config.identity.as_ref()?;
    if set.workload_api.is_some() || parts.problems.mention(&set.path, "workload-api") {
        return workload_api(set, parts).map(|plan| Arc::new(IdentityPlan::WorkloadApi(plan)));
    }
    files(set, parts).map(|plan| Arc::new(IdentityPlan::Files(plan)))
}

fn files(set: &Set<Identity>, parts: &mut Parts<'_>) -> Option<FilesPlan> {
    let said: &Identity = set;
    let given =
        [("certificate", said.certificate.is_some()), ("key", said.key.is_some()), ("roots", said.roots.is_some())];
    if given.iter().all(|(key, given)| !given && !parts.problems.mention(&set.path, key)) {
        set.refuse(
            parts.problems,
            "does not say where it comes from: give `certificate`, `key` and `roots`, or `workload-api`",
        );
    } else {
        for (key, _) in given.iter().filter(|(_, given)| !given) {
            if !parts.problems.mention(&set.path, key) {
                let text = "is missing: an identity of files has `certificate`, `key` and `roots`";
                parts.problems.error(format!("{}.{key}", set.path), set.origin.at(), text, None);
            }
        }
    }
    if let Some(id) = &said.id {
        id.refuse(parts.problems, "chooses among what `workload-api` gives; the certificate of a file has one ID");
    }
    let certificate = said.certificate.as_ref().map(|file| parts.file(file, Content::Certificates));
    let key = said.key.as_ref().map(|file| parts.file(file, Content::Key));
    let list = said.roots.iter().flat_map(|roots| &roots.value.0);
    let roots = list.filter_map(|one| roots(one, parts)).collect();
    let crls = said.crls.0.iter().map(|file| parts.file(file, Content::Crls)).collect();
    Some(FilesPlan { certificate: certificate?, key: key?, roots, crls, tls12: said.tls12.value })
}

fn workload_api(said: &Identity, parts: &mut Parts<'_>) -> Option<WorkloadApiPlan> {
    let beside = "cannot be beside `workload-api`, which brings its own: remove one of them";
    let files = [said.certificate.as_ref().map(place), said.key.as_ref().map(place), said.roots.as_ref().map(place)];
    for (path, at) in files.into_iter().flatten() {
        parts.problems.error(path, at, beside, None);
    }
    if !said.crls.0.is_empty() {
        said.crls.refuse(parts.problems, "cannot be beside `workload-api`: leave revocation to short lifetimes");
    }
    let socket = said.workload_api.as_ref()?;
    if !cfg!(feature = "spiffe") {
        socket.refuse(parts.problems, "this program was built without the Workload API (cargo's feature `spiffe`)");
    }
    let Some(WorkloadApi(agent)) = &socket.value.0 else {
        let text = format!(
            "`on` means the socket that {WORKLOAD_API_VARIABLE} names, which is not set: set it, or give `unix:/PATH`"
        );
        socket.refuse(parts.problems, text);
        return None;
    };
    let id = said.id.as_ref().map(|id| id.value.0.clone());
    Some(WorkloadApiPlan { agent: agent.clone(), id, tls12: said.tls12.value })
}

fn place<T>(set: &Set<T>) -> (Arc<str>, Option<Mark>) {
    (Arc::clone(&set.path), set.origin.at())
}

fn roots(said: &TrustedRoots, parts: &mut Parts<'_>) -> Option<RootsPlan> {
    let file = parts.file(said.file.as_ref()?, Content::Certificates);
    Some(RootsPlan { domain: said.domain.as_ref().map(|domain| domain.value.0.as_str().into()), file })
}

/// Whether the inbound doors ask their callers who they are: with an identity they do, unless the file says otherwise.
pub fn door(config: &Config, inbound: &Inbound, parts: &mut Parts<'_>) -> Mtls {
    let mtls = match (inbound.mtls.as_ref(), config.identity.is_some()) {
        (None, false) => return Mtls::Off,
        (None, true) => Mtls::Strict,
        (Some(said), known) => {
            let mtls = match said.value {
                identity::Mtls::Strict => Mtls::Strict,
                identity::Mtls::Permissive => Mtls::Permissive,
                identity::Mtls::Off => return Mtls::Off,
            };
            if !known {
                said.refuse(parts.problems, "needs `identity`, which says who this sidecar is and whom it trusts");
            }
            mtls
        }
    };
    if let Some(tls) = &inbound.tls {
        let text = "cannot be beside mutual TLS, which ends all TLS of this door with `identity`: remove it, or say \
                    `mtls: off`";
        tls.refuse(parts.problems, text);
    }
    mtls
}

/// Who a peer may prove to be; `None` where it is called without mutual TLS, which is always written by hand.
pub fn peer(config: &Config, name: &str, peer: &Set<Peer>, problems: &mut Problems) -> Option<Arc<[IdMatch]>> {
    let Some(said) = &peer.mtls else {
        if config.identity.is_some() && peer.tls.is_none() && !problems.mention(&peer.path, "mtls") {
            let text = format!(
                "does not say who it is: with `identity` each peer has `mtls: {{ id: spiffe://DOMAIN/{name} }}`, or \
                 `mtls: off` where it is called in plaintext"
            );
            peer.refuse(problems, text);
        }
        return None;
    };
    let mtls = said.value.0.as_ref()?;
    if peer.tls.is_some() {
        said.refuse(problems, "cannot be beside `tls`, which is for services outside the mesh: remove one of them");
    }
    if config.identity.is_none() {
        said.refuse(problems, "needs `identity`, which says who this sidecar is and whom it trusts");
    }
    mtls.id.as_ref().map(|ids| ids.value.0.iter().map(|id| id.value.0.clone()).collect())
}

/// Warns of identities that nobody can prove, because there are no roots of their trust domain; `own` is that of the own
/// certificate.
pub fn lint(config: &Config, files: &FilesPlan, own: &str, problems: &mut Problems) {
    let known = |domain: &str| files.roots.iter().any(|roots| roots.domain.as_deref().unwrap_or(own) == domain);
    let rules = config.inbound.iter().flat_map(|inbound| [&inbound.deny, &inbound.allow]);
    let from = rules.flatten().flat_map(|rules| &rules.0).filter_map(|rule| rule.from.as_ref());
    let mtls = config.peers.0.iter().filter_map(|(_, peer)| peer.mtls.as_ref()?.value.0.as_ref()?.id.as_ref());
    for one in from.chain(mtls).flat_map(|ids| &ids.0) {
        let domain = one.value.0.trust_domain();
        if !known(domain) {
            one.warn(problems, nobody(domain));
        }
    }
    let endpoints = config.peers.0.iter().filter_map(|(_, peer)| peer.fixed.as_ref()).flat_map(|list| &list.0);
    for id in endpoints.filter_map(|endpoint| endpoint.identity.as_ref()) {
        let domain = id.value.0.trust_domain();
        if !known(domain) {
            id.warn(problems, nobody(domain));
        }
    }
}

fn nobody(domain: &str) -> String {
    format!(
        "means nobody: `identity.roots` has no roots of the trust domain `{domain}`, so no certificate of it is believed"
    )
}
