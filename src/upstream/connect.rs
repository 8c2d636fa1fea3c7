//! Opening a connection: dial, TLS, the protocol's preface, and its place in the pool.

use std::sync::{Arc, Weak};

use hyper::client::conn::http1::SendRequest;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::endpoint::{Endpoint, late, within};
use super::http1::{self, One};
use super::http2;
use super::lease::{ConnectError, Lease, ManyHold, OneHold, Version};
use super::mesh::Secured;
use super::outgoing::Outgoing;
use super::peer::Peer;
use super::room::Place;
use crate::deadline::Deadline;
use crate::ids::Addr;
use crate::net::dial::{self, DialError};
use crate::net::io::Io;
use crate::plan::door::Protocol;
use crate::plan::peer::PeerKind;
use crate::reason::Reason;
use crate::telemetry::metrics::PeerMetrics;
use crate::tls::client::Alpn;
use crate::tls::proof::Proof;
use crate::tls::untrusted::{Role, refused_by_peer};

/// The duty to open a connection that a pool counts as connecting; dropped, it tells the pool that it was abandoned.
pub(super) struct Dialling {
    endpoint: Arc<Endpoint>,
    expected: Option<Version>,
    place: Option<Place>,
    done: bool,
}

/// A connection that was opened.
enum Opened {
    One(SendRequest<Outgoing>, Box<http1::Driver>, Option<Arc<Proof>>),
    Many(http2::Many, Box<http2::Driver>),
}

impl Opened {
    /// What its end has proven must still hold: it may have been judged again before the connection could be used.
    fn believed(self, addr: &Addr) -> Result<Self, ConnectError> {
        let proof = match &self {
            Self::One(_, _, proof) => proof.as_ref(),
            Self::Many(many, _) => many.life().proof(),
        };
        match proof.and_then(|proof| proof.over()) {
            Some(why) => Err(ConnectError { reason: why.reason(Role::Server), detail: format!("{addr}: {why}") }),
            None => Ok(self),
        }
    }
}

impl Dialling {
    pub(super) fn new(endpoint: Arc<Endpoint>, expected: Option<Version>, place: Place) -> Self {
        Self { endpoint, expected, place: Some(place), done: false }
    }

    /// Opens the connection over `io` and takes it, telling the pool either way. The connect timeout bounds the whole.
    pub(super) async fn run(
        mut self,
        peer: &Arc<Peer>,
        deadline: Deadline,
        io: impl Future<Output = Result<Io, DialError>>,
    ) -> Result<Lease, ConnectError> {
        let limit = Deadline::after(Instant::now(), Some(peer.policy().connect_timeout)).min(deadline);
        let opened = match within(limit, self.open(peer, io)).await {
            Some(result) => result,
            None if deadline.passed(Instant::now()) => Err(late(self.endpoint.addr())),
            None => Err(ConnectError {
                reason: Reason::ConnectTimeout,
                detail: format!("connecting to {} took too long", self.endpoint.addr()),
            }),
        };
        self.done = true;
        match opened.and_then(|opened| opened.believed(self.endpoint.addr())) {
            Ok(opened) => {
                peer.metrics().connects.inc();
                if let Some(place) = &mut self.place {
                    place.connected();
                }
                Ok(self.register(peer, opened))
            }
            Err(error) => {
                peer.metrics().connect_failures.inc();
                self.endpoint.note(peer, &error);
                self.place = None;
                // A caller's own short deadline says nothing about the endpoint: the next in line tries for itself.
                let shared = (error.reason != Reason::DeadlinePassed).then_some(&error);
                self.endpoint.failed(self.expected, shared);
                Err(error)
            }
        }
    }

    async fn open(&self, peer: &Peer, io: impl Future<Output = Result<Io, DialError>>) -> Result<Opened, ConnectError> {
        let addr = self.endpoint.addr();
        if let Some(mesh) = peer.mesh() {
            mesh.identity()?;
        }
        let io = io.await.map_err(refused)?;
        // A peer may pause in taking a request for as long as its body may stand still, which has its own clock.
        let patience = peer.policy().body_idle;
        if patience > dial::USER_TIMEOUT {
            io.set_user_timeout(Some(patience));
        }
        let mut proof = None;
        let (io, version) = match (peer.tls(), peer.mesh()) {
            (_, Some(mesh)) => {
                let Secured { io, alpn, proof: proven } = mesh.secured(&self.endpoint, self.expected, io).await?;
                proof = Some(proven);
                let declared = self.expected.map_or(peer.source().protocol, declared);
                (io, agreed(declared, alpn).map_err(|error| tls_failed(addr, error))?)
            }
            (None, None) => (io, self.expected.unwrap_or(Version::Http1)),
            (Some(tls), None) => {
                let config = self.endpoint.tls(|| tls.for_endpoint());
                let (stream, alpn) = tls.connect(config, io).await.map_err(|error| tls_failed(addr, error))?;
                let io = Io::Tls(Box::new(stream.into()));
                (io, agreed(peer.source().protocol, alpn).map_err(|error| tls_failed(addr, error))?)
            }
        };
        match version {
            Version::Http1 => {
                let (sender, driver) = http1::handshake(io).await.map_err(|error| ConnectError {
                    reason: Reason::ConnectFailed,
                    detail: format!("HTTP/1 with {addr}: {error}"),
                })?;
                Ok(Opened::One(sender, Box::new(driver), proof))
            }
            Version::Http2 => {
                let (many, driver) =
                    http2::handshake(io, peer.tasks(), proof).await.map_err(|error| not_http2(peer, addr, &error))?;
                Ok(Opened::Many(many, driver))
            }
        }
    }

    /// Opens the connection for nobody in particular: it is there when the one it replaces takes no new streams.
    pub(super) async fn beforehand(self, peer: Arc<Peer>) {
        let addr = self.endpoint.addr().clone();
        // What went wrong is noted where all failures to connect are; the older connection goes on.
        let to_app = peer.to_app();
        drop(self.run(&peer, Deadline::NONE, dial::dial_to(to_app, &addr)).await);
    }

    /// Gives the connection its place in the pool and its task.
    fn register(&mut self, peer: &Peer, opened: Opened) -> Lease {
        let (endpoint, tasks, place) = (&self.endpoint, peer.tasks(), self.place.take());
        match opened {
            Opened::One(sender, driver, proof) => {
                let id = endpoint.opened_one(self.expected);
                let open = Open::new(endpoint, id, Version::Http1, peer.metrics(), place);
                let (used, unused) = oneshot::channel();
                let task = tasks.spawn(async move {
                    // Declared first and so dropped last: the pool hears of the end after the connection is gone.
                    let mut open = open;
                    // What ended it is told to the request that it had, if any.
                    let _ = driver.with_upgrades().await;
                    open.ended();
                    // Nothing is ever sent: a tunnel that it has become lets go of it at its end.
                    let _ = unused.await;
                });
                if let Some(proof) = &proof {
                    proof.forces(task.clone());
                }
                Lease::one(OneHold::new(endpoint.clone(), id, One::new(sender, task, used, proof), false))
            }
            Opened::Many(many, driver) => {
                // A tenth more or less, so that connections that were opened together do not end together.
                let age = peer.policy().connection_age.map(|age| age.mul_f64(0.9 + 0.2 * fastrand::f64()));
                let id = endpoint.opened_many(self.expected, many.clone(), driver.max_streams(), age);
                let open = Open::new(endpoint, id, Version::Http2, peer.metrics(), place);
                let weak = Arc::downgrade(endpoint);
                let task = tasks.spawn(async move {
                    let _open = open;
                    http2::drive(driver, weak, id).await;
                });
                if let Some(proof) = many.life().proof() {
                    proof.forces(task);
                }
                Lease::many(ManyHold::new(endpoint.clone(), id, many, false))
            }
        }
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        if !self.done {
            // First, so that the next in line finds room.
            self.place = None;
            self.endpoint.failed(self.expected, None);
        }
    }
}

impl Endpoint {
    pub(super) async fn dial_raw(
        &self,
        peer: &Peer,
        deadline: Deadline,
    ) -> Result<(Io, Option<Arc<Proof>>), ConnectError> {
        let limit = Deadline::after(Instant::now(), Some(peer.policy().connect_timeout)).min(deadline);
        let connect = async {
            if let Some(mesh) = peer.mesh() {
                mesh.identity()?;
            }
            let io = dial::dial_to(peer.to_app(), self.addr()).await.map_err(refused)?;
            if let Some(mesh) = peer.mesh() {
                return mesh.secured(self, None, io).await.map(|secured| (secured.io, Some(secured.proof)));
            }
            let Some(tls) = peer.tls() else { return Ok((io, None)) };
            tls.connect(tls.for_bytes(), io)
                .await
                .map(|(stream, _)| (Io::Tls(Box::new(stream.into())), None))
                .map_err(|error| tls_failed(self.addr(), error))
        };
        let result = match within(limit, connect).await {
            Some(result) => result,
            None if deadline.passed(Instant::now()) => Err(late(self.addr())),
            None => Err(ConnectError {
                reason: Reason::ConnectTimeout,
                detail: format!("connecting to {} took too long", self.addr()),
            }),
        };
        match &result {
            Ok(_) => peer.metrics().connects.inc(),
            Err(error) => {
                peer.metrics().connect_failures.inc();
                self.note(peer, error);
            }
        }
        result
    }
}

/// What a connection's task owns besides the connection: its end is told to the pool and the metrics, however it ends.
struct Open {
    endpoint: Weak<Endpoint>,
    id: u64,
    version: Version,
    metrics: Arc<PeerMetrics>,
    place: Option<Place>,
    /// Whether the pool knows.
    ended: bool,
}

impl Open {
    fn new(
        endpoint: &Arc<Endpoint>,
        id: u64,
        version: Version,
        metrics: &Arc<PeerMetrics>,
        place: Option<Place>,
    ) -> Self {
        metrics.connections.add(1);
        Self { endpoint: Arc::downgrade(endpoint), id, version, metrics: metrics.clone(), place, ended: false }
    }
}

impl Open {
    /// The pool has it no more; it may go on as a tunnel.
    fn ended(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let Some(endpoint) = self.endpoint.upgrade() else { return };
        match self.version {
            Version::Http1 => endpoint.closed(self.id),
            Version::Http2 => endpoint.gone(self.id),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.add(-1);
        // First, so that the next in line finds room.
        self.place = None;
        if !self.ended {
            self.ended();
        } else if let Some(endpoint) = self.endpoint.upgrade() {
            endpoint.look_again(Instant::now());
        }
    }
}

/// The protocol that a connection of this version is for.
fn declared(version: Version) -> Protocol {
    match version {
        Version::Http1 => Protocol::Http1,
        Version::Http2 => Protocol::Http2,
    }
}

/// The version that declaration and ALPN give together; a declared protocol is binding.
fn agreed(declared: Protocol, alpn: Alpn) -> Result<Version, String> {
    match (declared, alpn) {
        (Protocol::Http2 | Protocol::Auto, Alpn::Http2) => Ok(Version::Http2),
        (Protocol::Http2, Alpn::Other) => Err("it did not agree on HTTP/2 (ALPN h2), which `protocol` asks for".into()),
        (Protocol::Http1, Alpn::Http2) => Err("it chose HTTP/2, which was not offered".into()),
        _ => Ok(Version::Http1),
    }
}

/// Who speaks only HTTP/1 takes the preface for a request and answers in text, whose first letters are far too long a
/// frame, or hangs up: then what is to be set is worth more than HTTP/2's words.
fn not_http2(peer: &Peer, addr: &Addr, error: &h2::Error) -> ConnectError {
    if let Some(why) = error.get_io().and_then(refused_by_peer) {
        return ConnectError { reason: Reason::RefusedByPeer, detail: format!("{addr}: {why}") };
    }
    let text = error.is_library() && error.reason() == Some(h2::Reason::FRAME_SIZE_ERROR);
    let ended = error.is_io() || error.reason() == Some(h2::Reason::NO_ERROR);
    let remedy = match peer.kind() {
        PeerKind::App => {
            "if the app speaks only HTTP/1, its callers' sidecars need `protocol: http1` for this peer".into()
        }
        PeerKind::Named => format!("if it speaks only HTTP/1, set `peers.{}.protocol: http1`", peer.name()),
        PeerKind::Adhoc => "if it speaks only HTTP/1, list it under `peers` with `protocol: http1`".into(),
    };
    let detail = match (text, ended) {
        (true, _) => format!("{addr} answered HTTP/2 with something else; {remedy}"),
        (false, true) => format!("{addr} ended the connection at the beginning of HTTP/2; {remedy}"),
        (false, false) => format!("{addr} did not answer as HTTP/2: {error}"),
    };
    ConnectError { reason: Reason::ConnectFailed, detail }
}

fn refused(error: DialError) -> ConnectError {
    ConnectError { reason: error.reason, detail: error.detail }
}

fn tls_failed(addr: &Addr, error: String) -> ConnectError {
    ConnectError { reason: Reason::TlsFailed, detail: format!("{addr}: {error}") }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::upstream::endpoint::{Given, Turn};
    use crate::upstream::rig::{ADDR, Rig, write};

    #[tokio::test]
    async fn a_peer_may_pause_for_as_long_as_a_body_may_stand_still() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap().into_std().unwrap();
        let same = stream.try_clone().unwrap();
        let rig = Rig::new(Protocol::Http1);
        let Turn::Now(Given::Connect(dialling)) = rig.endpoint.turn(Instant::now(), Some(Version::Http1)) else {
            panic!("expected to be told to connect");
        };
        let io = async { Ok(Io::Tcp(TcpStream::from_std(stream).unwrap())) };
        let _lease = dialling.run(&rig.peer, Deadline::NONE, io).await.unwrap();
        assert_eq!(SockRef::from(&same).tcp_user_timeout().unwrap(), Some(rig.peer.policy().body_idle));
    }

    #[tokio::test(start_paused = true)]
    async fn who_speaks_no_http2_is_told_with_what_to_set() {
        for (says, words) in [
            (&b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"[..], "answered HTTP/2 with something else; "),
            (b"<!DOCTYPE HTML PUBLIC", "answered HTTP/2 with something else; "),
            (b"", "ended the connection at the beginning of HTTP/2; "),
        ] {
            let rig = Rig::new(Protocol::Auto);
            let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
            write(&mut theirs, std::str::from_utf8(says).unwrap()).await;
            let open = (!says.is_empty()).then_some(theirs);
            let error = rig.connect_over(Version::Http2, ours).await.err().unwrap();
            let remedy = "if it speaks only HTTP/1, set `peers.payments.protocol: http1`";
            assert_eq!((error.reason, error.detail), (Reason::ConnectFailed, format!("{ADDR} {words}{remedy}")));
            drop(open);
        }
        // It does speak HTTP/2, badly: HEADERS on stream 0.
        let rig = Rig::new(Protocol::Auto);
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        write(&mut theirs, "\0\0\u{6}\u{1}\0\0\0\0\0abcdef").await;
        let error = rig.connect_over(Version::Http2, ours).await.err().unwrap();
        assert!(error.detail.starts_with(&format!("{ADDR} did not answer as HTTP/2: ")), "{error}");
    }
}
