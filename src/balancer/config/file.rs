//! The file's own form, and the way from there to a valid [`Config`].

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use lookaside_core::{config::ServiceConfig, limits::SERVICES_MAX, model::Instance};
use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use super::{
    Config, Error, Listen, Network, Node, Problem, Registration,
    value::{Maybe, Socket, Span, or_default},
};

mod call;
mod limits;
mod service;

use limits::LimitsForm;
use service::ServiceForm;

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

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RegistrationForm {
    enabled: Option<bool>,
    allow_foreign_addresses: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    allow: Vec<Spanned<String>>,
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
