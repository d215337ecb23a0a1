//! Operators' words on disk, so that a drain outlives a restart: JSON for people to read as well.

use std::{io, path::Path, time::Duration};

use lookaside_core::event::Override;
use serde::{Deserialize, Serialize};

use super::disk::{self, Error, Fault};
use crate::limits::OVERRIDES_FILE_BYTES_MAX;

/// Counts up when a field changes its meaning.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    overrides: Vec<Override>,
}

#[derive(Serialize)]
struct Keeping<'a> {
    format: u32,
    overrides: &'a [Override],
}

/// Words that are kept there, those that have ended by `now_unix_ms` left out.
pub(super) fn load(path: &Path, now_unix_ms: u64) -> Result<Vec<Override>, Error> {
    let kept = disk::load(path, OVERRIDES_FILE_BYTES_MAX, decode)?.unwrap_or_default();
    Ok(kept.into_iter().filter_map(|word| revived(word, now_unix_ms)).collect())
}

fn decode(bytes: &[u8]) -> Result<Vec<Override>, Fault> {
    #[derive(Deserialize)]
    struct Header {
        format: u32,
    }
    let damaged = |error: serde_json::Error| Fault::Damaged(error.to_string());
    // Alone at first: a newer format may look different in all else.
    let Header { format } = serde_json::from_slice(bytes).map_err(damaged)?;
    if format != FORMAT {
        return Err(Fault::Newer { format, max: FORMAT });
    }
    serde_json::from_slice(bytes).map(|Kept { overrides, .. }| overrides).map_err(damaged)
}

/// The bytes to be written.
#[allow(clippy::ptr_arg, reason = "the writer's content is a vector")]
pub(super) fn encode(overrides: &Vec<Override>) -> io::Result<Vec<u8>> {
    serde_json::to_vec_pretty(&Keeping { format: FORMAT, overrides }).map_err(io::Error::other)
}

/// A word as it holds now: how much of it remains is told by the wall clock, the only one that outlives a restart.
pub(crate) fn revived(mut word: Override, now_unix_ms: u64) -> Option<Override> {
    word.remaining = match word.expires_at_unix_ms {
        0 => None,
        at if at <= now_unix_ms => return None,
        at => Some(Duration::from_millis(at - now_unix_ms)),
    };
    Some(word)
}
