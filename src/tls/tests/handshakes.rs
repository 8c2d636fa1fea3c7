//! Handshakes that are odd without their certificates being so.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription as Alert, HandshakeKind, NamedGroup, ProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf};

use super::kit::*;
use crate::reason::{Reason, Side};
use crate::tls::identity::{Identity, name_for};
use crate::tls::untrusted::{Role, Untrusted, refused_by_peer, too_old};

/// Two identities under one root.
struct Pair {
    root: Authority,
    caller: Identity,
    called: Identity,
    clock: Arc<Clock>,
}

fn pair_with(tls12: bool) -> Pair {
    let root = Authority::root("root");
    let identity = |id| {
        let mut material = root.issue(id).material(&[(None, &[root.der()])]);
        material.tls12 = tls12;
        Identity::new(material, now()).unwrap()
    };
    let (caller, called) = (identity("spiffe://shop/caller"), identity("spiffe://shop/called"));
    Pair { root, caller, called, clock: Clock::new() }
}

impl Pair {
    fn client(&self, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
        client_at(&self.clock, &self.caller.client_config(wanted(&["spiffe://shop/called"]), alpn))
    }

    fn server(&self, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
        server_at(&self.clock, &self.called.server_config(alpn))
    }
}

/// Sends bytes to our server and gives its error and the alert that it answers, if any.
async fn sent(server: Arc<rustls::ServerConfig>, bytes: &[u8]) -> (io::Error, Option<u8>) {
    let (mut theirs, ours) = tokio::io::duplex(1 << 16);
    theirs.write_all(bytes).await.unwrap();
    theirs.shutdown().await.unwrap();
    let error = serve(server, ours).await.unwrap_err();
    let mut answer = Vec::new();
    theirs.read_to_end(&mut answer).await.unwrap();
    let alert = match answer[..] {
        [] => None,
        // A fatal alert in the clear (RFC 8446 §6).
        [0x15, 3, _, 0, 2, 2, alert] => Some(alert),
        _ => panic!("{answer:?}"),
    };
    (error, alert)
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let pair = pair_with(false);
    let (client, server) = meet(pair.client(&[b"h2", b"http/1.1"]), pair.server(&[b"h2", b"http/1.1"])).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let called = pair.caller.identify_peer(client.chain.as_deref(), &wanted(&["spiffe://shop/called"]), now());
    assert_eq!(called.unwrap(), *pair.called.id());
    let caller = pair.called.identify_client(server.chain.as_deref(), now());
    assert_eq!(caller.unwrap(), *pair.caller.id());
    for side in [&client, &server] {
        assert_eq!(side.version, ProtocolVersion::TLSv1_3);
        assert_eq!(side.group, Some(NamedGroup::X25519MLKEM768));
        assert_eq!(side.alpn.as_deref(), Some(&b"h2"[..]));
        assert_eq!(side.kind, HandshakeKind::Full);
    }
}

#[tokio::test]
async fn protocols_are_agreed_on_or_left_alone() {
    let pair = pair_with(false);
    for (offered, served, agreed) in [
        (&[&b"http/1.1"[..]][..], &[&b"h2"[..], b"http/1.1"][..], Some(&b"http/1.1"[..])),
        (&[b"http/1.1", b"h2"], &[b"h2", b"http/1.1"], Some(b"h2")),
        (&[], &[b"h2", b"http/1.1"], None),
        (&[b"h2"], &[], None),
    ] {
        let (client, server) = meet(pair.client(offered), pair.server(served)).await;
        assert_eq!((client.unwrap().alpn.as_deref(), server.unwrap().alpn.as_deref()), (agreed, agreed));
    }
    let (client, server) = meet(pair.client(&[b"postgresql"]), pair.server(&[b"h2"])).await;
    let (client, server) = (client.unwrap_err(), server.unwrap_err());
    assert!(client.to_string().contains("NoApplicationProtocol"), "{client}");
    // It is no verdict on anyone's certificate.
    assert_eq!((Untrusted::of_io(&server), refused_by_peer(&client)), (None, None));
}

#[tokio::test]
async fn a_caller_must_show_a_certificate() {
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let pair = pair_with(true);
        let client = Arc::new(stranger_client(None, versions));
        let (client, server) = meet(client, pair.server(&[])).await;
        let (client, why) = (client.unwrap_err(), Untrusted::of_io(&server.unwrap_err()).unwrap());
        assert_eq!(why, Untrusted::NoCertificate);
        assert_eq!(why.reason(Role::Client), Reason::ClientCertificateMissing);
        if versions[0].version == ProtocolVersion::TLSv1_3 {
            assert!(refused_by_peer(&client).unwrap().contains("certificate_required"), "{client}");
        }
    }
}

#[tokio::test]
async fn only_the_versions_that_are_asked_for() {
    for (versions, tls12, spoken) in [
        (&[&TLS12][..], false, None),
        (&[&TLS12], true, Some(ProtocolVersion::TLSv1_2)),
        (&[&TLS13], true, Some(ProtocolVersion::TLSv1_3)),
        (&[&TLS13, &TLS12], true, Some(ProtocolVersion::TLSv1_3)),
        (&[&TLS13, &TLS12], false, Some(ProtocolVersion::TLSv1_3)),
    ] {
        let pair = pair_with(tls12);
        let other = pair.root.issue("spiffe://shop/called");
        let (client, server) = meet(Arc::new(stranger_client(Some(&other), versions)), pair.server(&[])).await;
        assert_eq!(server.as_ref().ok().map(|met| met.version), spoken, "as server {server:?}");
        if spoken.is_none() {
            assert!(client.unwrap_err().to_string().contains("ProtocolVersion"));
            let error = server.unwrap_err();
            assert_eq!(Untrusted::of_io(&error), None);
            assert!(too_old(&error).unwrap().contains("identity.tls12: true"), "{error}");
        }
        let (client, _) = meet(pair.client(&[]), Arc::new(stranger_server(&other, versions))).await;
        assert_eq!(client.as_ref().ok().map(|met| met.version), spoken, "as client {client:?}");
    }
}

#[tokio::test]
async fn what_is_no_handshake_is_refused_at_once() {
    let pair = pair_with(false);
    let sslv2 = [0x80, 0x2e, 0x01, 0x00, 0x02, 0x00, 0x15, 0x00, 0x00, 0x00, 0x10, 0x01, 0x00, 0x80, 0x02, 0x00];
    let tls10 = {
        // A ClientHello of TLS 1.0 with one cipher suite and no extensions.
        let body = [&[3, 1][..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]].concat();
        let message = [&[1, 0, 0, body.len() as u8][..], &body].concat();
        [&[0x16, 3, 1, 0, message.len() as u8][..], &message].concat()
    };
    let oversized = [&[0x16, 3, 1, 0xff, 0xff][..], &[0; 300]].concat();
    for (name, bytes) in [
        ("plaintext HTTP/1", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec()),
        ("plaintext HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("SSLv2", [&sslv2[..], &[0; 64]].concat()),
        ("TLS 1.0", tls10),
        ("a record too long", oversized),
        ("no ClientHello but a ServerHello", [&[0x16, 3, 3, 0, 8, 2, 0, 0, 4][..], &[0; 4]].concat()),
        ("application data first", [&[0x17, 3, 3, 0, 4][..], &[0; 4]].concat()),
        ("garbage", (0..200u32).map(|at| (at * 37 % 251) as u8).collect()),
        ("zeros", vec![0; 200]),
    ] {
        let (error, alert) = sent(pair.server(&[]), &bytes).await;
        assert!(alert.is_some(), "{name}: {error}");
        assert_eq!(Untrusted::of_io(&error), None, "{name}: {error}");
    }
    for (name, bytes) in [("nothing", &[][..]), ("half a record", &[0x16, 3, 1, 0, 90, 1, 0, 0])] {
        let (error, alert) = sent(pair.server(&[]), bytes).await;
        assert_eq!((error.kind(), alert), (io::ErrorKind::UnexpectedEof, None), "{name}");
    }
}

#[tokio::test]
async fn a_called_service_that_speaks_no_tls_gets_nothing_in_the_clear() {
    let pair = pair_with(false);
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    let serve = async {
        theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        theirs.shutdown().await.unwrap();
        let mut seen = Vec::new();
        theirs.read_to_end(&mut seen).await.unwrap();
        seen
    };
    let (error, seen) = tokio::join!(call(pair.client(&[]), ours), serve);
    let error = error.unwrap_err();
    assert_eq!((Untrusted::of_io(&error), refused_by_peer(&error)), (None, None), "{error}");
    assert_eq!(seen[0], 0x16);
    assert!(!seen.contains(&b'?') || !seen.windows(9).any(|nine| nine == b"spiffe://"));
}

/// Gives one byte to each read.
struct Trickle(DuplexStream);

impl AsyncRead for Trickle {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut byte = [0];
        let mut one = ReadBuf::new(&mut byte);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut one))?;
        buf.put_slice(one.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn one_byte_at_a_time() {
    let pair = pair_with(false);
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (ours, theirs) = (Trickle(ours), Trickle(theirs));
    let (client, server) = tokio::join!(call(pair.client(&[b"h2"]), ours), serve(pair.server(&[b"h2"]), theirs));
    assert_eq!(client.unwrap().alpn.as_deref(), Some(&b"h2"[..]));
    assert!(pair.called.identify_client(server.unwrap().chain.as_deref(), now()).is_ok());
}

#[test]
fn no_data_before_the_handshake_is_complete() {
    let pair = pair_with(true);
    let (client, server) = (pair.client(&[]), pair.server(&[]));
    assert!(!client.enable_early_data);
    assert_eq!((server.max_early_data_size, server.send_half_rtt_data), (0, false));
    assert!(client.require_ems && server.require_ems);
}

#[test]
fn an_endpoint_is_called_by_its_name_or_by_no_name() {
    let address = "10.0.0.7".parse().unwrap();
    for (host, name) in [
        ("payments.internal", "payments.internal"),
        ("my_service", "my_service"),
        ("10.0.0.9", "10.0.0.9"),
        ("::1", "::1"),
        ("", "10.0.0.7"),
        ("not a name", "10.0.0.7"),
    ] {
        assert_eq!(name_for(host, address).to_str(), name);
    }
}

#[test]
fn the_word_tells_whose_certificate_it_was() {
    let got: crate::spiffe::SpiffeId = "spiffe://shop/a".parse().unwrap();
    for (why, client, server) in [
        (Untrusted::NoCertificate, "client_certificate_missing", "peer_untrusted"),
        (Untrusted::Expired { since: now() }, "client_certificate_expired", "peer_certificate_expired"),
        (Untrusted::NotYetValid { from: now() }, "client_certificate_expired", "peer_certificate_expired"),
        (Untrusted::UnknownIssuer, "client_untrusted", "peer_untrusted"),
        (Untrusted::WrongIdentity { wanted: "b".into(), got }, "client_untrusted", "peer_identity_mismatch"),
    ] {
        let words = (why.reason(Role::Client), why.reason(Role::Server));
        assert_eq!((words.0.word(), words.1.word()), (client, server));
        assert_eq!((words.0.side(), words.1.side()), (Side::Client, Side::Peer));
        assert!(words.1.is_tls_with_peer() && !words.0.is_tls_with_peer());
    }
    let alerts = [Alert::CloseNotify, Alert::HandshakeFailure, Alert::ProtocolVersion, Alert::InternalError];
    for alert in alerts {
        assert_eq!(refused_by_peer(&io::Error::other(rustls::Error::AlertReceived(alert))), None);
    }
    assert_eq!(refused_by_peer(&io::Error::from(io::ErrorKind::ConnectionReset)), None);
}
