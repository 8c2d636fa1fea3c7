//! Everything that watches or changes the house; never on the path of a request.

pub mod child;
pub mod reload;
pub mod signals;
#[cfg(test)]
pub(crate) mod testing;
