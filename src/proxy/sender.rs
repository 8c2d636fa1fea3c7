//! What a door knows of whoever sends a request, and what becomes of the request's head by that; asked by `explain` too.

use std::fmt::Display;
use std::net::IpAddr;

use http::HeaderValue;
use http::request::Parts;

use crate::http::head::{self, Facts, HeadError, Rules};
use crate::ids::Door;
use crate::plan::door::DoorPlan;
use crate::spiffe::SpiffeId;

/// Who sends a request, as its connection tells.
#[derive(Clone, Copy, Debug)]
pub struct Sender<'a> {
    /// Its address as a field's value; `None` where none is to be told.
    pub client: Option<&'a HeaderValue>,
    /// Whether its word about where it comes from is believed.
    pub trusted: bool,
    /// Whether it has proven who it is.
    pub proven: bool,
    /// Whether it speaks TLS with the door's own certificate.
    pub tls: bool,
    /// Who it is, for the app, as `x-forwarded-client-cert`.
    pub client_cert: Option<&'a HeaderValue>,
}

/// What an HTTP/1.0 request without a Host is addressed to; HTTP/1.1 upstream demands one.
static NO_HOST: HeaderValue = HeaderValue::from_static("localhost");

/// Judges and normalises a head that comes through `door`, and has it tell who sent it.
///
/// # Errors
/// The reason and words for a refusal.
pub fn judge(door: &DoorPlan, sender: &Sender<'_>, parts: &mut Parts) -> Result<Facts, HeadError> {
    let rules = Rules {
        forward_proxy: door.side == Door::Outbound,
        trusted: sender.trusted,
        fills: sender.proven,
        client: sender.client,
        tls: sender.tls,
        upgrades: &door.upgrades,
        default_authority: Some(&NO_HOST).filter(|_| door.side == Door::Inbound),
        fields: door.limits.fields,
        bytes: door.limits.head,
    };
    let facts = head::request(parts, &rules)?;
    if let Some(certificate) = sender.client_cert {
        parts.headers.insert(head::CLIENT_CERT, certificate.clone());
    }
    Ok(facts)
}

/// Whether a caller that proves nothing is believed about where it comes from; `None` is one by a Unix socket.
pub fn is_trusted(door: &DoorPlan, ip: Option<IpAddr>, captured: bool) -> bool {
    let listed = |ip: IpAddr| door.trusted.iter().any(|net| net.contains(&ip));
    match door.side {
        // Its callers are the app itself, as are those captured there; a Unix socket's are those that may open it.
        Door::Outbound => captured || ip.is_none_or(|ip| ip.is_loopback() || listed(ip)),
        Door::Inbound => ip.is_none_or(listed),
    }
}

/// What the app is told of a caller, in the form of Envoy's `x-forwarded-client-cert`. A SPIFFE ID has no character that
/// would need quotes there.
pub fn client_cert(own: &dyn Display, hash: &str, id: &SpiffeId) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("By={own};Hash={hash};URI={id}")).ok()
}
