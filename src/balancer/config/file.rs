//! The file's own form, and the way from there to a valid [`Config`].

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use lookaside_core::{
    config::{PolicyKind, ServiceConfig},
    limits::{ENDPOINTS_PER_SERVICE_MAX, PRIORITY_MAX, SERVICES_MAX, WEIGHT_MAX},
    model::{self, Address, EndpointSpec, Instance, Locality, ServiceName},
};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{
    Config, Error, Limits, Listen, Network, Node, Problem, Registration, Service,
    value::{Endpoint, EndpointForm, Maybe, Percent, Socket, Span, or_default},
};

/// No duration of the file may be longer: the wire carries milliseconds in 32 bits.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Form {
    #[serde(deserialize_with = "or_default")]
    listen: ListenForm,
    #[serde(deserialize_with = "or_default")]
    node: NodeForm,
    data_dir: Option<PathBuf>,
    #[serde(deserialize_with = "or_default")]
    defaults: ServiceForm,
    #[serde(deserialize_with = "or_default")]
    services: Vec<Spanned<ServiceForm>>,
    #[serde(deserialize_with = "or_default")]
    registration: RegistrationForm,
    #[serde(deserialize_with = "or_default")]
    limits: LimitsForm,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ListenForm {
    client: Maybe<Socket>,
    admin: Maybe<Socket>,
    metrics: Maybe<Socket>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NodeForm {
    id: Maybe<String>,
}

/// Both a service and the defaults of all; only a service has a name and endpoints.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ServiceForm {
    name: Maybe<String>,
    endpoints: Maybe<Vec<Spanned<Endpoint>>>,
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

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RegistrationForm {
    enabled: Option<bool>,
    allow_foreign_addresses: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    allow: Vec<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsForm {
    connections: Maybe<usize>,
    streams_per_connection: Maybe<u32>,
    connection_age: Maybe<Span>,
    connection_age_grace: Maybe<Span>,
    handshake_deadline: Maybe<Span>,
    keepalive_interval: Maybe<Span>,
    keepalive_timeout: Maybe<Span>,
    checks_at_once: Maybe<usize>,
    drain_deadline: Maybe<Span>,
}

/// Reads a text; `path` is what errors call it.
pub(super) fn parse(path: &str, text: &str) -> Result<Config, Error> {
    let options = serde_saphyr::options! { with_snippet: false };
    let form: Option<Form> = serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        let (line, column) = e.location().map_or((0, 0), |at| (at.line(), at.column()));
        let reason = e.to_string();
        // The parser puts the place into its words too; ours comes first, in the form that editors jump to.
        let reason = reason.split(" at line ").next().unwrap_or_default().to_owned();
        Error::Malformed { path: path.to_owned(), line, column, reason }
    })?;
    let mut problems = Problems::default();
    let config = form.unwrap_or_default().into_config(&mut problems);
    if problems.0.is_empty() {
        return Ok(config);
    }
    problems.0.sort();
    Err(Error::Invalid { path: path.to_owned(), problems: problems.0 })
}

/// What was found so far.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, at: Location, reason: impl Into<String>) {
        self.0.push(Problem { line: at.line(), column: at.column(), reason: reason.into() });
    }

    /// The parsed value, or the fallback and a problem.
    fn parsed<T, E: ToString>(&mut self, at: Location, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.add(at, e.to_string())).ok()
    }

    /// Takes the file's value over the default if it is within the bounds.
    fn bounded<T: PartialOrd + std::fmt::Debug + Copy>(
        &mut self,
        key: &str,
        to: &mut T,
        from: &Maybe<T>,
        min: T,
        max: T,
    ) {
        let Some(from) = from else { return };
        if from.value < min || from.value > max {
            self.add(from.referenced, format!("{key} is {:?}, allowed is {min:?} to {max:?}", from.value));
        }
        *to = from.value;
    }

    fn span(&mut self, key: &str, to: &mut Duration, from: &Maybe<Span>, min: Duration) {
        let from = from.as_ref().map(|s| Spanned::new(s.value.0, s.referenced, s.defined));
        self.bounded(key, to, &from, min, DURATION_MAX);
    }
}

impl Form {
    fn into_config(self, problems: &mut Problems) -> Config {
        let name = self.defaults.name.as_ref().map(|name| name.referenced);
        let endpoints = self.defaults.endpoints.as_ref().map(|endpoints| endpoints.referenced);
        for at in name.into_iter().chain(endpoints) {
            problems.add(at, "defaults are for all services: they have neither a name nor endpoints");
        }
        let defaults = self.defaults.config(&ServiceConfig::default(), problems);
        if let Some(first_beyond) = self.services.get(SERVICES_MAX) {
            problems.add(first_beyond.referenced, format!("more than {SERVICES_MAX} services"));
        }
        let mut names = BTreeSet::new();
        let services =
            self.services.iter().filter_map(|s| s.value.service(s.referenced, &defaults, &mut names, problems));
        Config {
            services: services.collect(),
            listen: self.listen.listen(problems),
            node: self.node.node(problems),
            data_dir: self.data_dir,
            registration: self.registration.registration(problems),
            limits: self.limits.limits(problems),
            defaults,
        }
    }
}

impl ListenForm {
    fn listen(&self, problems: &mut Problems) -> Listen {
        let mut listen = Listen::default();
        let mut taken = Vec::new();
        for (to, from) in
            [(&mut listen.client, &self.client), (&mut listen.admin, &self.admin), (&mut listen.metrics, &self.metrics)]
        {
            if let Some(from) = from {
                *to = from.value.0;
                if to.port() != 0 && taken.contains(to) {
                    problems.add(from.referenced, format!("{to} is taken by another listener"));
                }
            }
            taken.push(*to);
        }
        listen
    }
}

impl NodeForm {
    fn node(&self, problems: &mut Problems) -> Node {
        let mut node = Node::default();
        if let Some(id) = &self.id {
            match Instance::parse(&id.value) {
                Ok(_) if id.value.is_empty() => problems.add(id.referenced, "node.id is empty"),
                Ok(_) => node.id.clone_from(&id.value),
                Err(_) => problems.add(id.referenced, "node.id is at most 253 bytes without white space"),
            }
        }
        node
    }
}

impl ServiceForm {
    fn config(&self, base: &ServiceConfig, problems: &mut Problems) -> ServiceConfig {
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
        config.policy = self.policy.unwrap_or(config.policy);
        config.panic_threshold_percent = self.panic_threshold.map_or(config.panic_threshold_percent, |p| p.0);
        config.locality.prefer_zone = self.locality.prefer_zone.unwrap_or(config.locality.prefer_zone);
        let failover_below = &mut config.locality.failover_below_percent;
        *failover_below = self.locality.failover_below.map_or(*failover_below, |p| p.0);
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
                format!("health.deadline ({deadline:?}) must be shorter than health.interval ({interval:?})"),
            );
        }
        let (lease, period) = (config.lease, config.report_period);
        let at = [&self.lease, &self.report_period].into_iter().flatten().next();
        if let Some(at) = at.filter(|_| lease < period * 3) {
            problems
                .add(at.referenced, format!("lease ({lease:?}) must last three report periods ({period:?}) or more"));
        }
    }

    fn service(
        &self,
        at: Location,
        defaults: &ServiceConfig,
        names: &mut BTreeSet<ServiceName>,
        problems: &mut Problems,
    ) -> Option<Service> {
        let config = self.config(defaults, problems);
        let endpoints = self.endpoints.as_ref().map(|listed| endpoints(listed, problems));
        let Some(name) = &self.name else {
            problems.add(at, "a service needs a name");
            return None;
        };
        let parsed = problems.parsed(name.referenced, ServiceName::parse(&name.value))?;
        if !names.insert(parsed.clone()) {
            problems.add(name.referenced, format!("service {parsed} is there twice"));
        }
        Some(Service { name: parsed, config, endpoints })
    }
}

fn endpoints(listed: &Spanned<Vec<Spanned<Endpoint>>>, problems: &mut Problems) -> Vec<EndpointSpec> {
    if listed.value.len() > ENDPOINTS_PER_SERVICE_MAX {
        problems.add(listed.referenced, format!("more than {ENDPOINTS_PER_SERVICE_MAX} endpoints"));
    }
    let mut addresses = BTreeSet::new();
    let mut endpoints = Vec::with_capacity(listed.value.len());
    for form in &listed.value {
        let at = form.referenced;
        let Some(spec) = problems.parsed(at, spec(&form.value.0)) else { continue };
        if !addresses.insert(spec.address.clone()) {
            problems.add(at, format!("endpoint {} is there twice", spec.address));
        }
        if !(1..=WEIGHT_MAX).contains(&spec.weight) {
            problems.add(at, format!("weight is {}, allowed is 1 to {WEIGHT_MAX}", spec.weight));
        }
        if spec.priority > PRIORITY_MAX {
            problems.add(at, format!("priority is {}, allowed is 0 to {PRIORITY_MAX}", spec.priority));
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

impl RegistrationForm {
    fn registration(&self, problems: &mut Problems) -> Registration {
        let default = Registration::default();
        Registration {
            enabled: self.enabled.unwrap_or(default.enabled),
            allow_foreign_addresses: self.allow_foreign_addresses.unwrap_or(default.allow_foreign_addresses),
            allow: self.allow.iter().filter_map(|n| problems.parsed(n.referenced, Network::parse(&n.value))).collect(),
        }
    }
}

impl LimitsForm {
    fn limits(&self, problems: &mut Problems) -> Limits {
        let mut limits = Limits::default();
        let (ms, second) = (Duration::from_millis(1), Duration::from_secs(1));
        problems.bounded("connections", &mut limits.connections, &self.connections, 1, 1_000_000);
        let streams = &mut limits.streams_per_connection;
        problems.bounded("streams_per_connection", streams, &self.streams_per_connection, 1, 1_000_000);
        problems.span("connection_age", &mut limits.connection_age, &self.connection_age, second);
        problems.span("connection_age_grace", &mut limits.connection_age_grace, &self.connection_age_grace, ms);
        problems.span("handshake_deadline", &mut limits.handshake_deadline, &self.handshake_deadline, ms);
        problems.span("keepalive_interval", &mut limits.keepalive_interval, &self.keepalive_interval, second);
        problems.span("keepalive_timeout", &mut limits.keepalive_timeout, &self.keepalive_timeout, ms);
        problems.bounded("checks_at_once", &mut limits.checks_at_once, &self.checks_at_once, 1, 100_000);
        problems.span("drain_deadline", &mut limits.drain_deadline, &self.drain_deadline, ms);
        limits
    }
}
