//! Lookups against a real server on loopback.

use std::path::PathBuf;

use hickory_proto::op::ResponseCode;
use hickory_server::net::xfer::Protocol;
use tokio::net::UdpSocket;

use super::super::testserver::{Say, TestServer, alias, ips, service};
use super::*;

/// Files of its own for one test, removed with the value.
struct Etc(PathBuf);

impl Etc {
    fn new(test: &str, resolv_conf: &str, hosts: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("outrigger-resolver-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("resolv.conf"), resolv_conf).unwrap();
        std::fs::write(dir.join("hosts"), hosts).unwrap();
        Self(dir)
    }

    fn resolver(&self, servers: &[SocketAddr], timeout: Duration) -> Arc<Resolver> {
        let plan = DnsPlan {
            listen: Vec::new(),
            servers: servers.to_vec(),
            floor: Duration::from_secs(1),
            ceiling: Duration::from_secs(300),
            stale_for: Duration::from_secs(600),
            timeout,
            hosts_file: true,
        };
        Resolver::with_files(&plan, Files { resolv_conf: self.0.join("resolv.conf"), hosts: self.0.join("hosts") })
    }
}

impl Drop for Etc {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(300);

fn known(ips: &[&str], ttl: Option<u64>) -> Family {
    let ips = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    Family::Known { ips, ttl: ttl.map(Duration::from_secs) }
}

fn found(v4: Family, v6: Family) -> Result<Found, DnsError> {
    Ok(Found { v4, v6, absent: false })
}

#[tokio::test]
async fn the_shortest_time_over_the_alias_chain_counts() {
    use RecordType::{A, AAAA};
    let server = TestServer::start().await;
    let etc = Etc::new("chain", "", "");
    let resolver = etc.resolver(&[server.addr], LONG);
    let mut one = vec![alias("www.test", 60, "mid.test"), alias("mid.test", 5, "end.test")];
    one.extend(ips("end.test", 300, &["10.0.0.1"]));
    server.say("www.test", A, Say::Records(one));
    // The same chain over several messages.
    server.say("www.test", AAAA, Say::Records(vec![alias("www.test", 60, "mid.test")]));
    server.say("mid.test", AAAA, Say::Records(vec![alias("mid.test", 7, "end.test")]));
    server.say("end.test", AAAA, Say::NoData(Some((30, 40))));
    assert_eq!(resolver.addresses("www.test").await, found(known(&["10.0.0.1"], Some(5)), known(&[], Some(7))));
}

#[tokio::test]
async fn empty_answers_carry_the_time_of_the_zone() {
    use RecordType::{A, AAAA};
    let server = TestServer::start().await;
    let etc = Etc::new("empty", "", "");
    let resolver = etc.resolver(&[server.addr], LONG);
    let absent = |ttl: Option<u64>| Ok(Found { absent: true, v4: known(&[], ttl), v6: known(&[], ttl) });
    server.say("gone.test", A, Say::NoName(Some((900, 12))));
    server.say("gone.test", AAAA, Say::NoName(Some((11, 900))));
    assert_eq!(resolver.addresses("gone.test").await, absent(Some(11)));
    assert_eq!(resolver.addresses("never.test").await, absent(None));
    server.say("bare.test", A, Say::NoData(Some((900, 12))));
    server.say("bare.test", AAAA, Say::NoData(None));
    assert_eq!(resolver.addresses("bare.test").await, found(known(&[], Some(12)), known(&[], Some(12))));
}

#[tokio::test]
async fn failures_are_told_from_answers() {
    use RecordType::{A, AAAA};
    let server = TestServer::start().await;
    let etc = Etc::new("failures", "", "");
    let resolver = etc.resolver(&[server.addr], LONG);
    let addr = server.addr;
    for (say, why) in [
        (Say::Code(ResponseCode::ServFail), format!("Server Failure from {addr}")),
        (Say::Code(ResponseCode::Refused), format!("Query Refused from {addr}")),
        (Say::Referral, "x.test. A: a referral instead of an answer (the server does not recurse)".to_owned()),
    ] {
        server.say("x.test", A, say);
        server.say("x.test", AAAA, Say::NoData(Some((60, 60))));
        assert_eq!(resolver.addresses("x.test").await, Err(DnsError::Failed(why)));
        // With the other half answered, only this half has failed.
        server.say("x.test", AAAA, Say::Records(ips("x.test", 60, &["::1"])));
        let got = resolver.addresses("x.test").await.unwrap();
        assert!(matches!(got.v4, Family::Failed { .. }), "{got:?}");
        assert_eq!(got.v6, known(&["::1"], Some(60)));
    }
}

#[tokio::test]
async fn silence_ends_with_the_timeout() {
    let server = TestServer::start().await;
    let etc = Etc::new("silence", "", "");
    server.say("x.test", RecordType::A, Say::Nothing);
    server.say("x.test", RecordType::AAAA, Say::Nothing);
    let resolver = etc.resolver(&[server.addr], SHORT);
    let Err(DnsError::Failed(why)) = resolver.addresses("x.test").await else { panic!("an answer out of nothing") };
    assert!(why.starts_with("no answer"), "{why}");
    assert!(why.contains(&server.addr.to_string()), "{why}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_known_at_once() {
    let etc = Etc::new("refused", "", "");
    let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nobody = port.local_addr().unwrap();
    drop(port);
    // A timeout that the test would not survive.
    let resolver = etc.resolver(&[nobody], Duration::from_secs(3600));
    let Err(DnsError::Failed(why)) = resolver.addresses("x.test").await else { panic!("an answer out of nothing") };
    assert_eq!(why, format!("{nobody} cannot be reached"));
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails_or_keeps_silent() {
    let (broken, good) = (TestServer::start().await, TestServer::start().await);
    let etc = Etc::new("next", "", "");
    good.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["10.0.0.1"])));
    good.say("x.test", RecordType::AAAA, Say::NoData(Some((60, 60))));
    for say in [Say::Code(ResponseCode::ServFail), Say::Nothing] {
        broken.say("x.test", RecordType::A, say.clone());
        broken.say("x.test", RecordType::AAAA, say);
        let resolver = etc.resolver(&[broken.addr, good.addr], LONG);
        let want = found(known(&["10.0.0.1"], Some(60)), known(&[], Some(60)));
        assert_eq!(resolver.addresses("x.test").await, want);
        // The one that answered is asked first from then on.
        let before = broken.asked().len();
        assert_eq!(resolver.addresses("x.test").await, want);
        assert_eq!(broken.asked().len(), before);
    }
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_again_over_tcp() {
    let server = TestServer::start().await;
    let etc = Etc::new("tcp", "", "");
    let resolver = etc.resolver(&[server.addr], LONG);
    let many: Vec<_> = (0..400u16).map(|n| format!("10.1.{}.{}", n / 200, n % 200)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    server.say("many.test", RecordType::A, Say::Records(ips("many.test", 60, &many)));
    server.say("many.test", RecordType::AAAA, Say::NoData(Some((60, 60))));
    assert_eq!(resolver.addresses("many.test").await, found(known(&many, Some(60)), known(&[], Some(60))));
    let over: Vec<_> = server.asked().into_iter().filter(|ask| ask.1 == RecordType::A).map(|ask| ask.2).collect();
    assert_eq!(over, [Protocol::Udp, Protocol::Tcp]);
}

#[tokio::test]
async fn the_search_list_is_followed_and_its_failures_are_no_absence() {
    use RecordType::{A, AAAA};
    let server = TestServer::start().await;
    let etc = Etc::new("search", "search a.test b.test\noptions ndots:2\n", "");
    let resolver = etc.resolver(&[server.addr], LONG);
    server.say("db.b.test", A, Say::Records(ips("db.b.test", 60, &["10.0.0.2"])));
    server.say("db.b.test", AAAA, Say::NoData(None));
    assert_eq!(resolver.addresses("db").await, found(known(&["10.0.0.2"], Some(60)), known(&[], None)));
    assert_eq!((server.count("db.a.test", A), server.count("db", A)), (1, 0));
    // A trailing dot asks for exactly that name.
    assert!(resolver.addresses("db.").await.unwrap().absent);
    assert_eq!((server.count("db.a.test", A), server.count("db", A)), (1, 1));
    // SERVFAIL on the way is passed by, but if nothing comes after it the whole is a failure.
    server.say("db.a.test", A, Say::Code(ResponseCode::ServFail));
    assert_eq!(resolver.addresses("db").await.unwrap().ips().count(), 1);
    server.say("db.b.test", A, Say::NoName(None));
    server.say("db.b.test", AAAA, Say::NoName(None));
    assert!(matches!(resolver.addresses("db").await, Err(DnsError::Failed(_))));
}

#[tokio::test]
async fn some_names_are_known_without_a_server() {
    let server = TestServer::start().await;
    let etc = Etc::new("known", "", "10.0.0.7 db.test\n127.0.0.2 localhost\n");
    let resolver = etc.resolver(&[server.addr], LONG);
    for (host, want) in [
        ("10.0.0.1", found(known(&["10.0.0.1"], None), known(&[], None))),
        ("2001:db8::1", found(known(&[], None), known(&["2001:db8::1"], None))),
        ("[2001:db8::1]", found(known(&[], None), known(&["2001:db8::1"], None))),
        ("DB.test", found(known(&["10.0.0.7"], Some(5)), known(&[], Some(5)))),
        ("localhost", found(known(&["127.0.0.2"], Some(5)), known(&[], Some(5)))),
        ("app.localhost.", Ok(Found::known(["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()], None))),
        ("nothing.invalid", Ok(Found { absent: true, ..Found::known([], None) })),
        ("hidden.onion", Ok(Found { absent: true, ..Found::known([], None) })),
    ] {
        assert_eq!(resolver.addresses(host).await, want, "{host}");
    }
    let label = "a".repeat(64);
    for host in ["", ".", "..", "a..b", "a b", "ä.test", "a/b", "a\nb", &label] {
        assert!(matches!(resolver.addresses(host).await, Err(DnsError::BadName { .. })), "{host:?}");
    }
    assert_eq!(server.asked(), []);
}

#[tokio::test]
async fn service_records_bring_their_hosts_addresses() {
    use RecordType::{A, AAAA, SRV};
    let server = TestServer::start().await;
    let etc = Etc::new("srv", "", "10.0.0.9 listed.test\n");
    let resolver = etc.resolver(&[server.addr], LONG);
    // The list stands behind an alias, which hickory's own client cannot follow.
    server.say(
        "_grpc._tcp.test",
        SRV,
        Say::Records(vec![
            alias("_grpc._tcp.test", 8, "list.test"),
            service("list.test", 60, (10, 3, 1000), "a.test"),
            service("list.test", 60, (20, 0, 2000), "A.TEST"),
            service("list.test", 60, (10, 1, 1001), "b.test"),
            service("list.test", 60, (10, 1, 1002), "listed.test"),
            service("list.test", 60, (10, 1, 1003), "."),
        ]),
    );
    server.say("a.test", A, Say::Records(ips("a.test", 30, &["10.0.0.1"])));
    server.say("a.test", AAAA, Say::NoData(Some((60, 60))));
    server.say("b.test", A, Say::Code(ResponseCode::ServFail));
    server.say("b.test", AAAA, Say::NoData(Some((60, 60))));
    let got = resolver.srv("_grpc._tcp.test").await.unwrap();
    assert_eq!(got.ttl, Some(Duration::from_secs(8)));
    let seen: Vec<_> = got
        .targets
        .iter()
        .map(|t| (&*t.name, t.priority, t.weight, t.port, t.found.ips().map(|ip| ip.to_string()).collect::<Vec<_>>()))
        .collect();
    let ip = |ip: &str| vec![ip.to_owned()];
    assert_eq!(
        seen,
        [
            ("a.test.", 10, 3, 1000, ip("10.0.0.1")),
            ("a.test.", 20, 1, 2000, ip("10.0.0.1")),
            ("b.test.", 10, 1, 1001, vec![]),
            ("listed.test.", 10, 1, 1002, ip("10.0.0.9")),
        ]
    );
    assert!(matches!(got.targets[2].found.v4, Family::Failed { .. }));
    assert_eq!(server.count("a.test", A), 1, "a host that stands twice is asked for once");
    let none = resolver.srv("_nothing._tcp.test").await.unwrap();
    assert!(none.absent && none.targets.is_empty());
}
