//! Looks up the names that no peer has, for the data path, and keeps them true while they are in use.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::lookups::Question;
use super::refresh::{Refresher, Shared, Target};
use crate::dns::keeper::{Keeper, Standing, Step};
use crate::net::here::is_itself;
use crate::plan::door::Egress;
use crate::plan::egress::judge;
use crate::plan::peer::EndpointSpec;
use crate::reason::Reason;
use crate::upstream::adhoc::{Adhoc, AdhocError, Ask, IDLE, State};

impl Refresher {
    /// Answers the data path's questions until its end of the channel is closed.
    pub async fn answer(&self, table: Arc<Adhoc>, mut asks: mpsc::Receiver<Ask>) {
        while let Some(ask) = asks.recv().await {
            self.shared().tasks.spawn(follow(self.shared().clone(), Arc::downgrade(&table), ask));
        }
    }
}

/// Follows one name until it is forgotten, which it is when it has failed and no one asked since, or is idle.
async fn follow(shared: Arc<Shared>, table: Weak<Adhoc>, ask: Ask) {
    let question = Question::Host(ask.host.to_string(), ask.port);
    let mut keeper = Keeper::default();
    let mut round = shared.round.subscribe();
    loop {
        round.mark_unchanged();
        let step = question.step(&mut keeper, &shared).await;
        let Some(rules) = table.upgrade().map(|table| table.rules()) else { return };
        let early = shared.early(ask.peer.doubts(), &step);
        let (decided, next) = (Instant::now(), step.next);
        let failed = settle(&ask, step, &rules.egress);
        tokio::select! {
            () = sleep_until(next) => {}
            _ = round.changed() => {}
            () = early => {}
            () = ask.forgotten() => return,
        }
        let idle = if failed { Instant::now().saturating_duration_since(decided) } else { IDLE };
        if ask.forget(Instant::now(), idle) {
            return;
        }
    }
}

/// Passes an answer on, without the addresses that may not be dialled; whether nothing is left.
fn settle(ask: &Ask, step: Step, egress: &Egress) -> bool {
    if step.failed {
        ask.peer.count_failure();
    }
    let (endpoints, refused) = permitted(step.endpoints, egress, &ask.host);
    let (reason, standing) = match (refused, step.standing) {
        (Some(why), _) if endpoints.is_empty() => (Reason::AddressRefused, Standing::Empty { why }),
        // The servers answered: it is the name that has nothing, as for a listed peer.
        (_, standing @ Standing::Empty { .. }) => (Reason::NoEndpoint, standing),
        (_, standing) => (Reason::DnsFailed, standing),
    };
    let state = match &standing {
        _ if !endpoints.is_empty() => State::Ready,
        Standing::Empty { why } | Standing::Stale { why, .. } | Standing::Failed { why } => {
            State::Failed(AdhocError::new(reason, why.clone()))
        }
        Standing::Ready => State::Failed(AdhocError::new(Reason::NoEndpoint, format!("{} has no address", ask.host))),
    };
    let failed = state != State::Ready;
    ask.peer.replace(endpoints);
    ask.peer.stand(&standing);
    ask.decide(state);
    failed
}

/// The endpoints that may be dialled, and a word on the first one that may not.
fn permitted(endpoints: Vec<EndpointSpec>, egress: &Egress, host: &str) -> (Vec<EndpointSpec>, Option<String>) {
    let mut refused = None;
    let may = |spec: &EndpointSpec| {
        let Some(addr) = spec.addr.tcp() else { return true };
        let own = is_itself(&spec.addr, egress);
        let judged = if own { Err("an own listener") } else { judge(addr, egress, host) };
        match judged {
            Ok(()) => true,
            Err(why) => {
                refused.get_or_insert_with(|| refusal(host, addr, why, own));
                false
            }
        }
    };
    let endpoints = endpoints.into_iter().filter(may).collect();
    (endpoints, refused)
}

/// Why an address may not be dialled, and what to do.
fn refusal(host: &str, addr: SocketAddr, why: &str, own: bool) -> String {
    let name = if addr.ip().to_string() == host { String::new() } else { format!("{host}: ") };
    if own {
        return format!("{name}{addr} is an own listener and is never dialled; name a peer in Host or :authority");
    }
    format!("{name}{addr} is {why} and is not dialled for an unlisted name; list it as a peer or under outbound.allow")
}

#[cfg(test)]
#[path = "unlisted_tests.rs"]
mod tests;
