//! When a file may have changed. The system tells of its folder and not of the file alone, since editors rename another
//! file over it and Kubernetes swaps a link beside it; a look now and then makes up for folders that nobody tells of
//! (network file systems, links into other folders); and SIGHUP asks for one.

use std::path::{Path, PathBuf};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout},
};

use crate::limits::{CONFIG_LOOK_PERIOD, CONFIG_QUIET, CONFIG_QUIET_WAIT_MAX};

/// Why the file is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Something happened near it, or nobody has looked for a while.
    Perhaps,
    /// Somebody asked for it.
    Asked,
}

/// See above.
pub(super) struct Changes {
    near: mpsc::Receiver<()>,
    looks: Interval,
    asked: Option<Signal>,
    /// Tells as long as it lives.
    _watcher: Option<RecommendedWatcher>,
}

impl Changes {
    /// Of a file, which need not be there.
    pub(super) fn of(path: &Path) -> Self {
        let (tell, near) = mpsc::channel(1);
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            Some(_) | None => PathBuf::from("."),
        };
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading of the file is no change. A full channel says what is to be said.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = tell.try_send(());
            }
        });
        let watcher = watcher.and_then(|mut watcher| {
            watcher.watch(&folder, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let watcher = watcher.inspect_err(|error| {
            tracing::warn!(%error, folder = %folder.display(), "changes of the configuration are seen within {CONFIG_LOOK_PERIOD:?} alone");
        });
        let mut looks = interval_at(Instant::now() + CONFIG_LOOK_PERIOD, CONFIG_LOOK_PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let asked = signal(SignalKind::hangup());
        let asked = asked.inspect_err(|error| tracing::warn!(%error, "SIGHUP cannot be listened to")).ok();
        Self { near, looks, asked, _watcher: watcher.ok() }
    }

    /// Waits until the file is to be looked at. What happens in a burst is one change.
    pub(super) async fn next(&mut self) -> Why {
        let asked = async {
            match &mut self.asked {
                Some(signal) => signal.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = asked => return Why::Asked,
            _ = self.looks.tick() => return Why::Perhaps,
            // Where there is no watcher, nobody tells.
            Some(()) = self.near.recv() => {}
        }
        let patience = Instant::now() + CONFIG_QUIET_WAIT_MAX;
        while Instant::now() < patience
            && timeout(CONFIG_QUIET, self.near.recv()).await.is_ok_and(|told| told.is_some())
        {}
        Why::Perhaps
    }
}
