//! Identities from files: what is refused with which words, what half-written files do, and when to warn.

use std::path::PathBuf;

use base64_lines::pem;
use rcgen::{BasicConstraints, KeyPair};
use rustls_pki_types::CertificateDer;

use super::kit::*;
use crate::plan::identity::{FilesPlan, RootsPlan};
use crate::tls::expiry::Of;
use crate::tls::identity::Identity;
use crate::tls::store::{IdentityStore, NotTaken};

/// A folder of its own with the files of an identity, removed at the end.
struct Files {
    folder: PathBuf,
    plan: FilesPlan,
}

impl Files {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("outrigger-identity-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let plan = FilesPlan {
            certificate: folder.join("own.pem"),
            key: folder.join("own.key"),
            roots: vec![RootsPlan { domain: None, file: folder.join("roots.pem") }],
            crls: Vec::new(),
            tls12: false,
        };
        Self { folder, plan }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn write_all(&self, chain: &Chain, roots: &[CertificateDer<'static>]) {
        self.write("own.pem", &certificates(&chain.certificates));
        self.write("own.key", &chain.key.serialize_pem());
        self.write("roots.pem", &certificates(roots));
    }

    fn read(&self) -> Result<Identity, String> {
        Identity::read(&self.plan, now())
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn certificates(list: &[CertificateDer<'static>]) -> String {
    list.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
}

const ID: &str = "spiffe://shop/service";

#[test]
fn what_does_not_fit_together_is_refused_by_file() {
    let root = Authority::root("root");
    let (good, der) = (root.issue(ID), root.der());
    let no_ca = root.issue("spiffe://shop/no-ca").certificates;
    let weak = include_str!("weak/inter1024.pem");
    let no_issuer = Authority::root_with("root", |params| params.key_usages = vec![rcgen::KeyUsagePurpose::CrlSign]);
    let files = Files::new("refused");
    type Changes = Vec<(&'static str, String)>;
    let show = |chain: &Chain| -> Changes {
        vec![("own.pem", certificates(&chain.certificates)), ("own.key", chain.key.serialize_pem())]
    };
    let put = |name, text| -> Changes { vec![(name, text)] };
    let two = root.issue_names(&[(URI, ID.as_bytes()), (URI, b"spiffe://shop/other")], |_| {});
    let ca = |params: &mut rcgen::CertificateParams| params.is_ca = rcgen::IsCa::Ca(BasicConstraints::Unconstrained);
    let server_only = |params: &mut rcgen::CertificateParams| params.extended_key_usages.truncate(1);
    let both = certificates(&[der.clone(), no_ca[0].clone()]);
    let other_key = KeyPair::generate().unwrap().serialize_pem();
    let rows: Vec<(&str, Changes, &str, &str)> = vec![
        ("empty certificate", put("own.pem", String::new()), "own.pem", "at least one PEM certificate"),
        ("empty key", put("own.key", String::new()), "own.key", "expected a PEM private key"),
        ("empty roots", put("roots.pem", String::new()), "roots.pem", "at least one PEM certificate"),
        ("another's key", put("own.key", other_key), "own.key", "not the private key of"),
        ("no ID", show(&root.issue_names(&[], |_| {})), "own.pem", "no SPIFFE ID"),
        ("two IDs", show(&two), "own.pem", "2 URIs"),
        ("no path", show(&root.issue("spiffe://shop")), "own.pem", "a workload's has a path"),
        ("a CA", show(&root.issue_with(ID, ca)), "own.pem", "that of a CA"),
        ("a server only", show(&root.issue_with(ID, server_only)), "own.pem", "may not be used by a TLS client"),
        ("root that is no CA", put("roots.pem", certificates(&no_ca)), "roots.pem", "certificate 1: is no CA"),
        ("second root that is no CA", put("roots.pem", both), "roots.pem", "certificate 2: is no CA"),
        ("root for CRLs only", put("roots.pem", certificates(&[no_issuer.der()])), "roots.pem", "lists no keyCertSign"),
        ("weak root", put("roots.pem", weak.to_owned()), "roots.pem", "under 2048 bits"),
        (
            "another's root",
            put("roots.pem", certificates(&[Authority::root("root").der()])),
            "own.pem",
            "no root of its trust domain has signed",
        ),
        ("a key as certificate", put("own.pem", good.key.serialize_pem()), "own.pem", "at least one PEM certificate"),
    ];
    for (name, changes, file, told) in rows {
        files.write_all(&good, std::slice::from_ref(&der));
        assert_eq!(files.read().unwrap().id().as_str(), ID);
        for (name, text) in changes {
            files.write(name, &text);
        }
        let error = files.read().unwrap_err();
        assert!(error.starts_with(files.folder.join(file).to_str().unwrap()), "{name}: {error}");
        assert!(error.contains(told) && !error.contains('\n'), "{name}: {error}");
    }
    files.write_all(&good, &[der]);
    std::fs::remove_file(&files.plan.key).unwrap();
    assert!(files.read().unwrap_err().starts_with(files.plan.key.to_str().unwrap()));
}

#[test]
fn roots_and_crls_of_several_trust_domains() {
    let (root, partner) = (Authority::root("root"), Authority::root("partner"));
    let mut files = Files::new("domains");
    files.write_all(&root.issue(ID), &[root.der()]);
    let file = files.write("partner.pem", &certificates(&[partner.der()]));
    let there = partner.issue("spiffe://partner/a");
    assert!(files.read().unwrap().identify_client(Some(&there.certificates), now()).is_err());
    files.plan.roots.push(RootsPlan { domain: Some("partner".into()), file: file.clone() });
    assert!(files.read().unwrap().identify_client(Some(&there.certificates), now()).is_ok());
    let crl = files.write("crl.pem", "");
    files.plan.crls.push(crl.clone());
    assert!(files.read().unwrap_err().contains("openssl crl -inform DER"));
    files.write("crl.pem", &pem("X509 CRL", b"no CRL"));
    assert!(files.read().unwrap_err().starts_with(&format!("{}: CRL 1: cannot be used", crl.display())));
    files.write("crl.pem", &pem("X509 CRL", &partner.crl(&[1], 10)));
    let identity = files.read().unwrap();
    let of: Vec<_> = identity.expiries().iter().map(|expiry| (&expiry.of, expiry.seconds_left(now()))).collect();
    let year = 365 * 24 * 3600;
    let crl_of = Of::Crl(crl.display().to_string().into());
    assert_eq!(
        of,
        [
            (&Of::Leaf, 24 * 3600),
            (&Of::Root("shop".into()), year),
            (&Of::Root("partner".into()), year),
            (&crl_of, 36_000)
        ]
    );
    files.plan.roots.remove(0);
    let error = files.read().unwrap_err();
    assert_eq!(error, format!("no roots are given for the own trust domain `shop`, that of {ID}"));
}

#[test]
fn half_written_files_change_nothing() {
    let (root, files) = (Authority::root("root"), Files::new("partial"));
    let issuing = root.below("issuing", |_| {});
    let old = issuing.issue(ID);
    files.write_all(&old, &[root.der()]);
    let store = IdentityStore::new(files.read().unwrap());
    let before = store.current().unwrap();
    let new = issuing.issue(ID);
    for (name, old, new) in [
        ("own.pem", certificates(&old.certificates), certificates(&new.certificates)),
        ("own.key", old.key.serialize_pem(), new.key.serialize_pem()),
        ("roots.pem", certificates(&[root.der()]), certificates(&[Authority::root("root").der()])),
    ] {
        // Every length of the new, and a new beginning over the rest of the old. Of roots only the first: nothing
        // signs a root, so a serial number or date that is half new makes another root of the same key.
        for end in (0..=new.len()).step_by(61).chain([new.len() - 1, new.len()]) {
            let mixed = (name != "roots.pem").then(|| format!("{}{}", &new[..end], old.get(end..).unwrap_or_default()));
            for text in [Some(new[..end].to_owned()), mixed].into_iter().flatten() {
                files.write(name, &text);
                let told = store.reload(&files.plan, now());
                // The first bytes are the same in old and new, so the old may still be there.
                assert!(told != Ok(true), "{name} up to {end}");
                assert!(std::sync::Arc::ptr_eq(&before, &store.current().unwrap()));
            }
        }
        files.write(name, &old);
    }
    assert_eq!(store.reload(&files.plan, now()), Ok(false));
    files.write_all(&new, &[root.der()]);
    assert_eq!(store.reload(&files.plan, now()), Ok(true));
    assert_ne!(store.current().unwrap().fingerprint(), before.fingerprint());
    std::fs::remove_dir_all(&files.folder).unwrap();
    assert!(store.reload(&files.plan, now()).unwrap_err().why.starts_with(files.folder.to_str().unwrap()));
    assert_eq!(store.current().unwrap().id().as_str(), ID);
}

#[test]
fn what_is_out_of_date_is_taken_and_told() {
    let root = Authority::root_with("root", |params| dates(params, -90, 10));
    let material = |from, until| {
        let leaf = root.issue_with(ID, |params| dates(params, from, until));
        leaf.material(&[(None, &[root.der()])])
    };
    let told = |material, hours| Identity::new(material, time(hours)).unwrap().warnings(time(hours));
    // The root has less than a third of its time left at any of these moments.
    for (from, until, hours, leaf) in [
        (-1, 5, 0, None),
        (-4, 2, 0, Some("two thirds of its time are over")),
        (-4, -1, 0, Some("our own certificate expired at 2027-05-31T23:00:00.000Z: replace it now")),
        (1, 5, 0, Some("valid only from 2027-06-01T01:00:00.000Z; is a clock wrong?")),
        (-4, 20, 11, None),
        (-4, 8, 11, Some("our own certificate expired")),
    ] {
        let warnings = told(material(from, until), hours);
        let root = if hours > 10 { "a root of the trust domain `shop` expired" } else { "two thirds" };
        assert!(warnings.last().unwrap().contains(root), "{warnings:?}");
        assert_eq!(warnings.len(), 1 + usize::from(leaf.is_some()), "{warnings:?}");
        assert!(leaf.is_none_or(|leaf| warnings[0].contains(leaf)), "{warnings:?}");
    }
    let revoked = root.issue_with(ID, |params| {
        params.serial_number = Some(9.into());
        dates(params, -60, 60);
    });
    let mut material = revoked.material(&[(None, &[root.der()])]);
    material.crls = vec![sourced("crl.pem", vec![root.crl(&[9], 100)])];
    let warnings = told(material, -50);
    assert!(warnings.iter().any(|line| line.contains("revoked by a CRL")), "{warnings:?}");
    // A leaf that ends before it begins is no matter of time.
    let reversed = root.issue_with(ID, |params| dates(params, 5, -5));
    assert!(Identity::new(reversed.material(&[(None, &[root.der()])]), now()).is_err());
}

#[test]
fn two_thirds_of_the_time_to_the_second() {
    let root = Authority::root("root");
    let leaf = root.issue_with(ID, |params| dates(params, 0, 3)).identity(&root);
    let expiry = &leaf.expiries()[0];
    assert_eq!((expiry.warn_at(), expiry.seconds_left(time(4))), (time(2), -3600));
}

#[test]
fn no_byte_of_a_key_is_ever_shown() {
    let root = Authority::root("root");
    let (chain, files) = (root.issue(ID), Files::new("secrets"));
    files.write_all(&chain, &[root.der()]);
    let identity = files.read().unwrap();
    let secret: &[u8] = &chain.key.serialize_der();
    let key_pem = chain.key.serialize_pem();
    let body: Vec<&str> = key_pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let mut shown =
        vec![format!("{identity:?}"), format!("{identity:#?}"), format!("{:?}", identity.server_config(&[]))];
    shown.push(format!("{:?}", identity.client_config(wanted(&[ID]), &[])));
    // As files go wrong: cut, without its frame, in the wrong place, doubled.
    for text in [&key_pem[..key_pem.len() - 30], &body.join("\n"), &key_pem.replace("PRIVATE", "PRIVATES")] {
        files.write("own.key", text);
        shown.extend(files.read().err());
    }
    files.write("own.key", &key_pem);
    for name in ["own.pem", "roots.pem"] {
        files.write(name, &key_pem);
        shown.push(files.read().unwrap_err());
    }
    assert_eq!(shown.len(), 9, "{shown:?}");
    let hex: String = secret[40..44].iter().map(|byte| format!("{byte:02x}")).collect();
    let decimal = format!("{}, {}, {}", secret[40], secret[41], secret[42]);
    for text in &shown {
        let text = text.to_lowercase();
        assert!(body.iter().all(|line| !text.contains(&line[..12].to_lowercase())), "{text}");
        assert!(!text.contains(&hex) && !text.contains(&decimal), "{text}");
    }
}

mod base64_lines {
    //! PEM of any bytes.

    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

    pub(super) fn pem(label: &str, bytes: &[u8]) -> String {
        let mut text = String::new();
        for three in bytes.chunks(3) {
            let bits = three.iter().fold(0u32, |sum, byte| sum << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
            for at in 0..4 {
                let six = (bits >> (18 - 6 * at)) & 63;
                text.push(if at <= three.len() { ALPHABET[six as usize] as char } else { '=' });
            }
        }
        let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
    }
}

#[test]
fn a_store_may_be_empty_and_says_why() {
    let (root, files) = (Authority::root("root"), Files::new("empty"));
    files.write_all(&root.issue(ID), &[root.der()]);
    let store = IdentityStore::default();
    assert!(store.current().is_none());
    assert_eq!(store.lack().as_deref(), Some("no identity has come yet"));
    store.lacks("the agent knows nobody");
    assert_eq!(store.lack().as_deref(), Some("the agent knows nobody"));
    assert!(store.replace(files.read().unwrap(), now()).unwrap());
    assert!(!store.replace(files.read().unwrap(), now()).unwrap());
    assert!(store.current().is_some() && store.lack().is_none());
    // A source that fails later takes nothing away.
    store.lacks("the agent is gone");
    assert!(store.current().is_some() && store.lack().is_none());
    store.clear();
    assert_eq!((store.current().is_none(), store.lack().as_deref()), (true, Some("no identity has come yet")));
}

#[test]
fn what_is_no_regular_file_is_not_waited_for() {
    let (root, mut files) = (Authority::root("root"), Files::new("fifo"));
    files.write_all(&root.issue(ID), &[root.der()]);
    let huge = files.write("huge.pem", "");
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(1 << 40).unwrap();
    let fifo = files.folder.join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for (path, told) in
        [(fifo, "is not a regular file"), ("/dev/zero".into(), "is not a regular file"), (huge, "larger than")]
    {
        let (done, came) = std::sync::mpsc::sync_channel(1);
        files.plan.certificate = path.clone();
        let plan = files.plan.clone();
        std::thread::spawn(move || done.send(Identity::read(&plan, now()).map(drop)));
        let error = came.recv_timeout(std::time::Duration::from_secs(20)).unwrap().unwrap_err();
        assert!(error.starts_with(path.to_str().unwrap()) && error.contains(told), "{error}");
    }
}

#[test]
fn lists_that_fit_none_of_their_issuers_are_refused_and_strangers_are_told() {
    let (root, partner) = (Authority::root("root"), Authority::root("partner"));
    let issuing = root.below("issuing", |_| {});
    let (namesake, stranger) = (Authority::root("issuing"), Authority::root("stranger"));
    let made = |lists: Vec<rustls_pki_types::CertificateRevocationListDer<'static>>| {
        let mut material = issuing.issue(ID).material(&[(None, &[root.der()]), (Some("partner"), &[partner.der()])]);
        material.crls = vec![sourced("crl.pem", lists)];
        Identity::new(material, now()).map(|identity| identity.warnings(now()).join("; "))
    };
    let fits = "is not signed by the CA whose name it has";
    for (name, lists, told) in [
        (
            "of the roots and of the own chain",
            vec![root.crl(&[1], 200), issuing.crl(&[2], 200), partner.crl(&[], 200)],
            Ok(""),
        ),
        ("by a namesake of the root", vec![Authority::root("root").crl(&[], 200)], Err("crl.pem: CRL 1: ")),
        (
            "by a namesake of the intermediate",
            vec![root.crl(&[], 200), namesake.crl(&[], 200)],
            Err("crl.pem: CRL 2: "),
        ),
        ("by a namesake of a partner's root", vec![Authority::root("partner").crl(&[], 200)], Err("crl.pem: CRL 1: ")),
        ("a namesake's beside the right one", vec![namesake.crl(&[], 200), issuing.crl(&[], 200)], Ok("")),
        (
            "by a stranger",
            vec![root.crl(&[], 200), stranger.crl(&[3], 200)],
            Ok("crl.pem: CRL 2: is of `CN=stranger`, which is none of"),
        ),
    ] {
        match (made(lists), told) {
            (Ok(warnings), Ok("")) => assert_eq!(warnings, "", "{name}"),
            (Ok(warnings), Ok(told)) => assert!(warnings.contains(told), "{name}: {warnings}"),
            (Err(why), Err(told)) => assert!(why.starts_with(told) && why.contains(fits), "{name}: {why}"),
            (made, told) => panic!("{name}: {made:?} instead of {told:?}"),
        }
    }
}

#[test]
fn a_ca_with_another_key_and_no_list_yet_is_told_and_blocks_nothing() {
    let (old, new) = (Authority::root("root"), Authority::root("root"));
    let made = |ours: &Authority, lists: Vec<rustls_pki_types::CertificateRevocationListDer<'static>>| {
        let roots = [old.der(), new.der()];
        let mut material = ours.issue(ID).material(&[(None, &roots), (Some("partner"), &roots)]);
        material.crls = vec![sourced("crl.pem", lists)];
        Identity::new(material, now())
    };
    let taken = made(&old, vec![old.crl(&[7], 200)]).unwrap();
    let warnings = taken.warnings(now());
    assert!(
        warnings.len() == 1 && warnings[0].starts_with("crl.pem: CRL 1: is of one CA called `CN=root`"),
        "{warnings:?}"
    );
    let judged = |ca: &Authority| taken.identify_client(Some(&ca.issue(ID).certificates), now()).map(drop);
    assert!(judged(&old).is_ok() && judged(&new).is_err());
    // Ours is nobody's whom the others would believe.
    let why = made(&new, vec![old.crl(&[7], 200)]).unwrap_err();
    assert!(why.ends_with("the CRL of that very issuer belongs beside it"), "{why}");
    let both = made(&new, vec![old.crl(&[7], 200), new.crl(&[], 200)]).unwrap();
    assert_eq!(both.warnings(now()), Vec::<String>::new());
    let why = made(&old, vec![Authority::root("root").crl(&[], 200)]).unwrap_err();
    assert!(why.starts_with("crl.pem: CRL 1: is not signed by the CA whose name it has"), "{why}");
}

#[test]
fn who_holds_is_not_replaced_by_who_does_not() {
    let root = Authority::root_with("root", |params| dates(params, -90, 40));
    let old_root = Authority::root_with("root", |params| dates(params, -90, -1));
    let files = Files::new("dates");
    let dated = |root: &Authority, from, until| {
        let leaf = root.issue_with(ID, |params| dates(params, from, until));
        files.write_all(&leaf, &[root.der()]);
        certificates(&leaf.certificates[..1])
    };
    let shown = |store: &IdentityStore| store.current().unwrap().fingerprint();
    // In force from and until, the new one from and until, at which hour; whether it is taken.
    for (name, (from, until), signer, (new_from, new_until), hour, taken) in [
        ("both hold", (-9, 9), &root, (-8, 20), 0, true),
        ("the new one ends sooner", (-9, 9), &root, (-8, 1), 0, true),
        ("the new one has expired", (-9, 9), &root, (-8, -1), 0, false),
        ("the new one is not valid yet", (-9, 9), &root, (1, 20), 0, false),
        ("its root has expired", (-9, 9), &old_root, (-8, 20), 0, false),
        ("it has become valid", (-9, 9), &root, (1, 20), 1, true),
        ("both have expired", (-9, 2), &root, (-9, 1), 3, true),
        ("what was in force has expired", (-9, 2), &root, (5, 20), 3, true),
        ("what was in force is not valid yet", (5, 9), &root, (6, 20), 3, true),
        ("the root has expired for both", (-9, 60), &root, (-8, 70), 41, true),
    ] {
        dated(&root, from, until);
        let store = IdentityStore::default();
        // Where there is none, any is better than none.
        assert_eq!(store.reload(&files.plan, time(hour)), Ok(true), "{name}");
        let before = shown(&store);
        dated(signer, new_from, new_until);
        let told = store.reload(&files.plan, time(hour));
        assert_eq!((told.is_ok(), shown(&store) != before), (taken, taken), "{name}: {told:?}");
        if let Err(NotTaken { why, dates }) = told {
            assert!(dates, "{why}");
            assert!(why.starts_with(files.plan.certificate.to_str().unwrap()) && why.contains("still holds"), "{why}");
        }
    }
}
