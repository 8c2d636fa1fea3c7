//! JSON Web Tokens (RFC 7519): the keys of their issuers, where requests carry them, and whether one is believed.
//!
//! Signatures are `jsonwebtoken`'s, over aws-lc-rs; which algorithm a key may be used with, and what a token must say,
//! is judged here. Nothing here waits for a key: who brings them is the control side.

pub mod carried;
pub mod keys;
pub mod known;
pub mod source;
#[cfg(test)]
mod spelling_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod token;
pub mod tokens;
