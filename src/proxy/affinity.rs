//! What a request sticks to an endpoint by, where its peer's balance goes by a key: computed once, before any attempt.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderValue};

use super::Conn;
use super::route::Taken;
use crate::plan::keyhash::hash;
use crate::plan::peer::{Affinity, PeerPolicy};
use crate::plan::route::Sticky;

/// A cookie that a caller is given for its session, because what it sticks by is a cookie that it did not have.
#[derive(Debug)]
pub struct NewCookie {
    /// Its value.
    pub text: String,
    field: Option<HeaderValue>,
}

impl NewCookie {
    /// One of this name, with a value of its own.
    pub fn new(name: &str) -> Self {
        let text = format!("{:016x}", fastrand::u64(..));
        let field = HeaderValue::try_from(format!("{name}={text}; Path=/; HttpOnly; SameSite=Lax")).ok();
        Self { text, field }
    }

    /// Gives it to the caller with its answer.
    pub fn give(&self, headers: &mut HeaderMap) {
        if let Some(field) = &self.field {
            headers.append(header::SET_COOKIE, field.clone());
        }
    }
}

/// What a request sticks by.
#[derive(Default)]
pub struct Stuck {
    /// A hash of it; `None` where the peer's balance asks for none, or the request has nothing to stick by.
    pub key: Option<u64>,
    /// Boxed: it is rare, and must not make every exchange larger.
    cookie: Option<Box<NewCookie>>,
}

impl Stuck {
    /// What a request with these fields sticks by. A cookie that its route has just made is not made twice.
    pub fn of(policy: &PeerPolicy, conn: &Conn, headers: &HeaderMap, route: Option<&Taken>) -> Self {
        let sticky = match &policy.affinity {
            None => return Self::default(),
            Some(Affinity::Source) => return Self { key: source(conn), cookie: None },
            Some(Affinity::Sticky(sticky)) => sticky,
        };
        let by = |text: &[u8]| Self { key: Some(hash(text)), cookie: None };
        match (sticky.text(headers), sticky) {
            (Some(text), _) => by(text),
            (None, Sticky::Header(_)) => Self::default(),
            (None, Sticky::Cookie(name)) => match route.and_then(|taken| taken.made(name)) {
                Some(text) => by(text.as_bytes()),
                None => {
                    let cookie = Box::new(NewCookie::new(name));
                    Self { key: Some(hash(cookie.text.as_bytes())), cookie: Some(cookie) }
                }
            },
        }
    }

    /// Gives the caller what it is to stick by from now on.
    pub fn dress(&self, headers: &mut HeaderMap) {
        if let Some(cookie) = &self.cookie {
            cookie.give(headers);
        }
    }
}

/// What a connection without requests sticks by.
pub fn of_connection(policy: &PeerPolicy, conn: &Conn) -> Option<u64> {
    matches!(policy.affinity, Some(Affinity::Source)).then(|| source(conn)).flatten()
}

/// The caller's address without its port, which each of its connections has another of.
fn source(conn: &Conn) -> Option<u64> {
    conn.caller.client.0.map(|addr| match addr.ip().to_canonical() {
        IpAddr::V4(ip) => hash(&ip.octets()),
        IpAddr::V6(ip) => hash(&ip.octets()),
    })
}
