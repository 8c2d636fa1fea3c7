//! Addresses, names and files as the values of keys: each knows what it looks like and refuses what cannot be meant.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv4Net};

use super::collect::is_name;
use super::kind::{Scalar, Wrong};
use crate::ids::Addr;
use crate::spiffe::{IdMatch, NotSpiffe, is_trust_domain};

/// So many bits of an IPv6 address say that an IPv4 one follows.
const MAPPED: u8 = 96;

/// Patterns of the schema; the parsers below are stricter.
const ADDR: &str = r"^(unix:/.+|(\[[0-9A-Fa-f:.]+(%[^\]]+)?\]|[0-9.]+):[0-9]{1,5})$";
const HOST: &str = r"^\.?[A-Za-z0-9_*][A-Za-z0-9_.*-]*$";

/// Makes scalars from a line each: name, what it looks like, pattern, how it is read and written.
macro_rules! scalars {
    ($(
        $(#[doc = $doc:literal])+
        $name:ident($inner:ty) $schema:literal, $expected:expr, $pattern:expr, $parse:expr, $write:expr;
    )+) => { $(
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub $inner);

        impl Scalar for $name {
            const NAME: &'static str = $schema;

            fn expected() -> String {
                $expected.into()
            }

            fn pattern() -> String {
                $pattern.into()
            }

            fn parse(text: &str) -> Result<Self, Wrong> {
                let parse: fn(&str) -> Result<$inner, Wrong> = $parse;
                parse(text).map(Self)
            }

            fn write(&self) -> String {
                let write: fn(&$inner) -> String = $write;
                write(&self.0)
            }
        }
    )+ };
}

scalars! {
    /// The name of a service.
    Name(String) "name",
        "a name of letters, digits, `-`, `_` and `.`", r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$",
        |text| if is_name(text) { Ok(text.to_owned()) } else { Err(Wrong::default()) }, Clone::clone;

    /// A place to listen at; port 0 lets the system choose.
    Listen(Addr) "address",
        "an address to listen at, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`", ADDR,
        addr, ToString::to_string;

    /// A place to listen at that only this machine reaches.
    LocalListen(Addr) "local-address",
        "a loopback address such as `127.0.0.1:15000`, or `unix:/PATH`", ADDR,
        |text| match addr(text)? {
            addr if addr.is_local() => Ok(addr),
            _ => Err(Wrong::because("whoever reaches it could change this sidecar")),
        },
        ToString::to_string;

    /// A TCP place to listen at.
    TcpListen(SocketAddr) "tcp-address",
        "an address to listen at, `IP:PORT` or `[IPv6]:PORT`", ADDR,
        |text| text.parse().map_err(|_| nearest_addr(text)), ToString::to_string;

    /// A place to connect to.
    Target(Addr) "target",
        "an address to connect to, `IP:PORT`, `[IPv6]:PORT` or `unix:/PATH`", ADDR,
        target, ToString::to_string;

    /// A name to look up A and AAAA records for, with a port.
    HostPort((String, u16)) "host-port",
        "`HOST:PORT`", r"^[A-Za-z0-9_][A-Za-z0-9_.-]*:[0-9]{1,5}$",
        host_port, |(host, port)| format!("{host}:{port}");

    /// A DNS name.
    DnsName(String) "dns-name",
        "a DNS name", HOST,
        |text| if is_host(text) { Ok(text.to_owned()) } else { Err(Wrong::default()) }, Clone::clone;

    /// The name of SRV records (RFC 2782).
    SrvName(String) "srv-name",
        "the name of SRV records, `_SERVICE._PROTOCOL.NAME`", r"^_[A-Za-z0-9_-]+\._[A-Za-z0-9_-]+\..+$",
        srv_name, Clone::clone;

    /// A host of a peer, with or without a port.
    HostEntry((String, Option<u16>)) "host",
        "`HOST` or `HOST:PORT`", r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?$",
        host_entry, |(host, port)| port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));

    /// A server name of a ClientHello; `*.` stands for one or more labels.
    ServerName(String) "server-name",
        "a DNS name, or `*.` and a DNS name", HOST,
        |text| {
            let host = text.strip_prefix("*.").unwrap_or(text);
            if is_host(host) { Ok(text.trim_end_matches('.').to_ascii_lowercase()) } else { Err(Wrong::default()) }
        },
        Clone::clone;

    /// A server name, at one port of this service if it says so, or all names at a port.
    Passed((Option<String>, Option<u16>)) "server-name-or-port",
        "a DNS name, `*.` and a DNS name, one of these and `:PORT`, or a port", r"^\.?[A-Za-z0-9_*][A-Za-z0-9_.*-]*(:[0-9]{1,5})?$",
        passed, |(name, port)| {
            let parts = [name.clone(), port.map(|port| port.to_string())];
            parts.into_iter().flatten().collect::<Vec<_>>().join(":")
        };

    /// A protocol of the `Upgrade` field.
    Upgrade(String) "upgrade",
        "an upgrade token such as `foo/2`", r"^[!#$%&'*+.^_`|~0-9A-Za-z/-]+$",
        upgrade, Clone::clone;

    /// Addresses that begin with the same bits.
    Network(IpNet) "network",
        "a network such as `10.0.0.0/8`, or an address", r"^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$",
        |text| network(text)?.ok_or_else(Wrong::default), ToString::to_string;

    /// A name server.
    NameServer(SocketAddr) "name-server",
        "the address of a DNS server, `IP` or `IP:PORT`", r"^(\[[0-9A-Fa-f:.]+\]:[0-9]{1,5}|[0-9A-Fa-f:.]+)$",
        |text| {
            let bare = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53));
            match bare.or_else(|_| text.parse()) {
                Ok(addr) if addr.port() != 0 => Ok(addr),
                _ => Err(Wrong::default()),
            }
        },
        ToString::to_string;

    /// A file; relative ones are seen from the folder of the configuration.
    FilePath(PathBuf) "file",
        "the path of a file", "^.+$",
        |text| {
            if text.is_empty() || text.contains('\0') { Err(Wrong::default()) } else { Ok(text.into()) }
        },
        |path| path.display().to_string();

    /// Free text that is not empty, for a zone.
    Label(String) "label",
        "a text of at most 253 printable characters", "^.{1,253}$",
        |text| {
            let fits = (1..=253).contains(&text.len()) && !text.contains(char::is_control);
            if fits { Ok(text.to_owned()) } else { Err(Wrong::default()) }
        },
        Clone::clone;

    /// A SPIFFE ID.
    SpiffeId(crate::spiffe::SpiffeId) "spiffe-id",
        "a SPIFFE ID such as `spiffe://shop/payments`", r"^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$",
        workload, ToString::to_string;

    /// A trust domain.
    TrustDomain(String) "trust-domain",
        "a trust domain such as `shop.internal`", "^[a-z0-9._-]+$",
        |text| if is_trust_domain(text) { Ok(text.to_owned()) } else { Err(Wrong::default()) }, Clone::clone;

    /// Where a Workload API is served, also in the forms of SPIFFE_Workload_Endpoint §4.
    WorkloadApi(Addr) "workload-api",
        "the socket of a Workload API, `unix:/PATH` or `tcp:LOOPBACK-IP:PORT`", "^(unix:/.+|tcp:.+)$",
        workload_api, |addr| match addr {
            Addr::Tcp(addr) => format!("tcp:{addr}"),
            Addr::Unix(_) => addr.to_string(),
        };

    /// A SPIFFE ID, or with a last segment of `*` all below it.
    SpiffeIds(IdMatch) "spiffe-ids",
        "a SPIFFE ID such as `spiffe://shop/payments`, or `spiffe://shop/*` for all of a trust domain",
        r"^spiffe://[a-z0-9._-]+((/[A-Za-z0-9._-]+)+(/\*)?|/\*)$",
        |text| match text.strip_suffix("/*") {
            Some(_) => text.parse().map_err(|why: NotSpiffe| Wrong::because(why.to_string())),
            None => {
                let meant = |wrong| Wrong { hint: all_of(text), ..wrong };
                workload(text).map(IdMatch::Exact).map_err(meant)
            }
        },
        ToString::to_string;
}

/// The name of a field; field names know no case (RFC 9110 §5.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FieldName(pub http::HeaderName);

impl Scalar for FieldName {
    const NAME: &'static str = "field-name";

    fn expected() -> String {
        "the name of a field such as `x-canary`".into()
    }

    fn pattern() -> String {
        "^[!#$%&'*+.^_`|~0-9A-Za-z-]+$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        field_name(text).map(Self).ok_or_else(Wrong::default)
    }

    fn write(&self) -> String {
        self.0.as_str().to_owned()
    }
}

/// The name of a field in lower case, as HTTP/2 writes it.
pub fn field_name(text: &str) -> Option<http::HeaderName> {
    http::HeaderName::from_bytes(text.to_ascii_lowercase().as_bytes()).ok()
}

/// A host that may be dialled although it is no peer, or a network of such.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AllowEntry {
    /// A host name in lower case.
    Host(String),
    /// A network.
    Net(IpNet),
}

impl Scalar for AllowEntry {
    const NAME: &'static str = "allow";

    fn expected() -> String {
        "a host name, an address or a network such as `10.0.0.0/8`".into()
    }

    fn pattern() -> String {
        "^[A-Za-z0-9_.:-]+(/[0-9]{1,3})?$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match network(text)? {
            Some(net) => Ok(Self::Net(net)),
            None if is_host(text) && !looks_like_ip(text) => Ok(Self::Host(plain(text))),
            None => Err(Wrong::default()),
        }
    }

    fn write(&self) -> String {
        match self {
            Self::Host(host) => host.clone(),
            Self::Net(net) => net.to_string(),
        }
    }
}

/// The ID of a workload, which has a path (X509-SVID §5.2).
fn workload(text: &str) -> Result<crate::spiffe::SpiffeId, Wrong> {
    let id: crate::spiffe::SpiffeId = text.parse().map_err(|why: NotSpiffe| Wrong::because(why.to_string()))?;
    if id.path().is_empty() { Err(Wrong::because("no caller or peer is a trust domain itself")) } else { Ok(id) }
}

/// All workloads of a trust domain, where the text is one.
fn all_of(text: &str) -> Option<String> {
    let id: crate::spiffe::SpiffeId = text.parse().ok()?;
    id.path().is_empty().then(|| format!("{id}/*"))
}

fn workload_api(text: &str) -> Result<Addr, Wrong> {
    let (scheme, rest) = text.split_once(':').ok_or_else(Wrong::default)?;
    let bare = rest.strip_prefix("//").unwrap_or(rest);
    let addr = match scheme {
        "unix" if bare.starts_with('/') => addr(&format!("unix:{bare}"))?,
        "tcp" => Addr::Tcp(bare.parse().map_err(|_| Wrong::default())?),
        _ => return Err(Wrong::default()),
    };
    match addr.is_local() {
        true => Ok(addr),
        false => Err(Wrong::because("a private key would cross the network unencrypted")),
    }
}

fn addr(text: &str) -> Result<Addr, Wrong> {
    text.parse().map_err(|_| nearest_addr(text))
}

fn target(text: &str) -> Result<Addr, Wrong> {
    match addr(text)? {
        Addr::Tcp(addr) if addr.port() == 0 => Err(Wrong::because("port 0 cannot be connected to")),
        Addr::Tcp(addr) if addr.ip().is_unspecified() => {
            Err(Wrong::meant(format!("{}:{}", if addr.is_ipv6() { "[::1]" } else { "127.0.0.1" }, addr.port())))
        }
        addr => Ok(addr),
    }
}

/// What was meant where the host or the brackets are missing.
fn nearest_addr(text: &str) -> Wrong {
    let port = text.strip_prefix(':').or_else(|| text.strip_prefix("localhost:")).unwrap_or(text);
    match (port.parse::<u16>(), text.rsplit_once(':')) {
        (Ok(port), _) => Wrong::meant(format!("127.0.0.1:{port}")),
        (_, Some((ip, port))) if ip.contains(':') && ip.parse::<IpAddr>().is_ok() => {
            Wrong::meant(format!("[{ip}]:{port}"))
        }
        (_, Some((host, port))) if is_host(host) && port.parse::<u16>().is_ok() => {
            Wrong::because("a name is not an address here")
        }
        _ if text.starts_with('/') => Wrong::meant(format!("unix:{text}")),
        _ => Wrong::default(),
    }
}

fn host_port(text: &str) -> Result<(String, u16), Wrong> {
    if text.parse::<SocketAddr>().is_ok() {
        return Err(Wrong::because(format!("an address needs no lookup: `static: [{text}]`")));
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(if is_host(text) { Wrong::because("the port is missing") } else { Wrong::default() });
    };
    match port_number(port) {
        Some(port) if is_host(host) && !looks_like_ip(host) => Ok((host.to_owned(), port)),
        _ => Err(Wrong::default()),
    }
}

fn srv_name(text: &str) -> Result<String, Wrong> {
    let labels: Vec<&str> = text.trim_end_matches('.').split('.').collect();
    match labels.as_slice() {
        [service, protocol, _, ..] if service.starts_with('_') && protocol.starts_with('_') && is_host(text) => {
            Ok(text.to_owned())
        }
        [first, ..] if !first.starts_with('_') && is_host(text) => {
            Err(Wrong::because(format!("service and protocol are missing, as in `_grpc._tcp.{text}`")))
        }
        _ => Err(Wrong::default()),
    }
}

fn host_entry(text: &str) -> Result<(String, Option<u16>), Wrong> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok((bracketed(addr.ip()), Some(addr.port())));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok((bracketed(ip), None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port_number(port).ok_or_else(Wrong::default)?)),
        None => (text, None),
    };
    if host.contains('*') {
        return Err(Wrong::because("patterns are not supported: list each host"));
    }
    if is_host(host) && !looks_like_ip(host) { Ok((plain(host), port)) } else { Err(Wrong::default()) }
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

fn port_number(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

fn passed(text: &str) -> Result<(Option<String>, Option<u16>), Wrong> {
    let port = |text| port_number(text).map(Some).ok_or_else(Wrong::default);
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok((None, port(text)?));
    }
    let (name, port) = match text.split_once(':') {
        Some((name, number)) => (name, port(number)?),
        None => (text, None),
    };
    Ok((Some(ServerName::parse(name)?.0), port))
}

fn upgrade(text: &str) -> Result<String, Wrong> {
    let token = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    let lower = text.to_ascii_lowercase();
    match lower.as_str() {
        "websocket" => Err(Wrong::because("it is let through without being listed")),
        "h2c" => Err(Wrong::because("HTTP/2 needs no upgrade; RFC 9113 removed it")),
        _ if lower.splitn(2, '/').all(token) => Ok(lower),
        _ => Err(Wrong::default()),
    }
}

/// A network, where the text is one or an address. Addresses are compared as IPv4 where they are IPv4 ones written as IPv6
/// (RFC 4291 §2.5.5.2), so networks are read so too.
fn network(text: &str) -> Result<Option<IpNet>, Wrong> {
    let net = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(IpNet::V6(wide)) = net else { return Ok(net) };
    let Some(ip) = wide.addr().to_ipv4_mapped() else { return Ok(net) };
    match wide.prefix_len().checked_sub(MAPPED) {
        Some(prefix) => Ok(Ipv4Net::new(ip, prefix).ok().map(IpNet::V4)),
        None => {
            let why = "begins with an IPv4 address written as IPv6, of which the first 96 bits are the same for all";
            let meant = Ipv4Net::new(ip, wide.prefix_len()).ok().map(|net| net.to_string());
            Err(Wrong { why: Some(why.into()), hint: meant })
        }
    }
}

/// A host in the form in which it is compared.
pub fn plain(host: &str) -> String {
    host.trim_end_matches('.').to_ascii_lowercase()
}

/// Whether a text can be a DNS name (RFC 1035 §2.3.1, with the underscores of RFC 2782).
pub fn is_host(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// Whether a text ends like an address: such names cannot be told from mistyped addresses.
fn looks_like_ip(text: &str) -> bool {
    text.trim_end_matches('.').rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each text, and what it is written as, or else the reason or hint.
    fn check<T: Scalar>(table: &[(&str, Result<&str, &str>)]) {
        for (text, expect) in table {
            let said = T::parse(text).map(|value| value.write());
            let said = said.map_err(|Wrong { why, hint }| why.or(hint).unwrap_or_default());
            assert_eq!(said.as_deref().map_err(String::as_str), *expect, "{text}");
        }
    }

    #[test]
    fn addresses() {
        check::<Listen>(&[
            ("127.0.0.1:0", Ok("127.0.0.1:0")),
            ("[::]:15006", Ok("[::]:15006")),
            ("unix:/run/x.sock", Ok("unix:/run/x.sock")),
            ("15006", Err("127.0.0.1:15006")),
            (":15006", Err("127.0.0.1:15006")),
            ("localhost:80", Err("127.0.0.1:80")),
            ("::1:80", Err("[::1]:80")),
            ("db:80", Err("a name is not an address here")),
            ("/run/x.sock", Err("unix:/run/x.sock")),
            ("127.0.0.1:99999", Err("")),
        ]);
        check::<Target>(&[
            ("127.0.0.1:0", Err("port 0 cannot be connected to")),
            ("0.0.0.0:80", Err("127.0.0.1:80")),
            ("[::]:80", Err("[::1]:80")),
        ]);
        check::<LocalListen>(&[
            ("127.1.2.3:1", Ok("127.1.2.3:1")),
            ("[::ffff:127.0.0.1]:1", Ok("[::ffff:127.0.0.1]:1")),
            ("0.0.0.0:1", Err("whoever reaches it could change this sidecar")),
        ]);
        check::<NameServer>(&[
            ("10.0.0.2", Ok("10.0.0.2:53")),
            ("::1", Ok("[::1]:53")),
            ("[::1]:5353", Ok("[::1]:5353")),
            ("dns:53", Err("")),
        ]);
    }

    #[test]
    fn an_ipv4_network_is_one_in_any_notation() {
        let wide = "begins with an IPv4 address written as IPv6, of which the first 96 bits are the same for all";
        let table = [
            ("::ffff:127.0.0.1", Ok("127.0.0.1/32")),
            ("::ffff:10.77.0.0/112", Ok("10.77.0.0/16")),
            ("::ffff:a4d:0/112", Ok("10.77.0.0/16")),
            ("::ffff:0:0/96", Ok("0.0.0.0/0")),
            ("::ffff:10.0.0.0/8", Err(wide)),
            ("::ffff:0:0/95", Err(wide)),
            ("::ffff:10.0.0.1/129", Err("")),
            // Others are what they are.
            ("::/0", Ok("::/0")),
            ("::/8", Ok("::/8")),
            ("::10.0.0.1", Ok("::a00:1/128")),
            ("fd00::/8", Ok("fd00::/8")),
            ("10.0.0.1", Ok("10.0.0.1/32")),
        ];
        check::<Network>(&table);
        check::<AllowEntry>(&table);
    }

    #[test]
    fn hosts() {
        check::<HostPort>(&[
            ("payments.shop:8080", Ok("payments.shop:8080")),
            ("payments.shop", Err("the port is missing")),
            ("10.0.0.1:80", Err("an address needs no lookup: `static: [10.0.0.1:80]`")),
            ("a:0", Err("")),
            ("a:+80", Err("")),
            ("a b:80", Err("")),
            ("http://a:80", Err("")),
        ]);
        check::<HostEntry>(&[
            ("Payments.", Ok("payments")),
            ("payments:443", Ok("payments:443")),
            ("10.0.0.1:80", Ok("10.0.0.1:80")),
            ("[::1]:80", Ok("[::1]:80")),
            ("::1", Ok("[::1]")),
            ("*.shop", Err("patterns are not supported: list each host")),
            ("300.1.2.3", Err("")),
        ]);
        check::<SrvName>(&[
            ("_grpc._tcp.ledger.shop", Ok("_grpc._tcp.ledger.shop")),
            ("_grpc._tcp.shop.", Ok("_grpc._tcp.shop.")),
            ("ledger.shop", Err("service and protocol are missing, as in `_grpc._tcp.ledger.shop`")),
            ("foo", Err("service and protocol are missing, as in `_grpc._tcp.foo`")),
            ("_grpc.ledger.shop", Err("")),
            ("_grpc._tcp", Err("")),
            ("_grpc._tcp.a b", Err("")),
        ]);
        check::<ServerName>(&[("*.Shop", Ok("*.shop")), ("db.x", Ok("db.x")), ("*", Err("")), ("a.*", Err(""))]);
        check::<AllowEntry>(&[
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("::1", Ok("::1/128")),
            ("Meta.Internal", Ok("meta.internal")),
            ("10.0.0.0/33", Err("")),
        ]);
    }

    #[test]
    fn words() {
        check::<Upgrade>(&[
            ("Foo/2", Ok("foo/2")),
            ("h2c", Err("HTTP/2 needs no upgrade; RFC 9113 removed it")),
            ("websocket", Err("it is let through without being listed")),
            ("a b", Err("")),
        ]);
        check::<SpiffeId>(&[
            ("spiffe://shop/a/b", Ok("spiffe://shop/a/b")),
            ("spiffe://shop", Err("no caller or peer is a trust domain itself")),
            ("spiffe://Shop/a", Err("a trust domain has lower-case letters, digits, `.`, `-` and `_`")),
            (
                "spiffe://shop/",
                Err("a path has segments of letters, digits, `.`, `-` and `_`, none empty, `.` or `..`"),
            ),
            (
                "spiffe://shop/../a",
                Err("a path has segments of letters, digits, `.`, `-` and `_`, none empty, `.` or `..`"),
            ),
            ("https://shop", Err("a SPIFFE ID begins with `spiffe://`")),
        ]);
        check::<Name>(&[("checkout-v2", Ok("checkout-v2")), ("-x", Err("")), ("a b", Err("")), ("", Err(""))]);
    }
}
