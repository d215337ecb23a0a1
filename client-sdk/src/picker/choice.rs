//! Who gets a call. A newcomer gets some first ones at once, of all clients together. Then, by load, one is drawn by share, and has the call if it is a canary
//! that is due, or was forgotten for long. Else the one of which a response told the least load has it, where that is bearable:
//! under load, though the one drawn may have less; while the fleet is idle, only if that is less than one call is to the one drawn.
//! Else, under load, the one of two drawn that says it has less, if they can be asked. Else the one of two drawn with fewer of this
//! client's own calls, which is the first while it has none.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Candidate, Key, Offer, Picker, Policy, Rng, Standing, UNANSWERED_MAX,
    rng::{GOLDEN_STEP, scale},
    tokens::{Lane, Mark, PICK, Token},
};

/// Draws for a fit endpoint before all are looked through.
const DRAWS_MAX: usize = 4;
/// Endpoints looked at for one that owes fewer answers. Bounds the cost of a pick among thousands.
const NEIGHBOURS_MAX: usize = 8;
/// The load that a call is, in the fractions that loads are compared in.
const CALL: u64 = 16;
/// What a token tells grows by so much in the time that an answer usually takes. With half a call, a thousand clients that call
/// once in three service times come to a p99 of 6.3 service times, without it to 7.0.
const AGEING: u64 = CALL / 2;
/// How much more load is taken for each call that this client has in flight. Clients with four then ask for every tenth call, and
/// such with a third of one for every second.
const PATIENCE: u64 = CALL * 5 / 16;
/// Larger capacities are taken for this one: no sum of shares overflows.
const CAPACITY_MILLI_MAX: u32 = 1_000_000;
/// Calls that what an endpoint says of itself may bring it ahead of twice its share. Words come in runs: an end there pays for the
/// next beginning there, about six times in a row in simulations. One that starts slowly, or is tried out, may get fewer: in
/// proportion to its weight, since 24 calls of each client are far more than it is meant to get in all that time.
pub const WORDS_AHEAD: u32 = 24;
/// A share that comes up less often than this is taken for this one: the due of a run must stay within half of the circle.
const INTERVAL_MAX: u32 = i32::MAX as u32 / (2 * WORDS_AHEAD);
/// Requests in flight beyond twice what is to be expected from which an endpoint is known to be loaded: somebody else's calls.
const LOADED_BEYOND: u64 = 3;
/// One pick in so many tries who is drawn, where nothing is known of it and nobody can be asked: all that is known may be worse.
const UNHEARD_PICKS: u64 = 16;
/// Calls that an endpoint misses, at twice its share, before it gets one as drawn, whatever others say of themselves, and whether
/// or not it is believed. Without, a client of two endpoints that happened to hear of the loaded one first takes that for usual,
/// and finds the other late or, where it asks, hardly ever. With 16 in place of 64 the p99 where half of the endpoints are slow
/// is 4 % longer.
const FORGOTTEN_AFTER: u32 = 64;
/// First calls that a newcomer is given by all clients together, about: one of each of thousands would bury it.
const FIRST_CALLS: u64 = 4;
/// No candidate.
const NOBODY: u32 = u32::MAX;

/// What comes of looking for an endpoint.
#[derive(Debug)]
pub(super) enum Choice<'a, T> {
    /// This one.
    One(&'a Candidate<T>),
    /// Nothing fresh is known: whichever of these says that it has less to do. The first is the better guess.
    Two([&'a Candidate<T>; 2]),
}

impl<T> Candidate<T> {
    pub(super) fn of(offer: Offer<T>, share_sum: &mut u64) -> Self {
        let capacity_milli = match offer.capacity_milli {
            0 => 1_000,
            known => known.min(CAPACITY_MILLI_MAX),
        };
        let share = u64::from(offer.weight) * u64::from(capacity_milli);
        let offset = *share_sum;
        *share_sum = share_sum.saturating_add(share);
        let mark = Mark::of(offer.peer.id());
        let Offer { peer, weight, item, .. } = offer;
        Self { peer, weight, capacity_milli, item, mark, share, offset, interval: 0, ahead_max: 0 }
    }
}

/// Picks, in steps of [`PICK`], of which one is its due at twice its share.
pub(super) fn interval(share: u64, share_sum: u64) -> u32 {
    let interval = u128::from(share_sum) * u128::from(PICK) / (2 * u128::from(share.max(1)));
    u32::try_from(interval).unwrap_or(u32::MAX).min(INTERVAL_MAX)
}

/// How far ahead of twice its share what it says may bring an endpoint, in steps of [`PICK`].
pub(super) fn ahead_max(interval: u32, weight: u32, weight_max: u32) -> u32 {
    let most = u64::from(interval) * u64::from(WORDS_AHEAD) * u64::from(weight) / u64::from(weight_max.max(1));
    u32::try_from(most).unwrap_or(u32::MAX).max(1)
}

/// Where the candidates are, by mark.
pub(super) fn places<T>(candidates: &[Candidate<T>]) -> Box<[u32]> {
    let size = (candidates.len() * 2).next_power_of_two();
    let mut places = vec![NOBODY; size].into_boxed_slice();
    for (candidate, at) in candidates.iter().zip(0..) {
        let mut place = candidate.mark.bits() as usize % size;
        while let Some(taken) = places.get_mut(place).filter(|taken| **taken != NOBODY) {
            let _ = taken;
            place = (place + 1) % size;
        }
        if let Some(free) = places.get_mut(place) {
            *free = at;
        }
    }
    places
}

impl<T> Picker<T> {
    /// The candidate of a mark.
    pub(super) fn find(&self, mark: Mark) -> Option<&Candidate<T>> {
        let size = self.places.len();
        let mut place = (mark.bits() as usize).checked_rem(size)?;
        loop {
            let candidate = self.candidates.get(*self.places.get(place)? as usize)?;
            if candidate.mark == mark {
                return Some(candidate);
            }
            place = (place + 1) % size;
        }
    }

    pub(super) fn choose(
        &self,
        key: Option<Key>,
        now_us: u64,
        rng: &mut Rng,
        tried: &[u64],
        may_ask: bool,
    ) -> Option<Choice<'_, T>> {
        if let (Some(placed), Some(key)) = (&self.placed, key) {
            // What is fresh waits for the first of its own keys.
            return self.on_ring(placed, key, now_us, tried).or_else(|| self.least_bad(now_us, tried)).map(Choice::One);
        }
        if self.fresh.load(Relaxed) {
            for fresh in self.candidates.iter().filter(|c| c.peer.is_fresh()) {
                if fresh.peer.take_fresh() && rng.below(self.fleet.clients()) < FIRST_CALLS {
                    return Some(Choice::One(fresh));
                }
            }
            self.fresh.store(false, Relaxed);
        }
        let chosen = match self.policy {
            Policy::LeastLoad | Policy::RingHash => self.by_load(now_us, rng, tried, may_ask),
            Policy::WeightedRoundRobin | Policy::RoundRobin => self.next_turn(now_us, rng, tried).map(Choice::One),
        };
        chosen.or_else(|| self.least_bad(now_us, tried).map(Choice::One))
    }

    fn by_load(&self, now_us: u64, rng: &mut Rng, tried: &[u64], may_ask: bool) -> Option<Choice<'_, T>> {
        let lane = self.fleet.lane();
        let first = self.first_drawn(lane, now_us, rng, tried)?;
        if self.standing(first, now_us, tried) != Standing::Fit {
            // A canary, which is spent by now: this call finds out.
            return Some(Choice::One(first));
        }
        let is_forgotten =
            first.peer.behind(lane.number(), lane.picks()) > first.interval.saturating_mul(FORGOTTEN_AFTER);
        if is_forgotten && first.peer.unanswered().0 == 0 {
            return Some(Choice::One(first));
        }
        let expected = self.rif_expected(first);
        // Whether what a token tells is taken, rather than the one drawn.
        let bearable = self.load_bearable(expected);
        let is_good = |told, token: &Token| is_below(self.load_told(token), told, bearable, first);
        if let Some((told, token)) = self.lightest_told(lane, lane, now_us, tried)
            && is_good(told, &token)
            && !(self.is_unheard(first, now_us) && rng.below(UNHEARD_PICKS) == 0)
            && lane.spend(token)
        {
            return Some(Choice::One(told));
        }
        if expected > 0 && may_ask && self.fleet.asks() {
            // What another thread heard is cheaper than a question: the last one that heard anything is looked at, and no other.
            if let Some(beside) = self.fleet.lane_beside(lane)
                && let Some((told, token)) = self.lightest_told(beside, lane, now_us, tried)
                && is_good(told, &token)
                && beside.spend(token)
            {
                return Some(Choice::One(told));
            }
            let second = self.second_drawn(first, rng).filter(|c| self.standing(c, now_us, tried) == Standing::Fit);
            // To ask is of no use where nobody would be believed.
            let is_credible = |c| self.is_credible(c, lane, now_us, tried);
            if let Some(second) = second.filter(|second| is_credible(first) || is_credible(second)) {
                return Some(Choice::Two([first, second]));
            }
        }
        let chosen = self.lighter_of_two(first, now_us, rng, tried);
        Some(Choice::One(self.not_owing(chosen, now_us, rng, tried)))
    }

    /// The first that is fit of some drawn by share; a canary that is due is thereby spent. The first draw is even rather than
    /// random: at low load shares then follow weights after a few calls, not after thousands. Who told of far more load than is
    /// to be expected is drawn only if nobody else is.
    fn first_drawn(&self, lane: &Lane, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        let mut loaded = None;
        let mut place = scale(lane.next_turn().wrapping_mul(GOLDEN_STEP), self.share_sum);
        for _ in 0..DRAWS_MAX {
            match self.at(place).filter(|c| self.admits(c, now_us, tried)) {
                // A canary is spent by now.
                Some(drawn) if self.standing(drawn, now_us, tried) != Standing::Fit => return Some(drawn),
                Some(drawn) if !self.is_told_loaded(drawn, now_us) => return Some(drawn),
                drawn => loaded = loaded.or(drawn),
            }
            place = rng.below(self.share_sum);
        }
        loaded
    }

    /// Whether nothing is known of it and nobody can be asked: then it takes a call to find out.
    fn is_unheard(&self, candidate: &Candidate<T>, now_us: u64) -> bool {
        !self.fleet.asks() && candidate.peer.told(now_us, self.fleet.token_age_us()).is_none()
    }

    /// Whether it told lately of far more requests in flight than are to be expected.
    fn is_told_loaded(&self, candidate: &Candidate<T>, now_us: u64) -> bool {
        let told = candidate.peer.told(now_us, self.fleet.token_age_us());
        told.is_some_and(|rif| rif > 2 * self.rif_expected(candidate) + LOADED_BEYOND)
    }

    /// One of the others, drawn by share as if the first were cut out of the line.
    fn second_drawn(&self, first: &Candidate<T>, rng: &mut Rng) -> Option<&Candidate<T>> {
        let rest = self.share_sum - first.share;
        if rest == 0 {
            return None;
        }
        let at = rng.below(rest);
        self.at(if at < first.offset { at } else { at + first.share })
    }

    /// Requests in flight to be expected at an endpoint of which nothing is known: as at the others, for its capacity and weight.
    pub(super) fn rif_expected(&self, candidate: &Candidate<T>) -> u64 {
        let milli = u128::from(self.fleet.rif_milli_mean()) * u128::from(candidate.capacity_milli) / 1_000;
        let milli = milli * u128::from(candidate.weight) / u128::from(self.weight_max);
        // To the nearest whole one.
        u64::try_from((milli + 500) / 1_000).unwrap_or(u64::MAX)
    }

    /// What a token tells of load, with this call. It says less with time: what was idle then may not be so any more.
    fn load_told(&self, token: &Token) -> u64 {
        let aged = AGEING.saturating_mul(token.age_us) / self.fleet.answer_us_mean().max(1);
        load_with(token.rif).saturating_add(aged)
    }

    /// The load up to which what a token tells is taken, where so many requests in flight are to be expected anywhere. While the
    /// fleet is idle, no more than at the one drawn. Else more, the more calls this client has in flight: it hears of others soon
    /// enough, and one with few calls does better to ask.
    fn load_bearable(&self, expected: u64) -> u64 {
        if expected == 0 {
            return load_with(0);
        }
        let patience = PATIENCE.saturating_mul(self.fleet.in_flight());
        load_with(expected).saturating_add(CALL / 2).saturating_add(patience)
    }

    /// The endpoint of which a token of this lane tells the least load, among those that may speak for themselves to the other,
    /// the caller's.
    fn lightest_told(&self, of: &Lane, lane: &Lane, now_us: u64, tried: &[u64]) -> Option<(&Candidate<T>, Token)> {
        let may_speak = |told: &Candidate<T>| self.may_speak_for_itself(told, lane, now_us, tried);
        // Mostly the lightest of all may: only if not, the others are looked at as closely.
        let lightest = self.lightest_of(of, now_us, |_| true)?;
        if may_speak(lightest.0) { Some(lightest) } else { self.lightest_of(of, now_us, may_speak) }
    }

    /// The endpoint of which a token tells the least load, among these.
    fn lightest_of(
        &self,
        lane: &Lane,
        now_us: u64,
        is_one: impl Fn(&Candidate<T>) -> bool,
    ) -> Option<(&Candidate<T>, Token)> {
        let mut best: Option<(u64, &Candidate<T>, Token)> = None;
        for token in lane.tokens(now_us, self.fleet.token_age_us()) {
            let is_best =
                |load: u64, told: &Candidate<T>| best.is_none_or(|(than, of, _)| is_below(load, told, than, of));
            // Age only adds to what is told, and costs a division.
            let Some(told) = self.find(token.mark).filter(|told| is_best(load_with(token.rif), told)) else { continue };
            let load = self.load_told(&token);
            if is_best(load, told) && is_one(told) {
                best = Some((load, told, token));
            }
        }
        best.map(|(_, told, token)| (told, token))
    }

    /// Whether what an endpoint told with a response may bring it a call: it is credible, and owes no answers since.
    pub(super) fn may_speak_for_itself(
        &self,
        candidate: &Candidate<T>,
        lane: &Lane,
        now_us: u64,
        tried: &[u64],
    ) -> bool {
        self.is_credible(candidate, lane, now_us, tried)
            && candidate.peer.unanswered().0 < UNANSWERED_MAX
            && !self.is_late(&candidate.peer, now_us)
    }

    /// Whether what an endpoint says of its own load may bring it a call at all: its calls do not fail, it did not
    /// say that it wants none, and it is not ahead of twice its share already.
    pub(super) fn is_credible(&self, candidate: &Candidate<T>, lane: &Lane, now_us: u64, tried: &[u64]) -> bool {
        let peer = &candidate.peer;
        self.standing(candidate, now_us, tried) == Standing::Fit
            && peer.is_believed(now_us)
            && !peer.is_unwilling(now_us, self.fleet.token_age_us())
            && peer.ahead(lane.number(), lane.picks(), candidate.interval) < candidate.ahead_max
    }

    /// Of a fit one and another that is drawn by share, the one with less in flight.
    fn lighter_of_two<'a>(
        &'a self,
        first: &'a Candidate<T>,
        now_us: u64,
        rng: &mut Rng,
        tried: &[u64],
    ) -> &'a Candidate<T> {
        if first.peer.load(now_us) == 0 {
            // An idle one is taken as drawn: at low load shares follow weights exactly.
            return first;
        }
        let second = (0..DRAWS_MAX)
            .map(|_| self.second_drawn(first, rng))
            .find_map(|c| c.filter(|c| self.admits(c, now_us, tried)));
        match second {
            Some(second) if is_lighter(second, first, now_us) => second,
            _ => first,
        }
    }

    /// The candidate whose turn it is, passing over those unfit.
    fn next_turn(&self, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<&Candidate<T>> {
        let chosen = (0..DRAWS_MAX).find_map(|_| {
            let turn = self.fleet.lane().next_turn();
            let candidate = if self.even {
                let count = self.candidates.len() as u64;
                self.candidates.get(turn.checked_rem(count)? as usize)
            } else {
                self.at_turn(turn)
            };
            candidate.filter(|c| self.admits(c, now_us, tried))
        });
        chosen.map(|chosen| self.not_owing(chosen, now_us, rng, tried))
    }

    /// The same, unless it owes answers. Perhaps it is only busy; but whoever owes fewer is the safer choice, and so a stalled
    /// endpoint costs two calls, not as many as fit into the time until it is called stalled.
    pub(super) fn not_owing<'a>(
        &'a self,
        chosen: &'a Candidate<T>,
        now_us: u64,
        rng: &mut Rng,
        tried: &[u64],
    ) -> &'a Candidate<T> {
        let (owed, _) = chosen.peer.unanswered();
        let finds_out = chosen.peer.breaker.is_aside() || self.is_stalled(&chosen.peer, now_us);
        if !finds_out && (owed >= UNANSWERED_MAX || self.is_late(&chosen.peer, now_us)) {
            return self.owing_less(chosen, now_us, rng, tried).unwrap_or(chosen);
        }
        chosen
    }

    /// Nothing fit was found by drawing: the best of what there is.
    pub(super) fn least_bad(&self, now_us: u64, tried: &[u64]) -> Option<&Candidate<T>> {
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

    /// Golden-ratio steps along the line of shares: every stretch is met in proportion to its length, and evenly.
    fn at_turn(&self, turn: u64) -> Option<&Candidate<T>> {
        self.at(scale(turn.wrapping_mul(GOLDEN_STEP), self.share_sum))
    }

    /// The candidate at this place on the line of shares.
    pub(super) fn at(&self, place: u64) -> Option<&Candidate<T>> {
        if self.even {
            let share = self.candidates.first()?.share;
            return self.candidates.get(usize::try_from(place.checked_div(share)?).ok()?);
        }
        let after = self.candidates.partition_point(|c| c.offset <= place);
        self.candidates.get(after.checked_sub(1)?)
    }
}

/// Whether so much load is less for `a` than that is for `b`, each by its capacity.
pub(super) fn is_below<T>(load_a: u64, a: &Candidate<T>, load_b: u64, b: &Candidate<T>) -> bool {
    let load = |load: u64, of: &Candidate<T>| u128::from(load) * u128::from(of.capacity_milli);
    load(load_a, b) < load(load_b, a)
}

/// The load of an endpoint with so many requests in flight and one more.
pub(super) fn load_with(rif: u64) -> u64 {
    rif.saturating_add(1).saturating_mul(CALL)
}

/// Whether `a` carries less per share than `b`. Half a call is added to both: counting whole calls alone, an endpoint of small
/// share is either idle, and attracts far more than its share, or seems crushed by a single call.
pub(super) fn is_lighter<T>(a: &Candidate<T>, b: &Candidate<T>, now_us: u64) -> bool {
    u128::from(2 * a.peer.load(now_us) + 1) * u128::from(b.share)
        < u128::from(2 * b.peer.load(now_us) + 1) * u128::from(a.share)
}
