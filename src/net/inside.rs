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

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::{TcpSocket, UnixStream};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::passing::{LONGEST, receive, send};

/// The holder answers at once; this is for one that is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// One for the process: an app has one network, from before it starts until after it ends.
static INSIDE: OnceLock<Inside> = OnceLock::new();

/// The app's network, as this process has it.
#[derive(Debug)]
pub struct Inside {
    control: Control,
    v4: UnixStream,
    v6: Option<UnixStream>,
}

/// The way of questions to the holder; used when doors are opened, never for a call.
#[derive(Debug)]
struct Control {
    socket: UnixStream,
    /// Of the last question, which is under way as long as this is held. Its answer begins with it, so that one that comes
    /// too late is not taken for another's.
    number: Mutex<u64>,
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
    let control = Control::of(control)?;
    let inside = Inside { control, v4: ends(ready.0)?, v6: ready.1.map(ends).transpose()? };
    INSIDE.set(inside).map_err(|_| io::ErrorKind::AlreadyExists.into())
}

/// As good for sockets that keep messages apart: only the waiting is tokio's.
fn ends(fd: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(fd.into())
}

impl Inside {
    /// Where the app's questions to name servers are led.
    pub fn dns(&self) -> Vec<SocketAddr> {
        let port = crate::plan::redirect::DNS_PORT;
        let v6 = self.v6.is_some().then(|| (Ipv6Addr::LOCALHOST, port).into());
        std::iter::once((Ipv4Addr::LOCALHOST, port).into()).chain(v6).collect()
    }

    /// A listener there. Cancel-safe.
    ///
    /// # Errors
    /// The system's; `TimedOut` where the holder says nothing; that there is no holder any more.
    pub async fn listen(&self, addr: SocketAddr) -> io::Result<std::net::TcpListener> {
        self.ask(Kind::Tcp, addr).await.map(std::net::TcpListener::from)
    }

    /// A socket for UDP there. Cancel-safe.
    ///
    /// # Errors
    /// As [`Inside::listen`].
    pub async fn udp(&self, addr: SocketAddr) -> io::Result<std::net::UdpSocket> {
        self.ask(Kind::Udp, addr).await.map(std::net::UdpSocket::from)
    }

    async fn ask(&self, kind: Kind, addr: SocketAddr) -> io::Result<OwnedFd> {
        self.control.ask(&format!("{} {addr}", kind.word()), PATIENCE).await
    }

    /// Waits for the holder's end, and closes meanwhile what comes too late for whoever asked. Cancel-safe.
    pub async fn lost(&self) {
        self.control.close_late().await;
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

impl Control {
    fn of(fd: OwnedFd) -> io::Result<Self> {
        let socket = std::os::unix::net::UnixStream::from(fd);
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixStream::from_std(socket)?, number: Mutex::new(0) })
    }

    /// The answer to a question, which waits for those before it. Whoever asked may go: then it comes too late.
    async fn ask(&self, what: &str, patience: Duration) -> io::Result<OwnedFd> {
        let answer = timeout(patience, self.answered(what)).await;
        answer.map_err(|_| io::ErrorKind::TimedOut.into()).and_then(|answer| answer).map_err(gone)
    }

    async fn answered(&self, what: &str) -> io::Result<OwnedFd> {
        let mut number = self.number.lock().await;
        loop {
            *number += 1;
            match self.once(*number, what).await {
                // What came too late for an earlier question may have been at that very address until now.
                (Err(error), true) if error.kind() == io::ErrorKind::AddrInUse => {}
                (answer, _) => return answer,
            }
        }
    }

    /// The answer, and whether others' came before it, which are closed.
    async fn once(&self, number: u64, what: &str) -> (io::Result<OwnedFd>, bool) {
        let (question, number, mut strays) = (format!("{number} {what}"), number.to_string(), false);
        let sent = self.socket.async_io(Interest::WRITABLE, || send(&self.socket, question.as_bytes(), &[]));
        if let Err(error) = sent.await {
            return (Err(error), strays);
        }
        loop {
            let (said, mut fds) = match self.socket.async_io(Interest::READABLE, || self.take()).await {
                Ok(came) => came,
                Err(error) => return (Err(error), strays),
            };
            match said.split_once(' ') {
                Some((of, said)) if of == number => {
                    let error = || said.parse().map_or(io::ErrorKind::InvalidData.into(), io::Error::from_raw_os_error);
                    return (fds.pop().ok_or_else(error), strays);
                }
                _ => strays = true,
            }
        }
    }

    /// What the holder has said, where it has; `WouldBlock` else.
    fn take(&self) -> io::Result<(String, Vec<OwnedFd>)> {
        let mut text = [0; LONGEST];
        let (length, fds) = receive(&self.socket, &mut text)?;
        Ok((String::from_utf8_lossy(text.get(..length).unwrap_or_default()).into_owned(), fds))
    }

    /// Closes what comes while no question is under way: nobody would ever accept there, and callers wait. Ends with the
    /// holder.
    async fn close_late(&self) {
        while self.socket.readable().await.is_ok() {
            let _nobody_asks = self.number.lock().await;
            match self.socket.try_io(Interest::READABLE, || self.take()) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return,
                // One that was cut short is gone as well.
                Ok(_) | Err(_) => {}
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
        _ if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => io::Error::other(
            "too many descriptors of this user are on their way between processes: raise the limit of open files (`ulimit -n`)",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::net::SocketFlags;

    use super::*;
    use crate::net::passing::pair;

    /// Both ends of the way.
    fn way() -> (Control, OwnedFd) {
        let (ours, holder) = pair(SocketFlags::empty()).unwrap();
        (Control::of(ours).unwrap(), holder)
    }

    fn listener() -> (std::net::TcpListener, SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        (listener, at)
    }

    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_nobody_elses() {
        let (control, holder) = way();
        let late = control.ask("tcp 127.0.0.1:1", Duration::ZERO).await.unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(late.to_string().contains("does not answer"), "{late}");
        let ((late, _), (right, meant)) = (listener(), listener());
        send(&holder, b"1 open", &[late.as_fd()]).unwrap();
        // The first time the port is taken by what came too late.
        send(&holder, format!("2 {}", Errno::ADDRINUSE.raw_os_error()).as_bytes(), &[]).unwrap();
        send(&holder, b"3 open", &[right.as_fd()]).unwrap();
        let got = control.ask("tcp 127.0.0.1:2", PATIENCE).await.map(std::net::TcpListener::from).unwrap();
        assert_eq!(got.local_addr().unwrap(), meant);
        drop(holder);
        assert!(control.ask("tcp 127.0.0.1:2", PATIENCE).await.unwrap_err().to_string().contains("has ended"));
    }

    #[tokio::test]
    async fn what_comes_too_late_is_closed_and_an_answer_is_not() {
        let (control, holder) = way();
        let ((late, gone), (right, meant)) = (listener(), listener());
        // One that was asked for, with nobody waiting any more.
        control.ask("tcp 127.0.0.1:1", Duration::ZERO).await.unwrap_err();
        send(&holder, b"1 open", &[late.as_fd()]).unwrap();
        drop(late);
        let ended = async {
            control.close_late().await;
            false
        };
        let mut ended = std::pin::pin!(ended);
        let refused = async {
            while tokio::net::TcpStream::connect(gone).await.is_ok() {
                tokio::task::yield_now().await;
            }
            true
        };
        assert!(tokio::select! { is = &mut ended => is, is = refused => is });
        // It must not take what is another's.
        let answer = async {
            // Asked first, so that both wait.
            let asked = control.ask("tcp 127.0.0.1:2", PATIENCE);
            let told = async {
                tokio::task::yield_now().await;
                send(&holder, b"2 open", &[right.as_fd()]).unwrap();
            };
            let (got, ()) = tokio::join!(asked, told);
            std::net::TcpListener::from(got.unwrap()).local_addr().unwrap() == meant
        };
        assert!(tokio::select! { is = &mut ended => is, is = answer => is });
        drop(holder);
        assert!(!ended.await);
    }

    /// One thread: nothing else would be done on it while an answer is waited for by blocking.
    #[tokio::test]
    async fn whoever_asks_holds_up_nobody_but_the_next_that_asks() {
        let (control, holder) = way();
        let (right, meant) = listener();
        let mut first = std::pin::pin!(control.ask("tcp 127.0.0.1:1", PATIENCE));
        let mut second = std::pin::pin!(control.ask("tcp 127.0.0.1:2", PATIENCE));
        for _ in 0..2 {
            tokio::select! {
                biased;
                _ = &mut first => panic!("nobody has answered"),
                _ = &mut second => panic!("nobody has answered"),
                () = tokio::task::yield_now() => {}
            }
        }
        send(&holder, format!("1 {}", Errno::ADDRINUSE.raw_os_error()).as_bytes(), &[]).unwrap();
        assert_eq!(first.await.unwrap_err().kind(), io::ErrorKind::AddrInUse);
        send(&holder, b"2 open", &[right.as_fd()]).unwrap();
        let got = std::net::TcpListener::from(second.await.unwrap());
        assert_eq!(got.local_addr().unwrap(), meant);
    }
}
