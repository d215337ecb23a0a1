//! Weights by what endpoints are measured to get done, for the policy that asks for them.

use std::time::Duration;

use super::{
    endpoint::{EVEN_PERMILLE, Endpoint},
    service::Service,
};
use crate::model::Timestamp;

/// Weights by throughput: how long a new endpoint has none and how old a report may be (both gRPC A58), how far from the
/// median of the service a weight may go, and the change worth a new list.
const THROUGHPUT_BLACKOUT: Duration = Duration::from_secs(10);
const THROUGHPUT_EXPIRY: Duration = Duration::from_secs(180);
const THROUGHPUT_PERMILLE: std::ops::RangeInclusive<f64> = 100.0..=10_000.0;
const THROUGHPUT_STEP_PERMILLE: u32 = 50;

impl Service {
    /// For policies that ask for no measure: what was measured for another one is forgotten.
    pub(super) fn weigh_evenly(&mut self) {
        self.endpoints.values_mut().for_each(|endpoint| endpoint.throughput_permille = EVEN_PERMILLE);
    }

    /// Weighs endpoints by what they are measured to get done, against the median: one that lies must not move the others.
    /// None gets more than twice its fair share on its own word.
    pub(super) fn weigh(&mut self, now: Timestamp) {
        let measured = |e: &Endpoint| {
            let fresh = e.load.reported_at().is_some_and(|at| now.since(at) < THROUGHPUT_EXPIRY);
            let blackout = now.since(e.joined_at) < THROUGHPUT_BLACKOUT;
            if fresh && !blackout { e.load.throughput() } else { None }
        };
        let mut known: Vec<f64> = self.endpoints.values().filter_map(measured).collect();
        known.sort_by(f64::total_cmp);
        let median = if known.len() < 2 { None } else { known.get(known.len() / 2).copied() };
        let wanted = |e: &Endpoint| match (measured(e), median) {
            (Some(throughput), Some(median)) => {
                (throughput / median * 1000.0).clamp(*THROUGHPUT_PERMILLE.start(), *THROUGHPUT_PERMILLE.end())
            }
            _ => f64::from(EVEN_PERMILLE),
        };
        let sum: f64 = self.endpoints.values().map(wanted).sum();
        let count = self.endpoints.len() as f64;
        for endpoint in self.endpoints.values_mut() {
            let own = wanted(endpoint);
            // own / (own + others) <= 2 / count, solved for own.
            let ceiling = if count > 2.0 { 2.0 * (sum - own) / (count - 2.0) } else { own };
            let permille = own.min(ceiling) as u32;
            if permille.abs_diff(endpoint.throughput_permille) >= THROUGHPUT_STEP_PERMILLE {
                endpoint.throughput_permille = permille;
            }
        }
    }
}
