//! A DNS server for tests on loopback, UDP and TCP at one port, with answers that the test changes as it goes.

use std::collections::HashMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use parking_lot::Mutex;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;

/// What the server says to one question.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    /// These records, as the answer section.
    Records(Vec<Record>),
    /// There is no such record; the SOA's time to live and minimum.
    NoData(Option<(u32, u32)>),
    /// There is no such name; the SOA's time to live and minimum.
    NoName(Option<(u32, u32)>),
    /// A failure.
    Code(ResponseCode),
    /// A referral to other servers.
    Referral,
    /// Nothing at all.
    Nothing,
}

/// The server; it ends with the value.
pub(crate) struct TestServer {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    script: Script,
    _server: Server<Script>,
}

type Question = (String, RecordType);

#[derive(Clone)]
struct Script(Arc<Inner>);

struct Inner {
    says: Mutex<HashMap<Question, Say>>,
    asked: watch::Sender<Vec<(String, RecordType, Protocol)>>,
}

impl TestServer {
    /// Starts a server that says NXDOMAIN without SOA to everything.
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = sockets().await;
        let addr = udp.local_addr().unwrap();
        let script = Script(Arc::new(Inner { says: Mutex::default(), asked: watch::Sender::new(Vec::new()) }));
        let mut server = Server::new(script.clone());
        server.register_socket(udp);
        server.register_listener(tcp, Duration::from_secs(30), 64);
        Self { addr, script, _server: server }
    }

    /// From now on says `say` when asked for `kind` of `name`.
    pub(crate) fn say(&self, name: &str, kind: RecordType, say: Say) {
        self.script.0.says.lock().insert((absolute(name), kind), say);
    }

    /// How often `kind` of `name` was asked for.
    pub(crate) fn count(&self, name: &str, kind: RecordType) -> usize {
        let wanted = (absolute(name), kind);
        self.script.0.asked.borrow().iter().filter(|(name, kind, _)| (name, kind) == (&wanted.0, &wanted.1)).count()
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<(String, RecordType, Protocol)> {
        self.script.0.asked.borrow().clone()
    }

    /// Waits until `kind` of `name` was asked for `times` times.
    pub(crate) async fn until_asked(&self, name: &str, kind: RecordType, times: usize) {
        let mut asked = self.script.0.asked.subscribe();
        while self.count(name, kind) < times {
            asked.changed().await.unwrap();
        }
    }
}

async fn sockets() -> (UdpSocket, TcpListener) {
    for _ in 0..50 {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

fn absolute(name: &str) -> String {
    format!("{}.", name.to_ascii_lowercase().trim_end_matches('.'))
}

fn record(name: &str, ttl: u32, data: RData) -> Record {
    Record::from_rdata(Name::from_str(&absolute(name)).unwrap(), ttl, data)
}

/// Address records of either family.
pub(crate) fn ips(name: &str, ttl: u32, ips: &[&str]) -> Vec<Record> {
    let data = |ip: &&str| match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    ips.iter().map(|ip| record(name, ttl, data(ip))).collect()
}

/// An alias.
pub(crate) fn alias(name: &str, ttl: u32, target: &str) -> Record {
    record(name, ttl, RData::CNAME(CNAME(Name::from_str(&absolute(target)).unwrap())))
}

/// A service record.
pub(crate) fn service(name: &str, ttl: u32, (priority, weight, port): (u16, u16, u16), target: &str) -> Record {
    record(name, ttl, RData::SRV(SRV::new(priority, weight, port, Name::from_str(&absolute(target)).unwrap())))
}

fn soa(ttl: u32, minimum: u32) -> Record {
    let name = || Name::from_str("test.").unwrap();
    record("test.", ttl, RData::SOA(SOA::new(name(), name(), 1, 2, 3, 4, minimum)))
}

impl Script {
    async fn answer<R: ResponseHandler>(&self, request: &Request, mut out: R) -> ResponseInfo {
        let info = request.request_info().unwrap();
        let question = (absolute(&info.query.name().to_string()), info.query.query_type());
        let say = self.0.says.lock().get(&question).cloned().unwrap_or(Say::NoName(None));
        self.0.asked.send_modify(|asked| asked.push((question.0, question.1, info.protocol)));
        let mut metadata = Metadata::response_from_request(&request.metadata);
        let (mut answers, mut authorities) = (Vec::new(), Vec::new());
        match say {
            Say::Nothing => return silence(),
            Say::Records(records) => answers = records,
            Say::NoData(zone) => authorities.extend(zone.map(|(ttl, minimum)| soa(ttl, minimum))),
            Say::NoName(zone) => {
                metadata.response_code = ResponseCode::NXDomain;
                authorities.extend(zone.map(|(ttl, minimum)| soa(ttl, minimum)));
            }
            Say::Code(code) => metadata.response_code = code,
            Say::Referral => authorities.push(record("test.", 60, RData::NS(NS(Name::from_str("ns.test.").unwrap())))),
        }
        let none: [&Record; 0] = [];
        let response = MessageResponseBuilder::from_message_request(request).build(
            metadata,
            answers.iter(),
            authorities.iter(),
            none,
            none,
        );
        out.send_response(response).await.unwrap_or_else(|_| silence())
    }
}

fn silence() -> ResponseInfo {
    Header { metadata: Metadata::new(0, MessageType::Response, OpCode::Query), counts: HeaderCounts::default() }.into()
}

impl RequestHandler for Script {
    fn handle_request<'me, 'request, 'out, R, T>(
        &'me self,
        request: &'request Request,
        out: R,
    ) -> Pin<Box<dyn Future<Output = ResponseInfo> + Send + 'out>>
    where
        'me: 'out,
        'request: 'out,
        R: ResponseHandler + 'out,
        T: Time + 'out,
    {
        Box::pin(self.answer(request, out))
    }
}
