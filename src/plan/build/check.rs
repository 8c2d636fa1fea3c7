//! Addresses that get in each other's way: two listeners at one place, a target that is a listener of our own.

use super::{Own, Parts, peers::reaches};
use crate::config::Config;
use crate::config::kind::Set;
use crate::config::peer::Endpoint;
use crate::config::redirect::AppMode;
use crate::ids::Addr;

/// Reports them.
pub fn addresses(config: &Config, parts: &mut Parts<'_>) {
    for (n, later) in parts.own.iter().enumerate() {
        if let Some(first) = parts.own.iter().take(n).find(|first| collide(&first.addr, &later.addr)) {
            let text = format!("`{}` is taken already by {} ({}){}", later.addr, first.key, first.addr, line(first));
            parts.problems.error(&later.key, later.at, text, None);
        }
    }
    // The loopback of an app with a network of its own is not ours.
    if let Some(inbound) = config.inbound.as_ref().filter(|_| !has_own_network(config)) {
        let apps = inbound.app.iter().chain(inbound.ports.0.iter().filter_map(|port| port.app.as_ref()));
        for app in apps {
            refuse_own(app, &app.value.0, parts);
        }
    }
    for (_, peer) in &config.peers.0 {
        for endpoint in peer.fixed.iter().flat_map(|list| &list.0) {
            let Endpoint { address: Some(address), .. } = &endpoint.value else { continue };
            refuse_own(address, &address.value.0, parts);
        }
    }
}

/// Whether the app that `run` starts is in a network of its own by all means.
fn has_own_network(config: &Config) -> bool {
    config.redirect.as_ref().is_some_and(|said| said.app.value == AppMode::Namespace)
}

fn refuse_own<T>(set: &Set<T>, target: &Addr, parts: &mut Parts<'_>) {
    if let Some(own) = parts.own.iter().find(|own| reaches(target, &own.addr)) {
        let text =
            format!("`{target}` is this sidecar's own {} ({}){}: it would call itself", own.key, own.addr, line(own));
        set.refuse(parts.problems, text);
    }
}

fn line(own: &Own) -> String {
    own.at.map_or_else(|| ", a default".to_owned(), |at| format!(" in line {}", at.line))
}

/// Whether two listeners cannot both be bound; `[::]` takes IPv4 with it.
pub fn collide(a: &Addr, b: &Addr) -> bool {
    match (a, b) {
        (Addr::Unix(a), Addr::Unix(b)) => a == b,
        (Addr::Tcp(a), Addr::Tcp(b)) => {
            let covers = |a: &std::net::SocketAddr, b: &std::net::SocketAddr| {
                a.ip().is_unspecified() && (a.is_ipv6() || b.ip().to_canonical().is_ipv4())
            };
            let same = a.ip().to_canonical() == b.ip().to_canonical();
            a.port() == b.port() && a.port() != 0 && (same || covers(a, b) || covers(b, a))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        text.parse().unwrap()
    }

    #[test]
    fn listeners_collide_where_the_system_would_refuse_the_second() {
        for (a, b, expect) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:0", "127.0.0.1:0", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("127.0.0.1:80", "[::1]:80", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
        ] {
            assert_eq!(collide(&addr(a), &addr(b)), expect, "{a} {b}");
            assert_eq!(collide(&addr(b), &addr(a)), expect, "{b} {a}");
        }
    }

    #[test]
    fn a_target_reaches_an_own_listener_by_its_address_or_by_loopback() {
        for (target, own, expect) in [
            ("127.0.0.1:15006", "[::]:15006", true),
            ("[::1]:15006", "[::]:15006", true),
            ("10.0.0.7:15006", "[::]:15006", false),
            ("10.0.0.7:15006", "10.0.0.7:15006", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("127.0.0.1:8080", "[::]:15006", false),
        ] {
            assert_eq!(reaches(&addr(target), &addr(own)), expect, "{target} {own}");
        }
    }
}
