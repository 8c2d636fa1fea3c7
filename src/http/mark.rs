//! The mark of a further attempt, by which the next hops know not to multiply it: a field of our own, and a member of
//! `tracestate`.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::hop::list;

/// Which attempt of the caller's sidecar this is.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-outrigger-attempt");

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
/// Our member of `tracestate`, before the number of the attempt.
const TRACE_MARK: &str = "outrigger=a:";

/// Whether a `tracestate` (W3C Trace Context §3.3) has our member that says "further attempt": services copy it to what
/// they ask in turn, as they do not copy our own field.
pub(super) fn is_marked(state: &HeaderValue) -> bool {
    list(state).any(|member| member.strip_prefix(TRACE_MARK).is_some_and(|attempt| attempt != "1"))
}

/// Marks a request as attempt `n`, for the sidecars behind the peer.
pub fn mark(headers: &mut HeaderMap, n: u32) {
    headers.insert(ATTEMPT, HeaderValue::from(n));
    // Without a `traceparent` nobody looks at the state (§3.3.1).
    if !headers.contains_key(TRACE_PARENT) {
        return;
    }
    let kept = headers.get_all(TRACE_STATE).into_iter().flat_map(list).filter(|one| !one.starts_with(TRACE_MARK));
    let state = std::iter::once(format!("{TRACE_MARK}{n}")).chain(kept.map(str::to_owned)).collect::<Vec<_>>();
    if let Ok(state) = HeaderValue::try_from(state.join(",")) {
        headers.insert(TRACE_STATE, state);
    }
}

/// Takes back what [`mark`] said; the other fields stay in their order.
pub fn unmark(headers: &mut HeaderMap) {
    if !headers.contains_key(ATTEMPT) {
        return;
    }
    let mut kept = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| *name != ATTEMPT) {
        if *name != TRACE_STATE {
            kept.append(name.clone(), value.clone());
            continue;
        }
        let others: Vec<&str> = list(value).filter(|one| !one.starts_with(TRACE_MARK)).collect();
        if let Ok(value) = HeaderValue::try_from(others.join(","))
            && !others.is_empty()
        {
            kept.append(TRACE_STATE, value);
        }
    }
    *headers = kept;
}
