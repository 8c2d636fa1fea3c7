//! TLS that is handed to the app unseen: the app gets the ClientHello and nothing more before it has answered in TLS.
//!
//! Who is a stranger to the mesh comes past all that it asks for. A ClientHello with a name that is listed costs nothing, and
//! an app that speaks in lines would take what follows it for commands.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::tunnel::Opaque;
use super::{Conn, record, target};
use crate::call::Failure;
use crate::net::io::{Io, Resets};
use crate::net::sniff::{is_tls_answer, read_hello};
use crate::reason::Reason;

const NOT_TLS: &str = "the service answered a ClientHello with something else than TLS, so nothing more is handed to it: its \
                       port is no one for `inbound.passthrough`";

/// Hands a caller's TLS to where its connection leads.
pub(super) async fn serve(conn: Arc<Conn>, io: Io, sni: &str, dialled: Option<(Opaque, Io)>) {
    let (record, peer) = match dialled {
        Some((mut record, peer)) => {
            record.named("tls", sni);
            (record, Ok(peer))
        }
        None => {
            let led = target::of_conn(&conn, &conn.core.world.load_full());
            let mut record = match led {
                Ok(led) => Opaque::begin(&conn, led, "tls", sni),
                Err(failure) => return record::refused(&conn, failure.reason, &failure.detail),
            };
            let dialled = record.dial().await;
            (record, dialled)
        }
    };
    match peer {
        Ok(peer) => carry(&conn, record, io, peer).await,
        Err(_) if conn.is_captured() => io.reset_on_close(),
        Err(_) => {}
    }
}

async fn carry(conn: &Conn, mut record: Opaque, mut caller: Io, mut peer: Io) {
    let clock = conn.door.limits.head_timeout;
    match begin(&mut caller, &mut peer, clock).await {
        Ok((_, first)) if first.is_empty() => record.closed(),
        Ok((gave, first)) if is_tls_answer(&first) => {
            record.gave(gave);
            record.carry(caller, peer.prefixed(first.freeze())).await;
        }
        Ok(_) => record.failed(Failure::new(Reason::TlsFailed, NOT_TLS)),
        Err(error) => record.failed(Failure::new(Reason::TlsFailed, format!("the service's TLS: {error}"))),
    }
}

/// Gives the ClientHello alone, and waits for as much of the answer as tells TLS from all else; nothing at its end.
async fn begin(caller: &mut Io, peer: &mut Io, clock: Duration) -> io::Result<(usize, BytesMut)> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it did not answer the ClientHello in time");
    timeout(clock, async {
        let hello = read_hello(caller).await?;
        peer.write_all(&hello).await?;
        peer.flush().await?;
        let mut first = BytesMut::with_capacity(4096);
        while first.len() < 3 && peer.read_buf(&mut first).await? > 0 {}
        Ok((hello.len(), first))
    })
    .await
    .map_err(late)?
}

impl Conn {
    /// Whether a ClientHello's name is listed to be handed through, at the port that was dialled.
    pub(super) fn passes(&self, sni: Option<&str>) -> bool {
        self.door.passes_all || sni.is_some_and(|sni| self.door.passes(sni, self.port()))
    }
}
