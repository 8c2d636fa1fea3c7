//! Ties discovery to the peers of each World: names and control files on the control thread, lookups for the data path.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;

use crate::control::files;
use crate::control::refresh::Refresher;
use crate::control::watch::{Pace, watch};
use crate::dns::resolver::Resolver;
use crate::life::tasks::Tasks;
use crate::plan::Plan;
use crate::telemetry::metrics::Metrics;
use crate::upstream::adhoc::{Adhoc, Rules, default_policy};
use crate::upstream::world::Upstreams;

/// Starts discovery without any peer yet, and the table of unlisted names that it answers.
pub(super) fn start(plan: &Plan, upstreams: &Arc<Upstreams>, tasks: &Tasks) -> (Arc<Refresher>, Arc<Adhoc>) {
    let metrics: Arc<Metrics> = upstreams.metrics.clone();
    let refresher = Arc::new(Refresher::new(tasks.clone(), metrics, Resolver::new(&plan.dns), files::parse));
    let (adhoc, asks) = Adhoc::new(upstreams.clone(), Arc::new(default_policy()), Rules::from(plan));
    let (answering, table) = (refresher.clone(), adhoc.clone());
    tasks.spawn(async move { answering.answer(table, asks).await });
    (refresher, adhoc)
}

/// Tells of each change of the configuration's content.
pub(super) fn file_changes(path: &Path, tasks: &Tasks) -> watch::Receiver<impl Sized + use<>> {
    watch::Receiver::from(watch(tasks, path.to_owned(), Pace::default()))
}
