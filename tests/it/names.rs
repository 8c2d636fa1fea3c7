//! The DNS door of a whole sidecar: there before the app and as long as it, with the names of the file in force.

use std::net::{SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use crate::harness::{Ports, Sidecar, until};

/// Where nobody answers, so that only the door's own names have an answer.
const NOBODY: &str = "127.0.0.1:1";

/// The inbound port stands in for the door's: there is no inbound here.
fn text(door: &str, hosts: &[&str]) -> String {
    let peers: String = hosts.iter().map(|host| format!("  {host}: {{ static: ['{NOBODY}'] }}\n")).collect();
    format!(
        "service: s\nadmin: '{{admin}}'\noutbound: {{ listen: '{{out}}' }}\ndns: {{ {door} servers: ['{NOBODY}'], timeout: 1s }}\npeers:\n{peers}"
    )
}

const DOOR: &str = "listen: '{in}',";

/// The answer's code and its records' data; `None` while nobody answers.
fn ask(door: SocketAddr, name: &str) -> Option<(ResponseCode, Vec<String>)> {
    let mut question = Message::new(9, MessageType::Query, OpCode::Query);
    question.add_query(Query::query(Name::from_str(name).unwrap(), RecordType::A));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.connect(door).unwrap();
    socket.send(&question.to_vec().unwrap()).ok()?;
    let mut packet = [0; 1500];
    let length = socket.recv(&mut packet).ok()?;
    let answer = Message::from_vec(&packet[..length]).unwrap();
    let data = answer.answers.iter().map(|record| record.data.to_string()).collect();
    Some((answer.metadata.response_code, data))
}

#[test]
fn names_follow_the_file_and_the_door_too() {
    let sidecar = Sidecar::start(&text(DOOR, &["payments"]));
    let payments = Some((ResponseCode::NoError, vec!["240.240.126.35".to_owned()]));
    assert_eq!(ask(sidecar.inbound, "payments."), payments);
    assert_eq!(ask(sidecar.inbound, "orders.").unwrap().0, ResponseCode::ServFail);
    assert!(sidecar.page("/state").contains("\"240.240.126.35\""));
    assert!(sidecar.metric(&["outrigger_dns_questions", "own"]) >= 1.0);

    sidecar.rewrite(&text(DOOR, &["payments", "orders"]));
    until("the new name has an address", || {
        let (code, data) = ask(sidecar.inbound, "orders.")?;
        (code == ResponseCode::NoError && data.len() == 1).then_some(())
    });
    assert_eq!(ask(sidecar.inbound, "payments."), payments, "the others keep theirs");

    sidecar.rewrite(&text("", &["payments"]));
    until("the door is closed", || ask(sidecar.inbound, "payments.").is_none().then_some(()));
    sidecar.rewrite(&text(DOOR, &["payments"]));
    until("the door is open again", || (ask(sidecar.inbound, "payments.") == payments).then_some(()));
}

#[test]
fn a_listener_of_our_own_in_the_way_is_no_other_process() {
    let sidecar = Sidecar::start(&text(DOOR, &["payments"]));
    // Each where the other is, then only the one.
    let moved = |outbound: &str| text("listen: '{out}',", &["payments"]).replacen("{out}", outbound, 1);
    sidecar.rewrite(&moved("{in}"));
    sidecar.says(&["outbound.listen", &format!("own open DNS listener {}", sidecar.inbound)]);
    sidecar.rewrite(&moved(&format!("127.0.0.2:{}", sidecar.outbound.port())));
    sidecar.says(&["dns.listen", &format!("own open outbound listener {}", sidecar.outbound)]);
}

#[test]
fn it_is_there_until_the_app_has_ended() {
    let app =
        "trap 'echo ending; while [ ! -e \"$0\" ]; do sleep 0.02; done; exit 0' TERM; while :; do sleep 0.02; done";
    let go = std::env::temp_dir().join(format!("outrigger-it-names-{}", std::process::id()));
    let mut sidecar = Sidecar::start_with(&text(DOOR, &["payments"]), &["sh", "-c", app, go.to_str().unwrap()]);
    sidecar.signal("TERM");
    sidecar.says(&["ending"]);
    assert_eq!(ask(sidecar.inbound, "payments.").unwrap().0, ResponseCode::NoError);
    std::fs::write(&go, "").unwrap();
    until("the sidecar ends", || sidecar.child.try_wait().unwrap());
    std::fs::remove_file(go).unwrap();
}

#[test]
fn a_port_that_is_taken_is_told_with_its_line() {
    let ports = Ports::free();
    let taken = UdpSocket::bind(ports.fill("{in}")).unwrap();
    let door = format!("listen: '{}',", taken.local_addr().unwrap());
    let mut sidecar = Sidecar::launch(&text(&door, &["payments"]), &[]);
    assert!(!until("it ends", || sidecar.child.try_wait().unwrap()).success());
    sidecar.says(&["outrigger.yaml:4:", "dns.listen", "is in use by another process"]);
}
