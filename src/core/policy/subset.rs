//! The few endpoints one cohort may see, so that thousands of clients and thousands of endpoints do not all connect to
//! each other. Where the table has found out who calls how much, an endpoint has seats: the cohorts that see it, and a weight
//! for it. Otherwise by rendezvous hashing (Thaler, Ravishankar 1998): when an endpoint leaves, only its own place moves.

use std::collections::BTreeMap;

use super::{WEIGHT_USUAL, weight, whole_weight};
use crate::{
    config::PolicyKind,
    limits::WEIGHT_MAX,
    model::{Address, Cohort},
    snapshot::EndpointSnapshot,
};

/// Thousandths.
const WHOLE: u64 = 1000;

/// What a cohort sees of a tier.
pub(super) struct Subset<'a> {
    pub(super) endpoints: Vec<&'a EndpointSnapshot>,
    policy: PolicyKind,
    /// The part of its weight that each of them has, by address, and the same multiple for all, so that it can be said in
    /// whole numbers: thousandths. Empty where all have the whole of it.
    parts: BTreeMap<&'a Address, u64>,
    scale_milli: u64,
}

/// At most `size` of a tier, or those that have a seat for the cohort; all of them without a size. Those that help out are
/// chosen apart, and have a part of their weight, in thousandths.
pub(super) fn choose<'a>(
    tier: &[&'a EndpointSnapshot],
    size: Option<usize>,
    policy: PolicyKind,
    cohort: &Cohort,
    help: impl Fn(&EndpointSnapshot) -> Option<u32>,
) -> Subset<'a> {
    let (helpers, home): (Vec<_>, Vec<_>) = tier.iter().copied().partition(|e| help(e).is_some());
    let mut subset = Subset { endpoints: Vec::new(), policy, parts: BTreeMap::new(), scale_milli: WHOLE };
    let mut seen_of_home = WHOLE;
    for all in [home, helpers] {
        let size = size.filter(|size| all.len() > *size);
        let chosen = size.map_or_else(|| all.clone(), |size| seen(&all, size, cohort));
        let seat = |e: &EndpointSnapshot| size.map_or(WHOLE, |_| u64::from(e.seats.weight_milli));
        let sum = |of: &[&EndpointSnapshot]| of.iter().map(|e| u64::from(e.spec.weight) * seat(e)).sum::<u64>();
        let seen = (sum(&chosen) * WHOLE).div_ceil(sum(&all).max(1)).max(1);
        for endpoint in &chosen {
            let part = match help(endpoint) {
                None => seat(endpoint),
                // Beside the part of those at home that the cohort sees.
                Some(milli) => seat(endpoint) * u64::from(milli) * seen_of_home / (WHOLE * seen),
            };
            subset.parts.insert(&endpoint.spec.address, part.max(1));
        }
        subset.endpoints.extend(chosen);
        seen_of_home = seen;
    }
    if subset.parts.values().all(|part| *part == WHOLE) {
        subset.parts.clear();
    }
    subset.scale_milli = subset.scale_milli();
    subset
}

fn seen<'a>(tier: &[&'a EndpointSnapshot], size: usize, cohort: &Cohort) -> Vec<&'a EndpointSnapshot> {
    let is_seated = |e: &&EndpointSnapshot| e.seats.cohorts.checked_shr(cohort.seed as u32).unwrap_or(0) & 1 == 1;
    let mut endpoints: Vec<_> = tier.iter().copied().filter(is_seated).collect();
    // Of those that are nobody's, as a tier that helps out, and of all where nothing is known of the cohort.
    let is_open = |e: &&EndpointSnapshot| endpoints.is_empty() || e.seats.cohorts == 0;
    let mut open: Vec<_> = tier.iter().copied().filter(is_open).collect();
    if open.len() > size {
        open.sort_by_cached_key(|e| cohort.tie_break(&e.spec.address));
        open.truncate(size);
    }
    endpoints.extend(open);
    endpoints
}

impl Subset<'_> {
    /// So much that a hundredth of the least weight can be said, as far as the largest one bears it. By what is configured:
    /// what comes and goes with slow starts is not to change everybody's.
    fn scale_milli(&self) -> u64 {
        let part = |e: &EndpointSnapshot| self.parts.get(&e.spec.address).copied().unwrap_or(WHOLE);
        let milli = || self.endpoints.iter().map(|e| whole_weight(self.policy, e) * part(e));
        let (least, largest) = (milli().min().unwrap_or(0).max(1), milli().max().unwrap_or(0).max(1));
        let wanted = (WEIGHT_USUAL * WHOLE * WHOLE).div_ceil(least);
        wanted.min(u64::from(WEIGHT_MAX) * WHOLE * WHOLE / largest).max(1)
    }

    /// The share of calls that an endpoint is to have of this cohort, against the others.
    pub(super) fn weight(&self, endpoint: &EndpointSnapshot, ceiling: u32) -> u32 {
        let whole = weight(self.policy, endpoint, ceiling);
        let Some(part) = self.parts.get(&endpoint.spec.address).filter(|_| whole > 0) else {
            return whole;
        };
        let weight = (u64::from(whole) * part).saturating_mul(self.scale_milli);
        (weight.saturating_add(WHOLE * WHOLE / 2) / (WHOLE * WHOLE)).clamp(1, u64::from(WEIGHT_MAX)) as u32
    }
}
