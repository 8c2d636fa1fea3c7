//! Endpoints that health checks find unhealthy take no traffic until they are found well.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use http::{HeaderMap, Response};

use crate::ejection::{Moody, ask, endpoints, sidecar};
use crate::harness::http2::{App2, drain};
use crate::harness::{App, Caller, free_port, read_head, until};

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

#[test]
fn one_that_is_busy_to_our_own_limit_is_not_taken_for_ill() {
    let (open, gate) = std::sync::mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let busy = App::start(move |stream, report| {
        let mut reader = std::io::BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_head(&mut reader) {
            if head.starts_with("GET /slow") {
                let _ = report.send(head);
                let _ = gate.lock().unwrap().recv();
            }
            let mut writer = &stream;
            if std::io::Write::write_all(&mut writer, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    });
    let other = Moody::start(false);
    let more = ", breaker: { endpoint: { connections: 1 } }, health: { http: /healthz, every: 20ms, timeout: 20ms, unhealthy: 1 }";
    let sidecar = sidecar(&[busy.addr, other.app.addr], more);
    // In turn: one of two reaches the busy one.
    let mut callers = [Caller::connect(sidecar.outbound), Caller::connect(sidecar.outbound)];
    for caller in &mut callers {
        caller.send("GET /slow HTTP/1.1\r\nHost: server\r\n\r\n");
    }
    busy.next();
    let asked = other.asked.load(Ordering::SeqCst);
    until("many rounds", || (other.asked.load(Ordering::SeqCst) > asked + 20).then_some(()));
    assert!(endpoints(&sidecar)[0]["unhealthy"].is_null());
    drop(open);
    for caller in &mut callers {
        assert!(caller.answer().starts_with("HTTP/1.1 200 "));
    }
}

/// Answers the questions of `grpc.health.v1` with the status and the code that stand here.
async fn answers(mut app: App2, now: Arc<Mutex<(u8, &'static str)>>) {
    loop {
        let asked = app.next().await;
        assert_eq!((asked.field("content-type"), asked.field("te")), (Some("application/grpc"), Some("trailers")));
        assert_eq!(asked.request.uri().path(), "/grpc.health.v1.Health/Check");
        let (question, _) = drain(asked.request.into_body()).await.unwrap();
        assert_eq!(question, "\0\0\0\0\x0b\x0a\x09shop.Cart");
        let mut respond = asked.respond;
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let (status, code) = *now.lock().unwrap();
        let mut stream = respond.send_response(head, false).unwrap();
        stream.send_data(vec![0, 0, 0, 0, 2, 8, status].into(), false).unwrap();
        let trailers = [("grpc-status".parse().unwrap(), code.parse().unwrap())];
        stream.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_says_how_it_is() {
    let (app, now) = (App2::start().await, Arc::new(Mutex::new((1, "0"))));
    let addr = app.addr;
    tokio::spawn(answers(app, now.clone()));
    let more = ", protocol: http2, health: { grpc: shop.Cart, every: 200ms, timeout: 200ms, unhealthy: 1, healthy: 1 }";
    let sidecar = tokio::task::block_in_place(|| sidecar(&[addr, ([127, 0, 0, 1], free_port()).into()], more));
    for (status, code, why) in [
        (2, "0", Some("grpc.health.v1: NOT_SERVING")),
        (1, "0", None),
        (3, "0", Some("grpc.health.v1: SERVICE_UNKNOWN")),
        (1, "14", Some("grpc.health.v1: grpc-status 14")),
        (1, "0", None),
    ] {
        *now.lock().unwrap() = (status, code);
        tokio::task::block_in_place(|| {
            until("it is told", || (endpoints(&sidecar)[0]["unhealthy"]["why"].as_str() == why).then_some(()))
        });
    }
}
