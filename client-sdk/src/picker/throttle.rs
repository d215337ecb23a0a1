//! Sending less to a service that has too much to do. While the balancer says so, and so much that more than half of the calls are
//! refused, a share of them is not sent at all: refusing costs the endpoints as well (adaptive throttling, Beyer et al., Site
//! Reliability Engineering, 2016, chapter 21). Refuses to find out about overload by itself: where an endpoint alone is full,
//! another one is the answer.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{Class, Rng};

/// What is remembered: so many slices of so long, microseconds. Two minutes.
const SLICES: usize = 12;
const SLICE_US: u64 = 10_000_000;
/// Calls sent for each that is taken: at two, half of what is sent may be refused before anything is held back, and a service
/// that recovers is noticed soon.
const SENT_PER_TAKEN: u64 = 2;
/// While nothing is taken, a call is sent all the same so long after the last one that was sent, microseconds, and after twice as
/// long each time that such a trial is refused: nobody else would see that the service takes calls again. Where something is
/// taken, chance lets calls through, and there are no trials: one a second of each client, and of 10,000 clients that call once
/// a second nothing is held back.
const TRIAL_US: u64 = 1_000_000;
/// So often it doubles: 16 s. Ten thousand clients then try 550 times a second.
const DOUBLINGS_MAX: u32 = 4;

/// What becomes of calls during overload.
#[derive(Debug, Default)]
pub struct Throttle {
    is_on: AtomicBool,
    /// When the next trial is due, and how often the pause before it was doubled.
    trial_at_us: AtomicU64,
    doublings: AtomicU32,
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
            self.forget();
            self.trial_at_us.store(0, Relaxed);
            self.doublings.store(0, Relaxed);
        }
        self.is_on.store(is_on, Relaxed);
    }

    fn forget(&self) {
        for slice in &self.slices {
            slice.calls.store(0, Relaxed);
            slice.taken.store(0, Relaxed);
        }
    }

    /// Whether the service has too much to do: nothing is sent twice then.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Relaxed)
    }

    /// A call that was sent has ended, and goes nowhere else. Counts during overload alone, so that nothing is paid before.
    pub fn ended(&self, class: Class, now_us: u64) {
        match class {
            // An error is an answer as well: the call was taken.
            Class::Ok | Class::Caller | Class::Endpoint => self.count(true, now_us),
            Class::Overload | Class::Deadline => self.count(false, now_us),
            Class::Cancelled => {}
        }
    }

    fn count(&self, was_taken: bool, now_us: u64) {
        if self.is_on() {
            if was_taken && self.doublings.swap(0, Relaxed) > 0 {
                // After trials this is another time than that in which all was refused. Remembered, that would make a client of
                // a hundred calls a second wait for ten minutes before half of them are sent again.
                self.forget();
            }
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
        let would_hold = rng.below(calls.saturating_add(1)) < excess;
        let holds_back = would_hold && !(taken == 0 && self.takes_trial(now_us));
        if holds_back {
            self.slice(now_us).calls.fetch_add(1, Relaxed);
        } else {
            // Clients that were told at the same moment do not try at the same moment.
            let pause_us = TRIAL_US << self.doublings.load(Relaxed).min(DOUBLINGS_MAX);
            let next_us = now_us.saturating_add(pause_us + rng.below(pause_us / 4));
            self.trial_at_us.store(next_us, Relaxed);
        }
        holds_back
    }

    /// Takes the trial that is due: one call, however many threads come at the same time.
    fn takes_trial(&self, now_us: u64) -> bool {
        let due_us = self.trial_at_us.load(Relaxed);
        let is_taken =
            now_us >= due_us && self.trial_at_us.compare_exchange(due_us, u64::MAX, Relaxed, Relaxed).is_ok();
        if is_taken {
            self.doublings.fetch_add(1, Relaxed);
        }
        is_taken
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
                    throttle.count(sent < takes_per_s, now_us);
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
    fn trials_that_are_refused_become_rarer_until_something_is_taken() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        let refused = |now_us| (0..1_000_000).for_each(|_| throttle.count(false, now_us));
        refused(1);
        let mut rng = Rng::from_seed(1);
        let mut tries = |seconds: std::ops::Range<u64>| {
            let times = (seconds.start * 100..seconds.end * 100).map(|n| n * 10_000);
            times.filter(|now_us| !throttle.holds_back(*now_us, &mut rng)).map(|us| us / SECOND_US).collect::<Vec<_>>()
        };
        let early = tries(0..100);
        let pauses: Vec<_> = early.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses.len(), 7, "{early:?}");
        let expected = [2..=3, 4..=5, 8..=10, 16..=20, 16..=20, 16..=20, 16..=20];
        assert!(pauses.iter().zip(expected).all(|(pause, expected)| expected.contains(pause)), "{early:?}");
        throttle.count(true, 100 * SECOND_US);
        refused(100 * SECOND_US);
        assert_eq!(tries(100..115), [0; 0], "something was taken: no trials");
        refused(200 * SECOND_US);
        let late = tries(230..240);
        assert!(late.len() >= 3, "what was taken is forgotten, and trials begin anew: {late:?}");
    }

    #[test]
    fn after_an_outage_the_first_call_that_is_taken_ends_what_was_remembered() {
        let throttle = Throttle::default();
        throttle.set_on(true);
        sent(&throttle, 0..300, 0);
        assert!(sent(&throttle, 300..330, 100) >= 99);
    }

    #[test]
    fn many_clients_that_seldom_call_do_not_bury_a_service_together() {
        const CLIENTS: u64 = 1_000;
        const TAKES_PER_S: u64 = 100;
        let clients: Vec<_> = (0..CLIENTS).map(|_| Throttle::default()).collect();
        clients.iter().for_each(|throttle| throttle.set_on(true));
        let mut rng = Rng::from_seed(1);
        let (mut sent, mut taken) = (0, 0);
        for second in 0..600 {
            let mut sent_now = 0;
            // Each calls about once a second, in an order that changes.
            for call in 0..CLIENTS {
                let throttle = &clients[rng.below(CLIENTS) as usize];
                let now_us = second * SECOND_US + call * 1_000;
                if !throttle.holds_back(now_us, &mut rng) {
                    throttle.count(sent_now < TAKES_PER_S, now_us);
                    sent_now += 1;
                }
            }
            if second >= 300 {
                sent += sent_now;
                taken += sent_now.min(TAKES_PER_S);
            }
        }
        let (sent, taken) = (sent / 300, taken / 300);
        assert!(sent <= 3 * TAKES_PER_S && taken >= TAKES_PER_S * 9 / 10, "{sent} sent a second, {taken} taken");
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
