//! The routes of peers and of the service: names become peers, and what contradicts itself is refused.

use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};

use super::fallback::{self, mirror};
use super::{Parts, balance, retry};
use crate::config::Config;
use crate::config::collect::{List, OrNone, Pairs, twice};
use crate::config::kind::Set;
use crate::config::problem::{Problems, nearest};
use crate::config::route::{self as said, Path, Scheme, field};
use crate::config::units::Timer;
use crate::plan::door::Protocol;
use crate::plan::fallback::Fallback;
use crate::plan::matching::{Match, PathMatch, TextMatch};
use crate::plan::peer::{PeerKind, PeerPlan, PeerPolicy, Routes};
use crate::plan::route::{
    Destination, Edits, Fault, Leads, Line, NewPath, Redirect, Respond, Rewrite, Route, Split, Sticky,
};
use crate::plan::rules::SubsetRule;

/// Gives every peer its routes; the apps, which are the first `apps` peers, share those of the inbound door.
pub fn routes(config: &Config, apps: usize, parts: &mut Parts<'_>) {
    super::limits::keep_for_high(config, apps, &mut parts.peers);
    if let Some(inbound) = &config.inbound {
        for route in &inbound.routes.0 {
            let kept = [
                ("split", route.split.is_some()),
                ("sticky", route.sticky.is_some()),
                ("subset", route.subset.is_some()),
            ];
            for (key, set) in kept {
                if set {
                    let text = format!("`{key}` belongs to the routes of a peer: what comes in goes to the service");
                    route.refuse(parts.problems, text);
                }
            }
        }
        let speaks_http = |app: &usize| parts.peers.get(*app).is_some_and(|plan| plan.source.protocol != Protocol::Tcp);
        let http: Vec<usize> = (0..apps).filter(speaks_http).collect();
        // Where no port speaks HTTP, the first one tells that.
        let them = if http.is_empty() { (0..apps.min(1)).collect() } else { http };
        for (n, app) in them.into_iter().enumerate() {
            // What is wrong with them is told once.
            let mut silent = Problems::new("");
            let problems = if n == 0 { &mut *parts.problems } else { &mut silent };
            let list = list(&inbound.routes, app, &mut parts.peers, problems);
            give(list, app, parts);
        }
    }
    for (n, (_, peer)) in config.peers.0.iter().enumerate() {
        let list = list(&peer.routes, apps + n, &mut parts.peers, parts.problems);
        give(list, apps + n, parts);
    }
}

fn give(list: Vec<Arc<Route>>, peer: usize, parts: &mut Parts<'_>) {
    if let Some(plan) = parts.peers.get_mut(peer) {
        plan.routes = Routes { by_path: list.iter().any(|route| route.looks_at_paths()), list };
    }
}

fn list(
    list: &Set<List<said::Route>>,
    peer: usize,
    peers: &mut [PeerPlan],
    problems: &mut Problems,
) -> Vec<Arc<Route>> {
    let opaque = peers.get(peer).is_some_and(|plan| plan.source.protocol == Protocol::Tcp);
    if opaque && !list.0.is_empty() {
        list.refuse(problems, "`tcp` has no requests that a route could mean");
    }
    let name = |route: &said::Route| route.name.as_ref().map(|name| name.0.as_str().to_owned());
    for (first, second) in twice(&list.0, name).into_iter().filter(|(first, _)| first.name.is_some()) {
        let line = first.origin.at().map_or(0, |at| at.line);
        second.refuse(problems, format!("this name is given twice, first in line {line}"));
    }
    let mut routes: Vec<Arc<Route>> = Vec::new();
    for set in &list.0 {
        let route = route(set, peer, peers, problems);
        if let Some(before) = routes.iter().find(|before| covers(before, &route)) {
            let text = format!("matches nothing: `{}` (line {}) takes all of its requests", before.name, before.line.0);
            set.warn(problems, text);
        }
        routes.push(Arc::new(route));
    }
    routes
}

/// Whether an earlier route certainly takes every request that a later one means.
fn covers(before: &Route, later: &Route) -> bool {
    let all = [Match::default()];
    let matches = if later.matches.is_empty() { all.as_slice() } else { &later.matches };
    before.matches.is_empty() || matches.iter().all(|one| before.matches.iter().any(|wide| wide.covers(one)))
}

fn route(set: &Set<said::Route>, peer: usize, peers: &mut [PeerPlan], problems: &mut Problems) -> Route {
    one_end(set, problems);
    again(set, peers.get(peer).map(|plan| plan.policy.as_ref()), problems);
    let matches: Vec<Match> =
        set.matches.iter().flat_map(|list| &list.0).map(|item| matching(item, problems)).collect();
    let by_prefix = !matches.is_empty() && matches.iter().all(|one| matches!(one.path, Some(PathMatch::Prefix(_))));
    let rewrite = set.rewrite.as_ref().map(|rewrite| rewritten(rewrite, by_prefix, problems)).unwrap_or_default();
    let edits = |edits: &Option<Set<said::Edits>>, problems: &mut Problems| {
        edits.as_ref().map(|set| changes(set, problems)).unwrap_or_default()
    };
    Route {
        name: set.name.as_ref().map_or_else(|| Arc::clone(&set.path), |name| name.0.as_str().into()),
        line: Line(set.origin.at().map_or(0, |at| at.line)),
        request: edits(&set.request, problems),
        response: edits(&set.response, problems),
        fault: set.fault.as_ref().map(|set| fault(set, problems)),
        mirror: set.mirror.as_ref().and_then(|set| mirror(set, peers, problems)),
        gate: super::limits::route(set, problems),
        priority: set.priority.as_ref().map(|priority| super::limits::priority(priority.value)),
        leads: leads(set, peer, by_prefix, peers, problems),
        matches,
        rewrite,
    }
}

/// What a route says about doing things again, told once however many peers it leads to; `own` is how its own is called.
fn again(set: &Set<said::Route>, own: Option<&PeerPolicy>, problems: &mut Problems) {
    if let Some(said) = &set.retry {
        retry::rule(said, None, problems);
    }
    let Some(timeout) = &set.timeout else { return };
    let own = own.filter(|_| set.split.is_none());
    match (&timeout.attempt, &timeout.request) {
        (Some(attempt), Some(request)) => {
            retry::attempt_before_request(attempt, (attempt.0, request.0), problems);
        }
        (Some(attempt), None) => {
            let request = own.and_then(|own| own.request_timeout).map(Timer);
            retry::attempt_before_request(attempt, (attempt.0, request), problems);
        }
        (None, Some(request)) => {
            let attempt = own.and_then(|own| own.rules.retry.attempt_timeout);
            if attempt.zip(request.0).is_some_and(|(attempt, request)| attempt > request.0) {
                request.refuse(
                    problems,
                    "must not be shorter than the peer's `timeout.attempt`, the time for one attempt",
                );
            }
        }
        (None, None) => {}
    }
}

/// A request has one end: a peer, another place, or an answer from here.
fn one_end(set: &Set<said::Route>, problems: &mut Problems) {
    let ends = [("redirect", set.redirect.is_some()), ("respond", set.respond.is_some())];
    let Some((end, _)) = ends.into_iter().find(|(_, given)| *given) else { return };
    let others = [
        ("respond", end != "respond" && set.respond.is_some()),
        ("split", set.split.is_some()),
        ("sticky", set.sticky.is_some()),
        ("subset", set.subset.is_some()),
        ("rewrite", set.rewrite.is_some()),
        ("timeout", set.timeout.is_some()),
        ("retry", set.retry.is_some()),
        ("hedge", set.hedge.is_some()),
        ("request-headers", set.request.is_some()),
        ("fallback", set.fallback.is_some()),
        ("mirror", set.mirror.is_some()),
    ];
    for (other, _) in others.into_iter().filter(|(_, given)| *given) {
        set.refuse(problems, format!("`{end}` ends the request here, so `{other}` means nothing: remove one"));
    }
}

fn matching(set: &Set<said::Match>, problems: &mut Problems) -> Match {
    let texts = |named: &Option<Set<crate::config::collect::Named<said::TextMatch>>>, problems: &mut Problems| {
        let all = named.iter().flat_map(|named| &named.0);
        all.filter_map(|(name, text)| Some((name.clone(), text_match(text, problems)?))).collect::<Vec<_>>()
    };
    let headers = texts(&set.headers, problems);
    let query = texts(&set.query, problems);
    let name = |(name, text): (String, TextMatch)| Some((crate::config::values::field_name(&name)?, text));
    let mut path = set.value.path.as_ref().and_then(|path| path_match(path, problems));
    if let Some(grpc) = &set.grpc {
        if set.value.path.is_some() {
            grpc.refuse(problems, "a gRPC method is a path: give `grpc` or `path`, not both");
        }
        path = grpc.service.as_ref().map(|service| match &grpc.method {
            Some(method) => PathMatch::Exact(format!("/{}/{}", service.0, method.0)),
            None => PathMatch::Prefix(format!("/{}", service.0)),
        });
    }
    Match {
        path,
        methods: set.methods.iter().flat_map(|list| &list.0).map(|method| method.value.0.clone()).collect(),
        headers: headers.into_iter().filter_map(name).collect(),
        query,
        grpc: set.grpc.is_some(),
    }
}

/// Reports any number of keys other than one.
pub fn exactly_one<T>(set: &Set<T>, given: usize, problems: &mut Problems) {
    // One that cannot be read is told of where it stands, and is none here.
    if given != 1 && !problems.within(&set.path) {
        set.refuse(problems, format!("expected exactly one of its keys, found {given}"));
    }
}

fn path_match(set: &Set<said::PathMatch>, problems: &mut Problems) -> Option<PathMatch> {
    let all = [
        set.template.as_ref().map(|template| PathMatch::Template(template.template.clone())),
        set.exact.as_ref().map(|path| PathMatch::Exact(path.value.0.clone())),
        set.prefix.as_ref().map(|path| PathMatch::Prefix(path.value.0.clone())),
        set.regex.as_ref().map(|regex| PathMatch::Regex(regex.pattern.clone())),
    ];
    let mut given = all.into_iter().flatten();
    let first = given.next();
    exactly_one(set, usize::from(first.is_some()) + given.count(), problems);
    first
}

/// What a text must be.
pub fn text_match(set: &Set<said::TextMatch>, problems: &mut Problems) -> Option<TextMatch> {
    let all = [
        set.exact.as_ref().map(|text| TextMatch::Exact(text.value.0.clone())),
        set.prefix.as_ref().map(|text| TextMatch::Prefix(text.value.0.clone())),
        set.regex.as_ref().map(|regex| TextMatch::Regex(regex.pattern.clone())),
        set.present.as_ref().map(|present| TextMatch::Present(present.value)),
    ];
    let mut given = all.into_iter().flatten();
    let first = given.next();
    exactly_one(set, usize::from(first.is_some()) + given.count(), problems);
    first
}

fn new_path<T>(
    set: &Set<T>,
    (path, prefix): (&Option<Set<Path>>, &Option<Set<Path>>),
    by_prefix: bool,
    problems: &mut Problems,
) -> Option<NewPath> {
    if path.is_some() && prefix.is_some() {
        set.refuse(problems, "`path` gives the whole path and `prefix` a part of it: remove one");
    }
    if let Some(prefix) = prefix
        && !by_prefix
    {
        prefix
            .refuse(problems, "there is no prefix to replace: every `match` of the route needs `path: { prefix: … }`");
    }
    let whole = path.as_ref().map(|path| NewPath::Whole(path.value.0.clone()));
    whole.or_else(|| prefix.as_ref().map(|prefix| NewPath::Prefix(prefix.value.0.clone())))
}

fn rewritten(set: &Set<said::Rewrite>, by_prefix: bool, problems: &mut Problems) -> Rewrite {
    Rewrite {
        path: new_path(set, (&set.value.path, &set.prefix), by_prefix, problems),
        host: set.host.as_ref().and_then(|host| HeaderValue::from_str(&host.value.0).ok()),
    }
}

fn leads(
    set: &Set<said::Route>,
    peer: usize,
    by_prefix: bool,
    peers: &mut [PeerPlan],
    problems: &mut Problems,
) -> Leads {
    if let Some(to) = &set.redirect {
        if let Some(host) = to.host.as_ref().filter(|host| host.value.has_port() && to.port.is_some()) {
            host.refuse(problems, "`host` has a port already, so `port` means nothing: remove one");
        }
        return Leads::Redirect(Redirect {
            status: to.status.value.0,
            scheme: to.scheme.as_ref().map(|scheme| if scheme.value == Scheme::Http { "http" } else { "https" }),
            host: to.host.as_ref().map(|host| host.value.0.clone()),
            port: to.port.as_ref().and_then(|port| u16::try_from(port.value.0).ok()),
            path: new_path(to, (&to.value.path, &to.prefix), by_prefix, problems),
        });
    }
    if let Some(respond) = &set.respond {
        return Leads::Respond(answer(respond, problems));
    }
    let to = destinations(set, peer, peers, problems);
    if let (Some(hedge), Some(first)) = (&set.hedge, to.first()) {
        retry::hedge_happens(hedge, &first.policy.rules, problems);
    }
    Leads::To(Split { to, sticky: sticky(set, problems) })
}

/// An answer that stands in the file.
pub fn answer(respond: &said::Respond, problems: &mut Problems) -> Respond {
    let content_type = HeaderValue::from_str(&respond.content_type.value.0).unwrap_or_else(|_| {
        respond.content_type.refuse(problems, "a field's value has no control characters");
        HeaderValue::from_static("text/plain")
    });
    let body = respond.body.as_ref().map_or("", |body| &body.value.0).into();
    Respond { status: respond.status.value.0, body, content_type }
}

/// The index of a peer that takes requests.
pub fn peer_named<T>(name: &str, set: &Set<T>, peers: &[PeerPlan], problems: &mut Problems) -> Option<usize> {
    let Some(at) = peers.iter().position(|peer| peer.kind == PeerKind::Named && peer.name.as_str() == name) else {
        let names = peers.iter().filter(|peer| peer.kind == PeerKind::Named).map(|peer| peer.name.as_str());
        let near = nearest(name, names).map(str::to_owned);
        problems.error(&set.path, set.origin.at(), format!("there is no peer `{name}`"), near);
        return None;
    };
    if peers.get(at).is_some_and(|peer| peer.source.protocol == Protocol::Tcp) {
        set.refuse(problems, format!("`{name}` speaks `tcp`: it takes no requests"));
    }
    Some(at)
}

fn destinations(
    set: &Set<said::Route>,
    peer: usize,
    peers: &mut [PeerPlan],
    problems: &mut Problems,
) -> Vec<Destination> {
    let whole = balance::subset(&set.subset, &set.otherwise, problems);
    let fallback = fallback::fallback(set.fallback.as_ref(), problems);
    let Some(split) = &set.split else {
        balance::of_nobody(&set.subset, peers.get(peer), problems);
        return destination(set, &fallback, (peer, 1), whole, peers, problems).into_iter().collect();
    };
    if whole.is_some() {
        set.refuse(problems, "`subset` beside `split`: give it to the parts, as in `{ weight: 90, subset: {…} }`");
    }
    if split.0.iter().all(|(_, part)| part.weight.value.0 == 0) {
        split.refuse(problems, "the weights' sum must be above 0: no peer would take a request");
    }
    let mut to = Vec::with_capacity(split.0.len());
    for (key, part) in &split.0 {
        let subset = balance::subset(&part.subset, &part.otherwise, problems);
        let index = match &part.peer {
            Some(peer) => peer_named(&peer.value.0, peer, peers, problems),
            None => peer_named(key, part, peers, problems),
        };
        let Some(index) = index else { continue };
        balance::of_nobody(&part.subset, peers.get(index), problems);
        let weight = u32::try_from(part.weight.0).unwrap_or(u32::MAX);
        to.extend(destination(set, &fallback, (index, weight), subset, peers, problems));
    }
    to
}

fn destination(
    set: &said::Route,
    fallback: &Option<Arc<Fallback>>,
    (peer, weight): (usize, u32),
    subset: Option<SubsetRule>,
    peers: &mut [PeerPlan],
    problems: &mut Problems,
) -> Option<Destination> {
    let plan = peers.get_mut(peer)?;
    let subset = subset.map(|rule| balance::prepared(plan, rule));
    let own = Arc::clone(&plan.policy);
    if set.timeout.is_none() && set.retry.is_none() && set.hedge.is_none() && fallback.is_none() {
        return Some(Destination { peer, weight, policy: own, subset });
    }
    let mut policy = PeerPolicy::clone(&own);
    let attempt = policy.rules.retry.attempt_timeout;
    if let Some(timeout) = &set.timeout {
        let timer =
            |said: &Option<Set<OrNone<Timer>>>, own| said.as_ref().map_or(own, |set| set.0.map(|timer| timer.0));
        policy.request_timeout = timer(&timeout.request, policy.request_timeout);
        policy.rules.retry.attempt_timeout = timer(&timeout.attempt, attempt);
        policy.body_idle = timeout.idle.as_ref().map_or(own.body_idle, |idle| idle.0);
        policy.tunnel_idle = timeout.tunnel.as_ref().map_or(own.tunnel_idle, |tunnel| tunnel.0);
        if set.split.is_some() {
            inherited(timeout, &policy, problems);
        }
    }
    if let Some(said) = &set.retry {
        // What is wrong with it is told by `route`.
        let attempt = policy.rules.retry.attempt_timeout;
        policy.rules.retry = retry::rule(said, attempt, &mut Problems::new(""));
    }
    if let Some(said) = &set.hedge {
        policy.rules.hedge = retry::hedge(said);
    }
    if fallback.is_some() {
        policy.fallback = fallback.clone();
    }
    Some(Destination { peer, weight, policy: Arc::new(policy), subset })
}

/// A route's time beside one that it takes over from its peer; where it gives both, `again` compares them.
fn inherited(said: &said::RouteTimeout, policy: &PeerPolicy, problems: &mut Problems) {
    let times = (policy.rules.retry.attempt_timeout.map(Timer), policy.request_timeout.map(Timer));
    match (&said.attempt, &said.request) {
        (Some(attempt), None) => retry::attempt_before_request(attempt, times, problems),
        (None, Some(request)) if times.0 > times.1 && times.1.is_some() => {
            request.refuse(problems, "is shorter than its peer's `timeout.attempt`: give `attempt` here too");
        }
        _ => {}
    }
}

fn sticky(set: &Set<said::Route>, problems: &mut Problems) -> Option<Sticky> {
    let sticky = set.sticky.as_ref()?;
    if set.split.is_none() {
        sticky.refuse(problems, "there is no `split` whose parts requests could stick to");
    }
    stuck(sticky, &sticky.value, problems)
}

/// What requests stick by; `set` is where that stands.
pub fn stuck<T>(set: &Set<T>, sticky: &said::Sticky, problems: &mut Problems) -> Option<Sticky> {
    exactly_one(set, usize::from(sticky.header.is_some()) + usize::from(sticky.cookie.is_some()), problems);
    let header = sticky.header.as_ref().map(|name| Sticky::Header(name.value.0.clone()));
    header.or_else(|| sticky.cookie.as_ref().map(|name| Sticky::Cookie(name.value.0.as_str().to_owned())))
}

fn changes(set: &Set<said::Edits>, problems: &mut Problems) -> Edits {
    let pairs = |pairs: &Option<Set<Pairs>>, problems: &mut Problems| {
        let Some(set) = pairs else { return Vec::new() };
        let mut fields = Vec::with_capacity(set.0.len());
        for (name, value) in &set.value.0 {
            match field(name, value) {
                Ok((name, _)) if ours(&name) => set.refuse(problems, sets_itself(&name)),
                Ok(field) => fields.push(field),
                Err(why) => set.refuse(problems, format!("`{name}: {value}`: {why}")),
            }
        }
        fields
    };
    let (add, put) = (pairs(&set.add, problems), pairs(&set.set, problems));
    for name in set.remove.0.iter().filter(|name| ours(&name.0)) {
        name.refuse(problems, sets_itself(&name.0));
    }
    Edits { remove: set.remove.0.iter().map(|name| name.value.0.clone()).collect(), set: put, add }
}

/// Fields that frame a message or that this proxy alone answers for: an edit of them would break the connection, or
/// its own protection against loops.
fn ours(name: &HeaderName) -> bool {
    let framing = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::HOST,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::EXPECT,
    ];
    framing.contains(name)
        || ["keep-alive", "proxy-connection"].contains(&name.as_str())
        || name.as_str().starts_with("x-outrigger-")
}

fn sets_itself(name: &HeaderName) -> String {
    let instead = if *name == header::HOST { "; a request's host is changed by `rewrite: { host: … }`" } else { "" };
    format!("`{name}` is set by the sidecar itself{instead}")
}

fn fault(set: &Set<said::Fault>, problems: &mut Problems) -> Fault {
    if set.delay.is_none() && set.abort.is_none() {
        set.refuse(problems, "does nothing: give `delay`, `abort` or both");
    }
    if set.share.value.0 == 0 {
        set.share.warn(problems, "strikes nothing");
    }
    if let Some(abort) = set.abort.as_ref().filter(|abort| abort.value.0.as_u16() < 400) {
        abort.refuse(problems, "an abort is an error, from 400 to 599; any other answer is given by `respond`");
    }
    Fault {
        share: set.share.value.0,
        header: set.header.as_ref().map(|name| name.value.0.clone()),
        delay: set.delay.as_ref().map(|delay| delay.value.0),
        abort: set.abort.as_ref().map(|status| status.value.0),
    }
}
