//! Who this sidecar is, whom its doors ask who they are, and who its peers must be.

use std::sync::Arc;

use super::{Content, Parts};
use crate::config::Config;
use crate::config::identity::{self, Identity, TrustedRoots};
use crate::config::kind::Set;
use crate::config::listener::Inbound;
use crate::config::peer::Peer;
use crate::config::problem::Problems;
use crate::plan::door::Mtls;
use crate::plan::identity::{IdentityPlan, RootsPlan};
use crate::spiffe::IdMatch;

/// The files of the identity, if there is one.
pub fn identity(config: &Config, parts: &mut Parts<'_>) -> Option<Arc<IdentityPlan>> {
    let said: &Identity = config.identity.as_ref()?;
    let certificate = said.certificate.as_ref().map(|file| parts.file(file, Content::Certificates));
    let key = said.key.as_ref().map(|file| parts.file(file, Content::Key));
    let list = said.roots.iter().flat_map(|roots| &roots.value.0);
    let roots = list.filter_map(|one| roots(one, parts)).collect();
    let crls = said.crls.0.iter().map(|file| parts.file(file, Content::Crls)).collect();
    Some(Arc::new(IdentityPlan { certificate: certificate?, key: key?, roots, crls, tls12: said.tls12.value }))
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
