//! What the table holds of one service, and how facts about it change that.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Refusal,
    capacity::Scale,
    endpoint::{Endpoint, FAREWELL, Registration},
    fleet::Gauge,
    health::Verdict,
    judge::Judge,
    subsets::Subsets,
    words::Words,
    zones::Zones,
};
use crate::{
    config::ServiceConfig,
    event::{Backend, CheckOutcome, LoadReport},
    model::{Address, EndpointSpec, ServiceName, SourceId, Timestamp},
    snapshot::ServiceSnapshot,
};

/// How long a source must say that a service is empty before its last endpoints go.
const EMPTY_PROOF: Duration = Duration::from_secs(30);

/// How long after the end of settling the first checks of those that turned up before it may take.
const FIRST_CHECKS: Duration = Duration::from_secs(2);

/// How often figures that order nothing (rates, ages) are refreshed in snapshots.
const REFRESH: Duration = Duration::from_secs(1);

/// How often time alone is looked at while something is in motion: slow start, late reports, rations.
const IN_MOTION: Duration = Duration::from_millis(100);

/// So much after a limit it has been passed.
const MOMENT: Duration = Duration::from_millis(1);

#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) name: ServiceName,
    pub(super) config: Arc<ServiceConfig>,
    pub(super) configured: bool,
    pub(super) endpoints: BTreeMap<Address, Endpoint>,
    /// Sources that have yet to give their first full answer.
    awaited: BTreeSet<SourceId>,
    /// Sources that gave a full answer.
    pub(super) answered: BTreeSet<SourceId>,
    /// Those of them that are silent now: nothing they left unsaid proves anything.
    pub(super) silent: BTreeSet<SourceId>,
    /// Those of them that have not answered since the balancer started, and of these the ones that nobody has named yet.
    pub(super) unheard: BTreeSet<SourceId>,
    pub(super) unnamed: BTreeSet<SourceId>,
    /// A source that had spoken for it no longer does.
    pub(super) disowned: bool,
    pub(super) judge: Judge,
    pub(super) scale: Scale,
    pub(super) gauge: Gauge,
    pub(super) subsets: Subsets,
    pub(super) zones: Zones,
    /// Until then backends that registered before the balancer started may still turn up.
    settled_at: Timestamp,
    /// It began with what the last start had kept: everybody heard before is in it, and nothing has to settle.
    pub(super) restored: bool,
    /// Lists changed since it was kept last.
    pub(super) unkept: bool,
    /// Something changed that lists may show.
    pub(super) urgent: bool,
    /// Something changed that only figures show.
    soft: bool,
    /// When time alone may change something.
    due: Timestamp,
    pub(super) built_at: Timestamp,
    pub(super) snapshot: Option<Arc<ServiceSnapshot>>,
}

impl Service {
    pub(super) fn new(name: ServiceName, config: Arc<ServiceConfig>, settled_at: Timestamp, now: Timestamp) -> Self {
        Self {
            name,
            config,
            configured: false,
            endpoints: BTreeMap::new(),
            awaited: BTreeSet::new(),
            answered: BTreeSet::new(),
            silent: BTreeSet::new(),
            unheard: BTreeSet::new(),
            unnamed: BTreeSet::new(),
            disowned: false,
            judge: Judge::default(),
            scale: Scale::default(),
            gauge: Gauge::default(),
            subsets: Subsets::default(),
            zones: Zones::default(),
            settled_at,
            restored: false,
            unkept: true,
            urgent: true,
            soft: false,
            due: now,
            built_at: now,
            snapshot: None,
        }
    }

    /// Whether silence about an endpoint means nothing yet. A source that can list and has not answered yet may know
    /// anything, however long that takes.
    pub(super) fn is_settling(&self, now: Timestamp) -> bool {
        !self.awaited.is_empty() || (!self.restored && self.answered.is_empty() && self.may_be_unheard(now))
    }

    /// Whether clients that resume may know more than was kept: until all who can list have answered since the start, and
    /// where there are none of them, for a lease.
    pub(super) fn is_stale(&self, now: Timestamp) -> bool {
        !self.unheard.is_empty() || (self.restored && self.answered.is_empty() && self.may_be_unheard(now))
    }

    /// Whether a backend that registered before the start may not be in lists yet: it has a lease to turn up, and one that
    /// did must have been looked at before a list becomes complete without it.
    fn may_be_unheard(&self, now: Timestamp) -> bool {
        let is_owed = |e: &Endpoint| e.joined_at < self.settled_at && e.health.is_unknown() && !e.trusted;
        now < self.settled_at || (now < self.settled_at.after(FIRST_CHECKS) && self.endpoints.values().any(is_owed))
    }

    /// Sources that have yet to give their first full answer.
    pub(super) fn awaited(&self) -> impl Iterator<Item = &SourceId> {
        self.awaited.iter()
    }

    /// Whether a source that can list has spoken of it, or is to.
    pub(super) fn is_followed(&self) -> bool {
        !self.awaited.is_empty() || !self.answered.is_empty()
    }

    pub(super) fn is_followed_by(&self, source: &SourceId) -> bool {
        self.awaited.contains(source) || self.answered.contains(source)
    }

    pub(super) fn awaits(&mut self, source: SourceId) {
        self.unnamed.remove(&source);
        if !self.answered.contains(&source) {
            self.awaited.insert(source);
            self.urgent = true;
        }
    }

    /// Whether something may have changed since it was last advanced.
    pub(super) fn wants_turn(&self, now: Timestamp) -> bool {
        self.urgent || self.snapshot.is_none() || now >= self.due || (self.soft && now.since(self.built_at) >= REFRESH)
    }

    /// Whether a client could be sent to some endpoint already, so that a new one has to start slowly.
    fn is_serving_without(&self, address: &Address, now: Timestamp) -> bool {
        !self.is_settling(now)
            && self.endpoints.iter().any(|(a, e)| a != address && e.health.verdict == Verdict::Up && !e.is_leaving())
    }

    pub(super) fn listed(
        &mut self,
        source: &SourceId,
        specs: Vec<EndpointSpec>,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let named = Self::named_once(&self.name, &specs)?;
        self.has_room_for(&named, source)?;
        for spec in specs {
            let newcomer = self.is_serving_without(&spec.address, now);
            let endpoint = self
                .endpoints
                .entry(spec.address.clone())
                .or_insert_with(|| Endpoint::new(spec.clone(), newcomer, now));
            if endpoint.registration.is_none() {
                endpoint.spec = spec.clone();
            }
            endpoint.listed = Some(spec);
            endpoint.listed_by.insert(source.clone());
            endpoint.trusted = true;
            endpoint.withdrawn_at = None;
        }
        self.withdraw(source, &named, now);
        if self.silent.remove(source) | self.awaited.remove(source) {
            // What was said before or during its silence has to be proved anew.
            self.endpoints.values_mut().filter_map(|e| e.withdrawn_at.as_mut()).for_each(|at| *at = now);
        }
        self.unheard.remove(source);
        self.unnamed.remove(source);
        self.answered.insert(source.clone());
        self.urgent = true;
        Ok(())
    }

    /// What a source no longer names is gone by its word, unless somebody else names it.
    fn withdraw(&mut self, source: &SourceId, named: &BTreeSet<Address>, now: Timestamp) {
        for (address, endpoint) in &mut self.endpoints {
            let withdrawn = !named.contains(address) && endpoint.listed_by.remove(source);
            if withdrawn && endpoint.listed_by.is_empty() && endpoint.registration.is_none() {
                endpoint.withdrawn_at = Some(now);
            }
        }
    }

    /// It was told to follow this service no longer, which is as good as its own word.
    pub(super) fn dropped(&mut self, source: &SourceId, now: Timestamp) {
        self.withdraw(source, &BTreeSet::new(), now);
        self.awaited.remove(source);
        self.answered.remove(source);
        self.silent.remove(source);
        self.unheard.remove(source);
        self.unnamed.remove(source);
        self.disowned = true;
        self.urgent = true;
    }

    /// A source could not answer.
    pub(super) fn source_failed(&mut self, source: &SourceId) {
        if self.answered.contains(source) {
            self.silent.insert(source.clone());
            self.urgent = true;
        }
    }

    pub(super) fn registered(&mut self, spec: EndpointSpec, now: Timestamp) -> Result<(), Refusal> {
        let address = spec.address.clone();
        if let Some(held) = self.endpoints.get(&address)
            && held.registration.is_some()
            && held.spec.incarnation > spec.incarnation
            // A backend whose clock was set back must not be locked out by one that has not been heard of for a lease.
            && !held.lease_expired(self.config.lease, now)
        {
            return Err(Refusal::OldIncarnation { address, held: held.spec.incarnation, given: spec.incarnation });
        }
        let twin = self.endpoints.values().find(|e| {
            let alive = e.registration.as_ref().is_some_and(|r| r.connected && !r.late) && !e.is_leaving();
            !spec.instance.as_str().is_empty() && alive && e.spec.instance == spec.instance && e.spec.address != address
        });
        if let Some(twin) = twin {
            return Err(Refusal::DuplicateInstance {
                service: self.name.clone(),
                instance: spec.instance.to_string(),
                address: twin.spec.address.clone(),
            });
        }
        let newcomer = self.is_serving_without(&address, now);
        match self.endpoints.get_mut(&address) {
            None => {
                Self::room(&self.name, self.endpoints.len() + 1)?;
                self.endpoints.insert(address.clone(), Endpoint::new(spec, newcomer, now));
            }
            Some(held) if ![0, spec.incarnation].contains(&held.incarnation()) => held.restart(spec, newcomer, now),
            // The same start of the same backend: its stream was broken for a while, or it changed its mind about itself.
            // Or the first word of one that a source had named, which nobody says has started since.
            Some(held) => {
                held.spec = spec;
                held.departed_at = None;
                held.health.want_check();
            }
        }
        if let Some(endpoint) = self.endpoints.get_mut(&address) {
            endpoint.registration =
                Some(Registration { renewed_at: now, connected: true, late: false, restored: false });
            endpoint.withdrawn_at = None;
        }
        self.urgent = true;
        Ok(())
    }

    /// The registered endpoint that a backend speaks for.
    fn speaker(&mut self, backend: &Backend) -> Result<&mut Endpoint, Refusal> {
        let unknown = || Refusal::NotRegistered { service: backend.service.clone(), address: backend.address.clone() };
        let endpoint = self.endpoints.get_mut(&backend.address).ok_or_else(unknown)?;
        if endpoint.registration.is_none() {
            return Err(unknown());
        }
        if endpoint.spec.incarnation != backend.incarnation {
            return Err(Refusal::OldIncarnation {
                address: backend.address.clone(),
                held: endpoint.spec.incarnation,
                given: backend.incarnation,
            });
        }
        Ok(endpoint)
    }

    pub(super) fn reported(&mut self, backend: &Backend, report: LoadReport, now: Timestamp) -> Result<(), Refusal> {
        let period = self.config.report_period;
        let endpoint = self.speaker(backend)?;
        if let Some(held) = endpoint.load.sequence()
            && held >= report.sequence
        {
            return Err(Refusal::OldReport { address: backend.address.clone(), held, given: report.sequence });
        }
        let first = endpoint.load.sequence().is_none();
        let before = endpoint.load.last();
        endpoint.load.reported(report, now);
        if let Some(before) = before {
            let believed = LoadReport { utilization_permille: endpoint.load.utilization_permille(), ..report };
            endpoint.capacity.reported(before, (now, believed), period);
        }
        let was_late = match &mut endpoint.registration {
            Some(registration) => {
                registration.renewed_at = now;
                registration.connected = true;
                std::mem::take(&mut registration.late)
            }
            None => false,
        };
        // A load that moved can wait for the next refresh: lists are not the place for what changes by the second.
        self.urgent |= was_late || first;
        self.soft = true;
        Ok(())
    }

    pub(super) fn announced_drain(&mut self, backend: &Backend) -> Result<(), Refusal> {
        self.speaker(backend)?.draining = true;
        self.urgent = true;
        Ok(())
    }

    pub(super) fn departed(&mut self, backend: &Backend, now: Timestamp) -> Result<(), Refusal> {
        let endpoint = self.speaker(backend)?;
        endpoint.departed_at = Some(now);
        if let Some(registration) = &mut endpoint.registration {
            registration.connected = false;
        }
        self.urgent = true;
        Ok(())
    }

    pub(super) fn stream_broke(&mut self, backend: &Backend) -> Result<(), Refusal> {
        let endpoint = self.speaker(backend)?;
        if let Some(registration) = &mut endpoint.registration {
            registration.connected = false;
        }
        endpoint.health.want_check();
        self.urgent = true;
        Ok(())
    }

    /// A check of an endpoint that is gone meanwhile is no mistake.
    pub(super) fn checked(&mut self, address: &Address, outcome: CheckOutcome, now: Timestamp) {
        let rise = self.config.health.rise;
        if let Some(endpoint) = self.endpoints.get_mut(address) {
            let before = (endpoint.health.verdict.clone(), endpoint.health.failed_checks(), endpoint.health.wanted);
            endpoint.health.checked(outcome, rise, now);
            let after = (endpoint.health.verdict.clone(), endpoint.health.failed_checks(), endpoint.health.wanted);
            if matches!(before.0, Verdict::Down(..)) && after.0 == Verdict::Up {
                endpoint.outlier.forgive(now);
            }
            self.urgent |= before != after;
            self.soft = true;
        }
    }

    /// The balancer was away: nobody else's silence meanwhile counts against them.
    pub(super) fn resumed(&mut self, now: Timestamp) {
        for endpoint in self.endpoints.values_mut() {
            endpoint.health.forget_streak();
            endpoint.outlier.resumed(now);
            // Nor could a source take its word back.
            if let Some(at) = &mut endpoint.withdrawn_at {
                *at = now;
            }
            if let Some(registration) = &mut endpoint.registration {
                registration.renewed_at = now;
                registration.late = false;
            }
        }
        self.subsets.resumed(now);
        self.zones.resumed(now);
        self.judge.not_before = now.after(self.config.health.interval + self.config.health.deadline);
        self.urgent = true;
    }

    /// Lets time pass: late reports, verdicts, slow starts, removals. Notes when time alone matters next.
    pub(super) fn advance(&mut self, words: Option<&Words>, now: Timestamp) {
        self.notice_late(now);
        let fall = self.config.health.fall;
        let unheard = self.is_settling(now) || self.is_stale(now);
        self.judge.judge(self.endpoints.values_mut(), fall, unheard, now);
        for endpoint in self.endpoints.values_mut().filter(|e| e.health.verdict == Verdict::Up) {
            endpoint.trusted = true;
            if std::mem::take(&mut endpoint.newcomer) {
                endpoint.warming_since = Some(now);
            }
            if endpoint.slow_start_permille(self.config.slow_start, now) == 1000 {
                endpoint.warming_since = None;
            }
        }
        self.judge_outliers(words, now);
        self.unregister_silent(now);
        self.remove_gone(words, now);
        // Those that were doubted may be among them; whoever stays is then not held to their doubt.
        self.judge.doubts &= self.endpoints.values().any(|e| e.doubted);
        self.soft &= !self.measure(now);
        self.look_at_zones(words, now);
        self.plan_subsets(words, now);
        self.urgent = false;
        self.built_at = now;
        self.due = self.next_due(words, now);
    }

    fn notice_late(&mut self, now: Timestamp) {
        let (periods, lease) = (self.config.report_period * 2, self.config.lease);
        for endpoint in self.endpoints.values_mut().filter(|e| !e.is_leaving()) {
            let Some(registration) = &mut endpoint.registration else { continue };
            let limit = if registration.restored { lease } else { periods };
            if !registration.late && now.since(registration.renewed_at) > limit {
                registration.late = true;
                endpoint.health.want_check();
            }
        }
    }

    /// Leaves to their sources those that these still name and that are not heard of any more.
    fn unregister_silent(&mut self, now: Timestamp) {
        let lease = self.config.lease;
        for endpoint in self.endpoints.values_mut().filter(|e| !e.listed_by.is_empty()) {
            let expired = endpoint.lease_expired(lease, now);
            match endpoint.departed_at {
                // It stays out until something answers there again.
                Some(at) => {
                    let passed_at = endpoint.health.check.as_ref().filter(|check| check.passed).map(|check| check.at);
                    if passed_at.is_some_and(|passed_at| passed_at >= at.after(FAREWELL)) {
                        endpoint.return_unregistered();
                    }
                }
                // It is not back because nobody hears of it any more.
                None if expired && endpoint.draining => endpoint.departed_at = Some(now),
                None if expired => endpoint.return_unregistered(),
                None => {}
            }
        }
    }

    /// Takes out what is gone for good: by its own word, by its source's, or because nobody has heard of it for a lease and
    /// nobody can reach it either. The last endpoints of a service are never gone by silence, and not at once by the word of
    /// a source: without one that is offered in their place they stay until there is proof.
    fn remove_gone(&mut self, words: Option<&Words>, now: Timestamp) {
        let lease = self.config.lease;
        let is_taken_out = |e: &Endpoint| words.is_some_and(|words| words.take_out(&e.spec));
        let remains = |e: &Endpoint| e.withdrawn_at.is_none() && e.may_be_offered() && !is_taken_out(e);
        let any_withdrawn = self.endpoints.values().any(|e| e.withdrawn_at.is_some());
        let others_remain = any_withdrawn && self.endpoints.values().any(remains);
        let may_prove = self.silent.is_empty() && self.awaited.is_empty();
        let others_serve = self.endpoints.values().any(|e| e.health.verdict == Verdict::Up && remains(e));
        self.endpoints.retain(|_, endpoint| {
            if let Some(at) = endpoint.departed_at {
                return now < at.after(FAREWELL) || !endpoint.listed_by.is_empty();
            }
            if let Some(at) = endpoint.withdrawn_at {
                let proved = may_prove && now.since(at) >= EMPTY_PROOF;
                return !(others_remain || proved);
            }
            if !endpoint.listed_by.is_empty() {
                return true;
            }
            let expired = endpoint.lease_expired(lease, now);
            // Nobody has promised to remember it: a draining one that never said goodbye goes with its lease.
            !(expired && (endpoint.draining || (endpoint.health.is_down() && others_serve)))
        });
    }

    fn next_due(&self, words: Option<&Words>, now: Timestamp) -> Timestamp {
        let lease = self.config.lease;
        let in_motion = self.judge.waiting
            || self.judge.doubts
            || now < self.judge.not_before
            || self.endpoints.values().any(|e| {
                e.is_leaving() || e.withdrawn_at.is_some() || e.warming_since.is_some() || e.lease_expired(lease, now)
            });
        if in_motion {
            return now.after(IN_MOTION);
        }
        let late = self.config.report_period * 2 + MOMENT;
        let reports = self.endpoints.values().filter_map(|e| e.registration.as_ref()).map(|r| {
            r.renewed_at.after(if r.late {
                lease
            } else if r.restored {
                lease + MOMENT
            } else {
                late
            })
        });
        let evidence = self.endpoints.values().any(|e| e.health.clients_fail(now)).then(|| now.after(REFRESH));
        let estimates = self.scale.is_known.then(|| now.after(REFRESH));
        let settled = [self.settled_at, self.settled_at.after(FIRST_CHECKS)].into_iter().find(|at| now < *at);
        let words = words.and_then(Words::due);
        let outliers = self.endpoints.values().filter_map(|e| e.outlier.due(now));
        let looks = self.subsets.due().into_iter().chain(self.zones.due());
        let dues = reports.chain(evidence).chain(estimates).chain(settled).chain(words).chain(outliers).chain(looks);
        dues.min().unwrap_or(Timestamp(u64::MAX))
    }
}
