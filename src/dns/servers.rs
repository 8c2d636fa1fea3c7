//! Asks the DNS servers one question: one after another, a silent one overtaken after a moment, a failing one at once.
//!
//! hickory's pool gives up on the first SERVFAIL, whoever sent it, so each server has a pool of its own here and the
//! order is decided in this file. hickory does the wire: retransmission, TCP after a truncated answer, random ports
//! and ids. Its caches, search list and hosts file are not used.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts, ServerOrderingStrategy};
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError as WireError, NetError};
use hickory_resolver::proto::op::{DnsRequest, DnsRequestOptions, Message, MessageType, OpCode, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::time::{Instant, sleep_until};

use super::sockets::Connected;

/// After this long without an answer the next server is asked as well.
const OVERTAKE: Duration = Duration::from_secs(1);

/// Why no server gave an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Whether every server that was asked did speak (SERVFAIL, REFUSED, …); then another name may still be tried.
    pub spoke: bool,
    /// Who said what.
    pub why: String,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Question {
    /// The name; letters in either case are the same.
    pub name: Name,
    /// The type of the records.
    pub kind: RecordType,
    /// Whether DNSSEC's records are wanted too (DO).
    pub dnssec_ok: bool,
    /// Whether the servers need not verify (CD).
    pub checking_disabled: bool,
    /// Whether the letters of the name are put in random case, which the answer must keep: for names that others may
    /// have us ask for. A server that changes them is asked over TCP.
    pub guarded: bool,
}

impl Default for Question {
    fn default() -> Self {
        let (name, kind) = (Name::root(), RecordType::A);
        Self { name, kind, dnssec_ok: false, checking_disabled: false, guarded: false }
    }
}

/// A list of servers and how to reach them.
pub struct Servers {
    servers: Vec<Server>,
    /// The one that answered last; asked first.
    preferred: AtomicUsize,
    timeout: Duration,
}

struct Server {
    addr: SocketAddr,
    pool: NameServerPool<Connected>,
}

impl Servers {
    /// Makes ready to ask `addrs`, each for at most `timeout`. Nothing is opened yet.
    ///
    /// # Errors
    /// What hickory says of its own set-up.
    pub fn new(addrs: &[SocketAddr], timeout: Duration) -> Result<Self, String> {
        let mut options = ResolverOpts::default();
        options.timeout = timeout;
        options.cache_size = 0;
        options.num_concurrent_reqs = 1;
        options.max_active_requests = 1024;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        let tls = TlsConfig::new().map_err(|error| error.to_string())?;
        let context = Arc::new(PoolContext::new(options, tls));
        let provider = Connected::default();
        let server = |addr: &SocketAddr| {
            let at_port = |mut connection: ConnectionConfig| {
                connection.port = addr.port();
                connection
            };
            let connections = vec![at_port(ConnectionConfig::udp()), at_port(ConnectionConfig::tcp())];
            let config = NameServerConfig::new(addr.ip(), true, connections);
            Server { addr: *addr, pool: NameServerPool::from_config([config], context.clone(), provider.clone()) }
        };
        Ok(Self { servers: addrs.iter().map(server).collect(), preferred: AtomicUsize::new(0), timeout })
    }

    /// The message of the first server that answers, be it with records or with the word that there are none.
    ///
    /// # Errors
    /// When `deadline` passes, or every server has failed.
    pub async fn ask(&self, name: &Name, kind: RecordType, deadline: Instant) -> Result<Message, Trouble> {
        self.put(&Question { name: name.clone(), kind, ..Question::default() }, deadline).await
    }

    /// The same for a question with its flags.
    ///
    /// # Errors
    /// As for [`Self::ask`].
    pub async fn put(&self, question: &Question, deadline: Instant) -> Result<Message, Trouble> {
        let deadline = deadline.min(Instant::now() + self.timeout);
        let mut waiting = self.order();
        let mut asked = FuturesUnordered::new();
        let mut trouble: Option<Trouble> = None;
        let mut overtake = Instant::now();
        loop {
            if asked.is_empty() || Instant::now() >= overtake {
                match waiting.next() {
                    Some((at, server)) => {
                        asked.push(server.ask(question).map(move |outcome| (at, server.addr, outcome)).boxed());
                        overtake = Instant::now() + OVERTAKE.min(self.timeout / 3);
                    }
                    None if asked.is_empty() => return Err(trouble.unwrap_or_else(Trouble::nobody)),
                    None => overtake = deadline + self.timeout,
                }
            }
            // Every arm may be dropped: the questions under way live in `asked`.
            tokio::select! {
                biased; // an answer that is there counts, even at the deadline
                Some((at, addr, outcome)) = asked.next() => match outcome {
                    Ok(message) => {
                        self.preferred.store(at, Ordering::Relaxed);
                        return Ok(message);
                    }
                    Err(failure) => {
                        trouble = Some(Trouble::also(trouble, addr, failure));
                        overtake = Instant::now();
                    }
                },
                () = sleep_until(deadline) => return Err(Trouble::late(trouble, &self.servers)),
                () = sleep_until(overtake) => {}
            }
        }
    }

    fn order(&self) -> impl Iterator<Item = (usize, &Server)> {
        let first = self.preferred.load(Ordering::Relaxed);
        let (before, from) = self.servers.split_at(first.min(self.servers.len()));
        let at = |start: usize| move |(at, server)| (at + start, server);
        from.iter().enumerate().map(at(before.len())).chain(before.iter().enumerate().map(at(0)))
    }
}

impl Server {
    async fn ask(&self, question: &Question) -> Result<Message, NetError> {
        let query = Query::query(question.name.clone(), question.kind);
        let mut options = DnsRequestOptions::default();
        options.edns_set_dnssec_ok = question.dnssec_ok;
        options.case_randomization = question.guarded;
        // Each server hears another id.
        let mut request = DnsRequest::from_query(query, options);
        request.metadata.checking_disabled = question.checking_disabled;
        match self.pool.send(request).first_answer().await {
            Ok(response) => Ok(response.into_message()),
            // hickory turns messages without an answer into an error; what they say is an answer all the same.
            Err(NetError::Dns(WireError::NoRecordsFound(none))) => {
                let mut message = Message::new(0, MessageType::Response, OpCode::Query);
                message.metadata.response_code = none.response_code;
                message.authorities = none.authorities.map(|all| all.to_vec()).unwrap_or_default();
                Ok(message)
            }
            Err(error) => Err(error),
        }
    }
}

impl Trouble {
    fn nobody() -> Self {
        Self { spoke: false, why: "no DNS server is known".into() }
    }

    fn also(before: Option<Self>, addr: SocketAddr, failure: NetError) -> Self {
        let spoke = matches!(failure, NetError::Dns(_));
        let what = match failure {
            NetError::Dns(WireError::ResponseCode(code)) => format!("{code} from {addr}"),
            NetError::Timeout => format!("no answer from {addr}"),
            // What the pool makes of every error of a socket.
            NetError::NoConnections => format!("{addr} cannot be reached"),
            NetError::Io(error) => format!("{addr}: {error}"),
            other => format!("{addr}: {other}"),
        };
        match before {
            Some(before) => Self { spoke: before.spoke && spoke, why: format!("{}; {what}", before.why) },
            None => Self { spoke, why: what },
        }
    }

    fn late(before: Option<Self>, servers: &[Server]) -> Self {
        let all: Vec<_> = servers.iter().map(|server| server.addr.to_string()).collect();
        let late = format!("no answer in time from {}", all.join(", "));
        let why = before.map_or(late.clone(), |before| format!("{}; {late}", before.why));
        Self { spoke: false, why }
    }
}
