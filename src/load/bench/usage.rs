//! What a process has used, as the system counts it. Linux alone; elsewhere everything is 0.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

/// Clock ticks per second in `/proc`: 100 wherever Linux runs today.
const TICK_US: u64 = 10_000;

/// What a process has used since it began, and its memory now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time, of the system on its behalf included, microseconds.
    pub cpu_us: u64,
    /// Memory in RAM, KiB.
    pub rss_kib: u64,
}

impl Usage {
    /// That of a process; 0 when there is none.
    pub fn of(process: u32) -> Self {
        Self { cpu_us: cpu_us(&format!("/proc/{process}")), rss_kib: rss_kib(&format!("/proc/{process}")) }
    }

    /// That of this one.
    pub fn own() -> Self {
        Self { cpu_us: cpu_us("/proc/self"), rss_kib: rss_kib("/proc/self") }
    }
}

/// Of all threads to the nanosecond where the kernel counts that, else by ticks. Threads that ended are in the ticks alone: the
/// processes here have none.
fn cpu_us(folder: &str) -> u64 {
    let ticks = || {
        let stat = fs::read_to_string(format!("{folder}/stat")).unwrap_or_default();
        // The name before the last parenthesis may hold anything.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        (field(11) + field(12)) * TICK_US
    };
    let Ok(threads) = fs::read_dir(format!("{folder}/task")) else { return ticks() };
    let on_cpu_ns = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    match threads.flatten().filter_map(on_cpu_ns).sum::<u64>() / 1_000 {
        0 => ticks(),
        us => us,
    }
}

fn rss_kib(folder: &str) -> u64 {
    let status = fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
    let row = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    row.and_then(|row| row.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// What all processors of the machine have done since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    busy_ticks: u64,
    all_ticks: u64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        Self::read(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    // The first line: user, nice, system, idle, waiting for disks, interrupts of two kinds, and what a host took away.
    fn read(stat: &str) -> Self {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|text| text.parse().ok()).collect();
        let all_ticks = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Self { busy_ticks: all_ticks - idle, all_ticks }
    }

    /// How busy they were since then, all together, percent.
    pub(crate) fn percent_since(&self, before: &Self) -> f64 {
        let all = self.all_ticks.saturating_sub(before.all_ticks);
        let busy = self.busy_ticks.saturating_sub(before.busy_ticks);
        if all == 0 { 0.0 } else { busy as f64 * 100.0 / all as f64 }
    }
}

/// Wall clock, microseconds since 1970: one clock for all processes of a machine.
pub fn unix_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_disk_is_idle_and_what_the_host_took_is_not() {
        let before = Machine::read("cpu  10 0 10 100 0 0 0 0 0 0\ncpu0 10 0 10 100 0 0 0 0 0 0\n");
        let after = Machine::read("cpu  20 1 15 150 30 1 1 2 9 0\n");
        assert_eq!(after.percent_since(&before), 20.0);
        assert_eq!(Machine::read("").percent_since(&Machine::default()), 0.0);
    }

    #[test]
    fn work_is_counted() {
        let before = Usage::own();
        let mut sum = 0_u64;
        while Usage::own().cpu_us < before.cpu_us + 20_000 {
            sum = (0..1_000_000).fold(sum, |sum, n| std::hint::black_box(sum ^ n));
        }
        assert!(before.rss_kib > 500, "{before:?}");
        assert_eq!(Usage::of(u32::MAX), Usage::default());
    }
}
