//! Unlisted names from the data path's question to the peer, with a DNS server on loopback.

use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;

use super::super::files;
use super::super::refresh::tests::Dir;
use super::*;
use crate::deadline::Deadline;
use crate::dns::testserver::{Say, TestServer, ips};
use crate::life::tasks::Tasks;
use crate::plan::door::{Allow, Otherwise};
use crate::telemetry::metrics::Metrics;
use crate::upstream::adhoc::{Rules, default_policy};
use crate::upstream::peer::Peer;
use crate::upstream::world::Upstreams;

fn addresses(peer: &Peer) -> Vec<String> {
    peer.state().endpoints.into_iter().map(|endpoint| endpoint.address).collect()
}

#[tokio::test]
async fn unlisted_names_become_peers_within_the_rules() {
    let (server, dir) = (TestServer::start().await, Dir::new("unlisted"));
    for (name, addresses) in [
        ("db.test", &["10.0.0.1", "127.0.0.1"][..]),
        ("local.test", &["127.0.0.1"]),
        ("dev.test", &["127.0.0.1"]),
        ("self.test", &["10.0.0.5"]),
    ] {
        server.say(name, RecordType::A, Say::Records(ips(name, 1, addresses)));
        server.say(name, RecordType::AAAA, Say::NoData(None));
    }
    let (tasks, metrics) = (Tasks::default(), Arc::new(Metrics::default()));
    let refresher =
        Refresher::new(tasks.clone(), metrics.clone(), dir.resolver(&server, Duration::from_secs(3600)), files::parse);
    let rules = Rules {
        egress: Egress {
            otherwise: Otherwise::Pass,
            allow: Arc::new([Allow::Host("dev.test".into())]),
            own: Arc::new(["10.0.0.5:15006".parse().unwrap()]),
        },
        timeout: Duration::from_secs(20),
        app: Arc::default(),
        itself: Arc::default(),
    };
    let shared = Arc::new(Upstreams::new(metrics.clone(), tasks.clone()));
    let (table, asks) = Adhoc::new(shared, Arc::new(default_policy()), rules);
    let answering = table.clone();
    let answers = tasks.spawn(async move { refresher.answer(answering, asks).await });

    let db = table.peer("db.test", 80, Deadline::NONE).await.unwrap();
    assert_eq!(addresses(&db), ["10.0.0.1:80"]);
    assert_eq!(addresses(&table.peer("dev.test", 80, Deadline::NONE).await.unwrap()), ["127.0.0.1:80"]);
    assert_eq!(addresses(&table.peer("10.0.0.7", 80, Deadline::NONE).await.unwrap()), ["10.0.0.7:80"]);
    assert_eq!(addresses(&table.peer("self.test", 80, Deadline::NONE).await.unwrap()), ["10.0.0.5:80"]);
    for (host, port, reason, says) in [
        ("local.test", 80, Reason::AddressRefused, "local.test: 127.0.0.1:80 is a loopback address"),
        ("169.254.169.254", 80, Reason::AddressRefused, "is a link-local address"),
        ("self.test", 15006, Reason::AddressRefused, "is an own listener"),
        ("gone.test", 80, Reason::NoEndpoint, "gone.test: the name does not exist (NXDOMAIN)"),
        ("not a name", 80, Reason::DnsFailed, "is not a host name"),
    ] {
        let error = table.peer(host, port, Deadline::NONE).await.err().unwrap();
        assert_eq!(error.reason, reason, "{host}: {error}");
        assert!(error.detail.contains(says), "{error}");
    }

    // It is kept true while it is in use.
    server.say("db.test", RecordType::A, Say::Records(ips("db.test", 1, &["10.0.0.2"])));
    let asked = server.count("db.test", RecordType::A);
    server.until_asked("db.test", RecordType::A, asked + 2).await;
    assert_eq!(addresses(&db), ["10.0.0.2:80"]);
    assert_eq!(metrics.peers().len(), 1, "all of them are counted together");
    answers.abort();
}
