//! The tokens of a request in words: whose are believed, and what the given one, or the claims said for it, prove.

use std::sync::Arc;
use std::time::SystemTime;

use http::request::Parts;

use super::{Asking, Explained};
use crate::call::Failure;
use crate::control::load::Loaded;
use crate::jwt::token::Fault;
use crate::jwt::tokens::{Held, Tokens};
use crate::plan::claims::ClaimRule;
use crate::plan::jwt::{IssuerPlan, KeysPlan, Place};
use crate::plan::matching::TextMatch;
use crate::plan::policy::Rule;
use crate::proxy::tokens::failure;
use crate::reason::Reason;

/// What the request's tokens prove; a server is not asked for keys.
///
/// # Errors
/// Why one is not believed.
pub(super) fn held(loaded: &Loaded, asking: &Asking, parts: &Parts, said: &mut Explained<'_>) -> Result<Held, Failure> {
    let Some(plan) = loaded.plan.jwt.as_ref().filter(|_| asking.inbound) else { return Ok(Held::new()) };
    for (at, issuer) in plan.issuers.iter().enumerate() {
        said.keyed("tokens", &[format!("inbound.jwt[{at}]")], believed(issuer));
    }
    let policy = &loaded.plan.policy;
    for rule in policy.deny.iter().chain(&policy.allow).filter(|rule| !rule.claims.is_empty()) {
        said.keyed("claims", &[format!("{}.claims", rule.name)], format!("`{}` asks for {}", rule.name, wants(rule)));
    }
    if let Some(claims) = &asking.claims {
        return Ok([Arc::new(claims.clone())].into_iter().collect());
    }
    let tokens = Tokens::next(None, plan, policy.claims(), &Arc::default());
    // What the files hold was found good when the configuration was loaded.
    let tokens = tokens.map_err(|why| Failure::new(Reason::KeysUnavailable, why))?;
    tokens.judge(parts, SystemTime::now()).map_err(|fault| match fault {
        Fault::NoKeys(_) => Failure::new(
            Reason::KeysUnavailable,
            "the keys come from a server, which is not asked here: `--claims` says what a good token would prove",
        ),
        fault => failure(&tokens, fault),
    })
}

fn believed(issuer: &IssuerPlan) -> String {
    let place = match &issuer.place {
        Place::Header(name) => format!("the field `{name}`"),
        Place::Cookie(name) => format!("the cookie `{name}`"),
        Place::Query(name) => format!("the parameter `{name}`"),
    };
    let keys = match &issuer.keys {
        KeysPlan::File(path) => path.display().to_string(),
        KeysPlan::Url { text, .. } => text.to_string(),
    };
    let audiences = issuer.audiences.as_ref().map_or_else(|| "anyone".to_owned(), |all| all.join(" or "));
    let strip = if issuer.strip { ", not passed on" } else { "" };
    format!("of {} for {audiences} in {place}, by the keys of {keys}{strip}", issuer.issuer)
}

fn wants(rule: &Rule) -> String {
    let one = |claim: &ClaimRule| {
        let texts: Vec<_> = claim.texts.iter().map(text).collect();
        format!("{}: {}", claim.name, texts.join(" or "))
    };
    rule.claims.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn text(text: &TextMatch) -> String {
    match text {
        TextMatch::Exact(text) => text.clone(),
        TextMatch::Prefix(text) => format!("{text}…"),
        TextMatch::Regex(pattern) => format!("/{}/", pattern.text()),
        TextMatch::Present(true) => "anything".to_owned(),
        TextMatch::Present(false) => "nothing".to_owned(),
    }
}
