//! One DNS message read for one question: the records at the end of the CNAME chain and the time to live over all of it.
//!
//! Pure. The whole chain counts (RFC 2308 §2 and §5 for the empty ends of it): an alias that moves in a minute makes
//! its addresses old in a minute, whatever they say themselves.

use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};

use super::ttl::{seconds, sooner};

/// No chain of aliases is longer than this, in one message or over several.
pub const MOST_ALIASES: usize = 16;

/// What a message says about a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Reading {
    /// Records of the wanted type.
    Records {
        /// Their data.
        data: Vec<RData>,
        /// The shortest time to live of the records and of the aliases before them.
        ttl: Duration,
    },
    /// The chain leaves the message: this name is to be asked for next.
    Alias {
        /// The name.
        name: Name,
        /// The shortest time to live so far.
        ttl: Duration,
    },
    /// There is no such record.
    Empty {
        /// How long that holds; `None` without an SOA record.
        ttl: Option<Duration>,
        /// Whether the name does not exist at all.
        absent: bool,
    },
    /// The message is no answer to the question.
    Useless(&'static str),
}

/// Reads `message` for records of `kind` that belong to `name`.
pub fn read(message: &Message, name: &Name, kind: RecordType) -> Reading {
    let mut owner = name.clone();
    let mut ttl = None;
    for _ in 0..=MOST_ALIASES {
        let of_owner = || message.answers.iter().filter(|record| record.name == owner);
        let wanted: Vec<_> = of_owner().filter(|record| record.record_type() == kind).collect();
        if let Some(least) = wanted.iter().map(|record| seconds(record.ttl)).min() {
            let data = wanted.into_iter().map(|record| record.data.clone()).collect();
            return Reading::Records { data, ttl: ttl.map_or(least, |ttl: Duration| ttl.min(least)) };
        }
        let alias = of_owner().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((target.0.clone(), seconds(record.ttl))),
            _ => None,
        });
        match alias {
            Some((target, least)) => {
                ttl = sooner(ttl, Some(least));
                owner = target;
            }
            None => return end(message, name, owner, ttl),
        }
    }
    Reading::Useless("its aliases go in a circle")
}

fn end(message: &Message, asked: &Name, owner: Name, ttl: Option<Duration>) -> Reading {
    let absent = message.metadata.response_code == ResponseCode::NXDomain;
    let negative = message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(seconds(record.ttl).min(seconds(soa.minimum))),
        _ => None,
    });
    if let (Some(ttl), None, false) = (ttl, negative, absent)
        && owner != *asked
    {
        return Reading::Alias { name: owner, ttl };
    }
    let referral = message.authorities.iter().any(|record| record.record_type() == RecordType::NS);
    if negative.is_none() && referral && !absent {
        return Reading::Useless("a referral instead of an answer (the server does not recurse)");
    }
    Reading::Empty { ttl: negative.map(|negative| ttl.map_or(negative, |ttl| ttl.min(negative))), absent }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::str::FromStr;

    use hickory_resolver::proto::op::{MessageType, OpCode};
    use hickory_resolver::proto::rr::Record;
    use hickory_resolver::proto::rr::rdata::{A, CNAME, NS, SOA};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_str(text).unwrap()
    }

    fn a(owner: &str, ttl: u32, last: u8) -> Record {
        Record::from_rdata(name(owner), ttl, RData::A(A(Ipv4Addr::new(10, 0, 0, last))))
    }

    fn cname(owner: &str, ttl: u32, target: &str) -> Record {
        Record::from_rdata(name(owner), ttl, RData::CNAME(CNAME(name(target))))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let soa = SOA::new(name("ns.test."), name("host.test."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name("test."), ttl, RData::SOA(soa))
    }

    fn ns() -> Record {
        Record::from_rdata(name("test."), 60, RData::NS(NS(name("ns.test."))))
    }

    fn message(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Message {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.answers = answers;
        message.authorities = authorities;
        message
    }

    fn records(ttl: u64, last: &[u8]) -> Reading {
        let data = last.iter().map(|last| RData::A(A(Ipv4Addr::new(10, 0, 0, *last)))).collect();
        Reading::Records { data, ttl: Duration::from_secs(ttl) }
    }

    fn empty(ttl: Option<u64>, absent: bool) -> Reading {
        Reading::Empty { ttl: ttl.map(Duration::from_secs), absent }
    }

    #[test]
    fn readings() {
        use ResponseCode::{NXDomain, NoError};
        let alias = |to: &str, ttl| Reading::Alias { name: name(to), ttl: Duration::from_secs(ttl) };
        let long: Vec<_> = (0..30).map(|n| cname(&format!("n{n}.test."), 9, &format!("n{}.test.", n + 1))).collect();
        for (what, message, want) in [
            ("plain", message(NoError, vec![a("x.test.", 60, 1), a("x.test.", 30, 2)], vec![]), records(30, &[1, 2])),
            ("case", message(NoError, vec![a("X.TEST.", 60, 1)], vec![]), records(60, &[1])),
            ("foreign", message(NoError, vec![a("y.test.", 60, 1)], vec![]), empty(None, false)),
            (
                "alias with the shorter time, out of order",
                message(
                    NoError,
                    vec![a("z.test.", 300, 1), cname("y.test.", 7, "z.test."), cname("x.test.", 99, "y.test.")],
                    vec![],
                ),
                records(7, &[1]),
            ),
            (
                "alias that leaves",
                message(NoError, vec![cname("x.test.", 20, "far.test.")], vec![]),
                alias("far.test.", 20),
            ),
            (
                "alias to a name without the record",
                message(NoError, vec![cname("x.test.", 20, "far.test.")], vec![soa(60, 50)]),
                empty(Some(20), false),
            ),
            (
                "alias to an absent name",
                message(NXDomain, vec![cname("x.test.", 20, "far.test.")], vec![soa(60, 5)]),
                empty(Some(5), true),
            ),
            ("absent", message(NXDomain, vec![], vec![soa(30, 900)]), empty(Some(30), true)),
            ("no data", message(NoError, vec![], vec![soa(900, 30)]), empty(Some(30), false)),
            ("no data without SOA", message(NoError, vec![], vec![]), empty(None, false)),
            ("absent without SOA", message(NXDomain, vec![], vec![ns()]), empty(None, true)),
            ("top bit", message(NoError, vec![a("x.test.", u32::MAX, 1)], vec![]), records(0, &[1])),
            (
                "referral",
                message(NoError, vec![], vec![ns()]),
                Reading::Useless("a referral instead of an answer (the server does not recurse)"),
            ),
            (
                "circle",
                message(NoError, vec![cname("x.test.", 1, "y.test."), cname("y.test.", 1, "x.test.")], vec![]),
                Reading::Useless("its aliases go in a circle"),
            ),
        ] {
            assert_eq!(read(&message, &name("x.test."), RecordType::A), want, "{what}");
        }
        let endless = read(&message(NoError, long, vec![]), &name("n0.test."), RecordType::A);
        assert_eq!(endless, Reading::Useless("its aliases go in a circle"));
    }
}
