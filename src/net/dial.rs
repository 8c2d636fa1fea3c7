//! Connecting to an address: TCP or Unix, with a deadline, and over both address families of one name (RFC 8305).

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Instant;

use crate::deadline::Deadline;
use crate::ids::Addr;
use crate::net::io::Io;
use crate::reason::Reason;

/// After this long without an acknowledgement of sent bytes the kernel gives a connection up (RFC 5482).
pub const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A silent connection is probed after this long.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Between two connection attempts to one name (RFC 8305 §5).
pub const STAGGER: Duration = Duration::from_millis(250);

/// Why a connection could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct DialError {
    /// `ConnectRefused`, `ConnectFailed` or `ConnectTimeout`.
    pub reason: Reason,
    /// What happened, with the address.
    pub detail: String,
}

/// Connects to `addr` before `deadline`.
///
/// # Errors
/// `ConnectRefused` when nobody listens there, `ConnectTimeout` when the deadline passed, else `ConnectFailed`.
pub async fn dial(addr: &Addr, deadline: Deadline) -> Result<Io, DialError> {
    match addr {
        Addr::Tcp(to) => within(deadline, addr, tcp(*to)).await,
        Addr::Unix(path) => within(deadline, addr, unix(path)).await,
    }
}

/// Connects to whichever of one name's addresses answers first: they are tried in turn, the families alternating
/// and each `stagger` after the one before or as soon as that has failed. The others are dropped.
///
/// # Errors
/// The error of the first address when all fail; `ConnectTimeout` when the deadline passed.
pub async fn dial_any(addrs: &[SocketAddr], stagger: Duration, deadline: Deadline) -> Result<Io, DialError> {
    let Some(first) = addrs.first().copied().map(Addr::Tcp) else {
        return Err(DialError { reason: Reason::ConnectFailed, detail: "there is no address to connect to".into() });
    };
    let mut waiting = alternate(addrs).into_iter();
    let mut running = FuturesUnordered::new();
    let mut failed = None;
    let mut timeout = pin!(until(deadline));
    loop {
        if let Some(to) = waiting.next() {
            running.push(async move { tcp(to).await.map_err(|error| describe(&Addr::Tcp(to), &error)) });
        } else if running.is_empty() {
            return Err(failed.unwrap_or_else(|| late(&first)));
        }
        let pause = Deadline::after(Instant::now(), (waiting.len() > 0).then_some(stagger));
        // Dropping the race loses nothing: attempts live in `running`, which outlasts this select.
        tokio::select! {
            Some(result) = running.next() => match result {
                Ok(io) => return Ok(io),
                Err(error) => { failed.get_or_insert(error); }
            },
            () = until(pause) => {}
            () = &mut timeout => return Err(late(&first)),
        }
    }
}

async fn unix(path: &Path) -> io::Result<Io> {
    #[cfg(test)]
    if let Some(io) = super::pipes::connect(path).await {
        return io;
    }
    UnixStream::connect(path).await.map(Io::Unix)
}

async fn tcp(to: SocketAddr) -> io::Result<Io> {
    let stream = TcpStream::connect(to).await?;
    tune(&stream)?;
    Ok(Io::Tcp(stream))
}

/// Sets what every upstream TCP connection has: no delay, keep-alive probes, and an end to waiting for a dead host.
fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3).with_retries(3))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

async fn within(
    deadline: Deadline,
    addr: &Addr,
    connect: impl Future<Output = io::Result<Io>>,
) -> Result<Io, DialError> {
    tokio::select! {
        result = connect => result.map_err(|error| describe(addr, &error)),
        () = until(deadline) => Err(late(addr)),
    }
}

async fn until(deadline: Deadline) {
    match deadline.instant() {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn late(addr: &Addr) -> DialError {
    DialError { reason: Reason::ConnectTimeout, detail: format!("connecting to {addr} took too long") }
}

fn describe(addr: &Addr, error: &io::Error) -> DialError {
    let reason = match error.kind() {
        // A Unix socket that nobody made yet is the same fact as a port that nobody listens on.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => Reason::ConnectRefused,
        io::ErrorKind::TimedOut => Reason::ConnectTimeout,
        _ => Reason::ConnectFailed,
    };
    DialError { reason, detail: format!("connecting to {addr}: {error}") }
}

/// The addresses with their families taking turns, beginning with the first one's (RFC 8305 §4).
fn alternate(addrs: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v6 = addrs.first().is_some_and(SocketAddr::is_ipv6);
    let (mut same, mut other): (Vec<_>, Vec<_>) = addrs.iter().copied().partition(|addr| addr.is_ipv6() == first_is_v6);
    same.reverse();
    other.reverse();
    let mut order = Vec::with_capacity(addrs.len());
    while order.len() < addrs.len() {
        order.extend(same.pop());
        order.extend(other.pop());
    }
    order
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_take_turns() {
        let (a, b, c) = (addr("[::1]:1"), addr("[::2]:1"), addr("[::3]:1"));
        let (x, y) = (addr("1.1.1.1:1"), addr("2.2.2.2:1"));
        assert_eq!(alternate(&[a, b, c, x, y]), [a, x, b, y, c]);
        assert_eq!(alternate(&[x, y, a]), [x, a, y]);
        assert_eq!(alternate(&[]), []);
    }

    #[tokio::test]
    async fn a_refused_address_is_passed_over_without_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (open, refused) = (listener.local_addr().unwrap(), closed.local_addr().unwrap());
        drop(closed);
        let deadline = Deadline::after(Instant::now(), Some(Duration::from_secs(30)));
        // The stagger is longer than the deadline: only the refusal can start the second attempt.
        let io = dial_any(&[refused, open], Duration::from_secs(60), deadline).await;
        io.unwrap().write_all(b"hello").await.unwrap();
        let error = dial(&Addr::Tcp(refused), deadline).await.err().unwrap();
        assert_eq!(error.reason, Reason::ConnectRefused);
        assert!(error.detail.contains(&refused.to_string()), "{error}");
        assert_eq!(dial_any(&[refused], STAGGER, deadline).await.err().unwrap().reason, Reason::ConnectRefused);
        assert_eq!(dial_any(&[], STAGGER, deadline).await.err().unwrap().reason, Reason::ConnectFailed);
    }

    #[tokio::test]
    async fn a_missing_unix_socket_reads_as_refused() {
        let addr: Addr = "unix:/nonexistent/app.sock".parse().unwrap();
        assert_eq!(dial(&addr, Deadline::NONE).await.err().unwrap().reason, Reason::ConnectRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_passed_deadline_is_a_timeout() {
        let late = within(Deadline::at(Instant::now()), &addr("192.0.2.1:1").into(), std::future::pending()).await;
        assert_eq!(late.err().unwrap().reason, Reason::ConnectTimeout);
    }
}
