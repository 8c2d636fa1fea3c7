//! The start and what a reload may not do to what the start has opened.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use crate::harness::{App, Caller, Folder, PATIENCE, Sidecar, free_port, try_get, until};

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

#[test]
fn an_admin_port_that_is_taken_is_said_before_any_door_is_open() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sidecar = Sidecar::launch(
        &format!("service: s\nadmin: '{}'\noutbound: {{ listen: '{{out}}' }}\n", taken.local_addr().unwrap()),
        &["echo", "the app"],
    );
    assert_eq!(sidecar.exit(), 1);
    sidecar.says(&["outrigger.yaml:2:8: admin.listen: address"]);
    for word in ["listening", "ready", "the app"] {
        assert!(!sidecar.log().contains(word), "{}", sidecar.log());
    }
}

#[test]
fn the_admin_socket_is_its_owners_alone_and_goes_with_the_end() {
    let folder = Folder::new();
    let path = folder.0.join("admin.sock");
    let text = format!("service: s\nadmin: 'unix:{}'\noutbound: {{ listen: '{{out}}' }}\n", path.display());
    let mut sidecar = Sidecar::launch(&text, &[]);
    sidecar.says(&["ready"]);
    let facts = std::fs::metadata(&path).unwrap();
    assert_eq!((facts.mode() & 0o777, facts.uid()), (0o600, std::fs::metadata(&folder.0).unwrap().uid()));
    let mut admin = UnixStream::connect(&path).unwrap();
    admin.set_read_timeout(Some(PATIENCE)).unwrap();
    admin.write_all(b"POST /reload HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    sidecar.signal("TERM");
    assert_eq!(sidecar.exit(), 0);
    assert!(!path.exists());
}

#[test]
fn a_reader_of_the_log_that_stops_holds_nothing_up() {
    let (folder, admin, out) = (Folder::new(), free_port(), free_port());
    let text = |more: &str| {
        format!(
            "service: s\nadmin: '127.0.0.1:{admin}'\noutbound: {{ listen: '127.0.0.1:{out}', otherwise: deny{more} }}\n"
        )
    };
    let file = folder.write("outrigger.yaml", &text(""));
    let mut run = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    run.args(["run", "-c"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = Ended(run.spawn().unwrap());
    let addr = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let metrics = || try_get(addr(admin), "/metrics");
    until("it is ready", || try_get(addr(admin), "/ready").filter(|answer| answer.starts_with("HTTP/1.1 200")));
    // More than the pipe and the buffer behind it hold.
    let mut caller = Caller::connect(addr(out));
    let request = format!("GET /{} HTTP/1.1\r\nHost: nobody\r\n\r\n", "long".repeat(250));
    for _ in 0..600 {
        let answer = caller.send(&request).answer();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
    // The control thread has lines to write too, more than the last page of a full pipe may still take.
    for n in 1..=4 {
        folder.write("outrigger.yaml", &text(&format!(", allow: [a{n}]")));
        let applied = format!("outrigger_reloads_total{{result=\"applied\"}} {n}\n");
        until("the reload", || metrics().filter(|page| page.contains(&applied)));
    }
    let page = metrics().unwrap();
    let dropped = page.lines().find_map(|line| line.strip_prefix("outrigger_log_lines_dropped_total ")).unwrap();
    assert_ne!(dropped, "0");
    drop(caller);
    let pid = child.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let code = until("the end", || child.0.try_wait().unwrap());
    assert_eq!(code.code(), Some(0));
}

/// A process that does not outlive its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
