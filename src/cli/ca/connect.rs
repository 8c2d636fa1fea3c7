//! A handshake with whoever answers at an address, to see what is agreed and shown; nothing is trusted and nothing sent.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, Error, NamedGroup, ProtocolVersion, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::words;
use crate::deadline::Deadline;
use crate::ids::Addr;
use crate::net::dial::dial;
use crate::net::io::Io;

/// Name, connection and handshake take no longer together.
const CLOCK: Duration = Duration::from_secs(10);
/// In TLS 1.3 a server refuses our certificate only after our handshake is over; so long is that waited for.
const VERDICT: Duration = Duration::from_secs(1);

/// Whom to ask, and as whom.
pub(super) struct Asking {
    pub(super) host: String,
    pub(super) port: u16,
    /// The name for SNI, where it is not the host's.
    pub(super) name: Option<String>,
    /// The certificate for a server that asks for one.
    pub(super) client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// In plain words, a line for each fact.
    pub(super) lines: Vec<String>,
    /// What the server showed, as far as it came to that.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Whether the handshake came to its end and the server did not object.
    pub(super) accepted: bool,
}

/// Reads `HOST:PORT`, where an IPv6 address may stand in brackets.
pub(super) fn address(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let is_host = bare.parse::<IpAddr>().is_ok() || ServerName::try_from(bare).is_ok();
    is_host.then_some(())?;
    Some((bare.to_owned(), port.parse().ok().filter(|port| *port != 0)?))
}

/// Connects, shakes hands and says what was seen.
///
/// # Errors
/// One line: nobody can be reached there, or what was given is wrong.
pub(super) fn look(asking: Asking) -> Result<Seen, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    let seen = runtime.block_on(async {
        let end = Instant::now() + CLOCK;
        let name = asking.name.clone().unwrap_or_else(|| asking.host.clone());
        let io = reach(&asking.host, asking.port, end).await?;
        shake(io, name, asking.client, end).await
    });
    // A lookup that hangs in the system's resolver has no clock of its own.
    runtime.shutdown_background();
    seen
}

async fn reach(host: &str, port: u16, end: Instant) -> Result<Io, String> {
    let found = timeout_at(end, lookup_host((host, port))).await;
    let found = found.map_err(|_| format!("{host}: its name was not resolved within {CLOCK:?}"))?;
    let addresses: Vec<SocketAddr> = found.map_err(|error| format!("{host}: no address: {error}"))?.collect();
    let mut why = format!("{host}: it has no address");
    for address in addresses {
        match dial(&Addr::Tcp(address), Deadline::at(end)).await {
            Ok(io) => return Ok(io),
            Err(error) => why = format!("{error}; is it running?"),
        }
    }
    Err(why)
}

/// Shakes hands over `io` before `end`. A handshake that fails is something that was seen.
async fn shake<S>(
    io: S,
    name: String,
    client: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    end: Instant,
) -> Result<Seen, String>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let provider = Arc::new(aws_lc_rs::default_provider());
    let witness = Arc::new(Witness { provider: provider.clone(), chain: Mutex::default() });
    let own = client.map(|(chain, key)| CertifiedKey::from_der(chain, key, &provider).map(Arc::new)).transpose();
    let own = own.map_err(|error| format!("--cert and --key cannot be used together: {error}"))?;
    let answers = Arc::new(Answers { own, asked: AtomicBool::new(false) });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(witness.clone())
        .with_client_cert_resolver(answers.clone());
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    let server = ServerName::try_from(name.clone())
        .map_err(|_| format!("--sni {name}: neither a DNS name nor an IP address"))?;
    let mut lines = vec![match &server {
        ServerName::DnsName(name) => format!("asked for    {}", name.as_ref()),
        _ => "asked for    no name (an address is not sent as one): --sni NAME asks for one".to_owned(),
    }];
    let shaken = timeout_at(end, TlsConnector::from(Arc::new(config)).connect(server, io)).await;
    let mut complete = false;
    let outcome = match shaken {
        Ok(Ok(mut stream)) => {
            complete = true;
            lines.extend(agreed(&stream));
            if answers.asked() { verdict(&mut stream).await } else { Ok(()) }
        }
        Ok(Err(error)) => Err(refusal(&error)),
        Err(_) => Err(format!("the server did not end the handshake within {CLOCK:?}")),
    };
    lines.push(answers.line(complete));
    if let Err(why) = &outcome {
        lines.push(format!("REFUSED      {why}"));
    }
    let chain = std::mem::take(&mut *witness.chain.lock());
    Ok(Seen { lines, chain, accepted: outcome.is_ok() })
}

/// What the handshake agreed on.
fn agreed<S>(stream: &TlsStream<S>) -> Vec<String> {
    let (_, session) = stream.get_ref();
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3".to_owned(),
        Some(ProtocolVersion::TLSv1_2) => "TLS 1.2".to_owned(),
        other => format!("{other:?}"),
    };
    let cipher = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
    let group =
        session.negotiated_key_exchange_group().map_or_else(|| "unknown".to_owned(), |group| exchange(group.name()));
    let alpn = match session.alpn_protocol() {
        Some(b"h2") => "h2 (HTTP/2)".to_owned(),
        Some(b"http/1.1") => "http/1.1".to_owned(),
        Some(other) => words::safe(&String::from_utf8_lossy(other)),
        None => "nothing agreed (we offered h2 and http/1.1)".to_owned(),
    };
    vec![
        format!("version      {version}, cipher {cipher}"),
        format!("key exchange {group}"),
        format!("ALPN         {alpn}"),
    ]
}

fn exchange(group: NamedGroup) -> String {
    match group {
        NamedGroup::X25519MLKEM768 | NamedGroup::secp256r1MLKEM768 => {
            let name = if group == NamedGroup::X25519MLKEM768 { "X25519MLKEM768" } else { "SecP256r1MLKEM768" };
            format!(
                "{name}: elliptic curve and ML-KEM-768 together, so that what is recorded today stays secret from a later quantum computer"
            )
        }
        NamedGroup::X25519 => {
            "X25519: elliptic curve alone; a later quantum computer could read what is recorded today".into()
        }
        NamedGroup::secp256r1 => {
            "P-256: elliptic curve alone; a later quantum computer could read what is recorded today".into()
        }
        NamedGroup::secp384r1 => {
            "P-384: elliptic curve alone; a later quantum computer could read what is recorded today".into()
        }
        other => format!("{other:?}"),
    }
}

/// Waits a little for the server to object to what we showed, or did not show.
async fn verdict<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut TlsStream<S>) -> Result<(), String> {
    match timeout(VERDICT, stream.read_u8()).await {
        // It speaks, or waits for us to.
        Ok(Ok(_)) | Err(_) => Ok(()),
        Ok(Err(error)) => Err(refusal(&error)),
    }
}

/// Why a handshake failed, in plain words.
fn refusal(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::AlertReceived(alert)) => format!("the server sent the alert {}", alert_in_words(*alert)),
        Some(Error::InvalidMessage(_)) => "the server does not speak TLS there: what it sent is none".to_owned(),
        Some(other) => format!("we ended the handshake: {other}"),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the server closed the connection and gave no reason".to_owned()
        }
        None => format!("the connection broke: {error}"),
    }
}

fn alert_in_words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => {
            "certificate_required: it serves only who shows a certificate (--cert, --key)"
        }
        AlertDescription::HandshakeFailure => {
            "handshake_failure: nothing in common with what we offered, or no certificate of ours (--cert, --key)"
        }
        AlertDescription::BadCertificate => "bad_certificate: it does not take our certificate",
        AlertDescription::UnsupportedCertificate => {
            "unsupported_certificate: our certificate is of a kind that it does not take"
        }
        AlertDescription::CertificateRevoked => "certificate_revoked: our certificate is revoked",
        AlertDescription::CertificateExpired => "certificate_expired: our certificate is not valid now",
        AlertDescription::CertificateUnknown => "certificate_unknown: it does not take our certificate",
        AlertDescription::UnknownCA => "unknown_ca: it does not trust who issued our certificate",
        AlertDescription::AccessDenied => "access_denied: our identity may not enter",
        AlertDescription::UnrecognisedName => "unrecognized_name: it does not serve that name (--sni)",
        AlertDescription::NoApplicationProtocol => "no_application_protocol: it speaks neither h2 nor http/1.1",
        AlertDescription::ProtocolVersion => "protocol_version: it speaks neither TLS 1.2 nor TLS 1.3",
        AlertDescription::DecryptError => "decrypt_error: a signature does not fit, ours or one in our chain",
        other => return format!("{other:?}"),
    }
    .to_owned()
}

/// Takes any certificate and remembers it; that the server holds its key is checked.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    chain: Mutex<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(others).map(|der| der.clone().into_owned());
        *self.chain.lock() = chain.collect();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Shows our certificate, if there is one, and remembers that it was asked for.
#[derive(Debug)]
struct Answers {
    own: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl Answers {
    fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Who asks for none shows it by the end of the handshake alone.
    fn line(&self, complete: bool) -> String {
        let said = match (self.asked(), self.own.is_some()) {
            (false, _) if !complete => "not known: the handshake did not come so far",
            (false, false) => "not asked for",
            (false, true) => "not asked for: yours was not shown",
            (true, false) => "asked for; none was shown (--cert, --key)",
            (true, true) => "asked for, and yours was shown",
        };
        format!("client cert  {said}")
    }
}

impl ResolvesClientCert for Answers {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.own.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig};
    use rustls_pki_types::pem::PemObject;
    use tokio::io::AsyncWriteExt;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::cli::ca::authority::{self, Authority, Leaf, Wanted};

    const HOUR: Duration = Duration::from_secs(3600);

    fn issued() -> Leaf {
        let now = std::time::SystemTime::now();
        let made = authority::found("shop", 10 * HOUR, true, now).unwrap();
        let below = made.intermediate.unwrap();
        let key = PrivateKeyDer::from_pem_slice(below.key.as_bytes()).unwrap();
        let authority = Authority::read(&made.root.certificate, Some(&below.certificate), &key).unwrap();
        let id = "spiffe://shop/checkout".parse().unwrap();
        let wanted = Wanted { id, dns: vec!["checkout.shop".into()], addresses: Vec::new(), ttl: HOUR };
        let leaf = authority.issue(&wanted, now).unwrap();
        assert!(leaf.until > UNIX_EPOCH);
        leaf
    }

    fn pair(leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (all(&leaf.chain), PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
    }

    fn all(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
    }

    /// What our look at a server sees: one with `leaf`, that asks for certificates under `clients`, if it asks.
    async fn seen(leaf: &Leaf, clients: Option<&str>, own: Option<&Leaf>) -> Seen {
        let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(all(roots));
                let provider = Arc::new(aws_lc_rs::default_provider());
                builder.with_client_cert_verifier(
                    WebPkiClientVerifier::builder_with_provider(store.into(), provider).build().unwrap(),
                )
            }
        };
        let (chain, key) = pair(leaf);
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let server = async {
            if let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(theirs).await {
                let _ = stream.read_u8().await;
            }
        };
        let ours = shake(ours, "checkout.shop".into(), own.map(pair), Instant::now() + CLOCK);
        let (seen, ()) = tokio::join!(ours, server);
        seen.unwrap()
    }

    fn says(seen: &Seen, text: &str) {
        assert!(seen.lines.iter().any(|line| line.contains(text)), "{text}: {:#?}", seen.lines);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_agreed_is_told() {
        let leaf = issued();
        let seen = seen(&leaf, None, None).await;
        assert!(seen.accepted && seen.chain == all(&leaf.chain), "{seen:?}");
        for text in [
            "asked for    checkout.shop",
            "version      TLS 1.3, cipher TLS13_",
            "key exchange X25519MLKEM768: elliptic curve and ML-KEM-768",
            "ALPN         h2 (HTTP/2)",
            "client cert  not asked for",
        ] {
            says(&seen, text);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_for_a_certificate_is_told_and_why_it_refused() {
        let (leaf, stranger) = (issued(), issued());
        let none = seen(&leaf, Some(&leaf.roots), None).await;
        assert!(!none.accepted && none.chain.len() == 2);
        says(&none, "asked for; none was shown");
        says(&none, "REFUSED      the server sent the alert certificate_required");
        let wrong = seen(&leaf, Some(&leaf.roots), Some(&stranger)).await;
        assert!(!wrong.accepted);
        says(&wrong, "the server sent the alert unknown_ca");
        let right = seen(&leaf, Some(&leaf.roots), Some(&leaf)).await;
        assert!(right.accepted, "{:?}", right.lines);
        says(&right, "asked for, and yours was shown");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_speak_tls_is_told_within_a_clock() {
        for (sends, closes, expected) in [
            ("HTTP/1.1 400 Bad Request\r\n\r\n", false, "does not speak TLS"),
            ("", true, "closed the connection"),
            ("", false, "did not end the handshake within 10s"),
        ] {
            let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
            theirs.write_all(sends.as_bytes()).await.unwrap();
            // The other end is held until ours is done, or closed once it was spoken to.
            let server = async move {
                let _ = if closes { theirs.read_u8().await } else { Ok(0) };
                (!closes).then_some(theirs)
            };
            let (seen, _) = tokio::join!(shake(ours, "a.example".into(), None, Instant::now() + CLOCK), server);
            let seen = seen.unwrap();
            assert!(!seen.accepted && seen.chain.is_empty());
            says(&seen, expected);
            says(&seen, "client cert  not known: the handshake did not come so far");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_wrongly_is_told() {
        let (one, two) = (issued(), issued());
        let wrong = |name: &'static str, client| async move {
            let (ours, _theirs) = tokio::io::duplex(1024);
            shake(ours, name.into(), client, Instant::now() + CLOCK).await.unwrap_err()
        };
        assert!(wrong("not a name", None).await.starts_with("--sni not a name: "));
        let mixed = Some((pair(&one).0, pair(&two).1));
        assert!(wrong("a.example", mixed).await.starts_with("--cert and --key cannot be used together"));
    }

    #[test]
    fn an_address_is_told_from_a_file() {
        for (text, host) in [
            ("localhost:443", Some(("localhost", 443))),
            ("10.0.0.1:1", Some(("10.0.0.1", 1))),
            ("[::1]:443", Some(("::1", 443))),
            ("::1:443", Some(("::1", 443))),
            ("cert.pem", None),
            ("a:0", None),
            ("a:65536", None),
            (":443", None),
            ("a b:443", None),
        ] {
            let found = address(text);
            assert_eq!(found.as_ref().map(|(host, port)| (host.as_str(), *port)), host, "{text}");
        }
    }
}
