//! What responses told of their endpoints' load, each good for one call. A response carries the requests in flight at its
//! endpoint; the client banks that and spends it on a later call, the lowest first. Used once and no more: a board of loads that
//! many calls read sends all of them to the same endpoint, while an end that pays for one beginning keeps itself in balance
//! (join-idle-queue, Lu et al. 2011, with a value in place of "idle").
//!
//! Threads keep to a lane each, so that they do not wait for each other; a lane is a handful of words, and losing a race for one
//! costs a token at most.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use super::rng::{GOLDEN_STEP, Rng};

/// Tokens per lane; the oldest makes room. In simulations 4 to 64 make no difference.
pub const TOKENS_MAX: usize = 16;
/// Lanes at most: more threads than this share some.
pub const LANES_MAX: usize = 16;

/// A pick in the count of picks: fractions of one matter where endpoints are few.
pub(super) const PICK: u32 = 64;

/// A token is one word: whose (26 bits), requests in flight (14), when it was said (24 bits of 64 us). 0 is no token.
const STAMP_BITS: u32 = 24;
const STAMP_MASK: u64 = (1 << STAMP_BITS) - 1;
const STAMP_UNIT_BITS: u32 = 6;
const RIF_BITS: u32 = 14;
const RIF_MAX: u64 = (1 << RIF_BITS) - 1;
const ID_MASK: u64 = (1 << (64 - STAMP_BITS - RIF_BITS)) - 1;

/// An endpoint's number as tokens know it; never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark(u64);

impl Mark {
    /// That of a peer. After 67 million peers of one client two may share one: they would then be told apart by nothing but
    /// their age.
    pub(super) fn of(id: u64) -> Self {
        Self((id.wrapping_add(1) & ID_MASK).max(1))
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }
}

/// A token as it stands in its place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) mark: Mark,
    /// Requests in flight there, with those that this lane has sent since.
    pub(super) rif: u64,
    /// Time since it was said, microseconds.
    pub(super) age_us: u64,
    place: usize,
    word: u64,
}

/// What one thread keeps to itself.
#[derive(Debug)]
#[repr(align(128))]
pub(super) struct Lane {
    number: usize,
    turn: AtomicU64,
    tokens: [AtomicU64; TOKENS_MAX],
    /// Counts picks, in steps of [`PICK`], and wraps.
    picks: AtomicU32,
    /// Calls begun less calls ended here; only the sum over lanes means anything.
    in_flight: AtomicU64,
    /// When something was last heard here, microseconds; 0 for never.
    heard_us: AtomicU64,
}

impl Lane {
    pub(super) fn new(seed: u64, number: usize) -> Self {
        let mut rng = Rng::from_seed(seed.wrapping_add(GOLDEN_STEP.wrapping_mul(number as u64)));
        Self {
            number,
            turn: AtomicU64::new(rng.next_u64() >> 1),
            tokens: [const { AtomicU64::new(0) }; TOKENS_MAX],
            picks: AtomicU32::new(0),
            in_flight: AtomicU64::new(0),
            heard_us: AtomicU64::new(0),
        }
    }

    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn next_turn(&self) -> u64 {
        self.turn.fetch_add(1, Relaxed)
    }

    pub(super) fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    pub(super) fn finish(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Begun less ended, wrapping.
    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Relaxed)
    }

    /// Banks what was said then and is heard now. Takes an empty place, or that of the oldest, unless that is newer.
    pub(super) fn bank(&self, mark: Mark, rif: u64, said_us: u64, now_us: u64) {
        let (said, now) = (stamp(said_us), stamp(now_us));
        let word = (mark.0 << (RIF_BITS + STAMP_BITS)) | (rif.min(RIF_MAX) << STAMP_BITS) | said;
        let age = |place: &AtomicU64| match place.load(Relaxed) {
            0 => u64::MAX,
            held => now.wrapping_sub(held) & STAMP_MASK,
        };
        let oldest = self.tokens.iter().map(|place| (age(place), place)).max_by_key(|(age, _)| *age);
        if let Some((age, place)) = oldest
            && age >= now.wrapping_sub(said) & STAMP_MASK
        {
            place.store(word, Relaxed);
            self.heard_us.store(now_us, Relaxed);
        }
    }

    /// When something was last heard here, microseconds; 0 for never.
    pub(super) fn heard_us(&self) -> u64 {
        self.heard_us.load(Relaxed)
    }

    /// Tokens no older than so many microseconds, in their places.
    pub(super) fn tokens(&self, now_us: u64, age_us_max: u64) -> impl Iterator<Item = Token> {
        let (now, age_max) = (stamp(now_us), (age_us_max >> STAMP_UNIT_BITS).min(STAMP_MASK / 2));
        self.tokens.iter().enumerate().filter_map(move |(place, held)| {
            let word = held.load(Relaxed);
            let age = now.wrapping_sub(word) & STAMP_MASK;
            (word != 0 && age <= age_max).then_some(Token {
                mark: Mark(word >> (RIF_BITS + STAMP_BITS)),
                rif: (word >> STAMP_BITS) & RIF_MAX,
                age_us: age << STAMP_UNIT_BITS,
                place,
                word,
            })
        })
    }

    /// Takes a token out, to be used. False when another thread was faster.
    pub(super) fn spend(&self, token: Token) -> bool {
        let place = self.tokens.get(token.place);
        place.is_some_and(|place| place.compare_exchange(token.word, 0, Relaxed, Relaxed).is_ok())
    }

    /// A call goes to this endpoint: what else is known of it counts one more.
    pub(super) fn sent(&self, mark: Mark) {
        for place in &self.tokens {
            let word = place.load(Relaxed);
            let is_of = word >> (RIF_BITS + STAMP_BITS) == mark.0;
            if is_of && (word >> STAMP_BITS) & RIF_MAX < RIF_MAX {
                let _ = place.compare_exchange(word, word + (1 << STAMP_BITS), Relaxed, Relaxed);
            }
        }
    }

    /// Counts a pick; how many there were before it, in steps of [`PICK`], wrapping.
    pub(super) fn picked(&self) -> u32 {
        self.picks.fetch_add(PICK, Relaxed)
    }

    pub(super) fn picks(&self) -> u32 {
        self.picks.load(Relaxed)
    }
}

fn stamp(now_us: u64) -> u64 {
    (now_us >> STAMP_UNIT_BITS) & STAMP_MASK
}

/// Which lane the calling thread keeps to, before it is cut to the number of lanes there are.
pub(super) fn lane_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LANE: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    LANE.with(|lane| {
        if lane.get() == usize::MAX {
            lane.set(NEXT.fetch_add(1, Relaxed));
        }
        lane.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: u64 = 1_000_000;

    fn held(lane: &Lane, now_us: u64) -> Vec<(u64, u64)> {
        let mut held: Vec<_> = lane.tokens(now_us, AGE).map(|token| (token.mark.bits(), token.rif)).collect();
        held.sort_unstable();
        held
    }

    #[test]
    fn a_token_is_spent_once() {
        let lane = Lane::new(1, 0);
        lane.bank(Mark::of(7), 3, 1_000, 1_000);
        let token = lane.tokens(1_000, AGE).next().unwrap();
        assert_eq!((token.mark, token.rif), (Mark::of(7), 3));
        assert!(lane.spend(token));
        assert!(!lane.spend(token));
        assert_eq!(held(&lane, 1_000), []);
    }

    #[test]
    fn the_oldest_makes_room_and_old_ones_do_not_count() {
        let lane = Lane::new(1, 0);
        for n in 0..=TOKENS_MAX as u64 {
            lane.bank(Mark::of(n), n, 1_000 * (n + 1), 1_000 * (n + 1));
        }
        let marks: Vec<u64> = held(&lane, 17_000).into_iter().map(|(_, rif)| rif).collect();
        assert_eq!((marks.len(), marks.contains(&0)), (TOKENS_MAX, false));
        assert_eq!(held(&lane, 17_000 + AGE), [(Mark::of(16).bits(), 16)]);
        // The stamp wraps after some 18 minutes.
        let late_us = (STAMP_MASK << STAMP_UNIT_BITS) - 1_000;
        lane.bank(Mark::of(99), 1, late_us, late_us);
        assert!(held(&lane, late_us + 2_000).contains(&(Mark::of(99).bits(), 1)));
    }

    #[test]
    fn what_was_said_long_ago_takes_no_place_of_what_is_newer() {
        let lane = Lane::new(1, 0);
        for n in 0..TOKENS_MAX as u64 {
            lane.bank(Mark::of(n), 1, 10_000 + 1_000 * n, 10_000 + 1_000 * n);
        }
        let before = held(&lane, 30_000);
        lane.bank(Mark::of(99), 0, 9_000, 30_000);
        assert_eq!(held(&lane, 30_000), before);
        lane.bank(Mark::of(99), 0, 11_000, 30_000);
        assert!(held(&lane, 30_000).contains(&(Mark::of(99).bits(), 0)));
        assert!(!held(&lane, 30_000).contains(&(Mark::of(0).bits(), 1)), "the oldest went");
    }

    #[test]
    fn what_is_sent_since_counts() {
        let lane = Lane::new(1, 0);
        lane.bank(Mark::of(1), 2, 0, 0);
        lane.bank(Mark::of(2), u64::MAX, 0, 0);
        lane.sent(Mark::of(1));
        lane.sent(Mark::of(2));
        assert_eq!(held(&lane, 0), [(Mark::of(1).bits(), 3), (Mark::of(2).bits(), RIF_MAX)]);
    }

    #[test]
    fn no_mark_is_the_empty_one() {
        for id in [0, ID_MASK - 1, ID_MASK, u64::MAX] {
            assert_ne!(Mark::of(id).bits(), 0, "{id}");
        }
    }
}
