//! One accepted connection: find out what it speaks, then serve it or tunnel it.
//!
//! On a door that leads to one peer and declares no protocol, the peer is dialled while the caller is still silent:
//! whoever speaks first decides, so a protocol in which the server speaks first needs no timer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::failure::LATE_HEAD;
use super::identify::identify;
use super::policy;
use super::record;
use super::serve::serve_http1;
use super::serve_http2::serve_http2;
use super::target;
use super::tunnel::Opaque;
use super::{Caller, Conn, Core, Learned};
use crate::call::Failure;
use crate::deadline::Deadline;
use crate::ids::{ClientAddr, Door};
use crate::life::drain::{Phase, Watch};
use crate::net::accept::USER_TIMEOUT;
use crate::net::clocked::Clock;
use crate::net::io::Io;
use crate::net::origdst::OriginalDst;
use crate::net::sniff::{Wire, is_http2_server, is_tls_record, may_become_http1, sniff};
use crate::plan::Plan;
use crate::plan::door::{DoorPlan, Leads, Mtls, Protocol};
use crate::reason::Reason;
use crate::upstream::peer::Peer;

/// How long a silent caller may still speak after the early dial failed, before its connection is closed.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How long a caller that may come with or without TLS is listened to before the app may speak first.
const HEAD_START: Duration = Duration::from_millis(200);

/// Said of opaque bytes without TLS where it is demanded.
const PLAINTEXT: &str = "this door takes mutual TLS only (`inbound.mtls: strict`), and this is plaintext";

/// Said of TLS where nothing ends it.
pub const TLS_AT_PLAIN_DOOR: &str = "the caller speaks TLS, and this door does not: `inbound.mtls` is off here and there is no \
                                 `inbound.tls`; either turn one on, or have the caller's peer say `mtls: off`, or list the \
                                 name of the app's own TLS under `inbound.passthrough`";

/// Makes the record of an accepted connection.
pub fn accepted(
    core: &Arc<Core>,
    plan: &Arc<Plan>,
    door: &Arc<DoorPlan>,
    learned: &Arc<Learned>,
    client: ClientAddr,
    drain: Watch,
) -> Conn {
    let ip = client.0.map(|addr| addr.ip());
    // The outbound door's callers are the app itself; a Unix socket's are those that may open it.
    let local = ip.is_none_or(|ip| ip.is_loopback());
    let trusted = match door.side {
        Door::Outbound => local || door.trusted.iter().any(|net| ip.is_some_and(|ip| net.contains(&ip))),
        Door::Inbound => ip.is_none_or(|ip| door.trusted.iter().any(|net| net.contains(&ip))),
    };
    let client_field = ip.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok());
    let counted = core.clone();
    let side = door.side;
    Conn {
        core: core.clone(),
        plan: plan.clone(),
        door: door.clone(),
        learned: learned.clone(),
        caller: Caller { client, original: OriginalDst::EXPLICIT },
        client_field,
        trusted,
        tls: false,
        proof: None,
        counted: AtomicBool::new(false),
        client_cert: None,
        clock: Clock::new(Instant::now()),
        no_informational: Arc::new(move |answer| {
            if answer.status() != StatusCode::CONTINUE {
                counted.metrics.door(side).informational_dropped.inc();
            }
        }),
        drain,
        place: None,
    }
}

/// Serves an accepted connection to its end.
pub async fn serve(conn: Conn, io: Io) {
    // A reader may pause for as long as an answer may stand still, which has its own clock.
    if conn.door.limits.body_idle > USER_TIMEOUT {
        io.set_user_timeout(Some(conn.door.limits.body_idle));
    }
    // Where TLS may come, the first bytes are looked at whatever is declared.
    if conn.door.tls.is_some() || conn.door.mtls != Mtls::Off || conn.door.passes_all {
        return Box::pin(detect(conn, io)).await;
    }
    match conn.door.protocol {
        Protocol::Tcp if !conn.door.passthrough.is_empty() => Box::pin(detect(conn, io)).await,
        _ => declared(conn, io).await,
    }
}

/// Serves a connection that holds what its door declares, or finds out.
pub(super) async fn declared(conn: Conn, io: Io) {
    match conn.door.protocol {
        Protocol::Http1 => serve_http1(Arc::new(conn), io).await,
        Protocol::Http2 => serve_http2(Arc::new(conn), io).await,
        Protocol::Tcp => opaque(Arc::new(conn), io).await,
        Protocol::Auto => Box::pin(detect(conn, io)).await,
    }
}

/// What detection ended with.
enum Found {
    /// The caller spoke first, and this; the peer may be connected already.
    Caller(Wire, Option<(Opaque, Io)>),
    /// The peer spoke first, and this.
    Peer(Opaque, Io, BytesMut),
    /// The caller's first bytes stopped short of telling the protocol.
    Late,
    /// Neither, in time; or the peer could not be reached.
    Nothing,
}

async fn detect(conn: Conn, mut io: Io) {
    let conn = Arc::new(conn);
    let mut seen = BytesMut::new();
    let found = find(&conn, &mut io, &mut seen).await;
    count_plaintext(&conn, &found, &seen);
    match found {
        Found::Nothing => {}
        // Connected and closed, as a health check does: nobody was called who is to be told of.
        Found::Caller(Wire::Opaque, None) if seen.is_empty() && calls_nobody(&conn) => {}
        Found::Late => late(&conn, io, &seen).await,
        // No ClientHello that can be read, but a record of TLS: whoever sent it is owed an alert, not a silent close.
        Found::Caller(Wire::Opaque, None) if conn.is_unproven() && is_tls_record(&seen) => {
            identify(conn, io.prefixed(seen.freeze())).await;
        }
        // The tunnel writes the greeting too, under its clock and its shutdown.
        Found::Peer(record, peer, first) => {
            record.carry(io.prefixed(seen.freeze()), peer.prefixed(first.freeze())).await;
        }
        Found::Caller(wire, dialled) => speak(conn, wire, io.prefixed(seen.freeze()), dialled).await,
    }
}

/// Counts who came in plaintext, but for requests: what these are is for [`policy`] to see, which lets probes in.
fn count_plaintext(conn: &Conn, found: &Found, seen: &BytesMut) {
    let plaintext = match found {
        Found::Caller(Wire::Tls { .. }, _) | Found::Late | Found::Nothing => false,
        Found::Caller(wire, _) => !seen.is_empty() && !is_http(wire, conn.door.protocol),
        Found::Peer(..) => true,
    };
    if plaintext {
        conn.count_plaintext();
    }
}

/// Whether the door leads to no one peer, or the rules of the service keep opaque bytes from it.
fn calls_nobody(conn: &Conn) -> bool {
    matches!(conn.door.leads, Leads::ByAuthority)
        || conn.is_unproven()
        || policy::bytes(conn, &conn.core.world.load()).is_err()
}

/// Tells of first bytes that stopped short, for nothing else does; a caller that began a request is answered too.
async fn late(conn: &Conn, mut io: Io, seen: &[u8]) {
    let answered = matches!(conn.door.protocol, Protocol::Auto | Protocol::Http1) && may_become_http1(seen);
    let status = answered.then_some(StatusCode::REQUEST_TIMEOUT);
    let detail = "the first bytes stopped before they told the protocol";
    record::refused_with(conn, Reason::HeadTimeout, status, detail);
    if answered {
        // Best effort: a caller that does not read gets the close alone.
        let _ = timeout(LAST_WORD, io.write_all(LATE_HEAD)).await;
    }
}

/// Listens to the caller, and to the peer as well where it may speak first.
async fn find(conn: &Arc<Conn>, io: &mut Io, seen: &mut BytesMut) -> Found {
    let limits = &conn.door.limits;
    let early = early_peer(conn);
    // A caller that speaks at once needs no early dial.
    let sniffing = sniff(io, seen, limits.head_timeout);
    tokio::pin!(sniffing);
    if let Some(wire) = at_first(conn, early.is_some(), sniffing.as_mut()).await {
        return heard(wire);
    }
    let mut drain = conn.drain.clone();
    let Some(peer) = early else {
        // For the first byte, as long as a kept-alive connection may be idle; the rest has the head's clock in `sniff`.
        return tokio::select! {
            wire = timeout(first_bytes(limits.keep_alive, limits.head_timeout), sniffing) => match wire {
                Ok(wire) => heard(wire),
                Err(_) => Found::Nothing,
            },
            _ = drain.reached(Phase::Draining) => Found::Nothing,
        };
    };
    let mut record = Opaque::begin(conn, &peer, "tcp", "");
    let race = async {
        let (dialled, spoken) = match dial_meanwhile(&mut record, sniffing.as_mut()).await {
            Ok(dialled) => dialled,
            Err(wire) => {
                record.unused();
                return heard(wire);
            }
        };
        let mut dialled = match (dialled, spoken) {
            (Ok(dialled), Some(wire)) => return Found::Caller(wire, Some((record, dialled))),
            (Ok(dialled), None) => dialled,
            (Err(_), Some(_)) => return Found::Nothing,
            (Err(_), None) => return last_word(sniffing.as_mut(), record, LAST_WORD).await,
        };
        let mut first = BytesMut::with_capacity(1024);
        tokio::select! {
            wire = sniffing.as_mut() => match wire {
                Ok(wire) => Found::Caller(wire, Some((record, dialled))),
                Err(error) => { record.unused(); heard(Err(error)) }
            },
            read = greeting(&mut dialled, &mut first) => match read {
                Ok(true) => {
                    conn.learned.answered_http(Instant::now());
                    drop(dialled);
                    last_word(sniffing.as_mut(), record, first_bytes(limits.keep_alive, limits.head_timeout)).await
                }
                Ok(false) if !first.is_empty() => Found::Peer(record, dialled, first),
                // It closed without a word: the caller gets the same.
                Ok(_) | Err(_) => { record.closed(); Found::Nothing }
            },
        }
    };
    tokio::select! {
        found = timeout(limits.tunnel_idle, race) => found.unwrap_or(Found::Nothing),
        _ = drain.reached(Phase::Draining) => Found::Nothing,
    }
}

/// What a caller says before an early dial is thought of: at once, or at a door where it may come with or without TLS
/// within a moment, so that the greeting of an app that speaks first does not cross a ClientHello on its way.
async fn at_first(
    conn: &Conn,
    early: bool,
    mut sniffing: std::pin::Pin<&mut impl Future<Output = io::Result<Wire>>>,
) -> Option<io::Result<Wire>> {
    if let std::task::Poll::Ready(wire) = futures_util::poll!(sniffing.as_mut()) {
        return Some(wire);
    }
    let waits = early && conn.door.mtls == Mtls::Permissive && conn.proof.is_none();
    if waits { timeout(HEAD_START, sniffing).await.ok() } else { None }
}

/// What sniffing came to.
fn heard(wire: io::Result<Wire>) -> Found {
    match wire {
        Ok(wire) => Found::Caller(wire, None),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Found::Late,
        Err(_) => Found::Nothing,
    }
}

/// Dials while the caller is listened to. One that speaks opaque bytes meanwhile is given this very connection, and the
/// wire stands beside it; for one that speaks anything else, or leaves, the dial is dropped.
async fn dial_meanwhile(
    record: &mut Opaque,
    sniffing: impl Future<Output = io::Result<Wire>>,
) -> Result<(Result<Io, Failure>, Option<Wire>), io::Result<Wire>> {
    let mut dial = std::pin::pin!(record.dial());
    tokio::select! {
        // The caller first: if it has spoken, whether the dial succeeded may not matter.
        biased;
        wire = sniffing => match wire {
            Ok(Wire::Opaque) => Ok((dial.await, Some(Wire::Opaque))),
            other => Err(other),
        },
        dialled = dial.as_mut() => Ok((dialled, None)),
    }
}

/// Reads what the peer says first. True where it is HTTP/2's SETTINGS, which a server may send at once (RFC 9113 §3.4):
/// they only tell that the caller will have to speak.
async fn greeting(peer: &mut Io, first: &mut BytesMut) -> io::Result<bool> {
    loop {
        let ended = peer.read_buf(first).await? == 0;
        match is_http2_server(first) {
            Some(http2) => return Ok(http2),
            None if ended => return Ok(false),
            None => {}
        }
    }
}

/// After an early dial that failed or met HTTP/2: a caller that speaks HTTP is owed an answer, which the corridor gives.
async fn last_word(sniffing: impl Future<Output = io::Result<Wire>>, mut record: Opaque, patience: Duration) -> Found {
    let found = timeout(patience, sniffing).await.map_or(Found::Nothing, heard);
    if !matches!(found, Found::Nothing) {
        record.unused();
    }
    found
}

fn first_bytes(keep_alive: Duration, head: Duration) -> Duration {
    keep_alive.max(head)
}

/// The peer to dial while the caller is silent: only where nothing is declared and it is not known to answer HTTP.
fn early_peer(conn: &Conn) -> Option<Arc<Peer>> {
    let (Leads::Peer(index), Protocol::Auto, None) = (conn.door.leads, conn.door.protocol, &conn.door.tls) else {
        return None;
    };
    // Who has still to prove who it is wakes nobody.
    if conn.is_unproven() {
        return None;
    }
    if !conn.learned.may_speak_first(Instant::now()) {
        return None;
    }
    let world = conn.core.world.load_full();
    // No byte of the app reaches a caller, and none of the caller's wakes the app, before the rules allow it.
    policy::bytes(conn, &world).ok()?;
    target::of_door(conn, &world, index).ok()
}

/// Serves a connection whose protocol is known.
async fn speak(conn: Arc<Conn>, wire: Wire, io: Io, dialled: Option<(Opaque, Io)>) {
    let declared = conn.door.protocol;
    match wire {
        Wire::Tls { sni } if passes(&conn, sni.as_deref()) => {
            tunnel_tls(conn, io, &sni.unwrap_or_default(), dialled).await;
        }
        Wire::Tls { .. } if conn.door.mtls != Mtls::Off && conn.proof.is_none() => {
            unused(dialled);
            identify(conn, io).await;
        }
        // The app's own TLS, inside that of the sidecars.
        Wire::Tls { sni } if conn.proof.is_some() && matches!(declared, Protocol::Auto | Protocol::Tcp) => {
            tunnel_tls(conn, io, &sni.unwrap_or_default(), dialled).await;
        }
        Wire::Http1 | Wire::Http2 | Wire::Opaque if conn.is_unproven() && !is_http(&wire, declared) => {
            unused(dialled);
            record::refused(&conn, Reason::PlaintextRefused, PLAINTEXT);
        }
        Wire::Tls { sni } if conn.door.tls.is_some() && !conn.tls => {
            unused(dialled);
            terminate(conn, io, sni).await;
        }
        Wire::Tls { sni } if conn.side() == Door::Outbound && matches!(conn.door.leads, Leads::Peer(_)) => {
            tunnel_tls(conn, io, &sni.unwrap_or_default(), dialled).await;
        }
        Wire::Tls { sni } if declared != Protocol::Tcp => {
            unused(dialled);
            tunnel_by_sni(conn, io, sni).await;
        }
        Wire::Http1 if matches!(declared, Protocol::Auto | Protocol::Http1) => {
            unused(dialled);
            serve_http1(conn, io).await;
        }
        Wire::Http2 if matches!(declared, Protocol::Auto | Protocol::Http2) => {
            unused(dialled);
            serve_http2(conn, io).await;
        }
        // What is no HTTP is left to the declared protocol's own parser to refuse, in its own words.
        _ if declared == Protocol::Http1 => serve_http1(conn, io).await,
        _ if declared == Protocol::Http2 => serve_http2(conn, io).await,
        _ => match (conn.door.leads, dialled) {
            (_, Some((record, peer))) => record.carry(io, peer).await,
            (Leads::Peer(_), None) => opaque(conn, io).await,
            (Leads::ByAuthority, None) => record::refused(
                &conn,
                Reason::WrongProtocol,
                "this port speaks HTTP and CONNECT; give an opaque peer a port of its own with peers.NAME.listen",
            ),
        },
    }
}

/// Whether plaintext is a request of the door's protocol, which gets an answer: each is refused by `policy`, but for a
/// platform's health checks.
fn is_http(wire: &Wire, declared: Protocol) -> bool {
    match wire {
        Wire::Http1 => matches!(declared, Protocol::Auto | Protocol::Http1),
        Wire::Http2 => matches!(declared, Protocol::Auto | Protocol::Http2),
        Wire::Tls { .. } | Wire::Opaque => false,
    }
}

fn unused(dialled: Option<(Opaque, Io)>) {
    if let Some((mut record, _)) = dialled {
        record.unused();
    }
}

/// Whether a ClientHello's name is listed to be handed through.
fn passes(conn: &Conn, sni: Option<&str>) -> bool {
    conn.door.passes_all || sni.is_some_and(|sni| conn.door.passes(sni))
}

/// Opaque bytes to the peer of the door.
async fn opaque(conn: Arc<Conn>, io: Io) {
    let Leads::Peer(index) = conn.door.leads else { return };
    let world = conn.core.world.load_full();
    match target::of_door(&conn, &world, index) {
        Ok(peer) => forward(Opaque::begin(&conn, &peer, "tcp", ""), io).await,
        Err(failure) => record::refused(&conn, failure.reason, &failure.detail),
    }
}

async fn forward(mut record: Opaque, io: Io) {
    if let Ok(peer) = record.dial().await {
        record.carry(io, peer).await;
    }
}

/// TLS that is not ours to end, to the peer of the door.
async fn tunnel_tls(conn: Arc<Conn>, io: Io, sni: &str, dialled: Option<(Opaque, Io)>) {
    if let Some((mut record, peer)) = dialled {
        record.named("tls", sni);
        return record.carry(io, peer).await;
    }
    let Leads::Peer(index) = conn.door.leads else { return tunnel_by_sni(conn, io, Some(sni.to_owned())).await };
    let world = conn.core.world.load_full();
    match target::of_door(&conn, &world, index) {
        Ok(peer) => forward(Opaque::begin(&conn, &peer, "tls", sni), io).await,
        Err(failure) => record::refused(&conn, failure.reason, &failure.detail),
    }
}

/// TLS at the shared outbound port: its name must be a peer's; at an inbound door without a certificate it is refused.
async fn tunnel_by_sni(conn: Arc<Conn>, io: Io, sni: Option<String>) {
    let refused = |failure: &Failure| record::refused(&conn, failure.reason, &failure.detail);
    let (Leads::ByAuthority, Some(sni)) = (conn.door.leads, sni) else {
        return refused(&Failure::new(
            Reason::ClientTlsFailed,
            match conn.door.side {
                Door::Inbound => TLS_AT_PLAIN_DOOR,
                Door::Outbound => "TLS without a name (SNI) tells this port nothing of where it is to go",
            },
        ));
    };
    let world = conn.core.world.load_full();
    let authority = HeaderValue::from_str(&sni).ok().and_then(crate::http::authority::Authority::parse);
    let Some(authority) = authority else {
        return refused(&Failure::new(Reason::ClientTlsFailed, "the ClientHello's name is no host name"));
    };
    let deadline = Deadline::after(Instant::now(), Some(world.plan.dns.timeout));
    match target::named(&world, &authority, 443, deadline).await {
        Ok(peer) => forward(Opaque::begin(&conn, &peer, "tls", &sni), io).await,
        Err(failure) => refused(&failure),
    }
}

/// Ends TLS with the door's certificate, then finds out what is spoken inside, by ALPN or by looking.
async fn terminate(conn: Arc<Conn>, io: Io, sni: Option<String>) {
    let world = conn.core.world.load_full();
    let index = world.plan.doors.iter().position(|door| door.listen == conn.door.listen && door.side == conn.door.side);
    let Some(config) = index.and_then(|index| world.tls.get(index)).cloned().flatten() else {
        return record::refused(&conn, Reason::Internal, "the door's certificate is not loaded");
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let stream = match timeout(conn.door.limits.head_timeout, acceptor.accept(io)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let detail = format!("{error} (SNI {})", sni.as_deref().unwrap_or("none"));
            return record::refused(&conn, Reason::ClientTlsFailed, &detail);
        }
        Err(_) => return record::refused(&conn, Reason::ClientTlsFailed, "the handshake took too long"),
    };
    let alpn = stream.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
    let stream = Io::Tls(Box::new(stream.into()));
    let Some(mut inner) = Arc::into_inner(conn) else { return };
    inner.tls = true;
    match alpn.as_deref() {
        Some(b"h2") => serve_http2(Arc::new(inner), stream).await,
        Some(b"http/1.1") => serve_http1(Arc::new(inner), stream).await,
        _ => inside(Arc::new(inner), stream).await,
    }
}

/// What is spoken inside TLS without ALPN.
async fn inside(conn: Arc<Conn>, mut io: Io) {
    let mut seen = BytesMut::new();
    let limits = &conn.door.limits;
    let sniffing = sniff(&mut io, &mut seen, limits.head_timeout);
    let heard =
        timeout(first_bytes(limits.keep_alive, limits.head_timeout), sniffing).await.map_or(Found::Nothing, heard);
    match heard {
        Found::Caller(wire, _) => Box::pin(speak(conn, wire, io.prefixed(seen.freeze()), None)).await,
        Found::Late => late(&conn, io, &seen).await,
        Found::Peer(..) | Found::Nothing => {}
    }
}
