//! The tables and the plot as they stand in `docs/`, and the one command that makes them.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::contenders::{LINE, Who};
use crate::plot::{Line, svg};
use crate::services::{FAULT, Fault};
use crate::world::Setting;

/// All that is shown; whether calls are gRPC.
const SHOWN: [(Fault, bool); 13] = [
    (Fault::OneDead, false),
    (Fault::OneSlow, false),
    (Fault::OneFlaky, false),
    (Fault::Flapping, false),
    (Fault::Rolling, false),
    (Fault::AllDead, false),
    (Fault::AllFail, false),
    (Fault::AllFail, true),
    (Fault::AllButOneDead, false),
    (Fault::AllFlaky, false),
    (Fault::FewErrors, false),
    (Fault::BrownOut, false),
    (Fault::BrownOut, true),
];

/// Who is in the plot.
const DRAWN: [Who; 5] = [Who::Outrigger, Who::OutriggerLine, Who::EnvoyOn, Who::Istio, Who::Dapr];

/// Where the tables begin and end in the document.
const MARKS: [&str; 2] = ["<!-- tables: begin -->\n", "<!-- tables: end -->\n"];

#[test]
#[ignore = "it prints the tables and writes them and the plot to docs/"]
fn tables() {
    let tables = all();
    println!("{tables}");
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = fs::read_to_string(docs.join("simulation.md")).unwrap();
    let (before, rest) = page.split_once(MARKS[0]).unwrap();
    let (_, after) = rest.split_once(MARKS[1]).unwrap();
    fs::write(docs.join("simulation.md"), [before, MARKS[0], &tables, MARKS[1], after].concat()).unwrap();
    fs::write(docs.join("simulation.svg"), plot()).unwrap();
}

fn all() -> String {
    let mut all = format!("`+ line` has `{LINE}` in each peer; for gRPC also `methods: any`.\n\n");
    for (fault, grpc) in SHOWN {
        let kind = if grpc { "gRPC" } else { "GET" };
        let setting = Setting { grpc, ..Setting::of(fault) };
        let _ = writeln!(all, "### {} ({kind})\n", capital(fault.words()));
        let _ = writeln!(all, "| | success | hop 1 | hop 2 | hop 3 | 3 per 1 | p99 | recovery | host back |");
        let _ = writeln!(all, "|---|---|---|---|---|---|---|---|---|");
        for who in Who::ALL {
            let _ = writeln!(all, "| {} | {} |", who.name(), who.run(setting).cells().join(" | "));
        }
        all.push('\n');
    }
    all + &marks()
}

/// What the mark of a further attempt does, and what is left where services do not pass it on.
fn marks() -> String {
    let mut all =
        "### Attempts at the deepest service for each request at the front, with and without the mark\n\n".to_owned();
    let _ = writeln!(all, "| | mark passed on | not passed on |\n|---|---|---|");
    for fault in [Fault::AllFail, Fault::AllFlaky] {
        for who in [Who::Outrigger, Who::OutriggerLine, Who::OutriggerUnbounded] {
            let times = |propagates| who.run(Setting { propagates, ..Setting::of(fault) }).end_to_end(FAULT);
            let (name, words) = (who.name(), fault.words());
            let _ = writeln!(all, "| {name}; {words} | {:.2} | {:.2} |", times(true), times(false));
        }
    }
    all
}

fn plot() -> String {
    let setting = Setting { grpc: true, ..Setting::of(Fault::AllFail) };
    let lines = DRAWN.map(|who| Line { name: who.name(), course: who.run(setting).course() });
    svg("The deepest of three services answers UNAVAILABLE for ten seconds", &lines)
}

fn capital(words: &str) -> String {
    words[..1].to_uppercase() + &words[1..]
}
