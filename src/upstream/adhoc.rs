//! Peers for names that the file does not list.

use std::sync::Arc;

use super::lease::ConnectError;
use super::peer::Peer;
use crate::deadline::Deadline;
use crate::reason::Reason;

/// The ad-hoc peers that are alive.
#[derive(Default)]
pub struct Adhoc {}

impl Adhoc {
    /// The peer for a name.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn peer(&self, host: &str, port: u16, _deadline: Deadline) -> Result<Arc<Peer>, ConnectError> {
        Err(ConnectError { reason: Reason::NoRoute, detail: format!("{host}:{port}") })
    }
}
