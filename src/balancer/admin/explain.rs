//! Why an endpoint is or is not in the list of a client: the stages of the core, and what has come of it at the client.

use std::sync::Arc;

use lookaside_core::{
    explain::{self, Verdict},
    model::{Address, ClientId, Cohort, Locality, ServiceName},
    policy::{self, Assignment},
    snapshot::{ServiceSnapshot, Snapshot},
};
use lookaside_proto::v1::{self, explanation};
use tonic::{Code, Status};

use super::Parts;
use crate::{
    convert::{self, invalid, refused},
    frontend::{
        clients::{Standing, View},
        cohorts::List,
    },
};

/// Who `lookaside pick` says it is, unless told otherwise.
const CLI_CLIENT_ID: &str = "lookaside-cli";

/// Explains an endpoint, or without an address the order of the list.
pub(super) fn explain(parts: &Parts, request: &v1::ExplainRequest) -> Result<v1::Explanation, Status> {
    let snapshot = parts.snapshot();
    let address = match request.address.as_str() {
        "" => None,
        text => Some(Address::parse(text).map_err(|e| invalid("ADDRESS_INVALID", &e))?),
    };
    let service = service(&snapshot, &request.service, address.as_ref())?;
    let client = client(parts, &service.name, &request.client_id)?;
    let cohort = match &client {
        Some(view) => Cohort::of(&view.who.id, view.who.locality.clone()),
        None => {
            let locality = Locality::parse(&request.locality).map_err(|e| invalid("LOCALITY_INVALID", &e))?;
            // The cohort that `lookaside pick` asks for, so that the two commands show the same list.
            let id = ClientId::parse(CLI_CLIENT_ID).map_err(|e| invalid("CLIENT_ID_INVALID", &e))?;
            Cohort::of(&id, locality)
        }
    };
    let assignment = policy::assign(service, &cohort);
    let mut explanation = v1::Explanation {
        service: service.name.to_string(),
        version: Some(convert::version(service.version)),
        mode: convert::list_mode(assignment.mode).into(),
        note: assignment.note.clone(),
        client_id: request.client_id.clone(),
        ..v1::Explanation::default()
    };
    match &address {
        Some(address) => of_endpoint(parts, service, &cohort, address, &mut explanation)?,
        None => of_order(service, &assignment, &mut explanation),
    }
    if let Some(view) = &client {
        explanation.stages.extend([sent(view, &assignment, address.as_ref()), acked(view, address.as_ref())]);
    }
    Ok(explanation)
}

/// The service by its name, or the only one that has the endpoint.
fn service<'a>(
    snapshot: &'a Snapshot,
    name: &str,
    address: Option<&Address>,
) -> Result<&'a Arc<ServiceSnapshot>, Status> {
    if let Some(chosen) = Parts::chosen(snapshot, name)? {
        let unknown = || refused(Code::NotFound, "SERVICE_UNKNOWN", "nobody knows the service", &[("service", name)]);
        return snapshot.services.get(&chosen).ok_or_else(unknown);
    }
    let Some(address) = address else {
        let words = "name a service, or an address that is in one service alone";
        return Err(refused(Code::InvalidArgument, "SERVICE_MISSING", words, &[]));
    };
    let mut having = snapshot.services.values().filter(|service| service.endpoint(address).is_some());
    match (having.next(), having.next()) {
        (Some(service), None) => Ok(service),
        (Some(one), Some(other)) => {
            let words = format!("{address} is in services {} and {}: name one", one.name, other.name);
            Err(refused(Code::InvalidArgument, "SERVICE_AMBIGUOUS", words, &[]))
        }
        (None, _) => Err(endpoint_unknown(address, None)),
    }
}

fn endpoint_unknown(address: &Address, service: Option<&ServiceName>) -> Status {
    let place = service.map_or("any service".to_owned(), |service| format!("service {service}"));
    let words = format!("{address} is not an endpoint of {place}");
    refused(Code::NotFound, "ENDPOINT_UNKNOWN", words, &[("address", address.as_str())])
}

/// The youngest stream of a client that asks for the service.
fn client(parts: &Parts, service: &ServiceName, id: &str) -> Result<Option<View>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let id = ClientId::parse(id).map_err(|e| invalid("CLIENT_ID_INVALID", &e))?;
    let views = parts.clients.views().into_iter().filter(|view| view.who.id == id && view.service == *service);
    views.min_by_key(|view| view.age).map(Some).ok_or_else(|| {
        let words = format!("no client {id} that asks for service {service} is connected");
        refused(Code::NotFound, "CLIENT_UNKNOWN", words, &[("client_id", id.as_str())])
    })
}

fn of_endpoint(
    parts: &Parts,
    service: &ServiceSnapshot,
    cohort: &Cohort,
    address: &Address,
    out: &mut v1::Explanation,
) -> Result<(), Status> {
    if service.endpoint(address).is_none() {
        return Err(endpoint_unknown(address, Some(&service.name)));
    }
    let now = parts.driver.now();
    let explained = explain::explain(service, &parts.snapshot().sources, cohort, address, now);
    out.address = address.to_string();
    out.stages = explained
        .stages
        .into_iter()
        .map(|stage| explanation::Stage {
            name: stage.name.to_owned(),
            verdict: verdict(stage.verdict).into(),
            reasons: stage.reasons.iter().map(|reason| convert::reason(reason, now)).collect(),
            detail: stage.detail,
        })
        .collect();
    out.result = explained.result;
    out.next = explained.next;
    Ok(())
}

fn of_order(service: &ServiceSnapshot, assignment: &Assignment, out: &mut v1::Explanation) {
    out.order = assignment.endpoints.iter().map(convert::assigned).collect();
    let offered = assignment.endpoints.iter().filter(|e| e.weight > 0).count();
    out.result = format!(
        "{offered} of {} endpoints offered by {}, mode {}, digest {:016x}",
        service.endpoints.len(),
        assignment.policy.name(),
        assignment.mode.name(),
        assignment.digest,
    );
    let name = &service.name;
    let left_out = service.endpoints.iter().find(|e| !e.state.is_offered());
    out.next = match left_out {
        Some(endpoint) => vec![
            format!("lookaside endpoints {name} --excluded"),
            format!("lookaside explain {name} --endpoint {}", endpoint.spec.address),
        ],
        None => vec![format!("lookaside endpoints {name}"), format!("lookaside watch {name} --last 20")],
    };
}

fn verdict(verdict: Verdict) -> explanation::Verdict {
    match verdict {
        Verdict::Pass => explanation::Verdict::Pass,
        Verdict::Warn => explanation::Verdict::Warn,
        Verdict::Fail => explanation::Verdict::Fail,
        Verdict::NotEvaluated => explanation::Verdict::NotEvaluated,
    }
}

fn stage(name: &str, verdict: explanation::Verdict, detail: String) -> explanation::Stage {
    explanation::Stage { name: name.to_owned(), verdict: verdict.into(), reasons: Vec::new(), detail }
}

/// Whether the newest list is on its way to the client.
fn sent(view: &View, newest: &Assignment, address: Option<&Address>) -> explanation::Stage {
    let Some((list, ago)) = &view.sent_list else {
        return stage("sent", explanation::Verdict::Warn, "nothing was sent to the client yet".to_owned());
    };
    let version = view.sent.map_or(0, |version| version.sequence);
    let detail = format!("list v{version} was sent {:.1} s ago{}", ago.as_secs_f64(), naming(list, address));
    if list.assignment.digest == newest.digest {
        stage("sent", explanation::Verdict::Pass, detail)
    } else {
        stage("sent", explanation::Verdict::Warn, format!("{detail}; a newer one is on its way"))
    }
}

/// Whether the client uses what was sent.
fn acked(view: &View, address: Option<&Address>) -> explanation::Stage {
    let applied = match (&view.applied, &view.applied_list) {
        (Some(version), Some(list)) => format!("list v{}{}", version.sequence, naming(list, address)),
        (_, _) => "no list of ours yet".to_owned(),
    };
    match view.standing {
        Standing::Synced => stage("acked", explanation::Verdict::Pass, format!("the client uses {applied}")),
        Standing::Refused => {
            let detail = format!("the client refused the newest list and uses {applied}: {}", view.refused);
            stage("acked", explanation::Verdict::Fail, detail)
        }
        Standing::Pending | Standing::Stale | Standing::NeverAcked => {
            let detail = format!("the client has not said that it uses the newest list; it uses {applied}");
            stage("acked", explanation::Verdict::Warn, detail)
        }
    }
}

fn naming(list: &List, address: Option<&Address>) -> String {
    match address.map(|address| list.place(address)) {
        Some(Some(place)) => format!(", which names it with weight {}", place.weight),
        Some(None) => ", which does not name it".to_owned(),
        None => String::new(),
    }
}
