//! The arithmetic of subsets: which cohorts see an endpoint, and with which weight, so that what they send it together is
//! its share of the capacity.
//!
//! Cohort c makes the share r(c) of all calls and divides it among those that it sees by weight v(i) times capacity a(i). What
//! is wanted is that the sum over cohorts is a(i). Iterative proportional fitting (Deming and Stephan 1940; Sinkhorn 1967)
//! finds such v, where there are any: those of an endpoint grow by what it lacks, again and again. Every endpoint has one
//! weight for all cohorts, so that no cohort needs a list of weights of its own.

use crate::{
    limits::COHORTS_MAX,
    model::{Address, place},
    snapshot::Seats,
};

const COHORTS: usize = COHORTS_MAX as usize;
const _: () = assert!(COHORTS <= u64::BITS as usize, "seats are bits");

/// What a cohort sees, and what sees an endpoint, over what is needed at least: with nothing to spare there would be one way
/// to divide the calls, or none.
const SPARE: f64 = 2.0;

/// Cohorts that see an endpoint at least, where so many make calls: each of them may fall silent.
const COHORTS_MIN: u32 = 3;

/// Endpoints that a cohort sees at least.
const SUBSET_MIN: usize = 3;

/// How far a subset may grow or shrink, by endpoints that come and go and calls that shift, before it is cut to size:
/// a quarter less, half as much more.
const SIZES_KEPT: [usize; 2] = [3, 6];

/// Where the fitting ends: no endpoint is further from its share, or there is no getting nearer.
const ROUNDS_MAX: usize = 200;
const NEAR: f64 = 0.01;

/// How far weights may be from the median one: beyond it, more seats help more.
const WEIGHTS: std::ops::RangeInclusive<f64> = 0.05..=20.0;

/// Who gets so much less than its part is given more seats, so many at most.
const FED: f64 = 0.02;
const REPAIRS_MAX: usize = 16;

/// Part of all calls of a cohort that is no reason for a plan by itself: who calls once a minute would be one every minute.
/// Lists fill up by hash what such a one lacks.
const NEGLIGIBLE: f64 = 0.005;

/// A weight stays if the one that is found is as near as that: less than what leads to a plan, and most lists stay as they are.
const KEPT: f64 = 0.02;

/// The imbalance that is too much, and for how many standard deviations of what chance makes of the rates.
const IMBALANCE: f64 = 0.05;
const DEVIATIONS: f64 = 3.0;

/// The calls of the clients of one seed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Demand {
    /// Since they were looked at last.
    pub(super) calls: u64,
    /// Per second, smoothed.
    pub(super) rate: f64,
    /// Those that land here: without what other groups take of them, with what is taken of others.
    landing: f64,
    /// Of the calls of all that land here.
    share: f64,
    /// The part of a subset that it is to see: less than one where only some calls of its clients land here.
    size: f64,
    /// It sees newcomers whose hash with it is no larger, as by hashing alone.
    reach: u64,
    /// Calls that it sends to an endpoint, by what weight and capacity of that come to; all calls, and all capacity, are 1.
    pull: f64,
}

/// Calls per second by seed.
pub(super) type Rates = [f64; COHORTS];

/// What of a group's clients lands with the endpoints of another one, or of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Landing {
    /// The part of their calls.
    pub(super) calls: f64,
    /// The part of a subset that they are to see: as much for each call as of their own.
    pub(super) size: f64,
}

/// The cohorts of one group of endpoints, by seed.
#[derive(Debug, Clone)]
pub(super) struct Demands([Demand; COHORTS]);

/// An endpoint, and where it sits.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) address: Address,
    /// Its part of the capacity of all; 0 while it is out.
    pub(super) capacity: f64,
    pub(super) seats: Seats,
}

impl Default for Demands {
    fn default() -> Self {
        Self([Demand::default(); COHORTS])
    }
}

/// Hashes of a member with all cohorts.
type Places = [u64; COHORTS];

fn places(member: &Member, cohorts: u64) -> Places {
    let mut places = [0; COHORTS];
    seeds(cohorts).for_each(|seed| places[seed] = place(seed as u64, &member.address));
    places
}

/// The bits that are set.
fn seeds(mut cohorts: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let seed = cohorts.trailing_zeros() as usize;
        cohorts &= cohorts.wrapping_sub(1);
        (seed < COHORTS).then_some(seed)
    })
}

impl Demands {
    pub(super) fn of(&mut self, seed: u64) -> Option<&mut Demand> {
        self.0.get_mut(usize::try_from(seed).ok()?)
    }

    pub(super) fn all(&mut self) -> &mut [Demand] {
        &mut self.0
    }

    /// Calls per second that land here.
    pub(super) fn rate(&self) -> f64 {
        self.0.iter().map(|demand| demand.landing).sum()
    }

    /// What clients call, by seed.
    pub(super) fn rates(&self) -> Rates {
        self.0.map(|demand| demand.rate)
    }

    /// Which parts of the calls of all groups land here, and what each seed's are of these.
    pub(super) fn share_out(&mut self, groups: &[(Rates, Landing)]) {
        for (seed, demand) in self.0.iter_mut().enumerate() {
            let callers = || groups.iter().filter(|(rates, _)| rates[seed] > 0.0);
            demand.landing = callers().map(|(rates, landing)| rates[seed] * landing.calls).sum();
            demand.size = callers().map(|(_, landing)| landing.size).fold(0.0, f64::max);
        }
        let whole = self.rate().max(f64::MIN_POSITIVE);
        self.0.iter_mut().for_each(|demand| demand.share = demand.landing / whole);
    }

    fn share(&self, seed: usize) -> f64 {
        self.0[seed].share
    }

    fn active(&self) -> u64 {
        (0..COHORTS).filter(|seed| self.share(*seed) > 0.0).fold(0, |active, seed| active | 1 << seed)
    }

    /// Seats for everybody, as few of them new as possible, and the weights that go with them.
    pub(super) fn plan(&mut self, members: &mut [Member], size: usize) {
        let active = self.active();
        let before: Vec<Seats> = members.iter().map(|member| member.seats.clone()).collect();
        members.iter_mut().for_each(|member| member.seats.cohorts &= active);
        let places: Vec<Places> = members.iter().map(|member| places(member, active)).collect();
        for seed in seeds(active) {
            self.cut(seed, members, &places, size);
        }
        for (member, places) in members.iter_mut().zip(&places) {
            self.give_spare(member, places);
        }
        self.fit(members);
        for _ in 0..REPAIRS_MAX {
            if !self.feed_hungry(members) {
                break;
            }
            self.fit(members);
        }
        for (member, before) in members.iter_mut().zip(before).filter(|(_, before)| before.cohorts != 0) {
            if (member.seats.weight() / before.weight() - 1.0).abs() <= KEPT {
                member.seats.weight_milli = before.weight_milli;
            }
        }
        self.remember_pull(members);
    }

    /// Endpoints that a cohort is to see: so many, or more if it makes more of the calls than these can take.
    fn wanted(&self, seed: usize, members: &[Member], size: usize) -> usize {
        let whole = members.iter().filter(|member| member.is_whole()).count();
        let needed = (self.share(seed) * whole as f64 * SPARE).ceil() as usize;
        let wanted = (self.0[seed].size * size as f64).ceil() as usize;
        wanted.max(SUBSET_MIN).max(needed).min(whole)
    }

    /// How many a cohort sees that are not out.
    fn held(seed: usize, members: &[Member]) -> usize {
        members.iter().filter(|member| member.is_whole() && member.seats.has(seed)).count()
    }

    /// Whether so many are out that somebody whose calls count sees too few.
    pub(super) fn is_short(&self, members: &[Member], size: usize) -> bool {
        seeds(self.active())
            .filter(|seed| self.share(*seed) >= NEGLIGIBLE)
            .any(|seed| Self::held(seed, members) * 4 < self.wanted(seed, members, size) * SIZES_KEPT[0])
    }

    /// Gives a cohort the endpoints nearest by hash. Those that it has stay as long as their number is about right; if it
    /// sees too few, the nearest of the others are added, and of too many the furthest go. Who is out counts for nothing and
    /// keeps its seats.
    fn cut(&mut self, seed: usize, members: &mut [Member], places: &[Places], size: usize) {
        let (wanted, held) = (self.wanted(seed, members, size), Self::held(seed, members));
        if (wanted * SIZES_KEPT[0]..=wanted * SIZES_KEPT[1]).contains(&(held * 4)) {
            return;
        }
        let nth = |mut sorted: Vec<u64>, count: usize| match count.checked_sub(1).filter(|last| *last < sorted.len()) {
            Some(last) => *sorted.select_nth_unstable(last).1,
            None => u64::MAX,
        };
        let placed = |members: &[Member], is_seated: Option<bool>| -> Vec<u64> {
            let is_meant = |member: &Member| {
                member.is_whole() && is_seated.is_none_or(|is_seated| member.seats.has(seed) == is_seated)
            };
            members.iter().zip(places).filter(|(member, _)| is_meant(member)).map(|(_, places)| places[seed]).collect()
        };
        if held < wanted {
            let reach = nth(placed(members, Some(false)), wanted - held);
            for (member, places) in members.iter_mut().zip(places).filter(|(member, _)| member.is_whole()) {
                member.seats.set(seed, member.seats.has(seed) || places[seed] <= reach);
            }
        } else {
            let reach = nth(placed(members, Some(true)), wanted);
            for (member, places) in members.iter_mut().zip(places) {
                member.seats.set(seed, member.seats.has(seed) && places[seed] <= reach);
            }
        }
        self.0[seed].reach = nth(placed(members, None), wanted);
    }

    /// A seat more for each endpoint that does not get its part whatever its weight, with the cohort that has most to give.
    /// Returns whether there was any.
    fn feed_hungry(&self, members: &mut [Member]) -> bool {
        let mut any = false;
        for member in members.iter_mut().filter(|member| member.is_whole()) {
            if member.weight() * self.pull_on(member.seats.cohorts) < 1.0 - FED {
                let own = member.weight() * member.capacity;
                let gain = |seed: usize| {
                    let Demand { share, pull, .. } = self.0[seed];
                    share * own / (share / pull.max(f64::MIN_POSITIVE) + own)
                };
                let others = seeds(self.active() & !member.seats.cohorts);
                if let Some(seed) = others.max_by(|a, b| gain(*a).total_cmp(&gain(*b))) {
                    member.seats.set(seed, true);
                    any = true;
                }
            }
        }
        any
    }

    /// More seats for an endpoint that too few cohorts see, or too few calls: those nearest by hash and by what they call.
    fn give_spare(&self, member: &mut Member, places: &Places) {
        let calls = |seats: u64| seeds(seats).map(|seed| self.share(seed)).sum::<f64>();
        let needed = (member.capacity * SPARE).min(1.0);
        let is_enough = |seats: u64| seats.count_ones() >= COHORTS_MIN && calls(seats) >= needed;
        if is_enough(member.seats.cohorts) {
            return;
        }
        let near = |seed: usize| (places[seed] as f64 / self.share(seed), seed);
        let mut others: Vec<(f64, usize)> = seeds(self.active() & !member.seats.cohorts).map(near).collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, seed) in others {
            if is_enough(member.seats.cohorts) {
                break;
            }
            member.seats.set(seed, true);
        }
    }

    /// Weights by which every member gets its part, as near as its seats allow.
    fn fit(&mut self, members: &mut [Member]) {
        let mut weights: Vec<f64> = members.iter().map(Member::weight).collect();
        for _ in 0..ROUNDS_MAX {
            self.pull(members, &weights);
            let mut furthest = 0.0_f64;
            for (member, weight) in members.iter().zip(&mut weights).filter(|(member, _)| member.is_whole()) {
                let pull = self.pull_on(member.seats.cohorts);
                if pull > 0.0 {
                    furthest = furthest.max((*weight * pull - 1.0).abs());
                    *weight = 1.0 / pull;
                }
            }
            if furthest < NEAR {
                break;
            }
        }
        // Around 1: the same multiple of all weights makes no difference.
        let mut sorted = weights.clone();
        let middle = sorted.len() / 2;
        let median = if sorted.is_empty() { 1.0 } else { *sorted.select_nth_unstable_by(middle, f64::total_cmp).1 };
        for (member, weight) in members.iter_mut().zip(weights).filter(|(member, _)| member.is_whole()) {
            member.take_weight(weight / median);
        }
        self.remember_pull(members);
    }

    /// What each cohort sends, by weight and capacity of those that it sees.
    fn pull(&mut self, members: &[Member], weights: &[f64]) {
        let mut sums = [0.0; COHORTS];
        for (member, weight) in members.iter().zip(weights) {
            for seed in seeds(member.seats.cohorts) {
                sums[seed] += member.capacity * weight;
            }
        }
        for (seed, sum) in sums.into_iter().enumerate() {
            self.0[seed].pull = if sum > 0.0 { self.share(seed) / sum } else { 0.0 };
        }
    }

    /// The same of the weights that were given.
    fn remember_pull(&mut self, members: &[Member]) {
        let weights: Vec<f64> = members.iter().map(Member::weight).collect();
        self.pull(members, &weights);
    }

    fn pull_on(&self, cohorts: u64) -> f64 {
        seeds(cohorts).map(|seed| self.0[seed].pull).sum()
    }

    /// Gives a newcomer seats and a weight, and nobody else others.
    pub(super) fn admit(&self, member: &mut Member) {
        let places = places(member, self.active());
        for seed in seeds(self.active()).filter(|seed| places[*seed] <= self.0[*seed].reach) {
            member.seats.set(seed, true);
        }
        self.give_spare(member, &places);
        let pull = self.pull_on(member.seats.cohorts);
        if pull > 0.0 {
            member.take_weight(1.0 / pull);
        }
    }

    /// Whether some endpoint gets so much more or less than its part that it is no chance. `calls` is what rates are from.
    pub(super) fn is_off(&mut self, members: &[Member], calls: f64) -> bool {
        self.remember_pull(members);
        let demands = &*self;
        members.iter().filter(|member| member.is_whole()).any(|member| {
            let pull = demands.pull_on(member.seats.cohorts);
            // Calls come as they please: of n of them the standard deviation is the root of n.
            let of_seed = |seed: usize| demands.0[seed].pull.powi(2) / demands.share(seed).max(f64::MIN_POSITIVE);
            let called = seeds(member.seats.cohorts).filter(|seed| demands.0[*seed].pull > 0.0);
            let chance = (called.map(of_seed).sum::<f64>() / calls.max(1.0)).sqrt() / pull.max(f64::MIN_POSITIVE);
            (member.weight() * pull - 1.0).abs() > IMBALANCE + DEVIATIONS * chance
        })
    }
}

impl Seats {
    fn weight(&self) -> f64 {
        f64::from(self.weight_milli) / 1000.0
    }

    fn has(&self, seed: usize) -> bool {
        self.cohorts >> seed & 1 == 1
    }

    fn set(&mut self, seed: usize, is_taken: bool) {
        self.cohorts = self.cohorts & !(1 << seed) | u64::from(is_taken) << seed;
    }
}

impl Member {
    /// Whether it is not out.
    fn is_whole(&self) -> bool {
        self.capacity > 0.0
    }

    fn weight(&self) -> f64 {
        self.seats.weight()
    }

    fn take_weight(&mut self, weight: f64) {
        self.seats.weight_milli = (weight.clamp(*WEIGHTS.start(), *WEIGHTS.end()) * 1000.0).round() as u32;
    }
}
