//! The kernel's rules for transparent interception: what they are, how they come into force as a whole and go without
//! a trace, and whether they do what they are to do. Nothing here runs beside traffic.
//!
//! From a [`Capture`](crate::plan::redirect::Capture) `build` makes rules as data; `text` and `iptables` write them
//! down, `compile` and `expression` make the kernel's own language of them and back, `tables` and `routing` carry that
//! by netlink. `force` brings them into force and away; `words` says in words what is in force; `probe` tries it.

pub mod anyip;
pub mod attribute;
pub mod build;
pub mod compile;
pub mod expression;
pub mod force;
pub mod iptables;
pub mod netlink;
pub mod probe;
pub mod routing;
pub mod rules;
pub mod tables;
pub mod text;
pub mod words;

#[cfg(test)]
mod tests;

/// The name of our table, of the family `inet`.
pub const TABLE: &str = "outrigger";

/// What our rules and routes of policy routing carry as their origin (`rtm_protocol`); registered by nobody.
pub const PROTOCOL: u8 = 156;
