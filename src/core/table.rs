//! The only mutable state. One caller owns it: facts come in by [`Table::apply`], the state of affairs goes out by
//! [`Table::publish`]. It takes no decision about who gets which list; that is the policies'.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use crate::{
    config::ServiceConfig,
    event::{Backend, Event, Override},
    kept::Kept,
    limits::SERVICES_MAX,
    model::{Address, ServiceName, SourceId, Timestamp, Version},
    snapshot::{ServiceSnapshot, Snapshot, SourceSnapshot},
};

mod capacity;
mod configured;
mod endpoint;
mod fleet;
mod health;
mod invariant;
mod judge;
mod keep;
mod load;
mod outlier;
mod refusal;
mod service;
mod subsets;
mod view;
mod weigh;
mod words;
mod zones;

pub use invariant::Invariant;
pub use refusal::Refusal;
use service::Service;
use view::Light;
use words::Words;

/// A longer gap between two turns means that the balancer itself was away: stopped, or starved of time.
const AWAY: Duration = Duration::from_secs(2);

/// What an override would do, or did, to a service.
#[derive(Debug, Clone)]
pub struct Effect {
    /// Endpoints it is about.
    pub addresses: Vec<Address>,
    /// The service without it.
    pub before: ServiceSnapshot,
    /// The service with it.
    pub after: ServiceSnapshot,
}

impl Effect {
    /// How many endpoints get calls before and after.
    pub fn eligible(&self) -> [usize; 2] {
        [&self.before, &self.after].map(|service| service.endpoints.iter().filter(|e| e.weight > 0).count())
    }
}

/// Everything the balancer knows.
#[derive(Debug)]
pub struct Table {
    epoch: u64,
    sequence: u64,
    last_turn: Timestamp,
    settled_at: Timestamp,
    /// What services have that the configuration does not name.
    defaults: Arc<ServiceConfig>,
    services: BTreeMap<ServiceName, Service>,
    /// Kept apart from services: a word may be known before its service is.
    words: BTreeMap<ServiceName, Words>,
    sources: BTreeMap<SourceId, SourceSnapshot>,
    changed: bool,
    published: Arc<Snapshot>,
    /// What was kept last, and whether something may have to be kept since.
    kept: Kept,
    unkept: bool,
    /// Services whose snapshot is held back, and why.
    broken: BTreeMap<ServiceName, Invariant>,
}

impl Table {
    /// An empty table that starts at `now`. `epoch` is to be random at each start; `defaults` is for services that the
    /// configuration does not name.
    pub fn new(epoch: u64, defaults: ServiceConfig, now: Timestamp) -> Self {
        Self {
            epoch,
            sequence: 0,
            last_turn: now,
            settled_at: now.after(defaults.lease),
            defaults: Arc::new(defaults),
            services: BTreeMap::new(),
            words: BTreeMap::new(),
            sources: BTreeMap::new(),
            changed: true,
            published: Arc::default(),
            kept: Kept::default(),
            unkept: false,
            broken: BTreeMap::new(),
        }
    }

    /// Takes a fact in, or refuses it and changes nothing.
    pub fn apply(&mut self, event: Event, now: Timestamp) -> Result<(), Refusal> {
        self.notice_absence(now);
        match event {
            Event::Configured { source, configuration } => self.configured(&source, configuration, now)?,
            Event::SourceAwaited { source, service } => {
                self.make(&service, now)?.awaits(source.clone());
                self.sources.entry(source).or_default();
                self.changed = true;
            }
            Event::EndpointsListed { source, service, endpoints, detail } => {
                let listed = self.make(&service, now).and_then(|service| service.listed(&source, endpoints, now));
                let state = self.sources.entry(source).or_default();
                self.changed = true;
                match &listed {
                    Ok(()) => *state = SourceSnapshot { stale: None, answered_at: Some(now), detail },
                    Err(refusal) => state.stale = Some((now, refusal.to_string())),
                }
                listed?;
            }
            Event::SourceFailed { source, reason } => {
                let state = self.sources.entry(source.clone()).or_default();
                let since = state.stale.as_ref().map_or(now, |(since, _)| *since);
                state.stale = Some((since, reason));
                self.changed = true;
                self.services.values_mut().for_each(|service| service.source_failed(&source));
            }
            Event::SourceDropped { source, service } => {
                if let Some(service) = self.services.get_mut(&service) {
                    service.dropped(&source, now);
                }
                if !self.services.values().any(|service| service.is_followed_by(&source)) {
                    self.sources.remove(&source);
                }
                self.changed = true;
            }
            Event::SourcesNamed => {
                for service in self.services.values_mut() {
                    service.drop_unnamed(now);
                }
                let services = &self.services;
                self.sources.retain(|source, _| services.values().any(|service| service.is_followed_by(source)));
                self.changed = true;
            }
            Event::Registered { service, endpoint } => {
                let known = self.services.contains_key(&service);
                let registered = self.make(&service, now)?.registered(endpoint, now);
                if registered.is_err() && !known {
                    self.services.remove(&service);
                }
                registered?;
            }
            Event::LoadReported { backend, load } => self.of(&backend)?.reported(&backend, load, now)?,
            Event::DrainAnnounced { backend } => self.of(&backend)?.announced_drain(&backend)?,
            Event::Departed { backend } => self.of(&backend)?.departed(&backend, now)?,
            Event::ReportStreamBroken { backend } => self.of(&backend)?.stream_broke(&backend)?,
            Event::Checked { service, address, outcome } => {
                if let Some(service) = self.services.get_mut(&service) {
                    service.checked(&address, outcome, now);
                }
            }
            Event::CallsEnded { client, service, address, outcomes } => {
                if let Some(service) = self.services.get_mut(&service) {
                    service.calls_ended(&client, &address, &outcomes, now);
                }
            }
            Event::OverrideSet { word } => {
                let name = word.service.clone();
                if !self.words.contains_key(&name) && self.words.len() >= SERVICES_MAX {
                    return Err(Refusal::TooManyServices { max: SERVICES_MAX });
                }
                let heard = self.words.entry(name.clone()).or_default().hear(word, now)?;
                if let Some(service) = self.services.get_mut(&name).filter(|_| heard) {
                    service.urgent = true;
                }
            }
        }
        Ok(())
    }

    /// The state of affairs, if it is not what it was. Also where time passes: leases, slow starts, verdicts.
    pub fn publish(&mut self, now: Timestamp) -> Option<Arc<Snapshot>> {
        self.notice_absence(now);
        for (name, words) in &mut self.words {
            if words.expire(now)
                && let Some(service) = self.services.get_mut(name)
            {
                service.urgent = true;
            }
        }
        self.words.retain(|_, words| !words.is_empty());
        let version = Version { epoch: self.epoch, sequence: self.sequence + 1 };
        let mut changed = std::mem::take(&mut self.changed);
        for (name, service) in self.services.iter_mut().filter(|(_, service)| service.wants_turn(now)) {
            let words = self.words.get(name);
            service.advance(words, now);
            let light = Light { words, sources: &self.sources, version, now };
            let after = view::view(service, &light);
            if let Err(broken) = invariant::succeeds(service.snapshot.as_deref(), &after) {
                self.broken.insert(name.clone(), broken);
                continue;
            }
            self.broken.remove(name);
            if service.snapshot.as_deref() != Some(&after) {
                let shows_more = service.snapshot.as_ref().is_none_or(|before| before.version != after.version);
                service.unkept |= shows_more;
                self.unkept |= shows_more;
                service.snapshot = Some(Arc::new(after));
                changed = true;
            }
        }
        changed |= self.forget(now) || (now >= self.settled_at && self.published.is_settling());
        if !changed {
            return None;
        }
        self.sequence += 1;
        let snapshot = |(name, service): (&ServiceName, &Service)| Some((name.clone(), service.snapshot.clone()?));
        let services = self.services.iter().filter_map(snapshot).collect();
        let sources = self.sources.clone();
        self.published = Arc::new(Snapshot { version, at: now, services, sources, settled_at: self.settled_at });
        Some(Arc::clone(&self.published))
    }

    /// Services whose last good snapshot stays since the next one would break a promise: mistakes of this crate, to be
    /// counted and logged. Empty while all is well.
    pub fn broken(&self) -> &BTreeMap<ServiceName, Invariant> {
        &self.broken
    }

    /// What an override would do, without doing it.
    pub fn preview(&self, word: &Override, now: Timestamp) -> Result<Effect, Refusal> {
        let unknown = || Refusal::UnknownService { service: word.service.clone() };
        let service = self.services.get(&word.service).ok_or_else(unknown)?;
        let meant = |e: &&endpoint::Endpoint| words::concerns(&word.scope, &e.spec);
        let addresses: Vec<Address> =
            service.endpoints.values().filter(meant).map(|e| e.spec.address.clone()).collect();
        if addresses.is_empty() {
            return Err(Refusal::NothingMeant { service: word.service.clone() });
        }
        let held = self.words.get(&word.service);
        let mut words = held.cloned().unwrap_or_default();
        words.hear(word.clone(), now)?;
        let version = self.published.version;
        let look = |words| view::view(service, &Light { words, sources: &self.sources, version, now });
        Ok(Effect { addresses, before: look(held), after: look(Some(&words)) })
    }

    /// All words that still hold, those that take others back too, to be kept on disk.
    pub fn overrides(&self, now: Timestamp) -> Vec<Override> {
        self.words.values().flat_map(|words| words.all(now)).collect()
    }

    /// When the newest word on a service was set, milliseconds since 1970; 0 without any. An order given now must be later:
    /// a wall clock that was set back would otherwise have it lose against an older one.
    pub fn newest_word_unix_ms(&self, service: &ServiceName) -> u64 {
        self.words.get(service).map_or(0, Words::newest_unix_ms)
    }

    fn make(&mut self, name: &ServiceName, now: Timestamp) -> Result<&mut Service, Refusal> {
        let is_full = self.services.len() >= SERVICES_MAX;
        match self.services.entry(name.clone()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(_) if is_full => Err(Refusal::TooManyServices { max: SERVICES_MAX }),
            Entry::Vacant(new) => {
                let config = Arc::clone(&self.defaults);
                Ok(new.insert(Service::new(name.clone(), config, self.settled_at, now)))
            }
        }
    }

    fn of(&mut self, backend: &Backend) -> Result<&mut Service, Refusal> {
        let unknown = || Refusal::UnknownService { service: backend.service.clone() };
        self.services.get_mut(&backend.service).ok_or_else(unknown)
    }

    /// A service that nobody configures, lists or registers for any more is forgotten, once all have left it by their own
    /// word. Its overrides stay.
    fn forget(&mut self, now: Timestamp) -> bool {
        let before = self.services.len();
        self.services.retain(|name, service| {
            let keep = service.configured
                || !service.endpoints.is_empty()
                || service.is_followed()
                || service.says_farewell(now);
            if !keep {
                self.broken.remove(name);
            }
            keep
        });
        let forgot = self.services.len() != before;
        self.unkept |= forgot;
        forgot
    }

    fn notice_absence(&mut self, now: Timestamp) {
        let away = now.since(self.last_turn) > AWAY;
        self.last_turn = self.last_turn.max(now);
        if away {
            for service in self.services.values_mut() {
                service.resumed(now);
            }
        }
    }
}
