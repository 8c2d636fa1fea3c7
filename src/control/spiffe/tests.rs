//! Tests of what is taken from an agent and when it is asked again, with scripted agents and virtual time.

use std::collections::VecDeque;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
    date_time_ymd,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::time::Instant;

use super::*;
use crate::ids::Addr;

/// A CA.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        // Names may be the same, serial numbers not: they are what tells the digests apart.
        params.serial_number = Some(SerialNumber::from(fastrand::u64(..)));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    fn svid(&self, id: &str) -> Svid {
        self.svid_from(id, 1975)
    }

    fn svid_from(&self, id: &str, year: i32) -> Svid {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(year, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Svid { id: id.to_owned(), chain: vec![leaf.der().clone()], key }
    }

    fn update(&self, ids: &[&str]) -> Update {
        Update { svids: ids.iter().map(|id| self.svid(id)).collect(), bundles: vec![("shop".into(), vec![self.der()])] }
    }
}

/// What an agent does when it is asked: nothing ever, refuse, or answer so and then end the answer or keep silent.
enum Act {
    Hang,
    Refuse(Fault),
    Say(Vec<Result<Update, Fault>>, bool),
}

struct Script {
    acts: VecDeque<Act>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

struct Said {
    rest: VecDeque<Result<Update, Fault>>,
    ends: bool,
}

impl Agent for Script {
    type Stream = Said;

    async fn open(&mut self) -> Result<Said, Fault> {
        self.asked.lock().push(Instant::now());
        match self.acts.pop_front().unwrap_or(Act::Hang) {
            Act::Hang => std::future::pending().await,
            Act::Refuse(fault) => Err(fault),
            Act::Say(rest, ends) => Ok(Said { rest: rest.into(), ends }),
        }
    }
}

impl Updates for Said {
    async fn next(&mut self) -> Option<Result<Update, Fault>> {
        match self.rest.pop_front() {
            None if !self.ends => std::future::pending().await,
            next => next,
        }
    }
}

/// A source at work on a script.
struct Stage {
    store: Arc<IdentityStore>,
    metrics: Arc<Metrics>,
    asked: Arc<Mutex<Vec<Instant>>>,
    begun: Instant,
    came: watch::Receiver<bool>,
    _tasks: Tasks,
}

impl Stage {
    fn new(id: Option<&str>, acts: Vec<Act>) -> Self {
        let (store, metrics, asked) = (Arc::new(IdentityStore::default()), Arc::<Metrics>::default(), Arc::default());
        let agent = Addr::Unix(std::path::Path::new("/run/a.sock").into());
        let plan = WorkloadApiPlan { agent, id: id.map(|id| id.parse().unwrap()), tls12: false };
        let (tell, came) = watch::channel(false);
        let tasks = Tasks::default();
        let script = Script { acts: acts.into(), asked: Arc::clone(&asked) };
        tasks.spawn(Taking::new(plan, store.clone(), metrics.clone(), tell).for_ever(script));
        Self { store, metrics, asked, begun: Instant::now(), came, _tasks: tasks }
    }

    /// Lets so many seconds go by.
    async fn pass(&self, seconds: u64) {
        sleep(Duration::from_secs(seconds)).await;
    }

    fn counts(&self) -> (u64, u64, u64) {
        let counts = &self.metrics.workload_api;
        (counts.taken.get(), counts.refused.get(), counts.failures.get())
    }

    fn id(&self) -> String {
        self.store.current().map(|identity| identity.id().to_string()).unwrap_or_default()
    }

    /// The pauses between one asking and the next.
    fn gaps(&self) -> Vec<Duration> {
        let asked = self.asked.lock();
        asked.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

const A: &str = "spiffe://shop/a";
const B: &str = "spiffe://shop/b";

fn broken() -> Fault {
    Fault::Broken("cannot be reached: No such file or directory".to_owned())
}

#[tokio::test(start_paused = true)]
async fn what_comes_is_in_force_and_what_is_bad_leaves_the_last_one() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let torn = Update { svids: vec![authority.svid(B)], bundles: vec![("shop".into(), vec![stranger.der()])] };
    let swapped = Update {
        svids: vec![Svid { key: authority.svid(B).key, ..authority.svid(B) }],
        bundles: vec![("shop".into(), vec![authority.der()])],
    };
    let nobody = Update { svids: Vec::new(), ..authority.update(&[]) };
    let rootless = Update { bundles: vec![("shop".into(), Vec::new())], ..authority.update(&[B]) };
    let unreadable = Fault::Unreadable("an update that cannot be used".to_owned());
    let good = authority.update(&[A, B]);
    let said = vec![Ok(good), Ok(torn), Ok(swapped), Ok(nobody), Ok(rootless), Err(unreadable)];
    let stage = Stage::new(None, vec![Act::Say(said, false)]);
    stage.pass(1).await;
    assert_eq!((stage.id(), stage.counts(), *stage.came.borrow()), (A.into(), (1, 5, 0), true));
    assert_eq!(stage.asked.lock().len(), 1, "a bad update does not end the stream");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_is_asked_again_and_nothing_is_lost_meanwhile() {
    let authority = Authority::new();
    let again = authority.update(&[A]);
    let copy = |svid: &Svid| Svid { id: svid.id.clone(), chain: svid.chain.clone(), key: svid.key.clone_key() };
    let same = Update { svids: again.svids.iter().map(copy).collect(), bundles: again.bundles.clone() };
    let stage = Stage::new(
        None,
        vec![
            Act::Refuse(broken()),
            Act::Refuse(Fault::NoEntry("no identity issued".into())),
            Act::Say(vec![Ok(again)], true),
            Act::Refuse(broken()),
            Act::Say(vec![Ok(same)], true),
            Act::Say(vec![Ok(authority.update(&[B]))], false),
        ],
    );
    assert!(stage.store.current().is_none());
    let mut came = stage.came.clone();
    came.wait_for(|came| *came).await.unwrap();
    let (first, fingerprint) = (stage.store.current().unwrap(), stage.store.current().unwrap().fingerprint());
    while stage.id() == A {
        assert_eq!(stage.store.current().unwrap().fingerprint(), fingerprint);
        assert!(Arc::ptr_eq(&first, &stage.store.current().unwrap()), "the same again is nothing new");
        sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((stage.id(), stage.counts()), (B.into(), (3, 0, 5)));
}

#[tokio::test(start_paused = true)]
async fn it_is_said_why_there_is_none() {
    let authority = Authority::new();
    let stage = Stage::new(Some(B), vec![Act::Refuse(Fault::NoEntry("no identity issued".into()))]);
    stage.pass(1).await;
    let why = stage.store.lack().unwrap();
    assert!(why.starts_with("the Workload API at unix:/run/a.sock: the agent knows no identity for this workload (no"));
    assert!(why.contains("register an entry whose selectors fit it (uid "), "{why}");
    let forged = Fault::NoEntry(format!("no\r\ntime={}", "x".repeat(5000)));
    let stage = Stage::new(Some(B), vec![Act::Refuse(forged)]);
    stage.pass(1).await;
    let why = stage.store.lack().unwrap();
    assert!(why.contains("(no  time=xx") && why.len() < 1200, "{why}");
    let stage = Stage::new(Some(B), vec![Act::Say(vec![Ok(authority.update(&[A]))], false)]);
    stage.pass(1).await;
    let why = stage.store.lack().unwrap();
    assert!(why.ends_with("it does not give spiffe://shop/b, which `identity.id` asks for; it gives spiffe://shop/a"));
    let stage = Stage::new(Some(B), vec![Act::Say(vec![Ok(authority.update(&[A, B]))], false)]);
    stage.pass(1).await;
    assert_eq!(stage.id(), B);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_to_their_bound_and_begin_anew_after_something_good() {
    let authority = Authority::new();
    let mut acts: Vec<_> = (0..8).map(|_| Act::Refuse(broken())).collect();
    acts.push(Act::Say(vec![Ok(authority.update(&[A]))], true));
    acts.push(Act::Refuse(broken()));
    let stage = Stage::new(None, acts);
    stage.pass(120).await;
    let gaps = stage.gaps();
    let bounds = [250, 500, 1000, 2000, 4000, 8000, 8000, 8000, 250, 500].map(Duration::from_millis);
    for (gap, most) in gaps.iter().zip(bounds) {
        // Timers count whole milliseconds.
        let slack = Duration::from_millis(2);
        assert!((most / 2..=most + slack).contains(gap), "{gap:?} of {most:?}");
    }
    assert!(gaps.len() >= bounds.len() && stage.asked.lock()[0] - stage.begun < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_keeps_silent_is_asked_again() {
    let authority = Authority::new();
    let acts = vec![Act::Hang, Act::Say(Vec::new(), false), Act::Say(vec![Ok(authority.update(&[A]))], false)];
    let stage = Stage::new(None, acts);
    stage.pass(22).await;
    assert_eq!((stage.id(), stage.asked.lock().len()), (A.into(), 3));
    // Certificates of the far future are renewed by nobody tomorrow.
    stage.pass(24 * 3600).await;
    assert_eq!(stage.asked.lock().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_partners_bad_root_keeps_nobody_from_being_renewed() {
    let (authority, partner) = (Authority::new(), Authority::new());
    let mut update = authority.update(&[A]);
    let no_ca = authority.svid(B).chain.remove(0);
    update.bundles.push(("partner".into(), vec![no_ca.clone(), partner.der()]));
    update.bundles.push(("worse".into(), vec![no_ca]));
    update.bundles.push(("none".into(), Vec::new()));
    let stage = Stage::new(None, vec![Act::Say(vec![Ok(update)], false)]);
    stage.pass(1).await;
    let trusted = format!("{:?}", stage.store.current().unwrap());
    assert!(trusted.contains(r#"[("shop", 1), ("partner", 1)]"#), "{trusted}");
}

#[tokio::test(start_paused = true)]
async fn what_does_not_hold_yet_waits_for_its_time_and_takes_nothing_away() {
    let (authority, store, metrics) = (Authority::new(), Arc::<IdentityStore>::default(), Arc::<Metrics>::default());
    let agent = Addr::Unix(std::path::Path::new("/run/a.sock").into());
    let plan = WorkloadApiPlan { agent, id: None, tls12: false };
    let mut taking = Taking::new(plan, store.clone(), metrics.clone(), watch::channel(false).0);
    let in_force = || store.current().unwrap().id().to_string();
    let year = |year: i32| {
        let seconds = date_time_ymd(year, 1, 1).unix_timestamp();
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(seconds).unwrap()))
    };
    let from = |id: &str, year| Update { svids: vec![authority.svid_from(id, year)], ..authority.update(&[]) };
    taking.take(from(A, 1980), year(1990));
    for _ in 0..3 {
        taking.take(from(B, 2000), year(1990));
        assert_eq!((in_force(), taking.waiting.is_some()), (A.into(), true));
    }
    let refused = store.news().refused.unwrap().why;
    assert!(refused.contains("valid only from 2000-01-01") && refused.contains("still holds"), "{refused}");
    assert_eq!((metrics.workload_api.taken.get(), metrics.workload_api.refused.get(), store.refusals.get()), (1, 1, 1));
    // Nothing more comes, and meanwhile its time has come.
    assert!(taking.meanwhile(OPEN_CLOCK, std::future::pending::<()>()).await.is_err());
    assert_eq!((in_force(), taking.waiting.is_none(), store.news().refused), (B.into(), true, None));
}

#[test]
fn half_of_a_pause_is_chance() {
    for (failures, low, high) in
        [(0, 125, 250), (1, 250, 500), (5, 4000, 8000), (31, 4000, 8000), (u32::MAX, 4000, 8000)]
    {
        assert_eq!(pause(failures, 0.0), Duration::from_millis(low));
        assert_eq!(pause(failures, 1.0), Duration::from_millis(high));
    }
}
