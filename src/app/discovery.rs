//! Ties discovery to the peers of each World.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::control::files;
use crate::control::refresh;
use crate::control::watch::{Pace, Seen, watch as watch_file};
use crate::dns::resolver::Resolver;
use crate::life::tasks::Tasks;
use crate::plan::Plan;
use crate::telemetry::metrics::Metrics;
use crate::upstream::adhoc::{Adhoc, Rules, default_policy};
use crate::upstream::world::{Upstreams, World};

/// Everything that looks names up.
#[derive(Clone)]
pub(super) struct Refresher {
    control: Arc<refresh::Refresher>,
    adhoc: Arc<Adhoc>,
}

impl Refresher {
    /// Ready to follow a World; unlisted names are answered from now on. Runs on the runtime that calls it.
    pub(super) fn start(plan: &Arc<Plan>, metrics: Arc<Metrics>, upstreams: Arc<Upstreams>, tasks: &Tasks) -> Self {
        let resolver = Resolver::new(&plan.dns);
        let control = Arc::new(refresh::Refresher::new(tasks.clone(), metrics, resolver, files::parse));
        let (adhoc, asks) = Adhoc::new(upstreams, Arc::new(default_policy()), Rules::from(&**plan));
        let (answering, table) = (control.clone(), adhoc.clone());
        tasks.spawn(async move { answering.answer(table, asks).await });
        Self { control, adhoc }
    }

    pub(super) fn adhoc(&self) -> Arc<Adhoc> {
        self.adhoc.clone()
    }

    /// Follows the peers of this World from now on; those it shares with the one before go on undisturbed.
    pub(super) fn follow(&self, world: &Arc<World>) {
        self.control.set_world(world);
    }

    /// Waits for the first endpoints of all peers, at most this long.
    pub(super) async fn first_endpoints(&self, most: Duration) {
        self.control.first_answers(most).await;
    }
}

/// Tells of each change of the file's content.
pub(super) fn file_changes(path: &Path, tasks: &Tasks) -> watch::Receiver<Option<Seen>> {
    watch_file(tasks, path.to_owned(), Pace::default()).into()
}
