//! THE closed list of reasons for which a request or connection can fail; everyone names failures with it.
//!
//! One word per reason stands unchanged in the `Proxy-Status` header (RFC 9209), the access line and the metric. What
//! is answered for a reason is decided in one place only, `proxy/failure.rs`.

/// Who is to be looked at first when a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The caller sent something that cannot be served.
    Client,
    /// The service behind the inbound door.
    App,
    /// The called service.
    Peer,
    /// What lies between this proxy and the called service.
    Network,
    /// A rule in this proxy's file.
    Policy,
    /// This proxy itself.
    Proxy,
}

impl Side {
    /// The word in headers, logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::Peer => "peer",
            Self::Network => "network",
            Self::Policy => "policy",
            Self::Proxy => "proxy",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $word:literal, $side:ident, $rfc9209:literal;)*) => {
        /// Why a request or connection failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name),* }

        impl Reason {
            /// Every reason, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The one word for it, in snake case.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }

            /// The side to look at first. `Peer` reads `App` where the called service is the app behind the door.
            pub fn side(self) -> Side {
                match self { $(Self::$name => Side::$side),* }
            }

            /// The error type of RFC 9209 §2.3 that fits best.
            pub fn proxy_error(self) -> &'static str {
                match self { $(Self::$name => $rfc9209),* }
            }
        }
    };
}

reasons! {
    /// The head breaks HTTP's rules or contradicts itself.
    BadHead => "bad_head", Client, "http_request_error";
    /// The head has more bytes or fields than the limit.
    HeadTooLarge => "head_too_large", Client, "http_request_error";
    /// The request target has more bytes than the limit.
    UriTooLong => "uri_too_long", Client, "http_request_error";
    /// A head was begun and not finished in time.
    HeadTimeout => "head_timeout", Client, "http_request_error";
    /// The body has more bytes than the limit.
    BodyTooLarge => "body_too_large", Client, "http_request_error";
    /// The request's body stood still for too long.
    BodyTimeout => "body_timeout", Client, "http_request_error";
    /// The body broke its framing or ended early.
    BadBody => "bad_body", Client, "http_request_error";
    /// A transfer coding that this proxy does not know.
    UnknownCoding => "unknown_coding", Client, "http_request_error";
    /// An `Expect` other than `100-continue`.
    UnknownExpectation => "unknown_expectation", Client, "http_request_error";
    /// The method is not served at this door (CONNECT at the inbound one).
    MethodNotAllowed => "method_not_allowed", Client, "http_request_error";
    /// The protocol on the wire is not the one declared for this door.
    WrongProtocol => "wrong_protocol", Client, "http_protocol_error";
    /// The caller's HTTP/2 connection asked for work that it did not want: too many cancelled requests or idle frames.
    Flood => "flood", Client, "http_request_denied";
    /// The caller went away before the answer was complete.
    ClientGone => "client_gone", Client, "http_request_error";
    /// A TLS handshake with the caller failed.
    ClientTlsFailed => "client_tls_failed", Client, "tls_protocol_error";
    /// The caller spoke TLS and showed no certificate.
    ClientCertificateMissing => "client_certificate_missing", Client, "tls_certificate_error";
    /// The caller's certificate, or an issuer's, is expired or not yet valid.
    ClientCertificateExpired => "client_certificate_expired", Client, "tls_certificate_error";
    /// The caller's certificate is not believed for another reason; the detail says which.
    ClientUntrusted => "client_untrusted", Client, "tls_certificate_error";
    /// The caller refused our certificate by a TLS alert.
    RefusedByClient => "tls_refused_by_client", Client, "tls_alert_received";
    /// The caller spoke without TLS where it is demanded.
    PlaintextRefused => "plaintext_refused", Client, "http_request_denied";
    /// A rule looks at paths, and this one can be read in two ways.
    PathNotNormal => "path_not_normal", Client, "http_request_error";
    /// A rule asks for claims, and the request carries no token.
    TokenMissing => "token_missing", Client, "http_request_denied";
    /// The request carries a token that is not believed; the detail says why.
    TokenInvalid => "token_invalid", Client, "http_request_denied";
    /// The request carries a token, and the keys of its issuer are not known yet.
    KeysUnavailable => "keys_unavailable", Proxy, "proxy_internal_response";
    /// No rule of `inbound.allow` lets it in, or one of `inbound.deny` keeps it out.
    Denied => "denied", Policy, "http_request_denied";
    /// A fault that a route makes on purpose.
    FaultInjected => "fault_injected", Policy, "http_request_denied";
    /// No peer has this name and `otherwise` is `deny`.
    NoRoute => "no_route", Policy, "destination_not_found";
    /// The address may not be dialled from here (own port, loopback, link-local, …).
    AddressRefused => "address_refused", Policy, "destination_ip_prohibited";
    /// A limit that the file sets is reached: connections, connecting, in-flight, pending, retries or adaptive.
    LimitReached => "limit_reached", Policy, "connection_limit_reached";
    /// The peer's breaker is open: too much of what it was asked failed or was slow.
    CircuitOpen => "circuit_open", Policy, "destination_unavailable";
    /// Part of the requests is refused here because the peer refuses too many.
    Throttled => "throttled", Policy, "destination_unavailable";
    /// More requests came than a rate allows.
    RateLimited => "rate_limited", Policy, "http_request_denied";
    /// The request has passed through too many sidecars.
    Looped => "looped", Proxy, "proxy_loop_detected";
    /// A limit of this proxy is reached.
    Overloaded => "overloaded", Proxy, "connection_limit_reached";
    /// This proxy is shutting down.
    Draining => "draining", Proxy, "proxy_internal_response";
    /// This proxy has no identity yet, and mutual TLS needs one.
    NoIdentity => "no_identity", Proxy, "proxy_internal_error";
    /// This proxy met a state that it should not have.
    Internal => "internal", Proxy, "proxy_internal_error";
    /// The peer has no endpoint.
    NoEndpoint => "no_endpoint", Peer, "destination_unavailable";
    /// The peer's name could not be resolved and no earlier answer is left.
    DnsFailed => "dns_failed", Network, "dns_error";
    /// The connection was refused.
    ConnectRefused => "connect_refused", Peer, "connection_refused";
    /// The connection could not be made for another reason.
    ConnectFailed => "connect_failed", Network, "destination_ip_unroutable";
    /// The connection was not made in time.
    ConnectTimeout => "connect_timeout", Network, "connection_timeout";
    /// The TLS handshake with the peer failed.
    TlsFailed => "tls_failed", Peer, "tls_protocol_error";
    /// The peer proved to be somebody else than `id` says.
    PeerIdentityMismatch => "peer_identity_mismatch", Peer, "tls_certificate_error";
    /// The peer's certificate, or an issuer's, is expired or not yet valid.
    PeerCertificateExpired => "peer_certificate_expired", Peer, "tls_certificate_error";
    /// The peer's certificate is not believed for another reason; the detail says which.
    PeerUntrusted => "peer_untrusted", Peer, "tls_certificate_error";
    /// The peer refused our certificate by a TLS alert.
    RefusedByPeer => "tls_refused_by_peer", Peer, "tls_alert_received";
    /// The connection ended before the answer began.
    Reset => "reset", Peer, "connection_terminated";
    /// The peer refused the stream before it did any work.
    RefusedStream => "refused_stream", Peer, "http_request_denied";
    /// The answer broke HTTP's rules.
    BadResponse => "bad_response", Peer, "http_protocol_error";
    /// The answer's head has more bytes or fields than the limit.
    ResponseHeadTooLarge => "response_head_too_large", Peer, "http_response_header_section_size";
    /// The answer's body broke its framing or ended early.
    ResponseIncomplete => "response_incomplete", Peer, "http_response_incomplete";
    /// The answer's body stood still for too long.
    ResponseTimeout => "response_timeout", Peer, "http_response_timeout";
    /// The peer did not accept the upgrade as asked.
    UpgradeFailed => "upgrade_failed", Peer, "http_upgrade_failed";
    /// An attempt's time was over before its answer began.
    AttemptTimeout => "attempt_timeout", Peer, "http_response_timeout";
    /// The request's deadline passed.
    DeadlinePassed => "deadline_passed", Peer, "http_response_timeout";
    /// A tunnel stood still for too long.
    TunnelIdle => "tunnel_idle", Network, "connection_terminated";
    /// The grace of a shutdown ended before the exchange did.
    GraceOver => "grace_over", Proxy, "proxy_internal_response";
}

impl Reason {
    /// The place in [`Reason::ALL`], for arrays with a cell per reason.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Whether TLS with the called service failed, so that it has read nothing of what was asked.
    pub fn is_tls_with_peer(self) -> bool {
        use Reason as R;
        matches!(
            self,
            R::TlsFailed | R::PeerIdentityMismatch | R::PeerCertificateExpired | R::PeerUntrusted | R::RefusedByPeer
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique_and_snake_case() {
        let mut words: Vec<_> = Reason::ALL.iter().map(|reason| reason.word()).collect();
        assert!(words.iter().all(|word| word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Reason::ALL.len());
    }

    #[test]
    fn an_index_finds_its_reason() {
        for (at, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), at);
        }
    }
}
