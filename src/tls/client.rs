//! TLS to a peer outside the mesh: whom to trust, the name to expect, and what ALPN says is spoken.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::plan::door::Protocol;
use crate::plan::peer::{ClientTlsPlan, Roots};
use crate::tls::files;

/// Sessions kept for one endpoint.
const SESSIONS: usize = 4;

/// The system's root certificates, read once for all peers of a World.
#[derive(Default)]
pub struct SystemRoots(Mutex<Option<Arc<RootCertStore>>>);

impl SystemRoots {
    /// Lets the next use read them again.
    pub fn forget(&self) {
        *self.0.lock() = None;
    }

    fn get(&self) -> Result<Arc<RootCertStore>, String> {
        let mut kept = self.0.lock();
        if let Some(store) = &*kept {
            return Ok(store.clone());
        }
        let found = rustls_native_certs::load_native_certs();
        let mut store = RootCertStore::empty();
        let (taken, _) = store.add_parsable_certificates(found.certs);
        if taken == 0 {
            let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
            return Err(format!(
                "the system has no root certificates{why}: install ca-certificates or name a file in `tls.roots`"
            ));
        }
        let store = Arc::new(store);
        *kept = Some(store.clone());
        Ok(store)
    }
}

/// What ALPN agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `h2`.
    Http2,
    /// `http/1.1`, or nothing.
    Other,
}

/// How a peer's TLS is spoken.
pub struct ClientTls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    roots: Arc<RootCertStore>,
}

impl ClientTls {
    /// Reads the roots and fixes the name and ALPN for `protocol`.
    ///
    /// # Errors
    /// One line with the file's path: no roots, a file that is not PEM, or a name that cannot be one.
    pub fn new(plan: &ClientTlsPlan, protocol: Protocol, system: &SystemRoots) -> Result<Self, String> {
        let roots = match &plan.roots {
            Roots::System => system.get()?,
            Roots::File(path) => {
                let mut store = RootCertStore::empty();
                for certificate in files::certificates(path)? {
                    store.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
                }
                Arc::new(store)
            }
        };
        let name = ServerName::try_from(plan.sni.clone())
            .map_err(|_| format!("`tls.sni: {}` is neither a DNS name nor an IP address", plan.sni))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = match protocol {
            Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
            Protocol::Tcp => Vec::new(),
        };
        Ok(Self { config: Arc::new(config), name, roots })
    }

    /// Whether both trust the same roots, whatever files these were read from.
    pub fn trusts_as(&self, other: &Self) -> bool {
        self.roots.roots == other.roots.roots
    }

    /// The configuration for one endpoint: the same, with sessions of its own, because endpoints behind one name do
    /// not know each other's tickets.
    pub fn for_endpoint(&self) -> Arc<ClientConfig> {
        let mut config = (*self.config).clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Arc::new(config)
    }

    /// The configuration for a stream of bytes of its own: no ALPN, because it is not HTTP that is spoken there.
    pub fn for_bytes(&self) -> Arc<ClientConfig> {
        let mut config = (*self.config).clone();
        config.alpn_protocols = Vec::new();
        Arc::new(config)
    }

    /// Shakes hands over `io`; the caller sets the clock.
    ///
    /// # Errors
    /// One line: what rustls or the socket said.
    pub async fn connect<S>(&self, config: Arc<ClientConfig>, io: S) -> Result<(TlsStream<S>, Alpn), String>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let stream = TlsConnector::from(config)
            .connect(self.name.clone(), io)
            .await
            .map_err(|error| format!("TLS with {}: {error}", self.name.to_str()))?;
        let alpn = agreed(&stream);
        Ok((stream, alpn))
    }
}

fn agreed<S>(stream: &TlsStream<S>) -> Alpn {
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Alpn::Http2,
        _ => Alpn::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::plan::door::ServerTlsPlan;
    use crate::tls::server;

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("outrigger-tls-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            std::fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A root and a server's certificate for `payments.example` under it.
    fn certificates(folder: &Folder) -> (PathBuf, ServerTlsPlan) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["payments.example".into()]).unwrap().signed_by(&key, &root).unwrap();
        let served = ServerTlsPlan {
            certificate: folder.write("tls.crt", &leaf.pem()),
            key: folder.write("tls.key", &key.serialize_pem()),
        };
        (folder.write("ca.pem", &root.pem()), served)
    }

    async fn shake(roots: PathBuf, sni: &str, protocol: Protocol, served: &ServerTlsPlan) -> Result<Alpn, String> {
        let plan = ClientTlsPlan { roots: Roots::File(roots), sni: sni.into() };
        let tls = ClientTls::new(&plan, protocol, &SystemRoots::default())?;
        let acceptor = TlsAcceptor::from(server::config(served)?);
        let (ours, theirs) = tokio::io::duplex(16 * 1024);
        let echo = async move {
            if let Ok(mut stream) = acceptor.accept(theirs).await {
                let byte = stream.read_u8().await.unwrap();
                stream.write_u8(byte).await.unwrap();
            }
        };
        let (result, ()) = tokio::join!(
            async {
                let (mut io, alpn) = tls.connect(tls.for_endpoint(), ours).await?;
                io.write_u8(42).await.unwrap();
                assert_eq!(io.read_u8().await.unwrap(), 42);
                Ok(alpn)
            },
            echo
        );
        result
    }

    #[tokio::test]
    async fn alpn_follows_the_declared_protocol() {
        let folder = Folder::new("alpn");
        let (roots, served) = certificates(&folder);
        for (protocol, alpn) in [
            (Protocol::Auto, Alpn::Http2),
            (Protocol::Http2, Alpn::Http2),
            (Protocol::Http1, Alpn::Other),
            (Protocol::Tcp, Alpn::Other),
        ] {
            assert_eq!(shake(roots.clone(), "payments.example", protocol, &served).await, Ok(alpn), "{protocol:?}");
        }
    }

    #[tokio::test]
    async fn a_certificate_that_does_not_fit_is_refused() {
        let (folder, strange) = (Folder::new("misfit"), Folder::new("strange"));
        let (roots, served) = certificates(&folder);
        let (other_roots, _) = certificates(&strange);
        let error = shake(roots, "orders.example", Protocol::Auto, &served).await.unwrap_err();
        assert!(error.contains("orders.example"), "{error}");
        let error = shake(other_roots, "payments.example", Protocol::Auto, &served).await.unwrap_err();
        assert!(error.contains("payments.example"), "{error}");
    }

    #[test]
    fn a_wrong_plan_is_refused_with_its_place() {
        let folder = Folder::new("wrong");
        let (roots, served) = certificates(&folder);
        let plan = |roots, sni: &str| ClientTlsPlan { roots: Roots::File(roots), sni: sni.into() };
        let new = |plan| ClientTls::new(&plan, Protocol::Auto, &SystemRoots::default()).err().unwrap();
        assert!(new(plan(roots, "not a name")).contains("`tls.sni: not a name`"));
        assert!(new(plan("/nonexistent".into(), "a.example")).starts_with("/nonexistent: "));
        let mixed = ServerTlsPlan { key: strange_key(&folder), ..served };
        let error = server::config(&mixed).unwrap_err();
        assert!(error.contains("tls.crt") && error.contains("other.key"), "{error}");
    }

    fn strange_key(folder: &Folder) -> PathBuf {
        folder.write("other.key", &KeyPair::generate().unwrap().serialize_pem())
    }
}
