//! The life of a request: doors, the corridor, tunnels, and the one table of invented answers.

pub mod affinity;
pub mod answer;
pub mod bounds;
pub mod captured;
pub mod connection;
#[cfg(test)]
mod corridor_tests;
pub mod doors;
pub mod exchange;
pub mod failure;
pub mod fallback;
mod first_word;
pub mod identify;
pub mod learned;
pub mod mirror;
mod passthrough;
pub mod policy;
pub mod record;
pub mod route;
pub mod sender;
pub mod serve;
pub mod serve_http2;
pub mod stale;
pub mod target;
pub mod tokens;
pub mod tunnel;
pub mod upgrade;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use http::HeaderValue;

pub use learned::{Learned, Spoken};
use sender::Sender;

use crate::ids::{ClientAddr, Door};
use crate::life::drain::Watch;
use crate::life::shutdown::Direction;
use crate::life::tasks::Tasks;
use crate::net::clocked::Clock;
use crate::net::origdst::OriginalDst;
use crate::plan::Plan;
use crate::plan::door::{DoorPlan, Mtls};
use crate::spiffe::SpiffeId;
use crate::telemetry::access::AccessLog;
use crate::telemetry::metrics::Metrics;
use crate::tls::proof::Proof;
use crate::upstream::lease::OnInformational;
use crate::upstream::world::World;

/// The one shared root of the data path.
pub struct Core {
    /// The wall map: read once per request, replaced whole by a reload.
    pub world: ArcSwap<World>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// One line per exchange.
    pub access: AccessLog,
    /// The inbound doors' shutdown, and every connection, stream and tunnel of theirs.
    pub inbound: Direction,
    /// The outbound doors' shutdown, and every connection, stream and tunnel of theirs.
    pub outbound: Direction,
    /// Good answers, for when there is none.
    pub stale: stale::Stales,
    /// Copies of requests under way.
    pub mirrors: mirror::Mirrors,
    /// What captured connections have taught about where they were going.
    pub destinations: learned::Destinations,
}

impl Core {
    /// The same for who is served as by an earlier World: by a door that a reload has removed, in its last moment.
    fn as_of(&self, world: Arc<World>) -> Self {
        Self {
            world: ArcSwap::new(world),
            metrics: self.metrics.clone(),
            access: self.access.clone(),
            inbound: self.inbound.clone(),
            outbound: self.outbound.clone(),
            stale: stale::Stales::default(),
            mirrors: self.mirrors.clone(),
            destinations: learned::Destinations::default(),
        }
    }

    /// One side's shutdown and tasks.
    pub fn direction(&self, side: Door) -> &Direction {
        match side {
            Door::Inbound => &self.inbound,
            Door::Outbound => &self.outbound,
        }
    }
}

/// Who is at the other end of an accepted connection.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Its address.
    pub client: ClientAddr,
    /// What it dialled, where the kernel redirected it.
    pub original: OriginalDst,
}

/// One accepted connection: what every request of it needs, behind one reference count.
pub struct Conn {
    /// The shared root.
    pub core: Arc<Core>,
    /// The plan in force at accept; the door's indices belong to it.
    pub plan: Arc<Plan>,
    /// The door it came through.
    pub door: Arc<DoorPlan>,
    /// What was learned at this door.
    pub learned: Arc<Learned>,
    /// Who calls.
    pub caller: Caller,
    /// The caller's address as a field's value; `None` where none is to be told.
    pub client_field: Option<HeaderValue>,
    /// Whether the caller's word about where it comes from is believed.
    pub trusted: bool,
    /// Whether the caller's connection is TLS with the door's own certificate. Mutual TLS is between sidecars: what was
    /// asked for inside of it was asked for as `http`.
    pub tls: bool,
    /// Who the caller has proven to be.
    pub proof: Option<Arc<Proof>>,
    /// In which period of counting it was counted among those in plaintext; 0 for none.
    pub counted: AtomicU64,
    /// Who the caller is, for the app, as `x-forwarded-client-cert`.
    pub client_cert: Option<HeaderValue>,
    /// The clocks of the connection.
    pub clock: Arc<Clock>,
    /// Drops informational answers that this leg cannot carry, and counts them.
    pub no_informational: OnInformational,
    /// The shutdown that this connection obeys; one of its own is for what it was let in for, if that holds no longer.
    pub drain: Watch,
    /// Its place at the door, held as long as any exchange or tunnel of it lives.
    pub place: Option<doors::Place>,
}

impl Conn {
    /// Which way its traffic goes.
    pub fn side(&self) -> Door {
        self.door.side
    }

    /// Who its caller has proven to be.
    pub fn identity(&self) -> Option<&SpiffeId> {
        self.proof.as_deref().map(Proof::id)
    }

    /// The same as a word, empty for nobody.
    pub fn client_id(&self) -> &str {
        self.identity().map_or("", SpiffeId::as_str)
    }

    /// Its caller as the head of a request is to know it.
    fn sender(&self) -> Sender<'_> {
        let (client, client_cert) = (self.client_field.as_ref(), self.client_cert.as_ref());
        Sender { client, trusted: self.trusted, proven: self.proof.is_some(), tls: self.tls, client_cert }
    }

    /// Whether its caller had to prove who it is and did not.
    pub fn is_unproven(&self) -> bool {
        self.door.mtls == Mtls::Strict && self.proof.is_none()
    }

    /// Whether it came in plaintext and is still to be counted, where its door asks for mutual TLS and lets it pass.
    pub fn counts_plaintext(&self) -> bool {
        let period = self.core.metrics.plaintext.period();
        self.proof.is_none() && self.counted.load(Ordering::Relaxed) != period
    }

    /// Counts it so: it would be refused if the door were strict.
    pub fn count_plaintext(&self) {
        let period = self.core.metrics.plaintext.period();
        if self.proof.is_none() && self.counted.swap(period, Ordering::Relaxed) != period {
            self.core.metrics.door(self.side()).plaintext.inc();
            self.core.metrics.plaintext.seen(self.caller.client, SystemTime::now());
        }
    }

    /// Who owns what it spawns.
    pub fn tasks(&self) -> &Tasks {
        &self.core.direction(self.door.side).open
    }
}
