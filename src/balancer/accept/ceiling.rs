//! The memory that the process may take. Near its ceiling newcomers are turned away, connections first and streams after
//! them; whoever has a stream keeps it. What the kernel counts as resident is looked at, since that is what it acts upon.
//! An allocator keeps what was freed for the next time, so that number hardly falls: once streams have gone, as many come in
//! again as there were when it was highest, less a tenth.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
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
    /// Streams that are open.
    inside: AtomicUsize,
    /// The most memory that was ever resident, and the streams that were open then.
    most_bytes: AtomicU64,
    inside_at_most: AtomicUsize,
}

/// A stream that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Inside(Arc<Ceiling>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ceiling {
    pub(crate) fn new(live: Live) -> Arc<Self> {
        Arc::new(Self {
            live,
            resident_bytes: AtomicU64::default(),
            inside: AtomicUsize::default(),
            most_bytes: AtomicU64::default(),
            inside_at_most: AtomicUsize::default(),
        })
    }

    /// One more stream.
    pub(crate) fn enter(self: &Arc<Self>) -> Inside {
        self.inside.fetch_add(1, Ordering::Relaxed);
        Inside(Arc::clone(self))
    }

    fn see(&self, resident_bytes: u64) {
        self.resident_bytes.store(resident_bytes, Ordering::Relaxed);
        let most_bytes = self.most_bytes.load(Ordering::Relaxed);
        // By a little it goes up and down whatever happens.
        if resident_bytes > most_bytes + most_bytes / 64 {
            self.most_bytes.store(resident_bytes, Ordering::Relaxed);
            self.inside_at_most.store(self.inside.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Looks on until the end. Where nothing can be read, as on systems without `/proc`, there is always room.
    pub(crate) async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let look = async {
            let mut was_tight = false;
            loop {
                if let Some(bytes) = resident_bytes() {
                    self.see(bytes);
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
            mib => {
                let is_low = self.resident_bytes.load(Ordering::Relaxed) < (mib << 20) / 100 * percent;
                let at_most = self.inside_at_most.load(Ordering::Relaxed);
                is_low || self.inside.load(Ordering::Relaxed) < at_most - at_most / 10
            }
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
                ceiling.see(mib << 20);
            }
            let room = [Newcomer::Connection, Newcomer::Stream].map(|newcomer| some.has_room(newcomer));
            assert_eq!(room, [connection, stream], "{mib} MiB");
            assert!(none.has_room(Newcomer::Stream));
        }
    }

    #[test]
    fn when_streams_have_gone_others_come_in_though_their_memory_stays() {
        let limits = Limits { memory_mib: 100, ..Limits::default() };
        let ceiling = Ceiling::new(Live::fixed(Config { limits, ..Config::default() }));
        let mut streams: Vec<Inside> = (0..100).map(|_| ceiling.enter()).collect();
        ceiling.see(95 << 20);
        assert!(!ceiling.has_room(Newcomer::Stream));
        streams.truncate(89);
        ceiling.see(94 << 20);
        assert!(ceiling.has_room(Newcomer::Stream) && ceiling.has_room(Newcomer::Connection));
        streams.push(ceiling.enter());
        assert!(!ceiling.has_room(Newcomer::Stream), "a tenth is kept");
        // Something else takes more: there is room for fewer.
        streams.truncate(50);
        ceiling.see(98 << 20);
        assert!(!ceiling.has_room(Newcomer::Stream));
    }

    #[test]
    fn the_kernel_says_what_is_resident() {
        let bytes = resident_bytes().unwrap();
        assert!((1 << 20..1 << 34).contains(&bytes), "{bytes}");
    }
}
