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

/// A balancer that has no room says when to come back, in milliseconds; below 0: not soon.
const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// One that asks to be left alone for longer is asked again after this.
const PUSHBACK_MAX: Duration = Duration::from_secs(60);

/// How long whoever said this wants to be left alone, at most a minute.
pub(crate) fn pushback(status: &tonic::Status) -> Option<Duration> {
    let asked_for = status.metadata().get(PUSHBACK)?;
    let asked_for = asked_for.to_str().ok().and_then(|text| text.parse().ok());
    // What is no number of milliseconds means: not soon.
    Some(asked_for.map_or(PUSHBACK_MAX, Duration::from_millis).min(PUSHBACK_MAX))
}

/// A tenth to a half more than was asked for: a crowd may have been asked for the same.
pub(crate) fn spread(pushback: Duration, rng: &mut Rng) -> Duration {
    pushback.mul_f64(1.1 + 0.4 * (rng.below(1_000) as f64 / 1_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushback_is_read_and_nonsense_means_not_soon() {
        let asked_for = |value: &'static str| {
            let mut status = tonic::Status::unavailable("full");
            status.metadata_mut().insert(PUSHBACK, value.parse().unwrap());
            pushback(&status)
        };
        assert_eq!(asked_for("1500"), Some(Duration::from_millis(1500)));
        for not_soon in ["-1", "soon", "86400000"] {
            assert_eq!(asked_for(not_soon), Some(PUSHBACK_MAX));
        }
        assert_eq!(pushback(&tonic::Status::unavailable("x")), None);
    }

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
