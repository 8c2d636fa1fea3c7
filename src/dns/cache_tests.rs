//! What is kept for how long, and that it is never more than its bound.

use std::str::FromStr;

use hickory_resolver::proto::op::{MessageType, OpCode};
use hickory_resolver::proto::rr::rdata::{A, CNAME, SOA};
use hickory_resolver::proto::rr::{Name, Record};
use proptest::prelude::*;

use super::*;

const STALE_FOR: Duration = Duration::from_secs(600);

fn question(name: &str) -> Question {
    Question { name: Name::from_str(name).unwrap(), ..Question::default() }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What a hit is, in words.
fn words(hit: Hit) -> String {
    match hit {
        Hit::Fresh(kept) => format!("fresh {:?} {}", kept.message, kept.age.as_secs()),
        Hit::Stale(kept, why) => format!("stale {:?} {}", kept.message, why.as_deref().unwrap_or("-")),
        Hit::Failed(why) => format!("failed {why}"),
        Hit::Unknown => "unknown".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn the_life_of_an_answer() {
    let (mut cache, start, x) = (Cache::default(), Instant::now(), question("x.test."));
    let at = |cache: &Cache, after: u64| words(cache.get(&x, start + secs(after)));
    assert_eq!(at(&cache, 0), "unknown");
    cache.fail(&x, "down".into(), start);
    assert_eq!((at(&cache, 4), at(&cache, 5)), ("failed down".into(), "unknown".into()));
    cache.put(&x, Bytes::from_static(b"1"), secs(10), STALE_FOR, start);
    assert_eq!((at(&cache, 3), at(&cache, 9)), ("fresh b\"1\" 3".into(), "fresh b\"1\" 9".into()));
    assert_eq!((at(&cache, 10), at(&cache, 609)), ("stale b\"1\" -".into(), "stale b\"1\" -".into()));
    assert_eq!(at(&cache, 610), "unknown");
    cache.fail(&x, "down".into(), start + secs(100));
    assert_eq!((at(&cache, 104), at(&cache, 105)), ("stale b\"1\" down".into(), "stale b\"1\" -".into()));
    assert_eq!(at(&cache, 610), "unknown", "failures do not make it live longer");
    cache.put(&x, Bytes::from_static(b"2"), secs(10), Duration::ZERO, start + secs(200));
    assert_eq!((at(&cache, 209), at(&cache, 210)), ("fresh b\"2\" 9".into(), "unknown".into()));
    assert_eq!(cache.size().0, 1);
    cache.clear();
    assert_eq!(cache.size(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn questions_differ_by_type_and_flags_and_not_by_case() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(&question("x.test."), Bytes::from_static(b"1"), secs(10), STALE_FOR, now);
    assert_ne!(cache.get(&question("X.TEST."), now), Hit::Unknown);
    for other in [
        Question { kind: RecordType::AAAA, ..question("x.test.") },
        Question { dnssec_ok: true, ..question("x.test.") },
        Question { checking_disabled: true, ..question("x.test.") },
        question("y.test."),
    ] {
        assert_eq!(cache.get(&other, now), Hit::Unknown, "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_names_is_bounded_and_what_ends_soonest_goes() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.put(&question("long.test."), Bytes::from_static(b"1"), secs(300), STALE_FOR, now);
    for n in 0..20_000 {
        cache.put(&question(&format!("n{n}.test.")), Bytes::from(vec![0; 200]), secs(30), STALE_FOR, now);
    }
    let (entries, bytes) = cache.size();
    assert!(bytes <= MOST_BYTES && bytes > MOST_BYTES - 2000 && entries > 4000, "{entries} {bytes}");
    assert_ne!(cache.get(&question("long.test."), now), Hit::Unknown);
    assert_eq!(cache.get(&question("n0.test."), now), Hit::Unknown);
    let late = now + secs(2000);
    cache.put(&question("new.test."), Bytes::from_static(b"1"), secs(1), STALE_FOR, late);
    assert_eq!(cache.size().0, 1, "what is over goes without need");
}

proptest! {
    #[test]
    fn the_bytes_are_those_of_what_is_there(
        steps in prop::collection::vec((0..6u8, any::<bool>(), 0..3000usize, 0..700u64), 1..80),
    ) {
        let mut cache = Cache::default();
        let mut now = Instant::now();
        for (name, good, length, later) in steps {
            now += secs(later / 10);
            let question = question(&format!("n{name}.test."));
            if good {
                cache.put(&question, Bytes::from(vec![0; length]), secs(later), secs(20), now);
            } else {
                cache.fail(&question, "x".into(), now);
            }
            let sum: usize = cache.entries.values().map(|entry| entry.bytes).sum();
            prop_assert_eq!(sum, cache.bytes);
            prop_assert_eq!(cache.order.len(), cache.entries.len());
            for ((ends, number), question) in &cache.order {
                let entry = &cache.entries[question];
                prop_assert_eq!((entry.ends, entry.number), (*ends, *number));
            }
        }
    }
}

#[test]
fn lifetimes() {
    let name = |text: &str| Name::from_str(text).unwrap();
    let a = |ttl| Record::from_rdata(name("x.test."), ttl, RData::A(A([10, 0, 0, 1].into())));
    let alias = |ttl| Record::from_rdata(name("x.test."), ttl, RData::CNAME(CNAME(name("y.test."))));
    let soa = |ttl, minimum| {
        let soa = SOA::new(name("ns.test."), name("host.test."), 1, 2, 3, 4, minimum);
        Record::from_rdata(name("test."), ttl, RData::SOA(soa))
    };
    let times = Times { floor: secs(1), ceiling: secs(300), stale_for: STALE_FOR };
    for (what, code, kind, answers, authorities, want) in [
        ("the shortest", ResponseCode::NoError, RecordType::A, vec![a(60), a(30), alias(99)], vec![], Some(30)),
        ("the alias's", ResponseCode::NoError, RecordType::A, vec![alias(5), a(60)], vec![], Some(5)),
        ("floor", ResponseCode::NoError, RecordType::A, vec![a(0)], vec![], Some(1)),
        ("top bit", ResponseCode::NoError, RecordType::A, vec![a(u32::MAX)], vec![], Some(1)),
        ("ceiling", ResponseCode::NoError, RecordType::A, vec![a(86_400)], vec![], Some(300)),
        ("any", ResponseCode::NoError, RecordType::ANY, vec![a(60)], vec![], Some(60)),
        ("no name", ResponseCode::NXDomain, RecordType::A, vec![], vec![soa(60, 20)], Some(20)),
        ("no name, SOA's own", ResponseCode::NXDomain, RecordType::A, vec![], vec![soa(10, 20)], Some(10)),
        ("no name without SOA", ResponseCode::NXDomain, RecordType::A, vec![], vec![], None),
        ("no data", ResponseCode::NoError, RecordType::AAAA, vec![], vec![soa(60, 20)], Some(20)),
        ("no data without SOA", ResponseCode::NoError, RecordType::AAAA, vec![], vec![], None),
        ("alias to no data", ResponseCode::NoError, RecordType::AAAA, vec![alias(5)], vec![soa(60, 20)], Some(5)),
        ("alias to nowhere", ResponseCode::NXDomain, RecordType::A, vec![alias(50)], vec![soa(60, 20)], Some(20)),
        ("alias that leaves", ResponseCode::NoError, RecordType::A, vec![alias(5)], vec![], None),
        ("failure", ResponseCode::ServFail, RecordType::A, vec![], vec![soa(60, 20)], None),
    ] {
        let mut message = Message::new(0, MessageType::Response, OpCode::Query);
        message.metadata.response_code = code;
        message.answers = answers;
        message.authorities = authorities;
        assert_eq!(lifetime(&message, kind, &times), want.map(secs), "{what}");
    }
}
