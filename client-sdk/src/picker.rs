//! Decides, per call, which endpoint gets it. Pure: standard library alone, no clock, no socket, no task; time and chance are
//! arguments. The service's simulator runs this very code.
//!
//! A [`Picker`] is made anew whenever the list or the connections change; what is known of each endpoint ([`Peer`]) and of all
//! together ([`Fleet`]) outlives it. A pick takes no lock and allocates nothing. It refuses to judge health: who is in the list,
//! and with which weight, is the balancer's to say. Three things it does on its own, since only the caller can see them in time:
//!
//! - an endpoint that answers nothing while others do is *stalled*: it costs the calls in flight and two more, then it is
//!   passed over until it says something, but for a call now and then; one whose answers are late gets fewer even before;
//! - an endpoint whose calls fail one after the other is put *aside*, and tried by single calls; at most half of the endpoints
//!   may be aside, and never so many that fewer than two are left;
//! - a failed call weighs like a call in flight for a second: failing fast is not being idle.

mod breaker;
mod budget;
mod fleet;
mod peer;
mod ring;
mod rng;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

pub use breaker::{FAILURES_IN_A_ROW, PAUSE_US_MAX, PAUSE_US_MIN};
pub use budget::{EARNING_US, HEDGES_SAVED_MAX, HedgeBudget, PERCENT_MAX, RETRY_TOKENS_MIN, RetryBudget};
pub use fleet::Fleet;
pub use peer::{Peer, SILENCE_CANARY_US, SOUR_US, UNANSWERED_MAX};
pub use ring::{CALLS_SPARED, Key, Keyed, PLACES_MAX, Rings};
pub use rng::Rng;

pub(crate) use rng::fnv_1a;

use breaker::Gate;
use ring::Placed;
use rng::{GOLDEN_STEP, scale};

/// An endpoint is never called stalled before its oldest unanswered call is this old, microseconds.
pub const STALL_US_MIN: u64 = 50_000;
/// Nor before that call is this many times as old as answers usually take.
pub const STALL_FACTOR: u64 = 4;
/// A single late answer is held against its endpoint for so long, microseconds.
pub const PARDON_US: u64 = 1_000_000;
/// Draws for a fit endpoint before all are looked through.
const DRAWS_MAX: usize = 4;
/// Choices made again because the chosen one was full by the time the call was counted there.
const FULL_AGAIN_MAX: usize = 4;
/// Endpoints looked at for one that owes fewer answers. Bounds the cost of a pick among thousands.
const NEIGHBOURS_MAX: usize = 8;

/// How a call ended, by whom the end blames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Well.
    Ok,
    /// The caller's mistake; never blames the endpoint.
    Caller,
    /// Nobody wanted the answer any more; blames nobody.
    Cancelled,
    /// The endpoint said it has too much to do.
    Overload,
    /// The endpoint's fault, or that of the way to it.
    Endpoint,
    /// Time ran out; judged against the other endpoints.
    Deadline,
}

/// How endpoints are chosen per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Two choices by weight, the one with fewer of this client's calls in flight per weight.
    #[default]
    LeastLoad,
    /// Turns in proportion to weight.
    WeightedRoundRobin,
    /// Turns; in proportion to weight as well, since weights then differ only while endpoints start.
    RoundRobin,
    /// The endpoint whose place on a ring comes next after that of the call's [`Key`]. Calls without a key as by `LeastLoad`.
    RingHash,
}

/// An endpoint as the list has it, offered to a picker.
#[derive(Debug)]
pub struct Offer<T> {
    /// What is known of it.
    pub peer: Arc<Peer>,
    /// Share wanted; 0 means no new calls.
    pub weight: u32,
    /// Failover tier, 0 is best.
    pub priority: u32,
    /// Whether a call could be sent to it now.
    pub ready: bool,
    /// The caller's own handle to it.
    pub item: T,
}

/// Chooses among the ready endpoints of the best tier that has one.
#[derive(Debug)]
pub struct Picker<T> {
    policy: Policy,
    fleet: Arc<Fleet>,
    candidates: Vec<Candidate<T>>,
    weight_sum: u64,
    /// All weights are equal: turns are then strict.
    even: bool,
    /// Some candidate may be fresh.
    fresh: AtomicBool,
    /// Calls that one endpoint may have in flight.
    calls_max: u32,
    /// The tier of the candidates.
    tier: Option<u32>,
    /// Their places, for calls with a key.
    placed: Option<Placed>,
}

/// One endpoint that may be picked.
#[derive(Debug)]
pub struct Candidate<T> {
    /// What is known of it.
    pub peer: Arc<Peer>,
    /// Share wanted, at least 1.
    pub weight: u32,
    /// The caller's own handle to it.
    pub item: T,
    /// Sum of the weights before it.
    offset: u64,
}

/// What makes an endpoint suspicious: worth a look by whoever can look closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Its calls failed one after the other; it was put aside.
    FailuresInARow,
    /// A call ran out of time unanswered while other endpoints answered theirs.
    Silence,
}

/// How fit a candidate is, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Fit,
    /// Stalled or aside, but a call is due that finds out.
    Canary,
    Stalled,
    Aside,
    /// This call was there already.
    Tried,
    /// It has as many calls as it may have: gets no further one.
    Full,
}

impl<T> Picker<T> {
    /// A picker over what is offered. Weights of 0 are left out, and so is every tier but the best one with a ready endpoint.
    pub fn new(policy: Policy, fleet: Arc<Fleet>, offers: impl IntoIterator<Item = Offer<T>>) -> Self {
        let mut usable: Vec<Offer<T>> = offers.into_iter().filter(|o| o.ready && o.weight > 0).collect();
        let best = usable.iter().map(|o| o.priority).min();
        usable.retain(|o| Some(o.priority) == best);
        let mut weight_sum = 0;
        let candidates: Vec<Candidate<T>> = usable
            .into_iter()
            .map(|o| {
                let offset = weight_sum;
                weight_sum += u64::from(o.weight);
                Candidate { peer: o.peer, weight: o.weight, item: o.item, offset }
            })
            .collect();
        let even = candidates.windows(2).all(|pair| pair[0].weight == pair[1].weight);
        let fresh = AtomicBool::new(candidates.iter().any(|c| c.peer.is_fresh()));
        Self { policy, fleet, candidates, weight_sum, even, fresh, calls_max: u32::MAX, tier: best, placed: None }
    }

    /// The same, with the rings of the list: calls with a key go by that of the tier in use.
    #[must_use]
    pub fn with_rings(mut self, rings: &Rings) -> Self {
        let ring = self.tier.and_then(|tier| rings.of_tier(tier)).cloned();
        self.placed = ring.map(|ring| Placed::new(ring, &self.candidates));
        self
    }

    /// The same, but no endpoint gets a further call while it has so many in flight.
    #[must_use]
    pub fn with_calls_max(mut self, calls_max: u32) -> Self {
        self.calls_max = calls_max;
        self
    }

    /// Those that may be picked.
    pub fn candidates(&self) -> &[Candidate<T>] {
        &self.candidates
    }

    /// Chooses an endpoint for a call and counts the call as in flight there, until [`Picker::ended`]. Those in `tried` are
    /// chosen only when there is no other. `None` when there is nothing to choose from, or all of it is full.
    pub fn pick(&self, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        self.pick_for(None, now_us, rng, tried)
    }

    /// The same, for a call with a key; it counts where there are rings.
    pub fn pick_for(&self, key: Option<Key>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        (0..FULL_AGAIN_MAX).map_while(|_| self.choose(key, now_us, rng, tried)).find(|chosen| self.begin(&chosen.peer))
    }

    /// The same, but none of those in `tried`: for a call that is there already.
    pub fn pick_other(&self, key: Option<Key>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        let chosen = self.choose(key, now_us, rng, tried).filter(|chosen| !tried.contains(&chosen.peer.id()));
        chosen.filter(|chosen| self.begin(&chosen.peer))
    }

    fn begin(&self, peer: &Peer) -> bool {
        let begins = peer.begin_below(self.calls_max);
        if begins {
            self.fleet.begin();
        }
        begins
    }

    fn choose(&self, key: Option<Key>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        if let (Some(placed), Some(key)) = (&self.placed, key) {
            // What is fresh waits for the first of its own keys.
            return self.on_ring(placed, key, now_us, tried).or_else(|| self.least_bad(now_us, tried));
        }
        if self.fresh.load(Relaxed) {
            if let Some(fresh) = self.candidates.iter().find(|c| c.peer.take_fresh()) {
                return Some(fresh);
            }
            self.fresh.store(false, Relaxed);
        }
        let chosen = match self.policy {
            Policy::LeastLoad | Policy::RingHash => self.lighter_of_two(now_us, rng, tried),
            Policy::WeightedRoundRobin | Policy::RoundRobin => self.next_turn(now_us, tried),
        };
        let Some(chosen) = chosen else {
            return self.least_bad(now_us, tried);
        };
        let (owed, _) = chosen.peer.unanswered();
        let finds_out = chosen.peer.breaker.is_aside() || self.is_stalled(&chosen.peer, now_us);
        if !finds_out && (owed >= UNANSWERED_MAX || self.is_late(&chosen.peer, now_us)) {
            // It owes answers. Perhaps it is only busy; but whoever owes fewer is the safer choice, and so a stalled endpoint
            // costs two calls, not as many as fit into the time until it is called stalled.
            return Some(self.owing_less(chosen, now_us, rng, tried).unwrap_or(chosen));
        }
        Some(chosen)
    }

    /// Two fit candidates drawn by weight, and of them the one with less in flight. The first is drawn evenly rather than at
    /// random: at low load shares then follow weights after a few calls, not after thousands.
    fn lighter_of_two(&self, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        let turn = self.fleet.next_turn();
        let first = self.at_turn(turn).filter(|c| self.admits(c, now_us, tried));
        let first = first.or_else(|| {
            (1..DRAWS_MAX)
                .map(|_| self.at(rng.below(self.weight_sum)))
                .find_map(|c| c.filter(|c| self.admits(c, now_us, tried)))
        })?;
        let rest = self.weight_sum - u64::from(first.weight);
        if rest == 0 || first.peer.load(now_us) == 0 {
            // An idle one is taken as drawn: at low load shares follow weights exactly.
            return Some(first);
        }
        let second = (0..DRAWS_MAX)
            .map(|_| {
                // Drawn from the others alone, as if the first were cut out of the line.
                let at = rng.below(rest);
                self.at(if at < first.offset { at } else { at + u64::from(first.weight) })
            })
            .find_map(|c| c.filter(|c| self.admits(c, now_us, tried)));
        match second {
            Some(second) if is_lighter(second, first, now_us) => Some(second),
            _ => Some(first),
        }
    }

    /// The candidate whose turn it is, passing over those unfit.
    fn next_turn(&self, now_us: u64, tried: &[u64]) -> Option<&Candidate<T>> {
        (0..DRAWS_MAX).find_map(|_| {
            let turn = self.fleet.next_turn();
            let candidate = if self.even {
                let count = self.candidates.len() as u64;
                self.candidates.get(turn.checked_rem(count)? as usize)
            } else {
                self.at_turn(turn)
            };
            candidate.filter(|c| self.admits(c, now_us, tried))
        })
    }

    /// Nothing fit was found by drawing: the best of what there is.
    fn least_bad(&self, now_us: u64, tried: &[u64]) -> Option<&Candidate<T>> {
        let mut best: Option<(&Candidate<T>, Standing)> = None;
        let mut any_full = false;
        for candidate in &self.candidates {
            let standing = self.standing(candidate, now_us, tried);
            any_full |= standing == Standing::Full;
            let better = match best {
                None => true,
                Some((other, theirs)) => {
                    standing < theirs || (standing == theirs && is_lighter(candidate, other, now_us))
                }
            };
            if better {
                best = Some((candidate, standing));
            }
        }
        let (best, standing) = best?;
        match standing {
            Standing::Full => return None,
            // To wait for one that is merely full is better than one that does not answer.
            Standing::Stalled | Standing::Aside if any_full => return None,
            Standing::Canary => {
                self.admits(best, now_us, tried); // spends the canary that is due
            }
            Standing::Fit | Standing::Stalled | Standing::Aside | Standing::Tried => {}
        }
        Some(best)
    }

    /// A fit neighbour that is less loaded and owes fewer answers; or, once the answers owed are late, the lightest neighbour
    /// whose own are not.
    fn owing_less(&self, chosen: &Candidate<T>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        let count = self.candidates.len();
        let start = rng.below(count as u64) as usize;
        let late = self.is_late(&chosen.peer, now_us);
        let mut best: Option<&Candidate<T>> = None;
        for candidate in self.candidates.iter().cycle().skip(start).take(count.min(NEIGHBOURS_MAX)) {
            let owes_less = candidate.peer.unanswered().0 < UNANSWERED_MAX && is_lighter(candidate, chosen, now_us);
            let is_safer = (late || owes_less) && !self.is_late(&candidate.peer, now_us);
            let is_better = best.is_none_or(|b| is_lighter(candidate, b, now_us));
            if is_safer && is_better && self.standing(candidate, now_us, tried) == Standing::Fit {
                best = Some(candidate);
            }
        }
        best
    }

    /// Golden-ratio steps along the line of weights: every stretch is met in proportion to its length, and evenly.
    fn at_turn(&self, turn: u64) -> Option<&Candidate<T>> {
        self.at(scale(turn.wrapping_mul(GOLDEN_STEP), self.weight_sum))
    }

    /// The candidate at this place on the line of weights.
    fn at(&self, place: u64) -> Option<&Candidate<T>> {
        let after = self.candidates.partition_point(|c| c.offset <= place);
        self.candidates.get(after.checked_sub(1)?)
    }

    /// Whether the candidate may be taken now; a canary that is due is thereby spent.
    fn admits(&self, candidate: &Candidate<T>, now_us: u64, tried: &[u64]) -> bool {
        match self.standing(candidate, now_us, tried) {
            Standing::Fit => true,
            Standing::Canary => {
                candidate.peer.take_silence_canary(now_us) || candidate.peer.breaker.take_canary(now_us)
            }
            Standing::Stalled | Standing::Aside | Standing::Tried | Standing::Full => false,
        }
    }

    fn standing(&self, candidate: &Candidate<T>, now_us: u64, tried: &[u64]) -> Standing {
        let peer = &candidate.peer;
        if peer.in_flight() >= self.calls_max {
            return Standing::Full;
        }
        if tried.contains(&peer.id()) {
            return Standing::Tried;
        }
        match peer.breaker.gate(now_us) {
            Gate::Open => {}
            Gate::CanaryDue => return Standing::Canary,
            Gate::Closed => return Standing::Aside,
        }
        if !self.is_stalled(peer, now_us) {
            return Standing::Fit;
        }
        if !peer.is_aside() {
            self.fleet.raise_alarm();
        }
        match peer.silence_gate(now_us) {
            Gate::CanaryDue => Standing::Canary,
            Gate::Open | Gate::Closed => Standing::Stalled,
        }
    }

    /// Two calls or more went there since it last said anything, the first of them long ago, and others have answered since.
    pub fn is_stalled(&self, peer: &Peer, now_us: u64) -> bool {
        let (owed, first_us) = peer.unanswered();
        owed >= UNANSWERED_MAX && self.is_silent_since(first_us, now_us, self.fleet.stall_us())
    }

    /// It owes an answer for longer than is usual, and others have answered since. A single answer is not held against it for
    /// ever: perhaps it is a call that waits for something, and only the next one can tell.
    fn is_late(&self, peer: &Peer, now_us: u64) -> bool {
        let (owed, first_us) = peer.unanswered();
        let pardoned = owed < UNANSWERED_MAX && now_us.saturating_sub(first_us) > PARDON_US;
        owed > 0 && !pardoned && self.is_silent_since(first_us, now_us, self.fleet.late_us())
    }

    fn is_silent_since(&self, since_us: u64, now_us: u64, for_us: u64) -> bool {
        now_us.saturating_sub(since_us) > for_us && self.fleet.spoke_after(since_us)
    }

    /// Candidates that stalled and that this has not named since they last gave a sign of life.
    pub fn survey(&self, now_us: u64) -> impl Iterator<Item = &Candidate<T>> {
        self.candidates.iter().filter(move |c| self.is_stalled(&c.peer, now_us) && c.peer.suspect())
    }

    /// The first answer to a call arrived: its response head. `sent_us` is when it was sent.
    pub fn answered(&self, peer: &Peer, sent_us: u64, now_us: u64) {
        self.fleet.learn_answer(now_us.saturating_sub(sent_us));
        self.spoke(peer, now_us);
    }

    /// The endpoint said something more, such as a message of a stream.
    pub fn spoke(&self, peer: &Peer, now_us: u64) {
        peer.revive();
        self.fleet.spoke(now_us);
    }

    /// A call ended, its place in flight is free. `sent_us` is when it was sent, `None` if it never was, and then nothing is held
    /// against the endpoint; `answered` says whether the endpoint said anything at all. What this makes suspicious, once.
    pub fn ended(
        &self,
        peer: &Peer,
        class: Class,
        sent_us: Option<u64>,
        answered: bool,
        now_us: u64,
    ) -> Option<Suspicion> {
        peer.finish();
        self.fleet.finish();
        let sent_us = sent_us?;
        if !answered && class == Class::Cancelled && now_us.saturating_sub(sent_us) <= self.fleet.stall_us() {
            // Given up in haste says nothing; given up after a long wait is evidence, and stays.
            peer.forget_unanswered(sent_us);
        }
        if peer.judge(class, now_us) && self.has_room_aside() {
            peer.breaker.put_aside(now_us);
            return Some(Suspicion::FailuresInARow);
        }
        let is_silent = !answered && class == Class::Deadline && {
            let (owed, first_us) = peer.unanswered();
            owed > 0 && self.is_silent_since(first_us, now_us, self.fleet.stall_us())
        };
        (is_silent && peer.suspect()).then_some(Suspicion::Silence)
    }

    /// At most half aside, and two at least not.
    fn has_room_aside(&self) -> bool {
        let count = self.candidates.len();
        let aside = self.candidates.iter().filter(|c| c.peer.breaker.is_aside()).count();
        aside < (count / 2).min(count.saturating_sub(2))
    }
}

/// Whether `a` carries less per weight than `b`. Half a call is added to both: counting whole calls alone, an endpoint of small
/// weight is either idle, and attracts far more than its share, or seems crushed by a single call.
fn is_lighter<T>(a: &Candidate<T>, b: &Candidate<T>, now_us: u64) -> bool {
    (2 * a.peer.load(now_us) + 1) * u64::from(b.weight) < (2 * b.peer.load(now_us) + 1) * u64::from(a.weight)
}

#[cfg(test)]
mod tests;
