//! The section `identity`, and what doors and peers say about mutual TLS.

use super::collect::{List, OneOrMore};
use super::kind::{Set, words};
use super::section::section;
use super::values::{FilePath, SpiffeIds, TrustDomain};

words! {
    /// Whether the callers of the inbound doors must prove who they are.
    Mtls {
        /// All must; what comes in plaintext is refused.
        Strict "strict";
        /// Who speaks TLS must; plaintext is served too, and counted.
        Permissive "permissive";
        /// Nobody is asked.
        Off "off";
    }
}

section! {
    /// Who this sidecar is, and whom it trusts: mutual TLS with SPIFFE IDs.
    Identity {
        /// PEM file: the certificate with exactly one SPIFFE ID, then the intermediates.
        certificate "certificate": Option<Set<FilePath>> = Required("tls/cert.pem");
        /// PEM file of its private key.
        key "key": Option<Set<FilePath>> = Required("tls/key.pem");
        /// PEM files of roots, one or a list; several at once for a rotation.
        roots "roots": Option<Set<OneOrMore<TrustedRoots>>> = Required("tls/roots.pem");
        /// PEM files of CRLs.
        crls "crls": Set<List<FilePath>> = Is("[]");
        /// Whether TLS 1.2 is spoken with whoever has no 1.3.
        tls12 "tls12": Set<bool> = Is("false");
    }
}

section! {
    /// Roots of one trust domain; short form: the file alone, for the own one.
    TrustedRoots = "file" {
        /// PEM file: one root or several.
        file "file": Option<Set<FilePath>> = Required("tls/roots.pem");
        /// Whose they are; by default the trust domain of the own certificate.
        domain "trust-domain": Option<Set<TrustDomain>> = Unset("partner.example");
    }
}

section! {
    /// Mutual TLS towards a peer.
    PeerMtls {
        /// Who it must be: a SPIFFE ID or a list of them; `/*` means all below.
        id "id": Option<Set<OneOrMore<SpiffeIds>>> = Required("spiffe://shop/payments");
    }
}
