//! A set of public keys (JWKS, RFC 7517), each with the algorithms that it may be used with: the key decides, not the
//! token.

use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// Keys of one set that are looked at.
const MOST_KEYS: usize = 256;

/// Keys that are tried for one token which names none.
const MOST_TRIED: usize = 8;

/// Bytes of an RSA modulus of 2048 bits.
const LEAST_MODULUS: usize = 256;

/// The keys of an issuer, as they were read at one time.
pub struct Keyset {
    /// No other set of this process has it.
    version: u64,
    /// Of the text that it was read from.
    digest: [u8; 32],
    keys: Vec<Key>,
    /// Keys that cannot be used, with the first reason.
    unusable: (usize, &'static str),
}

struct Key {
    id: Option<String>,
    kind: Kind,
    /// The only algorithm that it is for, where it says so.
    only: Option<Algorithm>,
    key: DecodingKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Kind {
    /// The algorithms of RFC 7518 §3.1 and RFC 8037 that a key of this kind can verify. None is symmetric, and there is
    /// no `none`.
    fn verifies(self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        match self {
            Self::Rsa => matches!(algorithm, A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512),
            Self::P256 => algorithm == A::ES256,
            Self::P384 => algorithm == A::ES384,
            Self::Ed25519 => algorithm == A::EdDSA,
        }
    }
}

impl Keyset {
    /// Reads a JWK set. Keys for other uses or of unknown kinds are passed over, as RFC 7517 §5 says.
    ///
    /// # Errors
    /// One line: it is no JWK set, or has no key that tokens could be verified with.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let Some(all) = set.get("keys").and_then(Value::as_array) else {
            return Err("it is no JWK set: there is no list `keys`".into());
        };
        if all.len() > MOST_KEYS {
            return Err(format!("it has {} keys; at most {MOST_KEYS} are read", all.len()));
        }
        let (mut keys, mut unusable) = (Vec::new(), (0, ""));
        for one in all {
            match key(one) {
                Ok(key) => keys.push(key),
                Err(why) => unusable = (unusable.0 + 1, if unusable.0 == 0 { why } else { unusable.1 }),
            }
        }
        match unusable {
            _ if !keys.is_empty() => {}
            (0, _) => return Err("it has no keys".into()),
            (n, why) => return Err(format!("none of its {n} keys can verify a token: the first {why}")),
        }
        static VERSION: AtomicU64 = AtomicU64::new(1);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, text).as_ref());
        Ok(Self { version: VERSION.fetch_add(1, Ordering::Relaxed), digest: hash, keys, unusable })
    }

    /// What no other set of this process has.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Keys that tokens can be verified with.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is no key; a set that was read has some.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Why some of its keys are passed over.
    pub fn warning(&self) -> Option<String> {
        let (n, why) = self.unusable;
        (n > 0).then(|| format!("{n} of its keys cannot verify a token: the first {why}"))
    }

    /// Whether both were read from the same text.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.digest == other.digest
    }

    /// Whether a token that names this key could be verified. A key without a name may be any.
    pub fn knows(&self, id: Option<&str>) -> bool {
        self.keys.iter().any(|key| key.is(id))
    }

    /// The keys that may verify a token of this head.
    pub fn fitting<'k>(&'k self, id: Option<&'k str>, algorithm: Algorithm) -> impl Iterator<Item = &'k DecodingKey> {
        let fits = move |key: &&Key| {
            key.is(id) && key.kind.verifies(algorithm) && key.only.is_none_or(|only| only == algorithm)
        };
        self.keys.iter().filter(fits).take(MOST_TRIED).map(|key| &key.key)
    }
}

impl Key {
    fn is(&self, id: Option<&str>) -> bool {
        match (id, &self.id) {
            (Some(wanted), Some(own)) => wanted == own,
            (None, _) | (_, None) => true,
        }
    }
}

/// One key, or why it cannot be used, in words that follow "the first".
fn key(said: &Value) -> Result<Key, &'static str> {
    let only = match said.get("alg") {
        None | Some(Value::Null) => None,
        // RFC 9864 §2.2: the name with the curve in it.
        Some(Value::String(name)) if name == "Ed25519" => Some(Algorithm::EdDSA),
        Some(Value::String(name)) => Some(name.parse().map_err(|_| "is for an algorithm that is not supported")?),
        Some(_) => return Err("has an `alg` that is no text"),
    };
    let mut said = said.clone();
    // What is read above: the crate's own list is another.
    said.as_object_mut().map(|members| members.remove("alg"));
    let jwk: Jwk = serde_json::from_value(said).map_err(|_| "is malformed, or of an unknown kind or curve")?;
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return Err("is not for signatures (`use`)");
    }
    if jwk.common.key_operations.as_ref().is_some_and(|all| !all.contains(&KeyOperations::Verify)) {
        return Err("is not for verifying (`key_ops`)");
    }
    let kind = kind(&jwk.algorithm)?;
    if only.is_some_and(|only| !kind.verifies(only)) {
        return Err("has an `alg` that does not fit its kind");
    }
    let key = DecodingKey::from_jwk(&jwk).map_err(|_| "has parts that are no base64url")?;
    if kind == Kind::Rsa && modulus(&key) < LEAST_MODULUS {
        return Err("is an RSA key of less than 2048 bits");
    }
    Ok(Key { id: jwk.common.key_id, kind, only, key })
}

fn kind(parameters: &AlgorithmParameters) -> Result<Kind, &'static str> {
    match parameters {
        AlgorithmParameters::RSA(_) => Ok(Kind::Rsa),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => Ok(Kind::P256),
            EllipticCurve::P384 => Ok(Kind::P384),
            _ => Err("is of a curve that is not supported"),
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => Ok(Kind::Ed25519),
        AlgorithmParameters::OctetKeyPair(_) => Err("is of a curve that is not supported"),
        // Whoever can verify with it could sign with it.
        AlgorithmParameters::OctetKey(_) => Err("is a shared secret"),
        _ => Err("is of an unknown kind or curve"),
    }
}

/// Bytes of a modulus without leading zeros.
fn modulus(key: &DecodingKey) -> usize {
    match key.kind() {
        jsonwebtoken::DecodingKeyKind::RsaModulusExponent { n, .. } => {
            n.len() - n.iter().take_while(|byte| **byte == 0).count()
        }
        jsonwebtoken::DecodingKeyKind::SecretOrDer(_) => 0,
    }
}
