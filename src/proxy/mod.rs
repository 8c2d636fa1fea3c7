//! The life of a request: doors, the corridor, tunnels, and the one table of invented answers.
