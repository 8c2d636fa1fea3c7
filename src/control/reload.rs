//! A changed file becomes the World in force, whole or not at all.
//!
//! One task does all reloads, one after the other; what asks for one while one runs is answered by the next, however
//! many ask. The steps (`Works`) are the wiring's; their order and what a problem at each means are decided here:
//!
//! ```text
//! read + check ── restart needed? ── bind doors, build ── apply (cannot fail) ── told
//!       └──────────────┴─────────────────────┴── any problem: nothing has changed, told
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::life::drain::{Phase, Watch};
use crate::plan::Plan;
use crate::plan::redirect::{AppCapture, Capture, DoorPorts, Way};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::stamp::Stamp;

/// Requests for a reload that may wait for the running one.
const WAITING: usize = 64;

/// A refused file is tried again this often: what it was refused for may stand outside it.
const AGAIN: Duration = Duration::from_secs(5);

/// The steps of a reload that touch the world outside.
pub trait Works: Send + 'static {
    /// What [`Works::bind`] made: doors that are bound and do not accept yet, the next World.
    type Bound: Send;

    /// The plan in force.
    fn in_force(&self) -> Arc<Plan>;
    /// How the app that runs here is captured.
    fn captured(&self) -> Captured;
    /// Reads and checks the file.
    fn read(&mut self) -> Reading;
    /// Does everything that can fail: binds the doors that `plan` has and the one in force has not, and then builds the
    /// next World (last, because that hands new policies to living peers). Dropping the result undoes the binding.
    ///
    /// # Errors
    /// One line per problem.
    fn bind(&mut self, plan: &Arc<Plan>) -> impl Future<Output = Result<Self::Bound, Vec<String>>> + Send;
    /// Puts the plan in force: the next World, its doors, its endpoints' refreshers, its access log.
    fn apply(&mut self, plan: Arc<Plan>, bound: Self::Bound);
}

/// How an app is captured that runs under this process: what was made for it at its start stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Captured {
    /// Not by us, or there is none.
    #[default]
    Not,
    /// By rules for it alone, both ways.
    Rules,
    /// In a network of its own: what it sends.
    Network,
    /// It is told of the outbound door.
    Proxy,
}

/// What reading the file gave.
pub struct Reading {
    /// The content's hash; `None` where it could not be read.
    pub hash: Option<Hash>,
    /// The plan, or every problem, one line each.
    pub plan: Result<Plan, Vec<String>>,
}

/// Tells contents apart (64-bit FNV-1a); says nothing about who wrote them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(u64);

impl Hash {
    /// The hash of a content.
    pub fn of(content: &[u8]) -> Self {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        Self(content.iter().fold(0xcbf2_9ce4_8422_2325, step))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// The file's content changed.
    File,
    /// A file of certificates that a reload reads changed.
    Certificates,
    /// `POST /reload`.
    Admin,
    /// The file was refused some seconds ago.
    Retry,
}

/// How a reload ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// When.
    pub at: Stamp,
    /// What asked for it.
    pub trigger: Trigger,
    /// Whether the file is in force now; if not, nothing has changed.
    pub applied: bool,
    /// The content that was read.
    pub hash: Option<Hash>,
    /// Why it was refused, one line each.
    pub problems: Vec<String>,
    /// What is different now, one line each.
    pub changes: Vec<String>,
}

/// What `/state` tells of reloads.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The content in force.
    pub hash: Option<Hash>,
    /// The last reload, whether it took effect or not.
    pub last: Option<Outcome>,
}

struct Ask {
    trigger: Trigger,
    answer: Option<oneshot::Sender<Outcome>>,
}

/// Asks for reloads and tells how the last one went; cheap to clone.
#[derive(Clone)]
pub struct Handle {
    asks: mpsc::Sender<Ask>,
    report: watch::Receiver<Report>,
}

impl Handle {
    /// Reloads and tells how it went; `None` when the program is ending and nothing is reloaded any more.
    pub async fn reload(&self, trigger: Trigger) -> Option<Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.asks.send(Ask { trigger, answer: Some(answer) }).await.ok()?;
        outcome.await.ok()
    }

    /// Asks for a reload without waiting; a full queue means that one is about to happen anyway.
    pub fn ask(&self, trigger: Trigger) {
        let _ = self.asks.try_send(Ask { trigger, answer: None });
    }

    /// The content in force and the last outcome.
    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }
}

/// Does the reloads.
pub struct Reloader<W> {
    works: W,
    metrics: Arc<Metrics>,
    asks: mpsc::Receiver<Ask>,
    report: watch::Sender<Report>,
    /// The content last read, accepted or not: a file event that finds it again is none.
    seen: Option<Hash>,
}

impl<W: Works> Reloader<W> {
    /// A reloader for the plan in force, which was read from a content with this hash.
    pub fn new(works: W, hash: Hash, metrics: Arc<Metrics>) -> (Self, Handle) {
        let (ask, asks) = mpsc::channel(WAITING);
        let (tell, report) = watch::channel(Report { hash: Some(hash), last: None });
        (Self { works, metrics, asks, report: tell, seen: Some(hash) }, Handle { asks: ask, report })
    }

    /// The steps, for tests that steer them.
    #[cfg(test)]
    pub(crate) fn works(&self) -> &W {
        &self.works
    }

    /// Reloads whenever asked to, or when `file` tells of a change, until the program begins to end.
    pub async fn run<T>(mut self, mut file: Option<watch::Receiver<T>>, mut stop: Watch) {
        loop {
            let first = tokio::select! {
                // Both may be there: an end that was asked for comes before a reload.
                biased;
                _ = stop.reached(Phase::Draining) => return,
                ask = self.asks.recv() => match ask {
                    Some(ask) => ask,
                    None => return,
                },
                () = changed(&mut file) => Ask { trigger: Trigger::File, answer: None },
                () = sleep(AGAIN), if self.refused() => Ask { trigger: Trigger::Retry, answer: None },
            };
            let trigger = first.trigger;
            let mut answers: Vec<_> = first.answer.into_iter().collect();
            // Everyone who asked before the file is read gets this reload's outcome.
            while let Ok(ask) = self.asks.try_recv() {
                answers.extend(ask.answer);
            }
            if let Some(file) = &mut file {
                file.mark_unchanged();
            }
            if let Some(outcome) = self.once(trigger, !answers.is_empty()).await {
                for answer in answers {
                    // Who asked may have gone away.
                    let _ = answer.send(outcome.clone());
                }
            }
        }
    }

    fn refused(&self) -> bool {
        self.report.borrow().last.as_ref().is_some_and(|last| !last.applied)
    }

    /// One reload; `None` when a file event found the content that was read last, or another try the same problems.
    async fn once(&mut self, trigger: Trigger, awaited: bool) -> Option<Outcome> {
        let Reading { hash, plan } = self.works.read();
        if trigger == Trigger::File && !awaited && hash.is_some() && hash == self.seen {
            return None;
        }
        self.seen = hash;
        let result = match plan {
            Ok(plan) => self.swap(Arc::new(plan)).await,
            Err(problems) => Err(problems),
        };
        let (applied, changes, problems) = match result {
            Ok(changes) => (true, changes, Vec::new()),
            Err(problems) => (false, Vec::new(), problems),
        };
        let same = |last: &Outcome| last.hash == hash && last.problems == problems;
        if trigger == Trigger::Retry && !awaited && !applied && self.report.borrow().last.as_ref().is_some_and(same) {
            return None;
        }
        let outcome = Outcome { at: Stamp(SystemTime::now()), trigger, applied, hash, problems, changes };
        self.tell(&outcome);
        Some(outcome)
    }

    async fn swap(&mut self, plan: Arc<Plan>) -> Result<Vec<String>, Vec<String>> {
        let old = self.works.in_force();
        let mut refused = needs_restart(&old, &plan);
        refused.extend(bound_by_app(&old, &plan, self.works.captured()));
        if !refused.is_empty() {
            return Err(refused);
        }
        let bound = self.works.bind(&plan).await?;
        let changes = changes(&old, &plan);
        if let Some(text) = leaves_rules(&old, &plan).filter(|_| self.works.captured() == Captured::Not) {
            warn!("{text}");
        }
        self.works.apply(plan, bound);
        Ok(changes)
    }

    fn tell(&self, outcome: &Outcome) {
        if outcome.applied {
            self.metrics.reloads.inc();
            let changes = if outcome.changes.is_empty() { "nothing".into() } else { outcome.changes.join(", ") };
            info!(trigger = ?outcome.trigger, changes, "the file is in force");
        } else {
            self.metrics.reload_rejected.inc();
            for problem in &outcome.problems {
                warn!("{problem}");
            }
            warn!(trigger = ?outcome.trigger, problems = outcome.problems.len(), "the file was refused, what was in force stays so");
        }
        self.report.send_modify(|report| {
            if outcome.applied {
                report.hash = outcome.hash;
            }
            report.last = Some(outcome.clone());
        });
    }
}

/// Waits for a change of the file; for ever where there is no watch, or no more.
async fn changed<T>(file: &mut Option<watch::Receiver<T>>) {
    if let Some(watch) = file
        && watch.changed().await.is_ok()
    {
        return;
    }
    *file = None;
    std::future::pending().await
}

/// What cannot change while the process lives, one line per value that would.
fn needs_restart(old: &Plan, new: &Plan) -> Vec<String> {
    let fixed = [
        ("workers", old.workers == new.workers),
        ("admin", old.admin == new.admin),
        ("status", old.status == new.status),
    ];
    let line =
        |key| format!("{key}: a new value needs a restart; restart, or put the old value back to apply the rest");
    fixed.into_iter().filter(|(_, same)| !same).map(|(key, _)| line(key)).collect()
}

/// What cannot change while an app runs that is captured by it, one line per value that would.
fn bound_by_app(old: &Plan, new: &Plan, captured: Captured) -> Vec<String> {
    let Some(before) = old.redirect.as_deref().filter(|_| captured != Captured::Not) else { return Vec::new() };
    let ports = |plan: &Plan| -> BTreeSet<u16> {
        plan.capture.iter().flat_map(|capture| capture.ports.keys().copied()).collect()
    };
    let fixed = match new.redirect.as_deref() {
        None => vec![("redirect", false)],
        Some(after) => {
            let inbound = doors(before).1 == doors(after).1 && ports(old) == ports(new);
            vec![
                ("redirect", rest(before) == rest(after)),
                ("outbound.listen", doors(before).0 == doors(after).0),
                ("inbound", inbound || captured != Captured::Rules),
            ]
        }
    };
    let line = |key| {
        format!(
            "{key}: the app that runs here was captured by the old value, so a new one needs a restart; restart, or put \
             the old value back to apply the rest"
        )
    };
    fixed.into_iter().filter(|(_, same)| !same).map(|(key, _)| line(key)).collect()
}

/// The ports of the outbound and the inbound door.
fn doors(capture: &Capture) -> (Option<DoorPorts>, Option<DoorPorts>) {
    let door = |way: &Option<Way>| way.as_ref().map(|way| way.door);
    (door(&capture.outbound), door(&capture.inbound))
}

/// All but the ports, which are told apart, under the keys that say them.
fn rest(capture: &Capture) -> Capture {
    let mut rest = Capture { own: Vec::new(), ..capture.clone() };
    let zero = DoorPorts { v4: 0, v6: 0 };
    rest.outbound.iter_mut().chain(&mut rest.inbound).for_each(|way| way.door = zero);
    rest
}

/// That the kernel's rules, which a reload does not touch, lead where the new file does not expect it.
fn leaves_rules(old: &Plan, new: &Plan) -> Option<String> {
    let before = old.redirect.as_deref()?;
    let Some(after) = new.redirect.as_deref() else {
        return Some(
            "redirect: without the section this sidecar does not know captured connections: if rules of `outrigger \
             redirect apply` are in force here, run `outrigger redirect remove`, or put the section back"
                .to_owned(),
        );
    };
    // How an app is captured is no matter of these rules.
    let others = |capture: &Capture| Capture { app: AppCapture::default(), ..rest(capture) };
    let (was, is) = (doors(before), doors(after));
    let same = [
        ("outbound.listen", was.0 == is.0),
        ("inbound.listen", was.1 == is.1),
        ("the sidecar's own ports", was != is || before.own == after.own),
        ("redirect", others(before) == others(after)),
    ];
    let keys: Vec<&str> = same.into_iter().filter(|(_, same)| !same).map(|(key, _)| key).collect();
    (!keys.is_empty()).then(|| {
        format!(
            "{}: rules of `outrigger redirect apply` that are in force here still go by the old file: run it again",
            keys.join(", ")
        )
    })
}

/// What differs between two plans, in the words of the file.
fn changes(old: &Plan, new: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    let peers = |plan: &Plan| plan.peers.iter().map(|peer| (peer.name.to_string(), peer.clone())).collect();
    difference("peer", &peers(old), &peers(new), &mut lines);
    let doors = |plan: &Plan| plan.doors.iter().map(|door| (door.listen.to_string(), door.clone())).collect();
    difference("door", &doors(old), &doors(new), &mut lines);
    let whole = [
        ("service", old.service == new.service),
        ("grace", old.grace == new.grace),
        ("hosts of peers", old.hosts == new.hosts),
        ("outbound", old.egress == new.egress),
        ("dns", old.dns == new.dns),
        ("access-log", old.access_log == new.access_log),
        ("identity", old.identity == new.identity),
        ("limits", old.gates == new.gates),
        ("authorization", old.policy == new.policy),
        ("inbound.jwt", old.jwt == new.jwt),
    ];
    lines.extend(whole.into_iter().filter(|(_, same)| !same).map(|(key, _)| format!("{key} changed")));
    lines
}

fn difference<T: PartialEq>(what: &str, old: &BTreeMap<String, T>, new: &BTreeMap<String, T>, lines: &mut Vec<String>) {
    for (name, before) in old {
        match new.get(name) {
            None => lines.push(format!("{what} {name} removed")),
            Some(after) if after != before => lines.push(format!("{what} {name} changed")),
            Some(_) => {}
        }
    }
    lines.extend(new.keys().filter(|name| !old.contains_key(*name)).map(|name| format!("{what} {name} added")));
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::sync::Notify;

    use super::*;
    use crate::control::testing::plan;
    use crate::life::drain::Drain;
    use crate::life::tasks::Tasks;

    /// Steps that are told how to end and note what was done.
    #[derive(Clone, Default)]
    struct Script(Arc<Mutex<Inner>>, Arc<Notify>);

    #[derive(Default)]
    struct Inner {
        plan: Option<Arc<Plan>>,
        content: Vec<u8>,
        next: Option<Result<Plan, Vec<String>>>,
        bind_fails: bool,
        held: bool,
        diary: Vec<&'static str>,
    }

    impl Script {
        fn says(&self, content: &[u8], next: Result<Plan, Vec<String>>) {
            let mut inner = self.0.lock();
            inner.content = content.to_vec();
            inner.next = Some(next);
        }

        fn diary(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().diary)
        }
    }

    struct Undo(Script, bool);

    impl Drop for Undo {
        fn drop(&mut self) {
            if !self.1 {
                self.0.0.lock().diary.push("unbound");
            }
        }
    }

    impl Works for Script {
        type Bound = Undo;

        fn in_force(&self) -> Arc<Plan> {
            self.0.lock().plan.clone().unwrap()
        }

        fn captured(&self) -> Captured {
            Captured::Not
        }

        fn read(&mut self) -> Reading {
            let mut inner = self.0.lock();
            inner.diary.push("read");
            let plan = inner.next.clone().unwrap();
            Reading { hash: Some(Hash::of(&inner.content)), plan }
        }

        async fn bind(&mut self, _: &Arc<Plan>) -> Result<Undo, Vec<String>> {
            let held = {
                let mut inner = self.0.lock();
                inner.diary.push("bind");
                if inner.bind_fails {
                    return Err(vec!["127.0.0.1:1: in use".into()]);
                }
                inner.held
            };
            if held {
                self.1.notified().await;
            }
            Ok(Undo(self.clone(), false))
        }

        fn apply(&mut self, plan: Arc<Plan>, mut bound: Undo) {
            bound.1 = true;
            let mut inner = self.0.lock();
            inner.diary.push("apply");
            inner.plan = Some(plan);
        }
    }

    struct Stage {
        script: Script,
        handle: Handle,
        metrics: Arc<Metrics>,
        file: watch::Sender<()>,
        stop: Drain,
        tasks: Tasks,
    }

    fn stage() -> Stage {
        let script = Script::default();
        script.0.lock().plan = Some(Arc::new(plan()));
        let (metrics, stop, tasks) = (Arc::new(Metrics::default()), Drain::default(), Tasks::default());
        let (reloader, handle) = Reloader::new(script.clone(), Hash::of(b"first"), metrics.clone());
        let (file, changes) = watch::channel(());
        tasks.spawn(reloader.run(Some(changes), stop.watch()));
        Stage { script, handle, metrics, file, stop, tasks }
    }

    fn with(change: impl FnOnce(&mut Plan)) -> Plan {
        let mut plan = plan();
        change(&mut plan);
        plan
    }

    /// Lets every task that can run do so.
    async fn settle() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn all_or_nothing() {
        let bad = || Err(vec!["outrigger.yaml:3:5: peers.a: unknown key".to_owned()]);
        let workers = with(|plan| plan.workers += 1);
        let status = with(|plan| plan.status = Some(([127, 0, 0, 1], 1).into()));
        let grace = with(|plan| plan.grace += Duration::from_secs(1));
        let cases: [(_, bool, &[&str], &str); 5] = [
            (bad(), false, &["read"], "unknown key"),
            (Ok(workers), false, &["read"], "workers: a new value needs a restart"),
            (Ok(status), false, &["read"], "status: a new value needs a restart"),
            (Ok(grace.clone()), true, &["read", "bind"], "in use"),
            (Ok(grace), false, &["read", "bind", "apply"], ""),
        ];
        let stage = stage();
        for (at, (next, bind_fails, steps, problem)) in cases.into_iter().enumerate() {
            stage.script.says(&[at as u8], next);
            stage.script.0.lock().bind_fails = bind_fails;
            let before = stage.script.in_force();
            let outcome = stage.handle.reload(Trigger::Admin).await.unwrap();
            assert_eq!(stage.script.diary(), steps);
            assert_eq!(outcome.applied, problem.is_empty());
            assert!(outcome.problems.iter().all(|line| line.contains(problem)), "{outcome:?}");
            assert_eq!(outcome.problems.is_empty(), outcome.applied);
            assert_eq!(Arc::ptr_eq(&before, &stage.script.in_force()), !outcome.applied);
            let report = stage.handle.report();
            assert_eq!(report.hash == outcome.hash, outcome.applied);
            assert_eq!(report.last, Some(outcome));
        }
        assert_eq!((stage.metrics.reloads.get(), stage.metrics.reload_rejected.get()), (1, 4));
        assert_eq!(stage.handle.report().last.unwrap().changes, ["grace changed"]);
    }

    #[tokio::test(start_paused = true)]
    async fn asked_for_while_one_runs_is_one_more() {
        let stage = stage();
        stage.script.says(b"second", Ok(plan()));
        stage.script.0.lock().held = true;
        stage.handle.ask(Trigger::Signal);
        settle().await;
        let waiting: Vec<_> = (0..5)
            .map(|_| {
                let handle = stage.handle.clone();
                stage.tasks.run(async move { handle.reload(Trigger::Admin).await.unwrap().applied })
            })
            .collect();
        stage.handle.ask(Trigger::Signal);
        stage.file.send_replace(());
        settle().await;
        stage.script.0.lock().held = false;
        stage.script.1.notify_one();
        for one in waiting {
            assert!(one.await.unwrap());
        }
        settle().await;
        assert_eq!(stage.script.diary(), ["read", "bind", "apply", "read", "bind", "apply"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_event_without_new_content_is_none() {
        let stage = stage();
        for (content, next, reload) in [
            (&b"first"[..], Ok(plan()), false),
            (b"bad", Err(vec!["no".to_owned()]), true),
            (b"bad", Err(vec!["no".to_owned()]), false),
            (b"first", Ok(plan()), true),
        ] {
            let done = || stage.metrics.reloads.get() + stage.metrics.reload_rejected.get();
            let before = done();
            stage.script.says(content, next);
            stage.file.send_replace(());
            settle().await;
            assert_eq!(done() - before, u64::from(reload), "{content:?}");
        }
        assert!(stage.handle.reload(Trigger::Admin).await.unwrap().applied, "who asks gets one in any case");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_file_is_tried_again_and_its_problems_are_told_once() {
        let stage = stage();
        stage.script.says(b"second", Ok(plan()));
        stage.script.0.lock().bind_fails = true;
        assert!(!stage.handle.reload(Trigger::Signal).await.unwrap().applied);
        tokio::time::sleep(AGAIN * 3 + AGAIN / 2).await;
        assert_eq!(stage.script.diary(), ["read", "bind", "read", "bind", "read", "bind", "read", "bind"]);
        assert_eq!(stage.metrics.reload_rejected.get(), 1);
        stage.script.0.lock().bind_fails = false;
        tokio::time::sleep(AGAIN).await;
        let last = stage.handle.report().last.unwrap();
        assert_eq!((last.applied, last.trigger), (true, Trigger::Retry));
        stage.script.diary();
        tokio::time::sleep(AGAIN * 3).await;
        assert!(stage.script.diary().is_empty(), "what is in force is not tried again");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_reloaded_while_ending() {
        let stage = stage();
        stage.script.says(b"second", Ok(plan()));
        stage.stop.advance(Phase::Draining);
        assert_eq!(stage.handle.reload(Trigger::Admin).await, None);
        stage.tasks.idle().await;
        assert!(stage.script.diary().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_ends_leaves_the_other_triggers() {
        let Stage { script, handle, metrics: _metrics, file, stop: _stop, tasks: _tasks } = stage();
        drop(file);
        settle().await;
        script.says(b"second", Ok(plan()));
        assert!(handle.reload(Trigger::Signal).await.unwrap().applied);
    }

    #[test]
    fn differences_are_named() {
        let peer = plan().peers[0].clone();
        let named = |name: &str| crate::plan::peer::PeerPlan { name: crate::ids::PeerName::new(name), ..peer.clone() };
        let slower = with(|plan| {
            let policy = Arc::make_mut(&mut plan.peers[0].policy);
            policy.connect_timeout += Duration::from_secs(1);
        });
        for (old, new, expected) in [
            (plan(), plan(), vec![]),
            (plan(), slower, vec!["peer app changed"]),
            (
                with(|p| p.peers.push(named("a"))),
                with(|p| p.peers.push(named("b"))),
                vec!["peer a removed", "peer b added"],
            ),
            (plan(), with(|p| p.service = "other".into()), vec!["service changed"]),
            (plan(), with(|p| p.gates.inbound.in_flight = Some(5)), vec!["limits changed"]),
            (plan(), with(|p| p.policy.audit = true), vec!["authorization changed"]),
        ] {
            assert_eq!(changes(&old, &new), expected);
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(Hash::of(b"").to_string(), "cbf29ce484222325");
        assert_eq!(Hash::of(b"foobar").to_string(), "85944171f73967e8");
    }

    fn of(text: &str) -> Plan {
        let mut problems = crate::config::problem::Problems::new("FILE");
        let text = format!("service: a\n{text}\n");
        let facts = crate::config::facts::Facts::PLAIN;
        let document = crate::config::read(&text, &facts, &|_| None, &mut problems).unwrap();
        crate::plan::build::build(&document.config, std::path::Path::new("/"), &mut problems).plan
    }

    #[test]
    fn rules_that_go_by_the_old_file_are_told() {
        let inbound = "inbound: { listen: '[::]:9000', app: '127.0.0.1:9001' }";
        let dns = "dns: { listen: ['127.0.0.1:15053', '[::1]:15053'] }";
        let old = of(&format!("redirect: {{}}\n{inbound}"));
        let again = "still go by the old file: run it again";
        for (text, keys, says) in [
            (format!("redirect: {{ app: proxy }}\n{inbound}\ngrace: 3s"), "", ""),
            (inbound.to_owned(), "redirect", "run `outrigger redirect remove`, or put the section back"),
            (format!("redirect: {{}}\n{inbound}\noutbound: {{ listen: '127.0.0.1:15101' }}"), "outbound.listen", again),
            (format!("redirect: {{}}\n{}", inbound.replace("9000", "9002")), "inbound.listen", again),
            (format!("redirect: {{}}\n{}", inbound.replace("9001", "9002")), "", ""),
            (format!("redirect: {{}}\n{inbound}\nstatus: '0.0.0.0:15020'"), "the sidecar's own ports", again),
            (format!("redirect: {{ dns: all }}\n{inbound}\n{dns}"), "redirect", again),
            (format!("redirect: {{ inbound: 'off' }}\n{inbound}"), "inbound.listen, redirect", again),
        ] {
            let said = leaves_rules(&old, &of(&text)).unwrap_or_default();
            assert_eq!(said.split_once(':').map_or("", |(keys, _)| keys), keys, "{text}");
            assert!(said.ends_with(says), "{said}");
        }
        assert_eq!(leaves_rules(&of(inbound), &old), None);
    }

    #[test]
    fn what_an_app_is_captured_by_stays_as_it_is() {
        let inbound = "inbound: { listen: '[::]:9000', app: '127.0.0.1:9001' }";
        let old = of(&format!("redirect: {{}}\n{inbound}"));
        for (text, by_rules, within) in [
            (format!("redirect: {{}}\n{inbound}\ngrace: 3s"), "", ""),
            (inbound.to_owned(), "redirect", "redirect"),
            (format!("redirect: {{ app: proxy }}\n{inbound}"), "redirect", "redirect"),
            (
                format!("redirect: {{}}\n{inbound}\noutbound: {{ listen: '127.0.0.1:15101' }}"),
                "outbound.listen",
                "outbound.listen",
            ),
            (format!("redirect: {{}}\n{}", inbound.replace("9000", "9002")), "inbound", ""),
            (format!("redirect: {{}}\n{}", inbound.replace("9001", "9002")), "inbound", ""),
            (format!("redirect: {{}}\n{inbound}\nstatus: '127.0.0.1:15020'"), "", ""),
        ] {
            let new = of(&text);
            for (captured, expect) in [
                (Captured::Not, ""),
                (Captured::Rules, by_rules),
                (Captured::Network, within),
                (Captured::Proxy, within),
            ] {
                let said: Vec<String> = bound_by_app(&old, &new, captured);
                let keys: Vec<&str> = said.iter().filter_map(|line| Some(line.split_once(':')?.0)).collect();
                assert_eq!(keys.join(" "), expect, "{text} {captured:?}");
            }
        }
    }
}
