//! The caller of a request at a door, and what the sidecar writes of it into the head, by the data path's own code.

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderValue;
use http::header::{FORWARDED, HeaderName};
use http::request::Parts;

use super::{Asking, Explained};
use crate::control::load::Loaded;
use crate::http::head::{CLIENT_CERT, FORWARDED_FOR, FORWARDED_PROTO, Facts, HeadError};
use crate::ids::Door;
use crate::plan::door::DoorPlan;
use crate::plan::matching::alike;
use crate::proxy::sender::{self, is_trusted};

/// Stands for the hash of a certificate that nobody shows here.
const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What rules may ask of a caller by a field that the sidecar writes.
static OF_CALLERS: [HeaderName; 4] = [CLIENT_CERT, FORWARDED_FOR, FORWARDED_PROTO, FORWARDED];

/// Judges the head of the request and has it tell of its caller; `tls` is the door's own.
///
/// # Errors
/// The reason and words for a refusal.
pub(super) fn judge(
    loaded: &Loaded,
    asking: &Asking,
    door: &DoorPlan,
    tls: bool,
    parts: &mut Parts,
) -> Result<Facts, HeadError> {
    // Somewhere, where the question does not say it; who comes by a Unix socket is nowhere, and the app is here.
    let unsaid = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let ip = match (door.side, door.listen.tcp()) {
        (Door::Inbound, Some(_)) => Some(asking.address.map_or(unsaid, |ip| ip.to_canonical())),
        _ => None,
    };
    let client = match asking.address {
        Some(_) => ip.and_then(|ip| HeaderValue::from_str(&ip.to_string()).ok()),
        // As RFC 7239 calls it.
        None => ip.map(|_| HeaderValue::from_static("unknown")),
    };
    let own = loaded.own.as_ref().map_or("unknown", |id| id.as_str());
    let client_cert = asking.identity.as_ref().and_then(|id| sender::client_cert(&own, NO_HASH, id));
    let proven = asking.identity.is_some();
    let trusted = proven || is_trusted(door, ip, asking.dialled.is_some());
    let sender = sender::Sender { client: client.as_ref(), trusted, proven, tls, client_cert: client_cert.as_ref() };
    sender::judge(door, &sender, parts)
}

/// Tells what rules see of the caller in the fields that they ask for and the sidecar writes.
pub(super) fn tell(loaded: &Loaded, asking: &Asking, parts: &Parts, said: &mut Explained<'_>) {
    let policy = &loaded.plan.policy;
    let asked = |own: &HeaderName| {
        let mut all = policy.deny.iter().chain(&policy.allow).flat_map(|rule| &rule.headers);
        asking.inbound && all.any(|(name, _)| alike(own, name))
    };
    for name in OF_CALLERS.iter().filter(|name| asked(name)) {
        let value = parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let why = match (*name == CLIENT_CERT && value.is_some(), *name == FORWARDED_FOR && asking.address.is_none()) {
            (true, _) => " (zeros for the hash of its certificate, which is not known here)",
            (_, true) => " (`--address` says where it calls from)",
            _ => "",
        };
        said.plain("caller", format!("rules see `{name}: {}`{why}", value.unwrap_or_default()));
    }
}
