//! One accepted connection: find out what it speaks, then serve it or tunnel it.
//!
//! Where a connection leads to one peer, by its door or by the address that was dialled, and no protocol is declared, the
//! peer is dialled while the caller is still silent: whoever speaks first decides, so a protocol in which the server
//! speaks first needs no timer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderValue, StatusCode};
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::captured::{self, unused};
use super::doors::LAST_HANDSHAKES;
use super::failure::LATE_HEAD;
use super::first_word::spoken_first;
use super::identify::identify;
use super::passthrough;
use super::policy;
use super::record;
use super::sender::is_trusted;
use super::serve::serve_http1;
use super::serve_http2::serve_http2;
use super::target::{self, Led};
use super::tunnel::Opaque;
use super::{Caller, Conn, Core, Learned, Spoken};
use crate::call::Failure;
use crate::deadline::Deadline;
use crate::ids::Door;
use crate::life::drain::{Phase, Watch};
use crate::net::accept::USER_TIMEOUT;
use crate::net::clocked::Clock;
use crate::net::io::{Io, Resets};
use crate::net::origdst::OriginalDst;
use crate::net::sniff::{MOST, Wire, is_tls_record, may_become_http1, room, sniff};
use crate::plan::Plan;
use crate::plan::door::{DoorPlan, Leads, Mtls, Protocol};
use crate::reason::Reason;

/// How long a silent caller may still speak after the early dial failed, before its connection is closed.
pub(super) const LAST_WORD: Duration = Duration::from_secs(1);

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
    caller: Caller,
    drain: Watch,
) -> Conn {
    let client = caller.client;
    let ip = client.0.map(|addr| addr.ip());
    let trusted = is_trusted(door, ip, caller.original != OriginalDst::EXPLICIT);
    let client_field = ip.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok());
    let counted = core.clone();
    let side = door.side;
    Conn {
        core: core.clone(),
        plan: plan.clone(),
        door: door.clone(),
        learned: learned.clone(),
        caller,
        client_field,
        trusted,
        tls: false,
        proof: None,
        counted: AtomicU64::new(0),
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
    if conn.is_led_by_address() {
        return Box::pin(captured::serve(conn, io)).await;
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
pub(super) enum Found {
    /// The caller spoke first, and this; the peer may be connected already.
    Caller(Wire, Option<(Opaque, Io)>),
    /// The peer spoke first, and this.
    Peer(Opaque, Io, BytesMut),
    /// The caller's first bytes, if any, stopped short of telling the protocol.
    Late,
    /// The peer could not be reached, or left without a word by a reset: whoever was captured is shown that.
    Unreached,
    /// Neither, in time.
    Nothing,
}

/// Finds out what a connection speaks, and serves it.
pub(super) async fn detect(conn: Conn, mut io: Io) {
    let conn = Arc::new(conn);
    let mut seen = room(conn.door.mtls != Mtls::Off);
    let found = find(&conn, &mut io, &mut seen).await;
    count_plaintext(&conn, &found, &seen);
    conn.learned.saw(found.what(&seen));
    match found {
        Found::Nothing => {}
        Found::Late if seen.is_empty() => {}
        Found::Unreached if conn.is_captured() => io.reset_on_close(),
        Found::Unreached => {}
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
        Found::Caller(Wire::Http1, dialled) if captured::is_for_another_proxy(&conn, &seen) => {
            speak(conn, Wire::Opaque, io.prefixed(seen.freeze()), dialled).await;
        }
        Found::Caller(wire, dialled) => {
            if let (Wire::Http1, Some((_, app)), true) = (&wire, &dialled, seen.len() >= MOST) {
                // A line as long as this is refused, or may be: an end in order would look like a whole stream of nothing.
                app.reset_on_close();
            }
            speak(conn, wire, io.prefixed(seen.freeze()), dialled).await;
        }
    }
}

impl Found {
    /// What is remembered of it.
    fn what(&self, seen: &[u8]) -> Option<Spoken> {
        match self {
            Self::Caller(..) if seen.is_empty() => None,
            Self::Caller(Wire::Http1 | Wire::Http2, _) => Some(Spoken::Http),
            Self::Caller(Wire::Tls { .. }, _) => Some(Spoken::Tls),
            Self::Caller(Wire::Opaque, _) => Some(Spoken::Opaque),
            Self::Peer(..) => Some(Spoken::ServerFirst),
            Self::Late | Self::Unreached | Self::Nothing => None,
        }
    }
}

/// Counts who came in plaintext, but for requests: what these are is for [`policy`] to see, which lets probes in.
fn count_plaintext(conn: &Conn, found: &Found, seen: &BytesMut) {
    let plaintext = match found {
        Found::Caller(Wire::Tls { .. }, _) | Found::Late | Found::Unreached | Found::Nothing => false,
        Found::Caller(wire, _) => !seen.is_empty() && !is_http(wire, conn.door.protocol),
        Found::Peer(..) => true,
    };
    if plaintext && policy::in_force(conn, &conn.core.world.load()) == Mtls::Permissive {
        conn.count_plaintext();
    }
}

/// Whether the door leads to no one peer, or the rules of the service keep opaque bytes from it.
fn calls_nobody(conn: &Conn) -> bool {
    (conn.door.leads == Leads::ByAuthority && !conn.is_captured())
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
    let sniffing = sniff(io, seen, limits.head_timeout);
    tokio::pin!(sniffing);
    // A caller that speaks at once needs no early dial.
    if let Poll::Ready(wire) = futures_util::poll!(sniffing.as_mut()) {
        return heard(wire);
    }
    let early = early_peer(conn);
    // Where a caller may come with or without TLS, the greeting of an app that speaks first would cross a ClientHello on
    // its way.
    if early.is_some()
        && conn.door.mtls == Mtls::Permissive
        && conn.proof.is_none()
        && let Ok(wire) = timeout(HEAD_START, sniffing.as_mut()).await
    {
        return heard(wire);
    }
    let ending = ending(conn.drain.clone());
    let Some(led) = early else {
        // For the first byte, as long as a kept-alive connection may be idle; the rest has the head's clock in `sniff`.
        // Who has still to prove who it is takes no place for so long: it comes to speak TLS.
        let silent = if conn.is_unproven() { Duration::ZERO } else { limits.keep_alive };
        return tokio::select! {
            wire = timeout(first_bytes(silent, limits.head_timeout), sniffing) => match wire {
                Ok(wire) => heard(wire),
                Err(_) => Found::Late,
            },
            () = ending => Found::Nothing,
        };
    };
    let race = spoken_first(conn, Opaque::begin(conn, led, "tcp", ""), sniffing);
    tokio::select! {
        found = timeout(limits.tunnel_idle, race) => found.unwrap_or(Found::Nothing),
        () = ending => Found::Nothing,
    }
}

/// Ends when a silent caller is to be let go of. Who came at the last moment may have its first bytes still on the way.
fn ending(mut drain: Watch) -> impl Future<Output = ()> {
    let due = Instant::now() + LAST_HANDSHAKES;
    async move {
        if drain.reached(Phase::Draining).await < Phase::Forced {
            // Boxed: a connection is as large as all that it may ever wait for.
            Box::pin(async { timeout_at(due, drain.reached(Phase::Forced)).await.ok() }).await;
        }
    }
}

/// What sniffing came to.
pub(super) fn heard(wire: io::Result<Wire>) -> Found {
    match wire {
        Ok(wire) => Found::Caller(wire, None),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Found::Late,
        Err(_) => Found::Nothing,
    }
}

/// How long a caller may be silent before its first byte.
pub(super) fn first_bytes(keep_alive: Duration, head: Duration) -> Duration {
    keep_alive.max(head)
}

/// The peer to dial while the caller is silent: only where nothing is declared and it is not known to answer HTTP.
fn early_peer(conn: &Conn) -> Option<Led> {
    let led = conn.door.leads != Leads::ByAuthority || conn.is_captured();
    if !led || conn.door.protocol != Protocol::Auto || conn.door.tls.is_some() {
        return None;
    }
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
    target::of_conn(conn, &world).ok()
}

/// Serves a connection whose protocol is known.
async fn speak(conn: Arc<Conn>, wire: Wire, io: Io, dialled: Option<(Opaque, Io)>) {
    let declared = conn.door.protocol;
    match wire {
        Wire::Tls { sni } if conn.passes(sni.as_deref()) => {
            Box::pin(passthrough::serve(conn, io, &sni.unwrap_or_default(), dialled)).await;
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
        // Not ours to end, and nobody is to notice that it is carried.
        Wire::Tls { sni } if conn.is_captured() && matches!(declared, Protocol::Auto | Protocol::Tcp) => {
            captured::tls(conn, io, &sni.unwrap_or_default(), dialled).await;
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
        _ => match dialled {
            Some((record, peer)) => record.carry(io, peer).await,
            None => opaque(conn, io).await,
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

/// Opaque bytes to the peer that the connection leads to.
pub(super) async fn opaque(conn: Arc<Conn>, io: Io) {
    let world = conn.core.world.load_full();
    match target::of_conn(&conn, &world) {
        Ok(led) => forward(Opaque::begin(&conn, led, "tcp", ""), io, conn.is_captured()).await,
        Err(failure) => captured::refused(&conn, &io, &failure),
    }
}

/// `captured` callers, who believe to be connected, are shown by a reset that they are not.
async fn forward(mut record: Opaque, io: Io, captured: bool) {
    match record.dial().await {
        Ok(peer) => record.carry(io, peer).await,
        Err(_) if captured => io.reset_on_close(),
        Err(_) => {}
    }
}

/// TLS that is not ours to end, to the peer of the door.
async fn tunnel_tls(conn: Arc<Conn>, io: Io, sni: &str, dialled: Option<(Opaque, Io)>) {
    if let Some((mut record, peer)) = dialled {
        record.named("tls", sni);
        return record.carry(io, peer).await;
    }
    if conn.door.leads == Leads::ByAuthority {
        return tunnel_by_sni(conn, io, Some(sni.to_owned())).await;
    }
    let world = conn.core.world.load_full();
    match target::of_conn(&conn, &world) {
        Ok(led) => forward(Opaque::begin(&conn, led, "tls", sni), io, conn.is_captured()).await,
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
        Ok(peer) => forward(Opaque::begin(&conn, Led { peer, only: None }, "tls", &sni), io, false).await,
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
pub(super) async fn inside(conn: Arc<Conn>, mut io: Io) {
    let mut seen = BytesMut::new();
    let limits = &conn.door.limits;
    let sniffing = sniff(&mut io, &mut seen, limits.head_timeout);
    let heard = tokio::select! {
        wire = timeout(first_bytes(limits.keep_alive, limits.head_timeout), sniffing) => wire.map_or(Found::Late, heard),
        () = ending(conn.drain.clone()) => Found::Nothing,
    };
    match heard {
        Found::Caller(wire, _) => Box::pin(speak(conn, wire, io.prefixed(seen.freeze()), None)).await,
        Found::Late if !seen.is_empty() => late(&conn, io, &seen).await,
        Found::Late | Found::Peer(..) | Found::Unreached | Found::Nothing => {}
    }
}
