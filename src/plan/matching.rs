//! What a route asks of a request: its method, its path, its fields, its query, or the gRPC method it calls.

use std::fmt;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Uri};

use crate::config::pattern::{Pattern, Template};

/// The parts of a request's head that routes look at.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its target, normal where [`Match::path`] is asked for.
    pub uri: &'a Uri,
    /// Its fields.
    pub headers: &'a HeaderMap,
}

/// One set of conditions; all of them must hold. Without any it means every request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Match {
    /// The path, without its query.
    pub path: Option<PathMatch>,
    /// One of these methods; empty means any.
    pub methods: Vec<Method>,
    /// What each of these fields must say.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// What each of these parameters must say, as it is written (nothing is decoded).
    pub query: Vec<(String, TextMatch)>,
    /// Whether it must be a gRPC call.
    pub grpc: bool,
}

impl Match {
    /// Whether all conditions hold.
    pub fn holds(&self, asked: &Asked<'_>) -> bool {
        self.miss(asked).is_none()
    }

    /// Whether all conditions hold but that on the path.
    pub fn rest_holds(&self, asked: &Asked<'_>) -> bool {
        self.other_miss(asked).is_none()
    }

    /// The first condition that does not hold.
    pub fn miss(&self, asked: &Asked<'_>) -> Option<Miss<'_>> {
        let path = self.path.as_ref().filter(|path| !path.holds(asked.uri.path()));
        path.map(Miss::Path).or_else(|| self.other_miss(asked))
    }

    fn other_miss(&self, asked: &Asked<'_>) -> Option<Miss<'_>> {
        if !self.methods.is_empty() && !self.methods.contains(asked.method) {
            return Some(Miss::Method(&self.methods));
        }
        let field = |(name, text): &&(_, TextMatch)| !text.holds_for(name, asked.headers);
        if let Some((name, text)) = self.headers.iter().find(field) {
            return Some(Miss::Header(name, text));
        }
        let parameter = |(name, text): &&(String, TextMatch)| !text.holds_any(parameters(asked.uri, name));
        if let Some((name, text)) = self.query.iter().find(parameter) {
            return Some(Miss::Query(name, text));
        }
        (self.grpc && !asked.headers.get(CONTENT_TYPE).is_some_and(is_grpc)).then_some(Miss::Grpc)
    }

    /// Whether every request that `other` means is meant by this one too; false where that is not certain.
    pub fn covers(&self, other: &Self) -> bool {
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(mine), Some(theirs)) => mine.covers(theirs),
            (Some(_), None) => false,
        };
        let method = self.methods.is_empty()
            || (!other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method)));
        path && method
            && self.headers.iter().all(|asked| other.headers.contains(asked))
            && self.query.iter().all(|asked| other.query.contains(asked))
            && (!self.grpc || other.grpc)
    }
}

/// A condition that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss<'m> {
    /// The method is none of these.
    Method(&'m [Method]),
    /// The path is not this.
    Path(&'m PathMatch),
    /// No field of this name says that.
    Header(&'m HeaderName, &'m TextMatch),
    /// No parameter of this name says that.
    Query(&'m str, &'m TextMatch),
    /// It is no gRPC call.
    Grpc,
}

/// In the words of the file.
impl fmt::Display for Miss<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Method([one]) => write!(f, "the method is not {one}"),
            Self::Method(all) => {
                let all: Vec<_> = all.iter().map(Method::as_str).collect();
                write!(f, "the method is none of {}", all.join(", "))
            }
            Self::Path(PathMatch::Exact(path)) => write!(f, "the path is not `{path}`"),
            Self::Path(PathMatch::Prefix(path)) => write!(f, "the path is not `{path}` or below it"),
            Self::Path(PathMatch::Regex(pattern)) => write!(f, "the path does not match `{}`", pattern.text()),
            Self::Path(PathMatch::Template(template)) => write!(f, "the path is not of the form `{}`", template.text()),
            Self::Header(name, text) => write!(f, "the field `{name}` {text}"),
            Self::Query(name, text) => write!(f, "the parameter `{name}` {text}"),
            Self::Grpc => f.write_str("the content-type is not that of gRPC"),
        }
    }
}

/// What a text fails to be.
impl fmt::Display for TextMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present(true) => f.write_str("is missing"),
            Self::Present(false) => f.write_str("is there"),
            Self::Exact(text) => write!(f, "is not `{text}`"),
            Self::Prefix(text) => write!(f, "does not begin with `{text}`"),
            Self::Regex(pattern) => write!(f, "does not match `{}`", pattern.text()),
        }
    }
}

fn bytes(value: &HeaderValue) -> &[u8] {
    value.as_bytes()
}

/// Whether servers may take two names of fields for one: such as make variables of them (RFC 3875 §4.1.18) write `_` for `-`,
/// some for whatever is no letter or digit.
pub fn alike(one: &HeaderName, other: &HeaderName) -> bool {
    let (one, other) = (one.as_str(), other.as_str());
    one.len() == other.len() && one.bytes().map(folded).eq(other.bytes().map(folded))
}

/// A byte of a field's name as those servers write it.
pub fn folded(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte } else { b'-' }
}

/// Whether a content type is gRPC's; `application/grpc-web` is another protocol: its errors ride in the body.
pub fn is_grpc(kind: &HeaderValue) -> bool {
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// The values of a parameter of the query, in order.
fn parameters<'a>(uri: &'a Uri, name: &str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = uri.query().unwrap_or("").split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(key, _)| *key == name).map(|(_, value)| value.as_bytes())
}

/// What a text must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    /// This.
    Exact(String),
    /// Something that begins with this.
    Prefix(String),
    /// Something that this expression matches from its beginning to its end.
    Regex(Pattern),
    /// Anything, as long as it is there (true), or nothing at all (false).
    Present(bool),
}

impl TextMatch {
    /// Whether one of the fields of this name says so.
    pub fn holds_for(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        self.holds_any(headers.get_all(name).iter().map(bytes))
    }

    /// Whether there are fields of this name, if any are asked for, and all of them say so.
    fn holds_for_all(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        let each = || headers.get_all(name).iter().map(bytes);
        self.holds_any(each()) && each().all(|one| self.holds_any(std::iter::once(one)))
    }

    /// Whether a server may find a field of this name that says so, in one of its spellings or as a part of a list (RFC 9110
    /// §5.3), or may find none where none is asked for.
    pub fn may_hold_for(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        match self {
            Self::Present(false) => !headers.contains_key(name),
            text => headers.iter().any(|(other, value)| alike(name, other) && text.may_hold(bytes(value))),
        }
    }

    /// Whether every server finds fields of this name that say so, or none where none is asked for.
    pub fn surely_holds_for(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        // Which of two spellings a server reads is its choice.
        self.holds_for_all(name, headers) && !headers.keys().any(|other| other != name && alike(name, other))
    }

    fn may_hold(&self, value: &[u8]) -> bool {
        let parts = || value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        // An expression is about characters, and which ones other bytes stand for is the server's choice.
        let unread = matches!(self, Self::Regex(_)) && std::str::from_utf8(value).is_err();
        unread || self.holds_any(std::iter::once(value)) || (value.contains(&b',') && self.holds_any(parts()))
    }

    /// Whether this text is meant.
    pub fn holds(&self, text: &str) -> bool {
        self.holds_any(std::iter::once(text.as_bytes()))
    }

    /// Whether one of several texts is meant; `Present(false)` holds where there is none.
    fn holds_any<'a>(&self, mut texts: impl Iterator<Item = &'a [u8]>) -> bool {
        match self {
            Self::Present(there) => texts.next().is_some() == *there,
            Self::Exact(text) => texts.any(|found| found == text.as_bytes()),
            Self::Prefix(text) => texts.any(|found| found.starts_with(text.as_bytes())),
            Self::Regex(pattern) => texts.any(|found| std::str::from_utf8(found).is_ok_and(|text| pattern.holds(text))),
        }
    }
}

/// What a path must be. Paths are compared byte by byte: nothing is decoded and nothing is rewritten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// This path.
    Exact(String),
    /// This path and what lies below it: `/v2` means `/v2` and `/v2/x`, not `/v2x` (as Gateway API's `PathPrefix`).
    Prefix(String),
    /// A path that this expression matches from its beginning to its end.
    Regex(Pattern),
    /// A path of this form.
    Template(Template),
}

impl PathMatch {
    /// Whether a path is meant.
    pub fn holds(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => below(path, prefix).is_some(),
            Self::Regex(pattern) => pattern.holds(path),
            Self::Template(template) => template.holds(path),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Prefix(mine), Self::Prefix(path) | Self::Exact(path)) => below(path, mine).is_some(),
            (mine, Self::Exact(path)) => mine.holds(path),
            (mine, theirs) => mine == theirs,
        }
    }
}

/// What follows a prefix in a path, if the path is the prefix or lies below it.
pub fn below<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn path(kind: &str, text: &str) -> PathMatch {
        match kind {
            "exact" => PathMatch::Exact(text.into()),
            "prefix" => PathMatch::Prefix(text.into()),
            "regex" => PathMatch::Regex(Pattern::new(text).unwrap()),
            _ => PathMatch::Template(Template::new(text).unwrap()),
        }
    }

    #[test]
    fn paths() {
        for (kind, text, yes, no) in [
            ("exact", "/a", &["/a"][..], &["/a/", "/A", "/a/b", "/"][..]),
            ("prefix", "/v2", &["/v2", "/v2/", "/v2/x/y"], &["/v2x", "/v", "/", "/V2/x"]),
            ("prefix", "/v2/", &["/v2", "/v2/", "/v2/x"], &["/v2x"]),
            ("prefix", "/", &["/", "/x", "/x/y"], &[]),
            ("regex", "/a|/b.", &["/a", "/bc"], &["/abc", "/bcd", "/xa", "/a\n"]),
            ("regex", "(?i)/a", &["/A"], &["/b"]),
            (
                "template",
                "/users/{id}/orders",
                &["/users/7/orders"],
                &["/users//orders", "/users/7", "/users/7/orders/"],
            ),
            ("template", "/orders/*", &["/orders", "/orders/", "/orders/7/x"], &["/ordersx", "/order"]),
            ("template", "/{a}/*", &["/x", "/x/y"], &["/", "//y"]),
            ("template", "/*", &["/", "/x"], &["*"]),
            ("template", "/plain", &["/plain"], &["/plain/", "/plai"]),
        ] {
            let rule = path(kind, text);
            for one in yes {
                assert!(rule.holds(one), "{kind} {text} means {one}");
            }
            for one in no {
                assert!(!rule.holds(one), "{kind} {text} does not mean {one}");
            }
        }
    }

    #[test]
    fn every_condition_counts() {
        let request = Request::get("/a/b?x=1&y&x=2&z=%20").header("x-canary", "0").header("x-canary", "1").body(());
        let (parts, ()) = request.unwrap().into_parts();
        let asked = Asked { method: &parts.method, uri: &parts.uri, headers: &parts.headers };
        let header = |name: &'static str, text| Match {
            headers: vec![(HeaderName::from_static(name), text)],
            ..Match::default()
        };
        let query = |name: &str, text| Match { query: vec![(name.to_owned(), text)], ..Match::default() };
        let exact = |text: &str| TextMatch::Exact(text.into());
        for (rule, holds) in [
            (Match::default(), true),
            (Match { methods: vec![Method::POST, Method::GET], ..Match::default() }, true),
            (Match { methods: vec![Method::POST], ..Match::default() }, false),
            (Match { grpc: true, ..Match::default() }, false),
            (Match { path: Some(path("prefix", "/a")), ..header("x-canary", exact("2")) }, false),
            (Match { path: Some(path("prefix", "/a")), ..header("x-canary", exact("1")) }, true),
            (header("x-canary", TextMatch::Present(false)), false),
            (header("x-none", TextMatch::Present(false)), true),
            (header("x-none", TextMatch::Present(true)), false),
            (header("x-canary", TextMatch::Regex(Pattern::new("[1-9]").unwrap())), true),
            (query("x", exact("2")), true),
            (query("x", exact("3")), false),
            (query("y", exact("")), true),
            (query("z", exact("%20")), true),
            (query("z", TextMatch::Prefix("%2".into())), true),
            (query("q", TextMatch::Present(true)), false),
        ] {
            assert_eq!(rule.holds(&asked), holds, "{rule:?}");
        }
    }

    #[test]
    fn a_rule_covers_what_it_certainly_means_too() {
        let on = |path| Match { path: Some(path), ..Match::default() };
        let get = Match { methods: vec![Method::GET], ..Match::default() };
        for (wide, narrow, covers) in [
            (Match::default(), get.clone(), true),
            (get.clone(), Match::default(), false),
            (on(path("prefix", "/a")), on(path("prefix", "/a/b")), true),
            (on(path("prefix", "/a")), on(path("exact", "/a")), true),
            (on(path("prefix", "/a/b")), on(path("prefix", "/a")), false),
            (on(path("regex", "/a.*")), on(path("exact", "/ab")), true),
            (on(path("regex", "/a.*")), on(path("prefix", "/ab")), false),
            (on(path("template", "/{x}")), Match { path: Some(path("template", "/{x}")), ..get }, true),
        ] {
            assert_eq!(wide.covers(&narrow), covers, "{wide:?} {narrow:?}");
        }
    }
}
