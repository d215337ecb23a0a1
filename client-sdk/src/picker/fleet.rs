//! What one client knows of all its endpoints together: whose turn it is, how long answers usually take, how much is under way.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{STALL_FACTOR, STALL_US_MIN, rng::Rng};

/// What one client has learnt of all its endpoints together. Outlives pickers.
#[derive(Debug)]
pub struct Fleet {
    turn: AtomicU64,
    /// The last sign of life of any endpoint, microseconds.
    life_us: AtomicU64,
    /// How long answers usually take, microseconds; 0 before the first.
    answer_us_mean: AtomicU64,
    /// A stalled endpoint was met that nobody was told of.
    alarm: AtomicBool,
    /// Calls picked and not ended, of all endpoints.
    in_flight: AtomicU64,
}

impl Fleet {
    /// Nothing learnt yet. The seed sets where turns begin, so that many clients do not begin with the same endpoint.
    pub fn new(seed: u64) -> Self {
        Self {
            turn: AtomicU64::new(Rng::from_seed(seed).next_u64() >> 1),
            life_us: AtomicU64::new(0),
            answer_us_mean: AtomicU64::new(0),
            alarm: AtomicBool::new(false),
            in_flight: AtomicU64::new(0),
        }
    }

    /// Time after which an unanswered call counts as silence, microseconds.
    pub fn stall_us(&self) -> u64 {
        self.answer_us_mean.load(Relaxed).saturating_mul(STALL_FACTOR).max(STALL_US_MIN)
    }

    /// Time after which an answer counts as late, microseconds: long before its endpoint counts as stalled, other endpoints are
    /// the safer choice.
    pub(super) fn late_us(&self) -> u64 {
        self.answer_us_mean.load(Relaxed).saturating_mul(2)
    }

    /// True once after a pick met a stalled endpoint that was not suspected yet: time for [`super::Picker::survey`].
    pub fn take_alarm(&self) -> bool {
        self.alarm.load(Relaxed) && self.alarm.swap(false, Relaxed)
    }

    /// Calls picked and not ended, of all endpoints.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    pub(super) fn learn_answer(&self, took_us: u64) {
        let mean = self.answer_us_mean.load(Relaxed);
        // A lost update between threads costs one sample of thousands.
        let next = if mean == 0 { took_us } else { mean - mean / 16 + took_us / 16 };
        self.answer_us_mean.store(next.max(1), Relaxed);
    }

    pub(super) fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Relaxed)
    }

    pub(super) fn raise_alarm(&self) {
        self.alarm.store(true, Relaxed);
    }

    pub(super) fn spoke(&self, now_us: u64) {
        self.life_us.fetch_max(now_us, Relaxed);
    }

    pub(super) fn spoke_after(&self, since_us: u64) -> bool {
        self.life_us.load(Relaxed) > since_us
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn finish(&self) {
        // Saturating, as for a single endpoint.
        let _ = self.in_flight.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
    }
}
