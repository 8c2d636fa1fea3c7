//! Watches one file by its content: whoever listens gets each new content once, however it came to be there.
//!
//! The folder is watched, not the file, because a ConfigMap swaps a symlink beside it and a watch on the file would
//! stay with the old one. Events only hint: what counts is the hash of what can be read, and a slow poll finds what no
//! event told. A file that cannot be read for a moment, in the middle of being replaced, is looked at twice.

use std::fmt;
use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::files;
use crate::life::tasks::Tasks;

/// A file larger than this is refused.
pub const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// Two writes closer than this to a reading may carry the same time stamp, so equal stamps prove nothing yet.
const RACY: Duration = Duration::from_secs(3);

/// How eagerly a file is watched.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Quiet time after an event before the file is read.
    pub debounce: Duration,
    /// The file is looked at this often without any event.
    pub poll: Duration,
    /// Whether events are asked for at all.
    pub events: bool,
}

impl Default for Pace {
    fn default() -> Self {
        Self { debounce: Duration::from_millis(100), poll: Duration::from_secs(2), events: true }
    }
}

/// What was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// A hash of the bytes; equal hashes mean equal content.
    pub hash: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl fmt::Debug for Content {
    /// Without the bytes: among the files are keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("hash", &self.hash).field("length", &self.bytes.len()).finish()
    }
}

/// The content, or in one line why there is none.
pub type Seen = Result<Arc<Content>, Arc<str>>;

/// The listening end; the watching ends with the last of them.
#[derive(Debug, Clone)]
pub struct Watched(watch::Receiver<Option<Seen>>);

impl Watched {
    /// The first time what is there now, from then on each change. `None` when the watching has ended.
    pub async fn changed(&mut self) -> Option<Seen> {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }
}

impl From<Watched> for watch::Receiver<Option<Seen>> {
    /// The bare channel, for one who only wants to know that something changed.
    fn from(watched: Watched) -> Self {
        watched.0
    }
}

/// Watches `path` from a task of `tasks`.
pub fn watch(tasks: &Tasks, path: PathBuf, pace: Pace) -> Watched {
    let (sender, receiver) = watch::channel(None);
    tasks.spawn(Watching::new(path, pace).run(sender));
    Watched(receiver)
}

/// What tells one state of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Print {
    inode: (u64, u64),
    size: u64,
    changed: (i64, i64, i64, i64),
}

struct Watching {
    path: PathBuf,
    folder: PathBuf,
    pace: Pace,
    events: mpsc::Receiver<()>,
    hint: mpsc::Sender<()>,
    /// The watcher and the folder that it watches.
    watcher: Option<(RecommendedWatcher, (u64, u64))>,
    /// Said once, not at each poll.
    complained: bool,
    trusted: Option<Print>,
    missed: bool,
}

impl Watching {
    fn new(path: PathBuf, pace: Pace) -> Self {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = parent.unwrap_or(Path::new(".")).to_owned();
        // One hint is as good as many.
        let (hint, events) = mpsc::channel(1);
        Self { path, folder, pace, events, hint, watcher: None, complained: false, trusted: None, missed: false }
    }

    async fn run(mut self, sender: watch::Sender<Option<Seen>>) {
        let mut told = true;
        loop {
            self.watch_folder();
            let again = self.look(&sender, told);
            told = tokio::select! {
                () = sender.closed() => return,
                () = sleep(if again { self.pace.debounce } else { self.pace.poll }) => again,
                // Cancel-safe; `hint` keeps the channel open.
                _ = self.events.recv() => {
                    self.settle().await;
                    true
                }
            };
        }
    }

    /// Waits until no event came for the debounce time, but not for ever: a file may be written to all the time.
    async fn settle(&mut self) {
        let latest = Instant::now() + self.pace.debounce * 10;
        loop {
            tokio::select! {
                () = sleep(self.pace.debounce) => return,
                () = sleep_until(latest) => return,
                _ = self.events.recv() => {}
            }
        }
    }

    /// Keeps a watch on the folder that is there now; it may have gone, or been replaced by another one.
    fn watch_folder(&mut self) {
        if !self.pace.events {
            return;
        }
        let id = std::fs::metadata(&self.folder).map(|meta| (meta.dev(), meta.ino())).ok();
        if self.watcher.as_ref().map(|(_, id)| *id) == id {
            return;
        }
        self.watcher = None;
        let Some(id) = id else { return };
        match self.start() {
            Ok(watcher) => self.watcher = Some((watcher, id)),
            Err(error) if !self.complained => {
                self.complained = true;
                let (folder, poll) = (self.folder.display(), self.pace.poll);
                tracing::warn!("{folder} cannot be watched ({error}); it is looked at every {poll:?} instead");
            }
            Err(_) => {}
        }
    }

    fn start(&self) -> notify::Result<RecommendedWatcher> {
        let hint = self.hint.clone();
        let told = move |event: notify::Result<Event>| {
            // A full channel holds the hint already.
            if event.is_ok_and(|event| writes(event.kind)) {
                let _ = hint.try_send(());
            }
        };
        let mut watcher = notify::recommended_watcher(told)?;
        watcher.watch(&self.folder, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Publishes what is there if it is new; `told` is whether something hints at a change. Returns whether to look
    /// again soon.
    fn look(&mut self, sender: &watch::Sender<Option<Seen>>, told: bool) -> bool {
        let before = std::fs::metadata(&self.path).ok().map(|meta| print(&meta));
        if !told && before.is_some() && before == self.trusted {
            return false;
        }
        let seen = read(&self.path);
        self.trusted = before.filter(|print| seen.is_ok() && settled(print));
        let first = sender.borrow().is_none();
        if seen.is_err() && !self.missed && !first {
            self.missed = true;
            return true;
        }
        self.missed = false;
        sender.send_if_modified(|last| {
            let new = match (&*last, &seen) {
                (Some(Ok(last)), Ok(seen)) => last.hash != seen.hash,
                (Some(Err(last)), Err(seen)) => last != seen,
                _ => true,
            };
            if new {
                *last = Some(seen);
            }
            new
        });
        false
    }
}

/// Reading makes events of its own; they must not lead to the next reading.
fn writes(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

fn print(meta: &Metadata) -> Print {
    Print {
        inode: (meta.dev(), meta.ino()),
        size: meta.size(),
        changed: (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()),
    }
}

fn settled(print: &Print) -> bool {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let changed = Duration::from_secs(u64::try_from(print.changed.2).unwrap_or(u64::MAX));
    now.checked_sub(changed).is_some_and(|age| age > RACY)
}

fn read(path: &Path) -> Seen {
    let why = |what: String| Arc::from(format!("{}: {what}", path.display()));
    let bytes = files::read(path, MOST_BYTES).map_err(|error| why(error.to_string()))?;
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Ok(Arc::new(Content { hash: hasher.finish(), bytes }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Events only: the poll would hide that they do not work.
    const EVENTS: Pace = Pace { debounce: Duration::from_millis(5), poll: Duration::from_secs(3600), events: true };
    /// The poll only; with the clock paused it takes no time.
    const POLL: Pace = Pace { debounce: Duration::from_millis(100), poll: Duration::from_secs(2), events: false };

    struct Dir(PathBuf);

    impl Dir {
        fn new(test: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("outrigger-watch-{test}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.at(name), text).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Waits for this content; what an overwrite leaves for a moment in between is passed over.
    async fn until(watched: &mut Watched, text: &str) {
        loop {
            match watched.changed().await.unwrap() {
                Ok(content) if content.bytes == text.as_bytes() => return,
                _ => {}
            }
        }
    }

    #[tokio::test]
    async fn an_overwrite_a_rename_and_a_new_file_are_seen_by_events() {
        let dir = Dir::new("events");
        let tasks = Tasks::default();
        let mut watched = watch(&tasks, dir.at("peers.yaml"), EVENTS);
        assert!(watched.changed().await.unwrap().unwrap_err().contains("peers.yaml: No such file"));
        dir.write("peers.yaml", "one");
        until(&mut watched, "one").await;
        dir.write("peers.yaml", "two");
        until(&mut watched, "two").await;
        dir.write("peers.yaml.new", "three");
        fs::rename(dir.at("peers.yaml.new"), dir.at("peers.yaml")).unwrap();
        until(&mut watched, "three").await;
    }

    #[tokio::test]
    async fn the_symlink_swap_of_a_config_map_is_seen_by_events() {
        let dir = Dir::new("configmap");
        let swap = |to: &str| {
            fs::create_dir(dir.at(to)).unwrap();
            dir.write(&format!("{to}/peers.yaml"), to);
            symlink(to, dir.at("..data_tmp")).unwrap();
            fs::rename(dir.at("..data_tmp"), dir.at("..data")).unwrap();
        };
        swap("..1");
        symlink("..data/peers.yaml", dir.at("peers.yaml")).unwrap();
        let tasks = Tasks::default();
        let mut watched = watch(&tasks, dir.at("peers.yaml"), EVENTS);
        until(&mut watched, "..1").await;
        for (to, old) in [("..2", "..1"), ("..3", "..2"), ("..4", "..3")] {
            swap(to);
            fs::remove_dir_all(dir.at(old)).unwrap();
            until(&mut watched, to).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_poll_finds_what_no_event_told() {
        let dir = Dir::new("poll");
        dir.write("real.yaml", "one");
        symlink(dir.at("real.yaml"), dir.at("peers.yaml")).unwrap();
        let tasks = Tasks::default();
        let mut watched = watch(&tasks, dir.at("peers.yaml"), POLL);
        until(&mut watched, "one").await;
        // Same size, and perhaps the same time stamp.
        dir.write("real.yaml", "two");
        until(&mut watched, "two").await;
        fs::remove_file(dir.at("real.yaml")).unwrap();
        assert!(watched.changed().await.unwrap().is_err());
        dir.write("real.yaml", "two");
        until(&mut watched, "two").await;
    }

    #[tokio::test]
    async fn the_folder_may_go_and_come_back() {
        let dir = Dir::new("folder");
        let inner = Dir(dir.at("etc"));
        fs::create_dir(&inner.0).unwrap();
        inner.write("peers.yaml", "one");
        let tasks = Tasks::default();
        let pace = Pace { poll: Duration::from_millis(20), ..EVENTS };
        let mut watched = watch(&tasks, inner.at("peers.yaml"), pace);
        until(&mut watched, "one").await;
        fs::remove_dir_all(&inner.0).unwrap();
        assert!(watched.changed().await.unwrap().is_err());
        fs::create_dir(&inner.0).unwrap();
        inner.write("peers.yaml", "two");
        until(&mut watched, "two").await;
    }

    #[tokio::test(start_paused = true)]
    async fn equal_content_is_no_change_and_a_short_absence_is_none() {
        let dir = Dir::new("same");
        dir.write("peers.yaml", "one");
        let (sender, _receiver) = watch::channel(None);
        let mut watching = Watching::new(dir.at("peers.yaml"), POLL);
        let version = |sender: &watch::Sender<Option<Seen>>| sender.borrow().clone();
        assert!(!watching.look(&sender, true));
        let one = version(&sender);
        fs::remove_file(dir.at("peers.yaml")).unwrap();
        assert!(watching.look(&sender, true), "it is looked at again before anyone is told");
        assert_eq!(version(&sender), one);
        dir.write("peers.yaml", "one");
        assert!(!watching.look(&sender, true));
        assert_eq!(version(&sender), one);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_file_is_refused_and_the_task_ends_with_its_listener() {
        let dir = Dir::new("odd");
        fs::create_dir(dir.at("peers.yaml")).unwrap();
        let tasks = Tasks::default();
        let mut watched = watch(&tasks, dir.at("peers.yaml"), POLL);
        assert!(watched.changed().await.unwrap().unwrap_err().contains("is a directory"));
        drop(watched);
        tasks.idle().await;
    }

    #[test]
    fn a_file_over_the_limit_is_refused() {
        let dir = Dir::new("large");
        let file = fs::File::create(dir.at("peers.yaml")).unwrap();
        file.set_len(MOST_BYTES + 1).unwrap();
        assert!(read(&dir.at("peers.yaml")).unwrap_err().contains("is larger than 64 MiB"));
    }
}
