//! The core's values in the words of the wire contract, and refusals as statuses that machines can read. Decides
//! nothing; wire types go no further in than this.

use std::time::Duration;

use lookaside_core::{
    config::{CallConfig, MethodRule, PolicyKind},
    event::{Action, Override, Scope},
    limits::WEIGHT_MAX,
    model::{self, Address, EndpointSpec, Locality, ServiceName, Timestamp, printable},
    policy::{Assigned, Assignment, ListMode},
    snapshot::{Code, Mode, Reason, State},
    table::Refusal,
};
use lookaside_proto::v1;
use tonic::Status;
use tonic_types::{ErrorDetails, StatusExt};

/// `ErrorInfo.domain` of everything that is refused here.
const DOMAIN: &str = "lookaside.dev";

/// A refusal with `google.rpc.ErrorInfo`: a reason for machines, words for people, and what was sent, cut.
pub(crate) fn refused(
    code: tonic::Code,
    reason: &'static str,
    message: impl Into<String>,
    metadata: &[(&str, &str)],
) -> Status {
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), printable(value)));
    let details = ErrorDetails::with_error_info(reason, DOMAIN, metadata.collect::<std::collections::HashMap<_, _>>());
    Status::with_error_details(code, message, details)
}

/// What the table refused, as a status.
pub(crate) fn refusal(refusal: &Refusal) -> Status {
    use tonic::Code::{AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted};
    let (code, reason) = match refusal {
        Refusal::TooManyServices { .. } => (ResourceExhausted, "SERVICES_MAX"),
        Refusal::TooManyEndpoints { .. } => (ResourceExhausted, "ENDPOINTS_PER_SERVICE_MAX"),
        Refusal::ListedTwice { .. } => (InvalidArgument, "ENDPOINT_LISTED_TWICE"),
        Refusal::OldIncarnation { .. } => (FailedPrecondition, "INCARNATION_OLD"),
        Refusal::DuplicateInstance { .. } => (AlreadyExists, "INSTANCE_DUPLICATE"),
        Refusal::NotRegistered { .. } => (NotFound, "ENDPOINT_NOT_REGISTERED"),
        Refusal::OldReport { .. } => (FailedPrecondition, "REPORT_OLD"),
        Refusal::UnknownService { .. } => (NotFound, "SERVICE_UNKNOWN"),
        Refusal::NothingMeant { .. } => (NotFound, "ENDPOINT_UNKNOWN"),
        Refusal::TooManyOverrides { .. } => (ResourceExhausted, "OVERRIDES_PER_SERVICE_MAX"),
    };
    refused(code, reason, refusal.to_string(), &[])
}

/// A value that is not what it should be, as a status.
pub(crate) fn invalid(reason: &'static str, error: &model::Error) -> Status {
    refused(tonic::Code::InvalidArgument, reason, error.to_string(), &[])
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A version.
pub(crate) fn version(version: model::Version) -> v1::Version {
    v1::Version { epoch: version.epoch, sequence: version.sequence }
}

/// A reason, with its age at `now`.
pub(crate) fn reason(reason: &Reason, now: Timestamp) -> v1::Reason {
    v1::Reason {
        code: code(reason.code).into(),
        detail: reason.detail.clone(),
        since_ms_ago: millis(now.since(reason.since)),
    }
}

/// The reason codes of both sides are one set.
pub(crate) fn code(code: Code) -> v1::ReasonCode {
    match code {
        Code::HealthNotServing => v1::ReasonCode::HealthNotServing,
        Code::HealthUnreachable => v1::ReasonCode::HealthUnreachable,
        Code::HealthTimeout => v1::ReasonCode::HealthTimeout,
        Code::HealthPending => v1::ReasonCode::HealthPending,
        Code::HealthNotGrpc => v1::ReasonCode::HealthNotGrpc,
        Code::NoReportYet => v1::ReasonCode::NoReportYet,
        Code::ReportStale => v1::ReasonCode::ReportStale,
        Code::Overloaded => v1::ReasonCode::Overloaded,
        Code::WarmingUp => v1::ReasonCode::WarmingUp,
        Code::OutlierEjected => v1::ReasonCode::OutlierEjected,
        Code::AdminDrain => v1::ReasonCode::AdminDrain,
        Code::AdminDisabled => v1::ReasonCode::AdminDisabled,
        Code::AdminWeight => v1::ReasonCode::AdminWeight,
        Code::SelfDraining => v1::ReasonCode::SelfDraining,
        Code::LeaseExpired => v1::ReasonCode::LeaseExpired,
        Code::DiscoveryNotReady => v1::ReasonCode::DiscoveryNotReady,
        Code::DiscoveryRemoved => v1::ReasonCode::DiscoveryRemoved,
        Code::DiscoveryStale => v1::ReasonCode::DiscoveryStale,
        Code::ZoneNotPreferred => v1::ReasonCode::ZoneNotPreferred,
        Code::PriorityNotPreferred => v1::ReasonCode::PriorityNotPreferred,
        Code::SubsetNotSelected => v1::ReasonCode::SubsetNotSelected,
        Code::LabelMismatch => v1::ReasonCode::LabelMismatch,
        Code::CapacityLimit => v1::ReasonCode::CapacityLimit,
        Code::ListTruncated => v1::ReasonCode::ListTruncated,
        Code::PanicRestored => v1::ReasonCode::PanicRestored,
        Code::ChecksDoubted => v1::ReasonCode::ChecksDoubted,
        Code::ClientFailures => v1::ReasonCode::ClientFailures,
        Code::LastEndpoint => v1::ReasonCode::LastEndpoint,
    }
}

/// The mode of a list.
pub(crate) fn list_mode(mode: ListMode) -> v1::ListMode {
    match mode {
        ListMode::Normal => v1::ListMode::Normal,
        ListMode::Panic => v1::ListMode::Panic,
        ListMode::ZoneFailover => v1::ListMode::ZoneFailover,
        ListMode::LastGood => v1::ListMode::LastGood,
        ListMode::Empty => v1::ListMode::Empty,
    }
}

/// The mode of a service, whoever asks.
pub(crate) fn mode(mode: Mode) -> v1::ListMode {
    match mode {
        Mode::Normal => v1::ListMode::Normal,
        Mode::Panic => v1::ListMode::Panic,
        Mode::LastGood => v1::ListMode::LastGood,
        Mode::Empty => v1::ListMode::Empty,
    }
}

/// The state of an endpoint.
pub(crate) fn state(state: State) -> v1::EndpointState {
    match state {
        State::Eligible => v1::EndpointState::Eligible,
        State::Restored => v1::EndpointState::Restored,
        State::Excluded => v1::EndpointState::Excluded,
        State::Draining => v1::EndpointState::Draining,
        State::Disabled => v1::EndpointState::Disabled,
        State::Pending => v1::EndpointState::Pending,
    }
}

fn policy(assignment: &Assignment) -> v1::Policy {
    use v1::policy::{Kind, LeastLoad, RingHash, RoundRobin, WeightedRoundRobin};
    let kind = match assignment.policy {
        PolicyKind::LeastLoad => Kind::LeastLoad(LeastLoad {}),
        PolicyKind::WeightedRoundRobin => Kind::WeightedRoundRobin(WeightedRoundRobin {}),
        PolicyKind::RoundRobin => Kind::RoundRobin(RoundRobin {}),
        PolicyKind::RingHash => {
            Kind::RingHash(assignment.ring.as_ref().map_or_else(RingHash::default, |ring| RingHash {
                hash_seed: ring.hash_seed,
                load_bound_milli: ring.config.load_bound_percent * 10,
                header: ring.config.header.as_ref().map_or_else(String::new, |header| header.to_string()),
            }))
        }
    };
    v1::Policy { kind: Some(kind) }
}

/// What an endpoint says of itself.
pub(crate) fn endpoint(spec: &EndpointSpec) -> v1::Endpoint {
    v1::Endpoint {
        address: spec.address.to_string(),
        instance: spec.instance.to_string(),
        incarnation: spec.incarnation,
        tls_name: spec.tls_name.to_string(),
        locality: spec.locality.to_string(),
        priority: spec.priority,
        weight: spec.weight,
        capacity_milli: 0,
        load_token: String::new(),
        reasons: Vec::new(),
        hash_key: String::new(),
    }
}

/// One place in a list. Reasons carry no age: the list is shared and kept.
pub(crate) fn assigned(assigned: &Assigned) -> v1::Endpoint {
    let reasons = assigned.reasons.iter().map(|(reason, detail)| v1::Reason {
        code: code(*reason).into(),
        detail: detail.clone(),
        since_ms_ago: 0,
    });
    v1::Endpoint {
        priority: assigned.priority,
        weight: assigned.weight,
        capacity_milli: assigned.capacity_milli,
        reasons: reasons.collect(),
        hash_key: if assigned.is_keyed_by_instance { assigned.spec.instance.to_string() } else { String::new() },
        ..endpoint(&assigned.spec)
    }
}

/// A list.
pub(crate) fn list(assignment: &Assignment) -> v1::List {
    v1::List {
        service: assignment.service.to_string(),
        version: Some(version(assignment.version)),
        digest: assignment.digest,
        complete: assignment.complete,
        mode: list_mode(assignment.mode).into(),
        note: assignment.note.clone(),
        endpoints: assignment.endpoints.iter().map(assigned).collect(),
        policy: Some(policy(assignment)),
        time_to_live_ms: 0,
    }
}

/// How calls of a service are to be made.
pub(crate) fn method_policy(service: &ServiceName, calls: &CallConfig) -> v1::MethodPolicy {
    let rule = |rule: &MethodRule| v1::method_policy::Rule {
        path: rule.path.as_str().to_owned(),
        default_deadline_ms: millis(rule.deadline),
        idempotent: rule.idempotent,
        attempts_max: rule.attempts,
        hedge_delay_ms: millis(rule.hedge_after),
        stream_idle_limit_ms: millis(rule.stream_idle_limit),
        stream_life_limit_ms: millis(rule.stream_life_limit),
        retry_codes: rule.retry_on.iter().map(|code| code.number()).collect(),
        backoff_ms_base: millis(rule.backoff),
        backoff_ms_max: millis(rule.backoff_max),
        idempotency_key: rule.idempotency_key,
        hedges_max: rule.hedges,
    };
    v1::MethodPolicy {
        service: service.to_string(),
        rules: calls.methods.iter().map(rule).collect(),
        endpoint_calls_max: calls.endpoint_calls_max,
    }
}

/// An operator's word.
pub(crate) fn word(word: &Override) -> v1::Override {
    use v1::r#override::Scope as Wire;
    let scope = match &word.scope {
        Scope::Address(address) => Wire::Address(address.to_string()),
        Scope::Locality(locality) => Wire::Locality(locality.to_string()),
        Scope::Service => Wire::WholeService(true),
    };
    let (action, weight_percent) = match word.action {
        Action::Drain => (v1::OverrideAction::Drain, 0),
        Action::Undrain => (v1::OverrideAction::Undrain, 0),
        Action::Disable => (v1::OverrideAction::Disable, 0),
        Action::Enable => (v1::OverrideAction::Enable, 0),
        Action::Weight(percent) => (v1::OverrideAction::Weight, percent),
    };
    v1::Override {
        service: word.service.to_string(),
        scope: Some(scope),
        action: action.into(),
        weight_percent,
        reason: word.reason.clone(),
        actor: word.actor.clone(),
        set_at_unix_ms: word.set_at_unix_ms,
        replica: word.replica.clone(),
        expires_at_unix_ms: word.expires_at_unix_ms,
    }
}

/// What an override is about. The service is left to the caller: an operator may leave it out, a backend may not.
pub(crate) fn scope(wire: Option<&v1::r#override::Scope>) -> Result<Scope, Status> {
    use v1::r#override::Scope as Wire;
    let missing = || {
        let words = "an override names an address, a locality or a whole service";
        refused(tonic::Code::InvalidArgument, "OVERRIDE_SCOPE_MISSING", words, &[])
    };
    match wire {
        Some(Wire::Address(text)) => {
            Address::parse(text).map(Scope::Address).map_err(|e| invalid("OVERRIDE_SCOPE_INVALID", &e))
        }
        // An unknown locality lies within every scope that is empty: that would be the whole service by accident.
        Some(Wire::Locality(text)) if text.trim_end_matches('/').is_empty() => Err(missing()),
        Some(Wire::Locality(text)) => {
            Locality::parse(text).map(Scope::Locality).map_err(|e| invalid("OVERRIDE_SCOPE_INVALID", &e))
        }
        Some(Wire::WholeService(true)) => Ok(Scope::Service),
        Some(Wire::WholeService(false)) | None => Err(missing()),
    }
}

/// What an override orders.
pub(crate) fn action(wire: &v1::Override) -> Result<Action, Status> {
    match v1::OverrideAction::try_from(wire.action) {
        Ok(v1::OverrideAction::Drain) => Ok(Action::Drain),
        Ok(v1::OverrideAction::Undrain) => Ok(Action::Undrain),
        Ok(v1::OverrideAction::Disable) => Ok(Action::Disable),
        Ok(v1::OverrideAction::Enable) => Ok(Action::Enable),
        Ok(v1::OverrideAction::Weight) if wire.weight_percent <= WEIGHT_MAX => Ok(Action::Weight(wire.weight_percent)),
        Ok(v1::OverrideAction::Weight) => Err(refused(
            tonic::Code::InvalidArgument,
            "OVERRIDE_WEIGHT_INVALID",
            format!("a weight is 0 to {WEIGHT_MAX} percent"),
            &[("weight_percent", &wire.weight_percent.to_string())],
        )),
        Ok(v1::OverrideAction::Unspecified) | Err(_) => Err(refused(
            tonic::Code::InvalidArgument,
            "OVERRIDE_ACTION_INVALID",
            "an override drains, undrains, disables, enables or sets a weight",
            &[("action", &wire.action.to_string())],
        )),
    }
}

/// The name of a service.
pub(crate) fn service(text: &str) -> Result<ServiceName, Status> {
    ServiceName::parse(text).map_err(|e| invalid("SERVICE_INVALID", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_machines_why_and_repeats_what_was_sent_cut() {
        let status = refused(tonic::Code::NotFound, "SERVICE_UNKNOWN", "no", &[("service", &"x\n".repeat(1000))]);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("SERVICE_UNKNOWN", "lookaside.dev"));
        assert!(info.metadata["service"].len() <= 256 && !info.metadata["service"].contains('\n'));
    }

    #[test]
    fn reason_codes_have_the_same_words_on_both_sides() {
        for wire in (1..).map_while(|n| v1::ReasonCode::try_from(n).ok()) {
            let core: Code = serde_json::from_value(camel(wire.as_str_name()).into()).unwrap();
            assert_eq!(core.name(), wire.as_str_name());
            assert_eq!(code(core), wire);
        }
    }

    fn camel(name: &str) -> String {
        let word = |w: &str| w[..1].to_owned() + &w[1..].to_lowercase();
        name.split('_').map(word).collect()
    }

    #[test]
    fn a_word_that_orders_nothing_or_nobody_is_refused() {
        assert!(scope(None).is_err());
        assert!(scope(Some(&v1::r#override::Scope::Locality("/".into()))).is_err());
        assert!(scope(Some(&v1::r#override::Scope::WholeService(false))).is_err());
        assert!(action(&v1::Override { action: 77, ..Default::default() }).is_err());
        assert!(action(&v1::Override { action: 5, weight_percent: 10_001, ..Default::default() }).is_err());
        let half = v1::Override { action: 5, weight_percent: 50, ..Default::default() };
        assert_eq!(action(&half).unwrap(), Action::Weight(50));
    }
}
