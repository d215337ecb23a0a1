//! How full the application has been between two reports. A look at the moment of a report says little of a second in which
//! slots were taken and given back by the hundred; the growth of a sum between two reports misses nothing.

use std::fmt;
use std::time::{Duration, Instant};

/// Shorter spans are noise: a report that a drain brings forward, or that of a second balancer, repeats the last share.
const SPAN_MIN: Duration = Duration::from_millis(500);

/// Zero on the wire is "not measured": what is measured and idle says a thousandth instead.
const IDLE: f64 = 0.001;

/// Reads the application's own sum.
pub(crate) struct Fullness {
    full_for: Box<dyn Fn() -> Duration + Send + Sync>,
    last: (Instant, Duration),
}

impl fmt::Debug for Fullness {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Fullness").field("last", &self.last).finish_non_exhaustive()
    }
}

impl Fullness {
    pub(crate) fn new(full_for: impl Fn() -> Duration + Send + Sync + 'static, now: Instant) -> Self {
        let last = (now, full_for());
        Self { full_for: Box::new(full_for), last }
    }

    /// The mean share since the last one; none until there is a span to divide by.
    pub(crate) fn sample(&mut self, now: Instant) -> Option<f64> {
        let (then, before) = self.last;
        let passed = now.saturating_duration_since(then);
        if passed < SPAN_MIN {
            return None;
        }
        let full = (self.full_for)();
        self.last = (now, full);
        Some((full.saturating_sub(before).as_secs_f64() / passed.as_secs_f64()).max(IDLE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_share_is_the_mean_since_the_last_one_and_idle_is_not_unmeasured() {
        let full_ms = Arc::new(AtomicU64::new(5_000));
        let read = Arc::clone(&full_ms);
        let start = Instant::now();
        let mut fullness = Fullness::new(move || Duration::from_millis(read.load(Ordering::Relaxed)), start);
        full_ms.store(5_750, Ordering::Relaxed);
        assert_eq!(fullness.sample(start + Duration::from_millis(400)), None);
        assert_eq!(fullness.sample(start + Duration::from_secs(1)), Some(0.75));
        assert_eq!(fullness.sample(start + Duration::from_secs(2)), Some(IDLE));
        // A sum that was begun anew says nothing rather than something absurd.
        full_ms.store(0, Ordering::Relaxed);
        assert_eq!(fullness.sample(start + Duration::from_secs(3)), Some(IDLE));
    }
}
