//! Whether the rules do what they are to do: a connection through them to an address where nobody can be.
//!
//! Such a connection can only succeed because it was captured. Where the sidecar does not run yet, this listens in its
//! place and looks at what arrives; where it runs, the kernel's list of connections says whether it arrived.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::plan::redirect::{Capture, Pick};

/// Addresses for documentation (RFC 5737, RFC 3849), which nobody has.
const NOBODY: (Ipv4Addr, Ipv6Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// What a connection showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Where it was to go.
    pub target: SocketAddr,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It came to this program, which listened at the door's port.
    Arrived(SocketAddr),
    /// It came to the sidecar, which listens at the door's port.
    AtSidecar(u16),
    /// It came to this program, but the kernel does not say where it was going.
    Aimless(String),
    /// Somebody answered, but not at the door's port.
    Elsewhere(u16),
    /// Nobody took it.
    Lost(u16),
    /// It was refused.
    Refused(u16),
    /// There is no way to the target at all, so nothing would leave, captured or not.
    NoRoute,
    /// Something else went wrong.
    Failed(String),
}

impl Finding {
    /// Whether it shows that connections are captured; `None` where it shows nothing.
    pub fn captured(&self) -> Option<bool> {
        match self.outcome {
            Outcome::Arrived(_) | Outcome::AtSidecar(_) => Some(true),
            Outcome::NoRoute => None,
            _ => Some(false),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.target.is_ipv4() { "IPv4" } else { "IPv6" };
        let target = self.target;
        write!(f, "{family}: a connection to {target} ")?;
        match &self.outcome {
            Outcome::Arrived(door) => write!(f, "was captured: it arrived at {door}, with where it was going"),
            Outcome::AtSidecar(port) => {
                write!(f, "was captured: it arrived at the sidecar that listens at port {port}")
            }
            Outcome::Aimless(why) => write!(
                f,
                "was captured, but the kernel does not say where it was going ({why}): another rule changed it first; `nft list ruleset` shows all"
            ),
            Outcome::Elsewhere(port) => write!(
                f,
                "was answered, but not at port {port}: it was captured by somebody else, or the network answers for anybody; `nft list ruleset` shows all rules"
            ),
            Outcome::Lost(port) => write!(
                f,
                "was not captured: nothing came to port {port}; run `outrigger redirect apply` in this network namespace, and `outrigger redirect show` to see what is in force"
            ),
            Outcome::Refused(port) => write!(
                f,
                "was refused: either it was captured and nobody listens at port {port} for {family}, or a firewall refused it; `outrigger redirect show` says what is in force"
            ),
            Outcome::NoRoute => write!(
                f,
                "has no route to begin with, so nothing would leave over {family}: not tried; `--to` names another address"
            ),
            Outcome::Failed(why) => write!(f, "could not be made: {why}"),
        }
    }
}

/// Why this process cannot tell: it is one of those that are left alone.
pub fn exempt(capture: &Capture) -> Option<String> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let listed = capture.outbound.iter().any(|way| way.except.uids.contains(&uid));
    let missing = capture.outbound.iter().any(|way| !way.only.uids.is_empty() && !way.only.uids.contains(&uid));
    let own = capture.uid == uid || capture.gid == Some(gid);
    (listed || missing || own).then(|| {
        format!("user {uid} (group {gid}) is one whose connections are left alone: run the test as the service's user")
    })
}

/// Tries both families, or the address that is named.
pub fn probe(capture: &Capture, to: Option<SocketAddr>, v6: bool, patience: Duration) -> Vec<Finding> {
    let Some(way) = &capture.outbound else { return Vec::new() };
    let targets = match to {
        Some(target) => vec![Ok(target)],
        None => {
            let families: &[bool] = if v6 { &[false, true] } else { &[false] };
            families.iter().map(|family| target(&way.only, &way.except, *family)).collect()
        }
    };
    let door = |target: SocketAddr| if target.is_ipv4() { way.door.v4 } else { way.door.v6 };
    let finding = |target| match target {
        Ok(target) => Finding { target, outcome: connect(target, door(target), patience) },
        Err((target, why)) => Finding { target, outcome: Outcome::Failed(why) },
    };
    targets.into_iter().map(finding).collect()
}

/// An address and port that the rules are to capture.
fn target(only: &Pick, except: &Pick, v6: bool) -> Result<SocketAddr, (SocketAddr, String)> {
    let of_family = |net: &&IpNet| matches!(net, IpNet::V6(_)) == v6;
    let nobody = if v6 { IpAddr::V6(NOBODY.1) } else { IpAddr::V4(NOBODY.0) };
    let fits = |ip: IpAddr| !except.networks.iter().any(|net| net.contains(&ip));
    let networks: Vec<&IpNet> = only.networks.iter().filter(of_family).collect();
    let mut offered = networks.iter().filter_map(|net| net.hosts().next());
    let ip = if only.networks.is_empty() { Some(nobody) } else { offered.next() }.filter(|ip| fits(*ip));
    let free = |port: &u16| !except.ports.iter().any(|range| range.contains(port));
    let ports: Box<dyn Iterator<Item = u16>> = match only.ports.as_slice() {
        [] => Box::new([80, 8080, 20001].into_iter().chain(1..=u16::MAX)),
        listed => Box::new(listed.iter().cloned().flatten()),
    };
    // What is also a question to a name server would go to another port.
    let port = ports.filter(|port| *port != 53).find(free);
    match (ip, port) {
        (Some(ip), Some(port)) => Ok(SocketAddr::new(ip, port)),
        _ => Err((
            SocketAddr::new(nobody, port.unwrap_or(80)),
            "`redirect.outbound` leaves no address to try by itself: name one with `--to`".into(),
        )),
    }
}

fn connect(target: SocketAddr, port: u16, patience: Duration) -> Outcome {
    let listener = match listen(target.is_ipv4(), port) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => None,
        Err(error) => {
            return Outcome::Failed(format!("nothing can listen at port {port} in the sidecar's place: {error}"));
        }
    };
    let client = match Socket::new(Domain::for_address(target), Type::STREAM, None) {
        Ok(client) => client,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    if let Err(error) = client.connect_timeout(&target.into(), patience) {
        return failure(&error, port);
    }
    let own = client.local_addr().ok().and_then(|addr| addr.as_socket());
    let Some(own) = own else { return Outcome::Failed("its own address is not known".into()) };
    match listener {
        Some(listener) => arrived(&listener, own, target, port, patience),
        None if is_listed(own.port(), port) => Outcome::AtSidecar(port),
        None => Outcome::Elsewhere(port),
    }
}

fn failure(error: &io::Error, port: u16) -> Outcome {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    match (error.kind(), errno) {
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, _) => Outcome::Lost(port),
        (ErrorKind::ConnectionRefused, _) => Outcome::Refused(port),
        (_, Some(Errno::NETUNREACH | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT)) => Outcome::NoRoute,
        // A router's word: it went out to the network.
        (_, Some(Errno::HOSTUNREACH)) => Outcome::Lost(port),
        _ => Outcome::Failed(error.to_string()),
    }
}

fn listen(v4: bool, port: u16) -> io::Result<Socket> {
    let ip = if v4 { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
    let addr = SocketAddr::new(ip, port);
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(16)?;
    Ok(socket)
}

/// Looks at what came to the listener until it is our own connection.
fn arrived(listener: &Socket, own: SocketAddr, target: SocketAddr, port: u16, patience: Duration) -> Outcome {
    if let Err(error) = listener.set_read_timeout(Some(patience)) {
        return Outcome::Failed(error.to_string());
    }
    // Others may call at the same time.
    for _ in 0..64 {
        let Ok((came, from)) = listener.accept() else { return Outcome::Elsewhere(port) };
        if from.as_socket().map(|from| from.port()) != Some(own.port()) {
            continue;
        }
        let said = if target.is_ipv4() { came.original_dst_v4() } else { came.original_dst_v6() };
        let door = came.local_addr().ok().and_then(|addr| addr.as_socket()).unwrap_or(target);
        return match said {
            Ok(addr) if addr.as_socket() == Some(target) => Outcome::Arrived(door),
            Ok(addr) => Outcome::Aimless(addr.as_socket().map_or_else(String::new, |addr| format!("it says {addr}"))),
            Err(error) => Outcome::Aimless(error.to_string()),
        };
    }
    Outcome::Elsewhere(port)
}

/// Whether the kernel lists a connection from this port to a door's port on this machine.
fn is_listed(from: u16, door: u16) -> bool {
    let text = |name| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
    let (door, from) = (format!(":{door:04X}"), format!(":{from:04X}"));
    let fits = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        words.next().is_some_and(|own| own.ends_with(&door)) && words.next().is_some_and(|other| other.ends_with(&from))
    };
    ["tcp", "tcp6"].into_iter().any(|name| text(name).lines().any(fits))
}
