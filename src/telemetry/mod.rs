//! What the proxy tells about itself: numbers, one line per exchange, its own log.

pub mod metrics;
