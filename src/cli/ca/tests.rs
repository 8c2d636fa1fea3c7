//! The commands as they are written on a command line, with a clock that the tests move.

use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use clap::Parser;

use super::testing::Folder;
use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn start() -> SystemTime {
    UNIX_EPOCH + 20_000 * DAY
}

/// Exit code, output and error of `outrigger ca LINE`, run in `folder` (which `{}` in the line stands for).
fn at(moment: SystemTime, folder: &Folder, line: &str) -> (bool, String, String) {
    let here = folder.0.display().to_string();
    let words = std::iter::once("ca".to_owned()).chain(line.split(' ').map(|word| word.replace("{}", &here)));
    let line = Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = run(line.command, moment, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(&here, "{}");
    (code == ExitCode::SUCCESS, text(out), text(err))
}

fn fine(moment: SystemTime, folder: &Folder, line: &str) -> String {
    let (fine, out, err) = at(moment, folder, line);
    assert!(fine && err.is_empty(), "{line}: {out}{err}");
    out
}

fn wrong(moment: SystemTime, folder: &Folder, line: &str) -> String {
    let (fine, out, err) = at(moment, folder, line);
    assert!(!fine && out.is_empty() && err.lines().count() == 1, "{line}: {out}{err}");
    err
}

/// Every file below the folder with its mode and content.
fn everything(folder: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(everything(&path));
        } else {
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            found.push((path.file_name().unwrap().to_str().unwrap().to_owned(), mode, std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

fn mode(folder: &Folder, name: &str) -> u32 {
    folder.0.join(name).metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_ca_is_made_once_and_never_overwritten() {
    let folder = Folder::new();
    let out = fine(start(), &folder, "init --dir {}/ca --trust-domain shop --intermediate");
    assert!(
        out.contains("{}/ca/root.pem: the root of trust domain `shop`, until 2034-10-02T00:00:00Z (3650 days)"),
        "{out}"
    );
    for (name, expected) in
        [("root.pem", 0o644), ("root.key", 0o600), ("intermediate.pem", 0o644), ("intermediate.key", 0o600)]
    {
        // The umask may take from what everyone may do.
        assert_eq!(mode(&folder, &format!("ca/{name}")) & !0o044, expected & !0o044, "{name}");
    }
    assert_eq!((mode(&folder, "ca"), mode(&folder, "ca/root.key")), (0o700, 0o600));
    let before = everything(&folder.0);
    assert_eq!(before.len(), 4);
    let err = wrong(start(), &folder, "init --dir {}/ca --trust-domain shop");
    assert!(err.contains("{}/ca/root.pem is there already") && err.contains("--dir"), "{err}");
    // What would not be overwritten but not fit either counts too.
    std::fs::create_dir(folder.0.join("other")).unwrap();
    std::fs::write(folder.0.join("other/intermediate.key"), "x").unwrap();
    let err = wrong(start(), &folder, "init --dir {}/other");
    assert!(err.contains("{}/other/intermediate.key is there already"), "{err}");
    std::fs::remove_file(folder.0.join("other/intermediate.key")).unwrap();
    assert_eq!(everything(&folder.0), before);
}

#[test]
fn what_is_issued_is_told_and_replaced_and_inspected() {
    let folder = Folder::new();
    fine(start(), &folder, "init --dir {}/ca --trust-domain shop --intermediate");
    std::fs::remove_file(folder.0.join("ca/root.key")).unwrap();
    let line = "issue --service checkout --dns checkout.shop --ip ::1 --ca {}/ca --out {}/tls/checkout";
    let out = fine(start(), &folder, line);
    let path = "{}/tls/checkout";
    assert_eq!(
        out,
        format!(
            "{path}/cert.pem: spiffe://shop/checkout, until 2024-10-05T00:00:00Z (1 d)\n{path}/key.pem: its key, for its \
             owner's eyes only\n{path}/roots.pem: whom to trust\nin outrigger.yaml:\nidentity:\n  {{ certificate: \
             \"{path}/cert.pem\", key: \"{path}/key.pem\", roots: \"{path}/roots.pem\" }}\n"
        )
    );
    assert_eq!((mode(&folder, "tls/checkout"), mode(&folder, "tls/checkout/key.pem")), (0o700, 0o600));
    let first = everything(&folder.0.join("tls"));
    fine(start() + DAY / 2, &folder, line);
    let second = everything(&folder.0.join("tls"));
    let names = |files: &[(String, u32, Vec<u8>)]| files.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&second), ["cert.pem", "key.pem", "roots.pem"]);
    assert!(first[0] != second[0] && first[1] != second[1] && first[2] == second[2]);

    let inspect = "inspect {}/tls/checkout/cert.pem --roots {}/ca/root.pem";
    let out = fine(start() + DAY + Duration::from_secs(120), &folder, inspect);
    for text in [
        "[1] leaf\n    subject    CN=checkout\n",
        "SPIFFE ID  spiffe://shop/checkout\n    DNS        checkout.shop\n    IP         ::1\n",
        "key        ECDSA P-256\n    signature  ECDSA with SHA-256\n",
        "expires in 11 h 58 m\n    signed by  [2]: verified\n    X509-SVID  yes\n[2] CA for leaves only\n",
        "signed by  a root of --roots: verified\n    X509-SVID  no, the CA of trust domain `shop`\n",
        "the chain verifies up to the roots of --roots\n",
    ] {
        assert!(out.contains(text), "{text}:\n{out}");
    }
}

#[test]
fn key_and_certificate_fit_only_once_all_is_in_place() {
    let folder = Folder::new();
    fine(start(), &folder, "init --dir {}/ca --trust-domain shop");
    let id: SpiffeId = "spiffe://shop/a".parse().unwrap();
    let wanted = Wanted { id: id.clone(), dns: Vec::new(), addresses: Vec::new(), ttl: DAY };
    let leaf = open(&folder.0.join("ca")).unwrap().issue(&wanted, start()).unwrap();
    assert_eq!(stage(&folder.0.join("a"), &leaf, &id).unwrap().order(), [KEY, ROOTS, CERTIFICATE]);
}

#[test]
fn a_moved_clock_shows() {
    let folder = Folder::new();
    fine(start(), &folder, "init --dir {}/ca --trust-domain shop --days 2");
    fine(start(), &folder, "issue --service a --ca {}/ca --out {}/a --ttl 1h");
    for (moment, says) in [(start() + DAY / 2, "EXPIRED 11 h ago"), (start() - DAY, "NOT YET VALID, only in 23 h 59 m")]
    {
        let (fine, out, _) = at(moment, &folder, "inspect {}/a/cert.pem --roots {}/a/roots.pem");
        assert!(!fine && out.contains(says) && out.contains("the chain does NOT verify: "), "{out}");
    }
    let before = everything(&folder.0);
    for (moment, says) in [
        (start() + 3 * DAY, ", O=shop` expired 1 d ago: make a new one with `outrigger ca init`"),
        (start() + DAY + Duration::from_secs(1), "would outlive"),
        (start() - DAY, "is valid only in 23 h 59 m: look at this machine's clock"),
    ] {
        let err = wrong(moment, &folder, "issue --service a --ca {}/ca --out {}/a");
        assert!(err.contains(says), "{err}");
    }
    assert_eq!(everything(&folder.0), before);
}

#[test]
fn what_is_asked_wrongly_changes_nothing() {
    let folder = Folder::new();
    let missing = wrong(start(), &folder, "issue --service a --ca {}/none --out {}/a");
    assert!(missing.contains("{}/none/root.pem") && missing.contains("outrigger ca init"), "{missing}");
    fine(start(), &folder, "init --dir {}/ca --trust-domain shop");
    fine(start(), &folder, "init --dir {}/other --trust-domain shop");
    fine(start(), &folder, "issue --service a --ca {}/ca --out {}/a");
    std::fs::create_dir(folder.0.join("odd")).unwrap();
    std::fs::write(folder.0.join("odd/cert.pem"), "mine").unwrap();
    std::fs::create_dir(folder.0.join("keyed")).unwrap();
    std::fs::write(folder.0.join("keyed/key.pem"), "mine").unwrap();
    let before = everything(&folder.0);
    for (line, says) in [
        (
            "issue --service b --ca {}/ca --out {}/keyed",
            "{}/keyed/key.pem is there already and is not of spiffe://shop/b",
        ),
        ("issue --service b --ca {}/ca --out {}/a", "{}/a/cert.pem is there already and is not of spiffe://shop/b"),
        ("issue --service b --ca {}/ca --out {}/odd", "{}/odd/cert.pem is there already and is not of spiffe://shop/b"),
        (
            "issue --service a --trust-domain bank --ca {}/ca --out {}/b",
            "{}/ca: this CA is that of trust domain `shop`",
        ),
        ("issue --id spiffe://shop --ca {}/ca --out {}/b", "names a trust domain and no workload"),
        ("issue --service a --ttl 0s --ca {}/ca --out {}/b", "--ttl"),
    ] {
        let err = wrong(start(), &folder, line);
        assert!(err.contains(says), "{line}: {err}");
    }
    assert_eq!(everything(&folder.0), before);
    std::fs::copy(folder.0.join("other/root.key"), folder.0.join("ca/root.key")).unwrap();
    let err = wrong(start(), &folder, "issue --service a --ca {}/ca --out {}/a");
    assert!(err.contains("{}/ca: root.key does not fit root.pem"), "{err}");
}

#[test]
fn a_wrong_command_line_is_told_by_what_was_expected() {
    for (line, says) in [
        ("issue --service a/../b", "a path has segments"),
        ("issue --service", "--service"),
        ("issue", "--service"),
        ("issue --service a --ttl 5", "unit"),
        ("issue --service a --ttl 99999h", "--ttl <TIME>': at most `366d`"),
        ("issue --service a --dns x..y", "not a DNS name"),
        ("issue --service a --dns 10.0.0.1", "there is --ip"),
        ("issue --service a --ip a", "--ip"),
        ("issue --id shop/a", "begins with `spiffe://`"),
        ("init --trust-domain Shop", "a trust domain has lower-case"),
        ("init --days 0", "--days"),
        ("inspect a:1 --cert x", "--key"),
    ] {
        let error = Line::try_parse_from(std::iter::once("ca").chain(line.split(' '))).err().unwrap().to_string();
        assert!(error.contains(says), "{line}: {error}");
    }
}

#[test]
fn an_id_of_ones_own_and_a_folder_of_its_own() {
    let folder = Folder::new();
    fine(start(), &folder, "init --dir {}/ca --trust-domain shop");
    let out = fine(start(), &folder, "issue --id spiffe://shop/ns/a/sa/b --ca {}/ca --out {}/b --ttl 90m");
    assert!(out.contains("spiffe://shop/ns/a/sa/b, until 2024-10-04T01:30:00Z (1 h 30 m)"), "{out}");
}

#[test]
fn a_file_is_shown_for_what_it_is() {
    let folder = Folder::new();
    fine(start(), &folder, "init --dir {}/ca --trust-domain shop");
    fine(start(), &folder, "issue --service a --ca {}/ca --out {}/a");
    let text = |name: &str| std::fs::read_to_string(folder.0.join(name)).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.0.join(name), bytes).unwrap();
    let key = text("a/key.pem");
    assert_eq!(fine(start(), &folder, "inspect {}/a/key.pem"), "{}/a/key.pem\n    a private key: not shown\n");
    write("both.pem", format!("{}{key}", text("a/cert.pem")).as_bytes());
    let out = fine(start(), &folder, "inspect {}/both.pem");
    assert!(out.contains("a private key: not shown") && out.contains("spiffe://shop/a"), "{out}");
    assert!(out.contains("one that is not here: name it with --roots"), "{out}");
    assert!(!out.contains(key.lines().nth(1).unwrap()));
    write("locked.pem", b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n");
    assert!(fine(start(), &folder, "inspect {}/locked.pem").contains("an encrypted private key: not shown"));
    let der = files::certificates(&folder.0.join("ca/root.pem")).unwrap().remove(0);
    write("root.der", &der);
    let out = fine(start(), &folder, "inspect {}/root.der");
    assert!(out.contains("[1] CA\n") && out.contains("signed by  itself: verified"), "{out}");

    let broken = key.replace("-----END PRIVATE KEY-----", "");
    for (name, bytes, says) in [
        ("text.pem", &b"hello"[..], "neither a certificate nor a key"),
        ("empty.pem", b"", "neither a certificate nor a key"),
        ("broken.pem", broken.as_bytes(), "broken PEM"),
        ("large.pem", &vec![b'x'; (4 << 20) + 1], "larger than 4 MiB"),
    ] {
        write(name, bytes);
        let err = wrong(start(), &folder, &format!("inspect {{}}/{name}"));
        assert!(err.contains(&format!("{{}}/{name}: ")) && err.contains(says), "{err}");
        assert!(!err.contains(key.lines().nth(1).unwrap()));
    }
    for (line, says) in [
        ("inspect {}/nothing.pem", "no such file, and not HOST:PORT either"),
        ("inspect {}/a/cert.pem --sni a", "this is a file"),
        ("inspect {}/a/cert.pem --roots {}/none", "{}/none: "),
        ("inspect {}", "is a directory"),
    ] {
        let err = wrong(start(), &folder, line);
        assert!(err.contains(says), "{err}");
    }
}

#[test]
fn a_chain_by_who_may_not_issue_does_not_verify() {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose as Usage,
    };
    let folder = Folder::new();
    let ca = |name: &str, path, usages: &[Usage]| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(path);
        params.key_usages = usages.to_vec();
        params
    };
    let key = || KeyPair::generate().unwrap();
    let any = BasicConstraints::Unconstrained;
    for (name, root, between, fine) in [
        ("good", ca("r", any, &[Usage::KeyCertSign]), ca("b", any, &[Usage::KeyCertSign]), true),
        ("no usage", ca("r", any, &[]), ca("b", any, &[]), true),
        ("below for CRLs", ca("r", any, &[]), ca("b", any, &[Usage::CrlSign]), false),
        ("root for CRLs", ca("r", any, &[Usage::CrlSign]), ca("b", any, &[]), false),
        ("root's path", ca("r", BasicConstraints::Constrained(0), &[]), ca("b", any, &[]), false),
    ] {
        let root = CertifiedIssuer::self_signed(root, key()).unwrap();
        let between = CertifiedIssuer::signed_by(between, key(), &root).unwrap();
        let leaf = CertificateParams::new(vec!["a.example".to_owned()]).unwrap().signed_by(&key(), &between).unwrap();
        std::fs::write(folder.0.join("chain.pem"), leaf.pem() + &between.pem()).unwrap();
        std::fs::write(folder.0.join("root.pem"), root.pem()).unwrap();
        let now = std::time::SystemTime::now();
        let (_, out, err) = at(now, &folder, "inspect {}/chain.pem --roots {}/root.pem");
        let says = if fine { "the chain verifies up to" } else { "the chain does NOT verify: " };
        assert!(out.contains(says), "{name}: {out}{err}");
    }
}

#[test]
fn a_forged_chain_is_told() {
    let folder = Folder::new();
    for name in ["one", "two"] {
        fine(start(), &folder, &format!("init --dir {{}}/{name} --trust-domain shop"));
        fine(start(), &folder, &format!("issue --service a --ca {{}}/{name} --out {{}}/{name}-a"));
    }
    let mut forged = files::certificates(&folder.0.join("one-a/cert.pem")).unwrap().remove(0).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    std::fs::write(folder.0.join("forged.der"), forged).unwrap();
    for (line, says) in [
        ("inspect {}/forged.der --roots {}/one/root.pem", "signed by  NOT by a root of --roots, whose name it gives"),
        ("inspect {}/one-a/cert.pem --roots {}/two/root.pem", "signed by  one that is neither here nor in --roots"),
    ] {
        let (fine, out, _) = at(start(), &folder, line);
        assert!(!fine && out.contains(says) && out.contains("the chain does NOT verify: "), "{out}");
    }
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for() {
    let folder = Folder::new();
    fine(start(), &folder, "init --dir {}/ca");
    for name in ["root.pem", "root.key", "intermediate.pem"] {
        let (path, aside) = (folder.0.join("ca").join(name), folder.0.join("aside"));
        let moved = std::fs::rename(&path, &aside).is_ok();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        let err = wrong(start(), &folder, "issue --service a --ca {}/ca --out {}/a");
        assert!(err.contains(name) && err.contains("is not a regular file"), "{err}");
        let err = wrong(start(), &folder, &format!("inspect {{}}/ca/{name}"));
        assert!(err.contains(name) && err.contains("is not a regular file"), "{err}");
        std::fs::remove_file(&path).unwrap();
        if moved {
            std::fs::rename(&aside, &path).unwrap();
        }
    }
}
