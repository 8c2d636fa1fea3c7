//! Whether a host may be that of a rule, however a caller writes it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A host, with any port or with one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    /// In lower case, without brackets and trailing dot.
    pub name: String,
    /// Its port.
    pub port: Option<u16>,
    /// The address that it is, if it is one, an IPv4 address mapped into IPv6 as the former.
    address: Option<IpAddr>,
}

impl HostRule {
    /// For a host in lower case, an IPv6 address with or without brackets.
    pub fn new(host: &str, port: Option<u16>) -> Self {
        let name = bare(host);
        Self { name: name.to_owned(), port, address: address(name, Zeros::Octal) }
    }

    /// Whether the host says just that, letter case and a dot at the end apart; an IPv6 address has many spellings
    /// (RFC 5952 §2).
    pub fn holds(&self, host: &str, port: u16) -> bool {
        let host = bare(host);
        let ip = |text: &str| text.parse::<Ipv6Addr>().ok();
        let same = host.eq_ignore_ascii_case(&self.name) || ip(host).is_some_and(|host| ip(&self.name) == Some(host));
        same && self.port.is_none_or(|only| only == port)
    }

    /// Whether some server may take the host for it. The port is not looked at: it is the caller's word, and servers pass
    /// over it.
    pub fn may_hold(&self, host: &str) -> bool {
        let host = bare(host);
        let reads = |zeros| self.address.is_some() && address(host, zeros) == self.address;
        !is_plain(host) || host.eq_ignore_ascii_case(&self.name) || reads(Zeros::Octal) || reads(Zeros::Nothing)
    }

    /// Whether every host that `other` holds may be this one.
    pub fn covers(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

fn bare(host: &str) -> &str {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

/// Whether it is an IPv6 address, or labels of what names in DNS are made of. What else RFC 3986 §3.2.2 lets stand in a host
/// (percent-encoding, say) is read differently by whoever reads it at all.
fn is_plain(host: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| !label.is_empty() && label.bytes().all(legal);
    host.contains(':') || host.split('.').all(label)
}

/// What a number means that begins with 0: C's `inet_aton` says octal, others pass over the zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Zeros {
    Octal,
    Nothing,
}

fn address(host: &str, zeros: Zeros) -> Option<IpAddr> {
    match host.parse::<Ipv6Addr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => ipv4(host, zeros).map(|address| IpAddr::V4(Ipv4Addr::from_bits(address))),
    }
}

/// An IPv4 address of one to four numbers, of which the last stands for all bytes that are left, each decimal, octal or
/// hexadecimal, as `inet_aton` and browsers read it.
fn ipv4(host: &str, zeros: Zeros) -> Option<u32> {
    // Names seldom end in a digit or begin with one; the rest is for such as do.
    if !host.starts_with(|one: char| one.is_ascii_digit()) {
        return None;
    }
    let mut bits: u32 = 32;
    let mut address = 0;
    let mut parts = host.split('.').peekable();
    while let Some(part) = parts.next() {
        let value = number(part, zeros)?;
        let last = parts.peek().is_none();
        // Three numbers may stand for a byte each, the fourth must be the last.
        let width = if last { bits } else { 8 };
        if u64::from(value) >> width > 0 || bits == 0 || (!last && bits == 8) {
            return None;
        }
        bits -= width;
        address |= value.checked_shl(bits).unwrap_or(0);
    }
    Some(address)
}

fn number(text: &str, zeros: Zeros) -> Option<u32> {
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match hexadecimal {
        Some(digits) => (digits, 16),
        None if zeros == Zeros::Octal && text.len() > 1 && text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    // A sign would be read too.
    let plain = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if plain { u32::from_str_radix(digits, radix).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_many_notations() {
        for (host, octal, decimal) in [
            ("10.0.0.9", Some("10.0.0.9"), Some("10.0.0.9")),
            ("010.0.0.9", Some("8.0.0.9"), Some("10.0.0.9")),
            ("0x0a.0.011", Some("10.0.0.9"), Some("10.0.0.11")),
            ("1", Some("0.0.0.1"), Some("0.0.0.1")),
            ("4294967295", Some("255.255.255.255"), Some("255.255.255.255")),
            ("4294967296", None, None),
            ("1.16777215", Some("1.255.255.255"), Some("1.255.255.255")),
            ("1.16777216", None, None),
            ("256.1", None, None),
            ("1.2.3.256", None, None),
            ("1.2.3.4.5", None, None),
            ("1.2.3.4.", None, None),
            ("1..2", None, None),
            ("09", None, Some("0.0.0.9")),
            ("0x", None, None),
            ("0x+1", None, None),
            ("1.a", None, None),
            ("a", None, None),
            ("", None, None),
            ("::ffff:10.0.0.9", Some("10.0.0.9"), Some("10.0.0.9")),
            ("::1", Some("::1"), Some("::1")),
        ] {
            let text = |zeros| address(host, zeros).map(|address| address.to_string());
            let expect = (octal.map(str::to_owned), decimal.map(str::to_owned));
            assert_eq!((text(Zeros::Octal), text(Zeros::Nothing)), expect, "{host}");
        }
    }
}
