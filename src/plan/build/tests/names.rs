//! The DNS door and the addresses that hosts of peers have behind it.

use std::net::SocketAddr;

use super::*;

#[test]
fn the_dns_door_and_the_addresses_that_it_gives() {
    let text = with(
        "dns: { listen: [\"127.0.0.1:15053\", \"[::1]:15053\"] }\npeers:\n  a: { dns: \"A.shop.:80\", hosts: [a, A.shop, \"shared:81\", 10.0.0.1, \"[::1]:80\", localhost, x.localhost] }\n  b: { dns: \"b:80\", hosts: [\"shared:82\"] }",
    );
    let mut problems = Problems::new("f");
    let document = read(&text, &Facts::PLAIN, &variable, &mut problems).unwrap();
    let plan = build(&document.config, Path::new("/"), &mut problems).plan;
    assert!(!problems.has_errors(), "{problems}");
    assert_eq!(plan.dns.listen.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.1:15053", "[::1]:15053"]);
    assert!(plan.egress.own.contains(&"[::1]:15053".parse().unwrap()));
    assert_eq!(plan.virtual_ips.all().map(|(name, _)| name).collect::<Vec<_>>(), ["a", "a.shop", "shared"]);
    let peer = |host: &str, port| {
        let ip = plan.virtual_ips.find(host).unwrap();
        let found = [ip.v4.into(), ip.v6.into()].map(|ip| plan.virtual_peer(SocketAddr::new(ip, port)));
        assert_eq!(found[0], found[1]);
        found[0].map(|at| plan.peers[at].name.to_string())
    };
    for (host, port, want) in [
        ("a", 9999, Some("a")),
        ("a.shop", 80, Some("a")),
        ("shared", 81, Some("a")),
        ("shared", 82, Some("b")),
        ("shared", 83, None),
    ] {
        assert_eq!(peer(host, port).as_deref(), want, "{host}:{port}");
    }
    assert_eq!(plan.virtual_peer("240.240.0.0:80".parse().unwrap()), None);
    assert_eq!(
        super::plan(&with("peers: { a: { dns: \"b:80\" } }")).virtual_ips.all().count(),
        2,
        "without a door too"
    );
}
