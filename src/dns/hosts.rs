//! The hosts file (hosts(5)): names with addresses that no server is asked for.

use std::collections::HashMap;
use std::net::IpAddr;

/// The names of a hosts file, in lower case without a trailing dot.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hosts(HashMap<String, Vec<IpAddr>>);

impl Hosts {
    /// Reads the file's text. A line that is not `address name …` is passed over, as the C library does.
    pub fn parse(text: &str) -> Self {
        let mut names: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for line in text.trim_start_matches('\u{feff}').lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(Ok(ip)) = words.next().map(|word| word.parse::<IpAddr>()) else { continue };
            for name in words {
                let ips = names.entry(canonical(name)).or_default();
                if !ips.contains(&ip) {
                    ips.push(ip);
                }
            }
        }
        Self(names)
    }

    /// The addresses of a name as the caller wrote it; a name that the file does not have gives `None`.
    pub fn find(&self, name: &str) -> Option<&[IpAddr]> {
        if self.0.is_empty() {
            return None;
        }
        self.0.get(&canonical(name)).map(Vec::as_slice)
    }
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_names_and_comments() {
        let hosts = Hosts::parse(
            "\u{feff}127.0.0.1 localhost\n\
             ::1\tlocalhost ip6-localhost # loopback\n\
             # 10.9.9.9 commented\n\
             10.0.0.1   DB.shop.internal db\n\
             10.0.0.2 db\n\
             10.0.0.2 db\n\
             fe80::1%eth0 scoped\n\
             not-an-address name\n\
             10.0.0.3\n",
        );
        for (name, ips) in [
            ("localhost", Some(vec!["127.0.0.1", "::1"])),
            ("LocalHost.", Some(vec!["127.0.0.1", "::1"])),
            ("ip6-localhost", Some(vec!["::1"])),
            ("db.shop.internal", Some(vec!["10.0.0.1"])),
            ("db", Some(vec!["10.0.0.1", "10.0.0.2"])),
            ("commented", None),
            ("scoped", None),
            ("name", None),
            ("", None),
        ] {
            let want = ips.map(|ips| ips.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>());
            assert_eq!(hosts.find(name).map(<[_]>::to_vec), want, "{name}");
        }
        assert_eq!(Hosts::parse("").find("localhost"), None);
    }
}
