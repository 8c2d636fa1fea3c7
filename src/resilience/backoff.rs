//! How long to wait before a further attempt: exponential with full jitter, and never shorter than the server asked.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use crate::plan::rules::BackoffRule;

/// gRPC's own word for a pause (gRFC A6), in the head of an answer without a body or in its trailers.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// What an answer says about being asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing.
    Nothing,
    /// Not before so long.
    Pause(Duration),
    /// Not at all.
    Never,
}

/// Why there is no further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPause {
    /// The server asked for none.
    Never,
    /// The server asked for a longer pause than [`BackoffRule::asked_cap`].
    TooLong,
}

/// Reads `grpc-retry-pushback-ms` (gRFC A6: negative or unreadable means never) or `Retry-After` (RFC 9110 §10.2.3:
/// seconds or a date; unreadable means nothing). A date is taken against the answer's own `Date`, so that the two
/// clocks need not agree; `wall` serves where there is none.
pub fn asked(fields: &HeaderMap, wall: SystemTime) -> Asked {
    if let Some(pushback) = fields.get(PUSHBACK) {
        let millis = pushback.to_str().ok().and_then(|text| text.trim().parse().ok());
        return millis.map_or(Asked::Never, |millis| Asked::Pause(Duration::from_millis(millis)));
    }
    let text = |name| fields.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let Some(after) = text(header::RETRY_AFTER) else { return Asked::Nothing };
    if !after.is_empty() && after.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit is a long time, not nothing.
        return Asked::Pause(Duration::from_secs(after.parse().unwrap_or(u64::MAX)));
    }
    let Ok(at) = httpdate::parse_http_date(after) else { return Asked::Nothing };
    let from = text(header::DATE).and_then(|date| httpdate::parse_http_date(date).ok()).unwrap_or(wall);
    Asked::Pause(at.duration_since(from).unwrap_or_default())
}

/// The pause before the next attempt, after `retries` further attempts were already made; `roll` is any random number.
///
/// Without a wish of the server's it lies evenly between nothing and `base × 2^retries`, at most `cap` ("full
/// jitter"). With one it is that and the jitter on top, so that all who were told the same do not come back together.
///
/// # Errors
/// The server asked for none, or for more than the rule allows to wait.
pub fn pause(rule: &BackoffRule, retries: u32, roll: u64, asked: Asked) -> Result<Duration, NoPause> {
    let longest = rule.base.saturating_mul(1u32.checked_shl(retries).unwrap_or(u32::MAX)).min(rule.cap);
    let jitter = part(longest, roll);
    match asked {
        Asked::Nothing => Ok(jitter),
        Asked::Never => Err(NoPause::Never),
        Asked::Pause(pause) if pause > rule.asked_cap => Err(NoPause::TooLong),
        Asked::Pause(pause) => Ok(pause + jitter),
    }
}

/// `roll` as a fraction of 2^64, of `whole`.
pub(super) fn part(whole: Duration, roll: u64) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(nanos) * u128::from(roll)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn fields(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_wish_of_an_answer_is_read() {
        let (date, later) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:40 GMT");
        let pause = |secs| Asked::Pause(Duration::from_secs(secs));
        for (list, want) in [
            (&[][..], Asked::Nothing),
            (&[("retry-after", "3")], pause(3)),
            (&[("retry-after", " 0 ")], pause(0)),
            (&[("retry-after", "99999999999999999999999")], pause(u64::MAX)),
            (&[("retry-after", "-1")], Asked::Nothing),
            (&[("retry-after", "")], Asked::Nothing),
            (&[("retry-after", "soon")], Asked::Nothing),
            (&[("retry-after", later), ("date", date)], pause(3)),
            (&[("retry-after", date), ("date", later)], pause(0)),
            // Against the wall clock, which the test puts ten seconds before.
            (&[("retry-after", later)], pause(10)),
            (&[("retry-after", later), ("date", "never")], pause(10)),
            (&[("grpc-retry-pushback-ms", "250")], Asked::Pause(ms(250))),
            (&[("grpc-retry-pushback-ms", "-1")], Asked::Never),
            (&[("grpc-retry-pushback-ms", "x")], Asked::Never),
            (&[("retry-after", "3"), ("grpc-retry-pushback-ms", "5")], Asked::Pause(ms(5))),
        ] {
            let wall = UNIX_EPOCH + Duration::from_secs(784_111_780 - 10);
            assert_eq!(asked(&fields(list), wall), want, "{list:?}");
        }
    }

    #[test]
    fn the_range_doubles_up_to_the_cap() {
        let rule = BackoffRule { base: ms(25), cap: ms(250), asked_cap: ms(1000) };
        for (retries, most) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (31, 250), (32, 250), (u32::MAX, 250)] {
            assert_eq!(pause(&rule, retries, 0, Asked::Nothing), Ok(Duration::ZERO));
            let got = pause(&rule, retries, u64::MAX, Asked::Nothing).unwrap();
            assert!(got <= ms(most) && got > ms(most - 1), "{retries}: {got:?}");
            let half = pause(&rule, retries, 1 << 63, Asked::Nothing).unwrap();
            assert_eq!(half, ms(most) / 2);
        }
    }

    #[test]
    fn an_absurd_wish_ends_the_attempts() {
        let rule = BackoffRule { base: ms(25), cap: ms(250), asked_cap: ms(1000) };
        assert_eq!(pause(&rule, 0, 0, Asked::Never), Err(NoPause::Never));
        assert_eq!(pause(&rule, 0, 0, Asked::Pause(ms(1001))), Err(NoPause::TooLong));
        assert_eq!(pause(&rule, 0, 0, Asked::Pause(Duration::MAX)), Err(NoPause::TooLong));
        assert_eq!(pause(&rule, 0, 0, Asked::Pause(ms(1000))), Ok(ms(1000)));
        assert_eq!(pause(&rule, 1, 1 << 63, Asked::Pause(ms(100))), Ok(ms(125)), "the jitter comes on top");
    }

    proptest! {
        #[test]
        fn a_pause_is_never_shorter_than_asked_nor_longer_than_both_caps(
            base in 0u64..10_000, cap in 0u64..10_000, asked_cap in 0u64..10_000, wish in prop::option::of(0u64..20_000),
            retries in any::<u32>(), roll in any::<u64>()
        ) {
            let rule = BackoffRule { base: ms(base), cap: ms(cap), asked_cap: ms(asked_cap) };
            let wish = wish.map(ms);
            match pause(&rule, retries, roll, wish.map_or(Asked::Nothing, Asked::Pause)) {
                Ok(got) => {
                    prop_assert!(got >= wish.unwrap_or_default());
                    prop_assert!(got <= rule.cap + wish.unwrap_or_default() && wish.unwrap_or_default() <= rule.asked_cap);
                }
                Err(why) => prop_assert!(why == NoPause::TooLong && wish.unwrap() > rule.asked_cap),
            }
        }
    }
}
