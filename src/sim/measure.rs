//! What came of a run. Calls count from when they arrive at their client until the answer is there, or they are given up;
//! those that arrive in the measured time are measured.

use serde::{Deserialize, Serialize};

use crate::dispatch::Policy;

mod histogram;
mod meter;

pub use histogram::Histogram;
pub(crate) use meter::{Ended, Meter, Reading};

/// One second, microseconds.
pub(crate) const SECOND_US: u64 = 1_000_000;

/// After the measured time a run goes on, so that calls are not seen to end sooner than they do: until so few of the measured
/// ones are open that no quantile up to 99.9 % can tell, or for as long as was measured and at most so long. Those then count
/// with the time that they took so far.
const OPEN_SHARE: u64 = 100_000;
const OVERTIME_US_MAX: u64 = 30_000_000;

/// What came of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Of which scenario.
    pub scenario: String,
    /// By which policy.
    pub policy: Policy,
    /// With which seed.
    pub seed: u64,
    /// Mean work of a call, the unit of latencies.
    pub service_time_us_mean: u64,
    /// Over the whole measured time.
    pub total: Figures,
    /// Over each of the scenario's windows, by their names.
    pub windows: Vec<(String, Figures)>,
    /// Each second of the measured time.
    pub timeline: Vec<Second>,
    /// Shares and utilisations over stretches of `share_window_ms` of the measured time, whole ones alone.
    pub shares: Vec<Shares>,
    /// Lists that clients got in the measured time.
    pub lists: u64,
    /// Events that the engine went through, warm-up included.
    pub events: u64,
}

/// Figures over a stretch of time. A call belongs to the stretch in which it arrived.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// Calls that arrived and ended.
    pub calls: u64,
    /// Those that failed, by how.
    pub failed: Failed,
    /// Attempts on the wire.
    pub attempts: u64,
    /// Attempts to those endpoints that a fault of the scenario is about.
    pub attempts_marked: u64,
    /// What calls that went well took, microseconds.
    pub latency_us: Histogram,
    /// The same over what the call alone would take on a free core of speed 1, thousandths.
    pub slowdown_milli: Histogram,
    /// Calls in flight at the endpoint that each attempt found there, without itself.
    pub rif: Histogram,
    /// Choices made only after asking.
    pub asks: u64,
    /// Probes sent in all.
    pub probes: u64,
}

/// Calls that failed, by how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failed {
    /// By the endpoint's fault.
    pub endpoint: u64,
    /// Refused since it had too much to do.
    pub overload: u64,
    /// Time ran out.
    pub deadline: u64,
    /// There was nobody to send it to.
    pub nobody: u64,
}

impl Failed {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.endpoint + self.overload + self.deadline + self.nobody
    }
}

/// One second.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Second {
    /// Calls that arrived in it.
    pub calls: u64,
    /// Those of them that failed.
    pub failed: u64,
    /// Attempts sent in it.
    pub attempts: u64,
    /// To endpoints that a fault of the scenario is about.
    pub attempts_marked: u64,
    /// Of those that ended well in it, microseconds; 0 without any.
    pub latency_us_p99: u64,
}

/// Who got how much over a stretch of time, by the endpoints' numbers.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shares {
    /// Attempts that reached each.
    pub attempts: Vec<u64>,
    /// Mean share of its cores that was busy, millionths; `None` for one that was not there all the time.
    pub busy_millionth: Vec<Option<u64>>,
}

impl Shares {
    /// Utilisation of the fullest over the mean, of those that were there all the time; 1 where nothing happened.
    pub fn utilization_max_over_mean(&self) -> f64 {
        let known: Vec<f64> = self.busy_millionth.iter().flatten().map(|busy| *busy as f64).collect();
        let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
        let max = known.iter().copied().fold(0.0, f64::max);
        if mean > 0.0 { max / mean } else { 1.0 }
    }
}
