//! Advisory locks on files, freed when the file is closed or its process ends.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::{Error, Result};

/// Waits for a lock that excludes others of either kind (`exclusive`) or the exclusive ones.
pub(crate) fn wait(file: &File, exclusive: bool) -> io::Result<()> {
    loop {
        match lock(file, exclusive, true) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|_| ()),
        }
    }
}

/// Whether an exclusive lock could be had at once.
pub(crate) fn try_exclusive(file: &File) -> io::Result<bool> {
    lock(file, true, false)
}

#[cfg(unix)]
fn lock(file: &File, exclusive: bool, wait: bool) -> io::Result<bool> {
    use rustix::fs::FlockOperation as Op;
    let operation = match (exclusive, wait) {
        (true, true) => Op::LockExclusive,
        (true, false) => Op::NonBlockingLockExclusive,
        (false, true) => Op::LockShared,
        (false, false) => Op::NonBlockingLockShared,
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(true),
        Err(e) if !wait && e == rustix::io::Errno::WOULDBLOCK => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(unix))]
fn lock(file: &File, exclusive: bool, wait: bool) -> io::Result<bool> {
    if wait {
        if exclusive {
            file.lock()?;
        } else {
            file.lock_shared()?;
        }
        return Ok(true);
    }
    let result = if exclusive {
        file.try_lock()
    } else {
        file.try_lock_shared()
    };
    match result {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}

/// Opens the file that is locked in place of another one, which may be replaced.
pub(crate) fn lock_file(path: &Path) -> Result<File> {
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(|e| Error::io("open", path, e))
}
