//! Policy routing by rtnetlink: the rule and the route that have marked packets delivered on this machine.
//!
//! Both carry our protocol number, so that they are known as ours whatever mark and table they have.

use std::io;

use rustix::io::Errno;

use super::PROTOCOL;
use super::attribute::{Attributes, Writer, u32_at};
use super::netlink::{self, Netlink, flag};
use super::rules::{Family, Routing};

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// `RTA_OIF`, `RTA_TABLE`; `FRA_PRIORITY`, `FRA_FWMARK`, `FRA_TABLE`, `FRA_PROTOCOL`.
pub(super) const OUT_INTERFACE: u16 = 4;
const ROUTE_TABLE: u16 = 15;
const PREFERENCE: u16 = 6;
const MARK: u16 = 10;
const RULE_TABLE: u16 = 15;
const RULE_PROTOCOL: u16 = 21;

/// The loopback interface has this number in every network namespace.
pub(super) const LOOPBACK: u32 = 1;
pub(super) const HOST_SCOPE: u8 = 254;
pub(super) const LOCAL: u8 = 2;
const TO_TABLE: u8 = 1;

/// Something that policy routing goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Of which family.
    pub family: Family,
    /// What it is.
    pub what: What,
    /// Whether it carries our protocol number.
    pub ours: bool,
}

/// A rule or a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Packets with a mark go by a table.
    Rule {
        /// Its place among rules.
        preference: u32,
        /// The mark.
        mark: u32,
        /// The table.
        table: u32,
    },
    /// In this table, all is local.
    Route {
        /// The table.
        table: u32,
    },
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ip = if self.family == Family::V4 { "ip" } else { "ip -6" };
        match self.what {
            What::Rule { preference, mark, table } => {
                write!(f, "{ip} rule pref {preference} fwmark {mark:#x} lookup {table}")
            }
            What::Route { table } => write!(f, "{ip} route in table {table}"),
        }
    }
}

/// What has to be there, each route before the rule that leads to it.
pub fn wanted(routing: Option<Routing>) -> Vec<Entry> {
    let Some(Routing { mark, v6 }) = routing else { return Vec::new() };
    let families: &[Family] = if v6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    let of = |family: &Family| {
        let whats = [What::Route { table: mark }, What::Rule { preference: mark, mark, table: mark }];
        whats.map(|what| Entry { family: *family, what, ours: true })
    };
    families.iter().flat_map(of).collect()
}

/// Opens the way to routing.
///
/// # Errors
/// The kernel's.
pub fn open() -> io::Result<Netlink> {
    Netlink::open(netlink::ROUTE)
}

/// All rules with a mark and all our routes, and those of others in `table`.
///
/// # Errors
/// The kernel's.
pub fn read(kernel: &mut Netlink, table: Option<u32>) -> io::Result<Vec<Entry>> {
    let mut found: Vec<Entry> = Vec::new();
    for family in [Family::V4, Family::V6] {
        let mut note = |entry: Option<Entry>| {
            if let Some(entry) = entry.filter(|entry| !found.contains(entry)) {
                found.push(entry);
            }
        };
        let head = |body: &mut Writer| body.raw(&[number(family), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        kernel.list(GET_RULE, head, |_, body| note(read_rule(family, body)))?;
        let routes = |_, body: &[u8]| {
            note(read_route(family, body).filter(|entry| {
                entry.ours || matches!((entry.what, table), (What::Route { table: at }, Some(own)) if at == own)
            }));
        };
        match kernel.list(GET_ROUTE, head, routes) {
            // A kernel without IPv6 has no routes of it.
            Err(error) if family == Family::V6 && without(&error) => {}
            other => other?,
        }
    }
    Ok(found)
}

fn without(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::AFNOSUPPORT].into_iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn read_rule(family: Family, body: &[u8]) -> Option<Entry> {
    // A kernel without rules of IPv6 answers with those of all families that it has.
    if body.first() != Some(&number(family)) {
        return None;
    }
    let said = Attributes(body.get(12..)?);
    let native = |kind| said.get(kind).and_then(|value| u32_at(value, 0));
    let ours = said.get(RULE_PROTOCOL) == Some(&[PROTOCOL]);
    let table = native(RULE_TABLE).or_else(|| body.get(4).copied().map(u32::from))?;
    let what = What::Rule {
        preference: native(PREFERENCE).unwrap_or_default(),
        mark: native(MARK).unwrap_or_default(),
        table,
    };
    Some(Entry { family, what, ours })
}

fn read_route(family: Family, body: &[u8]) -> Option<Entry> {
    if body.first() != Some(&number(family)) {
        return None;
    }
    let said = Attributes(body.get(12..)?);
    let wide = said.get(ROUTE_TABLE).and_then(|value| u32_at(value, 0));
    let table = wide.or_else(|| body.get(4).copied().map(u32::from))?;
    Some(Entry { family, what: What::Route { table }, ours: body.get(5) == Some(&PROTOCOL) })
}

/// Makes it; it may be there already.
///
/// # Errors
/// The kernel's.
pub fn add(kernel: &mut Netlink, entry: Entry) -> io::Result<()> {
    let kind = if matches!(entry.what, What::Rule { .. }) { NEW_RULE } else { NEW_ROUTE };
    match kernel.ask(kind, flag::CREATE | flag::EXCLUSIVE, |body| write(entry, body)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Takes it away; it may be gone already.
///
/// # Errors
/// The kernel's.
pub fn delete(kernel: &mut Netlink, entry: Entry) -> io::Result<()> {
    let kind = if matches!(entry.what, What::Rule { .. }) { DELETE_RULE } else { DELETE_ROUTE };
    match kernel.ask(kind, 0, |body| write(entry, body)) {
        Err(error)
            if [Errno::NOENT, Errno::SRCH].iter().any(|gone| error.raw_os_error() == Some(gone.raw_os_error())) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn write(entry: Entry, body: &mut Writer) {
    let family = number(entry.family);
    match entry.what {
        What::Rule { preference, mark, table } => {
            body.raw(&[family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0]);
            body.put(PREFERENCE, &preference.to_ne_bytes());
            body.put(MARK, &mark.to_ne_bytes());
            body.put(RULE_TABLE, &table.to_ne_bytes());
            body.put(RULE_PROTOCOL, &[PROTOCOL]);
        }
        What::Route { table } => {
            body.raw(&[family, 0, 0, 0, 0, PROTOCOL, HOST_SCOPE, LOCAL, 0, 0, 0, 0]);
            body.put(ROUTE_TABLE, &table.to_ne_bytes());
            body.put(OUT_INTERFACE, &LOOPBACK.to_ne_bytes());
        }
    }
}
