//! Whether a path means one thing only: rules that look at paths refuse any that servers may read in two ways.

/// Why a path is not normal, in words; `None` for one that is. Nothing is ever rewritten instead: what a rule saw must be
/// the very bytes that the service gets.
///
/// Refused are what RFC 3986 §6.2.2 would normalise and servers read differently: dot segments, empty segments,
/// slashes, backslashes, dots and NUL in percent-encoding, backslashes, parameters (`;`), and broken percent-encoding.
pub fn ambiguity(path: &str) -> Option<&'static str> {
    if path == "*" {
        return None;
    }
    let bytes = path.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'\\' => return Some("a backslash"),
            b';' => return Some("a `;`"),
            b'/' if bytes.get(at + 1) == Some(&b'/') => return Some("an empty segment"),
            b'/' if is_dots(bytes.get(at + 1..).unwrap_or_default()) => return Some("a dot segment"),
            b'%' => match (hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
                (Some(high), Some(low)) => match high * 16 + low {
                    b'/' | b'\\' => return Some("an encoded slash"),
                    b'.' => return Some("an encoded dot"),
                    b'%' => return Some("an encoded `%`"),
                    b';' => return Some("an encoded `;`"),
                    0 => return Some("an encoded NUL"),
                    _ => at += 2,
                },
                _ => return Some("broken percent-encoding"),
            },
            _ => {}
        }
        at += 1;
    }
    None
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
        for path in ["/", "/a", "/a/b.c", "/a/", "/..a", "/a..", "/.well-known/x", "/%20", "/%C3%A4", "/a=b,c@d:e", "*"]
        {
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
            ("/a\\b", "a backslash"),
            ("/a%", "broken percent-encoding"),
            ("/a%2", "broken percent-encoding"),
            ("/a%zz", "broken percent-encoding"),
            ("/a%+f", "broken percent-encoding"),
        ] {
            assert_eq!(ambiguity(path), Some(why), "{path}");
        }
    }
}
