//! Questions over UDP: answered at once where nobody need be waited for, else by a task of their own, bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::sleep;

use super::{First, Shared};
use crate::dns::wire::{Asked, Note, Said};
use crate::telemetry::metrics::DnsAnswer;

/// No question is longer; what is cut off at this is malformed.
const LONGEST: usize = 4096;
/// After an error of the socket that is no packet's.
const REST: Duration = Duration::from_millis(50);

/// Answers until aborted.
pub(super) async fn serve(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut packet = vec![0; LONGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "the DNS door cannot receive");
                sleep(REST).await;
                continue;
            }
        };
        match shared.first(packet.get(..length).unwrap_or_default(), Asked::most_udp) {
            First::Now(answer) => send(&shared, &socket, &answer, from),
            First::Later(asked) => later(&shared, &socket, asked, from),
            First::Never => {}
        }
    }
}

fn later(shared: &Arc<Shared>, socket: &Arc<UdpSocket>, asked: Box<Asked>, from: SocketAddr) {
    let Ok(permit) = shared.waiting.clone().try_acquire_owned() else {
        shared.dns().answered(DnsAnswer::Overloaded);
        let said = Said::failed(Note::not_ready("too many questions wait for the servers"));
        return send(shared, socket, &asked.write(said, asked.most_udp()), from);
    };
    // The address of a listener that a reload has removed is free at once: its last answers are lost with it.
    let (shared, socket) = (shared.clone(), Arc::downgrade(socket));
    shared.tasks.clone().spawn(async move {
        let _permit = permit;
        let answer = shared.later(&asked, asked.most_udp()).await;
        match socket.upgrade() {
            Some(socket) => send(&shared, &socket, &answer, from),
            None => shared.dns().dropped.inc(),
        }
    });
}

/// An answer that finds no room is lost, as on any wire; who asked asks again.
fn send(shared: &Shared, socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if socket.try_send_to(answer, to).is_err() {
        shared.dns().dropped.inc();
    }
}
