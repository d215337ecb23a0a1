//! The few endpoints one cohort may see, so that thousands of clients and thousands of endpoints do not all connect to
//! each other. Where the table has found out who calls how much, an endpoint has seats: the cohorts that see it, and a weight
//! for it. Otherwise by rendezvous hashing (Thaler, Ravishankar 1998): when an endpoint leaves, only its own place moves.

use crate::{
    limits::WEIGHT_MAX,
    model::Cohort,
    snapshot::{EndpointSnapshot, Seats},
};

/// The usual weight: what is a part of it can be said in whole numbers.
const WEIGHT_USUAL: u64 = 100;

const MILLION: u64 = 1_000_000;

/// What a cohort sees of a tier.
pub(super) struct Subset<'a> {
    pub(super) endpoints: Vec<&'a EndpointSnapshot>,
    /// By how many thousandths weights are multiplied, for the sake of their parts; 0 where they are as the table has them.
    scale_milli: u64,
}

/// At most `size` of a tier, or those that have a seat for the cohort; all of them without a size.
pub(super) fn choose<'a>(tier: &[&'a EndpointSnapshot], size: Option<usize>, cohort: &Cohort) -> Subset<'a> {
    let Some(size) = size.filter(|size| tier.len() > *size) else {
        return Subset { endpoints: tier.to_vec(), scale_milli: 0 };
    };
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
    let is_even = endpoints.iter().all(|e| e.seats.weight_milli == Seats::default().weight_milli);
    let scale_milli = if is_even { 0 } else { scale_milli(&endpoints) };
    Subset { endpoints, scale_milli }
}

/// So much that a hundredth of the least weight can be said, as far as the largest one bears it.
fn scale_milli(endpoints: &[&EndpointSnapshot]) -> u64 {
    let whole = || endpoints.iter().map(|e| u64::from(e.spec.weight) * u64::from(e.seats.weight_milli));
    let (least, largest) = (whole().min().unwrap_or(0).max(1), whole().max().unwrap_or(0).max(1));
    (WEIGHT_USUAL * MILLION).div_ceil(least).min(u64::from(WEIGHT_MAX) * MILLION / largest).max(1)
}

impl Subset<'_> {
    /// The share of calls that an endpoint is to have of this cohort, against the others.
    pub(super) fn weight(&self, endpoint: &EndpointSnapshot) -> u32 {
        if self.scale_milli == 0 || endpoint.weight == 0 {
            return endpoint.weight;
        }
        let milli = u64::from(endpoint.weight) * u64::from(endpoint.seats.weight_milli);
        let weight = milli.saturating_mul(self.scale_milli).saturating_add(MILLION / 2) / MILLION;
        weight.clamp(1, u64::from(WEIGHT_MAX)) as u32
    }
}
