//! Talking with the kernel: a request and its answer, a list, a batch that is taken whole or not at all.

use std::io::{self, Read};
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::attribute::{HEAD, Message, Writer, messages, u32_at};

const AF_NETLINK: i32 = 16;
/// `NETLINK_ROUTE`.
pub const ROUTE: i32 = 0;
/// `NETLINK_NETFILTER`.
pub const NETFILTER: i32 = 12;

/// `NLM_F_*`.
pub mod flag {
    /// It is a request.
    pub const REQUEST: u16 = 0x1;
    /// It is to be answered even where all is well.
    pub const ACK: u16 = 0x4;
    /// A list changed while it was read.
    pub const INTERRUPTED: u16 = 0x10;
    /// All there are.
    pub const DUMP: u16 = 0x300;
    /// It must not be there yet.
    pub const EXCLUSIVE: u16 = 0x200;
    /// It is made where it is not there.
    pub const CREATE: u16 = 0x400;
    /// At the end.
    pub const APPEND: u16 = 0x800;
}

const ERROR: u16 = 2;
const DONE: u16 = 3;

/// The kernel answers at once; this is for a bug.
const PATIENCE: Duration = Duration::from_secs(10);
/// A batch is one buffer, which must fit.
const BUFFER: usize = 4 << 20;
/// Lists that change while they are read are read again this often.
const READINGS: usize = 8;

/// A socket to one part of the kernel.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no such part.
    pub fn open(protocol: i32) -> io::Result<Self> {
        let socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(protocol)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // What the system's limit leaves of it will do for all but thousands of rules.
        let _ = socket.set_send_buffer_size(BUFFER);
        let _ = socket.set_recv_buffer_size(BUFFER);
        Ok(Self { socket, sequence: 0, buffer: vec![0; 1 << 18] })
    }

    /// The number for a message.
    pub fn number(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends one request and waits for the kernel's word.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ask(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> io::Result<()> {
        let sequence = self.number();
        let mut writer = Writer::default();
        writer.message(kind, flag::REQUEST | flag::ACK | flags, sequence, body);
        self.send(&writer.into_bytes())?;
        self.until(|message| (message.sequence == sequence).then(|| error(message)).flatten())
    }

    /// Sends one question and hands its answer to `each`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn one(&mut self, kind: u16, body: impl FnOnce(&mut Writer), mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let sequence = self.number();
        let mut writer = Writer::default();
        writer.message(kind, flag::REQUEST, sequence, body);
        self.send(&writer.into_bytes())?;
        self.until(|message| match (message.sequence == sequence, message.kind) {
            (false, _) => None,
            (true, ERROR | DONE) => error(message),
            (true, _) => {
                each(message.body);
                Some(Ok(()))
            }
        })
    }

    /// Hands every item of a list to `each`, with its type and body; `each` may see an item twice.
    ///
    /// # Errors
    /// The kernel's.
    pub fn list(&mut self, kind: u16, body: impl Fn(&mut Writer), mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        for _ in 0..READINGS {
            let sequence = self.number();
            let mut writer = Writer::default();
            writer.message(kind, flag::REQUEST | flag::DUMP, sequence, &body);
            self.send(&writer.into_bytes())?;
            let mut changed = false;
            self.until(|message| {
                if message.sequence != sequence {
                    return None;
                }
                changed |= message.flags & flag::INTERRUPTED != 0;
                match message.kind {
                    ERROR | DONE => error(message),
                    _ => {
                        each(message.kind, message.body);
                        None
                    }
                }
            })?;
            if !changed {
                return Ok(());
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Sends a batch whose messages have the numbers `first..=last`, of which the last asks for an answer.
    ///
    /// # Errors
    /// The first message that the kernel refused, by its place, and why; nothing of the batch was then done.
    pub fn batch(&mut self, bytes: &[u8], first: u32, last: u32) -> Result<(), (u32, io::Error)> {
        self.send(bytes).map_err(|error| (0, error))?;
        let mut refused = None;
        let end = self.until(|message| {
            let said = error(message)?;
            let at = message.sequence.wrapping_sub(first);
            if let Err(error) = said
                && refused.is_none()
            {
                refused = Some((at, error));
            }
            // Where the batch as a whole is refused, only its first message is answered.
            (message.sequence == last || (at == 0 && refused.is_some())).then_some(Ok(()))
        });
        match (refused, end) {
            (Some(refused), _) => Err(refused),
            (None, Err(error)) => Err((0, error)),
            (None, Ok(())) => Ok(()),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send(bytes)? {
            sent if sent == bytes.len() => Ok(()),
            _ => Err(Errno::MSGSIZE.into()),
        }
    }

    /// Reads until a message decides.
    fn until(&mut self, mut decides: impl FnMut(Message<'_>) -> Option<io::Result<()>>) -> io::Result<()> {
        loop {
            let length = (&self.socket).read(&mut self.buffer)?;
            let bytes = self.buffer.get(..length).unwrap_or_default();
            if length < HEAD {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // All of a datagram is looked at: the rest of it would be lost otherwise.
            let mut end = None;
            for message in messages(bytes) {
                if end.is_none() {
                    end = decides(message);
                }
            }
            if let Some(end) = end {
                return end;
            }
        }
    }
}

/// What an answer says, if it is one: well, or why not.
fn error(message: Message<'_>) -> Option<io::Result<()>> {
    if !matches!(message.kind, ERROR | DONE) {
        return None;
    }
    let code = u32_at(message.body, 0).map_or(0, u32::cast_signed);
    Some(if code < 0 { Err(io::Error::from_raw_os_error(code.saturating_neg())) } else { Ok(()) })
}
