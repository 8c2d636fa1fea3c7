//! A peer whose connections are pipes in memory, for the tests of this room.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

use super::endpoint::{Endpoint, Given, Turn};
use super::lease::{Answer, ConnectError, Lease, Version};
use super::peer::Peer;
use super::world::Upstreams;
use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::ids::PeerName;
use crate::life::tasks::Tasks;
use crate::net::io::{Duplex, Io};
use crate::plan::door::Protocol;
use crate::plan::peer::{Addresses, Balance, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource};

/// The connect timeout of a rig's peer.
pub(super) const CONNECT: Duration = Duration::from_secs(5);

/// Where a rig's endpoint claims to be.
pub(super) const ADDR: &str = "unix:/nonexistent/outrigger.sock";

/// A peer with one endpoint.
pub(super) struct Rig {
    pub(super) upstreams: Upstreams,
    pub(super) peer: Arc<Peer>,
    pub(super) endpoint: Arc<Endpoint>,
}

pub(super) fn policy() -> PeerPolicy {
    PeerPolicy {
        balance: Balance::PeakEwma,
        connect_timeout: CONNECT,
        request_timeout: None,
        body_idle: Duration::from_secs(60),
        tunnel_idle: Duration::from_secs(3600),
        keep_alive: Duration::from_secs(4),
        ..PeerPolicy::default()
    }
}

pub(super) fn plan(protocol: Protocol, specs: Vec<EndpointSpec>) -> PeerPlan {
    PeerPlan {
        name: PeerName::new("payments"),
        kind: PeerKind::Named,
        source: PeerSource { addresses: Addresses::Static(specs), protocol, tls: None, mtls: None, to_app: None },
        policy: Arc::new(policy()),
        routes: crate::plan::peer::Routes::default(),
    }
}

impl Rig {
    pub(super) fn new(protocol: Protocol) -> Self {
        // Nobody listens there, so a dial in earnest is refused and seen.
        let spec = EndpointSpec::bare(ADDR.parse().unwrap());
        let upstreams = Upstreams::new(Arc::default(), Tasks::default());
        let planned = plan(protocol, vec![spec]);
        let peer = Peer::new(&planned, upstreams.metrics.peer(&planned.name), &upstreams).unwrap();
        let endpoint = peer.endpoints().all()[0].clone();
        Self { upstreams, peer, endpoint }
    }

    /// Opens a connection over a pipe; gives the server's end.
    pub(super) async fn connect(&self, want: Version) -> (Result<Lease, ConnectError>, DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        (self.connect_over(want, ours).await, theirs)
    }

    /// Opens a connection over `ours`; panics if the pool would rather give another one.
    pub(super) async fn connect_over(&self, want: Version, ours: impl Duplex) -> Result<Lease, ConnectError> {
        let Turn::Now(Given::Connect(dialling)) = self.endpoint.turn(Instant::now(), self.peer.wish(want)) else {
            panic!("expected to be told to connect");
        };
        dialling.run(&self.peer, Deadline::NONE, async { Ok(Io::boxed(ours)) }).await
    }

    /// Opens an HTTP/2 connection to a server that runs `serve`.
    pub(super) async fn connect_http2<F: Future<Output = ()> + Send + 'static>(
        &self,
        builder: h2::server::Builder,
        serve: impl FnOnce(h2::server::Connection<DuplexStream, Bytes>) -> F + Send + 'static,
    ) -> Lease {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        self.upstreams.tasks.spawn(async move { serve(builder.handshake(theirs).await.unwrap()).await });
        self.connect_over(Version::Http2, ours).await.unwrap()
    }

    /// A lease from the pool; `ConnectRefused` where it would dial.
    pub(super) async fn lease(&self, want: Version) -> Result<Lease, ConnectError> {
        self.endpoint.lease(&self.peer, want, Deadline::NONE).await
    }
}

pub(super) fn get(path: &str) -> Request<Body> {
    Request::get(format!("http://payments{path}")).header("Host", "payments").body(Body::Empty).unwrap()
}

pub(super) fn post(body: Body) -> Request<Body> {
    Request::post("http://payments/").header("host", "payments").body(body).unwrap()
}

/// The answer's body, read to its end.
pub(super) async fn text(answer: Answer) -> String {
    String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Reads until what was read ends with `end`.
pub(super) async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        read.push(io.read_u8().await.unwrap_or_else(|_| panic!("the end after {:?}", String::from_utf8_lossy(&read))));
    }
    String::from_utf8(read).unwrap()
}

/// Writes a text.
pub(super) async fn write(io: &mut DuplexStream, text: &str) {
    io.write_all(text.as_bytes()).await.unwrap();
}

/// Whether the other end has closed, with nothing more to read.
pub(super) async fn ended(io: &mut DuplexStream) -> bool {
    let mut rest = Vec::new();
    io.read_to_end(&mut rest).await.is_ok() && rest.is_empty()
}
