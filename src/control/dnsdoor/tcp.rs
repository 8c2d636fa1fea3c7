//! Questions over TCP (RFC 7766): several under way on a connection, answered in the order in which they are known.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{First, Shared};
use crate::dns::wire::MOST_TCP;
use crate::net::accept::Backoff;

/// A connection on which nothing happens is closed.
const IDLE: Duration = Duration::from_secs(10);
/// As is one that does not take its answer.
const WRITE: Duration = Duration::from_secs(5);
/// Questions under way on one connection; the next is read when one of them has its answer.
const PIPELINED: usize = 16;
/// A question's length in bytes, and the question.
const LENGTH: usize = 2;

/// Accepts until aborted.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    let mut backoff = Backoff::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                let (wait, begins) = backoff.failed(&error);
                if begins {
                    tracing::error!(%error, "the DNS door cannot accept connections; trying again");
                }
                sleep(wait).await;
                continue;
            }
        };
        backoff.worked();
        let Ok(permit) = shared.connections.clone().try_acquire_owned() else {
            shared.dns().connections_refused.inc();
            continue;
        };
        let shared = shared.clone();
        shared.tasks.clone().spawn(async move {
            let _permit = permit;
            shared.dns().connections.add(1);
            // Whoever asked has left, or never asked whole: nothing to tell.
            let _ = converse(&shared, stream).await;
            shared.dns().connections.add(-1);
        });
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream) -> io::Result<()> {
    let (mut reader, mut writer) = stream.split();
    let mut unread = BytesMut::new();
    let mut under_way = FuturesUnordered::new();
    let (mut idle, mut ended) = (Instant::now() + IDLE, false);
    loop {
        while under_way.len() < PIPELINED
            && let Some(packet) = next(&mut unread)
        {
            idle = Instant::now() + IDLE;
            match shared.first(&packet, |_| MOST_TCP) {
                First::Now(answer) => write(&mut writer, &answer).await?,
                First::Later(asked) => under_way.push(async move { shared.later(&asked, MOST_TCP).await }),
                First::Never => {}
            }
        }
        if ended && under_way.is_empty() {
            return Ok(());
        }
        let room = under_way.len() < PIPELINED && !ended;
        // Each arm may be dropped: what is read is in `unread`, what is asked in `under_way`.
        tokio::select! {
            Some(answer) = under_way.next() => {
                write(&mut writer, &answer).await?;
                idle = Instant::now() + IDLE;
            }
            read = reader.read_buf(&mut unread), if room => ended = read? == 0,
            () = sleep_until(idle), if under_way.is_empty() => return Ok(()),
        }
    }
}

/// The first whole message of what was read.
fn next(unread: &mut BytesMut) -> Option<BytesMut> {
    let length = usize::from(u16::from_be_bytes(*unread.first_chunk::<LENGTH>()?));
    if unread.len() < LENGTH + length {
        return None;
    }
    unread.advance(LENGTH);
    Some(unread.split_to(length))
}

async fn write(writer: &mut (impl AsyncWriteExt + Unpin), answer: &[u8]) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    // One write for both: some askers take a length alone for an end.
    let message = [&length.to_be_bytes(), answer].concat();
    timeout(WRITE, writer.write_all(&message)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_whole_wherever_they_are_cut() {
        let stream = [0, 3, 1, 2, 3, 0, 0, 0, 1, 9, 0];
        for cut in 0..=stream.len() {
            let mut unread = BytesMut::from(&stream[..cut]);
            let mut seen: Vec<Vec<u8>> = std::iter::from_fn(|| next(&mut unread)).map(|m| m.to_vec()).collect();
            unread.extend_from_slice(&stream[cut..]);
            seen.extend(std::iter::from_fn(|| next(&mut unread)).map(|m| m.to_vec()));
            assert_eq!(seen, [vec![1, 2, 3], vec![], vec![9]], "{cut}");
            assert_eq!(&unread[..], [0]);
        }
    }
}
