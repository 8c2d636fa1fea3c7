//! The only wiring: configuration -> World -> doors -> run -> drain.
