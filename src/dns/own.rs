//! What the DNS door says by itself: the hosts of peers at their virtual addresses, their reverse, and a few names that
//! no server is to be asked for.
//!
//! Pure. A host's name always means its virtual address, also where servers know it: what is dialled by a peer's name is
//! the peer, balanced and guarded whatever is spoken. `hosts` of the file says which names these are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::rdata::{A, AAAA, PTR, SOA};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};

use super::servers::Question;
use super::wire::{Said, host};
use crate::plan::virtual_ips::{VirtualIp, VirtualIps, is_virtual};

/// How long an answer of ours may be kept: addresses stay as long as the file says the same, and who has just been given
/// to a peer should be known soon.
pub const TTL: u32 = 60;

/// Which families an app could reach a virtual address by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Families {
    /// Asked of a probe for routes; where neither has one, IPv4 is as good.
    pub fn of(routed: impl Fn(IpAddr) -> bool, ip: VirtualIp) -> Self {
        let v6 = routed(ip.v6.into());
        Self { v4: !v6 || routed(ip.v4.into()), v6 }
    }
}

/// Our own answer; `None` for what the servers are to be asked. `search` is the machine's search list, which the app's
/// resolver appends to what the app has asked for; `families` is asked only where it matters.
pub fn answer(
    question: &Question,
    hosts: &VirtualIps,
    search: &[Name],
    families: impl Fn(VirtualIp) -> Families,
) -> Option<Said> {
    let name = host(&question.name);
    if let Some(code) = reserved(&name) {
        return Some(special(question, code));
    }
    if let Some(ip) = find(&name, question.kind, hosts, search) {
        let families = families(ip);
        let v4 = families.v4.then_some(RData::A(A(ip.v4)));
        let v6 = families.v6.then_some(RData::AAAA(AAAA(ip.v6)));
        return Some(records(question, v4.into_iter().chain(v6)));
    }
    let ip = reverse(&question.name).filter(|ip| is_virtual(*ip))?;
    let Some(name) = hosts.name(ip) else { return Some(empty(question, ResponseCode::NXDomain)) };
    let target = Name::from_ascii(format!("{name}.")).ok()?;
    Some(records(question, [RData::PTR(PTR(target))]))
}

/// The addresses of a host, asked for by its name or by that and one of the search domains. The names under which
/// clients look for the parameters of a service (`_8443._https.HOST`, RFC 9460 §9.1) have the same answer: none.
fn find(name: &str, kind: RecordType, hosts: &VirtualIps, search: &[Name]) -> Option<VirtualIp> {
    let mut name = name;
    if matches!(kind, RecordType::HTTPS | RecordType::SVCB) {
        while let Some((_, rest)) = name.split_once('.').filter(|(label, _)| label.starts_with('_')) {
            name = rest;
        }
    }
    hosts.find(name).or_else(|| {
        search.iter().find_map(|domain| {
            let domain = host(domain);
            let short = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
            hosts.find(short).filter(|_| !domain.is_empty())
        })
    })
}

/// Names that mean the same everywhere (RFC 6761 §6.3 and §6.4, RFC 7686 §2).
fn reserved(name: &str) -> Option<ResponseCode> {
    match name.rsplit('.').next()? {
        "localhost" => Some(ResponseCode::NoError),
        "invalid" | "onion" => Some(ResponseCode::NXDomain),
        _ => None,
    }
}

fn special(question: &Question, code: ResponseCode) -> Said {
    if code != ResponseCode::NoError {
        return empty(question, code);
    }
    records(question, [RData::A(A(Ipv4Addr::LOCALHOST)), RData::AAAA(AAAA(Ipv6Addr::LOCALHOST))])
}

/// Those of `known` that are asked for; none is the answer that there are none of this type.
fn records(question: &Question, known: impl IntoIterator<Item = RData>) -> Said {
    let wanted = |data: &RData| question.kind == RecordType::ANY || data.record_type() == question.kind;
    let record = |data| Record::from_rdata(question.name.clone(), TTL, data);
    let answers: Vec<Record> = known.into_iter().filter(wanted).map(record).collect();
    if answers.is_empty() {
        return empty(question, ResponseCode::NoError);
    }
    Said { answers, authoritative: true, ..Said::default() }
}

/// An answer without records is kept by the SOA beside it (RFC 2308 §3).
fn empty(question: &Question, code: ResponseCode) -> Said {
    let name = || question.name.clone();
    let every = i32::try_from(TTL).unwrap_or(i32::MAX);
    let soa = SOA::new(name(), name(), 1, every, every, every, TTL);
    let authorities = vec![Record::from_rdata(name(), TTL, RData::SOA(soa))];
    Said { code, authorities, authoritative: true, ..Said::default() }
}

/// The address that a name under in-addr.arpa or ip6.arpa stands for.
fn reverse(name: &Name) -> Option<IpAddr> {
    name.parse_arpa_name().ok().and_then(|net| {
        let whole = net.prefix_len() == if net.addr().is_ipv4() { 32 } else { 128 };
        whole.then(|| net.addr())
    })
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };

    /// What is said, as words: the records' data, or the code of an answer without any.
    fn said(name: &str, kind: RecordType, families: Families) -> Option<String> {
        let hosts = VirtualIps::of(["payments", "payments.shop.internal", "_odd.x"]);
        let search = ["default.svc.cluster.local", "svc.cluster.local.", "."].map(|name| Name::from_str(name).unwrap());
        let question = Question { name: Name::from_str(name).unwrap().to_lowercase(), kind, ..Question::default() };
        let said = answer(&question, &hosts, &search, |_| families)?;
        assert!(said.authoritative && said.answers.iter().all(|record| record.name == question.name));
        assert!(said.answers.iter().all(|record| record.ttl == TTL));
        if said.answers.is_empty() {
            assert!(matches!(said.authorities.as_slice(), [soa] if soa.record_type() == RecordType::SOA));
            return Some(if said.code == ResponseCode::NoError { "-".into() } else { said.code.to_string() });
        }
        Some(said.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_is_ours_to_say() {
        use RecordType as T;
        let (v4, v6) = ("240.240.126.35", "2001:2::f0f0:7e23");
        for (name, kind, want) in [
            ("payments.", T::A, Some(v4)),
            ("PayMents.", T::A, Some(v4)),
            ("payments.", T::AAAA, Some(v6)),
            ("payments.", T::ANY, Some("240.240.126.35 2001:2::f0f0:7e23")),
            ("payments.", T::HTTPS, Some("-")),
            ("payments.", T::SVCB, Some("-")),
            ("payments.", T::MX, Some("-")),
            ("payments.", T::CNAME, Some("-")),
            ("payments.", T::Unknown(65280), Some("-")),
            ("payments.shop.internal.", T::A, Some("240.240.124.108")),
            // What a resolver makes of a name with its search list.
            ("payments.default.svc.cluster.local.", T::A, Some(v4)),
            ("payments.svc.cluster.local.", T::AAAA, Some(v6)),
            ("payments.shop.internal.default.svc.cluster.local.", T::A, Some("240.240.124.108")),
            ("payments.other.", T::A, None),
            ("x.payments.", T::A, None),
            ("xpayments.", T::A, None),
            ("shop.internal.", T::A, None),
            ("default.svc.cluster.local.", T::A, None),
            (".", T::A, None),
            ("_8443._https.payments.", T::HTTPS, Some("-")),
            ("_grpc._tcp.payments.", T::SRV, None),
            ("_https.payments.", T::A, None),
            ("_odd.x.", T::HTTPS, None),
            ("localhost.", T::A, Some("127.0.0.1")),
            ("a.LOCALHOST.", T::AAAA, Some("::1")),
            ("localhost.", T::TXT, Some("-")),
            ("x.invalid.", T::A, Some("Non-Existent Domain")),
            ("x.onion.", T::A, Some("Non-Existent Domain")),
            ("35.126.240.240.in-addr.arpa.", T::PTR, Some("payments.")),
            ("35.126.240.240.in-addr.arpa.", T::A, Some("-")),
            ("36.126.240.240.in-addr.arpa.", T::PTR, Some("Non-Existent Domain")),
            ("126.240.240.in-addr.arpa.", T::PTR, None),
            ("1.0.0.10.in-addr.arpa.", T::PTR, None),
            ("3.2.e.7.0.f.0.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa.", T::PTR, Some("payments.")),
            (
                "1.2.e.7.0.f.0.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.1.0.0.2.ip6.arpa.",
                T::PTR,
                Some("Non-Existent Domain"),
            ),
        ] {
            assert_eq!(said(name, kind, BOTH).as_deref(), want, "{name} {kind}");
        }
    }

    #[test]
    fn a_family_without_a_route_has_no_address() {
        let ip = VirtualIps::of(["x"]).find("x").unwrap();
        for (v4, v6, gives) in [
            (true, true, (true, true)),
            (true, false, (true, false)),
            (false, true, (false, true)),
            (false, false, (true, false)),
        ] {
            let families = Families::of(|ip| if ip.is_ipv4() { v4 } else { v6 }, ip);
            assert_eq!((families.v4, families.v6), gives);
        }
        let only = Families { v4: true, v6: false };
        assert_eq!(said("payments.", RecordType::AAAA, only).as_deref(), Some("-"));
        assert_eq!(said("payments.", RecordType::ANY, only).as_deref(), Some("240.240.126.35"));
    }
}
