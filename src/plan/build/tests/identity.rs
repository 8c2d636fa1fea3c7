//! Where an identity comes from, as the file and the environment say it.

use std::path::Path;

use crate::config::facts::Facts;
use crate::config::problem::Problems;
use crate::plan::build::build;
use crate::plan::identity::IdentityPlan;

/// What an identity of these keys is asked of, or what is wrong; `variable` is SPIFFE_ENDPOINT_SOCKET.
fn workload_api(keys: &str, variable: &str) -> Result<(String, Option<String>, bool), String> {
    let text = format!("service: x\nidentity: {{ {keys} }}\ninbound: {{ app: \"127.0.0.1:1\" }}");
    let set = |name: &str| (name == "SPIFFE_ENDPOINT_SOCKET").then(|| variable.to_owned());
    let mut problems = Problems::new("f");
    let document = crate::config::read(&text, &Facts::PLAIN, &set, &mut problems).unwrap();
    let built = build(&document.config, Path::new("/etc/outrigger"), &mut problems);
    if !problems.list().is_empty() {
        return Err(problems.sorted().to_string());
    }
    match built.plan.identity.as_deref() {
        Some(IdentityPlan::WorkloadApi(plan)) => {
            Ok((plan.agent.to_string(), plan.id.as_ref().map(ToString::to_string), plan.tls12))
        }
        other => Err(format!("{other:?}")),
    }
}

#[test]
#[cfg(feature = "spiffe")]
fn a_workload_api_is_named_by_the_file_or_by_the_standards_variable() {
    let plain = |agent: &str| Ok((agent.to_owned(), None, false));
    for (keys, variable, agent) in [
        ("workload-api: unix:/run/a.sock", "unix:/b", "unix:/run/a.sock"),
        ("workload-api: unix:///run/a.sock", "", "unix:/run/a.sock"),
        ("workload-api: on", "unix:///b", "unix:/b"),
        ("workload-api: on", "tcp://127.0.0.1:8081", "127.0.0.1:8081"),
        ("workload-api: 'tcp:[::1]:8081'", "", "[::1]:8081"),
        ("workload-api: '${SPIFFE_ENDPOINT_SOCKET}'", "unix:/b", "unix:/b"),
    ] {
        assert_eq!(workload_api(keys, variable), plain(agent), "{keys} {variable}");
    }
    let all = workload_api("workload-api: unix:/a, id: spiffe://shop/x, tls12: true", "");
    assert_eq!(all, Ok(("unix:/a".into(), Some("spiffe://shop/x".into()), true)));
    for (variable, why) in [
        (
            "",
            "f:2:27: identity.workload-api: `on` means the socket that SPIFFE_ENDPOINT_SOCKET names, which is not set",
        ),
        ("/run/a.sock", "f:2:27: identity.workload-api: expected the socket of a Workload API"),
        ("unix:a.sock", "f:2:27: identity.workload-api: expected the socket of a Workload API"),
        ("tcp://10.0.0.1:1", "f:2:27: identity.workload-api: expected the socket of a Workload API"),
        ("tcp://localhost:1", "f:2:27: identity.workload-api: expected the socket of a Workload API"),
    ] {
        let said = workload_api("workload-api: on", variable).unwrap_err();
        assert!(said.starts_with(why), "{variable}: {said}");
    }
}

#[test]
#[cfg(not(feature = "spiffe"))]
fn a_build_without_the_workload_api_says_so() {
    let said = workload_api("workload-api: unix:/a", "").unwrap_err();
    assert_eq!(
        said,
        "f:2:27: identity.workload-api: this program was built without the Workload API (cargo's feature `spiffe`)"
    );
}

#[test]
fn an_opaque_peer_that_only_a_sidecars_port_leads_to_is_told_of() {
    let warned = |redirect: &str, peer: &str| {
        let text = format!(
            "service: a\nidentity: {{ workload-api: unix:/x }}\n{redirect}peers: {{ db: {{ mtls: {{ id: spiffe://a/db }}, {peer} }} }}\n"
        );
        let mut problems = Problems::new("f");
        let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        build(&document.config, Path::new("/"), &mut problems);
        assert!(!problems.has_errors(), "{problems}");
        problems.to_string().contains("peers.db.protocol: only who dials a sidecar's port reaches it")
    };
    let captured = "redirect: {}\n";
    let named = "redirect: {}\ndns: { listen: 127.0.0.1:15053 }\n";
    for (redirect, peer, expect) in [
        (captured, "static: [\"10.0.0.3:15006\"], protocol: tcp", true),
        (captured, "dns: \"db.shop:15006\", protocol: tcp", true),
        (captured, "static: [\"10.0.0.3:15006\", \"10.0.0.3:5432\"], protocol: tcp", false),
        (captured, "static: [\"10.0.0.3:15006\"]", false),
        (captured, "srv: _db._tcp.shop, protocol: tcp", false),
        (named, "static: [\"10.0.0.3:15006\"], protocol: tcp", false),
        (
            "redirect: { outbound: off }\ninbound: { app: 127.0.0.1:8 }\n",
            "static: [\"10.0.0.3:15006\"], protocol: tcp",
            false,
        ),
        ("", "static: [\"10.0.0.3:15006\"], protocol: tcp", false),
    ] {
        assert_eq!(warned(redirect, peer), expect, "{redirect}{peer}");
    }
}
