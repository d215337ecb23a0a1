//! How long to wait before the next attempt: exponential, with full jitter, so that a crowd that was cut off together does not
//! come back together.

use std::time::Duration;

use http::HeaderMap;

use crate::picker::Rng;

/// The wait before a connection is made anew, at first and at most.
pub(crate) const RECONNECT_FIRST: Duration = Duration::from_millis(50);
pub(crate) const RECONNECT_LONGEST: Duration = Duration::from_secs(5);

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

/// Where a server says when to come back, in milliseconds; below 0: not soon.
pub(crate) const PUSHBACK: &str = "grpc-retry-pushback-ms";
/// Whoever asks to be left alone for longer asks not to be tried again.
pub(crate) const PUSHBACK_MAX: Duration = Duration::from_secs(60);

/// What a server says of another attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushback {
    None,
    After(Duration),
    Never,
}

impl Pushback {
    /// What cannot be read says no.
    pub(crate) fn said_in(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(PUSHBACK) else { return Self::None };
        let pause_ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
        match pause_ms.map(Duration::from_millis) {
            Some(pause) if pause <= PUSHBACK_MAX => Self::After(pause),
            Some(_) | None => Self::Never,
        }
    }

    /// How long to wait for a server that is asked again in any case: a balancer.
    pub(crate) fn pause(self) -> Option<Duration> {
        match self {
            Self::None => None,
            Self::After(pause) => Some(pause),
            Self::Never => Some(PUSHBACK_MAX),
        }
    }
}

/// A tenth to a half more than was asked for: a crowd may have been asked for the same.
pub(crate) fn spread(pushback: Duration, rng: &mut Rng) -> Duration {
    pushback.mul_f64(1.1 + 0.4 * (rng.below(1_000) as f64 / 1_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_another_attempt_is_obeyed_and_what_it_garbles_is_a_no() {
        let said = |text: &'static str| {
            let value = http::HeaderValue::from_static(text);
            Pushback::said_in(&HeaderMap::from_iter([(http::HeaderName::from_static(PUSHBACK), value)]))
        };
        assert_eq!(Pushback::said_in(&HeaderMap::new()), Pushback::None);
        assert_eq!(said("0"), Pushback::After(Duration::ZERO));
        assert_eq!(said(" 250"), Pushback::After(Duration::from_millis(250)));
        for no in ["-1", "", "soon", "1.5", "99999999999999999999", "60001"] {
            assert_eq!(said(no), Pushback::Never, "{no}");
        }
        let pauses = ["1500", "-1"].map(|text| said(text).pause());
        assert_eq!(pauses, [Some(Duration::from_millis(1500)), Some(PUSHBACK_MAX)]);
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
