//! The messages of the DNS door: what a packet asks, and how an answer is written for whoever asked.
//!
//! Pure; hickory reads and writes the records. Whatever comes in, nothing here panics, and what is no question is never
//! answered with anything longer than itself.

use hickory_resolver::proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_resolver::proto::rr::rdata::opt::EdnsOption;
use hickory_resolver::proto::rr::{DNSClass, Name, Record, RecordType};

use super::servers::Question;

/// The longest answer over UDP, whatever the asker could take: it is never fragmented (DNS flag day 2020).
pub const MOST_UDP: usize = 1232;
/// What every asker can take over UDP (RFC 1035 §4.2.1).
const LEAST_UDP: usize = 512;
/// A message over TCP has a length of two bytes.
pub const MOST_TCP: usize = 65_535;
const HEADER: usize = 12;
/// Extended DNS errors (RFC 8914) are an option of this code.
const EXTENDED_ERROR: u16 = 15;
/// No more than this of a reason is written into an answer.
const LONGEST_NOTE: usize = 200;

/// A question as it came in.
#[derive(Debug, Clone)]
pub struct Asked {
    id: u16,
    /// As written; the answer repeats it.
    query: Query,
    recursion_desired: bool,
    /// The EDNS record's size, where there is one.
    edns: Option<u16>,
    /// What is asked, with the name in lower case.
    pub question: Question,
}

/// What a packet is.
#[derive(Debug)]
pub enum Heard {
    /// A question.
    Question(Box<Asked>),
    /// Not one that is answered here; this says so.
    Refused(Vec<u8>),
    /// Not one at all, an answer among them: two that answer each other never end.
    Nothing,
}

/// An answer before it is written.
#[derive(Debug, Clone, Default)]
pub struct Said {
    /// How it went.
    pub code: ResponseCode,
    /// The answer section.
    pub answers: Vec<Record>,
    /// The authority section.
    pub authorities: Vec<Record>,
    /// The additional section, which is left away first.
    pub additionals: Vec<Record>,
    /// Whether it is our own to say (AA).
    pub authoritative: bool,
    /// Whether the server has verified it (AD).
    pub authentic: bool,
    /// What else there is to say of it.
    pub note: Option<Note>,
}

/// An extended error (RFC 8914).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The code.
    pub code: u16,
    /// In words.
    pub text: String,
}

impl Note {
    /// RFC 8914 §4.4 and §4.20: what is old is given because nothing newer can be had.
    pub fn stale(why: &str, absent: bool) -> Self {
        Self { code: if absent { 19 } else { 3 }, text: why.into() }
    }

    /// RFC 8914 §4.23: no server gave an answer.
    pub fn unreachable(why: &str) -> Self {
        Self { code: 22, text: why.into() }
    }

    /// RFC 8914 §4.15: not now.
    pub fn not_ready(why: &str) -> Self {
        Self { code: 14, text: why.into() }
    }
}

impl Said {
    /// A failure with its reason.
    pub fn failed(note: Note) -> Self {
        Self { code: ResponseCode::ServFail, note: Some(note), ..Self::default() }
    }
}

/// Reads a packet.
pub fn hear(packet: &[u8]) -> Heard {
    let Some(&[high, low, flags, ..]) = packet.first_chunk::<HEADER>() else { return Heard::Nothing };
    let id = u16::from_be_bytes([high, low]);
    if flags & 0x80 != 0 {
        return Heard::Nothing;
    }
    let bare = |code| Heard::Refused(bare(id, flags, code));
    if (flags >> 3) & 0xf != u8::from(OpCode::Query) {
        return bare(ResponseCode::NotImp);
    }
    let Ok(message) = Message::from_vec(packet) else { return bare(ResponseCode::FormErr) };
    let [query] = message.queries.as_slice() else { return bare(ResponseCode::FormErr) };
    let asked = Asked::of(id, &message, query);
    if message.version() > 0 {
        return Heard::Refused(asked.refuse(ResponseCode::BADVERS));
    }
    match (query.query_class(), query.query_type()) {
        (DNSClass::IN, RecordType::AXFR | RecordType::IXFR) => Heard::Refused(asked.refuse(ResponseCode::Refused)),
        (DNSClass::IN, _) => Heard::Question(Box::new(asked)),
        _ => Heard::Refused(asked.refuse(ResponseCode::Refused)),
    }
}

/// A header alone; the opcode and the wish for recursion are the asker's own.
fn bare(id: u16, flags: u8, code: ResponseCode) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    let [high, low] = id.to_be_bytes();
    let said = [high, low, 0x80 | (flags & 0x79), 0x80 | (code.low() & 0xf)];
    header.splice(..said.len(), said);
    header
}

impl Asked {
    fn of(id: u16, message: &Message, query: &Query) -> Self {
        let edns = message.edns.as_ref();
        Self {
            id,
            query: query.clone(),
            recursion_desired: message.metadata.recursion_desired,
            edns: edns.map(Edns::max_payload),
            question: Question {
                name: query.name().to_lowercase(),
                kind: query.query_type(),
                dnssec_ok: edns.is_some_and(|edns| edns.flags().dnssec_ok),
                checking_disabled: message.metadata.checking_disabled,
                guarded: true,
            },
        }
    }

    /// The longest answer that may be sent over UDP.
    pub fn most_udp(&self) -> usize {
        self.edns.map_or(LEAST_UDP, |size| usize::from(size).clamp(LEAST_UDP, MOST_UDP))
    }

    fn refuse(&self, code: ResponseCode) -> Vec<u8> {
        self.write(Said { code, ..Said::default() }, LEAST_UDP)
    }

    /// The answer in at most `most` bytes: without its additional section, or else without any record and marked as cut
    /// off (TC), where it is longer.
    pub fn write(&self, said: Said, most: usize) -> Vec<u8> {
        let mut message = self.message(said);
        for cut in 0..3 {
            match cut {
                0 => {}
                1 => message.additionals.clear(),
                _ => {
                    message.answers.clear();
                    message.authorities.clear();
                    message.metadata.truncation = true;
                }
            }
            match message.to_vec() {
                // hickory cuts off by itself what no message can hold.
                Ok(bytes) if bytes.len() <= most && (cut == 2 || !is_cut_off(&bytes)) => return bytes,
                _ => {}
            }
        }
        // Not to be written at all; records that were read could be.
        bare(self.id, 0, ResponseCode::ServFail)
    }

    fn message(&self, said: Said) -> Message {
        let mut message = Message::new(self.id, MessageType::Response, OpCode::Query);
        let flags = &mut message.metadata;
        flags.response_code = said.code;
        flags.recursion_desired = self.recursion_desired;
        flags.recursion_available = true;
        flags.authoritative = said.authoritative;
        flags.authentic_data = said.authentic;
        flags.checking_disabled = self.question.checking_disabled;
        // An asker that mixes the case of letters as a guard finds its own everywhere.
        let as_asked = |mut record: Record| {
            if record.name == *self.query.name() {
                record.name = self.query.name().clone();
            }
            record
        };
        message.answers = said.answers.into_iter().map(as_asked).collect();
        message.authorities = said.authorities;
        message.additionals = said.additionals;
        message.add_query(self.query.clone());
        if self.edns.is_some() {
            message.set_edns(self.edns(said.note));
        }
        message
    }

    fn edns(&self, note: Option<Note>) -> Edns {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(MOST_UDP).unwrap_or_default()).set_dnssec_ok(self.question.dnssec_ok);
        if let Some(Note { code, text }) = note {
            let mut data = code.to_be_bytes().to_vec();
            data.extend(text.bytes().take(text.floor_char_boundary(LONGEST_NOTE)));
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, data));
        }
        edns
    }
}

fn is_cut_off(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & 0x02 != 0)
}

/// The name as the plan writes it: lower case, without a trailing dot.
pub fn host(name: &Name) -> String {
    let mut host = name.to_ascii().to_ascii_lowercase();
    if host.ends_with('.') {
        host.pop();
    }
    host
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
