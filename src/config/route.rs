//! The routes of a peer or of the service: which requests, where to, and what is changed on the way.

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::collect::{List, Named, OneOrMore, OrNone, OrOff, Pairs};
use super::fallback::StandIn;
use super::kind::{Scalar, Set, Wrong, words};
use super::limits::RouteLimits;
use super::pattern::{Pattern, Template};
use super::retry::{Hedge, Retry};
use super::section::section;
use super::split::{Mirror, Otherwise, Part};
use super::units::{Count, Share, Span, Timer};
use super::values::{FieldName, Name, is_host};

section! {
    /// One route: the requests that `match` means, and what becomes of them. It forwards them to its peer unless
    /// `split`, `redirect` or `respond` says otherwise.
    Route {
        /// What it is called in logs; by default its place in the file.
        name "name": Option<Set<Name>> = Unset("canary");
        /// The requests that are meant, one or any of a list; by default all.
        matches "match": Option<Set<OneOrMore<Match>>> = Unset("{ path: { prefix: /v2 } }");
        /// Peers, each with its share relative to the others.
        split "split": Option<Set<Named<Part>>> = Unset("{ payments: 90, payments-v2: 10 }");
        /// Only endpoints with these facts (metadata); a split says it part by part.
        subset "subset": Option<Set<Pairs>> = Unset("{ version: \"2\" }");
        /// Who takes a request where no endpoint fits `subset`: none, or any of them.
        otherwise "otherwise": Set<Otherwise> = Is("none");
        /// What makes a split send requests of one kind to one peer.
        sticky "sticky": Option<Set<Sticky>> = Unset("{ header: x-user }");
        /// How long its requests may take, in place of what the peer says.
        timeout "timeout": Option<Set<RouteTimeout>> = Unset("{ request: 3s }");
        /// When a failed attempt is followed by another, in place of the peer's.
        retry "retry": Option<Set<OrOff<Retry>>> = Unset("{ on: [5xx] }");
        /// When another attempt is sent beside a slow one, in place of the peer's.
        hedge "hedge": Option<Set<OrOff<Hedge>>> = Unset("50ms");
        /// What a caller gets where there is no answer, in place of what the peer says.
        fallback "fallback": Option<Set<StandIn>> = Unset("{ respond: { status: 200, body: \"[]\" } }");
        /// A peer that gets copies of requests; what it answers is thrown away.
        mirror "mirror": Option<Set<Mirror>> = Unset("{ peer: payments-next, share: 10% }");
        /// What its requests may take together.
        limits "limits": Option<Set<RouteLimits>> = Unset("{ rate: 10/s }");
        /// `low` may use 80 % of a limit in flight; a tenth is kept for `high`.
        priority "priority": Option<Set<Priority>> = Unset("low");
        /// Another target than the one that was asked for.
        rewrite "rewrite": Option<Set<Rewrite>> = Unset("{ prefix: /v1 }");
        /// Changes to the request's fields.
        request "request-headers": Option<Set<Edits>> = Unset("{ set: { x-tier: gold } }");
        /// Changes to the answer's fields.
        response "response-headers": Option<Set<Edits>> = Unset("{ remove: [server] }");
        /// Sends the caller elsewhere.
        redirect "redirect": Option<Set<Redirect>> = Unset("{ scheme: https, status: 308 }");
        /// Answers at once.
        respond "respond": Option<Set<Respond>> = Unset("{ status: 410, body: gone }");
        /// Faults that are made on purpose, to see what callers do.
        fault "fault": Option<Set<Fault>> = Unset("{ delay: 200ms, share: 5% }");
    }
}

section! {
    /// Requests: all that is given must hold.
    Match {
        /// The path, compared byte by byte.
        path "path": Option<Set<PathMatch>> = Unset("/users/{id}/orders");
        /// One of these methods.
        methods "methods": Option<Set<OneOrMore<MethodName>>> = Unset("[GET, HEAD]");
        /// Fields; a text is exact.
        headers "headers": Option<Set<Named<TextMatch>>> = Unset("{ x-canary: \"1\" }");
        /// Parameters of the query; a text is exact, and nothing is decoded.
        query "query": Option<Set<Named<TextMatch>>> = Unset("{ version: { prefix: beta } }");
        /// The gRPC method that is called.
        grpc "grpc": Option<Set<GrpcMatch>> = Unset("{ service: shop.Payments }");
    }
}

section! {
    /// A path; exactly one key.
    PathMatch = "template" {
        /// Short form; `{name}` is any segment, `/*` at the end all below.
        template "template": Option<Set<PathTemplate>> = Unset("/users/{id}/orders");
        /// This path alone.
        exact "exact": Option<Set<Path>> = Unset("/healthz");
        /// This path and what lies below it, by whole segments.
        prefix "prefix": Option<Set<Path>> = Unset("/v2");
        /// An expression that matches the whole path.
        regex "regex": Option<Set<Expression>> = Unset("/v[0-9]+/.*");
    }
}

section! {
    /// A text; exactly one key.
    TextMatch = "exact" {
        /// This text.
        exact "exact": Option<Set<Text>> = Unset("\"1\"");
        /// Whatever begins with this.
        prefix "prefix": Option<Set<Text>> = Unset("beta");
        /// An expression that matches the whole text.
        regex "regex": Option<Set<Expression>> = Unset("\"[0-9]+\"");
        /// Whether it is there at all.
        present "present": Option<Set<bool>> = Unset("true");
    }
}

section! {
    /// A gRPC method.
    GrpcMatch {
        /// The service with its package.
        service "service": Option<Set<GrpcName>> = Required("shop.Payments");
        /// The method; by default all of the service.
        method "method": Option<Set<GrpcName>> = Unset("Charge");
    }
}

section! {
    /// What requests of one kind have in common; exactly one key.
    Sticky {
        /// The value of this field; requests without it go by chance.
        header "header": Option<Set<FieldName>> = Unset("x-user");
        /// The value of this cookie, which callers without it are given.
        cookie "cookie": Option<Set<FieldName>> = Unset("variant");
    }
}

section! {
    /// How long the requests of a route may take; what is not given is as the peer says.
    RouteTimeout {
        /// A request, from its head to the answer's last byte, or `none`.
        request "request": Option<Set<OrNone<Timer>>> = Unset("3s");
        /// One attempt, until its answer begins, or `none`.
        attempt "attempt": Option<Set<OrNone<Timer>>> = Unset("1s");
        /// A body that stands still, either way.
        idle "idle": Option<Set<Timer>> = Unset("60s");
        /// A tunnel that stands still.
        tunnel "tunnel": Option<Set<Timer>> = Unset("1h");
    }
}

section! {
    /// Another target than the one that was asked for.
    Rewrite {
        /// The path, whatever it was; the query stays.
        path "path": Option<Set<Path>> = Unset("/index.html");
        /// What stands in place of the prefix that led here.
        prefix "prefix": Option<Set<Path>> = Unset("/v1");
        /// The authority.
        host "host": Option<Set<HostText>> = Unset("payments.internal");
    }
}

section! {
    /// Changes to fields: first `remove`, then `set`, then `add`.
    Edits {
        /// Fields to take away.
        remove "remove": Set<List<FieldName>> = Is("[]");
        /// Fields that get this value in place of those they had.
        set "set": Option<Set<Pairs>> = Unset("{ x-tier: gold }");
        /// Fields that get this value beside those they had.
        add "add": Option<Set<Pairs>> = Unset("{ x-seen-by: outrigger }");
    }
}

section! {
    /// Where a caller is sent; what is not given stays as it was asked.
    Redirect {
        /// The scheme.
        scheme "scheme": Option<Set<Scheme>> = Unset("https");
        /// The host.
        host "host": Option<Set<HostText>> = Unset("shop.example");
        /// The port.
        port "port": Option<Set<Count<1, 65535>>> = Unset("8443");
        /// The path, whatever it was; the query stays.
        path "path": Option<Set<Path>> = Unset("/new");
        /// What stands in place of the prefix that led here.
        prefix "prefix": Option<Set<Path>> = Unset("/v2");
        /// 301, 302, 303, 307 or 308.
        status "status": Set<RedirectStatus> = Is("302");
    }
}

section! {
    /// An answer that stands in the file.
    Respond {
        /// Its status.
        status "status": Set<Status> = Is("200");
        /// Its body.
        body "body": Option<Set<Text>> = Unset("gone");
        /// The type of its body.
        content_type "content-type": Set<Text> = Is("text/plain; charset=utf-8");
    }
}

section! {
    /// Faults that are made on purpose.
    Fault {
        /// The share of the requests that get it.
        share "share": Set<Share> = Is("100%");
        /// Only requests with this field get it.
        header "header": Option<Set<FieldName>> = Unset("x-fault");
        /// How long they wait first.
        delay "delay": Option<Set<Span>> = Unset("200ms");
        /// The status that they are answered with instead of being forwarded.
        abort "abort": Option<Set<Status>> = Unset("503");
    }
}

words! {
    /// What is let in first.
    Priority {
        /// Turned away first.
        Low "low";
        /// As others.
        Normal "normal";
        /// May use the last of a limit.
        High "high";
    }
}

words! {
    /// A scheme.
    Scheme {
        /// Plain.
        Http "http";
        /// With TLS.
        Https "https";
    }
}

/// A method of HTTP; their names know upper and lower case (RFC 9110 §9.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MethodName(pub Method);

/// A status that an answer can have at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(pub StatusCode);

/// A status that sends a caller elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectStatus(pub StatusCode);

/// A path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(pub String);

/// A path with free segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathTemplate {
    /// What it means.
    pub template: Template,
}

/// A regular expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    /// What it means.
    pub pattern: Pattern,
}

/// A text that a field can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(pub String);

/// A host, with or without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostText(pub String);

/// The name of a gRPC service or method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrpcName(pub String);

impl Scalar for MethodName {
    const NAME: &'static str = "method";

    fn expected() -> String {
        "a method such as `GET`".into()
    }

    fn pattern() -> String {
        "^[A-Z][A-Z0-9_-]*$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let legal = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        let upper = text.to_ascii_uppercase();
        if upper != text && upper.bytes().all(legal) {
            return Err(Wrong::meant(upper));
        }
        let fits = text.bytes().all(legal) && text.bytes().next().is_some_and(|b| b.is_ascii_uppercase());
        text.parse().ok().filter(|_| fits).map(Self).ok_or_else(Wrong::default)
    }

    fn write(&self) -> String {
        self.0.to_string()
    }
}

impl Scalar for Status {
    const NAME: &'static str = "status";

    fn expected() -> String {
        "a status from 200 to 599".into()
    }

    fn pattern() -> String {
        "^[2-5][0-9][0-9]$".into()
    }

    fn range() -> Option<(u64, u64)> {
        Some((200, 599))
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let status = text.parse().ok().filter(|status: &StatusCode| (200..600).contains(&status.as_u16()));
        status.map(Self).ok_or_else(Wrong::default)
    }

    fn write(&self) -> String {
        self.0.as_str().to_owned()
    }
}

impl Scalar for RedirectStatus {
    const NAME: &'static str = "redirect-status";

    fn expected() -> String {
        "301, 302, 303, 307 or 308".into()
    }

    fn pattern() -> String {
        "^30[12378]$".into()
    }

    fn range() -> Option<(u64, u64)> {
        Some((301, 308))
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let status =
            text.parse().ok().filter(|status: &StatusCode| [301, 302, 303, 307, 308].contains(&status.as_u16()));
        status.map(Self).ok_or_else(Wrong::default)
    }

    fn write(&self) -> String {
        self.0.as_str().to_owned()
    }
}

impl Scalar for Path {
    const NAME: &'static str = "path";

    fn expected() -> String {
        "a path that begins with `/`".into()
    }

    fn pattern() -> String {
        "^/[^?#\\s]*$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let target = text.parse::<http::uri::PathAndQuery>().ok();
        let plain = target.is_some_and(|target| target.query().is_none() && target.as_str() == text);
        if plain && text.starts_with('/') { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

impl Scalar for PathTemplate {
    const NAME: &'static str = "path-template";

    fn expected() -> String {
        "a path such as `/users/{id}/orders` or `/orders/*`".into()
    }

    fn pattern() -> String {
        "^/.*$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let template = Template::new(text).map_err(Wrong::because)?;
        Ok(Self { template })
    }

    fn write(&self) -> String {
        self.template.text().to_owned()
    }
}

impl Scalar for Expression {
    const NAME: &'static str = "regex";

    fn expected() -> String {
        "a regular expression".into()
    }

    fn pattern() -> String {
        "^.+$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        if text.is_empty() {
            return Err(Wrong::default());
        }
        let pattern = Pattern::new(text).map_err(Wrong::because)?;
        Ok(Self { pattern })
    }

    fn write(&self) -> String {
        self.pattern.text().to_owned()
    }
}

impl Scalar for Text {
    const NAME: &'static str = "text";

    fn expected() -> String {
        "a text".into()
    }

    fn pattern() -> String {
        String::new()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        Ok(Self(text.to_owned()))
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

impl HostText {
    /// Whether it names a port.
    pub fn has_port(&self) -> bool {
        self.0.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
    }
}

impl Scalar for HostText {
    const NAME: &'static str = "host-text";

    fn expected() -> String {
        "a host, with or without a port".into()
    }

    fn pattern() -> String {
        r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{1,5})?$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse::<u16>().is_ok_and(|port| port > 0)),
            _ => (text, true),
        };
        let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let legal = inside.map_or_else(|| is_host(host), |ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
        if legal && port { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

impl Scalar for GrpcName {
    const NAME: &'static str = "grpc-name";

    fn expected() -> String {
        "a name such as `shop.Payments`".into()
    }

    fn pattern() -> String {
        "^[A-Za-z_][A-Za-z0-9_.]*$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        let legal = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
        if first && legal { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// A field's name and value as a rule writes them.
///
/// # Errors
/// What is wrong with them.
pub fn field(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name = super::values::field_name(name).ok_or("is not the name of a field")?;
    let value = HeaderValue::from_str(value).map_err(|_| "a field's value has no control characters")?;
    Ok((name, value))
}
