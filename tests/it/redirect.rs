//! `outrigger redirect` as far as it needs no privilege; `tests/capture` tries the rest.

use std::process::{Command, Stdio};

use crate::harness::{Folder, Sidecar, free_port};

fn redirect(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger")).arg("redirect").args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_script_knows_the_doors_and_the_user() {
    let folder = Folder::new();
    // The files of its identity are not there where an init step runs.
    let file = folder.write(
        "o.yaml",
        "service: s\nidentity: { certificate: no, key: no, roots: no }\n\
         inbound: { listen: ['0.0.0.0:16006', '[::]:16006'], app: '127.0.0.1:80' }\nredirect: {}\n",
    );
    let file = file.to_str().unwrap();
    let (code, out, err) = redirect(&["script", "-c", file, "--uid", "4000"]);
    assert_eq!((code, err.as_str()), (0, ""));
    for words in ["table inet outrigger {", "meta skuid 4000", "redirect to :15001", "redirect to :16006"] {
        assert!(out.contains(words), "{words}: {out}");
    }
    let (code, out, _) = redirect(&["script", "-c", file, "--iptables"]);
    assert!(code == 0 && out.starts_with("#!/bin/sh\n") && out.contains("--uid-owner 1337"), "{out}");
    let (code, out, _) = redirect(&["script", "-c", file, "--remove"]);
    assert_eq!((code, out.as_str()), (0, "table inet outrigger\ndelete table inet outrigger\n"));
}

#[test]
fn a_name_is_no_user() {
    let (code, _, err) = redirect(&["script", "--uid", "nobody"]);
    assert!(code == 2 && err.contains("`id -u NAME` tells the number"), "{err}");
}

#[test]
fn what_cannot_be_captured_is_told_with_its_line() {
    let folder = Folder::new();
    let file = folder.write("o.yaml", "service: s\noutbound:\n  listen: unix:/x.sock\nredirect: {}\n");
    let (code, out, err) = redirect(&["script", "-c", file.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("o.yaml:3:11: outbound.listen: the rules of `redirect` lead to no listener"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn a_sidecar_that_knows_nothing_of_captured_connections_gets_none() {
    let folder = Folder::new();
    let file = folder.write("o.yaml", "service: s\ninbound: { app: '127.0.0.1:80' }\n");
    for command in ["apply", "test"] {
        let (code, out, err) = redirect(&[command, "-c", file.to_str().unwrap()]);
        assert_eq!((code, out.as_str(), err.lines().count()), (1, "", 1), "{err}");
        assert!(
            err.contains("redirect: without this section the sidecar") && err.contains("add `redirect: {}`"),
            "{err}"
        );
    }
    let (code, out, err) = redirect(&["script", "-c", file.to_str().unwrap()]);
    assert!(code == 0 && out.contains("table inet outrigger {"), "{out}");
    assert!(err.contains("o.yaml: warning: redirect: ") && err.contains("add `redirect: {}`"), "{err}");
}

/// What an app says that `run` starts with this in the section.
fn run(redirect: &str, script: &str) -> (i32, String, String) {
    let (folder, port) = (Folder::new(), free_port());
    let text =
        format!("service: s\noutbound: {{ listen: '127.0.0.1:{port}' }}\nadmin: 'off'\nredirect: {{ {redirect} }}\n");
    let file = folder.write("o.yaml", &text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(["run", "-c", file.to_str().unwrap(), "--", "sh", "-c", script]);
    let output = command.env_remove("http_proxy").env_remove("HTTP_PROXY").output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&port.to_string(), "PORT");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn an_app_that_is_not_captured_is_told_of_the_door_or_left_alone() {
    let script = "echo $HTTP_PROXY $https_proxy $no_proxy; exit 3";
    let (code, out, err) = run("app: proxy", script);
    assert_eq!(
        (code, out.as_str()),
        (3, "http://127.0.0.1:PORT http://127.0.0.1:PORT localhost,127.0.0.1,::1\n"),
        "{err}"
    );
    let (code, out, err) = run("app: 'off'", script);
    assert_eq!((code, out.trim()), (3, ""), "{err}");
}

#[test]
fn the_holder_makes_no_network_for_nobody() {
    // Without a socket for its standard input there is nobody to hold one for.
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(["hold-network", "--door-v4=1", "--door-v6=1", "--v4=192.0.2.1"]).stdin(Stdio::null());
    assert_eq!(command.output().unwrap().status.code(), Some(1));
}

#[test]
fn what_an_app_is_to_be_put_into_must_be_there() {
    for (place, words) in
        [("--holder=4194999", "network cannot be joined"), ("--group=/no/such", "/no/such: No such file")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
        let output = command.args(["launch-app", place, "--", "true"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(126) && said.contains(words) && said.lines().count() == 1, "{said}");
    }
}

#[test]
fn a_sidecar_that_the_rules_do_not_let_go_says_so_at_its_start_and_at_a_reload() {
    let id = Command::new("id").arg("-u").output().unwrap();
    let own: u32 = String::from_utf8(id.stdout).unwrap().trim().parse().unwrap();
    let text = |uid: u32| {
        format!("service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\nredirect: {{ uid: {uid} }}\n")
    };
    let told = |uid: u32| format!("let user {uid} go, and this sidecar is user {own}, group");
    let sidecar = Sidecar::start(&text(4_000_001));
    sidecar.says(&["WARN", &told(4_000_001)]);
    sidecar.rewrite(&text(own));
    sidecar.says(&["the file is in force"]);
    sidecar.rewrite(&text(4_000_002));
    sidecar.says(&["WARN", &told(4_000_002)]);
}
