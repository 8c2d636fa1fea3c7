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
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::SocketFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::Instant;

use self::hold::{Network, READY};
use crate::net::inside;
use crate::net::passing::{LONGEST, pair, receive_until};
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

    /// Whether there is IPv6 to others in it.
    pub fn has_ipv6(&self) -> bool {
        self.ready.1.is_some()
    }

    /// Makes the app's network known to all that dial or listen; on the runtime of the data threads. What is left is the
    /// launcher that joins it, and who holds it.
    ///
    /// # Errors
    /// What the runtime says.
    pub fn enter(self, exe: &Path) -> io::Result<(Vec<OsString>, Watched)> {
        let watched = Watched::over(self.child);
        inside::enter(self.control, self.ready)?;
        let holder = format!("--holder={}", watched.0.id());
        Ok((vec![exe.into(), LAUNCH.into(), holder.into(), "--".into()], watched))
    }
}

/// A holder that ends with this.
#[derive(Debug)]
pub struct Watched(Child, Option<OwnedFd>);

impl Watched {
    fn over(child: Child) -> Self {
        // As process 1 we reap whatever ends, so that its number alone could be another's by then.
        let known = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).ok();
        Self(child, known)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Nobody is served any more, so that it has nothing left to do. Without a way to end it, it ends by itself after us.
        if let Some(known) = &self.1
            && pidfd_send_signal(known, Signal::KILL).is_ok()
        {
            // As process 1 we may have reaped it already.
            let _ = self.0.wait();
        }
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
    let (length, fds) = receive_until(control, &mut text, Instant::now() + PATIENCE)
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

/// The same of IPv6, or any that this machine has for others; without one there is no IPv6 inside either, so that nobody
/// prefers it in vain.
fn v6() -> Option<Ipv6Addr> {
    let nobody = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    match source(Ipv6Addr::UNSPECIFIED.into(), nobody.into()) {
        Some(IpAddr::V6(own)) => Some(own),
        _ => any_global(&fs::read_to_string("/proc/self/net/if_inet6").unwrap_or_default()),
    }
}

/// The first address of global scope in the kernel's list: who has no way to everywhere may still have neighbours.
fn any_global(list: &str) -> Option<Ipv6Addr> {
    // Address, interface, length, scope, flags: it could not be used, is old, or not sure yet (IFA_F_*).
    const UNFIT: u8 = 0x08 | 0x20 | 0x40;
    list.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [address, _, _, "00", flags, ..] = fields.as_slice() else { return None };
        let fit = u8::from_str_radix(flags, 16).is_ok_and(|flags| flags & UNFIT == 0);
        fit.then(|| u128::from_str_radix(address, 16).ok().map(Ipv6Addr::from))?
    })
}

fn source(any: IpAddr, to: IpAddr) -> Option<IpAddr> {
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    let own = socket.local_addr().ok()?.ip();
    (!own.is_loopback() && !own.is_unspecified()).then_some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_for_neighbours_is_one_too() {
        let list = "00000000000000000000000000000001 01 80 10 80       lo\n\
                    fe800000000000000000000000000001 02 40 20 80     eth0\n\
                    fd770000000000000000000000000009 02 40 00 60     eth0\n\
                    fd770000000000000000000000000001 02 40 00 80     eth0\n";
        assert_eq!(any_global(list), "fd77::1".parse().ok());
        assert_eq!(any_global(&list.replace(" 00 80", " 00 zz")), None);
        assert_eq!(any_global(""), None);
    }
}
