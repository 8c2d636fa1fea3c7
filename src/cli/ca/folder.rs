//! A set of files that appears in a folder whole: prepared under other names, then linked or renamed into place.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Its owner: keys. From its creation on, not from a later chmod.
    Owner,
    /// Everyone, as far as the umask lets them.
    All,
}

/// Files on their way into a folder. What was not put into place is removed when it is dropped.
pub(super) struct Set {
    folder: PathBuf,
    /// Whether the folder is ours, to be removed if it stays empty.
    made: bool,
    /// Holds the lock against another process that writes here, whose files would be mixed with ours.
    lock: File,
    /// Where each is and where it goes.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Set {
    /// Opens the folder, or makes one that only its owner may enter.
    ///
    /// # Errors
    /// It cannot be made or opened, or another process writes there.
    pub(super) fn open(folder: &Path) -> Result<Self, String> {
        let at = |error: std::io::Error| format!("{}: {error}", folder.display());
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let made = !folder.exists();
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
        let lock = File::open(folder).map_err(at)?;
        // Where the file system has no locks, there is none.
        if flock(&lock, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK) {
            return Err(format!("{}: another `outrigger ca` writes there: try again", folder.display()));
        }
        Ok(Self { folder: folder.to_owned(), made, lock, files: Vec::new() })
    }

    /// Where the file `name` will be.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The names in the order in which they will be replaced.
    #[cfg(test)]
    pub(super) fn order(&self) -> Vec<&str> {
        self.files.iter().filter_map(|(_, path)| path.file_name()?.to_str()).collect()
    }

    /// Writes a file under another name, to the disk.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn add(&mut self, name: &str, text: &str, readers: Readers) -> Result<(), String> {
        let path = self.path(name);
        let at = |error: std::io::Error| format!("{}: {error}", path.display());
        let aside = self.folder.join(format!(".{name}.{:016x}", fastrand::u64(..)));
        let mode = if readers == Readers::Owner { 0o600 } else { 0o644 };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside).map_err(at)?;
        self.files.push((aside, path.clone()));
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at)
    }

    /// Puts all into place; nothing may be there yet.
    ///
    /// # Errors
    /// One is there already, or cannot be put there: then none is.
    pub(super) fn create(mut self) -> Result<(), String> {
        let mut placed: Vec<PathBuf> = Vec::new();
        for (aside, path) in &self.files {
            // A link fails where a rename would replace.
            if let Err(error) = std::fs::hard_link(aside, path) {
                for path in &placed {
                    // Nothing more can be done; the error that is told names the folder.
                    let _ = std::fs::remove_file(path);
                }
                return Err(match error.kind() {
                    ErrorKind::AlreadyExists => taken(path),
                    _ => format!("{}: {error}", path.display()),
                });
            }
            placed.push(path.clone());
        }
        self.made = false;
        self.settle()
    }

    /// Puts all into place, each in one step and in the order in which they were added; what is there is replaced.
    ///
    /// # Errors
    /// One cannot be put there; those before it are.
    pub(super) fn replace(mut self) -> Result<(), String> {
        for (aside, path) in &self.files {
            std::fs::rename(aside, path).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        self.made = false;
        self.settle()
    }

    /// Has the names last through a loss of power.
    fn settle(&self) -> Result<(), String> {
        self.lock.sync_all().map_err(|error| format!("{}: {error}", self.folder.display()))
    }
}

/// What is said of a file that would have to be overwritten.
pub(super) fn taken(path: &Path) -> String {
    format!(
        "{} is there already, and a CA is never overwritten: name another folder with --dir, or move it away",
        path.display()
    )
}

impl Drop for Set {
    fn drop(&mut self) {
        for (aside, _) in &self.files {
            // Those that were renamed are no longer there.
            let _ = std::fs::remove_file(aside);
        }
        if self.made {
            // Fails where it is not empty, as it should.
            let _ = std::fs::remove_dir(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::cli::ca::testing::Folder;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_key_is_its_owners_from_the_first_byte() {
        let folder = Folder::new();
        let at = folder.0.join("a/b");
        let mut set = Set::open(&at).unwrap();
        set.add("key.pem", "secret", Readers::Owner).unwrap();
        set.add("cert.pem", "public", Readers::All).unwrap();
        let aside: Vec<u32> = set.files.iter().map(|(aside, _)| mode(aside)).collect();
        assert_eq!(aside[0], 0o600);
        assert_eq!(names(&at).len(), 2);
        set.create().unwrap();
        assert_eq!(names(&at), ["cert.pem", "key.pem"]);
        assert_eq!((mode(&at), mode(&at.join("key.pem"))), (0o700, 0o600));
        assert_eq!(std::fs::read_to_string(at.join("key.pem")).unwrap(), "secret");
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_is_left_halfway() {
        let folder = Folder::new();
        std::fs::write(folder.0.join("b"), "old").unwrap();
        let mut set = Set::open(&folder.0).unwrap();
        for name in ["a", "b", "c"] {
            set.add(name, "new", Readers::All).unwrap();
        }
        let error = set.create().unwrap_err();
        assert!(error.contains("/b is there already"), "{error}");
        assert_eq!(names(&folder.0), ["b"]);
        assert_eq!(std::fs::read_to_string(folder.0.join("b")).unwrap(), "old");
    }

    #[test]
    fn a_folder_of_ours_goes_with_a_set_that_failed() {
        let folder = Folder::new();
        let at = folder.0.join("new");
        let mut set = Set::open(&at).unwrap();
        set.add("a", "x", Readers::All).unwrap();
        drop(set);
        assert!(!at.exists() && folder.0.exists());
        drop(Set::open(&folder.0).unwrap());
        assert!(folder.0.exists());
    }

    #[test]
    fn replacing_replaces_and_two_do_not_mix() {
        let folder = Folder::new();
        std::fs::write(folder.0.join("a"), "old").unwrap();
        let mut set = Set::open(&folder.0).unwrap();
        set.add("a", "new", Readers::Owner).unwrap();
        let error = Set::open(&folder.0).err().unwrap();
        assert!(error.contains("another `outrigger ca` writes there"), "{error}");
        set.replace().unwrap();
        assert_eq!((names(&folder.0), mode(&folder.0.join("a"))), (vec!["a".to_owned()], 0o600));
        assert_eq!(std::fs::read_to_string(folder.0.join("a")).unwrap(), "new");
        assert!(Set::open(Path::new("/proc/no/such")).err().unwrap().starts_with("/proc/no/such: "));
    }
}
