//! Resumed handshakes: rustls does not judge their certificates again, so `identify` does, by what holds now.

use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind, ServerConfig};

use super::kit::*;
use crate::tls::identity::Identity;
use crate::tls::store::IdentityStore;
use crate::tls::untrusted::Untrusted;

const CALLED: &str = "spiffe://shop/called";
const CALLER: &str = "spiffe://shop/caller";

/// Two sides that have met once.
struct Acquainted {
    root: Authority,
    caller: Chain,
    calling: Identity,
    called: Identity,
    clock: Arc<Clock>,
    client: Arc<ClientConfig>,
}

async fn acquainted(tls12: bool) -> Acquainted {
    let root = Authority::root("root");
    let (caller, callee) = (root.issue(CALLER), root.issue(CALLED));
    let made = |chain: &Chain, tls12| {
        let mut material = chain.material(&[(None, &[root.der()])]);
        material.tls12 = tls12;
        Identity::new(material, now()).unwrap()
    };
    let (calling, called) = (made(&caller, tls12), made(&callee, tls12));
    let clock = Clock::new();
    let client = match tls12 {
        false => client_at(&clock, &calling.client_config(wanted(&[CALLED]), &[])),
        // TLS 1.2 is spoken if one side has nothing else; here it is the caller, whoever it is.
        true => client_at(&clock, &stranger_client(Some(&caller), &[&rustls::version::TLS12])),
    };
    let it = Acquainted { root, caller, calling, called, clock, client };
    assert_eq!(it.again(&it.called.server_config(&[])).await.unwrap().0.kind, HandshakeKind::Full);
    it
}

impl Acquainted {
    /// Meets again, and gives what both saw.
    async fn again(&self, server: &ServerConfig) -> std::io::Result<(Met, Met)> {
        let (client, server) = meet(self.client.clone(), server_at(&self.clock, server)).await;
        let server = server?;
        Ok((client?, server))
    }
}

#[tokio::test]
async fn a_resumed_handshake_brings_the_chain_that_is_judged_again() {
    for tls12 in [false, true] {
        let it = acquainted(tls12).await;
        for _ in 0..3 {
            let (client, server) = it.again(&it.called.server_config(&[])).await.unwrap();
            assert_eq!((client.kind, server.kind), (HandshakeKind::Resumed, HandshakeKind::Resumed));
            assert_eq!(it.called.identify_client(server.chain.as_deref(), now()).unwrap().as_str(), CALLER);
            let called = it.calling.identify_peer(client.chain.as_deref(), &wanted(&[CALLED]), now());
            assert_eq!(called.unwrap().as_str(), CALLED);
            // Had the rules changed meanwhile, the old session would not help.
            let other = it.calling.identify_peer(client.chain.as_deref(), &wanted(&["spiffe://shop/new"]), now());
            assert!(matches!(other, Err(Untrusted::WrongIdentity { .. })), "{other:?}");
        }
    }
}

#[tokio::test]
async fn time_that_went_on_is_seen_in_a_resumed_handshake() {
    for tls12 in [false, true] {
        let it = acquainted(tls12).await;
        it.clock.set(time(20));
        let (client, server) = it.again(&it.called.server_config(&[])).await.unwrap();
        // The ticket is twelve hours old at most, whatever the certificate says.
        assert_eq!((client.kind, server.kind), (HandshakeKind::Full, HandshakeKind::Full));
        it.clock.set(time(25));
        let (client, server) = it.again(&it.called.server_config(&[])).await.unwrap();
        assert_eq!((client.kind, server.kind), (HandshakeKind::Resumed, HandshakeKind::Resumed));
        let expired = Err(Untrusted::Expired { since: time(24) });
        assert_eq!(it.called.identify_client(server.chain.as_deref(), time(25)), expired);
        assert_eq!(it.calling.identify_peer(client.chain.as_deref(), &wanted(&[CALLED]), time(25)), expired);
    }
}

#[tokio::test]
async fn new_roots_resume_nothing() {
    for tls12 in [false, true] {
        let it = acquainted(tls12).await;
        let other = Authority::root("other root");
        // The server moves to another root: the session is not resumed, and the full handshake is refused.
        let mut material = other.issue(CALLED).material(&[(None, &[other.der()])]);
        material.tls12 = tls12;
        let store = IdentityStore::new(Identity::new(material, now()).unwrap());
        let server = server_at(&it.clock, &store.current().unwrap().server_config(&[]));
        let (client, server) = meet(it.client.clone(), server).await;
        // The stranger of TLS 1.2 believes everyone; our own caller refuses first.
        let error = if tls12 { server.unwrap_err() } else { client.unwrap_err() };
        assert_eq!(Untrusted::of_io(&error), Some(Untrusted::UnknownIssuer));
        // A connection that was made before is judged by the new roots too.
        let chain = &it.caller.certificates;
        assert_eq!(store.current().unwrap().identify_client(Some(chain), now()), Err(Untrusted::UnknownIssuer));
        // With both roots all is well again, by a full handshake.
        let mut material = it.root.issue(CALLED).material(&[(None, &[other.der(), it.root.der()])]);
        material.tls12 = tls12;
        assert!(store.replace(Identity::new(material, now()).unwrap(), now()).unwrap());
        let (client, _) = it.again(&store.current().unwrap().server_config(&[])).await.unwrap();
        assert_eq!(client.kind, HandshakeKind::Full);
        let (client, _) = it.again(&store.current().unwrap().server_config(&[])).await.unwrap();
        assert_eq!(client.kind, HandshakeKind::Resumed);
    }
}

#[tokio::test]
async fn a_new_crl_is_seen_in_the_next_handshake_and_of_old_connections() {
    let it = acquainted(false).await;
    let caller = it.root.issue_with(CALLER, |params| params.serial_number = Some(7.into()));
    let client = caller.identity(&it.root).client_config(wanted(&[CALLED]), &[]);
    let store = IdentityStore::new(it.called);
    let server = || server_at(&it.clock, &store.current().unwrap().server_config(&[]));
    let client = client_at(&it.clock, &client);
    assert!(meet(client.clone(), server()).await.1.is_ok());
    let (_, resumed) = meet(client.clone(), server()).await;
    let resumed = resumed.unwrap();
    assert_eq!(resumed.kind, HandshakeKind::Resumed);
    let mut material = it.root.issue(CALLED).material(&[(None, &[it.root.der()])]);
    material.crls = vec![sourced("crl.pem", vec![it.root.crl(&[7], 100)])];
    assert!(store.replace(Identity::new(material, now()).unwrap(), now()).unwrap());
    assert_eq!(store.current().unwrap().identify_client(resumed.chain.as_deref(), now()), Err(Untrusted::Revoked));
    let (_, server) = meet(client, server()).await;
    assert_eq!(Untrusted::of_io(&server.unwrap_err()), Some(Untrusted::Revoked));
}

#[tokio::test]
async fn sessions_belong_to_one_endpoint_and_one_identity() {
    let it = acquainted(false).await;
    // Another endpoint of the same peer, and the same endpoint under other rules.
    for _ in 0..2 {
        let client = client_at(&it.clock, &it.calling.client_config(wanted(&["spiffe://shop/*"]), &[]));
        let (met, _) = meet(client, server_at(&it.clock, &it.called.server_config(&[]))).await;
        assert_eq!(met.unwrap().kind, HandshakeKind::Full);
    }
    // Another door of the same sidecar knows the ticket.
    let (client, _) = it.again(&it.called.server_config(&[b"h2"])).await.unwrap();
    assert_eq!(client.kind, HandshakeKind::Resumed);
    // The same parts read again are the same identity, with its sessions.
    let parts = it.root.issue(CALLED);
    let (one, two) = (parts.identity(&it.root), parts.identity(&it.root));
    let store = IdentityStore::new(one);
    let before = store.current().unwrap();
    assert!(!store.replace(two, now()).unwrap());
    assert!(Arc::ptr_eq(&before, &store.current().unwrap()));
}
