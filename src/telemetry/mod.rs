//! What the proxy tells about itself: numbers, one line per exchange, its own log.

pub mod access;
pub mod exposition;
pub mod line;
pub mod lines;
pub mod log;
pub mod metrics;
pub mod plaintext;
pub mod stamp;
