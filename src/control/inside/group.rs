//! A control group (version 2) for the app alone, by which rules know what it sends.
//!
//! Whose it is shows by a lock on its folder, which goes with the process that made it, however that ends. A process id
//! would not tell: in another container it is another's.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What the names of ours begin with; our process id follows, for those who look.
const NAME: &str = "outrigger-";
/// The namespace of control groups that a machine starts with (`PROC_CGROUP_INIT_INO`).
const FIRST_NAMESPACE: &str = "cgroup:[4026531835]";
/// Names that may be taken by others with our process id, or what outlived them.
const TRIES: u32 = 64;

/// The group; it goes with this, unless something of the app lives on in it.
#[derive(Debug)]
pub struct Group {
    /// Its folder.
    pub folder: PathBuf,
    /// Its path from the root of all that this process sees, without a slash before it.
    pub path: String,
    /// How far below that root.
    pub level: u32,
    /// The number by which the kernel knows it.
    pub id: u64,
    #[expect(dead_code, reason = "while it is open nobody else takes the group away")]
    lock: File,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.folder) {
            tracing::warn!(%error, group = %self.folder.display(), "something of the app lives on and is not captured any more; its control group stays");
        }
    }
}

impl Group {
    /// Makes one below the group of this process.
    ///
    /// # Errors
    /// A line that says why there is none.
    pub fn make() -> Result<Self, String> {
        let seen = fs::read_link("/proc/self/ns/cgroup").unwrap_or_default();
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        if seen != Path::new(FIRST_NAMESPACE) && !counts_levels(&release) {
            return Err(format!(
                "the kernel ({release}, before 6.12) cannot tell control groups apart in a container: set `redirect.app-uid`"
            ));
        }
        let read = |file: &str| fs::read_to_string(file).map_err(|error| format!("{file}: {error}"));
        let (mounts, groups) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let (folder, own) = place(&mounts, &groups).ok_or(
            "control groups of version 2 are not mounted here (`mount -t cgroup2`), or this process is in none",
        )?;
        sweep(&folder);
        let (folder, name, lock) = make_folder(&folder).map_err(|error| {
            format!("a control group cannot be made in {}: {error}: it needs to be writable", folder.display())
        })?;
        let id = fs::metadata(&folder).map_err(|error| format!("{}: {error}", folder.display()))?.ino();
        let path = format!("{}/{name}", own.trim_end_matches('/')).trim_start_matches('/').to_owned();
        let level = u32::try_from(path.split('/').count()).unwrap_or(u32::MAX);
        Ok(Self { folder, path, level, id, lock })
    }
}

/// Whether this kernel counts the levels of groups from where a process's namespace begins; earlier ones begin at the
/// machine's root, which nobody in a container knows.
fn counts_levels(release: &str) -> bool {
    let mut numbers = release.split(|byte: char| !byte.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (6, 12),
        _ => false,
    }
}

fn make_folder(parent: &Path) -> io::Result<(PathBuf, String, File)> {
    for number in 0..TRIES {
        let more = if number == 0 { String::new() } else { format!("-{number}") };
        let name = format!("{NAME}{}{more}", std::process::id());
        let folder = parent.join(&name);
        match fs::create_dir(&folder) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        // Before it is locked it looks like one that is left over: then another sweeps it away, and this is no name for us.
        match own(&folder) {
            Ok(Some(lock)) => return Ok((folder, name, lock)),
            Ok(None) => {}
            Err(error) => {
                let _ = fs::remove_dir(&folder);
                return Err(error);
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Makes a group ours as long as what is returned is open; `None` where it is somebody's, or gone.
fn own(folder: &Path) -> io::Result<Option<File>> {
    match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => locked(folder, opened?),
    }
}

/// The same for one that was opened already.
fn locked(folder: &Path, lock: File) -> io::Result<Option<File>> {
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    // In between it may have been taken away, and made anew by another.
    let number = lock.metadata()?.ino();
    match fs::metadata(folder) {
        Ok(there) => Ok((there.ino() == number).then_some(lock)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes away what processes like this left that were killed; a group in which anything lives cannot be taken away.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let made = name.strip_prefix(NAME).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if made.is_none() {
            continue;
        }
        if let Ok(Some(_lock)) = own(&entry.path()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The folder of this process's group, and the group's path, by what proc(5) tells.
fn place(mounts: &str, groups: &str) -> Option<(PathBuf, String)> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    // One outside of what this process sees begins so.
    if own.starts_with("/..") {
        return None;
    }
    let folder = mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        let below = if root == "/" { Some(own) } else { own.strip_prefix(root) };
        let below = below.filter(|below| below.is_empty() || below.starts_with('/'))?;
        kind.starts_with("cgroup2 ").then(|| PathBuf::from(format!("{at}{below}")))
    })?;
    Some((folder, own.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_wherever_it_is_mounted() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        let pure = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        let part = "31 30 0:27 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
        for (mounts, groups, found) in [
            (hybrid, "4:memory:/x\n0::/\n", Some(("/sys/fs/cgroup/unified/", "/"))),
            (pure, "0::/a.slice/b.service\n", Some(("/sys/fs/cgroup/a.slice/b.service", "/a.slice/b.service"))),
            (part, "0::/docker/1/in\n", Some(("/sys/fs/cgroup/in", "/docker/1/in"))),
            (part, "0::/docker/12\n", None),
            (pure, "4:memory:/x\n", None),
            (pure, "0::/../up\n", None),
            ("1 2 0:3 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "0::/\n", None),
        ] {
            let found = found.map(|(folder, own)| (PathBuf::from(folder), own.to_owned()));
            assert_eq!(place(mounts, groups), found, "{mounts} {groups}");
        }
    }

    #[test]
    fn old_kernels_are_known() {
        for (release, counts) in
            [("6.12.0-1-amd64", true), ("7.0", true), ("6.1.0-31", false), ("5.15.0", false), ("x", false)]
        {
            assert_eq!(counts_levels(release), counts, "{release}");
        }
    }

    fn folder(name: &str) -> PathBuf {
        let parent = std::env::temp_dir().join(format!("outrigger-group-{name}-{}", std::process::id()));
        fs::create_dir_all(&parent).unwrap();
        parent
    }

    #[test]
    fn what_dead_processes_left_is_taken_away_and_what_is_held_is_not() {
        let parent = folder("left");
        let left = ["outrigger-4194999", "outrigger-1-2", "outrigger-1", "other-4194999", "outrigger-x"];
        left.iter().for_each(|name| fs::create_dir(parent.join(name)).unwrap());
        let held = own(&parent.join("outrigger-1")).unwrap().unwrap();
        let staying = || {
            sweep(&parent);
            let entries = fs::read_dir(&parent).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(staying(), ["other-4194999", "outrigger-1", "outrigger-x"]);
        assert!(own(&parent.join("outrigger-1")).unwrap().is_none(), "it is held");
        assert!(own(&parent.join("outrigger-2")).unwrap().is_none(), "there is none");
        drop(held);
        assert_eq!(staying(), ["other-4194999", "outrigger-x"]);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn two_with_one_number_have_groups_of_their_own() {
        let parent = folder("two");
        let made: Vec<_> = (0..2).map(|_| make_folder(&parent).unwrap()).collect();
        let own = std::process::id();
        let names: Vec<&str> = made.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(names, [format!("outrigger-{own}"), format!("outrigger-{own}-1")]);
        fs::remove_dir_all(parent).unwrap();
    }

    #[test]
    fn what_is_taken_away_before_it_is_locked_is_nobodys() {
        let parent = folder("between");
        let group = parent.join("outrigger-1");
        for made_anew in [false, true] {
            fs::create_dir(&group).unwrap();
            let opened = File::open(&group).unwrap();
            sweep(&parent);
            if made_anew {
                fs::create_dir(&group).unwrap();
            }
            assert!(locked(&group, opened).unwrap().is_none(), "{made_anew}");
        }
        fs::remove_dir_all(parent).unwrap();
    }
}
