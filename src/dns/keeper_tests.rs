//! What the keeper makes of runs of answers and failures, by a clock that the test moves.

use super::*;

const TIMES: Times =
    Times { floor: Duration::from_secs(1), ceiling: Duration::from_secs(300), stale_for: Duration::from_secs(600) };

fn known(ips: &[&str], ttl: u64) -> Family {
    Family::Known { ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(), ttl: Some(Duration::from_secs(ttl)) }
}

fn failed() -> Family {
    Family::Failed { why: "SERVFAIL".into() }
}

fn host(v4: Family, v6: Family) -> Result<Answers, DnsError> {
    Ok(Found { v4, v6, absent: false }.at("db", 80))
}

fn silence() -> Result<Answers, DnsError> {
    Err(DnsError::Failed("no answer".into()))
}

fn target(name: &str, port: u16, priority: u16, weight: u32, v4: Family) -> Target {
    Target { name: name.into(), port, priority, weight, found: Found { v4, v6: Family::NONE, absent: false } }
}

fn srv(targets: Vec<Target>, ttl: u64) -> Result<Answers, DnsError> {
    Ok(Answers { targets, ttl: Some(Duration::from_secs(ttl)), absent: false })
}

use super::super::answer::Target;

/// One keeper with a clock of its own; each line of a test takes an answer some seconds after the one before.
struct Run {
    keeper: Keeper,
    now: Instant,
}

impl Run {
    fn new() -> Self {
        Self { keeper: Keeper::default(), now: Instant::now() }
    }

    /// Takes `seen` after `secs`; gives the endpoints, a word for the standing, the wait in milliseconds, `failed`.
    fn after(&mut self, secs: u64, seen: Result<Answers, DnsError>) -> (Vec<String>, &'static str, u128, bool) {
        self.now += Duration::from_secs(secs);
        let step = self.keeper.take(seen, &TIMES, self.now, 1.0);
        let word = match step.standing {
            Standing::Ready => "ready",
            Standing::Empty { .. } => "empty",
            Standing::Stale { .. } => "stale",
            Standing::Failed { .. } => "failed",
        };
        let endpoints = step.endpoints.iter().map(|spec| spec.addr.to_string()).collect();
        (endpoints, word, (step.next - self.now).as_millis(), step.failed)
    }
}

fn want(addrs: &[&str], word: &'static str, millis: u128, failed: bool) -> (Vec<String>, &'static str, u128, bool) {
    (addrs.iter().map(|addr| (*addr).to_owned()).collect(), word, millis, failed)
}

#[test]
fn an_answer_is_used_for_its_shortest_time_to_live() {
    let mut run = Run::new();
    let both = host(known(&["10.0.0.2", "10.0.0.1", "10.0.0.2"], 60), known(&["2001:db8::1"], 20));
    assert_eq!(run.after(0, both), want(&["10.0.0.1:80", "10.0.0.2:80", "[2001:db8::1]:80"], "ready", 20_000, false));
    // The empty half's negative time to live counts too, an empty half without one does not.
    assert_eq!(
        run.after(20, host(known(&["10.0.0.1"], 60), known(&[], 5))),
        want(&["10.0.0.1:80"], "ready", 5_000, false)
    );
    assert_eq!(
        run.after(20, host(known(&["10.0.0.1"], 60), Family::NONE)),
        want(&["10.0.0.1:80"], "ready", 60_000, false)
    );
    assert_eq!(run.after(20, host(known(&["10.0.0.1"], 0), Family::NONE)).2, 1_250);
    assert_eq!(run.after(20, host(known(&["10.0.0.1"], 86_400), Family::NONE)).2, 300_000);
}

#[test]
fn a_positive_empty_answer_removes_at_once() {
    let mut run = Run::new();
    run.after(0, host(known(&["10.0.0.1"], 60), Family::NONE));
    assert_eq!(run.after(60, host(known(&[], 30), known(&[], 40))), want(&[], "empty", 30_000, false));
    assert_eq!(run.after(60, host(Family::NONE, Family::NONE)), want(&[], "empty", 10_000, false));
    assert_eq!(run.after(60, host(known(&["10.0.0.9"], 60), known(&[], 90))).0, ["10.0.0.9:80"]);
}

#[test]
fn the_last_good_answer_is_kept_while_the_servers_fail() {
    let mut run = Run::new();
    assert_eq!(run.after(0, silence()), want(&[], "failed", 500, true));
    assert_eq!(run.after(1, silence()), want(&[], "failed", 1_000, true));
    let good = || host(known(&["10.0.0.1"], 60), Family::NONE);
    assert_eq!(run.after(1, good()), want(&["10.0.0.1:80"], "ready", 60_000, false));
    for millis in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
        assert_eq!(run.after(60, silence()), want(&["10.0.0.1:80"], "stale", millis, true));
    }
    // 420 s have passed since the first failure.
    assert_eq!(run.after(170, silence()), want(&["10.0.0.1:80"], "stale", 10_000, true));
    assert_eq!(run.after(10, silence()), want(&[], "failed", 30_000, true));
    assert_eq!(run.after(10, good()), want(&["10.0.0.1:80"], "ready", 60_000, false));
    // A success starts the count anew.
    assert_eq!(run.after(599, silence()), want(&["10.0.0.1:80"], "stale", 500, true));
}

#[test]
fn one_family_may_fail_without_taking_anything_away() {
    let mut run = Run::new();
    run.after(0, host(known(&["10.0.0.1"], 60), known(&["2001:db8::1"], 60)));
    assert_eq!(
        run.after(60, host(known(&["10.0.0.2"], 60), failed())),
        want(&["10.0.0.2:80", "[2001:db8::1]:80"], "stale", 500, true)
    );
    assert_eq!(
        run.after(599, host(known(&["10.0.0.2"], 60), failed())),
        want(&["10.0.0.2:80", "[2001:db8::1]:80"], "stale", 1_000, true)
    );
    assert_eq!(run.after(1, host(known(&["10.0.0.2"], 60), failed())), want(&["10.0.0.2:80"], "ready", 60_000, true));
    assert_eq!(
        run.after(1, host(known(&["10.0.0.2"], 60), known(&["2001:db8::1"], 60))),
        want(&["10.0.0.2:80", "[2001:db8::1]:80"], "ready", 60_000, false)
    );
}

#[test]
fn a_family_that_never_answered_is_no_reason_to_hurry() {
    let mut run = Run::new();
    assert_eq!(run.after(0, host(known(&["10.0.0.1"], 60), failed())), want(&["10.0.0.1:80"], "ready", 60_000, true));
    let mut run = Run::new();
    assert_eq!(run.after(0, host(known(&[], 60), failed())), want(&[], "failed", 500, true));
    assert_eq!(run.after(0, host(failed(), failed())), want(&[], "failed", 1_000, true));
}

#[test]
fn whole_and_partial_failures_share_one_count() {
    let mut run = Run::new();
    run.after(0, host(known(&["10.0.0.1"], 60), known(&["2001:db8::1"], 60)));
    run.after(60, silence());
    assert_eq!(run.after(300, host(known(&["10.0.0.1"], 60), failed())).1, "stale");
    assert_eq!(run.after(300, host(known(&["10.0.0.1"], 60), failed())), want(&["10.0.0.1:80"], "ready", 60_000, true));
}

#[test]
fn service_records_give_port_priority_and_weight() {
    let mut run = Run::new();
    let now = run.now;
    let answer = srv(
        vec![
            target("a", 1000, 10, 5, known(&["10.0.0.1"], 60)),
            target("b", 2000, 20, 0, known(&["10.0.0.2"], 30)),
            // The same host at another port, and another name of the same address.
            target("a", 1001, 10, 7, known(&["10.0.0.1"], 60)),
            target("c", 1000, 10, 2, known(&["10.0.0.1"], 60)),
        ],
        40,
    );
    let step = run.keeper.take(answer, &TIMES, now, 1.0);
    let got: Vec<_> = step.endpoints.iter().map(|e| (e.addr.to_string(), e.priority, e.weight)).collect();
    let text = |addr: &str| addr.to_owned();
    assert_eq!(got, [(text("10.0.0.1:1000"), 10, 7), (text("10.0.0.1:1001"), 10, 7), (text("10.0.0.2:2000"), 20, 1)]);
    assert_eq!(step.next - now, Duration::from_secs(30));
}

#[test]
fn a_target_that_fails_keeps_its_addresses_with_the_new_facts() {
    let mut run = Run::new();
    let a = |port, family| target("a", port, 0, 1, family);
    let b = |family| target("b", 9, 0, 1, family);
    run.after(0, srv(vec![a(1, known(&["10.0.0.1"], 60)), b(known(&["10.0.0.2"], 60))], 60));
    assert_eq!(
        run.after(60, srv(vec![a(2, failed()), b(known(&["10.0.0.3"], 60))], 60)),
        want(&["10.0.0.1:2", "10.0.0.3:9"], "stale", 500, true)
    );
    // A target that left the list goes, whatever its servers do.
    assert_eq!(run.after(1, srv(vec![b(failed())], 60)), want(&["10.0.0.3:9"], "stale", 1_000, true));
    // A list of strangers, none of which resolves, replaces nothing.
    assert_eq!(
        run.after(1, srv(vec![target("x", 1, 0, 1, failed())], 60)).0,
        Vec::<String>::new(),
        "an answered AAAA half makes the stranger known to be empty"
    );
    assert_eq!(run.after(1, srv(vec![], 15)), want(&[], "empty", 15_000, false));
}

#[test]
fn strangers_of_whom_nothing_is_known_replace_nothing() {
    let mut run = Run::new();
    run.after(0, srv(vec![target("a", 1, 0, 1, known(&["10.0.0.1"], 60))], 60));
    let mut stranger = target("x", 1, 0, 1, failed());
    stranger.found.v6 = failed();
    assert_eq!(run.after(60, srv(vec![stranger], 60)), want(&["10.0.0.1:1"], "stale", 500, true));
}

#[test]
fn an_empty_answer_says_in_which_way() {
    for (answers, why) in [
        (host(Family::NONE, Family::NONE), "the name has no A or AAAA record"),
        (
            Ok(Found { v4: Family::NONE, v6: Family::NONE, absent: true }.at("db", 80)),
            "the name does not exist (NXDOMAIN)",
        ),
        (srv(vec![], 1), "the name has no SRV record"),
    ] {
        let step = Keeper::default().take(answers, &TIMES, Instant::now(), 0.0);
        assert_eq!(step.standing, Standing::Empty { why: why.into() });
    }
}
