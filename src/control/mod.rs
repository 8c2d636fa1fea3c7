//! Everything that watches or changes the house; never on the path of a request.

pub mod child;
pub mod load;
pub mod signals;
