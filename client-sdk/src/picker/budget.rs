//! How many calls may be sent beside those that the application made. Retries are for the few that fail and hedges for the few
//! that are slow; where all fail or all are slow, both would only add to the load. Questions to endpoints cost them something too. Refuses to know why a call is repeated.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// What one repeated call costs, thousandths of a token.
const TOKEN_MILLI: u64 = 1_000;
/// Tokens that a budget of retries has room for at least, so that a client of few calls can repeat a few: the half above which
/// retries are allowed.
pub const RETRY_TOKENS_MIN: u64 = 10;
/// What successes of so long earn is the room for tokens beyond that, microseconds; between one and two of these, in fact.
pub const EARNING_US: u64 = 5_000_000;
/// Hedges that may be saved up: what a pause of one endpoint costs a busy client at once.
pub const HEDGES_SAVED_MAX: u64 = 10;
/// A larger share is taken for this one: every call twice.
pub const PERCENT_MAX: u32 = 100;
/// Questions that may be saved up: for the calls of one moment.
const PROBES_SAVED_MAX: u64 = 100;
/// A larger share is taken for this one: two endpoints asked for every call, twice.
const PROBES_PERCENT_MAX: u32 = 400;

/// Retries, after gRFC A6: a failure costs a token, whether it is retried or not, a success earns a share of one, and retries
/// are allowed while more than half of the tokens are there. While all fail it therefore allows none; while a part fails, no
/// more than that share of the successes.
///
/// Other than in A6 the room for tokens follows the traffic: it is what the successes of the last seconds earned. A thousand
/// clients of one call a second must not bring a thousand full buckets to an outage, and one client of a thousand calls a
/// second must be able to repeat the fifty that were in flight where a backend died.
#[derive(Debug)]
pub struct RetryBudget {
    percent: AtomicU32,
    tokens_milli: AtomicU64,
    /// Successes of this stretch of time (low half) and which stretch it is.
    current: AtomicU64,
    /// Successes of the one before it.
    before: AtomicU64,
}

const COUNT_BITS: u32 = 32;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

impl RetryBudget {
    /// Full, and earning this share of each success, hundredths.
    pub fn new(percent: u32) -> Self {
        Self {
            percent: AtomicU32::new(percent.min(PERCENT_MAX)),
            tokens_milli: AtomicU64::new(RETRY_TOKENS_MIN * TOKEN_MILLI),
            current: AtomicU64::new(0),
            before: AtomicU64::new(0),
        }
    }

    /// What a success earns from now on, hundredths of a retry.
    pub fn set_percent(&self, percent: u32) {
        self.percent.store(percent.min(PERCENT_MAX), Relaxed);
    }

    /// A call went well, or failed by no fault of the endpoints.
    pub fn went_well(&self, now_us: u64) {
        self.count(now_us);
        let earned = u64::from(self.percent.load(Relaxed)) * (TOKEN_MILLI / 100);
        let room = self.room_milli(now_us);
        // Mostly full, and then nothing is written.
        if self.tokens_milli.load(Relaxed) < room {
            let _ = self.tokens_milli.fetch_update(Relaxed, Relaxed, |t| Some((t + earned).min(room)));
        }
    }

    /// A call failed in a way that retries are for. Whether the budget allows one.
    pub fn failed(&self, now_us: u64) -> bool {
        let room = self.room_milli(now_us);
        let spend = |tokens: u64| Some(tokens.min(room).saturating_sub(TOKEN_MILLI));
        let before = self.tokens_milli.fetch_update(Relaxed, Relaxed, spend).unwrap_or_default();
        before.min(room).saturating_sub(TOKEN_MILLI) > room / 2
    }

    /// Whether a call may be repeated now, without one having failed.
    pub fn allows(&self, now_us: u64) -> bool {
        let room = self.room_milli(now_us);
        self.tokens_milli.load(Relaxed).min(room) > room / 2
    }

    fn count(&self, now_us: u64) {
        let stretch = now_us / EARNING_US;
        let word = self.current.load(Relaxed);
        if word >> COUNT_BITS == stretch {
            self.current.fetch_add(1, Relaxed);
        } else if self.current.compare_exchange(word, (stretch << COUNT_BITS) | 1, Relaxed, Relaxed).is_ok() {
            let is_next = (word >> COUNT_BITS) + 1 == stretch;
            self.before.store(if is_next { word & COUNT_MASK } else { 0 }, Relaxed);
        }
    }

    /// Room for tokens, thousandths.
    fn room_milli(&self, now_us: u64) -> u64 {
        let stretch = now_us / EARNING_US;
        let word = self.current.load(Relaxed);
        let successes = match stretch.saturating_sub(word >> COUNT_BITS) {
            0 => (word & COUNT_MASK) + self.before.load(Relaxed),
            1 => word & COUNT_MASK,
            _ => 0,
        };
        let earned = successes * u64::from(self.percent.load(Relaxed)) * (TOKEN_MILLI / 100);
        earned.max(RETRY_TOKENS_MIN * TOKEN_MILLI)
    }
}

/// What may be sent beside calls: every call earns a share of one, and each that is sent spends one. Starts empty, so that they
/// are never more than that share of the calls.
#[derive(Debug)]
pub struct ShareBudget {
    percent: AtomicU32,
    percent_max: u32,
    tokens_milli: AtomicU64,
    saved_max: u64,
}

impl ShareBudget {
    /// Empty, and earning this share of a hedge with each call that may be hedged, hundredths.
    pub fn of_hedges(percent: u32) -> Self {
        Self::new(percent, PERCENT_MAX, HEDGES_SAVED_MAX)
    }

    /// Empty, and earning this share of a question to an endpoint with each call, hundredths.
    pub fn of_probes(percent: u32) -> Self {
        Self::new(percent, PROBES_PERCENT_MAX, PROBES_SAVED_MAX)
    }

    fn new(percent: u32, percent_max: u32, saved_max: u64) -> Self {
        let percent = AtomicU32::new(percent.min(percent_max));
        Self { percent, percent_max, tokens_milli: AtomicU64::new(0), saved_max }
    }

    /// What a call earns from now on, hundredths.
    pub fn set_percent(&self, percent: u32) {
        self.percent.store(percent.min(self.percent_max), Relaxed);
    }

    /// A call begins.
    pub fn earn(&self) {
        let earned = u64::from(self.percent.load(Relaxed)) * (TOKEN_MILLI / 100);
        let saved_max = self.saved_max * TOKEN_MILLI;
        if self.tokens_milli.load(Relaxed) < saved_max {
            let _ = self.tokens_milli.fetch_update(Relaxed, Relaxed, |t| Some((t + earned).min(saved_max)));
        }
    }

    /// Takes so many out of it, if they are there.
    pub fn spend(&self, count: u32) -> bool {
        let cost = u64::from(count) * TOKEN_MILLI;
        self.tokens_milli.fetch_update(Relaxed, Relaxed, |t| t.checked_sub(cost)).is_ok()
    }

    /// Puts so many back that were not used.
    pub fn give_back(&self, count: u32) {
        self.tokens_milli.fetch_add(u64::from(count) * TOKEN_MILLI, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// So many calls a second for so many seconds, of which every n-th attempt fails, with up to two retries each. Attempts.
    fn run(budget: &RetryBudget, from_s: u64, seconds: u64, calls_per_s: u64, fails: impl Fn(u64) -> bool) -> u64 {
        let mut attempts = 0;
        for call in 0..seconds * calls_per_s {
            let now_us = from_s * SECOND_US + call * SECOND_US / calls_per_s;
            for _ in 0..3 {
                attempts += 1;
                if !fails(attempts) {
                    budget.went_well(now_us);
                    break;
                }
                if !budget.failed(now_us) {
                    break;
                }
            }
        }
        attempts
    }

    #[test]
    fn where_all_fail_hardly_anything_is_repeated() {
        for calls_per_s in [1, 10, 100, 2_000] {
            let budget = RetryBudget::new(10);
            run(&budget, 0, 20, calls_per_s, |_| false);
            let attempts = run(&budget, 20, 10, calls_per_s, |_| true);
            let allowed = (calls_per_s * 10 * 110 / 100).max(calls_per_s * 10 + RETRY_TOKENS_MIN / 2);
            assert!(attempts <= allowed, "{attempts} of {allowed}");
            assert!(!budget.allows(30 * SECOND_US));
        }
    }

    #[test]
    fn where_few_fail_all_of_them_are_repeated_and_where_many_do_a_tenth_of_the_successes() {
        let budget = RetryBudget::new(10);
        assert_eq!(run(&budget, 0, 20, 100, |n| n % 20 == 0), 2_105);
        let budget = RetryBudget::new(10);
        let attempts = run(&budget, 0, 60, 100, |n| n % 3 == 0);
        assert!(attempts < 6_000 * 111 / 100, "{attempts}");
    }

    #[test]
    fn a_busy_client_repeats_what_was_in_flight_where_a_backend_died() {
        let budget = RetryBudget::new(10);
        run(&budget, 0, 20, 1_000, |_| false);
        assert!((0..50).all(|_| budget.failed(20 * SECOND_US)));
        let sparse = RetryBudget::new(10);
        run(&sparse, 0, 20, 1, |_| false);
        assert_eq!((0..50).filter(|_| sparse.failed(20 * SECOND_US)).count(), 4);
    }

    #[test]
    fn a_budget_comes_back_with_success_and_is_not_saved_up_through_silence() {
        let budget = RetryBudget::new(10);
        run(&budget, 0, 10, 1_000, |_| false);
        while budget.failed(10 * SECOND_US) {}
        run(&budget, 10, 10, 100, |_| false);
        assert!(budget.allows(20 * SECOND_US));
        // An hour later it has forgotten how busy it was.
        let later_us = 3_600 * SECOND_US;
        assert_eq!((0..50).filter(|_| budget.failed(later_us)).count(), 4);
    }

    #[test]
    fn hedges_are_never_more_than_their_share_of_the_calls() {
        let budget = ShareBudget::of_hedges(2);
        let hedges = (0..10_000).filter(|_| {
            budget.earn();
            budget.spend(1)
        });
        assert_eq!(hedges.count(), 200);
        for _ in 0..10_000 {
            budget.earn();
        }
        assert_eq!((0..100).filter(|_| budget.spend(1)).count() as u64, HEDGES_SAVED_MAX);
    }

    #[test]
    fn two_endpoints_may_be_asked_for_every_call_and_none_where_nothing_is_granted() {
        let budget = ShareBudget::of_probes(200);
        let asked = (0..1_000).filter(|_| {
            budget.earn();
            budget.spend(2)
        });
        assert_eq!(asked.count(), 1_000);
        budget.set_percent(0);
        budget.earn();
        assert!(!budget.spend(2));
        budget.give_back(2);
        assert!(budget.spend(2));
    }

    #[test]
    fn a_share_of_nothing_allows_nothing_beyond_the_first_few() {
        let budget = RetryBudget::new(0);
        assert!(run(&budget, 0, 60, 100, |n| n % 2 == 0) <= 6_000 + RETRY_TOKENS_MIN / 2);
        let hedges = ShareBudget::of_hedges(0);
        hedges.earn();
        assert!(!hedges.spend(1));
    }
}
