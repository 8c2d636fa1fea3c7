//! The living side of the plan: peers, endpoints, pools, connections.
