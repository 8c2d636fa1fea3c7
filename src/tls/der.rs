//! Reads DER one element at a time (X.690), for the few facts of a certificate that the library keeps to itself.

use std::time::Duration;

use rustls_pki_types::UnixTime;

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Elements one after another. Each read gives `None` where the bytes hold no such element, and then stays in place.
#[derive(Clone, Copy)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    /// The next element's tag and content.
    pub(super) fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // The long form; four bytes of length are more than a handshake can carry.
            0x81..=0x84 => {
                let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next element, which has this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let (found, content) = ahead.any()?;
        (found == tag).then(|| {
            *self = ahead;
            content
        })
    }

    /// The elements in the next one, which has this tag.
    pub(super) fn inside(&mut self, tag: u8) -> Option<Self> {
        self.expect(tag).map(Self)
    }

    /// A moment (RFC 5280 §4.1.2.5), in UTC and to the second; what lies before 1970 is 1970.
    pub(super) fn time(&mut self) -> Option<UnixTime> {
        let (tag, text) = self.any()?;
        let (digits, zone) = text.split_at_checked(text.len().checked_sub(1)?)?;
        if zone != b"Z" || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let (year, rest) = match (tag, digits.len()) {
            (UTC_TIME, 12) => digits.split_at_checked(2)?,
            (GENERALIZED_TIME, 14) => digits.split_at_checked(4)?,
            _ => return None,
        };
        let number = |text: &[u8]| text.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit & 0x0f));
        let year = match (tag, number(year)) {
            (UTC_TIME, year @ 50..) => 1900 + year,
            (UTC_TIME, year) => 2000 + year,
            (_, year) => year,
        };
        let mut pairs = rest.chunks(2).map(number);
        let [month, day, hour, minute, second] = std::array::from_fn(|_| pairs.next().unwrap_or_default());
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 59 {
            return None;
        }
        let seconds = (days(year, month, day) * 24 + hour) * 3600 + minute * 60 + second;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(if year < 1970 { 0 } else { seconds })))
    }
}

/// Days since 1970. Counted in years that begin in March, so that the leap day is the last of its year and month
/// lengths follow one line: (153 m + 2) / 5.
fn days(year: u64, month: u64, day: u64) -> u64 {
    const DAYS_FROM_MARCH_OF_YEAR_0: u64 = 719_468;
    let (year, from_march) = if month > 2 { (year, month - 3) } else { (year.saturating_sub(1), month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day - 1;
    days.saturating_sub(DAYS_FROM_MARCH_OF_YEAR_0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, content.len() as u8], content].concat()
    }

    #[test]
    fn moments() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (UTC_TIME, "500101000000Z", Some(0)),
            (UTC_TIME, "000229123456Z", Some(951_827_696)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "00000101000000Z", Some(0)),
            (GENERALIZED_TIME, "99991231235959Z", Some(253_402_300_799)),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000+0100", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "700100000000Z", None),
            (UTC_TIME, "700101240000Z", None),
            (GENERALIZED_TIME, "700101000000Z", None),
            (GENERALIZED_TIME, "20500101000000.5Z", None),
            (OCTET_STRING, "700101000000Z", None),
            (UTC_TIME, "", None),
        ] {
            let read = Der(&element(tag, text.as_bytes())).time().map(|time| time.as_secs());
            assert_eq!(read, seconds, "{text}");
        }
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        let whole = element(SEQUENCE, &element(INTEGER, &[1]));
        for end in 0..whole.len() {
            assert!(Der(&whole[..end]).any().is_none(), "{end}");
        }
        let mut der = Der(&whole);
        assert!(der.expect(OID).is_none());
        assert_eq!(der.inside(SEQUENCE).unwrap().expect(INTEGER), Some(&[1][..]));
        assert!(der.any().is_none());
        for bytes in [&[0x30, 0x80, 0, 0][..], &[0x30, 0x85, 0, 0, 0, 0, 0], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]] {
            assert!(Der(bytes).any().is_none());
        }
    }

    proptest! {
        #[test]
        fn any_moment_is_read_as_the_calendar_has_it(
            year in 1970i32..=9999, month in 1u8..=12, day in 1u8..=28, of_day in 0u64..86_400,
        ) {
            let midnight = rcgen::date_time_ymd(year, month, day).unix_timestamp() as u64;
            let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
            let text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
            let read = Der(&element(GENERALIZED_TIME, text.as_bytes())).time();
            prop_assert_eq!(read.map(|time| time.as_secs()), Some(midnight + of_day));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut der = Der(&bytes);
            let _ = Der(&bytes).time();
            while der.any().is_some() {}
        }
    }
}
