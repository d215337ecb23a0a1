//! Overrides on disk, so that a drain outlives a restart. One file, replaced whole by renaming, written by a task of its
//! own. A disk that is full, read-only or slow degrades loudly and stops nothing: words hold in memory.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lookaside_core::event::Override;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{OVERRIDES_FILE_BYTES_MAX, SAVE_RETRY},
    telemetry,
};

/// The name of the file in the data directory.
const FILE: &str = "overrides.json";

/// Counts up when a field changes its meaning; a file of another format is not read.
const FORMAT: u32 = 1;

/// Why kept words cannot be used. The balancer starts without them and says so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file is there but cannot be read.
    #[error("{path}: {reason}")]
    Unreadable {
        /// Which.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// Not what this program writes.
    #[error("{path}: {reason}; it is kept as {path}.bad")]
    Malformed {
        /// Which.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    format: u32,
    overrides: Vec<Override>,
}

/// The way to the task that writes.
#[derive(Clone)]
pub(crate) struct Store {
    words: Arc<watch::Sender<Pending>>,
    settled: watch::Receiver<u64>,
}

#[derive(Clone, Default)]
struct Pending {
    number: u64,
    words: Vec<Override>,
}

/// Reads the words that are kept in `data_dir`, those that have ended by `now_unix_ms` left out.
pub(crate) fn load(data_dir: &Path, now_unix_ms: u64) -> Result<Vec<Override>, Error> {
    let path = data_dir.join(FILE);
    let name = path.display().to_string();
    // Kept aside whatever is wrong with it: the next save would overwrite what a person may want to look at.
    let aside = || drop(fs::rename(&path, path.with_extension("json.bad")));
    let unreadable = |e: io::Error| {
        aside();
        Error::Unreadable { path: name.clone(), reason: e.to_string() }
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut text = String::new();
    let read = file.take(OVERRIDES_FILE_BYTES_MAX).read_to_string(&mut text);
    let malformed = |reason: String| {
        aside();
        Error::Malformed { path: name.clone(), reason }
    };
    match read {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::InvalidData => return Err(malformed(e.to_string())),
        Err(e) => return Err(unreadable(e)),
    }
    let kept: Kept = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
    if kept.format != FORMAT {
        return Err(malformed(format!("format {} instead of {FORMAT}", kept.format)));
    }
    Ok(kept.overrides.into_iter().filter_map(|word| revived(word, now_unix_ms)).collect())
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

/// Starts the task that writes to `data_dir`; it ends when `stop` is cancelled and what was told before is written.
pub(crate) fn start(data_dir: PathBuf, stop: CancellationToken) -> (Store, JoinHandle<()>) {
    let (words, pending) = watch::channel(Pending::default());
    let (settle, settled) = watch::channel(0);
    let task = tokio::spawn(write_all(data_dir, pending, settle, stop));
    (Store { words: Arc::new(words), settled }, task)
}

impl Store {
    /// Puts these words on disk in place of those before, as soon as the disk allows. Never waits.
    pub(crate) fn save(&self, words: Vec<Override>) {
        self.words.send_modify(|pending| *pending = Pending { number: pending.number + 1, words });
    }

    /// Waits until all words saved before are on disk or could not be put there, at most `limit`.
    pub(crate) async fn settled(&self, limit: Duration) {
        let wanted = self.words.borrow().number;
        let mut settled = self.settled.clone();
        if tokio::time::timeout(limit, settled.wait_for(|number| *number >= wanted)).await.is_err() {
            tracing::warn!(?limit, "the disk is slow: an override is answered before it is kept");
        }
    }
}

async fn write_all(
    data_dir: PathBuf,
    mut pending: watch::Receiver<Pending>,
    settle: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let mut failing = false;
    loop {
        let next = pending.borrow_and_update().clone();
        if failing || next.number > *settle.borrow() {
            failing = !write(&data_dir, next.words, failing).await;
            settle.send_replace(next.number);
        }
        tokio::select! {
            biased;
            changed = pending.changed() => if changed.is_err() { return },
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SAVE_RETRY), if failing => {}
        }
    }
}

/// Whether it worked. Says so when that is news.
async fn write(data_dir: &Path, words: Vec<Override>, was_failing: bool) -> bool {
    let path = data_dir.join(FILE);
    let name = path.display().to_string();
    let written = tokio::task::spawn_blocking(move || replace(&path, words)).await;
    let result = written.map_err(io::Error::other).and_then(|result| result);
    metrics::gauge!(telemetry::OVERRIDES_SAVED).set(f64::from(result.is_ok()));
    match (&result, was_failing) {
        (Ok(()), true) => tracing::info!(path = name, "overrides are kept again"),
        (Err(error), false) => {
            tracing::error!(path = name, %error, "overrides cannot be kept: they hold until this process ends");
        }
        (Ok(()), false) | (Err(_), true) => {}
    }
    result.is_ok()
}

/// A reader finds the old file or the new one, whole, whenever the machine stops.
fn replace(path: &Path, overrides: Vec<Override>) -> io::Result<()> {
    let text = serde_json::to_vec_pretty(&Kept { format: FORMAT, overrides }).map_err(io::Error::other)?;
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let fresh = path.with_extension("json.new");
    let mut file = File::create(&fresh)?;
    file.write_all(&text)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?; // The rename itself.
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{env, process};

    use lookaside_core::{
        event::{Action, Scope},
        model::ServiceName,
    };

    use super::*;

    /// A fresh directory of this test process; who makes it removes it.
    pub(crate) fn directory(name: &str) -> PathBuf {
        let path = env::temp_dir().join(format!("lookaside-store-{}-{name}", process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn word(expires_at_unix_ms: u64) -> Override {
        Override {
            service: ServiceName::parse("s").unwrap(),
            scope: Scope::Service,
            action: Action::Weight(50),
            reason: "test".into(),
            actor: "me".into(),
            set_at_unix_ms: 1,
            replica: "b".into(),
            expires_at_unix_ms,
            remaining: None,
        }
    }

    const LONG: Duration = Duration::from_secs(10);
    const NOW_UNIX_MS: u64 = 1_000_000;

    #[tokio::test]
    async fn what_is_saved_is_loaded_and_what_has_ended_is_not() {
        let directory = directory("round");
        let stop = CancellationToken::new();
        let (store, task) = start(directory.clone(), stop.clone());
        assert_eq!(load(&directory, NOW_UNIX_MS).unwrap(), [], "nothing yet");
        let later = NOW_UNIX_MS + 3_600_000;
        store.save(vec![word(0)]);
        store.save(vec![word(0), word(1_000), word(later)]);
        store.settled(LONG).await;
        let loaded = load(&directory, NOW_UNIX_MS).unwrap();
        assert_eq!(loaded.iter().map(|w| w.expires_at_unix_ms).collect::<Vec<_>>(), [0, later]);
        assert_eq!(loaded[0].remaining, None);
        assert_eq!(loaded[1].remaining, Some(Duration::from_secs(3_600)));
        stop.cancel();
        task.await.unwrap();
        fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn a_disk_that_does_not_work_stops_nothing_and_is_tried_again() {
        let directory = directory("broken");
        fs::write(&directory, "a file where the directory should be").unwrap();
        let (store, _task) = start(directory.clone(), CancellationToken::new());
        store.save(vec![word(0)]);
        store.settled(LONG).await; // Settled: it could not be put there, and whoever waits is not held up.
        assert!(load(&directory, NOW_UNIX_MS).is_err());
        fs::remove_file(&directory).unwrap();
        fs::create_dir(&directory).unwrap();
        store.save(vec![word(0)]);
        store.settled(LONG).await;
        assert_eq!(load(&directory, NOW_UNIX_MS).unwrap(), [word(0)]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_is_not_ours_is_put_aside() {
        let directory = directory("strange");
        fs::create_dir(&directory).unwrap();
        for text in ["", "{", "[]", r#"{"format":2,"overrides":[]}"#, r#"{"format":1,"overrides":[{}]}"#, "\u{0}"] {
            fs::write(directory.join(FILE), text).unwrap();
            assert!(matches!(load(&directory, NOW_UNIX_MS), Err(Error::Malformed { .. })), "{text}");
            assert_eq!(fs::read_to_string(directory.join("overrides.json.bad")).unwrap(), text);
            assert_eq!(load(&directory, NOW_UNIX_MS).unwrap(), []);
        }
        fs::remove_dir_all(directory).unwrap();
    }
}
