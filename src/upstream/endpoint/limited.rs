//! An endpoint under limits: what stands in line or in flight, and who makes room for a connection.

use std::sync::Arc;

use super::super::guards::Refusal;
use super::super::lease::ConnectError;
use super::super::peer::Peer;
use super::super::room::NoRoom;
use super::Endpoint;
use crate::resilience::limit::{Held, Limited, Limits};

impl Endpoint {
    /// Takes one under the limit of each endpoint.
    pub(super) fn hold(&self, peer: &Peer, what: Limited) -> Result<Held, ConnectError> {
        let held = self.limits.hold(what, &peer.rules().endpoint_limits);
        held.map_err(|full| peer.full(full, Some(&self.addr)).into())
    }

    /// Whether these are its counters.
    pub(in super::super) fn counts_by(&self, limits: &Arc<Limits>) -> bool {
        Arc::ptr_eq(&self.limits, limits)
    }

    /// Room in line, under the limits of the peer and of the endpoint.
    pub(super) fn stand(&self, peer: &Peer) -> Result<(Held, Held), ConnectError> {
        let of_peer = self.home.limits.hold(Limited::Pending, &peer.rules().limits);
        let of_peer = of_peer.map_err(|full| peer.full(full, None))?;
        Ok((of_peer, self.hold(peer, Limited::Pending)?))
    }

    /// Why no connection was made: a limit where one is reached.
    pub(super) fn no_room(&self, peer: &Peer, what: &str) -> ConnectError {
        let full = self.pool.lock().room().full();
        match full {
            Some(NoRoom { full, endpoint }) => {
                peer.full(full, endpoint.then_some(&self.addr as &dyn std::fmt::Display)).into()
            }
            None => self.overloaded(what),
        }
    }

    /// Whether a limit of the file keeps it from being connected to.
    pub fn is_full(&self) -> bool {
        self.pool.lock().room().full().is_some()
    }

    /// Where a limit on connections is in the way, idle ones are given up for whoever waits: of this endpoint, whose idle
    /// ones are then of the other version, or of any other of the peer's.
    pub(super) fn make_room(&self, peer: &Peer) {
        let Some(NoRoom { full, endpoint }) = self.pool.lock().room().full() else { return };
        if full.what == Limited::Connections && !self.shed() && !endpoint {
            let _ = peer.endpoints().all().iter().any(|other| other.shed());
        }
    }

    fn shed(&self) -> bool {
        self.pool.lock().shed()
    }
}

impl From<Refusal> for ConnectError {
    fn from(refusal: Refusal) -> Self {
        Self { reason: refusal.reason, detail: refusal.detail }
    }
}
