//! The tasks that follow names: ask, pass on what the keeper makes of it, sleep until the next time.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::refresh::{Report, Shared};
use crate::dns::answer::{Answers, DnsError};
use crate::dns::keeper::{Keeper, Standing, Step};
use crate::dns::resolver::Resolver;
use crate::dns::ttl::Times;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Question {
    /// The addresses of a host, at a port.
    Host(String, u16),
    /// The hosts of a service.
    Service(String),
}

impl Question {
    async fn ask(&self, resolver: &Resolver) -> Result<Answers, DnsError> {
        match self {
            Self::Host(host, port) => Ok(resolver.addresses(host).await?.at(host, *port)),
            Self::Service(name) => resolver.srv(name).await,
        }
    }

    /// One lookup and what follows from it.
    pub(super) async fn step(&self, keeper: &mut Keeper, shared: &Shared) -> Step {
        let resolver = shared.resolver.load_full();
        let seen = self.ask(&resolver).await;
        let mut step = keeper.take(seen, &Times::from(resolver.plan()), Instant::now(), fastrand::f64());
        match &mut step.standing {
            Standing::Ready => {}
            Standing::Empty { why } | Standing::Stale { why, .. } | Standing::Failed { why } => {
                why.insert_str(0, ": ");
                why.insert_str(0, self.name());
            }
        }
        step
    }

    fn name(&self) -> &str {
        match self {
            Self::Host(name, _) | Self::Service(name) => name,
        }
    }
}

/// Follows one peer's name until aborted. One lookup at a time: the next begins after the last has ended.
pub(super) async fn follow(shared: Arc<Shared>, question: Question, mut report: Report) {
    let mut keeper = Keeper::default();
    let mut round = shared.round.subscribe();
    let doubts = report.target().doubts();
    loop {
        round.mark_unchanged();
        let step = question.step(&mut keeper, &shared).await;
        let early = shared.early(&doubts, &step);
        report.tell(step.endpoints, &step.standing, step.failed);
        tokio::select! {
            () = sleep_until(step.next) => {}
            _ = round.changed() => {}
            () = early => {}
        }
    }
}

impl Shared {
    /// Ends when an address of the answer `step` could not be connected to: it may be out of date before its time. Not
    /// before the floor is over, so that a peer that is down costs no more lookups than a short time to live; and
    /// never while the servers fail or know no address: then their own times count.
    pub(super) fn early(&self, doubts: &Arc<Notify>, step: &Step) -> impl Future<Output = ()> + Send + use<> {
        let soonest = Instant::now() + Times::from(self.resolver.load().plan()).soonest();
        let (doubts, never) = (doubts.clone(), step.failed || step.endpoints.is_empty());
        async move {
            if never {
                std::future::pending::<()>().await;
            }
            sleep_until(soonest).await;
            doubts.notified().await;
        }
    }
}
