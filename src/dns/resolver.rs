//! One lookup from a name as written to addresses with their times to live: literals, hosts file, search list, servers.
//!
//! It keeps no answers: whoever asks decides by the time to live when to ask again (`keeper.rs`).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};
use hickory_resolver::proto::rr::rdata::SRV;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::answer::{Answers, DnsError, Family, Found, Target};
use super::hosts::Hosts;
use super::message::{MOST_ALIASES, Reading, read};
use super::routes::prefer_reachable;
use super::servers::{Servers, Trouble};
use super::system::{Conf, Files, System};
use super::ttl::sooner;
use crate::plan::DnsPlan;

/// How long an entry of the hosts file is used before the file is looked at again.
const HOSTS_TTL: Duration = Duration::from_secs(5);
/// Questions under way at once, over all peers.
const AT_ONCE: usize = 256;
/// Hosts of one SRV answer whose addresses are asked for at once, and at all.
const TARGETS_AT_ONCE: usize = 16;
const MOST_TARGETS: usize = 512;

/// Looks names up. One per `dns:` section; shared by every peer.
pub struct Resolver {
    plan: DnsPlan,
    system: Mutex<System>,
    servers: Mutex<Option<(Vec<SocketAddr>, Arc<Servers>)>>,
    permits: Semaphore,
}

/// What one of the names that were tried came to.
enum Tried<T> {
    Has(T),
    Empty { ttl: Option<Duration>, absent: bool },
    Failed(Trouble),
}

/// The way along the search list so far.
struct Search {
    ttl: Option<Duration>,
    absent: bool,
    trouble: Option<Trouble>,
}

impl Resolver {
    /// A resolver for the machine's own files.
    pub fn new(plan: &DnsPlan) -> Arc<Self> {
        Self::with_files(plan, Files::default())
    }

    /// A resolver that reads other files than the machine's own.
    pub fn with_files(plan: &DnsPlan, files: Files) -> Arc<Self> {
        Arc::new(Self {
            plan: plan.clone(),
            system: Mutex::new(System::new(files)),
            servers: Mutex::new(None),
            permits: Semaphore::new(AT_ONCE),
        })
    }

    /// The plan it was made for.
    pub fn plan(&self) -> &DnsPlan {
        &self.plan
    }

    /// The addresses of `host`: an IP literal, a name of the hosts file, `localhost`, or what the servers say of the
    /// first name along the search list that has any. No address at all is an answer too.
    ///
    /// # Errors
    /// No server answered within the plan's timeout, or all that did failed, or `host` is no name.
    pub async fn addresses(&self, host: &str) -> Result<Found, DnsError> {
        let (conf, hosts) = self.system();
        if let Some(found) = known(host, &hosts) {
            return Ok(found);
        }
        let (name, servers) = (parse(host)?, self.servers(&conf)?);
        let deadline = Instant::now() + self.plan.timeout;
        let mut search = Search::new();
        for candidate in conf.candidates(&name) {
            let tried = self.both(&servers, &candidate, deadline).await;
            if let Some(mut found) = search.weigh(tried)? {
                prefer_reachable(&mut found);
                return Ok(found);
            }
        }
        let (ttl, absent) = search.end()?;
        let empty = || Family::Known { ips: Vec::new(), ttl };
        Ok(Found { v4: empty(), v6: empty(), absent })
    }

    /// The hosts of `name`'s SRV records with their addresses (RFC 2782). A host whose own lookup fails stands there
    /// with that failure.
    ///
    /// # Errors
    /// The list itself could not be had, as for [`Self::addresses`].
    pub async fn srv(&self, name: &str) -> Result<Answers, DnsError> {
        let (conf, hosts) = self.system();
        let (name, servers) = (parse(name)?, self.servers(&conf)?);
        let deadline = Instant::now() + self.plan.timeout;
        let mut search = Search::new();
        for candidate in conf.candidates(&name) {
            let tried = match self.records(&servers, &candidate, RecordType::SRV, deadline).await {
                Ok(Reading::Records { data, ttl }) => Tried::Has((data, ttl)),
                Ok(Reading::Empty { ttl, absent }) => Tried::Empty { ttl, absent },
                Ok(_) => Tried::Empty { ttl: None, absent: false },
                Err(trouble) => Tried::Failed(trouble),
            };
            if let Some((data, ttl)) = search.weigh(tried)? {
                let targets = self.targets(&servers, &hosts, data, deadline).await;
                return Ok(Answers { targets, ttl: Some(ttl), absent: false });
            }
        }
        let (ttl, absent) = search.end()?;
        Ok(Answers { targets: Vec::new(), ttl, absent })
    }

    fn system(&self) -> (Arc<Conf>, Arc<Hosts>) {
        let (conf, hosts) = self.system.lock().at(Instant::now());
        (conf, if self.plan.hosts_file { hosts } else { Arc::default() })
    }

    /// The search list of the machine's own resolver.
    pub fn search(&self) -> Arc<Conf> {
        self.system().0
    }

    /// The servers as they are to be asked now.
    ///
    /// # Errors
    /// All that are known are this sidecar's own door, or what hickory says of its own set-up.
    pub fn upstream(&self) -> Result<Arc<Servers>, DnsError> {
        self.servers(&self.system().0)
    }

    /// Never the own DNS door, which would answer with virtual addresses or ask us again.
    fn servers(&self, conf: &Conf) -> Result<Arc<Servers>, DnsError> {
        let known = if self.plan.servers.is_empty() { &conf.servers } else { &self.plan.servers };
        let wanted: Vec<SocketAddr> = known.iter().copied().filter(|server| !self.plan.is_own(*server)).collect();
        if wanted.is_empty() && !known.is_empty() {
            let why = "resolv.conf knows no server but this sidecar's own DNS door: give others as `dns.servers`";
            return Err(DnsError::Failed(why.into()));
        }
        let mut held = self.servers.lock();
        if let Some((addrs, servers)) = held.as_ref()
            && *addrs == wanted
        {
            return Ok(servers.clone());
        }
        let servers = Arc::new(Servers::new(&wanted, self.plan.timeout).map_err(DnsError::Failed)?);
        *held = Some((wanted, servers.clone()));
        Ok(servers)
    }

    /// A and AAAA of an absolute name. Emptiness needs both: half an answer without an address is a failure.
    async fn both(&self, servers: &Servers, name: &Name, deadline: Instant) -> Tried<Found> {
        let (v4, v6) = tokio::join!(
            self.records(servers, name, RecordType::A, deadline),
            self.records(servers, name, RecordType::AAAA, deadline),
        );
        let has = |half: &Result<Reading, Trouble>| matches!(half, Ok(Reading::Records { .. }));
        if has(&v4) || has(&v6) {
            return Tried::Has(Found { v4: family(v4), v6: family(v6), absent: false });
        }
        match (v4, v6) {
            (Err(trouble), _) | (_, Err(trouble)) => Tried::Failed(trouble),
            (Ok(v4), Ok(v6)) => {
                let (v4, v6) = (emptiness(&v4), emptiness(&v6));
                Tried::Empty { ttl: sooner(v4.0, v6.0), absent: v4.1 || v6.1 }
            }
        }
    }

    /// The records of one type at an absolute name, its aliases followed over as many messages as it takes.
    async fn records(
        &self,
        servers: &Servers,
        name: &Name,
        kind: RecordType,
        deadline: Instant,
    ) -> Result<Reading, Trouble> {
        let Ok(Ok(_permit)) = timeout_at(deadline, self.permits.acquire()).await else {
            return Err(Trouble { spoke: false, why: "too many lookups are under way".into() });
        };
        let mut name = name.clone();
        let mut aliases: Option<Duration> = None;
        for _ in 0..MOST_ALIASES {
            let message = servers.ask(&name, kind, deadline).await?;
            match read(&message, &name, kind) {
                Reading::Records { data, ttl } => {
                    return Ok(Reading::Records { data, ttl: aliases.map_or(ttl, |aliases| aliases.min(ttl)) });
                }
                Reading::Empty { ttl, absent } => {
                    let ttl = ttl.map(|ttl| aliases.map_or(ttl, |aliases| aliases.min(ttl)));
                    return Ok(Reading::Empty { ttl, absent });
                }
                Reading::Alias { name: next, ttl } => {
                    aliases = sooner(aliases, Some(ttl));
                    name = next;
                }
                Reading::Useless(why) => return Err(Trouble { spoke: true, why: format!("{name} {kind}: {why}") }),
            }
        }
        Err(Trouble { spoke: true, why: format!("{name} {kind}: its aliases go in a circle") })
    }

    async fn targets(&self, servers: &Servers, hosts: &Hosts, data: Vec<RData>, deadline: Instant) -> Vec<Target> {
        let listed: Vec<(String, SRV)> = data
            .into_iter()
            .filter_map(|data| match data {
                // RFC 2782: a target of "." says that the service is not offered here.
                RData::SRV(srv) if !srv.target.is_root() => Some((srv.target.to_ascii().to_ascii_lowercase(), srv)),
                _ => None,
            })
            .collect();
        let mut names: Vec<String> = listed.iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names.dedup();
        if names.len() > MOST_TARGETS {
            tracing::warn!("an SRV answer lists {} hosts; the first {MOST_TARGETS} are used", names.len());
            names.truncate(MOST_TARGETS);
        }
        let found: BTreeMap<String, Found> = stream::iter(names)
            .map(|name| async move {
                let found = self.target(servers, hosts, &name, deadline).await;
                (name, found)
            })
            .buffer_unordered(TARGETS_AT_ONCE)
            .collect()
            .await;
        let target = |(name, srv): (String, SRV)| {
            let found = found.get(&name)?.clone();
            let (name, weight) = (Arc::from(name), u32::from(srv.weight).max(1));
            Some(Target { name, port: srv.port, priority: srv.priority, weight, found })
        };
        listed.into_iter().filter_map(target).collect()
    }

    async fn target(&self, servers: &Servers, hosts: &Hosts, host: &str, deadline: Instant) -> Found {
        if let Some(found) = known(host, hosts) {
            return found;
        }
        let failed = |why: String| {
            let half = || Family::Failed { why: why.clone() };
            Found { v4: half(), v6: half(), absent: false }
        };
        let name = match parse(host) {
            Ok(name) => name,
            Err(error) => return failed(error.to_string()),
        };
        match self.both(servers, &name, deadline).await {
            Tried::Has(mut found) => {
                prefer_reachable(&mut found);
                found
            }
            Tried::Empty { ttl, absent } => {
                let empty = || Family::Known { ips: Vec::new(), ttl };
                Found { v4: empty(), v6: empty(), absent }
            }
            Tried::Failed(trouble) => failed(trouble.why),
        }
    }
}

impl Search {
    fn new() -> Self {
        Self { ttl: None, absent: true, trouble: None }
    }

    /// Whether the search is over. Names after one whose servers answer with a failure are tried, as the C library
    /// does; silence ends it, since the next name would wait as long.
    fn weigh<T>(&mut self, tried: Tried<T>) -> Result<Option<T>, DnsError> {
        match tried {
            Tried::Has(found) => return Ok(Some(found)),
            Tried::Empty { ttl, absent } => {
                self.ttl = sooner(self.ttl, ttl);
                self.absent &= absent;
            }
            Tried::Failed(trouble) if trouble.spoke => self.trouble = Some(self.trouble.take().unwrap_or(trouble)),
            Tried::Failed(trouble) => return Err(DnsError::Failed(trouble.why)),
        }
        Ok(None)
    }

    /// Nothing was found: that is an answer only if no name on the way failed.
    fn end(self) -> Result<(Option<Duration>, bool), DnsError> {
        match self.trouble {
            Some(trouble) => Err(DnsError::Failed(trouble.why)),
            None => Ok((self.ttl, self.absent)),
        }
    }
}

/// What is known of a host without asking a server: literals, the hosts file, and the names of RFC 6761 and 7686.
fn known(host: &str, hosts: &Hosts) -> Option<Found> {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = literal.parse::<IpAddr>() {
        return Some(Found::known([ip], None));
    }
    if let Some(ips) = hosts.find(host) {
        let mut found = Found::known(ips.iter().copied(), Some(HOSTS_TTL));
        prefer_reachable(&mut found);
        return Some(found);
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    let last = host.rsplit('.').next().unwrap_or_default();
    if last.eq_ignore_ascii_case("localhost") {
        return Some(Found::known([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], None));
    }
    if last.eq_ignore_ascii_case("invalid") || last.eq_ignore_ascii_case("onion") {
        return Some(Found { absent: true, ..Found::known([], None) });
    }
    None
}

fn parse(host: &str) -> Result<Name, DnsError> {
    let bad =
        |why: String| DnsError::BadName { name: host.chars().take(260).flat_map(char::escape_debug).collect(), why };
    if host.trim_end_matches('.').is_empty() {
        return Err(bad("it is empty".into()));
    }
    if let Some(odd) = host.chars().find(|c| !(c.is_ascii_alphanumeric() || "-_.".contains(*c))) {
        return Err(bad(format!("{odd:?} cannot stand in one (write other alphabets in the xn-- form)")));
    }
    Name::from_str_relaxed(host.to_ascii_lowercase()).map_err(|error| bad(error.to_string()))
}

fn family(half: Result<Reading, Trouble>) -> Family {
    match half {
        Ok(Reading::Records { data, ttl }) => {
            let ips = data.iter().filter_map(|data| match data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                _ => None,
            });
            Family::Known { ips: ips.collect(), ttl: Some(ttl) }
        }
        Ok(other) => Family::Known { ips: Vec::new(), ttl: emptiness(&other).0 },
        Err(trouble) => Family::Failed { why: trouble.why },
    }
}

fn emptiness(reading: &Reading) -> (Option<Duration>, bool) {
    match reading {
        Reading::Empty { ttl, absent } => (*ttl, *absent),
        _ => (None, false),
    }
}

#[cfg(test)]
#[path = "resolver_tests.rs"]
mod tests;
