//! Where a request carries a token: the one text in a field, a cookie or the query that would be one.

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use http::uri::Uri;

use super::token::Fault;
use crate::plan::jwt::Place;
use crate::plan::matching::alike;
use crate::plan::path::decoded_bytes;

/// Which of them a service would read is not known, so none is.
const SEVERAL: Fault = Fault::Invalid("there are several in one place");

/// A name that only some services read as the place's hides a second token from us or from them.
const HIDDEN: Fault = Fault::Invalid("something stands beside its place that some servers take for the place itself");

/// The token that stands there; `None` where there is none.
///
/// # Errors
/// There are several, or something that is none.
pub fn find<'r>(place: &Place, headers: &'r HeaderMap, uri: &'r Uri) -> Result<Option<&'r str>, Fault> {
    match place {
        Place::Header(name) => in_field(name, headers),
        Place::Cookie(name) => only(headers.get_all(COOKIE).iter().flat_map(|field| cookies(field, name))),
        Place::Query(name) => only(parameters(uri, name)),
    }
}

fn in_field<'r>(name: &HeaderName, headers: &'r HeaderMap) -> Result<Option<&'r str>, Fault> {
    let mut fields = headers.get_all(name).iter();
    let mut found = None;
    let (mut fields_seen, mut tokens) = (0, 0);
    for field in fields.by_ref() {
        fields_seen += 1;
        if let Some(token) = bearer(name, field) {
            tokens += 1;
            found = Some(token?);
        }
    }
    if headers.keys().any(|other| other != name && alike(other, name)) {
        return Err(Fault::Invalid(
            "it stands in a field whose name differs by `_` for `-`, or the like: some servers take both for one",
        ));
    }
    // Also a token beside credentials of another kind: a service could read either.
    if tokens > 0 && fields_seen > 1 { Err(SEVERAL) } else { Ok(found) }
}

/// What follows the word `Bearer` (in any case, RFC 9110 §11.1); in a field of its own the token may stand alone.
fn bearer<'r>(name: &HeaderName, field: &'r HeaderValue) -> Option<Result<&'r str, Fault>> {
    const WORD: &str = "bearer";
    let text = match std::str::from_utf8(field.as_bytes()) {
        Ok(text) => text.trim_matches([' ', '\t']),
        // Nobody's credentials look so but those of somebody who tries what happens.
        Err(_) => return Some(Err(Fault::Invalid("it is no ASCII text"))),
    };
    let named = text.get(..WORD.len()).is_some_and(|word| word.eq_ignore_ascii_case(WORD));
    let rest = text.get(WORD.len()..).filter(|_| named);
    match rest.filter(|rest| rest.is_empty() || rest.starts_with([' ', '\t'])) {
        Some(token) => Some(Ok(token.trim_matches([' ', '\t']))),
        None if *name == AUTHORIZATION => None,
        None => Some(Ok(text)),
    }
}

/// The values of a cookie in one field (RFC 6265 §5.4), without quotes. Some servers cut at commas too (RFC 2109 §4.4).
fn cookies<'r>(field: &'r HeaderValue, name: &str) -> impl Iterator<Item = Result<&'r str, Fault>> {
    field.as_bytes().split(|byte| *byte == b';').filter_map(move |pair| {
        if let Some(value) = cookie(pair.trim_ascii(), name) {
            return Some(std::str::from_utf8(value).map_err(|_| Fault::Invalid("it is no ASCII text")));
        }
        pair.split(|byte| *byte == b',').any(|piece| may_be(name, piece)).then_some(Err(HIDDEN))
    })
}

fn cookie<'r>(pair: &'r [u8], name: &str) -> Option<&'r [u8]> {
    let value = pair.strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
    Some(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value))
}

/// The values of a parameter of the query. Some servers cut at semicolons too.
fn parameters<'r>(uri: &'r Uri, name: &str) -> impl Iterator<Item = Result<&'r str, Fault>> {
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(move |pair| match pair.split_once('=').unwrap_or((pair, "")) {
        (key, value) if key == name => Some(Ok(value)),
        _ => pair.split(';').any(|piece| may_be(name, piece.as_bytes())).then_some(Err(HIDDEN)),
    })
}

/// Whether some server reads a `NAME=VALUE` as a cookie or parameter of this name, which has no character that need be written
/// otherwise: percent-encoding, other letter case, blanks and the like around it, an end at a NUL, what PHP writes as `_`, and
/// its lists (`NAME[]`).
fn may_be(name: &str, piece: &[u8]) -> bool {
    let blank = |byte: &u8| !byte.is_ascii_graphic() || *byte == b'+';
    let gap = |byte: u8| matches!(byte, b'_' | b'.' | b' ' | b'+' | b'[');
    let key = piece.split(|byte| *byte == b'=').next().unwrap_or_default();
    let mut rest = decoded_bytes(key).skip_while(blank);
    let same =
        |mine: u8| rest.next().is_some_and(|theirs| mine.eq_ignore_ascii_case(&theirs) || (gap(mine) && gap(theirs)));
    name.bytes().all(same)
        && match rest.next() {
            None | Some(0 | b'[') => true,
            Some(end) => blank(&end) && rest.all(|byte| blank(&byte)),
        }
}

fn only<'r>(mut all: impl Iterator<Item = Result<&'r str, Fault>>) -> Result<Option<&'r str>, Fault> {
    let first = all.next().transpose()?;
    if all.next().is_some() { Err(SEVERAL) } else { Ok(first) }
}

/// Takes the fields of these names away. The map is made anew, because taking one out would change the others' order.
pub fn strip(names: &[HeaderName], headers: &mut HeaderMap) {
    if !names.iter().any(|name| headers.contains_key(name)) {
        return;
    }
    let mut left = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter(|(name, _)| !names.contains(name)) {
        left.append(name.clone(), value.clone());
    }
    *headers = left;
}
