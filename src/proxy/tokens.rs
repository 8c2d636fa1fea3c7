//! Where a request's tokens are asked for: at an inbound door whose service believes in any.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::request::Parts;
use tokio::time::{Instant, timeout};

use super::Conn;
use crate::call::Failure;
use crate::ids::Door;
use crate::jwt::token::Fault;
use crate::jwt::tokens::{Held, Tokens};
use crate::reason::Reason;
use crate::upstream::world::World;

/// How long a request waits for keys that are on their way: its issuer may have begun to sign with a new one.
const PATIENCE: Duration = Duration::from_secs(2);

/// The verified tokens of a request.
///
/// # Errors
/// `TokenInvalid` where one is not believed, `KeysUnavailable` where it cannot be judged yet.
pub async fn held(conn: &Conn, world: &World, parts: &Parts) -> Result<Held, Failure> {
    let Some(tokens) = world.jwt.as_ref().filter(|_| conn.side() == Door::Inbound) else { return Ok(Held::new()) };
    match tokens.judge(parts, SystemTime::now()) {
        Ok(held) => Ok(held),
        // Boxed: rare, and must not make every exchange larger.
        Err(fault) => Box::pin(in_time(tokens, parts, fault)).await,
    }
}

/// Judges again once the keys that were missing have come, if any are on their way.
async fn in_time(tokens: &Tokens, parts: &Parts, fault: Fault) -> Result<Held, Failure> {
    let (Fault::NoKeys(at) | Fault::UnknownKey(at)) = fault else { return Err(failure(tokens, fault)) };
    let Some(source) = tokens.source(at) else { return Err(failure(tokens, fault)) };
    // Before keys are asked for, so that no round is missed.
    let mut rounds = source.rounds();
    if source.want(Instant::now()) && timeout(PATIENCE, rounds.changed()).await.is_err() {
        return Err(failure(tokens, fault));
    }
    // Also where none were asked for: they may have come a moment ago.
    tokens.judge(parts, SystemTime::now()).map_err(|fault| failure(tokens, fault))
}

/// Whether the service is told by a token in a field of its own who asks: its answer may be for nobody else.
pub fn are_told(conn: &Conn, world: &World, headers: &HeaderMap) -> bool {
    conn.side() == Door::Inbound && world.jwt.as_ref().is_some_and(|tokens| tokens.is_told(headers))
}

/// A fault in the words of the one list; no word of the token itself.
pub fn failure(tokens: &Tokens, fault: Fault) -> Failure {
    match fault {
        Fault::Invalid(why) => Failure::new(Reason::TokenInvalid, format!("the token is not believed: {why}")),
        Fault::UnknownKey(_) => {
            Failure::new(Reason::TokenInvalid, "the token is not believed: its key (`kid`) is not one of its issuer's")
        }
        Fault::NoKeys(at) => {
            let issuer = tokens.source(at).map_or("", |source| &source.issuer);
            Failure::new(Reason::KeysUnavailable, format!("the keys of {issuer} could not be read yet"))
        }
    }
}
