//! The start and what a reload may not do to what the start has opened.

use std::net::UdpSocket;
use std::process::Command;

use crate::harness::{App, Sidecar, until};

const ONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none";

#[test]
fn a_door_that_changes_sides_is_refused_with_its_line() {
    let app = App::http(ONE);
    let file = |inbound: &str, outbound: &str| {
        format!(
            "service: s\nadmin: '{{admin}}'\ninbound:\n  listen: '{inbound}'\n  app: '{}'\noutbound: {{ listen: '{outbound}' }}\n",
            app.addr
        )
    };
    let sidecar = Sidecar::start(&file("{in}", "{out}"));
    sidecar.rewrite(&file("{out}", "{in}"));
    let line = sidecar.says(&["changing sides needs a restart", "inbound.listen"]);
    assert!(line.contains("outrigger.yaml:4:11:"), "{line}");
    until("the refusal is counted", || (sidecar.metric(&["reload", "reject"]) >= 1.0).then_some(()));
}

#[test]
fn an_end_asked_for_before_the_start_is_done_starts_no_app() {
    // A name server that never answers holds the start for a second.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers: {{ a: {{ dns: 'a.test:80' }} }}\ndns: {{ servers: ['{}'] }}\n",
        silent.local_addr().unwrap()
    );
    let mut sidecar = Sidecar::launch(&text, &["sleep", "60"]);
    sidecar.says(&["listening", "outbound"]);
    sidecar.signal("TERM");
    assert_eq!(sidecar.exit(), 0);
    assert!(!sidecar.log().contains("the app runs"), "{}", sidecar.log());
}

#[test]
fn everything_that_is_taken_is_said_at_once_and_stdout_is_the_apps() {
    let app = App::http(ONE);
    let sidecar = Sidecar::start(&format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers: {{ a: {{ static: ['{}'] }} }}\n",
        app.addr
    ));
    let file = sidecar.folder.0.join("outrigger.yaml");
    let second = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("run").arg("-c").arg(&file).output().unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("outrigger.yaml:2:8: admin.listen: address"), "{said}");
    assert!(said.contains("outrigger.yaml:3:21: outbound.listen: address"), "{said}");
    assert!(second.stdout.is_empty());
    assert_eq!(second.status.code(), Some(1));
}
