//! One answer per service and cohort, computed and encoded once and shared by every stream that asks for it. An answer
//! is made when the first stream asks, follows the snapshots, and is forgotten with its last stream. Paces as well:
//! lists that differ in loads alone go out at most once a second.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use lookaside_core::{
    config::ServiceConfig,
    model::{Cohort, Locality, ServiceName, Timestamp},
    policy::{self, Assignment},
    snapshot::{ServiceSnapshot, Snapshot},
};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::encode;
use crate::{
    driver::Handle,
    limits::{COHORTS_PER_SERVICE_MAX, HEARTBEAT_PERIOD, LOAD_LIST_PERIOD},
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
    /// When the state of affairs that it shows was taken.
    pub(crate) at: Timestamp,
    /// What is sent is counted here.
    pub(crate) counters: Counters,
}

/// A list and its frames.
#[derive(Debug)]
pub(crate) struct Framed {
    /// The list itself; its own version is the one it was first published under.
    pub(crate) list: Arc<List>,
    /// `PickResponse.list` as a gRPC frame.
    pub(crate) list_frame: Bytes,
    /// `PickResponse.tick` as a gRPC frame.
    pub(crate) tick_frame: Bytes,
}

impl Framed {
    fn of(list: Arc<List>, service: &ServiceSnapshot) -> Self {
        Self {
            list_frame: encode::list(&list.assignment, service.version),
            tick_frame: encode::tick(&list.assignment, service),
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
    pub(crate) fn place(&self, address: &lookaside_core::model::Address) -> Option<&policy::Assigned> {
        let endpoints = &self.assignment.endpoints;
        let at = self.by_address.binary_search_by(|at| endpoints[*at].spec.address.cmp(address)).ok()?;
        endpoints.get(self.by_address[at])
    }
}

/// Every answer that somebody asks for.
pub(crate) struct Cohorts {
    driver: Handle,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    entries: Mutex<BTreeMap<ServiceName, BTreeMap<Cohort, Entry>>>,
}

struct Entry {
    answer: watch::Sender<Arc<Answer>>,
    /// What the answer was computed from; `None` where there is no service.
    service: Option<Arc<ServiceSnapshot>>,
    /// What was looked at since, with loads alone to tell: a herd of newcomers must not have it computed for each.
    held_back: Option<Arc<ServiceSnapshot>>,
    /// When the last list went out, and the last list or tick.
    listed_at: Instant,
    beat_at: Instant,
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
        let cohorts = entries.entry(service.clone()).or_default();
        let nowhere = Cohort { locality: Locality::unknown(), ..cohort.clone() };
        let is_known = cohorts.contains_key(cohort) || cohorts.len() < COHORTS_PER_SERVICE_MAX;
        let cohort = if is_known { cohort } else { &nowhere };
        let entry = cohorts.entry(cohort.clone()).or_insert_with(|| {
            let now = Instant::now();
            Entry {
                answer: watch::Sender::new(Arc::new(Answer::Silent)),
                service: None,
                held_back: None,
                listed_at: now,
                beat_at: now,
                policy: None,
                counters: None,
            }
        });
        // Under the lock, so that no two computations can overtake each other and a version fall. Also where there was an
        // answer: a backend may just have been told that nobody is sent to it any more.
        entry.refresh(service, cohort, &self.snapshots.borrow(), self.driver.now());
        entry.answer.subscribe()
    }

    /// Follows the snapshots until `stop` is cancelled.
    pub(crate) async fn follow(self: Arc<Self>, stop: CancellationToken) {
        let mut snapshots = self.snapshots.clone();
        let mut turns = interval(TURN);
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = snapshots.changed() => if changed.is_err() { return },
                _ = turns.tick() => {}
            }
            let services: Vec<_> = self.lock().keys().cloned().collect();
            for service in services {
                self.refresh(&service);
                // A service with thousands of endpoints takes milliseconds.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Cohorts that somebody asks for.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.lock().values().map(BTreeMap::len).sum()
    }

    fn refresh(&self, service: &ServiceName) {
        let mut entries = self.lock();
        let Some(cohorts) = entries.get_mut(service) else { return };
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let now = self.driver.now();
        cohorts.retain(|_, entry| entry.answer.receiver_count() > 0);
        for (cohort, entry) in cohorts.iter_mut() {
            entry.refresh(service, cohort, &snapshot, now);
        }
        if cohorts.is_empty() {
            entries.remove(service);
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, BTreeMap<Cohort, Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn refresh(&mut self, name: &ServiceName, cohort: &Cohort, snapshot: &Snapshot, now: Timestamp) {
        let Some(service) = snapshot.services.get(name) else {
            self.service = None;
            self.tell_absent(now < snapshot.settled_at);
            return;
        };
        let due = self.beat_at.elapsed() >= HEARTBEAT_PERIOD;
        let is_it = |seen: &Option<Arc<ServiceSnapshot>>| seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, service));
        let is_early = self.listed_at.elapsed() < LOAD_LIST_PERIOD;
        if !due && (is_it(&self.service) || (is_early && is_it(&self.held_back))) {
            return;
        }
        let began = Instant::now();
        let assignment = policy::assign(service, cohort);
        metrics::counter!(telemetry::DECISIONS_TOTAL, "service" => telemetry::service_label(name)).increment(1);
        let current = Arc::clone(&self.answer.borrow());
        let list = match &*current {
            Answer::List(held) if held.whole.list.assignment.digest == assignment.digest => {
                let same_calls = self.service.as_ref().is_some_and(|seen| seen.config.calls == service.config.calls);
                self.service = Some(Arc::clone(service));
                if !due && same_calls {
                    return;
                }
                Arc::clone(&held.whole.list)
            }
            Answer::List(held) if is_early && differ_in_loads_alone(&held.whole.list.assignment, &assignment) => {
                // Not noted as seen for good: a later turn comes by again.
                self.held_back = Some(Arc::clone(service));
                return;
            }
            Answer::List(_) | Answer::Silent | Answer::Unknown => {
                self.listed_at = began;
                Arc::new(List::new(assignment))
            }
        };
        self.service = Some(Arc::clone(service));
        self.held_back = None;
        self.beat_at = began;
        let published = Published {
            additions: service.stale.then(|| {
                let additions = Arc::new(List::new(list.assignment.as_additions()));
                Box::new(Framed::of(additions, service))
            }),
            whole: Framed::of(list, service),
            policy_frame: self.policy_frame(service),
            has_no_rules: service.config.calls.has_no_rules(),
            version: service.version,
            at: snapshot.at,
            counters: self.counters.get_or_insert_with(|| Counters::of(name)).clone(),
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

    fn tell_absent(&self, settling: bool) {
        let absent = if settling { Answer::Silent } else { Answer::Unknown };
        let same = matches!(
            (&**self.answer.borrow(), &absent),
            (Answer::Unknown, Answer::Unknown) | (Answer::Silent, Answer::Silent)
        );
        if !same {
            self.answer.send_replace(Arc::new(absent));
        }
    }
}

/// Whether only order and positive weights changed, so that a second more or less does not matter.
fn differ_in_loads_alone(before: &Assignment, after: &Assignment) -> bool {
    let same_frame = before.complete == after.complete
        && before.mode == after.mode
        && before.note == after.note
        && before.policy == after.policy
        && before.ring == after.ring
        && before.endpoints.len() == after.endpoints.len();
    same_frame && {
        let key = |assignment: &Assignment| -> BTreeMap<_, _> {
            let places = assignment.endpoints.iter().map(|e| {
                let codes: Vec<_> = e.reasons.iter().map(|(code, _)| *code).collect();
                (e.spec.address.clone(), (e.spec.clone(), e.priority, e.weight == 0, codes))
            });
            places.collect()
        };
        key(before) == key(after)
    }
}

#[cfg(test)]
mod tests {
    use lookaside_core::{
        config::PolicyKind,
        event::{Backend, Event, LoadReport},
        policy::ListMode,
    };

    use super::*;
    use crate::testing::{address, driver, list, service};

    fn assignment(weights: &[(&str, u32)]) -> Assignment {
        let endpoints = weights.iter().map(|(at, weight)| policy::Assigned {
            spec: lookaside_core::model::EndpointSpec::at(address(at)),
            priority: 0,
            weight: *weight,
            reasons: Vec::new(),
            is_keyed_by_instance: false,
        });
        Assignment {
            service: service("greeter"),
            version: Default::default(),
            digest: 0,
            complete: true,
            mode: ListMode::Normal,
            note: String::new(),
            endpoints: endpoints.collect(),
            policy: PolicyKind::LeastLoad,
            ring: None,
        }
    }

    #[test]
    fn order_and_weights_can_wait_and_nothing_else() {
        let before = assignment(&[("a:1", 100), ("b:1", 100)]);
        assert!(differ_in_loads_alone(&before, &assignment(&[("b:1", 50), ("a:1", 100)])));
        for other in [
            assignment(&[("a:1", 100), ("b:1", 0)]),
            assignment(&[("a:1", 100)]),
            assignment(&[("a:1", 100), ("c:1", 100)]),
            Assignment { mode: ListMode::Panic, ..before.clone() },
            Assignment { complete: false, ..before.clone() },
            Assignment { note: "1 excluded".to_owned(), ..before.clone() },
        ] {
            assert!(!differ_in_loads_alone(&before, &other), "{other:?}");
        }
    }

    #[test]
    fn an_address_is_found_in_a_list_of_any_order() {
        let list = List::new(assignment(&[("c:1", 1), ("a:1", 2), ("b:1", 0)]));
        let weight = |at| list.place(&address(at)).map(|place| place.weight);
        assert_eq!([weight("a:1"), weight("b:1"), weight("c:1"), weight("d:1")], [Some(2), Some(0), Some(1), None]);
    }

    #[tokio::test]
    async fn who_comes_late_gets_the_newest_list_though_nobody_has_looked_since() {
        let stop = CancellationToken::new();
        let driver = driver(&stop);
        list(&driver, "greeter", &["10.0.0.1:1"]).await;
        let cohorts = Cohorts::new(driver.clone());
        let cohort = Cohort { seed: 0, locality: Locality::unknown() };
        let _early = cohorts.subscribe(&service("greeter"), &cohort);
        list(&driver, "greeter", &["10.0.0.2:1"]).await;
        let late = cohorts.subscribe(&service("greeter"), &cohort);
        match &**late.borrow() {
            Answer::List(published) => assert!(published.whole.list.place(&address("10.0.0.2:1")).is_some()),
            other => panic!("{other:?} is no list"),
        }
        stop.cancel();
    }

    #[tokio::test]
    async fn clients_from_more_places_than_there_can_be_share_the_lists_of_an_unknown_place() {
        let stop = CancellationToken::new();
        let cohorts = Cohorts::new(driver(&stop));
        let from = |place: &str| Cohort { seed: 0, locality: Locality::parse(place).unwrap() };
        let answers: Vec<_> = (0..2 * COHORTS_PER_SERVICE_MAX)
            .map(|number| cohorts.subscribe(&service("greeter"), &from(&format!("eu/a/{number}"))))
            .collect();
        assert_eq!(cohorts.count(), COHORTS_PER_SERVICE_MAX + 1);
        assert_eq!(answers.len(), 2 * COHORTS_PER_SERVICE_MAX);
        stop.cancel();
    }

    #[tokio::test]
    async fn an_answer_never_goes_back_to_an_older_version() {
        let stop = CancellationToken::new();
        let driver = driver(&stop);
        list(&driver, "greeter", &["10.0.0.1:1", "10.0.0.2:1"]).await;
        let cohorts = Arc::new(Cohorts::new(driver.clone()));
        tokio::spawn(Arc::clone(&cohorts).follow(stop.clone()));
        let cohort = Cohort { seed: 0, locality: Locality::unknown() };
        let mut answer = cohorts.subscribe(&service("greeter"), &cohort);
        let version = |answer: &Answer| match answer {
            Answer::List(list) => list.version,
            other => panic!("{other:?} is no list"),
        };
        let mut last = version(&answer.borrow_and_update());
        for round in 3..30 {
            list(&driver, "greeter", &["10.0.0.1:1", &format!("10.0.0.{round}:1")]).await;
            let backend = Backend { service: service("greeter"), address: address("10.0.0.1:1"), incarnation: 0 };
            driver.tell(Event::LoadReported { backend, load: LoadReport::default() }).await;
            if answer.has_changed().unwrap() {
                let now = version(&answer.borrow_and_update());
                assert!(now > last, "{now:?} after {last:?}");
                last = now;
            }
        }
        stop.cancel();
    }
}
