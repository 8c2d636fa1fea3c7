//! Where a connection was going before it reached this proxy: the seam for transparent mode.

use std::net::SocketAddr;

/// The address the caller dialled, where the kernel redirected the connection; `None` in explicit mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginalDst(pub Option<SocketAddr>);

impl OriginalDst {
    /// What explicit mode knows: the caller dialled this proxy itself.
    pub const EXPLICIT: Self = Self(None);
}
