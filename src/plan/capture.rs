//! Transparent mode: how captured connections reach the doors, and where they may go.

use std::collections::HashMap;
use std::sync::Arc;

use super::door::{DoorPlan, Leads, Otherwise};
use super::peer::{PeerPolicy, Routes};
use crate::ids::Door;

/// The code point (of the range for local use, RFC 2474 §6) by which the rules tell what an inbound door sends to the
/// service from what else this sidecar sends to addresses of its own machine, which they capture.
pub const TO_APP: u8 = 0x0f;

/// What the kernel's rules bring to the doors; in explicit mode there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    /// Whether connections of the service come to the outbound door; they can only be redirected.
    pub outbound: bool,
    /// How connections of the network come to the inbound doors, if they do.
    pub inbound: Option<How>,
    /// What happens to captured connections of the service that lead to no peer.
    pub otherwise: Otherwise,
    /// The service's ports: which door, by its index in [`super::Plan::doors`], a connection to each belongs to.
    pub ports: HashMap<u16, usize>,
    /// The door of every other port; `None` where there is no inbound door at all.
    pub unlisted: Option<Arc<DoorPlan>>,
    /// How a port is called that the file says nothing about.
    pub app: Arc<PeerPolicy>,
    /// What happens to some of the requests there: the same as at the other ports of the service.
    pub routes: Routes,
}

/// How the kernel hands a captured connection over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum How {
    /// Its destination is rewritten (REDIRECT), and the first one is asked of the system.
    Redirect,
    /// It keeps both addresses (TPROXY), and the service sees the caller's too.
    Tproxy,
}

impl Capture {
    /// The inbound door to which a port of the service belongs.
    pub fn door<'p>(&'p self, doors: &'p [Arc<DoorPlan>], port: u16) -> Option<&'p Arc<DoorPlan>> {
        self.ports.get(&port).and_then(|index| doors.get(*index)).or(self.unlisted.as_ref())
    }

    /// How captured connections come to this door; `None` where none can: a peer's own port is dialled by name.
    pub fn at(&self, door: &DoorPlan) -> Option<How> {
        match (door.side, door.leads) {
            _ if door.listen.tcp().is_none() => None,
            (Door::Inbound, _) => self.inbound,
            (Door::Outbound, Leads::ByAuthority) => self.outbound.then_some(How::Redirect),
            (Door::Outbound, Leads::Peer(_) | Leads::Dialled) => None,
        }
    }
}
