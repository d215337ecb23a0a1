//! Status, services, endpoints and clients as an operator sees them.

use std::{collections::BTreeMap, sync::Arc};

use lookaside_core::{
    model::{ServiceName, Timestamp},
    policy,
    snapshot::{EndpointSnapshot, ServiceSnapshot, Snapshot, State},
};
use lookaside_proto::v1;

use super::Parts;
use crate::{
    config::InForce,
    convert::{self, millis},
    driver::unix_ms,
    frontend::clients::{Standing, View},
    store::FileState,
    tls::CertificateView,
};

/// The whole balancer on one page.
pub(super) fn status(parts: &Parts) -> v1::Status {
    let snapshot = parts.snapshot();
    let now = parts.driver.now();
    let unsynced = parts.clients.views().into_iter().filter(|view| view.standing != Standing::Synced);
    // A stream is in step when all of its services are.
    let unsynced: std::collections::BTreeSet<_> = unsynced.map(|view| view.stream).collect();
    let streams = parts.clients.count();
    v1::Status {
        balancer: parts.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: snapshot.version.epoch,
        uptime_ms: millis(now.since(Timestamp::default())),
        client_address: parts.addresses.client.to_string(),
        metrics_address: parts.addresses.metrics.to_string(),
        services: services(parts, &snapshot, None),
        pick_streams: count(streams),
        pick_streams_synced: count(streams.saturating_sub(unsynced.len())),
        report_streams: count((parts.report_streams)()),
        sources: sources(&snapshot, now),
        draining: parts.draining.is_cancelled(),
        certificates: parts.certificates.views().into_iter().map(certificate).collect(),
        data: parts.driver.files().into_iter().map(data_file).collect(),
        config: configuration(&parts.live.in_force()),
    }
}

fn data_file(file: FileState) -> v1::DataFile {
    v1::DataFile {
        name: file.name.to_owned(),
        path: file.path,
        saved: file.failing.is_empty(),
        detail: file.failing,
        saved_ms_ago: file.saved_ago.map_or(0, millis),
        bytes: file.bytes,
        refused: file.refused,
    }
}

/// Where the balancer was started with a file: how that stands.
fn configuration(in_force: &InForce) -> Option<v1::ConfigStatus> {
    let origin = in_force.config.origin.as_ref()?;
    let ago = |then: u64| unix_ms().saturating_sub(then);
    Some(v1::ConfigStatus {
        file: origin.path.display().to_string(),
        applied_ms_ago: ago(in_force.since_unix_ms),
        refused: in_force.refused.is_some(),
        refused_ms_ago: in_force.refused.as_ref().map_or(0, |refused| ago(refused.at_unix_ms)),
        problems: in_force.refused.as_ref().map(|refused| refused.reasons.clone()).unwrap_or_default(),
    })
}

fn certificate(view: CertificateView) -> v1::Certificate {
    v1::Certificate {
        listener: view.listener.to_owned(),
        names: view.names,
        not_before_unix_ms: view.not_before_unix_ms,
        not_after_unix_ms: view.not_after_unix_ms,
        ending: view.is_ending,
        refused: view.refused,
    }
}

fn sources(snapshot: &Snapshot, now: Timestamp) -> Vec<v1::SourceStatus> {
    let endpoints = || snapshot.services.values().flat_map(|service| &service.endpoints);
    let sources = snapshot.sources.iter().map(|(name, source)| v1::SourceStatus {
        name: name.to_string(),
        stale: source.stale.is_some(),
        detail: match &source.stale {
            Some((_, reason)) => reason.clone(),
            None => source.detail.clone(),
        },
        last_answer_ms_ago: source.answered_at.map_or(0, |at| millis(now.since(at))),
        endpoints: count(endpoints().filter(|e| e.sources.contains(name)).count()),
        answered: source.answered_at.is_some(),
    });
    sources.collect()
}

/// Services, all or one.
pub(super) fn services(parts: &Parts, snapshot: &Snapshot, chosen: Option<&ServiceName>) -> Vec<v1::ServiceSummary> {
    let now = parts.driver.now();
    let mut clients: BTreeMap<ServiceName, usize> = BTreeMap::new();
    for view in parts.clients.views() {
        *clients.entry(view.service).or_default() += 1;
    }
    let services = snapshot.services.values().filter(|service| chosen.is_none_or(|name| *name == service.name));
    let summary = |service: &Arc<ServiceSnapshot>| v1::ServiceSummary {
        name: service.name.to_string(),
        status: service.status().name().to_owned(),
        policy: service.config.policy.name().to_owned(),
        mode: convert::mode(service.mode).into(),
        note: service.note.clone(),
        eligible: count(service.endpoints.iter().filter(|e| e.state == State::Eligible).count()),
        endpoints: count(service.endpoints.len()),
        clients: count(clients.get(&service.name).copied().unwrap_or(0)),
        calls_per_second: per_second(service.endpoints.iter().map(|e| e.calls_per_second_milli).sum()),
        version: Some(convert::version(service.version)),
        settling: service.settling,
        last_change_ms_ago: millis(now.since(service.changed_at)),
    };
    services.map(summary).collect()
}

/// Endpoints of all services or one, in every state or only those not offered.
pub(super) fn endpoints(
    parts: &Parts,
    snapshot: &Snapshot,
    chosen: Option<&ServiceName>,
    excluded_only: bool,
) -> Vec<v1::EndpointDetail> {
    let now = parts.driver.now();
    let services = snapshot.services.values().filter(|service| chosen.is_none_or(|name| *name == service.name));
    let mut details = Vec::new();
    for service in services {
        let shares = policy::shares(service);
        let wanted = service.endpoints.iter().filter(|e| !excluded_only || !e.state.is_offered());
        details.extend(wanted.map(|endpoint| {
            let share = shares.get(&endpoint.spec.address).copied().unwrap_or(0.0);
            detail(service, endpoint, share, now)
        }));
    }
    details
}

fn detail(service: &ServiceSnapshot, endpoint: &EndpointSnapshot, share: f64, now: Timestamp) -> v1::EndpointDetail {
    let reasons: Vec<_> = endpoint.reasons.iter().map(|reason| convert::reason(reason, now)).collect();
    let check = endpoint.check.as_ref();
    let reported_at = endpoint.lease.as_ref().and_then(|lease| lease.reported_at);
    v1::EndpointDetail {
        service: service.name.to_string(),
        endpoint: Some(v1::Endpoint {
            weight: endpoint.weight,
            capacity_milli: endpoint.capacity_milli,
            reasons: reasons.clone(),
            ..convert::endpoint(&endpoint.spec)
        }),
        state: convert::state(endpoint.state).into(),
        reasons,
        check: check.map(|check| check.result.clone()).unwrap_or_default(),
        check_ms_ago: check.map_or(0, |check| millis(now.since(check.at))),
        reports: reported_at.is_some(),
        report_ms_ago: reported_at.map_or(0, |at| millis(now.since(at))),
        utilization: endpoint.utilization_permille.map_or(0.0, |permille| f64::from(permille) / 1000.0),
        in_flight: endpoint.in_flight,
        calls_per_second: per_second(endpoint.calls_per_second_milli),
        assigned_share: share,
        sources: endpoint.sources.iter().map(ToString::to_string).collect(),
        overrides: endpoint.overrides.iter().map(convert::word).collect(),
    }
}

/// Clients of all services or one.
pub(super) fn clients(parts: &Parts, chosen: Option<&ServiceName>) -> Vec<v1::ClientDetail> {
    let views = parts.clients.views().into_iter().filter(|view| chosen.is_none_or(|name| *name == view.service));
    views.map(client).collect()
}

fn client(view: View) -> v1::ClientDetail {
    v1::ClientDetail {
        client_id: view.who.id.to_string(),
        peer: view.who.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        sdk: view.who.sdk,
        protocol: "lookaside".to_owned(),
        locality: view.who.locality.to_string(),
        service: view.service.to_string(),
        sent: view.sent.map(convert::version),
        acknowledged: view.applied.map(convert::version),
        state: view.standing.name().to_owned(),
        refused: view.refused,
        calls_per_second: view.calls_per_second,
        failed: view.failed,
        age_ms: millis(view.age),
    }
}

fn per_second(milli: u64) -> f64 {
    milli as f64 / 1000.0
}

pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
