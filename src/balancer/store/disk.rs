//! Files as the store needs them: read whole and bounded, replaced whole or not at all, put aside when they are of no use.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {fault}; {fate}")]
pub(super) struct Error {
    path: String,
    fault: Fault,
    fate: String,
}

impl Error {
    /// The word for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self.fault {
            Fault::Unreadable(_) => "unreadable",
            Fault::TooLarge { .. } => "too_large",
            Fault::Foreign(_) => "foreign",
            Fault::Newer { .. } => "newer",
            Fault::Truncated { .. } => "truncated",
            Fault::Damaged(_) => "damaged",
        }
    }
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// It is there, but the system does not let us have it.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// We never write so much.
    #[error("it has {bytes} bytes, at most {max} are read")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// Somebody else's.
    #[error("it is not ours: {0}")]
    Foreign(String),
    /// Of a later version of this program.
    #[error("it has format {format}, this version reads up to {max}")]
    Newer {
        /// Its format.
        format: u32,
        /// The newest we know.
        max: u32,
    },
    /// It ends too early.
    #[error("it is truncated: {bytes} bytes of {wanted}")]
    Truncated {
        /// What is there.
        bytes: u64,
        /// What was written.
        wanted: u64,
    },
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Reads a file whole and makes something of it; `None` when there is no file. Whatever is wrong with it, it is put aside:
/// the next save would overwrite what a person may want to look at.
pub(super) fn load<T>(
    path: &Path,
    bytes_max: u64,
    decode: impl FnOnce(&[u8]) -> Result<T, Fault>,
) -> Result<Option<T>, Error> {
    let read = match read(path, bytes_max) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => decode(&bytes),
        Err(fault) => Err(fault),
    };
    read.map(Some).map_err(|fault| {
        let aside = beside(path, "refused");
        let fate = match fs::rename(path, &aside) {
            Ok(()) => format!("it is kept as {}", aside.display()),
            Err(error) => format!("it cannot be put aside ({error}) and will be overwritten"),
        };
        Error { path: path.display().to_string(), fault, fate }
    })
}

fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, Fault> {
    let unreadable = |error: io::Error| Fault::Unreadable(error.to_string());
    // Asked before it is opened: a pipe would keep us waiting.
    let told = match fs::metadata(path) {
        Ok(told) => told,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if !told.is_file() {
        return Err(Fault::Foreign("no regular file".to_owned()));
    }
    if told.len() > bytes_max {
        return Err(Fault::TooLarge { bytes: told.len(), max: bytes_max });
    }
    let mut bytes = Vec::new();
    // No more than that, should it grow meanwhile: what is cut off then shows as damage.
    File::open(path).and_then(|file| file.take(bytes_max).read_to_end(&mut bytes)).map_err(unreadable)?;
    Ok(Some(bytes))
}

/// Puts these bytes in place of the file. A reader finds the old file or the new one, whole, whenever the machine stops.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let fresh = beside(path, "new");
    let mut file = File::create(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?; // The rename itself.
    }
    Ok(())
}

/// The path with another ending after its own.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    name.into()
}
