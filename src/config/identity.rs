//! The section `identity`, and what doors and peers say about mutual TLS.

use super::collect::{List, OneOrMore, OrOn};
use super::kind::{Set, words};
use super::section::section;
use super::values::{FilePath, SpiffeId, SpiffeIds, TrustDomain, WorkloadApi};

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
    /// Either `certificate`, `key` and `roots`, or `workload-api`.
    Identity {
        /// PEM file: the certificate with exactly one SPIFFE ID, then the intermediates.
        certificate "certificate": Option<Set<FilePath>> = Unset("tls/cert.pem");
        /// PEM file of its private key.
        key "key": Option<Set<FilePath>> = Unset("tls/key.pem");
        /// PEM files of roots, one or a list; several at once for a rotation.
        roots "roots": Option<Set<OneOrMore<TrustedRoots>>> = Unset("tls/roots.pem");
        /// Instead of files: a Workload API (SPIRE); `on` means $SPIFFE_ENDPOINT_SOCKET.
        workload_api "workload-api": Option<Set<OrOn<WorkloadApi>>> = Unset("unix:/run/spire.sock");
        /// Which of several identities that the agent gives; by default the first.
        id "id": Option<Set<SpiffeId>> = Unset("spiffe://shop/checkout");
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
