//! `Untrusted`: why a certificate is refused, in one line for operators; on its way through rustls it becomes the
//! alert that tells the other side what is wrong, and it is found again in the error of the handshake.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ExtendedKeyPurpose, OtherError, PeerIncompatible};
use rustls_pki_types::UnixTime;

use super::expiry::stamp;
use crate::reason::Reason;
use crate::spiffe::SpiffeId;

/// What the one who shows a certificate is in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It called us.
    Client,
    /// We called it.
    Server,
}

/// Why a certificate is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    /// None was shown.
    #[error("it showed no certificate")]
    NoCertificate,
    /// Something in it cannot be read.
    #[error("its certificate cannot be read: bad DER, or a version other than 3")]
    BadEncoding,
    /// It has an extension that must be understood and is not.
    #[error("its certificate has a critical extension that is not known here")]
    CriticalExtension,
    /// It has no URI name; a common name or a DNS name is no identity.
    #[error("its certificate has no SPIFFE ID: no URI among its subject alternative names")]
    NoId,
    /// It has more than one URI name (X509-SVID §2 allows one).
    #[error("its certificate has {count} URIs among its names; a SPIFFE certificate has exactly one")]
    SeveralIds {
        /// How many.
        count: usize,
    },
    /// Its URI is no SPIFFE ID of a workload.
    #[error("its certificate names `{id}`, which is no workload's SPIFFE ID: {why}")]
    BadId {
        /// The URI, made printable and cut.
        id: String,
        /// The rule that it breaks.
        why: String,
    },
    /// All is well with the certificate, but it is somebody else's.
    #[error("it is `{got}`, but must be {wanted}")]
    WrongIdentity {
        /// Who was expected.
        wanted: String,
        /// Who it is.
        got: SpiffeId,
    },
    /// All is well with it, but its peer is gone.
    #[error("no peer of the file is called by mutual TLS any more under the name that it was called by")]
    Unmeant,
    /// We are nobody any more, so nothing says whom to believe.
    #[error("the file names no identity any more, by which it could be verified")]
    NoIdentity,
    /// All is well with it, but it was called by, or has called, somebody whom we are no longer.
    #[error("it knows us as `{was}`, and we are `{is}` now")]
    OtherSelf {
        /// Who we were.
        was: SpiffeId,
        /// Who we are.
        is: SpiffeId,
    },
    /// There are no roots for its trust domain.
    #[error("it is `{id}`, and there are no roots for the trust domain `{}`", id.trust_domain())]
    TrustDomain {
        /// Who it claims to be.
        id: SpiffeId,
    },
    /// None of its trust domain's roots vouches for it.
    #[error("no root of its trust domain has signed its certificate or the intermediates that it sent")]
    UnknownIssuer,
    /// The chain breaks a rule that one of its issuers set, or is too long.
    #[error("its chain breaks a rule: {0}")]
    Chain(&'static str),
    /// The certificate, an intermediate or the root is no longer valid.
    #[error("its certificate, or an issuer's, expired at {}", stamp(*since))]
    Expired {
        /// Its last second.
        since: UnixTime,
    },
    /// The certificate or an intermediate is not valid yet.
    #[error("its certificate, or an issuer's, is valid only from {}; is a clock wrong?", stamp(*from))]
    NotYetValid {
        /// Its first second.
        from: UnixTime,
    },
    /// The certificate may sign others, so it is no workload's.
    #[error("its certificate is that of a CA, not of a workload")]
    LeafIsCa,
    /// Its usage or extended usage rules out what it was shown for.
    #[error("its certificate may not be used by a TLS {role}: key usage or extended key usage")]
    NotForThis {
        /// What it was shown for.
        role: Role,
    },
    /// A key or signature below what is taken: RSA under 2048 bits, SHA-1, MD5, DSA.
    #[error("its chain has a weak key or signature: RSA under 2048 bits, SHA-1 or older, or an unknown algorithm")]
    Weak,
    /// What it signed in the handshake is not signed with the certificate's key.
    #[error("it does not hold the private key of the certificate that it showed")]
    NotItsKey,
    /// A CRL lists it or one of its issuers.
    #[error("its certificate, or an issuer's, is revoked")]
    Revoked,
    /// There is a CRL of its issuer, but it cannot be relied on.
    #[error("the CRL of its issuer cannot be relied on: that issuer's key has not signed it, or may not")]
    UnknownRevocation,
    /// The CRL of its issuer is out of date.
    #[error("the CRL of its issuer was to be replaced by {}", stamp(*since))]
    StaleRevocation {
        /// When the next was due.
        since: UnixTime,
    },
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

impl Untrusted {
    /// The word for it, which tells whose certificate it was.
    pub fn reason(&self, role: Role) -> Reason {
        match (role, self) {
            (_, Self::NoIdentity | Self::OtherSelf { .. }) => Reason::NoIdentity,
            (Role::Client, Self::NoCertificate) => Reason::ClientCertificateMissing,
            (Role::Client, Self::Expired { .. } | Self::NotYetValid { .. }) => Reason::ClientCertificateExpired,
            (Role::Client, _) => Reason::ClientUntrusted,
            (Role::Server, Self::WrongIdentity { .. } | Self::Unmeant) => Reason::PeerIdentityMismatch,
            (Role::Server, Self::Expired { .. } | Self::NotYetValid { .. }) => Reason::PeerCertificateExpired,
            (Role::Server, _) => Reason::PeerUntrusted,
        }
    }

    /// The verdict of our own verifier in the error of a handshake; `None` where the handshake failed otherwise.
    pub fn of(error: &rustls::Error) -> Option<Self> {
        use CertificateError as C;
        let error = match error {
            rustls::Error::InvalidCertificate(error) => error,
            rustls::Error::NoCertificatesPresented => return Some(Self::NoCertificate),
            _ => return None,
        };
        Some(match error {
            C::Other(OtherError(inner)) => inner.downcast_ref::<Self>()?.clone(),
            C::BadEncoding => Self::BadEncoding,
            C::UnhandledCriticalExtension => Self::CriticalExtension,
            C::UnknownIssuer => Self::UnknownIssuer,
            C::Revoked => Self::Revoked,
            C::UnknownRevocationStatus => Self::UnknownRevocation,
            C::ExpiredRevocationListContext { next_update, .. } => Self::StaleRevocation { since: *next_update },
            C::ExpiredContext { not_after, .. } => Self::Expired { since: *not_after },
            C::NotValidYetContext { not_before, .. } => Self::NotYetValid { from: *not_before },
            C::InvalidPurposeContext { required: ExtendedKeyPurpose::ClientAuth, .. } => {
                Self::NotForThis { role: Role::Client }
            }
            C::InvalidPurposeContext { .. } => Self::NotForThis { role: Role::Server },
            // Our verifier says `UnknownIssuer` of a chain, so this is about the handshake's own signature.
            C::BadSignature => Self::NotItsKey,
            C::UnsupportedSignatureAlgorithmContext { .. }
            | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => Self::Weak,
            _ => return None,
        })
    }

    /// The same for what an acceptor or connector returns.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        Self::of(inner(error)?)
    }
}

/// To rustls, which sends the alert that belongs to it: `bad_certificate`, `unknown_ca`, `certificate_expired`,
/// `certificate_revoked`, `unsupported_certificate` or `certificate_required`. What only SPIFFE knows of is
/// `certificate_unknown` ("some other issue", RFC 8446 §6.2), because only so does rustls carry our own words.
impl From<Untrusted> for rustls::Error {
    fn from(why: Untrusted) -> Self {
        use CertificateError as C;
        Self::InvalidCertificate(match why {
            Untrusted::NoCertificate => return Self::NoCertificatesPresented,
            Untrusted::BadEncoding => C::BadEncoding,
            Untrusted::CriticalExtension => C::UnhandledCriticalExtension,
            Untrusted::UnknownIssuer => C::UnknownIssuer,
            Untrusted::Expired { since } => C::ExpiredContext { time: since, not_after: since },
            Untrusted::NotYetValid { from } => C::NotValidYetContext { time: from, not_before: from },
            Untrusted::NotForThis { role } => {
                let required = match role {
                    Role::Client => ExtendedKeyPurpose::ClientAuth,
                    Role::Server => ExtendedKeyPurpose::ServerAuth,
                };
                C::InvalidPurposeContext { required, presented: Vec::new() }
            }
            Untrusted::NotItsKey => C::BadSignature,
            Untrusted::Revoked => C::Revoked,
            Untrusted::UnknownRevocation => C::UnknownRevocationStatus,
            Untrusted::StaleRevocation { since } => C::ExpiredRevocationListContext { time: since, next_update: since },
            why @ (Untrusted::NoId
            | Untrusted::SeveralIds { .. }
            | Untrusted::BadId { .. }
            | Untrusted::WrongIdentity { .. }
            | Untrusted::Unmeant
            | Untrusted::NoIdentity
            | Untrusted::OtherSelf { .. }
            | Untrusted::TrustDomain { .. }
            | Untrusted::Chain(_)
            | Untrusted::LeafIsCa
            | Untrusted::Weak) => C::Other(OtherError(Arc::new(why))),
        })
    }
}

/// Said of a caller with whom there is no version in common; `None` where an error is something else.
pub fn too_old(error: &io::Error) -> Option<&'static str> {
    use PeerIncompatible as P;
    match inner(error)? {
        rustls::Error::PeerIncompatible(P::SupportedVersionsExtensionRequired | P::Tls12NotOfferedOrEnabled) => {
            Some("it does not speak TLS 1.3 (where TLS 1.2 is to do as well: `identity.tls12: true`)")
        }
        rustls::Error::PeerIncompatible(P::Tls12NotOffered) => Some("it speaks neither TLS 1.3 nor TLS 1.2"),
        _ => None,
    }
}

/// What the other side said of our certificate, in plain words; `None` where an error is something else. In TLS 1.3
/// a server says it only after our handshake is complete, so it may come with the first read (RFC 8446 §4.4.3).
pub fn refused_by_peer(error: &io::Error) -> Option<&'static str> {
    use AlertDescription as A;
    let rustls::Error::AlertReceived(alert) = inner(error)? else { return None };
    Some(match alert {
        A::BadCertificate => {
            "it refuses our certificate: it cannot be read, or is not the one expected (bad_certificate)"
        }
        A::UnsupportedCertificate => "it refuses our certificate: not for this use (unsupported_certificate)",
        A::CertificateRevoked => "it refuses our certificate as revoked (certificate_revoked)",
        A::CertificateExpired => "it refuses our certificate as expired or not yet valid (certificate_expired)",
        A::CertificateUnknown => "it refuses our identity, trust domain or key (certificate_unknown)",
        A::UnknownCA => "it does not trust the root of our certificate (unknown_ca)",
        A::AccessDenied => "it refuses our identity (access_denied)",
        A::CertificateRequired => "it wants a certificate of us (certificate_required)",
        _ => return None,
    })
}

fn inner(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}
