//! Reads a file that is named in a configuration: a regular one, of bounded size. Whoever named a pipe or a device would
//! have its reader wait for ever, or read without end.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

const MIB: u64 = 1024 * 1024;

/// Certificates and keys of a larger file are refused: bundles of all public roots have a quarter of a MiB.
pub const MOST_PEM: u64 = 16 * MIB;

/// Opens a regular file to be read.
///
/// # Errors
/// Without the path: it cannot be opened, or is something else.
pub fn open(path: &Path) -> Result<(File, Metadata)> {
    // Opening a pipe would wait for its writer. What it is is asked of what was opened, not of what stood there before.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path)?;
    let facts = file.metadata()?;
    if facts.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !facts.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "is not a regular file"));
    }
    Ok((file, facts))
}

/// The bytes of a regular file of at most `most`.
///
/// # Errors
/// As [`open`]; it is larger, or cannot be read.
pub fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let (file, facts) = open(path)?;
    let too_large = || Error::new(ErrorKind::FileTooLarge, format!("is larger than {} MiB", most / MIB));
    if facts.len() > most {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(facts.len()).unwrap_or_default());
    // It may grow meanwhile.
    file.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most { Err(too_large()) } else { Ok(bytes) }
}
