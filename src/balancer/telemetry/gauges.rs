//! What a snapshot tells in numbers, read when somebody asks.

use std::collections::{BTreeMap, BTreeSet};

use lookaside_core::{
    model::Timestamp,
    snapshot::{Mode, ServiceSnapshot, Snapshot, State},
};

use super::{
    DISCOVERY_LAST_ANSWER_AGE_SECONDS, DISCOVERY_UP, ENDPOINTS, ENDPOINTS_EXCLUDED, REPORT_OLDEST_AGE_SECONDS,
    SERVICE_LIST_MODE, SERVICE_SETTLING, service_label,
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

/// Services that share a label add up.
fn of_service(service: &ServiceSnapshot, now: Timestamp, numbers: &mut Numbers) {
    let label = ("service", service_label(&service.name));
    let mut add = |name, further: Option<(&'static str, &str)>, number: f64| {
        let further = further.map(|(label, value)| (label, value.to_owned()));
        let labels = std::iter::once(label.clone()).chain(further).collect();
        *numbers.entry((name, labels)).or_default() += number;
    };
    let states = [State::Eligible, State::Restored, State::Excluded, State::Draining, State::Disabled, State::Pending];
    for state in states {
        let count = service.endpoints.iter().filter(|e| e.state == state).count();
        add(ENDPOINTS, Some(("state", state.name())), count as f64);
    }
    for endpoint in service.endpoints.iter().filter(|e| !e.state.is_offered()) {
        let reason = endpoint.reasons.first().map_or("NONE", |reason| reason.code.name());
        add(ENDPOINTS_EXCLUDED, Some(("reason", reason)), 1.0);
    }
    for mode in [Mode::Normal, Mode::Panic, Mode::LastGood, Mode::Empty] {
        add(SERVICE_LIST_MODE, Some(("mode", mode.name())), f64::from(service.mode == mode));
    }
    add(SERVICE_SETTLING, None, f64::from(service.settling));
    let reported = service.endpoints.iter().filter_map(|e| e.lease.as_ref()?.reported_at);
    if let Some(oldest) = reported.min() {
        let age = numbers.entry((REPORT_OLDEST_AGE_SECONDS, vec![label])).or_default();
        *age = age.max(now.since(oldest).as_secs_f64());
    }
}
