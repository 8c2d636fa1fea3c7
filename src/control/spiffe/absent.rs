//! Stands in for the agent's client in a build without it, where a file that names a Workload API is refused.

use super::{Agent, Fault, Update, Updates};
use crate::plan::identity::WorkloadApiPlan;

/// Nobody.
pub(super) struct Socket;

impl Socket {
    pub(super) fn of(_: &WorkloadApiPlan) -> Self {
        Self
    }
}

impl Agent for Socket {
    type Stream = Nothing;

    async fn open(&mut self) -> Result<Nothing, Fault> {
        Err(Fault::Broken("this program was built without the Workload API".to_owned()))
    }
}

/// What nobody says.
pub(super) enum Nothing {}

impl Updates for Nothing {
    async fn next(&mut self) -> Option<Result<Update, Fault>> {
        None
    }
}
