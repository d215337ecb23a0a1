//! One answer per service and cohort, computed and encoded once and shared by every stream that asks for it. An answer
//! is made when the first stream asks, follows the snapshots, and is forgotten with its last stream. Paces as well:
//! lists that differ in weights alone go out at most once a second, in order alone in place of a heartbeat. What clients make up costs little: names that nobody
//! knows have no list, and places where no endpoint is have one in common.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lookaside_core::{
    config::ServiceConfig,
    model::{Cohort, Locality, ServiceName, Timestamp},
    policy::{self, Assigned, Assignment, Difference},
    snapshot::{Fleet, ServiceSnapshot, Snapshot},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{encode, few::Few};
use crate::{
    driver::Handle,
    limits::{COHORTS_PER_SERVICE_MAX, FLEET_PERIOD, HEARTBEAT_PERIOD},
    telemetry,
};

/// How often answers are looked at when no snapshot comes: heartbeats and lists held back are due by time.
const TURN: Duration = Duration::from_millis(250);

/// What a service has for a cohort.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Nothing yet: the balancer has only just started and may still hear of the service.
    Silent,
    /// Nobody knows the service.
    Unknown,
    /// A list.
    List(Published),
}

/// A list, ready to be sent.
#[derive(Debug)]
pub(crate) struct Published {
    /// For everybody.
    pub(crate) whole: Framed,
    /// For those who resume with another list, while they may know more than the balancer.
    pub(crate) additions: Option<Box<Framed>>,
    /// What it is called now, also in the frames.
    pub(crate) version: lookaside_core::model::Version,
    /// `PickResponse.method_policy` as a gRPC frame, the same bytes until it changes.
    pub(crate) policy_frame: Bytes,
    /// Whether that says nothing, so that who has never had another one need not be told.
    pub(crate) has_no_rules: bool,
    /// Whether the tick has more to say than that the list is the same.
    pub(crate) knows_fleet: bool,
    /// When the state of affairs that it shows was taken.
    pub(crate) at: Timestamp,
    /// What is sent is counted here.
    pub(crate) counters: Counters,
}

/// A list and its frames.
#[derive(Debug, Clone)]
pub(crate) struct Framed {
    /// The list itself; its own version is the one it was first published under.
    pub(crate) list: Arc<List>,
    /// `PickResponse.list` as a gRPC frame.
    pub(crate) list_frame: Bytes,
    /// `PickResponse.tick` as a gRPC frame.
    pub(crate) tick_frame: Bytes,
}

impl Framed {
    fn of(list: Arc<List>, service: &ServiceSnapshot, clients: u32) -> Self {
        Self {
            list_frame: encode::list(&list.assignment, service.version),
            tick_frame: encode::tick(&list.assignment, service, clients),
            list,
        }
    }
}

/// Counters of a service, looked up once instead of at every stream.
#[derive(Clone)]
pub(crate) struct Counters {
    pub(crate) lists: metrics::Counter,
    pub(crate) ticks: metrics::Counter,
}

impl Counters {
    fn of(service: &ServiceName) -> Self {
        Self {
            lists: metrics::counter!(telemetry::PICK_UPDATES_TOTAL, "service" => telemetry::service_label(service)),
            ticks: metrics::counter!(telemetry::PICK_HEARTBEATS_TOTAL, "service" => telemetry::service_label(service)),
        }
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Counters")
    }
}

/// A list that can be asked about addresses.
#[derive(Debug)]
pub(crate) struct List {
    /// As the policy gave it.
    pub(crate) assignment: Assignment,
    by_address: Vec<usize>,
}

impl List {
    pub(crate) fn new(assignment: Assignment) -> Self {
        let mut by_address: Vec<_> = (0..assignment.endpoints.len()).collect();
        by_address.sort_by_key(|at| &assignment.endpoints[*at].spec.address);
        Self { assignment, by_address }
    }

    /// The place of an address; `None` when the list does not name it.
    pub(crate) fn place(&self, address: &lookaside_core::model::Address) -> Option<&Assigned> {
        let endpoints = &self.assignment.endpoints;
        let at = self.by_address.binary_search_by(|at| endpoints[*at].spec.address.cmp(address)).ok()?;
        endpoints.get(self.by_address[at])
    }
}

/// Every answer that somebody asks for.
pub(crate) struct Cohorts {
    driver: Handle,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    entries: Mutex<Entries>,
}

type Entries = BTreeMap<ServiceName, Asked>;

/// What is asked for of one service.
#[derive(Default)]
struct Asked {
    cohorts: Few<Cohort, Entry>,
    /// What the newest snapshot seen has for them.
    lists: Option<Box<Lists>>,
}

/// The lists of a service as one snapshot has it.
struct Lists {
    service: Arc<ServiceSnapshot>,
    /// Streams that ask for them.
    clients: u32,
    /// Where its endpoints are, if that matters.
    zones: BTreeSet<Locality>,
    made: BTreeMap<Cohort, Made>,
}

struct Made {
    list: Arc<List>,
    /// And its additions, once somebody is to be sent them.
    framed: Option<(Framed, Option<Framed>)>,
}

struct Entry {
    answer: watch::Sender<Arc<Answer>>,
    /// What the answer was computed from; `None` where there is no service.
    service: Option<Arc<ServiceSnapshot>>,
    /// What was looked at since, with loads alone to tell: a herd of newcomers must not have it computed for each.
    held_back: Option<Arc<ServiceSnapshot>>,
    /// How long after the last list that can wait.
    held_for: Duration,
    /// When the last list went out, the last list or tick, and the last tick, and how the endpoints fared by that.
    listed_at: Instant,
    beat_at: Instant,
    told_at: Instant,
    told: Fleet,
    /// How calls are to be made, and what that was encoded from.
    policy: Option<(Arc<ServiceConfig>, Bytes)>,
    /// Made with the first list: a name that nobody knows is not a label.
    counters: Option<Counters>,
}

impl Cohorts {
    /// Nobody asks yet.
    pub(crate) fn new(driver: Handle) -> Self {
        Self { snapshots: driver.snapshots(), driver, entries: Mutex::default() }
    }

    /// The answer to a cohort, and all later ones.
    pub(crate) fn subscribe(&self, service: &ServiceName, cohort: &Cohort) -> watch::Receiver<Arc<Answer>> {
        let mut entries = self.lock();
        let asked = entries.entry(service.clone()).or_default();
        let nowhere = Cohort { locality: Locality::unknown(), ..cohort.clone() };
        let is_known = asked.cohorts.contains_key(cohort) || asked.cohorts.len() < COHORTS_PER_SERVICE_MAX;
        let cohort = if is_known { cohort } else { &nowhere };
        if !asked.cohorts.contains_key(cohort) {
            asked.cohorts.insert(cohort.clone(), Entry::new());
        }
        // Under the lock, so that no two computations can overtake each other and a version fall. Also where there was an
        // answer: a backend may just have been told that nobody is sent to it any more.
        asked.refresh(service, cohort, &self.snapshot(), self.driver.now());
        match asked.cohorts.get(cohort) {
            Some(entry) => entry.answer.subscribe(),
            // It was put there above; this is for the compiler.
            None => Entry::new().answer.subscribe(),
        }
    }

    /// Follows the snapshots until `stop` is cancelled.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut snapshots = self.snapshots.clone();
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = Arc::<Snapshot>::default();
        loop {
            let is_turn = tokio::select! {
                () = stop.cancelled() => return,
                changed = snapshots.changed() => if changed.is_ok() { false } else { return },
                _ = turns.tick() => true,
            };
            let newest = Arc::clone(&snapshots.borrow_and_update());
            for service in self.due(&seen, &newest, is_turn) {
                self.refresh(&service).await;
            }
            seen = newest;
        }
    }

    /// Cohorts that somebody asks for.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().values().map(|asked| asked.cohorts.len()).sum()
    }

    /// Services to be looked at: those that differ between the snapshots, and at a turn all there are. Names that nobody
    /// knows are looked at here, at turns alone: anybody can make up any number of them.
    fn due(&self, before: &Snapshot, newest: &Snapshot, is_turn: bool) -> Vec<ServiceName> {
        let mut entries = self.lock();
        if is_turn {
            let settling = self.driver.now() < newest.settled_at;
            entries.retain(|name, asked| newest.services.contains_key(name) || asked.is_absent(settling));
            return entries.keys().filter(|name| newest.services.contains_key(*name)).cloned().collect();
        }
        let is_new = |(name, service): &(&ServiceName, &Arc<ServiceSnapshot>)| {
            before.services.get(*name).is_none_or(|old| !Arc::ptr_eq(old, service))
        };
        let changed = newest.services.iter().filter(is_new).map(|(name, _)| name);
        let gone = before.services.keys().filter(|name| !newest.services.contains_key(*name));
        changed.chain(gone).filter(|name| entries.contains_key(*name)).cloned().collect()
    }

    async fn refresh(&self, service: &ServiceName) {
        let cohorts: Vec<_> = match self.lock().get_mut(service) {
            Some(asked) => {
                asked.cohorts.retain(Entry::is_wanted);
                asked.cohorts.iter().map(|(cohort, _)| cohort.clone()).collect()
            }
            None => return,
        };
        for cohort in cohorts {
            if let Some(asked) = self.lock().get_mut(service) {
                asked.refresh(service, &cohort, &self.snapshot(), self.driver.now());
            }
            // A service with thousands of endpoints takes milliseconds, and whoever subscribes waits for the lock.
            tokio::task::yield_now().await;
        }
        let mut entries = self.lock();
        if entries.get(service).is_some_and(|asked| asked.cohorts.is_empty()) {
            entries.remove(service);
        }
    }

    /// Not kept borrowed: the driver waits for whoever reads.
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// Brings the answer to a cohort up to date.
    fn refresh(&mut self, name: &ServiceName, cohort: &Cohort, snapshot: &Snapshot, now: Timestamp) {
        let clients = self.cohorts.iter().map(|(_, entry)| entry.answer.receiver_count()).sum();
        let Some(entry) = self.cohorts.get_mut(cohort) else { return };
        let Some(service) = snapshot.services.get(name) else {
            self.lists = None;
            entry.tell_absent(now < snapshot.settled_at);
            return;
        };
        let lists = match self.lists.take() {
            Some(lists) if Arc::ptr_eq(&lists.service, service) => lists,
            Some(_) | None => Box::new(Lists::of(service, clients)),
        };
        entry.refresh(cohort, self.lists.insert(lists), snapshot.at);
    }

    /// Nobody knows the service. Whether somebody still asks for it.
    fn is_absent(&mut self, settling: bool) -> bool {
        self.lists = None;
        self.cohorts.retain(Entry::is_wanted);
        self.cohorts.iter_mut().for_each(|entry| entry.tell_absent(settling));
        !self.cohorts.is_empty()
    }
}

impl Lists {
    fn of(service: &Arc<ServiceSnapshot>, clients: usize) -> Self {
        let places = service.endpoints.iter().map(|endpoint| endpoint.spec.locality.zone());
        let places = places.filter(|_| service.config.locality.prefer_zone).collect::<BTreeSet<_>>();
        let zones = places.into_iter().filter_map(|zone| Locality::parse(zone).ok()).collect();
        let clients = u32::try_from(clients).unwrap_or(u32::MAX);
        Self { service: Arc::clone(service), clients, zones, made: BTreeMap::new() }
    }

    /// The cohort with the same list whose place does not go beyond what makes a difference: clients say where they are,
    /// and could say anything. To a policy a place matters by its zone, and in a zone without an endpoint it is as good as
    /// unknown.
    fn cohort(&self, cohort: &Cohort) -> Cohort {
        let zone = Locality::parse(cohort.locality.zone()).ok().and_then(|zone| self.zones.get(&zone).cloned());
        Cohort { seed: cohort.seed, locality: zone.unwrap_or_else(Locality::unknown) }
    }

    fn made(&mut self, cohort: &Cohort) -> &mut Made {
        let cohort = self.cohort(cohort);
        let service = &self.service;
        self.made.entry(cohort).or_insert_with_key(|cohort| {
            let label = telemetry::service_label(&service.name);
            metrics::counter!(telemetry::DECISIONS_TOTAL, "service" => label).increment(1);
            Made { list: Arc::new(List::new(policy::assign(service, cohort))), framed: None }
        })
    }
}

impl Made {
    fn framed(&mut self, service: &ServiceSnapshot, clients: u32) -> &(Framed, Option<Framed>) {
        self.framed.get_or_insert_with(|| {
            let additions = service.stale.then(|| Arc::new(List::new(self.list.assignment.as_additions())));
            let framed = |list| Framed::of(list, service, clients);
            (framed(Arc::clone(&self.list)), additions.map(framed))
        })
    }
}

impl Entry {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            answer: watch::Sender::new(absent(true)),
            service: None,
            held_back: None,
            held_for: Duration::ZERO,
            listed_at: now,
            beat_at: now,
            told_at: now,
            told: Fleet::default(),
            policy: None,
            counters: None,
        }
    }

    fn is_wanted(&self) -> bool {
        self.answer.receiver_count() > 0
    }

    fn refresh(&mut self, cohort: &Cohort, lists: &mut Lists, at: Timestamp) {
        let service = &Arc::clone(&lists.service);
        let is_news = self.told_at.elapsed() >= FLEET_PERIOD && service.fleet.is_news_to(&self.told);
        let due = is_news || self.beat_at.elapsed() >= HEARTBEAT_PERIOD;
        let is_it = |seen: &Option<Arc<ServiceSnapshot>>| seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, service));
        let is_held = self.listed_at.elapsed() < self.held_for && is_it(&self.held_back);
        if !due && (is_it(&self.service) || is_held) {
            return;
        }
        let began = Instant::now();
        let clients = lists.clients;
        let made = lists.made(cohort);
        let assignment = &made.list.assignment;
        let current = Arc::clone(&self.answer.borrow());
        let list = match &*current {
            Answer::List(held) => match held.whole.list.assignment.difference(assignment).map(Difference::can_wait) {
                None => {
                    let calls = |seen: &Arc<ServiceSnapshot>| seen.config.calls == service.config.calls;
                    let same_calls = self.service.as_ref().is_some_and(calls);
                    self.service = Some(Arc::clone(service));
                    if !due && same_calls {
                        return;
                    }
                    (self.told_at, self.told) = (began, service.fleet);
                    Arc::clone(&held.whole.list)
                }
                // What is due goes out in any case, and then as the list that it would tell of.
                Some(wait) if !due && self.listed_at.elapsed() < wait => {
                    // Not noted as seen for good: a later turn comes by again.
                    (self.held_back, self.held_for) = (Some(Arc::clone(service)), wait);
                    return;
                }
                Some(_) => {
                    (self.listed_at, self.told_at, self.told) = (began, began, service.fleet);
                    Arc::clone(&made.list)
                }
            },
            Answer::Silent | Answer::Unknown => {
                self.listed_at = began;
                Arc::clone(&made.list)
            }
        };
        self.service = Some(Arc::clone(service));
        self.held_back = None;
        self.beat_at = began;
        let (whole, additions) = made.framed(service, clients);
        let published = Published {
            additions: additions.clone().map(Box::new),
            whole: Framed { list, ..whole.clone() },
            policy_frame: self.policy_frame(service),
            has_no_rules: service.config.calls.has_no_rules(),
            knows_fleet: service.fleet != Fleet::default(),
            version: service.version,
            at,
            counters: self.counters.get_or_insert_with(|| Counters::of(&service.name)).clone(),
        };
        metrics::histogram!(telemetry::DECISION_DURATION_SECONDS).record(began.elapsed());
        self.answer.send_replace(Arc::new(Answer::List(published)));
    }

    fn policy_frame(&mut self, service: &ServiceSnapshot) -> Bytes {
        if let Some((config, frame)) = &self.policy
            && config.calls == service.config.calls
        {
            return frame.clone();
        }
        let frame = encode::method_policy(service);
        self.policy = Some((Arc::clone(&service.config), frame.clone()));
        frame
    }

    fn tell_absent(&mut self, settling: bool) {
        self.service = None;
        let absent = absent(settling);
        self.answer.send_if_modified(|told| {
            let is_news = !Arc::ptr_eq(told, &absent);
            *told = absent;
            is_news
        });
    }
}

/// What there is to say of a service that nobody knows: the same to all who ask.
fn absent(settling: bool) -> Arc<Answer> {
    static SILENT: LazyLock<Arc<Answer>> = LazyLock::new(|| Arc::new(Answer::Silent));
    static UNKNOWN: LazyLock<Arc<Answer>> = LazyLock::new(|| Arc::new(Answer::Unknown));
    Arc::clone(if settling { &SILENT } else { &UNKNOWN })
}

#[cfg(test)]
mod tests;
