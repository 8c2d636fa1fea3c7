//! The corridor over pipes in memory and a clock that stands still: every wait ends when it should, every exchange is
//! told of exactly once, whoever leaves and whenever.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use super::doors::LAST_HANDSHAKES;
use super::{Core, Learned, connection};
use crate::config::facts::Facts;
use crate::config::problem::Problems;
use crate::config::read;
use crate::ids::{ClientAddr, Door};
use crate::life::drain::Phase;
use crate::life::tasks::Tasks;
use crate::net::io::Io;
use crate::net::origdst::OriginalDst;
use crate::net::pipes::{self, PIPE};
use crate::plan::Plan;
use crate::plan::build::build;
use crate::plan::door::DoorPlan;
use crate::reason::Reason;
use crate::telemetry::access::{AccessLog, Which};
use crate::telemetry::line::Format;
use crate::telemetry::lines::Lines;
use crate::telemetry::metrics::{Metrics, PeerMetrics};
use crate::upstream::adhoc::{Adhoc, Rules, default_policy};
use crate::upstream::world::{Upstreams, World};

mod captured;
mod detection;
mod http2;
mod paths;
mod routes;
mod tunnels;

const GET: &str = "GET /path HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An inbound door with its app, all in memory.
struct House {
    core: Arc<Core>,
    plan: Arc<Plan>,
    learned: Arc<Learned>,
    /// The app's end of every connection to it.
    app: mpsc::Receiver<DuplexStream>,
    said: Text,
    log: Arc<Lines>,
    /// What the app's side of a test runs on.
    tasks: Tasks,
}

impl House {
    /// `more` follows in the `inbound` section.
    fn new(more: &str) -> Self {
        let (addr, app) = pipes::listen();
        let text = format!(
            "service: s\nadmin: {{ listen: off }}\ninbound: {{ listen: \"unix:/door\", app: \"{addr}\"{more} }}\n"
        );
        Self::of(&text, app)
    }

    /// With the whole file.
    fn of(text: &str, app: mpsc::Receiver<DuplexStream>) -> Self {
        let mut problems = Problems::new("f");
        let document = read(text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        let plan = Arc::new(build(&document.config, Path::new("/"), &mut problems).plan);
        assert!(problems.list().is_empty(), "{}", problems.sorted());
        let metrics = Arc::new(Metrics::default());
        let upstreams = Arc::new(Upstreams::new(metrics.clone(), Tasks::default()));
        let (adhoc, _) = Adhoc::new(upstreams.clone(), Arc::new(default_policy()), Rules::from(&*plan));
        let world = World::first(plan.clone(), &upstreams, adhoc).unwrap();
        let said = Text::default();
        let lines = Lines::start(said.clone(), metrics.clone()).unwrap();
        let access = AccessLog::new(Which::All, Format::Text, lines.clone());
        let core = Core {
            world: ArcSwap::from_pointee(world),
            metrics,
            access,
            inbound: Default::default(),
            outbound: Default::default(),
            stale: Default::default(),
            mirrors: Default::default(),
            destinations: Default::default(),
        };
        let learned = Learned::new(Instant::now());
        Self { core: Arc::new(core), plan, learned, app, said, log: lines, tasks: Tasks::default() }
    }

    /// A caller's connection on which `first` was written before anyone looks.
    async fn caller(&self, first: &str) -> DuplexStream {
        let (mut ours, theirs) = duplex(PIPE);
        ours.write_all(first.as_bytes()).await.unwrap();
        self.serve(theirs);
        ours
    }

    fn serve(&self, io: DuplexStream) {
        self.serve_io(Io::boxed(io));
    }

    fn serve_io(&self, io: Io) {
        let door = self.plan.doors.iter().find(|door| door.side == Door::Inbound).unwrap();
        let caller = super::Caller { client: ClientAddr(None), original: OriginalDst::EXPLICIT };
        self.serve_at(door, caller, &self.learned, io);
    }

    fn serve_at(&self, door: &Arc<DoorPlan>, caller: super::Caller, learned: &Arc<Learned>, io: Io) {
        let direction = self.core.direction(door.side);
        let conn = connection::accepted(&self.core, &self.plan, door, learned, caller, direction.drain.watch());
        direction.open.spawn(connection::serve(conn, io));
    }

    /// The app's end of the next connection to it.
    async fn app(&mut self) -> DuplexStream {
        self.app.recv().await.unwrap()
    }

    /// The app's end of the next connection, with a request's head read from it.
    async fn asked(&mut self) -> DuplexStream {
        let mut app = self.app().await;
        read_until(&mut app, "\r\n\r\n").await;
        app
    }

    fn metrics(&self) -> Arc<PeerMetrics> {
        self.core.metrics.peer(&self.plan.peers[0].name)
    }

    /// Waits for the end of every connection, then gives all lines; nothing may be left counted as open.
    async fn lines(&self) -> Vec<String> {
        self.core.inbound.open.idle().await;
        self.core.outbound.open.idle().await;
        assert!(self.log.close(Duration::from_secs(10)));
        assert_eq!(self.metrics().in_flight.get(), 0);
        String::from_utf8(self.said.0.lock().clone()).unwrap().lines().map(str::to_owned).collect()
    }

    /// As [`House::lines`] where there has to be one line, and one count in the metrics with the same reason.
    async fn line(&self) -> String {
        let lines = self.lines().await;
        assert_eq!(lines.len(), 1, "{lines:#?}");
        let told: Vec<&str> = lines[0].split("reason=").skip(1).filter_map(|rest| rest.split(' ').next()).collect();
        let counted: Vec<&str> = Reason::ALL
            .iter()
            .flat_map(|reason| {
                let door = &self.core.metrics.door(Door::Inbound).reasons;
                std::iter::repeat_n(reason.word(), (self.metrics().reasons.get(*reason) + door.get(*reason)) as usize)
            })
            .collect();
        assert_eq!(told, counted, "{lines:#?}");
        lines[0].clone()
    }

    /// How many exchanges were counted.
    fn exchanges(&self) -> u64 {
        self.metrics().answers.iter().map(|cell| cell.get()).sum()
    }
}

/// Reads until what was read ends with `end`.
async fn read_until(io: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = io.read_u8().await;
        read.push(byte.unwrap_or_else(|_| panic!("the end after {:?}", String::from_utf8_lossy(&read))));
    }
    String::from_utf8(read).unwrap()
}

async fn rest(io: &mut DuplexStream) -> String {
    let mut all = Vec::new();
    // A pipe that is dropped in the middle is an end like any other here.
    let _ = io.read_to_end(&mut all).await;
    String::from_utf8(all).unwrap()
}

async fn rest_bytes(io: &mut DuplexStream) -> Vec<u8> {
    let mut all = Vec::new();
    let _ = io.read_to_end(&mut all).await;
    all
}

async fn say(io: &mut DuplexStream, text: &str) {
    io.write_all(text.as_bytes()).await.unwrap();
}

fn seconds(start: Instant) -> u64 {
    start.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_gets_408_after_its_time() {
    let house = House::new("");
    let start = Instant::now();
    let mut caller = house.caller("GET /path HTTP/1.1\r\nHo").await;
    let answer = rest(&mut caller).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert_eq!(seconds(start), 10);
    let line = house.line().await;
    assert!(line.contains("reason=head_timeout side=client"), "{line}");
    assert_eq!(house.exchanges(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_unused_connection_is_closed_after_keep_alive_and_not_told_of() {
    let mut house = House::new("");
    let start = Instant::now();
    let mut caller = house.caller(GET).await;
    let mut app = house.asked().await;
    sleep(Duration::from_secs(100)).await;
    say(&mut app, OK).await;
    read_until(&mut caller, "hi").await;
    assert_eq!(rest(&mut caller).await, "");
    assert_eq!(seconds(start), 175);
    let line = house.line().await;
    assert!(line.contains("status=200") && !line.contains("reason="), "{line}");
    assert_eq!(house.exchanges(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_body_that_stands_still_gets_408() {
    let mut house = House::new("");
    let start = Instant::now();
    let mut caller = house.caller("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n").await;
    let mut app = house.asked().await;
    sleep(Duration::from_secs(59)).await;
    say(&mut caller, "part").await;
    read_until(&mut app, "part").await;
    let answer = rest(&mut caller).await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("reason=body_timeout"), "{answer}");
    assert_eq!(seconds(start), 59 + 60);
    assert_eq!(rest(&mut app).await, "");
    let line = house.line().await;
    assert!(line.contains("reason=body_timeout side=client") && line.contains("bytes_in=4"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stands_still_is_cut() {
    let mut house = House::new("");
    let start = Instant::now();
    let mut caller = house.caller(GET).await;
    let mut app = house.asked().await;
    say(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart").await;
    read_until(&mut caller, "part").await;
    assert_eq!(rest(&mut caller).await, "");
    assert_eq!(seconds(start), 60);
    assert_eq!(rest(&mut app).await, "");
    let line = house.line().await;
    assert!(line.contains("status=200 reason=response_timeout side=app"), "{line}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_does_not_read_is_left() {
    let mut house = House::new("");
    let start = Instant::now();
    let mut caller = house.caller(GET).await;
    let mut app = house.asked().await;
    let length = 64 * PIPE;
    say(&mut app, &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
    let wrote = app.write_all(&vec![b'x'; length]).await;
    assert!(wrote.is_err(), "the app's connection ends with the caller's");
    assert_eq!(seconds(start), 60);
    let line = house.line().await;
    assert!(line.contains("status=200 reason=client_gone"), "{line}");
    rest(&mut caller).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_no_longer_than_its_deadline_at_any_stage() {
    for (body, answer) in
        [("", ""), ("Content-Length: 9\r\n\r\npart", ""), ("", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")]
    {
        let mut house = House::new(", timeout: { request: 7s }");
        let start = Instant::now();
        let request = if body.is_empty() {
            GET.replace("Host", "Connection: close\r\nHost")
        } else {
            format!("POST /path HTTP/1.1\r\nHost: a\r\n{body}")
        };
        let mut caller = house.caller(&request).await;
        let mut app = house.asked().await;
        say(&mut app, answer).await;
        let got = rest(&mut caller).await;
        assert_eq!(seconds(start), 7, "{got}");
        let expected = if answer.is_empty() { "HTTP/1.1 504 " } else { "HTTP/1.1 200 " };
        assert!(got.starts_with(expected), "{got}");
        rest(&mut app).await;
        let line = house.line().await;
        assert!(line.contains("reason=deadline_passed"), "{line}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_own_deadline_counts_when_it_is_shorter() {
    let mut house = House::new(", timeout: { request: 7s }");
    let start = Instant::now();
    let mut caller = house
        .caller("POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nTE: trailers\r\ngrpc-timeout: 3S\r\nContent-Length: 0\r\n\r\n")
        .await;
    let _app = house.asked().await;
    let got = read_until(&mut caller, "\r\n\r\n").await;
    assert!(got.contains("grpc-status: 4\r\n"), "{got}");
    assert_eq!(seconds(start), 3);
}

#[tokio::test]
async fn the_kernel_waits_for_a_caller_as_long_as_an_answer_may_stand_still() {
    let house = House::new(", timeout: { idle: 90s }");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _caller = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let accepted = listener.accept().await.unwrap().0.into_std().unwrap();
    let same = accepted.try_clone().unwrap();
    house.serve_io(Io::Tcp(tokio::net::TcpStream::from_std(accepted).unwrap()));
    settle().await;
    let limit = socket2::SockRef::from(&same).tcp_user_timeout().unwrap();
    assert_eq!(limit, Some(Duration::from_secs(90)));
}

/// What is said, and by whom.
#[derive(Clone, Copy, Debug)]
enum Step {
    Caller(&'static str),
    App(&'static str),
}

use Step::{App, Caller};

const POST: &str = "POST /path HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";
const UPGRADE: &str = "GET /path HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";

/// What was said when the caller leaves, and words of the one line that is then written; `None` where nothing was asked.
const LEAVINGS: &[(&[Step], Option<&str>)] = &[
    // Within a head: nothing was asked.
    (&[Caller("GET /path HTTP/1.1\r\nHos")], None),
    // Before an answer.
    (&[Caller(GET)], Some("reason=client_gone side=client")),
    // Within its own body, and after it.
    (&[Caller(POST), Caller("part")], Some("reason=")),
    (&[Caller(POST), Caller("ninebytes")], Some("reason=client_gone side=client")),
    // Within the answer's head, and its body.
    (&[Caller(GET), App("HTTP/1.1 200 OK\r\nConte")], Some("reason=client_gone side=client")),
    (&[Caller(GET), App("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")], Some("status=200 reason=client_gone")),
    (&[Caller(GET), App("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")], Some("status=200 reason=client_gone")),
    (
        &[Caller(GET), App("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")],
        Some("status=200 reason=client_gone"),
    ),
    // After an informational answer, and a whole one.
    (&[Caller(GET), App("HTTP/1.1 103 Early Hints\r\n\r\n")], Some("reason=client_gone side=client")),
    (&[Caller(GET), App(OK)], Some("status=200 peer=")),
    // Before, and in, a tunnel.
    (&[Caller(UPGRADE)], Some("reason=client_gone side=client")),
    (&[Caller(UPGRADE), App(SWITCHED)], Some("status=101")),
    (&[Caller(UPGRADE), App(SWITCHED), App("some")], Some("status=101")),
];

/// Plays what is said, letting all that can go on do so after each; the ends that have come to be.
async fn play(house: &mut House, steps: &[Step]) -> (Option<DuplexStream>, Option<DuplexStream>) {
    let (mut caller, mut app) = (None, None);
    for step in steps {
        match step {
            Caller(text) => match &mut caller {
                None => caller = Some(house.caller(text).await),
                Some(caller) => say(caller, text).await,
            },
            App(text) => {
                if app.is_none() {
                    app = Some(house.asked().await);
                }
                say(app.as_mut().unwrap(), text).await;
            }
        }
        settle().await;
    }
    (caller, app)
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_is_counted_and_told_of_once_wherever_it_stands() {
    for (steps, expected) in LEAVINGS {
        let mut house = House::new("");
        let (caller, mut app) = play(&mut house, steps).await;
        if expected.is_some() && app.is_none() {
            app = Some(house.app().await);
        }
        drop(caller);
        match expected {
            None => assert_eq!(house.lines().await, Vec::<String>::new(), "{steps:?}"),
            Some(words) => {
                let line = house.line().await;
                assert!(line.contains(words), "{steps:?}: {line}");
                assert_eq!(house.exchanges(), 1, "{steps:?}");
            }
        }
        // A connection in the middle of an exchange is of no use to anyone else.
        if let Some(mut app) = app
            && *expected != Some("status=200 peer=")
        {
            rest(&mut app).await;
        }
    }
}

/// Lets everything that can go on do so; the clock stands.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_what_is_idle_and_lets_the_rest_finish() {
    let mut house = House::new("");
    let mut idle = house.caller(GET).await;
    let mut app = house.asked().await;
    say(&mut app, OK).await;
    read_until(&mut idle, "hi").await;
    let mut silent = house.caller("").await;
    let mut busy = house.caller(GET).await;
    read_until(&mut app, "\r\n\r\n").await;
    let mut tunnel = house.caller("*1\r\n").await;
    settle().await;
    // Who came just now may be about to speak.
    sleep(LAST_HANDSHAKES).await;
    let start = Instant::now();
    house.core.inbound.drain.advance(Phase::Draining);
    assert_eq!((rest(&mut silent).await, start.elapsed()), (String::new(), Duration::ZERO));
    assert_eq!((rest(&mut idle).await, start.elapsed()), (String::new(), LAST_HANDSHAKES));
    sleep(Duration::from_secs(9)).await;
    say(&mut app, OK).await;
    let answer = rest(&mut busy).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hi"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    say(&mut tunnel, "more").await;
    settle().await;
    assert_eq!(house.core.inbound.open.running(), 1);
    house.core.inbound.drain.advance(Phase::Forced);
    assert_eq!(rest(&mut tunnel).await, "");
    let lines = house.lines().await;
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[2].contains("reason=grace_over side=proxy") && lines[2].contains("bytes_in=8"), "{}", lines[2]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_on_its_way_when_a_drain_begins_is_served_and_its_connection_ends() {
    // Between two requests, and within a head.
    for (before, after) in [GET.split_at(0), GET.split_at(9)] {
        let mut house = House::new("");
        let mut caller = house.caller(GET).await;
        let mut app = house.asked().await;
        say(&mut app, OK).await;
        read_until(&mut caller, "hi").await;
        sleep(LAST_HANDSHAKES * 10).await;
        say(&mut caller, before).await;
        settle().await;
        house.core.inbound.drain.advance(Phase::Draining);
        sleep(LAST_HANDSHAKES / 2).await;
        say(&mut caller, after).await;
        read_until(&mut app, "\r\n\r\n").await;
        say(&mut app, OK).await;
        let answer = rest(&mut caller).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_forced_end_does_not_wait_and_tells_of_what_it_cut() {
    let mut house = House::new("");
    let mut waiting = house.caller(GET).await;
    let _app = house.asked().await;
    house.core.inbound.drain.advance(Phase::Forced);
    assert_eq!(rest(&mut waiting).await, "");
    let line = house.line().await;
    assert!(line.contains("reason="), "{line}");
    assert_eq!(house.exchanges(), 1);
}
