//! How the endpoints of a peer are asked whether they are well, as plain data.

use std::sync::Arc;
use std::time::Duration;

/// When an endpoint is asked, how, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthRule {
    /// How it is asked.
    pub check: HealthCheck,
    /// From one question to the next, give or take a tenth.
    pub every: Duration,
    /// How long an answer may take, connecting included.
    pub timeout: Duration,
    /// Passed checks in a row after which an unhealthy endpoint is healthy again.
    pub healthy: u32,
    /// Failed checks in a row after which a healthy endpoint is unhealthy.
    pub unhealthy: u32,
}

/// How an endpoint is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealthCheck {
    /// `GET` of this path; any 2xx is well.
    Http {
        /// The path, with its query if it has one.
        path: Arc<str>,
        /// The authority to ask for.
        host: Arc<str>,
    },
    /// `grpc.health.v1.Health/Check`; SERVING is well.
    Grpc {
        /// The service to ask for; empty is the server as a whole.
        service: Arc<str>,
        /// The authority to ask for.
        host: Arc<str>,
    },
    /// A connection that can be made, TLS included, is well.
    Tcp,
}
