//! Tunnels: bytes both ways after an upgrade or CONNECT, and opaque connections that never were HTTP.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::Conn;
use super::failure;
use super::record::Exchange;
use crate::call::Failure;
use crate::call::attempt::no_endpoint;
use crate::deadline::Deadline;
use crate::life::drain::Phase;
use crate::net::io::Io;
use crate::net::pump::{Carried, End, pump};
use crate::reason::Reason;
use crate::telemetry::line::Line;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::peer::Peer;

/// Runs the tunnel of an upgraded exchange to its end; the record is told and dropped.
pub async fn run(mut caller: Io, mut peer: Io, idle: Duration, mut record: Box<Exchange>) {
    let mut drain = record.conn().drain.clone();
    let (carried, failure) = carry(&mut caller, &mut peer, idle, &mut drain).await;
    record.tunnelled(carried.forth, carried.back, failure);
}

/// Copies until an end, an idle time or the end of a shutdown's grace.
async fn carry(
    caller: &mut Io,
    peer: &mut Io,
    idle: Duration,
    drain: &mut crate::life::drain::Watch,
) -> (Carried, Option<Failure>) {
    let mut carried = Carried::default();
    let end = tokio::select! {
        end = pump(caller, peer, idle, &mut carried) => end,
        _ = drain.reached(Phase::Forced) => {
            return (carried, Some(Failure::new(Reason::GraceOver, "the shutdown's grace ended before the tunnel did")));
        }
    };
    let failure = match end {
        End::Closed => None,
        End::Idle => Some(Failure::new(Reason::TunnelIdle, "nothing moved in the tunnel for its idle time")),
        End::Left(error) => {
            peer.reset_on_close();
            Some(Failure::new(Reason::ClientGone, error.to_string()))
        }
        End::Right(error) => {
            caller.reset_on_close();
            Some(Failure::new(Reason::Reset, error.to_string()))
        }
    };
    (carried, failure)
}

/// A connection of opaque bytes: its drop counts it and writes its line, once.
pub struct Opaque {
    conn: Arc<Conn>,
    peer: Arc<Peer>,
    endpoint: Option<Arc<Endpoint>>,
    protocol: &'static str,
    host: String,
    started: Instant,
    began: SystemTime,
    connected: Option<Instant>,
    carried: Carried,
    failure: Option<Failure>,
    ended: bool,
    quiet: bool,
}

impl Opaque {
    /// Begins the record of an opaque connection to `peer`; `host` is the SNI where TLS is passed through.
    pub fn begin(conn: &Arc<Conn>, peer: &Arc<Peer>, protocol: &'static str, host: &str) -> Self {
        peer.metrics().in_flight.add(1);
        Self {
            conn: conn.clone(),
            peer: peer.clone(),
            endpoint: None,
            protocol,
            host: host.to_owned(),
            started: Instant::now(),
            began: SystemTime::now(),
            connected: None,
            carried: Carried::default(),
            failure: None,
            ended: false,
            quiet: false,
        }
    }

    /// Connects to an endpoint of the peer, trying a second one where the first cannot be reached.
    ///
    /// # Errors
    /// Why none could be reached; the record knows it too.
    pub async fn dial(&mut self) -> Result<Io, Failure> {
        let mut tried = Vec::new();
        loop {
            let picked =
                self.peer.pick(Instant::now(), &tried).filter(|next| !tried.iter().any(|e| Arc::ptr_eq(e, next)));
            let Some(endpoint) = picked else {
                return Err(self.failure.get_or_insert_with(|| no_endpoint(&self.peer)).clone());
            };
            self.endpoint = Some(endpoint.clone());
            self.peer.metrics().attempts.inc();
            match endpoint.dial(&self.peer, Deadline::NONE).await {
                Ok(io) => {
                    self.failure = None;
                    self.connected = Some(Instant::now());
                    return Ok(io);
                }
                Err(error) => {
                    self.failure = Some(Failure::new(error.reason, error.detail));
                    tried.push(endpoint);
                    if tried.len() > 1 {
                        return Err(self.failure.clone().unwrap_or_else(|| no_endpoint(&self.peer)));
                    }
                }
            }
        }
    }

    /// It turned out not to be opaque, or the caller left before it began: nothing is to be told.
    pub fn unused(&mut self) {
        self.quiet = true;
    }

    /// The peer closed without a word.
    pub fn closed(&mut self) {
        self.ended = true;
    }

    /// It turned out to be `protocol` for `host`.
    pub fn named(&mut self, protocol: &'static str, host: &str) {
        self.protocol = protocol;
        host.clone_into(&mut self.host);
    }

    /// The peer spoke first, these many bytes, which the caller has got.
    pub fn greeted(&mut self, bytes: usize) {
        self.carried.back += bytes as u64;
    }

    /// Runs the tunnel to its end.
    pub async fn carry(mut self, mut caller: Io, mut peer: Io) {
        self.peer.metrics().tunnels.inc();
        let idle = self.peer.policy().tunnel_idle;
        let mut drain = self.conn.drain.clone();
        let (carried, failure) = carry(&mut caller, &mut peer, idle, &mut drain).await;
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
        metrics.sent_bytes.add(self.carried.forth);
        metrics.received_bytes.add(self.carried.back);
        let gone = (!self.ended && self.failure.is_none()).then_some(Reason::ClientGone);
        let reason = self.failure.as_ref().map(|failure| failure.reason).or(gone);
        if let Some(reason) = reason {
            metrics.reasons.inc(reason);
        }
        if !self.conn.core.access.wants(None, reason.is_some()) {
            return;
        }
        self.conn.core.access.write(&Line {
            time: self.began,
            door: self.conn.side(),
            client: self.conn.caller.client,
            method: "",
            scheme: "",
            host: &self.host,
            path: "",
            status: None,
            reason: reason.map(|reason| (reason, failure::side(reason, Some(self.peer.kind())))),
            peer: self.peer.name().as_str(),
            route: "",
            endpoint: self.endpoint.as_ref().map(|endpoint| endpoint.addr() as &dyn std::fmt::Display),
            attempts: u32::from(self.endpoint.is_some()),
            reused: false,
            bytes_in: self.carried.forth,
            bytes_out: self.carried.back,
            duration: self.started.elapsed(),
            first_byte: self.connected.map(|at| at.saturating_duration_since(self.started)),
            protocol: self.protocol,
            peer_protocol: self.protocol,
            request_id: "",
            detail: self.failure.as_ref().map_or("", |failure| &*failure.detail),
        });
    }
}
