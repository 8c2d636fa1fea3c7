//! The demo runs, says what it saw, and leaves nothing behind, whatever ends it.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::harness::until;

/// The demo as the leader of a process group, so that whatever it starts can be found.
fn demo(time: &str) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(["demo", "--for", time]).process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until no process of the group is left.
fn until_gone(group: u32) {
    let group = format!("-{group}");
    until("every process of the demo is gone", || {
        let left = Command::new("kill").args(["-0", "--", &group]).stderr(Stdio::null()).status().unwrap().success();
        (!left).then_some(())
    });
}

#[test]
fn it_tells_what_it_saw() {
    let demo = demo("2s");
    let group = demo.id();
    let output = demo.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    until_gone(group);
    assert!(text.contains("inventory-1") && text.contains("requests/s"), "{text}");
    // A busy machine may miss what is expected; then the exit code has to say so.
    let code = if text.contains("\nAs expected") { 0 } else { 1 };
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains("s expected: "), "{text}");
    assert!(text.contains("4 of 4 sidecars refused a call in plaintext"), "{text}");
}

#[test]
fn nothing_outlives_it() {
    for (signal, code) in [("INT", Some(130)), ("KILL", None)] {
        let mut demo = demo("60s");
        let group = demo.id();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(demo.stdout.take().unwrap()));
        assert!(lines.any(|line| line.unwrap().contains("requests/s")));
        assert!(Command::new("kill").args([&format!("-{signal}"), &group.to_string()]).status().unwrap().success());
        assert_eq!(demo.wait().unwrap().code(), code);
        until_gone(group);
        let _ = std::fs::remove_dir_all(std::env::temp_dir().join(format!("outrigger-demo-{group}")));
    }
}
