//! Whether a path means one thing only: rules that look at paths refuse any that servers may read in two ways.

/// Why a path is not normal, in words; `None` for one that is. Nothing is ever rewritten instead: what a rule saw must be
/// the very bytes that the service gets.
///
/// Refused are what RFC 3986 §6.2.2 would normalise and servers read differently: dot segments, empty segments,
/// slashes, backslashes, dots and control characters in percent-encoding, backslashes, parameters (`;`), broken
/// percent-encoding, and encoded bytes that are no UTF-8 (an overlong `%c0%af` is a slash to some). So is what some cut a
/// path off at or trim: an encoded `?` or `#`, a blank at an end of a segment.
pub fn ambiguity(path: &str) -> Option<&'static str> {
    if path == "*" {
        return None;
    }
    let bytes = path.as_bytes();
    let (mut at, mut foreign) = (0, false);
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => return Some("a backslash"),
            b';' => return Some("a `;`"),
            b'/' if bytes.get(at + 1) == Some(&b'/') => return Some("an empty segment"),
            b'/' if is_blank(bytes, at + 1) => return Some("a blank at the beginning of a segment"),
            b'/' if is_dots(bytes.get(at + 1..).unwrap_or_default()) => return Some("a dot segment"),
            b'%' => match (hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
                (Some(high), Some(low)) => match high * 16 + low {
                    b'/' | b'\\' => return Some("an encoded slash"),
                    b'.' => return Some("an encoded dot"),
                    b'%' => return Some("an encoded `%`"),
                    b';' => return Some("an encoded `;`"),
                    b'?' => return Some("an encoded `?`"),
                    b'#' => return Some("an encoded `#`"),
                    b' ' if matches!(bytes.get(at + 3), None | Some(b'/')) => {
                        return Some("a blank at the end of a segment");
                    }
                    0 => return Some("an encoded NUL"),
                    1..=31 | 127 => return Some("an encoded control character"),
                    byte => {
                        foreign |= !byte.is_ascii();
                        at += 2;
                    }
                },
                _ => return Some("broken percent-encoding"),
            },
            _ => {}
        }
        at += 1;
    }
    (foreign && !is_utf8(path)).then_some("encoded bytes that are no UTF-8")
}

/// The bytes that a path means, percent-encoding taken away; what is no encoding stands for itself.
pub fn decoded(path: &str) -> impl Iterator<Item = u8> + Clone {
    decoded_bytes(path.as_bytes())
}

/// The same of any text.
pub fn decoded_bytes(text: &[u8]) -> impl Iterator<Item = u8> + Clone {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        let pair = if first == b'%' { hex(after.first()).zip(hex(after.get(1))) } else { None };
        rest = if pair.is_some() { after.get(2..).unwrap_or_default() } else { after };
        Some(pair.map_or(first, |(high, low)| high * 16 + low))
    })
}

/// Whether the bytes that a path means are UTF-8 (RFC 3629 §4: without overlong forms and surrogates).
fn is_utf8(path: &str) -> bool {
    let mut bytes = decoded(path);
    while let Some(first) = bytes.next() {
        let length = match first {
            0..=0x7f => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => return false,
        };
        // What is missing at the end stays 0, which continues nothing.
        let mut character = [first, 0, 0, 0];
        character.iter_mut().take(length).skip(1).zip(bytes.by_ref()).for_each(|(place, byte)| *place = byte);
        if character.get(..length).is_none_or(|whole| std::str::from_utf8(whole).is_err()) {
            return false;
        }
    }
    true
}

/// Whether an encoded blank stands here.
fn is_blank(bytes: &[u8], at: usize) -> bool {
    bytes.get(at..at + 3) == Some(b"%20")
}

/// Whether the segment that begins here is `.` or `..`.
fn is_dots(rest: &[u8]) -> bool {
    let segment = rest.split(|byte| *byte == b'/').next().unwrap_or_default();
    segment == b"." || segment == b".."
}

fn hex(digit: Option<&u8>) -> Option<u8> {
    let value = char::from(*digit?).to_digit(16)?;
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_with_one_meaning_are_normal() {
        for path in [
            "/",
            "/a",
            "/a/b.c",
            "/a/",
            "/..a",
            "/a..",
            "/.well-known/x",
            "/a%20b",
            "/%C3%A4",
            "/%F0%9F%8C%8D",
            "/a=b,c@d:e",
            "/ä",
            "*",
        ] {
            assert_eq!(ambiguity(path), None, "{path}");
        }
        for (path, why) in [
            ("/a//b", "an empty segment"),
            ("//", "an empty segment"),
            ("/./a", "a dot segment"),
            ("/a/..", "a dot segment"),
            ("/a/../b", "a dot segment"),
            ("/a%2fb", "an encoded slash"),
            ("/a%5Cb", "an encoded slash"),
            ("/%2e%2e/a", "an encoded dot"),
            ("/a%252fb", "an encoded `%`"),
            ("/a%00", "an encoded NUL"),
            ("/a;b=c", "a `;`"),
            ("/a%3Bb", "an encoded `;`"),
            ("/a%3fb", "an encoded `?`"),
            ("/a%23", "an encoded `#`"),
            ("/a%20", "a blank at the end of a segment"),
            ("/%20a", "a blank at the beginning of a segment"),
            ("/a\\b", "a backslash"),
            ("/a%", "broken percent-encoding"),
            ("/a%2", "broken percent-encoding"),
            ("/a%zz", "broken percent-encoding"),
            ("/a%+f", "broken percent-encoding"),
            ("/a%0ab", "an encoded control character"),
            ("/a%7f", "an encoded control character"),
            ("/%c0%afa", "encoded bytes that are no UTF-8"),
            ("/%e0%80%af", "encoded bytes that are no UTF-8"),
            ("/%ed%a0%80", "encoded bytes that are no UTF-8"),
            ("/%E4", "encoded bytes that are no UTF-8"),
            ("/%C3/%A4", "encoded bytes that are no UTF-8"),
            ("/%A4", "encoded bytes that are no UTF-8"),
            ("/%f4%90%80%80", "encoded bytes that are no UTF-8"),
        ] {
            assert_eq!(ambiguity(path), Some(why), "{path}");
        }
    }
}
