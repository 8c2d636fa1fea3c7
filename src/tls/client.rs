//! TLS to a peer outside the mesh: whom to trust, the name to expect, and what ALPN says is spoken.

use std::sync::Arc;

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::net::io::Io;
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
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = match protocol {
            Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::Http2 => vec![b"h2".to_vec()],
            Protocol::Tcp => Vec::new(),
        };
        Ok(Self { config: Arc::new(config), name })
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
    pub async fn connect(&self, config: Arc<ClientConfig>, io: Io) -> Result<(Io, Alpn), String> {
        let stream = TlsConnector::from(config)
            .connect(self.name.clone(), io)
            .await
            .map_err(|error| format!("TLS with {}: {error}", self.name.to_str()))?;
        let alpn = agreed(&stream);
        Ok((Io::boxed(stream), alpn))
    }
}

fn agreed(stream: &TlsStream<Io>) -> Alpn {
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Alpn::Http2,
        _ => Alpn::Other,
    }
}
