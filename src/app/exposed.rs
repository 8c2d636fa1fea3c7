//! Warns of an app that can be reached past its sidecar.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tracing::warn;

use crate::control::here::primary;
use crate::ids::Addr;
use crate::plan::Plan;
use crate::plan::peer::{Addresses, PeerKind};
use crate::proxy::Core;

/// How often, and how many times, it is looked whether the app has begun to listen.
const REST: Duration = Duration::from_secs(1);
const LOOKS: usize = 60;
/// A connection on this machine is there at once or not at all.
const CLOCK: Duration = Duration::from_millis(500);

/// Once the app answers on loopback, tries its port at this machine's own address, which callers could use too.
pub(super) async fn look(core: Arc<Core>) {
    let Some(primary) = primary() else { return };
    let plan = core.world.load().plan.clone();
    for app in suspects(&plan) {
        for _ in 0..LOOKS {
            if answers(app).await {
                let outside = SocketAddr::new(primary, app.port());
                if answers(outside).await {
                    warn!("the app answers at {outside} too, past this sidecar: let it listen on {app} only");
                }
                break;
            }
            sleep(REST).await;
        }
    }
}

/// The apps on loopback whose port is none of our own: what answers there from outside would be the app itself.
fn suspects(plan: &Plan) -> Vec<SocketAddr> {
    let own = |addr: &SocketAddr| plan.egress.own.iter().filter_map(Addr::tcp).any(|own| own.port() == addr.port());
    let apps = plan.peers.iter().filter(|peer| peer.kind == PeerKind::App);
    let specs = apps.flat_map(|peer| match &peer.source.addresses {
        Addresses::Static(specs) => specs.as_slice(),
        _ => &[],
    });
    specs.filter_map(|spec| spec.addr.tcp()).filter(|addr| addr.ip().is_loopback() && !own(addr)).collect()
}

async fn answers(addr: SocketAddr) -> bool {
    timeout(CLOCK, TcpStream::connect(addr)).await.is_ok_and(|connected| connected.is_ok())
}
