//! Sending less to a service that has too much to do. While the balancer says so, and so much that more than half of the calls are
//! refused, a share of them is not sent at all: refusing costs the endpoints as well (adaptive throttling, Beyer et al., Site
//! Reliability Engineering, 2016, chapter 21). Refuses to find out about overload by itself: where an endpoint alone is full,
//! another one is the answer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::Rng;

/// What is remembered: so many slices of so long, microseconds. Two minutes.
const SLICES: usize = 12;
const SLICE_US: u64 = 10_000_000;
/// Calls sent for each that is taken: at two, half of what is sent may be refused before anything is held back, and a service
/// that recovers is noticed soon.
const SENT_PER_TAKEN: u64 = 2;
/// One call is sent at least so often, microseconds, whatever became of those before: nobody else would see that the service
/// takes calls again.
const TRIAL_US: u64 = 1_000_000;

/// What becomes of calls during overload.
#[derive(Debug, Default)]
pub struct Throttle {
    is_on: AtomicBool,
    /// When a call was last sent that would have been held back; 0 before the first.
    tried_us: AtomicU64,
    slices: [Slice; SLICES],
}

#[derive(Debug, Default)]
struct Slice {
    /// Which stretch of time it is for.
    stretch: AtomicU64,
    /// Calls made, and those of them that were taken.
    calls: AtomicU64,
    taken: AtomicU64,
}

impl Throttle {
    /// The balancer says that the service has too much to do, or has no longer.
    pub fn set_on(&self, is_on: bool) {
        if self.is_on.load(Relaxed) == is_on {
            return;
        }
        if is_on {
            // What the last overload refused says nothing of this one.
            for slice in &self.slices {
                slice.calls.store(0, Relaxed);
                slice.taken.store(0, Relaxed);
            }
        }
        self.is_on.store(is_on, Relaxed);
    }

    /// Whether the service has too much to do: nothing is sent twice then.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// A call that was sent has ended: it was taken, or refused. Counts during overload alone, so that nothing is paid before.
    pub fn ended(&self, was_taken: bool, now_us: u64) {
        if self.is_on() {
            let slice = self.slice(now_us);
            slice.calls.fetch_add(1, Relaxed);
            slice.taken.fetch_add(was_taken.into(), Relaxed);
        }
    }

    /// Whether this call is better not sent. If so, it counts as one that was refused.
    pub fn holds_back(&self, now_us: u64, rng: &mut Rng) -> bool {
        if !self.is_on() {
            return false;
        }
        let (calls, taken) = self.remembered(now_us);
        let excess = calls.saturating_sub(taken.saturating_mul(SENT_PER_TAKEN));
        let holds_back = rng.below(calls.saturating_add(1)) < excess && !self.takes_trial(now_us);
        if holds_back {
            self.slice(now_us).calls.fetch_add(1, Relaxed);
        }
        holds_back
    }

    /// Takes the next call that is sent to find out.
    fn takes_trial(&self, now_us: u64) -> bool {
        let before_us = self.tried_us.load(Relaxed);
        let is_due = before_us == 0 || now_us.saturating_sub(before_us) >= TRIAL_US;
        is_due && self.tried_us.compare_exchange(before_us, now_us.max(1), Relaxed, Relaxed).is_ok()
    }

    /// Calls made of late, and those of them that were taken.
    pub fn remembered(&self, now_us: u64) -> (u64, u64) {
        let now = now_us / SLICE_US;
        let of_late =
            self.slices.iter().filter(|slice| now.saturating_sub(slice.stretch.load(Relaxed)) < SLICES as u64);
        of_late.fold((0, 0), |(calls, taken), slice| {
            (calls + slice.calls.load(Relaxed), taken + slice.taken.load(Relaxed))
        })
    }

    /// The slice of this moment. Counts that another thread adds while it begins may be lost, a handful in ten seconds.
    fn slice(&self, now_us: u64) -> &Slice {
        let now = now_us / SLICE_US;
        let slice = &self.slices[(now % SLICES as u64) as usize];
        let before = slice.stretch.load(Relaxed);
        if before != now && slice.stretch.compare_exchange(before, now, Relaxed, Relaxed).is_ok() {
            slice.calls.store(0, Relaxed);
            slice.taken.store(0, Relaxed);
        }
        slice
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// A hundred calls a second to a service that takes so many. Those sent per second, in the last of these seconds.
    fn sent(throttle: &Throttle, seconds: std::ops::Range<u64>, takes_per_s: u64) -> u64 {
        let mut rng = Rng::from_seed(1);
        let mut sent = 0;
        for second in seconds {
            sent = 0;
            for call in 0..100 {
                let now_us = second * SECOND_US + call * 10_000;
                if !throttle.holds_back(now_us, &mut rng) {
                    throttle.ended(sent < takes_per_s, now_us);
                    sent += 1;
                }
            }
        }
        sent
    }

    #[test]
    fn twice_of_what_is_taken_is_sent_and_no_more() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        let sent = sent(&throttle, 0..300, 20);
        assert!((35..=45).contains(&sent), "{sent}");
    }

    #[test]
    fn where_half_is_taken_all_is_sent() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        assert!(sent(&throttle, 0..300, 55) >= 99);
    }

    #[test]
    fn a_service_that_takes_nothing_is_tried_by_few_and_one_that_recovers_gets_all_soon() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        assert!(sent(&throttle, 0..300, 0) <= 2);
        let throttle = Throttle::default();
        throttle.set_on(true);
        sent(&throttle, 0..300, 20);
        assert!(sent(&throttle, 300..420, 100) >= 99);
    }

    #[test]
    fn an_overload_knows_nothing_of_the_last_one() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        sent(&throttle, 0..60, 0);
        throttle.set_on(false);
        throttle.set_on(true);
        assert_eq!(throttle.remembered(60 * SECOND_US), (0, 0));
        assert!(sent(&throttle, 60..61, 100) >= 99);
        throttle.set_on(true);
        assert_ne!(throttle.remembered(61 * SECOND_US), (0, 0), "the same overload goes on");
    }

    #[test]
    fn one_call_a_second_is_sent_whatever_became_of_the_others() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        (0..1_000_000).for_each(|_| throttle.ended(false, 1));
        let mut rng = Rng::from_seed(1);
        let tries = (0..6_000).map(|n| n * 10_000).filter(|now_us| !throttle.holds_back(*now_us, &mut rng)).count();
        assert!((60..=62).contains(&tries), "{tries} in a minute");
    }

    #[test]
    fn nothing_is_held_back_and_nothing_counted_without_overload() {
        let throttle = Throttle::default();
        assert_eq!(sent(&throttle, 0..10, 0), 100);
        assert_eq!(throttle.remembered(10 * SECOND_US), (0, 0));
        throttle.set_on(true);
        sent(&throttle, 10..20, 0);
        throttle.set_on(false);
        assert_eq!(sent(&throttle, 20..30, 0), 100);
    }
}
