//! When a client tells its balancer what came of its calls: once in a while, and sooner where that cannot wait, but never so
//! often that a crowd of clients keeps the balancer busy with what it has heard already.

/// A first failure is told at once, but five times a second at most: a balancer believes several clients sooner than one, and each
/// second that they keep it to themselves costs calls. Microseconds.
const NEWS_INTERVAL_US_MIN: u64 = 200_000;

/// Suspicions are told at once, but not more often than this, microseconds.
const SUSPICION_INTERVAL_US_MIN: u64 = 50_000;

/// When the next report is due. Times are microseconds on the caller's clock.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    told_us: u64,
    due_us: u64,
    /// From when on a first failure may be told, and whether one is to be.
    news_from_us: u64,
    has_news: bool,
}

impl Pace {
    /// There is somebody to tell from now on, first after a period.
    pub fn new(now_us: u64, period_us: u64) -> Self {
        Self { told_us: now_us, due_us: now_us + period_us, news_from_us: now_us, has_news: false }
    }

    /// When to tell what there is.
    pub fn due_us(&self) -> u64 {
        self.due_us
    }

    /// An endpoint is suspected: it stands still, or calls fail there one after the other.
    pub fn suspicion(&mut self, now_us: u64) {
        self.hurry(self.told_us + SUSPICION_INTERVAL_US_MIN, now_us);
    }

    /// A call failed of an endpoint of which that was not to be told before.
    pub fn first_failure(&mut self, now_us: u64) {
        self.has_news = true;
        self.hurry(self.news_from_us, now_us);
    }

    fn hurry(&mut self, at_us: u64, now_us: u64) {
        self.due_us = self.due_us.min(at_us).max(now_us);
    }

    /// All was told that there was; the next after a period, unless something cannot wait.
    pub fn told(&mut self, now_us: u64, period_us: u64) {
        if std::mem::take(&mut self.has_news) {
            self.news_from_us = now_us + NEWS_INTERVAL_US_MIN;
        }
        (self.told_us, self.due_us) = (now_us, now_us + period_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_first_failure_is_told_at_once_and_five_times_a_second_at_most() {
        let mut pace = Pace::new(0, SECOND);
        assert_eq!(pace.due_us(), SECOND);
        pace.first_failure(300_000);
        assert_eq!(pace.due_us(), 300_000);
        pace.told(300_000, SECOND);
        pace.first_failure(310_000);
        assert_eq!(pace.due_us(), 500_000);
        pace.told(500_000, SECOND);
        // A report of no news does not put the next one off.
        pace.told(1_500_000, SECOND);
        pace.first_failure(1_500_001);
        assert_eq!(pace.due_us(), 1_500_001);
    }

    #[test]
    fn a_suspicion_waits_for_no_news_but_not_every_moment_has_one() {
        let mut pace = Pace::new(0, SECOND);
        pace.first_failure(100_000);
        pace.told(100_000, SECOND);
        pace.suspicion(110_000);
        assert_eq!(pace.due_us(), 150_000);
        pace.first_failure(120_000);
        assert_eq!(pace.due_us(), 150_000);
        pace.suspicion(400_000);
        assert_eq!(pace.due_us(), 400_000, "never before it is asked for");
    }
}
