//! Endpoints that fail are ejected, the others carry on, and whoever is well again comes back.

use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::{HeaderMap, Request, Response};

use crate::harness::http2::{App2, Caller2, read};
use crate::harness::{App, Caller, Sidecar, read_head, until};

/// An app that says who it is, and answers 500 while it is ill.
pub(crate) struct Moody {
    pub(crate) app: App,
    ill: Arc<AtomicBool>,
    pub(crate) asked: Arc<AtomicUsize>,
}

impl Moody {
    pub(crate) fn start(ill: bool) -> Self {
        let (ill, asked) = (Arc::new(AtomicBool::new(ill)), Arc::new(AtomicUsize::new(0)));
        let (is_ill, count) = (ill.clone(), asked.clone());
        let app = App::start(move |stream, _| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut writer = stream;
            while read_head(&mut reader).is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                let status = if is_ill.load(Ordering::SeqCst) { "500 Ill" } else { "200 OK" };
                if write!(writer, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").is_err() {
                    return;
                }
            }
        });
        Self { app, ill, asked }
    }

    pub(crate) fn set_ill(&self, ill: bool) {
        self.ill.store(ill, Ordering::SeqCst);
    }
}

/// A sidecar whose peer `server` has these endpoints, taken in turn so that every one is met; `more` follows.
pub(crate) fn sidecar(endpoints: &[SocketAddr], more: &str) -> Sidecar {
    Sidecar::start(&format!(
        "service: client\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\npeers:\n  server: {{ static: {endpoints:?}, balance: round-robin{more} }}\n"
    ))
}

/// The status of so many requests.
pub(crate) fn ask(sidecar: &Sidecar, times: usize) -> Vec<u16> {
    let mut caller = Caller::connect(sidecar.outbound);
    (0..times)
        .map(|_| {
            let answer = caller.send("GET / HTTP/1.1\r\nHost: server\r\n\r\n").answer();
            answer.split(' ').nth(1).unwrap().parse().unwrap()
        })
        .collect()
}

/// What `/state` says about the endpoints of `server`.
pub(crate) fn endpoints(sidecar: &Sidecar) -> Vec<serde_json::Value> {
    let state: serde_json::Value = serde_json::from_str(&sidecar.page("/state")).unwrap();
    let peers = state["peers"].as_array().unwrap();
    let server = peers.iter().find(|peer| peer["name"] == "server").unwrap();
    server["endpoints"].as_array().unwrap().clone()
}

#[test]
fn one_of_two_that_fails_is_ejected_and_comes_back_when_it_is_well() {
    let (ill, well) = (Moody::start(true), Moody::start(false));
    let sidecar = sidecar(&[ill.app.addr, well.app.addr], "");
    let failed = ask(&sidecar, 50).iter().filter(|status| **status == 500).count();
    // Five in a row at most, and the probes of a slow machine.
    assert!((1..=10).contains(&failed), "{failed}");
    let line = sidecar.says(&["endpoint is ejected", &ill.app.addr.to_string(), "peer=server"]);
    assert!(line.contains("tries it again in 1."), "{line}");
    assert_eq!(sidecar.metric(&["outrigger_peer_endpoints_ejected", "server"]), 1.0);
    assert_eq!(sidecar.metric(&["outrigger_picks_failed_open", "server"]), 0.0);
    let told = endpoints(&sidecar);
    assert!(told[0]["ejected"]["why"].is_string() && told[0]["ejected"]["next_probe_ms"].is_u64(), "{told:?}");
    assert!(told[1]["ejected"].is_null(), "{told:?}");
    ill.set_ill(false);
    until("it is back", || {
        assert_eq!(ask(&sidecar, 1), [200]);
        sidecar.log().contains("endpoint is back after").then_some(())
    });
    assert_eq!(sidecar.metric(&["outrigger_peer_endpoints_ejected", "server"]), 0.0);
    let before = ill.asked.load(Ordering::SeqCst);
    assert!(ask(&sidecar, 10).iter().all(|status| *status == 200));
    assert_eq!(ill.asked.load(Ordering::SeqCst) - before, 5);
}

#[test]
fn when_all_fail_requests_go_to_all_and_that_is_said() {
    let both = [Moody::start(true), Moody::start(true)];
    let sidecar = sidecar(&both.each_ref().map(|one| one.app.addr), "");
    assert!(ask(&sidecar, 40).iter().all(|status| *status == 500));
    sidecar.says(&["all endpoints are out", "peer=server"]);
    assert!(sidecar.metric(&["outrigger_picks_failed_open", "server"]) > 10.0);
    both.iter().for_each(|one| one.set_ill(false));
    assert!(ask(&sidecar, 10).iter().all(|status| *status == 200));
    sidecar.says(&["an endpoint is back: requests go only to those in the choice again"]);
    assert_eq!(sidecar.log().matches("all endpoints are out").count(), 1, "{}", sidecar.log());
    assert!(endpoints(&sidecar).iter().all(|endpoint| endpoint["ejected"].is_null()));
}

#[test]
fn where_it_is_off_none_is_ejected() {
    let (ill, well) = (Moody::start(true), Moody::start(false));
    let sidecar = sidecar(&[ill.app.addr, well.app.addr], ", eject: off");
    assert_eq!(ask(&sidecar, 50).iter().filter(|status| **status == 500).count(), 25);
    assert_eq!(sidecar.metric(&["outrigger_peer_endpoints_ejected", "server"]), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_grpc_call_is_judged_by_its_trailers() {
    let (mut ill, mut well) = (App2::start().await, App2::start().await);
    let sidecar = sidecar(&[ill.addr, well.addr], ", protocol: http2");
    let mut caller = Caller2::connect(sidecar.outbound).await;
    let mut asked = [0, 0];
    while sidecar.metric(&["outrigger_peer_endpoints_ejected", "server"]) != 1.0 {
        let call = Request::post("http://server/shop.Cart/Get").header("content-type", "application/grpc");
        let (answer, _) = caller.open(call.header("te", "trailers").body(()).unwrap(), true).await;
        let (mut arrived, code, at) = tokio::select! {
            arrived = ill.next() => (arrived, "14", 0),
            arrived = well.next() => (arrived, "0", 1),
        };
        asked[at] += 1;
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = arrived.respond.send_response(head, false).unwrap();
        stream.send_data(bytes::Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
        let trailers = [("grpc-status".parse().unwrap(), code.parse().unwrap())];
        stream.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
        let got = read(answer).await.unwrap();
        assert_eq!(got.trailers.unwrap()["grpc-status"], code);
        // Five in a row, and one that came before the last of them was counted.
        assert!(asked[0] <= 6, "{asked:?}");
    }
    assert!(asked[0] >= 4, "{asked:?}");
    sidecar.says(&["endpoint is ejected", &ill.addr.to_string(), "peer=server"]);
}
