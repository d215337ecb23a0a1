//! What is told of runs: a closed set of measures, per window of the measured time, over seeds. Latencies are in mean service
//! times, so that scenarios can be compared.

use serde::{Deserialize, Serialize};

use crate::{
    dispatch::Policy,
    estimate::{Estimate, gap_closed_percent},
    measure::{Figures, Run, Second},
};

/// Name of the whole measured time among its windows.
pub const ALL: &str = "all";

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Measure {
    /// Mean latency.
    Mean,
    /// Median latency.
    P50,
    /// The latency that 10 % exceed.
    P90,
    /// The latency that 1 % exceed.
    P99,
    /// The latency that 0.1 % exceed.
    P999,
    /// The latency that 0.01 % exceed.
    P9999,
    /// Latency over what the call alone would take; 1 % exceed it.
    SlowdownP99,
    /// Calls in flight that an attempt finds at its endpoint; 1 % exceed it.
    RifP99,
    /// The most it finds.
    RifMax,
    /// Utilisation of the fullest endpoint over the mean. Of the whole measured time alone.
    UtilizationMaxOverMean,
    /// Calls that failed, in percent.
    FailedPercent,
    /// Attempts to endpoints that the scenario's faults are about, in percent.
    MarkedPercent,
    /// Attempts per call.
    AttemptsPerCall,
    /// Probes per call.
    ProbesPerCall,
    /// Choices made only after asking, per hundred calls.
    AsksPercent,
    /// The part of the way from round robin to the pooled bound, at P99.
    GapClosedPercent,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Mean,
        Self::P50,
        Self::P90,
        Self::P99,
        Self::P999,
        Self::P9999,
        Self::SlowdownP99,
        Self::RifP99,
        Self::RifMax,
        Self::UtilizationMaxOverMean,
        Self::FailedPercent,
        Self::MarkedPercent,
        Self::AttemptsPerCall,
        Self::ProbesPerCall,
        Self::AsksPercent,
        Self::GapClosedPercent,
    ];

    /// The word, with its unit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "latency_service_times_mean",
            Self::P50 => "latency_service_times_p50",
            Self::P90 => "latency_service_times_p90",
            Self::P99 => "latency_service_times_p99",
            Self::P999 => "latency_service_times_p999",
            Self::P9999 => "latency_service_times_p9999",
            Self::SlowdownP99 => "slowdown_p99",
            Self::RifP99 => "rif_p99",
            Self::RifMax => "rif_max",
            Self::UtilizationMaxOverMean => "utilization_max_over_mean",
            Self::FailedPercent => "failed_percent",
            Self::MarkedPercent => "marked_percent",
            Self::AttemptsPerCall => "attempts_per_call",
            Self::ProbesPerCall => "probes_per_call",
            Self::AsksPercent => "asks_percent",
            Self::GapClosedPercent => "gap_closed_percent",
        }
    }

    /// Without any call that was answered there is none: 0 would be the best of all.
    fn is_of_answers(self) -> bool {
        match self {
            Self::Mean | Self::P50 | Self::P90 | Self::P99 | Self::P999 | Self::P9999 | Self::SlowdownP99 => true,
            Self::RifP99
            | Self::RifMax
            | Self::UtilizationMaxOverMean
            | Self::FailedPercent
            | Self::MarkedPercent
            | Self::AttemptsPerCall
            | Self::ProbesPerCall
            | Self::AsksPercent
            | Self::GapClosedPercent => false,
        }
    }

    fn of(self, figures: &Figures, service_time_us: f64) -> Option<f64> {
        if self.is_of_answers() && figures.latency_us.count() == 0 {
            return None;
        }
        let latency = |share| figures.latency_us.quantile(share) as f64 / service_time_us;
        let per = |part: u64, of: u64| part as f64 / of.max(1) as f64;
        let value = match self {
            Self::Mean => figures.latency_us.mean() / service_time_us,
            Self::P50 => latency(0.5),
            Self::P90 => latency(0.9),
            Self::P99 => latency(0.99),
            Self::P999 => latency(0.999),
            Self::P9999 => latency(0.999_9),
            Self::SlowdownP99 => figures.slowdown_milli.quantile(0.99) as f64 / 1e3,
            Self::RifP99 => figures.rif.quantile(0.99) as f64,
            Self::RifMax => figures.rif.max() as f64,
            Self::FailedPercent => 100.0 * per(figures.failed.sum(), figures.calls),
            Self::MarkedPercent => 100.0 * per(figures.attempts_marked, figures.attempts),
            Self::AttemptsPerCall => per(figures.attempts, figures.calls),
            Self::ProbesPerCall => per(figures.probes, figures.calls),
            Self::AsksPercent => 100.0 * per(figures.asks, figures.calls),
            // Not a matter of one policy's calls.
            Self::UtilizationMaxOverMean | Self::GapClosedPercent => return None,
        };
        Some(value)
    }
}

/// What is kept of a run: little enough for thousands of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Digest {
    /// The whole measured time, then each window, with its value of each measure that it has.
    pub windows: Vec<(String, Vec<(Measure, f64)>)>,
    /// Each second.
    pub timeline: Vec<Second>,
}

impl Digest {
    /// The essence of a run.
    pub fn of(run: &Run) -> Self {
        let service_time_us = run.service_time_us_mean as f64;
        let all = |figures: &Figures| -> Vec<(Measure, f64)> {
            Measure::ALL.into_iter().filter_map(|m| Some((m, m.of(figures, service_time_us)?))).collect()
        };
        let mut windows = vec![(ALL.to_owned(), all(&run.total))];
        windows.extend(run.windows.iter().map(|(name, figures)| (name.clone(), all(figures))));
        if !run.shares.is_empty() {
            let sum: f64 = run.shares.iter().map(crate::measure::Shares::utilization_max_over_mean).sum();
            windows[0].1.push((Measure::UtilizationMaxOverMean, sum / run.shares.len() as f64));
        }
        Self { windows, timeline: run.timeline.clone() }
    }

    /// One value.
    pub fn get(&self, window: &str, measure: Measure) -> Option<f64> {
        let (_, values) = self.windows.iter().find(|(name, _)| name == window)?;
        values.iter().find(|(of, _)| *of == measure).map(|(_, value)| *value)
    }
}

/// A policy in a scenario: what came of each seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Whose.
    pub policy: Policy,
    /// By seed, in their order.
    pub seeds: Vec<Digest>,
}

impl Cell {
    /// A measure over all seeds; `None` where it was not measured.
    pub fn estimate(&self, window: &str, measure: Measure) -> Option<Estimate> {
        let values: Option<Vec<f64>> = self.seeds.iter().map(|digest| digest.get(window, measure)).collect();
        values.filter(|values| !values.is_empty()).map(|values| Estimate::of(&values))
    }

    /// Names of its windows.
    pub fn windows(&self) -> impl Iterator<Item = &str> {
        self.seeds.first().into_iter().flat_map(|digest| digest.windows.iter().map(|(name, _)| name.as_str()))
    }
}

/// Adds to each cell of a scenario the part of the gap that it closes, where round robin and the bound are among them.
pub fn close_gaps(cells: &mut [Cell]) {
    let values = |policy, window: &str, cells: &[Cell]| -> Vec<Option<f64>> {
        let cell = cells.iter().find(|cell| cell.policy == policy);
        cell.into_iter().flat_map(|cell| &cell.seeds).map(|seed| seed.get(window, Measure::P99)).collect()
    };
    let windows: Vec<String> = cells.first().map_or(Vec::new(), |cell| cell.windows().map(str::to_owned).collect());
    for (at, window) in windows.iter().enumerate() {
        let (worst, best) = (values(Policy::RoundRobin, window, cells), values(Policy::Bound, window, cells));
        for cell in cells.iter_mut() {
            for ((digest, worst), best) in cell.seeds.iter_mut().zip(&worst).zip(&best) {
                if let (Some(worst), Some(own), Some(best)) = (*worst, digest.get(window, Measure::P99), *best) {
                    let closed = gap_closed_percent(worst, own, best);
                    digest.windows[at].1.push((Measure::GapClosedPercent, closed));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Failed, Shares};

    fn run(policy: Policy, latency_us: u64) -> Run {
        let mut figures =
            Figures { calls: 4, failed: Failed { overload: 1, ..Failed::default() }, ..Figures::default() };
        (figures.attempts, figures.attempts_marked, figures.probes, figures.asks) = (5, 1, 2, 1);
        figures.latency_us.record(latency_us);
        Run {
            scenario: "x".to_owned(),
            policy,
            seed: 1,
            service_time_us_mean: 100,
            windows: vec![("w".to_owned(), figures.clone())],
            total: figures,
            timeline: vec![Second::default()],
            shares: vec![Shares { attempts: vec![1, 1], busy_millionth: vec![Some(300_000), Some(500_000)] }],
            lists: 0,
            events: 0,
        }
    }

    #[test]
    fn measures_come_in_service_times_and_percent() {
        let digest = Digest::of(&run(Policy::Random, 250));
        let get = |measure| digest.get(ALL, measure);
        assert_eq!(get(Measure::P99), Some(2.5));
        assert_eq!(get(Measure::FailedPercent), Some(25.0));
        assert_eq!(get(Measure::MarkedPercent), Some(20.0));
        assert_eq!(get(Measure::AttemptsPerCall), Some(1.25));
        assert_eq!(get(Measure::ProbesPerCall), Some(0.5));
        assert_eq!(get(Measure::UtilizationMaxOverMean), Some(1.25));
        assert_eq!(digest.get("w", Measure::UtilizationMaxOverMean), None);
        assert_eq!((get(Measure::GapClosedPercent), digest.get("nope", Measure::P99)), (None, None));
    }

    #[test]
    fn where_nothing_was_answered_there_is_no_latency() {
        let mut run = run(Policy::Random, 250);
        run.total.latency_us.clear();
        let digest = Digest::of(&run);
        assert_eq!((digest.get(ALL, Measure::P99), digest.get(ALL, Measure::SlowdownP99)), (None, None));
        assert_eq!(digest.get("w", Measure::P99), Some(2.5));
        assert_eq!(digest.get(ALL, Measure::AttemptsPerCall), Some(1.25));
    }

    #[test]
    fn gaps_are_closed_seed_by_seed_and_window_by_window() {
        let cell = |policy, us: [u64; 2]| Cell { policy, seeds: us.map(|us| Digest::of(&run(policy, us))).to_vec() };
        let mut cells =
            [cell(Policy::Bound, [100, 200]), cell(Policy::P2c, [200, 250]), cell(Policy::RoundRobin, [300, 300])];
        close_gaps(&mut cells);
        for window in [ALL, "w"] {
            let closed = |at: usize| cells[at].estimate(window, Measure::GapClosedPercent).unwrap().mean;
            assert_eq!([closed(0), closed(1), closed(2)], [100.0, 50.0, 0.0]);
        }
        let mut alone = [cell(Policy::P2c, [200, 250])];
        close_gaps(&mut alone);
        assert_eq!(alone[0].estimate(ALL, Measure::GapClosedPercent), None);
        assert_eq!(alone[0].estimate(ALL, Measure::P99).map(|estimate| estimate.mean), Some(2.25));
    }
}
