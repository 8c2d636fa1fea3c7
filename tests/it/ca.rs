//! `outrigger ca` as a program: what it makes serves TLS, and what answers is told in plain words.

use std::collections::HashSet;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Folder, Sidecar, free_port};

/// Exit code, output and error of `outrigger ca LINE` in the folder.
fn ca(folder: &Folder, line: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    let output = command.current_dir(&folder.0).arg("ca").args(line.split(' ')).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

fn fine(folder: &Folder, line: &str) -> String {
    let (code, out, err) = ca(folder, line);
    assert_eq!((code, err.as_str()), (0, ""), "{line}: {out}");
    out
}

#[test]
fn a_mesh_of_one_is_made_served_and_looked_at() {
    let folder = Folder::new();
    fine(&folder, "init --trust-domain shop --intermediate");
    let out = fine(&folder, "issue --service checkout --dns localhost");
    assert!(out.contains("tls/checkout/cert.pem: spiffe://shop/checkout, until "), "{out}");
    for key in ["ca/root.key", "ca/intermediate.key", "tls/checkout/key.pem"] {
        assert_eq!(folder.0.join(key).metadata().unwrap().permissions().mode() & 0o777, 0o600, "{key}");
    }
    let out = fine(&folder, "inspect tls/checkout/cert.pem --roots ca/root.pem");
    assert!(out.contains("X509-SVID  yes") && out.contains("expires in 23 h 59 m"), "{out}");
    assert!(out.contains("the chain verifies up to the roots"), "{out}");

    let at = folder.0.join("tls/checkout").display().to_string();
    let app = free_port();
    let sidecar = Sidecar::start(&format!(
        "service: checkout\ninbound: {{ listen: '{{in}}', app: '127.0.0.1:{app}', tls: {{ certificate: '{at}/cert.pem', \
         key: '{at}/key.pem' }} }}\nadmin: '{{admin}}'\n"
    ));
    let out = fine(&folder, &format!("inspect {} --sni localhost --roots ca/root.pem", sidecar.inbound));
    for text in [
        "asked for    localhost\n",
        "version      TLS 1.3, cipher TLS13_",
        "key exchange X25519MLKEM768: ",
        "ALPN         h2 (HTTP/2)\n",
        "client cert  not asked for\n",
        "SPIFFE ID  spiffe://shop/checkout\n",
        "signed by  [2]: verified\n",
        "the chain verifies up to the roots",
    ] {
        assert!(out.contains(text), "{text}:\n{out}");
    }
    // The admin server of the same sidecar speaks no TLS.
    let (code, out, err) = ca(&folder, &format!("inspect {}", sidecar.admin));
    assert_eq!((code, err.as_str()), (1, ""));
    assert!(out.contains("REFUSED      the server does not speak TLS there"), "{out}");
}

#[test]
fn who_reads_while_it_is_replaced_finds_whole_files() {
    let folder = Folder::new();
    fine(&folder, "init --trust-domain shop");
    fine(&folder, "issue --service a --out a");
    let (stop, at) = (AtomicBool::new(false), folder.0.join("a"));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut seen = HashSet::new();
            while !stop.load(Ordering::Relaxed) {
                for (name, last) in
                    [("key.pem", "-----END PRIVATE KEY-----"), ("cert.pem", "-----END CERTIFICATE-----")]
                {
                    let text = std::fs::read_to_string(at.join(name)).unwrap();
                    assert!(text.starts_with("-----BEGIN") && text.trim_end().ends_with(last), "{name}: {text}");
                    seen.insert(text);
                }
            }
            seen.len()
        });
        for _ in 0..20 {
            fine(&folder, "issue --service a --out a");
        }
        stop.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 4);
    });
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 3);
}

#[test]
fn each_mistake_is_one_line() {
    let folder = Folder::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    fine(&folder, "init");
    for (line, says) in [
        ("init".to_owned(), "ca/root.pem is there already"),
        ("issue --service a --ca nowhere".to_owned(), "nowhere/root.pem: "),
        ("issue --service a --ttl 3651d".to_owned(), ""),
        (format!("inspect {closed}"), "refused"),
        ("inspect nothing".to_owned(), "no such file"),
        ("inspect nothing:x".to_owned(), "no such file"),
    ] {
        let (code, out, err) = ca(&folder, &line);
        assert!(code != 0 && out.is_empty() && err.contains(says), "{line}: {code} {out}{err}");
        assert!(code == 2 || err.lines().count() == 1 && err.starts_with("outrigger: "), "{line}: {err}");
    }
}
