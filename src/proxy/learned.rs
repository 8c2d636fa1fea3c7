//! What connections have taught about where they lead: whether it answers HTTP, and who speaks first.
//!
//! It may save the early dial, never the look at the first bytes: a port may be another service's by now.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Addresses of captured connections that are remembered.
const MOST: usize = 1024;

/// What was spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Spoken {
    /// HTTP/1 or HTTP/2.
    Http = 1,
    /// TLS that is not ours to end.
    Tls = 2,
    /// Bytes of which the caller's came first.
    Opaque = 3,
    /// Bytes of which the server's came first.
    ServerFirst = 4,
}

impl Spoken {
    /// Its word in `/state`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::ServerFirst => "server-first",
        }
    }
}

/// What was learned at a door, or of the address that captured connections were going to.
#[derive(Debug)]
pub struct Learned {
    start: Instant,
    /// Milliseconds after `start` until which the peer is known to answer HTTP; 0 is never.
    http_until: AtomicU64,
    /// Milliseconds after `start` at which a connection came last.
    used: AtomicU64,
    /// What the last connection spoke; 0 is nothing yet.
    spoken: AtomicU8,
}

impl Learned {
    /// How long a proof of HTTP holds, and an address is remembered.
    const HOLDS: Duration = Duration::from_secs(600);

    /// Nothing learned yet.
    pub fn new(now: Instant) -> Arc<Self> {
        let (http_until, used, spoken) = Default::default();
        Arc::new(Self { start: now, http_until, used, spoken })
    }

    /// The peer has answered HTTP: it need not be dialled before the caller has spoken.
    pub fn answered_http(&self, now: Instant) {
        self.http_until.store(self.after_start(now + Self::HOLDS), Ordering::Relaxed);
    }

    /// Whether the peer may be one that speaks first.
    pub fn may_speak_first(&self, now: Instant) -> bool {
        self.http_until.load(Ordering::Relaxed) <= self.after_start(now)
    }

    /// What a connection spoke, as far as it came to that.
    pub fn saw(&self, spoken: Option<Spoken>) {
        if let Some(spoken) = spoken {
            self.spoken.store(spoken as u8, Ordering::Relaxed);
        }
    }

    /// What the last connection spoke.
    pub fn spoken(&self) -> Option<Spoken> {
        match self.spoken.load(Ordering::Relaxed) {
            1 => Some(Spoken::Http),
            2 => Some(Spoken::Tls),
            3 => Some(Spoken::Opaque),
            4 => Some(Spoken::ServerFirst),
            _ => None,
        }
    }

    fn after_start(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn idle(&self, now: Instant) -> Duration {
        Duration::from_millis(self.after_start(now).saturating_sub(self.used.load(Ordering::Relaxed)))
    }
}

/// What is remembered of the addresses that captured connections were going to.
#[derive(Debug, Default)]
pub struct Destinations(Mutex<HashMap<SocketAddr, Arc<Learned>>>);

impl Destinations {
    /// What is known of an address to which a connection comes now. Where the table is full the one goes that was not
    /// asked about for longest.
    pub fn of(&self, addr: SocketAddr, now: Instant) -> Arc<Learned> {
        let mut known = self.0.lock();
        if let Some(learned) = known.get(&addr).filter(|learned| learned.idle(now) < Learned::HOLDS) {
            learned.used.store(learned.after_start(now), Ordering::Relaxed);
            return learned.clone();
        }
        if known.len() >= MOST {
            let oldest = known.iter().max_by_key(|(_, learned)| learned.idle(now)).map(|(addr, _)| *addr);
            oldest.map(|oldest| known.remove(&oldest));
        }
        let learned = Learned::new(now);
        known.insert(addr, learned.clone());
        learned
    }

    /// Every address that is remembered, in order, with what is known of it.
    pub fn all(&self, now: Instant) -> Vec<(SocketAddr, Arc<Learned>)> {
        let known = self.0.lock();
        let held = known.iter().filter(|(_, learned)| learned.idle(now) < Learned::HOLDS);
        let mut all: Vec<_> = held.map(|(addr, learned)| (*addr, learned.clone())).collect();
        drop(known);
        all.sort_unstable_by_key(|(addr, _)| *addr);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_of_http_holds_ten_minutes() {
        let start = Instant::now();
        let learned = Learned::new(start);
        assert!(learned.may_speak_first(start));
        learned.answered_http(start);
        assert!(!learned.may_speak_first(start + Duration::from_secs(599)));
        assert!(learned.may_speak_first(start + Duration::from_secs(600)));
    }

    #[test]
    fn an_address_is_remembered_for_ten_minutes_and_the_table_has_a_bound() {
        let (known, start) = (Destinations::default(), Instant::now());
        let addr = |n: usize| SocketAddr::from(([10, 0, 0, 1], n as u16));
        let first = known.of(addr(0), start);
        first.saw(Some(Spoken::ServerFirst));
        first.saw(None);
        assert_eq!(first.spoken(), Some(Spoken::ServerFirst));
        let later = start + Learned::HOLDS - Duration::from_secs(1);
        assert!(Arc::ptr_eq(&first, &known.of(addr(0), later)));
        for n in 1..MOST {
            known.of(addr(n), later + Duration::from_millis(1));
        }
        known.of(addr(0), later + Duration::from_millis(2));
        known.of(addr(MOST), later + Duration::from_millis(3));
        let all = known.all(later + Duration::from_millis(3));
        assert_eq!(all.len(), MOST);
        // The one that was not asked about for longest is gone, and it is not the first.
        assert!(Arc::ptr_eq(&all[0].1, &first));
        assert!(known.all(later + Learned::HOLDS * 2).is_empty());
        assert!(known.of(addr(0), later + Learned::HOLDS * 2).spoken().is_none());
    }
}
