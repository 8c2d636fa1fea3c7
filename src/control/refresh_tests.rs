//! Names and control files followed for real: a DNS server on loopback, files in a folder of the test's own.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_resolver::proto::rr::RecordType;

use super::*;
use crate::control::files;
use crate::dns::keeper::Step;
use crate::dns::system::Files;
use crate::dns::testserver::{Say, TestServer, ips, service};
use crate::plan::DnsPlan;
use crate::plan::door::Otherwise;

/// What a target was told, for a test to wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) endpoints: Vec<String>,
    pub(crate) standing: &'static str,
    pub(crate) failures: usize,
}

pub(crate) struct Fake {
    name: PeerName,
    doubts: Arc<Notify>,
    began: Vec<EndpointSpec>,
    told: watch::Sender<Told>,
}

impl Fake {
    fn new(name: &str) -> Arc<Self> {
        Self::knowing(name, &[])
    }

    /// One that begins with endpoints.
    fn knowing(name: &str, addresses: &[&str]) -> Arc<Self> {
        let began = addresses.iter().map(|addr| EndpointSpec::bare(addr.parse().unwrap())).collect();
        let told = Told { endpoints: addresses.iter().map(ToString::to_string).collect(), ..Told::default() };
        Arc::new(Self { name: PeerName::new(name), doubts: Arc::default(), began, told: watch::Sender::new(told) })
    }

    fn wanted(self: &Arc<Self>, addresses: Addresses) -> Wanted {
        Wanted { target: self.clone(), addresses }
    }

    /// Waits until it is told exactly these endpoints and this standing.
    async fn until(&self, endpoints: &[&str], standing: &str) {
        let mut told = self.told.subscribe();
        let fits = |told: &Told| told.endpoints == endpoints && told.standing == standing;
        told.wait_for(fits).await.unwrap();
    }

    fn failures(&self) -> usize {
        self.told.borrow().failures
    }
}

impl Target for Fake {
    fn name(&self) -> &PeerName {
        &self.name
    }

    fn endpoints(&self) -> Vec<EndpointSpec> {
        self.began.clone()
    }

    fn replace(&self, endpoints: Vec<EndpointSpec>) -> (usize, usize) {
        let count = endpoints.len();
        self.told.send_modify(|told| told.endpoints = endpoints.iter().map(|spec| spec.addr.to_string()).collect());
        (count, 0)
    }

    fn stand(&self, standing: &Standing) {
        self.told.send_modify(|told| {
            told.standing = match standing {
                Standing::Ready => "ready",
                Standing::Empty { .. } => "empty",
                Standing::Stale { .. } => "stale",
                Standing::Failed { .. } => "failed",
            };
        });
    }

    fn count_failure(&self) {
        self.told.send_modify(|told| told.failures += 1);
    }

    fn doubts(&self) -> Arc<Notify> {
        self.doubts.clone()
    }
}

/// A folder of the test's own, removed with the value.
pub(crate) struct Dir(PathBuf);

impl Dir {
    pub(crate) fn new(test: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("outrigger-refresh-{test}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Puts a file there whole, as a careful writer does.
    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.at("new"), text).unwrap();
        std::fs::rename(self.at("new"), self.at(name)).unwrap();
    }

    /// A resolver that knows nothing of this machine and is in a hurry.
    pub(crate) fn resolver(&self, server: &TestServer, stale_for: Duration) -> Arc<Resolver> {
        let plan = DnsPlan {
            listen: Vec::new(),
            servers: vec![server.addr],
            floor: Duration::from_millis(5),
            ceiling: Duration::from_millis(10),
            stale_for,
            timeout: Duration::from_secs(20),
            hosts_file: true,
        };
        Resolver::with_files(&plan, Files { resolv_conf: self.at("resolv.conf"), hosts: self.at("hosts") })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const FOR_EVER: Duration = Duration::from_secs(3600);

fn refresher(resolver: Arc<Resolver>, parse: Parse) -> (Refresher, Tasks, Arc<Metrics>) {
    let (tasks, metrics) = (Tasks::default(), Arc::new(Metrics::default()));
    (Refresher::new(tasks.clone(), metrics.clone(), resolver, parse), tasks, metrics)
}

fn host(name: &str) -> Addresses {
    Addresses::Dns { host: name.into(), port: 80 }
}

#[tokio::test]
async fn a_name_is_followed_through_changes_absence_and_failure() {
    let (server, dir) = (TestServer::start().await, Dir::new("name"));
    server.say("db.test", RecordType::A, Say::Records(ips("db.test", 1, &["10.0.0.1"])));
    server.say("db.test", RecordType::AAAA, Say::NoData(None));
    let (refresher, tasks, _) = refresher(dir.resolver(&server, FOR_EVER), files::parse);
    let db = Fake::new("db");
    refresher.set(&[db.wanted(host("db.test"))]);
    db.until(&["10.0.0.1:80"], "ready").await;
    assert!(refresher.first_answers(FOR_EVER).await);
    server.say("db.test", RecordType::A, Say::Records(ips("db.test", 1, &["10.0.0.2", "10.0.0.1"])));
    db.until(&["10.0.0.1:80", "10.0.0.2:80"], "ready").await;
    server.say("db.test", RecordType::A, Say::Code(ResponseCode::ServFail));
    db.until(&["10.0.0.1:80", "10.0.0.2:80"], "stale").await;
    assert!(db.failures() > 0);
    server.say("db.test", RecordType::A, Say::NoData(None));
    // The negative answer without SOA holds for a while; a new round does not wait for it.
    refresher.ask_again();
    db.until(&[], "empty").await;
    server.say("db.test", RecordType::A, Say::Records(ips("db.test", 1, &["10.0.0.3"])));
    refresher.ask_again();
    db.until(&["10.0.0.3:80"], "ready").await;
    refresher.set(&[]);
    tasks.idle().await;
}

#[tokio::test]
async fn the_last_good_answer_is_dropped_in_the_end() {
    let (server, dir) = (TestServer::start().await, Dir::new("stale"));
    server.say("_db._tcp.test", RecordType::SRV, Say::Records(vec![service("_db._tcp.test", 1, (1, 2, 99), "a.test")]));
    server.say("a.test", RecordType::A, Say::Records(ips("a.test", 1, &["10.0.0.1"])));
    server.say("a.test", RecordType::AAAA, Say::NoData(None));
    let (refresher, ..) = refresher(dir.resolver(&server, Duration::from_millis(100)), files::parse);
    let db = Fake::new("db");
    refresher.set(&[db.wanted(Addresses::Srv { name: "_db._tcp.test".into() })]);
    db.until(&["10.0.0.1:99"], "ready").await;
    server.say("_db._tcp.test", RecordType::SRV, Say::Code(ResponseCode::ServFail));
    db.until(&["10.0.0.1:99"], "stale").await;
    db.until(&[], "failed").await;
}

#[tokio::test]
async fn what_a_peer_began_with_outlives_failures_and_not_an_answer() {
    let (server, dir) = (TestServer::start().await, Dir::new("began"));
    server.say("db.test", RecordType::A, Say::Code(ResponseCode::ServFail));
    server.say("db.test", RecordType::AAAA, Say::NoData(None));
    let (refresher, ..) = refresher(dir.resolver(&server, FOR_EVER), files::parse);
    let db = Fake::knowing("db", &["10.0.0.1:80"]);
    refresher.set(&[db.wanted(host("db.test"))]);
    db.until(&["10.0.0.1:80"], "stale").await;
    assert!(refresher.first_answers(FOR_EVER).await);
    server.say("db.test", RecordType::A, Say::NoData(None));
    refresher.ask_again();
    db.until(&[], "empty").await;
}

#[tokio::test]
async fn a_kept_peer_goes_on_undisturbed_and_a_removed_one_ends() {
    let (server, dir) = (TestServer::start().await, Dir::new("kept"));
    for name in ["a.test", "b.test"] {
        server.say(name, RecordType::A, Say::Records(ips(name, 1, &["10.0.0.1"])));
        server.say(name, RecordType::AAAA, Say::NoData(None));
    }
    let mut plan = dir.resolver(&server, FOR_EVER).plan().clone();
    plan.floor = FOR_EVER;
    plan.ceiling = FOR_EVER;
    let files = Files { resolv_conf: dir.at("resolv.conf"), hosts: dir.at("hosts") };
    let (refresher, tasks, _) = refresher(Resolver::with_files(&plan, files), files::parse);
    let (a, b) = (Fake::new("a"), Fake::new("b"));
    refresher.set(&[a.wanted(host("a.test"))]);
    a.until(&["10.0.0.1:80"], "ready").await;
    refresher.set(&[b.wanted(host("b.test")), a.wanted(host("a.test"))]);
    b.until(&["10.0.0.1:80"], "ready").await;
    assert_eq!((server.count("a.test", RecordType::A), tasks.running()), (1, 2));
    refresher.set(&[b.wanted(host("b.test"))]);
    refresher.ask_again();
    server.until_asked("b.test", RecordType::A, 2).await;
    assert_eq!(server.count("a.test", RecordType::A), 1);
    drop(refresher);
    tasks.idle().await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_has_its_name_asked_for_early() {
    let (server, dir) = (TestServer::start().await, Dir::new("doubt"));
    server.say("db.test", RecordType::A, Say::Records(ips("db.test", 3600, &["10.0.0.1"])));
    server.say("db.test", RecordType::AAAA, Say::NoData(None));
    let mut plan = dir.resolver(&server, FOR_EVER).plan().clone();
    plan.ceiling = FOR_EVER;
    let files = Files { resolv_conf: dir.at("resolv.conf"), hosts: dir.at("hosts") };
    let (refresher, ..) = refresher(Resolver::with_files(&plan, files), files::parse);
    let db = Fake::new("db");
    refresher.set(&[db.wanted(host("db.test"))]);
    db.until(&["10.0.0.1:80"], "ready").await;
    server.say("db.test", RecordType::A, Say::Records(ips("db.test", 3600, &["10.0.0.2"])));
    for _ in 0..100 {
        db.doubts.notify_one();
    }
    db.until(&["10.0.0.2:80"], "ready").await;
    assert_eq!(server.count("db.test", RecordType::A), 2, "many at once are one question");
}

#[tokio::test(start_paused = true)]
async fn an_early_question_waits_for_the_floor_and_for_servers_that_answer() {
    let (floor, doubts) = (Duration::from_secs(7), Arc::new(Notify::new()));
    let plan = DnsPlan {
        listen: Vec::new(),
        servers: vec!["127.0.0.1:1".parse().unwrap()],
        floor,
        ceiling: FOR_EVER,
        stale_for: FOR_EVER,
        timeout: floor,
        hosts_file: false,
    };
    let (refresher, ..) = refresher(Resolver::new(&plan), files::parse);
    let start = Instant::now();
    let step = |failed: bool, addresses: &[&str]| Step {
        endpoints: addresses.iter().map(|addr| EndpointSpec::bare(addr.parse().unwrap())).collect(),
        next: start + FOR_EVER,
        standing: Standing::Ready,
        failed,
    };
    let early = refresher.shared().early(&doubts, &step(false, &["10.0.0.1:80"]));
    doubts.notify_one();
    early.await;
    assert_eq!(start.elapsed(), floor);
    for unanswered in [step(true, &["10.0.0.1:80"]), step(false, &[])] {
        doubts.notify_one();
        assert!(timeout(FOR_EVER, refresher.shared().early(&doubts, &unanswered)).await.is_err());
    }
    assert!(
        timeout(FOR_EVER, refresher.shared().early(&Arc::new(Notify::new()), &step(false, &["10.0.0.1:80"])))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn the_wait_for_first_answers_has_an_end() {
    let (server, dir) = (TestServer::start().await, Dir::new("first"));
    server.say("slow.test", RecordType::A, Say::Nothing);
    server.say("slow.test", RecordType::AAAA, Say::Nothing);
    let (refresher, ..) = refresher(dir.resolver(&server, FOR_EVER), files::parse);
    assert!(refresher.first_answers(FOR_EVER).await, "no peer, nothing to wait for");
    let (slow, absent) = (Fake::new("slow"), Fake::new("absent"));
    refresher.set(&[slow.wanted(host("slow.test")), absent.wanted(Addresses::File { path: dir.at("absent.yaml") })]);
    absent.until(&[], "failed").await;
    assert!(!refresher.first_answers(Duration::from_millis(20)).await);
    refresher.set(&[absent.wanted(Addresses::File { path: dir.at("absent.yaml") })]);
    assert!(refresher.first_answers(FOR_EVER).await, "what is gone is not waited for");
}

#[tokio::test]
async fn an_answer_that_leads_to_an_own_listener_is_left_out() {
    let (server, dir) = (TestServer::start().await, Dir::new("own"));
    server.say("loop.test", RecordType::A, Say::Records(ips("loop.test", 1, &["127.0.0.1", "10.0.0.1"])));
    server.say("loop.test", RecordType::AAAA, Say::NoData(None));
    let (refresher, ..) = refresher(dir.resolver(&server, FOR_EVER), files::parse);
    let own =
        |own: &str| Egress { otherwise: Otherwise::Deny, allow: Arc::new([]), own: Arc::new([own.parse().unwrap()]) };
    refresher.set_egress(own("0.0.0.0:80"));
    let peer = Fake::new("loop");
    refresher.set(&[peer.wanted(host("loop.test"))]);
    peer.until(&["10.0.0.1:80"], "ready").await;
    server.say("loop.test", RecordType::A, Say::Records(ips("loop.test", 1, &["127.0.0.1"])));
    peer.until(&[], "empty").await;
    refresher.set_egress(own("0.0.0.0:81"));
    peer.until(&["127.0.0.1:80"], "ready").await;
    // The same for a control file.
    dir.put("peers.yaml", "peers: { file: [127.0.0.1:81, 10.0.0.1:81] }\n");
    let file = Fake::new("file");
    refresher.set(&[file.wanted(Addresses::File { path: dir.at("peers.yaml") })]);
    file.until(&["10.0.0.1:81"], "ready").await;
}

static PARSED: AtomicUsize = AtomicUsize::new(0);

fn counted(text: &str, path: &Path) -> Result<files::Peers, String> {
    PARSED.fetch_add(1, Ordering::Relaxed);
    files::parse(text, path)
}

#[tokio::test]
async fn one_control_file_serves_several_peers_and_keeps_its_last_good_content() {
    let (server, dir) = (TestServer::start().await, Dir::new("file"));
    let (refresher, tasks, metrics) = refresher(dir.resolver(&server, FOR_EVER), counted);
    let path = || Addresses::File { path: dir.at("peers.yaml") };
    let (a, b, c) = (Fake::new("a"), Fake::new("b"), Fake::new("c"));
    dir.put("peers.yaml", "peers: { a: [10.0.0.1:80], b: [10.0.0.2:80, 10.0.0.3:80], c: [10.0.0.9:80] }\n");
    refresher.set(&[a.wanted(path()), b.wanted(path())]);
    a.until(&["10.0.0.1:80"], "ready").await;
    b.until(&["10.0.0.2:80", "10.0.0.3:80"], "ready").await;
    assert_eq!(PARSED.load(Ordering::Relaxed), 1, "read once for both");

    // A peer that joins later gets its part of what is known.
    refresher.set(&[a.wanted(path()), b.wanted(path()), c.wanted(path())]);
    c.until(&["10.0.0.9:80"], "ready").await;
    assert_eq!(PARSED.load(Ordering::Relaxed), 1);

    // A broken file changes nothing.
    dir.put("peers.yaml", "peers: { a: [10.0.0.1:8");
    a.until(&["10.0.0.1:80"], "stale").await;
    c.until(&["10.0.0.9:80"], "stale").await;
    assert_eq!((metrics.control_file_rejected.get(), a.failures()), (1, 1));

    // An empty list removes, a missing one is refused for that peer.
    dir.put("peers.yaml", "peers: { a: [], b: [10.0.0.2:80] }\n");
    a.until(&[], "empty").await;
    b.until(&["10.0.0.2:80"], "ready").await;
    c.until(&["10.0.0.9:80"], "stale").await;
    assert_eq!(metrics.control_file_rejected.get(), 2);

    dir.put("peers.yaml", "peers: { a: [10.0.0.1:80], b: [10.0.0.2:80], c: [\"unix:/run/c.sock\"] }\n");
    a.until(&["10.0.0.1:80"], "ready").await;
    c.until(&["unix:/run/c.sock"], "ready").await;

    // So does a file that is gone.
    std::fs::remove_file(dir.at("peers.yaml")).unwrap();
    b.until(&["10.0.0.2:80"], "stale").await;
    refresher.set(&[]);
    drop(refresher);
    tasks.idle().await;
}

#[test]
fn many_problems_of_a_file_are_told_in_one_bounded_line() {
    let lines: String = (0..9).map(|n| format!("  - 10.0.0.{n}\n")).collect();
    let why = files::parse(&format!("peers:\n a:\n{lines}"), Path::new("peers.yaml")).unwrap_err();
    assert!(why.starts_with("peers.yaml:3:"), "{why}");
    assert!(why.ends_with("; and 4 more") && !why.contains('\n'), "{why}");
}

#[test]
fn a_log_line_names_what_changed_up_to_a_bound() {
    let specs = |range: std::ops::Range<u16>| {
        range.map(|port| EndpointSpec::bare(format!("10.0.0.1:{port}").parse().unwrap())).collect::<Vec<_>>()
    };
    for (before, after, want) in [
        (specs(1..1), specs(1..3), " +10.0.0.1:1 +10.0.0.1:2"),
        (specs(1..3), specs(2..4), " +10.0.0.1:3 -10.0.0.1:1"),
        (
            specs(1..1),
            specs(1..1000),
            " +10.0.0.1:1 +10.0.0.1:2 +10.0.0.1:3 +10.0.0.1:4 +10.0.0.1:5 +10.0.0.1:6 +10.0.0.1:7 +10.0.0.1:8 and 991 more",
        ),
    ] {
        assert_eq!(difference(&before, &after), want);
    }
    let mut heavier = specs(1..3);
    heavier[0].weight = 5;
    assert_eq!(difference(&specs(1..3), &heavier), " facts about the same addresses");
}
