//! What outlives the process, in the data directory: operators' words, and the last known good state of every service. Each
//! is one file, replaced whole by renaming, written by a task of its own. A disk that is full, read-only or slow degrades
//! loudly and stops nothing: what could not be written holds in memory. A file that cannot be used is put aside with a
//! reason, and the start goes on without it. The directory is for one process at a time.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lookaside_core::{event::Override, kept::Kept};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::telemetry;

mod disk;
mod lock;
mod overrides;
mod snapshot;
mod writer;

pub use lock::InUse;
pub(crate) use lock::Lock;
pub(crate) use overrides::revived;
use writer::{State, Writer};

/// What was kept of the last start, as far as it can be used.
#[derive(Default)]
pub(crate) struct Loaded {
    /// Operators' words that still hold.
    pub(crate) overrides: Vec<Override>,
    /// The last known good state.
    pub(crate) snapshot: Option<Kept>,
    /// Why a file was not used, one at most of each kind.
    pub(crate) refused: Vec<Refused>,
}

/// A file that was not used.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    /// Which kind of file.
    kind: Kind,
    /// In words.
    words: String,
}

/// The files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Overrides,
    Snapshot,
}

impl Kind {
    /// What metrics, logs and `status` call it.
    fn name(self) -> &'static str {
        match self {
            Self::Overrides => "overrides",
            Self::Snapshot => "snapshot",
        }
    }

    fn path(self, data_dir: &Path) -> PathBuf {
        data_dir.join(match self {
            Self::Overrides => "overrides.json",
            Self::Snapshot => "snapshot.jsonl",
        })
    }
}

/// How a file of the data directory is.
#[derive(Debug, Clone)]
pub(crate) struct FileState {
    /// overrides, snapshot.
    pub(crate) name: &'static str,
    /// Where it is.
    pub(crate) path: String,
    /// Why the newest content is not on disk; empty while it is.
    pub(crate) failing: String,
    /// Since the last write that worked; `None` when there was none.
    pub(crate) saved_ago: Option<Duration>,
    /// Size then.
    pub(crate) bytes: u64,
    /// Why what the last start had left was not used; empty when it was, or there was nothing.
    pub(crate) refused: String,
}

/// Reads what is kept in `data_dir`, words that have ended by `now_unix_ms` left out. What cannot be used is put aside,
/// logged and counted.
pub(crate) fn load(data_dir: &Path, now_unix_ms: u64) -> Loaded {
    let mut loaded = Loaded::default();
    match overrides::load(&Kind::Overrides.path(data_dir), now_unix_ms) {
        Ok(overrides) => loaded.overrides = overrides,
        Err(error) => {
            let consequence = "overrides of the last start are lost: look at drains and weights";
            loaded.refused.push(refuse(Kind::Overrides, &error, consequence));
        }
    }
    match snapshot::load(&Kind::Snapshot.path(data_dir)) {
        Ok(kept) => loaded.snapshot = kept,
        Err(error) => {
            let consequence = "lists are incomplete until backends have registered again";
            loaded.refused.push(refuse(Kind::Snapshot, &error, consequence));
        }
    }
    loaded
}

fn refuse(kind: Kind, error: &disk::Error, consequence: &str) -> Refused {
    tracing::error!(file = kind.name(), %error, "{consequence}");
    let labels = [("file", kind.name()), ("reason", error.reason())];
    metrics::counter!(telemetry::DATA_REFUSED_TOTAL, &labels).increment(1);
    Refused { kind, words: error.to_string() }
}

/// The way to the tasks that write. Cheap to clone; never makes anybody wait who does not ask to.
#[derive(Clone)]
pub(crate) struct Store {
    overrides: Writer<Vec<Override>>,
    snapshot: Writer<Kept>,
    refused: Arc<[Refused]>,
}

impl Store {
    /// Starts the tasks that write to `data_dir`, under the name `node`; they end when `stop` is cancelled and what was
    /// told before is written.
    pub(crate) fn start(
        data_dir: &Path,
        node: &str,
        refused: Vec<Refused>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Self {
        let (overrides, writing) =
            Writer::start(Kind::Overrides, Kind::Overrides.path(data_dir), overrides::encode, stop.clone());
        tasks.spawn(writing);
        let node = node.to_owned();
        let encode = move |kept: &Kept| snapshot::encode(kept, &node);
        let (snapshot, writing) = Writer::start(Kind::Snapshot, Kind::Snapshot.path(data_dir), encode, stop.clone());
        tasks.spawn(writing);
        Self { overrides, snapshot, refused: refused.into() }
    }

    /// Puts these words on disk in place of those before, as soon as the disk allows.
    pub(crate) fn save_overrides(&self, words: Vec<Override>) {
        self.overrides.save(words);
    }

    /// How often words were told.
    #[cfg(test)]
    pub(crate) fn overrides_saved(&self) -> u64 {
        self.overrides.told()
    }

    /// Waits until all words saved before are on disk or could not be put there, at most `limit`.
    pub(crate) async fn settled(&self, limit: Duration) {
        if !self.overrides.settled(limit).await {
            tracing::warn!(?limit, "the disk is slow: an override is answered before it is kept");
        }
    }

    /// Whether another snapshot may be told by now: it changes far more often than it is worth writing.
    pub(crate) fn takes_snapshot(&self) -> bool {
        self.snapshot.is_ready()
    }

    /// Puts this state on disk in place of the one before, as soon as the disk allows.
    pub(crate) fn save_snapshot(&self, kept: Kept) {
        self.snapshot.save(kept);
    }

    /// How the files are.
    pub(crate) fn files(&self) -> Vec<FileState> {
        let file = |kind: Kind, path: &Path, state: State| FileState {
            name: kind.name(),
            path: path.display().to_string(),
            failing: state.failing.unwrap_or_default(),
            saved_ago: state.saved_at.map(|at| at.elapsed()),
            bytes: state.bytes,
            refused: self.refused.iter().find(|r| r.kind == kind).map(|r| r.words.clone()).unwrap_or_default(),
        };
        vec![
            file(Kind::Overrides, self.overrides.path(), self.overrides.state()),
            file(Kind::Snapshot, self.snapshot.path(), self.snapshot.state()),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests;
