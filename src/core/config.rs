//! How a service is to be balanced: values that the configuration gives, and their defaults. Where they come from is not
//! known here.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::model::{EndpointSpec, ServiceName};

mod call;
mod ring;

pub use call::{ATTEMPTS_MAX, CallConfig, MethodPath, MethodRule, NotAPath, RetryCode};
pub use ring::{HeaderName, LOAD_BOUND_PERCENT_MAX, LOAD_BOUND_PERCENT_MIN, NotAHeader, RingConfig};

/// A configuration as a source of services: all that it names.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Configuration {
    /// How services are balanced that it does not name.
    pub defaults: ServiceConfig,
    /// Each named once.
    pub services: Vec<ConfiguredService>,
}

/// A service that a configuration names.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfiguredService {
    /// What clients ask for.
    pub name: ServiceName,
    /// How it is balanced.
    pub config: Arc<ServiceConfig>,
    /// Who serves it; `None` leaves that to others, an empty list says nobody does.
    pub endpoints: Option<Vec<EndpointSpec>>,
}

/// How a service is balanced. The values of the default are the defaults of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceConfig {
    /// How lists are ordered and weighted.
    pub policy: PolicyKind,
    /// How endpoints are checked.
    pub health: HealthConfig,
    /// Time between reports of a backend.
    pub report_period: Duration,
    /// How long a registration lasts without a report.
    pub lease: Duration,
    /// Below this share of usable endpoints health is ignored.
    pub panic_threshold_percent: u32,
    /// How long a new endpoint takes to its full share; zero for at once.
    pub slow_start: Duration,
    /// Which endpoints a client is to prefer by where they run.
    pub locality: LocalityConfig,
    /// Endpoints that one client gets to see, about; 0 for all. `ring_hash` shows all of them to everybody.
    pub subset_size: u32,
    /// What `ring_hash` goes by.
    pub ring_hash: RingConfig,
    /// How clients make its calls.
    pub calls: CallConfig,
    /// How its endpoints are connected to when they are checked; `None` is plaintext.
    pub tls: Option<EndpointTls>,
}

impl ServiceConfig {
    /// About how many endpoints one client is to see; `None` for all. Of a ring everybody sees everything: with a part each,
    /// two clients would send one key to two endpoints, and with the same part for all, the other endpoints would stand idle.
    pub(crate) fn subset(&self) -> Option<usize> {
        match self.policy {
            PolicyKind::RingHash => None,
            PolicyKind::LeastLoad | PolicyKind::WeightedRoundRobin | PolicyKind::RoundRobin => {
                Some(self.subset_size as usize).filter(|size| *size > 0)
            }
        }
    }
}

/// Endpoints speak TLS, and show the name that their `tls_name` says. Files, by name: what is in them is not known here.
#[derive(Debug, Default, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct EndpointTls {
    /// Whose certificates are good.
    pub ca: String,
    /// What is shown to endpoints that ask for a certificate; empty shows none.
    pub cert: String,
    /// Its key.
    pub key: String,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        Self {
            policy: PolicyKind::LeastLoad,
            health: HealthConfig::default(),
            report_period: Duration::from_secs(1),
            lease: Duration::from_secs(15),
            panic_threshold_percent: 50,
            slow_start: Duration::from_secs(30),
            locality: LocalityConfig::default(),
            subset_size: 100,
            ring_hash: RingConfig::default(),
            calls: CallConfig::default(),
            tls: None,
        }
    }
}

/// The policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyKind {
    /// Least loaded first; clients draw by share while the fleet is idle, else go by what responses told of load, used once, or
    /// ask two; by their own calls in flight only where neither is to be had.
    LeastLoad,
    /// Turns in proportion to measured capacity.
    WeightedRoundRobin,
    /// Equal turns.
    RoundRobin,
    /// The same key to the same endpoint.
    RingHash,
}

impl PolicyKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::LeastLoad, Self::WeightedRoundRobin, Self::RoundRobin, Self::RingHash];

    /// The word.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeastLoad => "least_load",
            Self::WeightedRoundRobin => "weighted_round_robin",
            Self::RoundRobin => "round_robin",
            Self::RingHash => "ring_hash",
        }
    }
}

/// How endpoints are checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthConfig {
    /// Time between checks of one endpoint.
    pub interval: Duration,
    /// How long a check may take.
    pub deadline: Duration,
    /// Failed checks in a row that take an endpoint out on their own evidence.
    pub fall: u32,
    /// Passed checks in a row that bring it back.
    pub rise: u32,
    /// Service to ask for in `grpc.health.v1`; empty for the server as a whole.
    pub service: String,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            deadline: Duration::from_millis(500),
            fall: 2,
            rise: 2,
            service: String::new(),
        }
    }
}

/// Which endpoints a client is to prefer by where they run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalityConfig {
    /// Prefer those in the client's own zone (region and zone).
    pub prefer_zone: bool,
    /// A tier whose usable share falls below this gets help from the next one, of zones as of priorities.
    pub failover_below_percent: u32,
}

impl Default for LocalityConfig {
    fn default() -> Self {
        Self { prefer_zone: false, failover_below_percent: 70 }
    }
}
