//! The order within a tier: whom to connect to first, and where to go when one fails. It is not "take the first": the
//! choice per call is the client's.

use std::cmp::Reverse;

use crate::{config::PolicyKind, model::Cohort, snapshot::EndpointSnapshot};

/// Sorts a tier as its policy prefers. Equals stand differently in each cohort, so that no endpoint is everybody's first.
pub(super) fn sort(policy: PolicyKind, tier: &mut [&EndpointSnapshot], cohort: &Cohort, ceiling: u32) {
    match policy {
        // By tenths: reports are seconds old, and a stricter order would send every client's first call to one endpoint.
        PolicyKind::LeastLoad => {
            tier.sort_by_cached_key(|e| (e.load_permille / 100, cohort.tie_break(&e.spec.address)))
        }
        PolicyKind::WeightedRoundRobin => {
            tier.sort_by_cached_key(|e| {
                (Reverse(super::weight(policy, e, ceiling)), cohort.tie_break(&e.spec.address))
            });
        }
        PolicyKind::RoundRobin | PolicyKind::RingHash => tier.sort_by_cached_key(|e| cohort.tie_break(&e.spec.address)),
    }
}
