//! The verifiers that rustls asks in a handshake, on both sides. They judge a chain as `Trust` does; the server's
//! must also be one of those that the caller of the peer means.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::trust::Trust;
use super::untrusted::{Role, Untrusted};
use crate::spiffe::{IdMatch, SpiffeId};

/// Who a called service must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Any of these.
    peer: Arc<[IdMatch]>,
    /// And, where discovery knows more of the endpoint, exactly this one: it narrows and never widens.
    endpoint: Option<SpiffeId>,
}

impl Wanted {
    /// One of `peer`, and for an endpoint that is known by its own name also `endpoint`.
    pub fn new(peer: Arc<[IdMatch]>, endpoint: Option<SpiffeId>) -> Self {
        Self { peer, endpoint }
    }

    /// Whether it goes by what is meant now.
    pub(super) fn is_of(&self, meant: &Meant) -> bool {
        Arc::ptr_eq(&self.peer, &meant.0.lock())
    }

    /// Goes by what is meant now.
    pub(super) fn follow(&mut self, meant: &Meant) {
        self.peer = meant.0.lock().clone();
    }

    /// # Errors
    /// `WrongIdentity` where `id` is not meant, `Unmeant` where nobody is.
    pub fn check(&self, id: &SpiffeId) -> Result<(), Untrusted> {
        if self.peer.is_empty() {
            return Err(Untrusted::Unmeant);
        }
        let listed = self.peer.iter().any(|rule| rule.means(id));
        if listed && self.endpoint.as_ref().is_none_or(|endpoint| endpoint == id) {
            return Ok(());
        }
        let wanted = match &self.endpoint {
            Some(endpoint) if listed => format!("`{endpoint}`"),
            _ => self.peer.iter().map(|rule| format!("`{rule}`")).collect::<Vec<_>>().join(" or "),
        };
        Err(Untrusted::WrongIdentity { wanted, got: id.clone() })
    }
}

/// Who a peer of this name may be, whatever reloads make of it. What was shaken hands with for one plan asks here what the
/// plan in force says, so that a reload need not find it.
#[derive(Debug)]
pub struct Meant(Mutex<Arc<[IdMatch]>>);

impl Meant {
    /// One of `ids`.
    pub fn new(ids: Arc<[IdMatch]>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(ids)))
    }

    /// One of `ids` from now on; nobody where there is none.
    pub fn set(&self, ids: Arc<[IdMatch]>) {
        *self.0.lock() = ids;
    }
}

/// Judges callers: every workload of a trust domain that has roots here. What it may do is for policy to say.
#[derive(Debug)]
pub struct ClientVerifier(pub Arc<Trust>);

/// Judges a called service.
#[derive(Debug)]
pub struct PeerVerifier {
    /// Whom to believe.
    pub trust: Arc<Trust>,
    /// Who it must be.
    pub wanted: Wanted,
}

impl ClientCertVerifier for ClientVerifier {
    /// None: a workload has one certificate, and need not be told whose others are trusted here.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.0.judge(leaf, intermediates, Role::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.0.algorithms).map_err(signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.0.algorithms).map_err(signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for PeerVerifier {
    /// `name` is what was asked for by SNI; it plays no part, because an identity is a SPIFFE ID and nothing else.
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let id = self.trust.judge(leaf, intermediates, Role::Server, now)?;
        self.wanted.check(&id)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &self.trust.algorithms).map_err(signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &self.trust.algorithms).map_err(signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

/// A signature that names another kind of key than the certificate's is not made with its key either.
fn signature(error: Error) -> Error {
    match error {
        Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => Untrusted::NotItsKey.into(),
        other => other,
    }
}
