//! HTTP messages as values: bodies and heads, the same for both versions and both doors.

pub mod authority;
pub mod awaited;
pub mod body;
mod forwarded;
pub mod guard;
pub mod h2io;
pub mod head;
pub mod hop;
pub mod length;
pub mod mark;
pub mod pour;
pub mod promised;
pub mod replay;
pub mod tee;
pub mod time_left;
mod trailers;
pub mod unsent;
pub mod window;
