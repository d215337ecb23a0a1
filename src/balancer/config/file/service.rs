//! A service as the file has it: how it is balanced, and who serves it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lookaside_core::{
    config::{PolicyKind, ServiceConfig},
    limits::{ENDPOINTS_PER_SERVICE_MAX, PRIORITY_MAX, WEIGHT_MAX},
    model::{self, Address, EndpointSpec, Instance, Locality, ServiceName},
};
use serde::Deserialize;

use super::{
    Problems,
    call::{CallForm, MethodForm},
    dns::DnsForm,
    ring::RingForm,
    security::EndpointTlsForm,
};
use crate::config::{
    Dns, Service,
    problem::{Code, Location},
    tree::Spanned,
    value::{Endpoint, EndpointForm, Maybe, Percent, Span, or_default},
};

/// Both a service and the defaults of all; only a service has a name and endpoints.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ServiceForm {
    pub(super) name: Maybe<String>,
    pub(super) endpoints: Maybe<Vec<Spanned<Endpoint>>>,
    pub(super) dns: Maybe<DnsForm>,
    policy: Option<PolicyKind>,
    #[serde(deserialize_with = "or_default")]
    health: HealthForm,
    report_period: Maybe<Span>,
    lease: Maybe<Span>,
    panic_threshold: Option<Percent>,
    slow_start: Maybe<Span>,
    #[serde(deserialize_with = "or_default")]
    locality: LocalityForm,
    subset_size: Maybe<u32>,
    #[serde(deserialize_with = "or_default")]
    ring_hash: RingForm,
    methods: Maybe<Vec<Spanned<MethodForm>>>,
    endpoint_calls_max: Maybe<u32>,
    retry_budget: Option<Percent>,
    hedge_budget: Option<Percent>,
    tls: Maybe<EndpointTlsForm>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HealthForm {
    interval: Maybe<Span>,
    deadline: Maybe<Span>,
    fall: Maybe<u32>,
    rise: Maybe<u32>,
    service: Maybe<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LocalityForm {
    prefer_zone: Option<bool>,
    failover_below: Option<Percent>,
}

impl ServiceForm {
    pub(super) fn config(&self, base: &ServiceConfig, problems: &mut Problems) -> ServiceConfig {
        let mut config = base.clone();
        let health = &mut config.health;
        let ms = Duration::from_millis;
        problems.span("health.interval", &mut health.interval, &self.health.interval, ms(100));
        problems.span("health.deadline", &mut health.deadline, &self.health.deadline, ms(1));
        problems.bounded("health.fall", &mut health.fall, &self.health.fall, 1, 100);
        problems.bounded("health.rise", &mut health.rise, &self.health.rise, 1, 100);
        if let Some(service) = &self.health.service
            && (service.value.is_empty()
                || problems.parsed(service.referenced, ServiceName::parse(&service.value)).is_some())
        {
            health.service.clone_from(&service.value);
        }
        problems.span("report_period", &mut config.report_period, &self.report_period, ms(10));
        problems.span("lease", &mut config.lease, &self.lease, ms(100));
        problems.span("slow_start", &mut config.slow_start, &self.slow_start, Duration::ZERO);
        let subset_size_max = ENDPOINTS_PER_SERVICE_MAX as u32;
        problems.bounded("subset_size", &mut config.subset_size, &self.subset_size, 0, subset_size_max);
        self.ring_hash.fill(&mut config.ring_hash, problems);
        config.policy = self.policy.unwrap_or(config.policy);
        config.panic_threshold_percent = self.panic_threshold.map_or(config.panic_threshold_percent, |p| p.0);
        config.locality.prefer_zone = self.locality.prefer_zone.unwrap_or(config.locality.prefer_zone);
        let failover_below = &mut config.locality.failover_below_percent;
        *failover_below = self.locality.failover_below.map_or(*failover_below, |p| p.0);
        let (methods, endpoint_calls_max) = (&self.methods, &self.endpoint_calls_max);
        let (retry_budget, hedge_budget) = (self.retry_budget, self.hedge_budget);
        CallForm { methods, endpoint_calls_max, retry_budget, hedge_budget }.fill(&mut config.calls, problems);
        EndpointTlsForm::fill(&self.tls, &mut config.tls, problems);
        self.check_together(&config, problems);
        config
    }

    /// What only makes sense side by side. A mistake is where the file says one of the two.
    fn check_together(&self, config: &ServiceConfig, problems: &mut Problems) {
        let (interval, deadline) = (config.health.interval, config.health.deadline);
        let at = [&self.health.deadline, &self.health.interval].into_iter().flatten().next();
        if let Some(at) = at.filter(|_| deadline >= interval) {
            problems.add(
                at.referenced,
                Code::Conflict,
                format!("health.deadline ({deadline:?}) must be shorter than health.interval ({interval:?})"),
            );
        }
        let (lease, period) = (config.lease, config.report_period);
        let at = [&self.lease, &self.report_period].into_iter().flatten().next();
        if let Some(at) = at.filter(|_| lease < period * 3) {
            problems.add(
                at.referenced,
                Code::Conflict,
                format!("lease ({lease:?}) must last three report periods ({period:?}) or more"),
            );
        }
    }

    pub(super) fn service(
        &self,
        at: Location,
        defaults: &ServiceConfig,
        names: &mut BTreeSet<ServiceName>,
        problems: &mut Problems,
    ) -> Option<Service> {
        let config = self.config(defaults, problems);
        let endpoints = self.endpoints.as_ref().map(|listed| endpoints(listed, problems));
        let dns = self.dns.as_ref().and_then(|form| form.value.dns(form.referenced, problems));
        let Some(name) = &self.name else {
            problems.add(at, Code::MissingKey, "a service needs a `name`");
            return None;
        };
        let parsed = problems.parsed(name.referenced, ServiceName::parse(&name.value))?;
        if !names.insert(parsed.clone()) {
            problems.add(name.referenced, Code::Duplicate, format!("service {parsed} is there twice"));
        }
        if dns.is_some() {
            problems.parsed(name.referenced, Dns::source(&parsed));
        }
        Some(Service { name: parsed, config, endpoints, dns })
    }
}

fn endpoints(listed: &Spanned<Vec<Spanned<Endpoint>>>, problems: &mut Problems) -> Vec<EndpointSpec> {
    if listed.value.len() > ENDPOINTS_PER_SERVICE_MAX {
        problems.add(listed.referenced, Code::TooMany, format!("more than {ENDPOINTS_PER_SERVICE_MAX} endpoints"));
    }
    let mut addresses = BTreeSet::new();
    let mut endpoints = Vec::with_capacity(listed.value.len());
    for form in &listed.value {
        let at = form.referenced;
        let Some(spec) = problems.parsed(at, spec(&form.value.0)) else { continue };
        if !addresses.insert(spec.address.clone()) {
            problems.add(at, Code::Duplicate, format!("endpoint {} is there twice", spec.address));
        }
        if !(1..=WEIGHT_MAX).contains(&spec.weight) {
            problems.add(at, Code::OutOfRange, format!("weight is {}, allowed is 1 to {WEIGHT_MAX}", spec.weight));
        }
        if spec.priority > PRIORITY_MAX {
            problems.add(
                at,
                Code::OutOfRange,
                format!("priority is {}, allowed is 0 to {PRIORITY_MAX}", spec.priority),
            );
        }
        endpoints.push(spec);
    }
    endpoints
}

fn spec(form: &EndpointForm) -> Result<EndpointSpec, model::Error> {
    let mut spec = EndpointSpec::at(Address::parse(&form.address)?);
    if let Some(locality) = &form.locality {
        spec.locality = Locality::parse(locality)?;
    }
    if let Some(instance) = &form.instance {
        spec.instance = Instance::parse(instance)?;
    }
    if let Some(tls_name) = &form.tls_name {
        // A name like any other, as far as its characters go.
        spec.tls_name = Arc::from(Instance::parse(tls_name)?.as_str());
    }
    spec.weight = form.weight.unwrap_or(spec.weight);
    spec.priority = form.priority.unwrap_or(spec.priority);
    Ok(spec)
}
