//! Tokens that were verified and are remembered: a client sends the same one with each request, and a signature costs
//! more than the rest of a small request.
//!
//! Two generations: what is asked for moves to the young one, and when that is full the old one is forgotten. So at most
//! [`MOST`] tokens and [`MOST_BYTES`] are held, and nothing is swept.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use parking_lot::Mutex;
use serde_json::Value;

use crate::plan::claims::Claims;

/// Tokens that are remembered.
pub const MOST: usize = 4096;

/// What their claims may take in all.
pub const MOST_BYTES: usize = 8 * 1024 * 1024;

/// A token that was believed.
pub struct Verified {
    /// Its issuer's place in the plan.
    pub issuer: usize,
    /// The set of keys that it was verified with.
    pub version: u64,
    /// The second since 1970 at which it is no longer believed.
    pub until: u64,
    /// What rules may ask of it.
    pub claims: Arc<Claims>,
}

/// What a token is remembered by: its SHA-256, because to find another one of the same would be to be let in by it.
pub type Print = [u8; 32];

/// The print of a token.
pub fn print(token: &str) -> Print {
    let mut print = [0; 32];
    print.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    print
}

/// The tokens that are remembered.
#[derive(Default)]
pub struct Known(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashMap<Print, Arc<Verified>>,
    old: HashMap<Print, Arc<Verified>>,
    /// Bytes of the young ones.
    weight: usize,
}

impl Known {
    /// The token of this print, if it is remembered.
    pub fn get(&self, print: &Print) -> Option<Arc<Verified>> {
        let mut all = self.0.lock();
        if let Some(found) = all.young.get(print) {
            return Some(found.clone());
        }
        let (print, found) = all.old.remove_entry(print)?;
        all.put(print, found.clone());
        Some(found)
    }

    /// Remembers a token.
    pub fn put(&self, print: Print, verified: Arc<Verified>) {
        self.0.lock().put(print, verified);
    }

    /// Forgets a token.
    pub fn forget(&self, print: &Print) {
        let mut all = self.0.lock();
        if let Some(gone) = all.young.remove(print) {
            all.weight = all.weight.saturating_sub(weight(&gone));
        }
        all.old.remove(print);
    }

    /// How many are remembered.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        let all = self.0.lock();
        all.young.len() + all.old.len()
    }

    /// What they take.
    #[cfg(test)]
    pub fn bytes(&self) -> usize {
        let all = self.0.lock();
        all.young.values().chain(all.old.values()).map(|one| weight(one)).sum()
    }
}

impl Generations {
    fn put(&mut self, print: Print, verified: Arc<Verified>) {
        let more = weight(&verified);
        if more > MOST_BYTES / 2 {
            return;
        }
        if self.young.len() >= MOST / 2 || self.weight + more > MOST_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
        if let Some(before) = self.young.insert(print, verified) {
            self.weight = self.weight.saturating_sub(weight(&before));
        }
        self.weight += more;
    }
}

/// What a token takes, roughly and rather too much.
fn weight(verified: &Verified) -> usize {
    fn of(value: &Value) -> usize {
        // A node of a map has room for eleven entries.
        let inside = match value {
            Value::String(text) => text.len(),
            Value::Array(items) => items.iter().map(of).sum(),
            Value::Object(members) => 1024 + members.iter().map(|(name, value)| name.len() + of(value)).sum::<usize>(),
            Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        };
        64 + inside
    }
    256 + verified.claims.0.iter().map(|(name, value)| name.len() + of(value)).sum::<usize>()
}
