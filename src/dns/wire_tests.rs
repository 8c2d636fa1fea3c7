//! What packets are, and what answers look like to those who asked.

use std::net::Ipv4Addr;
use std::str::FromStr;

use hickory_resolver::proto::rr::RData;
use hickory_resolver::proto::rr::rdata::A;
use proptest::prelude::*;

use super::*;

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
    message
}

fn edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_dnssec_ok(true);
    message.set_edns(edns);
    message
}

fn asked(message: &Message) -> Asked {
    match hear(&message.to_vec().unwrap()) {
        Heard::Question(asked) => *asked,
        other => panic!("{other:?}"),
    }
}

fn addresses(name: &str, count: u8) -> Vec<Record> {
    let a = |last| Record::from_rdata(Name::from_str(name).unwrap(), 60, RData::A(A(Ipv4Addr::new(10, 0, 0, last))));
    (0..count).map(a).collect()
}

#[test]
fn what_a_packet_is() {
    let good = query("x.test.", RecordType::A).to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Message)| {
        let mut message = query("x.test.", RecordType::A);
        change(&mut message);
        message.to_vec().unwrap()
    };
    let class = |class| {
        with(&move |message: &mut Message| {
            message.queries[0].set_query_class(class);
        })
    };
    for (what, packet, want) in [
        ("a question", good.clone(), Some(None)),
        ("nothing", vec![], None),
        ("half a header", good[..11].to_vec(), None),
        ("an answer", with(&|m| m.metadata.message_type = MessageType::Response), None),
        ("a header alone", good[..12].to_vec(), Some(Some(ResponseCode::FormErr))),
        ("cut off", good[..good.len() - 1].to_vec(), Some(Some(ResponseCode::FormErr))),
        ("an update", with(&|m| m.metadata.op_code = OpCode::Update), Some(Some(ResponseCode::NotImp))),
        ("no question", with(&|m| m.queries.clear()), Some(Some(ResponseCode::FormErr))),
        (
            "two questions",
            with(&|m| {
                let again = m.queries[0].clone();
                m.add_query(again);
            }),
            Some(Some(ResponseCode::FormErr)),
        ),
        ("another class", class(DNSClass::CH), Some(Some(ResponseCode::Refused))),
        ("a transfer", query("x.test.", RecordType::AXFR).to_vec().unwrap(), Some(Some(ResponseCode::Refused))),
        (
            "a later EDNS",
            with(&|m| {
                m.set_edns(Edns::new().set_version(1).clone());
            }),
            Some(Some(ResponseCode::BADVERS)),
        ),
    ] {
        let got = match hear(&packet) {
            Heard::Nothing => None,
            Heard::Question(_) => Some(None),
            Heard::Refused(answer) => {
                let answer = Message::from_vec(&answer).unwrap();
                assert_eq!((answer.id, answer.metadata.message_type), (0x1234, MessageType::Response), "{what}");
                Some(Some(answer.metadata.response_code))
            }
        };
        // Two names share the number of BADVERS.
        let number = |code: Option<ResponseCode>| code.map(u16::from);
        assert_eq!(got.map(number), want.map(number), "{what}");
    }
}

#[test]
fn an_answer_repeats_the_question_letter_by_letter() {
    let asked = asked(&edns(query("PayMents.TEST.", RecordType::A), 4096));
    assert_eq!(asked.question.name, Name::from_str("payments.test.").unwrap());
    assert!(asked.question.name.eq_case(&Name::from_str("payments.test.").unwrap()));
    let note = Note::stale("nobody is there", false);
    let said = Said { answers: addresses("payments.test.", 1), note: Some(note), ..Said::default() };
    let answer = Message::from_vec(&asked.write(said, asked.most_udp())).unwrap();
    let written = Name::from_str("PayMents.TEST.").unwrap();
    assert!(answer.queries[0].name().eq_case(&written) && answer.answers[0].name.eq_case(&written));
    assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
    let edns = answer.edns.unwrap();
    assert_eq!((usize::from(edns.max_payload()), edns.flags().dnssec_ok), (MOST_UDP, true));
    let EdnsOption::Unknown(15, error) = edns.option(EXTENDED_ERROR.into()).unwrap() else { panic!() };
    assert_eq!(error, b"\0\x03nobody is there");
}

#[test]
fn who_spoke_no_edns_hears_none() {
    let asked = asked(&query("x.test.", RecordType::A));
    let answer = asked.write(Said::failed(Note::unreachable("x")), asked.most_udp());
    let answer = Message::from_vec(&answer).unwrap();
    assert!(answer.edns.is_none() && answer.metadata.response_code == ResponseCode::ServFail);
}

#[test]
fn what_does_not_fit_is_cut_off_and_says_so() {
    for (size, answers, others, whole, extra) in [
        (None, 5, 0, true, 0),
        (None, 10, 30, true, 0),
        (None, 40, 0, false, 0),
        (Some(100), 40, 0, false, 0),
        (Some(1232), 40, 30, true, 30),
        (Some(1232), 70, 30, true, 0),
        (Some(4096), 100, 0, false, 0),
    ] {
        let question = query("x.test.", RecordType::A);
        let asked = asked(&size.map_or(question.clone(), |size| edns(question, size)));
        let said = Said {
            answers: addresses("x.test.", answers),
            additionals: addresses("y.test.", others),
            ..Said::default()
        };
        let bytes = asked.write(said.clone(), asked.most_udp());
        assert!(bytes.len() <= asked.most_udp());
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.truncation, !whole, "{size:?} {answers}");
        assert_eq!(answer.answers.len(), if whole { answers.into() } else { 0 }, "{size:?} {answers}");
        assert_eq!(answer.additionals.len(), extra, "{size:?} {answers}");
        let over_tcp = Message::from_vec(&asked.write(said, MOST_TCP)).unwrap();
        assert!(over_tcp.answers.len() == usize::from(answers) && !over_tcp.metadata.truncation);
    }
}

#[test]
fn what_no_message_holds_is_cut_off_even_over_tcp() {
    let asked = asked(&query("x.test.", RecordType::A));
    let answers = (0..30).flat_map(|_| addresses("x.test.", 200)).collect();
    let answer = Message::from_vec(&asked.write(Said { answers, ..Said::default() }, MOST_TCP)).unwrap();
    assert!(answer.metadata.truncation && answer.answers.is_empty());
}

#[test]
fn a_long_reason_is_cut_between_letters() {
    let asked = asked(&edns(query("x.test.", RecordType::A), 512));
    let answer = asked.write(Said::failed(Note::unreachable(&"ä".repeat(300))), asked.most_udp());
    let answer = Message::from_vec(&answer).unwrap();
    assert!(!answer.metadata.truncation);
    let edns = answer.edns.unwrap();
    let EdnsOption::Unknown(_, error) = edns.option(EXTENDED_ERROR.into()).unwrap() else { panic!() };
    assert_eq!(std::str::from_utf8(&error[2..]).unwrap(), "ä".repeat(100));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_is_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        hear(&bytes);
    }

    #[test]
    fn a_question_that_was_bent_gets_an_answer_that_can_be_read(
        seed in 0..4usize,
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        more in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut packet = match seed {
            0 => query("x.test.", RecordType::A),
            1 => edns(query("a.long.name.with.labels.test.", RecordType::HTTPS), 1232),
            2 => edns(query("35.126.240.240.in-addr.arpa.", RecordType::PTR), 4096),
            _ => {
                let mut message = edns(query("x.test.", RecordType::ANY), 512);
                message.additionals = addresses("x.test.", 3);
                message
            }
        }.to_vec().unwrap();
        for (at, byte) in flips {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        packet.truncate(packet.len() - cut.index(packet.len()) / 8);
        packet.extend(more);
        let answer = match hear(&packet) {
            Heard::Nothing => return Ok(()),
            Heard::Refused(answer) => answer,
            Heard::Question(asked) => {
                let hosts = crate::plan::virtual_ips::VirtualIps::of(["x.test", "payments"]);
                let both = crate::dns::own::Families { v4: true, v6: true };
                let said = crate::dns::own::answer(&asked.question, &hosts, &[], |_| both);
                asked.write(said.unwrap_or_else(|| Said::failed(Note::unreachable("x"))), asked.most_udp())
            }
        };
        prop_assert!(answer.len() <= MOST_UDP);
        prop_assert!(answer[..2] == packet[..2], "another id");
        prop_assert!(answer[2] & 0x80 != 0);
        prop_assert!(Message::from_vec(&answer).is_ok());
    }
}
