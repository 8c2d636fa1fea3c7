//! One shutdown for the program: a trigger, watchers, and a second, harder trigger.

use std::sync::Arc;

use tokio::sync::watch;

/// How far a shutdown has come; it only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Open,
    /// Finish what was begun, begin nothing new.
    Draining,
    /// End now.
    Forced,
}

/// The end that triggers; cheap to clone.
#[derive(Clone)]
pub struct Drain(Arc<watch::Sender<Phase>>);

/// The end that watches.
#[derive(Clone)]
pub struct Watch(watch::Receiver<Phase>);

impl Default for Drain {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Phase::Open)))
    }
}

impl Drain {
    /// Moves to `phase` unless already there or further.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = *now < phase;
            if forward {
                *now = phase;
            }
            forward
        });
    }

    /// Where the shutdown stands.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// A watcher of it.
    pub fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
}

impl Watch {
    /// Where the shutdown stands.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until at least `phase`; cancel-safe. A trigger that is gone counts as forced.
    pub async fn reached(&mut self, phase: Phase) -> Phase {
        match self.0.wait_for(|now| *now >= phase).await {
            Ok(now) => *now,
            Err(_) => Phase::Forced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_only_moves_forward() {
        let drain = Drain::default();
        let mut watch = drain.watch();
        assert_eq!(watch.phase(), Phase::Open);
        drain.advance(Phase::Forced);
        drain.advance(Phase::Draining);
        assert_eq!(watch.reached(Phase::Draining).await, Phase::Forced);
        let mut orphan = Drain::default().watch();
        assert_eq!(orphan.reached(Phase::Draining).await, Phase::Forced);
    }
}
