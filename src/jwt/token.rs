//! One token: its head, its claims, its signature, and whether what it says holds now (RFC 7519 §4.1, RFC 8725).

use jsonwebtoken::dangerous::insecure_decode;
use jsonwebtoken::{Algorithm, Header, crypto};
use serde_json::{Map, Value};

use super::keys::Keyset;
use crate::plan::jwt::IssuerPlan;

/// A token with more bytes is refused unread.
pub const MOST_BYTES: usize = 16 * 1024;

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It cannot become valid by waiting; in words that tell nothing of it.
    Invalid(&'static str),
    /// No keys of this issuer are known yet; its place in the plan.
    NoKeys(usize),
    /// It names a key that this issuer's set has not; its place in the plan.
    UnknownKey(usize),
}

/// A token that is not believed yet.
pub struct Unproven<'t> {
    /// Its head.
    pub header: Header,
    /// What it says.
    pub claims: Map<String, Value>,
    signed: &'t str,
    signature: &'t str,
}

/// Takes a token apart.
///
/// # Errors
/// It is none.
pub fn read(token: &str) -> Result<Unproven<'_>, Fault> {
    if token.len() > MOST_BYTES {
        return Err(Fault::Invalid("it is longer than 16 KiB"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(FORM)?;
    // Only taken apart here; `verify` says what of it is believed.
    let parts = insecure_decode::<Map<String, Value>>(token).map_err(|_| unread(token))?;
    if parts.header.crit.is_some() {
        return Err(Fault::Invalid("its header demands extensions (`crit`) that are not known here"));
    }
    Ok(Unproven { header: parts.header, claims: parts.claims, signed, signature })
}

const FORM: Fault = Fault::Invalid("it is not of the form header.payload.signature");

/// Why a token cannot be taken apart.
#[cold]
fn unread(token: &str) -> Fault {
    /// `{"alg":"HS256"}`: a head is read as if it were what another token says.
    const HEAD: &str = "eyJhbGciOiJIUzI1NiJ9";
    let mut parts = token.split('.');
    let head = parts.next().unwrap_or_default();
    let head = insecure_decode::<Map<String, Value>>(&format!("{HEAD}.{head}.")).ok();
    let Some(head) = head.map(|read| read.claims) else { return FORM };
    match (parts.count(), head.get("alg").and_then(Value::as_str)) {
        (4, _) if head.contains_key("enc") => {
            Fault::Invalid("it is encrypted (a JWE), and only signed tokens are taken")
        }
        (2, Some(alg)) if alg.parse::<Algorithm>().is_err() => {
            Fault::Invalid("its algorithm (`alg`) is none that is taken here")
        }
        _ => FORM,
    }
}

impl Unproven<'_> {
    /// Who says to have issued it.
    pub fn issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Judges it by its issuer's keys and by what is asked of it, `now` in seconds since 1970; the second until which
    /// that holds.
    ///
    /// # Errors
    /// Why it is not believed; `at` is the issuer's place in the plan.
    pub fn verify(&self, at: usize, issuer: &IssuerPlan, keys: &Keyset, now: u64) -> Result<u64, Fault> {
        if self.issuer() != Some(&*issuer.issuer) {
            return Err(Fault::Invalid("its issuer is not the one whose keys would verify it"));
        }
        let (id, algorithm) = (self.header.kid.as_deref(), self.header.alg);
        if !keys.knows(id) {
            return Err(Fault::UnknownKey(at));
        }
        let mut fitting = keys.fitting(id, algorithm).peekable();
        if fitting.peek().is_none() {
            return Err(Fault::Invalid("its algorithm (`alg`) is not one of its key's"));
        }
        let signs = |key| crypto::verify(self.signature, self.signed.as_bytes(), key, algorithm).unwrap_or(false);
        if !fitting.any(signs) {
            return Err(Fault::Invalid("its signature is not by a key of its issuer"));
        }
        self.is_for(issuer)?;
        self.holds(issuer.leeway.as_secs_f64(), now)
    }

    fn is_for(&self, issuer: &IssuerPlan) -> Result<(), Fault> {
        let Some(wanted) = &issuer.audiences else { return Ok(()) };
        let means = |one: &Value| one.as_str().is_some_and(|one| wanted.iter().any(|own| own == one));
        let named = match self.claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(means),
            Some(one) => means(one),
            None => false,
        };
        if named { Ok(()) } else { Err(Fault::Invalid("it is for another audience (`aud`)")) }
    }

    fn holds(&self, leeway: f64, now: u64) -> Result<u64, Fault> {
        let now = now as f64;
        let time = |name: &str| match self.claims.get(name) {
            None => Ok(None),
            Some(value) => {
                let number = value.as_f64().filter(|number| number.is_finite());
                number.map(Some).ok_or(Fault::Invalid("`exp`, `nbf` or `iat` is no number"))
            }
        };
        let Some(end) = time("exp")? else { return Err(Fault::Invalid("it has no end (`exp`)")) };
        let end = end + leeway;
        if end <= now {
            return Err(Fault::Invalid("it is expired (`exp`)"));
        }
        if time("nbf")?.is_some_and(|begin| begin > now + leeway) {
            return Err(Fault::Invalid("it is not valid yet (`nbf`)"));
        }
        if time("iat")?.is_some_and(|issued| issued > now + leeway) {
            return Err(Fault::Invalid("it is from the future (`iat`)"));
        }
        // Saturates: an end beyond all times is one.
        Ok(end as u64)
    }
}
