//! The files of an identity as a source that feeds its store: read again whenever one of them changes, taken whole or
//! not at all.
//!
//! Certificate, key and roots are several files, and whoever replaces them does so one after the other. So what does not
//! fit together is tried again for a moment before it is called wrong; what is in force stays so meanwhile.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::watch::{Pace, watch as watch_file};
use crate::life::tasks::Tasks;
use crate::plan::Plan;
use crate::plan::identity::{FilesPlan, IdentityPlan};
use crate::plan::peer::Roots;
use crate::tls::store::IdentityStore;

/// A few files that are replaced together are quiet for longer than this only when all of them are.
const PACE: Pace = Pace { debounce: Duration::from_millis(50), poll: Duration::from_secs(2), events: true };

/// What does not fit together for so long is not just being replaced.
const LASTS: Duration = Duration::from_secs(1);

/// Until then it is read again this often.
const AGAIN: Duration = Duration::from_millis(100);

/// And what only does not hold yet, or not as long as another one does, this often.
const LATER: Duration = Duration::from_secs(5);

/// The identity in force and how it came to be.
pub struct Followed {
    /// Where it is read from.
    pub plan: Arc<IdentityPlan>,
    /// Where it is kept.
    pub store: Arc<IdentityStore>,
    /// How long exchanges may go on on a connection whose end is not believed any more.
    pub grace: Duration,
}

/// Tells what is followed since the last reload; `None` without `identity`.
pub type Following = watch::Receiver<Option<Arc<Followed>>>;

/// Follows the files of whatever identity is in force, until the sender is gone.
pub async fn follow(mut following: Following, tasks: Tasks) {
    loop {
        let now = following.borrow_and_update().clone();
        let files = async {
            match now.as_deref().and_then(|followed| Some((followed.plan.files()?, &*followed.store))) {
                Some((plan, store)) => files(plan, store, &tasks, UnixTime::now).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = following.changed() => if changed.is_err() { return },
            () = files => {}
        }
    }
}

async fn files(plan: &FilesPlan, store: &IdentityStore, tasks: &Tasks, clock: impl Fn() -> UnixTime) {
    let watch = |path: &Path| watch::Receiver::from(watch_file(tasks, path.to_owned(), PACE));
    let mut watched: Vec<watch::Receiver<_>> = plan.paths().map(watch).collect();
    let (mut trying, mut again) = (Trying::default(), None);
    loop {
        tokio::select! {
            changed = any(&mut watched) => match changed {
                true => trying.changed(),
                // The watching ends with the program.
                false => return,
            },
            () = sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
        let read = store.reload(plan, clock());
        if let (Ok(true), Some(identity)) = (&read, store.current()) {
            info!(id = %identity.id(), fingerprint = identity.fingerprint(), "the files of the identity have changed and are in force");
        }
        let dates = read.as_ref().is_err_and(|not| not.dates);
        again = dates.then_some(LATER);
        match trying.came_to(read.map_err(|not| not.why), Instant::now()) {
            Next::Rest => {}
            Next::Again => again = Some(AGAIN),
            Next::Tell(why) => {
                warn!("identity: {why}; the changed files are refused, what was in force stays so");
                store.refuse(&why);
            }
        }
    }
}

/// Files that a reload reads: certificates of doors, and roots of peers outside the mesh.
pub fn plain_files(plan: &Plan) -> BTreeSet<PathBuf> {
    let doors = plan.doors.iter().filter_map(|door| door.tls.as_ref()).flat_map(|tls| [&tls.certificate, &tls.key]);
    let peers = plan.peers.iter().filter_map(|peer| match &peer.source.tls.as_ref()?.roots {
        Roots::File(path) => Some(path),
        Roots::System => None,
    });
    doors.chain(peers).cloned().collect()
}

/// Asks for a reload a moment after one of `files` has changed, until the sender is gone.
pub async fn follow_plain(mut files: watch::Receiver<BTreeSet<PathBuf>>, tasks: Tasks, ask: impl Fn()) {
    loop {
        let now = files.borrow_and_update().clone();
        let changes = async {
            let watch = |path: &PathBuf| watch::Receiver::from(watch_file(&tasks, path.clone(), PACE));
            let mut watched: Vec<watch::Receiver<_>> = now.iter().map(watch).collect();
            // What they hold at first is what the reload that named them has read.
            for one in &mut watched {
                let _ = one.changed().await;
            }
            while any(&mut watched).await {
                // The rest of what belongs together.
                sleep(LASTS).await;
                watched.iter_mut().for_each(watch::Receiver::mark_unchanged);
                ask();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            changed = files.changed() => if changed.is_err() { return },
            () = changes => {}
        }
    }
}

/// Waits for a change of any of the files; false once none is watched any more.
async fn any<T>(watched: &mut [watch::Receiver<T>]) -> bool {
    let mut changes: Vec<_> = watched.iter_mut().map(|one| Box::pin(one.changed())).collect();
    let changed = poll_fn(|cx| {
        let mut gone = true;
        for change in &mut changes {
            match pin!(change).poll(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(true),
                Poll::Ready(Err(_)) => {}
                Poll::Pending => gone = false,
            }
        }
        if gone { Poll::Ready(false) } else { Poll::Pending }
    });
    changed.await
}

/// What files that changed came to so far.
#[derive(Debug, Default)]
struct Trying {
    /// Since when they do not fit together.
    since: Option<Instant>,
    /// What was told of that.
    told: Option<String>,
}

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Nothing before the next change.
    Rest,
    /// Try again in a moment.
    Again,
    /// Tell of it.
    Tell(String),
}

impl Trying {
    /// One of the files changed: what was told of may be on its way to be right.
    fn changed(&mut self) {
        if self.told.is_some() {
            self.since = None;
        }
    }

    /// They were read at `now`.
    fn came_to(&mut self, read: Result<bool, String>, now: Instant) -> Next {
        let Err(why) = read else {
            *self = Self::default();
            return Next::Rest;
        };
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) < LASTS {
            return Next::Again;
        }
        if self.told.as_ref() == Some(&why) {
            return Next::Rest;
        }
        self.told = Some(why.clone());
        Next::Tell(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_hold_yet_is_tried_again_when_its_time_has_come() {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType, date_time_ymd};
        let folder = std::env::temp_dir().join(format!("outrigger-certs-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let write = |id: &str, seconds: u64| {
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
            params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
            let key = KeyPair::generate().unwrap();
            std::fs::write(folder.join("cert.pem"), params.signed_by(&key, &root).unwrap().pem()).unwrap();
            std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
        };
        std::fs::write(folder.join("roots.pem"), root.pem()).unwrap();
        let (old, new) = ("spiffe://shop/old", "spiffe://shop/new");
        write(old, 0);
        let plan = FilesPlan {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            roots: vec![crate::plan::identity::RootsPlan { domain: None, file: folder.join("roots.pem") }],
            crls: Vec::new(),
            tls12: false,
        };
        let store = IdentityStore::default();
        assert_eq!(store.reload(&plan, UnixTime::now()), Ok(true));
        let in_force = || store.current().unwrap().id().to_string();
        let (today, begun) = (UnixTime::now().as_secs(), Instant::now());
        let clock = || UnixTime::since_unix_epoch(Duration::from_secs(today) + begun.elapsed());
        write(new, today + 60);
        let tasks = Tasks::default();
        let taken = async {
            while in_force() == old {
                sleep(LATER).await;
            }
            begun.elapsed()
        };
        let after = tokio::select! {
            () = files(&plan, &store, &tasks, clock) => panic!("it ended"),
            after = taken => after,
        };
        assert!((Duration::from_secs(60)..Duration::from_secs(80)).contains(&after), "{after:?}");
        assert_eq!((store.refusals.get(), in_force()), (1, new.to_owned()));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_told_once_and_only_if_it_lasts() {
        let (start, mut trying) = (Instant::now(), Trying::default());
        let at = |millis| start + Duration::from_millis(millis);
        let wrong = |why: &str| Err(why.to_owned());
        let tell = |why: &str| Next::Tell(why.to_owned());
        // The certificate is new and the key old; then both are.
        trying.changed();
        assert_eq!(trying.came_to(wrong("a"), at(0)), Next::Again);
        trying.changed();
        assert_eq!(trying.came_to(Ok(true), at(300)), Next::Rest);
        // Replaced all the time, it is wrong all the time.
        for millis in [1000, 1400, 1900] {
            trying.changed();
            assert_eq!(trying.came_to(wrong("b"), at(millis)), Next::Again);
        }
        assert_eq!(trying.came_to(wrong("b"), at(2000)), tell("b"));
        assert_eq!(trying.came_to(wrong("b"), at(2100)), Next::Rest);
        // The next change has as long as the first; what is still wrong in the same way is not told again.
        trying.changed();
        assert_eq!(trying.came_to(wrong("c"), at(9000)), Next::Again);
        assert_eq!(trying.came_to(wrong("b"), at(10_000)), Next::Rest);
        trying.changed();
        assert_eq!(trying.came_to(wrong("c"), at(11_000)), Next::Again);
        assert_eq!(trying.came_to(wrong("c"), at(12_000)), tell("c"));
        trying.changed();
        assert_eq!(trying.came_to(Ok(false), at(13_000)), Next::Rest);
        assert_eq!((trying.since, trying.told), (None, None));
    }
}
