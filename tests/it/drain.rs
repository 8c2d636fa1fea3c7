//! The end: what was begun is finished, the app's code is ours, a second signal does not wait.

use std::io::{BufReader, Write};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use crate::harness::{App, Caller, Sidecar, inbound_file, read_head};

/// A sidecar that was told to end while `app` has a request.
fn draining(app: &App, more: &str) -> (Sidecar, Caller) {
    let sidecar = Sidecar::start(&format!("{}{more}\n", inbound_file(app.addr, "")));
    let mut caller = Caller::connect(sidecar.inbound);
    caller.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    app.next();
    sidecar.signal("TERM");
    sidecar.says(&["inbound drains"]);
    (sidecar, caller)
}

#[test]
fn an_exchange_under_way_is_finished_before_the_end() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Arc::new(Mutex::new(gate));
    let app = App::start(move |stream, report| {
        let mut writer = stream.try_clone().unwrap();
        let head = read_head(&mut BufReader::new(stream)).unwrap();
        report.send(head).unwrap();
        gate.lock().unwrap().recv().unwrap();
        writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate").unwrap();
    });
    let (mut sidecar, mut caller) = draining(&app, "");
    go.send(()).unwrap();
    let answer = caller.answer();
    assert!(answer.ends_with("late"), "{answer}");
    assert_eq!(sidecar.exit(), 0);
}

#[test]
fn a_second_signal_does_not_wait() {
    let app = App::start(|stream, report| {
        let mut reader = BufReader::new(stream);
        report.send(read_head(&mut reader).unwrap()).unwrap();
        let _ = read_head(&mut reader);
    });
    let (mut sidecar, _caller) = draining(&app, "grace: 600s");
    sidecar.signal("TERM");
    sidecar.exit();
}

#[test]
fn the_apps_end_is_ours_with_its_code() {
    let text = "service: s\nadmin: '{admin}'\noutbound: { listen: '{out}' }\n";
    let mut sidecar = Sidecar::launch(text, &["sh", "-c", "exit 7"]);
    assert_eq!(sidecar.exit(), 7);
    let mut sidecar = Sidecar::launch(text, &["sh", "-c", "kill -9 $$"]);
    assert_eq!(sidecar.exit(), 137);
    let mut sidecar = Sidecar::launch(text, &["/no/such/program"]);
    assert_eq!(sidecar.exit(), 127);
}
