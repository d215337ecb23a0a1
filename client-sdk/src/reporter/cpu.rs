//! CPU time of this process, and the share of what it may use. Linux alone tells both in files; elsewhere, and where a
//! file cannot be read, nothing is measured and nothing is claimed.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

/// Ticks of `/proc/self/stat` are this long on every Linux: the kernel scales them for user space.
const TICK_US: u64 = 10_000;

/// Shorter spans than this hold too few ticks to divide.
const SPAN_US_MIN: u64 = 500_000;

/// A sampler of this process.
#[derive(Debug)]
pub(crate) struct Cpu {
    limit: f64,
    last: Option<(Instant, u64)>,
    utilization: f64,
}

impl Cpu {
    pub(crate) fn new() -> Self {
        let all = thread::available_parallelism().map_or(1.0, |count| count.get() as f64);
        let limit = cgroup_limit().map_or(all, |limit| limit.min(all));
        Self { limit, last: None, utilization: 0.0 }
    }

    /// CPU time used so far, microseconds, and the share of the limit used since the last sample; zeros when not measured.
    pub(crate) fn sample(&mut self, now: Instant) -> (u64, f64) {
        let Some(used_us) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|stat| used_us(&stat)) else {
            return (0, 0.0);
        };
        match self.last {
            None => self.last = Some((now, used_us)),
            Some((then, before_us)) => {
                let passed_us = now.saturating_duration_since(then).as_micros() as u64;
                if passed_us >= SPAN_US_MIN {
                    self.utilization = used_us.saturating_sub(before_us) as f64 / passed_us as f64 / self.limit;
                    self.last = Some((now, used_us));
                }
            }
        }
        (used_us, self.utilization)
    }
}

// The name of the process comes second, in brackets, and may hold anything: count from the last bracket.
fn used_us(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * TICK_US)
}

// The tightest limit on the way up from our own group, in whole CPUs.
fn cgroup_limit() -> Option<f64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let mut group: PathBuf = root.join(own);
    let mut limit: Option<f64> = None;
    loop {
        if let Some(found) = std::fs::read_to_string(group.join("cpu.max")).ok().and_then(|text| cpu_max(&text)) {
            limit = Some(limit.map_or(found, |tightest| tightest.min(found)));
        }
        if group == root || !group.pop() {
            return limit;
        }
    }
}

// "max 100000" or "150000 100000": time per period, microseconds.
fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0.0 && period > 0.0).then(|| quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_process_name_with_brackets_and_spaces_is_read_over() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1 0 5";
        assert_eq!(used_us(stat), Some(420_000));
        assert_eq!(used_us("nonsense"), None);
    }

    #[test]
    fn a_quota_is_in_cpus_and_max_is_none() {
        assert_eq!(cpu_max("150000 100000\n"), Some(1.5));
        assert_eq!(cpu_max("max 100000\n"), None);
    }

    #[test]
    fn a_busy_process_is_measured_where_the_system_tells() {
        let mut cpu = Cpu::new();
        let now = Instant::now();
        let (before_us, _) = cpu.sample(now);
        let (_, share) = cpu.sample(now + Duration::from_secs(1));
        assert!(share.is_finite() && share >= 0.0, "{before_us} {share}");
    }
}
