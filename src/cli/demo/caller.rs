//! A small HTTP/1.1 client that keeps its connections: the demo's load and its services call through it, the load by
//! mutual TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::life::tasks::Tasks;
use crate::net::io::Io;

/// One call takes no longer.
const CLOCK: Duration = Duration::from_secs(5);
/// Idle connections that are kept.
const KEPT: usize = 64;

/// Calls one host at one address.
pub(super) struct Caller {
    to: SocketAddr,
    host: HeaderValue,
    /// How it proves who it is, and what the other side must prove; plaintext without.
    tls: Option<Arc<ClientConfig>>,
    idle: Mutex<Vec<SendRequest<Empty<Bytes>>>>,
    tasks: Tasks,
}

impl Caller {
    /// Calls `host` at `to`; its connections' tasks go to `tasks`.
    pub(super) fn new(to: SocketAddr, host: &str, tasks: Tasks) -> Self {
        let host = HeaderValue::from_str(host).unwrap_or(HeaderValue::from_static("localhost"));
        Self { to, host, tls: None, idle: Mutex::default(), tasks }
    }

    /// The same by mutual TLS.
    pub(super) fn secured(self, tls: Arc<ClientConfig>) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// GETs `/` and reads the answer whole; the error is one line.
    pub(super) async fn get(&self) -> Result<(StatusCode, Bytes), String> {
        timeout(CLOCK, self.call()).await.unwrap_or_else(|_| Err(format!("no answer within {CLOCK:?}")))
    }

    async fn call(&self) -> Result<(StatusCode, Bytes), String> {
        loop {
            let kept = self.idle.lock().pop();
            let (mut sender, reused) = match kept {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            if sender.ready().await.is_err() && reused {
                continue; // it was closed while idle: nothing was sent
            }
            let mut request = Request::new(Empty::new());
            request.headers_mut().insert(HOST, self.host.clone());
            let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
            let mut idle = self.idle.lock();
            if idle.len() < KEPT {
                idle.push(sender);
            }
            return Ok((status, body));
        }
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, String> {
        let stream = TcpStream::connect(self.to).await.map_err(|error| format!("{}: {error}", self.to))?;
        // Only a matter of delay.
        let _ = stream.set_nodelay(true);
        let stream = match &self.tls {
            None => Io::Tcp(stream),
            Some(config) => {
                let name = ServerName::IpAddress(self.to.ip().into());
                let secure = TlsConnector::from(config.clone()).connect(name, Io::Tcp(stream)).await;
                Io::Tls(Box::new(secure.map_err(|error| format!("{}: {error}", self.to))?.into()))
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        self.tasks.spawn(async move {
            // Whoever waits for an answer gets the error.
            let _ = connection.await;
        });
        Ok(sender)
    }
}
