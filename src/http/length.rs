//! How long an answer says to be: one length that counts, or none, so that callers of either version see the same end.

use http::StatusCode;
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};

use super::body::content_length;

/// Leaves the one length that counts in an answer's head, whose body is `empty` where it is known to have none. Gives the
/// length of a body whose leg, for which any transfer coding ends with the connection, does not know of it.
///
/// # Errors
/// Why it cannot be passed on: its lengths differ, or its coding would be lost.
pub fn answer(status: StatusCode, headers: &mut HeaderMap, empty: bool) -> Result<Option<u64>, &'static str> {
    if headers.contains_key(TRANSFER_ENCODING) {
        if !empty && !is_only(headers, &[b"chunked", IDENTITY]) {
            return Err("a transfer coding other than chunked");
        }
        if empty || !headers.contains_key(CONTENT_LENGTH) || !is_only(headers, &[IDENTITY]) {
            // The coding tells the end (RFC 9112 §6.3), and is this leg's alone.
            drop_length(headers);
            return Ok(None);
        }
        let one = the_same(headers).ok_or("lengths that differ")?;
        headers.insert(CONTENT_LENGTH, one);
        return content_length(headers).map(Some).ok_or("a length that is no number");
    }
    let mut all = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(None) };
    let several = first.as_bytes().contains(&b',') || all.next().is_some();
    if status == StatusCode::NO_CONTENT && first != "0" {
        drop_length(headers);
    } else if several {
        let one = the_same(headers).ok_or("lengths that differ")?;
        headers.insert(CONTENT_LENGTH, one);
    }
    Ok(None)
}

/// No coding at all, of servers that know RFC 2616 only.
const IDENTITY: &[u8] = b"identity";

/// Whether there is one transfer coding, and one of these.
fn is_only(headers: &HeaderMap, these: &[&[u8]]) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let listed = |coding: &HeaderValue| these.iter().any(|one| coding.as_bytes().eq_ignore_ascii_case(one));
    codings.next().is_some_and(listed) && codings.next().is_none()
}

/// The length that all of the fields name, and each of their lists (RFC 9110 §8.6).
fn the_same(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all(CONTENT_LENGTH).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let first = all.next()?.trim_ascii();
    (all.all(|other| other.trim_ascii() == first)).then(|| HeaderValue::from_bytes(first).ok()).flatten()
}

#[expect(clippy::disallowed_methods, reason = "another field in this one's place is the least of such a head's faults")]
fn drop_length(headers: &mut HeaderMap) {
    headers.remove(CONTENT_LENGTH);
}
