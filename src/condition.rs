//! The closed list of what makes an attempt worth another one, by the names the field uses.

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident => $word:literal;)*) => {
        /// What makes an attempt worth another one, by the names the field uses.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Condition { $($(#[$doc])* $name),* }

        impl Condition {
            /// Every condition, in the order of the list.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// Its name in the file, the log and the metric.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word),* }
            }
        }
    };
}

conditions! {
    /// No connection could be made (refused, unreachable, timed out, TLS failed): the request never left.
    ConnectFailure => "connect-failure";
    /// The connection ended and provably nothing of the request was processed.
    ResetBeforeRequest => "reset-before-request";
    /// The connection ended, or the attempt's time was over, before the answer began.
    Reset => "reset";
    /// The peer refused the stream before it did any work (REFUSED_STREAM, or above a GOAWAY's last stream).
    RefusedStream => "refused-stream";
    /// A status from 500 to 599, or no answer at all, for whatever reason.
    ServerError => "5xx";
    /// 502, 503 or 504.
    GatewayError => "gateway-error";
    /// A status of the 400s that may pass by itself: 409.
    Retriable4xx => "retriable-4xx";
    /// A status listed in the rule's statuses.
    StatusCodes => "retriable-status-codes";
    /// A field listed in the rule's fields is in the answer.
    Headers => "retriable-headers";
    /// gRPC code 1, in the head or the trailers.
    Cancelled => "cancelled";
    /// gRPC code 4.
    DeadlineExceeded => "deadline-exceeded";
    /// gRPC code 8.
    ResourceExhausted => "resource-exhausted";
    /// gRPC code 10; not among the field's usual names, but the code whose meaning is "try again".
    Aborted => "aborted";
    /// gRPC code 13.
    Internal => "internal";
    /// gRPC code 14.
    Unavailable => "unavailable";
}

const ANSWERS: u16 = 1 << Condition::ServerError as u16
    | 1 << Condition::GatewayError as u16
    | 1 << Condition::Retriable4xx as u16
    | 1 << Condition::StatusCodes as u16
    | 1 << Condition::Headers as u16;

const GRPC: u16 = 1 << Condition::Cancelled as u16
    | 1 << Condition::DeadlineExceeded as u16
    | 1 << Condition::ResourceExhausted as u16
    | 1 << Condition::Aborted as u16
    | 1 << Condition::Internal as u16
    | 1 << Condition::Unavailable as u16;

/// A set of [`Condition`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conditions(u16);

impl Conditions {
    /// The set of `all`.
    pub fn of(all: &[Condition]) -> Self {
        all.iter().copied().fold(Self::default(), Self::with)
    }

    /// The set and `one`.
    #[must_use]
    pub fn with(self, one: Condition) -> Self {
        Self(self.0 | 1 << one as u8)
    }

    /// Whether `one` is in it.
    pub fn has(self, one: Condition) -> bool {
        self.0 & 1 << one as u8 != 0
    }

    /// Those in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether it has one that says nothing about whether the request was processed.
    pub fn acts_on_unknown(self) -> bool {
        let unsent = [Condition::ConnectFailure, Condition::ResetBeforeRequest, Condition::RefusedStream];
        self.0 & !Self::of(&unsent).0 != 0
    }

    /// Whether it has one that a request meets that its peer refused to process.
    pub fn acts_on_refusal(self) -> bool {
        use Condition::{RefusedStream, Reset, ResetBeforeRequest, ServerError};
        self.0 & Self::of(&[ResetBeforeRequest, RefusedStream, Reset, ServerError]).0 != 0
    }

    /// Whether it has one that an answer can meet.
    pub fn looks_at_answers(self) -> bool {
        self.0 & (ANSWERS | GRPC) != 0
    }

    /// Whether it has one that a gRPC code can meet.
    pub fn looks_at_grpc(self) -> bool {
        self.0 & GRPC != 0
    }

    /// The first in the order of the list; `None` if it is empty.
    pub fn first(self) -> Option<Condition> {
        Condition::ALL.iter().copied().find(|one| self.has(*one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_words_are_unique_and_sets_hold_what_they_are_given() {
        let mut words: Vec<_> = Condition::ALL.iter().map(|one| one.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Condition::ALL.len());
        for one in Condition::ALL {
            let set = Conditions::default().with(*one);
            assert_eq!(Condition::ALL.iter().filter(|other| set.has(**other)).collect::<Vec<_>>(), [one]);
            assert_eq!(set.first(), Some(*one));
            assert_eq!(set.and(Conditions::default()).first(), None);
        }
    }
}
