//! Authorities, hostile certificates, and handshakes between any two configurations.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CustomExtension, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
    date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::TimeProvider;
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, HandshakeKind, NamedGroup,
    ProtocolVersion, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::spiffe::IdMatch;
use crate::tls::identity::Identity;
use crate::tls::material::{Material, Roots, Sourced};
use crate::tls::verify::Wanted;

/// A moment in hours from the tests' present, which is June 2027.
pub(crate) fn time(hours: i64) -> UnixTime {
    let seconds = date_time_ymd(2027, 6, 1).unix_timestamp() + hours * 3600;
    UnixTime::since_unix_epoch(Duration::from_secs(seconds as u64))
}

/// The present.
pub(crate) fn now() -> UnixTime {
    time(0)
}

/// Valid from and until, in hours from the present.
pub(crate) fn dates(params: &mut CertificateParams, from: i64, until: i64) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(time(from).as_secs());
    params.not_after = epoch + Duration::from_secs(time(until).as_secs());
}

/// A clock that tests move.
#[derive(Debug)]
pub(crate) struct Clock(AtomicU64);

impl Clock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(now().as_secs())))
    }

    pub(crate) fn set(&self, to: UnixTime) {
        self.0.store(to.as_secs(), Ordering::Relaxed);
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0.load(Ordering::Relaxed))))
    }
}

/// An element of DER.
pub(crate) fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let head = match length {
        0..=0x7f => vec![tag, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [head, content.to_vec()].concat()
}

pub(crate) const URI: u8 = 0x86;

/// Subject alternative names by tag and bytes, right or wrong.
pub(crate) fn names(names: &[(u8, &[u8])]) -> CustomExtension {
    let all: Vec<u8> = names.iter().flat_map(|(tag, name)| element(*tag, name)).collect();
    CustomExtension::from_oid_content(&[2, 5, 29, 17], element(0x30, &all))
}

/// A CA, and the certificates that lead from it to its root.
pub(crate) struct Authority {
    pub(crate) issuer: CertifiedIssuer<'static, KeyPair>,
    above: Vec<CertificateDer<'static>>,
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dates(&mut params, -24 * 30, 24 * 365);
    params
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    pub(crate) fn root_with(name: &str, tweak: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority_params(name);
        tweak(&mut params);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, above: Vec::new() }
    }

    /// A CA below this one.
    pub(crate) fn below(&self, name: &str, tweak: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority_params(name);
        tweak(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        let above = [vec![issuer.der().clone()], self.above.clone()].concat();
        Self { issuer, above }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    /// A workload's certificate as it should be, with the intermediates.
    pub(crate) fn issue(&self, uri: &str) -> Chain {
        self.issue_with(uri, |_| {})
    }

    /// The same with something about it changed.
    pub(crate) fn issue_with(&self, uri: &str, tweak: impl FnOnce(&mut CertificateParams)) -> Chain {
        self.issue_names(&[(URI, uri.as_bytes())], tweak)
    }

    /// The same with any names.
    pub(crate) fn issue_names(&self, list: &[(u8, &[u8])], tweak: impl FnOnce(&mut CertificateParams)) -> Chain {
        self.issue_for(KeyPair::generate().unwrap(), list, tweak)
    }

    /// The same for a key of any kind.
    pub(crate) fn issue_for(
        &self,
        key: KeyPair,
        list: &[(u8, &[u8])],
        tweak: impl FnOnce(&mut CertificateParams),
    ) -> Chain {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "spiffe://shop/common-name");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.is_ca = IsCa::ExplicitNoCa;
        if !list.is_empty() {
            params.custom_extensions.push(names(list));
        }
        dates(&mut params, -1, 24);
        tweak(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        Chain { certificates: [vec![leaf.der().clone()], self.above.clone()].concat(), key }
    }

    /// A CRL with these serial numbers, to be replaced after so many hours.
    pub(crate) fn crl(&self, revoked: &[u64], until: i64) -> CertificateRevocationListDer<'static> {
        let moment = |hours| date_time_ymd(1970, 1, 1) + Duration::from_secs(time(hours).as_secs());
        let revoked_certs = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: moment(-100),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: moment(-200),
            next_update: moment(until),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().clone()
    }
}

/// What somebody shows, the leaf first.
pub(crate) struct Chain {
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Chain {
    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// For a handshake, whether key and certificate fit or not.
    pub(crate) fn shown(&self) -> Arc<SingleCertAndKey> {
        let key = default_provider().key_provider.load_private_key(self.key_der()).unwrap();
        Arc::new(SingleCertAndKey::from(CertifiedKey::new(self.certificates.clone(), key)))
    }

    pub(crate) fn material(&self, roots: &[(Option<&str>, &[CertificateDer<'static>])]) -> Material {
        let roots = roots.iter().map(|(domain, roots)| Roots {
            domain: domain.map(Arc::from),
            certificates: sourced("roots.pem", roots.to_vec()),
        });
        Material {
            chain: sourced("own.pem", self.certificates.clone()),
            key: sourced("own.key", self.key_der()),
            roots: roots.collect(),
            crls: Vec::new(),
            tls12: false,
        }
    }

    /// The identity of its holder, who trusts its own root only.
    pub(crate) fn identity(&self, root: &Authority) -> Identity {
        Identity::new(self.material(&[(None, &[root.der()])]), now()).unwrap()
    }
}

pub(crate) fn sourced<T>(origin: &str, it: T) -> Sourced<T> {
    Sourced { origin: origin.to_owned(), it }
}

pub(crate) fn wanted(rules: &[&str]) -> Wanted {
    let rules: Vec<IdMatch> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    Wanted::new(rules.into(), None)
}

/// Believes everyone, as whoever attacks would.
#[derive(Debug)]
pub(crate) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

pub(crate) const ALL_VERSIONS: &[&SupportedProtocolVersion] = rustls::ALL_VERSIONS;

/// A caller that shows `chain`, or nothing, and believes everyone.
pub(crate) fn stranger_client(chain: Option<&Chain>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone));
    match chain {
        Some(chain) => config.with_client_cert_resolver(chain.shown()),
        None => config.with_no_client_auth(),
    }
}

/// A server that shows `chain` and believes everyone.
pub(crate) fn stranger_server(chain: &Chain, versions: &[&'static SupportedProtocolVersion]) -> ServerConfig {
    ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(Arc::new(Anyone))
        .with_cert_resolver(chain.shown())
}

/// With the tests' clock.
pub(crate) fn client_at(clock: &Arc<Clock>, config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.time_provider = clock.clone();
    Arc::new(config)
}

pub(crate) fn server_at(clock: &Arc<Clock>, config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.time_provider = clock.clone();
    Arc::new(config)
}

/// What one side saw of a handshake that succeeded.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) chain: Option<Vec<CertificateDer<'static>>>,
    pub(crate) kind: HandshakeKind,
    pub(crate) version: ProtocolVersion,
    pub(crate) group: Option<NamedGroup>,
    pub(crate) alpn: Option<Vec<u8>>,
}

fn met(connection: &CommonState) -> Met {
    Met {
        chain: connection.peer_certificates().map(<[_]>::to_vec),
        kind: connection.handshake_kind().unwrap(),
        version: connection.protocol_version().unwrap(),
        group: connection.negotiated_key_exchange_group().map(|group| group.name()),
        alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
    }
}

/// Calls, asks one byte and waits for the answer, with which session tickets come.
pub(crate) async fn call<S>(config: Arc<ClientConfig>, io: S) -> io::Result<Met>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let name = ServerName::try_from("service").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, io).await?;
        let asked = stream.write_all(b"?").await;
        stream.read_exact(&mut [0]).await?;
        asked?;
        Ok(met(stream.get_ref().1))
    })
    .await
}

/// So that two sides that wait for each other fail a test and do not hang it.
async fn within(meeting: impl Future<Output = io::Result<Met>>) -> io::Result<Met> {
    tokio::time::timeout(Duration::from_secs(30), meeting).await?
}

/// Serves one call.
pub(crate) async fn serve<S>(config: Arc<ServerConfig>, io: S) -> io::Result<Met>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    within(async {
        let mut stream = TlsAcceptor::from(config).accept(io).await?;
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"!").await?;
        stream.flush().await?;
        Ok(met(stream.get_ref().1))
    })
    .await
}

/// Both sides of one handshake: what the client saw, then the server.
pub(crate) async fn meet(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (io::Result<Met>, io::Result<Met>) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    tokio::join!(call(client, ours), serve(server, theirs))
}
