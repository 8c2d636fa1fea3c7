//! The tokens of a request: found, verified or remembered, and what they say.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::request::Parts;
use http::{HeaderMap, HeaderName};
use smallvec::SmallVec;

use super::carried;
use super::known::{Known, Verified, print};
use super::source::Source;
use super::token::{Fault, read};
use crate::plan::claims::{Claims, root};
use crate::plan::jwt::{JwtPlan, KeysPlan, Place};
use crate::telemetry::metrics::Metrics;

/// The verified tokens of a request; one per place at most.
pub type Held = SmallVec<[Arc<Claims>; 1]>;

/// The issuers of a plan with their keys.
pub struct Tokens {
    plan: Arc<JwtPlan>,
    /// The claims that rules ask for; nothing else of a token is kept.
    claims: Vec<String>,
    /// Each place once, with the issuers whose tokens may stand there.
    places: Vec<(Place, Vec<usize>)>,
    strips: Vec<HeaderName>,
    sources: Vec<Arc<Source>>,
    known: Known,
    metrics: Arc<Metrics>,
}

impl Tokens {
    /// Brings a plan to life: what stays equal keeps its keys, and where nothing changed, its memory. Files are read.
    ///
    /// # Errors
    /// One line with the path: a file of keys cannot be used.
    pub fn next(
        before: Option<&Arc<Self>>,
        plan: &Arc<JwtPlan>,
        claims: Vec<String>,
        metrics: &Arc<Metrics>,
    ) -> Result<Arc<Self>, String> {
        if let Some(before) = before
            && before.plan == *plan
            && before.claims == claims
        {
            return Ok(before.clone());
        }
        let known = before.map_or(&[][..], |before| &before.sources);
        let mut sources: Vec<Arc<Source>> = Vec::with_capacity(plan.issuers.len());
        for issuer in &plan.issuers {
            let same = known.iter().chain(&sources).find(|source| source.is_of(issuer)).cloned();
            let source = match (same, &issuer.keys) {
                (Some(source), _) => source,
                (None, KeysPlan::Url { .. }) => Arc::new(Source::new(issuer)),
                (None, KeysPlan::File(path)) => {
                    let source = Source::new(issuer);
                    source.take(Ok(super::source::read_file(path)?), tokio::time::Instant::now());
                    Arc::new(source)
                }
            };
            sources.push(source);
        }
        let mut places: Vec<(Place, Vec<usize>)> = Vec::new();
        for (at, issuer) in plan.issuers.iter().enumerate() {
            match places.iter_mut().find(|(place, _)| *place == issuer.place) {
                Some((_, issuers)) => issuers.push(at),
                None => places.push((issuer.place.clone(), vec![at])),
            }
        }
        let strips = plan.issuers.iter().filter(|issuer| issuer.strip).filter_map(|issuer| match &issuer.place {
            Place::Header(name) => Some(name.clone()),
            Place::Cookie(_) | Place::Query(_) => None,
        });
        let (strips, plan, metrics) = (strips.collect(), plan.clone(), metrics.clone());
        Ok(Arc::new(Self { plan, claims, places, strips, sources, known: Known::default(), metrics }))
    }

    /// The sources of its keys, in the order of the plan.
    pub fn sources(&self) -> &[Arc<Source>] {
        &self.sources
    }

    /// The source of an issuer's keys, by its place in the plan.
    pub fn source(&self, issuer: usize) -> Option<&Arc<Source>> {
        self.sources.get(issuer)
    }

    /// The tokens that a request carries, if all of them are believed.
    ///
    /// # Errors
    /// Why one is not.
    pub fn judge(&self, parts: &Parts, now: SystemTime) -> Result<Held, Fault> {
        let mut held = Held::new();
        for (place, issuers) in &self.places {
            if let Some(token) = carried::find(place, &parts.headers, &parts.uri)? {
                held.push(self.believe(token, issuers, now)?);
            }
        }
        Ok(held)
    }

    /// Takes away the fields of tokens that the service is not to get.
    pub fn strip(&self, parts: &mut Parts) {
        if !self.strips.is_empty() {
            carried::strip(&self.strips, &mut parts.headers);
        }
    }

    /// Whether a field that is a token's is still there.
    pub fn is_told(&self, headers: &HeaderMap) -> bool {
        self.places.iter().any(|(place, _)| matches!(place, Place::Header(name) if headers.contains_key(name)))
    }

    fn believe(&self, token: &str, issuers: &[usize], now: SystemTime) -> Result<Arc<Claims>, Fault> {
        if token.len() > super::token::MOST_BYTES {
            return Err(Fault::Invalid("it is longer than 16 KiB"));
        }
        // A clock before 1970 takes every token for one from the future.
        let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let print = print(token);
        if let Some(known) = self.known.get(&print) {
            if self.still(&known, issuers, now) {
                self.metrics.tokens_known.inc();
                return Ok(known.claims.clone());
            }
            self.known.forget(&print);
        }
        let unproven = read(token)?;
        let is = |at: &&usize| self.plan.issuers.get(**at).is_some_and(|one| unproven.issuer() == Some(&*one.issuer));
        let Some(&at) = issuers.iter().find(is) else {
            return Err(Fault::Invalid("its issuer (`iss`) is none of those that are believed here"));
        };
        let (Some(issuer), Some(source)) = (self.plan.issuers.get(at), self.sources.get(at)) else {
            return Err(Fault::NoKeys(at));
        };
        let keys = source.keys().ok_or(Fault::NoKeys(at))?;
        let until = unproven.verify(at, issuer, &keys, now)?;
        self.metrics.tokens_verified.inc();
        let wanted = self.claims.iter().filter_map(|name| root(name, &unproven.claims));
        let claims = Arc::new(Claims(wanted.map(|(name, value)| (name.clone(), value.clone())).collect()));
        let verified = Verified { issuer: at, version: keys.version(), until, claims: claims.clone() };
        self.known.put(print, Arc::new(verified));
        Ok(claims)
    }

    /// Whether what was found of a token holds: now, here, and by the keys of now.
    fn still(&self, known: &Verified, issuers: &[usize], now: u64) -> bool {
        let keys = self.sources.get(known.issuer).and_then(|source| source.keys());
        now < known.until && issuers.contains(&known.issuer) && keys.is_some_and(|keys| keys.version() == known.version)
    }

    /// What is remembered.
    #[cfg(test)]
    pub(super) fn known(&self) -> &Known {
        &self.known
    }
}
