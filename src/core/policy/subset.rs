//! The few endpoints one cohort may see, so that thousands of clients and thousands of endpoints do not all connect to
//! each other. Where the table has found out who calls how much, an endpoint has seats: the cohorts that see it, and a weight
//! for it. Otherwise by rendezvous hashing (Thaler, Ravishankar 1998): when an endpoint leaves, only its own place moves.

use std::collections::BTreeMap;

use super::{weight, whole_weight};
use crate::{
    config::PolicyKind,
    limits::WEIGHT_MAX,
    model::{Address, Cohort, WEIGHT_USUAL},
    snapshot::EndpointSnapshot,
};

/// Millionths: thousandths of a seat's weight, and of those what help makes of it.
const WHOLE: u64 = 1_000_000;
const MILLI: u64 = 1000;

/// Endpoints of a zone that a client sees at least, however little of its calls these are to help with.
const HELPERS_MIN: usize = 3;

/// What a cohort sees of a tier.
pub(super) struct Subset<'a> {
    pub(super) endpoints: Vec<&'a EndpointSnapshot>,
    policy: PolicyKind,
    /// The part of its weight that each of them has, by address, and the same multiple for all, so that it can be said in
    /// whole numbers: thousandths. Empty where all have the whole of it.
    parts: BTreeMap<&'a Address, u64>,
    scale_milli: u64,
}

/// What calls are divided by in a zone, by all of it, and by what a cohort sees of it and with which seats.
struct Shares {
    all: u128,
    seen: u128,
}

impl Shares {
    fn of(all: &[&EndpointSnapshot], seen: &[&EndpointSnapshot], seat: impl Fn(&EndpointSnapshot) -> u64) -> Self {
        let all: u64 = all.iter().map(|e| e.share()).sum();
        let seen: u128 = seen.iter().map(|e| u128::from(e.share()) * u128::from(seat(e))).sum();
        Self { all: u128::from(all.max(1)), seen: (seen / u128::from(MILLI)).max(1) }
    }
}

/// About `size` of a tier, or those that have a seat for the cohort; all of them without a size. Of each zone that helps out
/// some are chosen apart, and have a part of their weight, in thousandths: as it is of a whole zone beside the whole of the
/// client's own.
pub(super) fn choose<'a>(
    tier: &[&'a EndpointSnapshot],
    size: Option<usize>,
    policy: PolicyKind,
    cohort: &Cohort,
    help: impl Fn(&EndpointSnapshot) -> Option<u32>,
) -> Subset<'a> {
    // Who is at home comes first.
    let mut zones: BTreeMap<Option<(&str, u32)>, Vec<&EndpointSnapshot>> = BTreeMap::new();
    for endpoint in tier.iter().copied() {
        let helper = help(endpoint).map(|milli| (endpoint.spec.locality.zone(), milli));
        zones.entry(helper).or_default().push(endpoint);
    }
    let mut subset = Subset { endpoints: Vec::new(), policy, parts: BTreeMap::new(), scale_milli: MILLI };
    let mut home = Shares { all: 1, seen: 1 };
    for (helper, all) in zones {
        let size = size.filter(|size| all.len() > *size);
        let seat = |e: &EndpointSnapshot| size.map_or(MILLI, |_| u64::from(e.seats.weight_milli));
        let chosen = match (size, helper) {
            (None, _) => all.clone(),
            (Some(size), None) => seen(&all, size, size, cohort),
            (Some(size), Some((_, milli))) => {
                let shares = Shares::of(&all, &[], seat);
                // As many for each call as at home.
                let wanted = size as u128 * u128::from(milli) * shares.all / (u128::from(MILLI) * home.all);
                let wanted = usize::try_from(wanted).unwrap_or(size).clamp(HELPERS_MIN.min(size), size);
                seen(&all, size, wanted, cohort)
            }
        };
        let shares = Shares::of(&all, &chosen, seat);
        for endpoint in &chosen {
            let part = match helper {
                None => seat(endpoint) * MILLI,
                Some((_, milli)) => {
                    let whole = u128::from(seat(endpoint) * u64::from(milli));
                    // Beside the part of those at home that the cohort sees.
                    let part = whole.saturating_mul(home.seen).saturating_mul(shares.all) / (home.all * shares.seen);
                    u64::try_from(part).unwrap_or(u64::MAX)
                }
            };
            subset.parts.insert(&endpoint.spec.address, part.max(1));
        }
        if helper.is_none() {
            home = shares;
        }
        subset.endpoints.extend(chosen);
    }
    if subset.parts.values().all(|part| *part == WHOLE) {
        subset.parts.clear();
    }
    subset.scale_milli = subset.scale_milli();
    subset
}

/// Those that have a seat for the cohort, and those that are nobody's. Where so many of them are out that less than three
/// quarters of what is wanted are left, others fill up to that, the nearest by hash: for one that goes out one comes, and
/// leaves when that is back. Where nothing is known of the cohort, `size` by hash alone.
fn seen<'a>(tier: &[&'a EndpointSnapshot], size: usize, wanted: usize, cohort: &Cohort) -> Vec<&'a EndpointSnapshot> {
    let is_seated = |e: &EndpointSnapshot| e.seats.cohorts.checked_shr(cohort.seed as u32).unwrap_or(0) & 1 == 1;
    let (mut endpoints, others): (Vec<_>, Vec<_>) = tier.iter().copied().partition(|e| is_seated(e));
    if endpoints.is_empty() {
        return nearest(others, size, cohort);
    }
    let (open, taken): (Vec<_>, Vec<_>) = others.into_iter().partition(|e| e.seats.cohorts == 0);
    endpoints.extend(nearest(open, size, cohort));
    let missing = (wanted * 3).div_ceil(4).saturating_sub(endpoints.len());
    endpoints.extend(nearest(taken, missing, cohort));
    endpoints
}

fn nearest<'a>(mut of: Vec<&'a EndpointSnapshot>, size: usize, cohort: &Cohort) -> Vec<&'a EndpointSnapshot> {
    if of.len() > size && size > 0 {
        of.sort_by_cached_key(|e| cohort.tie_break(&e.spec.address));
    }
    of.truncate(size);
    of
}

impl Subset<'_> {
    /// So much that a hundredth of the least weight can be said, as far as the largest one bears it. By what is configured:
    /// what comes and goes with slow starts is not to change everybody's.
    fn scale_milli(&self) -> u64 {
        let part = |e: &EndpointSnapshot| self.parts.get(&e.spec.address).copied().unwrap_or(WHOLE);
        let milli = || self.endpoints.iter().map(|e| whole_weight(self.policy, e).saturating_mul(part(e)));
        let (least, largest) = (milli().min().unwrap_or(0).max(1), milli().max().unwrap_or(0).max(1));
        let wanted = (u64::from(WEIGHT_USUAL) * WHOLE * MILLI).div_ceil(least);
        wanted.min(u64::from(WEIGHT_MAX) * WHOLE * MILLI / largest).max(1)
    }

    /// The share of calls that an endpoint is to have of this cohort, against the others.
    pub(super) fn weight(&self, endpoint: &EndpointSnapshot, ceiling: u32) -> u32 {
        let whole = weight(self.policy, endpoint, ceiling);
        let Some(part) = self.parts.get(&endpoint.spec.address).filter(|_| whole > 0) else {
            return whole;
        };
        let weight = u64::from(whole).saturating_mul(*part).saturating_mul(self.scale_milli);
        (weight.saturating_add(WHOLE * MILLI / 2) / (WHOLE * MILLI)).clamp(1, u64::from(WEIGHT_MAX)) as u32
    }
}
