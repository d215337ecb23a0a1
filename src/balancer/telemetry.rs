//! Every metric, declared once: its name, kind, unit and meaning; and the page that shows them. A label is never an
//! endpoint or a client, since those come and go without bound. What a snapshot can tell is read from it when the page
//! is asked for, and kept nowhere else.

use std::sync::{LazyLock, OnceLock};

use dashmap::DashSet;
use lookaside_core::model::ServiceName;
use metrics::Unit;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use crate::limits::SERVICE_LABELS_MAX;

pub(crate) mod gauges;
pub(crate) mod page;

/// What a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only grows.
    Counter,
    /// Comes and goes.
    Gauge,
    /// Spread of many.
    Histogram,
}

macro_rules! declare {
    ($($constant:ident $kind:ident $unit:ident $name:literal $help:literal;)*) => {
        $(#[doc = $help] pub(crate) const $constant: &str = $name;)*

        /// Name, kind, unit, meaning; labels in the meaning.
        pub(crate) const METRICS: &[(&str, Kind, Unit, &str)] =
            &[$(($constant, Kind::$kind, Unit::$unit, $help)),*];
    };
}

declare! {
    BUILD_INFO Gauge Count "lookaside_build_info" "1, with the version";
    RUNTIME_LAG_SECONDS Gauge Seconds "lookaside_runtime_lag_seconds" "How late a timer of the balancer fires at worst, over the last five seconds";
    CONFIG_RELOADS_TOTAL Counter Count "lookaside_config_reloads_total" "Times that a changed configuration was read, by result (applied, refused)";
    CONFIG_RELOAD_FAILED Gauge Count "lookaside_config_reload_failed" "1 while the configuration file is refused and the last good one holds";
    CONFIG_APPLIED_TIMESTAMP_SECONDS Gauge Seconds "lookaside_config_applied_timestamp_seconds" "When the configuration in force was applied, seconds since 1970";
    CONNECTIONS Gauge Count "lookaside_connections" "Connections open, by listener";
    CONNECTIONS_REFUSED_TOTAL Counter Count "lookaside_connections_refused_total" "Connections closed before their time, by listener and reason (cap, peer_cap, file_descriptors, handshakes, tls, preface, preface_deadline, first_request_deadline, flood)";
    CERTIFICATE_EXPIRY_SECONDS Gauge Seconds "lookaside_certificate_expiry_seconds" "Time until the certificate in use expires, below 0 when it has, by listener";
    CERTIFICATE_RELOADS_TOTAL Counter Count "lookaside_certificate_reloads_total" "Times that certificate files changed, by listener and result (taken, refused)";
    ENDPOINTS Gauge Count "lookaside_endpoints" "Endpoints known, by service and state";
    ENDPOINTS_EXCLUDED Gauge Count "lookaside_endpoints_excluded" "Endpoints not offered, by service and main reason";
    SERVICE_LIST_MODE Gauge Count "lookaside_service_list_mode" "1 for the mode a service is in, by service and mode";
    SERVICE_SETTLING Gauge Count "lookaside_service_settling" "1 while not everybody has been heard after a start, by service";
    REPORT_OLDEST_AGE_SECONDS Gauge Seconds "lookaside_report_oldest_age_seconds" "Age of the oldest last report among registered endpoints, by service";
    DISCOVERY_UP Gauge Count "lookaside_discovery_up" "1 while a source answers, 0 while its last answer is used, by source";
    DISCOVERY_LAST_ANSWER_AGE_SECONDS Gauge Seconds "lookaside_discovery_last_answer_age_seconds" "Age of the last answer, by source";
    PICK_STREAMS Gauge Count "lookaside_pick_streams" "Pick streams subscribed, by service and protocol";
    PICK_STREAMS_UNSYNCED Gauge Count "lookaside_pick_streams_unsynced" "Pick streams whose newest list was not acknowledged for five seconds or was refused, by service";
    PICK_UPDATES_TOTAL Counter Count "lookaside_pick_updates_total" "Lists sent to clients, by service";
    PICK_HEARTBEATS_TOTAL Counter Count "lookaside_pick_heartbeats_total" "Ticks sent to clients, by service";
    PICK_NACKS_TOTAL Counter Count "lookaside_pick_nacks_total" "Lists that clients refused, by service";
    PICK_REFUSED_TOTAL Counter Count "lookaside_pick_refused_total" "Messages of clients that were refused, by reason";
    PICK_UNREAD_TOTAL Counter Count "lookaside_pick_unread_total" "Pick streams ended because the client did not read";
    DECISIONS_TOTAL Counter Count "lookaside_decisions_total" "Lists computed, by service";
    DECISION_DURATION_SECONDS Histogram Seconds "lookaside_decision_duration_seconds" "Time to compute and encode a list";
    PROPAGATION_DURATION_SECONDS Histogram Seconds "lookaside_propagation_duration_seconds" "Time from a change of state to a list written to a stream";
    CLIENT_CALLS_TOTAL Counter Count "lookaside_client_calls_total" "Calls as clients told of them, by service and outcome (ok, caller, cancelled, overload, endpoint, deadline, connect_failed)";
    ADMIN_ACTIONS_TOTAL Counter Count "lookaside_admin_actions_total" "Overrides asked for, by action and result (done, previewed, refused)";
    DNS_LOOKUPS_TOTAL Counter Count "lookaside_dns_lookups_total" "Questions to name servers that came to an end, by result (found, empty, nxdomain, timeout, servfail, refused, unusable, unreachable)";
    DNS_ROUND_DURATION_SECONDS Histogram Seconds "lookaside_dns_round_duration_seconds" "Time to ask everything about one DNS name once";
    EVENTS_REFUSED_TOTAL Counter Count "lookaside_events_refused_total" "Facts that the table did not take";
    INVARIANTS_BROKEN_TOTAL Counter Count "lookaside_invariants_broken_total" "Services whose last good snapshot was kept since the next one would have broken a promise: a mistake in the balancer";
    HEALTH_CHECKS_TOTAL Counter Count "lookaside_health_checks_total" "Checks of endpoints that came to an end, by result";
    HEALTH_CHECK_DURATION_SECONDS Histogram Seconds "lookaside_health_check_duration_seconds" "Time that checks of endpoints took";
    INTAKE_DROPPED_TOTAL Counter Count "lookaside_intake_dropped_total" "Reports or outcomes (kind) dropped because the intake was full";
    DATA_SAVED Gauge Count "lookaside_data_saved" "1 while a file of the data directory is up to date, 0 when the last save failed, by file (overrides, snapshot)";
    DATA_SAVES_TOTAL Counter Count "lookaside_data_saves_total" "Saves to the data directory, by file and result (ok, failed)";
    DATA_REFUSED_TOTAL Counter Count "lookaside_data_refused_total" "Files of the data directory that were not used at the start, by file and reason (unreadable, too_large, foreign, newer, truncated, damaged, limits)";
    REPORTS_TOTAL Counter Count "lookaside_reports_total" "Messages of backends that were taken";
    REPORTS_REFUSED_TOTAL Counter Count "lookaside_reports_refused_total" "Messages of backends that were refused, by reason";
    REPORT_STREAMS Gauge Count "lookaside_report_streams" "Report streams open";
    TURN_DURATION_SECONDS Histogram Seconds "lookaside_turn_duration_seconds" "Time that turns of the table took";
}

/// From 100 us, below which nothing here matters, to 10 s, above which everything is lost.
const BUCKETS_SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The label of a service. Peers name services, so that there is a limit to names: [`SERVICE_LABELS_MAX`].
pub(crate) fn service_label(service: &ServiceName) -> String {
    static LABELS: LazyLock<DashSet<ServiceName>> = LazyLock::new(DashSet::new);
    label_of(service, &LABELS, SERVICE_LABELS_MAX)
}

/// A few labels too many when several services come at once do no harm.
fn label_of(service: &ServiceName, labels: &DashSet<ServiceName>, max: usize) -> String {
    if labels.contains(service) || (labels.len() < max && labels.insert(service.clone())) {
        return service.to_string();
    }
    "other".to_owned()
}

/// Starts counting. There is one recorder in a process, so several balancers in one process share their counters. When
/// the process has a recorder of its own already, that one gets the numbers and our page stays empty.
pub(crate) fn install() -> PrometheusHandle {
    static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let recorder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS_SECONDS)
                .expect("the buckets are not empty")
                .build_recorder();
            let handle = recorder.handle();
            if metrics::set_global_recorder(recorder).is_err() {
                tracing::warn!("this process counts elsewhere; the metrics page stays empty");
            }
            for (name, kind, unit, help) in METRICS {
                match kind {
                    Kind::Counter => metrics::describe_counter!(*name, *unit, *help),
                    Kind::Gauge => metrics::describe_gauge!(*name, *unit, *help),
                    Kind::Histogram => metrics::describe_histogram!(*name, *unit, *help),
                }
            }
            handle
        })
        .clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_limit_new_services_share_a_label_and_old_ones_keep_theirs() {
        let labels = DashSet::new();
        let label = |name: &str| label_of(&ServiceName::parse(name).unwrap(), &labels, 2);
        assert_eq!(["a", "b", "c", "a", "c"].map(label), ["a", "b", "other", "a", "other"]);
    }

    #[test]
    fn names_say_what_they_are() {
        for (name, kind, unit, help) in METRICS {
            assert!(name.starts_with("lookaside_") && !help.is_empty(), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert_eq!(name.ends_with("_seconds"), *unit == Unit::Seconds, "{name}");
        }
    }
}
