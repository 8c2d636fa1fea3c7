//! The admin server and its read-only sibling: small, bounded, on the control thread.

pub mod answer;
pub mod client;
pub mod guard;
pub mod listen;
#[cfg(test)]
mod testing;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};
use tower::util::BoxCloneService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};
use tracing::{debug, warn};

use crate::control::House;
use crate::life::tasks::Tasks;
use crate::net::io::Io;
use answer::{Answer, Surface, answer, text};
use guard::Caller;
use listen::Listener;

/// Connections open at once; for one more, the one that has been idle for longest is closed.
const CONNECTIONS: usize = 32;
/// Requests answered at once; more are told to come back.
const REQUESTS: usize = 16;
/// From the end of one answer to the end of the next head.
const HEAD_CLOCK: Duration = Duration::from_secs(10);
/// The same where the network can reach us: a scraper that comes every few seconds can connect anew.
const STATUS_HEAD_CLOCK: Duration = Duration::from_secs(2);
/// How long one that is asked to leave may still send the end of its last answer.
const LEAVE_CLOCK: Duration = Duration::from_millis(500);
/// How long to wait for a place before looking again for one that has become idle.
const PLACE_REST: Duration = Duration::from_millis(100);
/// From a request's head to its answer's.
const ANSWER_CLOCK: Duration = Duration::from_secs(15);
/// A connection serves no new request after this, and a reader who stands still is cut off soon after.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
const LAST_ANSWER: Duration = Duration::from_secs(30);
const HEAD_BYTES: usize = 16 * 1024;
const HEAD_FIELDS: usize = 64;
/// Between two accept calls that fail.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Serves until dropped. One task per connection goes to `tasks`.
pub async fn serve(listener: Listener, house: Arc<House>, surface: Surface, tasks: Tasks) {
    let head_clock = if matches!(surface, Surface::Status) { STATUS_HEAD_CLOCK } else { HEAD_CLOCK };
    let pages = service_fn(move |(caller, request): (Caller, Request<Incoming>)| {
        let (house, surface) = (house.clone(), surface.clone());
        let (head, _body) = request.into_parts();
        async move { Ok::<Answer, BoxError>(answer(&house, &surface, caller, &head).await) }
    });
    let limits = ServiceBuilder::new().load_shed().concurrency_limit(REQUESTS).timeout(ANSWER_CLOCK);
    let pages: Pages = BoxCloneService::new(limits.service(pages));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let seats = Arc::new(Seats::default());
    loop {
        let permit = place(&permits, &seats).await;
        match listener.accept().await {
            Ok((io, caller)) => {
                let (seat, seats) = (seats.take(), seats.clone());
                let connection = connection(io, caller, pages.clone(), head_clock, seat.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    connection.await;
                    seats.leave(&seat);
                });
            }
            Err(error) => {
                warn!(%error, "the admin server cannot accept connections");
                sleep(ACCEPT_REST).await;
            }
        }
    }
}

/// The pages behind their limits; boxed because the limits' own type cannot be written.
type Pages = BoxCloneService<(Caller, Request<Incoming>), Answer, BoxError>;

/// A place for the next connection, made by closing an idle one where there is none.
async fn place(permits: &Arc<Semaphore>, seats: &Seats) -> OwnedSemaphorePermit {
    loop {
        if let Ok(permit) = permits.clone().try_acquire_owned() {
            return permit;
        }
        seats.free_one();
        // Late or not, the next try tells.
        if let Ok(Ok(permit)) = timeout(PLACE_REST, permits.clone().acquire_owned()).await {
            return permit;
        }
    }
}

/// One open connection, as the others see it.
struct Seat {
    /// Since when no request of it is being answered.
    idle: Mutex<Option<Instant>>,
    leave: Notify,
}

/// The open connections.
#[derive(Default)]
struct Seats(Mutex<Vec<Arc<Seat>>>);

impl Seats {
    fn take(&self) -> Arc<Seat> {
        let seat = Arc::new(Seat { idle: Mutex::new(Some(Instant::now())), leave: Notify::new() });
        self.0.lock().push(seat.clone());
        seat
    }

    fn leave(&self, seat: &Arc<Seat>) {
        self.0.lock().retain(|other| !Arc::ptr_eq(other, seat));
    }

    /// Asks the one that has been idle for longest to leave.
    fn free_one(&self) {
        let seats = self.0.lock();
        let idle = seats.iter().filter_map(|seat| Some((*seat.idle.lock().as_ref()?, seat)));
        if let Some((_, seat)) = idle.min_by_key(|(since, _)| *since) {
            seat.leave.notify_one();
        }
    }
}

async fn connection(io: Io, caller: Caller, pages: Pages, head_clock: Duration, seat: Arc<Seat>) {
    let asked = seat.clone();
    let service = hyper::service::service_fn(move |request| {
        let (pages, seat) = (pages.clone(), asked.clone());
        async move {
            *seat.idle.lock() = None;
            let answered = pages.oneshot((caller, request)).await;
            *seat.idle.lock() = Some(Instant::now());
            Ok::<Answer, Infallible>(answered.unwrap_or_else(|error| refused(&error)))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_clock).max_headers(HEAD_FIELDS).max_buf_size(HEAD_BYTES);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(io), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = seat.leave.notified() => {
            connection.as_mut().graceful_shutdown();
            timeout(LEAVE_CLOCK, connection).await.unwrap_or(Ok(()))
        }
        () = sleep(CONNECTION_LIFE) => {
            connection.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the admin server broke");
    }
}

/// What the limits around the pages say when they are reached.
fn refused(error: &BoxError) -> Answer {
    if error.is::<tower::timeout::error::Elapsed>() {
        return text(StatusCode::GATEWAY_TIMEOUT, "the answer took too long\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once, try again\n")
}

#[cfg(test)]
mod tests {
    use super::testing::{Desk, folder};
    use super::*;
    use crate::control::testing::plan;
    use crate::ids::PeerName;
    use crate::life::drain::Phase;

    #[tokio::test]
    async fn pages_and_methods() {
        let desk = Desk::tcp(plan(), None).await;
        for (request, status, holds) in [
            ("GET /live", 200, "live"),
            ("HEAD /live", 200, ""),
            ("GET /ready", 503, "starting: the doors are not open yet"),
            ("GET /metrics", 200, "outrigger_build_info{service=\"checkout\""),
            ("GET /state", 200, "\"service\": \"checkout\""),
            ("GET /nowhere", 404, "POST /reload"),
            ("GET /reload", 405, "POST"),
            ("POST /live", 405, "GET, HEAD"),
            ("DELETE /state", 405, "GET, HEAD"),
            ("POST /reload", 403, "admin: { listen: \"unix:/PATH\" }"),
            ("POST /drain", 403, "token"),
            ("OPTIONS *", 404, "GET  /live"),
        ] {
            let (found, body) = desk.ask(request, &[("host", "localhost")]).await;
            assert_eq!(found, status, "{request}: {body}");
            assert!(body.contains(holds), "{request}: {body}");
            assert!(!request.starts_with("HEAD") || body.is_empty());
        }
        assert_eq!(desk.ask("GET /live", &[("host", "evil.example")]).await.0, 403);
        assert_eq!(desk.ask("GET /live", &[("host", "localhost"), ("origin", "http://localhost")]).await.0, 403);
        assert_eq!(desk.ask("GET /live", &[]).await.0, 400);
        assert_eq!(desk.fake.house.stop.phase(), Phase::Open);
    }

    #[tokio::test]
    async fn readiness_follows_the_house() {
        let desk = Desk::tcp(plan(), None).await;
        let ready = [("host", "localhost")];
        desk.fake.house.opened.set();
        desk.fake.pending(&[PeerName::new("payments")]);
        let (status, body) = desk.ask("GET /ready", &[("host", "localhost"), ("accept", "application/json")]).await;
        let said: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &said["ready"]), (503, &serde_json::json!(false)));
        assert!(said["reasons"][0].as_str().unwrap().contains("payments"));
        desk.fake.pending(&[]);
        assert_eq!(desk.ask("GET /ready", &ready).await, (200, "ready\n".to_owned()));
        let (status, body) = desk.ask("GET /ready?app", &ready).await;
        assert_eq!(status, 503);
        assert!(body.contains("app: 127.0.0.1:1 does not take connections"), "{body}");
        desk.fake.house.stop.advance(Phase::Draining);
        assert_eq!(desk.ask("GET /ready", &ready).await.0, 503);
    }

    #[tokio::test]
    async fn the_unix_sockets_owner_may_change_things() {
        use std::os::unix::fs::PermissionsExt;

        let folder = folder();
        let path = folder.join("admin.sock");
        let mut desk = Desk::unix(plan(), &path).await;
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let bad = desk.run_reloader();
        let any_host = [("host", "whatever")];
        let (status, body) = desk.ask("POST /reload", &any_host).await;
        let said: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((status, &said["applied"], &said["trigger"]), (200, &true.into(), &"admin".into()));
        bad.store(true, std::sync::atomic::Ordering::Relaxed);
        let (status, body) = desk.ask("POST /reload", &any_host).await;
        assert_eq!(status, 422);
        assert!(body.contains("outrigger.yaml:1:1: bad"), "{body}");
        let (_, state) = desk.ask("GET /state", &any_host).await;
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        assert_eq!(state["config"]["last"]["problems"][0], "outrigger.yaml:1:1: bad");
        assert_eq!(state["peers"][0]["name"], "app");
        let (status, body) = desk.ask("POST /drain", &any_host).await;
        assert_eq!((status, body.as_str()), (202, "draining; ends within 25s\n"));
        assert_eq!(desk.fake.house.stop.phase(), Phase::Draining);
        assert_eq!(desk.ask("POST /reload", &any_host).await.0, 409);
    }

    #[tokio::test]
    async fn the_token_opens_tcp() {
        use std::os::unix::fs::PermissionsExt;

        let folder = folder();
        let path = folder.join("token");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let desk = Desk::tcp(plan(), Some(path)).await;
        let host = ("host", "localhost");
        assert_eq!(desk.ask("POST /drain", &[host]).await.0, 401);
        let right = ("authorization", "Bearer 0123456789abcdef0123456789abcdef");
        assert_eq!(desk.ask("POST /drain", &[host, right]).await.0, 202);
    }

    #[tokio::test]
    async fn the_status_server_only_tells() {
        let desk = Desk::status(plan()).await;
        for (request, status) in
            [("GET /live", 200), ("GET /metrics", 200), ("GET /ready", 503), ("GET /state", 404), ("POST /drain", 404)]
        {
            assert_eq!(desk.ask(request, &[("host", "10.1.2.3:15020")]).await.0, status, "{request}");
        }
    }

    #[tokio::test]
    async fn heads_are_bounded() {
        let desk = Desk::tcp(plan(), None).await;
        let long = "x".repeat(2 * HEAD_BYTES);
        let (status, _) = desk.ask("GET /live", &[("host", "localhost"), ("x-long", &long)]).await;
        assert_eq!(status, 431);
    }

    #[tokio::test]
    async fn idle_connections_make_room() {
        let desk = Desk::tcp(plan(), None).await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS {
            silent.push(desk.silent().await);
        }
        assert_eq!(desk.ask("GET /live", &[("host", "localhost")]).await.0, 200);
        // Not all at once, as when their clock is over.
        let open = silent.into_iter().filter(|io| {
            let io = socket2::SockRef::from(io);
            matches!(io.peek(&mut [std::mem::MaybeUninit::uninit()]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        });
        assert!(open.count() >= CONNECTIONS - 3);
    }
}
