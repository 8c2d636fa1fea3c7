//! The DNS door: where the service's questions are answered, hosts of peers by their virtual addresses.
//!
//! `dns/own.rs` decides which questions are ours and what is said, `dns/forward.rs` asks the servers for the rest. Here
//! are the sockets, and what is in force: the names change with each reload, the listeners where the file says so. The
//! door is open before the app starts and until the process ends, as long as the app may need it.

mod tcp;
mod udp;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::dns::forward::Forwarder;
use crate::dns::own::{self, Families};
use crate::dns::resolver::Resolver;
use crate::dns::routes::is_reachable;
use crate::dns::wire::{Asked, Heard, Said, hear};
use crate::ids::{Addr, PeerName};
use crate::life::tasks::Tasks;
use crate::net::accept;
use crate::net::inside::inside;
use crate::plan::Plan;
use crate::telemetry::metrics::{DnsAnswer, DnsMetrics, Metrics};

/// Questions over UDP that wait for a server at once; what waits for the same one counts too.
const MOST_WAITING: usize = 1024;
/// TCP connections open at once, at all listeners.
const MOST_CONNECTIONS: usize = 128;
/// So many ports are tried where any will do.
const TRIES: usize = 16;
/// A listener that was aborted is gone when its task is looked at next.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// The door.
pub struct DnsDoor {
    shared: Arc<Shared>,
    tasks: Tasks,
    open: Mutex<Vec<Open>>,
    /// What a reload has aborted and may still hold its address.
    closing: Mutex<Vec<JoinHandle<()>>>,
}

/// What every listener answers from.
struct Shared {
    plan: ArcSwap<Plan>,
    forwarder: Arc<Forwarder>,
    metrics: Arc<Metrics>,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    tasks: Tasks,
}

struct Open {
    listen: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

/// Listeners that are bound and not yet served.
#[derive(Default)]
pub struct Prepared(Vec<Bound>);

struct Bound {
    listen: SocketAddr,
    udp: std::net::UdpSocket,
    tcp: std::net::TcpListener,
}

/// What `/state` tells of the door.
#[derive(Debug, Serialize)]
pub struct DnsState {
    listen: Vec<String>,
    hosts: BTreeMap<String, HostState>,
    cached: usize,
    cached_bytes: usize,
    /// What the servers fail with, while they do.
    trouble: Option<String>,
}

#[derive(Debug, Serialize)]
struct HostState {
    /// The peer; several where the host's ports belong to several.
    peers: Vec<String>,
    v4: String,
    v6: String,
}

impl DnsDoor {
    /// A door that listens nowhere yet. It has a resolver of its own, so that the app's questions take nothing from
    /// discovery's.
    pub fn new(plan: Arc<Plan>, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        Self::with_resolver(Resolver::new(&plan.dns), plan, tasks, metrics)
    }

    fn with_resolver(resolver: Arc<Resolver>, plan: Arc<Plan>, tasks: Tasks, metrics: Arc<Metrics>) -> Self {
        let shared = Arc::new(Shared {
            plan: ArcSwap::new(plan),
            forwarder: Forwarder::new(resolver, tasks.clone(), metrics.clone()),
            metrics,
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
            connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
            tasks: tasks.clone(),
        });
        Self { shared, tasks, open: Mutex::default(), closing: Mutex::default() }
    }

    /// Waits for listeners that an earlier reload removed to let go of their addresses, which a new one may want.
    pub async fn closed(&self) {
        let closing = std::mem::take(&mut *self.closing.lock());
        let _ = timeout(LAST_LOOK, futures_util::future::join_all(closing)).await;
    }

    /// Binds the listeners of `plan` that are not open yet. Dropping the result, or this, unbinds them.
    ///
    /// # Errors
    /// Every address that could not be bound; after one that was waited for in vain none is tried.
    pub async fn prepare(&self, plan: &Plan) -> Result<Prepared, Vec<(SocketAddr, io::Error)>> {
        let (mut prepared, mut errors) = (Prepared::default(), Vec::new());
        for listen in listeners(plan) {
            if self.open.lock().iter().any(|open| open.listen == listen) {
                continue;
            }
            match bind(listen).await {
                Ok(bound) => prepared.0.push(bound),
                Err(error) => {
                    let in_vain = error.kind() == io::ErrorKind::TimedOut;
                    errors.push((listen, error));
                    if in_vain {
                        break;
                    }
                }
            }
        }
        if errors.is_empty() { Ok(prepared) } else { Err(errors) }
    }

    /// Every open listener.
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.open.lock().iter().map(|open| open.listen).collect()
    }

    /// Puts `plan` in force: its names, its servers, its listeners.
    ///
    /// # Errors
    /// A socket that the runtime does not take; the others are served.
    pub fn commit(&self, prepared: Prepared, plan: &Arc<Plan>) -> io::Result<()> {
        let before = self.shared.plan.swap(plan.clone());
        told_of_moves(&before, plan);
        if before.dns != plan.dns {
            self.shared.forwarder.set_resolver(Resolver::new(&plan.dns));
        }
        let wanted = listeners(plan);
        let gone: Vec<Open> = self.open.lock().extract_if(.., |open| !wanted.contains(&open.listen)).collect();
        let gone = gone.into_iter().flat_map(|open| open.tasks);
        self.closing.lock().extend(gone.inspect(|task| task.abort()));
        let served = prepared.0.into_iter().map(|bound| self.serve(bound)).fold(Ok(()), Result::and);
        let listeners = i64::try_from(self.open.lock().len()).unwrap_or(i64::MAX);
        self.shared.metrics.dns.listeners.set(listeners);
        served
    }

    fn serve(&self, bound: Bound) -> io::Result<()> {
        let udp = tokio::net::UdpSocket::from_std(bound.udp)?;
        let tcp = tokio::net::TcpListener::from_std(bound.tcp)?;
        tracing::info!(listen = %bound.listen, "the DNS door is open");
        let tasks = [
            self.tasks.run(udp::serve(self.shared.clone(), Arc::new(udp))),
            self.tasks.run(tcp::serve(self.shared.clone(), tcp)),
        ];
        self.open.lock().push(Open { listen: bound.listen, tasks });
        Ok(())
    }

    /// What `/state` tells of it; `None` while it listens nowhere.
    pub fn state(&self) -> Option<DnsState> {
        let plan = self.shared.plan.load();
        let listen: Vec<String> = self.listening().iter().map(SocketAddr::to_string).collect();
        let host = |host: &str, ip: crate::plan::virtual_ips::VirtualIp| {
            let peers = plan.hosts.peers(host).filter_map(|at| plan.peers.get(at));
            let peers = peers.map(|peer| PeerName::to_string(&peer.name)).collect();
            (host.to_owned(), HostState { peers, v4: ip.v4.to_string(), v6: ip.v6.to_string() })
        };
        let (cached, cached_bytes) = self.shared.forwarder.size();
        (!listen.is_empty()).then(|| DnsState {
            listen,
            hosts: plan.virtual_ips.all().map(|(name, ip)| host(name, ip)).collect(),
            cached,
            cached_bytes,
            trouble: self.shared.forwarder.trouble().map(|why| why.to_string()),
        })
    }
}

/// Where a plan wants the door; in a network of the app's own it is there in any case, because no name server is.
fn listeners(plan: &Plan) -> Vec<SocketAddr> {
    let mut listeners = plan.dns.listen.clone();
    let more = inside().map(|inside| inside.dns()).unwrap_or_default();
    listeners.extend(more.into_iter().filter(|listen| !plan.dns.listen.contains(listen)));
    listeners
}

/// UDP and TCP at one address; where any port will do, both at the same, which TCP chooses and UDP may find taken.
async fn bind(listen: SocketAddr) -> io::Result<Bound> {
    for _ in 1..TRIES {
        match bind_once(listen).await {
            Err(error) if listen.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
    bind_once(listen).await
}

async fn bind_once(listen: SocketAddr) -> io::Result<Bound> {
    let accept::Bound::Tcp(tcp) = accept::bind_for_app(&Addr::Tcp(listen)).await? else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let at = tcp.local_addr()?;
    let udp = match inside() {
        Some(inside) => inside.udp(at).await?,
        None => std::net::UdpSocket::bind(at)?,
    };
    udp.set_nonblocking(true)?;
    Ok(Bound { listen, udp, tcp })
}

/// Apps keep addresses for longer than they were told to: who had one that is now another's is worth a line.
fn told_of_moves(before: &Plan, now: &Plan) {
    if listeners(now).is_empty() || before.virtual_ips == now.virtual_ips {
        return;
    }
    for (host, ip) in before.virtual_ips.all() {
        let Some(other) = now.virtual_ips.name(ip.v4.into()).filter(|other| *other != host) else { continue };
        tracing::warn!(
            "{} is now the address of {other} and was that of {host}: what keeps it reaches the wrong peer",
            ip.v4
        );
    }
}

/// What is to be done about a packet.
enum First {
    /// Send this.
    Now(Vec<u8>),
    /// Wait for the servers.
    Later(Box<Asked>),
    /// Nothing.
    Never,
}

impl Shared {
    fn dns(&self) -> &DnsMetrics {
        &self.metrics.dns
    }

    /// Answers what can be answered without waiting, in at most `most(…)` bytes.
    fn first(&self, packet: &[u8], most: impl Fn(&Asked) -> usize) -> First {
        let asked = match hear(packet) {
            Heard::Question(asked) => asked,
            Heard::Refused(answer) => {
                self.dns().answered(DnsAnswer::Refused);
                return First::Now(answer);
            }
            Heard::Nothing => {
                self.dns().dropped.inc();
                return First::Never;
            }
        };
        match self.own(&asked).or_else(|| self.forwarder.known(&asked.question)) {
            Some(said) => First::Now(asked.write(said, most(&asked))),
            None => First::Later(asked),
        }
    }

    fn own(&self, asked: &Asked) -> Option<Said> {
        let plan = self.plan.load();
        let conf = self.forwarder.resolver().search();
        let families = |ip| Families::of(is_reachable, ip);
        let said = own::answer(&asked.question, &plan.virtual_ips, &conf.search, families)?;
        self.dns().answered(DnsAnswer::Own);
        Some(said)
    }

    /// The answer of the servers.
    async fn later(&self, asked: &Asked, most: usize) -> Vec<u8> {
        asked.write(self.forwarder.answer(&asked.question).await, most)
    }
}

#[cfg(test)]
mod tests;
