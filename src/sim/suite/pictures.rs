//! Which pictures are drawn: of each scenario the p99 of every policy, over time where something happens in it; and p99 over
//! loads, numbers of clients and sizes of fleets.

use super::{File, Played, called};
use crate::{
    digest::{ALL, Cell, Measure},
    dispatch::Policy,
    measure::Second,
    plot::{Bar, Line, bars, lines},
    scenario::Scenario,
};

const LATENCY: &str = "latency at p99, in mean service times, with 95 % intervals over seeds";
const LATENCY_LINES: &str = "latency at p99, in mean service times";

/// A name, a title, and scenarios by the place where they stand.
type Ramp = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Scenarios that differ in one thing alone.
const RAMPS: [Ramp; 3] = [
    (
        "load",
        "p99 by load, 100 endpoints, 100 clients",
        &[("0.5", "load_05"), ("0.7", "load_07"), ("0.8", "load_08"), ("0.9", "headline"), ("0.95", "load_095")],
    ),
    (
        "clients",
        "p99 by number of clients, 100 endpoints, load 0.9",
        &[
            ("1", "clients_1"),
            ("10", "clients_10"),
            ("100", "headline"),
            ("1,000", "sparse_1000"),
            ("5,000", "sparse_5000"),
            ("10,000", "clients_10000"),
        ],
    ),
    (
        "fleet",
        "p99 by number of endpoints, as many clients, load 0.9",
        &[("10", "endpoints_10"), ("100", "headline"), ("1,000", "endpoints_1000")],
    ),
];

/// Those over several scenarios.
pub(super) fn over(played: &[Played]) -> Vec<File> {
    let mut files = Vec::new();
    for (by, title, places) in RAMPS {
        let of = |name: &str| played.iter().find(|played| played.scenario.name == name);
        let there: Vec<(&str, &Played)> = places.iter().filter_map(|(place, name)| Some((*place, of(name)?))).collect();
        if there.len() < 2 {
            continue;
        }
        let line = |policy: Policy| Line {
            name: called(policy).to_owned(),
            values: there.iter().map(|(_, played)| p99(played.cell(policy)?)).collect(),
            colour: colour(policy),
        };
        let names: Vec<String> = there.iter().map(|(place, _)| (*place).to_owned()).collect();
        let policies = Policy::ALL.into_iter().filter(|policy| is_drawn(*policy));
        let drawn: Vec<Line> = policies.map(line).collect();
        files.push(File { name: format!("by-{by}.svg"), text: lines(title, LATENCY_LINES, &names, &drawn) });
    }
    files
}

/// Those of one scenario.
pub(super) fn of(played: &Played) -> Vec<File> {
    let Scenario { name, title, .. } = &played.scenario;
    let mut files = Vec::new();
    let bar = |cell: &Cell| {
        let value = cell.estimate(ALL, Measure::P99)?;
        Some(Bar { name: called(cell.policy).to_owned(), value, colour: colour(cell.policy) })
    };
    let drawn: Vec<Bar> = played.shown().filter_map(bar).collect();
    files.push(File { name: format!("p99-{name}.svg"), text: bars(&format!("{name}: {title}"), LATENCY, &drawn) });
    if something_happens(&played.scenario) {
        let unit = played.scenario.service_time_us_mean as f64;
        let over_time = |value: fn(&Second) -> Option<f64>| -> Vec<Line> {
            let line = |cell: &Cell| Line {
                name: called(cell.policy).to_owned(),
                values: timeline(cell, value),
                colour: colour(cell.policy),
            };
            played.shown().filter(|cell| is_timed(cell.policy)).map(line).collect()
        };
        let mut latencies = over_time(|second| (second.latency_us_p99 > 0).then_some(second.latency_us_p99 as f64));
        latencies.iter_mut().flat_map(|line| line.values.iter_mut().flatten()).for_each(|us| *us /= unit);
        let seconds: Vec<String> =
            (0..played.scenario.measured_ms / 1_000).map(|second| format!("{second} s")).collect();
        let text = lines(&format!("{name}: each second"), LATENCY_LINES, &seconds, &latencies);
        files.push(File { name: format!("time-{name}.svg"), text });
        let failures =
            over_time(|second| (second.calls > 0).then(|| 100.0 * second.failed as f64 / second.calls as f64));
        if failures.iter().flat_map(|line| line.values.iter().flatten()).any(|percent| *percent > 0.1) {
            let text = lines(&format!("{name}: failed calls, each second"), "percent of calls", &seconds, &failures);
            files.push(File { name: format!("failed-{name}.svg"), text });
        }
    }
    files
}

/// Whether the measured time of a scenario is not all alike.
fn something_happens(scenario: &Scenario) -> bool {
    !scenario.load_steps.is_empty() || scenario.faults.iter().any(|fault| fault.at_ms >= 0)
}

/// The mean over seeds of each second.
fn timeline(cell: &Cell, value: fn(&Second) -> Option<f64>) -> Vec<Option<f64>> {
    let seconds = cell.seeds.iter().map(|digest| digest.timeline.len()).min().unwrap_or(0);
    let mean = |at: usize| {
        let values: Vec<f64> = cell.seeds.iter().filter_map(|digest| value(&digest.timeline[at])).collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    (0..seconds).map(mean).collect()
}

fn p99(cell: &Cell) -> Option<f64> {
    cell.estimate(ALL, Measure::P99).map(|p99| p99.mean)
}

/// Ten lines at most can be told apart; of the emulation of Prequal the setting that suits a fleet of equals.
fn is_drawn(policy: Policy) -> bool {
    match policy {
        Policy::Oracle | Policy::Random | Policy::Prequal60 | Policy::Prequal84 => false,
        Policy::Bound | Policy::Lookaside | Policy::ProbingP2c | Policy::Prequal0 | Policy::PeakEwma => true,
        Policy::P2c | Policy::Wrr | Policy::Pid | Policy::RoundRobin => true,
    }
}

/// Lines that go up and down each second: fewer.
fn is_timed(policy: Policy) -> bool {
    match policy {
        Policy::Lookaside | Policy::Prequal0 | Policy::Prequal60 | Policy::Prequal84 | Policy::P2c => true,
        Policy::RoundRobin | Policy::Wrr => true,
        Policy::Bound | Policy::Oracle | Policy::ProbingP2c | Policy::PeakEwma | Policy::Pid | Policy::Random => false,
    }
}

/// The same policy has the same colour everywhere.
fn colour(policy: Policy) -> usize {
    match policy {
        Policy::Lookaside => 0,
        Policy::Prequal0 | Policy::Prequal60 | Policy::Prequal84 => 1,
        Policy::ProbingP2c => 2,
        Policy::PeakEwma => 3,
        Policy::P2c => 4,
        Policy::Pid => 5,
        Policy::Wrr => 6,
        Policy::RoundRobin => 7,
        Policy::Bound | Policy::Oracle => 8,
        Policy::Random => 9,
    }
}
