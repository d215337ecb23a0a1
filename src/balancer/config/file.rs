//! The file's own form, and the way from there to a valid [`Config`].

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use lookaside_core::{config::ServiceConfig, limits::SERVICES_MAX, model::Instance};
use serde::Deserialize;

use super::{
    Config, Error, Listen, Network, Node, Origin, Registration, exposed_reason,
    problem::{Code, Location, Problem},
    tree::{self, Spanned},
    value::{Maybe, Socket, Span, or_default},
};

mod call;
mod dns;
mod limits;
mod restart;
mod ring;
mod security;
mod service;

use limits::LimitsForm;
use security::{AdminForm, Plaintext, TlsForm};
use service::ServiceForm;

/// No duration of the file may be longer: the wire carries milliseconds in 32 bits.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Form {
    #[serde(deserialize_with = "or_default")]
    listen: ListenForm,
    #[serde(deserialize_with = "or_default")]
    tls: TlsForm,
    #[serde(deserialize_with = "or_default")]
    admin: AdminForm,
    #[serde(deserialize_with = "or_default")]
    node: NodeForm,
    data_dir: Maybe<PathBuf>,
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
    #[serde(deserialize_with = "or_default")]
    allow_plaintext: Vec<Plaintext>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct NodeForm {
    id: Maybe<String>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RegistrationForm {
    enabled: Option<bool>,
    allow_foreign_addresses: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    allow: Vec<Spanned<String>>,
}

/// What a text is read for.
#[derive(Clone, Copy)]
pub(super) enum Reading<'a> {
    /// Nothing but itself.
    Whole,
    /// A start. Flags say where it listens and what may be in plaintext, so who is exposed is judged after them.
    Start,
    /// A balancer that runs, and was started with this.
    Again(&'a Origin),
}

/// Reads a text; `path` is what errors call it.
pub(super) fn parse(path: &str, text: &str, reading: Reading<'_>) -> Result<Config, Error> {
    let (form, mistakes) = tree::read::<Form>(text);
    let mut problems = Problems::default();
    let config = form.unwrap_or_default().into_config(reading, &mut problems);
    if !mistakes.is_empty() {
        // What was left out as wrong may be what these miss.
        problems.0.retain(|problem| !problem.code.needs_the_whole());
        problems.0.extend(mistakes);
    }
    if problems.0.is_empty() { Ok(config) } else { Err(Error::new(path, text, problems.0)) }
}

/// What was found so far.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, at: Location, code: Code, reason: impl Into<String>) {
        self.0.push(Problem::new(at, code, reason));
    }

    /// The parsed value, or the fallback and a problem.
    fn parsed<T, E: ToString>(&mut self, at: Location, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.add(at, Code::BadValue, e.to_string())).ok()
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
            let reason = format!("{key} is {:?}, allowed is {min:?} to {max:?}", from.value);
            self.add(from.referenced, Code::OutOfRange, reason);
        }
        *to = from.value;
    }

    fn span(&mut self, key: &str, to: &mut Duration, from: &Maybe<Span>, min: Duration) {
        let from = from.as_ref().map(|s| Spanned { value: s.value.0, referenced: s.referenced });
        self.bounded(key, to, &from, min, DURATION_MAX);
    }
}

impl Form {
    fn into_config(mut self, reading: Reading<'_>, problems: &mut Problems) -> Config {
        let name = self.defaults.name.as_ref().map(|name| name.referenced);
        let endpoints = self.defaults.endpoints.as_ref().map(|endpoints| endpoints.referenced);
        let dns = self.defaults.dns.as_ref().map(|dns| dns.referenced);
        for at in name.into_iter().chain(endpoints).chain(dns) {
            problems.add(at, Code::Misplaced, "defaults are for all services: they have neither a name nor endpoints");
        }
        let defaults = self.defaults.config(&ServiceConfig::default(), problems);
        if let Some(first_beyond) = self.services.get(SERVICES_MAX) {
            problems.add(first_beyond.referenced, Code::TooMany, format!("more than {SERVICES_MAX} services"));
        }
        let mut names = BTreeSet::new();
        let services =
            self.services.iter().filter_map(|s| s.value.service(s.referenced, &defaults, &mut names, problems));
        let services = services.collect();
        let (tls, admin) = (std::mem::take(&mut self.tls), std::mem::take(&mut self.admin));
        let security = security::security(tls, admin, &self.listen.allow_plaintext, problems);
        let listen = self.listen.listen(problems);
        let mut config = Config {
            services,
            listen,
            security,
            node: self.node.node(problems),
            data_dir: self.data_dir.as_ref().map(|dir| dir.value.clone()),
            registration: self.registration.registration(problems),
            limits: self.limits.limits(problems),
            defaults,
            origin: None,
        };
        match reading {
            Reading::Whole => self.listen.judge(&config, problems),
            Reading::Start => {}
            // Neither its listeners nor what secures them may be others than at the start.
            Reading::Again(running) => {
                if self.node.id.is_none() {
                    // It signs words, whatever the host is called by now.
                    config.node.clone_from(&running.node);
                }
                restart::check(&self, &config, running, problems);
            }
        }
        config
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
                    problems.add(from.referenced, Code::Duplicate, format!("{to} is taken by another listener"));
                }
            }
            taken.push(*to);
        }
        listen
    }

    /// Finds listeners that are exposed.
    fn judge(&self, config: &Config, problems: &mut Problems) {
        for (listener, address) in config.security.exposed(&config.listen) {
            let at = if listener == "admin" { &self.admin } else { &self.client };
            let at = at.as_ref().map(|at| at.referenced).unwrap_or_default();
            problems.add(at, Code::Exposed, exposed_reason(listener, address));
        }
    }
}

impl NodeForm {
    fn node(&self, problems: &mut Problems) -> Node {
        let mut node = Node::default();
        if let Some(id) = &self.id {
            match Instance::parse(&id.value) {
                Ok(_) if id.value.is_empty() => problems.add(id.referenced, Code::BadValue, "node.id is empty"),
                Ok(_) => node.id.clone_from(&id.value),
                Err(_) => {
                    problems.add(id.referenced, Code::BadValue, "node.id is at most 253 bytes without white space")
                }
            }
        }
        node
    }
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
