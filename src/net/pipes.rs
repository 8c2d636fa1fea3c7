//! Addresses whose connections are pipes in memory, so that a test's clock can stand still; in tests only.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::io::Io;
use crate::ids::Addr;

/// Bytes that a pipe holds each way, like a socket's buffer.
pub const PIPE: usize = 64 * 1024;

static LISTENERS: Mutex<BTreeMap<Addr, mpsc::Sender<DuplexStream>>> = Mutex::new(BTreeMap::new());

static NEXT: AtomicUsize = AtomicUsize::new(0);

/// A new address, and the other end of every connection to it. Once the receiver is gone, connections are refused.
pub fn listen() -> (Addr, mpsc::Receiver<DuplexStream>) {
    let path = std::path::PathBuf::from(format!("/pipe/{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    listen_at(Addr::Unix(path.into()))
}

/// The same at an IP address of this machine.
pub fn listen_tcp() -> (SocketAddr, mpsc::Receiver<DuplexStream>) {
    let port = 1024 + u16::try_from(NEXT.fetch_add(1, Ordering::Relaxed) % 60_000).unwrap_or_default();
    let addr = SocketAddr::from(([127, 66, 0, 1], port));
    (addr, listen_at(Addr::Tcp(addr)).1)
}

fn listen_at(addr: Addr) -> (Addr, mpsc::Receiver<DuplexStream>) {
    let (to, from) = mpsc::channel(64);
    LISTENERS.lock().insert(addr.clone(), to);
    (addr, from)
}

/// Connects, where `addr` is one of ours.
pub(super) async fn connect(addr: Addr) -> Option<io::Result<Io>> {
    let to = LISTENERS.lock().get(&addr).cloned()?;
    let (ours, theirs) = duplex(PIPE);
    let sent = to.send(theirs).await;
    Some(sent.map(|()| Io::boxed(ours)).map_err(|_| io::ErrorKind::ConnectionRefused.into()))
}
