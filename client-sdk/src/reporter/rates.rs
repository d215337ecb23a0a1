//! Calls and errors per second, over windows of about a second.

/// Rates need a span to be measured over; shorter ones are noise, longer ones are old news.
const WINDOW_US: u64 = 1_000_000;

#[derive(Debug, Default)]
pub(crate) struct Rates {
    window_began_us: u64,
    calls_before: u64,
    errors_before: u64,
    calls_per_s: f64,
    errors_per_s: f64,
}

impl Rates {
    /// Takes the sums as they are at `now_us`; a window that is over gives new rates.
    pub(crate) fn advance(&mut self, now_us: u64, calls: u64, errors: u64) {
        let window_us = now_us.saturating_sub(self.window_began_us);
        if window_us < WINDOW_US {
            return;
        }
        let per_s = |count: u64| count as f64 * 1e6 / window_us as f64;
        self.calls_per_s = per_s(calls.saturating_sub(self.calls_before));
        self.errors_per_s = per_s(errors.saturating_sub(self.errors_before));
        self.window_began_us = now_us;
        self.calls_before = calls;
        self.errors_before = errors;
    }

    pub(crate) fn calls_per_s(&self) -> f64 {
        self.calls_per_s
    }

    pub(crate) fn errors_per_s(&self) -> f64 {
        self.errors_per_s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_counts_over_the_time_that_really_passed() {
        let mut rates = Rates::default();
        rates.advance(500_000, 10, 1);
        assert_eq!(rates.calls_per_s(), 0.0);
        rates.advance(2_000_000, 40, 4);
        assert_eq!((rates.calls_per_s(), rates.errors_per_s()), (20.0, 2.0));
    }

    #[test]
    fn an_idle_second_brings_the_rates_to_zero() {
        let mut rates = Rates::default();
        rates.advance(1_000_000, 40, 0);
        rates.advance(2_000_000, 40, 0);
        assert_eq!(rates.calls_per_s(), 0.0);
    }
}
