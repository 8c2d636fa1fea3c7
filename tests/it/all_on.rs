//! Retries, hedging, ejection, limits, a breaker, a fallback and a mirror at the same time, through the real binary, over
//! endpoints of which one is dead, one hangs and one breaks off.

use std::collections::HashSet;
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;

use crate::harness::{App, Caller, Sidecar, field, free_port, read_head, until};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// The POSTs that were executed, and those that were executed again.
#[derive(Default)]
struct Ledger {
    once: HashSet<String>,
    again: Vec<String>,
}

/// An endpoint that serves by `serve` what it writes down; the connection ends where that says so.
fn endpoint(ledger: &Arc<Mutex<Ledger>>, serve: impl Fn(&mut TcpStream) -> bool + Send + Sync + 'static) -> App {
    let ledger = ledger.clone();
    App::start(move |stream, _| {
        let (mut reader, mut writer) = (BufReader::new(stream.try_clone().unwrap()), stream);
        while let Some(head) = read_head(&mut reader) {
            if head.starts_with("POST") {
                let (id, mut ledger) = (field(&head, "x-id").unwrap(), ledger.lock().unwrap());
                if !ledger.once.insert(id.clone()) {
                    ledger.again.push(id);
                }
            }
            if !serve(&mut writer) {
                return;
            }
        }
    })
}

#[test]
fn with_everything_on_each_get_is_answered_well_each_post_done_once_and_every_place_given_back() {
    let ledger = Arc::new(Mutex::new(Ledger::default()));
    let well = endpoint(&ledger, |stream| stream.write_all(OK.as_bytes()).is_ok());
    let breaks = endpoint(&ledger, |_| false);
    let hangs = endpoint(&ledger, |stream| stream.read(&mut [0]).is_ok_and(|n| n > 0));
    let (standby, copies) = (App::http(OK), App::http(OK));
    let sidecar = Sidecar::start(&format!(
        "service: caller\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}', limits: {{ in-flight: 50 }} }}\npeers:\n  \
         standby: {{ static: ['{}'] }}\n  copies: {{ static: ['{}'], breaker: {{ in-flight: 5 }} }}\n  shop:\n    \
         static: ['127.0.0.1:{}', '{}', '{}', '{}']\n    balance: round-robin\n    hedge: 50ms\n    \
         retry: {{ attempts: 3, on: [connect-failure, reset, gateway-error] }}\n    timeout: {{ attempt: 400ms, request: 5s }}\n    \
         breaker: {{ in-flight: 40, retries: 10, failures: 90%, endpoint: {{ in-flight: 20 }} }}\n    \
         fallback: {{ peer: standby }}\n    routes: [{{ mirror: {{ peer: copies }} }}]\n\
         telemetry: {{ access-log: {{ log: all }} }}\n",
        standby.addr,
        copies.addr,
        free_port(),
        breaks.addr,
        hangs.addr,
        well.addr
    ));
    let (to, each) = (sidecar.outbound, 20);
    let ask = move |method: &str, id: String| {
        let head = format!("{method} / HTTP/1.1\r\nHost: shop\r\nx-id: {id}\r\nContent-Length: 0\r\n\r\n");
        Caller::connect(to).send(head).answer()
    };
    let callers: Vec<_> = (0..5)
        .map(|caller| {
            std::thread::spawn(move || {
                for n in 0..each {
                    let answer = ask("GET", format!("{caller}-{n}"));
                    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hi"), "{answer}");
                    let answer = ask("POST", format!("{caller}-{n}"));
                    // One that may have been done already gets a reason and no second attempt.
                    assert!(answer.starts_with("HTTP/1.1 200 ") || answer.contains("reason="), "{answer}");
                }
            })
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    assert_eq!(ledger.lock().unwrap().again, Vec::<String>::new());
    for peer in ["shop", "standby", "copies"] {
        let in_flight = || sidecar.metric(&["outrigger_peer_requests_in_flight", peer]);
        until(&format!("nothing is in flight at {peer}"), || (in_flight() == 0.0).then_some(()));
    }
    let state = sidecar.page("/state").split_whitespace().collect::<String>();
    assert!(state.contains(r#""in-flight":{"used":0,"limit":50}"#), "{state}");
    assert!(state.contains(r#""in-flight":{"used":0,"limit":40}"#), "{state}");
    assert!(state.contains(r#""retries":{"used":0,"limit":10}"#), "{state}");
    let requests = f64::from(5 * each * 2);
    let further =
        sidecar.metric(&["outrigger_retries_total", "shop"]) + sidecar.metric(&["outrigger_hedges_total", "shop"]);
    // The budget: a fifth of the requests, or ten a second where that is more (over ten seconds).
    assert!(further > 0.0 && further <= (requests / 5.0).max(100.0), "{further}");
    assert!(sidecar.metric(&["outrigger_mirrored_total", "copies"]) <= requests);
}
