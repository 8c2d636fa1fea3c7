//! This process's own outgoing connections, by which a door tells one that the kernel's rules brought back to it.
//!
//! Only a field of HTTP tells how many sidecars a request has passed: opaque bytes that come back would be dialled again
//! without end. A connection is known by both its addresses from the moment the kernel has begun to open it (over loopback it
//! can be accepted a moment earlier: it then goes round once more), and as long as it is open. In one network no two open
//! connections have the same two addresses, the app's and ours no more than any others, whichever way its are captured: so
//! only the kernel's own renaming can mislead. Where two callers redirected to one door would look the same there, one
//! is given another port, which may be that of one of ours to the same place. That is rare, and a loop is not, so where the
//! rules should let this process go, only many in a row count. An app in a network of its own has ports of its own and may
//! well have this machine's address: its connections look like ours every day, and never are.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::{array, io};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Sets of open connections, so that threads seldom wait for each other.
const SHARDS: usize = 16;
/// What a captured connection that looks like one of ours adds to the suspicion; any other takes one from it.
const LOOKS_SO: u32 = 16;
/// From here on the suspicion is certainty.
const ENOUGH: u32 = 16 * LOOKS_SO;
/// The same where a loop is to be expected: two in a row.
const FEW: u32 = 2 * LOOKS_SO;

/// Whether connections of this process may come back to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Watch {
    /// Nothing is captured, or only in a network where this process sends nothing.
    Off,
    /// The rules are to let this process go.
    Spared,
    /// By the file they do not.
    Captured,
}

static WATCH: AtomicU8 = AtomicU8::new(Watch::Off as u8);
static OPEN: LazyLock<[Mutex<HashSet<Ends>>; SHARDS]> = LazyLock::new(|| array::from_fn(|_| Mutex::default()));
static SUSPICION: AtomicU32 = AtomicU32::new(0);

/// What the file in force makes of it.
pub fn watch(watch: Watch) {
    WATCH.store(watch as u8, Ordering::Relaxed);
}

/// Whether connections of this process are to be known.
pub(super) fn is_watched() -> bool {
    WATCH.load(Ordering::Relaxed) != Watch::Off as u8
}

/// Whether a captured connection of `client`, which was going `to`, is one of this process itself.
pub fn came_back(client: SocketAddr, to: SocketAddr) -> bool {
    // Once nothing may come back, what is still open from before means nothing.
    if !is_watched() {
        return false;
    }
    let ends = Ends::of(client, to);
    let same = ends.shard().lock().contains(&ends);
    let captured = WATCH.load(Ordering::Relaxed) == Watch::Captured as u8;
    suspicious(&SUSPICION, same, if captured { FEW } else { ENOUGH }) && same
}

/// Whether enough connections looked like ours, with this one.
fn suspicious(suspicion: &AtomicU32, same: bool, enough: u32) -> bool {
    let after = |before: u32| if same { (before + LOOKS_SO).min(2 * ENOUGH) } else { before.saturating_sub(1) };
    let other = |before| Some(after(before)).filter(|after| *after != before);
    let (Ok(before) | Err(before)) = suspicion.fetch_update(Ordering::Relaxed, Ordering::Relaxed, other);
    after(before) >= enough
}

/// Both ends of a connection, as anybody sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ends {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
}

impl Ends {
    fn of(from: SocketAddr, to: SocketAddr) -> Self {
        let plain = |addr: SocketAddr| (addr.ip().to_canonical(), addr.port());
        Self { from: plain(from), to: plain(to) }
    }

    fn shard(&self) -> &'static Mutex<HashSet<Self>> {
        // Systems give ports of one parity to who connects.
        let [first, ..] = &*OPEN;
        OPEN.get(usize::from(self.from.1 >> 1) % SHARDS).unwrap_or(first)
    }
}

/// A connection is known for ours while this lives.
#[derive(Debug)]
pub struct Known(Ends);

impl Known {
    /// The one from `local` to `to`.
    pub fn of(local: SocketAddr, to: SocketAddr) -> Self {
        let ends = Ends::of(local, to);
        ends.shard().lock().insert(ends);
        Self(ends)
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        self.0.shard().lock().remove(&self.0);
    }
}

/// A connection that this process made.
#[derive(Debug)]
pub struct Ours {
    // Dropped first: once the socket is closed its addresses may be another one's.
    _known: Known,
    /// The connection.
    pub stream: TcpStream,
}

impl Ours {
    pub(super) fn new(known: Known, stream: TcpStream) -> Self {
        Self { _known: known, stream }
    }
}

impl AsyncRead for Ours {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Ours {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_connection_is_known_by_both_ends_in_any_notation_and_while_it_is_open() {
        let (local, to) = (addr("203.0.113.1:4000"), addr("203.0.113.9:80"));
        let known = |from: &str, to: &str| {
            let ends = Ends::of(addr(from), addr(to));
            ends.shard().lock().contains(&ends)
        };
        assert!(!known("203.0.113.1:4000", "203.0.113.9:80"));
        let open = Known::of(local, to);
        for (from, to, expect) in [
            ("203.0.113.1:4000", "203.0.113.9:80", true),
            ("[::ffff:203.0.113.1]:4000", "[::ffff:203.0.113.9]:80", true),
            ("203.0.113.1:4001", "203.0.113.9:80", false),
            ("203.0.113.1:4000", "203.0.113.9:81", false),
            ("203.0.113.1:4000", "203.0.113.8:80", false),
            ("203.0.113.2:4000", "203.0.113.9:80", false),
        ] {
            assert_eq!(known(from, to), expect, "{from} -> {to}");
        }
        drop(open);
        assert!(!known("203.0.113.1:4000", "203.0.113.9:80"));
    }

    #[test]
    fn where_the_rules_let_us_go_one_is_chance_and_many_are_a_loop() {
        let suspicion = AtomicU32::new(0);
        let came = |same: bool, times: usize| (0..times).filter(|_| suspicious(&suspicion, same, ENOUGH)).count();
        assert_eq!(came(true, 15), 0);
        assert_eq!(came(false, 240), 0);
        assert_eq!(suspicion.load(Ordering::Relaxed), 0);
        // One in seventeen can go on for ever.
        for _ in 0..1000 {
            assert_eq!((came(true, 1), came(false, 16)), (0, 0));
        }
        assert_eq!(came(true, 1000), 985);
        // Over as soon as it was.
        came(false, 2000);
        assert_eq!(came(true, 15), 0);
    }
    #[test]
    fn where_a_loop_is_to_be_expected_two_are_one_and_one_is_still_chance() {
        let suspicion = AtomicU32::new(0);
        let came = |same: bool, times: usize| (0..times).filter(|_| suspicious(&suspicion, same, FEW)).count();
        for _ in 0..1000 {
            assert_eq!((came(true, 1), came(false, 16)), (0, 0));
        }
        assert_eq!(came(true, 100), 99);
    }
}
