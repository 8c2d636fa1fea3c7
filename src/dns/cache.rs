//! What servers have answered, kept as messages for as long as they may be used; bounded by bytes.
//!
//! Sans-IO: every method takes `now`. An answer whose time is over is kept as the last good one, for when the servers fail
//! (RFC 8767); that they failed is kept too, for a moment, so that one question in a row waits for them (RFC 9520).
//! Where there is no room, what ends soonest goes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, RecordType};
use tokio::time::Instant;

use super::servers::Question;
use super::ttl::{Times, seconds};

/// Everything that is kept, with what keeping it takes, is no more than this.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// What an entry takes besides its message and its name.
const OVERHEAD: usize = 512;
/// How long the servers' failure to answer a question is remembered.
const FAILED_FOR: Duration = Duration::from_secs(5);

/// A message that was kept, and how old it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The message.
    pub message: Bytes,
    /// Its times to live are to be seen as so much shorter.
    pub age: Duration,
}

/// What is known of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hit {
    /// An answer that still holds.
    Fresh(Kept),
    /// One that does not hold any more, and whether the servers have failed since, with what they said.
    Stale(Kept, Option<Arc<str>>),
    /// None, and the servers have just failed.
    Failed(Arc<str>),
    /// Nothing.
    Unknown,
}

#[derive(Debug)]
struct Entry {
    /// The last good answer with its time, and until when it holds.
    good: Option<(Bytes, Instant, Instant)>,
    /// Until when the failure counts.
    failed: Option<(Arc<str>, Instant)>,
    ends: Instant,
    number: u64,
    bytes: usize,
}

/// The answers.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<Question, Entry>,
    /// Who goes first.
    order: BTreeMap<(Instant, u64), Question>,
    numbers: u64,
    bytes: usize,
}

impl Cache {
    /// What is known of a question.
    pub fn get(&self, question: &Question, now: Instant) -> Hit {
        let Some(entry) = self.entries.get(question).filter(|entry| entry.ends > now) else { return Hit::Unknown };
        let failed = entry.failed.as_ref().filter(|(_, until)| *until > now).map(|(why, _)| why.clone());
        let kept =
            |message: &Bytes, since| Kept { message: message.clone(), age: now.saturating_duration_since(since) };
        match (&entry.good, failed) {
            (Some((message, since, holds)), _) if *holds > now => Hit::Fresh(kept(message, *since)),
            (Some((message, since, _)), failed) => Hit::Stale(kept(message, *since), failed),
            (None, Some(why)) => Hit::Failed(why),
            (None, None) => Hit::Unknown,
        }
    }

    /// Keeps an answer that holds for `ttl`, and for `stale_for` after that as the last good one.
    pub fn put(&mut self, question: &Question, message: Bytes, ttl: Duration, stale_for: Duration, now: Instant) {
        self.remove(question);
        let holds = now + ttl;
        self.insert(question, Some((message, now, holds)), None, holds + stale_for, now);
    }

    /// Notes that the servers failed. The last good answer stays.
    pub fn fail(&mut self, question: &Question, why: Arc<str>, now: Instant) {
        let before = self.remove(question).filter(|entry| entry.ends > now);
        let until = now + FAILED_FOR;
        let (good, ends) = before.map_or((None, until), |entry| {
            let ends = if entry.good.is_some() { entry.ends } else { until };
            (entry.good, ends)
        });
        self.insert(question, good, Some((why, until)), ends, now);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let numbers = self.numbers;
        *self = Self { numbers, ..Self::default() };
    }

    /// How many questions are known, and the bytes that takes.
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    fn insert(
        &mut self,
        question: &Question,
        good: Option<(Bytes, Instant, Instant)>,
        failed: Option<(Arc<str>, Instant)>,
        ends: Instant,
        now: Instant,
    ) {
        let texts = good.as_ref().map_or(0, |good| good.0.len()) + failed.as_ref().map_or(0, |failed| failed.0.len());
        // The question stands in both maps.
        let bytes = texts + OVERHEAD + 2 * question.name.len();
        if bytes > MOST_BYTES {
            return;
        }
        while let Some(((first, _), other)) = self.order.first_key_value()
            && (*first <= now || self.bytes + bytes > MOST_BYTES)
        {
            let other = other.clone();
            self.remove(&other);
        }
        self.numbers += 1;
        let number = self.numbers;
        self.bytes += bytes;
        self.order.insert((ends, number), question.clone());
        self.entries.insert(question.clone(), Entry { good, failed, ends, number, bytes });
    }

    fn remove(&mut self, question: &Question) -> Option<Entry> {
        let entry = self.entries.remove(question)?;
        self.order.remove(&(entry.ends, entry.number));
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

/// How long an answer may be used: the shortest time to live in its answer section; where that does not have what was
/// asked for, also that of the SOA (RFC 2308 §5). `None` for one that is not to be kept: a failure, or emptiness without an SOA.
pub fn lifetime(message: &Message, kind: RecordType, times: &Times) -> Option<Duration> {
    let least = message.answers.iter().map(|record| seconds(record.ttl)).min();
    let has = |kind: RecordType| message.answers.iter().any(|record| record.record_type() == kind);
    let answered = if kind == RecordType::ANY { least.is_some() } else { has(kind) };
    let ttl = match message.metadata.response_code {
        ResponseCode::NoError if answered => least?,
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let negative = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(seconds(record.ttl).min(seconds(soa.minimum))),
                _ => None,
            })?;
            least.map_or(negative, |least| least.min(negative))
        }
        _ => return None,
    };
    Some(ttl.clamp(times.floor, times.ceiling))
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
