//! Signals that ask this process to stop.

use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Exit, Failure};

/// SIGTERM and SIGINT, caught from when this exists: neither ends the process any more.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
    requested_at: Option<Instant>,
}

/// Supervisors signal a process and its group: two signals in a row are one wish.
const SAME_WISH: Duration = Duration::from_secs(1);

impl Stop {
    /// Begins to catch them. Fails when the system refuses.
    pub(crate) fn catch() -> Result<Self, Failure> {
        let (terminate, interrupt) = (catch(SignalKind::terminate())?, catch(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, requested_at: None })
    }

    /// Resolves at the next one; those that came while nobody waited count as one, and so do those within a second of the
    /// last.
    pub(crate) async fn requested(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
            }
            let now = Instant::now();
            let before = self.requested_at.replace(now);
            if before.is_none_or(|before| now.duration_since(before) >= SAME_WISH) {
                return;
            }
        }
    }
}

/// Begins to catch one kind of signal. Fails when the system refuses.
pub(crate) fn catch(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::new(Exit::Failed, format!("cannot catch signals: {error}")))
}
