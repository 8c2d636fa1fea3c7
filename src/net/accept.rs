//! The accept loop's parts: listening sockets, and back-off when accepting fails.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, UnixListener};

use super::inside::inside;
use super::io::Io;
use crate::ids::{Addr, ClientAddr};

/// How long unacknowledged data may wait before a connection counts as dead (RFC 5482).
pub const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The first keep-alive probe on a silent connection, and the time between probes.
pub const KEEPALIVE: Duration = Duration::from_secs(30);

/// A listening socket, not yet tied to a runtime.
pub enum Bound {
    /// TCP.
    Tcp(std::net::TcpListener),
    /// Unix.
    Unix(std::os::unix::net::UnixListener),
}

/// A listening socket of the current runtime.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix.
    Unix(UnixListener),
}

/// Binds `addr`: TCP with SO_REUSEADDR, IPv6 wildcard dual-stack, `foreign` for connections to addresses of others too
/// (TPROXY); a Unix socket replaces a dead file of its name.
///
/// # Errors
/// What the system says: in use, not permitted, no such address.
pub fn bind(addr: &Addr, foreign: bool) -> io::Result<Bound> {
    match addr {
        Addr::Tcp(addr) => bind_tcp(*addr, foreign).map(Bound::Tcp),
        Addr::Unix(path) => bind_unix(path).map(Bound::Unix),
    }
}

/// As [`bind`] for what the app calls: where the app has a network of its own, TCP listens there.
///
/// # Errors
/// As [`bind`]; `TimedOut` where whoever holds that network says nothing.
pub async fn bind_for_app(addr: &Addr) -> io::Result<Bound> {
    match (addr, inside()) {
        (Addr::Tcp(addr), Some(inside)) => inside.listen(*addr).await.map(Bound::Tcp),
        _ => bind(addr, false),
    }
}

fn bind_tcp(addr: SocketAddr, foreign: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if addr.ip().is_unspecified() && addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if foreign {
        let set = if addr.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
        set.map_err(not_foreign)?;
    }
    socket.bind(&addr.into())?;
    tune(&socket);
    socket.listen(4096)?;
    Ok(socket.into())
}

/// Why connections to addresses of others cannot be taken.
fn not_foreign(error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::PermissionDenied {
        return error;
    }
    io::Error::other(
        "`redirect.mode: tproxy` takes connections to the addresses of others, which needs CAP_NET_RAW (or CAP_NET_ADMIN) \
         kept as an ambient capability, in systemd `AmbientCapabilities=CAP_NET_RAW`; or set `mode: redirect`",
    )
}

fn bind_unix(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    if stale {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            // Only then is nobody there: another error (no permission, a full queue) may come from a living listener.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        }
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Bound {
    /// The address it got; differs from the asked one where the port was 0.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Ties it to the current runtime.
    ///
    /// # Errors
    /// What registering with the runtime gives.
    pub fn listen(self) -> io::Result<Listener> {
        match self {
            Self::Tcp(listener) => TcpListener::from_std(listener).map(Listener::Tcp),
            Self::Unix(listener) => UnixListener::from_std(listener).map(Listener::Unix),
        }
    }
}

impl Listener {
    /// Lets nobody on another machine begin a handshake any more: these are refused, because the socket is for the loopback
    /// interface alone from now on. Handshakes under way are finished: closing at once would reset who believes to be
    /// connected already, and may have sent a request. Who calls from this machine is still taken: to drop what it sends
    /// would have it wait a second before it tries again.
    pub fn refuse_others(&self) {
        // There is no handshake that could be cut short at a Unix socket.
        if let Self::Tcp(listener) = self {
            let _ = socket2::SockRef::from(listener).bind_device(Some(b"lo"));
        }
    }

    /// The next connection. Cancel-safe.
    ///
    /// # Errors
    /// What accepting gives; see [`Backoff`] for what to do then.
    pub async fn accept(&self) -> io::Result<(Io, ClientAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                Ok((Io::Tcp(stream), ClientAddr(Some(canonical(addr)))))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Io::Unix(stream), ClientAddr(None)))
            }
        }
    }
}

/// An IPv4 caller of a dual-stack socket is shown as IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// No delay, and a bound on how long a dead caller holds a connection. Linux hands a listener's options to what it
/// accepts, which spares five calls a connection. Failing to set them is no reason to refuse one.
fn tune(listener: &Socket) {
    let _ = listener.set_tcp_nodelay(true);
    let _ = listener.set_tcp_user_timeout(Some(USER_TIMEOUT));
    let _ = listener.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 3));
}

/// What to do after failed accepts: `Fine -> Failing -> Fine`, waiting 5 ms, doubled up to 1 s.
#[derive(Debug, Default)]
pub struct Backoff {
    wait: Option<Duration>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(5);
    const MOST: Duration = Duration::from_secs(1);

    /// How long to wait after `error`: nothing when it only concerns the one connection that was not accepted.
    /// The flag says whether failing begins now, for one log line a change.
    pub fn failed(&mut self, error: &io::Error) -> (Duration, bool) {
        use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
        if matches!(error.kind(), ConnectionAborted | ConnectionReset | ConnectionRefused | Interrupted) {
            return (Duration::ZERO, false);
        }
        let begins = self.wait.is_none();
        let wait = self.wait.map_or(Self::FIRST, |wait| (wait * 2).min(Self::MOST));
        self.wait = Some(wait);
        (wait, begins)
    }

    /// Notes a success; true when failing ends now.
    pub fn worked(&mut self) -> bool {
        self.wait.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn back_off_grows_to_a_second_and_ends_with_a_success() {
        let mut backoff = Backoff::default();
        let full = io::Error::from_raw_os_error(24);
        let waits: Vec<_> = (0..10).map(|_| backoff.failed(&full).0.as_millis()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        assert!(backoff.worked() && !backoff.worked());
        assert_eq!(backoff.failed(&full), (Duration::from_millis(5), true));
        assert_eq!(backoff.failed(&io::ErrorKind::ConnectionAborted.into()), (Duration::ZERO, false));
    }

    /// That nobody new comes takes callers on other machines: `tests/capture` has them.
    #[tokio::test]
    async fn who_is_connected_or_on_this_machine_is_accepted_after_all() {
        let Bound::Tcp(bound) = bind(&"127.0.0.1:0".parse().unwrap(), false).unwrap() else { panic!("not TCP") };
        let at = bound.local_addr().unwrap();
        let early = std::net::TcpStream::connect(at).unwrap();
        let listener = Bound::Tcp(bound).listen().unwrap();
        listener.refuse_others();
        assert_eq!(listener.accept().await.unwrap().1, ClientAddr(Some(early.local_addr().unwrap())));
        let late = std::net::TcpStream::connect_timeout(&at, Duration::from_secs(10)).unwrap();
        assert_eq!(listener.accept().await.unwrap().1, ClientAddr(Some(late.local_addr().unwrap())));
    }

    #[tokio::test]
    async fn what_a_listener_accepts_is_tuned() {
        let listener = bind(&Addr::Tcp("127.0.0.1:0".parse().unwrap()), false).unwrap();
        let at = listener.local_addr().unwrap();
        let listener = listener.listen().unwrap();
        let _caller = TcpStream::connect(at).await.unwrap();
        let (io, _) = listener.accept().await.unwrap();
        let socket = socket2::SockRef::from(io.tcp().unwrap());
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert_eq!(
            (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap()),
            (KEEPALIVE, KEEPALIVE / 3)
        );
    }

    #[tokio::test]
    async fn a_dead_unix_socket_is_replaced_and_a_living_one_is_not() {
        let dir = std::env::temp_dir().join(format!("outrigger-accept-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let addr = Addr::Unix(dir.join("s").into());
        drop(bind(&addr, false).unwrap());
        let living = bind(&addr, false).unwrap();
        assert_eq!(bind(&addr, false).err().map(|e| e.kind()), Some(io::ErrorKind::AddrInUse));
        drop(living);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
