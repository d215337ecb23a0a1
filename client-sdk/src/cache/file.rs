//! The file of one service: its format, and how it comes to be whole or not at all. Knows nothing of lists.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

use super::Error;
use crate::picker::fnv_1a;

const MAGIC: &[u8] = b"lookaside list v1\n";
/// What every version of the format begins with.
const FAMILY: &[u8] = b"lookaside list v";
const CHECKSUM_BYTES: usize = 8;
/// A larger file is neither written nor read: a list of 10,000 endpoints takes about 2 MB.
pub(super) const FILE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// What a process that was killed in the middle of writing left behind is cleared away after this.
const REMAINS_AGE: Duration = Duration::from_secs(600);

/// The body, if the file is whole and of this format. `None` when there is no file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Unreadable(error.to_string())),
    };
    let mut bytes = Vec::new();
    let limit = FILE_BYTES_MAX as u64 + 1;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| Error::Unreadable(error.to_string()))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        let is_cut = MAGIC.starts_with(&bytes);
        return Err(match (is_cut, bytes.starts_with(FAMILY)) {
            (true, _) => Error::Truncated,
            (false, true) => Error::OtherFormat,
            (false, false) => Error::Foreign,
        });
    };
    let Some((said, body)) = rest.split_first_chunk::<CHECKSUM_BYTES>() else { return Err(Error::Truncated) };
    if u64::from_le_bytes(*said) != fnv_1a(body) {
        return Err(Error::Damaged);
    }
    Ok(Some(body.to_vec()))
}

/// Puts the body in the place of the file, whole: readers see the old one or the new one. Processes that write at the same
/// time do not mix; the last one counts.
pub(super) fn write(path: &Path, body: &[u8]) -> Result<(), Error> {
    if MAGIC.len() + CHECKSUM_BYTES + body.len() > FILE_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let fail = |error: io::Error| Error::Unwritable(error.to_string());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fail)?;
        clear_remains(path, folder);
    }
    let temporary = path.with_extension(format!("{:016x}.part", rand::random::<u64>()));
    let written = write_new(&temporary, body).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // At worst it is cleared away later.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(fail)
}

fn write_new(path: &Path, body: &[u8]) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).open(path)?;
    file.write_all(MAGIC)?;
    file.write_all(&fnv_1a(body).to_le_bytes())?;
    file.write_all(body)?;
    // Else a machine that loses power may have the name without the content.
    file.sync_all()
}

/// What others were writing when they were killed. Failing at it does no harm.
fn clear_remains(path: &Path, folder: &Path) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let is_ours = |name: &str| name.starts_with(&*stem) && name.ends_with(".part");
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age = entry.metadata().and_then(|data| data.modified());
        let age = age.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if entry.file_name().to_str().is_some_and(is_ours) && age.is_ok_and(|age| age > REMAINS_AGE) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
