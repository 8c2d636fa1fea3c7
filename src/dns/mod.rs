//! Names to addresses, with their time to live; the last good answer is kept.
