//! Room for connections under the limits of a peer and of its endpoints: taken before one is made, given back after its
//! end, when whoever waits at its endpoint or at another one of the peer may be next.

use std::sync::{Arc, Weak};

use super::peer::Peer;
use crate::plan::rules::{LimitsRule, Rules};
use crate::resilience::limit::{Full, Limited, Limits};

/// The peer that an endpoint belongs to, and the counters that all of its endpoints share.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) peer: Weak<Peer>,
    pub(super) limits: Arc<Limits>,
}

/// The counters and limits of a pool.
#[derive(Default)]
pub struct Room {
    pub(super) peer: Arc<Limits>,
    pub(super) endpoint: Arc<Limits>,
    peer_rule: LimitsRule,
    endpoint_rule: LimitsRule,
}

/// A limit that is reached, and whether it is that of a single endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    pub(super) full: Full,
    pub(super) endpoint: bool,
}

impl Room {
    pub(super) fn new(peer: Arc<Limits>, endpoint: Arc<Limits>, rules: &Rules) -> Self {
        Self { peer, endpoint, peer_rule: rules.limits, endpoint_rule: rules.endpoint_limits }
    }

    pub(super) fn set_rules(&mut self, rules: &Rules) {
        (self.peer_rule, self.endpoint_rule) = (rules.limits, rules.endpoint_limits);
    }

    /// What is allowed for the endpoint alone.
    pub(super) fn endpoint_rule(&self) -> &LimitsRule {
        &self.endpoint_rule
    }

    /// Takes room for a connection that is to be made; a [`Place`] gives it back. Returns whether there was any.
    ///
    /// Of the endpoint first, which only its own pool's lock lets in here: taken for a moment under the peer's limit, it
    /// would be missing at another endpoint, where nobody would look again.
    pub(super) fn enter(&self) -> bool {
        let [peer, peer_connecting, endpoint, endpoint_connecting] = self.all();
        let all = [endpoint, endpoint_connecting, peer, peer_connecting];
        for (taken, (limits, rule, what)) in all.into_iter().enumerate() {
            if limits.of(what).raise(what.of(rule)).is_err() {
                all.into_iter().take(taken).for_each(|(limits, _, what)| limits.of(what).lower());
                return false;
            }
        }
        true
    }

    /// What stands in the way of a further connection.
    pub(super) fn full(&self) -> Option<NoRoom> {
        self.all().into_iter().enumerate().find_map(|(at, (limits, rule, what))| {
            let full = limits.of(what).full(what.of(rule))?;
            Some(NoRoom { full, endpoint: at >= 2 })
        })
    }

    fn all(&self) -> [(&Limits, &LimitsRule, Limited); 4] {
        [
            (&self.peer, &self.peer_rule, Limited::Connections),
            (&self.peer, &self.peer_rule, Limited::Connecting),
            (&self.endpoint, &self.endpoint_rule, Limited::Connections),
            (&self.endpoint, &self.endpoint_rule, Limited::Connecting),
        ]
    }
}

/// The room of one connection, from the moment it is being made until it has ended.
pub struct Place {
    home: Home,
    endpoint: Arc<Limits>,
    connecting: bool,
}

impl Place {
    /// What [`Room::enter`] has taken.
    pub(super) fn taken(home: &Home, endpoint: &Arc<Limits>) -> Self {
        Self { home: home.clone(), endpoint: endpoint.clone(), connecting: true }
    }

    /// The connection is made.
    pub(super) fn connected(&mut self) {
        if std::mem::take(&mut self.connecting) {
            self.lower(Limited::Connecting);
            self.next();
        }
    }

    fn lower(&self, what: Limited) {
        for limits in [&self.home.limits, &self.endpoint] {
            limits.of(what).lower();
        }
    }

    fn next(&self) {
        if let Some(peer) = self.home.peer.upgrade() {
            peer.room_again(&self.endpoint);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.lower(Limited::Connections);
        if self.connecting {
            self.lower(Limited::Connecting);
        }
        self.next();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_takes_nothing_and_is_named() {
        let (peer, endpoint) = (Arc::<Limits>::default(), Arc::<Limits>::default());
        let rules = |connections, connecting, each| Rules {
            limits: LimitsRule { connections, connecting, ..LimitsRule::default() },
            endpoint_limits: LimitsRule { connections: each, ..LimitsRule::default() },
            ..Rules::default()
        };
        let mut room = Room::new(peer.clone(), endpoint.clone(), &rules(Some(2), None, Some(1)));
        let used = || (peer.connections.used(), peer.connecting.used(), endpoint.connections.used());
        assert!(room.enter());
        assert!(!room.enter());
        assert_eq!(used(), (1, 1, 1));
        assert_eq!(
            room.full().map(|no| (no.full.to_string(), no.endpoint)),
            Some(("the limit `connections: 1` is reached".into(), true))
        );
        room.set_rules(&rules(None, Some(1), None));
        assert!(!room.enter());
        assert_eq!(
            room.full().map(|no| (no.full.to_string(), no.endpoint)),
            Some(("the limit `connecting: 1` is reached".into(), false))
        );
        let mut place = Place::taken(&Home { peer: Weak::new(), limits: peer.clone() }, &endpoint);
        place.connected();
        assert_eq!(used(), (1, 0, 1));
        assert!(room.enter());
        drop(place);
        drop(Place::taken(&Home { peer: Weak::new(), limits: peer.clone() }, &endpoint));
        assert_eq!(used(), (0, 0, 0));
        assert_eq!(endpoint.connecting.used(), 0);
    }

    #[test]
    fn one_endpoint_that_is_full_never_keeps_room_from_another() {
        let (peer, full, free) = (Arc::<Limits>::default(), Arc::<Limits>::default(), Arc::<Limits>::default());
        let limits = |connections| LimitsRule { connections: Some(connections), ..LimitsRule::default() };
        let rules = Rules { limits: limits(2), endpoint_limits: limits(1), ..Rules::default() };
        let (full, free) = (Room::new(peer.clone(), full, &rules), Room::new(peer.clone(), free.clone(), &rules));
        assert!(full.enter());
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(!full.enter());
                }
            });
            let home = Home { peer: Weak::new(), limits: peer.clone() };
            let refused = (0..200_000).filter(|_| {
                let entered = free.enter();
                drop(entered.then(|| Place::taken(&home, &free.endpoint)));
                !entered
            });
            let refused = refused.count();
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(refused, 0);
        });
    }
}
