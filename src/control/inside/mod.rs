//! An app behind the rules, and not the machine: in a network of its own, or told of the outbound door.
//!
//! ```text
//! this process ── starts ── the holder: makes the network, hands out listeners and sockets of it, stays
//!      │                       ▲ its end follows from ours: the Unix socket between both is closed
//!      └── starts ── the launcher: joins that network and becomes the app
//! ```

pub mod group;
pub mod hold;
pub mod launch;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::SocketFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use self::hold::{Network, READY};
use crate::net::inside;
use crate::net::passing::{LONGEST, pair, receive};
use crate::plan::redirect::DoorPorts;

/// The hidden command of this program that holds the app's network.
pub const HOLD: &str = "hold-network";
/// The one that becomes the app.
pub const LAUNCH: &str = "launch-app";

/// Making a network takes milliseconds; this is for a machine that is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

/// The address of a machine that has none (RFC 7600).
const NO_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// The process that holds the app's network, and the ways to it.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    control: OwnedFd,
    ready: (OwnedFd, Option<OwnedFd>),
}

impl Holder {
    /// Starts it and waits until the network is there.
    ///
    /// # Errors
    /// A line that says why there is none; then nothing of it is left.
    pub fn start(exe: &Path, door: DoorPorts) -> Result<Self, String> {
        let cannot = |error: io::Error| format!("the process that is to hold its network cannot be started: {error}");
        let (control, theirs) = pair(SocketFlags::empty()).map_err(cannot)?;
        set_socket_timeout(&control, Timeout::Recv, Some(PATIENCE)).map_err(|error| cannot(error.into()))?;
        let mut command = Command::new(exe);
        command.arg(HOLD).args(arguments(&Network { door_v4: door.v4, door_v6: door.v6, v4: v4(), v6: v6() }));
        // A group of its own: what a terminal's key ends is the app, and us after it.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(cannot)?;
        // Our copy of its end: while it is open, the holder's end would not show.
        drop(command);
        match first_word(&control) {
            Ok(ready) => Ok(Self { child, control, ready }),
            Err(why) => {
                // It ends by itself in most cases.
                let _ = child.kill();
                let _ = child.wait();
                Err(why)
            }
        }
    }

    /// Makes the app's network known to all that dial or listen; on the runtime of the data threads. What is left is the
    /// launcher that joins it.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn enter(self, exe: &Path) -> io::Result<Vec<OsString>> {
        inside::enter(self.control, self.ready)?;
        Ok(vec![exe.into(), LAUNCH.into(), format!("--holder={}", self.child.id()).into(), "--".into()])
    }
}

/// The launcher that puts the app into a control group.
pub fn into_group(exe: &Path, folder: &Path) -> Vec<OsString> {
    vec![exe.into(), LAUNCH.into(), "--group".into(), folder.into(), "--".into()]
}

fn arguments(network: &Network) -> Vec<String> {
    let Network { door_v4, door_v6, v4, v6 } = network;
    let mut words = vec![format!("--door-v4={door_v4}"), format!("--door-v6={door_v6}"), format!("--v4={v4}")];
    words.extend(v6.map(|v6| format!("--v6={v6}")));
    words
}

/// What the holder says first: the ends from which sockets come, or why there is no network.
fn first_word(control: &OwnedFd) -> Result<(OwnedFd, Option<OwnedFd>), String> {
    let mut text = [0; LONGEST];
    let (length, fds) = receive(control, &mut text)
        .map_err(|error| format!("the process that is to hold its network does not answer: {error}"))?;
    let mut fds = fds.into_iter();
    match (text.get(..length), fds.next()) {
        (Some(said), Some(v4)) if said == READY.as_bytes() => Ok((v4, fds.next())),
        (said, _) => Err(String::from_utf8_lossy(said.unwrap_or_default()).into_owned()),
    }
}

/// The address from which this machine calls others, so that the app knows itself by it. Nothing is sent to find it.
fn v4() -> Ipv4Addr {
    match source(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into()) {
        Some(IpAddr::V4(own)) => own,
        _ => NO_ADDRESS,
    }
}

/// The same of IPv6; without a way for it outside there is none inside either, so that nobody prefers it in vain.
fn v6() -> Option<Ipv6Addr> {
    let nobody = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    match source(Ipv6Addr::UNSPECIFIED.into(), nobody.into()) {
        Some(IpAddr::V6(own)) => Some(own),
        _ => None,
    }
}

fn source(any: IpAddr, to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}
