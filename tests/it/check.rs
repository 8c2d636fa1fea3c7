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

#[test]
fn explain_tells_the_route_of_a_request_and_its_lines() {
    let folder = Folder::new();
    let file = folder.write(
        "o.yaml",
        "service: s\npeers:\n  next: { static: ['10.0.0.9:1'] }\n  shop:\n    static: ['10.0.0.1:1']\n    routes:\n      - { name: canary, match: { headers: { x-canary: '1' } }, split: { shop: 3, next: 1 } }\n",
    );
    let file = file.to_str().unwrap();
    let (code, out, err) = outrigger(&["explain", "http://shop/v2/x", "-H", "x-canary: 1", "-c", file]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("`canary` means it") && out.contains("o.yaml:7]"), "{out}");
    assert!(out.contains("shop 75%, next 25%") && out.contains("[default]"), "{out}");

    let (code, out, _) = outrigger(&["explain", "http://shop/v2/x", "--json", "-X", "POST", "-c", file]);
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &said["outcome"], &said["method"]), (0, &"forwarded".into(), &"POST".into()));
    let over = said["facts"].as_array().unwrap().iter().find(|fact| fact["about"] == "passed over").unwrap();
    assert_eq!((&over["line"], &over["key"]), (&7.into(), &"peers.shop.routes[0]".into()));

    let (code, _, err) = outrigger(&["explain", "shop/v2", "-c", file]);
    assert!(code == 2 && err.contains("did you mean `http://shop/v2`?"), "{code} {err}");
    let (code, _, err) = outrigger(&["explain", "http://shop/", "--inbound", "-c", file]);
    assert!(code == 1 && err.contains("has no inbound door"), "{code} {err}");
    let (code, _, err) = outrigger(&["explain", "http://shop/", "-c", "/no/such/file.yaml"]);
    assert!(code == 1 && err.contains("cannot be read"), "{code} {err}");
}

#[test]
fn explain_tells_where_a_captured_connection_leads() {
    let folder = Folder::new();
    let file = folder.write("o.yaml", "service: s\nredirect: {}\npeers:\n  db: { static: ['10.1.2.3:5432'] }\n");
    let file = file.to_str().unwrap();
    let (code, out, err) = outrigger(&["explain", "--dialled", "10.1.2.3:5432", "-c", file]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("a connection to 10.1.2.3:5432\n") && out.contains("o.yaml:4]"), "{out}");
    let (code, out, _) = outrigger(&["explain", "http://x/", "--dialled", "10.1.2.3:5432", "--json", "-c", file]);
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &said["dialled"], &said["url"]), (0, &"10.1.2.3:5432".into(), &"http://x/".into()));
    for (arguments, expect) in [
        (vec!["explain", "-c", file], "<URL>"),
        (vec!["explain", "--dialled", "db:5432", "-c", file], "invalid value"),
        (vec!["explain", "http://x/", "--admin", "127.0.0.1:1", "-c", file], "--dialled <IP:PORT>"),
    ] {
        let (code, _, err) = outrigger(&arguments);
        assert!(code == 2 && err.contains(expect), "{arguments:?}: {code} {err}");
    }
    let nobody = ["explain", "--dialled", "10.1.2.3:5432", "--admin", "127.0.0.1:1", "-c", file];
    let (code, _, err) = outrigger(&nobody);
    assert!(code == 1 && err.contains("cannot connect to 127.0.0.1:1"), "{code} {err}");
}
