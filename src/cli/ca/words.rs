//! Times and foreign texts in plain words, safe for a terminal.

use std::time::{Duration, SystemTime};

use crate::telemetry::stamp::Stamp;
use crate::tls::certificate::Facts;

const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];

/// A length of time in its two largest units: `23 h 58 m`.
pub(in crate::cli) fn span(length: Duration) -> String {
    let mut seconds = length.as_secs();
    let mut parts = Vec::new();
    let largest = UNITS.iter().position(|(_, size)| seconds >= *size).unwrap_or(UNITS.len() - 1);
    for (unit, size) in UNITS.iter().skip(largest).take(2) {
        if seconds >= *size || parts.is_empty() {
            parts.push(format!("{} {unit}", seconds / size));
        }
        seconds %= size;
    }
    parts.join(" ")
}

/// A moment to the second: `2026-01-31T12:00:00Z`.
pub(super) fn moment(at: SystemTime) -> String {
    let text = Stamp(at).to_string();
    text.split_once('.').map_or_else(|| text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

/// How a certificate stands at `now`, and whether it is valid then.
pub(super) fn standing(facts: &Facts, now: SystemTime) -> (String, bool) {
    let length = |from: SystemTime, to: SystemTime| span(to.duration_since(from).unwrap_or_default());
    if now > facts.not_after {
        (format!("EXPIRED {} ago", length(facts.not_after, now)), false)
    } else if now < facts.not_before {
        (format!("NOT YET VALID, only in {}", length(now, facts.not_before)), false)
    } else {
        (format!("expires in {}", length(now, facts.not_after)), true)
    }
}

/// Foreign text without what would command a terminal or turn the reading direction.
pub(super) fn safe(text: &str) -> String {
    let turns = |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn a_span_has_its_two_largest_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 m"),
            (61, "1 m 1 s"),
            (3600, "1 h"),
            (3601, "1 h"),
            (86_280, "23 h 58 m"),
            (86_400, "1 d"),
            (90_061, "1 d 1 h"),
            (315_360_000, "3650 d"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_moment_has_seconds() {
        assert_eq!(moment(UNIX_EPOCH + Duration::from_millis(1999)), "1970-01-01T00:00:01Z");
    }

    #[test]
    fn foreign_text_commands_no_terminal() {
        assert_eq!(safe("CN=Müller \u{1b}[2J\r\n\u{202e}x\u{9b}"), "CN=Müller \\u{1b}[2J\\r\\n\\u{202e}x\\u{9b}");
    }
}
