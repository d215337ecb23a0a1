//! Decides, per call, which endpoint gets it. Pure: standard library alone, no clock, no socket, no task; time and chance are
//! arguments. The service's simulator runs this very code.
//!
//! A [`Picker`] is made anew whenever the list or the connections change; what is known of each endpoint ([`Peer`]) and of all
//! together ([`Fleet`]) outlives it. A pick takes no lock and allocates nothing. It refuses to judge health: who is in the list,
//! and with which weight, is the balancer's to say. Four things it does on its own, since only the caller can see them in time:
//!
//! - responses tell how many requests are in flight at their endpoint, and each such word is good for one further call: it goes
//!   where there are fewest per capacity ([`Picker::ended`], [`Picker::pick_or_ask`]);
//! - an endpoint that answers nothing while others do is *stalled*: it costs the calls in flight and two more, then it is
//!   passed over until it says something, but for a call now and then; one whose answers are late gets fewer even before;
//! - an endpoint whose calls fail one after the other is put *aside*, and tried by single calls; at most half of the endpoints
//!   may be aside, and never so many that fewer than two are left;
//! - a failed call weighs like a call in flight for a second: failing fast is not being idle.

mod ask;
mod breaker;
mod budget;
mod choice;
mod fleet;
mod pace;
mod peer;
mod probing;
mod ring;
mod rng;
mod standing;
mod throttle;
mod tokens;

use std::sync::{Arc, atomic::AtomicBool};

pub use ask::{Pick, Said, WANDER_PICKS};
pub use breaker::{FAILURES_IN_A_ROW, PAUSE_US_MAX, PAUSE_US_MIN};
pub use budget::{EARNING_US, HEDGES_SAVED_MAX, PERCENT_MAX, RETRY_TOKENS_MIN, RetryBudget, ShareBudget};
pub use fleet::Fleet;
pub use pace::Pace;
pub use peer::{Peer, SILENCE_CANARY_US, SOUR_US, UNANSWERED_MAX};
pub use probing::{PATIENCE_US_MAX, PAYS_FACTOR, PROBE_BUDGET_PERCENT, Probing};
pub use ring::{CALLS_SPARED, Key, Keyed, PLACES_MAX, Rings};
pub use rng::Rng;
pub use throttle::Throttle;
pub use tokens::{LANES_MAX, TOKENS_MAX};

pub(crate) use rng::fnv_1a;

use choice::Choice;
pub use choice::WORDS_AHEAD;
use ring::Placed;
use standing::Standing;
use tokens::Mark;

/// An endpoint is never called stalled before its oldest unanswered call is this old, microseconds.
pub const STALL_US_MIN: u64 = 50_000;
/// Nor before that call is this many times as old as answers usually take.
pub const STALL_FACTOR: u64 = 4;
/// A single late answer is held against its endpoint for so long, microseconds.
pub const PARDON_US: u64 = 1_000_000;
/// Choices made again because the chosen one was full by the time the call was counted there.
const FULL_AGAIN_MAX: usize = 4;

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
    /// While the fleet is idle, drawn by share: weight times capacity. Else the endpoint of which a response told the least load
    /// per capacity, where that is bearable; what one told is used once. Else the less loaded of two that are asked. Where nobody
    /// was heard of and nobody can be asked: of two drawn by share, the one with fewer of this client's calls in flight per share.
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
    /// Calls it serves at once compared with the others, thousandths; 0 is unknown and counts as 1,000. Its share of calls is
    /// weight times capacity; its load is requests in flight per capacity.
    pub capacity_milli: u32,
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
    /// Place among the candidates by mark: open addressing, a power of two.
    places: Box<[u32]>,
    share_sum: u64,
    weight_max: u32,
    /// All shares are equal: turns are then strict.
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
    /// Calls it serves at once compared with the others, thousandths, at least 1.
    pub capacity_milli: u32,
    /// The caller's own handle to it.
    pub item: T,
    mark: Mark,
    /// Weight times capacity.
    share: u64,
    /// Sum of the shares before it.
    offset: u64,
    /// Picks of which one is its due at twice its share.
    interval: u32,
    /// How far ahead of that what it says of itself may bring it, in the same steps.
    ahead_max: u32,
}

/// What makes an endpoint suspicious: worth a look by whoever can look closer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// Its calls failed one after the other; it was put aside.
    FailuresInARow,
    /// A call ran out of time unanswered while other endpoints answered theirs.
    Silence,
}

impl<T> Picker<T> {
    /// A picker over what is offered. Weights of 0 are left out, and so is every tier but the best one with a ready endpoint.
    pub fn new(policy: Policy, fleet: Arc<Fleet>, offers: impl IntoIterator<Item = Offer<T>>) -> Self {
        let mut usable: Vec<Offer<T>> = offers.into_iter().filter(|o| o.ready && o.weight > 0).collect();
        let best = usable.iter().map(|o| o.priority).min();
        usable.retain(|o| Some(o.priority) == best);
        let mut share_sum = 0;
        let mut candidates: Vec<Candidate<T>> = usable.into_iter().map(|o| Candidate::of(o, &mut share_sum)).collect();
        let weight_max = candidates.iter().map(|c| c.weight).max().unwrap_or(1);
        for candidate in &mut candidates {
            candidate.interval = choice::interval(candidate.share, share_sum);
            candidate.ahead_max = choice::ahead_max(candidate.interval, candidate.weight, weight_max);
        }
        let even = candidates.windows(2).all(|pair| pair[0].share == pair[1].share);
        let fresh = AtomicBool::new(candidates.iter().any(|c| c.peer.is_fresh()));
        let places = choice::places(&candidates);
        Self {
            policy,
            fleet,
            candidates,
            places,
            share_sum,
            weight_max,
            even,
            fresh,
            calls_max: u32::MAX,
            tier: best,
            placed: None,
        }
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
        (0..FULL_AGAIN_MAX).map_while(|_| self.choose_one(key, now_us, rng, tried)).find(|chosen| self.begin(chosen))
    }

    /// The same, but none of those in `tried`: for a call that is there already.
    pub fn pick_other(&self, key: Option<Key>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        let chosen = self.choose_one(key, now_us, rng, tried).filter(|chosen| !tried.contains(&chosen.peer.id()));
        chosen.filter(|chosen| self.begin(chosen))
    }

    fn choose_one(&self, key: Option<Key>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        match self.choose(key, now_us, rng, tried, false)? {
            Choice::One(chosen) | Choice::Two([chosen, _]) => Some(chosen),
        }
    }

    /// Counts a call as in flight there, and as a pick.
    fn begin(&self, chosen: &Candidate<T>) -> bool {
        let begins = chosen.peer.begin_below(self.calls_max);
        if begins {
            let lane = self.fleet.lane();
            lane.begin();
            lane.sent(chosen.mark);
            chosen.peer.picked(lane.number(), lane.picked(), chosen.interval);
        }
        begins
    }

    /// Candidates that stalled and that this has not named since they last gave a sign of life.
    pub fn survey(&self, now_us: u64) -> impl Iterator<Item = &Candidate<T>> {
        self.candidates.iter().filter(move |c| self.is_stalled(&c.peer, now_us) && c.peer.suspect())
    }

    /// The first answer to a call arrived: its response head. `sent_us` is when it was sent.
    pub fn answered(&self, peer: &Peer, sent_us: u64, now_us: u64) {
        let took_us = now_us.saturating_sub(sent_us);
        self.fleet.learn_answer(took_us);
        if let Some(candidate) = self.find(Mark::of(peer.id())) {
            let is_far = self.fleet.learn_work(took_us.saturating_mul(candidate.capacity_milli.into()) / 1_000);
            peer.answered(is_far, now_us);
        }
        self.spoke(peer, now_us);
    }

    /// The endpoint said something more, such as a message of a stream.
    pub fn spoke(&self, peer: &Peer, now_us: u64) {
        peer.revive();
        self.fleet.spoke(now_us);
    }

    /// A call ended, its place in flight is free. `sent_us` is when it was sent, `None` if it never was, and then nothing is held
    /// against the endpoint; `answered` says whether the endpoint said anything at all, and `rif` how many requests it had in
    /// flight, without this one, as its response told. What this makes suspicious, once.
    pub fn ended(
        &self,
        peer: &Peer,
        class: Class,
        sent_us: Option<u64>,
        answered: bool,
        rif: Option<u32>,
        now_us: u64,
    ) -> Option<Suspicion> {
        peer.finish();
        self.fleet.lane().finish();
        match class {
            Class::Ok | Class::Caller => self.fleet.went_well(now_us),
            Class::Endpoint | Class::Deadline if sent_us.is_some() && !peer.breaker.is_aside() => {
                self.fleet.went_ill(now_us);
            }
            Class::Endpoint | Class::Deadline | Class::Cancelled | Class::Overload => {}
        }
        match class {
            Class::Ok => rif.into_iter().for_each(|rif| self.heard(peer, Said::Rif(rif), now_us, now_us)),
            // Whoever fails, or refuses its callers at once, is idle: what it says of its load would bring it the next call.
            Class::Caller | Class::Cancelled | Class::Overload | Class::Endpoint | Class::Deadline => {}
        }
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

#[cfg(test)]
mod tests;
