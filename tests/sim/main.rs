//! A tree of services under scripted faults, in virtual time: what our defaults make of them beside those of others.
//!
//! `cargo test --test sim` asserts our targets; `cargo test --test sim -- --ignored --nocapture` prints the tables and
//! writes them and the plot to `docs/`. `docs/simulation.md` says what is modelled and what is not.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests may fail loudly")]

mod clock;
mod contenders;
mod others;
mod ours;
mod report;
mod services;
mod sidecar;
mod world;

use contenders::Who;
use services::Fault;
use world::Setting;

#[test]
fn look() {
    let one = std::env::var("FAULTS").unwrap_or_default();
    for (fault, grpc) in [
        (Fault::None, false),
        (Fault::OneDead, false),
        (Fault::OneSlow, false),
        (Fault::OneFlaky, false),
        (Fault::AllButOneDead, false),
        (Fault::AllDead, false),
        (Fault::AllFail, false),
        (Fault::AllFail, true),
        (Fault::AllFlaky, false),
        (Fault::BrownOut, false),
        (Fault::BrownOut, true),
        (Fault::Flapping, false),
        (Fault::Rolling, false),
    ] {
        let name = format!("{fault:?}");
        if !one.is_empty() && !one.split(',').any(|n| n == name) {
            continue;
        }
        for who in Who::ALL {
            let start = std::time::SystemTime::now();
            let record = who.run(Setting { grpc, ..Setting::of(fault) });
            println!("{fault:?} grpc={grpc} {:20} {:?} {:?}", who.name(), record.cells(), start.elapsed().unwrap());
        }
    }
}
