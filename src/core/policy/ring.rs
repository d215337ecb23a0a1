//! What clients need to build one and the same ring: its seed, where a call's key is, and a key of every endpoint. The ring
//! is theirs, since only they know their calls in flight ([note 16](../decisions/0016-the-ring-is-the-clients.md)).

use std::collections::BTreeSet;

use crate::{
    config::{PolicyKind, RingConfig},
    hash::{self, Hasher},
    model::{EndpointSpec, Instance},
    snapshot::ServiceSnapshot,
};

/// Takes the seed of rings away from what else is hashed of a service's name.
const SEED_OF_SEEDS: u64 = 0x72_69_6e_67;

/// The parameters of a ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ring {
    /// The same on every replica and after every restart, another one for every service: what is everybody's first key of
    /// one service is not that of all.
    pub hash_seed: u64,
    /// As configured.
    pub config: RingConfig,
}

impl Ring {
    /// That of a service, if its policy is `ring_hash`.
    pub(super) fn of(service: &ServiceSnapshot) -> Option<Self> {
        is_on(service).then(|| Self {
            hash_seed: hash::text(SEED_OF_SEEDS, service.name.as_str()),
            config: service.config.ring_hash.clone(),
        })
    }

    pub(super) fn digest(&self, hasher: &mut Hasher) {
        hasher.number(self.hash_seed);
        hasher.text(self.config.header.as_ref().map_or("", |header| header.as_str()));
        hasher.number(u64::from(self.config.load_bound_percent));
    }
}

/// Whether the policy is `ring_hash`.
pub(super) fn is_on(service: &ServiceSnapshot) -> bool {
    match service.config.policy {
        PolicyKind::RingHash => true,
        PolicyKind::LeastLoad | PolicyKind::WeightedRoundRobin | PolicyKind::RoundRobin => false,
    }
}

/// What endpoints are known by on the ring.
pub(super) struct Keys<'a> {
    is_on: bool,
    /// Names that more than one offered endpoint goes by: a source may say so, and one of them would get no key at all.
    doubles: BTreeSet<&'a Instance>,
}

impl<'a> Keys<'a> {
    pub(super) fn of_service(service: &'a ServiceSnapshot) -> Self {
        let is_on = is_on(service);
        let mut seen = BTreeSet::new();
        let named = service.offered().map(|e| &e.spec.instance).filter(|_| is_on);
        Self { is_on, doubles: named.filter(|instance| !seen.insert(*instance)).collect() }
    }

    /// Its name, so that a backend that comes back at another address has its keys again.
    pub(super) fn is_by_instance(&self, spec: &EndpointSpec) -> bool {
        self.is_on && !spec.instance.as_str().is_empty() && !self.doubles.contains(&spec.instance)
    }
}
