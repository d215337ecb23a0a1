//! The last complete list of a service on disk, for an application that starts while no balancer answers. Optional, off the
//! path of every call, and never in the way: a file that is damaged or not ours is refused with a reason, a disk that is full
//! is complained of, and the channel works as one without a cache.

mod file;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lookaside_proto::v1;
use prost::Message as _;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{sleep, timeout},
};

use crate::{clock::now_unix_ms, list::List, pick_stream::Identity, picker::fnv_1a, pool::Pool};

/// Between two writes of one service; the newest list counts.
const WRITE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A list that only proves to be still good is written this often, so that its age on disk is near the truth.
const CONFIRM_INTERVAL: Duration = Duration::from_secs(30);
/// A disk that does not answer keeps nobody waiting for longer: the start goes on without the cache.
const READ_PATIENCE: Duration = Duration::from_secs(1);
/// Letters of the service's name that its file is named by; a hash tells apart what they do not.
const NAME_LENGTH_MAX: usize = 64;

/// Why the cache is of no use. What is done instead is the same for all: the channel goes on without it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot be read: {0}")]
    Unreadable(String),
    #[error("cannot be written: {0}")]
    Unwritable(String),
    #[error("larger than {} bytes", file::FILE_BYTES_MAX)]
    TooLarge,
    #[error("foreign: no cached list at all")]
    Foreign,
    #[error("foreign: a format of another version")]
    OtherFormat,
    #[error("truncated")]
    Truncated,
    #[error("damaged: its checksum does not fit")]
    Damaged,
    #[error("damaged: {0}")]
    Malformed(String),
    #[error("foreign: a list of {0:?}")]
    OtherService(String),
    #[error("foreign: a list for another locality, other labels or other balancers")]
    OtherClient,
    #[error("too old: {age_s} s, at most {limit_s} s")]
    TooOld { age_s: u64, limit_s: u64 },
    #[error("it offers no endpoint")]
    Empty,
}

/// A list from the disk, not in use yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cached {
    pub(crate) list: List,
    /// The balancer that stood by it last.
    pub(crate) from: String,
    /// How long ago that was, when it was read.
    pub(crate) age: Duration,
}

/// The file of one channel.
#[derive(Debug)]
pub(crate) struct Cache {
    path: Arc<Path>,
    age_max: Option<Duration>,
    latest: watch::Sender<v1::CachedService>,
}

impl Cache {
    /// In this folder, for whoever asks these balancers for this service.
    pub(crate) fn new(
        folder: PathBuf,
        age_max: Option<Duration>,
        service: &str,
        identity: &Identity,
        balancers: &[String],
    ) -> Self {
        let mut balancers = balancers.to_vec();
        balancers.sort_unstable();
        let asked = v1::CachedService {
            service: service.to_owned(),
            locality: identity.locality.clone(),
            labels: identity.labels.clone(),
            balancers,
            ..Default::default()
        };
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-') { c } else { '_' };
        let name: String = service.chars().take(NAME_LENGTH_MAX).map(plain).collect();
        // Tests and production, two zones: each keeps what it was told, however they share the folder.
        let name = format!("{name}-{:016x}.list", fnv_1a(&asked.encode_to_vec()));
        Self { path: folder.join(name).into(), age_max, latest: watch::Sender::new(asked) }
    }

    /// Reads what the last run left, and hands it to the pool; the pool uses it when no balancer answers.
    pub(crate) async fn load(&self, pool: &Pool) {
        let path = self.path.clone();
        let read = timeout(READ_PATIENCE, spawn_blocking(move || file::read(&path))).await;
        let read = match read {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => Err(Error::Unreadable(error.to_string())),
            Err(_) => Err(Error::Unreadable(format!("no answer of the disk within {READ_PATIENCE:?}"))),
        };
        let used = read.and_then(|body| body.map(|body| self.parse(&body, now_unix_ms())).transpose());
        match used {
            Ok(None) => {}
            Ok(Some((cached, said))) => {
                let rules = said.method_policy.clone().map_or(Ok(false), |policy| pool.take_policy(policy));
                if let Err(refused) = rules {
                    tracing::warn!(service = pool.service, refused, "cached rules for methods refused");
                }
                self.latest.send_replace(said);
                pool.change_view(|view| view.cached(cached));
            }
            Err(error) => {
                let file = self.path.display();
                tracing::warn!(service = pool.service, %file, "cached list refused: {error}; starting without it");
                pool.change_view(|view| view.cache_trouble = format!("refused: {error}"));
            }
        }
    }

    fn parse(&self, body: &[u8], now_unix_ms: u64) -> Result<(Cached, v1::CachedService), Error> {
        let said = v1::CachedService::decode(body).map_err(|error| Error::Malformed(error.to_string()))?;
        {
            let asked = self.latest.borrow();
            if said.service != asked.service {
                return Err(Error::OtherService(crate::error::cut(said.service)));
            }
            if (&said.locality, &said.labels, &said.balancers) != (&asked.locality, &asked.labels, &asked.balancers) {
                return Err(Error::OtherClient);
            }
        }
        let wire = said.list.clone().ok_or_else(|| Error::Malformed("it holds no list".to_owned()))?;
        // Of another service or incomplete: nothing that this program writes.
        if wire.service != said.service || !wire.complete {
            return Err(Error::Malformed("its list is not a complete one of this service".to_owned()));
        }
        let list = List::parse(wire).map_err(Error::Malformed)?;
        if !list.offers_any() {
            return Err(Error::Empty);
        }
        // A clock that was set back makes it new, not invalid.
        let age = Duration::from_millis(now_unix_ms.saturating_sub(said.confirmed_unix_ms));
        let time_to_live = Some(Duration::from_millis(list.time_to_live_ms)).filter(|limit| !limit.is_zero());
        let limit = [self.age_max, time_to_live].into_iter().flatten().min();
        if let Some(limit) = limit.filter(|limit| age > *limit) {
            return Err(Error::TooOld { age_s: age.as_secs(), limit_s: limit.as_secs() });
        }
        Ok((Cached { list, from: said.balancer.clone(), age }, said))
    }

    /// A complete list came from this balancer.
    pub(crate) fn keep_list(&self, list: v1::List, from: &str) {
        self.latest.send_modify(|kept| {
            kept.list = Some(list);
            kept.confirmed_unix_ms = now_unix_ms();
            from.clone_into(&mut kept.balancer);
        });
    }

    /// Rules for calls came.
    pub(crate) fn keep_policy(&self, policy: &v1::MethodPolicy) {
        self.latest.send_if_modified(|kept| {
            let is_new = kept.method_policy.as_ref() != Some(policy);
            if is_new {
                kept.method_policy = Some(policy.clone());
            }
            // Without a list there is nothing to write yet.
            is_new && kept.list.is_some()
        });
    }

    /// The balancer stands by the list of this digest, and calls it by this version.
    pub(crate) fn confirm(&self, version: Option<v1::Version>, digest: u64, from: &str) {
        self.latest.send_if_modified(|kept| {
            let now = now_unix_ms();
            let Some(list) = kept.list.as_mut().filter(|list| list.digest == digest) else { return false };
            if u128::from(now.saturating_sub(kept.confirmed_unix_ms)) < CONFIRM_INTERVAL.as_millis() {
                return false;
            }
            list.version = version;
            kept.confirmed_unix_ms = now;
            from.clone_into(&mut kept.balancer);
            true
        });
    }

    /// Writes what is kept, for as long as it is polled.
    pub(crate) async fn write(&self, pool: &Pool) {
        let mut latest = self.latest.subscribe();
        // The sender lives in `self`.
        while latest.changed().await.is_ok() {
            let (path, kept) = (self.path.clone(), latest.borrow_and_update().clone());
            let written = spawn_blocking(move || file::write(&path, &kept.encode_to_vec())).await;
            let trouble = match written {
                Ok(Ok(())) => String::new(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            let news = pool.change_view(|view| {
                let is_new = view.cache_trouble != trouble;
                view.cache_trouble.clone_from(&trouble);
                is_new && !trouble.is_empty()
            });
            if news {
                let file = self.path.display();
                tracing::warn!(service = pool.service, %file, "the list is not kept for the next start: {trouble}");
            }
            sleep(WRITE_INTERVAL_MIN).await;
        }
    }
}

#[cfg(test)]
mod tests;
