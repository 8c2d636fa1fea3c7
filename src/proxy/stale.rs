//! Good answers that are kept for when there is none (RFC 5861 §4); not a cache: while the peer answers, it is asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::http::head::CLIENT_CERT;
use crate::plan::fallback::StaleRule;
use crate::plan::rules::SubsetRule;
use crate::reason::Reason;
use crate::upstream::choice::Ask;
use crate::upstream::peer::Peer;

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What an answer costs beside its own bytes: the map's and the tree's nodes and the field map.
const OVERHEAD: usize = 512;

/// The stores of all peers that have one. They go with their peer: what has its name after a reload, but other addresses,
/// is another service.
#[derive(Default)]
pub struct Stales(Mutex<HashMap<usize, Owned>>);

/// A store and whose it is.
type Owned = (Weak<Peer>, Arc<Store>);

impl Stales {
    /// The store of a peer.
    pub fn of(&self, peer: &Arc<Peer>) -> Arc<Store> {
        // Its place in memory is nobody else's as long as a weak reference is left.
        let made = || (Arc::downgrade(peer), Arc::default());
        self.0.lock().entry(Arc::as_ptr(peer).addr()).or_insert_with(made).1.clone()
    }

    /// Forgets what other peers than these have answered.
    pub fn keep(&self, peers: &[Arc<Peer>]) {
        self.0.lock().retain(|_, (of, _)| peers.iter().any(|peer| Weak::as_ptr(of) == Arc::as_ptr(peer)));
    }
}

/// What is kept for one peer.
#[derive(Default)]
pub struct Store {
    shelf: Mutex<Shelf>,
    /// Bytes of answers that are still on their way.
    filling: AtomicUsize,
}

#[derive(Default)]
struct Shelf {
    entries: HashMap<Arc<str>, Entry>,
    /// The entries by when they were last used, the oldest first.
    order: BTreeMap<u64, Arc<str>>,
    uses: u64,
    bytes: usize,
}

struct Entry {
    headers: HeaderMap,
    body: Bytes,
    came: Instant,
    terms: Terms,
    /// What the request said in the fields that the answer varies by.
    vary: Vec<(HeaderName, Vec<HeaderValue>)>,
    used: u64,
    cost: usize,
}

/// What an answer says about being kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Terms {
    /// How old it was when it came.
    age: Duration,
    /// How old it may be to be fresh.
    fresh: Duration,
    /// How long after it came it may be given.
    time: Duration,
}

/// Whether the answer to a request may be given to others: a GET without the caller's own secrets.
pub fn may_be_kept(head: &Parts) -> bool {
    head.method == Method::GET
        && !head.headers.contains_key(header::AUTHORIZATION)
        && !head.headers.contains_key(header::COOKIE)
        && !directives(&head.headers).any(|(name, _)| name.eq_ignore_ascii_case("no-store"))
}

/// The directives of `Cache-Control`.
fn directives(headers: &HeaderMap) -> impl Iterator<Item = (&str, Option<u64>)> {
    let fields = headers.get_all(header::CACHE_CONTROL).iter().map(|field| field.to_str().unwrap_or("no-store"));
    fields.flat_map(|field| field.split(',')).map(|one| match one.trim().split_once('=') {
        Some((name, value)) => (name.trim(), value.trim().trim_matches('"').parse().ok()),
        None => (one.trim(), None),
    })
}

/// What an answer says about being kept; `None` if it may not be, or not be given once it is old (RFC 9111 §4.2.4).
fn terms(status: StatusCode, headers: &HeaderMap, rule: StaleRule) -> Option<Terms> {
    const NEVER: [&str; 6] = ["no-store", "private", "no-cache", "must-revalidate", "proxy-revalidate", "s-maxage"];
    let never = |name: &str| NEVER.iter().any(|word| word.eq_ignore_ascii_case(name));
    if status != StatusCode::OK
        || headers.contains_key(header::SET_COOKIE)
        || headers.contains_key(header::TRAILER)
        || directives(headers).any(|(name, _)| never(name))
    {
        return None;
    }
    let seconds = |wanted: &str| {
        directives(headers).find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, n)| n.unwrap_or(0))
    };
    let age = headers.get(header::AGE).and_then(|age| age.to_str().ok()?.trim().parse().ok()).unwrap_or(0);
    let (age, fresh) = (Duration::from_secs(age), Duration::from_secs(seconds("max-age").unwrap_or(0)));
    // The peer's own word about how long its answer may stand in for an error.
    let told =
        seconds("stale-if-error").map(|more| fresh.saturating_add(Duration::from_secs(more)).saturating_sub(age));
    Some(Terms { age, fresh, time: told.map_or(rule.time, |told| told.min(rule.time)) })
}

/// What a request says in the fields that an answer varies by; `None` if by anything (RFC 9110 §12.5.5). Who a caller has
/// proven to be is among them: what the app tells one it may not tell another.
fn varies(asked: &HeaderMap, answer: &HeaderMap) -> Option<Vec<(HeaderName, Vec<HeaderValue>)>> {
    let values = |name: &HeaderName| asked.get_all(name).iter().cloned().collect();
    let mut said = vec![(CLIENT_CERT, values(&CLIENT_CERT))];
    for field in answer.get_all(header::VARY) {
        for name in field.to_str().ok()?.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let name = HeaderName::from_bytes(name.as_bytes()).ok().filter(|_| name != "*")?;
            let values = values(&name);
            said.push((name, values));
        }
    }
    Some(said)
}

/// The part of a peer that a request was for: of a route's `subset`, or the one endpoint that the caller dialled. What one
/// part answers stands in for no other; empty for the peer as a whole.
#[derive(Debug, Default)]
pub struct Part(Box<str>);

impl Part {
    /// The part that a request asks for.
    pub fn of(ask: Ask<'_>) -> Self {
        match (ask.only, ask.subset) {
            (Some(only), _) => Self(only.addr().to_string().into()),
            (None, Some(subset)) => Self::of_subset(subset),
            (None, None) => Self::default(),
        }
    }

    /// The endpoints of a subset.
    pub fn of_subset(subset: &Arc<SubsetRule>) -> Self {
        // As a debugger shows them, texts are in quotes and cannot run into each other.
        Self(format!("{subset:?}").into())
    }
}

fn key(head: &Parts, Part(part): &Part) -> Arc<str> {
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    // Neither a host nor a target has a blank.
    format!("{} {target} {part}", host.to_ascii_lowercase()).into()
}

impl Store {
    /// An earlier answer to this request; `why` is what the peer answered instead, or why it gave none.
    pub fn find(
        &self,
        head: &Parts,
        part: &Part,
        why: Result<StatusCode, Reason>,
        now: Instant,
    ) -> Option<Response<Bytes>> {
        let key = key(head, part);
        let mut shelf = self.shelf.lock();
        let entry = shelf.entries.get(&key)?;
        let since = now.saturating_duration_since(entry.came);
        if since > entry.terms.time {
            shelf.remove(&key);
            return None;
        }
        let same = |(name, values): &(HeaderName, Vec<HeaderValue>)| head.headers.get_all(name).iter().eq(values);
        if !entry.vary.iter().all(same) {
            return None;
        }
        let mut answer = Response::new(entry.body.clone());
        *answer.headers_mut() = entry.headers.clone();
        let age = entry.terms.age.saturating_add(since);
        let ttl = i128::from(entry.terms.fresh.as_secs()) - i128::from(age.as_secs());
        shelf.used(&key);
        drop(shelf);
        let status = match why {
            Err(reason) => format!("outrigger; hit; ttl={ttl}; detail={}", reason.word()),
            Ok(status) => format!("outrigger; fwd=stale; fwd-status={}", status.as_u16()),
        };
        answer.headers_mut().insert(header::AGE, HeaderValue::from(age.as_secs()));
        answer.headers_mut().append(CACHE_STATUS, HeaderValue::from_str(&status).ok()?);
        Some(answer)
    }

    /// An answer came that is not kept: one that says what is there now leaves nothing to give in its place.
    pub fn outdated(&self, head: &Parts, part: &Part, status: StatusCode) {
        let partial = matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
        let told =
            status.is_success() || status.is_redirection() || matches!(status.as_u16(), 401 | 403 | 404 | 410 | 451);
        if told && !partial && may_be_kept(head) {
            self.forget(head, part);
        }
    }

    /// Forgets what was answered to GET for this target.
    pub fn forget(&self, head: &Parts, part: &Part) {
        self.shelf.lock().remove(&key(head, part));
    }

    /// What takes a copy of an answer's body; `None` if it may not be kept.
    pub fn filling(
        self: Arc<Self>,
        head: &Parts,
        part: &Part,
        (status, headers): (StatusCode, &HeaderMap),
        rule: StaleRule,
    ) -> Option<Filling> {
        if !may_be_kept(head) {
            return None;
        }
        let (terms, vary) = terms(status, headers, rule).zip(varies(&head.headers, headers))?;
        Some(Filling {
            store: self,
            key: key(head, part),
            headers: headers.clone(),
            terms,
            vary,
            rule,
            body: Vec::new(),
            gone: false,
        })
    }
}

impl Shelf {
    fn remove(&mut self, key: &str) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.cost;
        }
    }

    fn used(&mut self, key: &Arc<str>) {
        self.uses += 1;
        if let Some(entry) = self.entries.get_mut(key) {
            self.order.remove(&entry.used);
            entry.used = self.uses;
            self.order.insert(self.uses, key.clone());
        }
    }

    /// Puts an answer in, and those that were not used for the longest time out.
    fn put(&mut self, key: Arc<str>, entry: Entry, most: usize) {
        self.remove(&key);
        self.bytes += entry.cost;
        self.entries.insert(key.clone(), entry);
        self.used(&key);
        while self.bytes > most
            && let Some(oldest) = self.order.first_key_value().map(|(_, key)| key.clone())
        {
            self.remove(&oldest);
        }
    }
}

/// An answer that is copied while it passes.
pub struct Filling {
    store: Arc<Store>,
    key: Arc<str>,
    headers: HeaderMap,
    terms: Terms,
    vary: Vec<(HeaderName, Vec<HeaderValue>)>,
    rule: StaleRule,
    body: Vec<u8>,
    /// It became too large.
    gone: bool,
}

impl Filling {
    /// Copies a piece: a piece itself may be a small part of a large buffer that it would keep alive.
    pub fn data(&mut self, data: &Bytes) {
        if self.gone {
            return;
        }
        let under_way = self.store.filling.fetch_add(data.len(), Ordering::Relaxed) + data.len();
        if self.body.len() + data.len() > self.rule.size / 8 || under_way > self.rule.size {
            self.store.filling.fetch_sub(data.len() + self.body.len(), Ordering::Relaxed);
            (self.gone, self.body) = (true, Vec::new());
        } else {
            self.body.extend_from_slice(data);
        }
    }

    /// The answer came to its end at `now`.
    pub fn keep(mut self: Box<Self>, now: Instant) {
        if self.gone {
            return;
        }
        let mut body = std::mem::take(&mut self.body);
        self.store.filling.fetch_sub(body.len(), Ordering::Relaxed);
        body.shrink_to_fit();
        let fields: usize = self.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let cost = body.len() + 2 * self.key.len() + fields + OVERHEAD;
        let entry = Entry {
            headers: std::mem::take(&mut self.headers),
            body: body.into(),
            came: now,
            terms: self.terms,
            vary: std::mem::take(&mut self.vary),
            used: 0,
            cost,
        };
        self.store.shelf.lock().put(self.key.clone(), entry, self.rule.size);
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        self.store.filling.fetch_sub(self.body.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use http::Request;

    use super::*;

    static WHOLE: LazyLock<Part> = LazyLock::new(Part::default);

    const RULE: StaleRule = StaleRule { time: Duration::from_secs(3600), size: 16 * 1024 };

    fn head(method: &str, target: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target).header("host", "A");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn fields(all: &[(&'static str, &str)]) -> HeaderMap {
        all.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn put(store: &Arc<Store>, head: &Parts, answer: &[(&'static str, &str)], body: &[u8], now: Instant) -> bool {
        let Some(mut filling) = store.clone().filling(head, &WHOLE, (StatusCode::OK, &fields(answer)), RULE) else {
            return false;
        };
        filling.data(&Bytes::copy_from_slice(body));
        Box::new(filling).keep(now);
        true
    }

    fn get(store: &Store, head: &Parts, now: Instant) -> Option<(Bytes, String, String)> {
        let found = store.find(head, &WHOLE, Err(Reason::ConnectRefused), now)?;
        let text = |name: &str| found.headers()[name].to_str().unwrap().to_owned();
        Some((found.body().clone(), text("age"), text("cache-status")))
    }

    #[test]
    fn what_may_not_be_shared_is_not_kept() {
        let now = Instant::now();
        for (asked, answer, kept) in [
            (head("GET", "/", &[]), &[][..], true),
            (head("GET", "/", &[("cache-control", "no-cache")]), &[("cache-control", "max-age=5, public")], true),
            (head("HEAD", "/", &[]), &[], false),
            (head("POST", "/", &[]), &[], false),
            (head("GET", "/", &[("authorization", "x")]), &[("cache-control", "public")], false),
            (head("GET", "/", &[("cookie", "a=b")]), &[], false),
            (head("GET", "/", &[("cache-control", "no-store")]), &[], false),
            (head("GET", "/", &[]), &[("set-cookie", "a=b")], false),
            (head("GET", "/", &[]), &[("cache-control", "max-age=5, Private=\"x\"")], false),
            (head("GET", "/", &[]), &[("cache-control", "no-store")], false),
            (head("GET", "/", &[]), &[("cache-control", "max-age=5,must-revalidate")], false),
            (head("GET", "/", &[]), &[("cache-control", "s-maxage=5")], false),
            (head("GET", "/", &[]), &[("vary", "*")], false),
            (head("GET", "/", &[]), &[("vary", "accept, *")], false),
        ] {
            let store = Arc::new(Store::default());
            assert_eq!(put(&store, &asked, answer, b"x", now), kept, "{asked:?} {answer:?}");
        }
        let store = Arc::new(Store::default());
        let get = head("GET", "/", &[]);
        assert!(store.filling(&get, &WHOLE, (StatusCode::NOT_FOUND, &fields(&[])), RULE).is_none());
    }

    #[test]
    fn an_answer_is_given_until_it_is_too_old_and_says_its_age() {
        let (store, now) = (Arc::new(Store::default()), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        let (asked, other) = (head("GET", "/a?b", &[]), head("GET", "/a?c", &[]));
        assert!(put(&store, &asked, &[("cache-control", "max-age=10"), ("age", "3")], b"old", now));
        let found = get(&store, &asked, at(60)).unwrap();
        assert_eq!(found, ("old".into(), "63".into(), "outrigger; hit; ttl=-53; detail=connect_refused".into()));
        assert!(get(&store, &other, at(60)).is_none());
        assert!(get(&store, &asked, at(3600)).is_some() && get(&store, &asked, at(3601)).is_none());
        assert!(put(&store, &asked, &[("cache-control", "max-age=10, stale-if-error=20"), ("age", "3")], b"x", now));
        assert!(get(&store, &asked, at(27)).is_some() && get(&store, &asked, at(28)).is_none());
        put(&store, &asked, &[], b"x", now);
        store.forget(&head("DELETE", "/a?b", &[]), &WHOLE);
        assert!(get(&store, &asked, now).is_none());
        assert_eq!((store.shelf.lock().bytes, store.filling.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn an_answer_that_varies_is_given_to_those_who_ask_the_same() {
        let (store, now) = (Arc::new(Store::default()), Instant::now());
        let asked = |language: &str| head("GET", "/", &[("accept-language", language)]);
        put(&store, &asked("de"), &[("vary", "Accept-Language")], b"hallo", now);
        assert!(get(&store, &asked("de"), now).is_some());
        assert!(get(&store, &asked("en"), now).is_none() && get(&store, &head("GET", "/", &[]), now).is_none());
    }

    #[test]
    fn an_answer_to_one_identity_is_given_to_no_other() {
        let (store, now) = (Arc::new(Store::default()), Instant::now());
        let asked = |id: &str| head("GET", "/", &[("x-forwarded-client-cert", id)]);
        let (web, cart) = (asked("URI=spiffe://shop/web"), asked("URI=spiffe://shop/cart"));
        put(&store, &web, &[], b"web's own", now);
        assert!(get(&store, &web, now).is_some());
        assert!(get(&store, &cart, now).is_none() && get(&store, &head("GET", "/", &[]), now).is_none());
    }

    #[test]
    fn the_bytes_are_bounded_and_the_longest_unused_go_first() {
        let (store, now) = (Arc::new(Store::default()), Instant::now());
        let at = |n: usize| head("GET", &format!("/{n}"), &[]);
        for n in 0..100 {
            put(&store, &at(n), &[], &[0; 1000], now);
            assert!(get(&store, &at(0), now).is_some(), "what is used stays");
            assert!(store.shelf.lock().bytes <= RULE.size);
        }
        assert!(get(&store, &at(1), now).is_none() && get(&store, &at(99), now).is_some());
        let shelf = store.shelf.lock();
        assert_eq!(shelf.entries.len(), shelf.order.len());
        assert_eq!(shelf.bytes, shelf.entries.values().map(|entry| entry.cost).sum::<usize>());
        drop(shelf);
        put(&store, &at(500), &[], &[0; 2049], now);
        assert!(get(&store, &at(500), now).is_none(), "more than an eighth");
        let open: Vec<_> = (0..20)
            .map(|n| {
                let mut filling = store.clone().filling(&at(n), &WHOLE, (StatusCode::OK, &fields(&[])), RULE).unwrap();
                filling.data(&Bytes::from(vec![0; 2000]));
                filling
            })
            .collect();
        assert!(store.filling.load(Ordering::Relaxed) <= RULE.size);
        assert!(open.iter().any(|one| one.gone) && !open[0].gone);
        drop(open);
        assert_eq!(store.filling.load(Ordering::Relaxed), 0);
    }
}
