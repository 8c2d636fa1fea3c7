//! Where a request carries a token: the one text in a field, a cookie or the query that would be one.

use http::header::{AUTHORIZATION, COOKIE, HeaderMap, HeaderName, HeaderValue};
use http::uri::Uri;

use super::token::Fault;
use crate::plan::jwt::Place;
use crate::plan::matching::alike;

/// Which of them a service would read is not known, so none is.
const SEVERAL: Fault = Fault::Invalid("there are several in one place");

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

/// The values of a cookie in one field (RFC 6265 §5.4), without quotes.
fn cookies<'r>(field: &'r HeaderValue, name: &str) -> impl Iterator<Item = Result<&'r str, Fault>> {
    field.as_bytes().split(|byte| *byte == b';').filter_map(move |pair| {
        let pair = pair.trim_ascii();
        let value = pair.strip_prefix(name.as_bytes())?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        Some(std::str::from_utf8(value).map_err(|_| Fault::Invalid("it is no ASCII text")))
    })
}

/// The values of a parameter of the query. Neither its name nor a token has a character that need be written otherwise
/// there; a name that only some services read as this one hides a second token from us or them.
fn parameters<'r>(uri: &'r Uri, name: &str) -> impl Iterator<Item = Result<&'r str, Fault>> {
    const HIDDEN: Fault =
        Fault::Invalid("the name of its parameter is encoded or follows a `;`, which services read in two ways");
    let pairs = uri.query().unwrap_or_default().split('&');
    pairs.filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let means = |piece: &str| decoded(piece.split_once('=').map_or(piece, |(key, _)| key)).eq(name.bytes());
        match pair.split(';').enumerate().find(|(_, piece)| means(piece)) {
            Some((0, _)) if key == name => Some(Ok(value)),
            Some(_) => Some(Err(HIDDEN)),
            None => None,
        }
    })
}

/// What percent-encoding stands for; what is none stands for itself.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.bytes();
    std::iter::from_fn(move || {
        let byte = rest.next()?;
        let mut ahead = rest.clone();
        let mut digit = || ahead.next().and_then(|byte| char::from(byte).to_digit(16));
        let (high, low) = if byte == b'%' { (digit(), digit()) } else { (None, None) };
        let (Some(high), Some(low)) = (high, low) else { return Some(byte) };
        rest = ahead;
        u8::try_from(high * 16 + low).ok()
    })
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
