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
use socket2::Socket;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::passing::{LONGEST, receive, receive_until, send};

/// The holder answers at once; this is for one that is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// One for the process: an app has one network, from before it starts until after it ends.
static INSIDE: OnceLock<Inside> = OnceLock::new();

/// The app's network, as this process has it.
#[derive(Debug)]
pub struct Inside {
    /// Requests to the holder, one at a time; used when doors are opened, never for a call.
    control: Mutex<Control>,
    v4: UnixStream,
    v6: Option<UnixStream>,
}

/// The way of requests to the holder.
#[derive(Debug)]
struct Control {
    socket: OwnedFd,
    /// Of the last request; its answer begins with it, so that one that comes too late is not taken for another's.
    number: u64,
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
    // Should its requests pile up.
    set_socket_timeout(&control, Timeout::Send, Some(PATIENCE))?;
    let control = Control { socket: control, number: 0 };
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
        self.control.lock().ask(&format!("{} {addr}", kind.word()), Instant::now() + PATIENCE)
    }

    /// A socket of the app's network that is not connected yet and never blocks. Cancel-safe.
    ///
    /// # Errors
    /// That there is no holder any more, or no IPv6 there.
    pub async fn socket(&self, v6: bool) -> io::Result<Socket> {
        let ready = if v6 { self.v6.as_ref() } else { Some(&self.v4) };
        let ready = ready.ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
        let took = ready.async_io(Interest::READABLE, || receive(ready, &mut [0; 1])).await;
        let (_, mut fds) = took.map_err(gone)?;
        let fd = fds.pop().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Socket::from(fd))
    }
}

impl Control {
    fn ask(&mut self, what: &str, end: Instant) -> io::Result<OwnedFd> {
        loop {
            match self.once(what, end) {
                // What came too late for an earlier request may have been at that very address until now.
                (Err(error), true) if error.kind() == io::ErrorKind::AddrInUse => {}
                (answer, _) => return answer,
            }
        }
    }

    /// The answer, and whether others' came before it, which are closed.
    fn once(&mut self, what: &str, end: Instant) -> (io::Result<OwnedFd>, bool) {
        self.number += 1;
        let (number, mut strays, mut text) = (self.number.to_string(), false, [0; LONGEST]);
        if let Err(error) = send(&self.socket, format!("{number} {what}").as_bytes(), &[]) {
            return (Err(gone(error)), strays);
        }
        loop {
            let (length, mut fds) = match receive_until(&self.socket, &mut text, end) {
                Ok(came) => came,
                Err(error) => return (Err(gone(error)), strays),
            };
            let said = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
            match said.split_once(' ') {
                Some((of, said)) if of == number => {
                    let error = || said.parse().map_or(io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error);
                    return (fds.pop().ok_or_else(error), strays);
                }
                _ => strays = true,
            }
        }
    }
}

/// Why there is nothing from the holder, in words.
fn gone(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            io::Error::other("the process that holds the app's network has ended: start outrigger again")
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            io::Error::new(error.kind(), "the process that holds the app's network does not answer: is it stopped?")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::SocketFlags;

    use super::*;
    use crate::net::passing::pair;

    #[test]
    fn an_answer_that_comes_too_late_is_nobody_elses() {
        let (socket, holder) = pair(SocketFlags::empty()).unwrap();
        let mut control = Control { socket, number: 0 };
        let late = control.ask("tcp 127.0.0.1:1", Instant::now()).unwrap_err();
        assert!(late.to_string().contains("does not answer"), "{late}");
        let late = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let right = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let meant = right.local_addr().unwrap();
        send(&holder, b"1 open", &[late.as_fd()]).unwrap();
        // The first time the port is taken by what came too late.
        send(&holder, format!("2 {}", rustix::io::Errno::ADDRINUSE.raw_os_error()).as_bytes(), &[]).unwrap();
        send(&holder, b"3 open", &[right.as_fd()]).unwrap();
        let end = Instant::now() + PATIENCE;
        let got = control.ask("tcp 127.0.0.1:2", end).map(std::net::TcpListener::from).unwrap();
        assert_eq!(got.local_addr().unwrap(), meant);
        drop(holder);
        assert!(control.ask("tcp 127.0.0.1:2", end).unwrap_err().to_string().contains("has ended"));
    }
}
