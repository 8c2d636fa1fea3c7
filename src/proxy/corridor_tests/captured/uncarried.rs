//! Captured connections that are not carried: our own that came back, plaintext to hosts of the mesh, ports that are denied.

use super::super::*;
use super::{PING, SocketAddr, get, hello, house};
use crate::proxy::captured;

#[tokio::test(start_paused = true)]
async fn what_this_process_sent_is_not_sent_again() {
    for first in [PING, &get("nobody"), &get("a"), &hello("a"), b""] {
        let (house, mut net) = house(", otherwise: pass");
        let client: SocketAddr = "203.0.113.7:4711".parse().unwrap();
        let to = net.outside.0;
        crate::net::ours::watch(crate::net::ours::Watch::Captured);
        let known = crate::net::ours::Known::of(client, to);
        // The suspicion is one for all, and other tests' connections lower it.
        for _ in 0..64 {
            crate::net::ours::came_back(client, to);
        }
        let caller = |client| house.captured_from(ClientAddr(Some(client)), Door::Outbound, to, first);
        assert_eq!(rest(&mut caller(client).await).await, "");
        assert_eq!(net.reached(), ".");
        // From another port it is somebody else's.
        let other = caller(SocketAddr::new(client.ip(), 4712)).await;
        settle().await;
        assert_ne!(net.reached(), ".");
        drop((other, known));
        let lines = house.lines().await;
        assert!(lines[0].contains(" reason=looped side=proxy ") && lines[0].contains("redirect.uid"), "{lines:#?}");
        assert!(!lines[1..].iter().any(|line| line.contains("looped")), "{lines:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn plaintext_to_a_host_of_the_mesh_goes_nowhere_unless_the_file_says_so() {
    let (db, mut exporter, mut far) = (pipes::listen_tcp().0, pipes::listen_tcp(), pipes::listen_tcp());
    // Of the tests' addresses, which are one host's, another one of the same peer.
    let file = |more: &str| {
        format!(
            "service: s\nadmin: {{ listen: off }}\nredirect: {{ mode: redirect }}\nidentity: {{ workload-api: unix:/nobody }}\n\
             outbound: {{ listen: [\"127.0.0.1:15001\", \"[::1]:15001\"]{more} }}\npeers:\n  \
             db: {{ static: [{db}, \"198.51.100.7:15006\", \"[::ffff:198.51.100.8]:15006\"], protocol: tcp, mtls: {{ id: spiffe://shop/db }} }}\n  \
             old: {{ static: [\"198.51.100.7:9000\"], mtls: off }}\n  bare: {{ static: [\"198.51.100.9:9000\"], mtls: off }}\n"
        )
    };
    let house = || House::of(&file(""), mpsc::channel(1).1);
    for (to, first, status) in [
        ("198.51.100.7:5432", PING.to_vec(), ""),
        ("198.51.100.8:5432", PING.to_vec(), ""),
        ("[::ffff:198.51.100.7]:5432", PING.to_vec(), ""),
        ("198.51.100.7:5432", get("nobody"), "HTTP/1.1 403 "),
        // A server that speaks first is waited for.
        ("198.51.100.7:5432", Vec::new(), ""),
    ] {
        let (house, start) = (house(), Instant::now());
        let mut caller = house.going(to.parse::<SocketAddr>().unwrap(), &first).await;
        let mut answer = vec![0; status.len()];
        caller.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8(answer).unwrap(), status, "{to}");
        if status.is_empty() {
            assert_eq!(rest(&mut caller).await, "");
            assert_eq!(seconds(start), if first.is_empty() { 10 } else { 0 });
        }
        drop(caller);
        let lines = house.lines().await;
        let said = "reason=address_refused side=policy";
        assert!(lines.len() == 1 && lines[0].contains(said) && lines[0].contains("of the peer `db`"), "{lines:#?}");
    }
    let leads = |more: &str, to: &str, bytes| {
        let house = House::of(&file(more), mpsc::channel(1).1);
        let led = captured::led(&house.core.world.load(), to.parse().unwrap(), bytes);
        led.map_or_else(|failure| failure.reason.word().to_owned(), |led| led.peer.name().to_string())
    };
    use captured::Bytes::{Plain, Tls};
    for (more, to, bytes, expect) in [
        ("", "198.51.100.7:5432", Plain, "address_refused"),
        ("", "198.51.100.7:5432", Tls, "198.51.100.7:5432"),
        ("", "198.51.100.7:15006", Plain, "db"),
        ("", "198.51.100.7:9000", Plain, "old"),
        ("", "198.51.100.9:5432", Plain, "198.51.100.9:5432"),
        ("", "198.51.100.10:5432", Plain, "198.51.100.10:5432"),
        (", allow: [198.51.100.0/24]", "198.51.100.7:5432", Plain, "198.51.100.7:5432"),
        (", allow: [\"::ffff:198.51.100.7\"]", "198.51.100.7:5432", Plain, "198.51.100.7:5432"),
        (", otherwise: deny", "198.51.100.7:5432", Plain, "no_route"),
    ] {
        assert_eq!(leads(more, to, bytes), expect, "{more} {to} {bytes:?}");
    }
    // What stays on this machine is on no way.
    for net in [&mut exporter, &mut far] {
        let house = house();
        let _caller = house.going(net.0, PING).await;
        read_until(&mut net.1.recv().await.unwrap(), "PING\r\n").await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_denied_at_one_port_of_an_app_is_denied_at_the_others() {
    let app = pipes::listen_tcp().0;
    let file = |rules: &str| {
        format!(
            "service: s\nadmin: {{ listen: off }}\nredirect: {{ mode: redirect }}\n\
             inbound: {{ listen: \"[::]:15006\", app: \"{app}\", {rules} }}\n"
        )
    };
    let of = |port: u16| SocketAddr::from(([10, 1, 1, 1], port));
    for (rule, path, status) in [
        ("deny: { ports: [PORT], paths: [\"/admin/*\"] }", "/admin/x", "403"),
        ("deny: { ports: [PORT], paths: [\"/admin/*\"] }", "//admin/x", "400"),
        ("deny: { ports: [PORT], methods: [PUT] }", "/admin/x", "503"),
        ("allow: { ports: [PORT] }", "/admin/x", ""),
    ] {
        for ruled in [app.port(), 15006] {
            for dialled in [app.port(), 15006] {
                let house = House::of(&file(&rule.replace("PORT", &ruled.to_string())), mpsc::channel(1).1);
                let expect = match status {
                    "" if ruled == dialled => "503",
                    "" => "403",
                    status => status,
                };
                let get = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
                let mut caller = house.coming(of(dialled), &get).await;
                let got = read_until(&mut caller, "\r\n").await;
                assert!(got.starts_with(&format!("HTTP/1.1 {expect} ")), "{rule} {ruled} {dialled} {path}: {got}");
            }
        }
    }
}
