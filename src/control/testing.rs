//! What the tests of this floor share.

use std::sync::Arc;
use std::time::Duration;

use crate::ids::{Addr, PeerName};
use crate::plan::door::{Egress, Otherwise, Protocol};
use crate::plan::peer::{Addresses, Balance, EndpointSpec, PeerKind, PeerPlan, PeerPolicy, PeerSource};
use crate::plan::{AccessLog, AccessLogPlan, DnsPlan, LogFormat, Plan};

/// A plan with one app at 127.0.0.1:1 and no doors.
pub(crate) fn plan() -> Plan {
    Plan {
        service: "checkout".into(),
        workers: 1,
        grace: Duration::from_secs(25),
        admin: None,
        status: None,
        doors: Vec::new(),
        peers: vec![app(Addr::Tcp(([127, 0, 0, 1], 1).into()))],
        routes: Default::default(),
        egress: Egress { otherwise: Otherwise::Deny, allow: Arc::new([]), own: Arc::new([]) },
        dns: DnsPlan {
            servers: Vec::new(),
            floor: Duration::from_secs(1),
            ceiling: Duration::from_secs(300),
            stale_for: Duration::from_secs(600),
            timeout: Duration::from_secs(5),
            hosts_file: true,
        },
        access_log: AccessLogPlan { log: AccessLog::Off, format: LogFormat::Text },
    }
}

/// An app that listens at `addr`.
pub(crate) fn app(addr: Addr) -> PeerPlan {
    PeerPlan {
        name: PeerName::new("app"),
        kind: PeerKind::App,
        source: PeerSource {
            addresses: Addresses::Static(vec![EndpointSpec::bare(addr)]),
            protocol: Protocol::Auto,
            tls: None,
        },
        policy: Arc::new(PeerPolicy {
            balance: Balance::PeakEwma,
            connect_timeout: Duration::from_secs(1),
            request_timeout: None,
            body_idle: Duration::from_secs(60),
            tunnel_idle: Duration::from_secs(3600),
            keep_alive: Duration::from_secs(4),
        }),
    }
}
