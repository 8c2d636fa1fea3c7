//! The commands that read the file.

use std::process::Command;

use crate::harness::Folder;

fn outrigger(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_outrigger")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn check_names_every_mistake_with_place_and_nearest_key() {
    let folder = Folder::new();
    let file = folder.write(
        "o.yaml",
        "service: s\ninbuond: {}\npeers:\n  a: { static: ['127.0.0.1:1'], timeout: { connect: 5 } }\n",
    );
    let (code, out, err) = outrigger(&["check", "-c", file.to_str().unwrap()]);
    let said = out + &err;
    assert_eq!(code, 1);
    assert!(said.contains("o.yaml:2:1") && said.contains("`inbound`"), "{said}");
    assert!(said.contains("o.yaml:4:") && said.contains("peers.a.timeout.connect") && said.contains("unit"), "{said}");
}

#[test]
fn the_shipped_examples_are_fine() {
    for example in ["minimal", "quickstart", "full"] {
        let path = format!("{}/config/{example}.yaml", env!("CARGO_MANIFEST_DIR"));
        let (code, out, err) = outrigger(&["check", "-c", &path]);
        assert_eq!(code, 0, "{example}: {out}{err}");
    }
}

#[test]
fn an_app_that_is_announced_and_not_named_is_a_wrong_command_line() {
    let (code, _, err) = outrigger(&["run", "-c", "/no/such/file.yaml", "--"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.starts_with("outrigger: run: no program after `--`") && err.lines().count() == 1, "{err}");
}

#[test]
fn a_name_that_has_no_form_of_srv_is_told_with_an_example() {
    let folder = Folder::new();
    let file = folder.write("o.yaml", "service: s\npeers:\n  a: { srv: ledger.shop }\n");
    let (code, out, err) = outrigger(&["check", "-c", file.to_str().unwrap()]);
    let said = out + &err;
    assert_eq!(code, 1);
    assert!(said.contains("o.yaml:3:13: peers.a.srv: expected") && said.contains("`_grpc._tcp.ledger.shop`"), "{said}");
}

#[test]
fn a_missing_file_is_told_in_one_line() {
    let (code, _, err) = outrigger(&["run", "-c", "/no/such/file.yaml"]);
    assert_eq!(code, 1);
    assert!(err.contains("/no/such/file.yaml"), "{err}");
}
