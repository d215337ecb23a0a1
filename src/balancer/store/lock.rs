//! The lock on the data directory. Two processes that replace the same files by the same names tear them, and each would
//! forget the orders that the other was given. The system takes the lock back when a process ends, however it ends.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// Another process has the directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} is in use by another balancer, which keeps its state there: wait for its end, or give each a data_dir of its own",
    .0.display()
)]
pub struct InUse(PathBuf);

/// Held for as long as something is written to the directory.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// Takes it. Where there can be no lock, on a disk that takes nothing or knows none, there is none: that is logged, and
    /// what could not be written there would not be torn either.
    ///
    /// # Errors
    /// [`InUse`] when another process has it.
    pub(crate) fn take(data_dir: &Path) -> Result<Self, InUse> {
        let path = data_dir.join("lock");
        let locked = open(data_dir, &path).map_err(TryLockError::Error).and_then(|file| {
            file.try_lock()?;
            Ok(file)
        });
        match locked {
            Ok(file) => Ok(Self { _file: Some(file) }),
            Err(TryLockError::WouldBlock) => Err(InUse(data_dir.to_owned())),
            Err(TryLockError::Error(error)) => {
                tracing::warn!(path = %path.display(), %error, "the data directory cannot be locked: see to it that no other balancer uses it");
                Ok(Self { _file: None })
            }
        }
    }
}

fn open(data_dir: &Path, path: &Path) -> io::Result<File> {
    let _ = fs::create_dir_all(data_dir);
    // One that is there can be locked also where nothing can be written.
    File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .or_else(|error| File::open(path).map_err(|_| error))
}
