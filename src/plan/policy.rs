//! Who may ask what of the service: rules that deny, then rules that allow. Pure: it is given facts and says yes or no.
//!
//! A doubt never helps the caller. A rule that denies means all spellings that a server may take for its own (letter case,
//! a slash at the end, `_` for `-` in a field's name, an address in any notation) and all ports that lead to the app; one
//! that allows means only what it says.
//! What cannot be seen in opaque bytes (a path, say) is taken to be there by a rule that denies, and to be missing by one
//! that allows.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{HeaderMap, HeaderName};
use http::{Method, Uri};
use ipnet::IpNet;

use super::claims::{ClaimRule, Claims};
use super::door::{DoorPlan, Leads};
use super::host::HostRule;
use super::matching::TextMatch;
use super::path::decoded;
use super::peer::{Addresses, PeerPlan};
use super::route::Line;
use crate::spiffe::{IdMatch, SpiffeId};

/// The rules of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// What one of these means is kept out.
    pub deny: Vec<Rule>,
    /// Where there are any, only what one of these means is let in.
    pub allow: Vec<Rule>,
    /// Paths of which a plain GET is let in, whoever asks.
    pub probes: Vec<String>,
    /// Whether what would be kept out is let in and only told of.
    pub audit: bool,
}

/// One rule: all that is given must hold; what is empty means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its key in the file, as `inbound.allow[0]`.
    pub name: Arc<str>,
    /// Its line in the file.
    pub line: Line,
    /// Who calls; a caller without an identity is none of them.
    pub from: Vec<IdMatch>,
    /// From where.
    pub addresses: Vec<IpNet>,
    /// The ports of this service that it came to; by a rule that denies also those by which it could have come.
    pub ports: Vec<u16>,
    /// The methods.
    pub methods: Vec<Method>,
    /// The paths.
    pub paths: Vec<PathRule>,
    /// The hosts.
    pub hosts: Vec<HostRule>,
    /// What the fields must say.
    pub headers: Vec<(HeaderName, TextMatch)>,
    /// What one verified token must say.
    pub claims: Vec<ClaimRule>,
}

/// A path, or it and all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRule {
    /// As the file writes it, without the `/*`.
    pub path: String,
    /// Whether what lies below it is meant too.
    pub below: bool,
}

/// What is known about a request, or a connection of opaque bytes, when it is judged.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Who calls, where that is proven.
    pub identity: Option<&'a SpiffeId>,
    /// From where; `None` is a Unix socket.
    pub address: Option<IpAddr>,
    /// The ports of this service that it came by.
    pub ports: Ports,
    /// What is asked; `None` is opaque bytes.
    pub request: Option<Asked<'a>>,
}

/// The ports by which a connection is known: several lead to one app, and a caller has the choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The one that its caller dialled; `None` is a Unix socket.
    pub dialled: Option<u16>,
    /// Its door's, and that at which the app listens that it leads to.
    pub others: [Option<u16>; 2],
}

impl Ports {
    /// Those of a connection to this door, which was going to `original` where it was captured; `app` is the peer that the
    /// door leads to.
    pub fn of(door: &DoorPlan, app: Option<&PeerPlan>, original: Option<SocketAddr>) -> Self {
        let listens = door.listen.tcp().map(|addr| addr.port());
        let dialled = original.map(|addr| addr.port()).or(listens);
        let port = |app: &PeerPlan| match &app.source.addresses {
            Addresses::Static(specs) => specs.first()?.addr.tcp().map(|addr| addr.port()),
            _ => None,
        };
        let others = match door.leads {
            Leads::Peer(_) => [listens, app.and_then(port)],
            // A door that leads to any port says nothing of one, and none of the others leads there.
            Leads::Dialled | Leads::ByAuthority => [None, None],
        };
        Self { dialled, others }
    }

    fn have(&self, port: u16, sense: Sense) -> bool {
        self.dialled == Some(port) || (sense == Sense::Wide && self.others.contains(&Some(port)))
    }
}

/// A request as it was sent, its head normalised and its path normal where [`Policy::judges_paths`].
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its target.
    pub uri: &'a Uri,
    /// Its fields.
    pub headers: &'a HeaderMap,
    /// The host it names, as it was written.
    pub host: &'a str,
    /// The port it names, or else the scheme's.
    pub host_port: u16,
    /// Whether it asks for a tunnel, by an upgrade or an extended CONNECT.
    pub tunnel: bool,
    /// Whether a body follows.
    pub body: bool,
    /// The verified tokens that it carries.
    pub tokens: &'a [Arc<Claims>],
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'p> {
    /// Nothing is against it: there are no rules that allow.
    Free,
    /// A probe lets it in.
    Probe,
    /// This rule lets it in.
    Allowed(&'p Rule),
    /// This rule keeps it out.
    Denied(&'p Rule),
    /// Rules allow things, and none allows this.
    NoneAllows,
    /// It carries no token, and a rule that asks for claims keeps it out for that alone.
    TokenMissing,
}

impl Verdict<'_> {
    /// Whether it is kept out.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied(_) | Self::NoneAllows | Self::TokenMissing)
    }
}

impl Policy {
    /// Whether there is nothing to judge.
    pub fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    /// Whether a rule for these ports looks at paths, which must be normal then.
    pub fn judges_paths(&self, ports: &Ports) -> bool {
        let looks = |rules: &[Rule], sense| {
            let mut rules = rules.iter();
            rules.any(|rule| !rule.paths.is_empty() && rule.means_port(ports, sense))
        };
        looks(&self.deny, Sense::Wide) || looks(&self.allow, Sense::Narrow)
    }

    /// The names of all claims that rules ask for, each once.
    pub fn claims(&self) -> Vec<String> {
        let all = self.deny.iter().chain(&self.allow).flat_map(|rule| &rule.claims);
        all.map(|claim| claim.name.clone()).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
    }

    /// What becomes of a request or connection with these facts.
    pub fn decide(&self, facts: &Facts<'_>) -> Verdict<'_> {
        let bare = facts.request.is_some_and(|asked| asked.tokens.is_empty());
        if let Some(rule) = self.deny.iter().find(|rule| rule.means(facts, Sense::Wide)) {
            return if bare && !rule.claims.is_empty() { Verdict::TokenMissing } else { Verdict::Denied(rule) };
        }
        if self.allow.is_empty() {
            return Verdict::Free;
        }
        if facts.request.is_some_and(|asked| self.is_probe(&asked)) {
            return Verdict::Probe;
        }
        match self.allow.iter().find(|rule| rule.means(facts, Sense::Narrow)) {
            Some(rule) => Verdict::Allowed(rule),
            None if bare && self.allow.iter().any(|rule| rule.lacks_token(facts)) => Verdict::TokenMissing,
            None => Verdict::NoneAllows,
        }
    }

    /// Whether it is let in whoever asks. A tunnel is no probe: what would follow is no GET. Nor is a GET with a body:
    /// servers that do not read it take it for the next request on a connection that others share.
    pub fn is_probe(&self, asked: &Asked<'_>) -> bool {
        let plain = *asked.method == Method::GET && !asked.tunnel && !asked.body;
        plain && self.probes.iter().any(|path| path == asked.uri.path())
    }
}

/// How a rule is read where servers differ or nothing can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sense {
    /// By a rule that denies.
    Wide,
    /// By a rule that allows.
    Narrow,
}

impl Rule {
    /// Whether it looks at what only a request has.
    pub fn needs_request(&self) -> bool {
        let head = !self.paths.is_empty() || !self.hosts.is_empty() || !self.headers.is_empty();
        head || !self.methods.is_empty() || !self.claims.is_empty()
    }

    /// Whether it asks for claims and allows all else of a request that carries no token.
    fn lacks_token(&self, facts: &Facts<'_>) -> bool {
        let rest = |asked| self.means_head(asked, Sense::Narrow);
        !self.claims.is_empty() && self.means_caller(facts, Sense::Narrow) && facts.request.as_ref().is_some_and(rest)
    }

    fn means_port(&self, ports: &Ports, sense: Sense) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|port| ports.have(*port, sense))
    }

    fn means(&self, facts: &Facts<'_>, sense: Sense) -> bool {
        self.means_caller(facts, sense)
            && match &facts.request {
                Some(asked) => self.means_head(asked, sense) && self.means_token(asked.tokens, sense),
                None => sense == Sense::Wide || !self.needs_request(),
            }
    }

    fn means_caller(&self, facts: &Facts<'_>, sense: Sense) -> bool {
        let from = self.from.is_empty() || facts.identity.is_some_and(|id| self.from.iter().any(|one| one.means(id)));
        let within = |ip: IpAddr| self.addresses.iter().any(|net| net.contains(&ip));
        let address = self.addresses.is_empty() || facts.address.is_some_and(within);
        from && address && self.means_port(&facts.ports, sense)
    }

    /// Whether one token says all that is asked for; who has none has no claim, which a rule that denies may ask for.
    fn means_token(&self, tokens: &[Arc<Claims>], sense: Sense) -> bool {
        let says = |claims: &Claims| self.claims.iter().all(|claim| claim.holds(claims));
        match tokens {
            _ if self.claims.is_empty() => true,
            [] => sense == Sense::Wide && self.means_who_has_no_claim(),
            tokens => tokens.iter().any(|claims| says(claims)),
        }
    }

    /// Whether its claims are those of one who has none.
    pub fn means_who_has_no_claim(&self) -> bool {
        self.claims.iter().all(|claim| claim.holds(&Claims::default()))
    }

    fn means_head(&self, asked: &Asked<'_>, sense: Sense) -> bool {
        let method = |one: &Method| is_method(one, asked, sense);
        let host = |one: &HostRule| match sense {
            Sense::Wide => one.may_hold(asked.host),
            Sense::Narrow => one.holds(asked.host, asked.host_port),
        };
        (self.methods.is_empty() || self.methods.iter().any(method))
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.holds(asked.uri.path(), sense)))
            && (self.hosts.is_empty() || self.hosts.iter().any(host))
            && self.headers.iter().all(|(name, text)| match sense {
                Sense::Wide => text.may_hold_for(name, asked.headers),
                // A server may read any of several fields, so that all of them must say what is asked for.
                Sense::Narrow => text.surely_holds_for(name, asked.headers),
            })
    }

    /// Whether this rule denies everything that `other` allows; false where that is not certain.
    pub fn covers(&self, other: &Self) -> bool {
        fn every<T>(mine: &[T], theirs: &[T], covers: impl Fn(&T, &T) -> bool) -> bool {
            mine.is_empty()
                || (!theirs.is_empty() && theirs.iter().all(|one| mine.iter().any(|wide| covers(wide, one))))
        }
        every(&self.from, &other.from, |mine, theirs| match theirs {
            _ if mine == theirs => true,
            IdMatch::Exact(id) => mine.means(id),
            // Who is meant exactly is not who is below.
            IdMatch::Below(id) => matches!(mine, IdMatch::Below(_)) && mine.means(id),
        }) && every(&self.addresses, &other.addresses, |mine, theirs| mine.contains(theirs))
            && every(&self.ports, &other.ports, PartialEq::eq)
            && every(&self.methods, &other.methods, PartialEq::eq)
            && every(&self.paths, &other.paths, PathRule::covers)
            && every(&self.hosts, &other.hosts, HostRule::covers)
            && self.headers.iter().all(|asked| other.headers.contains(asked))
            && self.claims.iter().all(|asked| other.claims.contains(asked))
    }
}

/// Whether a rule's method is that of a request. An extended CONNECT (RFC 8441) does what GET does for HTTP/1, and becomes
/// one where the service speaks that: it is both. Servers that know no case of methods exist.
fn is_method(rule: &Method, asked: &Asked<'_>, sense: Sense) -> bool {
    let same = |method: &Method| match sense {
        Sense::Wide => rule.as_str().eq_ignore_ascii_case(method.as_str()),
        Sense::Narrow => rule == method,
    };
    same(asked.method) || (asked.tunnel && asked.method == Method::CONNECT && *rule == Method::GET)
}

impl PathRule {
    /// Whether a normal path is meant: what percent-encoding stands for is compared, so that all spellings of a path
    /// are one. Case counts (RFC 3986 §6.2.2.1) and so does a slash at the end, but not where the rule denies.
    fn holds(&self, path: &str, sense: Sense) -> bool {
        if !path.starts_with('/') {
            // The `*` of OPTIONS asks about the whole server (RFC 9110 §9.3.7).
            return sense == Sense::Wide && self.below && self.path.is_empty();
        }
        let mut rest = decoded(path);
        for mine in decoded(self.path.trim_end_matches('/')) {
            let same = |theirs: u8| match sense {
                Sense::Wide => mine.eq_ignore_ascii_case(&theirs),
                Sense::Narrow => mine == theirs,
            };
            if !rest.next().is_some_and(same) {
                return false;
            }
        }
        // What the rule leaves of the path decides.
        let slash = self.path.len() > 1 && self.path.ends_with('/');
        match (rest.next(), rest.next().is_none()) {
            (None, _) => self.below || sense == Sense::Wide || !slash,
            (Some(b'/'), true) => self.below || sense == Sense::Wide || slash || self.path == "/",
            (Some(b'/'), false) => self.below,
            (Some(_), _) => false,
        }
    }

    fn covers(&self, other: &Self) -> bool {
        let path = if other.path.is_empty() { "/" } else { &other.path };
        (self.below || !other.below) && self.holds(path, Sense::Narrow)
    }
}
