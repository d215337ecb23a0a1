//! Real files in a folder of the test's own.

use std::{collections::BTreeMap, fs};

use super::*;
use crate::snapshot::ListSource;

/// A folder that is gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("lookaside-cache-{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn files(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn identity(locality: &str) -> Identity {
    Identity { locality: locality.to_owned(), labels: BTreeMap::new(), tls: None }
}

fn cache(folder: &Folder) -> Cache {
    Cache::new(folder.0.clone(), None, "greeter", &identity("eu/a"), &["lb:1".to_owned()])
}

fn list(addresses: &[&str]) -> v1::List {
    let endpoint = |address: &&str| v1::Endpoint { address: (*address).into(), weight: 100, ..Default::default() };
    v1::List {
        service: "greeter".into(),
        version: Some(v1::Version { epoch: 7, sequence: 3 }),
        digest: 11,
        complete: true,
        mode: v1::ListMode::Normal.into(),
        endpoints: addresses.iter().map(endpoint).collect(),
        ..Default::default()
    }
}

fn pool() -> Arc<Pool> {
    Pool::new("greeter".into(), "c".into(), Duration::from_secs(1), 1)
}

/// A file as this cache writes it.
fn written(cache: &Cache, list: v1::List) -> Vec<u8> {
    cache.keep_list(list, "10.0.0.1:7400");
    file::write(&cache.path, &cache.latest.borrow().encode_to_vec()).unwrap();
    fs::read(&cache.path).unwrap()
}

async fn loaded(cache: &Cache) -> Arc<Pool> {
    let pool = pool();
    cache.load(&pool).await;
    pool.use_cached();
    pool
}

async fn refusal(cache: &Cache) -> String {
    let pool = loaded(cache).await;
    let snapshot = pool.snapshot();
    assert_eq!((snapshot.source, snapshot.endpoints.len()), (ListSource::None, 0), "{snapshot:?}");
    pool.close();
    snapshot.cache_trouble
}

#[tokio::test]
async fn what_one_run_kept_the_next_one_starts_with() {
    let folder = Folder::new();
    let cache = cache(&folder);
    let policy = v1::MethodPolicy { service: "greeter".into(), endpoint_calls_max: 9, ..Default::default() };
    cache.keep_policy(&policy);
    let mut kept = list(&["10.0.0.5:1", "10.0.0.6:1"]);
    kept.endpoints[1].capacity_milli = 3_000;
    written(&cache, kept);
    let pool = loaded(&super::tests::cache(&folder)).await;
    let snapshot = pool.snapshot();
    assert_eq!(snapshot.source, ListSource::Cache);
    assert_eq!(snapshot.endpoints.iter().map(|e| &*e.address).collect::<Vec<_>>(), ["10.0.0.5:1", "10.0.0.6:1"]);
    assert_eq!((snapshot.version.map(|v| v.epoch), snapshot.digest), (Some(7), 11));
    let capacities = pool.with_view(|view| {
        view.list.iter().flat_map(|list| &list.endpoints).map(|e| e.capacity_milli).collect::<Vec<_>>()
    });
    assert_eq!(capacities, [0, 3_000]);
    assert_eq!(pool.advice.endpoint_calls_max(), 9);
    assert!(pool.explain_none().contains("cached list") && pool.explain_none().contains("10.0.0.1:7400"));
    pool.close();
}

#[tokio::test]
async fn a_file_that_is_damaged_anywhere_or_cut_anywhere_is_refused_with_a_reason() {
    let folder = Folder::new();
    let cache = cache(&folder);
    let whole = written(&cache, list(&["10.0.0.5:1"]));
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&cache.path, &damaged).unwrap();
        let reason = file::read(&cache.path).unwrap_err();
        assert!(matches!(reason, Error::Damaged | Error::Foreign | Error::OtherFormat), "byte {at}: {reason}");
        fs::write(&cache.path, &whole[..at]).unwrap();
        let reason = file::read(&cache.path).unwrap_err();
        assert!(matches!(reason, Error::Damaged | Error::Truncated), "{at} bytes: {reason}");
    }
    assert!(refusal(&cache).await.contains("damaged"));
}

#[tokio::test]
async fn files_of_others_are_refused_with_a_reason() {
    let folder = Folder::new();
    let cache = cache(&folder);
    let mut whole = written(&cache, list(&["10.0.0.5:1"]));
    fs::write(&cache.path, b"{\"endpoints\": []}").unwrap();
    assert!(refusal(&cache).await.contains("foreign: no cached list"));
    whole[file_version_at()] = b'2';
    fs::write(&cache.path, &whole).unwrap();
    assert!(refusal(&cache).await.contains("another version"));
    let put = |change: fn(&mut v1::CachedService)| {
        let mut said = v1::CachedService { list: Some(list(&["10.0.0.5:1"])), ..cache.latest.borrow().clone() };
        change(&mut said);
        file::write(&cache.path, &said.encode_to_vec()).unwrap();
    };
    put(|said| said.service = "payments".into());
    assert!(refusal(&cache).await.contains("a list of \"payments\""));
    put(|said| said.locality = "us".into());
    assert!(refusal(&cache).await.contains("another locality"));
    put(|said| said.list = None);
    assert!(refusal(&cache).await.contains("no list"));
    put(|said| said.list = Some(list(&["nonsense"])));
    assert!(refusal(&cache).await.contains("say host:port"));
    put(|said| said.list = Some(v1::List { complete: false, ..list(&["10.0.0.5:1"]) }));
    assert!(refusal(&cache).await.contains("not a complete one"));
    put(|said| said.list = Some(v1::List { mode: v1::ListMode::Empty.into(), ..list(&[]) }));
    assert!(refusal(&cache).await.contains("offers no endpoint"));
    file::write(&cache.path, &[0xff; 40]).unwrap();
    assert!(refusal(&cache).await.contains("damaged"));
    fs::remove_file(&cache.path).unwrap();
    fs::create_dir(&cache.path).unwrap();
    assert!(refusal(&cache).await.contains("cannot be read"));
}

fn file_version_at() -> usize {
    b"lookaside list v".len()
}

#[tokio::test]
async fn a_list_that_is_too_old_is_refused_and_its_age_is_told_of_one_that_is_not() {
    let folder = Folder::new();
    let old = cache(&folder);
    let mut said = v1::CachedService { list: Some(list(&["10.0.0.5:1"])), ..old.latest.borrow().clone() };
    said.confirmed_unix_ms = now_unix_ms() - 100_000;
    file::write(&old.path, &said.encode_to_vec()).unwrap();
    let pool = loaded(&old).await;
    let age = pool.snapshot().list_age.unwrap();
    assert!((100..200).contains(&age.as_secs()), "{age:?}");
    pool.close();
    let strict = Cache { age_max: Some(Duration::from_secs(60)), ..cache(&folder) };
    assert!(refusal(&strict).await.contains("too old"));
    said.list = Some(v1::List { time_to_live_ms: 30_000, ..list(&["10.0.0.5:1"]) });
    file::write(&old.path, &said.encode_to_vec()).unwrap();
    assert!(refusal(&old).await.contains("at most 30 s"));
}

#[tokio::test]
async fn what_is_too_large_is_neither_written_nor_read() {
    let folder = Folder::new();
    let cache = cache(&folder);
    let too_large = vec![0; file::FILE_BYTES_MAX];
    assert_eq!(file::write(&cache.path, &too_large), Err(Error::TooLarge));
    assert_eq!(folder.files().len(), 0);
    fs::write(&cache.path, vec![0; file::FILE_BYTES_MAX + 1]).unwrap();
    assert!(refusal(&cache).await.contains("larger than"));
}

#[tokio::test]
async fn processes_that_share_a_folder_do_not_mix_what_they_write() {
    let folder = Folder::new();
    let lists: Vec<String> = (1..=40).map(|n| format!("10.0.0.{n}:1")).collect();
    let writers: Vec<_> = (1..=4)
        .map(|writer| {
            let (path, lists) = (cache(&folder).path, lists.clone());
            let asked = cache(&folder).latest.borrow().clone();
            std::thread::spawn(move || {
                for _ in 0..25 {
                    let addresses: Vec<&str> = lists.iter().take(10 * writer).map(String::as_str).collect();
                    let said = v1::CachedService { list: Some(list(&addresses)), ..asked.clone() };
                    file::write(&path, &said.encode_to_vec()).unwrap();
                    assert!(file::read(&path).unwrap().is_some(), "whole at any time");
                }
            })
        })
        .collect();
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert_eq!(folder.files().len(), 1, "{:?}", folder.files());
    let pool = loaded(&cache(&folder)).await;
    assert_eq!(pool.snapshot().endpoints.len() % 10, 0);
    pool.close();
    // Another zone, other balancers: files of their own.
    let others = [
        Cache::new(folder.0.clone(), None, "greeter", &identity("us"), &["lb:1".to_owned()]),
        Cache::new(folder.0.clone(), None, "greeter", &identity("eu/a"), &["lb:2".to_owned()]),
        Cache::new(folder.0.clone(), None, "../evil", &identity("eu/a"), &["lb:1".to_owned()]),
    ];
    for other in &others {
        written(other, list(&["10.0.0.5:1"]));
    }
    assert_eq!(folder.files().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_is_complained_of_and_tried_again() {
    let folder = Folder::new();
    // A file where the folder should be: nothing can be written there, whoever asks.
    let blocked = folder.0.join("blocked");
    fs::write(&blocked, b"").unwrap();
    let cache = Cache::new(blocked.clone(), None, "greeter", &identity(""), &[]);
    let pool = pool();
    let writing = cache.write(&pool);
    let watching = async {
        tokio::task::yield_now().await;
        cache.keep_list(list(&["10.0.0.5:1"]), "lb:1");
        while pool.snapshot().cache_trouble.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(pool.snapshot().cache_trouble.contains("cannot be written"));
        fs::remove_file(&blocked).unwrap();
        cache.keep_list(list(&["10.0.0.6:1"]), "lb:1");
        while !pool.snapshot().cache_trouble.is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = writing => unreachable!("it writes for ever"),
        () = watching => {}
    }
    assert!(file::read(&cache.path).unwrap().is_some());
}
