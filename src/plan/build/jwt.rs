//! The issuers of `inbound.jwt`, and what is probably not meant by them.

use std::sync::Arc;

use super::routes::exactly_one;
use super::{Content, Parts};
use crate::config::Config;
use crate::config::collect::twice;
use crate::config::jwt::{Forward, Jwt, KeysAt, TokenPlace};
use crate::config::kind::Set;
use crate::config::listener::{Inbound, Protocol};
use crate::config::problem::Problems;
use crate::plan::jwt::{IssuerPlan, JwtPlan, KeysPlan, Place};
use crate::plan::peer::Roots;

/// The issuers as the file says them.
pub fn jwt(config: &Config, parts: &mut Parts<'_>) -> Option<Arc<JwtPlan>> {
    let said = &config.inbound.as_ref()?.jwt;
    let name = |jwt: &Jwt| jwt.issuer.as_ref().map(|issuer| issuer.value.0.clone());
    for (before, again) in twice(&said.0, |jwt| (name(jwt), jwt.token.place(None))) {
        if let Some(issuer) = name(&again.value) {
            let first = before.origin.at().map_or(0, |at| at.line);
            let text = format!("`{issuer}` is listed twice, first at line {first}: join their audiences in one entry");
            again.refuse(parts.problems, text);
        }
    }
    let issuers: Vec<_> = said.0.iter().filter_map(|jwt| issuer(jwt, parts)).collect();
    (!issuers.is_empty()).then(|| Arc::new(JwtPlan { issuers }))
}

fn issuer(said: &Set<Jwt>, parts: &mut Parts<'_>) -> Option<IssuerPlan> {
    let keys = keys(said, parts);
    let place = said.token.place(Some((&said.token, parts.problems)));
    let strip = said.forward.value == Forward::Strip;
    if strip && !matches!(place, Some(Place::Header(_))) {
        let text = "`strip` is for tokens in fields: what stands in a cookie or a query goes to the service as it came";
        said.forward.refuse(parts.problems, text);
    }
    let audiences = said.audiences.as_ref()?.value.0.as_ref();
    Some(IssuerPlan {
        issuer: said.issuer.as_ref()?.value.0.as_str().into(),
        audiences: audiences.map(|all| all.0.iter().map(|one| one.value.0.clone()).collect()),
        keys: keys?,
        place: place?,
        leeway: said.leeway.0,
        strip,
    })
}

fn keys(said: &Jwt, parts: &mut Parts<'_>) -> Option<KeysPlan> {
    let at = said.jwks.as_ref()?;
    let unused = |parts: &mut Parts<'_>| {
        if !said.roots.is_default() {
            said.roots.warn(parts.problems, "means nothing: the keys do not come by https");
        }
    };
    match &at.value {
        KeysAt::File(path) => {
            unused(parts);
            Some(KeysPlan::File(parts.file_at(path, at.path.clone(), at.origin.at(), Content::Jwks)))
        }
        KeysAt::Url(url) => {
            let roots = match &said.roots.value.0 {
                _ if !url.tls => None,
                None => Some(Roots::System),
                Some(file) => {
                    let (key, mark) = (said.roots.path.clone(), said.roots.origin.at());
                    Some(Roots::File(parts.file_at(file, key, mark, Content::Certificates)))
                }
            };
            if !url.tls {
                unused(parts);
            }
            let (host, target) = (url.host.as_str().into(), url.target.clone());
            Some(KeysPlan::Url { text: url.text.as_str().into(), host, port: url.port, target, roots })
        }
    }
}

impl TokenPlace {
    /// Where it is; problems are told where there is somebody to tell.
    fn place(&self, tell: Option<(&Set<Self>, &mut Problems)>) -> Option<Place> {
        let all = [
            self.header.as_ref().map(|name| Place::Header(name.value.0.clone())),
            self.cookie.as_ref().map(|name| Place::Cookie(name.value.0.as_str().into())),
            self.query.as_ref().map(|name| Place::Query(name.value.0.as_str().into())),
        ];
        let given = all.iter().flatten().count();
        if let Some((set, problems)) = tell {
            exactly_one(set, given, problems);
        }
        all.into_iter().flatten().next()
    }
}

/// Warns of issuers that are never asked.
pub fn lint(inbound: &Inbound, problems: &mut Problems) {
    let own = inbound.app.is_some() && inbound.protocol.value != Protocol::Tcp;
    let http = own || inbound.ports.0.iter().any(|port| port.protocol.value != Protocol::Tcp);
    if !http && !inbound.jwt.0.is_empty() {
        inbound.jwt.warn(problems, "is never asked: the ports speak `tcp`, which has no requests to look at");
    }
}
