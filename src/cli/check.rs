//! `outrigger check`: reads the file as `run` would and says all that is wrong with it, opening nothing but files.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use crate::config::expand::Variables;
use crate::config::facts::Facts;
use crate::config::problem::{Problem, Severity};
use crate::control::load::{Loaded, load};
use crate::ids::Door;
use crate::plan::Plan;
use crate::plan::identity::IdentityPlan;
use crate::plan::peer::PeerKind;

/// Checks one file. Exit codes: 0 fine (perhaps with warnings), 1 something is wrong.
pub fn run(path: &Path, as_json: bool, facts: &Facts, variables: Variables<'_>, out: &mut dyn Write) -> ExitCode {
    let result = load(path, facts, variables).map(|mut loaded| {
        let open = open_keys(&loaded);
        loaded.warnings.extend(open);
        loaded
    });
    let code = if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let text = match (&result, as_json) {
        (Ok(loaded), true) => json!({
            "ok": true, "service": &*loaded.plan.service, "summary": summary(&loaded.plan), "problems": loaded.warnings,
        })
        .to_string(),
        (Err(problems), true) => {
            json!({ "ok": false, "errors": problems.errors(), "problems": problems.list() }).to_string()
        }
        (Ok(loaded), false) => fine(path, loaded),
        (Err(problems), false) => problems.to_string(),
    };
    match writeln!(out, "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Private keys that every user may read. Said here alone: secrets that are mounted into a container, where nobody else is,
/// often are so, and a start that warns of it each time is not read.
fn open_keys(loaded: &Loaded) -> Vec<Problem> {
    let identity = loaded.plan.identity.as_deref().and_then(IdentityPlan::files);
    let identity = identity.map(|files| ("identity.key", &files.key));
    let doors = loaded.plan.doors.iter().filter_map(|door| Some(("inbound.tls.key", &door.tls.as_ref()?.key)));
    let open = |path: &Path| std::fs::metadata(path).is_ok_and(|key| key.permissions().mode() & 0o004 != 0);
    let mut all: Vec<_> = identity.into_iter().chain(doors).filter(|(_, path)| open(path)).collect();
    all.dedup();
    let told = all.into_iter().map(|(key, path)| {
        let text = format!("every user of this machine may read the private key {0}: `chmod o= {0}`", path.display());
        Problem { severity: Severity::Warning, ..loaded.places.problem(key, text) }
    });
    told.collect()
}

fn fine(path: &Path, loaded: &Loaded) -> String {
    let warnings: String = loaded.warnings.iter().map(|warning| format!("{warning}\n")).collect();
    format!("{warnings}{}: ok: {}", path.display(), summary(&loaded.plan))
}

/// One line that says what the file amounts to.
pub fn summary(plan: &Plan) -> String {
    let doors = |side: Door| {
        let all: Vec<_> =
            plan.doors.iter().filter(|door| door.side == side).map(|door| door.listen.to_string()).collect();
        if all.is_empty() { "none".to_owned() } else { all.join(" ") }
    };
    let peers = plan.peers.iter().filter(|peer| peer.kind == PeerKind::Named).count();
    let (inbound, outbound) = (doors(Door::Inbound), doors(Door::Outbound));
    let plural = if peers == 1 { "" } else { "s" };
    format!("service {}, inbound {inbound}, outbound {outbound}, {peers} peer{plural}", plan.service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, as_json: bool) -> (bool, String) {
        let path = format!("{}/config/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
        let mut out = Vec::new();
        let code = run(Path::new(&path), as_json, &Facts::PLAIN, &|_| None, &mut out);
        (code == ExitCode::SUCCESS, String::from_utf8(out).unwrap().replace(&path, "FILE"))
    }

    #[test]
    fn a_fine_file_is_one_line() {
        let summary = "service checkout, inbound [::]:15006, outbound 127.0.0.1:15001 [::1]:15001, 4 peers";
        assert_eq!(check("quickstart", false), (true, format!("FILE: ok: {summary}\n")));
        let (fine, text) = check("quickstart", true);
        let said: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(fine);
        assert_eq!(said, json!({ "ok": true, "service": "checkout", "summary": summary, "problems": [] }));
    }

    #[test]
    fn a_wrong_file_is_a_line_for_each_problem() {
        // A control file is no configuration.
        let (fine, text) = check("peers", false);
        assert!(!fine);
        assert!(text.lines().all(|line| line.starts_with("FILE:")), "{text}");
        let said: serde_json::Value = serde_json::from_str(&check("peers", true).1).unwrap();
        assert_eq!((&said["ok"], &said["errors"]), (&json!(false), &json!(text.lines().count())));
        let first = &said["problems"][0];
        assert_eq!(
            (&first["line"], &first["key"], &first["severity"]),
            (&json!(3), &json!("service"), &json!("error"))
        );
    }

    #[test]
    fn a_private_key_that_everybody_may_read_is_told() {
        let at = std::env::temp_dir().join(format!("outrigger-check-{}", std::process::id()));
        std::fs::create_dir_all(&at).unwrap();
        let pair = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        std::fs::write(at.join("c.pem"), pair.cert.pem()).unwrap();
        std::fs::write(at.join("k.pem"), pair.signing_key.serialize_pem()).unwrap();
        let file = at.join("f.yaml");
        let text = "service: s\ninbound:\n  app: 127.0.0.1:1\n  tls: { certificate: c.pem, key: k.pem }\n";
        std::fs::write(&file, text).unwrap();
        for (mode, told) in [(0o600, false), (0o640, false), (0o644, true)] {
            std::fs::set_permissions(at.join("k.pem"), std::fs::Permissions::from_mode(mode)).unwrap();
            let mut out = Vec::new();
            run(&file, false, &Facts::PLAIN, &|_| None, &mut out);
            let out = String::from_utf8(out).unwrap();
            assert!(out.contains(": ok: "), "{out}");
            assert_eq!(
                out.contains("f.yaml:4:35: warning: inbound.tls.key: every user of this machine may"),
                told,
                "{out}"
            );
        }
        std::fs::remove_dir_all(at).unwrap();
    }
}
