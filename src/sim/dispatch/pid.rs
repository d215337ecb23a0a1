//! Weights by feedback: whoever is used less than the mean gets more. The shape of Dropbox's Robinhood ("What's new with
//! Robinhood", 2024: a controller per endpoint, setpoint the mean utilisation, output a change of its weight) with the numbers
//! of gRPC's proposal A80 (pull request 430). All clients hear the same reports and so come to the same weights, as if a
//! balancer had sent them. A80's part for changes of the distance is left out, to its good: utilisations of a few seconds are
//! mostly chance, and with it p99 was 20 in place of 15 in the headline, 82 in place of 19 with sparse clients, 88 in place of 24
//! where half of the fleet is twice as fast.

use lookaside_sdk::picker::Rng;

use super::{Choice, Dispatcher, Listed, Load, known::Known, stride::Stride};
use crate::world::World;

/// What a distance of 1 from the mean changes per second (A80).
const PROPORTIONAL: f64 = 0.1;
/// No weight is more than so many times that of a beginner, or less than that part of it (A80).
const WEIGHT_MAX: f64 = 10.0;
/// Weights change so often, by the mean utilisation since the last change; A80 leaves both to whoever runs it.
const PERIOD_US: u64 = 5_000_000;

/// One client that hears from each endpoint.
#[derive(Debug, Default)]
pub(super) struct Pid {
    known: Known<Controlled>,
    stride: Stride,
    /// When weights changed last.
    changed_us: u64,
}

#[derive(Debug)]
struct Controlled {
    weight: f64,
    /// Sum of utilisations since the last change, and how many.
    heard: (f64, u32),
}

impl Default for Controlled {
    fn default() -> Self {
        Self { weight: 1.0, heard: (0.0, 0) }
    }
}

impl Controlled {
    fn report(&mut self, utilization: f64) {
        self.heard = (self.heard.0 + utilization, self.heard.1 + 1);
    }

    fn utilization(&self) -> Option<f64> {
        let (sum, count) = self.heard;
        (count > 0).then(|| sum / f64::from(count))
    }

    fn control(&mut self, mean: f64, seconds: f64) {
        // A report that is missing changes nothing: whoever is silent keeps its weight.
        let Some(utilization) = self.utilization() else { return };
        self.heard = (0.0, 0);
        let signal = PROPORTIONAL * (mean - utilization) * seconds;
        let factor = if signal >= 0.0 { 1.0 + signal } else { 1.0 / (1.0 - signal) };
        self.weight = (self.weight * factor).clamp(1.0 / WEIGHT_MAX, WEIGHT_MAX);
    }
}

impl Pid {
    /// A client that begins its circle at this turn.
    pub(super) fn starting_at(turn: u64) -> Self {
        Self { stride: Stride::starting_at(turn), ..Self::default() }
    }

    fn weigh(&mut self) {
        self.stride.weigh(self.known.states().map(|controlled| controlled.weight));
    }
}

impl Dispatcher for Pid {
    fn list(&mut self, list: &[Listed], _now_us: u64) {
        self.known.list(list);
        self.weigh();
    }

    fn choose(&mut self, _world: &World, _now_us: u64, _rng: &mut Rng, tried: &[u32]) -> Choice {
        let next = self.stride.next(|at| tried.contains(&self.known.endpoint(at)));
        next.map_or(Choice::Nobody, |at| Choice::Send(self.known.endpoint(at)))
    }

    fn wants_loads(&self) -> bool {
        true
    }

    fn loads(&mut self, loads: &[Load], now_us: u64) {
        for load in loads {
            if let Some(controlled) = self.known.find(load.endpoint) {
                controlled.report(load.utilization);
            }
        }
        let past_us = now_us.saturating_sub(self.changed_us);
        let known: Vec<f64> = self.known.states().filter_map(Controlled::utilization).collect();
        if past_us < PERIOD_US || known.is_empty() {
            return;
        }
        self.changed_us = now_us;
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        (0..self.known.usable()).for_each(|at| self.known.state(at).control(mean, past_us as f64 / 1e6));
        self.weigh();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::known::listed;

    #[test]
    fn who_is_used_less_than_the_mean_gains_a_tenth_of_the_distance_per_second() {
        let mut controlled = Controlled::default();
        let mut control = |heard: &[f64], mean| {
            heard.iter().for_each(|utilization| controlled.report(*utilization));
            controlled.control(mean, 1.0);
            controlled.weight
        };
        assert!((control(&[0.4, 0.6], 0.7) - 1.02).abs() < 1e-9);
        assert!((control(&[0.5], 0.7) - 1.02 * 1.02).abs() < 1e-9, "the distance is as it was");
        assert!((control(&[], 0.9) - 1.02 * 1.02).abs() < 1e-9, "nothing was heard");
        assert!((control(&[0.5], 0.3) - 1.02).abs() < 1e-9, "and as much less above it");
    }

    #[test]
    fn weights_stay_within_a_factor_of_ten() {
        let mut dispatcher = Pid::starting_at(0);
        dispatcher.list(&listed([1, 2]), 0);
        let load =
            |endpoint, utilization| Load { endpoint, calls_per_second: 1.0, errors_per_second: 0.0, utilization };
        for second in 1..=200 {
            dispatcher.loads(&[load(1, 1.0), load(2, 0.0)], second * 1_000_000);
        }
        let weights: Vec<f64> = dispatcher.known.states().map(|controlled| controlled.weight).collect();
        assert_eq!(weights, [0.1, 10.0]);
        let mut rng = Rng::from_seed(1);
        let chosen = (0..1_010).map(|_| dispatcher.choose(&World::default(), 0, &mut rng, &[]));
        assert_eq!(chosen.filter(|choice| *choice == Choice::Send(1)).count(), 10);
    }
}
