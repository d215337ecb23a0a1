//! The memory that the process may take. Near its ceiling newcomers are turned away, connections first and streams after
//! them; whoever has a stream keeps it. What the kernel counts as resident is looked at, since that is what it acts upon.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    config::Live,
    limits::{CEILING_LOOK_PERIOD, CONNECTIONS_BELOW_PERCENT, STREAMS_BELOW_PERCENT},
};

/// Who wants to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newcomer {
    Connection,
    Stream,
}

/// What there is, and what may be.
#[derive(Debug)]
pub(crate) struct Ceiling {
    live: Live,
    resident_bytes: AtomicU64,
}

impl Ceiling {
    pub(crate) fn new(live: Live) -> Arc<Self> {
        Arc::new(Self { live, resident_bytes: AtomicU64::new(0) })
    }

    /// Looks on until the end. Where nothing can be read, as on systems without `/proc`, there is always room.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let look = async {
            let mut was_tight = false;
            loop {
                if let Some(bytes) = resident_bytes() {
                    self.resident_bytes.store(bytes, Ordering::Relaxed);
                }
                let is_tight = !self.has_room(Newcomer::Connection);
                if is_tight != was_tight {
                    let (resident, ceiling) = (self.resident_bytes.load(Ordering::Relaxed) >> 20, self.mib());
                    match is_tight {
                        true => tracing::warn!(resident, ceiling, "MiB: close to limits.memory_mib, no newcomers"),
                        false => tracing::info!(resident, ceiling, "MiB: room for newcomers again"),
                    }
                }
                was_tight = is_tight;
                sleep(CEILING_LOOK_PERIOD).await;
            }
        };
        let _ = stop.run_until_cancelled(look).await;
    }

    /// Whether one more may come in.
    pub(crate) fn has_room(&self, newcomer: Newcomer) -> bool {
        let percent = match newcomer {
            Newcomer::Connection => CONNECTIONS_BELOW_PERCENT,
            Newcomer::Stream => STREAMS_BELOW_PERCENT,
        };
        match self.mib() {
            0 => true,
            mib => self.resident_bytes.load(Ordering::Relaxed) < (mib << 20) / 100 * percent,
        }
    }

    fn mib(&self) -> u64 {
        self.live.config().limits.memory_mib
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Limits};

    #[test]
    fn connections_are_turned_away_before_streams_and_nobody_without_a_ceiling() {
        let of = |memory_mib| {
            let limits = Limits { memory_mib, ..Limits::default() };
            Ceiling::new(Live::fixed(Config { limits, ..Config::default() }))
        };
        let (none, some) = (of(0), of(100));
        for (mib, connection, stream) in [(79, true, true), (80, false, true), (89, false, true), (90, false, false)] {
            for ceiling in [&none, &some] {
                ceiling.resident_bytes.store(mib << 20, Ordering::Relaxed);
            }
            let room = [Newcomer::Connection, Newcomer::Stream].map(|newcomer| some.has_room(newcomer));
            assert_eq!(room, [connection, stream], "{mib} MiB");
            assert!(none.has_room(Newcomer::Stream));
        }
    }

    #[test]
    fn the_kernel_says_what_is_resident() {
        let bytes = resident_bytes().unwrap();
        assert!((1 << 20..1 << 34).contains(&bytes), "{bytes}");
    }
}
