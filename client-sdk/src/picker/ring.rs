//! Consistent hashing with bounded loads (Karger et al. 1997; Mirrokni, Thorup, Zadimoghaddam 2018): a call's key has a place on
//! a ring, and the call goes to the endpoint whose place comes next. An endpoint has places in proportion to its weight, so
//! that one leaving or coming moves its own keys and no others; and where one is full, keys go on to the next.
//!
//! A ring is made once per list, over all endpoints of a tier, connected or not: a connection that is lost for a moment moves
//! its keys for that moment. How places are computed is part of the wire contract: all clients of a service agree.

use std::{collections::BTreeMap, sync::Arc};

use super::{Candidate, Picker, Standing, fnv_1a, rng::mix};

/// Places of an endpoint of weight 100, where weights are as usual: shares are then within some 6 % of weights.
const PLACES_PER_WEIGHT_PERCENT: u64 = 256;
/// The heaviest endpoint of a tier has no fewer places than this, and no more than that: all weights of a tier are stretched or
/// squeezed by the same power of 16. To cross such a step moves most keys, and so usual weights are far from any: 25 to 6,399
/// for the heaviest is one stretch.
const PLACES_OF_HEAVIEST: std::ops::Range<u64> = 64..16_384;
const STRETCH_BITS: u32 = 4;
/// Places on one ring; beyond this every endpoint has half as many, and again. 12 bytes each.
pub const PLACES_MAX: usize = 1 << 19;
/// Places looked at for an endpoint that is fit, before all endpoints are looked through without regard to the key.
const WALK_MAX: usize = 1_024;
/// Calls in flight of this client that an endpoint may have whatever the others have: between a few calls chance alone makes
/// more than any bound, and to move a key costs its endpoint what it remembers.
pub const CALLS_SPARED: u32 = 4;
/// No endpoint of that number.
const NOBODY: u32 = u32::MAX;

/// What a call is known by: calls of the same key go to the same endpoint while that one can take them.
///
/// ```
/// use lookaside_sdk::picker::Key;
/// assert_eq!(Key::of("user-7"), Key::of(b"user-7"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u64);

impl Key {
    /// The key of these bytes: FNV-1a, 64 bits.
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        Self(fnv_1a(bytes.as_ref()))
    }

    fn place(self, seed: u64) -> u64 {
        mix(self.0 ^ seed)
    }
}

/// An endpoint as the list has it, for a ring.
#[derive(Debug, Clone, Copy)]
pub struct Keyed<'a> {
    /// Id of its peer.
    pub id: u64,
    /// What its places are computed from.
    pub key: &'a str,
    /// Failover tier.
    pub priority: u32,
    /// Share wanted; 0 has no place.
    pub weight: u32,
}

/// The rings of a list, one per tier.
#[derive(Debug, Clone, Default)]
pub struct Rings {
    tiers: BTreeMap<u32, Arc<Ring>>,
}

impl Rings {
    /// The rings of a list. Those of `before` that are still right are kept: they took some work. The bound is in thousandths of
    /// a fair share; 0 is none.
    pub fn new<'a>(seed: u64, bound_milli: u32, all: impl IntoIterator<Item = Keyed<'a>>, before: &Self) -> Self {
        let mut tiers: BTreeMap<u32, Vec<Keyed<'a>>> = BTreeMap::new();
        for keyed in all.into_iter().filter(|keyed| keyed.weight > 0) {
            tiers.entry(keyed.priority).or_default().push(keyed);
        }
        let made = tiers.into_iter().map(|(tier, keyed)| {
            let (owners, bound_milli) = (owners(seed, &keyed), bound_milli.max(1_000) * u32::from(bound_milli > 0));
            let same = |ring: &&Arc<Ring>| ring.is_of(seed, bound_milli, &owners);
            let ring = before.tiers.get(&tier).filter(same).cloned();
            (tier, ring.unwrap_or_else(|| Arc::new(Ring::new(seed, bound_milli, owners))))
        });
        Self { tiers: made.collect() }
    }

    pub(super) fn of_tier(&self, priority: u32) -> Option<&Arc<Ring>> {
        self.tiers.get(&priority)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Owner {
    id: u64,
    /// Where the row of its places begins.
    base: u64,
    places: u32,
}

/// Who gets how many places.
fn owners(seed: u64, keyed: &[Keyed<'_>]) -> Vec<Owner> {
    let heaviest = keyed.iter().map(|k| u64::from(k.weight)).max().unwrap_or(1);
    let of_weight = |weight: u64| weight * PLACES_PER_WEIGHT_PERCENT / 100;
    let (mut more, mut less) = (0, 0);
    while of_weight(heaviest << more) < PLACES_OF_HEAVIEST.start {
        more += STRETCH_BITS;
    }
    while of_weight(heaviest) >> less >= PLACES_OF_HEAVIEST.end {
        less += STRETCH_BITS;
    }
    let places = |weight: u32, less: u32| ((of_weight(u64::from(weight) << more)) >> less).max(1);
    while keyed.iter().map(|k| places(k.weight, less)).sum::<u64>() > PLACES_MAX as u64 && less < u64::BITS - 1 {
        less += 1;
    }
    let owner =
        |k: &Keyed<'_>| Owner { id: k.id, base: Key::of(k.key).place(seed), places: places(k.weight, less) as u32 };
    keyed.iter().map(owner).collect()
}

/// The places of one tier, sorted.
#[derive(Debug)]
pub(super) struct Ring {
    seed: u64,
    bound_milli: u32,
    owners: Vec<Owner>,
    places: Vec<u64>,
    /// Whose, as an index into `owners`.
    owner_at: Vec<u32>,
}

impl Ring {
    fn new(seed: u64, bound_milli: u32, owners: Vec<Owner>) -> Self {
        let total = owners.iter().map(|o| o.places as usize).sum();
        let mut all: Vec<(u64, u64, u32)> = Vec::with_capacity(total);
        for (at, owner) in owners.iter().enumerate() {
            // Row by row the same, however long: more weight adds places and moves none.
            all.extend((0..u64::from(owner.places)).map(|n| (super::rng::step(owner.base, n), owner.base, at as u32)));
        }
        // Two places that fall together, once in a million rings, are told apart alike by every client.
        all.sort_unstable();
        let (places, owner_at) = all.into_iter().map(|(place, _, at)| (place, at)).unzip();
        Self { seed, bound_milli, owners, places, owner_at }
    }

    fn is_of(&self, seed: u64, bound_milli: u32, owners: &[Owner]) -> bool {
        self.seed == seed && self.bound_milli == bound_milli && self.owners == owners
    }

    /// The first place at or after that of the key, round the ring.
    fn first(&self, key: Key) -> usize {
        let after = self.places.partition_point(|place| *place < key.place(self.seed));
        if after < self.places.len() { after } else { 0 }
    }
}

/// A ring, and where its endpoints stand in one picker.
#[derive(Debug)]
pub(super) struct Placed {
    ring: Arc<Ring>,
    /// Place among the candidates by place among the owners; [`NOBODY`] while it is not connected.
    candidate_at: Vec<u32>,
}

impl Placed {
    pub(super) fn new<T>(ring: Arc<Ring>, candidates: &[Candidate<T>]) -> Self {
        let by_id: BTreeMap<u64, u32> = candidates.iter().enumerate().map(|(at, c)| (c.peer.id(), at as u32)).collect();
        let candidate_at = ring.owners.iter().map(|owner| by_id.get(&owner.id).copied().unwrap_or(NOBODY)).collect();
        Self { ring, candidate_at }
    }
}

impl<T> Picker<T> {
    /// The first endpoint after the key's place that is fit and has room under the bound; if none has, the first that is fit.
    pub(super) fn on_ring(&self, placed: &Placed, key: Key, now_us: u64, tried: &[u64]) -> Option<&Candidate<T>> {
        let ring = &placed.ring;
        let (before, after) = ring.owner_at.split_at(ring.first(key));
        let mut first_fit = None;
        let mut last_owner = NOBODY;
        for owner in after.iter().chain(before).take(WALK_MAX) {
            if std::mem::replace(&mut last_owner, *owner) == *owner {
                continue;
            }
            let at = placed.candidate_at.get(*owner as usize);
            let Some(candidate) = at.and_then(|at| self.candidates.get(*at as usize)) else { continue };
            match self.standing(candidate, now_us, tried) {
                Standing::Fit if self.has_room(ring, candidate) => return Some(candidate),
                Standing::Fit => _ = first_fit.get_or_insert(candidate),
                // The call that finds out is one of its own keys.
                Standing::Canary if self.admits(candidate, now_us, tried) => return Some(candidate),
                Standing::Canary | Standing::Stalled | Standing::Aside | Standing::Tried | Standing::Full => {}
            }
        }
        first_fit
    }

    /// Whether one more call leaves it within the bound: its share of all calls in flight, this one included, times the bound.
    fn has_room(&self, ring: &Ring, candidate: &Candidate<T>) -> bool {
        let in_flight = candidate.peer.in_flight();
        if in_flight < CALLS_SPARED || ring.bound_milli == 0 {
            return true;
        }
        let all = u128::from(self.fleet.in_flight()) + 1;
        let bound = all * u128::from(candidate.share) * u128::from(ring.bound_milli);
        u128::from(in_flight) * u128::from(self.share_sum) * 1_000 < bound
    }
}

#[cfg(test)]
mod tests;
