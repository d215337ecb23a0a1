//! What a snapshot tells in numbers, read when somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use lookaside_core::{
    model::Timestamp,
    snapshot::{Mode, ServiceSnapshot, Snapshot, State},
};

use super::{
    DISCOVERY_LAST_ANSWER_AGE_SECONDS, DISCOVERY_UP, ENDPOINTS, ENDPOINTS_EXCLUDED, REPORT_OLDEST_AGE_SECONDS,
    SERVICE_LIST_MODE, SERVICE_SETTLING,
};

/// A metric and its labels.
pub(crate) type Key = (&'static str, Vec<(&'static str, String)>);

/// Numbers of one moment.
pub(crate) type Numbers = BTreeMap<Key, f64>;

/// Gauges on show. What was shown before and is not told any more becomes 0: a service that is gone has no endpoints.
#[derive(Default)]
pub(crate) struct Gauges {
    shown: BTreeSet<Key>,
}

impl Gauges {
    /// Shows these numbers and no others.
    pub(crate) fn show(&mut self, numbers: Numbers) {
        for (name, labels) in self.shown.iter().filter(|key| !numbers.contains_key(key)) {
            metrics::gauge!(*name, labels).set(0.0);
        }
        for ((name, labels), number) in &numbers {
            metrics::gauge!(*name, labels).set(*number);
        }
        self.shown = numbers.into_keys().collect();
    }
}

/// What a snapshot tells.
pub(crate) fn of(snapshot: &Snapshot, now: Timestamp) -> Numbers {
    let mut numbers = Numbers::new();
    for service in snapshot.services.values() {
        of_service(service, now, &mut numbers);
    }
    for (source, state) in &snapshot.sources {
        let labels = || vec![("source", source.to_string())];
        numbers.insert((DISCOVERY_UP, labels()), f64::from(state.stale.is_none()));
        if let Some(at) = state.answered_at {
            numbers.insert((DISCOVERY_LAST_ANSWER_AGE_SECONDS, labels()), now.since(at).as_secs_f64());
        }
    }
    numbers
}

fn of_service(service: &ServiceSnapshot, now: Timestamp, numbers: &mut Numbers) {
    let label = ("service", service.name.to_string());
    let states = [State::Eligible, State::Restored, State::Excluded, State::Draining, State::Disabled, State::Pending];
    for state in states {
        let count = service.endpoints.iter().filter(|e| e.state == state).count();
        numbers.insert((ENDPOINTS, vec![label.clone(), ("state", state.name().to_owned())]), count as f64);
    }
    for endpoint in service.endpoints.iter().filter(|e| !e.state.is_offered()) {
        let reason = endpoint.reasons.first().map_or("NONE", |reason| reason.code.name());
        let key = (ENDPOINTS_EXCLUDED, vec![label.clone(), ("reason", reason.to_owned())]);
        *numbers.entry(key).or_default() += 1.0;
    }
    for mode in [Mode::Normal, Mode::Panic, Mode::LastGood, Mode::Empty] {
        let labels = vec![label.clone(), ("mode", mode.name().to_owned())];
        numbers.insert((SERVICE_LIST_MODE, labels), f64::from(service.mode == mode));
    }
    numbers.insert((SERVICE_SETTLING, vec![label.clone()]), f64::from(service.settling));
    let reported = service.endpoints.iter().filter_map(|e| e.lease.as_ref()?.reported_at);
    if let Some(oldest) = reported.min() {
        numbers.insert((REPORT_OLDEST_AGE_SECONDS, vec![label]), now.since(oldest).as_secs_f64());
    }
}
