//! The tasks that follow control files: read and parse once per change, then give each peer its part.
//!
//! A file that is refused changes nothing. A file that lists a peer with no endpoint removes them all; one that does
//! not list the peer is refused for that peer, because leaving it out is more often a mistake than an order.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::refresh::{Report, Shared, Waiting, identity};
use super::watch::{Content, Pace, Seen, watch as watch_file};
use crate::dns::keeper::Standing;
use crate::plan::control_file;
use crate::plan::peer::EndpointSpec;

/// The endpoints of each peer in a control file.
pub type Peers = HashMap<String, Vec<EndpointSpec>>;

/// Reads a control file's text; the error says all that is wrong with it.
pub type Parse = fn(&str, &Path) -> Result<Peers, String>;

/// Problems that are told of one file; with thousands of endpoints there may be thousands.
const MOST_PROBLEMS: usize = 5;

/// The reader of the file's real grammar.
///
/// # Errors
/// The first problems of the text in one line.
pub fn parse(text: &str, path: &Path) -> Result<Peers, String> {
    control_file::parse(text, &path.display().to_string()).map(|file| file.peers).map_err(|problems| {
        let all = problems.to_string();
        let lines: Vec<&str> = all.lines().collect();
        let told = lines.get(..MOST_PROBLEMS).unwrap_or(&lines).join("; ");
        let rest = lines.len().saturating_sub(MOST_PROBLEMS);
        if rest > 0 { format!("{told}; and {rest} more") } else { told }
    })
}

/// What is known of the file.
struct Known {
    path: PathBuf,
    parse: Parse,
    /// The last good content.
    peers: Option<Peers>,
    /// The hash of the last content that was looked into, good or bad.
    hash: Option<u64>,
    /// Why the last content was refused, and since when.
    trouble: Option<(String, Instant)>,
}

/// Follows one file for all peers that want it, until aborted.
pub(super) async fn follow(
    shared: Arc<Shared>,
    path: PathBuf,
    pace: Pace,
    parse: Parse,
    mut audience: watch::Receiver<Vec<Waiting>>,
) {
    let mut watched = watch_file(&shared.tasks, path.clone(), pace);
    let mut known = Known { path, parse, peers: None, hash: None, trouble: None };
    let mut reports: HashMap<usize, Report> = HashMap::new();
    let mut round = shared.round.subscribe();
    let mut read = false;
    loop {
        // All arms are cancel-safe: they wait for a version to change.
        let (all, fresh) = tokio::select! {
            seen = watched.changed() => {
                let Some(seen) = seen else { return };
                if known.take(seen) {
                    shared.metrics.control_file_rejected.inc();
                }
                read = true;
                (true, true)
            }
            changed = audience.changed() => {
                if changed.is_err() {
                    return;
                }
                (false, false)
            }
            _ = round.changed() => (true, false),
        };
        let now = audience.borrow_and_update().clone();
        reports.retain(|id, _| now.iter().any(|waiting| identity(&waiting.target) == *id));
        if !read {
            continue;
        }
        let mut left_out = false;
        for Waiting { target, first } in now {
            let id = identity(&target);
            let new = !reports.contains_key(&id);
            if all || new {
                let report = reports.entry(id).or_insert_with(|| Report::new(&shared, target, first.lock().take()));
                left_out |= known.tell(report);
            }
        }
        if left_out && fresh {
            shared.metrics.control_file_rejected.inc();
        }
    }
}

impl Known {
    /// Takes in what was read; whether it was refused.
    fn take(&mut self, seen: Seen) -> bool {
        let content = match seen {
            Ok(content) => content,
            Err(why) => return self.refuse(why.to_string()),
        };
        if self.hash == Some(content.hash) && self.trouble.is_none() {
            return false;
        }
        self.hash = Some(content.hash);
        match self.read(&content) {
            Ok(peers) => {
                self.peers = Some(peers);
                self.trouble = None;
                false
            }
            Err(why) => self.refuse(why),
        }
    }

    fn read(&self, content: &Content) -> Result<Peers, String> {
        let text = std::str::from_utf8(&content.bytes).map_err(|error| format!("{}: {error}", self.path.display()))?;
        (self.parse)(text, &self.path)
    }

    fn refuse(&mut self, why: String) -> bool {
        let kept = if self.peers.is_some() { "; the last good one stays in force" } else { "" };
        tracing::warn!("control file refused{kept}: {why}");
        let since = self.trouble.take().map_or_else(Instant::now, |(_, since)| since);
        self.trouble = Some((why, since));
        true
    }

    /// Gives a peer its part; whether the file leaves it out.
    fn tell(&self, report: &mut Report) -> bool {
        let part = self.peers.as_ref().and_then(|peers| peers.get(report.target().name().as_str())).cloned();
        match (part, &self.trouble) {
            (Some(part), None) if part.is_empty() => {
                let why = format!("{} lists no endpoint for it", self.path.display());
                report.tell(part, &Standing::Empty { why }, false);
            }
            (Some(part), None) => report.tell(part, &Standing::Ready, false),
            (Some(part), Some((why, since))) => {
                let standing = if part.is_empty() {
                    Standing::Failed { why: why.clone() }
                } else {
                    Standing::Stale { why: why.clone(), since: *since }
                };
                report.tell(part, &standing, true);
            }
            (None, Some((why, _))) => Self::left(report, why.clone()),
            (None, None) => {
                let (file, peer) = (self.path.display(), report.target().name());
                Self::left(report, format!("{file} does not list {peer}; an empty list would remove its endpoints"));
                return true;
            }
        }
        false
    }

    fn left(report: &mut Report, why: String) {
        report.target().count_failure();
        let since = Instant::now();
        let standing = if report.has_endpoints() { Standing::Stale { why, since } } else { Standing::Failed { why } };
        report.tell_standing(&standing);
    }
}
