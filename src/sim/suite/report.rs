//! The report of the study, as Markdown.

use std::fmt::Write as _;

use super::{File, Played, called};
use crate::{
    digest::{ALL, Cell, Measure},
    dispatch::Policy,
};

/// Columns of a scenario's table.
const COLUMNS: [(&str, Measure, usize); 10] = [
    ("p50", Measure::P50, 2),
    ("p99", Measure::P99, 2),
    ("p99.9", Measure::P999, 2),
    ("slowdown p99", Measure::SlowdownP99, 1),
    ("in flight p99", Measure::RifP99, 0),
    ("fullest / mean", Measure::UtilizationMaxOverMean, 3),
    ("failed %", Measure::FailedPercent, 3),
    ("attempts / call", Measure::AttemptsPerCall, 3),
    ("probes / call", Measure::ProbesPerCall, 2),
    ("gap closed %", Measure::GapClosedPercent, 1),
];

const HEAD: &str = "# Ways to balance, simulated

Written by `lookaside simulate suite`; the same version gives the same bytes. Latencies are in mean service times, over all
calls that arrive in the measured time and are answered; the network is in them, and so is the time that probes take. After
± stands half the width of the 95 % interval over seeds (Student's t). What is measured is in `results.csv`, all of it.

| policy | is |
|---|---|
| pooled bound | one queue for all cores of the fleet, fastest first, without its faults: no policy can beat it where cores are alike; where some are slow, one that leaves those idle can, a little |
| oracle | the endpoint that truly has least to do per capacity, known without delay |
| Lookaside | the picker of the SDK and the balancer's own table, reports, lists and outcomes with their delays |
| probing P2C | two endpoints at random are asked before every call (Mitzenmacher) |
| Prequal* | **an emulation** built from the paper's rules (Wydrowski and others, NSDI 2024), without its unpublished heuristics against endpoints that fail fast; of Q 0, 0.6 and 0.84 the one with the best p99 here |
| Peak-EWMA | two at random, latency times calls in flight (Finagle, tower) |
| P2C, own calls | two at random, the one with fewer calls of this client (Envoy and gRPC `least_request`) |
| WRR (A58) | turns by calls per second over utilisation, as each endpoint reports every 10 s (gRPC) |
| PID | turns by weights that feedback moves towards equal utilisation (Robinhood's shape, numbers of gRPC's proposal A80) |
| round robin, random | what they say |

All but Lookaside get lists of endpoints that pass checks, tell the balancer nothing, and repeat failed calls, where a scenario
allows that, without a budget. *Gap closed* is the part of the way from round robin to the pooled bound, at p99, seed by seed.
Calls that are open for more than 30 s at the end of a run count with the time that they took so far: where queues grow without
end, so would the figures, with a longer run.
";

/// Writes it.
pub(super) fn write(played: &[Played], pictures: &[File]) -> String {
    let mut text = HEAD.to_owned();
    summary(&mut text, played);
    for picture in pictures.iter().filter(|picture| picture.name.starts_with("by-")) {
        show(&mut text, picture);
    }
    for played in played {
        scenario(&mut text, played, pictures);
    }
    text
}

/// p99 of all policies in all scenarios.
fn summary(text: &mut String, played: &[Played]) {
    let columns: Vec<(&str, &[Policy])> = vec![
        ("bound", &[Policy::Bound]),
        ("oracle", &[Policy::Oracle]),
        ("**Lookaside**", &[Policy::Lookaside]),
        ("probing P2C", &[Policy::ProbingP2c]),
        ("Prequal*", &[Policy::Prequal0, Policy::Prequal60, Policy::Prequal84]),
        ("Peak-EWMA", &[Policy::PeakEwma]),
        ("P2C", &[Policy::P2c]),
        ("WRR", &[Policy::Wrr]),
        ("PID", &[Policy::Pid]),
        ("round robin", &[Policy::RoundRobin]),
        ("random", &[Policy::Random]),
    ];
    text.push_str("\n## All scenarios: p99\n\n| scenario |");
    columns.iter().for_each(|(name, _)| _ = write!(text, " {name} |"));
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns.len()));
    for played in played {
        let name = &played.scenario.name;
        let _ = write!(text, "| [{name}](#{name}) |");
        for (_, policies) in &columns {
            let cell = played.shown().find(|cell| policies.contains(&cell.policy));
            let value = cell.and_then(|cell| cell.estimate(ALL, Measure::P99));
            let value = value.map_or("-".to_owned(), |value| {
                if value.mean < 99.95 { format!("{:.2}", value.mean) } else { format!("{:.0}", value.mean) }
            });
            let strong = if policies.contains(&Policy::Lookaside) { "**" } else { "" };
            let _ = write!(text, " {strong}{value}{strong} |");
        }
        text.push('\n');
    }
}

fn scenario(text: &mut String, played: &Played, pictures: &[File]) {
    let (name, title) = (&played.scenario.name, &played.scenario.title);
    let _ = writeln!(
        text,
        "\n## {name}\n\n{title}; {} seeds, {} s measured after {} s.\n",
        played.seeds,
        played.scenario.measured_ms / 1_000,
        played.scenario.warm_up_ms / 1_000
    );
    text.push_str("| policy |");
    let has = |measure| played.cells.iter().any(|cell| cell.estimate(ALL, measure).is_some());
    let columns: Vec<_> = COLUMNS.into_iter().filter(|(_, measure, _)| has(*measure)).collect();
    columns.iter().for_each(|(name, ..)| _ = write!(text, " {name} |"));
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(columns.len()));
    for cell in played.shown() {
        let _ = write!(text, "| {} |", called(cell.policy));
        for (_, measure, digits) in &columns {
            let value = cell.estimate(ALL, *measure);
            let value = value.map_or("-".to_owned(), |value| {
                if value.half == 0.0 {
                    format!("{:.digits$}", value.mean)
                } else {
                    format!("{:.digits$} ±{:.digits$}", value.mean, value.half)
                }
            });
            let _ = write!(text, " {value} |");
        }
        text.push('\n');
    }
    windows(text, played);
    let own = |picture: &&File| picture.name.split_once('-').is_some_and(|(_, rest)| rest == format!("{name}.svg"));
    pictures.iter().filter(own).for_each(|picture| show(text, picture));
}

/// Stretches of the measured time: p99, failed calls, calls to those endpoints that something happens to.
fn windows(text: &mut String, played: &Played) {
    let names: Vec<&str> =
        played.cells.first().map_or(Vec::new(), |cell| cell.windows().filter(|name| *name != ALL).collect());
    if names.is_empty() {
        return;
    }
    text.push_str("\nBy stretches of time, p99 / failed % / share of the endpoints concerned %:\n\n| policy |");
    names.iter().for_each(|name| _ = write!(text, " {name} |"));
    let _ = writeln!(text, "\n|---|{}", "---:|".repeat(names.len()));
    let of = |cell: &Cell, window: &str, measure| {
        cell.estimate(window, measure).map_or("-".to_owned(), |value| format!("{:.2}", value.mean))
    };
    for cell in played.shown() {
        let _ = write!(text, "| {} |", called(cell.policy));
        for window in &names {
            let [p99, failed, marked] =
                [Measure::P99, Measure::FailedPercent, Measure::MarkedPercent].map(|m| of(cell, window, m));
            let _ = write!(text, " {p99} / {failed} / {marked} |");
        }
        text.push('\n');
    }
}

fn show(text: &mut String, picture: &File) {
    let name = picture.name.trim_end_matches(".svg");
    let _ = writeln!(text, "\n![{name}]({})", picture.name);
}
