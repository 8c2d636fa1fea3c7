//! What our defaults are to reach, and what the emulations of others must do to be a fair comparison.

use crate::clock::MS;
use crate::contenders::Who;
use crate::report::Record;
use crate::services::{FAULT, Fault};
use crate::world::{HOPS, Setting};

const SEEDS: std::ops::Range<u64> = 1..3;
const OURS: [Who; 2] = [Who::Outrigger, Who::OutriggerLine];
const FAULTS: [Fault; 10] = [
    Fault::OneDead,
    Fault::OneSlow,
    Fault::OneFlaky,
    Fault::AllButOneDead,
    Fault::AllDead,
    Fault::AllFail,
    Fault::AllFlaky,
    Fault::BrownOut,
    Fault::Flapping,
    Fault::Rolling,
];

fn seeded(fault: Fault) -> impl Iterator<Item = Setting> {
    SEEDS.map(move |seed| Setting { seed, ..Setting::of(fault) })
}

fn amplifications(record: &Record) -> [f64; HOPS] {
    std::array::from_fn(|hop| record.amplification(hop, FAULT))
}

#[test]
fn under_total_failure_no_hop_makes_more_than_a_fifth_more_attempts() {
    for setting in [Fault::AllDead, Fault::AllFail].into_iter().flat_map(seeded) {
        for who in OURS {
            for (grpc, propagates) in [(false, true), (true, true), (false, false)] {
                let setting = Setting { grpc, propagates, ..setting };
                let record = who.run(setting);
                for hop in 0..HOPS {
                    let (shares, whole) = (record.retries_of_busy(hop), record.amplification(hop, FAULT));
                    assert!(
                        !shares.is_empty() && shares.iter().all(|share| *share <= 0.2),
                        "{who:?} {setting:?}: {shares:?}"
                    );
                    // The requests of the fault's ten seconds may by chance be a hundredth fewer than those of the ten
                    // seconds that the budget saw.
                    assert!(whole <= 1.2 * 1.01, "{who:?} {setting:?}, hop {hop}: {whole}");
                }
            }
        }
    }
}

#[test]
fn one_dead_host_is_not_noticed() {
    for setting in seeded(Fault::OneDead) {
        // One of two must be able to do all of the work.
        for setting in [setting, Setting { hosts: 2, work: 2 * MS, ..setting }] {
            let success = Who::Outrigger.run(setting).success(FAULT);
            assert!(success >= 0.9999, "{setting:?}: {success}");
        }
    }
}

#[test]
fn one_slow_host_slows_the_slowest_hundredth_by_less_than_a_third() {
    for setting in seeded(Fault::OneSlow) {
        let p99 = |setting| Who::Outrigger.run(setting).p99(FAULT).unwrap() as f64;
        let (ten, nine) = (p99(setting), p99(Setting { fault: Fault::None, hosts: 9, ..setting }));
        assert!(ten <= 1.3 * nine, "{setting:?}: {ten} µs against {nine} µs of the nine");
    }
}

#[test]
fn two_seconds_after_a_fault_all_is_well() {
    for setting in FAULTS.into_iter().flat_map(seeded) {
        // The line changes little here: one seed is enough.
        let ours = if setting.seed == SEEDS.start { &OURS[..] } else { &OURS[..1] };
        for who in ours {
            let recovery = who.run(setting).recovery();
            assert!(recovery.is_some_and(|seconds| seconds <= 2.0), "{who:?} {setting:?}: {recovery:?}");
        }
    }
}

#[test]
fn without_a_fault_nothing_fails_and_nothing_is_repeated() {
    let record = Who::OutriggerLine.run(Setting::of(Fault::None));
    assert_eq!((record.success(FAULT), amplifications(&record)), (1.0, [1.0; HOPS]));
}

#[test]
fn without_a_budget_the_mark_alone_keeps_hops_from_multiplying() {
    let times = |who: Who, propagates| who.run(Setting { propagates, ..Setting::of(Fault::AllFail) }).end_to_end(FAULT);
    // Two attempts at each of three hops: eight; marked, each hop adds one.
    let (marked, unmarked) = (times(Who::OutriggerUnbounded, true), times(Who::OutriggerUnbounded, false));
    assert!((3.8..4.1).contains(&marked) && (7.6..8.1).contains(&unmarked), "{marked} {unmarked}");
    // The budget alone: at most a fifth more at each.
    let bounded = times(Who::OutriggerLine, false);
    assert!(bounded <= 1.2 * 1.2 * 1.2 + 0.02, "{bounded}");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let cells = |seed| Who::OutriggerLine.run(Setting { seed, ..Setting::of(Fault::AllFlaky) }).cells();
    assert_eq!(cells(7), cells(7));
    assert_ne!(cells(7), cells(8));
}

#[test]
fn the_others_do_what_their_documentation_says() {
    let run = |who: Who, fault, grpc| who.run(Setting { grpc, ..Setting::of(fault) });
    let near = |got: f64, want: f64| assert!((got - want).abs() < 0.02 * want, "{got} is not near {want}");
    // One host of ten is still asked, and nothing is tried again.
    near(run(Who::Envoy, Fault::OneDead, false).success(FAULT), 0.9);
    assert_eq!(amplifications(&run(Who::Envoy, Fault::AllFail, false)), [1.0; HOPS]);
    // One of ten may be ejected.
    near(run(Who::EnvoyOn, Fault::OneDead, false).success(FAULT), 1.0);
    // UNAVAILABLE is tried three times at each hop, 503 once.
    let istio = run(Who::Istio, Fault::AllFail, true);
    amplifications(&istio).into_iter().for_each(|times| near(times, 3.0));
    assert_eq!(amplifications(&run(Who::Istio, Fault::AllFail, false)), [1.0; HOPS]);
    // Who refuses connections is not in the choice.
    assert!(run(Who::Linkerd, Fault::OneDead, false).success(FAULT) > 0.999);
    assert!(run(Who::Linkerd, Fault::OneSlow, false).p99(FAULT) < run(Who::Envoy, Fault::OneSlow, false).p99(FAULT));
    // The pause before another attempt is a second.
    assert!(run(Who::Dapr, Fault::OneDead, false).p99(FAULT) > Some(1_000_000));
}
