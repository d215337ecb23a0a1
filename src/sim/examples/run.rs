//! Compares policies in a scenario, or measures the gates, for whoever tunes: builds in seconds, where the whole program takes
//! minutes. Of each policy it says how many events were played and how long that took; `--seconds` shows each second of seed 1.
//! `cargo run --release -p lookaside-sim --example run -- headline lookaside,round_robin,bound 3`, and for the gates with a word
//! in their names `cargo run --release -p lookaside-sim --example run -- gates headline 10`.

use std::{process::ExitCode, time::Instant};

use lookaside_sim::{
    batch::{Job, play, threads},
    digest::{Cell, Digest, Measure, close_gaps},
    dispatch::Policy,
    gates::{GATES, measure},
    scenario::{Scenario, builtin},
};

const SHOWN: [(&str, Measure); 12] = [
    ("mean", Measure::Mean),
    ("p50", Measure::P50),
    ("p99", Measure::P99),
    ("p99.9", Measure::P999),
    ("rif99", Measure::RifP99),
    ("gap %", Measure::GapClosedPercent),
    ("failed %", Measure::FailedPercent),
    ("marked %", Measure::MarkedPercent),
    ("att/call", Measure::AttemptsPerCall),
    ("probes/call", Measure::ProbesPerCall),
    ("asks %", Measure::AsksPercent),
    ("max/mean", Measure::UtilizationMaxOverMean),
];

fn main() -> ExitCode {
    let (options, args): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let shows_seconds = options.iter().any(|option| option == "--seconds");
    let [scenario, what, seeds] = args.as_slice() else {
        eprintln!("usage: run SCENARIO|FILE POLICY[,POLICY] SEEDS [--seconds], or run gates WORD SEEDS");
        return ExitCode::from(2);
    };
    let seeds = seeds.parse();
    if let ("gates", Ok(seeds)) = (scenario.as_str(), &seeds) {
        show_gates(what, *seeds);
        return ExitCode::SUCCESS;
    }
    let text = std::fs::read_to_string(scenario).ok();
    let scenario = text.map_or_else(|| builtin(scenario), |yaml| Scenario::parse(&yaml));
    let policies: Vec<Policy> = what.split(',').flat_map(Policy::named).collect();
    let (Ok(scenario), false, Ok(seeds)) = (&scenario, policies.is_empty(), seeds) else {
        eprintln!(
            "no such scenario, policy or number: {:?}; policies are {:?}",
            scenario.err(),
            Policy::ALL.map(Policy::name)
        );
        return ExitCode::from(2);
    };
    show(scenario, &policies, seeds, shows_seconds);
    ExitCode::SUCCESS
}

fn show(scenario: &Scenario, policies: &[Policy], seeds: u64, shows_seconds: bool) {
    let mut cells: Vec<Cell> = Vec::new();
    // Each alone, for the time that it takes.
    for policy in policies {
        let jobs: Vec<Job<'_>> = (1..=seeds).map(|seed| Job { scenario, policy: *policy, seed }).collect();
        let began = Instant::now();
        let runs = play(&jobs, threads(), |run| (Digest::of(&run), run.events), |done| eprint!("\r{done} "));
        eprint!("\r");
        let took_s = began.elapsed().as_secs_f64();
        let events: u64 = runs.iter().map(|(_, events)| events).sum();
        println!("{:<14}{events} events in {took_s:.2} s", policy.name());
        cells.push(Cell { policy: *policy, seeds: runs.into_iter().map(|(digest, _)| digest).collect() });
    }
    close_gaps(&mut cells);
    print!("{:<14}{:<12}", "policy", "window");
    SHOWN.iter().for_each(|(name, _)| print!("{name:>16}"));
    println!();
    for cell in &cells {
        for window in cell.windows() {
            print!("{:<14}{window:<12}", cell.policy.name());
            for (_, measure) in SHOWN {
                let value = cell.estimate(window, measure).map(|e| e.words(3));
                print!("{:>16}", value.unwrap_or_default());
            }
            println!();
        }
    }
    for cell in cells.iter().filter(|_| shows_seconds) {
        let timeline = cell.seeds.iter().take(1).flat_map(|seed| &seed.timeline);
        for (at, second) in timeline.enumerate() {
            println!(
                "{:<14}{at:>6} s: p99 {:.3}, {} calls, {} attempts, {} marked, {} failed",
                cell.policy.name(),
                second.latency_us_p99 as f64 / scenario.service_time_us_mean as f64,
                second.calls,
                second.attempts,
                second.attempts_marked,
                second.failed
            );
        }
    }
}

fn show_gates(word: &str, seeds: u64) {
    let gates: Vec<_> = GATES.into_iter().filter(|gate| gate.name.contains(word)).collect();
    for held in measure(&gates, seeds, |done, all| eprint!("\r{done} of {all} ")).iter().flatten() {
        let (gate, value) = (held.gate, held.value);
        let verdict = if held.holds { "holds" } else { "FALLS SHORT" };
        println!(
            "{:<40} {:>9.3} ±{:<8.3} {} {:<6} {verdict}",
            gate.name,
            value.mean,
            value.half,
            gate.bar.sign(),
            gate.bar.at()
        );
    }
}
