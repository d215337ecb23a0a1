//! What arrives faster than turns are made: reports and outcomes, one slot per sender, drained each turn. Whoever
//! brings something never waits, and memory is bounded by the number of slots.

use std::hash::Hash;

use dashmap::DashMap;
use lookaside_core::{
    event::{Backend, Client, Event, LoadReport, Outcomes},
    model::{Address, ServiceName},
};
use tokio::sync::Notify;

use crate::{
    limits::{OUTCOME_SLOTS_MAX, REPORT_SLOTS_MAX},
    telemetry,
};

pub(super) type OutcomesKey = (Client, ServiceName, Address);

#[derive(Default)]
pub(super) struct Intake {
    reports: DashMap<Backend, LoadReport>,
    outcomes: DashMap<OutcomesKey, Outcomes>,
    urgent: Notify,
}

impl Intake {
    /// Reports are sums since the start of the backend: the newest says all that older ones said.
    pub(super) fn report(&self, backend: Backend, load: LoadReport) {
        if is_full(&self.reports, &backend, REPORT_SLOTS_MAX) {
            metrics::counter!(telemetry::INTAKE_DROPPED_TOTAL, "kind" => "report").increment(1);
            return;
        }
        let mut slot = self.reports.entry(backend).or_insert(load);
        if slot.sequence < load.sequence {
            *slot = load;
        }
    }

    /// Outcomes are counts since the last time: they add up.
    pub(super) fn outcomes(&self, key: OutcomesKey, outcomes: Outcomes) {
        if is_full(&self.outcomes, &key, OUTCOME_SLOTS_MAX) {
            metrics::counter!(telemetry::INTAKE_DROPPED_TOTAL, "kind" => "outcomes").increment(1);
            return;
        }
        let is_suspect = outcomes.suspect;
        let mut slot = self.outcomes.entry(key).or_default();
        slot.ok = slot.ok.saturating_add(outcomes.ok);
        slot.failed = slot.failed.saturating_add(outcomes.failed);
        slot.suspect |= outcomes.suspect;
        if !outcomes.detail.is_empty() {
            slot.detail = outcomes.detail;
        }
        drop(slot);
        if is_suspect {
            self.urgent.notify_one();
        }
    }

    /// Waits for something that must not wait for the next turn by itself.
    pub(super) async fn urgent(&self) {
        self.urgent.notified().await;
    }

    /// Everything since the last time.
    pub(super) fn drain(&self) -> Vec<Event> {
        let mut events = Vec::new();
        self.reports.retain(|backend, load| {
            events.push(Event::LoadReported { backend: backend.clone(), load: *load });
            false
        });
        self.outcomes.retain(|(client, service, address), outcomes| {
            events.push(Event::CallsEnded {
                client: client.clone(),
                service: service.clone(),
                address: address.clone(),
                outcomes: std::mem::take(outcomes),
            });
            false
        });
        events
    }
}

/// A few slots too many when several arrive at once do no harm.
fn is_full<K: Eq + Hash, V>(slots: &DashMap<K, V>, key: &K, max: usize) -> bool {
    slots.len() >= max && !slots.contains_key(key)
}

#[cfg(test)]
mod tests {
    use lookaside_core::model::{ClientId, Locality, Peer};

    use super::*;

    fn key(client: &str) -> OutcomesKey {
        let id = ClientId::parse(client).unwrap();
        let client = Client { id, peer: Peer(1), locality: Locality::unknown() };
        (client, ServiceName::parse("s").unwrap(), Address::parse("10.0.0.1:1").unwrap())
    }

    fn backend() -> Backend {
        Backend {
            service: ServiceName::parse("s").unwrap(),
            address: Address::parse("10.0.0.1:1").unwrap(),
            incarnation: 1,
        }
    }

    #[test]
    fn of_many_reports_the_newest_is_kept_whatever_the_order() {
        let intake = Intake::default();
        for sequence in [1, 3, 2] {
            intake.report(backend(), LoadReport { sequence, ..LoadReport::default() });
        }
        let newest = LoadReport { sequence: 3, ..LoadReport::default() };
        assert_eq!(intake.drain(), [Event::LoadReported { backend: backend(), load: newest }]);
        assert_eq!(intake.drain(), [], "drained means gone");
    }

    #[test]
    fn outcomes_of_one_client_and_endpoint_add_up() {
        let intake = Intake::default();
        let told = |ok, suspect, detail: &str| Outcomes { ok, failed: 1, suspect, detail: detail.into() };
        intake.outcomes(key("a"), told(1, true, "refused"));
        intake.outcomes(key("a"), told(2, false, ""));
        let (client, service, address) = key("a");
        let outcomes = Outcomes { ok: 3, failed: 2, suspect: true, detail: "refused".into() };
        assert_eq!(intake.drain(), [Event::CallsEnded { client, service, address, outcomes }]);
    }

    #[tokio::test]
    async fn a_suspicion_is_urgent_and_stays_so_until_somebody_waits() {
        let intake = Intake::default();
        intake.outcomes(key("a"), Outcomes { suspect: true, ..Outcomes::default() });
        intake.urgent().await;
    }

    #[test]
    fn a_full_intake_drops_strangers_and_keeps_adding_to_those_it_has() {
        let slots = DashMap::new();
        slots.insert(1, ());
        assert!(is_full(&slots, &2, 1));
        assert!(!is_full(&slots, &1, 1));
    }
}
