//! Mutual TLS at a door: who calls is known before anything that is said inside is read.

use std::io;
use std::sync::Arc;

use rustls_pki_types::UnixTime;
use tokio::time::timeout;

use super::connection::declared;
use super::sender::client_cert;
use super::serve::serve_http1;
use super::serve_http2::serve_http2;
use super::{Conn, record};
use crate::net::io::Io;
use crate::reason::Reason;
use crate::tls::identity::fingerprint;
use crate::tls::proof::Proof;
use crate::tls::untrusted::{Role, Untrusted, refused_by_peer, too_old};

/// Ends mutual TLS with this sidecar's identity and learns who calls, then serves what is inside.
pub async fn identify(conn: Arc<Conn>, io: Io) {
    let world = conn.core.world.load_full();
    let Some(store) = &world.identity else {
        return record::refused(&conn, Reason::NoIdentity, "the file names no identity any more");
    };
    let Some(identity) = store.current() else {
        // Nothing can be shown, so no handshake can begin; the caller sees its connection closed.
        return record::refused(&conn, Reason::NoIdentity, &store.lack().unwrap_or_default());
    };
    let acceptor = tokio_rustls::TlsAcceptor::from(identity.door_config(conn.door.protocol));
    let stream = match timeout(conn.door.limits.head_timeout, acceptor.accept(io)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return handshake_failed(&conn, &error),
        Err(_) => return record::refused(&conn, Reason::ClientTlsFailed, "the handshake took too long"),
    };
    let tls = stream.get_ref().1;
    let (chain, alpn) = (tls.peer_certificates(), tls.alpn_protocol().map(<[u8]>::to_vec));
    let proof = match Proof::new(&identity, chain, None, UnixTime::now()) {
        Ok(proof) => proof,
        Err(untrusted) => {
            return record::refused(&conn, untrusted.reason(Role::Client), &untrusted.to_string());
        }
    };
    let leaf = chain.and_then(<[_]>::first);
    let client_cert = leaf.and_then(|leaf| client_cert(identity.id(), &fingerprint(leaf), proof.id()));
    let stream = Io::Tls(Box::new(stream.into()));
    let Some(inner) = Arc::into_inner(conn) else { return };
    store.proofs.keep(&proof);
    let drain = inner.drain.clone().beside(proof.drain());
    // Whoever the roots vouch for is a sidecar of the mesh, which has put its own caller's address there.
    let conn = Conn { proof: Some(proof), client_cert, drain, trusted: true, ..inner };
    match alpn.as_deref() {
        Some(b"h2") => serve_http2(Arc::new(conn), stream).await,
        Some(b"http/1.1") => serve_http1(Arc::new(conn), stream).await,
        _ => declared(conn, stream).await,
    }
}

fn handshake_failed(conn: &Conn, error: &io::Error) {
    match (Untrusted::of_io(error), refused_by_peer(error)) {
        (Some(untrusted), _) => record::refused(conn, untrusted.reason(Role::Client), &untrusted.to_string()),
        (None, Some(why)) => record::refused(conn, Reason::RefusedByClient, why),
        (None, None) => {
            let why = too_old(error).map_or_else(|| error.to_string(), str::to_owned);
            record::refused(conn, Reason::ClientTlsFailed, &format!("mutual TLS: {why}"));
        }
    }
}
