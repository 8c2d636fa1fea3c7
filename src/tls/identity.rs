//! `Identity`: who this sidecar is and whom it trusts, as one immutable snapshot. Its TLS configurations, tickets and
//! sessions belong to it, so none outlives the roots that it was made under.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs as provider};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use webpki::{CertRevocationList, OwnedCertRevocationList};

use super::expiry::{Expiry, Of};
use super::facts::{Facts, crl_validity};
use super::material::{Material, Roots, Sourced};
use super::revocation;
use super::trust::{Domain, Trust};
use super::untrusted::{Role, Untrusted};
use super::verify::{ClientVerifier, PeerVerifier, Wanted};
use crate::plan::door::Protocol;
use crate::plan::identity::FilesPlan;
use crate::spiffe::SpiffeId;

/// Sessions kept for one endpoint.
const SESSIONS: usize = 4;

/// Who this sidecar is and whom it trusts.
pub struct Identity {
    id: SpiffeId,
    /// Where its chain came from.
    origin: String,
    chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the leaf.
    leaf: [u8; 32],
    /// The last second of the chain.
    shown_until: UnixTime,
    trust: Arc<Trust>,
    expiries: Vec<Expiry>,
    /// Lists of the revoked by whom nobody here knows, and CAs that have none beside a namesake that has.
    lists: Vec<String>,
    /// SHA-256 over all that it was made of but the key, which belongs to the leaf.
    digest: [u8; 32],
    /// The same over whom it trusts.
    trusted: [u8; 32],
    server: ServerConfig,
    /// The same with what each kind of door offers.
    doors: [OnceLock<Arc<ServerConfig>>; 4],
    client: ClientConfig,
}

impl Identity {
    /// Reads `files`.
    ///
    /// # Errors
    /// As [`Material::read`] and [`Identity::new`].
    pub fn read(files: &FilesPlan, now: UnixTime) -> Result<Self, String> {
        Self::new(Material::read(files)?, now)
    }

    /// Believes `material` if it fits together. What is merely out of date at `now` is taken, and told by
    /// [`Identity::warnings`]: refusing it would leave no identity at all.
    ///
    /// # Errors
    /// One line that names the part's origin: a key that is another certificate's, a leaf that is no workload's, a
    /// root that is no CA, no roots for the own trust domain or roots that do not vouch for the leaf, an unusable CRL or one
    /// that no CA of its issuer's name has signed.
    pub fn new(material: Material, now: UnixTime) -> Result<Self, String> {
        let Material { chain: Sourced { origin, it: chain }, key, roots, crls, tls12 } = material;
        let leaf = chain.first().ok_or_else(|| format!("{origin}: no certificate in it"))?;
        let facts = Facts::read(leaf).ok_or_else(|| format!("{origin}: {}", Untrusted::BadEncoding))?;
        let id = facts.id().map_err(|why| format!("{origin}: {why}"))?;
        let mut expiries = vec![Expiry { of: Of::Leaf, validity: facts.validity }];
        let domains = domains(&roots, &id, &mut expiries)?;
        let provider = Arc::new(mesh_provider());
        let revoked = revocations(&crls, &mut expiries)?;
        let authorities = roots.iter().flat_map(|roots| &roots.certificates.it).chain(chain.iter().skip(1));
        let lists = revocation::fit(&crls, authorities)?;
        let trust = Arc::new(Trust::new(domains, revoked, provider.signature_verification_algorithms));
        vouched(&trust, &chain, now.max(facts.validity.from).min(facts.validity.until)).map_err(|why| {
            let remedy = match why {
                Untrusted::UnknownRevocation => "the CRL of that very issuer belongs beside it",
                _ => "its issuer belongs into the roots, intermediates after the leaf",
            };
            format!("{origin}: {why}; {remedy}")
        })?;
        let dates = chain.iter().filter_map(|certificate| Facts::read(certificate)).map(|facts| facts.validity.until);
        let shown_until = dates.min().unwrap_or(facts.validity.until);
        let trusted = trust_of(&id, &roots, &crls);
        let digest = digest_of(&chain, &trusted, tls12);
        let certified = CertifiedKey::from_der(chain.clone(), key.it, &provider)
            .map_err(|error| format!("{}: not the private key of {origin}: {error}", key.origin))?;
        let (server, client) = configs(certified, &trust, provider, tls12).map_err(|error| format!("TLS: {error}"))?;
        let leaf = sha256(chain.first().map_or(&[][..], |leaf| leaf.as_ref()));
        let doors = Default::default();
        Ok(Self {
            id,
            origin,
            chain,
            leaf,
            shown_until,
            trust,
            expiries,
            lists,
            digest,
            trusted,
            server,
            doors,
            client,
        })
    }

    /// Whom the own certificate names.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Where its certificate came from, as in messages.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// SHA-256 of the own leaf in hex, as `openssl x509 -fingerprint -sha256` counts it.
    pub fn fingerprint(&self) -> String {
        hex(&self.leaf)
    }

    /// Tells what it shows of itself from what another one does.
    pub(super) fn leaf(&self) -> [u8; 32] {
        self.leaf
    }

    /// Whether both were made of the same.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Tells whom it trusts from whom another one does: the verdict on a chain can differ only where this does, or in
    /// time.
    pub(super) fn trust(&self) -> [u8; 32] {
        self.trusted
    }

    /// For a door of a protocol, made once: see [`Identity::server_config`].
    pub fn door_config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let (slot, alpn): (usize, &[&[u8]]) = match protocol {
            Protocol::Auto => (0, &[b"h2", b"http/1.1"]),
            Protocol::Http1 => (1, &[b"http/1.1"]),
            Protocol::Http2 => (2, &[b"h2"]),
            Protocol::Tcp => (3, &[]),
        };
        let make = || self.server_config(alpn);
        self.doors.get(slot).map_or_else(make, |kept| kept.get_or_init(make).clone())
    }

    /// For a door: a certificate is demanded of every caller that speaks TLS. Who may come without TLS is decided
    /// before. `alpn` in the order of preference; tickets of all doors are this identity's.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut config = self.server.clone();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// For one endpoint: sessions of its own, because endpoints behind one name do not know each other's tickets, and
    /// because a session is only as good as the `wanted` that it was made under.
    pub fn client_config(&self, wanted: Wanted, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(Arc::new(PeerVerifier { trust: self.trust.clone(), wanted }));
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// Who called, judged by what holds at `now`. To be asked on every connection: a resumed one brings the chain of
    /// its first handshake, which rustls does not judge again, and time has gone on since then.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn identify_client(&self, chain: Option<&[CertificateDer<'_>]>, now: UnixTime) -> Result<SpiffeId, Untrusted> {
        self.identify(chain, Role::Client, now)
    }

    /// Who was called, in the same way.
    ///
    /// # Errors
    /// Why it is refused, also for being somebody else.
    pub fn identify_peer(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        wanted: &Wanted,
        now: UnixTime,
    ) -> Result<SpiffeId, Untrusted> {
        let id = self.identify(chain, Role::Server, now)?;
        wanted.check(&id)?;
        Ok(id)
    }

    pub(super) fn identify(
        &self,
        chain: Option<&[CertificateDer<'_>]>,
        role: Role,
        now: UnixTime,
    ) -> Result<SpiffeId, Untrusted> {
        let (leaf, intermediates) = chain.and_then(<[_]>::split_first).ok_or(Untrusted::NoCertificate)?;
        self.trust.judge(leaf, intermediates, role, now)
    }

    /// When the leaf, each root and each CRL expires: the leaf first.
    pub fn expiries(&self) -> &[Expiry] {
        &self.expiries
    }

    /// Whether the own roots vouch for the own chain at `now`; who is revoked is not looked at.
    ///
    /// # Errors
    /// Why not: something of it is out of date.
    pub(super) fn holds(&self, now: UnixTime) -> Result<(), Untrusted> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(Untrusted::NoCertificate)?;
        for role in [Role::Client, Role::Server] {
            self.trust.judge_signatures(leaf, intermediates, role, now)?;
        }
        Ok(())
    }

    /// Whether the own certificate, or one that is sent with it, has expired.
    pub fn is_expired(&self, now: UnixTime) -> bool {
        self.shown_until < now
    }

    /// What an operator should look at: parts past two thirds of their time, and what others would refuse us for.
    pub fn warnings(&self, now: UnixTime) -> Vec<String> {
        let mut found: Vec<String> = self.expiries.iter().filter_map(|expiry| expiry.warning(now)).collect();
        if self.trust.revokes()
            && let Err(Untrusted::Revoked) = self.identify(Some(&self.chain), Role::Client, now)
        {
            found
                .push(format!("our own certificate, or an issuer's, is revoked by a CRL: issue {} a new one", self.id));
        }
        found.extend(self.lists.iter().cloned());
        found
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, trust, expiries, .. } = self;
        f.debug_struct("Identity")
            .field("id", id)
            .field("fingerprint", &self.fingerprint())
            .field("trust", trust)
            .field("expiries", expiries)
            .finish_non_exhaustive()
    }
}

/// SHA-256 of a certificate's DER in hex.
pub fn fingerprint(der: &[u8]) -> String {
    hex(&sha256(der))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut sum = Sum::new();
    sum.0.update(bytes);
    sum.end()
}

/// The name to call an endpoint by: what stands for it in the file, if it is a name, so that its server knows by SNI
/// what was asked for; the address of one that has none, which is never sent (RFC 6066 §3).
pub fn name_for(host: &str, address: IpAddr) -> ServerName<'static> {
    ServerName::try_from(host.to_owned()).unwrap_or(ServerName::IpAddress(address.into()))
}

/// The roots, by trust domain.
fn domains(roots: &[Roots], id: &SpiffeId, expiries: &mut Vec<Expiry>) -> Result<Vec<Domain>, String> {
    let mut domains: Vec<Domain> = Vec::new();
    for Roots { domain, certificates: Sourced { origin, it } } in roots {
        if it.is_empty() {
            return Err(format!("{origin}: no root certificate in it"));
        }
        let name: Arc<str> = domain.clone().unwrap_or_else(|| id.trust_domain().into());
        let at = domains.iter().position(|known| known.name == name).unwrap_or_else(|| {
            domains.push(Domain::new(name.clone()));
            domains.len() - 1
        });
        let Some(domain) = domains.get_mut(at) else { continue };
        for (index, root) in it.iter().enumerate() {
            let added = domain.add(root);
            let validity = added.map_err(|why| format!("{origin}: certificate {}: {why}", index + 1))?;
            expiries.push(Expiry { of: Of::Root(name.clone()), validity });
        }
    }
    match domains.iter().any(|domain| *domain.name == *id.trust_domain()) {
        true => Ok(domains),
        false => Err(format!("no roots are given for the own trust domain `{}`, that of {id}", id.trust_domain())),
    }
}

fn revocations(
    crls: &[Sourced<Vec<CertificateRevocationListDer<'static>>>],
    expiries: &mut Vec<Expiry>,
) -> Result<Vec<CertRevocationList<'static>>, String> {
    let mut found = Vec::new();
    for Sourced { origin, it } in crls {
        for (index, crl) in it.iter().enumerate() {
            let read = OwnedCertRevocationList::from_der(crl)
                .map_err(|error| format!("{origin}: CRL {}: cannot be used: {error}", index + 1))?;
            expiries.extend(crl_validity(crl).map(|validity| Expiry::of_crl(origin, validity)));
            found.push(read.into());
        }
    }
    Ok(found)
}

/// Whether the own roots vouch for the own chain, as client and as server. Dates are for the warnings, and who is revoked
/// too: an identity that could not be replaced because it is revoked would keep the CRL out that says so. A CRL that is
/// not to be relied on is none: nobody of its issuer would be believed.
fn vouched(trust: &Trust, chain: &[CertificateDer<'static>], now: UnixTime) -> Result<(), Untrusted> {
    let (leaf, intermediates) = chain.split_first().ok_or(Untrusted::NoCertificate)?;
    for role in [Role::Client, Role::Server] {
        match trust.judge_signatures(leaf, intermediates, role, now) {
            Ok(_) | Err(Untrusted::Expired { .. } | Untrusted::NotYetValid { .. }) => {}
            Err(why) => return Err(why),
        }
    }
    match trust.revokes().then(|| trust.judge(leaf, intermediates, Role::Client, now)) {
        // Its signatures were found good: with two CAs of one name webpki tells of the one that it tried last.
        Some(Err(Untrusted::UnknownRevocation | Untrusted::UnknownIssuer)) => Err(Untrusted::UnknownRevocation),
        _ => Ok(()),
    }
}

/// The provider with TLS_AES_128_GCM_SHA256 first: SHA-256 has instructions of its own on today's processors, and the
/// hash is a good part of a resumed handshake.
fn mesh_provider() -> CryptoProvider {
    let mut provider = provider::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// Both configurations without what differs by door or endpoint. X25519MLKEM768 comes first in the provider's groups.
fn configs(
    certified: CertifiedKey,
    trust: &Arc<Trust>,
    provider: Arc<CryptoProvider>,
    tls12: bool,
) -> Result<(ServerConfig, ClientConfig), rustls::Error> {
    const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    let versions = if tls12 { BOTH } else { &[&TLS13] };
    let shown = Arc::new(SingleCertAndKey::from(certified));
    let mut server = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(Arc::new(ClientVerifier(trust.clone())))
        .with_cert_resolver(shown.clone());
    // Tickets that hold the session, instead of sessions held here: strangers cannot fill or flush them. Their keys
    // change every six hours and end with this identity.
    server.ticketer = provider::Ticketer::new()?;
    // Each holds the caller's whole chain; every connection brings the next.
    server.send_tls13_tickets = 1;
    server.require_ems = true;
    server.ignore_client_order = true;
    let nobody = PeerVerifier { trust: trust.clone(), wanted: Wanted::new(Arc::default(), None) };
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(nobody))
        .with_client_cert_resolver(shown);
    client.require_ems = true;
    Ok((server, client))
}

fn trust_of(id: &SpiffeId, roots: &[Roots], crls: &[Sourced<Vec<CertificateRevocationListDer<'_>>>]) -> [u8; 32] {
    let mut sum = Sum::new();
    for Roots { domain, certificates } in roots {
        sum.part(b'd', domain.as_deref().unwrap_or(id.trust_domain()).as_bytes());
        certificates.it.iter().for_each(|it| sum.part(b'r', it));
    }
    crls.iter().flat_map(|crls| &crls.it).for_each(|it| sum.part(b'l', it));
    sum.end()
}

fn digest_of(chain: &[CertificateDer<'_>], trusted: &[u8], tls12: bool) -> [u8; 32] {
    let mut sum = Sum::new();
    chain.iter().for_each(|it| sum.part(b'c', it));
    sum.part(b't', trusted);
    sum.part(b'v', &[u8::from(tls12)]);
    sum.end()
}

/// SHA-256 over parts that cannot run into each other.
struct Sum(digest::Context);

impl Sum {
    fn new() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }

    fn part(&mut self, kind: u8, bytes: &[u8]) {
        self.0.update(&[kind]);
        self.0.update(&bytes.len().to_be_bytes());
        self.0.update(bytes);
    }

    fn end(self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.0.finish().as_ref());
        digest
    }
}
