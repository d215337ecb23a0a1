//! The description of a backend, checked before anything is started.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use lookaside_proto::v1::Registration;

use super::Reporter;
use super::balancers::BALANCERS_MAX;
use super::shared::Shared;
use crate::resolve::Name;
use crate::{Tls, dial, target};

/// Highest weight a registration may ask for.
const WEIGHT_MAX: u32 = 10_000;

/// Why a reporter cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No name, so no client could ask for it.
    #[error("a reporter needs the name of the service it serves")]
    NoService,
    /// Too many to report to.
    #[error("reporter of \"{service}\" was given {count} balancers, the most is {BALANCERS_MAX}")]
    TooManyBalancers {
        /// The service.
        service: String,
        /// How many were given.
        count: usize,
    },
    /// Clients could not find it.
    #[error("reporter of \"{service}\" needs the address clients reach it at: advertise(\"host:port\")")]
    NoAddress {
        /// The service.
        service: String,
    },
    /// Not `host:port`.
    #[error(transparent)]
    Address(#[from] crate::Error),
    /// Out of range.
    #[error("weight {weight} is out of range: 1 to {WEIGHT_MAX}")]
    Weight {
        /// What was given.
        weight: u32,
    },
}

/// Describes a backend; made by [`Reporter::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    balancers: Vec<String>,
    measure_cpu: bool,
    registration: Registration,
    tls: Option<Tls>,
}

impl Builder {
    pub(crate) fn new(service: String) -> Self {
        let registration = Registration { service, weight: 100, sdk: dial::SDK.to_owned(), ..Registration::default() };
        Self { balancers: Vec::new(), measure_cpu: true, registration, tls: None }
    }

    /// The balancers to report to, `host:port` each; every one of them gets every report. A name stands for all its
    /// addresses and is asked for again every ten seconds, so that new replicas hear of the backend too. Without any,
    /// health, ORCA and Probe are served all the same, for whoever asks.
    #[must_use]
    pub fn balancers<A: AsRef<str>>(mut self, balancers: impl IntoIterator<Item = A>) -> Self {
        self.balancers.extend(balancers.into_iter().map(|balancer| balancer.as_ref().to_owned()));
        self
    }

    /// Balancers are connected to over TLS, and have to show the host they were named by, or the name that this expects; see
    /// [`crate::tls`]. Default: plaintext.
    #[must_use]
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// The address clients reach this backend at, `host:port`.
    #[must_use]
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.registration.address = address.into();
        self
    }

    /// The backend's own name, unique within its service and stable over restarts: a pod, a host, a task. Without one it
    /// is the advertised address.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<String>) -> Self {
        self.registration.instance = instance.into();
        self
    }

    /// Where it runs: region, region/zone or region/zone/subzone.
    #[must_use]
    pub fn locality(mut self, locality: impl Into<String>) -> Self {
        self.registration.locality = locality.into();
        self
    }

    /// Share of calls wanted against the others of its locality, 1 to 10000; 100 unless said.
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.registration.weight = weight;
        self
    }

    /// Failover tier; 0, the default, is best.
    #[must_use]
    pub fn priority(mut self, priority: u32) -> Self {
        self.registration.priority = priority;
        self
    }

    /// The name its certificate shows, when that is not the host of its address.
    #[must_use]
    pub fn tls_name(mut self, name: impl Into<String>) -> Self {
        self.registration.tls_name = name.into();
        self
    }

    /// Whether the CPU of this process is its load, as it is by default. Not so when several backends share a process.
    #[must_use]
    pub fn measure_cpu(mut self, measure: bool) -> Self {
        self.measure_cpu = measure;
        self
    }

    /// Starts to report, and returns at once: balancers that are away are tried until they are there. Fails only on a
    /// description that no balancer could accept. Must be called within a tokio runtime.
    pub async fn start(self) -> Result<Reporter, Error> {
        let mut registration = self.registration;
        let service = registration.service.clone();
        if service.is_empty() {
            return Err(Error::NoService);
        }
        if self.balancers.len() > BALANCERS_MAX {
            return Err(Error::TooManyBalancers { service, count: self.balancers.len() });
        }
        if registration.address.is_empty() {
            return Err(Error::NoAddress { service });
        }
        if !(1..=WEIGHT_MAX).contains(&registration.weight) {
            return Err(Error::Weight { weight: registration.weight });
        }
        registration.address = target::address(&registration.address)?;
        if registration.instance.is_empty() {
            registration.instance.clone_from(&registration.address);
        }
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        registration.incarnation = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
        let balancers = target::addresses(&self.balancers)?;
        let names = balancers.iter().map(|balancer| Name::new(balancer)).collect();
        let mut shared = Shared::new(registration, self.measure_cpu);
        shared.tls = self.tls;
        Ok(Reporter::start(Arc::new(shared), names).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_description_no_balancer_could_accept_does_not_start() {
        let right = Reporter::builder("s").balancers(["127.0.0.1:1"]).advertise("127.0.0.1:2");
        assert!(right.clone().start().await.is_ok());
        assert!(matches!(right.clone().weight(0).start().await, Err(Error::Weight { weight: 0 })));
        assert!(matches!(right.clone().advertise("here").start().await, Err(Error::Address(_))));
        assert!(matches!(Reporter::builder("s").start().await, Err(Error::NoAddress { .. })));
        assert!(matches!(Reporter::builder("").start().await, Err(Error::NoService)));
    }
}
