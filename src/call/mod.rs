//! One call to a peer, whatever it takes.

pub mod attempt;
mod hedge;
pub mod retry;
pub mod trail;

use std::borrow::Cow;

use http::{HeaderMap, StatusCode};

use crate::reason::Reason;

/// Why a request or a connection failed: the word, and what exactly happened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.word())]
pub struct Failure {
    /// The word.
    pub reason: Reason,
    /// In words, one line.
    pub detail: Cow<'static, str>,
    /// The status to answer with where it is not the reason's own.
    pub status: Option<StatusCode>,
    /// Further fields of the answer; boxed, because few failures have any.
    pub fields: Option<Box<HeaderMap>>,
}

impl Failure {
    /// A failure with its detail.
    pub fn new(reason: Reason, detail: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, detail: detail.into(), status: None, fields: None }
    }
}
