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

/// The end that watches: a shutdown and, for a holder that can be ended alone, a drain of its own.
#[derive(Clone)]
pub struct Watch {
    all: watch::Receiver<Phase>,
    own: Option<watch::Receiver<Phase>>,
}

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
        Watch { all: self.0.subscribe(), own: None }
    }

    /// Whether anyone watches it.
    pub fn is_watched(&self) -> bool {
        self.0.receiver_count() > 0
    }
}

impl Watch {
    /// Obeys `own` as well, in place of an earlier one of its own.
    pub fn beside(self, own: &Drain) -> Self {
        Self { own: Some(own.0.subscribe()), ..self }
    }

    /// Obeys nothing of its own any more.
    pub fn alone(self) -> Self {
        Self { own: None, ..self }
    }

    /// Where the shutdown stands, or its own drain if that is further.
    pub fn phase(&self) -> Phase {
        let (all, own) = (*self.all.borrow(), self.own.as_ref().map_or(Phase::Open, |own| *own.borrow()));
        all.max(own)
    }

    /// Waits until at least `phase`; cancel-safe. A trigger that is gone counts as forced, an own one as none.
    pub async fn reached(&mut self, phase: Phase) -> Phase {
        let Some(own) = &mut self.own else { return reached(&mut self.all, phase).await };
        tokio::select! {
            biased;
            phase = reached(&mut self.all, phase) => phase,
            phase = own_reached(own, phase) => phase,
        }
    }

    /// For what has no end of its own that it could come to: waits until the shutdown is forced, or its own drain has
    /// begun, which is the one that this says then.
    pub async fn cut(&mut self) -> Cut {
        let Some(own) = &mut self.own else {
            reached(&mut self.all, Phase::Forced).await;
            return Cut::Forced;
        };
        tokio::select! {
            biased;
            _ = reached(&mut self.all, Phase::Forced) => Cut::Forced,
            _ = own_reached(own, Phase::Draining) => Cut::Alone,
        }
    }
}

/// What ended something without an end of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The shutdown's grace is over.
    Forced,
    /// Its own drain began.
    Alone,
}

async fn reached(drain: &mut watch::Receiver<Phase>, phase: Phase) -> Phase {
    match drain.wait_for(|now| *now >= phase).await {
        Ok(now) => *now,
        Err(_) => Phase::Forced,
    }
}

async fn own_reached(own: &mut watch::Receiver<Phase>, phase: Phase) -> Phase {
    if let Ok(now) = own.wait_for(|now| *now >= phase).await {
        return *now;
    }
    std::future::pending().await
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

    #[tokio::test]
    async fn one_can_be_ended_alone() {
        let (all, own) = (Drain::default(), Drain::default());
        let (mut both, mut other) = (all.watch().beside(&own), all.watch());
        own.advance(Phase::Draining);
        assert_eq!((both.phase(), other.phase()), (Phase::Draining, Phase::Open));
        assert_eq!((both.reached(Phase::Draining).await, both.cut().await), (Phase::Draining, Cut::Alone));
        assert_eq!(both.clone().alone().phase(), Phase::Open);
        drop(own);
        all.advance(Phase::Forced);
        assert_eq!((both.reached(Phase::Forced).await, other.cut().await), (Phase::Forced, Cut::Forced));
        let orphan = all.watch().beside(&Drain::default());
        assert_eq!(orphan.phase(), Phase::Forced);
        let alive = Drain::default();
        let mut orphan = alive.watch().beside(&Drain::default());
        assert!(futures_util::FutureExt::now_or_never(orphan.reached(Phase::Draining)).is_none());
    }
}
