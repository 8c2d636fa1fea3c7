//! A network that is nothing but its loopback interface, where every address is this machine's: whatever is called there
//! has a way and a source, and comes to whom the rules say.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;

use super::attribute::Writer;
use super::force::cannot;
use super::netlink::{Netlink, flag};
use super::routing::{self, HOST_SCOPE, LOCAL, LOOPBACK, OUT_INTERFACE};

const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `IFF_UP`.
const UP: u32 = 1;
/// `IFA_F_NODAD`: nobody else can have the address.
const ALONE: u8 = 2;
/// `IFA_ADDRESS`, `IFA_LOCAL`, `RTA_PREFSRC`.
const ADDRESS: u16 = 1;
const OWN: u16 = 2;
const SOURCE: u16 = 7;
/// `RT_TABLE_LOCAL`, `RTPROT_STATIC`.
const TABLE: u8 = 255;
const STATIC: u8 = 4;

/// Makes this network such a one, with these addresses of its own: from them the app calls, and by them it may know itself.
///
/// # Errors
/// A line that says why, and what to do.
pub fn make(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> Result<(), String> {
    let mut kernel = routing::open().map_err(|error| cannot("open the kernel's routing", &error))?;
    up(&mut kernel).map_err(|error| cannot("bring the loopback interface up", &error))?;
    let all = std::iter::once((IPV4, v4.octets().to_vec())).chain(v6.map(|v6| (IPV6, v6.octets().to_vec())));
    for (family, own) in all {
        address(&mut kernel, family, &own)
            .map_err(|error| cannot("set an address of the loopback interface", &error))?;
        route(&mut kernel, family, &own)
            .map_err(|error| cannot("lead all addresses to the loopback interface", &error))?;
    }
    Ok(())
}

fn up(kernel: &mut Netlink) -> io::Result<()> {
    kernel.ask(SET_LINK, 0, |body| {
        body.raw(&[0; 4]);
        [LOOPBACK, UP, UP].iter().for_each(|number| body.raw(&number.to_ne_bytes()));
    })
}

fn address(kernel: &mut Netlink, family: u8, own: &[u8]) -> io::Result<()> {
    let length = u8::try_from(own.len() * 8).unwrap_or_default();
    let flags = if family == IPV6 { ALONE } else { 0 };
    let body = |body: &mut Writer| {
        body.raw(&[family, length, flags, 0]);
        body.raw(&LOOPBACK.to_ne_bytes());
        body.put(OWN, own);
        body.put(ADDRESS, own);
    };
    match kernel.ask(NEW_ADDRESS, flag::CREATE | flag::EXCLUSIVE, body) {
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(()),
        other => other,
    }
}

fn route(kernel: &mut Netlink, family: u8, source: &[u8]) -> io::Result<()> {
    kernel.ask(NEW_ROUTE, flag::CREATE | flag::EXCLUSIVE, |body| {
        body.raw(&[family, 0, 0, 0, TABLE, STATIC, HOST_SCOPE, LOCAL, 0, 0, 0, 0]);
        body.put(OUT_INTERFACE, &LOOPBACK.to_ne_bytes());
        body.put(SOURCE, source);
    })
}
