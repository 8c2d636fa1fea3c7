//! How often a caller may cancel what it asked for: a budget that fills up again, against floods of requests that are
//! cancelled as soon as they are sent (CVE-2023-44487).

use tokio::time::Instant;

/// Cancelled requests that a caller may send at once.
pub const AT_ONCE: u32 = 2000;

/// Cancelled requests a second that a caller may send for as long as it likes. A gRPC client that cancels a few
/// hundred calls a second, because of short deadlines or hedging, is no attacker.
pub const A_SECOND: u32 = 500;

/// The cancellations of one connection.
#[derive(Debug)]
pub struct Calm {
    spent: f64,
    since: Instant,
}

impl Calm {
    /// Nothing was cancelled.
    pub fn new(now: Instant) -> Self {
        Self { spent: 0.0, since: now }
    }

    /// One more was; false when that is one too many.
    pub fn cancelled(&mut self, now: Instant) -> bool {
        let regained = now.saturating_duration_since(self.since).as_secs_f64() * f64::from(A_SECOND);
        self.since = now;
        self.spent = (self.spent - regained).max(0.0) + 1.0;
        self.spent <= f64::from(AT_ONCE)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_is_forgiven_and_a_flood_is_not() {
        let start = Instant::now();
        let mut calm = Calm::new(start);
        assert!((0..AT_ONCE).all(|_| calm.cancelled(start)));
        assert!(!calm.cancelled(start));
        let later = start + Duration::from_secs(10);
        assert!((0..AT_ONCE).all(|_| calm.cancelled(later)));
        assert!(!calm.cancelled(later));
    }

    #[test]
    fn a_steady_rate_is_borne_for_ever() {
        let start = Instant::now();
        let mut calm = Calm::new(start);
        let every = Duration::from_secs(1) / A_SECOND;
        assert!((0..1_000_000).all(|n| calm.cancelled(start + every * n)));
        // A quarter more is not.
        let every = every * 4 / 5;
        assert!(!(0..100_000).all(|n| calm.cancelled(start + every * n)));
    }
}
