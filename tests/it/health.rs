//! Endpoints that health checks find unhealthy take no traffic until they are found well.

use std::sync::atomic::Ordering;

use crate::ejection::{Moody, ask, endpoints, sidecar};
use crate::harness::{free_port, until};

#[test]
fn one_that_fails_its_checks_takes_no_traffic_and_comes_back() {
    let (ill, well) = (Moody::start(true), Moody::start(false));
    let checks = ", eject: off, health: { http: /healthz, every: 50ms, unhealthy: 2 }";
    let sidecar = sidecar(&[ill.app.addr, well.app.addr], checks);
    let line = sidecar.says(&["endpoint is unhealthy after 2 failed checks", &ill.app.addr.to_string()]);
    assert!(line.contains("GET /healthz: 500"), "{line}");
    assert!(ask(&sidecar, 20).iter().all(|status| *status == 200));
    assert_eq!(endpoints(&sidecar)[0]["unhealthy"]["why"], "GET /healthz: 500");
    assert_eq!(sidecar.metric(&["outrigger_peer_endpoints_unhealthy", "server"]), 1.0);
    // Each endpoint is asked over one connection that is kept.
    assert!(sidecar.metric(&["outrigger_health_checks_total", "passed"]) > 0.0);
    assert!(sidecar.metric(&["outrigger_peer_connects_total", "server"]) <= 4.0);
    ill.set_ill(false);
    sidecar.says(&["endpoint is healthy again after", &ill.app.addr.to_string()]);
    let before = ill.asked.load(Ordering::SeqCst);
    assert!(ask(&sidecar, 20).iter().all(|status| *status == 200));
    assert!(ill.asked.load(Ordering::SeqCst) - before >= 10);
}

#[test]
fn a_reload_turns_checks_on_and_off() {
    let well = Moody::start(false);
    let dead = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()));
    let file = |more: &str| {
        format!(
            "service: client\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: ['{dead}', '{}'], eject: off{more} }}\n",
            well.app.addr
        )
    };
    let sidecar = crate::harness::Sidecar::start(&file(""));
    assert_eq!(sidecar.metric(&["outrigger_health_checks_total", "failed"]), 0.0);
    sidecar.rewrite(&file(", health: { tcp: true, every: 50ms }"));
    sidecar.signal("HUP");
    sidecar.says(&["endpoint is unhealthy after 3 failed checks", &dead.to_string()]);
    sidecar.rewrite(&file(""));
    sidecar.signal("HUP");
    until("nobody is unhealthy", || {
        let unhealthy = sidecar.metric(&["outrigger_peer_endpoints_unhealthy", "server"]);
        (unhealthy == 0.0).then_some(())
    });
    assert!(endpoints(&sidecar)[0]["unhealthy"].is_null());
}
