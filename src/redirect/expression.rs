//! The expressions of nf_tables that our rules are made of, as the kernel's attributes and back
//! (linux/netfilter/nf_tables.h). All go through register 1.

use super::attribute::{Attributes, Writer};

const REGISTER: u32 = 1;
const REGISTER_VERDICT: u32 = 0;

/// `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const ELEMENT: u16 = 1;
const NAME: u16 = 1;
const DATA: u16 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`.
const VALUE: u16 = 1;
const VERDICT: u16 = 2;
const CODE: u16 = 1;
const CHAIN: u16 = 2;

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expression {
    /// Load something into the register.
    Load(Load),
    /// Keep these bits of it.
    And(Vec<u8>),
    /// Go on if it compares so.
    Compare(Compare, Vec<u8>),
    /// Put this into it.
    Put(Vec<u8>),
    /// Set the packet's mark, or its connection's, to it.
    SetMark(Of),
    /// Redirect to the port in it.
    Redirect,
    /// Hand to the listener at the port in it.
    Tproxy,
    /// End here.
    Verdict(Verdict),
}

/// What can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// A fact about the packet (`NFT_META_*`).
    Meta(u32),
    /// Bytes of a header: which, from where, how many.
    Header(u32, u32, u32),
    /// The type of the address that is called.
    AddressType,
    /// Whether the connection's socket is transparent.
    Transparent,
    /// The control group of the connection's socket, at this level.
    ControlGroup(u32),
    /// A fact about the connection (`NFT_CT_*`).
    Connection(u32),
}

/// How the register compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Compare {
    /// The same.
    Equal = 0,
    /// Not the same.
    Unequal = 1,
    /// At most.
    AtMost = 3,
    /// At least.
    AtLeast = 5,
}

/// What has a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The packet.
    Packet,
    /// Its connection.
    Connection,
}

/// How a rule ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `NF_ACCEPT`.
    Accept,
    /// `NF_DROP`.
    Drop,
    /// `NFT_RETURN`.
    Return,
    /// `NFT_GOTO`.
    Goto(String),
}

/// `NFT_META_MARK` and the others that we load.
pub mod meta {
    /// The packet's mark.
    pub const MARK: u32 = 3;
    /// The interface that it came through.
    pub const IN: u32 = 6;
    /// The interface that it leaves through.
    pub const OUT: u32 = 7;
    /// The user of its socket.
    pub const USER: u32 = 10;
    /// The group of its socket.
    pub const GROUP: u32 = 11;
    /// The family.
    pub const FAMILY: u32 = 15;
    /// TCP, UDP or another.
    pub const PROTOCOL: u32 = 16;
}

/// `NFT_CT_*`.
pub mod connection {
    /// 0 as it was opened, 1 against that.
    pub const DIRECTION: u32 = 1;
    /// What is known of the connection, a bit for each.
    pub const STATUS: u32 = 2;
    /// The connection's mark.
    pub const MARK: u32 = 3;
}

/// `NFT_PAYLOAD_*_HEADER`.
pub mod header {
    /// IPv4's or IPv6's.
    pub const NETWORK: u32 = 1;
    /// TCP's or UDP's.
    pub const TRANSPORT: u32 = 2;
}

const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const RETURN: u32 = -5_i32 as u32;
const GOTO: u32 = -4_i32 as u32;
/// `NFT_SOCKET_CGROUPV2`.
const CONTROL_GROUP: u32 = 3;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_DESTINATION: u32 = 2;

impl Expression {
    /// Writes it as an element of a rule's list.
    pub fn write(&self, list: &mut Writer) {
        match self {
            Self::Load(load) => load.write(list),
            Self::And(mask) => element(list, "bitwise", |body| and(body, mask)),
            Self::Compare(how, with) => element(list, "cmp", |body| compare(body, *how, with)),
            Self::Put(value) => element(list, "immediate", |body| put(body, value)),
            Self::SetMark(Of::Packet) => {
                element(list, "meta", |body| numbers(body, &[(2, meta::MARK), (3, REGISTER)]));
            }
            Self::SetMark(Of::Connection) => {
                element(list, "ct", |body| numbers(body, &[(2, connection::MARK), (4, REGISTER)]));
            }
            Self::Redirect => element(list, "redir", |body| numbers(body, &[(1, REGISTER)])),
            // Of either family, since it names no address.
            Self::Tproxy => element(list, "tproxy", |body| numbers(body, &[(1, 0), (3, REGISTER)])),
            Self::Verdict(verdict) => element(list, "immediate", |body| verdict.write(body)),
        }
    }

    /// Reads an element; `None` where it is nothing that we write.
    pub fn read(element: Attributes<'_>) -> Option<Self> {
        let body = element.inside(DATA)?;
        let value = |kind| Some(body.inside(kind)?.get(VALUE)?.to_vec());
        Some(match element.text(NAME)? {
            "bitwise" if value(5)?.iter().all(|byte| *byte == 0) => Self::And(value(4)?),
            "cmp" => Self::Compare(Compare::from(body.number(2)?)?, value(3)?),
            "immediate" if body.number(1) == Some(REGISTER_VERDICT) => Self::Verdict(Verdict::read(body)?),
            "immediate" => Self::Put(value(2)?),
            "meta" if body.get(3).is_some() => (body.number(2)? == meta::MARK).then_some(Self::SetMark(Of::Packet))?,
            "ct" if body.get(4).is_some() => {
                (body.number(2)? == connection::MARK).then_some(Self::SetMark(Of::Connection))?
            }
            "redir" => Self::Redirect,
            "tproxy" if body.get(2).is_none() => Self::Tproxy,
            name => Self::Load(Load::read(name, body)?),
        })
    }
}

impl Load {
    fn write(self, list: &mut Writer) {
        let (name, body): (&str, Vec<(u16, u32)>) = match self {
            Self::Meta(key) => ("meta", vec![(1, REGISTER), (2, key)]),
            Self::Header(which, at, length) => ("payload", vec![(1, REGISTER), (2, which), (3, at), (4, length)]),
            Self::AddressType => ("fib", vec![(1, REGISTER), (2, FIB_ADDRESS_TYPE), (3, FIB_DESTINATION)]),
            Self::Transparent => ("socket", vec![(1, 0), (2, REGISTER)]),
            Self::ControlGroup(level) => ("socket", vec![(1, CONTROL_GROUP), (2, REGISTER), (3, level)]),
            Self::Connection(key) => ("ct", vec![(1, REGISTER), (2, key)]),
        };
        element(list, name, |inner| numbers(inner, &body));
    }

    fn read(name: &str, body: Attributes<'_>) -> Option<Self> {
        match name {
            "meta" => body.number(2).map(Self::Meta),
            "payload" => Some(Self::Header(body.number(2)?, body.number(3)?, body.number(4)?)),
            "fib" => {
                let known = body.number(2)? == FIB_ADDRESS_TYPE && body.number(3)? == FIB_DESTINATION;
                known.then_some(Self::AddressType)
            }
            "socket" if body.number(1)? == CONTROL_GROUP => body.number(3).map(Self::ControlGroup),
            "socket" => (body.number(1)? == 0).then_some(Self::Transparent),
            "ct" if body.get(3).is_none() => body.number(2).map(Self::Connection),
            _ => None,
        }
    }
}

impl Compare {
    fn from(number: u32) -> Option<Self> {
        [Self::Equal, Self::Unequal, Self::AtMost, Self::AtLeast].into_iter().find(|how| *how as u32 == number)
    }
}

impl Verdict {
    fn write(&self, body: &mut Writer) {
        body.number(1, REGISTER_VERDICT);
        body.nest(2, |data| {
            data.nest(VERDICT, |verdict| match self {
                Self::Accept => verdict.number(CODE, ACCEPT),
                Self::Drop => verdict.number(CODE, DROP),
                Self::Return => verdict.number(CODE, RETURN),
                Self::Goto(chain) => {
                    verdict.number(CODE, GOTO);
                    verdict.text(CHAIN, chain);
                }
            });
        });
    }

    fn read(body: Attributes<'_>) -> Option<Self> {
        let verdict = body.inside(2)?.inside(VERDICT)?;
        match verdict.number(CODE)? {
            ACCEPT => Some(Self::Accept),
            DROP => Some(Self::Drop),
            RETURN => Some(Self::Return),
            GOTO => verdict.text(CHAIN).map(|chain| Self::Goto(chain.to_owned())),
            _ => None,
        }
    }
}

fn element(list: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    list.nest(ELEMENT, |element| {
        element.text(NAME, name);
        element.nest(DATA, body);
    });
}

fn numbers(body: &mut Writer, all: &[(u16, u32)]) {
    for (kind, number) in all {
        body.number(*kind, *number);
    }
}

fn value(body: &mut Writer, kind: u16, bytes: &[u8]) {
    body.nest(kind, |data| data.put(VALUE, bytes));
}

fn and(body: &mut Writer, mask: &[u8]) {
    numbers(body, &[(1, REGISTER), (2, REGISTER), (3, u32::try_from(mask.len()).unwrap_or_default())]);
    value(body, 4, mask);
    value(body, 5, &vec![0; mask.len()]);
}

fn compare(body: &mut Writer, how: Compare, with: &[u8]) {
    numbers(body, &[(1, REGISTER), (2, how as u32)]);
    value(body, 3, with);
}

fn put(body: &mut Writer, bytes: &[u8]) {
    body.number(1, REGISTER);
    value(body, 2, bytes);
}
