//! The few endpoints one cohort may see, so that thousands of clients and thousands of endpoints do not all connect to
//! each other. Rendezvous hashing (Thaler, Ravishankar 1998): when an endpoint leaves, only its own place moves.

use super::ring;
use crate::{
    model::Cohort,
    snapshot::{EndpointSnapshot, ServiceSnapshot},
};

/// The most of a tier that one client may see; 0 for all. Of a ring everybody sees everything: with a part each, two clients
/// would send one key to two endpoints, and with the same part for all, the other endpoints would stand idle.
pub(crate) fn size(service: &ServiceSnapshot) -> usize {
    if ring::is_on(service) { 0 } else { service.config.subset_size as usize }
}

/// At most `size` of a tier, chosen by the cohort's seed; all of them when `size` is 0.
pub(super) fn choose<'a>(tier: &[&'a EndpointSnapshot], size: usize, cohort: &Cohort) -> Vec<&'a EndpointSnapshot> {
    let mut chosen = tier.to_vec();
    if size > 0 && chosen.len() > size {
        chosen.sort_by_cached_key(|e| cohort.tie_break(&e.spec.address));
        chosen.truncate(size);
    }
    chosen
}
