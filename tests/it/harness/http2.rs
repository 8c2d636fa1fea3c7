//! HTTP/2 callers and apps on h2 itself, each step in the test's hand; certificates made on the spot.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::PATIENCE;

/// h2's guard against small frames is not what is tested at this end.
const NO_GUARD: usize = 1 << 30;

/// Waits with a clock.
pub(crate) async fn soon<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never came: {what}"))
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Got {
    pub(crate) head: http::response::Parts,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Got {
    pub(crate) fn status(&self) -> u16 {
        self.head.status.as_u16()
    }

    /// A field of the head, or of the trailers.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let value = self.head.headers.get(name).or_else(|| self.trailers.as_ref()?.get(name));
        value.map(|value| value.to_str().unwrap())
    }

    /// The reason in `Proxy-Status`.
    pub(crate) fn reason(&self) -> &str {
        let status = self.field("proxy-status").unwrap_or_else(|| panic!("no Proxy-Status in {self:?}"));
        status.split("reason=").nth(1).unwrap().split(';').next().unwrap()
    }
}

/// A caller's connection.
pub(crate) struct Caller2 {
    pub(crate) send: client::SendRequest<Bytes>,
    /// How the connection ends.
    pub(crate) end: JoinHandle<Result<(), h2::Error>>,
}

/// A builder without a guard.
pub(crate) fn caller() -> client::Builder {
    let mut builder = client::Builder::new();
    // Nor is its count of answers that cross with a cancellation.
    builder.data_frame_budget(NO_GUARD).max_header_list_size(1 << 20).max_local_error_reset_streams(None);
    builder
}

/// A builder without a guard.
pub(crate) fn app() -> server::Builder {
    let mut builder = server::Builder::new();
    builder.data_frame_budget(NO_GUARD).max_header_list_size(1 << 20);
    builder
}

impl Caller2 {
    /// With prior knowledge.
    pub(crate) async fn connect(to: SocketAddr) -> Self {
        Self::with(&caller(), to).await
    }

    pub(crate) async fn with(builder: &client::Builder, to: SocketAddr) -> Self {
        Self::over(builder, TcpStream::connect(to).await.unwrap()).await
    }

    pub(crate) async fn over(
        builder: &client::Builder,
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let (send, connection) = soon("a handshake", builder.handshake(io)).await.unwrap();
        Self { send, end: tokio::spawn(connection) }
    }

    /// Opens a stream.
    pub(crate) async fn open(&mut self, request: Request<()>, end: bool) -> (ResponseFuture, SendStream<Bytes>) {
        let mut ready = soon("room for a stream", self.send.clone().ready()).await.unwrap();
        ready.send_request(request, end).unwrap()
    }

    /// Sends a whole request and reads the whole answer.
    pub(crate) async fn send(&mut self, request: Request<&str>) -> Result<Got, h2::Error> {
        let (head, body) = request.into_parts();
        let (answer, mut stream) = self.open(Request::from_parts(head, ()), body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true).unwrap();
        }
        read(answer).await
    }

    pub(crate) async fn get(&mut self, uri: &str) -> Result<Got, h2::Error> {
        self.send(Request::get(uri).body("").unwrap()).await
    }
}

/// Reads a whole answer.
pub(crate) async fn read(answer: ResponseFuture) -> Result<Got, h2::Error> {
    let (head, stream) = soon("an answer's head", answer).await?.into_parts();
    let (body, trailers) = drain(stream).await?;
    Ok(Got { head, body, trailers })
}

/// Reads a whole body, giving window back.
pub(crate) async fn drain(mut stream: RecvStream) -> Result<(Bytes, Option<HeaderMap>), h2::Error> {
    let mut body = Vec::new();
    while let Some(piece) = soon("a piece of a body", stream.data()).await {
        let piece = piece?;
        let _ = stream.flow_control().release_capacity(piece.len());
        body.extend_from_slice(&piece);
    }
    let trailers = soon("trailers or an end", stream.trailers()).await?;
    Ok((body.into(), trailers))
}

/// The next piece of a body, which must come.
pub(crate) async fn piece(stream: &mut RecvStream) -> Bytes {
    let piece = soon("a piece of a body", stream.data()).await.expect("not the end").unwrap();
    let _ = stream.flow_control().release_capacity(piece.len());
    piece
}

/// The error or clean end that follows; anything else fails.
pub(crate) async fn end_of(stream: &mut RecvStream) -> Result<(), h2::Error> {
    let next = loop {
        match soon("the end of a body", stream.data()).await {
            Some(Ok(piece)) if piece.is_empty() => {}
            next => break next,
        }
    };
    match next {
        None => soon("the end", stream.trailers()).await.map(|trailers| assert!(trailers.is_none(), "{trailers:?}")),
        Some(Ok(more)) => panic!("more of the body: {} bytes", more.len()),
        Some(Err(error)) => Err(error),
    }
}

/// Sends all bytes, waiting for window.
pub(crate) async fn pour(stream: &mut SendStream<Bytes>, mut bytes: Bytes, end: bool) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        while stream.capacity() == 0 {
            match soon("window", poll_fn(|cx| stream.poll_capacity(cx))).await {
                Some(room) => room?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            };
        }
        let part = bytes.split_to(stream.capacity().min(bytes.len()));
        let last = end && bytes.is_empty();
        stream.send_data(part, last)?;
    }
    Ok(())
}

/// A request as an app got it, with what it is answered by.
pub(crate) struct Arrived {
    pub(crate) request: Request<RecvStream>,
    pub(crate) respond: SendResponse<Bytes>,
    /// Which of the app's connections it came on, from 0.
    pub(crate) connection: usize,
}

impl Arrived {
    /// A field of the request.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name).map(|value| value.to_str().unwrap())
    }

    /// Answers 200 with this body.
    pub(crate) fn answer(&mut self, body: &'static str) {
        let mut stream = self.respond.send_response(Response::new(()), body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
        }
    }
}

/// An app that speaks HTTP/2 and hands every request to the test.
pub(crate) struct App2 {
    pub(crate) addr: SocketAddr,
    arrived: mpsc::Receiver<Arrived>,
}

impl App2 {
    pub(crate) async fn start() -> Self {
        Self::with(app()).await
    }

    pub(crate) async fn with(builder: server::Builder) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (to, arrived) = mpsc::channel(4096);
        tokio::spawn(async move {
            let count = Arc::new(AtomicUsize::new(0));
            loop {
                let Ok((io, _)) = listener.accept().await else { return };
                let (builder, to, count) = (builder.clone(), to.clone(), count.clone());
                tokio::spawn(async move {
                    let Ok(mut serving) = builder.handshake(io).await else { return };
                    // A connection that was dialled early and not used ends before it.
                    let connection = count.fetch_add(1, Ordering::Relaxed);
                    while let Some(Ok((request, respond))) = serving.accept().await {
                        let _ = to.send(Arrived { request, respond, connection }).await;
                    }
                });
            }
        });
        Self { addr, arrived }
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> Arrived {
        soon("a request at the app", self.arrived.recv()).await.unwrap()
    }

    /// A request that is there already.
    pub(crate) fn try_next(&mut self) -> Option<Arrived> {
        self.arrived.try_recv().ok()
    }

    /// Fails if the app was called.
    pub(crate) fn unseen(&mut self) {
        assert!(self.arrived.try_recv().is_err(), "the app was called");
    }
}

/// A certificate for `localhost`: PEM of it and its key, and a caller's configuration that trusts it.
pub(crate) fn certificate(alpn: &[&[u8]]) -> (String, String, Arc<rustls::ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    (made.cert.pem(), made.signing_key.serialize_pem(), Arc::new(config))
}

/// Connects with TLS.
pub(crate) async fn tls(
    config: Arc<rustls::ClientConfig>,
    to: SocketAddr,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let stream = TcpStream::connect(to).await.unwrap();
    let name = "localhost".try_into().unwrap();
    soon("a TLS handshake", tokio_rustls::TlsConnector::from(config).connect(name, stream)).await.unwrap()
}

/// Frames by hand, for what h2 would not send.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// What a connection begins with (RFC 9113 §3.4).
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HPACK's plainest form: a literal with a new name, not indexed, without Huffman.
pub(crate) fn block(fields: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text);
        }
    }
    block
}
