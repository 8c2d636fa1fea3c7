//! `Exchange`: the record of one request; its drop counts it and writes its access line, exactly once, whatever happened.

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use http_body::Frame;
use tokio::time::Instant;

use super::Conn;
use super::captured;
use super::failure;
use super::policy::WouldDeny;
use crate::call::Failure;
use crate::call::trail::Trail;
use crate::http::guard::{Fault, Progress};
use crate::life::drain::Phase;
use crate::plan::fallback::Fallback;
use crate::plan::route::Route;
use crate::plan::rules::Priority;
use crate::reason::{Reason, Side};
use crate::resilience::gate::Through;
use crate::resilience::outlier::Seen;
use crate::resilience::verdict::{Skip, grpc_code};
use crate::telemetry::line::Line;
use crate::upstream::guards::{Admitted, Outcome};
use crate::upstream::in_flight::Owed;
use crate::upstream::lease::Version as Leg;
use crate::upstream::peer::Peer;

/// One request, from its head to the last byte of its answer.
pub struct Exchange {
    conn: Arc<Conn>,
    started: Instant,
    /// When it was turned to its peer; later than it came where it was delayed on purpose.
    pub called: Instant,
    method: Method,
    uri: Uri,
    version: Version,
    /// The authority as it was judged.
    pub host: Option<HeaderValue>,
    /// `x-request-id`.
    pub id: Option<HeaderValue>,
    /// Whether failures are to be told as gRPC does.
    pub grpc: bool,
    /// Whom it went to.
    pub peer: Option<Arc<Peer>>,
    /// The route it took.
    pub route: Option<Arc<Route>>,
    /// What stood in for its peer's answer, and what that failed by.
    pub fallback: Option<Box<(Arc<Fallback>, Option<Failure>)>>,
    /// Its place among those in flight through its door and its route.
    pub through: [Option<Through>; 2],
    /// What it is worth where a limit in flight is nearly reached.
    pub priority: Priority,
    /// What is left of the rates that it has passed, for its answer; boxed, because few are told.
    pub quotas: Option<Box<HeaderMap>>,
    /// Its place among those in flight at the peer, and what the peer's guards wait to hear.
    pub admitted: Option<Admitted>,
    /// Why the rules of the service would have kept it out, where they are only audited.
    pub would_deny: Option<WouldDeny>,
    /// What the call did.
    pub trail: Trail,
    /// A gRPC call whose end the endpoint is still to learn from its trailers.
    owed: Option<Owed>,
    /// What became of the request's body.
    pub progress: Option<Arc<Progress>>,
    answered: Option<Instant>,
    status: Option<StatusCode>,
    failure: Option<Failure>,
    sent: u64,
    received: u64,
    complete: bool,
    tunnel: bool,
}

impl Exchange {
    /// Begins the record of a request at `now`.
    pub fn begin(conn: &Arc<Conn>, method: &Method, uri: &Uri, version: Version, now: Instant) -> Box<Self> {
        conn.clock.busy();
        Box::new(Self {
            conn: conn.clone(),
            started: now,
            called: now,
            method: method.clone(),
            uri: uri.clone(),
            version,
            host: None,
            id: None,
            grpc: false,
            peer: None,
            route: None,
            fallback: None,
            through: [None, None],
            priority: Priority::Normal,
            quotas: None,
            admitted: None,
            would_deny: None,
            trail: Trail::default(),
            owed: None,
            progress: None,
            answered: None,
            status: None,
            failure: None,
            sent: 0,
            received: 0,
            complete: false,
            tunnel: false,
        })
    }

    /// The connection it came through.
    pub fn conn(&self) -> &Arc<Conn> {
        &self.conn
    }

    /// Its method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// When its head was complete.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Whether the caller is of HTTP/1.
    pub fn http1(&self) -> bool {
        self.version < Version::HTTP_2
    }

    /// Whom it goes to from now on.
    pub fn to(&mut self, peer: &Arc<Peer>) {
        peer.metrics().in_flight.add(1);
        self.peer = Some(peer.clone());
    }

    /// The answer's head is there.
    pub fn answered(&mut self, status: StatusCode, now: Instant) {
        self.answered = Some(now);
        self.status = Some(status);
        // What it leads to may last for hours: the place is for those that have still to be answered.
        self.trail.retrying = None;
        if let Some(mut in_flight) = self.trail.in_flight.take() {
            in_flight.answered(now, Seen::answer(status, None));
        }
        // What a gRPC call came to stands in its trailers, unless it failed before.
        if !self.grpc || !status.is_success() {
            self.tell(Outcome::answered(status, None), now);
        }
    }

    /// The head of an answer to a gRPC call is there; before [`Exchange::answered`]. What it leaves open its trailers
    /// will tell, if any are to come.
    pub fn answered_grpc(&mut self, head: &Parts, over: bool, now: Instant) {
        let Some(mut in_flight) = self.trail.in_flight.take() else { return };
        match grpc_code(&head.headers) {
            None if head.status == StatusCode::OK && !over => self.owed = in_flight.headed(now),
            code => in_flight.answered(now, Seen::answer(head.status, code)),
        }
    }

    /// A piece of the answer's body, or its trailers.
    pub fn passed(&mut self, frame: &Frame<Bytes>) {
        let Some(owed) = &self.owed else { return };
        let seen = match frame.trailers_ref() {
            Some(trailers) => Seen::answer(StatusCode::OK, grpc_code(trailers)),
            // A stream may last for hours: to bring its endpoint back, its first message is enough.
            None if owed.is_probe() => Seen::Well,
            None => return,
        };
        if let Some(owed) = self.owed.take() {
            owed.ended(Instant::now(), seen);
        }
    }

    /// These trailers, or fields of a head that has none, say what a gRPC call came to.
    pub fn concluded(&mut self, fields: &HeaderMap, now: Instant) {
        if self.grpc
            && let Some(status) = self.status
            && let code @ Some(_) = grpc_code(fields)
        {
            self.tell(Outcome::answered(status, code), now);
        }
    }

    /// Tells the peer's guards, which take the first word only.
    fn tell(&mut self, outcome: Outcome, now: Instant) {
        if let Some(admitted) = &mut self.admitted {
            admitted.tell(outcome, self.answered.unwrap_or(now), now);
        }
    }

    /// What the guards hear at the end, if nothing told them before: a call that its caller gave up, or that we refused
    /// ourselves, says nothing about the peer.
    fn settle(&mut self, now: Instant) {
        let whose = self.failure.as_ref().map(|failure| (failure.reason, failure.reason.side()));
        match (whose, self.status) {
            (Some((reason, _)), _) => self.tell_failure(reason, now),
            (None, Some(status)) if self.complete => self.tell(Outcome::answered(status, None), now),
            _ => {}
        }
        let slow = matches!(whose, Some((Reason::DeadlinePassed, _)));
        let well = self.answered.filter(|_| self.status.is_some_and(|status| !status.is_server_error()));
        if let Some(first_byte) = if slow { Some(now) } else { well } {
            self.through.iter_mut().flatten().for_each(|through| through.teach(first_byte));
            self.admitted.iter_mut().for_each(|admitted| admitted.teach(first_byte));
        }
    }

    /// As [`Exchange::tell`], where there was no answer. A caller's short patience says nothing about the peer.
    fn tell_failure(&mut self, reason: Reason, now: Instant) {
        let waited = now.saturating_duration_since(self.started);
        let overdue = || self.peer.as_ref().is_some_and(|peer| peer.is_overdue(now, waited));
        let its_own = matches!(reason.side(), Side::Peer | Side::Network);
        if its_own && (reason != Reason::DeadlinePassed || overdue()) {
            self.tell(Outcome::FAILED, now);
        }
    }

    /// The peer gave no answer, or one (its status) that counts as none: its fallback is turned to.
    pub fn falls_back(&mut self, fallback: &Arc<Fallback>, answer: Result<StatusCode, Failure>) {
        if let Some(peer) = &self.peer {
            peer.metrics().fallbacks.inc();
        }
        let now = Instant::now();
        if let Some(mut in_flight) = self.trail.in_flight.take() {
            match &answer {
                Ok(status) => in_flight.answered(now, Seen::answer(*status, None)),
                Err(failure) => in_flight.failed(now, failure.reason),
            }
        }
        self.leave(&answer, now);
        self.fallback = Some(Box::new((fallback.clone(), answer.err())));
    }

    /// The peer is done with: its guards hear what it did itself, not what stands in for it, and get their places back.
    fn leave(&mut self, answer: &Result<StatusCode, Failure>, now: Instant) {
        self.trail.retrying = None;
        let taught = match answer {
            Ok(status) => {
                self.tell(Outcome::answered(*status, None), now);
                !status.is_server_error()
            }
            Err(failure) => {
                self.tell_failure(failure.reason, now);
                failure.reason == Reason::DeadlinePassed
            }
        };
        if let Some(mut admitted) = self.admitted.take().filter(|_| taught) {
            admitted.teach(now);
        }
    }

    /// What a fallback stands in for.
    fn fallen(&self) -> Option<&Failure> {
        self.fallback.as_ref().and_then(|fallback| fallback.1.as_ref())
    }

    /// It failed before an answer's head was there; `status` is what the caller gets.
    pub fn failed(&mut self, failure: Failure, status: StatusCode) {
        // What is left of the call was cut off by its own deadline.
        if let Some(mut in_flight) = self.trail.in_flight.take() {
            in_flight.failed(Instant::now(), failure.reason);
        }
        self.status = Some(status);
        self.failure = Some(failure);
    }

    /// It failed, and its caller gets a reset in place of an answer.
    pub fn cut(&mut self, failure: Failure) {
        self.trail.retrying = None;
        if let Some(mut in_flight) = self.trail.in_flight.take() {
            in_flight.failed(Instant::now(), failure.reason);
        }
        self.failure = Some(failure);
    }

    /// The answer broke after its head was passed on.
    pub fn broke(&mut self, failure: Failure) {
        let failure = self.own_fault(failure);
        let (now, reason) = (Instant::now(), failure.reason);
        if let Some(owed) = self.owed.take() {
            owed.failed(now, reason);
        } else if matches!(reason, Reason::ResponseIncomplete | Reason::ResponseTimeout)
            && let Some(endpoint) = &self.trail.endpoint
        {
            // Its head was taken for a good answer.
            endpoint.begin(now).failed(now, reason);
        }
        self.failure.get_or_insert(failure);
    }

    /// An exchange that failed because the caller's own body did is the caller's failure, whatever the leg says.
    pub fn own_fault(&self, failure: Failure) -> Failure {
        match self.progress.as_ref().and_then(|progress| progress.fault()) {
            Some(Fault::TooLarge) => Failure::new(Reason::BodyTooLarge, "the body is larger than the limit"),
            Some(Fault::Idle) => Failure::new(Reason::BodyTimeout, "the request's body stood still for too long"),
            Some(Fault::Broken) => Failure::new(Reason::BadBody, "the request's body broke off or broke its framing"),
            Some(Fault::Deadline) => Failure::new(Reason::DeadlinePassed, "the request's deadline passed"),
            None => failure,
        }
    }

    /// The answer was passed on to its end, `received` bytes of body.
    pub fn ended(&mut self, received: u64, complete: bool) {
        self.received = received;
        self.complete = complete;
    }

    /// It became a tunnel, which has taken over and will tell its end by [`Exchange::tunnelled`].
    pub fn tunnel(&mut self) {
        self.tunnel = true;
        self.through.iter_mut().flatten().for_each(Through::tunnel);
        if let (Some(admitted), Some(status)) = (&mut self.admitted, self.status) {
            admitted.tunnel();
            // It was agreed on; how it ends is between its two ends.
            let now = self.answered.unwrap_or(self.started);
            admitted.tell(Outcome::answered(status, None), now, now);
        }
        if let Some(peer) = &self.peer {
            peer.metrics().tunnels.inc();
        }
    }

    /// The tunnel ended after these many bytes.
    pub fn tunnelled(&mut self, sent: u64, received: u64, failure: Option<Failure>) {
        (self.sent, self.received) = (sent, received);
        self.complete = failure.is_none();
        self.failure = failure;
    }

    /// Bytes from the caller: of its body, or through its tunnel.
    fn bytes_in(&self) -> u64 {
        self.progress.as_ref().map_or(self.sent, |progress| progress.bytes())
    }

    /// Why an exchange was dropped before its end: by the end of a shutdown's grace, else by its caller.
    fn cut_off(&self) -> Reason {
        if self.conn.drain.phase() == Phase::Forced { Reason::GraceOver } else { Reason::ClientGone }
    }

    fn count(&self, reason: Option<Reason>, now: Instant) {
        if self.would_deny.is_some() {
            self.conn.core.metrics.door(self.conn.side()).would_deny.inc();
        }
        let Some(peer) = &self.peer else {
            if let Some(reason) = reason {
                self.conn.core.metrics.door(self.conn.side()).reasons.inc(reason);
            }
            return;
        };
        let metrics = peer.metrics();
        metrics.in_flight.add(-1);
        let class = self.status.map_or(0, |status| usize::from(status.as_u16() / 100));
        if let Some(cell) = metrics.answers.get(class) {
            cell.inc();
        }
        if let Some(reason) = reason {
            metrics.reasons.inc(reason);
        }
        metrics.latency.observe(self.answered.unwrap_or(now).saturating_duration_since(self.started));
        metrics.received_bytes.add(self.received);
        metrics.sent_bytes.add(self.bytes_in());
    }

    fn write_line(&self, reason: Option<Reason>, now: Instant) {
        let kind = self.peer.as_ref().map(|peer| peer.kind());
        let line = Line {
            time: SystemTime::now(),
            door: self.conn.side(),
            client: self.conn.caller.client,
            original: self.conn.caller.original.0,
            elsewhere: self.peer.as_ref().is_some_and(|peer| captured::is_elsewhere(&self.conn, peer)),
            client_id: self.conn.client_id(),
            peer_id: self.trail.peer_id(),
            method: self.method.as_str(),
            scheme: if self.conn.tls { "https" } else { "http" },
            host: self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(""),
            path: self.uri.path(),
            status: self.status.map(|status| status.as_u16()),
            reason: reason.map(|reason| (reason, failure::side(reason, kind))),
            peer: self.peer.as_ref().map_or("", |peer| peer.name().as_str()),
            route: self.route.as_ref().map_or("", |route| &*route.name),
            fallback: self.fallback.as_ref().map_or("", |fallback| fallback.0.to.word()),
            endpoint: self.trail.endpoint.as_ref().map(|endpoint| endpoint.addr() as &dyn std::fmt::Display),
            attempts: self.trail.attempts,
            retry_skipped: self.trail.skipped.map_or("", Skip::word),
            reused: self.trail.reused,
            bytes_in: self.bytes_in(),
            bytes_out: self.received,
            duration: now.saturating_duration_since(self.started),
            first_byte: self.answered.map(|at| at.saturating_duration_since(self.started)),
            protocol: match self.version {
                Version::HTTP_10 => "HTTP/1.0",
                Version::HTTP_11 => "HTTP/1.1",
                _ => "HTTP/2",
            },
            peer_protocol: match self.trail.version {
                Some(Leg::Http1) => "HTTP/1.1",
                Some(Leg::Http2) => "HTTP/2",
                None => "",
            },
            request_id: self.id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or(""),
            would_deny: self.would_deny.as_deref().unwrap_or_default(),
            detail: self.failure.as_ref().or(self.fallen()).map_or("", |failure| &*failure.detail),
        };
        self.conn.core.access.write(&line);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let now = Instant::now();
        let cut = (!self.complete && self.failure.is_none()).then(|| self.cut_off());
        let reason = self.failure.as_ref().map(|failure| failure.reason).or(cut);
        let reason = reason.or(self.fallen().map(|failure| failure.reason));
        self.settle(now);
        self.count(reason, now);
        let worth = reason.is_some() || self.fallback.is_some() || self.would_deny.is_some();
        if self.conn.core.access.wants(self.status.map(|status| status.as_u16()), worth) {
            self.write_line(reason, now);
        }
        if !self.tunnel {
            self.conn.clock.idle(now);
        }
    }
}

/// Counts and tells of a connection that ended without an exchange and without an answer.
pub fn refused(conn: &Conn, reason: Reason, detail: &str) {
    refused_with(conn, reason, None, detail);
}

/// Counts and tells of a connection that ended without an exchange: its first bytes or its head were refused, with
/// `status` where there was an answer.
pub fn refused_with(conn: &Conn, reason: Reason, status: Option<StatusCode>, detail: &str) {
    conn.core.metrics.door(conn.side()).reasons.inc(reason);
    conn.core.access.write(&Line {
        status: status.map(|status| status.as_u16()),
        reason: Some((reason, failure::side(reason, None))),
        detail,
        original: conn.caller.original.0,
        client_id: conn.client_id(),
        ..Line::new(SystemTime::now(), conn.side(), conn.caller.client)
    });
}
