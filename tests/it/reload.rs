//! A reload takes effect whole or not at all, and disturbs nobody.

use crate::harness::{App, Caller, Sidecar, until};

const ONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none";
const TWO: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntwo";

fn text(peer: &str, app: &App) -> String {
    format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}', otherwise: deny }}\npeers:\n  {peer}: {{ static: ['{}'] }}\n",
        app.addr
    )
}

#[test]
fn a_changed_file_takes_effect_on_a_living_connection() {
    let (one, two) = (App::http(ONE), App::http(TWO));
    let sidecar = Sidecar::start(&text("a", &one));
    let mut caller = Caller::connect(sidecar.outbound);
    assert!(caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer().ends_with("one"));
    sidecar.rewrite(&text("a", &two));
    until("the new peer answers", || {
        caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer().ends_with("two").then_some(())
    });
}

#[test]
fn a_broken_file_changes_nothing_and_is_told() {
    let one = App::http(ONE);
    let sidecar = Sidecar::start(&text("a", &one));
    sidecar.rewrite("service: s\npeers: { a: { statik: [] } }\n");
    sidecar.signal("HUP");
    let line = sidecar.says(&["statik"]);
    assert!(line.contains("outrigger.yaml:2:"), "{line}");
    until("the refusal is counted", || (sidecar.metric(&["reload", "reject"]) >= 1.0).then_some(()));
    let answer = Caller::connect(sidecar.outbound).send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").answer();
    assert!(answer.ends_with("one"), "{answer}");
    assert!(sidecar.page("/state").contains("statik"));
}
