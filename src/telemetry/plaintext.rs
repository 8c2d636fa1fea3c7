//! Who came in plaintext where mutual TLS is asked for and not demanded: a bounded table by address, for whoever wants to
//! know what would break if it were.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::ids::ClientAddr;

/// Addresses that are kept; with more, the one not seen for longest makes room.
pub const CLIENTS: usize = 256;

/// The table. What is kept is of one period: since plaintext has been let in without a break.
#[derive(Debug, Default)]
pub struct Plaintext {
    table: Mutex<Table>,
    /// The number of the period, 0 before the first.
    period: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// When the period began; `None` while no door lets plaintext in and asks for more.
    since: Option<SystemTime>,
    /// `None` for those without an address: a Unix socket's.
    clients: HashMap<Option<IpAddr>, Seen>,
    forgotten: u64,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    connections: u64,
    last: SystemTime,
}

/// The table as `/state` shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextState {
    /// For how long plaintext has been let in and counted.
    pub permissive_seconds: u64,
    /// Those seen last come first.
    pub clients: Vec<PlaintextClient>,
    /// Connections of addresses that had to make room.
    pub forgotten: u64,
}

/// A client that came in plaintext.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextClient {
    /// Its address; `unix` for a Unix socket's.
    pub client: String,
    /// How often it came.
    pub connections: u64,
    /// When it came last.
    pub last_seconds_ago: u64,
}

impl Plaintext {
    /// Whether any door is permissive from `now` on. Where none was before a new period begins, which knows nobody: who came
    /// under an earlier one may have changed since.
    pub fn follow(&self, permissive: bool, now: SystemTime) {
        let mut table = self.table.lock();
        match (permissive, table.since) {
            (true, None) => {
                *table = Table { since: Some(now), ..Table::default() };
                self.period.fetch_add(1, Ordering::Relaxed);
            }
            (true, Some(_)) => {}
            (false, _) => table.since = None,
        }
    }

    /// The number of the period: who was counted in an earlier one is counted again.
    pub fn period(&self) -> u64 {
        self.period.load(Ordering::Relaxed)
    }

    /// Counts a connection of `client` that came at `now`.
    pub fn seen(&self, client: ClientAddr, now: SystemTime) {
        let address = client.0.map(|addr| addr.ip().to_canonical());
        let mut table = self.table.lock();
        if table.clients.len() >= CLIENTS && !table.clients.contains_key(&address) {
            let oldest = table.clients.iter().min_by_key(|(_, seen)| seen.last).map(|(address, _)| *address);
            let forgotten = oldest.and_then(|oldest| table.clients.remove(&oldest));
            table.forgotten += forgotten.map_or(0, |seen| seen.connections);
        }
        let seen = table.clients.entry(address).or_insert(Seen { connections: 0, last: now });
        *seen = Seen { connections: seen.connections + 1, last: now };
    }

    /// The table at `now`.
    pub fn state(&self, now: SystemTime) -> PlaintextState {
        let table = self.table.lock();
        let since = |from: SystemTime| now.duration_since(from).unwrap_or_default().as_secs();
        let permissive_seconds = table.since.map_or(0, since);
        let mut clients: Vec<_> = table.clients.iter().map(|(address, seen)| (*seen, *address)).collect();
        let forgotten = table.forgotten;
        drop(table);
        clients.sort_by_key(|(seen, address)| (std::cmp::Reverse(seen.last), *address));
        let shown = |(seen, address): (Seen, Option<IpAddr>)| PlaintextClient {
            client: address.map_or_else(|| "unix".to_owned(), |address| address.to_string()),
            connections: seen.connections,
            last_seconds_ago: since(seen.last),
        };
        PlaintextState { permissive_seconds, clients: clients.into_iter().map(shown).collect(), forgotten }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_period_begins_where_plaintext_is_let_in_anew_and_knows_nobody() {
        let (table, client) = (Plaintext::default(), ClientAddr(None));
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let told = |now| {
            let state = table.state(at(now));
            (table.period(), state.permissive_seconds, state.clients.len())
        };
        // Permissive or not, at which second; then the period, for how long it lasts at 100, and who is known.
        for (permissive, now, expect) in [
            (false, 10, (0, 0, 0)),
            (true, 20, (1, 80, 1)),
            (true, 30, (1, 80, 1)),
            (false, 40, (1, 0, 1)),
            (true, 50, (2, 50, 0)),
        ] {
            table.follow(permissive, at(now));
            if now == 20 {
                table.seen(client, at(25));
            }
            assert_eq!(told(100), expect, "{permissive} at {now}");
        }
        // A clock that was set back.
        assert_eq!(told(5), (2, 0, 0));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_who_came_last() {
        let table = Plaintext::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let client = |n: u64| ClientAddr(Some(([10, 0, (n / 256) as u8, (n % 256) as u8], 4000).into()));
        for n in 0..CLIENTS as u64 {
            table.seen(client(n), at(n));
        }
        table.seen(client(0), at(1000));
        table.seen(ClientAddr(None), at(1001));
        table.seen(client(999), at(1002));
        let state = table.state(at(1003));
        assert_eq!((state.clients.len(), state.forgotten), (CLIENTS, 2));
        let first: Vec<_> = state.clients.iter().take(3).map(|one| (&*one.client, one.connections)).collect();
        assert_eq!(first, [("10.0.3.231", 1), ("unix", 1), ("10.0.0.0", 2)]);
        assert_eq!(state.clients[2].last_seconds_ago, 3);
        assert!(state.clients.iter().all(|one| one.client != "10.0.0.1" && one.client != "10.0.0.2"));
    }
}
