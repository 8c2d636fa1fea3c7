//! Tunnels: bytes both ways after an upgrade or CONNECT, and opaque connections that never were HTTP.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Conn;
use super::affinity;
use super::captured;
use super::failure;
use super::policy::{self, WouldDeny};
use super::record::Exchange;
use super::target::Led;
use crate::call::Failure;
use crate::call::attempt::{Call, Tries};
use crate::call::trail::Trail;
use crate::life::drain::{Cut, Phase, Watch};
use crate::net::io::{Io, Resets};
use crate::net::pump::{Carried, End, pump};
use crate::plan::peer::PeerKind;
use crate::reason::Reason;
use crate::resilience::verdict::Skip;
use crate::telemetry::line::Line;
use crate::tls::proof::Proof;
use crate::tls::untrusted::Role;
use crate::upstream::choice::Ask;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::peer::Peer;

/// Runs the tunnel of an upgraded exchange to its end; the record is told and dropped.
pub async fn run(mut caller: Io, mut peer: Io, idle: Duration, mut record: Box<Exchange>) {
    let conn = record.conn().clone();
    let proofs = Proofs { caller: conn.proof.as_deref(), peer: record.trail.proof.clone() };
    let (carried, failure) = carry(&mut caller, &mut peer, idle, conn.drain.clone(), proofs).await;
    record.tunnelled(carried.forth, carried.back, failure);
}

/// What each end of a tunnel has proven.
struct Proofs<'a> {
    caller: Option<&'a Proof>,
    peer: Option<Arc<Proof>>,
}

impl Proofs<'_> {
    /// Why the caller's end is cut although no shutdown is forced.
    fn caller_over(&self) -> Failure {
        match self.caller.and_then(Proof::over) {
            Some(why) => Failure::new(why.reason(Role::Client), format!("the caller is not believed any more: {why}")),
            None => Failure::new(Reason::PlaintextRefused, "the door has become strict, and this is plaintext"),
        }
    }

    /// Waits until the peer is not believed any more.
    async fn peer_over(&self) -> Failure {
        let Some(proof) = &self.peer else { return std::future::pending().await };
        proof.drain().watch().reached(Phase::Draining).await;
        match proof.over() {
            Some(why) => Failure::new(why.reason(Role::Server), format!("the peer is not believed any more: {why}")),
            None => Failure::new(Reason::PeerUntrusted, "the peer is not believed any more"),
        }
    }
}

/// Copies until an end, an idle time, the end of a shutdown's grace, or that of what either end has proven.
async fn carry(
    caller: &mut Io,
    peer: &mut Io,
    idle: Duration,
    mut drain: Watch,
    proofs: Proofs<'_>,
) -> (Carried, Option<Failure>) {
    // A reader may pause for as long as the tunnel may be idle; the kernel would take it for a dead host.
    caller.set_user_timeout(None);
    peer.set_user_timeout(None);
    let mut carried = Carried::default();
    let end = tokio::select! {
        end = pump(caller, peer, idle, &mut carried) => end,
        cut = drain.cut() => {
            let failure = match cut {
                Cut::Forced => Failure::new(Reason::GraceOver, "the shutdown's grace ended before the tunnel did"),
                Cut::Alone => proofs.caller_over(),
            };
            return (carried, Some(failure));
        }
        failure = proofs.peer_over() => return (carried, Some(failure)),
    };
    let failure = match end {
        End::Closed => None,
        End::Idle => Some(Failure::new(Reason::TunnelIdle, "nothing moved in the tunnel for its idle time")),
        End::Left { error, cut } => {
            if cut {
                peer.reset_on_close();
            }
            Some(Failure::new(Reason::ClientGone, error.to_string()))
        }
        End::Right { error, cut } => {
            if cut {
                caller.reset_on_close();
            }
            Some(Failure::new(Reason::Reset, error.to_string()))
        }
    };
    (carried, failure)
}

/// A connection of opaque bytes: its drop counts it and writes its line, once.
pub struct Opaque {
    conn: Arc<Conn>,
    peer: Arc<Peer>,
    /// Its endpoint that the caller dialled, where it is meant and no other.
    only: Option<Arc<Endpoint>>,
    trail: Trail,
    protocol: &'static str,
    host: String,
    started: Instant,
    began: SystemTime,
    connected: Option<Instant>,
    carried: Carried,
    failure: Option<Failure>,
    would_deny: Option<WouldDeny>,
    ended: bool,
    quiet: bool,
}

impl Opaque {
    /// Begins the record of an opaque connection that leads there; `host` is the SNI where TLS is passed through.
    pub fn begin(conn: &Arc<Conn>, Led { peer, only }: Led, protocol: &'static str, host: &str) -> Self {
        peer.metrics().in_flight.add(1);
        Self {
            conn: conn.clone(),
            peer,
            only,
            trail: Trail::default(),
            protocol,
            host: host.to_owned(),
            started: Instant::now(),
            began: SystemTime::now(),
            connected: None,
            carried: Carried::default(),
            failure: None,
            would_deny: None,
            ended: false,
            quiet: false,
        }
    }

    /// Connects to an endpoint of the peer, trying a second one where the first cannot be reached.
    ///
    /// # Errors
    /// Why none could be reached, or that the rules of the service deny it; the record knows it too.
    pub async fn dial(&mut self) -> Result<Io, Failure> {
        self.allowed()?;
        let policy = self.peer.policy();
        let key = affinity::of_connection(&policy, &self.conn);
        let ask = Ask { key, subset: None, only: self.only.as_ref() };
        let call = Call { ask, ..Call::plain(&self.peer, &policy.rules, self.started) };
        let dialled = Tries::new(&call).dial(&mut self.trail).await;
        self.connected = dialled.is_ok().then(Instant::now);
        self.failure = dialled.as_ref().err().cloned();
        dialled
    }

    /// What the rules of the service say of its bytes.
    fn allowed(&mut self) -> Result<(), Failure> {
        let judged = policy::bytes(&self.conn, &self.conn.core.world.load());
        self.failure = judged.as_ref().err().cloned();
        judged.map(|would_deny| self.would_deny = would_deny)
    }

    /// It turned out not to be opaque, or the caller left before it began: nothing is to be told.
    pub fn unused(&mut self) {
        self.quiet = true;
    }

    /// The peer closed without a word.
    pub fn closed(&mut self) {
        self.ended = true;
    }

    /// Whether it leads there.
    pub fn leads_to(&self, led: &Led) -> bool {
        let same = |a: &Arc<Endpoint>, b: &Arc<Endpoint>| Arc::ptr_eq(a, b);
        let only = match (&self.only, &led.only) {
            (Some(ours), Some(theirs)) => same(ours, theirs),
            // An endpoint that was dialled is one of all.
            (None | Some(_), None) => true,
            (None, Some(_)) => false,
        };
        only && Arc::ptr_eq(&self.peer, &led.peer)
    }

    /// Whether nothing is known of its peer but the address that the caller dialled.
    pub fn is_passed(&self) -> bool {
        self.conn.is_led_by_address() && self.peer.kind() == PeerKind::Adhoc
    }

    /// It turned out to be `protocol` for `host`.
    pub fn named(&mut self, protocol: &'static str, host: &str) {
        self.protocol = protocol;
        host.clone_into(&mut self.host);
    }

    /// The peer's end cannot be used: why.
    pub fn failed(&mut self, failure: Failure) {
        self.failure = Some(failure);
    }

    /// So many bytes were given to the peer before the tunnel runs.
    pub fn gave(&mut self, bytes: usize) {
        self.carried.forth += bytes as u64;
    }

    /// Runs the tunnel to its end.
    pub async fn carry(mut self, mut caller: Io, mut peer: Io) {
        // A connection that was made early may have waited for long, and the rules may be others by now.
        if self.allowed().is_err() {
            return;
        }
        self.peer.metrics().tunnels.inc();
        let idle = self.peer.policy().tunnel_idle;
        let mut drain = self.conn.drain.clone();
        // TLS that is handed through unseen is not ours to judge, whatever the door has become.
        if self.protocol == "tls" && self.conn.proof.is_none() && self.conn.passes(Some(&self.host)) {
            drain = drain.alone();
        }
        let proofs = Proofs { caller: self.conn.proof.as_deref(), peer: self.trail.proof.clone() };
        let (carried, failure) = carry(&mut caller, &mut peer, idle, drain, proofs).await;
        self.carried.forth += carried.forth;
        self.carried.back += carried.back;
        self.failure = failure;
        self.ended = true;
    }
}

impl Drop for Opaque {
    fn drop(&mut self) {
        let metrics = self.peer.metrics();
        metrics.in_flight.add(-1);
        if self.quiet {
            return;
        }
        if self.would_deny.is_some() {
            self.conn.core.metrics.door(self.conn.side()).would_deny.inc();
        }
        metrics.sent_bytes.add(self.carried.forth);
        metrics.received_bytes.add(self.carried.back);
        let gone = (!self.ended && self.failure.is_none()).then_some(Reason::ClientGone);
        let reason = self.failure.as_ref().map(|failure| failure.reason).or(gone);
        if let Some(reason) = reason {
            metrics.reasons.inc(reason);
        }
        if !self.conn.core.access.wants(None, reason.is_some() || self.would_deny.is_some()) {
            return;
        }
        self.conn.core.access.write(&Line {
            fallback: "",
            time: self.began,
            door: self.conn.side(),
            client: self.conn.caller.client,
            original: self.conn.caller.original.0,
            elsewhere: captured::is_elsewhere(&self.conn, &self.peer),
            client_id: self.conn.client_id(),
            peer_id: self.trail.peer_id(),
            method: "",
            scheme: "",
            host: &self.host,
            path: "",
            status: None,
            reason: reason.map(|reason| (reason, failure::side(reason, Some(self.peer.kind())))),
            peer: self.peer.name().as_str(),
            route: "",
            endpoint: self.trail.endpoint.as_ref().map(|endpoint| endpoint.addr() as &dyn std::fmt::Display),
            attempts: self.trail.attempts,
            retry_skipped: self.trail.skipped.map_or("", Skip::word),
            reused: false,
            bytes_in: self.carried.forth,
            bytes_out: self.carried.back,
            duration: self.started.elapsed(),
            first_byte: self.connected.map(|at| at.saturating_duration_since(self.started)),
            protocol: self.protocol,
            peer_protocol: self.protocol,
            request_id: "",
            would_deny: self.would_deny.as_deref().unwrap_or_default(),
            detail: self.failure.as_ref().map_or("", |failure| &*failure.detail),
        });
    }
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::life::drain::Drain;

    #[tokio::test]
    async fn the_kernel_does_not_end_a_tunnel_whose_reader_pauses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (other, _) = listener.accept().await.unwrap();
        for stream in [&stream, &other] {
            SockRef::from(stream).set_tcp_user_timeout(Some(Duration::from_secs(30))).unwrap();
        }
        let drain = Drain::default();
        drain.advance(Phase::Forced);
        let (mut caller, mut peer) = (Io::Tcp(stream), Io::Tcp(other).prefixed("first".into()));
        let nobody = Proofs { caller: None, peer: None };
        carry(&mut caller, &mut peer, Duration::from_secs(3600), drain.watch(), nobody).await;
        for io in [&caller, &peer] {
            assert_eq!(SockRef::from(io.tcp().unwrap()).tcp_user_timeout().unwrap(), None);
        }
    }
}
