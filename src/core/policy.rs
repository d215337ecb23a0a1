//! From the snapshot of a service to the list of one cohort: eligible, then priority and locality, then subset, then
//! order. Pure: the same snapshot and cohort give the same list, on every replica. Knows nothing of how the snapshot
//! came about.

use std::collections::BTreeMap;

use crate::{
    ceiling,
    config::PolicyKind,
    hash::Hasher,
    limits::WEIGHT_MAX,
    model::{Address, Cohort, EndpointSpec, Locality, ServiceName, Version, WEIGHT_USUAL},
    snapshot::{Code, EndpointSnapshot, Mode, ServiceSnapshot, State},
};

mod difference;
mod order;
mod ring;
mod subset;
mod tier;

pub use difference::Difference;
pub use ring::Ring;
use tier::Tiers;

/// How a list is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListMode {
    /// As it is.
    Normal,
    /// Health was ignored.
    Panic,
    /// Other zones serve beside the client's own.
    ZoneFailover,
    /// Kept against the evidence.
    LastGood,
    /// Nothing to offer.
    Empty,
}

impl ListMode {
    /// The word, as in the wire contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Panic => "PANIC",
            Self::ZoneFailover => "ZONE_FAILOVER",
            Self::LastGood => "LAST_GOOD",
            Self::Empty => "EMPTY",
        }
    }
}

/// The answer to a cohort of clients: an ordered list, and how far to trust it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Of which service.
    pub service: ServiceName,
    /// Of the service when this was computed.
    pub version: Version,
    /// Hash of everything below; equal digests mean equal lists.
    pub digest: u64,
    /// Whether silence about an endpoint means that it is gone.
    pub complete: bool,
    /// How to take it.
    pub mode: ListMode,
    /// Why, in words.
    pub note: String,
    /// In order of preference for connecting and failing over; those named out come last, with weight 0.
    pub endpoints: Vec<Assigned>,
    /// How a client is to choose per call.
    pub policy: PolicyKind,
    /// For `ring_hash`, what places and keys are computed from.
    pub ring: Option<Ring>,
}

impl Assignment {
    /// The parts of all endpoints of a tier together.
    pub(crate) fn parts_of(&self, tier: u32) -> f64 {
        self.endpoints.iter().filter(|e| e.priority == tier).map(|e| e.part() as f64).sum()
    }

    /// The same, silent about those it does not name: for a client that may know more.
    #[must_use]
    pub fn as_additions(&self) -> Self {
        let mut additions = Self { complete: false, ..self.clone() };
        additions.digest = digest(&additions);
        additions
    }
}

/// One place in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// Who.
    pub spec: EndpointSpec,
    /// Tier for this cohort, 0 is best, without gaps.
    pub priority: u32,
    /// Share of calls within the tier; 0 means no new calls.
    pub weight: u32,
    /// Calls it gets done against the usual endpoint, thousandths: its share of calls is weight times this.
    pub capacity_milli: u32,
    /// Why here.
    pub reasons: Vec<(Code, String)>,
    /// For `ring_hash`, whether its places on the ring are computed from its instance; otherwise from its address.
    pub is_keyed_by_instance: bool,
}

impl Assigned {
    /// Its part of the calls of its tier, against that of others.
    pub fn part(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.capacity_milli)
    }
}

/// Shares of calls over all clients that have no locality: of the best tier, before subsets are taken. They add up to 1.
pub fn shares(service: &ServiceSnapshot) -> BTreeMap<Address, f64> {
    let list = assign_of(service, &Cohort { seed: 0, locality: Locality::unknown() }, None);
    let sum = list.parts_of(0);
    let best = list.endpoints.into_iter().filter(|e| e.priority == 0 && e.weight > 0);
    best.map(|e| (e.spec.address.clone(), e.part() as f64 / sum)).collect()
}

/// The list of a cohort.
pub fn assign(service: &ServiceSnapshot, cohort: &Cohort) -> Assignment {
    assign_of(service, cohort, service.config.subset())
}

/// The same with so many endpoints of each tier, or all.
fn assign_of(service: &ServiceSnapshot, cohort: &Cohort, size: Option<usize>) -> Assignment {
    let tiers = Tiers::of(service, cohort);
    let keys = ring::Keys::of_service(service);
    let mut endpoints: Vec<Assigned> = Vec::with_capacity(service.endpoints.len());
    for (priority, tier) in tiers.chosen.iter().enumerate() {
        let help = |e: &EndpointSnapshot| tiers.help_milli(e).filter(|_| priority == 0);
        // Who helps out has a part of its weight.
        let part = |e: &EndpointSnapshot| u64::from(help(e).unwrap_or(1000).min(HELP_MILLI_MAX));
        let ceiling = ceiling::of(tier.iter().map(|e| (u64::from(e.spec.weight) * part(e), e.capacity_milli)));
        let mut subset = subset::choose(tier, size, service.config.policy, cohort, help);
        order::sort(service.config.policy, &mut subset.endpoints, cohort, ceiling);
        endpoints.extend(subset.endpoints.iter().map(|endpoint| Assigned {
            priority: priority as u32,
            weight: subset.weight(endpoint, ceiling),
            capacity_milli: capacity_milli(service.config.policy, endpoint, ceiling),
            reasons: reasons(endpoint, priority, &tiers),
            is_keyed_by_instance: keys.is_by_instance(&endpoint.spec),
            spec: endpoint.spec.clone(),
        }));
    }
    endpoints.extend(service.endpoints.iter().filter(|e| e.state.is_named_out()).map(|endpoint| Assigned {
        priority: tiers.chosen.len() as u32,
        weight: 0,
        capacity_milli: 0,
        reasons: lasting(endpoint),
        is_keyed_by_instance: false,
        spec: endpoint.spec.clone(),
    }));
    let (mode, note) = mode(service, &tiers);
    let mut assignment = Assignment {
        service: service.name.clone(),
        version: service.version,
        digest: 0,
        complete: !service.settling,
        mode,
        note,
        endpoints,
        policy: service.config.policy,
        ring: Ring::of(service),
    };
    assignment.digest = digest(&assignment);
    assignment
}

/// More than this, thousandths of its weight, no helper counts in the ceiling of a tier: sums stay far from overflow.
const HELP_MILLI_MAX: u32 = 1_000_000;

/// Share of calls wanted. For `least_load` what is configured is in the capacity, where what is measured corrects it, and the
/// weight says how much of that is wanted: all, but for those that start or that an operator holds back. For
/// `weighted_round_robin`, which clients use that know of nothing else, both are in the weight. Who is offered at all is offered
/// some. No capacity counts above the ceiling of the tier.
fn weight(policy: PolicyKind, endpoint: &EndpointSnapshot, ceiling: u32) -> u32 {
    let own = u64::from(endpoint.weight);
    let weight = match policy {
        PolicyKind::LeastLoad => own * u64::from(WEIGHT_USUAL) / u64::from(endpoint.spec.weight.max(1)),
        PolicyKind::WeightedRoundRobin => own * u64::from(endpoint.capacity_milli.min(ceiling)) / 1000,
        PolicyKind::RoundRobin | PolicyKind::RingHash => own,
    };
    weight.clamp(endpoint.weight.min(1).into(), WEIGHT_MAX.into()) as u32
}

/// The same where nothing holds it back.
fn whole_weight(policy: PolicyKind, endpoint: &EndpointSnapshot) -> u64 {
    match policy {
        PolicyKind::LeastLoad => WEIGHT_USUAL.into(),
        PolicyKind::WeightedRoundRobin | PolicyKind::RoundRobin | PolicyKind::RingHash => endpoint.spec.weight.into(),
    }
}

/// What clients are told of an endpoint's capacity, thousandths of the usual one; their share for it is weight times this, and
/// what they hear of its load is taken per this.
fn capacity_milli(policy: PolicyKind, endpoint: &EndpointSnapshot, ceiling: u32) -> u32 {
    let per_weight = match endpoint.capacity_milli {
        0 => 1000,
        known => u64::from(known.min(ceiling)),
    };
    match policy {
        PolicyKind::LeastLoad => {
            (per_weight * u64::from(endpoint.spec.weight) / u64::from(WEIGHT_USUAL)).clamp(1, u32::MAX.into()) as u32
        }
        PolicyKind::WeightedRoundRobin | PolicyKind::RoundRobin | PolicyKind::RingHash => 1000,
    }
}

fn reasons(endpoint: &EndpointSnapshot, priority: usize, tiers: &Tiers<'_>) -> Vec<(Code, String)> {
    let mut reasons = lasting(endpoint);
    if priority > 0 {
        reasons.push((tiers.why_lower(endpoint), String::new()));
    } else if tiers.help_milli(endpoint).is_some() {
        reasons.push((Code::ZoneNotPreferred, "helps the client's zone".to_owned()));
    }
    reasons
}

/// The reasons a list shows: those that place the endpoint where it is. What comes and goes with single reports and checks
/// is for explanations; in a list it would be a new list for everybody each time.
fn lasting(endpoint: &EndpointSnapshot) -> Vec<(Code, String)> {
    let shown = |at: usize, code: Code| match code {
        Code::ClientFailures | Code::ReportStale | Code::NoReportYet => at == 0 && endpoint.state != State::Eligible,
        // Who is not heard of for a while would be a new list each time, and after a restart one for each backend.
        Code::DiscoveryStale => false,
        Code::HealthNotServing
        | Code::HealthUnreachable
        | Code::HealthTimeout
        | Code::HealthPending
        | Code::HealthNotGrpc => endpoint.state != State::Eligible,
        Code::Overloaded
        | Code::WarmingUp
        | Code::OutlierEjected
        | Code::AdminDrain
        | Code::AdminDisabled
        | Code::AdminWeight
        | Code::SelfDraining
        | Code::LeaseExpired
        | Code::DiscoveryNotReady
        | Code::DiscoveryRemoved
        | Code::ZoneNotPreferred
        | Code::PriorityNotPreferred
        | Code::SubsetNotSelected
        | Code::LabelMismatch
        | Code::CapacityLimit
        | Code::ListTruncated
        | Code::PanicRestored
        | Code::ChecksDoubted
        | Code::LastEndpoint => true,
    };
    let reasons = endpoint.reasons.iter().enumerate().filter(|(at, reason)| shown(*at, reason.code));
    reasons.map(|(_, reason)| (reason.code, reason.detail.clone())).collect()
}

fn mode(service: &ServiceSnapshot, tiers: &Tiers<'_>) -> (ListMode, String) {
    match service.mode {
        Mode::Panic => (ListMode::Panic, service.note.clone()),
        Mode::LastGood => (ListMode::LastGood, service.note.clone()),
        Mode::Empty => (ListMode::Empty, service.note.clone()),
        Mode::Normal => match &tiers.failover {
            Some(note) => (ListMode::ZoneFailover, note.clone()),
            None => (ListMode::Normal, service.note.clone()),
        },
    }
}

fn digest(assignment: &Assignment) -> u64 {
    let mut hasher = Hasher::new(0);
    hasher.text(assignment.service.as_str());
    hasher.number(u64::from(assignment.complete));
    hasher.text(assignment.mode.name());
    hasher.text(&assignment.note);
    hasher.text(assignment.policy.name());
    if let Some(ring) = &assignment.ring {
        ring.digest(&mut hasher);
    }
    for endpoint in &assignment.endpoints {
        let spec = &endpoint.spec;
        for text in [spec.address.as_str(), spec.instance.as_str(), spec.locality.as_str(), &spec.tls_name] {
            hasher.text(text);
        }
        hasher.number(spec.incarnation);
        hasher.number(u64::from(endpoint.priority));
        hasher.number(u64::from(endpoint.weight));
        hasher.number(u64::from(endpoint.capacity_milli));
        hasher.number(u64::from(endpoint.is_keyed_by_instance));
        for (code, detail) in &endpoint.reasons {
            hasher.text(code.name());
            hasher.text(detail);
        }
    }
    hasher.finish()
}
