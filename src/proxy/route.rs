//! What a route does to a request on its way: faults made on purpose, answers from the file, another target, edits.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use tokio::time::Instant;

use super::affinity::NewCookie;
use crate::call::Failure;
use crate::deadline::Deadline;
use crate::http::authority::Authority;
use crate::plan::matching::Asked;
use crate::plan::path;
use crate::plan::peer::Routes;
use crate::plan::route::{Destination, Leads, Redirect, Respond, Route, Sticky};
use crate::reason::Reason;

/// The route that a request takes, and what was decided for it.
pub struct Taken {
    /// The route.
    pub route: Arc<Route>,
    /// The cookie that makes the caller stick to the part of a split that it was given.
    cookie: Option<NewCookie>,
}

impl Taken {
    /// The route of a request, if one of its peer's means it.
    ///
    /// # Errors
    /// `PathNotNormal` where a route looks at paths and this one can be read in two ways.
    pub fn find(routes: &Routes, parts: &Parts) -> Result<Option<Self>, Failure> {
        let asked = asked(parts);
        let ambiguity = if routes.by_path { path::ambiguity(parts.uri.path()) } else { None };
        for route in &routes.list {
            if let Some(why) = ambiguity
                && route.needs_path(&asked)
            {
                let detail =
                    format!("the path has {why}: servers read it differently, so `{}` cannot judge it", route.name);
                return Err(Failure::new(Reason::PathNotNormal, detail));
            }
            if route.means(&asked) {
                return Ok(Some(Self { route: route.clone(), cookie: None }));
            }
        }
        Ok(None)
    }

    /// Which peer takes the request; `None` where the route ends it here.
    pub fn destination(&mut self, headers: &HeaderMap) -> Option<Destination> {
        let Leads::To(split) = &self.route.leads else { return None };
        let chosen = match &split.sticky {
            None => split.choose(None, fastrand::u64(..)),
            Some(sticky) => match (sticky.text(headers), sticky) {
                (Some(text), _) => split.choose(Some(text), 0),
                (None, Sticky::Cookie(name)) => {
                    let cookie = NewCookie::new(name);
                    let chosen = split.choose(Some(cookie.text.as_bytes()), 0).cloned();
                    self.cookie = Some(cookie);
                    return chosen;
                }
                (None, Sticky::Header(_)) => split.choose(None, fastrand::u64(..)),
            },
        };
        chosen.cloned()
    }

    /// Whether requests may be delayed here on purpose.
    pub fn delays(&self) -> bool {
        self.route.fault.as_ref().is_some_and(|fault| fault.delay.is_some())
    }

    /// Makes the faults that the file asks for; a delay ends no later than the request's deadline. Gives whether there was
    /// one.
    ///
    /// # Errors
    /// The fault.
    pub async fn fault(&self, headers: &HeaderMap, deadline: Deadline) -> Result<bool, Failure> {
        let Some(fault) = &self.route.fault else { return Ok(false) };
        if !fault.strikes(headers, fastrand::u64(..)) {
            return Ok(false);
        }
        if let Some(delay) = fault.delay {
            let until = Instant::now() + delay;
            let until = deadline.instant().map_or(until, |deadline| deadline.min(until));
            tokio::time::sleep_until(until).await;
        }
        match fault.abort {
            None => Ok(fault.delay.is_some()),
            Some(status) => {
                let detail = format!("`fault` of {} answers {} on purpose", self.route.name, status.as_u16());
                Err(Failure { status: Some(status), ..Failure::new(Reason::FaultInjected, detail) })
            }
        }
    }

    /// The answer of a route that ends the request here.
    ///
    /// # Errors
    /// `Internal` where a redirect's parts make no location; the file is checked so that they do. `MethodNotAllowed` for
    /// a CONNECT that has no path to be sent to, or would be told that its tunnel is open.
    pub fn answer(&self, parts: &Parts, authority: &Authority, tls: bool) -> Result<Option<Response<Bytes>>, Failure> {
        let no_tunnel = match &self.route.leads {
            Leads::Redirect(_) => parts.uri.path_and_query().is_none(),
            Leads::Respond(respond) => parts.method == Method::CONNECT && respond.status.is_success(),
            Leads::To(_) => false,
        };
        if no_tunnel {
            let detail = format!("{} answers requests by itself: it has no tunnel for a CONNECT", self.route.name);
            return Err(Failure::new(Reason::MethodNotAllowed, detail));
        }
        let mut answer = match &self.route.leads {
            Leads::To(_) => return Ok(None),
            Leads::Redirect(to) => self.redirect(to, parts, authority, tls)?,
            Leads::Respond(respond) => told(respond),
        };
        self.route.response.make(answer.headers_mut());
        Ok(Some(answer))
    }

    fn redirect(
        &self,
        to: &Redirect,
        parts: &Parts,
        authority: &Authority,
        tls: bool,
    ) -> Result<Response<Bytes>, Failure> {
        let scheme = if tls { "https" } else { "http" };
        let location = to.location(&self.route, &asked(parts), scheme, authority.written_host(), authority.port());
        let location = location.ok_or_else(|| {
            Failure::new(Reason::Internal, format!("`redirect` of {} makes no location", self.route.name))
        })?;
        let mut answer = Response::new(Bytes::new());
        *answer.status_mut() = to.status;
        answer.headers_mut().insert(header::LOCATION, location);
        Ok(answer)
    }

    /// Makes the changes to a request that is forwarded.
    ///
    /// # Errors
    /// `BadHead` where the rewritten path makes no target.
    pub fn rewrite(&self, parts: &mut Parts) -> Result<(), Failure> {
        // A CONNECT has no path.
        if self.route.rewrite.path.is_some() && parts.uri.path_and_query().is_some() {
            parts.uri = self.route.rewritten(&asked(parts)).ok_or_else(|| {
                Failure::new(Reason::BadHead, format!("`rewrite` of {} makes no target of this path", self.route.name))
            })?;
        }
        if let Some(host) = &self.route.rewrite.host {
            parts.headers.insert(header::HOST, host.clone());
        }
        self.route.request.make(&mut parts.headers);
        Ok(())
    }

    /// Makes the changes to an answer that is passed on.
    pub fn dress(&self, headers: &mut HeaderMap) {
        self.route.response.make(headers);
        if let Some(cookie) = &self.cookie {
            cookie.give(headers);
        }
    }

    /// The value of the cookie `name`, where the caller is given one by this route.
    pub fn made(&self, name: &str) -> Option<&str> {
        let Leads::To(split) = &self.route.leads else { return None };
        let same = matches!(&split.sticky, Some(Sticky::Cookie(cookie)) if cookie == name);
        self.cookie.as_ref().filter(|_| same).map(|cookie| cookie.text.as_str())
    }
}

fn asked(parts: &Parts) -> Asked<'_> {
    Asked { method: &parts.method, uri: &parts.uri, headers: &parts.headers }
}

/// An answer that stands in the file.
pub fn told(respond: &Respond) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::copy_from_slice(respond.body.as_bytes()));
    *answer.status_mut() = respond.status;
    // These have no body, whatever the file says (RFC 9110 §6.4.1, §15.3.6).
    if matches!(respond.status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED) {
        *answer.body_mut() = Bytes::new();
    } else if !respond.body.is_empty() {
        answer.headers_mut().insert(header::CONTENT_TYPE, respond.content_type.clone());
    }
    answer
}
