//! How long the parts of an identity still hold.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls_pki_types::UnixTime;

use super::facts::Validity;
use crate::telemetry::stamp::Stamp;

/// What part of an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// The own certificate.
    Leaf,
    /// A root of this trust domain.
    Root(Arc<str>),
    /// A list of the revoked, by where it came from: after its time nobody of its issuer is believed.
    Crl(Arc<str>),
}

/// From when to when a part holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    /// The part.
    pub of: Of,
    /// Its time.
    pub validity: Validity,
}

impl Expiry {
    pub(super) fn of_crl(origin: &str, validity: Validity) -> Self {
        Self { of: Of::Crl(origin.into()), validity }
    }

    /// Seconds until it expires, negative afterwards.
    pub fn seconds_left(&self, now: UnixTime) -> i64 {
        self.validity.until.as_secs().cast_signed().saturating_sub(now.as_secs().cast_signed())
    }

    /// When a replacement is overdue: two thirds of its time are over.
    pub fn warn_at(&self) -> UnixTime {
        let Validity { from, until } = self.validity;
        let third = until.as_secs().saturating_sub(from.as_secs()) / 3;
        UnixTime::since_unix_epoch(Duration::from_secs(until.as_secs().saturating_sub(third)))
    }

    /// One line for an operator, from `warn_at` on.
    pub(super) fn warning(&self, now: UnixTime) -> Option<String> {
        let what = match &self.of {
            Of::Leaf => "our own certificate".to_owned(),
            Of::Root(domain) => format!("a root of the trust domain `{domain}`"),
            Of::Crl(origin) => format!("the CRL in {origin}"),
        };
        let Validity { from, until } = self.validity;
        match now {
            _ if now < from => Some(format!("{what} is valid only from {}; is a clock wrong?", stamp(from))),
            _ if now > until => Some(format!("{what} expired at {}: replace it now", stamp(until))),
            _ if now >= self.warn_at() => {
                Some(format!("{what} expires at {}, and two thirds of its time are over: replace it", stamp(until)))
            }
            _ => None,
        }
    }
}

/// For messages.
pub(super) fn stamp(time: UnixTime) -> Stamp {
    Stamp(UNIX_EPOCH.checked_add(Duration::from_secs(time.as_secs())).unwrap_or(UNIX_EPOCH))
}
