//! Netlink's bytes: messages, and attributes in them, written and read; what is read may be cut short or nonsense.

/// `NLA_F_NESTED`: what is in an attribute is attributes.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that are its type.
const TYPE: u16 = 0x3fff;
/// Bytes of a message's head.
pub const HEAD: usize = 16;

/// A message, or several, while it is written.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Everything that was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// One message: the rest of its head is zero (the sender, for the kernel to fill in).
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&0_u32.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        self.raw(&flags.to_ne_bytes());
        self.raw(&sequence.to_ne_bytes());
        self.raw(&0_u32.to_ne_bytes());
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.patch(start, &length.to_ne_bytes());
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// An attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |inner| inner.raw(value));
    }

    /// A number as nf_tables wants it, in network order.
    pub fn number(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// A text, with the zero byte at its end.
    pub fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, |inner| {
            inner.raw(text.as_bytes());
            inner.raw(&[0]);
        });
    }

    /// An attribute made of attributes.
    pub fn nest(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        self.attribute(kind | NESTED, inside);
    }

    fn attribute(&mut self, kind: u16, inside: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.raw(&0_u16.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        inside(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.patch(start, &length.to_ne_bytes());
        while !self.bytes.len().is_multiple_of(4) {
            self.bytes.push(0);
        }
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }
}

/// A message that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'b> {
    /// Its type.
    pub kind: u16,
    /// Its flags.
    pub flags: u16,
    /// The number of the message that it answers.
    pub sequence: u32,
    /// What follows the head.
    pub body: &'b [u8],
}

/// The messages in a buffer; what cannot be one ends them.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(bytes.first_chunk().copied()?)).ok()?;
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: bytes.get(HEAD..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// A number of two bytes at a place.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// A number of four bytes at a place.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Attributes that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'b>(pub &'b [u8]);

impl<'b> Attributes<'b> {
    /// Each with its type; what cannot be one ends them.
    pub fn all(self) -> impl Iterator<Item = (u16, &'b [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (length, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind & TYPE, value))
        })
    }

    /// The value of the first of a type.
    pub fn get(self, kind: u16) -> Option<&'b [u8]> {
        self.all().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// Those inside the first of a type.
    pub fn inside(self, kind: u16) -> Option<Self> {
        self.get(kind).map(Attributes)
    }

    /// A number in network order.
    pub fn number(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text, without the zero byte.
    pub fn text(self, kind: u16) -> Option<&'b str> {
        let bytes = self.get(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_as_netlink_lays_it_out() {
        let mut writer = Writer::default();
        writer.message(0x0a00, 0x0405, 7, |body| {
            body.raw(&[1, 0, 0, 0]);
            body.text(1, "ab");
            body.nest(2, |inner| inner.number(3, 0x0102));
        });
        let bytes = writer.into_bytes();
        let expect: &[u8] = &[
            40, 0, 0, 0, 0x00, 0x0a, 0x05, 0x04, 7, 0, 0, 0, 0, 0, 0, 0, // head
            1, 0, 0, 0, // the family
            7, 0, 1, 0, b'a', b'b', 0, 0, // a text, padded
            12, 0, 2, 0x80, 8, 0, 3, 0, 0, 0, 1, 2, // a number in network order, nested
        ];
        #[cfg(target_endian = "little")]
        assert_eq!(bytes, expect);
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.flags, message.sequence), (0x0a00, 0x0405, 7));
        let attributes = Attributes(&message.body[4..]);
        assert_eq!(attributes.text(1), Some("ab"));
        assert_eq!(attributes.inside(2).and_then(|inner| inner.number(3)), Some(0x0102));
        assert_eq!(attributes.get(9), None);
    }

    #[test]
    fn what_is_cut_short_ends_without_a_word() {
        let mut writer = Writer::default();
        writer.message(1, 2, 3, |body| body.text(1, "abc"));
        let bytes = writer.into_bytes();
        for length in 0..bytes.len() {
            assert_eq!(messages(&bytes[..length]).count(), 0, "{length}");
        }
        assert_eq!(messages(&[0; 64]).count(), 0, "a message without length");
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics_or_never_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(messages(&bytes).count() <= bytes.len());
            prop_assert!(Attributes(&bytes).all().count() <= bytes.len());
        }
    }
}
