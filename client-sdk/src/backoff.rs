//! How long to wait before the next attempt: exponential, with full jitter, so that a crowd that was cut off together does not
//! come back together.

use std::time::Duration;

use crate::picker::Rng;

#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    attempt: u32,
    rng: Rng,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration, seed: u64) -> Self {
        Self { first, longest, attempt: 0, rng: Rng::from_seed(seed) }
    }

    /// Anything from nothing to `first`, then to twice that, and so on up to `longest`.
    pub(crate) fn next(&mut self) -> Duration {
        let ceiling = self.first.saturating_mul(1 << self.attempt.min(16)).min(self.longest);
        self.attempt = self.attempt.saturating_add(1);
        let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.rng.below(micros.saturating_add(1)))
    }

    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_longest_and_spread_over_all_of_it() {
        let (first, longest) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut late = Vec::new();
        for seed in 0..200 {
            let mut backoff = Backoff::new(first, longest, seed);
            assert!(backoff.next() <= first);
            let waits: Vec<Duration> = (0..20).map(|_| backoff.next()).collect();
            assert!(waits.iter().all(|w| *w <= longest));
            late.push(waits[19]);
        }
        let mean = late.iter().sum::<Duration>() / 200;
        assert!(mean > Duration::from_secs(2) && mean < Duration::from_secs(3), "{mean:?}");
    }
}
