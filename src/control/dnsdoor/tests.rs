//! The door over real sockets on loopback, in front of a scripted server.

use std::str::FromStr;
use std::time::Duration;

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::control::testing::plan as bare;
use crate::dns::testserver::{Say, TestServer, ips};
use crate::plan::virtual_ips::VirtualIps;

/// Nothing takes longer unless it is broken.
const SOON: Duration = Duration::from_secs(20);

fn plan(server: SocketAddr, hosts: &[&str]) -> Arc<Plan> {
    let mut plan = bare();
    plan.dns.listen = vec!["127.0.0.1:0".parse().unwrap()];
    plan.dns.servers = vec![server];
    hosts.iter().for_each(|host| assert_eq!(plan.hosts.add(host, None, 0), None));
    plan.virtual_ips = VirtualIps::of(hosts.iter().copied());
    Arc::new(plan)
}

struct Desk {
    door: DnsDoor,
    addr: SocketAddr,
}

impl Desk {
    async fn open(plan: &Arc<Plan>) -> Self {
        let door = DnsDoor::new(plan.clone(), Tasks::default(), Arc::default());
        let prepared = door.prepare(plan).await.unwrap();
        let addr = prepared.0[0].tcp.local_addr().unwrap();
        door.commit(prepared, plan).unwrap();
        Self { door, addr }
    }

    fn count(&self, how: DnsAnswer) -> u64 {
        self.door.shared.dns().all()[how as usize].get()
    }

    async fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.addr).await.unwrap();
        socket
    }

    async fn ask(&self, packet: &[u8]) -> Message {
        let socket = self.udp().await;
        socket.send(packet).await.unwrap();
        receive(&socket).await
    }

    async fn ask_over_tcp(&self, packets: &[Vec<u8>]) -> Vec<Message> {
        let mut stream = TcpStream::connect(self.addr).await.unwrap();
        let framed = packets.iter().flat_map(|packet| {
            let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
            length.into_iter().chain(packet.iter().copied())
        });
        stream.write_all(&framed.collect::<Vec<u8>>()).await.unwrap();
        let mut answers = Vec::new();
        for _ in packets {
            let length = timeout(SOON, stream.read_u16()).await.unwrap().unwrap();
            let mut answer = vec![0; length.into()];
            stream.read_exact(&mut answer).await.unwrap();
            answers.push(Message::from_vec(&answer).unwrap());
        }
        answers
    }
}

async fn receive(socket: &UdpSocket) -> Message {
    let mut answer = [0; 4096];
    let length = timeout(SOON, socket.recv(&mut answer)).await.unwrap().unwrap();
    Message::from_vec(&answer[..length]).unwrap()
}

fn query(id: u16, name: &str, kind: RecordType, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    if let Some(size) = edns {
        message.set_edns(Edns::new().set_max_payload(size).clone());
    }
    message.to_vec().unwrap()
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn peers_and_strangers_over_udp_and_tcp() {
    let server = TestServer::start().await;
    server.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &["10.0.0.1"])));
    let desk = Desk::open(&plan(server.addr, &["payments"])).await;
    for (name, kind, want) in [
        ("PayMents.", RecordType::A, &["240.240.126.35"][..]),
        ("payments.", RecordType::HTTPS, &[]),
        ("x.test.", RecordType::A, &["10.0.0.1"]),
        ("localhost.", RecordType::A, &["127.0.0.1"]),
    ] {
        let packet = query(7, name, kind, None);
        for answer in [desk.ask(&packet).await, desk.ask_over_tcp(&[packet]).await.remove(0)] {
            assert_eq!((answer.id, answer.metadata.response_code), (7, ResponseCode::NoError));
            assert_eq!(data(&answer), want, "{name}");
            assert!(answer.queries[0].name().eq_case(&Name::from_str(name).unwrap()));
        }
    }
    assert_eq!(server.asked().len(), 1);
    let state = serde_json::to_value(desk.door.state()).unwrap();
    assert_eq!(state["hosts"]["payments"]["v4"], "240.240.126.35");
    assert_eq!(state["hosts"]["payments"]["peers"][0], "app");
    assert_eq!(state["cached"], 1);
}

#[tokio::test]
async fn what_is_too_long_for_udp_is_there_over_tcp() {
    let server = TestServer::start().await;
    let many: Vec<String> = (0..90).map(|n| format!("10.0.0.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    server.say("x.test", RecordType::A, Say::Records(ips("x.test", 60, &many)));
    let desk = Desk::open(&plan(server.addr, &[])).await;
    for edns in [None, Some(1232), Some(4096)] {
        let answer = desk.ask(&query(1, "x.test.", RecordType::A, edns)).await;
        assert!(answer.metadata.truncation && answer.answers.is_empty(), "{edns:?}");
        assert_eq!(answer.edns.is_some(), edns.is_some());
    }
    let answer = desk.ask_over_tcp(&[query(1, "x.test.", RecordType::A, None)]).await.remove(0);
    assert!(!answer.metadata.truncation);
    assert_eq!(answer.answers.len(), 90);
}

#[tokio::test]
async fn questions_on_one_connection_do_not_wait_for_each_other() {
    let server = TestServer::start().await;
    server.say("slow.test", RecordType::A, Say::Nothing);
    let mut plan = (*plan(server.addr, &["payments"])).clone();
    plan.dns.timeout = Duration::from_millis(300);
    let desk = Desk::open(&Arc::new(plan)).await;
    // More than are under way at once, and one that needs nobody.
    let mut packets: Vec<_> = (0..40).map(|id| query(id, "slow.test.", RecordType::A, None)).collect();
    packets.insert(3, query(99, "payments.", RecordType::A, None));
    let answers = desk.ask_over_tcp(&packets).await;
    assert_eq!(answers[0].id, 99);
    assert!(answers[1..].iter().all(|answer| answer.metadata.response_code == ResponseCode::ServFail));
    let mut ids: Vec<u16> = answers.iter().map(|answer| answer.id).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..40).chain([99]).collect::<Vec<_>>());
}

#[tokio::test]
async fn noise_is_no_harm() {
    let server = TestServer::start().await;
    let desk = Desk::open(&plan(server.addr, &["payments"])).await;
    let socket = desk.udp().await;
    let mut answer = query(5, "payments.", RecordType::A, None);
    answer[2] |= 0x80;
    for noise in [&b""[..], b"x", &[0xff; 600], &answer] {
        socket.send(noise).await.unwrap();
    }
    let good = query(6, "payments.", RecordType::A, None);
    socket.send(&good[..20]).await.unwrap();
    let answer = receive(&socket).await;
    assert_eq!((u16::from_be_bytes([good[0], good[1]]), answer.id), (6, 6));
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    socket.send(&good).await.unwrap();
    assert_eq!(data(&receive(&socket).await), ["240.240.126.35"]);
    assert_eq!(desk.door.shared.dns().dropped.get(), 4);
    // A length and nothing behind it, then a whole message that is none.
    let mut stream = TcpStream::connect(desk.addr).await.unwrap();
    stream.write_all(&[0, 3, 1, 2, 3, 0xff]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(SOON, stream.read(&mut [0; 10])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_flood_is_refused_and_peers_are_still_found() {
    let server = TestServer::start().await;
    let mut slow = (*plan(server.addr, &["payments"])).clone();
    // None of those that are under way ends while this lasts, however long that is.
    slow.dns.timeout = SOON * 10;
    let desk = Desk::open(&Arc::new(slow)).await;
    let socket = desk.udp().await;
    for n in 0..1000_u16 {
        let name = format!("n{n}.test");
        server.say(&name, RecordType::A, Say::Nothing);
        socket.send(&query(n, &name, RecordType::A, Some(1232))).await.unwrap();
        // What is refused is refused at once.
        while let Ok(length) = socket.try_recv(&mut [0; 4096]) {
            assert!(length > 0);
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(data(&desk.ask(&query(1, "payments.", RecordType::A, None)).await), ["240.240.126.35"]);
    // All that have no place, and nobody else.
    while desk.count(DnsAnswer::Overloaded) < 1000 - 256 {
        receive(&socket).await;
    }
    assert_eq!([DnsAnswer::Overloaded, DnsAnswer::Failed].map(|how| desk.count(how)), [1000 - 256, 0]);
    assert!(server.asked().iter().map(|(name, ..)| name).collect::<std::collections::BTreeSet<_>>().len() <= 256);
}

#[tokio::test]
async fn connections_are_bounded() {
    let server = TestServer::start().await;
    let desk = Desk::open(&plan(server.addr, &["payments"])).await;
    let mut open = Vec::new();
    for _ in 0..MOST_CONNECTIONS {
        open.push(TcpStream::connect(desk.addr).await.unwrap());
    }
    let mut more = TcpStream::connect(desk.addr).await.unwrap();
    assert_eq!(timeout(SOON, more.read(&mut [0; 1])).await.unwrap().unwrap_or(0), 0);
    assert_eq!(desk.door.shared.dns().connections_refused.get(), 1);
    drop(open);
    while desk.door.shared.connections.available_permits() < MOST_CONNECTIONS {
        tokio::task::yield_now().await;
    }
    let answers = desk.ask_over_tcp(&[query(1, "payments.", RecordType::A, None)]).await;
    assert_eq!(data(&answers[0]), ["240.240.126.35"]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed() {
    let desk = Desk::open(&plan("127.0.0.1:9".parse().unwrap(), &[])).await;
    let mut stream = TcpStream::connect(desk.addr).await.unwrap();
    stream.write_all(&[0, 9, 1]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(desk.door.shared.dns().connections.get(), 0);
}

#[tokio::test]
async fn a_reload_changes_names_and_listeners() {
    let server = TestServer::start().await;
    let first = plan(server.addr, &["payments"]);
    let desk = Desk::open(&first).await;
    let next = plan(server.addr, &["payments", "orders"]);
    desk.door.commit(desk.door.prepare(&next).await.unwrap(), &next).unwrap();
    let packet = query(1, "orders.", RecordType::A, None);
    assert_eq!(data(&desk.ask(&packet).await).len(), 1);
    assert_eq!(data(&desk.ask(&query(1, "payments.", RecordType::A, None)).await), ["240.240.126.35"]);

    let mut taken = (*next).clone();
    taken.dns.listen.push(server.addr);
    let errors = desk.door.prepare(&taken).await.err().unwrap();
    assert_eq!((errors.len(), errors[0].0, errors[0].1.kind()), (1, server.addr, io::ErrorKind::AddrInUse));

    // It waits for its answer meanwhile.
    server.say("slow.test", RecordType::A, Say::Nothing);
    desk.udp().await.send(&query(1, "slow.test.", RecordType::A, None)).await.unwrap();
    while server.asked().iter().all(|(name, ..)| !name.starts_with("slow")) {
        tokio::task::yield_now().await;
    }
    let mut without = (*next).clone();
    without.dns.listen.clear();
    let without = Arc::new(without);
    desk.door.commit(desk.door.prepare(&without).await.unwrap(), &without).unwrap();
    assert!(desk.door.state().is_none());
    // At once again, with nothing done in between.
    desk.door.closed().await;
    let mut again = (*next).clone();
    again.dns.listen = vec![desk.addr];
    let prepared = desk.door.prepare(&again).await;
    assert!(prepared.is_ok(), "{:?}", prepared.err());
}

#[tokio::test]
async fn a_question_that_comes_back_waits_for_itself() {
    let relay = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let mut looped = (*plan(relay.local_addr().unwrap(), &[])).clone();
    looped.dns.timeout = Duration::from_millis(700);
    let desk = Desk::open(&Arc::new(looped)).await;
    let (door, tasks) = (desk.addr, Tasks::default());
    let passed = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = passed.clone();
    // As a capture of port 53 would do that does not spare this process.
    let task = tasks.spawn(async move {
        let back = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut packet = [0; 4096];
        while let Ok((length, _)) = relay.recv_from(&mut packet).await {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            back.send_to(&packet[..length], door).await.unwrap();
        }
    });
    let answer = desk.ask(&query(1, "x.test.", RecordType::A, None)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    let passed = passed.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..=8).contains(&passed), "{passed}");
    task.abort();
}
