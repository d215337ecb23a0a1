//! Why an endpoint is or is not in a list, stage by stage, for every endpoint in every state.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::PolicyKind,
    model::{Address, Cohort, SourceId, Timestamp},
    policy::{Assigned, Assignment, assign},
    snapshot::{Code, EndpointSnapshot, Reason, ServiceSnapshot, SourceSnapshot, State},
};

/// How a stage went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing against it.
    Pass,
    /// Something against it, which does not exclude.
    Warn,
    /// Excluded here.
    Fail,
    /// An earlier stage excluded it.
    NotEvaluated,
}

/// One step on the way into a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// discovered, registered, override, health, report, priority, locality, subset or list.
    pub name: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// Why.
    pub reasons: Vec<Reason>,
    /// What was seen, with ages; for a person.
    pub detail: String,
}

/// The whole way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// In order.
    pub stages: Vec<Stage>,
    /// Whether the endpoint is in the list, where, and in the end why not.
    pub result: String,
    /// Commands that help from here; never empty.
    pub next: Vec<String>,
}

/// Explains the endpoint at `address` to a cohort, with what is known of the sources. The ages are as of `now`.
pub fn explain(
    service: &ServiceSnapshot,
    sources: &BTreeMap<SourceId, SourceSnapshot>,
    cohort: &Cohort,
    address: &Address,
    now: Timestamp,
) -> Explanation {
    let list = assign(service, cohort);
    let stages = match service.endpoint(address) {
        None => vec![Stage {
            name: StageName::Discovered.text(),
            verdict: Verdict::Fail,
            reasons: Vec::new(),
            detail: format!("no source and no registration names {address}"),
        }],
        Some(endpoint) => stages(service, sources, endpoint, cohort, &list, now),
    };
    let next = next(service, address, &stages);
    Explanation { result: result(&list, address, &stages), stages, next }
}

/// The stages, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StageName {
    Discovered,
    Registered,
    Override,
    Health,
    Report,
    Priority,
    Locality,
    Subset,
    List,
}

impl StageName {
    fn text(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Registered => "registered",
            Self::Override => "override",
            Self::Health => "health",
            Self::Report => "report",
            Self::Priority => "priority",
            Self::Locality => "locality",
            Self::Subset => "subset",
            Self::List => "list",
        }
    }

    /// The stage that owns a reason.
    fn of(code: Code) -> Self {
        match code {
            Code::DiscoveryNotReady | Code::DiscoveryRemoved | Code::DiscoveryStale | Code::LabelMismatch => {
                Self::Discovered
            }
            Code::LeaseExpired | Code::SelfDraining => Self::Registered,
            Code::AdminDrain | Code::AdminDisabled | Code::AdminWeight => Self::Override,
            Code::HealthNotServing
            | Code::HealthUnreachable
            | Code::HealthTimeout
            | Code::HealthPending
            | Code::HealthNotGrpc
            | Code::ClientFailures
            | Code::OutlierEjected
            | Code::ChecksDoubted
            | Code::PanicRestored
            | Code::LastEndpoint => Self::Health,
            Code::NoReportYet | Code::ReportStale | Code::Overloaded | Code::WarmingUp | Code::CapacityLimit => {
                Self::Report
            }
            Code::PriorityNotPreferred => Self::Priority,
            Code::ZoneNotPreferred => Self::Locality,
            Code::SubsetNotSelected => Self::Subset,
            Code::ListTruncated => Self::List,
        }
    }
}

fn stages(
    service: &ServiceSnapshot,
    sources: &BTreeMap<SourceId, SourceSnapshot>,
    endpoint: &EndpointSnapshot,
    cohort: &Cohort,
    list: &Assignment,
    now: Timestamp,
) -> Vec<Stage> {
    let mut walk = Walk { endpoint, excluded: false, stages: Vec::new() };
    let words: Vec<String> = endpoint.overrides.iter().map(|w| format!("{:?} by {}", w.action, w.actor)).collect();
    let check = match &endpoint.check {
        Some(check) => format!("{} x{}, {}", check.result, check.streak, ago(now, check.at)),
        None => "not checked yet".into(),
    };
    walk.stage(StageName::Discovered, discovery(endpoint, sources, now));
    walk.stage(StageName::Registered, registration(endpoint, now));
    walk.stage(StageName::Override, if words.is_empty() { "none".into() } else { words.join("; ") });
    walk.stage(StageName::Health, check);
    walk.stage(StageName::Report, report(endpoint, now));
    walk.place(service, cohort, list);
    walk.stages
}

/// The way of one endpoint through the stages.
struct Walk<'a> {
    endpoint: &'a EndpointSnapshot,
    excluded: bool,
    stages: Vec<Stage>,
}

impl Walk<'_> {
    /// A stage that looks at the reasons it owns. The first stage that owns a reason of an endpoint that is not offered
    /// excludes it; further ones only warn.
    fn stage(&mut self, name: StageName, detail: String) {
        let mine = |reason: &&Reason| StageName::of(reason.code) == name;
        let reasons: Vec<Reason> = self.endpoint.reasons.iter().filter(mine).cloned().collect();
        let verdict = match (reasons.is_empty(), self.excluded) {
            (true, false) => Verdict::Pass,
            (true, true) => Verdict::NotEvaluated,
            (false, _) if is_main(self.endpoint, &reasons) && !self.endpoint.state.is_offered() => Verdict::Fail,
            (false, _) => Verdict::Warn,
        };
        self.excluded |= verdict == Verdict::Fail;
        self.stages.push(Stage { name: name.text(), verdict, reasons, detail });
    }

    /// Tier, subset and place in the list.
    fn place(&mut self, service: &ServiceSnapshot, cohort: &Cohort, list: &Assignment) {
        let address = &self.endpoint.spec.address;
        let at = list.endpoints.iter().position(|e| &e.spec.address == address);
        let tier = at.and_then(|at| list.endpoints.get(at)).map(|e| e.priority);
        let lower = |code: Code| {
            let assigned = at.and_then(|at| list.endpoints.get(at));
            assigned.is_some_and(|e| e.reasons.iter().any(|(c, _)| *c == code))
        };
        let offered = self.endpoint.state.is_offered();
        let judged = |bad: bool, verdict: Verdict| match (offered, bad) {
            (false, _) => Verdict::NotEvaluated,
            (true, false) => Verdict::Pass,
            (true, true) => verdict,
        };
        let spec = &self.endpoint.spec;
        let tier = tier.map_or_else(|| "-".into(), |tier| tier.to_string());
        let outside = offered && at.is_none();
        let subset = match (service.config.subset(), self.endpoint.seats.cohorts) {
            (None, _) => "all endpoints".to_owned(),
            (Some(size), 0) => format!("at most {size} of each tier for this client"),
            (Some(size), cohorts) => {
                let (seats, percent) = (cohorts.count_ones(), self.endpoint.seats.weight_milli / 10);
                format!(
                    "about {size} of each tier for this client; {seats} cohorts see it, with {percent} % of its weight"
                )
            }
        };
        let zone = format!("client {}, endpoint {}", named(cohort.locality.as_str()), named(spec.locality.as_str()));
        let priority = format!("configured {}, tier {tier} for this client", spec.priority);
        let list = match (at.and_then(|at| list.endpoints.get(at)), place_among_offered(list, address)) {
            (Some(own), Some((place, offered))) => format!("place {place} of {offered}; {}", share(own, list)),
            (Some(_), None) => "named with weight 0, so that clients leave it".into(),
            (None, _) => "not named".into(),
        };
        let mut add = |name: StageName, verdict, code: Option<Code>, detail: String| {
            let held = code.filter(|_| verdict == Verdict::Warn || verdict == Verdict::Fail);
            let since = service.changed_at;
            let reasons = held.into_iter().map(|code| Reason { code, detail: String::new(), since }).collect();
            self.stages.push(Stage { name: name.text(), verdict, reasons, detail });
        };
        let (less, elsewhere) = (Code::PriorityNotPreferred, Code::ZoneNotPreferred);
        add(StageName::Priority, judged(lower(less), Verdict::Warn), Some(less), priority);
        add(StageName::Locality, judged(lower(elsewhere), Verdict::Warn), Some(elsewhere), zone);
        add(StageName::Subset, judged(outside, Verdict::Fail), Some(Code::SubsetNotSelected), subset);
        add(StageName::List, judged(outside, Verdict::NotEvaluated), None, list);
    }
}

/// Whether the main reason of an endpoint is among these.
fn is_main(endpoint: &EndpointSnapshot, reasons: &[Reason]) -> bool {
    endpoint.reasons.first().is_some_and(|main| reasons.iter().any(|reason| reason.code == main.code))
}

fn named(locality: &str) -> &str {
    if locality.is_empty() { "nowhere known" } else { locality }
}

fn ago(now: Timestamp, then: Timestamp) -> String {
    let age = now.since(then);
    let (hours, minutes) = (age.as_secs() / 3600, age.as_secs() / 60);
    match age {
        _ if age < Duration::from_secs(10) => format!("{:.1} s ago", age.as_secs_f64()),
        _ if age < Duration::from_secs(600) => format!("{} s ago", age.as_secs()),
        _ if age < Duration::from_secs(36_000) => format!("{minutes} min ago"),
        _ => format!("{hours} h ago"),
    }
}

/// Who names it, with what they were asked and when they answered, and under which name it is to be called.
fn discovery(endpoint: &EndpointSnapshot, sources: &BTreeMap<SourceId, SourceSnapshot>, now: Timestamp) -> String {
    let source = |id: &SourceId| {
        let state = sources.get(id).filter(|state| !state.detail.is_empty());
        let said = state.and_then(|state| Some((&state.detail, state.answered_at?)));
        said.map_or(id.to_string(), |(detail, at)| format!("{id} ({detail}, answered {})", ago(now, at)))
    };
    let named: Vec<String> = endpoint.sources.iter().map(source).collect();
    let name = match &*endpoint.spec.tls_name {
        "" => String::new(),
        name => format!(" as {name}"),
    };
    format!("by {}{name}, known since {}", named.join(", "), ago(now, endpoint.joined_at))
}

fn registration(endpoint: &EndpointSnapshot, now: Timestamp) -> String {
    match &endpoint.lease {
        None => "has not registered itself".into(),
        Some(lease) if lease.restored => {
            format!("from before the balancer started, {}; not heard of since", ago(now, lease.renewed_at))
        }
        Some(lease) => {
            let stream = if lease.connected { "open" } else { "broken" };
            format!("report stream {stream}, last sign of life {}", ago(now, lease.renewed_at))
        }
    }
}

fn report(endpoint: &EndpointSnapshot, now: Timestamp) -> String {
    let Some(at) = endpoint.lease.as_ref().and_then(|lease| lease.reported_at) else {
        return "no load reported".into();
    };
    let utilization = match endpoint.utilization_permille {
        Some(permille) => format!("{:.1} % full", f64::from(permille) / 10.0),
        None => "utilisation not measured".into(),
    };
    let rate = endpoint.calls_per_second_milli as f64 / 1000.0;
    let capacity = match endpoint.capacity_milli {
        0 => "capacity not known".to_owned(),
        milli => format!("capacity {:.2} of the median", f64::from(milli) / 1000.0),
    };
    let in_flight = endpoint.in_flight;
    format!("{utilization}, {in_flight} in flight, {rate:.1} calls/s, {capacity}, {}", ago(now, at))
}

/// The place of an endpoint among those of a list that are offered, from 1 on, and how many these are. Those that are named
/// with weight 0 so that clients leave them do not count.
fn place_among_offered(list: &Assignment, address: &Address) -> Option<(usize, usize)> {
    let offered = || list.endpoints.iter().filter(|e| e.weight > 0);
    let at = offered().position(|e| &e.spec.address == address)?;
    Some((at + 1, offered().count()))
}

/// The part of this client's calls that an endpoint is to get, and why.
fn share(own: &Assigned, list: &Assignment) -> String {
    let percent = 100.0 * own.part() as f64 / list.parts_of(own.priority);
    let tier = match own.priority {
        0 => String::new(),
        tier => format!(" that tier {tier} gets"),
    };
    let capacity = match list.policy {
        PolicyKind::LeastLoad => {
            format!(" times capacity {:.2}, as clients are told", f64::from(own.capacity_milli) / 1000.0)
        }
        PolicyKind::WeightedRoundRobin => ", capacity included".to_owned(),
        PolicyKind::RoundRobin | PolicyKind::RingHash => String::new(),
    };
    format!("{percent:.1} % of the calls{tier}, by weight {}{capacity}", own.weight)
}

fn result(list: &Assignment, address: &Address, stages: &[Stage]) -> String {
    let endpoint = list.endpoints.iter().find(|e| &e.spec.address == address);
    if let (Some((place, offered)), Some(endpoint)) = (place_among_offered(list, address), endpoint) {
        let tier = match endpoint.priority {
            0 => String::new(),
            tier => format!(", tier {tier}"),
        };
        return format!("IN LIST at {place} of {offered}, weight {}{tier}, mode {}", endpoint.weight, list.mode.name());
    }
    let failed = stages.iter().find(|stage| stage.verdict == Verdict::Fail);
    match failed {
        Some(stage) => match stage.reasons.first() {
            Some(reason) => format!("NOT IN LIST: {} ({})", reason.code.name(), stage.name),
            None => format!("NOT IN LIST: {} ({})", stage.detail, stage.name),
        },
        None => "IN LIST with weight 0: an operator set it".into(),
    }
}

fn next(service: &ServiceSnapshot, address: &Address, stages: &[Stage]) -> Vec<String> {
    let name = &service.name;
    let mut next = Vec::new();
    match service.endpoint(address).map(|e| (e.state, e.reasons.first().map(|r| r.code))) {
        None => next.push(format!("see who is known: lookaside endpoints {name}")),
        Some((State::Disabled, _)) => next.push(format!("take it back: lookaside enable {address} --service {name}")),
        Some((State::Draining, Some(Code::AdminDrain))) => {
            next.push(format!("take it back: lookaside undrain {address} --service {name}"));
        }
        Some((State::Draining, _)) => next.push("it leaves by its own word: start the backend again".into()),
        Some((State::Excluded, Some(Code::OutlierEjected))) => {
            next.push(format!("it comes back by itself; see who calls it: lookaside clients {name}"));
        }
        Some((State::Excluded | State::Restored | State::Pending, _)) => {
            next.push(format!("ask it yourself: grpcurl -plaintext {address} grpc.health.v1.Health/Check"));
        }
        Some((State::Eligible, _)) => next.push(format!("see the list it is in: lookaside pick {name}")),
    }
    if stages.iter().any(|stage| !stage.reasons.is_empty()) {
        next.push(format!("see how it came to this: lookaside watch {name} --last 20"));
    }
    next
}
