//! The task that keeps one file: always the newest content and no other, tried again while the disk does not take it, told
//! of once per change. Whoever brings content never waits.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Kind, disk};
use crate::{
    limits::{SAVE_PAUSE_MIN, SAVE_PAUSE_TIMES, SAVE_RETRY},
    telemetry,
};

/// The way to the task.
pub(super) struct Writer<T> {
    path: Arc<Path>,
    pending: Arc<watch::Sender<Pending<T>>>,
    state: watch::Receiver<State>,
}

impl<T> Clone for Writer<T> {
    fn clone(&self) -> Self {
        Self { path: Arc::clone(&self.path), pending: Arc::clone(&self.pending), state: self.state.clone() }
    }
}

struct Pending<T> {
    number: u64,
    content: Option<Arc<T>>,
}

/// What came of it so far.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    /// Of the newest content that is on disk or could not be put there.
    number: u64,
    /// Why it could not.
    pub(super) failing: Option<String>,
    /// When a write worked last.
    pub(super) saved_at: Option<Instant>,
    /// How much was written then.
    pub(super) bytes: u64,
    /// Before this, content that can wait had better do so.
    rest_until: Option<Instant>,
}

impl<T: Send + Sync + 'static> Writer<T> {
    /// A writer, and the task to be spawned for it: it ends when `stop` is cancelled and what was told before is written.
    pub(super) fn start(
        kind: Kind,
        path: PathBuf,
        encode: impl Fn(&T) -> io::Result<Vec<u8>> + Send + Sync + 'static,
        stop: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (pending, news) = watch::channel(Pending { number: 0, content: None });
        let (told, state) = watch::channel(State::default());
        let path: Arc<Path> = path.into();
        let task = Task { kind, path: Arc::clone(&path), encode: Arc::new(encode), told };
        (Self { path, pending: Arc::new(pending), state }, task.run(news, stop))
    }

    /// Puts this on disk in place of what was there, as soon as the disk allows. Never waits.
    pub(super) fn save(&self, content: T) {
        self.pending.send_modify(|pending| {
            *pending = Pending { number: pending.number + 1, content: Some(Arc::new(content)) };
        });
    }

    /// Waits until all that was saved before is on disk or could not be put there; `false` when that takes longer than
    /// `limit`.
    pub(super) async fn settled(&self, limit: Duration) -> bool {
        let wanted = self.pending.borrow().number;
        let mut state = self.state.clone();
        tokio::time::timeout(limit, state.wait_for(|state| state.number >= wanted)).await.is_ok()
    }

    /// Whether content that changes all the time may be told again: not while the last one is being written, nor for a
    /// while after.
    pub(super) fn is_ready(&self) -> bool {
        let state = self.state.borrow();
        state.number == self.pending.borrow().number && state.rest_until.is_none_or(|until| Instant::now() >= until)
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// How often something was told.
    #[cfg(test)]
    pub(super) fn told(&self) -> u64 {
        self.pending.borrow().number
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

struct Task<F> {
    kind: Kind,
    path: Arc<Path>,
    encode: Arc<F>,
    told: watch::Sender<State>,
}

impl<F> Task<F> {
    async fn run<T>(self, mut news: watch::Receiver<Pending<T>>, stop: CancellationToken)
    where
        T: Send + Sync + 'static,
        F: Fn(&T) -> io::Result<Vec<u8>> + Send + Sync + 'static,
    {
        loop {
            let (number, content) = {
                let newest = news.borrow_and_update();
                (newest.number, newest.content.clone())
            };
            let failing = self.told.borrow().failing.is_some();
            if let Some(content) = content.filter(|_| failing || number > self.told.borrow().number) {
                self.write(number, content).await;
            }
            let failing = self.told.borrow().failing.is_some();
            tokio::select! {
                biased; // What was told before the end is written.
                changed = news.changed() => if changed.is_err() { return },
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SAVE_RETRY), if failing => {}
            }
        }
    }

    async fn write<T>(&self, number: u64, content: Arc<T>)
    where
        T: Send + Sync + 'static,
        F: Fn(&T) -> io::Result<Vec<u8>> + Send + Sync + 'static,
    {
        let began = Instant::now();
        let (path, encode) = (Arc::clone(&self.path), Arc::clone(&self.encode));
        let written = tokio::task::spawn_blocking(move || {
            let bytes = encode(&content)?;
            disk::replace(&path, &bytes)?;
            Ok(bytes.len() as u64)
        });
        let result = written.await.map_err(io::Error::other).and_then(|result: io::Result<u64>| result);
        let before = self.told.borrow().failing.clone();
        self.tell(&result, before.as_deref());
        let now = Instant::now();
        let rest = match &result {
            Ok(_) => SAVE_PAUSE_MIN.max(now.duration_since(began) * SAVE_PAUSE_TIMES),
            Err(_) => SAVE_RETRY,
        };
        self.told.send_modify(|state| {
            state.number = number;
            state.rest_until = Some(now + rest);
            match result {
                Ok(bytes) => (state.failing, state.saved_at, state.bytes) = (None, Some(now), bytes),
                Err(error) => state.failing = Some(error.to_string()),
            }
        });
    }

    /// In metrics always, in the log when it is news.
    fn tell(&self, result: &io::Result<u64>, before: Option<&str>) {
        let (file, path) = (self.kind.name(), self.path.display());
        metrics::gauge!(telemetry::DATA_SAVED, "file" => file).set(f64::from(result.is_ok()));
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!(telemetry::DATA_SAVES_TOTAL, "file" => file, "result" => outcome).increment(1);
        match (result, before) {
            (Ok(_), Some(_)) => tracing::info!(%path, "{file}: kept on disk again"),
            (Err(error), before) if before != Some(error.to_string().as_str()) => {
                tracing::error!(%path, %error, "{file}: cannot be kept on disk, what is new holds until this process ends");
            }
            (Ok(_) | Err(_), _) => {}
        }
    }
}
