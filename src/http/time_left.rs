//! How long a caller still waits, in the fields that carry it: read from the caller, told to the next hop.

use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::head::{DEADLINE, is_grpc_call};
use crate::deadline::Deadline;

pub(super) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Tells the next hop what is left until `deadline`: in gRPC's own field for a gRPC call, else in ours; in both where the
/// caller gave both. Rounded up: what is called must not give up before its caller.
pub fn pass_deadline(headers: &mut HeaderMap, deadline: Deadline) {
    let Some(at) = deadline.instant() else { return };
    let left = at.saturating_duration_since(tokio::time::Instant::now());
    if headers.contains_key(GRPC_TIMEOUT) || is_grpc_call(headers) {
        headers.insert(GRPC_TIMEOUT, grpc_timeout_of(left));
    }
    if headers.contains_key(DEADLINE) || !headers.contains_key(GRPC_TIMEOUT) {
        headers
            .insert(DEADLINE, HeaderValue::from(u64::try_from(left.as_millis()).unwrap_or(u64::MAX).saturating_add(1)));
    }
}

/// In the smallest unit that has room for it in eight digits.
fn grpc_timeout_of(time: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let text = match (time.as_micros() + 1, time.as_millis() + 1) {
        (micros, _) if micros <= MOST => format!("{micros}u"),
        (_, millis) if millis <= MOST => format!("{millis}m"),
        _ => format!("{}S", (u128::from(time.as_secs()) + 1).min(MOST)),
    };
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("99999999S"))
}

/// At most eight digits and a unit (gRPC over HTTP/2, `Timeout`).
pub(super) fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_deadline_is_told_in_the_field_that_the_next_hop_reads() {
        let grpc = ("content-type", "application/grpc");
        for (fields, left, told) in [
            (&[][..], 1_500, &[("x-outrigger-deadline-ms", "1501")][..]),
            (&[("x-outrigger-deadline-ms", "9000")], 1_500, &[("x-outrigger-deadline-ms", "1501")]),
            (&[grpc], 1_500, &[("grpc-timeout", "1500001u")]),
            (&[grpc, ("grpc-timeout", "9H")], 99_999, &[("grpc-timeout", "99999001u")]),
            (&[grpc], 100_000, &[("grpc-timeout", "100001m")]),
            (&[grpc], 200_000_000, &[("grpc-timeout", "200001S")]),
            (
                &[grpc, ("x-outrigger-deadline-ms", "9000")],
                1,
                &[("x-outrigger-deadline-ms", "2"), ("grpc-timeout", "1001u")],
            ),
        ] {
            let mut headers: HeaderMap = fields
                .iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
                .collect();
            let now = tokio::time::Instant::now();
            pass_deadline(&mut headers, Deadline::after(now, Some(Duration::from_millis(left))));
            let found: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            let found: Vec<_> = found.into_iter().filter(|one| *one != grpc).collect();
            assert_eq!(found, told, "{fields:?} {left}");
        }
        let mut headers = HeaderMap::new();
        pass_deadline(&mut headers, Deadline::NONE);
        assert!(headers.is_empty());
    }

    #[test]
    fn grpcs_own_field_has_digits_and_a_unit() {
        for (text, expect) in
            [("1H", Some(3_600_000)), ("20m", Some(20)), ("123456789S", None), ("S", None), ("1x", None), ("", None)]
        {
            assert_eq!(grpc_timeout(&HeaderValue::from_static(text)).map(|d| d.as_millis()), expect, "{text}");
        }
    }
}
