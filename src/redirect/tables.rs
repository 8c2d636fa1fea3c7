//! nf_tables by netlink: our table as one batch, and what stands in the kernel's tables.

use std::io;

use rustix::io::Errno;

use super::TABLE;
use super::attribute::{Attributes, Writer};
use super::build::PREFIX;
use super::compile::{compile, decompile};
use super::expression::Expression;
use super::netlink::{self, Netlink, flag};
use super::rules::{Base, Chain, Hook, Kind, Rule};

const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET`: both families.
const INET: u8 = 1;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFT_TABLE_F_OWNER`.
const OWNER: u32 = 2;
/// `NFNL_BATCH_GENID`.
const GENERATION: u16 = 1;

/// Tables that change while they are read are read again this often.
const READINGS: usize = 20;

/// `NFT_MSG_*`.
mod message {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const GET_TABLE: u16 = 1;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const NEW_RULE: u16 = 6;
    pub(super) const GET_RULE: u16 = 7;
    pub(super) const GET_GENERATION: u16 = 16;
}

/// A batch, with words for each of its messages.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    first: u32,
    next: u32,
    words: Vec<String>,
    table: String,
}

/// Why a batch was refused.
#[derive(Debug)]
pub struct Refused {
    /// What was refused; empty where it was the batch as a whole.
    pub what: String,
    /// The kernel's word.
    pub error: io::Error,
}

impl Batch {
    /// Begins one that holds only if nobody has changed any table since `generation`. `first` is its first number.
    pub fn begin(first: u32, generation: u32) -> Self {
        let (writer, table) = (Writer::default(), TABLE.to_owned());
        let mut batch = Self { writer, first, next: first, words: Vec::new(), table };
        batch.bracket(BATCH_BEGIN, |body| body.number(GENERATION, generation));
        batch
    }

    fn bracket(&mut self, kind: u16, attributes: impl FnOnce(&mut Writer)) {
        let sequence = self.take(String::new());
        self.writer.message(kind, flag::REQUEST, sequence, |body| {
            body.raw(&[0, 0, 0, SUBSYSTEM]);
            attributes(body);
        });
    }

    fn add(&mut self, kind: u16, flags: u16, words: String, body: impl FnOnce(&mut Writer)) {
        let sequence = self.take(words);
        self.writer.message(of_tables(kind), flag::REQUEST | flags, sequence, |message| {
            message.raw(&[INET, 0, 0, 0]);
            body(message);
        });
    }

    fn take(&mut self, words: String) -> u32 {
        self.words.push(words);
        self.next = self.next.wrapping_add(1);
        self.next.wrapping_sub(1)
    }

    /// Makes our table if there is none.
    pub fn make_table(&mut self) {
        let name = self.table.clone();
        self.add(message::NEW_TABLE, flag::CREATE, format!("table inet {name}"), |body| body.text(1, &name));
    }

    /// Makes a table with this name instead, which must not be there; the kernel takes it away, with all that is in it,
    /// when the socket is closed that the batch is sent by.
    pub fn make_owned_table(&mut self, name: &str) {
        name.clone_into(&mut self.table);
        self.add(message::NEW_TABLE, flag::CREATE | flag::EXCLUSIVE, format!("owned table inet {name}"), |body| {
            body.text(1, name);
            body.number(2, OWNER);
        });
    }

    /// Deletes our table with all that is in it; `last` asks for an answer.
    pub fn delete_table(&mut self, last: bool) {
        let flags = if last { flag::ACK } else { 0 };
        self.add(message::DELETE_TABLE, flags, format!("table inet {TABLE}"), |body| body.text(1, TABLE));
    }

    /// Adds chains with their rules; the last one asks for an answer.
    pub fn chains(&mut self, chains: &[Chain]) {
        let table = self.table.clone();
        for chain in chains {
            self.add(message::NEW_CHAIN, flag::CREATE, format!("chain {}", chain.name), |body| {
                body.text(1, &table);
                body.text(3, &chain.name);
                if let Some(base) = chain.base {
                    write_base(base, body);
                }
            });
        }
        let rules: Vec<(&str, &Rule)> =
            chains.iter().flat_map(|chain| chain.rules.iter().map(|rule| (chain.name.as_str(), rule))).collect();
        for (at, (chain, rule)) in rules.iter().enumerate() {
            let ack = if at + 1 == rules.len() { flag::ACK } else { 0 };
            let words = super::text::rule(rule);
            self.add(message::NEW_RULE, flag::CREATE | flag::APPEND | ack, words, |body| {
                write_rule((&table, chain), rule, body);
            });
        }
    }

    /// The bytes, and the number of the message that asks for an answer.
    pub(super) fn end(mut self) -> (Vec<u8>, u32, u32, Vec<String>) {
        let last = self.next.wrapping_sub(1);
        self.bracket(BATCH_END, |_| {});
        (self.writer.into_bytes(), self.first, last, self.words)
    }

    /// Has the kernel take all of it, or nothing.
    ///
    /// # Errors
    /// What it refused, and why.
    pub fn send(self, kernel: &mut Netlink) -> Result<(), Refused> {
        let (bytes, first, last, words) = self.end();
        kernel.batch(&bytes, first, last).map_err(|(at, error)| {
            let what = usize::try_from(at).ok().and_then(|at| words.get(at)).cloned().unwrap_or_default();
            Refused { what, error }
        })
    }
}

fn of_tables(kind: u16) -> u16 {
    u16::from(SUBSYSTEM) << 8 | kind
}

fn hook_number(hook: Hook) -> u32 {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Output => 3,
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Nat => "nat",
        Kind::Filter => "filter",
        Kind::Route => "route",
    }
}

fn write_base(base: Base, body: &mut Writer) {
    body.nest(4, |hook| {
        hook.number(1, hook_number(base.hook));
        hook.number(2, base.priority.cast_unsigned());
    });
    // The policy is to accept.
    body.number(5, 1);
    body.text(7, kind_name(base.kind));
}

fn write_rule((table, chain): (&str, &str), rule: &Rule, body: &mut Writer) {
    body.text(1, table);
    body.text(2, chain);
    body.nest(4, |list| compile(rule).iter().for_each(|step| step.write(list)));
    if let Ok(length @ 1..=200) = u8::try_from(rule.why.len()) {
        // The comment, as `nft` keeps it: type 0, its length, its text.
        let comment: Vec<u8> = [0, length + 1].into_iter().chain(rule.why.bytes()).chain([0]).collect();
        body.put(7, &comment);
    }
}

/// What stands in the kernel's tables.
#[derive(Debug, Default)]
pub struct Standing {
    /// The generation of all tables.
    pub generation: u32,
    /// Our table, if it is there.
    pub table: Option<Vec<Chain>>,
    /// Rules in our table that are not of our making, as `chain: what is known of it`.
    pub strange: Vec<String>,
    /// Where rules of others redirect connections, and where any of our script for iptables stand.
    pub others: Vec<Other>,
}

/// Rules that are not in our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Other {
    /// The table with its family, `ip nat`.
    pub table: String,
    /// The chain.
    pub chain: String,
}

impl Other {
    /// Whether they are of the script that we print for iptables. Its guards redirect nothing, and without the rest, which
    /// others may have flushed, they let nobody in or out.
    pub fn is_of_our_script(&self) -> bool {
        self.chain.starts_with(PREFIX) && ["ip ", "ip6 "].iter().any(|family| self.table.starts_with(family))
    }
}

impl Standing {
    /// Reads it all, as it stood at one moment.
    ///
    /// # Errors
    /// The kernel's.
    pub fn read(kernel: &mut Netlink) -> io::Result<Self> {
        for left in (0..READINGS).rev() {
            let standing = Self::read_once(kernel)?;
            // While a batch that makes a table and deletes it takes effect, the kernel lists that table for a moment.
            let empty = standing.table.as_ref().is_some_and(Vec::is_empty);
            if generation(kernel)? == standing.generation && (!empty || left == 0) {
                return Ok(standing);
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// The lists one after the other; somebody may change them in between.
    fn read_once(kernel: &mut Netlink) -> io::Result<Self> {
        let mut standing = Self { generation: generation(kernel)?, ..Self::default() };
        let head = |family: u8| move |body: &mut Writer| body.raw(&[family, 0, 0, 0]);
        kernel.list(of_tables(message::GET_TABLE), head(INET), |_, body| {
            if attributes(body).text(1) == Some(TABLE) && standing.table.is_none() {
                standing.table = Some(Vec::new());
            }
        })?;
        let mut chains: Vec<Chain> = Vec::new();
        kernel.list(of_tables(message::GET_CHAIN), head(INET), |_, body| {
            let said = attributes(body);
            if let (Some(TABLE), Some(name)) = (said.text(1), said.text(3))
                && chains.iter().all(|chain| chain.name != name)
            {
                chains.push(Chain { name: name.to_owned(), base: read_base(said), rules: Vec::new() });
            }
        })?;
        let mut seen = std::collections::HashSet::new();
        kernel.list(of_tables(message::GET_RULE), head(0), |_, body| {
            let (family, said) = (body.first().copied().unwrap_or_default(), attributes(body));
            let (Some(table), Some(chain)) = (said.text(1), said.text(2)) else { return };
            // A list that changed while it was read comes again.
            if !seen.insert((family, table.to_owned(), said.get(3).map(<[u8]>::to_vec))) {
                return;
            }
            match (family, table) {
                (INET, TABLE) => match read_rule(said) {
                    Some(rule) => {
                        chains.iter_mut().filter(|own| own.name == chain).for_each(|own| own.rules.push(rule.clone()))
                    }
                    None => standing.strange.push(chain.to_owned()),
                },
                _ => {
                    let other = Other { table: format!("{} {table}", family_name(family)), chain: chain.to_owned() };
                    if (redirects(said) || other.is_of_our_script()) && !standing.others.contains(&other) {
                        standing.others.push(other);
                    }
                }
            }
        })?;
        if standing.table.is_some() {
            standing.table = Some(chains);
        }
        Ok(standing)
    }

    /// A chain in the table of our name that is not ours, if there is one: then the table is somebody else's. An empty
    /// table is nobody's of ours either, because ours comes and goes whole.
    pub fn stranger(&self) -> Option<String> {
        let chains = self.table.as_ref()?;
        let strange = chains.iter().find(|chain| !chain.name.starts_with(PREFIX));
        match strange {
            Some(chain) => Some(format!("it has a chain `{}`", chain.name)),
            None => chains.is_empty().then(|| "it is empty".to_owned()),
        }
    }
}

fn generation(kernel: &mut Netlink) -> io::Result<u32> {
    let mut generation = 0;
    let ask = |body: &mut Writer| body.raw(&[0; 4]);
    kernel.one(of_tables(message::GET_GENERATION), ask, |body| {
        generation = attributes(body).number(1).unwrap_or_default();
    })?;
    Ok(generation)
}

/// What follows nf_tables' own head.
fn attributes(body: &[u8]) -> Attributes<'_> {
    Attributes(body.get(4..).unwrap_or_default())
}

fn read_base(chain: Attributes<'_>) -> Option<Base> {
    let hook = chain.inside(4)?;
    let number = hook.number(1)?;
    Some(Base {
        kind: [Kind::Nat, Kind::Filter, Kind::Route]
            .into_iter()
            .find(|kind| chain.text(7) == Some(kind_name(*kind)))?,
        hook: [Hook::Prerouting, Hook::Input, Hook::Output].into_iter().find(|hook| hook_number(*hook) == number)?,
        priority: hook.number(2)?.cast_signed(),
    })
}

fn read_rule(said: Attributes<'_>) -> Option<Rule> {
    let steps = said.inside(4)?.all().map(|(_, element)| Expression::read(Attributes(element)));
    let why = said.get(7).and_then(|data| match data {
        [0, _, text @ .., 0] => std::str::from_utf8(text).ok(),
        _ => None,
    });
    decompile(&steps.collect::<Option<Vec<_>>>()?, why.unwrap_or_default())
}

/// Whether a rule sends connections to a port of this machine, as nftables or iptables say it.
fn redirects(said: Attributes<'_>) -> bool {
    let elements = said.inside(4).into_iter().flat_map(Attributes::all);
    elements.map(|(_, element)| Attributes(element)).any(|element| match element.text(1) {
        Some("redir" | "tproxy") => true,
        Some("target") => {
            matches!(element.inside(2).and_then(|target| target.text(1)), Some("REDIRECT" | "TPROXY"))
        }
        _ => false,
    })
}

fn family_name(family: u8) -> &'static str {
    match family {
        INET => "inet",
        2 => "ip",
        10 => "ip6",
        5 => "netdev",
        7 => "bridge",
        _ => "other",
    }
}

/// Opens the way to nf_tables.
///
/// # Errors
/// The kernel has none.
pub fn open() -> io::Result<Netlink> {
    Netlink::open(netlink::NETFILTER)
}
