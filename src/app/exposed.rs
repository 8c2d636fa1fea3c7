//! Warns of an app that can be reached past its sidecar.
//!
//! Asks the system's table of listeners and not the app: a connection that says nothing would be noise in its log, or
//! take the place of a real one.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use crate::ids::Addr;
use crate::net::inside::inside;
use crate::plan::Plan;
use crate::plan::peer::{Addresses, PeerKind};
use crate::proxy::Core;

/// How often, and how many times, it is looked whether the app has begun to listen.
const REST: Duration = Duration::from_secs(1);
const LOOKS: usize = 60;
/// The listeners of this network namespace, proc(5).
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// Waits for the apps to listen and warns of each that does so for others too.
pub(super) async fn look(core: Arc<Core>) {
    let mut apps = suspects(&core.world.load().plan.clone());
    for _ in 0..LOOKS {
        if apps.is_empty() {
            return;
        }
        // A table that cannot be read shows nobody.
        let tables = TABLES.map(|path| std::fs::read_to_string(path).unwrap_or_default());
        let open: Vec<SocketAddr> = tables.iter().flat_map(|table| listeners(table)).collect();
        apps.retain(|app| {
            let mut here = open.iter().filter(|addr| addr.port() == app.port()).peekable();
            let begun = here.peek().is_some();
            if let Some(outside) = here.find(|addr| !addr.ip().to_canonical().is_loopback()) {
                warn!("the app listens on {outside}, where others reach it past this sidecar: let it listen on {app}");
            }
            !begun
        });
        sleep(REST).await;
    }
}

/// The apps on loopback whose port is none of our own: who listens there is the app. None where others' connections are
/// captured.
fn suspects(plan: &Plan) -> Vec<SocketAddr> {
    // The tables are not those of an app with a network of its own.
    if inside().is_some() || plan.capture.as_ref().is_some_and(|capture| capture.inbound.is_some()) {
        return Vec::new();
    }
    let own = |addr: &SocketAddr| plan.egress.own.iter().filter_map(Addr::tcp).any(|own| own.port() == addr.port());
    let apps = plan.peers.iter().filter(|peer| peer.kind == PeerKind::App);
    let specs = apps.flat_map(|peer| match &peer.source.addresses {
        Addresses::Static(specs) => specs.as_slice(),
        _ => &[],
    });
    specs.filter_map(|spec| spec.addr.tcp()).filter(|addr| addr.ip().is_loopback() && !own(addr)).collect()
}

/// The addresses in state LISTEN (0A) of a table; its header and what cannot be read are passed over.
fn listeners(table: &str) -> impl Iterator<Item = SocketAddr> + '_ {
    table.lines().filter_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        if state == "0A" { address(local) } else { None }
    })
}

/// `IP:PORT` in hexadecimal, the IP in words of this machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.concat()).ok()?))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_table_shows_who_listens() {
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            // A machine without IPv6 cannot try the last.
            let Ok(listener) = std::net::TcpListener::bind(bind) else { continue };
            let addr = listener.local_addr().unwrap();
            let shown =
                || TABLES.iter().any(|path| listeners(&std::fs::read_to_string(path).unwrap()).any(|one| one == addr));
            assert!(shown(), "{addr}");
            drop(listener);
            assert!(!shown(), "{addr}");
        }
        assert_eq!(listeners("  sl  local_address rem_address   st\n 0: nonsense 0:0 0A\n").count(), 0);
    }
}
