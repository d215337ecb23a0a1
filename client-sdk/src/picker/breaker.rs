//! Puts an endpoint aside whose calls fail one after the other, and lets one call through now and then to see whether that is
//! over. It does not know the other endpoints: how many may be aside at once is the picker's to say.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Failures in a row that put an endpoint aside.
pub const FAILURES_IN_A_ROW: u32 = 5;
/// First time aside, microseconds; it doubles with every canary that fails, unless all calls do.
pub const PAUSE_US_MIN: u64 = 1_000_000;
/// Longest time aside, microseconds.
pub const PAUSE_US_MAX: u64 = 30_000_000;

/// Whether an endpoint may be called, by its own record alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Aside, but one call is due that finds out.
    CanaryDue,
    Closed,
}

#[derive(Debug, Default)]
pub(crate) struct Breaker {
    failures_in_a_row: AtomicU32,
    /// When the next canary is due; 0 means not aside.
    aside_until_us: AtomicU64,
    /// How often the pause was doubled, and one more; 0 while not aside.
    pauses: AtomicU32,
}

impl Breaker {
    pub(crate) fn gate(&self, now_us: u64) -> Gate {
        match self.aside_until_us.load(Relaxed) {
            0 => Gate::Open,
            until if now_us < until => Gate::Closed,
            _ => Gate::CanaryDue,
        }
    }

    /// Takes the canary call that is due. False when another call was faster. In a fault of all since the pause began it says
    /// nothing of this endpoint that its canaries fail: it is tried again as soon.
    pub(crate) fn take_canary(&self, now_us: u64, is_fault_of_all_since: impl FnOnce(u64) -> bool) -> bool {
        let due = self.aside_until_us.load(Relaxed);
        if due == 0 || now_us < due {
            return false;
        }
        let before = self.pauses.load(Relaxed);
        let began_us = due.saturating_sub(pause_us(before));
        let pauses = if is_fault_of_all_since(began_us) { before } else { before.saturating_add(1) };
        // The next one is due even if this one is never heard of again.
        if self.aside_until_us.compare_exchange(due, now_us + pause_us(pauses), Relaxed, Relaxed).is_err() {
            return false;
        }
        self.pauses.store(pauses, Relaxed);
        true
    }

    /// Notes a failure. True when the endpoint has now earned to be put aside.
    pub(crate) fn failed(&self) -> bool {
        let failures = self.failures_in_a_row.fetch_add(1, Relaxed).saturating_add(1);
        // Asked again at every fifth, in case there was no room to put it aside before.
        failures.is_multiple_of(FAILURES_IN_A_ROW) && self.aside_until_us.load(Relaxed) == 0
    }

    pub(crate) fn put_aside(&self, now_us: u64) {
        self.pauses.store(1, Relaxed);
        self.aside_until_us.store((now_us + pause_us(1)).max(1), Relaxed);
    }

    /// Notes that a call went well: whatever was held against the endpoint is forgotten.
    pub(crate) fn went_well(&self) {
        if self.failures_in_a_row.load(Relaxed) != 0 {
            self.failures_in_a_row.store(0, Relaxed);
        }
        if self.aside_until_us.load(Relaxed) != 0 {
            self.aside_until_us.store(0, Relaxed);
            self.pauses.store(0, Relaxed);
        }
    }

    pub(crate) fn is_aside(&self) -> bool {
        self.aside_until_us.load(Relaxed) != 0
    }
}

fn pause_us(pauses: u32) -> u64 {
    (PAUSE_US_MIN << pauses.saturating_sub(1).min(5)).min(PAUSE_US_MAX)
}
