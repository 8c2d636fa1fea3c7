//! Mutual TLS towards the endpoints of a peer: never less than a proven identity, and never plaintext instead.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use rustls::{ClientConfig, InvalidMessage};
use rustls_pki_types::{ServerName, UnixTime};
use tokio_rustls::TlsConnector;

use super::endpoint::Endpoint;
use super::lease::{ConnectError, Version};
use super::world::Upstreams;
use crate::ids::Addr;
use crate::net::io::Io;
use crate::plan::peer::{Addresses, PeerPlan};
use crate::reason::Reason;
use crate::spiffe::IdMatch;
use crate::tls::client::Alpn;
use crate::tls::identity::{Identity, name_for};
use crate::tls::proof::{Called, Proof};
use crate::tls::store::IdentityStore;
use crate::tls::untrusted::{Role, Untrusted, refused_by_peer};
use crate::tls::verify::{Meant, Wanted};

/// How a peer is called by mutual TLS.
pub(super) struct Mesh {
    store: Arc<IdentityStore>,
    /// Who it may prove to be.
    ids: Arc<[IdMatch]>,
    /// The same until a reload: shared with those of its name that were before it and will be after it.
    meant: OnceLock<Arc<Meant>>,
    /// Its DNS name; empty where it has none.
    host: String,
}

/// A connection by mutual TLS.
pub(super) struct Secured {
    pub(super) io: Io,
    pub(super) alpn: Alpn,
    pub(super) proof: Arc<Proof>,
}

/// What is kept for an endpoint: configurations with sessions of its own, by what they offer.
pub(super) struct Kept {
    /// What they were made of.
    identity: Arc<Identity>,
    wanted: Wanted,
    offers: [Option<Arc<ClientConfig>>; 3],
}

/// What is offered by ALPN.
#[derive(Clone, Copy)]
enum Offer {
    /// Nothing: the bytes are not ours to name.
    Bytes,
    Http1,
    Http2,
}

impl Offer {
    fn of(version: Option<Version>) -> Self {
        match version {
            None => Self::Bytes,
            Some(Version::Http1) => Self::Http1,
            Some(Version::Http2) => Self::Http2,
        }
    }

    fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Bytes => &[],
            Self::Http1 => &[b"http/1.1"],
            Self::Http2 => &[b"h2"],
        }
    }
}

impl Mesh {
    /// `None` for a peer without mutual TLS.
    pub(super) fn of(plan: &PeerPlan, shared: &Upstreams) -> Option<Self> {
        let ids = plan.source.mtls.clone()?;
        let store = shared.identity().clone();
        let host = match &plan.source.addresses {
            Addresses::Dns { host, .. } => host.trim_end_matches('.').to_owned(),
            Addresses::Static(_) | Addresses::Srv { .. } | Addresses::File { .. } => String::new(),
        };
        Some(Self { store, ids, meant: OnceLock::new(), host })
    }

    /// Who we are, if we are somebody yet: to be asked before anything is dialled.
    ///
    /// # Errors
    /// `NoIdentity`.
    pub(super) fn identity(&self) -> Result<Arc<Identity>, ConnectError> {
        self.store.current().ok_or_else(|| {
            let why = self.store.lack().unwrap_or_default();
            ConnectError { reason: Reason::NoIdentity, detail: format!("mutual TLS needs an identity: {why}") }
        })
    }

    /// Shakes hands over `io` and learns who is there; `version` is what a pooled connection is to speak, `None` for a
    /// stream of bytes. The caller sets the clock.
    ///
    /// # Errors
    /// Why the other side, or we, are not believed; nothing was sent inside then.
    pub(super) async fn secured(
        &self,
        endpoint: &Endpoint,
        version: Option<Version>,
        io: Io,
    ) -> Result<Secured, ConnectError> {
        let wanted = Wanted::new(self.ids.clone(), endpoint.spec().identity.clone());
        let identity = self.identity()?;
        let config = kept(endpoint, &identity, &wanted, Offer::of(version));
        let name = self.name(endpoint.addr());
        let failed = |reason, why: String| ConnectError { reason, detail: format!("{}: {why}", endpoint.addr()) };
        let stream = TlsConnector::from(config).connect(name, io).await.map_err(|error| {
            match (Untrusted::of_io(&error), refused_by_peer(&error)) {
                (Some(untrusted), _) => failed(untrusted.reason(Role::Server), untrusted.to_string()),
                (None, Some(why)) => failed(Reason::RefusedByPeer, why.to_owned()),
                (None, None) => failed(Reason::TlsFailed, broken(&error)),
            }
        })?;
        let tls = stream.get_ref().1;
        // A reload may have meant somebody else by the peer while the handshake went on: that is looked at with the rest.
        let called = Called { wanted, meant: self.meant().clone() };
        let proof = Proof::new(&identity, tls.peer_certificates(), Some(called), UnixTime::now())
            .map_err(|untrusted| failed(untrusted.reason(Role::Server), untrusted.to_string()))?;
        self.store.proofs.keep(&proof);
        let alpn = if tls.alpn_protocol() == Some(b"h2") { Alpn::Http2 } else { Alpn::Other };
        Ok(Secured { io: Io::Tls(Box::new(stream.into())), alpn, proof })
    }

    /// Will take the place of `before`, whose connections go by what is meant by this one then; to be said first of all.
    pub(super) fn succeed(&self, before: &Self) {
        // Made by one reload, it has one before it.
        let _ = self.meant.set(before.meant().clone());
    }

    /// It is in force: whatever is open under its name goes by it.
    pub(super) fn prevail(&self) {
        self.meant().set(self.ids.clone());
    }

    /// Nobody is called by mutual TLS under its name any more.
    pub(super) fn abandon(&self) {
        self.meant().set(Arc::default());
    }

    fn meant(&self) -> &Arc<Meant> {
        self.meant.get_or_init(|| Meant::new(self.ids.clone()))
    }

    fn name(&self, addr: &Addr) -> ServerName<'static> {
        let ip = addr.tcp().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |addr| addr.ip());
        name_for(&self.host, ip)
    }
}

/// What is said of a handshake that nobody's certificate ended: most often, the other side speaks no TLS.
#[cold]
fn broken(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let plain = matches!(tls, Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)));
    let ended = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    let remedy = "turn on its sidecar's `inbound.mtls`, or say `mtls: off` for this peer";
    match (plain, ended) {
        (true, _) => format!("it answered mutual TLS in plaintext; {remedy}"),
        (_, true) => format!("it ended the connection in the handshake of mutual TLS; if it speaks none, {remedy}"),
        _ => format!("mutual TLS: {error}"),
    }
}

/// The configuration for an endpoint; made anew where the identity in force, or who is wanted, is another. A certificate
/// that has expired begins no session again: by an alert, which only a full handshake has, we learn why we are refused.
fn kept(endpoint: &Endpoint, identity: &Arc<Identity>, wanted: &Wanted, offer: Offer) -> Arc<ClientConfig> {
    let mut kept = endpoint.mesh().lock();
    let same = |kept: &Kept| Arc::ptr_eq(&kept.identity, identity) && kept.wanted == *wanted;
    if !kept.as_ref().is_some_and(same) || identity.is_expired(UnixTime::now()) {
        *kept = None;
    }
    let kept = kept.get_or_insert_with(|| Kept {
        identity: identity.clone(),
        wanted: wanted.clone(),
        offers: Default::default(),
    });
    let make = || identity.client_config(wanted.clone(), offer.alpn());
    match kept.offers.get_mut(offer as usize) {
        Some(slot) => slot.get_or_insert_with(make).clone(),
        None => make(),
    }
}
