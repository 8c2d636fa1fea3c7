//! What the file may ask of the resilience machines, as plain data: each rule with its units and its defaults.
//!
//! The machines (`resilience/`) read these at each decision, so that a reload changes the numbers and keeps the state.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

pub use crate::condition::{Condition, Conditions};

/// A part of a whole, in millionths, so that rules can be compared exactly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// The whole.
    pub const WHOLE: Self = Self(1_000_000);

    /// So many hundredths; may exceed the whole (a budget of 200 %).
    pub const fn percent(percent: u32) -> Self {
        Self(percent.saturating_mul(10_000))
    }

    /// So many millionths.
    pub const fn millionths(millionths: u32) -> Self {
        Self(millionths)
    }

    /// This part of `n`, rounded down.
    pub fn of(self, n: u64) -> u64 {
        let part = u128::from(n) * u128::from(self.0) / 1_000_000;
        u64::try_from(part).unwrap_or(u64::MAX)
    }

    /// Whether `part` is at least this share of `whole`, without rounding.
    pub fn reached(self, part: u64, whole: u64) -> bool {
        u128::from(part) * 1_000_000 >= u128::from(whole) * u128::from(self.0)
    }

    /// As a number, the whole being 1.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

/// All that may be asked of the machines where a peer is called. `None` is a machine that is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// When a failed attempt is followed by another.
    pub retry: RetryRule,
    /// When a second attempt is sent beside the first.
    pub hedge: Option<HedgeRule>,
    /// When an endpoint is taken out of the choice.
    pub eject: Option<EjectRule>,
    /// What goes to the whole peer at one time.
    pub limits: LimitsRule,
    /// What goes to each of its endpoints at one time.
    pub endpoint_limits: LimitsRule,
    /// When the whole peer is no longer asked.
    pub breaker: Option<BreakerRule>,
    /// The adaptive limit of requests in flight.
    pub concurrency: Option<ConcurrencyRule>,
    /// Client-side admission control.
    pub admission: Option<AdmissionRule>,
    /// How endpoints that have just appeared grow into their share.
    pub slow_start: Option<SlowStartRule>,
    /// Whether the last tenth of the peer's limits in flight is kept for requests of high priority.
    pub kept: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            retry: RetryRule::default(),
            hedge: None,
            eject: Some(EjectRule::default()),
            limits: LimitsRule::default(),
            endpoint_limits: LimitsRule::default(),
            breaker: None,
            concurrency: None,
            admission: None,
            slow_start: None,
            kept: false,
        }
    }
}

/// How many further attempts (retries and hedges) a peer may be given: over the last ten seconds at most the larger
/// of `share` of the first attempts and `floor` per second. Not their sum: at 100 requests per second 20 % is 20 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BudgetRule {
    /// Part of the first attempts; default 20 %.
    pub share: Share,
    /// Per second, whatever the traffic, so that quiet services can retry at all; default 3.
    pub floor: u32,
}

impl Default for BudgetRule {
    fn default() -> Self {
        Self { share: Share::percent(20), floor: 3 }
    }
}

/// How long to wait before a further attempt: exponential with full jitter, or what the server asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackoffRule {
    /// The longest wait before the first retry; doubled for each further one. Default 25 ms.
    pub base: Duration,
    /// The longest wait of all; default 250 ms.
    pub cap: Duration,
    /// The longest pause a server may ask for (`Retry-After`, `grpc-retry-pushback-ms`). One that asks for more is
    /// not tried again; the caller gets its answer. Default 5 s.
    pub asked_cap: Duration,
}

impl Default for BackoffRule {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), cap: Duration::from_millis(250), asked_cap: Duration::from_secs(5) }
    }
}

/// Which requests may be tried again although the first attempt may have been processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Methods {
    /// Those that RFC 9110 §9.2.2 calls idempotent: GET, HEAD, OPTIONS, TRACE, PUT, DELETE.
    #[default]
    Idempotent,
    /// All: the user says that doing the work twice does no harm. gRPC needs it, being all POST.
    Any,
}

/// A field of an answer that asks for another attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderCondition {
    /// The field's name.
    pub name: HeaderName,
    /// Its exact value; `None` is any.
    pub value: Option<HeaderValue>,
}

/// When a failed attempt is followed by another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryRule {
    /// Attempts in all, the first included; default 2, 1 is none.
    pub attempts: u32,
    /// What must have happened; default connect-failure, reset-before-request, refused-stream, reset. The first three
    /// leave nothing done; the last acts on idempotent methods only, unless `methods` says otherwise.
    pub on: Conditions,
    /// Statuses for [`Condition::StatusCodes`].
    pub statuses: Box<[u16]>,
    /// Fields for [`Condition::Headers`].
    pub headers: Box<[HeaderCondition]>,
    /// Which requests may be repeated; default idempotent ones.
    pub methods: Methods,
    /// How long one attempt may take until its answer begins; `None` (default) is no limit of its own.
    pub attempt_timeout: Option<Duration>,
    /// How long to wait between attempts.
    pub backoff: BackoffRule,
    /// How many retries are allowed in all.
    pub budget: BudgetRule,
}

impl Default for RetryRule {
    fn default() -> Self {
        use Condition::{ConnectFailure, RefusedStream, Reset, ResetBeforeRequest};
        Self {
            attempts: 2,
            on: Conditions::of(&[ConnectFailure, ResetBeforeRequest, RefusedStream, Reset]),
            statuses: Box::default(),
            headers: Box::default(),
            methods: Methods::default(),
            attempt_timeout: None,
            backoff: BackoffRule::default(),
            budget: BudgetRule::default(),
        }
    }
}

/// When a second attempt is sent while the first is still unanswered; off unless written. It takes from the retry
/// budget and obeys the same rules of safety as a retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HedgeRule {
    /// How long the first attempt is waited for.
    pub after: HedgeAfter,
    /// Never sooner than this; default 5 ms.
    pub at_least: Duration,
}

impl Default for HedgeRule {
    fn default() -> Self {
        Self { after: HedgeAfter::Quantile(Share::percent(95)), at_least: Duration::from_millis(5) }
    }
}

/// How long a first attempt is waited for before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeAfter {
    /// So long.
    Delay(Duration),
    /// As long as this part of the peer's own recent answers took at most; no hedge while too few are known.
    Quantile(Share),
}

/// When an endpoint is taken out of the choice for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EjectRule {
    /// Answers of 500 to 599 in a row (502, 503, 504 among them); default 5, `None` is never.
    pub server_errors: Option<u32>,
    /// Answers of 502, 503, 504 (gRPC: UNAVAILABLE) in a row; default 5.
    pub gateway_errors: Option<u32>,
    /// Failures seen from here in a row (no connection, reset, attempt timed out); default 5.
    pub local_failures: Option<u32>,
    /// Part of the requests of the last ten seconds that failed, clearly more than at the other endpoints;
    /// default 20 %.
    pub failure_share: Option<Share>,
    /// Mean latency of the last ten seconds against that of the other endpoints; off by default, as the balancer
    /// already turns from slow endpoints.
    pub latency: Option<LatencyRule>,
    /// Requests an endpoint must have answered in the last ten seconds before the two above judge it; default 5.
    pub volume: u32,
    /// An ejected endpoint gets one live request after this; doubled each time that fails. Default 1 s.
    pub probe_after: Duration,
    /// The doubling's end, and how long an endpoint must stay well to be trusted one step more; default 10 s.
    pub longest: Duration,
    /// Part of the endpoints that may be out at one time, rounded down but at least one endpoint; default all: when
    /// all are out, the choice is made among all (fails open).
    pub most: Share,
}

impl Default for EjectRule {
    fn default() -> Self {
        Self {
            server_errors: Some(5),
            gateway_errors: Some(5),
            local_failures: Some(5),
            failure_share: Some(Share::percent(20)),
            latency: None,
            volume: 5,
            probe_after: Duration::from_secs(1),
            longest: Duration::from_secs(10),
            most: Share::WHOLE,
        }
    }
}

/// When an endpoint's latency makes it an outlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyRule {
    /// So many times the mean of the others, as a share: 300 % is three times.
    pub times: Share,
    /// And at least so much slower than they.
    pub at_least: Duration,
}

/// Exact limits of what goes to a peer or an endpoint at one time; `None` (default of each) is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitsRule {
    /// Open connections.
    pub connections: Option<u32>,
    /// Connections being made.
    pub connecting: Option<u32>,
    /// Requests sent and not fully answered.
    pub in_flight: Option<u32>,
    /// Requests waiting for a connection.
    pub pending: Option<u32>,
    /// Retries and hedges in flight.
    pub retries: Option<u32>,
}

/// When a whole peer is no longer asked, because too much of what it is asked fails; off unless written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRule {
    /// Part of the requests of the last ten seconds that failed; default 50 %.
    pub failure_share: Share,
    /// Part that was slow, and what is slow; `None` (default) is not looked at.
    pub slow: Option<(Share, Duration)>,
    /// Requests in the last ten seconds below which nothing is judged, at least 1; default 20.
    pub volume: u32,
    /// How long the breaker stays open before a single request tries; default 5 s.
    pub open_for: Duration,
}

impl Default for BreakerRule {
    fn default() -> Self {
        Self { failure_share: Share::percent(50), slow: None, volume: 20, open_for: Duration::from_secs(5) }
    }
}

/// A token bucket: on average `count` per `period`, at most `burst` at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateRule {
    /// Tokens per period; 0 refuses all.
    pub count: u32,
    /// The period; one of zero is read as a nanosecond.
    pub period: Duration,
    /// What the bucket holds, at least 1; what `500/s` alone means is a second's worth.
    pub burst: u32,
}

impl RateRule {
    /// `count` per second with a second's worth of burst.
    pub fn per_second(count: u32) -> Self {
        Self { count, period: Duration::from_secs(1), burst: count.max(1) }
    }
}

/// What is asked of a request before it goes to a door or a route: each part that is not given asks nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GateRule {
    /// Requests in flight.
    pub in_flight: Option<u32>,
    /// Rates that must all allow it. Those with keys stand first, so that one key's flood takes nothing from the rate
    /// that all share.
    pub rates: Box<[MeterRule]>,
    /// The limit in flight that follows the latency.
    pub adaptive: Option<ConcurrencyRule>,
    /// Whether the last tenth of both is kept for requests of high priority.
    pub kept: bool,
}

/// What is let in first where a limit in flight is nearly reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// What is turned away first: further attempts, copies, and what a route says.
    Low,
    /// All else.
    #[default]
    Normal,
    /// What a route says may use the last of a limit.
    High,
}

impl Priority {
    /// Its word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}

impl GateRule {
    /// Whether nothing is asked.
    pub fn is_open(&self) -> bool {
        self.in_flight.is_none() && self.rates.is_empty() && self.adaptive.is_none()
    }
}

/// A rate, for all or for each key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeterRule {
    /// How often.
    pub rate: RateRule,
    /// What each has a rate of its own; `None` is one for all.
    pub per: Option<RateKey>,
    /// Keys that are remembered, at least 1.
    pub keys: u32,
    /// Whether the answers to requests that pass tell what is left: so it is with a quota of the caller's own or of a
    /// route. A rate that all callers of a door share only protects the service, and tells each of the others' traffic.
    pub told: bool,
}

/// What each has a rate of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RateKey {
    /// The caller's address.
    Address,
    /// The value of this field; requests without it are one key.
    Header(HeaderName),
    /// Who the caller has proven to be; callers who have not are one key.
    Identity,
}

impl RateKey {
    /// What each has a rate, in words.
    pub fn each(&self) -> String {
        match self {
            Self::Address => "address".into(),
            Self::Header(field) => field.to_string(),
            Self::Identity => "identity".into(),
        }
    }
}

/// The gates of the two doors.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DoorGates {
    /// Of all that comes in.
    pub inbound: GateRule,
    /// Of all that goes out.
    pub outbound: GateRule,
}

/// The gate of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteGate {
    /// What its state is found by, also after a reload: its owner and its name. Routes of one name share it.
    pub key: std::sync::Arc<str>,
    /// What it asks.
    pub rule: GateRule,
}

/// The adaptive limit of requests in flight; off unless written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConcurrencyRule {
    /// The limit never falls below; default 4, at least 1.
    pub least: u32,
    /// Nor rises above; default 1000.
    pub most: u32,
    /// Where it starts; default 20.
    pub start: u32,
    /// How much slower than at its best the service may answer before the limit falls, as a share; default 150 %.
    pub tolerance: Share,
}

impl Default for ConcurrencyRule {
    fn default() -> Self {
        Self { least: 4, most: 1000, start: 20, tolerance: Share::percent(150) }
    }
}

/// Client-side admission control ("adaptive throttling", Site Reliability Engineering, ch. 21); off unless written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionRule {
    /// Requests are sent on as long as they are no more than so many times what the peer accepts, as a share;
    /// default 200 %.
    pub accepts: Share,
    /// The largest part that is refused here, so that a recovery is seen; default 80 %.
    pub most: Share,
    /// Requests in the last thirty seconds below which nothing is refused; default 20.
    pub volume: u32,
}

impl Default for AdmissionRule {
    fn default() -> Self {
        Self { accepts: Share::percent(200), most: Share::percent(80), volume: 20 }
    }
}

/// How an endpoint that has just appeared grows into its share; off unless written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlowStartRule {
    /// How long it takes to the full share.
    pub window: Duration,
    /// What it begins with; default 10 %.
    pub least: Share,
}

impl SlowStartRule {
    /// Over `window`, from 10 %.
    pub fn over(window: Duration) -> Self {
        Self { window, least: Share::percent(10) }
    }
}

/// Which endpoints of a peer a route may use, by what discovery knows about them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubsetRule {
    /// Every key must be there with exactly this value; none is all endpoints.
    pub wanted: BTreeMap<String, String>,
    /// What happens where no endpoint fits.
    pub otherwise: SubsetFallback,
}

/// What happens where no endpoint of a subset is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubsetFallback {
    /// There is no endpoint: a canary's traffic must not reach another version by accident.
    #[default]
    None,
    /// Any endpoint will do.
    Any,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_rounds_down_and_compares_exactly() {
        for (share, whole, part) in [
            (Share::percent(20), 100, 20),
            (Share::percent(20), 9, 1),
            (Share::percent(200), 9, 18),
            (Share::NONE, 9, 0),
            (Share::WHOLE, u64::MAX, u64::MAX),
            (Share::millionths(1), 999_999, 0),
        ] {
            assert_eq!(share.of(whole), part, "{share:?} of {whole}");
        }
        assert!(Share::percent(20).reached(1, 5) && !Share::percent(20).reached(1, 6));
    }
}
