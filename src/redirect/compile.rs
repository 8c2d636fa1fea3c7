//! Rules into expressions, in the very form in which `nft` makes them (so that it shows them as they are meant), and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::expression::{Compare, Expression, Load, Of, Verdict, connection, header, meta};
use super::rules::{Action, Family, Match, Rule};

const TCP: u8 = 6;
const UDP: u8 = 17;
/// FIN, SYN, RST and ACK of TCP's flags, and SYN alone.
const FLAGS: u8 = 0x17;
const SYN: u8 = 0x02;
/// `IPS_DST_NAT`.
const TRANSLATED: u32 = 1 << 5;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// The kernel's longest name of an interface, with a zero byte.
const NAME: usize = 16;

const PORT: Load = Load::Header(header::TRANSPORT, 2, 2);
const TCP_FLAGS: Load = Load::Header(header::TRANSPORT, 13, 1);

/// A rule as the kernel is told.
pub fn compile(rule: &Rule) -> Vec<Expression> {
    let mut steps = Vec::new();
    rule.matches.iter().for_each(|found| looks_at(found, &mut steps));
    rule.actions.iter().for_each(|action| does(action, &mut steps));
    steps
}

fn looks_at(found: &Match, steps: &mut Vec<Expression>) {
    let mut is = |load, bytes: &[u8]| {
        steps.extend([Expression::Load(load), Expression::Compare(Compare::Equal, bytes.to_vec())]);
    };
    match found {
        Match::Family(family) => is(Load::Meta(meta::FAMILY), &[number(*family)]),
        Match::Tcp => is(Load::Meta(meta::PROTOCOL), &[TCP]),
        Match::Udp => is(Load::Meta(meta::PROTOCOL), &[UDP]),
        Match::ToHere => is(Load::AddressType, &LOCAL.to_ne_bytes()),
        Match::User(uid) => is(Load::Meta(meta::USER), &uid.to_ne_bytes()),
        Match::Group(gid) => is(Load::Meta(meta::GROUP), &gid.to_ne_bytes()),
        Match::ControlGroup { level, id, .. } => is(Load::ControlGroup(*level), &id.to_ne_bytes()),
        Match::In(name) => is(Load::Meta(meta::IN), &interface(name)),
        Match::Out(name) => is(Load::Meta(meta::OUT), &interface(name)),
        Match::Transparent => is(Load::Transparent, &[1]),
        Match::Translated => steps.extend([
            Expression::Load(Load::Connection(connection::STATUS)),
            Expression::And(TRANSLATED.to_ne_bytes().to_vec()),
            Expression::Compare(Compare::Unequal, vec![0; 4]),
        ]),
        Match::Original => is(Load::Connection(connection::DIRECTION), &[0]),
        Match::Reply => is(Load::Connection(connection::DIRECTION), &[1]),
        Match::ConnectionMark(mark) => is(Load::Connection(connection::MARK), &mark.to_ne_bytes()),
        Match::Port(range) if range.start() == range.end() => is(PORT, &range.start().to_be_bytes()),
        Match::Port(range) => steps.extend([
            Expression::Load(PORT),
            Expression::Compare(Compare::AtLeast, range.start().to_be_bytes().to_vec()),
            Expression::Compare(Compare::AtMost, range.end().to_be_bytes().to_vec()),
        ]),
        Match::Opening => steps.extend(flags(Compare::Equal)),
        Match::Opened => steps.extend(flags(Compare::Unequal)),
        Match::Destination(net) => network(net, true, steps),
        Match::Source(net) => network(net, false, steps),
        Match::Dscp(family, code) => {
            is(Load::Meta(meta::FAMILY), &[number(*family)]);
            steps.extend(dscp(*family, *code));
        }
    }
}

fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

fn flags(how: Compare) -> [Expression; 3] {
    [Expression::Load(TCP_FLAGS), Expression::And(vec![FLAGS]), Expression::Compare(how, vec![SYN])]
}

/// The code point stands at another place in each family's header.
fn dscp(family: Family, code: u8) -> [Expression; 3] {
    let (load, mask, value) = match family {
        Family::V4 => (Load::Header(header::NETWORK, 1, 1), vec![0xfc], vec![code << 2]),
        Family::V6 => {
            let value = u16::from(code) << 6;
            (Load::Header(header::NETWORK, 0, 2), vec![0x0f, 0xc0], value.to_be_bytes().to_vec())
        }
    };
    [Expression::Load(load), Expression::And(mask), Expression::Compare(Compare::Equal, value)]
}

/// Where an address stands in the header: source, destination, length.
fn places(family: Family) -> (u32, u32, u32) {
    match family {
        Family::V4 => (12, 16, 4),
        Family::V6 => (8, 24, 16),
    }
}

fn network(net: &IpNet, destination: bool, steps: &mut Vec<Expression>) {
    let family = Family::of(net);
    let (source_at, destination_at, _) = places(family);
    let at = if destination { destination_at } else { source_at };
    let bytes = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    steps.push(Expression::Load(Load::Meta(meta::FAMILY)));
    steps.push(Expression::Compare(Compare::Equal, vec![number(family)]));
    // Only the bytes that count are loaded where they are whole.
    let (whole, mut value) = (net.prefix_len().is_multiple_of(8), bytes(net.network()));
    if whole {
        value.truncate(usize::from(net.prefix_len() / 8));
    }
    steps.push(Expression::Load(Load::Header(header::NETWORK, at, u32::try_from(value.len()).unwrap_or_default())));
    if !whole {
        steps.push(Expression::And(bytes(net.netmask())));
    }
    steps.push(Expression::Compare(Compare::Equal, value));
}

fn interface(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(begin) => begin.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(NAME, 0);
            bytes
        }
    }
}

fn does(action: &Action, steps: &mut Vec<Expression>) {
    match action {
        Action::Return => steps.push(Expression::Verdict(Verdict::Return)),
        Action::Accept => steps.push(Expression::Verdict(Verdict::Accept)),
        Action::Drop => steps.push(Expression::Verdict(Verdict::Drop)),
        Action::Goto(chain) => steps.push(Expression::Verdict(Verdict::Goto(chain.clone()))),
        Action::Redirect(port) => {
            steps.extend([Expression::Put(port.to_be_bytes().to_vec()), Expression::Redirect]);
        }
        Action::Tproxy(port) => {
            steps.extend([Expression::Put(port.to_be_bytes().to_vec()), Expression::Tproxy]);
        }
        Action::Mark(mark) => {
            steps.extend([Expression::Put(mark.to_ne_bytes().to_vec()), Expression::SetMark(Of::Packet)]);
        }
        Action::MarkConnection(mark) => {
            steps.extend([Expression::Put(mark.to_ne_bytes().to_vec()), Expression::SetMark(Of::Connection)]);
        }
    }
}

/// The rule that expressions stand for; `None` where they are not of our making.
pub fn decompile(mut steps: &[Expression], why: &str) -> Option<Rule> {
    let mut rule = Rule { matches: Vec::new(), actions: Vec::new(), why: why.to_owned() };
    while !steps.is_empty() {
        let (found, rest) = family_and_header(steps).or_else(|| one_match(steps)).map_or_else(
            || one_action(steps).map(|(action, rest)| (Err(action), rest)),
            |(found, rest)| Some((Ok(found), rest)),
        )?;
        match found {
            // What follows an action would be another rule.
            Ok(_) if !rule.actions.is_empty() => return None,
            Ok(found) => rule.matches.push(found),
            Err(action) => rule.actions.push(action),
        }
        steps = rest;
    }
    Some(rule)
}

type Decoded<'s, T> = Option<(T, &'s [Expression])>;

/// What looks at a header of one family.
fn family_and_header(steps: &[Expression]) -> Decoded<'_, Match> {
    use Expression::{And, Compare as Cmp, Load as Get};
    let [Get(Load::Meta(meta::FAMILY)), Cmp(Compare::Equal, family), rest @ ..] = steps else { return None };
    let family = [Family::V4, Family::V6].into_iter().find(|known| [number(*known)] == **family)?;
    let (at, length, mask, value, rest) = match rest {
        [Get(Load::Header(header::NETWORK, at, length)), And(mask), Cmp(Compare::Equal, value), rest @ ..] => {
            (*at, *length, Some(mask), value, rest)
        }
        [Get(Load::Header(header::NETWORK, at, length)), Cmp(Compare::Equal, value), rest @ ..] => {
            (*at, *length, None, value, rest)
        }
        rest => return Some((Match::Family(family), rest)),
    };
    let (source_at, destination_at, full) = places(family);
    let prefix = match mask {
        Some(mask) if at < source_at => {
            let code = match (family, mask.as_slice(), value.as_slice()) {
                (Family::V4, [0xfc], [value]) if at == 1 => value >> 2,
                (Family::V6, [0x0f, 0xc0], [high, low]) if at == 0 => {
                    u8::try_from(u16::from_be_bytes([*high, *low]) >> 6).ok()?
                }
                _ => return None,
            };
            return Some((Match::Dscp(family, code), rest));
        }
        Some(mask) if length == full => mask.iter().map(|byte| byte.leading_ones()).sum(),
        None => length * 8,
        Some(_) => return None,
    };
    let mut bytes = value.clone();
    bytes.resize(usize::try_from(full).ok()?, 0);
    let ip = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    let net = IpNet::new(ip, u8::try_from(prefix).ok()?).ok()?;
    match at {
        _ if at == source_at => Some((Match::Source(net), rest)),
        _ if at == destination_at => Some((Match::Destination(net), rest)),
        _ => None,
    }
}

fn one_match(steps: &[Expression]) -> Decoded<'_, Match> {
    use Expression::{And, Compare as Cmp, Load as Get};
    let short = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.try_into().ok()?));
    match steps {
        [Get(TCP_FLAGS), And(mask), Cmp(how, value), rest @ ..] if **mask == [FLAGS] && **value == [SYN] => match how {
            Compare::Equal => Some((Match::Opening, rest)),
            Compare::Unequal => Some((Match::Opened, rest)),
            Compare::AtLeast | Compare::AtMost => None,
        },
        [Get(Load::Connection(connection::STATUS)), And(mask), Cmp(Compare::Unequal, zero), rest @ ..]
            if **mask == TRANSLATED.to_ne_bytes() && **zero == [0; 4] =>
        {
            Some((Match::Translated, rest))
        }
        [Get(PORT), Cmp(Compare::AtLeast, first), Cmp(Compare::AtMost, last), rest @ ..] => {
            Some((Match::Port(short(first)?..=short(last)?), rest))
        }
        [Get(load), Cmp(Compare::Equal, value), rest @ ..] => Some((equal(*load, value)?, rest)),
        _ => None,
    }
}

fn equal(load: Load, value: &[u8]) -> Option<Match> {
    let number = || Some(u32::from_ne_bytes(value.try_into().ok()?));
    Some(match (load, value) {
        (Load::Meta(meta::PROTOCOL), [TCP]) => Match::Tcp,
        (Load::Meta(meta::PROTOCOL), [UDP]) => Match::Udp,
        (Load::Meta(meta::USER), _) => Match::User(number()?),
        (Load::Meta(meta::GROUP), _) => Match::Group(number()?),
        (Load::Meta(meta::IN), name) => Match::In(name_of(name)?),
        (Load::Meta(meta::OUT), name) => Match::Out(name_of(name)?),
        (Load::AddressType, _) => (number()? == LOCAL).then_some(Match::ToHere)?,
        (Load::Transparent, [1]) => Match::Transparent,
        (Load::Connection(connection::DIRECTION), [0]) => Match::Original,
        (Load::Connection(connection::DIRECTION), [1]) => Match::Reply,
        (Load::Connection(connection::MARK), _) => Match::ConnectionMark(number()?),
        (PORT, [high, low]) => {
            let port = u16::from_be_bytes([*high, *low]);
            Match::Port(port..=port)
        }
        _ => return None,
    })
}

fn name_of(bytes: &[u8]) -> Option<String> {
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
    match bytes.iter().position(|byte| *byte == 0) {
        Some(end) => text(bytes.get(..end)?),
        None => text(bytes).map(|name| name + "*"),
    }
}

fn one_action(steps: &[Expression]) -> Decoded<'_, Action> {
    use Expression::{Put, SetMark};
    let port = |bytes: &[u8]| Some(u16::from_be_bytes(bytes.try_into().ok()?));
    let mark = |bytes: &[u8]| Some(u32::from_ne_bytes(bytes.try_into().ok()?));
    Some(match steps {
        [Expression::Verdict(verdict), rest @ ..] => match verdict {
            Verdict::Accept => (Action::Accept, rest),
            Verdict::Drop => (Action::Drop, rest),
            Verdict::Return => (Action::Return, rest),
            Verdict::Goto(chain) => (Action::Goto(chain.clone()), rest),
        },
        [Put(value), Expression::Redirect, rest @ ..] => (Action::Redirect(port(value)?), rest),
        [Put(value), Expression::Tproxy, rest @ ..] => (Action::Tproxy(port(value)?), rest),
        [Put(value), SetMark(Of::Packet), rest @ ..] => (Action::Mark(mark(value)?), rest),
        [Put(value), SetMark(Of::Connection), rest @ ..] => (Action::MarkConnection(mark(value)?), rest),
        _ => return None,
    })
}
