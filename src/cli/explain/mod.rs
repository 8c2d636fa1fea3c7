//! `outrigger explain`: what would become of a request, decided by the proxy's own code, each fact with its line.

mod decide;
mod dialled;
mod living;
mod rules;
mod sender;
mod tokens;

use std::fmt::Write as _;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;

use http::{HeaderName, HeaderValue, Method, Uri};
use serde::Serialize;
use serde_json::json;

pub use living::Living;

use super::complain;
use crate::config::expand::Variables;
use crate::config::facts::Facts;
use crate::config::places::Places;
use crate::control::load::load;
use crate::plan::claims::Claims;
use crate::proxy::failure;
use crate::spiffe::SpiffeId;

/// The request, or the captured connection, that is asked about.
pub struct Asking {
    /// Its URL, with scheme and host; `None` for bytes that nobody looks into.
    pub url: Option<Uri>,
    /// Where its captured connection was going.
    pub dialled: Option<SocketAddr>,
    /// The endpoints that a running sidecar knows of.
    pub living: Option<Living>,
    /// Its method.
    pub method: Method,
    /// Its fields, as they were given.
    pub fields: Vec<(HeaderName, HeaderValue)>,
    /// Whether it comes in from the network instead of from the service.
    pub inbound: bool,
    /// Who the caller has proven to be.
    pub identity: Option<SpiffeId>,
    /// Where the caller is.
    pub address: Option<IpAddr>,
    /// What a good token of it would say.
    pub claims: Option<Claims>,
}

impl Asking {
    fn scheme(&self) -> Option<&str> {
        self.url.as_ref().and_then(Uri::scheme_str)
    }

    /// What is asked about, in a line.
    fn words(&self) -> String {
        match (&self.url, self.dialled) {
            (Some(url), Some(to)) => format!("{} {url} on a connection to {to}", self.method),
            (Some(url), None) => format!("{} {url}", self.method),
            (None, Some(to)) => format!("a connection to {to}"),
            (None, None) => String::new(),
        }
    }
}

/// Reads a URL of the command line.
///
/// # Errors
/// What was expected.
pub fn url(text: &str) -> Result<Uri, String> {
    if !text.contains("://") {
        let meant = text.trim_start_matches('/');
        return Err(format!("expected a URL with scheme and host; did you mean `http://{meant}`?"));
    }
    let uri: Uri = text.parse().map_err(|error| format!("not a URL: {error}"))?;
    match uri.scheme_str() {
        Some("http" | "https") => Ok(uri),
        scheme => Err(format!("the scheme is http or https, not `{}`", scheme.unwrap_or_default())),
    }
}

/// Reads where a captured connection was going; an IPv4 address in IPv6's notation is called over IPv4.
///
/// # Errors
/// What was expected.
pub fn dialled(text: &str) -> Result<SocketAddr, String> {
    let to: SocketAddr = text.parse().map_err(|_| "expected an address with a port, such as `10.1.2.3:5432`")?;
    Ok(SocketAddr::new(to.ip().to_canonical(), to.port()))
}

/// Reads a field of the command line, `name: value`.
///
/// # Errors
/// What was expected.
pub fn field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected `name: value`, such as `x-canary: 1`")?;
    crate::config::route::field(name.trim(), value.trim()).map_err(str::to_owned)
}

/// Reads the claims of a token on the command line.
///
/// # Errors
/// What was expected.
pub fn claims(text: &str) -> Result<Claims, String> {
    let read = serde_json::from_str(text).map(Claims);
    read.map_err(|error| format!("expected a JSON object, such as '{{\"scope\": \"orders.write\"}}': {error}"))
}

/// One thing that holds for the request.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// What it is about: `peer`, `route`, `timeout.request`.
    pub about: &'static str,
    /// What holds, in words.
    pub text: String,
    /// The key that says so, empty where no key does.
    pub key: String,
    /// The key's line in the file; `None` for a default.
    pub line: Option<u32>,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is sent to a peer as a request.
    Forwarded,
    /// Its bytes are passed on unseen.
    Tunnelled,
    /// A route answers it from the file.
    Answered,
    /// It gets an invented answer.
    Refused,
    /// The kernel's rules do not bring it here.
    Uncaptured,
}

/// Everything that holds for one request, in the order in which it is decided.
pub struct Explained<'p> {
    places: &'p Places,
    facts: Vec<Fact>,
    outcome: Outcome,
}

impl<'p> Explained<'p> {
    fn new(places: &'p Places) -> Self {
        Self { places, facts: Vec::new(), outcome: Outcome::Forwarded }
    }

    /// Adds what no key says.
    fn plain(&mut self, about: &'static str, text: impl Into<String>) {
        self.facts.push(Fact { about, text: text.into(), key: String::new(), line: None });
    }

    /// Adds what the first of these keys that the file gives says, or else what holds by default.
    fn keyed(&mut self, about: &'static str, keys: &[String], text: impl Into<String>) {
        let said = keys.iter().find_map(|key| Some((key, self.places.at(key)?.line)));
        let (key, line) = match said {
            Some((key, line)) => (key.clone(), Some(line)),
            None => (keys.last().cloned().unwrap_or_default(), None),
        };
        self.facts.push(Fact { about, text: text.into(), key, line });
    }

    /// It is refused.
    fn refused(mut self, failure: &crate::call::Failure) -> Self {
        let status = failure.status.unwrap_or_else(|| failure::row(failure.reason).http).as_u16();
        let side = failure::side(failure.reason, None).word();
        self.plain("refused", format!("{status}, reason {} (side {side}): {}", failure.reason.word(), failure.detail));
        self.outcome = Outcome::Refused;
        self
    }

    fn text(&self, asking: &Asking) -> String {
        let mut text = format!("{}\n", asking.words());
        let width = self.facts.iter().map(|fact| fact.about.len()).max().unwrap_or(0);
        for fact in &self.facts {
            let origin = match (fact.line, fact.key.is_empty()) {
                (Some(line), _) => format!("  [{}:{line}]", self.places.file()),
                (None, true) => String::new(),
                (None, false) => "  [default]".to_owned(),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "  {:width$}  {}{origin}", fact.about, fact.text);
        }
        text
    }

    fn json(&self, asking: &Asking) -> serde_json::Value {
        json!({
            "method": asking.url.as_ref().map(|_| asking.method.as_str()),
            "url": asking.url.as_ref().map(ToString::to_string),
            "dialled": asking.dialled.map(|to| to.to_string()),
            "file": self.places.file(),
            "outcome": self.outcome,
            "facts": self.facts,
        })
    }
}

/// Explains one request. Exit codes: 0 explained, also where it would be refused; 1 the file is wrong or has no such
/// door.
pub fn run(
    path: &Path,
    asking: &Asking,
    as_json: bool,
    facts: &Facts,
    variables: Variables<'_>,
    (out, err): (&mut dyn Write, &mut dyn Write),
) -> ExitCode {
    let loaded = match load(path, facts, variables) {
        Ok(loaded) => loaded,
        Err(problems) => return complain(err, &problems.to_string()),
    };
    let explained = match decide::decide(&loaded, asking) {
        Ok(explained) => explained,
        Err(why) => return complain(err, &format!("explain: {why}")),
    };
    let written =
        if as_json { writeln!(out, "{}", explained.json(asking)) } else { write!(out, "{}", explained.text(asking)) };
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests;
