//! Other products as a caller's sidecar: the numbers that their documentation gives as defaults, in one small machine.
//!
//! Each constructor says which documented numbers it follows. What a product has off by default is off. What the
//! simulation never reaches (connect timeouts, route timeouts of 15 s, limits of 1024) is left out.

use std::time::Duration;

use outrigger::plan::peer::Balance;
use outrigger::resilience::load::Load;
use outrigger::resilience::pick::{Draw, Shares};
use tokio::time::Instant;

use crate::clock::{MS, Micros, SECOND};
use crate::sidecar::{Course, Got, Pick, Sidecar, Then, Ticket};

/// What one product does by default.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    balance: Balance,
    /// Further attempts.
    retries: u32,
    on: On,
    pause: Pause,
    /// Retries in flight at one time.
    most_retrying: u32,
    /// Whether hosts that were tried are passed over.
    other_hosts: bool,
    eject: bool,
    /// Whether only hosts to which there is a connection are in the choice.
    connected_only: bool,
}

/// What is tried again.
#[derive(Debug, Clone, Copy, Default)]
struct On {
    refused: bool,
    reset: bool,
    /// 503 over HTTP.
    status: bool,
    /// UNAVAILABLE over gRPC.
    unavailable: bool,
}

#[derive(Debug, Clone, Copy)]
enum Pause {
    /// Between nothing and the first, doubled for each further one up to the second.
    Jitter(Micros, Micros),
    Even(Micros),
}

/// Envoy's back-off: full jitter, base 25 ms, at most 250 ms (config.route.v3.RetryPolicy.RetryBackOff).
const ENVOYS_PAUSE: Pause = Pause::Jitter(25 * MS, 250 * MS);

impl Numbers {
    /// Envoy: round robin (Cluster.lb_policy); no retries where no policy is written; outlier detection off.
    pub(crate) fn envoy() -> Self {
        let (on, pause) = (On::default(), ENVOYS_PAUSE);
        let balance = Balance::RoundRobin;
        Self {
            balance,
            retries: 0,
            on,
            pause,
            most_retrying: 3,
            other_hosts: false,
            eject: false,
            connected_only: false,
        }
    }

    /// Envoy with `retry_on` (5xx, and `unavailable` for gRPC) and `outlier_detection: {}` written, all else as it comes:
    /// num_retries 1, three retries in flight (CircuitBreakers max_retries), no other host preferred;
    /// consecutive_5xx 5, base_ejection_time 30 s times the number of ejections up to 300 s, looked at every 10 s,
    /// max_ejection_percent 10, success rate by 1.9 standard deviations over 5 hosts with 100 requests.
    pub(crate) fn envoy_on() -> Self {
        let on = On { refused: true, reset: true, status: true, unavailable: true };
        Self { retries: 1, on, eject: true, ..Self::envoy() }
    }

    /// Istio: least request of two; two retries on connect-failure, refused-stream, unavailable, cancelled (no list of
    /// statuses, 503 was removed), other hosts preferred, Envoy's back-off; limits 2^32-1; outlier detection only with
    /// a DestinationRule.
    pub(crate) fn istio() -> Self {
        let on = On { refused: true, unavailable: true, ..On::default() };
        let (balance, most_retrying) = (Balance::LeastRequest, u32::MAX);
        Self { balance, retries: 2, on, most_retrying, other_hosts: true, ..Self::envoy() }
    }

    /// Linkerd: peak EWMA of two, decay 10 s, failures counted as the answers they are; no retries, breaker off; only
    /// connected endpoints are balanced over, and a request waits for one at most 3 s (failfast). Reconnecting backs
    /// off from 100 ms to 500 ms (from general knowledge, not verified).
    pub(crate) fn linkerd() -> Self {
        Self { balance: Balance::PeakEwma, connected_only: true, ..Self::envoy() }
    }

    /// Dapr: round robin over mDNS; service invocation is tried three times in all, one second apart, where gRPC says
    /// Unavailable (also that there is no connection to the other sidecar); breakers only with a policy.
    pub(crate) fn dapr() -> Self {
        let on = On { refused: true, reset: true, unavailable: true, status: false };
        Self { retries: 2, on, pause: Pause::Even(SECOND), most_retrying: u32::MAX, ..Self::envoy() }
    }
}

/// Hosts that Envoy may eject at one time, as part of all (max_ejection_percent).
const MOST_EJECTED: f64 = 0.1;
const INTERVAL: Micros = 10 * SECOND;
const FAILFAST: Micros = 3 * SECOND;

/// A sidecar of another product.
pub(crate) struct Other {
    numbers: Numbers,
    hosts: Vec<Known>,
    shares: Shares,
    draw: Draw,
    base: Instant,
    grpc: bool,
    retrying: u32,
    swept: Micros,
    /// Since when no host was connected.
    cut_off: Option<Micros>,
}

/// What it knows of a host.
struct Known {
    load: Load,
    row: u32,
    good: u32,
    all: u32,
    ejections: u32,
    out_until: Option<Micros>,
    refusals: u32,
    unconnected_until: Micros,
}

impl Other {
    /// One that calls a service of so many hosts.
    pub(crate) fn new(hosts: usize, numbers: Numbers, grpc: bool) -> Self {
        let base = Instant::now();
        let known = |_| Known {
            load: Load::new(base),
            row: 0,
            good: 0,
            all: 0,
            ejections: 0,
            out_until: None,
            refusals: 0,
            unconnected_until: 0,
        };
        Self {
            numbers,
            hosts: (0..hosts).map(known).collect(),
            shares: Shares::new(&vec![1; hosts]),
            draw: Draw::new(fastrand::u64(..)),
            base,
            grpc,
            retrying: 0,
            swept: 0,
            cut_off: None,
        }
    }

    fn at(&self, now: Micros) -> Instant {
        self.base + Duration::from_micros(now)
    }

    fn pick(&self, now: Micros, tried: &[usize]) -> Option<usize> {
        let at = self.at(now);
        let cost = |host: usize, share| match self.numbers.balance {
            Balance::PeakEwma => self.hosts[host].load.cost(at, share),
            _ => 1.0 + f64::from(self.hosts[host].load.in_flight()),
        };
        let out = |host: usize| {
            let known = &self.hosts[host];
            known.out_until.is_some() || known.unconnected_until > now
        };
        let pick = |avoided: &dyn Fn(usize) -> bool| self.draw.pick(self.numbers.balance, &self.shares, avoided, cost);
        let other = self.numbers.other_hosts && !tried.is_empty();
        let first = if other { pick(&|host| out(host) || tried.contains(&host)) } else { None };
        first.or_else(|| pick(&out))
    }

    /// Envoy's look at all hosts every ten seconds: who has been out for long enough is back, and who is below the mean
    /// success rate by 1.9 standard deviations goes.
    fn sweep(&mut self, now: Micros) {
        if !self.numbers.eject || now < self.swept + INTERVAL {
            return;
        }
        self.swept = now;
        self.hosts.iter_mut().filter(|host| host.out_until.is_some_and(|until| until <= now)).for_each(|host| {
            host.out_until = None;
        });
        let rate = |host: &Known| f64::from(host.good) / f64::from(host.all);
        let rates: Vec<f64> = self.hosts.iter().filter(|host| host.all >= 100).map(rate).collect();
        if rates.len() >= 5 {
            let mean = rates.iter().sum::<f64>() / rates.len() as f64;
            let spread = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / rates.len() as f64;
            let least = mean - 1.9 * spread.sqrt();
            let low = |host: &Known| host.all >= 100 && host.out_until.is_none() && rate(host) < least;
            let worst: Vec<usize> = (0..self.hosts.len()).filter(|at| low(&self.hosts[*at])).collect();
            worst.into_iter().for_each(|at| self.eject(now, at));
        }
        self.hosts.iter_mut().for_each(|host| (host.good, host.all) = (0, 0));
    }

    fn eject(&mut self, now: Micros, at: usize) {
        let out = self.hosts.iter().filter(|host| host.out_until.is_some()).count();
        if self.hosts[at].out_until.is_some() || out + 1 > (self.hosts.len() as f64 * MOST_EJECTED) as usize {
            return;
        }
        let host = &mut self.hosts[at];
        (host.ejections, host.row) = (host.ejections + 1, 0);
        host.out_until = Some(now + (30 * SECOND * u64::from(host.ejections)).min(300 * SECOND));
    }

    fn learn(&mut self, now: Micros, ticket: &Ticket, got: Got) {
        let at = self.at(now);
        let host = &mut self.hosts[ticket.host];
        host.load.end();
        host.load.answered(at, Duration::from_micros(now - ticket.began), true);
        host.all += 1;
        host.good += u32::from(got == Got::Answer);
        host.row = if got == Got::Answer { 0 } else { host.row + 1 };
        if self.numbers.eject && host.row >= 5 {
            self.eject(now, ticket.host);
        }
    }

    fn wants_another(&self, got: Got) -> bool {
        let on = self.numbers.on;
        match got {
            Got::Answer => false,
            Got::Refused => on.refused,
            Got::Reset => on.reset,
            Got::Failure if self.grpc => on.unavailable,
            Got::Failure => on.status,
        }
    }
}

impl Sidecar for Other {
    fn begin(&mut self, now: Micros, course: &mut Course) -> Pick {
        self.sweep(now);
        let Some(host) = self.pick(now, &course.tried) else {
            let since = *self.cut_off.get_or_insert(now);
            return if now >= since + FAILFAST { Pick::Nobody } else { Pick::Wait(20 * MS) };
        };
        self.hosts[host].load.begin();
        course.attempts += 1;
        Pick::To(Ticket { host, began: now, held: None })
    }

    fn ended(&mut self, now: Micros, course: &mut Course, ticket: Ticket, got: Got) -> Then {
        if self.numbers.connected_only && got == Got::Refused {
            // The connection is what fails, in the background; no request is given to it.
            let host = &mut self.hosts[ticket.host];
            host.load.end();
            host.unconnected_until = now + ((100 * MS) << host.refusals.min(3)).min(500 * MS);
            host.refusals += 1;
            course.attempts -= 1;
            return Then::Elsewhere;
        }
        self.cut_off = None;
        self.hosts[ticket.host].refusals = 0;
        self.learn(now, &ticket, got);
        if std::mem::take(&mut course.retrying) {
            self.retrying -= 1;
        }
        course.tried.push(ticket.host);
        if !self.wants_another(got)
            || course.attempts > self.numbers.retries
            || self.retrying >= self.numbers.most_retrying
        {
            return Then::Over;
        }
        self.retrying += 1;
        course.retrying = true;
        Then::Again(match self.numbers.pause {
            Pause::Jitter(base, cap) => fastrand::u64(0..(base << (course.attempts - 1)).min(cap)),
            Pause::Even(pause) => pause,
        })
    }
}
