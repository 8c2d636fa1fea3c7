//! Where a request came from, as the next hop is told in `X-Forwarded-For` and `X-Forwarded-Proto`.

use http::header::{self, HeaderMap, HeaderValue};

use super::head::{FORWARDED_FOR, FORWARDED_PROTO, Rules};

/// Where the caller is and what it speaks: of one that is not believed always (its own words are gone by now), of a
/// sidecar of the mesh where it says neither.
pub(super) fn tell(headers: &mut HeaderMap, rules: &Rules<'_>) {
    let Some(client) = rules.client.filter(|_| !rules.trusted || rules.fills) else { return };
    let proto = HeaderValue::from_static(if rules.tls { "https" } else { "http" });
    if !rules.trusted {
        headers.insert(FORWARDED_FOR, client.clone());
        headers.insert(FORWARDED_PROTO, proto);
        return;
    }
    // Beside `Forwarded` (RFC 7239), which says both, they would only contradict it.
    if headers.contains_key(header::FORWARDED) {
        return;
    }
    headers.entry(FORWARDED_FOR).or_insert_with(|| client.clone());
    headers.entry(FORWARDED_PROTO).or_insert(proto);
}
