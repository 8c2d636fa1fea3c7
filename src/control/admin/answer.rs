//! What the admin server answers: one function per page, and the rules that hold for all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Uri};
use http_body_util::Full;
use serde::Serialize;
use tokio::time::Instant;
use tracing::info;

use super::guard::{self, Caller, Refusal};
use crate::control::dnsdoor::DnsState;
use crate::control::reload::{Report, Trigger};
use crate::control::{Destination, House, ready};
use crate::ids::PeerName;
use crate::jwt::source::SourceState;
use crate::life::drain::Phase;
use crate::plan::door::{DoorPlan, Leads};
use crate::plan::peer::PeerKind;
use crate::plan::{AdminPlan, Plan};
use crate::telemetry::exposition;
use crate::telemetry::plaintext::PlaintextState;
use crate::telemetry::stamp::Stamp;
use crate::tls::state::IdentityState;
use crate::upstream::dialled;
use crate::upstream::state::{LimitState, PeerState};

/// An answer; small and whole.
pub type Answer = Response<Full<Bytes>>;

/// Which of the two servers is asked.
#[derive(Clone)]
pub enum Surface {
    /// Everything, for this machine.
    Admin(AdminPlan),
    /// Only what probes and scrapers need, for the network.
    Status,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Live,
    Ready,
    Metrics,
    State,
    Reload,
    Drain,
}

/// Every page: its path, whether it changes something, whether the status server has it too.
const PAGES: [(&str, Page, bool, bool); 6] = [
    ("/live", Page::Live, false, true),
    ("/ready", Page::Ready, false, true),
    ("/metrics", Page::Metrics, false, true),
    ("/state", Page::State, false, false),
    ("/reload", Page::Reload, true, false),
    ("/drain", Page::Drain, true, false),
];

/// Answers one request.
pub async fn answer(house: &House, surface: &Surface, caller: Caller, head: &http::request::Parts) -> Answer {
    match judge(surface, caller, &head.method, &head.uri, &head.headers) {
        Err(Refused(answer)) => *answer,
        Ok(Page::Live) => text(StatusCode::OK, "live\n"),
        Ok(Page::Ready) => ready_page(house, &head.uri, &head.headers).await,
        Ok(Page::Metrics) => metrics_page(house),
        Ok(Page::State) => json(StatusCode::OK, &State::of(house)),
        Ok(Page::Reload) => reload_page(house).await,
        Ok(Page::Drain) => drain_page(house),
    }
}

/// A refusal as an answer.
struct Refused(Box<Answer>);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let mut answer = text(refusal.status, refusal.why + "\n");
        if refusal.status == StatusCode::UNAUTHORIZED {
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        Self(Box::new(answer))
    }
}

fn judge(surface: &Surface, caller: Caller, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<Page, Refused> {
    guard::not_a_page(headers)?;
    if let Surface::Admin(plan) = surface {
        guard::right_host(&plan.listen, uri, headers)?;
    }
    let here = PAGES.iter().filter(|page| page.3 || matches!(surface, Surface::Admin(_)));
    let Some((_, page, changes, _)) = here.clone().find(|page| page.0 == uri.path()) else {
        let list: String = here.map(|page| format!("{} {}\n", if page.2 { "POST" } else { "GET " }, page.0)).collect();
        let answer = text(StatusCode::NOT_FOUND, format!("no such page; there are:\n{list}"));
        return Err(Refused(Box::new(answer)));
    };
    let fits = if *changes { *method == Method::POST } else { *method == Method::GET || *method == Method::HEAD };
    if !fits {
        let allow = if *changes { "POST" } else { "GET, HEAD" };
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{} takes {allow}\n", uri.path()));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        return Err(Refused(Box::new(answer)));
    }
    if *changes && let Surface::Admin(plan) = surface {
        guard::may_change(plan, caller, headers)?;
    }
    Ok(*page)
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    reasons: Vec<String>,
}

async fn ready_page(house: &House, uri: &Uri, headers: &HeaderMap) -> Answer {
    let mut reasons = ready::reasons(house, Instant::now());
    if asks_app(uri.query().unwrap_or_default()) {
        reasons.extend(ready::app_reasons(&house.rooms.plan()).await);
    }
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let wants_json = |value: &HeaderValue| value.to_str().is_ok_and(|value| value.contains("application/json"));
    if headers.get_all(http::header::ACCEPT).iter().any(wants_json) {
        return json(status, &Ready { ready: reasons.is_empty(), reasons });
    }
    if reasons.is_empty() {
        return text(status, "ready\n");
    }
    text(status, reasons.join("\n") + "\n")
}

fn asks_app(query: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next() == Some("app"))
}

fn metrics_page(house: &House) -> Answer {
    let plan = house.rooms.plan();
    let apps = plan.peers.iter().filter(|peer| peer.kind == PeerKind::App).map(|peer| peer.name.clone());
    let facts = exposition::Facts {
        service: plan.service.clone(),
        apps: apps.chain([PeerName::new(dialled::APPS)]).collect(),
        started: house.started,
        process: exposition::Process::now(),
        identity: house.rooms.identity().map(|identity| identity_facts(&identity)),
    };
    house.metrics.forget_gone();
    let text = exposition::render(&house.metrics, facts);
    made(StatusCode::OK, HeaderValue::from_static(exposition::CONTENT_TYPE), text)
}

fn identity_facts(identity: &IdentityState) -> exposition::IdentityFacts {
    let expiries = identity.first_expiries().into_iter();
    exposition::IdentityFacts {
        expiries: expiries.map(|((of, domain), unix)| (of, domain.to_owned(), unix)).collect(),
        rotations: identity.rotations,
        refusals: identity.refusals,
    }
}

async fn reload_page(house: &House) -> Answer {
    match house.reloads.reload(Trigger::Admin).await {
        Some(outcome) if outcome.applied => json(StatusCode::OK, &outcome),
        Some(outcome) => json(StatusCode::UNPROCESSABLE_ENTITY, &outcome),
        None => text(StatusCode::CONFLICT, "a shutdown has begun, nothing is reloaded any more\n"),
    }
}

fn drain_page(house: &House) -> Answer {
    info!("the admin server was asked to drain");
    house.stop.advance(Phase::Draining);
    let grace = house.rooms.plan().grace;
    text(StatusCode::ACCEPTED, format!("draining; ends within {grace:?}\n"))
}

#[derive(Serialize)]
struct State {
    service: Arc<str>,
    version: &'static str,
    pid: u32,
    started: Stamp,
    uptime_seconds: u64,
    phase: &'static str,
    not_ready: Vec<String>,
    doors: Vec<DoorState>,
    /// By door or route; without those that have no limit.
    limits: BTreeMap<String, BTreeMap<&'static str, LimitState>>,
    peers: Vec<PeerState>,
    /// What captured connections have taught; absent in explicit mode.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    captured: Vec<Destination>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dns: Option<DnsState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<IdentityState>,
    /// Who would be refused if `inbound.mtls` were `strict`; absent where it is not `permissive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<PlaintextState>,
    /// Whose tokens are believed, and how many of their keys are known.
    issuers: Vec<SourceState>,
    config: Report,
}

#[derive(Serialize)]
struct DoorState {
    side: &'static str,
    listen: String,
    /// The peer it leads to; none where the authority decides.
    peer: Option<String>,
    protocol: String,
}

impl State {
    fn of(house: &House) -> Self {
        let (plan, now) = (house.rooms.plan(), Instant::now());
        Self {
            service: plan.service.clone(),
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            started: Stamp(house.started),
            uptime_seconds: now.saturating_duration_since(house.since).as_secs(),
            phase: match house.stop.phase() {
                Phase::Open => "open",
                Phase::Draining => "draining",
                Phase::Forced => "forced",
            },
            not_ready: ready::reasons(house, now),
            doors: plan.doors.iter().map(|door| DoorState::of(door, &plan)).collect(),
            limits: house.rooms.gates(),
            peers: house.rooms.peers(),
            captured: house.rooms.destinations(),
            dns: house.rooms.dns(),
            identity: house.rooms.identity(),
            plaintext: plan.is_permissive().then(|| house.metrics.plaintext.state(SystemTime::now())),
            issuers: house.rooms.issuers(),
            config: house.reloads.report(),
        }
    }
}

impl DoorState {
    fn of(door: &DoorPlan, plan: &Plan) -> Self {
        let name = |at: usize| plan.peers.get(at).map(|peer| PeerName::to_string(&peer.name));
        Self {
            side: door.side.word(),
            listen: door.listen.to_string(),
            peer: match door.leads {
                Leads::Peer(at) => name(at),
                Leads::ByAuthority | Leads::Dialled => None,
            },
            protocol: format!("{:?}", door.protocol).to_ascii_lowercase(),
        }
    }
}

/// A line or more of text.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    made(status, HeaderValue::from_static("text/plain; charset=utf-8"), body)
}

fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    match serde_json::to_vec_pretty(value) {
        Ok(mut body) => {
            body.push(b'\n');
            made(status, HeaderValue::from_static("application/json"), body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer cannot be written: {error}\n")),
    }
}

fn made(status: StatusCode, content_type: HeaderValue, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, content_type);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    answer
}
