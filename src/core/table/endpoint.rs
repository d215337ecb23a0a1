//! What the table holds of one endpoint.

use std::{collections::BTreeSet, time::Duration};

use super::{
    capacity::{Capacity, USUAL_MILLI},
    health::{Health, Verdict},
    load::Load,
    outlier::Outlier,
};
use crate::{
    model::{EndpointSpec, SourceId, Timestamp},
    snapshot::Seats,
};

/// How long an endpoint that left by its own word is still named with weight 0, so that clients which resume against a
/// balancer that does not know everything yet leave it too.
pub(super) const FAREWELL: Duration = Duration::from_secs(15);

/// The share a starting endpoint begins with, and the steps its share grows by, permille: each step is a list.
const SLOW_START_MIN_PERMILLE: u64 = 100;
const SLOW_START_STEP_PERMILLE: u64 = 25;

#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) spec: EndpointSpec,
    /// Sources with a full answer that name it.
    pub(super) listed_by: BTreeSet<SourceId>,
    /// What a source says of it; its own word comes before that for as long as it is registered.
    pub(super) listed: Option<EndpointSpec>,
    pub(super) registration: Option<Registration>,
    /// Which start of it was registered last, where its source knows of none; 0 when it never was.
    pub(super) registered_incarnation: u64,
    pub(super) health: Health,
    pub(super) load: Load,
    pub(super) capacity: Capacity,
    pub(super) outlier: Outlier,
    pub(super) joined_at: Timestamp,
    /// It said that it leaves.
    pub(super) draining: bool,
    /// It left by its own word.
    pub(super) departed_at: Option<Timestamp>,
    /// Its source no longer names it.
    pub(super) withdrawn_at: Option<Timestamp>,
    /// It joined a service that was already serving, so its share grows from when it is first found usable.
    pub(super) newcomer: bool,
    pub(super) warming_since: Option<Timestamp>,
    /// Share it had grown to before the balancer itself started anew, permille.
    pub(super) warmed_permille: u64,
    /// A source named it, or a check found it usable, since it started. Until then it is not offered, and its failures say
    /// nothing about the service.
    pub(super) trusted: bool,
    /// Its failed checks are not believed, since too many fail at once.
    pub(super) doubted: bool,
    /// Who sees it, where each client sees a part.
    pub(super) seats: Seats,
    /// Its capacity, corrected by what it has in flight: what its weight is multiplied with where clients know of nothing else,
    /// thousandths; kept for hysteresis.
    pub(super) corrected_milli: u32,
}

/// Its own word that it exists.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub(super) renewed_at: Timestamp,
    pub(super) connected: bool,
    /// Whether its reports are late; kept to notice when they become so.
    pub(super) late: bool,
    /// From before the balancer started, and not heard of since: for a lease its silence is the balancer's own doing.
    pub(super) restored: bool,
}

impl Endpoint {
    pub(super) fn new(spec: EndpointSpec, newcomer: bool, now: Timestamp) -> Self {
        Self {
            spec,
            listed_by: BTreeSet::new(),
            listed: None,
            registration: None,
            registered_incarnation: 0,
            health: Health::new(),
            load: Load::default(),
            capacity: Capacity::default(),
            outlier: Outlier::default(),
            joined_at: now,
            draining: false,
            departed_at: None,
            withdrawn_at: None,
            newcomer,
            warming_since: None,
            warmed_permille: 0,
            trusted: false,
            doubted: false,
            seats: Seats::default(),
            corrected_milli: USUAL_MILLI,
        }
    }

    /// A new start of the backend at the same address: nothing known of the one before counts.
    pub(super) fn restart(&mut self, spec: EndpointSpec, newcomer: bool, now: Timestamp) {
        let listed_by = std::mem::take(&mut self.listed_by);
        let listed = self.listed.take();
        let mut health = self.health.clone();
        health.restart();
        let trusted = !listed_by.is_empty();
        let seats = std::mem::take(&mut self.seats);
        *self = Self { listed_by, listed, health, trusted, seats, ..Self::new(spec, newcomer, now) };
    }

    /// From here on it is only what its sources say of it.
    pub(super) fn return_unregistered(&mut self) {
        self.registered_incarnation = self.incarnation();
        if let Some(listed) = &self.listed {
            self.spec = listed.clone();
        }
        self.registration = None;
        self.draining = false;
        self.departed_at = None;
    }

    /// Whether it is gone once this source no longer names it.
    pub(super) fn is_named_by_nobody_but(&self, source: &SourceId) -> bool {
        self.registration.is_none() && self.listed_by.iter().eq([source])
    }

    /// Calls it gets done: its weight, and what is measured per weight, thousandths.
    pub(super) fn capacity_milli(&self) -> u64 {
        u64::from(self.capacity.milli()) * u64::from(self.spec.weight)
    }

    /// Share of its calls that fail, by its own word or by that of clients, whichever is worse.
    pub(super) fn failing(&self, now: Timestamp) -> f64 {
        self.load.failing().max(self.outlier.failed_share(now).unwrap_or(0.0))
    }

    /// Which start of the backend this is, as far as anybody knows; 0 when nobody does.
    pub(super) fn incarnation(&self) -> u64 {
        if self.spec.incarnation == 0 { self.registered_incarnation } else { self.spec.incarnation }
    }

    /// Whether lists offer it on its own evidence, where no operator says otherwise.
    pub(super) fn may_be_offered(&self) -> bool {
        !self.is_leaving()
            && !self.outlier.is_out()
            && match self.health.verdict {
                Verdict::Up => true,
                Verdict::New => self.trusted,
                Verdict::Down(..) => false,
            }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.draining || self.departed_at.is_some()
    }

    pub(super) fn is_late(&self) -> bool {
        self.registration.as_ref().is_some_and(|r| r.late)
    }

    pub(super) fn stream_is_broken(&self) -> bool {
        self.registration.as_ref().is_some_and(|r| !r.connected && (!r.restored || r.late))
    }

    pub(super) fn lease_expired(&self, lease: Duration, now: Timestamp) -> bool {
        self.registration.as_ref().is_some_and(|r| now.since(r.renewed_at) >= lease)
    }

    /// Share of its weight it gets while it starts, permille; gRPC A100 and Envoy have the same shape with aggression 1.
    pub(super) fn slow_start_permille(&self, window: Duration, now: Timestamp) -> u64 {
        if window.is_zero() {
            return 1000;
        }
        let Some(since) = self.warming_since else {
            // A source may have it offered before anybody has found it usable.
            return if self.newcomer { SLOW_START_MIN_PERMILLE } else { 1000 };
        };
        let passed = now.since(since).as_micros() as u64 * 1000 / window.as_micros().max(1) as u64;
        let step = (self.warmed_permille + passed) / SLOW_START_STEP_PERMILLE * SLOW_START_STEP_PERMILLE;
        step.clamp(SLOW_START_MIN_PERMILLE, 1000)
    }
}
