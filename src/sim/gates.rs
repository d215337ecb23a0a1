//! What Lookaside promises of its balancing, each as a scenario, a measure of it and a bar. The mean over seeds is held against
//! the bar; the interval says how sure it is.

use crate::{
    batch::{Job, play, threads},
    digest::{ALL, Cell, Digest, Measure, close_gaps},
    dispatch::Policy,
    estimate::Estimate,
    measure::Second,
    scenario::{Error, Scenario, builtin},
};

/// Seeds that a gate is measured with.
pub const SEEDS: u64 = 10;

/// Which side of the bar is good.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// At least so much.
    AtLeast(f64),
    /// At most so much.
    AtMost(f64),
    /// Less than so much.
    Below(f64),
}

impl Bar {
    /// Where it is.
    pub fn at(self) -> f64 {
        match self {
            Self::AtLeast(at) | Self::AtMost(at) | Self::Below(at) => at,
        }
    }

    /// As people write it.
    pub fn sign(self) -> &'static str {
        match self {
            Self::AtLeast(_) => ">=",
            Self::AtMost(_) => "<=",
            Self::Below(_) => "<",
        }
    }

    /// Whether a value is good. One that is no number never is.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(at) => value >= at,
            Self::AtMost(at) => value <= at,
            Self::Below(at) => value < at,
        }
    }
}

/// One promise.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// What it is called, with its unit.
    pub name: &'static str,
    /// The scenario it is measured in.
    pub scenario: &'static str,
    /// What must hold.
    pub bar: Bar,
    /// The value of one seed.
    measure: fn(&Seen<'_>) -> Option<f64>,
}

/// What a gate is measured by: one seed of its scenario.
struct Seen<'a> {
    own: &'a Digest,
    bound: Option<&'a Digest>,
}

impl Seen<'_> {
    fn get(&self, window: &str, measure: Measure) -> Option<f64> {
        self.own.get(window, measure)
    }

    /// A measure over itself in another window.
    fn ratio(&self, window: &str, to: &str, measure: Measure) -> Option<f64> {
        Some(self.get(window, measure)? / self.get(to, measure)?)
    }
}

/// All of them.
pub const GATES: [Gate; 17] = [
    gate("headline_gap_closed_percent", "headline", Bar::AtLeast(87.0), gap_closed),
    gate("headline_probes_per_call", "headline", Bar::AtMost(0.2), |seen| seen.get(ALL, Measure::ProbesPerCall)),
    gate("sparse_1000_gap_closed_percent", "sparse_1000", Bar::AtLeast(85.0), gap_closed),
    // Two for each call that has no word of load to go by are the most there may be, those on the side included.
    gate("sparse_1000_probes_per_call", "sparse_1000", Bar::AtMost(2.0), |seen| seen.get(ALL, Measure::ProbesPerCall)),
    gate("sparse_5000_gap_closed_percent", "sparse_5000", Bar::AtLeast(88.0), gap_closed),
    gate("sparse_5000_probes_per_call", "sparse_5000", Bar::AtMost(2.0), |seen| seen.get(ALL, Measure::ProbesPerCall)),
    gate("slow_half_p99_over_bound", "slow_half", Bar::AtMost(1.25), |seen| {
        Some(seen.get(ALL, Measure::P99)? / seen.bound?.get(ALL, Measure::P99)?)
    }),
    // Two of a hundred: 2 % of calls fail where nobody avoids them.
    gate("sinkhole_failures_avoided_percent", "sinkhole", Bar::AtLeast(98.0), |seen| {
        Some(100.0 - 100.0 * seen.get("from_onset", Measure::FailedPercent)? / 2.0)
    }),
    gate("sinkhole_share_percent_in_second_2", "sinkhole", Bar::Below(0.1), |seen| {
        let second = seen.own.timeline.get(1)?;
        Some(100.0 * second.attempts_marked as f64 / second.attempts.max(1) as f64)
    }),
    gate("sinkhole_share_percent_after_1_s", "sinkhole", Bar::Below(0.1), |seen| {
        seen.get("after_1s", Measure::MarkedPercent)
    }),
    // One of a hundred: 1 % is fair.
    gate("liar_share_over_fair", "liar", Bar::AtMost(2.0), |seen| seen.get(ALL, Measure::MarkedPercent)),
    gate("even_utilization_max_over_mean", "even", Bar::AtMost(1.03), |seen| {
        seen.get(ALL, Measure::UtilizationMaxOverMean)
    }),
    gate("retry_storm_attempts_per_call", "retry_storm", Bar::AtMost(1.11), |seen| {
        let of = |window| seen.get(window, Measure::AttemptsPerCall);
        Some(of("storm")?.max(of("from_onset")?))
    }),
    gate("retry_storm_back_after_s", "retry_storm", Bar::AtMost(60.0), |seen| {
        Some(back_after_s(&seen.own.timeline, 20, 30))
    }),
    gate("cold_start_p99_over_steady", "cold_start", Bar::AtMost(1.1), |seen| {
        seen.ratio("cold", "steady", Measure::P99)
    }),
    gate("balancer_gone_p99_over_before", "balancer_gone", Bar::AtMost(1.05), |seen| {
        seen.ratio("gone", "before", Measure::P99)
    }),
    gate("balancer_gone_failed_percent", "balancer_gone", Bar::AtMost(0.0), |seen| {
        seen.get("gone", Measure::FailedPercent)
    }),
];

const fn gate(name: &'static str, scenario: &'static str, bar: Bar, measure: fn(&Seen<'_>) -> Option<f64>) -> Gate {
    Gate { name, scenario, bar, measure }
}

fn gap_closed(seen: &Seen<'_>) -> Option<f64> {
    seen.get(ALL, Measure::GapClosedPercent)
}

/// Seconds of which the mean counts as one that is back.
const BACK_S: usize = 5;

/// How long after second `to` all is as it was before second `from`: over five seconds the p99 within a tenth of what it was,
/// and next to no call failed. The rest of the measured time where it never was.
fn back_after_s(timeline: &[Second], from: usize, to: usize) -> f64 {
    let p99 = |seconds: &[Second]| {
        seconds.iter().map(|second| second.latency_us_p99 as f64).sum::<f64>() / seconds.len().max(1) as f64
    };
    let usual = p99(&timeline[..from.min(timeline.len())]);
    let after = &timeline[to.min(timeline.len())..];
    let is_back = |seconds: &[Second]| {
        let sum = |of: fn(&Second) -> u64| seconds.iter().map(of).sum::<u64>();
        p99(seconds) <= usual * 1.1 && sum(|second| second.failed) * 1_000 <= sum(|second| second.calls)
    };
    after.windows(BACK_S).position(is_back).unwrap_or(after.len()) as f64
}

/// How a gate was held.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Which.
    pub gate: Gate,
    /// Over seeds.
    pub value: Estimate,
    /// Whether the mean is on the good side of the bar.
    pub holds: bool,
}

/// Measures some gates, with the seeds from 1 on. `done` hears after each run how many there are, and how many there will be.
pub fn measure(gates: &[Gate], seeds: u64, done: impl Fn(usize, usize) + Sync) -> Result<Vec<Held>, Error> {
    let mut names: Vec<&str> = gates.iter().map(|gate| gate.scenario).collect();
    names.dedup();
    let scenarios: Vec<Scenario> = names.iter().map(|name| builtin(name)).collect::<Result<_, _>>()?;
    let mut jobs = Vec::new();
    for (scenario, name) in scenarios.iter().zip(&names) {
        for policy in policies(name) {
            jobs.extend((1..=seeds).map(|seed| Job { scenario, policy: *policy, seed }));
        }
    }
    let all = jobs.len();
    let mut digests = play(&jobs, threads(), |run| Digest::of(&run), |count| done(count, all)).into_iter();
    let mut held = Vec::new();
    for name in names {
        let mut cells: Vec<Cell> = Vec::new();
        for policy in policies(name) {
            cells.push(Cell { policy: *policy, seeds: digests.by_ref().take(seeds as usize).collect() });
        }
        close_gaps(&mut cells);
        held.extend(gates.iter().filter(|gate| gate.scenario == name).map(|gate| hold(gate, &cells)));
    }
    Ok(held)
}

fn hold(gate: &Gate, cells: &[Cell]) -> Held {
    let of =
        |policy, seed: usize| cells.iter().find(|cell| cell.policy == policy).and_then(|cell| cell.seeds.get(seed));
    let count = cells.first().map_or(0, |cell| cell.seeds.len());
    let values: Option<Vec<f64>> = (0..count)
        .map(|seed| {
            let own = of(Policy::Lookaside, seed)?;
            (gate.measure)(&Seen { own, bound: of(Policy::Bound, seed) }).filter(|value| value.is_finite())
        })
        .collect();
    // What could not be measured does not hold.
    let value = values.map_or(Estimate { mean: f64::NAN, half: 0.0, count: 0 }, |values| Estimate::of(&values));
    Held { gate: *gate, value, holds: gate.bar.holds(value.mean) }
}

/// Those that a scenario's gates are measured by.
fn policies(scenario: &str) -> &'static [Policy] {
    match scenario {
        "headline" | "sparse_1000" | "sparse_5000" => &[Policy::Lookaside, Policy::RoundRobin, Policy::Bound],
        "slow_half" => &[Policy::Lookaside, Policy::Bound],
        _ => &[Policy::Lookaside],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gate_is_measured_in_a_built_in_scenario_that_has_its_windows() {
        for gate in GATES {
            let scenario = builtin(gate.scenario).unwrap();
            let has = |window: &str| scenario.windows.iter().any(|w| w.name == window);
            match gate.scenario {
                "sinkhole" => assert!(has("from_onset") && has("after_1s")),
                "retry_storm" => assert!(has("storm") && has("from_onset")),
                "cold_start" => assert!(has("steady") && has("cold")),
                "balancer_gone" => assert!(has("before") && has("gone")),
                _ => assert!(scenario.windows.is_empty(), "{}", gate.scenario),
            }
            assert!(scenario.warm_up_ms >= 60_000, "{}", gate.scenario);
        }
    }

    #[test]
    fn a_value_that_is_no_number_is_never_good() {
        assert!(Bar::AtLeast(1.0).holds(1.0) && Bar::AtMost(1.0).holds(1.0) && !Bar::Below(1.0).holds(1.0));
        for bar in [Bar::AtLeast(0.0), Bar::AtMost(0.0), Bar::Below(0.0)] {
            assert!(!bar.holds(f64::NAN));
        }
        let nothing = hold(&GATES[0], &[]);
        assert!(!nothing.holds);
    }

    #[test]
    fn a_fleet_is_back_when_five_seconds_are_as_before() {
        let second = |p99, failed| Second { calls: 1_000, failed, latency_us_p99: p99, ..Second::default() };
        let mut timeline = vec![second(100, 0); 30];
        timeline.extend([second(900, 300); 10]);
        timeline.extend([second(500, 100), second(200, 0), second(105, 2), second(105, 0)]);
        timeline.extend([second(105, 0); 10]);
        // A fifth second of 200 is too much; 2 of 5,000 failed calls are not.
        assert_eq!(back_after_s(&timeline, 30, 40), 2.0);
        assert_eq!(back_after_s(&timeline[..42], 30, 40), 2.0, "never: all that was left");
        assert_eq!(back_after_s(&[], 30, 40), 0.0);
    }
}
