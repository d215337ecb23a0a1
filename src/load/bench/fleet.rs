//! Backends with virtual capacity, all in one process and each a server of its own: slots that calls take in turn, for a time
//! that varies as the exponential does. They register with a balancer, and some can be made to fail fast while their health
//! checks go well.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, unix_us};
use crate::backend::{Backend, Config, Distribution};

/// How long all registrations together may take.
const REGISTER_MAX: Duration = Duration::from_secs(20);

/// Backends are called this and a number.
const NAME: &str = "b";

/// What a fleet is made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Shape {
    /// Endpoints.
    pub endpoints: u32,
    /// Calls that each works on at once.
    pub slots: u32,
    /// Calls that may wait at each; one more is refused.
    pub queue: u32,
    /// Mean service time, microseconds.
    pub mean_us: u64,
    /// So many of them, the last ones, are slower.
    pub slow: u32,
    /// By this factor.
    pub slow_factor: f64,
}

impl Shape {
    /// Calls per second that all slots together can work on.
    pub fn capacity_per_s(&self) -> f64 {
        let (slow, slots) = (f64::from(self.slow.min(self.endpoints)), f64::from(self.slots));
        let like_fast = f64::from(self.endpoints) - slow + slow / self.slow_factor;
        like_fast * slots * 1e6 / self.mean_us as f64
    }

    /// Whether the backend of this name is one of the slower ones.
    pub fn is_slow(&self, instance: &str) -> bool {
        let number = instance.strip_prefix(NAME).and_then(|number| number.parse::<u32>().ok());
        number.is_some_and(|number| number >= self.endpoints.saturating_sub(self.slow))
    }
}

/// What to start, and whom to tell.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Of what kind.
    pub shape: Shape,
    /// The service that they serve.
    pub service: String,
    /// Client listener of a balancer.
    pub balancer: String,
    /// Of the random times.
    pub seed: u64,
}

/// Endpoints that serve until dropped.
#[derive(Debug)]
pub struct Fleet {
    backends: Vec<Backend>,
}

impl Fleet {
    /// Starts them on loopback; returns when the balancer has them all.
    ///
    /// # Errors
    /// When no port is free, a number makes no sense, or the balancer does not accept them in time.
    pub async fn start(plan: Plan) -> Result<Self, Error> {
        let Plan { shape, service, balancer, seed } = plan;
        let mut backends = Vec::new();
        for number in 0..shape.endpoints {
            let instance = format!("{NAME}{number}");
            let slow_factor = if shape.is_slow(&instance) { shape.slow_factor } else { 1.0 };
            let config = Config {
                balancers: vec![balancer.clone()],
                instance: Some(instance),
                mean: Duration::from_micros(shape.mean_us),
                distribution: Distribution::Exp,
                slots: shape.slots,
                queue: shape.queue,
                slow_factor,
                seed: seed.wrapping_mul(1_000_003).wrapping_add(number.into()),
                ..Config::new(service.clone())
            };
            backends.push(Backend::start(config).await?);
        }
        let mut registered = 0;
        let all = async {
            for backend in &backends {
                backend.registered().await;
                registered += 1;
            }
        };
        if tokio::time::timeout(REGISTER_MAX, all).await.is_err() {
            let wanted = backends.len();
            return Err(Error::Incomplete { what: "registrations", ready: registered, wanted, within: REGISTER_MAX });
        }
        Ok(Self { backends })
    }

    /// Where they serve.
    pub fn addresses(&self) -> Vec<String> {
        self.backends.iter().map(|backend| backend.address().to_owned()).collect()
    }

    /// From now on so many of them, the last ones, fail every call in a millisecond, and the others do not. When that was, on
    /// the wall clock, microseconds since 1970.
    pub fn fail(&self, count: u32) -> u64 {
        let healthy = self.backends.len().saturating_sub(count as usize);
        for (number, backend) in self.backends.iter().enumerate() {
            backend.set_unavailable(number >= healthy);
        }
        unix_us()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_ones_are_the_last_and_have_less_of_the_capacity() {
        let shape = Shape { endpoints: 10, slots: 8, queue: 100, mean_us: 40_000, slow: 2, slow_factor: 3.0 };
        assert!((shape.capacity_per_s() - 1733.3).abs() < 0.1, "{}", shape.capacity_per_s());
        let slow: Vec<_> = (0..10).filter(|number| shape.is_slow(&format!("b{number}"))).collect();
        assert_eq!(slow, [8, 9]);
        assert!(!shape.is_slow("somebody else"));
    }
}
