//! Health checks: asks the endpoints of each peer that wants it whether they are well, again and again.
//!
//! The questions go through the endpoints' own pools, so through TLS and over kept-alive connections as calls do. That
//! is why the tasks run on the data threads: a connection lives on the runtime that opened it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::deadline::Deadline;
use crate::http::body::Body;
use crate::life::tasks::Tasks;
use crate::plan::health::{HealthCheck, HealthRule};
use crate::reason::Reason;
use crate::resilience::verdict::grpc_code;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::lease::{AnswerBody, ConnectError, SendError, Version};
use crate::upstream::peer::Peer;

/// Endpoints of one peer that are asked at one time, at least and at most.
const AT_ONCE: (usize, usize) = (16, 512);

/// How late the first round may be, so that those of many peers fall apart.
const FIRST: Duration = Duration::from_secs(1);

/// Bytes of an answer's body that are read to keep its connection; a longer one costs the connection.
const MOST_BODY: usize = 64 * 1024;

/// Kept-alive connections that may turn out to be dead before anything was written to them.
const MOST_STALE: usize = 3;

/// The owner of the tasks; dropping it ends them.
pub struct Prober {
    tasks: Tasks,
    data: Handle,
    jobs: Mutex<HashMap<usize, Job>>,
}

/// The checks of one peer; dropping it ends them.
struct Job {
    peer: Arc<Peer>,
    rule: Arc<HealthRule>,
    task: AbortHandle,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Prober {
    /// Nobody is asked yet; `data` is the runtime of the data threads.
    pub fn new(tasks: Tasks, data: Handle) -> Self {
        Self { tasks, data, jobs: Mutex::default() }
    }

    /// Takes over the peers of a World: those that are asked as before go on undisturbed. Where nobody asks any more,
    /// what was found no longer counts.
    pub fn set(&self, peers: &[Arc<Peer>]) {
        let mut jobs = self.jobs.lock();
        let mut before = std::mem::take(&mut *jobs);
        for peer in peers {
            let Some(rule) = peer.policy().health.clone() else { continue };
            let id = Arc::as_ptr(peer) as usize;
            let job = match before.remove(&id) {
                Some(job) if job.rule == rule => job,
                _ => self.begin(peer.clone(), rule),
            };
            jobs.insert(id, job);
        }
        for job in before.into_values().filter(|job| job.peer.policy().health.is_none()) {
            job.task.abort();
            job.peer.endpoints().all().iter().for_each(|endpoint| endpoint.unchecked());
        }
    }

    fn begin(&self, peer: Arc<Peer>, rule: Arc<HealthRule>) -> Job {
        let _data = self.data.enter();
        let task = self.tasks.spawn(ask_for_ever(peer.clone(), rule.clone()));
        Job { peer, rule, task }
    }
}

async fn ask_for_ever(peer: Arc<Peer>, rule: Arc<HealthRule>) {
    sleep(rule.every.min(FIRST).mul_f64(fastrand::f64())).await;
    loop {
        let next = Instant::now() + pause(rule.every, fastrand::f64());
        round(&peer, &rule).await;
        sleep_until(next).await;
    }
}

/// The time to the next round, a tenth more or less; `roll` is between 0 and 1.
fn pause(every: Duration, roll: f64) -> Duration {
    every.mul_f64(0.9 + 0.2 * roll)
}

/// Asks every endpoint that there is now, those of weight 0 too: they may take traffic next.
async fn round(peer: &Arc<Peer>, rule: &HealthRule) {
    let endpoints = peer.endpoints().all().to_vec();
    let at_once = at_once(endpoints.len(), rule);
    let asked = stream::iter(endpoints).for_each_concurrent(at_once, |endpoint| async move {
        let found = match ask(peer, &endpoint, rule).await {
            Ok(()) => Ok(()),
            Err(Fault::Unasked) => return,
            Err(Fault::Found(why)) => Err(why),
        };
        endpoint.checked(Instant::now(), found, rule);
    });
    asked.await;
}

/// As many as it takes to be done before the next round though none answers.
fn at_once(endpoints: usize, rule: &HealthRule) -> usize {
    let part = rule.timeout.as_secs_f64() / rule.every.as_secs_f64().max(f64::MIN_POSITIVE);
    ((endpoints as f64 * part).ceil() as usize).clamp(AT_ONCE.0, AT_ONCE.1)
}

/// Why a check was not passed.
enum Fault {
    /// A limit of ours, or that we have no identity, kept it from being made, which says nothing about the endpoint.
    Unasked,
    /// What it found.
    Found(String),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self::Found(why)
    }
}

impl From<ConnectError> for Fault {
    fn from(error: ConnectError) -> Self {
        match error.reason {
            Reason::LimitReached | Reason::NoIdentity => Self::Unasked,
            _ => Self::Found(error.to_string()),
        }
    }
}

async fn ask(peer: &Arc<Peer>, endpoint: &Arc<Endpoint>, rule: &HealthRule) -> Result<(), Fault> {
    let scheme = if peer.source().tls.is_some() { "https" } else { "http" };
    match &rule.check {
        HealthCheck::Tcp => {
            let deadline = Deadline::after(Instant::now(), Some(rule.timeout));
            Ok(endpoint.dial(peer, deadline).await.map(drop)?)
        }
        HealthCheck::Http { path, host } => {
            let request = Request::get(format!("{scheme}://{host}{path}")).header(header::HOST, &**host);
            let request = request.header(header::USER_AGENT, AGENT).body(Body::Empty);
            let (status, ..) = send(peer, endpoint, Version::Http1, request, rule).await?;
            // A key may stand in the query.
            let shown = path.split('?').next().unwrap_or_default();
            if status.is_success() { Ok(()) } else { Err(format!("GET {shown}: {}", status.as_u16()).into()) }
        }
        HealthCheck::Grpc { service, host } => {
            let request = Request::post(format!("{scheme}://{host}/grpc.health.v1.Health/Check"));
            let request = request.header(header::CONTENT_TYPE, "application/grpc").header(header::TE, "trailers");
            let request = request.header(header::USER_AGENT, AGENT).body(Body::text(question(service)));
            let (status, fields, body) = send(peer, endpoint, Version::Http2, request, rule).await?;
            serving(status, &fields, &body).map_err(|why| format!("grpc.health.v1: {why}").into())
        }
    }
}

/// Who asks.
const AGENT: &str = concat!("outrigger-health/", env!("CARGO_PKG_VERSION"));

/// Sends the question; gives the status, the trailers or else the fields, and the body.
async fn send(
    peer: &Arc<Peer>,
    endpoint: &Arc<Endpoint>,
    version: Version,
    request: Result<Request<Body>, http::Error>,
    rule: &HealthRule,
) -> Result<(StatusCode, HeaderMap, Vec<u8>), Fault> {
    let mut request = request.map_err(|error| error.to_string())?;
    let end = Instant::now() + rule.timeout;
    for _ in 0..=MOST_STALE {
        // It has the deadline itself and says whether a limit of ours took the time.
        let lease = endpoint.lease(peer, version, Deadline::at(end)).await?;
        let answer = async {
            let answer = lease.send(request, None).await?;
            let (head, body) = answer.into_parts();
            Ok::<_, SendError>((head, read(body).await))
        };
        match timeout_at(end, answer).await {
            Ok(Ok((head, read))) => {
                let (bytes, trailers) = read?;
                return Ok((head.status, trailers.unwrap_or(head.headers), bytes));
            }
            Ok(Err(error)) => match (error.unsent, error.reused) {
                (Some(unsent), true) => request = unsent,
                _ => return Err(error.detail.into()),
            },
            Err(_) => return Err(format!("no answer within {:?}", rule.timeout).into()),
        }
    }
    Err(format!("every kept-alive connection to {} was dead", endpoint.addr()).into())
}

async fn read(mut body: AnswerBody) -> Result<(Vec<u8>, Option<HeaderMap>), String> {
    let (mut bytes, mut trailers) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        match frame.into_data() {
            Ok(data) if bytes.len() + data.len() <= MOST_BODY => bytes.extend_from_slice(&data),
            Ok(_) => break,
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((bytes, trailers))
}

/// A `HealthCheckRequest` in gRPC's framing: `service` is field 1, a string.
fn question(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 3);
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let mut framed = vec![0];
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Whether a `HealthCheckResponse` says SERVING: its one field is 1, an enum, and SERVING is 1.
fn serving(status: StatusCode, fields: &HeaderMap, body: &[u8]) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(format!("status {}", status.as_u16()));
    }
    match grpc_code(fields) {
        Some(0) => {}
        Some(code) => return Err(format!("grpc-status {code}")),
        None => return Err("no grpc-status".into()),
    }
    match body {
        [0, 0, 0, 0, 2, 0x08, 1] => Ok(()),
        [0, 0, 0, 0, 2, 0x08, 2] => Err("NOT_SERVING".into()),
        [0, 0, 0, 0, 2, 0x08, 3] => Err("SERVICE_UNKNOWN".into()),
        [0, 0, 0, 0, 0] | [0, 0, 0, 0, 2, 0x08, 0] => Err("UNKNOWN".into()),
        _ => Err("an answer that is no HealthCheckResponse".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_come_a_tenth_sooner_or_later() {
        let every = Duration::from_secs(10);
        for (roll, secs) in [(0.0, 9.0), (0.5, 10.0), (1.0, 11.0)] {
            assert!((pause(every, roll).as_secs_f64() - secs).abs() < 1e-6);
        }
    }

    #[test]
    fn a_round_ends_before_the_next_though_none_answers() {
        let (every, timeout) = (Duration::from_secs(10), Duration::from_secs(1));
        let rule = HealthRule { check: HealthCheck::Tcp, every, timeout, healthy: 2, unhealthy: 3 };
        for (endpoints, want) in [(0, 16), (16, 16), (160, 16), (161, 17), (5_000, 500), (100_000, 512)] {
            assert_eq!(at_once(endpoints, &rule), want);
        }
        assert_eq!(at_once(100, &HealthRule { timeout: every, ..rule }), 100);
    }

    #[test]
    fn only_what_is_ours_leaves_an_endpoint_unasked() {
        for reason in Reason::ALL {
            let fault = Fault::from(ConnectError { reason: *reason, detail: "why".into() });
            let ours = ["limit_reached", "no_identity"].contains(&reason.word());
            assert_eq!(matches!(fault, Fault::Unasked), ours, "{reason:?}");
        }
    }

    #[test]
    fn a_question_is_a_framed_message() {
        assert_eq!(question(""), [0, 0, 0, 0, 0].as_slice());
        assert_eq!(question("a.B"), b"\0\0\0\0\x05\x0a\x03a.B".as_slice());
        let long = question(&"x".repeat(200));
        assert_eq!((&long[..8], long.len()), (&[0, 0, 0, 0, 203, 0x0a, 0xc8, 0x01][..], 208));
    }

    #[test]
    fn only_serving_is_well() {
        let fields = |code: &str| HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
        let one = |value| vec![0, 0, 0, 0, 2, 8, value];
        for (status, fields, body, want) in [
            (200, fields("0"), one(1), Ok(())),
            (200, fields("0"), one(2), Err("NOT_SERVING")),
            (200, fields("0"), one(3), Err("SERVICE_UNKNOWN")),
            (200, fields("0"), vec![0; 5], Err("UNKNOWN")),
            (200, fields("0"), vec![], Err("an answer that is no HealthCheckResponse")),
            (200, fields("12"), one(1), Err("grpc-status 12")),
            (200, HeaderMap::new(), one(1), Err("no grpc-status")),
            (503, fields("0"), one(1), Err("status 503")),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(serving(status, &fields, &body), want.map_err(str::to_owned), "{status} {body:?}");
        }
    }
}
