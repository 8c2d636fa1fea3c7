//! `outrigger redirect` as far as it needs no privilege; `tests/capture` tries the rest.

use std::process::Command;

use crate::harness::Folder;

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
         inbound: { listen: ['0.0.0.0:16006', '[::]:16006'], app: '127.0.0.1:80' }\n",
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
    let file = folder.write("o.yaml", "service: s\noutbound:\n  listen: unix:/x.sock\n");
    let (code, out, err) = redirect(&["script", "-c", file.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("o.yaml:3:11: outbound.listen: the rules of `redirect` lead to no listener"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}
