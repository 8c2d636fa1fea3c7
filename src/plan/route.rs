//! The routes of a peer: which requests each means, where those go, and what is changed on their way.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{StatusCode, Uri};

use super::keyhash;
use super::matching::{Asked, Match, PathMatch, below};
use super::peer::PeerPolicy;
use super::rules::{Priority, RouteGate, SubsetRule};

/// One route. Of a peer's routes the first one that means a request takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What it is called in logs and by `explain`: its name, or its key, as in `peers.payments.routes[2]`.
    pub name: Arc<str>,
    /// Its line in the file.
    pub line: Line,
    /// A request is meant when one of these holds; empty means all.
    pub matches: Vec<Match>,
    /// Where those requests go.
    pub leads: Leads,
    /// What happens to the target of a request that is forwarded.
    pub rewrite: Rewrite,
    /// What is changed in a request's fields.
    pub request: Edits,
    /// What is changed in an answer's fields.
    pub response: Edits,
    /// Faults that are made on purpose.
    pub fault: Option<Fault>,
    /// Who gets a copy of some of its requests.
    pub mirror: Option<Mirror>,
    /// What its requests may take together.
    pub gate: Option<Box<RouteGate>>,
    /// What its requests are worth where a limit in flight is nearly reached, if it says so.
    pub priority: Option<Priority>,
}

/// A peer that gets copies of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Its index among [`super::Plan::peers`].
    pub peer: usize,
    /// The share of the requests that is copied, in parts per million.
    pub share: u32,
}

impl Mirror {
    /// Whether a request is copied; `dice` is a number that is even over all.
    pub fn takes(&self, dice: u64) -> bool {
        (u128::from(dice) * 1_000_000) >> 64 < u128::from(self.share)
    }
}

/// A line in the file, 0 where there is none. Standing elsewhere does not make a route another one, so all are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line(pub u32);

impl PartialEq for Line {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Line {}

impl Route {
    /// Whether it means this request.
    pub fn means(&self, asked: &Asked<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.holds(asked))
    }

    /// Whether what it means depends on this request's path, or it is to change it.
    pub fn needs_path(&self, asked: &Asked<'_>) -> bool {
        let judged = self.matches.iter().any(|one| one.path.is_some() && one.rest_holds(asked));
        judged || (self.rewrite.path.is_some() && self.means(asked))
    }

    /// Whether it looks at paths, which must be normal then.
    pub fn looks_at_paths(&self) -> bool {
        self.matches.iter().any(|one| one.path.is_some()) || self.rewrite.path.is_some()
    }

    /// The longest prefix that led a request here, for a rewrite that replaces it.
    fn prefix(&self, asked: &Asked<'_>) -> Option<&str> {
        let prefixes = self.matches.iter().filter(|one| one.holds(asked)).filter_map(|one| match &one.path {
            Some(PathMatch::Prefix(prefix)) => Some(prefix.as_str()),
            _ => None,
        });
        prefixes.max_by_key(|prefix| prefix.len())
    }
}

/// Where the requests of a route go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To one of these peers.
    To(Split),
    /// Nowhere: the caller is sent elsewhere.
    Redirect(Redirect),
    /// Nowhere: the answer stands in the file.
    Respond(Respond),
}

/// Peers, each with a share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// Never empty; the weights' sum is above zero.
    pub to: Vec<Destination>,
    /// What makes requests of one kind go to one peer.
    pub sticky: Option<Sticky>,
}

/// One peer of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its index among [`super::Plan::peers`].
    pub peer: usize,
    /// Its share relative to the others.
    pub weight: u32,
    /// How it is called: its own policy with what the route says on top.
    pub policy: Arc<PeerPolicy>,
    /// Which of its endpoints may be used; `None` is all. One of its own policy's `subsets`.
    pub subset: Option<Arc<SubsetRule>>,
}

impl Split {
    /// The destination of one request: by the text that makes it stick, else by `dice`, a number that is even over all.
    pub fn choose(&self, stuck: Option<&[u8]>, dice: u64) -> Option<&Destination> {
        if let [only] = self.to.as_slice() {
            return Some(only);
        }
        let total: u64 = self.to.iter().map(|one| u64::from(one.weight)).sum();
        // The high bits of the product: without the bias of a remainder, and without dividing.
        let mut point = keyhash::scale(stuck.map_or(dice, keyhash::hash), total);
        self.to.iter().find(|one| {
            let here = point < u64::from(one.weight);
            point = point.saturating_sub(u64::from(one.weight));
            here
        })
    }
}

/// What makes requests of one kind go to one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sticky {
    /// The value of this field; requests without it are split by chance.
    Header(HeaderName),
    /// The value of this cookie; a caller without it is given one for its session.
    Cookie(String),
}

impl Sticky {
    /// The text that a request sticks by, if it has one.
    pub fn text<'a>(&self, headers: &'a HeaderMap) -> Option<&'a [u8]> {
        match self {
            Self::Header(name) => headers.get(name).map(HeaderValue::as_bytes),
            Self::Cookie(name) => headers.get_all(header::COOKIE).iter().find_map(|field| cookie(field, name)),
        }
    }
}

/// A cookie's value in a Cookie field (RFC 6265 §4.2.1).
fn cookie<'a>(field: &'a HeaderValue, name: &str) -> Option<&'a [u8]> {
    let mut pairs = field.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// What happens to the target of a request that is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// What the path becomes.
    pub path: Option<NewPath>,
    /// What the authority becomes; by default it stays the caller's.
    pub host: Option<HeaderValue>,
}

/// What a path becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewPath {
    /// This, whatever it was.
    Whole(String),
    /// This in place of the prefix that led here.
    Prefix(String),
}

impl NewPath {
    /// The new path with the query it had; `None` where they make no target.
    fn of(&self, route: &Route, asked: &Asked<'_>) -> Option<PathAndQuery> {
        let uri = asked.uri;
        let mut path = match self {
            Self::Whole(path) => path.clone(),
            Self::Prefix(prefix) => {
                let rest = below(uri.path(), route.prefix(asked)?)?;
                let joined = format!("{}{rest}", prefix.trim_end_matches('/'));
                if joined.is_empty() { "/".to_owned() } else { joined }
            }
        };
        if let Some(query) = uri.query() {
            path.push('?');
            path.push_str(query);
        }
        path.try_into().ok()
    }
}

impl Route {
    /// The target that a request is forwarded with, where it is another one.
    pub fn rewritten(&self, asked: &Asked<'_>) -> Option<Uri> {
        let path = self.rewrite.path.as_ref()?.of(self, asked)?;
        let mut parts = asked.uri.clone().into_parts();
        parts.path_and_query = Some(path);
        Uri::from_parts(parts).ok()
    }
}

/// Where a caller is sent; what is not given stays as it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
    /// The host.
    pub host: Option<String>,
    /// The port.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<NewPath>,
}

impl Redirect {
    /// The `Location` for a request that was sent to `host` (and `port`) by `scheme`; `None` where they make none.
    pub fn location(
        &self,
        route: &Route,
        asked: &Asked<'_>,
        scheme: &str,
        host: &str,
        port: Option<u16>,
    ) -> Option<HeaderValue> {
        let path = match &self.path {
            Some(path) => path.of(route, asked)?,
            None => asked.uri.path_and_query()?.clone(),
        };
        // `*` is the server itself, whose URI has no path (RFC 9112 §3.2.4).
        let path = if path == "*" { "" } else { path.as_str() };
        let to = self.scheme.unwrap_or(scheme);
        // A port belongs to the scheme and the host that it was given with.
        let kept = self.scheme.is_none_or(|new| new == scheme) && self.host.is_none();
        let port = self.port.or(port.filter(|_| kept));
        let port = port.filter(|port| !matches!((to, port), ("http", 80) | ("https", 443)));
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        HeaderValue::try_from(format!("{to}://{}{port}{path}", self.host.as_deref().unwrap_or(host))).ok()
    }
}

/// An answer that stands in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// Its status.
    pub status: StatusCode,
    /// Its body.
    pub body: Arc<str>,
    /// The type of its body.
    pub content_type: HeaderValue,
}

/// What is changed in a map of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// Fields that are taken away, all their values.
    pub remove: Vec<HeaderName>,
    /// Fields that get this value in place of those they had.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields that get this value beside those they had.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

impl Edits {
    /// Makes the changes; the order of the other fields stays.
    pub fn make(&self, headers: &mut HeaderMap) {
        let gone = |name: &HeaderName| self.remove.contains(name);
        if self.remove.iter().any(|name| headers.contains_key(name)) {
            // Removing from the map would swap fields.
            let old = std::mem::take(headers);
            headers.reserve(old.len());
            let mut last = None;
            for (name, value) in old {
                let Some(name) = name.or_else(|| last.take()) else { continue };
                if !gone(&name) {
                    headers.append(&name, value);
                }
                last = Some(name);
            }
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

/// Faults that are made on purpose, to see what callers do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The share of the requests that get it, in parts per million.
    pub share: u32,
    /// Only requests with this field get it.
    pub header: Option<HeaderName>,
    /// How long they wait first.
    pub delay: Option<Duration>,
    /// What they are answered with instead of being forwarded.
    pub abort: Option<StatusCode>,
}

impl Fault {
    /// Whether a request gets it; `dice` is a number that is even over all.
    pub fn strikes(&self, headers: &HeaderMap, dice: u64) -> bool {
        self.header.as_ref().is_none_or(|name| headers.contains_key(name))
            && (u128::from(dice) * 1_000_000) >> 64 < u128::from(self.share)
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn rewriting(prefix: &str, path: NewPath) -> Route {
        let one = Match { path: Some(PathMatch::Prefix(prefix.into())), ..Match::default() };
        Route {
            name: "r".into(),
            line: Line(1),
            matches: vec![one],
            leads: Leads::To(Split { to: Vec::new(), sticky: None }),
            rewrite: Rewrite { path: Some(path), host: None },
            request: Edits::default(),
            response: Edits::default(),
            fault: None,
            mirror: None,
            gate: None,
            priority: None,
        }
    }

    #[test]
    fn a_path_is_replaced_and_its_query_stays() {
        let prefix = |new: &str| NewPath::Prefix(new.into());
        for (prefix_asked, new, from, to) in [
            ("/v2", prefix("/v1"), "/v2/a?b=c", "/v1/a?b=c"),
            ("/v2", prefix("/v1/"), "/v2/a", "/v1/a"),
            ("/v2", prefix("/v1"), "/v2", "/v1"),
            ("/v2", prefix("/"), "/v2/a", "/a"),
            ("/v2", prefix("/"), "/v2", "/"),
            ("/", prefix("/new"), "/a", "/new/a"),
            ("/", prefix("/new"), "/", "/new/"),
            ("/v2", NewPath::Whole("/x".into()), "/v2/a?b", "/x?b"),
        ] {
            let route = rewriting(prefix_asked, new);
            let (method, uri, headers) = (Method::GET, from.parse().unwrap(), HeaderMap::new());
            let asked = Asked { method: &method, uri: &uri, headers: &headers };
            assert_eq!(route.rewritten(&asked).unwrap(), *to, "{from}");
        }
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_give() {
        let plain = || Redirect { status: StatusCode::FOUND, scheme: None, host: None, port: None, path: None };
        let route = rewriting("/v2", NewPath::Whole("/".into()));
        for (to, port, expect) in [
            (plain(), Some(8080), "http://shop:8080/v2/a?b"),
            (plain(), None, "http://shop/v2/a?b"),
            (Redirect { scheme: Some("https"), ..plain() }, Some(8080), "https://shop/v2/a?b"),
            (Redirect { scheme: Some("http"), ..plain() }, Some(8080), "http://shop:8080/v2/a?b"),
            (Redirect { host: Some("new".into()), ..plain() }, Some(8080), "http://new/v2/a?b"),
            (Redirect { port: Some(80), ..plain() }, Some(8080), "http://shop/v2/a?b"),
            (Redirect { port: Some(8443), scheme: Some("https"), ..plain() }, None, "https://shop:8443/v2/a?b"),
            (Redirect { path: Some(NewPath::Prefix("/v3".into())), ..plain() }, None, "http://shop/v3/a?b"),
        ] {
            let (method, uri, headers) = (Method::GET, Uri::from_static("/v2/a?b"), HeaderMap::new());
            let asked = Asked { method: &method, uri: &uri, headers: &headers };
            let found = to.location(&route, &asked, "http", "shop", port).unwrap();
            assert_eq!(found, expect);
        }
    }

    #[test]
    fn a_split_gives_each_peer_its_share() {
        let policy = || {
            Arc::new(PeerPolicy {
                balance: super::super::peer::Balance::Random,
                connect_timeout: Duration::from_secs(1),
                request_timeout: None,
                body_idle: Duration::from_secs(1),
                tunnel_idle: Duration::from_secs(1),
                keep_alive: Duration::from_secs(1),
                ..PeerPolicy::default()
            })
        };
        let to = [(0, 90), (1, 0), (2, 10)];
        let to = to.map(|(peer, weight)| Destination { peer, weight, policy: policy(), subset: None }).to_vec();
        let split = Split { to, sticky: None };
        assert_eq!(split.choose(None, 0).unwrap().peer, 0);
        assert_eq!(split.choose(None, u64::MAX).unwrap().peer, 2);
        let mut by_text = [0_u32; 3];
        for n in 0..10_000 {
            let text = format!("user-{n}");
            let one = split.choose(Some(text.as_bytes()), 0).unwrap().peer;
            assert_eq!(split.choose(Some(text.as_bytes()), u64::MAX).unwrap().peer, one, "a text sticks");
            by_text[one] += 1;
        }
        assert!((8800..=9200).contains(&by_text[0]) && by_text[1] == 0, "{by_text:?}");
    }

    #[test]
    fn what_a_request_sticks_by() {
        let fields = headers(&[("x-user", "a"), ("cookie", "x=1; variant=b"), ("cookie", "variant=c")]);
        let text = |sticky: Sticky| sticky.text(&fields).map(|text| String::from_utf8_lossy(text).into_owned());
        assert_eq!(text(Sticky::Header(HeaderName::from_static("x-user"))).as_deref(), Some("a"));
        assert_eq!(text(Sticky::Header(HeaderName::from_static("x-none"))), None);
        assert_eq!(text(Sticky::Cookie("variant".into())).as_deref(), Some("b"));
        assert_eq!(text(Sticky::Cookie("vari".into())), None);
    }

    #[test]
    fn edits_keep_the_order_of_what_they_leave() {
        let mut fields = headers(&[("a", "1"), ("b", "1"), ("c", "1"), ("b", "2"), ("d", "1")]);
        let name = HeaderName::from_static;
        let value = HeaderValue::from_static;
        let edits = Edits {
            remove: vec![name("a"), name("x")],
            set: vec![(name("c"), value("2"))],
            add: vec![(name("b"), value("3"))],
        };
        edits.make(&mut fields);
        let found: Vec<_> = fields.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        assert_eq!(found, ["b=1", "b=2", "b=3", "c=2", "d=1"]);
    }

    #[test]
    fn a_fault_strikes_its_share_of_those_it_is_for() {
        let fault = |share, header| Fault { share, header, delay: None, abort: None };
        let (with, without) = (headers(&[("x-fault", "")]), headers(&[]));
        let half = u64::MAX / 2;
        for (fault, fields, dice, strikes) in [
            (fault(1_000_000, None), &without, u64::MAX, true),
            (fault(0, None), &without, 0, false),
            (fault(500_000, None), &without, half - 1, true),
            (fault(500_000, None), &without, half + 2, false),
            (fault(1_000_000, Some(HeaderName::from_static("x-fault"))), &without, 0, false),
            (fault(1_000_000, Some(HeaderName::from_static("x-fault"))), &with, u64::MAX, true),
        ] {
            assert_eq!(fault.strikes(fields, dice), strikes, "{fault:?} {dice}");
        }
    }
}
