//! Weighted round robin by what endpoints say of themselves, gRFC A58 (`weighted_round_robin` of gRPC): calls per second over
//! utilisation, errors counted as utilisation.

use lookaside_sdk::picker::Rng;

use super::{Choice, Dispatcher, Listed, Load, known::Known, stride::Stride};
use crate::world::World;

/// How often an endpoint reports, on its means over that time (A58, out of band).
const PERIOD_US: u64 = 10_000_000;
/// How long one must have reported before its weight counts (A58).
const BLACKOUT_US: u64 = 10_000_000;
/// After so long without a report a weight no longer counts (A58).
const EXPIRY_US: u64 = 180_000_000;
/// How often weights are worked out (A58).
const UPDATE_US: u64 = 1_000_000;
/// What a share of errors adds to the utilisation (A58).
const ERROR_PENALTY: f64 = 1.0;

/// One client that hears from each endpoint.
#[derive(Debug, Default)]
pub(super) struct Wrr {
    known: Known<Reported>,
    stride: Stride,
    /// When weights are to be worked out next.
    due_us: u64,
}

#[derive(Debug, Default, Clone, Copy)]
struct Reported {
    weight: f64,
    since_us: Option<u64>,
    at_us: u64,
    /// Heard since the last report: sums of calls, errors and utilisations, and how often.
    heard: [f64; 4],
    due_us: u64,
}

impl Reported {
    fn hear(&mut self, load: &Load, now_us: u64) {
        let Load { calls_per_second, errors_per_second, utilization, .. } = *load;
        let more = [calls_per_second, errors_per_second, utilization, 1.0];
        self.heard.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        if now_us >= self.due_us {
            self.due_us = now_us + PERIOD_US;
            let [calls, errors, utilization, count] = std::mem::take(&mut self.heard);
            self.report(calls / count, errors / count, utilization / count, now_us);
        }
    }

    fn report(&mut self, calls: f64, errors: f64, utilization: f64, now_us: u64) {
        if utilization <= 0.0 || calls <= 0.0 {
            return;
        }
        self.weight = calls / (utilization + errors / calls * ERROR_PENALTY);
        self.since_us.get_or_insert(now_us);
        self.at_us = now_us;
    }

    /// 0 while it does not count.
    fn weight(&mut self, now_us: u64) -> f64 {
        if now_us.saturating_sub(self.at_us) >= EXPIRY_US {
            self.since_us = None;
        }
        match self.since_us {
            Some(since_us) if now_us.saturating_sub(since_us) >= BLACKOUT_US => self.weight,
            Some(_) | None => 0.0,
        }
    }
}

impl Wrr {
    /// A client that begins its circle at this turn.
    pub(super) fn starting_at(turn: u64) -> Self {
        Self { stride: Stride::starting_at(turn), ..Self::default() }
    }
}

impl Dispatcher for Wrr {
    fn list(&mut self, list: &[Listed], now_us: u64) {
        self.known.list(list);
        self.due_us = now_us;
    }

    fn choose(&mut self, _world: &World, now_us: u64, _rng: &mut Rng, tried: &[u32]) -> Choice {
        if now_us >= self.due_us {
            self.due_us = now_us + UPDATE_US;
            let weights: Vec<f64> = (0..self.known.usable()).map(|at| self.known.state(at).weight(now_us)).collect();
            self.stride.weigh(weights.into_iter());
        }
        let next = self.stride.next(|at| tried.contains(&self.known.endpoint(at)));
        next.map_or(Choice::Nobody, |at| Choice::Send(self.known.endpoint(at)))
    }

    fn wants_loads(&self) -> bool {
        true
    }

    fn loads(&mut self, loads: &[Load], now_us: u64) {
        for load in loads {
            if let Some(reported) = self.known.find(load.endpoint) {
                reported.hear(load, now_us);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::known::listed;

    fn load(endpoint: u32, calls_per_second: f64, errors_per_second: f64, utilization: f64) -> Load {
        Load { endpoint, calls_per_second, errors_per_second, utilization }
    }

    #[test]
    fn the_weight_is_calls_over_utilisation_and_errors_count_as_utilisation() {
        let mut reported = Reported::default();
        reported.report(80.0, 0.0, 0.4, 0);
        assert_eq!(reported.weight(BLACKOUT_US), 200.0);
        reported.report(80.0, 8.0, 0.4, 0);
        assert_eq!(reported.weight(BLACKOUT_US), 160.0);
        reported.report(80.0, 0.0, 0.0, 5);
        assert_eq!(reported.weight(BLACKOUT_US), 160.0, "a report that says nothing changes nothing");
    }

    #[test]
    fn a_report_tells_means_over_ten_seconds() {
        let mut reported = Reported::default();
        reported.hear(&load(1, 10.0, 0.0, 0.1), 0);
        assert_eq!(reported.weight, 100.0);
        for second in 1..=10 {
            let calls = if second % 2 == 0 { 60.0 } else { 20.0 };
            reported.hear(&load(1, calls, 0.0, 0.1), second * 1_000_000);
        }
        assert!((reported.weight - 400.0).abs() < 1e-6, "{}", reported.weight);
    }

    #[test]
    fn a_weight_counts_after_the_blackout_and_until_it_expires() {
        let mut reported = Reported::default();
        reported.report(10.0, 0.0, 0.5, 1_000);
        assert_eq!(reported.weight(BLACKOUT_US), 0.0);
        assert_eq!(reported.weight(BLACKOUT_US + 1_000), 20.0);
        assert_eq!(reported.weight(EXPIRY_US + 999), 20.0);
        assert_eq!(reported.weight(EXPIRY_US + 1_000), 0.0);
        reported.report(10.0, 0.0, 0.5, EXPIRY_US + 2_000);
        assert_eq!(reported.weight(EXPIRY_US + 3_000), 0.0, "the blackout begins anew");
    }

    #[test]
    fn calls_follow_the_weights() {
        let mut dispatcher = Wrr::starting_at(0);
        dispatcher.list(&listed([1, 2]), 0);
        for second in 0..=11 {
            dispatcher.loads(&[load(1, 30.0, 0.0, 0.1), load(2, 10.0, 0.0, 0.1)], second * 1_000_000);
        }
        let mut rng = Rng::from_seed(1);
        let chosen: Vec<Choice> =
            (0..40).map(|_| dispatcher.choose(&World::default(), 12_000_000, &mut rng, &[])).collect();
        assert_eq!(chosen.iter().filter(|choice| **choice == Choice::Send(1)).count(), 30);
        assert_eq!(dispatcher.choose(&World::default(), 12_000_000, &mut rng, &[1]), Choice::Send(2));
    }
}
