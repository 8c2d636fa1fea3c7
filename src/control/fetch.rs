//! One GET by the control side: a small document from a server, by https or on this machine; redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, HOST, HeaderMap, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use crate::deadline::Deadline;
use crate::dns::resolver::Resolver;
use crate::ids::Addr;
use crate::net::dial::dial;
use crate::net::io::Io;
use crate::plan::door::Protocol;
use crate::plan::peer::{ClientTlsPlan, Roots};
use crate::tls::client::{ClientTls, SystemRoots};

/// Addresses of a name that are tried, and how long one may take to connect.
const MOST_ADDRESSES: usize = 4;
const CONNECT: Duration = Duration::from_secs(1);

/// What is asked for.
pub struct Url<'u> {
    /// A name, or an address without brackets.
    pub host: &'u str,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub target: &'u str,
    /// Whom to trust; `None` is plain HTTP.
    pub roots: Option<&'u Roots>,
}

/// What was got.
pub struct Fetched {
    /// The document.
    pub body: Bytes,
    /// How long it may be used, as the server says.
    pub max_age: Option<Duration>,
}

/// Fetches a document of at most `most` bytes; the caller sets the clock.
///
/// # Errors
/// One line.
pub async fn fetch(url: &Url<'_>, resolver: &Arc<Resolver>, most: usize) -> Result<Fetched, String> {
    let tls = url.roots.map(|roots| {
        let plan = ClientTlsPlan { roots: roots.clone(), sni: url.host.to_owned() };
        ClientTls::new(&plan, Protocol::Http1, &SystemRoots::default())
    });
    let tls = tls.transpose()?;
    let io = connect(url, resolver).await?;
    let io = match &tls {
        Some(tls) => Io::Tls(Box::new(tls.connect(tls.for_endpoint(), io).await?.0.into())),
        None => io,
    };
    get(url, io, most).await
}

async fn connect(url: &Url<'_>, resolver: &Arc<Resolver>) -> Result<Io, String> {
    let found = resolver.addresses(url.host).await.map_err(|error| format!("looking up {}: {error}", url.host))?;
    let mut trouble = format!("{} has no address", url.host);
    for ip in found.ips().take(MOST_ADDRESSES) {
        let addr = Addr::Tcp((ip, url.port).into());
        match dial(&addr, Deadline::after(Instant::now(), Some(CONNECT))).await {
            Ok(io) => return Ok(io),
            Err(error) => trouble = error.detail,
        }
    }
    Err(trouble)
}

async fn get(url: &Url<'_>, io: Io, most: usize) -> Result<Fetched, String> {
    let broken = |error: &dyn std::fmt::Display| format!("asking {}: {error}", url.host);
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| broken(&error))?;
    let request = Request::get(url.target)
        .header(HOST, host(url))
        .header(USER_AGENT, concat!("outrigger/", env!("CARGO_PKG_VERSION")))
        .header(ACCEPT, "application/jwk-set+json, application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| broken(&error))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(format!("{} answers {status}: redirects are not followed, name the last URL", url.host));
            }
            status => return Err(format!("{} answers {status}", url.host)),
        }
        let max_age = max_age(answer.headers());
        let body = Limited::new(answer.into_body(), most).collect().await.map_err(|error| broken(&error))?;
        Ok(Fetched { body: body.to_bytes(), max_age })
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end while the last bytes of the answer wait to be read.
        _ = &mut connection => timeout(CONNECT, answer).await.unwrap_or_else(|_| Err(broken(&"the connection ended"))),
    }
}

fn host(url: &Url<'_>) -> String {
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.to_owned() };
    let usual = if url.roots.is_some() { 443 } else { 80 };
    if url.port == usual { host } else { format!("{host}:{}", url.port) }
}

/// What `Cache-Control` allows (RFC 9111 §5.2.2); a document that is not to be kept is kept for no time.
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let fields = headers.get_all(CACHE_CONTROL).iter().filter_map(|field| field.to_str().ok());
    let mut age = None;
    for directive in fields.flat_map(|field| field.split(',')) {
        let directive = directive.trim().to_ascii_lowercase();
        if directive == "no-store" || directive == "no-cache" {
            return Some(Duration::ZERO);
        }
        if let Some(seconds) = directive.strip_prefix("max-age=") {
            // What is no number, or too large for one, says nothing.
            age = age.or_else(|| seconds.trim_matches('"').parse().ok().map(Duration::from_secs));
        }
    }
    age
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use http::HeaderValue;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::control::testing::plan;
    use crate::life::tasks::Tasks;
    use crate::plan::door::ServerTlsPlan;

    /// A root, and a certificate for `localhost` under it.
    fn certificates(folder: &std::path::Path) -> (PathBuf, ServerTlsPlan) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec!["localhost".into()]).unwrap().signed_by(&key, &root).unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
            folder.join(name)
        };
        let served =
            ServerTlsPlan { certificate: write("c.pem", &leaf.pem()), key: write("k.pem", &key.serialize_pem()) };
        (write("ca.pem", &root.pem()), served)
    }

    #[tokio::test]
    async fn a_server_is_believed_by_its_roots_and_its_name() {
        let folder = std::env::temp_dir().join(format!("outrigger-fetch-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (roots, served) = certificates(&folder);
        let acceptor = TlsAcceptor::from(crate::tls::server::config(&served).unwrap());
        std::fs::remove_file(served.key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, tasks) = (listener.local_addr().unwrap().port(), Tasks::default());
        let server = tasks.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut head = vec![0; 1024];
                let n = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..n]).into_owned();
                let body = head.lines().next().unwrap().to_owned() + &head.contains("host: localhost:").to_string();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let resolver = Resolver::new(&plan().dns);
        let roots = Roots::File(roots);
        let url = Url { host: "localhost", port, target: "/k?a", roots: Some(&roots) };
        let got = fetch(&url, &resolver, 1000).await.unwrap();
        assert_eq!((&*got.body, got.max_age), (&b"GET /k?a HTTP/1.1true"[..], None));
        assert!(fetch(&url, &resolver, 10).await.err().unwrap().contains("length limit exceeded"));
        let named = Url { host: "127.0.0.1", ..url };
        let error = fetch(&named, &resolver, 1000).await.err().unwrap();
        assert!(error.contains("not valid for name"), "{error}");
        let strange = Url { host: "localhost", roots: Some(&Roots::System), ..named };
        let error = fetch(&strange, &resolver, 1000).await.err().unwrap();
        assert!(error.contains("UnknownIssuer") || error.contains("no root certificates"), "{error}");
        server.abort();
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_servers_word_on_keeping_is_read() {
        for (fields, expect) in [
            (&[][..], None),
            (&["public, max-age=600"][..], Some(600)),
            (&["MAX-AGE=\"5\"", "max-age=6"][..], Some(5)),
            (&["max-age=600, no-store"][..], Some(0)),
            (&["no-cache"][..], Some(0)),
            (&["max-age=-1, s-maxage=3"][..], None),
            (&["max-age=99999999999999999999"][..], None),
        ] {
            let mut headers = HeaderMap::new();
            for field in fields {
                headers.append(CACHE_CONTROL, HeaderValue::from_static(field));
            }
            assert_eq!(max_age(&headers), expect.map(Duration::from_secs), "{fields:?}");
        }
    }
}
