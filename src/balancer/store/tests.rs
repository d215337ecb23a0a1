use std::{env, fs, os::unix::fs::symlink, process};

use lookaside_core::{
    event::{Action, Scope},
    kept::KeptService,
    model::ServiceName,
};

use super::*;

/// A fresh directory of this test process; who makes it removes it.
pub(crate) fn directory(name: &str) -> PathBuf {
    let path = env::temp_dir().join(format!("lookaside-store-{}-{name}", process::id()));
    let _ = fs::remove_dir_all(&path);
    path
}

/// A store without anything refused, and how to end it.
pub(crate) fn begin(directory: &Path) -> (Store, TaskTracker, CancellationToken) {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let store = Store::start(directory, "lb-0", Vec::new(), &tasks, &stop);
    tasks.close();
    (store, tasks, stop)
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

fn kept(services: usize) -> Kept {
    let service = |number| (ServiceName::parse(&format!("s{number}")).unwrap(), Arc::new(KeptService::default()));
    Kept { services: (0..services).map(service).collect() }
}

async fn snapshot_settled(store: &Store) {
    assert!(store.snapshot.settled(LONG).await);
}

fn file(store: &Store, name: &str) -> FileState {
    store.files().into_iter().find(|file| file.name == name).unwrap()
}

const LONG: Duration = Duration::from_secs(10);
const NOW_UNIX_MS: u64 = 1_000_000;

#[tokio::test]
async fn what_is_saved_is_loaded_and_what_has_ended_is_not() {
    let directory = directory("round");
    let (store, tasks, stop) = begin(&directory);
    let nothing = load(&directory, NOW_UNIX_MS);
    assert!(nothing.overrides.is_empty() && nothing.snapshot.is_none() && nothing.refused.is_empty());
    let later = NOW_UNIX_MS + 3_600_000;
    store.save_overrides(vec![word(0)]);
    store.save_overrides(vec![word(0), word(1_000), word(later)]);
    store.settled(LONG).await;
    store.save_snapshot(kept(3));
    snapshot_settled(&store).await;
    let loaded = load(&directory, NOW_UNIX_MS);
    assert_eq!(loaded.overrides.iter().map(|w| w.expires_at_unix_ms).collect::<Vec<_>>(), [0, later]);
    assert_eq!(loaded.overrides[0].remaining, None);
    assert_eq!(loaded.overrides[1].remaining, Some(Duration::from_secs(3_600)));
    assert_eq!(loaded.snapshot, Some(kept(3)));
    let state = file(&store, "snapshot");
    assert!(state.failing.is_empty() && state.saved_ago.is_some() && state.refused.is_empty(), "{state:?}");
    assert_eq!(state.bytes, fs::metadata(&state.path).unwrap().len());
    stop.cancel();
    tasks.wait().await;
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn what_was_told_before_the_end_is_written() {
    let directory = directory("end");
    let (store, tasks, stop) = begin(&directory);
    store.save_snapshot(kept(1));
    snapshot_settled(&store).await;
    store.save_snapshot(kept(2));
    store.save_overrides(vec![word(0)]);
    stop.cancel();
    tasks.wait().await;
    let loaded = load(&directory, NOW_UNIX_MS);
    assert_eq!((loaded.snapshot, loaded.overrides), (Some(kept(2)), vec![word(0)]));
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_snapshot_has_to_wait_a_second_after_the_last_one() {
    let directory = directory("pace");
    let (store, ..) = begin(&directory);
    assert!(store.takes_snapshot(), "the first one has not");
    store.save_snapshot(kept(1));
    assert!(!store.takes_snapshot());
    snapshot_settled(&store).await;
    let settled_at = tokio::time::Instant::now();
    while !store.takes_snapshot() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(settled_at.elapsed() >= crate::limits::SAVE_PAUSE_MIN / 2);
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_disk_that_does_not_work_stops_nothing_and_is_tried_again() {
    let directory = directory("broken");
    fs::write(&directory, "a file where the directory should be").unwrap();
    let (store, ..) = begin(&directory);
    store.save_overrides(vec![word(0)]);
    store.settled(LONG).await; // Settled: it could not be put there, and whoever waits is not held up.
    assert!(!file(&store, "overrides").failing.is_empty());
    assert_eq!(load(&directory, NOW_UNIX_MS).refused.len(), 2);
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    store.save_overrides(vec![word(0)]);
    store.settled(LONG).await;
    assert_eq!(file(&store, "overrides").failing, "");
    assert_eq!(load(&directory, NOW_UNIX_MS).overrides, [word(0)]);
    fs::remove_dir_all(directory).unwrap();
}

#[tokio::test]
async fn a_full_disk_leaves_the_last_good_file_and_takes_the_newest_state_once_there_is_room() {
    let directory = directory("full");
    let (store, ..) = begin(&directory);
    store.save_snapshot(kept(1));
    snapshot_settled(&store).await;
    // Where the next one is written first, the kernel says that there is no space left.
    let fresh = directory.join("snapshot.jsonl.new");
    symlink("/dev/full", &fresh).unwrap();
    store.save_snapshot(kept(2));
    snapshot_settled(&store).await;
    assert!(file(&store, "snapshot").failing.contains("No space left"), "{:?}", store.files());
    assert_eq!(load(&directory, NOW_UNIX_MS).snapshot, Some(kept(1)));
    fs::remove_file(&fresh).unwrap();
    store.save_snapshot(kept(3));
    snapshot_settled(&store).await;
    assert_eq!(load(&directory, NOW_UNIX_MS).snapshot, Some(kept(3)));
    assert_eq!(file(&store, "snapshot").failing, "");
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn overrides_that_are_not_ours_are_put_aside() {
    let directory = directory("strange");
    fs::create_dir(&directory).unwrap();
    for text in ["", "{", "[]", r#"{"format":2,"overrides":[]}"#, r#"{"format":1,"overrides":[{}]}"#, "\u{0}"] {
        fs::write(directory.join("overrides.json"), text).unwrap();
        let loaded = load(&directory, NOW_UNIX_MS);
        assert_eq!((loaded.overrides.len(), loaded.refused.len()), (0, 1), "{text}");
        assert!(loaded.refused[0].words.contains("overrides.json.refused"), "{:?}", loaded.refused);
        assert_eq!(fs::read_to_string(directory.join("overrides.json.refused")).unwrap(), text);
        assert!(load(&directory, NOW_UNIX_MS).refused.is_empty());
    }
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_snapshot_of_no_use_is_put_aside_and_nobody_waits_for_what_is_no_file() {
    let directory = directory("useless");
    fs::create_dir(&directory).unwrap();
    let path = directory.join("snapshot.jsonl");
    let refused = |is: &str| {
        let error = snapshot::load(&path).unwrap_err();
        assert_eq!(error.reason(), is, "{error}");
        assert!(fs::symlink_metadata(&path).is_err(), "{error}: it is still there");
        assert!(fs::symlink_metadata(directory.join("snapshot.jsonl.refused")).is_ok(), "{error}");
    };
    fs::write(&path, snapshot::tests::OLDEST.replace("eu/a", "eu/b")).unwrap();
    refused("damaged");
    // Larger than we ever write, and without a byte on disk.
    fs::File::create(&path).unwrap().set_len(crate::limits::SNAPSHOT_FILE_BYTES_MAX + 1).unwrap();
    refused("too_large");
    symlink("/dev/zero", &path).unwrap();
    refused("foreign");
    fs::remove_file(directory.join("snapshot.jsonl.refused")).unwrap();
    fs::create_dir(&path).unwrap();
    refused("foreign");
    fs::remove_dir_all(directory).unwrap();
}
