//! What the simulation asks of a proxy beside a caller, whosever it is.

use outrigger::upstream::in_flight::InFlight;

use crate::clock::Micros;

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Got {
    /// A good answer.
    Answer,
    /// 503, or UNAVAILABLE where gRPC is spoken.
    Failure,
    /// No connection.
    Refused,
    /// The connection ended before the answer.
    Reset,
}

/// How far a call has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Course {
    /// When it came to the sidecar.
    pub(crate) came: Micros,
    /// Attempts made.
    pub(crate) attempts: u32,
    /// Hosts of attempts that are over.
    pub(crate) tried: Vec<usize>,
    /// Whether it came marked as a sidecar's further attempt.
    pub(crate) marked: bool,
    /// Whether the attempt under way is counted among the caller's retries in flight.
    pub(crate) retrying: bool,
}

/// An attempt that was given to a host.
pub(crate) struct Ticket {
    /// The host.
    pub(crate) host: usize,
    /// When.
    pub(crate) began: Micros,
    /// Outrigger's own ticket.
    pub(crate) held: Option<InFlight>,
}

/// Where an attempt goes.
pub(crate) enum Pick {
    /// To this host.
    To(Ticket),
    /// Nowhere yet: ask again after so long.
    Wait(Micros),
    /// Nowhere.
    Nobody,
}

/// What follows an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// What there is goes to the caller.
    Over,
    /// Another one, after so long.
    Again(Micros),
    /// It was none: the request never left the sidecar, which looks for another host.
    Elsewhere,
}

/// A proxy beside a caller, with its own view of the hosts.
pub(crate) trait Sidecar {
    /// Chooses a host for a call's next attempt.
    fn begin(&mut self, now: Micros, course: &mut Course) -> Pick;

    /// Learns what became of it, and says what follows.
    fn ended(&mut self, now: Micros, course: &mut Course, ticket: Ticket, got: Got) -> Then;
}
