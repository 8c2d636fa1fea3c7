//! Addresses whose connections are pipes in memory, so that a test's clock can stand still; in tests only.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::io::Io;
use crate::ids::Addr;

/// Bytes that a pipe holds each way, like a socket's buffer.
pub const PIPE: usize = 64 * 1024;

static LISTENERS: Mutex<BTreeMap<PathBuf, mpsc::Sender<DuplexStream>>> = Mutex::new(BTreeMap::new());

/// A new address, and the other end of every connection to it. Once the receiver is gone, connections are refused.
pub fn listen() -> (Addr, mpsc::Receiver<DuplexStream>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let path = PathBuf::from(format!("/pipe/{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    let (to, from) = mpsc::channel(64);
    LISTENERS.lock().insert(path.clone(), to);
    (Addr::Unix(path.into()), from)
}

/// Connects, where `path` is one of ours.
pub(super) async fn connect(path: &Path) -> Option<io::Result<Io>> {
    let to = LISTENERS.lock().get(path).cloned()?;
    let (ours, theirs) = duplex(PIPE);
    let sent = to.send(theirs).await;
    Some(sent.map(|()| Io::boxed(ours)).map_err(|_| io::ErrorKind::ConnectionRefused.into()))
}
