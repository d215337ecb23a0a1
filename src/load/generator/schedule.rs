//! When calls are due: the schedule knows nothing of answers.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

#[derive(Debug)]
pub(crate) struct Schedule {
    rate_per_s: f64,
    // None: equal spacing.
    random: Option<StdRng>,
    starts: u64,
    next_s: f64,
}

impl Schedule {
    pub(crate) fn new(rate_per_s: f64, poisson: bool, seed: u64) -> Self {
        Self { rate_per_s, random: poisson.then(|| StdRng::seed_from_u64(seed)), starts: 0, next_s: 0.0 }
    }

    /// The next start, since the start of the run; the first is at 0.
    pub(crate) fn next_start(&mut self) -> Duration {
        let start = Duration::try_from_secs_f64(self.next_s).unwrap_or(Duration::MAX);
        self.starts += 1;
        self.next_s = match &mut self.random {
            // From the number, not by adding up: no error accumulates.
            None => self.starts as f64 / self.rate_per_s,
            Some(random) => self.next_s - (1.0 - random.random::<f64>()).ln() / self.rate_per_s,
        };
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_spacing_does_not_drift() {
        let mut schedule = Schedule::new(600.0, false, 0);
        let last = (0..=600_000).map(|_| schedule.next_start()).last().unwrap();
        assert_eq!(last, Duration::from_secs(1000));
    }

    #[test]
    fn independent_callers_keep_the_rate_and_never_go_back() {
        let mut schedule = Schedule::new(1000.0, true, 7);
        let starts: Vec<Duration> = (0..100_000).map(|_| schedule.next_start()).collect();
        assert!(starts.is_sorted());
        let last_s = starts.last().unwrap().as_secs_f64();
        assert!((98.0..102.0).contains(&last_s), "{last_s}");
    }
}
