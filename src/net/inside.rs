//! The app's own network, where it has one: sockets that live there, handed over by the process that holds it.
//!
//! A socket belongs for life to the network in which it was made, whoever uses it. So the doors that the app calls listen
//! there, and the app is called from there, while this process stays in the machine's network. The holder keeps a few
//! sockets ready for calls to the app: each is one message in a Unix socket, so a call takes one without asking and
//! waiting, and the socket's buffer bounds how many there are.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use tokio::io::Interest;
use tokio::net::{TcpSocket, UnixStream};

use super::passing::{LONGEST, receive, send};

/// The holder answers at once; this is for one that is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// One for the process: an app has one network, from before it starts until after it ends.
static INSIDE: OnceLock<Inside> = OnceLock::new();

/// The app's network, as this process has it.
#[derive(Debug)]
pub struct Inside {
    /// Requests to the holder, one at a time; used when doors are opened, never for a call.
    control: Mutex<OwnedFd>,
    v4: UnixStream,
    v6: Option<UnixStream>,
}

/// What a listener or a socket there is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP, listening.
    Tcp,
    /// UDP.
    Udp,
}

impl Kind {
    /// Its word in a request.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The app's network, if it has one of its own.
pub fn inside() -> Option<&'static Inside> {
    INSIDE.get()
}

/// Has the app's network from now on. `ready` are the ends from which sockets of IPv4 and IPv6 come; must be called on the
/// runtime of the data threads.
///
/// # Errors
/// What the runtime says; `AlreadyExists` for a second one.
pub fn enter(control: OwnedFd, ready: (OwnedFd, Option<OwnedFd>)) -> io::Result<()> {
    set_socket_timeout(&control, Timeout::Recv, Some(PATIENCE))?;
    // As good for sockets that keep messages apart: only the waiting is tokio's.
    let ends = |fd: OwnedFd| UnixStream::from_std(fd.into());
    let inside = Inside { control: Mutex::new(control), v4: ends(ready.0)?, v6: ready.1.map(ends).transpose()? };
    INSIDE.set(inside).map_err(|_| io::ErrorKind::AlreadyExists.into())
}

impl Inside {
    /// Where the app's questions to name servers are led.
    pub fn dns(&self) -> Vec<SocketAddr> {
        let port = crate::plan::redirect::DNS_PORT;
        let v6 = self.v6.is_some().then(|| (Ipv6Addr::LOCALHOST, port).into());
        std::iter::once((Ipv4Addr::LOCALHOST, port).into()).chain(v6).collect()
    }

    /// A listener there.
    ///
    /// # Errors
    /// The system's, or that there is no holder any more.
    pub fn listen(&self, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
        self.ask(Kind::Tcp, addr).map(std::net::TcpListener::from)
    }

    /// A socket for UDP there.
    ///
    /// # Errors
    /// As [`Inside::listen`].
    pub fn udp(&self, addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
        self.ask(Kind::Udp, addr).map(std::net::UdpSocket::from)
    }

    fn ask(&self, kind: Kind, addr: SocketAddr) -> io::Result<OwnedFd> {
        let control = self.control.lock();
        let mut answer = [0; LONGEST];
        send(&*control, format!("{} {addr}", kind.word()).as_bytes(), &[]).map_err(gone)?;
        let (length, mut fds) = receive(&*control, &mut answer).map_err(gone)?;
        if let Some(fd) = fds.pop() {
            return Ok(fd);
        }
        let answer = std::str::from_utf8(answer.get(..length).unwrap_or_default()).unwrap_or_default();
        Err(answer.parse().map_or_else(|_| io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error))
    }

    /// A socket of the app's network that is not connected yet. Cancel-safe.
    ///
    /// # Errors
    /// That there is no holder any more, or no IPv6 there.
    pub async fn socket(&self, v6: bool) -> io::Result<TcpSocket> {
        let ready = if v6 { self.v6.as_ref() } else { Some(&self.v4) };
        let ready = ready.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let took = ready.async_io(Interest::READABLE, || receive(ready, &mut [0; 1])).await;
        let (_, mut fds) = took.map_err(gone)?;
        let fd = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
        Ok(TcpSocket::from_std_stream(std::net::TcpStream::from(fd)))
    }
}

/// Why there is nothing from the holder, in words.
fn gone(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            io::Error::other("the process that holds the app's network has ended: start outrigger again")
        }
        _ => error,
    }
}
