//! The process that makes a network for the app and holds it: sets it up, hands sockets of it out, and ends when nobody
//! is left to hand them to, however that one ended.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use ipnet::IpNet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::thread::UnshareFlags;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::signal::unix::{SignalKind, signal};

use crate::ids::Addr;
use crate::net::accept::{Bound, bind};
use crate::net::inside::Kind;
use crate::net::passing::{LONGEST, pair, receive, send};
use crate::plan::redirect::DoorPorts;
use crate::redirect::{anyip, build, force};

/// The first word of what the holder says first.
pub const READY: &str = "ready";
/// The kernel counts about this much for each socket that waits to be taken, and lets a quarter of the buffer be used.
const STOCK: usize = 16 * 4 * 768;
/// How long no sockets are made after the system refused one.
const REST: Duration = Duration::from_millis(50);

/// Below this a port needs a privilege; a new network has the kernel's default.
const PRIVILEGED: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Whether pings are left unanswered. Every address is the app's own in there, so it would answer for everybody.
const ECHO: [&str; 2] = ["/proc/sys/net/ipv4/icmp_echo_ignore_all", "/proc/sys/net/ipv6/icmp/echo_ignore_all"];

/// What the app's network is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Network {
    /// The outbound door's port over IPv4.
    #[arg(long)]
    pub door_v4: u16,
    /// The outbound door's port over IPv6.
    #[arg(long)]
    pub door_v6: u16,
    /// Its address.
    #[arg(long)]
    pub v4: Ipv4Addr,
    /// Its address of IPv6; without one there is no IPv6 but loopback.
    #[arg(long)]
    pub v6: Option<Ipv6Addr>,
}

/// Makes the network and holds it until the other end of `control` is closed.
pub fn hold(network: &Network, control: impl AsFd) -> ExitCode {
    let made = make(network).and_then(|()| {
        let fault = |error: io::Error| format!("cannot hand sockets of the app's network out: {error}");
        deaf().map_err(fault)?;
        Ok((stock().map_err(fault)?, network.v6.map(|_| stock()).transpose().map_err(fault)?))
    });
    match made {
        Ok((v4, v6)) => {
            let theirs: Vec<BorrowedFd<'_>> =
                std::iter::once(&v4).chain(&v6).map(|(_, theirs)| theirs.as_fd()).collect();
            if let Err(error) = send(&control, READY.as_bytes(), &theirs) {
                return refuse(control, &format!("cannot hand sockets of the app's network out: {error}"));
            }
            drop(theirs);
            // Only with their ends closed here does it show when the other side is gone.
            serve(control.as_fd(), v4.0, v6.map(|(ours, _)| ours));
            ExitCode::SUCCESS
        }
        Err(why) => refuse(control, &why),
    }
}

/// Says why there is no network.
fn refuse(control: impl AsFd, why: &str) -> ExitCode {
    // Nobody may be there to hear it.
    let _ = send(control, why.as_bytes().get(..LONGEST).unwrap_or(why.as_bytes()), &[]);
    ExitCode::FAILURE
}

/// Takes the signals that a terminal or a service manager sends to all of a service's processes, for good: what ends this
/// one would take the network away from an app that is still served.
fn deaf() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    // The handlers outlive what they tell.
    kinds.into_iter().try_for_each(|kind| signal(kind).map(drop))
}

/// A way for sockets of one family that are ready to be taken: the end to fill it by, and the end to take them from.
fn stock() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = pair(SocketFlags::NONBLOCK)?;
    set_socket_send_buffer_size(&ours, STOCK / 2)?;
    Ok((ours, theirs))
}

fn make(network: &Network) -> Result<(), String> {
    let free = fs::read(PRIVILEGED);
    leave()?;
    if let Ok(free) = free {
        // As outside; where that cannot be set, the kernel's default is in force.
        let _ = fs::write(PRIVILEGED, free);
    }
    anyip::make(network.v4, network.v6)?;
    let door = DoorPorts { v4: network.door_v4, v6: network.door_v6 };
    for file in ECHO {
        // As above: then the app's pings are answered, by itself.
        let _ = fs::write(file, "1");
    }
    let own: Vec<IpNet> =
        std::iter::once(IpAddr::from(network.v4)).chain(network.v6.map(IpAddr::from)).map(IpNet::from).collect();
    force::apply(&build::inside(door, force::has_ipv6(), &own), false)
}

/// Leaves the machine's network for a new one, as the user that this process has.
fn leave() -> Result<(), String> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    // Deprecated because sharing descriptors could end between threads: there is one thread, and they stay shared.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET).map_err(refused)?;
    let set = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| {
            format!("a user namespace of its own is refused: /proc/self/{file}: {error}{}", readable(&error))
        })
    };
    set("setgroups", "deny".into())?;
    set("uid_map", format!("{uid} {uid} 1"))?;
    set("gid_map", format!("{gid} {gid} 1"))
}

/// What may help where a process may not write what it is.
fn readable(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            ": its user must be able to read the program (`chmod a+r`), not only to run it"
        }
        _ => "",
    }
}

/// Why there is no new namespace, and what to do.
fn refused(error: Errno) -> String {
    let advice = match error {
        Errno::NOSPC | Errno::USERS => {
            "there may be no more of them (`sysctl user.max_user_namespaces user.max_net_namespaces`)"
        }
        Errno::PERM | Errno::ACCESS => {
            "this system or container does not let ordinary users have them (`sysctl kernel.unprivileged_userns_clone \
             kernel.apparmor_restrict_unprivileged_userns`, or the container's seccomp profile)"
        }
        Errno::INVAL | Errno::NOSYS => "this kernel was built without them",
        _ => "try again",
    };
    format!("a user namespace of its own is refused: {}: {advice}", io::Error::from(error))
}

/// Answers requests and keeps sockets ready, until the other side is gone.
fn serve(control: BorrowedFd<'_>, v4: OwnedFd, v6: Option<OwnedFd>) {
    let stocks: Vec<(Domain, OwnedFd)> =
        std::iter::once((Domain::IPV4, v4)).chain(v6.map(|v6| (Domain::IPV6, v6))).collect();
    let gone = PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL;
    let (mut rest, mut trouble) = (false, Trouble::default());
    loop {
        let wanted = if rest { PollFlags::empty() } else { PollFlags::OUT };
        let mut ends = vec![PollFd::from_borrowed_fd(control, PollFlags::IN)];
        ends.extend(stocks.iter().map(|(_, stock)| PollFd::new(stock, wanted)));
        let clock = rest.then(|| Timespec { tv_sec: 0, tv_nsec: REST.subsec_nanos().into() });
        match poll(&mut ends, clock.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let said: Vec<PollFlags> = ends.iter().map(PollFd::revents).collect();
        if said.iter().any(|flags| flags.intersects(gone)) {
            return;
        }
        rest = false;
        for ((domain, stock), flags) in stocks.iter().zip(said.iter().skip(1)) {
            if !flags.contains(PollFlags::OUT) {
                continue;
            }
            let put = put(*domain, stock);
            rest |= put.is_err();
            trouble.look(&put);
        }
        if said.first().is_some_and(|flags| flags.contains(PollFlags::IN)) && answer(control).is_err() {
            return;
        }
    }
}

/// Whether sockets are refused, told when that begins and when it ends: while it lasts, calls to the app wait.
#[derive(Default)]
struct Trouble(bool);

impl Trouble {
    fn look(&mut self, put: &io::Result<()>) {
        match put {
            Err(error) if !self.0 => eprintln!("outrigger: no socket for calls to the app: {error}; trying again"),
            Ok(()) if self.0 => eprintln!("outrigger: there are sockets for calls to the app again"),
            _ => {}
        }
        self.0 = put.is_err();
    }
}

/// Adds one socket to those that are ready.
fn put(domain: Domain, stock: &OwnedFd) -> io::Result<()> {
    let socket = Socket::new(domain, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    send(stock, b"s", &[socket.as_fd()])
}

/// Answers one request: its number, and a socket or the error's number.
fn answer(control: BorrowedFd<'_>) -> io::Result<()> {
    let mut text = [0; LONGEST];
    let (length, _) = receive(control, &mut text)?;
    let asked = std::str::from_utf8(text.get(..length).unwrap_or_default()).unwrap_or_default();
    let (number, what) = asked.split_once(' ').unwrap_or((asked, ""));
    let handed = open(what).and_then(|fd| send(control, format!("{number} open").as_bytes(), &[fd.as_fd()]));
    match handed {
        Ok(()) => Ok(()),
        // Also where it is ready and the system will not hand it over; that nobody is there shows anew.
        Err(error) => {
            let error = error.raw_os_error().unwrap_or(Errno::INVAL.raw_os_error());
            send(control, format!("{number} {error}").as_bytes(), &[])
        }
    }
}

fn open(asked: &str) -> io::Result<OwnedFd> {
    let malformed = || io::Error::from(io::ErrorKind::InvalidInput);
    let (kind, addr) = asked.split_once(' ').ok_or_else(malformed)?;
    let addr: SocketAddr = addr.parse().map_err(|_| malformed())?;
    if kind == Kind::Udp.word() {
        let socket = std::net::UdpSocket::bind(addr)?;
        socket.set_nonblocking(true)?;
        return Ok(socket.into());
    }
    match bind(&Addr::Tcp(addr), false)? {
        Bound::Tcp(listener) if kind == Kind::Tcp.word() => Ok(listener.into()),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves in a thread, without a network of its own.
    fn served(v6: bool) -> (OwnedFd, OwnedFd, Option<OwnedFd>, std::thread::JoinHandle<()>) {
        let (control, theirs) = pair(SocketFlags::empty()).unwrap();
        let (v4, end) = stock().unwrap();
        let (sixth, end6) = v6.then(|| stock().unwrap()).unzip();
        let thread = std::thread::spawn(move || serve(theirs.as_fd(), v4, sixth));
        (control, end, end6, thread)
    }

    fn take(end: &OwnedFd) -> Socket {
        let mut ready = [PollFd::new(end, PollFlags::IN)];
        poll(&mut ready, None).unwrap();
        Socket::from(receive(end, &mut [0; 1]).unwrap().1.pop().unwrap())
    }

    #[test]
    fn sockets_are_ready_and_taken_ones_replaced() {
        let (control, end, end6, thread) = served(true);
        for _ in 0..100 {
            assert_eq!(take(&end).domain().unwrap(), Domain::IPV4);
        }
        assert_eq!(take(&end6.unwrap()).domain().unwrap(), Domain::IPV6);
        drop((control, end));
        thread.join().unwrap();
    }

    #[test]
    fn how_many_wait_is_bounded() {
        let (ours, theirs) = stock().unwrap();
        let writable = || {
            let mut ready = [PollFd::new(&ours, PollFlags::OUT)];
            poll(&mut ready, Some(&Timespec::default())).unwrap();
            ready[0].revents().contains(PollFlags::OUT)
        };
        let mut put_in = 0;
        while writable() {
            put(Domain::IPV4, &ours).unwrap();
            put_in += 1;
        }
        assert!((4..=64).contains(&put_in), "{put_in}");
        drop(theirs);
    }

    #[test]
    fn requests_are_answered_by_a_socket_or_the_systems_word() {
        let (control, end, _, thread) = served(false);
        let ask = |text: &str| {
            let mut said = [0; LONGEST];
            send(&control, text.as_bytes(), &[]).unwrap();
            let (length, fds) = receive(&control, &mut said).unwrap();
            (String::from_utf8_lossy(&said[..length]).into_owned(), fds)
        };
        let listener = std::net::TcpListener::from(ask("1 tcp 127.0.0.1:0").1.pop().unwrap());
        let taken = listener.local_addr().unwrap();
        std::net::TcpStream::connect(taken).unwrap();
        assert_eq!(ask(&format!("2 tcp {taken}")).0, format!("2 {}", Errno::ADDRINUSE.raw_os_error()));
        assert_eq!(ask("3 udp 127.0.0.1:0").1.len(), 1);
        // An empty message reads as an end, so it is not sent.
        for text in ["4", "4 ", "4 tcp", "4 tcp x", "4 sctp 127.0.0.1:0"] {
            assert_eq!(ask(text).0, format!("4 {}", Errno::INVAL.raw_os_error()), "{text}");
        }
        drop((control, end));
        thread.join().unwrap();
    }
}
