//! The section `fallback`: what a caller gets where a peer gives no answer.

use super::collect::List;
use super::kind::Set;
use super::route::{Respond, Status};
use super::section::section;
use super::units::{Size, Timer};
use super::values::Name;

section! {
    /// What a caller gets where the peer gives no answer; exactly one of `peer`, `respond` and `stale`.
    StandIn {
        /// Another peer is called, with what was never sent or does no harm twice.
        peer "peer": Option<Set<Name>> = Unset("payments-standby");
        /// An answer from here.
        respond "respond": Option<Set<Respond>> = Unset("{ status: 200, body: \"[]\", content-type: application/json }");
        /// The last good answer to the same GET.
        stale "stale": Option<Set<Stale>> = Unset("{ for: 1h }");
        /// Answers that count as none, besides no answer at all.
        statuses "statuses": Set<List<Status>> = Is("[]");
    }
}

section! {
    /// Good answers to GET are kept for when there is none (RFC 5861 stale-if-error): never those to requests with
    /// Authorization, Cookie or a token in another field that the service gets, nor those that set cookies or that caches
    /// may not keep. What one proven identity was told is given to no other.
    Stale {
        /// How long after it came an answer may be given.
        time "for": Set<Timer> = Is("1h");
        /// Bytes that are kept for a peer; an answer of more than an eighth is not.
        size "size": Set<Size> = Is("8MiB");
    }
}
