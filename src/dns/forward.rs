//! Questions that are not ours: from the cache, or from the servers, each asked once however many wait for it.
//!
//! A question under way outlives whoever asked: its answer is for all who come later. One that would come back to us (a
//! capture of port 53 that does not spare this process) finds itself under way and waits for itself until the clock ends
//! it, so a loop costs one question and no more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::cache::{Cache, Hit, Kept, lifetime};
use super::resolver::Resolver;
use super::servers::{Question, Trouble};
use super::ttl::Times;
use super::wire::{Note, Said};
use crate::life::tasks::Tasks;
use crate::plan::virtual_ips::is_virtual;
use crate::telemetry::metrics::{DnsAnswer, DnsMetrics, Metrics};

/// Questions under way at once.
const AT_ONCE: usize = 256;
/// While there is an older answer, the servers are waited for no longer than this (RFC 8767 §5).
const PATIENCE: Duration = Duration::from_millis(1800);
/// From one line about the servers to the next.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// The time to live of an older answer (RFC 8767 §4).
const STALE_TTL: u32 = 30;

/// Asks the servers for the DNS door.
pub struct Forwarder {
    resolver: ArcSwap<Resolver>,
    cache: Mutex<Cache>,
    under_way: Mutex<HashMap<Question, watch::Receiver<Option<Outcome>>>>,
    permits: Arc<Semaphore>,
    tasks: Tasks,
    metrics: Arc<Metrics>,
    health: Mutex<Health>,
}

/// How the servers do, and what the log was told of it.
#[derive(Default)]
struct Health {
    /// What they fail with, while nobody answers.
    trouble: Option<Arc<str>>,
    told: Option<(Instant, bool)>,
}

/// What became of a question.
#[derive(Debug, Clone)]
enum Outcome {
    Answered(Bytes),
    Failed(Arc<str>),
}

impl Forwarder {
    /// Asks through `resolver`'s servers; questions under way are members of `tasks`.
    pub fn new(resolver: Arc<Resolver>, tasks: Tasks, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            resolver: ArcSwap::new(resolver),
            cache: Mutex::default(),
            under_way: Mutex::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
            tasks,
            metrics,
            health: Mutex::default(),
        })
    }

    /// Asks through another resolver from now on. What the former one's servers said is forgotten.
    pub fn set_resolver(&self, resolver: Arc<Resolver>) {
        self.resolver.store(resolver);
        self.cache.lock().clear();
    }

    /// The resolver in use.
    pub fn resolver(&self) -> Arc<Resolver> {
        self.resolver.load_full()
    }

    /// How many answers are kept, and the bytes that takes.
    pub fn size(&self) -> (usize, usize) {
        self.cache.lock().size()
    }

    /// What the servers failed with, while they do.
    pub fn trouble(&self) -> Option<Arc<str>> {
        self.health.lock().trouble.clone()
    }

    /// The answer where nobody need be waited for.
    pub fn known(&self, question: &Question) -> Option<Said> {
        let hit = self.cache.lock().get(question, Instant::now());
        match hit {
            Hit::Fresh(kept) => self.count(DnsAnswer::Cached, fresh(kept)),
            Hit::Stale(kept, Some(why)) => self.count(DnsAnswer::Stale, stale(kept, &why)),
            Hit::Failed(why) => self.count(DnsAnswer::Failed, Some(Said::failed(Note::unreachable(&why)))),
            Hit::Stale(_, None) | Hit::Unknown => None,
        }
    }

    /// The answer, by asking if need be. Ends within the time for a lookup.
    pub async fn answer(self: &Arc<Self>, question: &Question) -> Said {
        if let Some(said) = self.known(question) {
            return said;
        }
        let outcome = self.ask(question);
        let old = match self.cache.lock().get(question, Instant::now()) {
            Hit::Stale(kept, _) => Some(kept),
            _ => None,
        };
        let Some(outcome) = outcome else { return self.too_many(old) };
        let patience = if old.is_some() { PATIENCE } else { self.resolver.load().plan().timeout * 2 };
        let outcome = match timeout(patience, ended(outcome)).await {
            Ok(outcome) => outcome,
            Err(_) => Outcome::Failed("the servers take their time".into()),
        };
        let answered = |message| Kept { message, age: Duration::ZERO };
        let said = match (outcome, old) {
            (Outcome::Answered(message), _) => self.count(DnsAnswer::Forwarded, fresh(answered(message))),
            (Outcome::Failed(why), Some(old)) => self.count(DnsAnswer::Stale, stale(old, &why)),
            (Outcome::Failed(why), None) => self.count(DnsAnswer::Failed, Some(Said::failed(Note::unreachable(&why)))),
        };
        said.unwrap_or_else(|| Said::failed(Note::not_ready("the answer cannot be read")))
    }

    /// What is said where no more questions may be under way: the last good answer is better than none.
    fn too_many(&self, old: Option<Kept>) -> Said {
        let why = "too many questions are under way";
        let said = old.and_then(|old| self.count(DnsAnswer::Stale, stale(old, why)));
        said.unwrap_or_else(|| {
            self.dns().answered(DnsAnswer::Overloaded);
            Said::failed(Note::not_ready(why))
        })
    }

    fn dns(&self) -> &DnsMetrics {
        &self.metrics.dns
    }

    fn count(&self, how: DnsAnswer, said: Option<Said>) -> Option<Said> {
        if said.is_some() {
            self.dns().answered(how);
        }
        said
    }

    /// Whoever asks now for what another one has asked for waits with it. `None` where too many questions are under way.
    fn ask(self: &Arc<Self>, question: &Question) -> Option<watch::Receiver<Option<Outcome>>> {
        let mut under_way = self.under_way.lock();
        if let Some(outcome) = under_way.get(question) {
            return Some(outcome.clone());
        }
        let permit = self.permits.clone().try_acquire_owned().ok()?;
        let (tell, outcome) = watch::channel(None);
        under_way.insert(question.clone(), outcome.clone());
        let asking = UnderWay { forwarder: self.clone(), question: question.clone(), _permit: permit };
        self.tasks.spawn(async move {
            let outcome = asking.forwarder.put(&asking.question).await;
            drop(asking);
            // Whoever waited may have left.
            let _ = tell.send(Some(outcome));
        });
        Some(outcome)
    }

    async fn put(&self, question: &Question) -> Outcome {
        let resolver = self.resolver.load_full();
        let unknown = |why: String| Trouble { spoke: false, why };
        let answer = match resolver.upstream() {
            Ok(servers) => servers.put(question, Instant::now() + resolver.plan().timeout).await,
            Err(error) => Err(unknown(error.to_string())),
        };
        let answer = answer.and_then(|mut message| {
            tidy(&mut message, question);
            let bytes = message.to_vec().map_err(|error| Trouble { spoke: true, why: error.to_string() })?;
            Ok((message, Bytes::from(bytes)))
        });
        let now = Instant::now();
        // Another resolver's answer is not kept for the one that is in force now.
        let current = Arc::ptr_eq(&resolver, &self.resolver.load());
        let outcome = match answer {
            Ok((message, bytes)) => {
                let times = Times::from(resolver.plan());
                if let Some(ttl) = lifetime(&message, question.kind, &times).filter(|_| current) {
                    self.cache.lock().put(question, bytes.clone(), ttl, times.stale_for, now);
                }
                self.told(None);
                Outcome::Answered(bytes)
            }
            Err(trouble) => {
                let why: Arc<str> = trouble.why.into();
                if current {
                    self.cache.lock().fail(question, why.clone(), now);
                }
                // Servers that say that they fail are there: it is the name's own trouble.
                self.told((!trouble.spoke).then_some(&why));
                Outcome::Failed(why)
            }
        };
        self.dns().cache_bytes.set(i64::try_from(self.size().1).unwrap_or(i64::MAX));
        outcome
    }

    /// One line when failing begins and one when it ends, and none so soon after another: one name alone may have
    /// servers that nobody reaches.
    fn told(&self, why: Option<&Arc<str>>) {
        let (mut health, now) = (self.health.lock(), Instant::now());
        health.trouble = why.cloned();
        let (last, failing) = health.told.map_or((None, false), |(at, failing)| (Some(at), failing));
        if failing == why.is_some() || last.is_some_and(|last| now.saturating_duration_since(last) < TOLD_EVERY) {
            return;
        }
        health.told = Some((now, why.is_some()));
        match why {
            Some(why) => tracing::warn!("the DNS door's servers fail: {why}"),
            None => tracing::info!("the DNS door's servers answer again"),
        }
    }
}

/// A question while it is under way.
struct UnderWay {
    forwarder: Arc<Forwarder>,
    question: Question,
    _permit: OwnedSemaphorePermit,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.forwarder.under_way.lock().remove(&self.question);
    }
}

async fn ended(mut outcome: watch::Receiver<Option<Outcome>>) -> Outcome {
    match outcome.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone().unwrap_or_else(|| Outcome::Failed("there is no outcome".into())),
        Err(_) => Outcome::Failed("the question was given up".into()),
    }
}

/// Takes away what only counted between the server and us, and what nobody else may say: an address in the virtual
/// networks would lead to a peer that was not asked for.
fn tidy(message: &mut Message, question: &Question) {
    let is_foreign = |record: &Record| match &record.data {
        RData::A(a) => !is_virtual(a.0.into()),
        RData::AAAA(aaaa) => !is_virtual(aaaa.0.into()),
        _ => true,
    };
    message.edns = None;
    message.signature = None;
    message.answers.retain(is_foreign);
    message.additionals.retain(|record| is_foreign(record) && record.record_type() != RecordType::OPT);
    // Mixed case was our guard.
    for record in message.answers.iter_mut().filter(|record| record.name == question.name) {
        record.name = question.name.clone();
    }
}

fn fresh(kept: Kept) -> Option<Said> {
    let age = u32::try_from(kept.age.as_secs()).unwrap_or(u32::MAX);
    said(&kept.message, |ttl| ttl.saturating_sub(age))
}

fn stale(kept: Kept, why: &str) -> Option<Said> {
    let said = said(&kept.message, |_| STALE_TTL)?;
    let note = Note::stale(why, said.code == ResponseCode::NXDomain);
    Some(Said { note: Some(note), ..said })
}

fn said(message: &Bytes, ttl: impl Fn(u32) -> u32) -> Option<Said> {
    let mut message = Message::from_vec(message).ok()?;
    for record in message.answers.iter_mut().chain(&mut message.authorities).chain(&mut message.additionals) {
        record.ttl = ttl(record.ttl);
    }
    Some(Said {
        code: message.metadata.response_code,
        answers: message.answers,
        authorities: message.authorities,
        additionals: message.additionals,
        authoritative: false,
        authentic: message.metadata.authentic_data,
        note: None,
    })
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
