//! Whoever speaks first decides: the peer is dialled while its caller is listened to, so that a protocol in which the server
//! speaks first needs no timer.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout};

use super::Conn;
use super::connection::{Found, LAST_WORD, first_bytes, heard};
use super::tunnel::Opaque;
use crate::call::Failure;
use crate::net::io::{Io, Resets};
use crate::net::sniff::{Wire, is_http2_server};

/// Dials the peer while the caller is listened to, and listens to both: whoever speaks first decides.
pub(super) async fn spoken_first(
    conn: &Conn,
    mut record: Opaque,
    mut sniffing: Pin<&mut impl Future<Output = io::Result<Wire>>>,
) -> Found {
    let limits = &conn.door.limits;
    let (dialled, spoken) = match dial_meanwhile(conn, &mut record, sniffing.as_mut()).await {
        Ok(dialled) => dialled,
        Err(wire) => {
            record.unused();
            return heard(wire);
        }
    };
    let mut dialled = match (dialled, spoken) {
        (Ok(dialled), Some(wire)) => return Found::Caller(wire, Some((record, dialled))),
        (Ok(dialled), None) => dialled,
        (Err(_), Some(_)) => return Found::Unreached,
        // It would not have got so far without this sidecar.
        (Err(_), None) if record.is_passed() => return Found::Unreached,
        (Err(_), None) => return last_word(sniffing, record, LAST_WORD, Found::Unreached).await,
    };
    let mut first = BytesMut::with_capacity(1024);
    tokio::select! {
        wire = sniffing.as_mut() => match wire {
            // What the peer had begun to say is for its caller all the same.
            Ok(wire) => Found::Caller(wire, Some((record, dialled.prefixed(first.freeze())))),
            Err(error) => { dialled.reset_on_close(); record.unused(); heard(Err(error)) }
        },
        read = greeting(&mut dialled, &mut first) => match read {
            Ok(true) => {
                conn.learned.answered_http(Instant::now());
                drop(dialled);
                let patience = first_bytes(limits.keep_alive, limits.head_timeout);
                last_word(sniffing, record, patience, Found::Nothing).await
            }
            // The end of what it has to say is passed on as such where nobody may know of this sidecar.
            Ok(false) if !first.is_empty() || conn.is_captured() => Found::Peer(record, dialled, first),
            // It closed without a word: the caller gets the same.
            Ok(_) => { record.closed(); Found::Nothing }
            Err(_) => { record.closed(); Found::Unreached }
        },
    }
}

/// Dials while the caller is listened to. One that speaks opaque bytes meanwhile, or TLS that is passed through, is given
/// this very connection, and the wire stands beside it; for one that speaks anything else, or leaves, the dial is dropped.
async fn dial_meanwhile(
    conn: &Conn,
    record: &mut Opaque,
    sniffing: impl Future<Output = io::Result<Wire>>,
) -> Result<(Result<Io, Failure>, Option<Wire>), io::Result<Wire>> {
    let mut dial = std::pin::pin!(record.dial());
    tokio::select! {
        // The caller first: if it has spoken, whether the dial succeeded may not matter.
        biased;
        wire = sniffing => match wire {
            Ok(Wire::Opaque) => Ok((dial.await, Some(Wire::Opaque))),
            Ok(Wire::Tls { sni }) if conn.passes(sni.as_deref()) => Ok((dial.await, Some(Wire::Tls { sni }))),
            other => Err(other),
        },
        dialled = dial.as_mut() => Ok((dialled, None)),
    }
}

/// Reads what the peer says first. True where it is HTTP/2's SETTINGS, which a server may send at once (RFC 9113 §3.4):
/// they only tell that the caller will have to speak.
async fn greeting(peer: &mut Io, first: &mut BytesMut) -> io::Result<bool> {
    loop {
        let ended = peer.read_buf(first).await? == 0;
        match is_http2_server(first) {
            Some(http2) => return Ok(http2),
            None if ended => return Ok(false),
            None => {}
        }
    }
}

/// After an early dial that failed or met HTTP/2: a caller that speaks HTTP is owed an answer, which the corridor gives.
/// `silent` is what a caller comes to that says nothing.
async fn last_word(
    sniffing: impl Future<Output = io::Result<Wire>>,
    mut record: Opaque,
    patience: Duration,
    silent: Found,
) -> Found {
    let Ok(wire) = timeout(patience, sniffing).await else { return silent };
    let found = heard(wire);
    if !matches!(found, Found::Nothing) {
        record.unused();
    }
    found
}
