//! The configuration in force. It changes while the balancer runs, so that whoever needs a part of it asks anew each time.

use std::sync::Arc;

use tokio::sync::watch;

use super::Config;

/// What holds now, and whether the file says something else.
#[derive(Debug, Clone)]
pub(crate) struct InForce {
    /// The last good one.
    pub(crate) config: Arc<Config>,
    /// Since when, milliseconds since 1970.
    pub(crate) since_unix_ms: u64,
    /// Why the file as it is now was not taken; `None` when it is what holds.
    pub(crate) refused: Option<Refused>,
}

/// A file that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// When, milliseconds since 1970.
    pub(crate) at_unix_ms: u64,
    /// A line per mistake, with its place.
    pub(crate) reasons: Vec<String>,
}

/// Reads what is in force.
#[derive(Debug, Clone)]
pub(crate) struct Live(watch::Receiver<InForce>);

impl Live {
    /// From a configuration on, and who may change it.
    pub(crate) fn start(config: Config, now_unix_ms: u64) -> (watch::Sender<InForce>, Self) {
        let (sender, receiver) =
            watch::channel(InForce { config: Arc::new(config), since_unix_ms: now_unix_ms, refused: None });
        (sender, Self(receiver))
    }

    /// One that stays as it is.
    #[cfg(test)]
    pub(crate) fn fixed(config: Config) -> Self {
        Self::start(config, 0).1
    }

    /// Waits until something else holds, or the file is refused. Never ends once nobody can change it any more.
    pub(crate) async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// The configuration that holds now.
    pub(crate) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.0.borrow().config)
    }

    /// That, and how the file stands to it.
    pub(crate) fn in_force(&self) -> InForce {
        self.0.borrow().clone()
    }
}
