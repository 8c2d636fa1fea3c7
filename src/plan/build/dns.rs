//! How names are resolved, and where the DNS door listens.

use std::net::SocketAddr;

use super::{Own, Parts};
use crate::config::Config;
use crate::config::kind::Set;
use crate::config::listener::Dns;
use crate::config::problem::Problems;
use crate::config::values::TcpListen;
use crate::ids::Addr;
use crate::plan::DnsPlan;
use crate::plan::virtual_ips::VirtualIps;

/// The section's meaning; the door's addresses are counted among this sidecar's own.
pub fn dns(config: &Config, parts: &mut Parts<'_>) -> DnsPlan {
    let dns = &config.dns;
    order(dns, parts.problems);
    for listen in listeners(dns) {
        if listen.0.ip().is_unspecified() {
            let text = "an answer over UDP must come from the address that was asked: list the addresses one by one";
            listen.refuse(parts.problems, text);
        }
        parts.own.push(Own::of(listen, Addr::Tcp(listen.0)));
    }
    let plan = DnsPlan {
        listen: listeners(dns).map(|listen| listen.0).collect(),
        servers: dns.servers.0.iter().map(|server| server.0).collect(),
        floor: dns.floor.0,
        ceiling: dns.ceiling.0,
        stale_for: dns.stale_for.0,
        timeout: dns.timeout.0,
        hosts_file: dns.hosts_file.value,
    };
    for server in dns.servers.0.iter().filter(|server| plan.is_own(server.0)) {
        server.refuse(parts.problems, "is this sidecar's own DNS door (dns.listen): it would ask itself");
    }
    plan
}

/// The virtual addresses of all hosts; they are there without a door too, so that they outlive a reload that closes it.
pub fn virtual_ips(parts: &mut Parts<'_>) -> VirtualIps {
    let is_name = |name: &&str| name.parse::<std::net::IpAddr>().is_err() && !is_localhost(name);
    let table = VirtualIps::of(parts.hosts.names().filter(is_name));
    if let Some(name) = parts.hosts.names().filter(is_name).find(|name| table.find(name).is_none()) {
        let text = format!("have more hosts than there are virtual addresses: `{name}` is one that gets none");
        parts.problems.warning("peers", None, text);
    }
    table
}

/// What only this machine means by a name, whatever a file says (RFC 6761 §6.3).
fn is_localhost(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// Reports a door that helps nobody, or everybody.
pub fn lint(config: &Config, problems: &mut Problems) {
    if let Some(listen) = config.dns.listen.as_ref().filter(|_| config.redirect.is_none()) {
        let text = "hosts of peers get addresses that lead somewhere only where traffic is captured: the file needs `redirect`";
        listen.warn(problems, text);
    }
    for listen in listeners(&config.dns).filter(|listen| !listen.0.ip().to_canonical().is_loopback()) {
        listen.warn(problems, "is not loopback: whoever reaches it can ask, and have answers sent to others");
    }
}

fn listeners(dns: &Dns) -> impl Iterator<Item = &Set<TcpListen>> {
    dns.listen.iter().flat_map(|listen| &listen.0)
}

fn order(dns: &Dns, problems: &mut Problems) {
    if dns.floor.0 > dns.ceiling.0 {
        let said = if dns.floor.is_default() { dns.ceiling.origin.at() } else { dns.floor.origin.at() };
        problems.error("dns.floor", said, "must not be longer than dns.ceiling", None);
    }
}

impl DnsPlan {
    /// Whether a DNS server is this sidecar's own door: asking it would be asking ourselves.
    pub fn is_own(&self, server: SocketAddr) -> bool {
        let ip = server.ip().to_canonical();
        self.listen.iter().any(|listen| {
            let listens = listen.ip().to_canonical();
            // Asking 0.0.0.0 or :: means this machine's loopback.
            listen.port() == server.port() && (listens == ip || (ip.is_unspecified() && listens.is_loopback()))
        })
    }
}
