//! What one client knows of one endpoint: a handful of counters, written by its calls and read by its picks. Nothing here waits.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::{
    Class, LANES_MAX, WORDS_AHEAD,
    breaker::{Breaker, Gate},
};

/// Calls without any sign of life that make an endpoint doubtful.
pub const UNANSWERED_MAX: u64 = 2;
/// Time for which an endpoint that seems stalled is left alone before one call finds out, microseconds.
pub const SILENCE_CANARY_US: u64 = 5_000_000;
/// Time for which a failed call weighs like a call in flight, microseconds: an endpoint that fails fast is always idle, and
/// would otherwise look like the best one.
pub const SOUR_US: u64 = 1_000_000;
const SOUR_MAX: u32 = 8;
/// An endpoint that failed a call has to serve one before what it says of itself is believed again, or so long has to pass,
/// microseconds. One that fails at once says that it is idle whenever it is asked.
const DISBELIEF_US: u64 = 10_000_000;
/// Answers that are remembered as late or not, and of how many late ones on it is disproved.
const FAR_MASK: u32 = 0xF;
const FAR_MIN: u32 = 3;

/// Counters of one endpoint. Shared by every picker that names it, so that a new list forgets nothing.
#[derive(Debug)]
pub struct Peer {
    id: u64,
    in_flight: AtomicU32,
    /// Calls sent since the last sign of life (low 16 bits), and when the first of them was (the rest, microseconds). One word,
    /// so that a sign of life clears both.
    unanswered: AtomicU64,
    /// When a stalled endpoint may get one call; 0 when it was not found stalled.
    silence_canary_us: AtomicU64,
    sour: AtomicU32,
    soured_us: AtomicU64,
    /// Of the last answers, which came far too late for what it says of its load, and when most of them did; 0 for never.
    far: AtomicU32,
    disproved_us: AtomicU64,
    /// Requests in flight as it told last (low 16 bits; all set, that it wants no more), and when (the rest, microseconds); 0 for
    /// never.
    told: AtomicU64,
    fresh: AtomicBool,
    suspected: AtomicBool,
    /// By lane, the count of picks at which it will have had no more than its due.
    due: [AtomicU32; LANES_MAX],
    pub(crate) breaker: Breaker,
}

const COUNT_BITS: u32 = 16;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

impl Peer {
    /// A peer nothing is known of. The id must be unique among those of one client.
    pub fn new(id: u64) -> Self {
        Self {
            id,
            in_flight: AtomicU32::new(0),
            unanswered: AtomicU64::new(0),
            silence_canary_us: AtomicU64::new(0),
            sour: AtomicU32::new(0),
            soured_us: AtomicU64::new(0),
            far: AtomicU32::new(0),
            disproved_us: AtomicU64::new(0),
            told: AtomicU64::new(0),
            fresh: AtomicBool::new(false),
            suspected: AtomicBool::new(false),
            due: Default::default(),
            breaker: Breaker::default(),
        }
    }

    /// What it was made with; used to exclude it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Calls picked and not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// True while its calls fail one after the other, or it seems stalled and was suspected for it.
    pub fn is_aside(&self) -> bool {
        self.breaker.is_aside() || self.suspected.load(Relaxed)
    }

    /// It was added to a list already in use: a call is due at once, of this client or of some of the others.
    pub fn mark_fresh(&self) {
        self.fresh.store(true, Relaxed);
    }

    /// The call it was picked for has been handed to its connection.
    pub fn sent(&self, now_us: u64) {
        let _ = self.unanswered.fetch_update(Relaxed, Relaxed, |word| {
            let count = word & COUNT_MASK;
            match count {
                0 => Some((now_us << COUNT_BITS) | 1),
                COUNT_MASK => None,
                _ => Some(word + 1),
            }
        });
    }

    /// It said something: a response head, a message, an end, or a new connection.
    pub fn revive(&self) {
        // Mostly there is nothing to clear, and then nothing is written.
        for word in [&self.unanswered, &self.silence_canary_us] {
            if word.load(Relaxed) != 0 {
                word.store(0, Relaxed);
            }
        }
        if self.suspected.load(Relaxed) {
            self.suspected.store(false, Relaxed);
        }
    }

    /// Calls sent since its last sign of life, and when the first of them was, microseconds.
    pub(crate) fn unanswered(&self) -> (u64, u64) {
        let word = self.unanswered.load(Relaxed);
        (word & COUNT_MASK, word >> COUNT_BITS)
    }

    /// A call that was given up early is no evidence of silence.
    pub(crate) fn forget_unanswered(&self, sent_us: u64) {
        let _ = self.unanswered.fetch_update(Relaxed, Relaxed, |word| {
            let (count, first_us) = (word & COUNT_MASK, word >> COUNT_BITS);
            match count {
                0 => None,
                _ if sent_us < first_us => None,
                1 => Some(0),
                _ => Some(word - 1),
            }
        });
    }

    /// Counts a call, unless there are so many already.
    pub(crate) fn begin_below(&self, calls_max: u32) -> bool {
        if calls_max == u32::MAX {
            self.in_flight.fetch_add(1, Relaxed);
            return true;
        }
        self.in_flight.fetch_update(Relaxed, Relaxed, |n| (n < calls_max).then_some(n + 1)).is_ok()
    }

    pub(crate) fn finish(&self) {
        // Saturating: an end counted twice by mistake must not make it look infinitely busy.
        let _ = self.in_flight.fetch_update(Relaxed, Relaxed, |n| n.checked_sub(1));
    }

    /// Calls in flight, and those that failed just now as if they still were.
    pub(crate) fn load(&self, now_us: u64) -> u64 {
        let sour = if self.is_sour(now_us) { self.sour.load(Relaxed) } else { 0 };
        u64::from(self.in_flight()) + u64::from(sour)
    }

    /// Notes how a call ended. True when the endpoint has now earned to be put aside.
    pub(crate) fn judge(&self, class: Class, now_us: u64) -> bool {
        match class {
            Class::Ok | Class::Caller => {
                if self.sour.load(Relaxed) != 0 {
                    self.sour.store(0, Relaxed);
                }
                self.breaker.went_well();
                false
            }
            Class::Cancelled => false,
            Class::Overload => {
                self.turn_sour(now_us);
                false
            }
            Class::Endpoint | Class::Deadline => {
                self.turn_sour(now_us);
                self.breaker.failed()
            }
        }
    }

    /// Whether what it says of itself is believed.
    pub(super) fn is_believed(&self, now_us: u64) -> bool {
        let is_over = |since: &AtomicU64| now_us.saturating_sub(since.load(Relaxed)) >= DISBELIEF_US;
        (self.sour.load(Relaxed) == 0 || is_over(&self.soured_us))
            && (self.disproved_us.load(Relaxed) == 0 || is_over(&self.disproved_us))
    }

    /// It told then, as is heard now, how many requests it has in flight; `None` is that it wants no more.
    pub(super) fn tell(&self, rif: Option<u32>, said_us: u64, now_us: u64) {
        let held_us = self.told.load(Relaxed) >> COUNT_BITS;
        // What was said before that is no news; but the clock may have been set back.
        if said_us >= held_us || held_us > now_us {
            let told = rif.map_or(COUNT_MASK, |rif| u64::from(rif).min(COUNT_MASK - 1));
            self.told.store((said_us << COUNT_BITS) | told, Relaxed);
        }
    }

    /// Whether it told last that it wants no more, no longer than so many microseconds ago.
    pub(super) fn is_unwilling(&self, now_us: u64, age_us_max: u64) -> bool {
        self.told(now_us, age_us_max) == Some(COUNT_MASK)
    }

    /// The requests in flight that it told of last, more than there can be if it wants none, if that is no older than so many microseconds.
    pub(super) fn told(&self, now_us: u64, age_us_max: u64) -> Option<u64> {
        let word = self.told.load(Relaxed);
        (word != 0 && now_us.saturating_sub(word >> COUNT_BITS) <= age_us_max).then_some(word & COUNT_MASK)
    }

    /// An answer came, far later than is usual or not. Where most of the last ones were, what the endpoint says of its load cannot
    /// be right; a single one is chance, or a call that is meant to take long.
    pub(super) fn answered(&self, is_far: bool, now_us: u64) {
        let before = self.far.load(Relaxed);
        let after = (before << 1) | u32::from(is_far);
        if after != before {
            self.far.store(after, Relaxed);
        }
        if is_far && (after & FAR_MASK).count_ones() >= FAR_MIN {
            self.disproved_us.store(now_us.max(1), Relaxed);
        }
    }

    /// Whether a call failed there just now.
    fn is_sour(&self, now_us: u64) -> bool {
        self.sour.load(Relaxed) != 0 && now_us.saturating_sub(self.soured_us.load(Relaxed)) < SOUR_US
    }

    /// How far it is ahead of its due at this count of a lane's picks, where a pick is its due once per `interval`; 0 when it is
    /// not. It is never further ahead than words bring it: what seems to be is from a time before the count came round.
    pub(super) fn ahead(&self, lane: usize, picks: u32, interval: u32) -> u32 {
        let due = self.due.get(lane).map_or(picks, |due| due.load(Relaxed));
        let ahead = due.wrapping_sub(picks);
        if ahead > interval.saturating_mul(WORDS_AHEAD + 1) { 0 } else { ahead }
    }

    /// How far it is behind its due at this count of a lane's picks; 0 when it is not.
    pub(super) fn behind(&self, lane: usize, picks: u32) -> u32 {
        let behind = picks.wrapping_sub(self.due.get(lane).map_or(picks, |due| due.load(Relaxed)));
        // More than half of the circle is ahead.
        if behind > i32::MAX as u32 { 0 } else { behind }
    }

    /// It was picked.
    pub(super) fn picked(&self, lane: usize, picks: u32, interval: u32) {
        if let Some(due) = self.due.get(lane) {
            let ahead = self.ahead(lane, picks, interval).min(interval.saturating_mul(WORDS_AHEAD));
            due.store(picks.wrapping_add(ahead).wrapping_add(interval), Relaxed);
        }
    }

    fn turn_sour(&self, now_us: u64) {
        self.soured_us.store(now_us, Relaxed);
        let _ = self.sour.fetch_update(Relaxed, Relaxed, |n| (n < SOUR_MAX).then_some(n + 1));
    }

    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh.load(Relaxed)
    }

    /// Takes the first call of a fresh endpoint; true once.
    pub(crate) fn take_fresh(&self) -> bool {
        self.fresh.swap(false, Relaxed)
    }

    /// Marks it suspected; true the first time since it last gave a sign of life.
    pub(crate) fn suspect(&self) -> bool {
        !self.suspected.load(Relaxed) && !self.suspected.swap(true, Relaxed)
    }

    /// Whether a stalled endpoint may get one call. Starts the wait when it has not begun.
    pub(crate) fn silence_gate(&self, now_us: u64) -> Gate {
        match self.silence_canary_us.load(Relaxed) {
            0 => {
                let due = now_us + SILENCE_CANARY_US;
                let _ = self.silence_canary_us.compare_exchange(0, due, Relaxed, Relaxed);
                Gate::Closed
            }
            due if now_us < due => Gate::Closed,
            _ => Gate::CanaryDue,
        }
    }

    pub(crate) fn take_silence_canary(&self, now_us: u64) -> bool {
        let due = self.silence_canary_us.load(Relaxed);
        due != 0
            && now_us >= due
            && self.silence_canary_us.compare_exchange(due, now_us + SILENCE_CANARY_US, Relaxed, Relaxed).is_ok()
    }
}
