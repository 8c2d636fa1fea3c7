//! How many unread bytes HTTP/2 callers and peers may send: a window per connection, drawn from a purse for each of
//! the two, so that many stalled connections cannot hold more memory than documented.

use std::sync::atomic::{AtomicUsize, Ordering};

/// What one stream may send unread.
pub const STREAM: u32 = 256 * 1024;

/// What one connection may send unread over all its streams, while the purse lasts.
pub const CONNECTION: u32 = 1024 * 1024;

/// What a connection gets when the purse is empty: the protocol's own smallest (RFC 9113 §6.9.2).
pub const LEAST: u32 = 65_535;

/// What small DATA frames may cost a connection before h2 takes them for a flood; gRPC streams are made of them.
pub const SMALL_FRAMES: usize = 16 * 1024 * 1024;

/// The purse of large windows.
#[derive(Debug)]
pub struct Windows {
    taken: AtomicUsize,
    most: usize,
}

/// One connection's window; given back when dropped.
#[derive(Debug)]
pub struct Window {
    size: u32,
    purse: Option<&'static Windows>,
}

impl Windows {
    /// The callers' purse: 64 connections with a large window, 64 MiB of unread bytes at most beyond the least windows.
    pub const CALLERS: &'static Self = &CALLERS;

    /// The peers' purse, of its own, so that callers cannot make peers slow by taking it: 128 connections.
    pub const PEERS: &'static Self = &PEERS;

    /// Takes a window: a large one while there are any.
    pub fn take(&'static self) -> Window {
        let taken = self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < self.most).then_some(n + 1));
        match taken {
            Ok(_) => Window { size: CONNECTION, purse: Some(self) },
            Err(_) => Window { size: LEAST, purse: None },
        }
    }
}

static CALLERS: Windows = Windows { taken: AtomicUsize::new(0), most: 64 };
static PEERS: Windows = Windows { taken: AtomicUsize::new(0), most: 128 };

impl Window {
    /// Its bytes.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// What one of its streams may send unread where streams of strangers share the connection: a quarter, so that one
    /// that nobody reads does not stop all others.
    pub fn shared(&self) -> u32 {
        STREAM.min(self.size / 4)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        if let Some(purse) = self.purse {
            purse.taken.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_purse_gives_the_least_window() {
        static TWO: Windows = Windows { taken: AtomicUsize::new(0), most: 2 };
        let (a, b, c) = (TWO.take(), TWO.take(), TWO.take());
        assert_eq!((a.size(), b.size(), c.size()), (CONNECTION, CONNECTION, LEAST));
        assert_eq!((a.shared(), c.shared()), (STREAM, LEAST / 4));
        drop((a, c));
        assert_eq!((TWO.take().size(), b.size()), (CONNECTION, CONNECTION));
    }
}
