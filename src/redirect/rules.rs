//! Rules as data: what they look at and what they do; text, messages for the kernel and iptables are made from it.

use std::ops::RangeInclusive;

use ipnet::IpNet;

/// Everything that is set in a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// The chains of our table, those that others lead to first.
    pub chains: Vec<Chain>,
    /// What has packets with a mark delivered on this machine, with `mode: tproxy`.
    pub routing: Option<Routing>,
}

/// A rule and a route of policy routing for each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routing {
    /// The mark of packets, the number of the table and the rule's preference.
    pub mark: u32,
    /// Whether there is IPv6.
    pub v6: bool,
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None` where only other chains lead to it.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// Where packets enter a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Base {
    /// What the chain may do.
    pub kind: Kind,
    /// Which packets pass it.
    pub hook: Hook,
    /// Its place among other chains at this hook.
    pub priority: i32,
}

/// What a chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Change addresses; sees the first packet of a connection only.
    Nat,
    /// Look at each packet.
    Filter,
    /// Look at each packet, and have it routed again when its mark changes.
    Route,
}

/// Which packets pass a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Those that came through an interface.
    Prerouting,
    /// Those of them that are for this machine, when that is decided.
    Input,
    /// Those that were sent on this machine.
    Output,
}

/// A rule: where all of it matches, its actions are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What must hold.
    pub matches: Vec<Match>,
    /// What is then done.
    pub actions: Vec<Action>,
    /// What it is for.
    pub why: String,
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of a network.
    pub fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }
}

/// Something that holds of a packet, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// It is of this family.
    Family(Family),
    /// It is TCP.
    Tcp,
    /// It is UDP.
    Udp,
    /// It opens a TCP connection. Without it, connections from before the rules would be torn.
    Opening,
    /// It is of a TCP connection that is already there.
    Opened,
    /// The port that is called; after [`Match::Tcp`] or [`Match::Udp`].
    Port(RangeInclusive<u16>),
    /// The address that is called.
    Destination(IpNet),
    /// The address that calls.
    Source(IpNet),
    /// The address that is called is this machine's.
    ToHere,
    /// The user that sends it.
    User(u32),
    /// The group that sends it.
    Group(u32),
    /// The control group (version 2) whose socket sends it, or one below.
    ControlGroup {
        /// How far below the root.
        level: u32,
        /// The number of its folder, by which the kernel knows it.
        id: u64,
        /// Its path from the root, without a slash before it.
        path: String,
    },
    /// The interface that it came through; `*` at the end stands for any rest.
    In(String),
    /// The interface that it leaves through.
    Out(String),
    /// The differentiated services field, which tells the sidecar's calls to its own app from its other calls.
    Dscp(Family, u8),
    /// Its connection's socket takes connections for foreign addresses.
    Transparent,
    /// Its connection goes to another address or port than its opener called.
    Translated,
    /// It goes in the direction in which its connection was opened.
    Original,
    /// It goes against the direction in which its connection was opened.
    Reply,
    /// The mark of its connection.
    ConnectionMark(u32),
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Leave it alone: the rest of the chain, and of those that led here by `Goto`, is skipped.
    Return,
    /// Go on in another chain.
    Goto(String),
    /// Send the connection to a port of this machine.
    Redirect(u16),
    /// Hand it to the listener at a port of this machine, its addresses unchanged.
    Tproxy(u16),
    /// Mark the packet.
    Mark(u32),
    /// Mark its connection.
    MarkConnection(u32),
    /// End the table's look at it.
    Accept,
    /// Let it go no further.
    Drop,
}

impl Rule {
    /// A rule with one action.
    pub fn new(matches: impl Into<Vec<Match>>, action: Action, why: impl Into<String>) -> Self {
        Self { matches: matches.into(), actions: vec![action], why: why.into() }
    }
}
