//! Where a request, or a connection of opaque bytes, meets the rules of the service: before anything is done for it.
//!
//! What is judged is what is forwarded: the head as it was normalised, and a path that has one meaning or is refused. A
//! route may rewrite it afterwards, which is the file's own word.

use std::borrow::Cow;
use std::sync::Arc;

use http::request::Parts;

use super::Conn;
use super::target;
use crate::call::Failure;
use crate::http::head;
use crate::ids::Door;
use crate::jwt::tokens::Held;
use crate::plan::claims::Claims;
use crate::plan::door::{Leads, Mtls};
use crate::plan::path;
use crate::plan::policy::{Asked, Facts, Policy, Ports, Verdict};
use crate::reason::Reason;
use crate::upstream::world::World;

/// Why something that was let in would have been kept out.
pub type WouldDeny = Cow<'static, str>;

/// Whether the caller has proven who it is where it must.
///
/// # Errors
/// `PlaintextRefused`.
pub fn proven(conn: &Conn, world: &World, parts: &Parts, head: &head::Facts) -> Result<(), Failure> {
    if conn.side() == Door::Outbound || conn.proof.is_some() {
        return Ok(());
    }
    let mtls = in_force(conn, world);
    if conn.is_unproven() || mtls == Mtls::Strict {
        return plaintext(&world.plan.policy, parts, head, conn.tls);
    }
    if mtls == Mtls::Permissive
        && conn.counts_plaintext()
        && plaintext(&world.plan.policy, parts, head, conn.tls).is_err()
    {
        conn.count_plaintext();
    }
    Ok(())
}

/// Whether a request with these tokens may pass; what an audit only tells of is given back.
///
/// # Errors
/// `Denied`, `TokenMissing`, what the tokens say, or `PathNotNormal` where a rule looks at paths and this one can be
/// read in two ways.
pub fn request(
    conn: &Conn,
    world: &World,
    parts: &Parts,
    head: &head::Facts,
    tokens: Result<Held, Failure>,
) -> Result<Option<WouldDeny>, Failure> {
    let policy = &world.plan.policy;
    if conn.side() == Door::Outbound || (policy.is_empty() && tokens.is_ok()) {
        return Ok(None);
    }
    let judged =
        tokens.and_then(|held| judge(policy, &who(conn, world), parts, head, (conn.tls, &held)).and_then(settled));
    enforced(policy, judged)
}

/// What its door asks of a connection as a reload has made it since it came: one that is kept alive would bring plaintext
/// past a door that is strict by now, for as long as it is used, and pass uncounted where it is permissive by now.
pub(super) fn in_force(conn: &Conn, world: &World) -> Mtls {
    let door = &conn.door;
    if Arc::ptr_eq(&conn.plan, &world.plan) {
        return door.mtls;
    }
    let now = world.plan.doors.iter().find(|now| now.side == door.side && now.listen == door.listen);
    now.map_or(door.mtls, |now| now.mtls)
}

/// Whether a request in plaintext may pass a door that demands mutual TLS. No audit lets it in: what must be proven is
/// the door's word, not a rule's.
///
/// # Errors
/// `PlaintextRefused` for all but probes.
pub fn plaintext(policy: &Policy, parts: &Parts, head: &head::Facts, tls: bool) -> Result<(), Failure> {
    if policy.is_probe(&asked(parts, head, (tls, &[]))) {
        return Ok(());
    }
    let detail = "this door takes mutual TLS only (`inbound.mtls: strict`), and the request came in plaintext";
    Err(Failure::new(Reason::PlaintextRefused, detail))
}

/// Whether opaque bytes of this connection may go to the app; what an audit only tells of is given back.
///
/// # Errors
/// `Denied`.
pub fn bytes(conn: &Conn, world: &World) -> Result<Option<WouldDeny>, Failure> {
    let policy = &world.plan.policy;
    if policy.is_empty() || conn.side() == Door::Outbound {
        return Ok(None);
    }
    enforced(policy, opaque(policy, &who(conn, world)).map(drop))
}

fn enforced(policy: &Policy, judged: Result<(), Failure>) -> Result<Option<WouldDeny>, Failure> {
    match judged {
        Ok(()) => Ok(None),
        Err(failure) if policy.audit => Ok(Some(failure.detail)),
        Err(failure) => Err(failure),
    }
}

/// What is known of a caller by its connection, which leads where `world` says: a reload may have moved the app.
fn who<'a>(conn: &'a Conn, world: &World) -> Facts<'a> {
    let app = match conn.door.leads {
        Leads::Peer(index) => target::in_force(conn, world, index),
        Leads::ByAuthority | Leads::Dialled => None,
    };
    let app = app.and_then(|index| world.plan.peers.get(index));
    Facts {
        identity: conn.identity(),
        address: conn.caller.client.0.map(|addr| addr.ip()),
        ports: Ports::of(&conn.door, app, conn.caller.original.0),
        request: None,
    }
}

/// What the rules say of a request by a caller with these facts; whether it came in TLS, and with which tokens.
///
/// # Errors
/// `PathNotNormal`.
pub fn judge<'p>(
    policy: &'p Policy,
    who: &Facts<'_>,
    parts: &Parts,
    head: &head::Facts,
    inside: (bool, &[Arc<Claims>]),
) -> Result<Verdict<'p>, Failure> {
    if policy.judges_paths(&who.ports)
        && let Some(why) = path::ambiguity(parts.uri.path())
    {
        let detail =
            format!("the path has {why}: servers read it differently, so the rules of the service cannot judge it");
        return Err(Failure::new(Reason::PathNotNormal, detail));
    }
    Ok(policy.decide(&Facts { request: Some(asked(parts, head, inside)), ..*who }))
}

/// What the rules look at in a request.
fn asked<'a>(parts: &'a Parts, head: &'a head::Facts, (tls, tokens): (bool, &'a [Arc<Claims>])) -> Asked<'a> {
    let default_port = if tls { 443 } else { 80 };
    Asked {
        method: &parts.method,
        uri: &parts.uri,
        headers: &parts.headers,
        host: head.authority.written_host(),
        host_port: head.authority.port().unwrap_or(default_port),
        tunnel: super::upgrade::is_asked(parts, head),
        body: head.body,
        tokens,
    }
}

/// A verdict on a request, as a failure where it is kept out.
///
/// # Errors
/// `Denied` or `TokenMissing`.
pub fn settled(verdict: Verdict<'_>) -> Result<(), Failure> {
    match verdict {
        Verdict::Free | Verdict::Probe | Verdict::Allowed(_) => Ok(()),
        Verdict::Denied(rule) => denied(format!("`{}` (line {}) denies it", rule.name, rule.line.0)),
        Verdict::NoneAllows => denied("no rule of `inbound.allow` allows it"),
        Verdict::TokenMissing => {
            Err(Failure::new(Reason::TokenMissing, "the rules of this service ask for a token, and it carries none"))
        }
    }
}

/// What the rules say of opaque bytes from a caller with these facts.
///
/// # Errors
/// `Denied`.
pub fn opaque<'p>(policy: &'p Policy, who: &Facts<'_>) -> Result<Verdict<'p>, Failure> {
    match policy.decide(who) {
        Verdict::Denied(rule) if rule.needs_request() => denied(format!(
            "`{}` (line {}) denies requests that opaque bytes could hold unseen",
            rule.name, rule.line.0
        )),
        Verdict::NoneAllows => denied("no rule of `inbound.allow` allows opaque bytes"),
        verdict => settled(verdict).map(|()| verdict),
    }
}

fn denied<T>(detail: impl Into<Cow<'static, str>>) -> Result<T, Failure> {
    Err(Failure::new(Reason::Denied, detail))
}
