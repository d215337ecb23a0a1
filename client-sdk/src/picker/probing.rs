//! When it pays to ask endpoints how loaded they are: when a question takes little beside a call, most endpoints answer, and not
//! more is asked than the service can bear. Refuses to send anything.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::ShareBudget;

/// Questions per hundred calls, unless somebody says otherwise: both of two for every call.
pub const PROBE_BUDGET_PERCENT: u32 = 200;
/// A call waits for what endpoints say where it takes at least so many times as long as they take to say it. At twenty, with a
/// round trip of a twentieth, half of the clients would ask and half not: simulated p99 of 5.75 service times in place of 5.64, of
/// sparse ones 6.40 in place of 6.20.
pub const PAYS_FACTOR: u64 = 10;
/// It waits no longer than this, microseconds, and not for more than a quarter of what a call takes; but for the shortest time
/// that a timer can tell from none, and for twice what an answer takes, a fifth of a call at most where it pays: else calls
/// between far places would wait in vain.
pub const PATIENCE_US_MAX: u64 = 3_000;
const PATIENCE_ROUND_TRIPS: u64 = 2;
const PATIENCE_US_MIN: u64 = 500;
const PATIENCE_DIVISOR: u64 = 4;
/// Where it does not pay, one endpoint is asked on the side so often, microseconds, to see whether it would: soon at first.
const LOOK_US_MIN: u64 = 100_000;
const LOOK_US_MAX: u64 = 10_000_000;
/// Where most endpoints do not answer, nobody is asked for so long, microseconds.
const OFF_US: u64 = 60_000_000;
/// Questions on the side that are under way at once.
const ASIDE_MAX: u32 = 4;

/// What one client knows of asking its endpoints.
#[derive(Debug)]
pub struct Probing {
    /// What questions are paid from.
    pub budget: ShareBudget,
    /// Calls are picked by load at all.
    wanted: AtomicBool,
    asks: AtomicBool,
    /// Responses tell of load: backends have what answers questions as well, or so it seems.
    told: AtomicBool,
    /// How long an answer takes, microseconds, rather too little than too much; 0 before the first.
    round_trip_us: AtomicU64,
    off_until_us: AtomicU64,
    look_at_us: AtomicU64,
    looks: AtomicU32,
    aside: AtomicU32,
    has_complained: AtomicBool,
}

impl Default for Probing {
    fn default() -> Self {
        Self {
            budget: ShareBudget::of_probes(PROBE_BUDGET_PERCENT),
            wanted: AtomicBool::new(false),
            asks: AtomicBool::new(false),
            told: AtomicBool::new(false),
            round_trip_us: AtomicU64::new(0),
            off_until_us: AtomicU64::new(0),
            look_at_us: AtomicU64::new(0),
            looks: AtomicU32::new(0),
            aside: AtomicU32::new(0),
            has_complained: AtomicBool::new(false),
        }
    }
}

impl Probing {
    /// Whether there is a choice that answers could help with. It is decided anew with the next answer.
    pub fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Relaxed);
    }

    /// A response told of load.
    pub fn told(&self) {
        if !self.told.load(Relaxed) {
            self.told.store(true, Relaxed);
        }
    }

    /// An answer came after this time.
    pub fn answered(&self, took_us: u64) {
        let (before, took_us) = (self.round_trip_us.load(Relaxed), took_us.max(1));
        let after = match before {
            0 => took_us,
            // A first one on a cold path is soon forgotten; one that had to wait for a busy process hardly counts.
            _ if took_us < before => before - (before - took_us) / 4,
            _ => before + (took_us - before).min(before) / 8,
        };
        self.round_trip_us.store(after, Relaxed);
    }

    /// Most endpoints do not answer: nobody is asked for a while. True the first time.
    pub fn most_are_mute(&self, now_us: u64) -> bool {
        self.off_until_us.store(now_us.saturating_add(OFF_US), Relaxed);
        !self.has_complained.swap(true, Relaxed)
    }

    /// Decides whether calls should wait for what endpoints say, where answers to calls usually take this time.
    pub fn decide(&self, answer_us: u64, now_us: u64) -> bool {
        let round_trip_us = self.round_trip_us.load(Relaxed);
        let pays = round_trip_us > 0 && answer_us >= round_trip_us.saturating_mul(PAYS_FACTOR);
        let asks = pays && self.may_ask(now_us);
        self.asks.store(asks, Relaxed);
        asks
    }

    /// What was decided last.
    pub fn asks(&self) -> bool {
        self.asks.load(Relaxed)
    }

    /// How long a call waits for what endpoints say, microseconds.
    pub fn patience_us(&self, answer_us: u64) -> u64 {
        let usual_us = (answer_us / PATIENCE_DIVISOR).clamp(PATIENCE_US_MIN, PATIENCE_US_MAX);
        usual_us.max(self.round_trip_us.load(Relaxed).saturating_mul(PATIENCE_ROUND_TRIPS))
    }

    fn may_ask(&self, now_us: u64) -> bool {
        self.wanted.load(Relaxed) && self.told.load(Relaxed) && now_us >= self.off_until_us.load(Relaxed)
    }

    /// Takes the next question on the side that is due where it is not known to pay.
    pub fn take_look(&self, now_us: u64) -> bool {
        let due_us = self.look_at_us.load(Relaxed);
        if now_us < due_us || !self.may_ask(now_us) {
            return false;
        }
        let looks = self.looks.load(Relaxed);
        let next_us = now_us + (LOOK_US_MIN << looks.min(16)).min(LOOK_US_MAX);
        let is_first = self.look_at_us.compare_exchange(due_us, next_us, Relaxed, Relaxed).is_ok();
        if is_first {
            self.looks.store(looks.saturating_add(1), Relaxed);
        }
        is_first
    }

    /// Counts a question on the side, unless there are so many already.
    pub fn begin_aside(&self) -> bool {
        self.aside.fetch_update(Relaxed, Relaxed, |n| (n < ASIDE_MAX).then_some(n + 1)).is_ok()
    }

    /// A question on the side is over.
    pub fn end_aside(&self) {
        self.aside.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking() -> Probing {
        let probing = Probing::default();
        probing.set_wanted(true);
        probing.told();
        probing
    }

    #[test]
    fn asking_pays_where_a_call_takes_ten_times_as_long() {
        let probing = asking();
        assert!(!probing.decide(1_000_000, 0), "nobody was asked yet");
        probing.answered(200);
        assert!(probing.decide(2_000, 0) && !probing.decide(1_999, 0) && !probing.decide(0, 0));
        probing.set_wanted(false);
        assert!(!probing.decide(4_000, 0));
        assert_eq!([0, 8_000, 100_000].map(|answer_us| probing.patience_us(answer_us)), [500, 2_000, 3_000]);
        let far = asking();
        far.answered(5_000);
        assert!(far.decide(100_000, 0) && far.patience_us(100_000) == 10_000, "longer than an answer takes");
        for round_trip_us in [200, 1_000, 3_000, 30_000] {
            let probing = asking();
            probing.answered(round_trip_us);
            let call_us = round_trip_us * PAYS_FACTOR;
            assert!(probing.decide(call_us, 0) && probing.patience_us(call_us) <= call_us / PATIENCE_DIVISOR);
        }
    }

    #[test]
    fn one_late_answer_is_no_news_and_many_are() {
        let probing = asking();
        probing.answered(200);
        probing.answered(2_000_000);
        assert!(probing.decide(225 * PAYS_FACTOR, 0));
        (0..100).for_each(|_| probing.answered(2_000));
        assert!(!probing.decide(1_500 * PAYS_FACTOR, 0));
        (0..20).for_each(|_| probing.answered(200));
        assert!(probing.decide(210 * PAYS_FACTOR, 0), "a cold start is soon forgotten");
    }

    #[test]
    fn nobody_is_asked_who_never_told_of_load_nor_while_most_do_not_answer() {
        let probing = Probing::default();
        probing.set_wanted(true);
        assert!(!probing.take_look(1));
        probing.told();
        assert!(probing.take_look(1));
        probing.answered(10);
        probing.most_are_mute(2);
        assert!(!probing.decide(1_000_000, 3) && !probing.take_look(OFF_US));
        assert!(probing.decide(1_000_000, OFF_US + 2) && probing.take_look(OFF_US + 2));
    }

    #[test]
    fn looks_become_rarer() {
        let probing = asking();
        let looks = (0..60_000_000).step_by(1_000).filter(|now_us| probing.take_look(*now_us)).count();
        assert_eq!(looks, 12);
        assert_eq!((0..10).filter(|_| probing.begin_aside()).count(), ASIDE_MAX as usize);
        probing.end_aside();
        assert!(probing.begin_aside());
    }
}
