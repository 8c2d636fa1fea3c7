//! Connecting to an address: TCP or Unix, with a deadline.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UnixStream};

use crate::deadline::Deadline;
use crate::ids::Addr;
use crate::net::inside::inside;
use crate::net::io::Io;
use crate::net::ours::{self, Known, Ours};
use crate::plan::capture::TO_APP;
use crate::plan::peer::ToApp;
use crate::reason::Reason;

/// After this long without an acknowledgement of sent bytes the kernel gives a connection up (RFC 5482).
pub const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// A silent connection is probed after this long.
const KEEPALIVE: Duration = Duration::from_secs(15);

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

/// As [`dial`] without a deadline; to the service past the rules that would capture the connection, where there are such.
///
/// # Errors
/// As [`dial`].
pub async fn dial_to(to_app: Option<ToApp>, addr: &Addr) -> Result<Io, DialError> {
    match (to_app, addr) {
        // No rule captures what is sent to loopback, unless that is another one. Boxed, so that it makes no other
        // connection larger.
        (Some(to_app), Addr::Tcp(to)) if !to.ip().is_loopback() || inside().is_some() => {
            within(Deadline::NONE, addr, Box::pin(tcp_to_app(to_app, *to))).await
        }
        _ => dial(addr, Deadline::NONE).await,
    }
}

/// Below those that systems give to who connects (from 32768 on Linux, from 49152 elsewhere).
const TO_APP_PORTS: RangeInclusive<u16> = 10_000..=32_767;
/// So many of them are tried before the system chooses.
const TRIES: usize = 16;

async fn unix(path: &Path) -> io::Result<Io> {
    #[cfg(test)]
    if let Some(io) = super::pipes::connect(Addr::Unix(path.into())).await {
        return io;
    }
    UnixStream::connect(path).await.map(Io::Unix)
}

async fn tcp(to: SocketAddr) -> io::Result<Io> {
    #[cfg(test)]
    if let Some(io) = super::pipes::connect(Addr::Tcp(to)).await {
        return io;
    }
    if ours::is_watched() && !to.ip().is_loopback() {
        // Boxed, so that it makes no other connection larger.
        return Box::pin(connect(socket(to)?, to)).await;
    }
    let stream = TcpStream::connect(to).await?;
    tune(&stream)?;
    Ok(Io::Tcp(stream))
}

fn socket(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Connects; where it may come back to this process it is known as ours as soon as its own address is.
async fn connect(socket: Socket, to: SocketAddr) -> io::Result<Io> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(Errno::INPROGRESS.raw_os_error()) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let local = if ours::is_watched() { socket.local_addr()?.as_socket() } else { None };
    let known = local.map(|local| Known::of(local, to));
    let stream = TcpStream::from_std(socket.into())?;
    let io = match known {
        Some(known) => Io::Ours(Box::new(Ours::new(known, stream))),
        None => Io::Tcp(stream),
    };
    if let Some(stream) = io.tcp() {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
        tune(stream)?;
    }
    Ok(io)
}

async fn tcp_to_app(to_app: ToApp, to: SocketAddr) -> io::Result<Io> {
    #[cfg(test)]
    if let Some(io) = super::pipes::connect(Addr::Tcp(to)).await {
        return io;
    }
    let socket = match inside() {
        Some(inside) => inside.socket(to.is_ipv6()).await?,
        None => socket(to)?,
    };
    let field = u32::from(TO_APP) << 2;
    if to.is_ipv4() {
        socket.set_tos_v4(field)?
    } else {
        socket.set_tclass_v6(field)?
    }
    if let Some(ip) = to_app.from {
        if to.is_ipv4() {
            socket.set_ip_transparent_v4(true)?
        } else {
            socket.set_ip_transparent_v6(true)?
        }
        bind_as(&socket, ip, to)?;
    }
    connect(socket, to).await
}

/// Binds the caller's address, with a port that callers have no habit of. With the caller's own one this connection and
/// the caller's, which goes to the same address and perhaps port, would be the same to the kernel, and never answered.
fn bind_as(socket: &Socket, ip: IpAddr, to: SocketAddr) -> io::Result<()> {
    let scope = if let SocketAddr::V6(to) = to { to.scope_id() } else { 0 };
    let at = |port| match ip {
        IpAddr::V4(ip) => SocketAddr::from((ip, port)),
        IpAddr::V6(ip) => SocketAddr::V6(SocketAddrV6::new(ip, port, 0, scope)),
    };
    for _ in 0..TRIES {
        match socket.bind(&at(fastrand::u16(TO_APP_PORTS)).into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            done => return done,
        }
    }
    socket.bind(&at(0).into())
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

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::Instant;

    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn the_app_is_called_from_a_port_that_callers_do_not_have() {
        for (ip, to) in [("127.0.0.1", "127.0.0.1:1"), ("::1", "[::1]:1")] {
            let (ip, to): (IpAddr, _) = (ip.parse().unwrap(), addr(to));
            let socket = socket(to).unwrap();
            if let Err(error) = bind_as(&socket, ip, to) {
                assert!(to.is_ipv6(), "{error}");
                eprintln!("not tried over IPv6, which this machine has not: {error}");
                continue;
            }
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert!(bound.ip() == ip && TO_APP_PORTS.contains(&bound.port()), "{bound}");
        }
    }

    #[tokio::test]
    async fn a_refusal_names_its_address() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = closed.local_addr().unwrap();
        drop(closed);
        let error = dial(&Addr::Tcp(refused), Deadline::NONE).await.err().unwrap();
        assert_eq!(error.reason, Reason::ConnectRefused);
        assert!(error.detail.contains(&refused.to_string()), "{error}");
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
