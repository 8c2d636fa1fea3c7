//! A folder for a test, removed with it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// It and what is in it.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    /// Makes one.
    pub(super) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("outrigger-ca-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
