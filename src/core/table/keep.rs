//! What outlives the balancer goes out of the table here, and comes back into the table of the next start. What came back
//! serves at once, and is stale until its sources and backends have spoken again: silence meanwhile is the balancer's own
//! doing and takes nobody out.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Refusal, Table,
    capacity::{Capacity, USUAL_MILLI},
    endpoint::{Endpoint, Registration},
    health::Health,
    service::Service,
};
use crate::{
    config::PolicyKind,
    kept::{Kept, KeptEndpoint, KeptService},
    limits::{CAPACITY_MILLI_MAX, CAPACITY_MILLI_MIN, PRIORITY_MAX, SERVICES_MAX, WEIGHT_MAX},
    model::{EndpointSpec, Timestamp},
    snapshot::SourceSnapshot,
};

/// Steps in which a growing share is kept: each is a file to be written.
const WARMING_STEP_PERMILLE: u64 = 250;

impl Table {
    /// What the next start is to begin with, where that is not what it was the last time. Asked for as often as it can be
    /// written; loads and checks that change nothing are no reason to.
    pub fn keep(&mut self, now: Timestamp) -> Option<Kept> {
        if !std::mem::take(&mut self.unkept) {
            return None;
        }
        let mut kept = Kept::default();
        for (name, service) in &mut self.services {
            let held = self.kept.services.get(name);
            let moved = std::mem::take(&mut service.unkept);
            let service = match held {
                Some(held) if !moved => Arc::clone(held),
                Some(held) => {
                    Some(service.keep(now)).filter(|fresh| *fresh != **held).map_or_else(|| Arc::clone(held), Arc::new)
                }
                None => Arc::new(service.keep(now)),
            };
            // Nothing to serve: the next start finds out about it as this one did.
            if !service.endpoints.is_empty() {
                kept.services.insert(name.clone(), service);
            }
        }
        let is_same = self.kept.services.len() == kept.services.len()
            && self
                .kept
                .services
                .iter()
                .zip(&kept.services)
                .all(|(old, new)| old.0 == new.0 && Arc::ptr_eq(old.1, new.1));
        if is_same {
            return None;
        }
        self.kept = kept.clone();
        Some(kept)
    }

    /// Begins with what the last start had kept, or refuses it whole and changes nothing. To be called before anything is
    /// applied.
    pub fn restore(&mut self, kept: Kept, now: Timestamp) -> Result<(), Refusal> {
        if kept.services.len() > SERVICES_MAX {
            return Err(Refusal::TooManyServices { max: SERVICES_MAX });
        }
        for (service, kept) in &kept.services {
            Service::room(service, kept.endpoints.len())?;
            Service::named_once(service, kept.endpoints.iter().map(|endpoint| &endpoint.spec))?;
        }
        for (name, kept) in kept.services {
            for source in &kept.answered {
                let stale = Some((now, "has not answered since the balancer started".to_owned()));
                self.sources.entry(source.clone()).or_insert(SourceSnapshot { stale, ..SourceSnapshot::default() });
            }
            let mut service = Service::new(name.clone(), Arc::clone(&self.defaults), self.settled_at, now);
            service.restore(Arc::unwrap_or_clone(kept), now);
            self.services.insert(name, service);
        }
        self.changed = true;
        Ok(())
    }
}

impl Service {
    fn keep(&self, now: Timestamp) -> KeptService {
        KeptService {
            settling: self.is_settling(now),
            answered: self.answered.clone(),
            endpoints: self.endpoints.values().map(|endpoint| self.keep_endpoint(endpoint, now)).collect(),
        }
    }

    fn keep_endpoint(&self, endpoint: &Endpoint, now: Timestamp) -> KeptEndpoint {
        let share = endpoint.slow_start_permille(self.config.slow_start, now);
        let step = (share / WARMING_STEP_PERMILLE * WARMING_STEP_PERMILLE) as u32;
        KeptEndpoint {
            spec: endpoint.spec.clone(),
            listed: endpoint.listed.clone().filter(|listed| *listed != endpoint.spec),
            listed_by: endpoint.listed_by.clone(),
            registered: endpoint.registration.is_some(),
            health: endpoint.health.keep(),
            trusted: endpoint.trusted,
            draining: endpoint.draining,
            departed: endpoint.departed_at.is_some(),
            withdrawn: endpoint.withdrawn_at.is_some(),
            newcomer: endpoint.newcomer,
            warming_permille: endpoint.warming_since.map(|_| step),
            capacity_milli: self.keep_capacity(endpoint),
        }
    }

    /// What was found out of the host itself, where lists go by that. What weights make up for besides is of the moment.
    fn keep_capacity(&self, endpoint: &Endpoint) -> Option<u32> {
        let is_asked_for = match self.config.policy {
            PolicyKind::LeastLoad | PolicyKind::WeightedRoundRobin => true,
            PolicyKind::RoundRobin | PolicyKind::RingHash => false,
        };
        (is_asked_for && endpoint.capacity.is_known()).then(|| endpoint.capacity.milli())
    }

    /// Lets go of sources that it was restored with and that the configuration no longer has.
    pub(super) fn drop_unnamed(&mut self, now: Timestamp) {
        for source in std::mem::take(&mut self.unnamed) {
            self.dropped(&source, now);
        }
    }

    fn restore(&mut self, kept: KeptService, now: Timestamp) {
        self.restored = !kept.settling;
        // What they left unsaid before proves nothing until they speak again.
        for sources in [&mut self.silent, &mut self.unheard, &mut self.unnamed] {
            sources.clone_from(&kept.answered);
        }
        self.answered = kept.answered;
        let endpoints = kept.endpoints.into_iter().map(|kept| restored(kept, now));
        self.endpoints = endpoints.map(|endpoint| (endpoint.spec.address.clone(), endpoint)).collect();
        self.scale.is_known = self.endpoints.values().any(|endpoint| endpoint.capacity.is_known());
        self.restore_weights();
    }

    /// Around the mean of each priority, as the last start had them: lists that say the same are no new ones.
    fn restore_weights(&mut self) {
        let mut tiers: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
        for endpoint in self.endpoints.values() {
            let (weights, capacities) = tiers.entry(endpoint.spec.priority).or_default();
            *weights += u64::from(endpoint.spec.weight);
            *capacities += endpoint.capacity_milli();
        }
        for endpoint in self.endpoints.values_mut() {
            let (weights, capacities) = tiers.get(&endpoint.spec.priority).copied().unwrap_or_default();
            let milli = u64::from(endpoint.capacity.milli() * USUAL_MILLI) * weights / capacities.max(1);
            let milli = u32::try_from(milli).unwrap_or(CAPACITY_MILLI_MAX);
            endpoint.corrected_milli = milli.clamp(CAPACITY_MILLI_MIN, CAPACITY_MILLI_MAX);
        }
    }
}

fn restored(kept: KeptEndpoint, now: Timestamp) -> Endpoint {
    let spec = bounded(kept.spec);
    let listed = match kept.listed {
        Some(listed) => Some(bounded(listed)),
        None => (!kept.listed_by.is_empty()).then(|| spec.clone()),
    };
    let capacity = kept.capacity_milli.map_or_else(Capacity::default, |milli| Capacity::restored(milli, now));
    let registration = Registration { renewed_at: now, connected: false, late: false, restored: true };
    Endpoint {
        listed_by: kept.listed_by,
        listed,
        registration: kept.registered.then_some(registration),
        health: Health::restored(kept.health),
        draining: kept.draining,
        departed_at: kept.departed.then_some(now),
        withdrawn_at: kept.withdrawn.then_some(now),
        warming_since: kept.warming_permille.map(|_| now),
        warmed_permille: kept.warming_permille.map_or(0, |permille| u64::from(permille.min(1000))),
        trusted: kept.trusted,
        capacity,
        ..Endpoint::new(spec, kept.newcomer, now)
    }
}

/// Numbers that the edge lets through no larger: sums rely on it.
fn bounded(spec: EndpointSpec) -> EndpointSpec {
    EndpointSpec { weight: spec.weight.min(WEIGHT_MAX), priority: spec.priority.min(PRIORITY_MAX), ..spec }
}
