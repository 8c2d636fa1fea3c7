//! Decides what a peer's lookup changes: which endpoints are in force, when to ask again, and how it stands.
//!
//! Sans-IO: it takes an answer or a failure at `now` and says what follows. Each host and address family is kept on its
//! own, so a server that fails for AAAA only takes nothing away.
//!
//! ```text
//! answered              -> Ready      (all of it)
//! answered in part      -> Stale      while what was known of the failed part is kept, Ready where nothing was known
//! answered: there is none -> Empty    the endpoints go at once
//! failed                -> Stale      the last good ones stay for `stale_for` from the first failure on
//!                       -> Failed     after that, or if there never was an answer
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::answer::{Answers, DnsError, Family, Found};
use super::ttl::{Times, WITHOUT_SOA, backoff, sooner};
use crate::ids::Addr;
use crate::plan::peer::EndpointSpec;

/// How a peer's discovery stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// The endpoints are what the source says now.
    Ready,
    /// The source answered that there are none.
    Empty {
        /// In which way.
        why: String,
    },
    /// The source fails; the last good endpoints are in force.
    Stale {
        /// What happened last.
        why: String,
        /// Since when it fails.
        since: Instant,
    },
    /// The source fails and no endpoint is left.
    Failed {
        /// What happened last.
        why: String,
    },
}

/// What follows from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The endpoints in force from now on.
    pub endpoints: Vec<EndpointSpec>,
    /// When to ask again.
    pub next: Instant,
    /// How it stands.
    pub standing: Standing,
    /// Whether this answer counts as a failure of the source.
    pub failed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Half {
    V4,
    V6,
}

#[derive(Debug, Default)]
struct Kept {
    ips: Vec<IpAddr>,
    failing: Option<Instant>,
}

#[derive(Debug, PartialEq, Eq)]
struct Host {
    name: Arc<str>,
    port: u16,
    priority: u16,
    weight: u32,
}

/// The memory of one peer's name.
#[derive(Debug, Default)]
pub struct Keeper {
    hosts: Vec<Host>,
    kept: BTreeMap<(Arc<str>, Half), Kept>,
    failing: Option<Instant>,
    tries: u32,
}

/// What the parts of one answer came to, gathered while they are taken in.
#[derive(Default)]
struct Gathered {
    ttl: Option<Duration>,
    negative: Option<Duration>,
    absent: bool,
    /// The first failure, and the earliest moment since which a part with kept addresses fails.
    why: Option<String>,
    stale: Option<Instant>,
    /// Since when the lookups before this one failed as a whole.
    failing: Option<Instant>,
}

impl Keeper {
    /// Takes in what a lookup came to. `roll` is a random number from 0 to 1 and spreads the next lookup.
    pub fn take(&mut self, seen: Result<Answers, DnsError>, times: &Times, now: Instant, roll: f64) -> Step {
        let step = match seen {
            Ok(answers) => self.answered(answers, times, now, roll),
            Err(error) => self.failed(error.to_string(), times, now, roll),
        };
        if !step.failed {
            self.tries = 0;
        }
        step
    }

    fn answered(&mut self, answers: Answers, times: &Times, now: Instant, roll: f64) -> Step {
        let silent = |found: &Found| matches!((&found.v4, &found.v6), (Family::Failed { .. }, Family::Failed { .. }));
        if !answers.targets.is_empty()
            && answers.targets.iter().all(|target| silent(&target.found) && !self.knows(&target.name))
        {
            let why = answers.targets.into_iter().find_map(|target| match target.found.v4 {
                Family::Failed { why } => Some(why),
                Family::Known { .. } => None,
            });
            return self.failed(why.unwrap_or_default(), times, now, roll);
        }
        let mut gathered =
            Gathered { ttl: answers.ttl, absent: answers.absent, failing: self.failing, ..Gathered::default() };
        let mut before = std::mem::take(&mut self.kept);
        self.hosts.clear();
        for target in answers.targets {
            gathered.absent |= target.found.absent;
            for (half, family) in [(Half::V4, target.found.v4), (Half::V6, target.found.v6)] {
                let key = (target.name.clone(), half);
                // One host may stand at several ports: its addresses are taken in once.
                if let Entry::Vacant(place) = self.kept.entry(key) {
                    let kept = before.remove(place.key()).unwrap_or_default();
                    place.insert(gathered.take(kept, family, times, now));
                }
            }
            let weight = target.weight.max(1);
            self.hosts.push(Host { name: target.name, port: target.port, priority: target.priority, weight });
        }
        self.failing = gathered.stale;
        self.settle(gathered, times, now, roll)
    }

    fn knows(&self, name: &Arc<str>) -> bool {
        [Half::V4, Half::V6].iter().any(|half| self.kept.contains_key(&(name.clone(), *half)))
    }

    fn settle(&mut self, gathered: Gathered, times: &Times, now: Instant, roll: f64) -> Step {
        let endpoints = self.endpoints();
        let failed = gathered.why.is_some();
        let ttl = if endpoints.is_empty() {
            Some(sooner(gathered.ttl, gathered.negative).unwrap_or(WITHOUT_SOA))
        } else {
            sooner(gathered.ttl, gathered.negative)
        };
        let mut wait = times.refresh_in(ttl, roll);
        let standing = match (gathered.why, gathered.stale) {
            (Some(why), Some(since)) => {
                wait = wait.min(self.retry_in(roll)).min(until(since, times.stale_for, now));
                Standing::Stale { why, since }
            }
            (Some(why), None) if endpoints.is_empty() => {
                wait = wait.min(self.retry_in(roll));
                Standing::Failed { why }
            }
            (None, _) if endpoints.is_empty() => Standing::Empty { why: self.emptiness(gathered.absent).to_owned() },
            _ => Standing::Ready,
        };
        Step { endpoints, next: now + wait, standing, failed }
    }

    fn emptiness(&self, absent: bool) -> &'static str {
        match (absent, self.hosts.is_empty()) {
            (true, _) => "the name does not exist (NXDOMAIN)",
            (false, true) => "the name has no SRV record",
            (false, false) => "the name has no A or AAAA record",
        }
    }

    fn failed(&mut self, why: String, times: &Times, now: Instant, roll: f64) -> Step {
        let since = *self.failing.get_or_insert(now);
        if now.saturating_duration_since(since) >= times.stale_for {
            self.hosts.clear();
            self.kept.clear();
        }
        let endpoints = self.endpoints();
        let retry = self.retry_in(roll);
        let (standing, wait) = if endpoints.is_empty() {
            (Standing::Failed { why }, retry)
        } else {
            (Standing::Stale { why, since }, retry.min(until(since, times.stale_for, now)))
        };
        Step { endpoints, next: now + wait, standing, failed: true }
    }

    fn retry_in(&mut self, roll: f64) -> Duration {
        self.tries = self.tries.saturating_add(1);
        backoff(self.tries, roll)
    }

    /// Every address of every host at its port; an address that several hosts share stands once, with the best of
    /// their priorities and the sum of the weights at it.
    fn endpoints(&self) -> Vec<EndpointSpec> {
        let mut at: BTreeMap<SocketAddr, (u16, u32)> = BTreeMap::new();
        for host in &self.hosts {
            for half in [Half::V4, Half::V6] {
                let Some(kept) = self.kept.get(&(host.name.clone(), half)) else { continue };
                for ip in &kept.ips {
                    let share = at.entry(SocketAddr::new(*ip, host.port)).or_insert((host.priority, 0));
                    if host.priority < share.0 {
                        *share = (host.priority, host.weight);
                    } else if host.priority == share.0 {
                        share.1 = share.1.saturating_add(host.weight);
                    }
                }
            }
        }
        let spec =
            |(addr, (priority, weight))| EndpointSpec { weight, priority, ..EndpointSpec::bare(Addr::Tcp(addr)) };
        at.into_iter().map(spec).collect()
    }
}

impl Gathered {
    fn take(&mut self, mut kept: Kept, family: Family, times: &Times, now: Instant) -> Kept {
        match family {
            Family::Known { mut ips, ttl } => {
                if ips.is_empty() {
                    self.negative = sooner(self.negative, ttl);
                } else {
                    self.ttl = sooner(self.ttl, ttl);
                }
                ips.sort_unstable();
                ips.dedup();
                Kept { ips, failing: None }
            }
            Family::Failed { why } => {
                let since = *kept.failing.get_or_insert(self.failing.unwrap_or(now));
                if now.saturating_duration_since(since) >= times.stale_for {
                    kept.ips.clear();
                }
                if !kept.ips.is_empty() {
                    self.stale = Some(self.stale.map_or(since, |stale| stale.min(since)));
                }
                self.why.get_or_insert(why);
                kept
            }
        }
    }
}

/// The time from `now` until `since + keep`; a moment at least, so that a lookup cannot follow itself at once.
fn until(since: Instant, keep: Duration, now: Instant) -> Duration {
    keep.saturating_sub(now.saturating_duration_since(since)).max(Duration::from_millis(10))
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
