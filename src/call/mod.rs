//! One call to a peer, whatever it takes.
