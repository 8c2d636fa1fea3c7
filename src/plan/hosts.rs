//! Which authority belongs to which peer: an exact `host:port` beats a host with any port.

use std::collections::HashMap;

/// The hosts of all peers, keyed in lower case without a trailing dot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostTable {
    exact: HashMap<String, HashMap<u16, usize>>,
    any: HashMap<String, usize>,
}

impl HostTable {
    /// Adds a host, an IPv6 address with or without brackets; returns the peer that has it already, if another one does.
    pub fn add(&mut self, host: &str, port: Option<u16>, peer: usize) -> Option<usize> {
        let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.').to_ascii_lowercase();
        let before = match port {
            Some(port) => self.exact.entry(host).or_default().insert(port, peer),
            None => self.any.insert(host, peer),
        };
        before.filter(|&other| other != peer)
    }

    /// Every host, IP addresses among them; one that is there for any port and for some comes twice.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.any.keys().chain(self.exact.keys()).map(String::as_str)
    }

    /// The peers that have a host, at any of its ports.
    pub fn peers(&self, host: &str) -> impl Iterator<Item = usize> {
        let exact = self.exact.get(host).into_iter().flat_map(|ports| ports.values().copied());
        let all: std::collections::BTreeSet<usize> = self.any.get(host).copied().into_iter().chain(exact).collect();
        all.into_iter()
    }

    /// The peer of an authority; `host` in lower case without trailing dot, `port` the explicit or the scheme's one.
    pub fn find(&self, host: &str, port: u16) -> Option<usize> {
        self.entry(host, port).map(|(peer, _)| peer)
    }

    /// The same with the port of the entry that says so: `None` is one for any port.
    pub fn entry(&self, host: &str, port: u16) -> Option<(usize, Option<u16>)> {
        let exact = if self.exact.is_empty() { None } else { self.exact.get(host).and_then(|ports| ports.get(&port)) };
        let any = || self.any.get(host).map(|peer| (*peer, None));
        exact.map(|peer| (*peer, Some(port))).or_else(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exact_port_beats_any_port() {
        let mut table = HostTable::default();
        assert_eq!(table.add("Payments.", None, 1), None);
        assert_eq!(table.add("payments", Some(9000), 2), None);
        assert_eq!(table.add("payments", None, 3), Some(1));
        assert_eq!(table.find("payments", 9000), Some(2));
        assert_eq!(table.find("payments", 80), Some(3));
        assert_eq!(table.find("other", 80), None);
    }
}
