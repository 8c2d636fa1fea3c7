//! The forwarder against scripted servers on loopback, and against one that lies.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use futures_util::future::join_all;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::rdata::A;
use hickory_resolver::proto::rr::{Name, Record};
use hickory_server::net::xfer::Protocol;
use tokio::net::UdpSocket;

use super::*;
use crate::dns::testserver::{Say, TestServer, alias, ips};
use crate::plan::DnsPlan;

fn plan(server: SocketAddr) -> DnsPlan {
    DnsPlan {
        listen: Vec::new(),
        servers: vec![server],
        floor: Duration::from_secs(1),
        ceiling: Duration::from_secs(300),
        stale_for: Duration::from_secs(600),
        timeout: Duration::from_secs(5),
        hosts_file: false,
    }
}

fn forwarder(plan: &DnsPlan) -> Arc<Forwarder> {
    Forwarder::new(Resolver::new(plan), Tasks::default(), Arc::default())
}

fn question(name: &str, kind: RecordType) -> Question {
    Question { name: Name::from_str(name).unwrap(), kind, guarded: true, ..Question::default() }
}

fn data(said: &Said) -> Vec<String> {
    said.answers.iter().map(|record| record.data.to_string()).collect()
}

fn note(said: &Said) -> u16 {
    said.note.as_ref().map_or(0, |note| note.code)
}

fn counts(forwarder: &Forwarder) -> Vec<u64> {
    forwarder.metrics.dns.all().iter().map(crate::telemetry::metrics::Counter::get).collect()
}

#[tokio::test]
async fn an_answer_is_asked_for_once_by_however_many() {
    let server = TestServer::start().await;
    server.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["10.0.0.1", "10.0.0.2"])));
    let forwarder = forwarder(&plan(server.addr));
    let x = question("x.test.", RecordType::A);
    // hickory joins equal questions too; here the second takes no permit.
    let waiting = [forwarder.ask(&x).unwrap(), forwarder.ask(&x).unwrap()];
    assert_eq!(forwarder.permits.available_permits(), AT_ONCE - 1);
    drop(waiting);
    let all = join_all((0..50).map(|_| forwarder.answer(&x))).await;
    assert!(all.iter().all(|said| data(said) == ["10.0.0.1", "10.0.0.2"]));
    assert!(all.iter().all(|said| said.answers.iter().all(|record| record.name.eq_case(&x.name))));
    assert_eq!(server.count("x.test", RecordType::A), 1);
    let again = forwarder.known(&x).unwrap();
    assert_eq!(data(&again), ["10.0.0.1", "10.0.0.2"]);
    assert_eq!(counts(&forwarder), [0, 1, 50, 0, 0, 0, 0]);
    assert!(forwarder.under_way.lock().is_empty());
}

#[tokio::test]
async fn where_no_more_may_be_asked_the_last_good_answer_is_given() {
    let forwarder = forwarder(&plan(SocketAddr::from(([127, 0, 0, 1], 9))));
    let (x, y) = (question("x.test.", RecordType::A), question("y.test.", RecordType::A));
    let mut message = Message::new(1, MessageType::Response, OpCode::Query);
    message.answers = ips("x.test", 1, &["10.0.0.1"]);
    let (ttl, stale_for) = (Duration::ZERO, Duration::from_secs(600));
    forwarder.cache.lock().put(&x, message.to_vec().unwrap().into(), ttl, stale_for, Instant::now());
    let all = forwarder.permits.clone().acquire_many_owned(AT_ONCE as u32).await.unwrap();
    let said = forwarder.answer(&x).await;
    assert_eq!((data(&said), note(&said)), (vec!["10.0.0.1".to_owned()], 3));
    let said = forwarder.answer(&y).await;
    assert_eq!((said.code, note(&said)), (ResponseCode::ServFail, 14));
    drop(all);
}

#[tokio::test]
async fn emptiness_is_kept_by_its_zone_and_without_one_not_at_all() {
    let server = TestServer::start().await;
    server.say("none.test", RecordType::A, Say::NoName(Some((60, 30))));
    server.say("empty.test", RecordType::A, Say::NoData(Some((60, 30))));
    server.say("bare.test", RecordType::A, Say::NoName(None));
    server.say("away.test", RecordType::A, Say::Records(vec![alias("away.test", 60, "else.test")]));
    let forwarder = forwarder(&plan(server.addr));
    for (name, code, records, authorities, times) in [
        ("none.test.", ResponseCode::NXDomain, 0, 1, 1),
        ("empty.test.", ResponseCode::NoError, 0, 1, 1),
        ("bare.test.", ResponseCode::NXDomain, 0, 0, 2),
        ("away.test.", ResponseCode::NoError, 1, 0, 2),
    ] {
        for _ in 0..2 {
            let said = forwarder.answer(&question(name, RecordType::A)).await;
            let got = (said.code, said.answers.len(), said.authorities.len());
            assert_eq!(got, (code, records, authorities), "{name}");
        }
        assert_eq!(server.count(name, RecordType::A), times, "{name}");
    }
}

#[tokio::test]
async fn a_failure_is_told_and_not_asked_for_again_at_once() {
    let server = TestServer::start().await;
    server.say("x.test", RecordType::A, Say::Code(ResponseCode::Refused));
    let forwarder = forwarder(&plan(server.addr));
    for _ in 0..3 {
        let said = forwarder.answer(&question("x.test.", RecordType::A)).await;
        assert_eq!((said.code, note(&said)), (ResponseCode::ServFail, 22));
        assert!(said.note.unwrap().text.contains(&server.addr.to_string()));
    }
    assert_eq!(server.count("x.test", RecordType::A), 1);
    assert_eq!(forwarder.trouble(), None, "a server that refuses is there");
}

#[tokio::test]
async fn the_last_good_answer_is_given_while_the_servers_fail() {
    let server = TestServer::start().await;
    let none = Duration::ZERO;
    let timeout = Duration::from_millis(300);
    let forwarder = forwarder(&DnsPlan { floor: none, ceiling: none, timeout, ..plan(server.addr) });
    server.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["10.0.0.1"])));
    server.say("no.test", RecordType::A, Say::NoName(Some((60, 60))));
    let (x, no) = (question("x.test.", RecordType::A), question("no.test.", RecordType::A));
    forwarder.answer(&no).await;
    assert_eq!(note(&forwarder.answer(&x).await), 0);
    for say in [Say::Code(ResponseCode::ServFail), Say::Nothing] {
        server.say("x.test", RecordType::A, say.clone());
        server.say("no.test", RecordType::A, say);
        let said = forwarder.answer(&x).await;
        assert_eq!((data(&said), note(&said)), (vec!["10.0.0.1".to_owned()], 3));
        assert_eq!(said.answers[0].ttl, STALE_TTL);
        let said = forwarder.answer(&no).await;
        assert_eq!((said.code, note(&said)), (ResponseCode::NXDomain, 19));
    }
    assert_eq!(server.count("x.test", RecordType::A), 2, "that they fail is known for a while");
}

#[tokio::test(start_paused = true)]
async fn an_older_answer_is_not_kept_back_for_long() {
    // Nobody answers at this address; with time standing still nothing is ever heard.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = forwarder(&plan(silent.local_addr().unwrap()));
    let x = question("x.test.", RecordType::A);
    let mut message = Message::response(0, OpCode::Query);
    message.answers = ips("x.test", 1, &["10.0.0.1"]);
    let start = Instant::now();
    let bytes = Bytes::from(message.to_vec().unwrap());
    forwarder.cache.lock().put(&x, bytes, Duration::from_secs(1), Duration::from_secs(600), start);
    tokio::time::advance(Duration::from_secs(2)).await;
    let said = forwarder.answer(&x).await;
    assert_eq!((data(&said), note(&said)), (vec!["10.0.0.1".to_owned()], 3));
    assert_eq!(start.elapsed(), Duration::from_secs(2) + PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn times_to_live_run_down() {
    let kept = |age| {
        let mut message = Message::response(0, OpCode::Query);
        message.answers = ips("x.test", 60, &["10.0.0.1"]);
        Kept { message: message.to_vec().unwrap().into(), age: Duration::from_secs(age) }
    };
    for (age, ttl) in [(0, 60), (59, 1), (60, 0), (1000, 0), (u64::MAX, 0)] {
        assert_eq!(fresh(kept(age)).unwrap().answers[0].ttl, ttl, "{age}");
    }
    assert!(fresh(Kept { message: Bytes::from_static(b"x"), age: Duration::ZERO }).is_none());
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp() {
    let server = TestServer::start().await;
    let many: Vec<String> = (0..200).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    server.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &many)));
    let said = forwarder(&plan(server.addr)).answer(&question("x.test.", RecordType::A)).await;
    assert_eq!(said.answers.len(), 200);
    let how: Vec<_> = server.asked().into_iter().map(|(_, _, how)| how).collect();
    assert_eq!(how, [Protocol::Udp, Protocol::Tcp]);
}

#[tokio::test]
async fn nobody_else_may_say_a_virtual_address() {
    let server = TestServer::start().await;
    server.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["240.240.126.35", "10.0.0.1"])));
    server.say("x.test", RecordType::AAAA, Say::Records(ips("x.test", 60, &["2001:2::f0f0:7e23"])));
    let forwarder = forwarder(&plan(server.addr));
    assert_eq!(data(&forwarder.answer(&question("x.test.", RecordType::A)).await), ["10.0.0.1"]);
    assert!(data(&forwarder.answer(&question("x.test.", RecordType::AAAA)).await).is_empty());
}

#[tokio::test]
async fn the_own_door_is_never_asked() {
    let server = TestServer::start().await;
    let forwarder = forwarder(&DnsPlan { listen: vec![server.addr], ..plan(server.addr) });
    let said = forwarder.answer(&question("x.test.", RecordType::A)).await;
    assert_eq!((said.code, note(&said)), (ResponseCode::ServFail, 22));
    assert!(server.asked().is_empty());
    assert!(forwarder.trouble().unwrap().contains("dns.servers"));
}

#[tokio::test]
async fn other_servers_are_asked_from_now_on_and_what_the_former_said_is_forgotten() {
    let (one, two) = (TestServer::start().await, TestServer::start().await);
    one.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["10.0.0.1"])));
    two.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["10.0.0.2"])));
    let forwarder = forwarder(&plan(one.addr));
    let x = question("x.test.", RecordType::A);
    assert_eq!(data(&forwarder.answer(&x).await), ["10.0.0.1"]);
    forwarder.set_resolver(Resolver::new(&plan(two.addr)));
    assert_eq!(data(&forwarder.answer(&x).await), ["10.0.0.2"]);
}

/// The next question that comes in at a server made by hand.
async fn heard(server: &UdpSocket) -> (Message, SocketAddr) {
    let mut packet = [0; 4096];
    let (length, from) = server.recv_from(&mut packet).await.unwrap();
    (Message::from_vec(&packet[..length]).unwrap(), from)
}

fn reply(asked: &Message, last: u8) -> Message {
    let mut reply = asked.clone().into_response();
    let a = RData::A(A(Ipv4Addr::new(10, 0, 0, last)));
    reply.add_answer(Record::from_rdata(asked.queries[0].name().clone(), 60, a));
    reply
}

#[tokio::test]
async fn an_answer_must_be_one_to_the_question() {
    let (server, other) =
        (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let forwarder = forwarder(&plan(server.local_addr().unwrap()));
    let x = question("some-long-name.test.", RecordType::A);
    let lies = async {
        let (asked, from) = heard(&server).await;
        let mut wrong_id = reply(&asked, 1);
        wrong_id.metadata.id = asked.id.wrapping_add(1);
        let mut wrong_name = reply(&asked, 2);
        wrong_name.queries = vec![Query::query(Name::from_str("y.test.").unwrap(), RecordType::A)];
        let mut no_question = reply(&asked, 3);
        no_question.queries.clear();
        for lie in [wrong_id, wrong_name, no_question] {
            server.send_to(&lie.to_vec().unwrap(), from).await.unwrap();
        }
        server.send_to(b"\0", from).await.unwrap();
        // Right in everything but where it comes from.
        other.send_to(&reply(&asked, 4).to_vec().unwrap(), from).await.unwrap();
        server.send_to(&reply(&asked, 5).to_vec().unwrap(), from).await.unwrap();
        asked
    };
    let (said, asked) = tokio::join!(forwarder.answer(&x), lies);
    assert_eq!(data(&said), ["10.0.0.5"]);
    assert!(!asked.queries[0].name().eq_case(&x.name), "its letters are mixed: {}", asked.queries[0].name());
}

#[tokio::test]
async fn ids_and_ports_are_never_the_same_for_long() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = forwarder(&plan(server.local_addr().unwrap()));
    let (mut ids, mut ports) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
    for n in 0..40 {
        let answers = async {
            let (asked, from) = heard(&server).await;
            server.send_to(&reply(&asked, 1).to_vec().unwrap(), from).await.unwrap();
            ids.insert(asked.id);
            ports.insert(from.port());
        };
        let one = question(&format!("n{n}.test."), RecordType::A);
        tokio::join!(forwarder.answer(&one), answers);
    }
    assert!(ids.len() > 35 && ports.len() > 35, "{ids:?} {ports:?}");
}

#[tokio::test]
async fn the_flags_of_dnssec_pass_both_ways() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let forwarder = forwarder(&plan(server.local_addr().unwrap()));
    for (dnssec_ok, checking_disabled) in [(false, false), (true, false), (true, true)] {
        let x = Question { dnssec_ok, checking_disabled, ..question("x.test.", RecordType::A) };
        let answers = async {
            let (asked, from) = heard(&server).await;
            let edns = asked.edns.as_ref().unwrap();
            assert_eq!(edns.flags().dnssec_ok, dnssec_ok);
            assert_eq!((asked.metadata.checking_disabled, edns.max_payload()), (checking_disabled, 1232));
            let mut reply = reply(&asked, 1);
            reply.metadata.authentic_data = dnssec_ok;
            server.send_to(&reply.to_vec().unwrap(), from).await.unwrap();
        };
        let (said, ()) = tokio::join!(forwarder.answer(&x), answers);
        assert_eq!(said.authentic, dnssec_ok);
        assert_eq!(forwarder.known(&x).unwrap().authentic, dnssec_ok);
    }
}
