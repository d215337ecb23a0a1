//! Compares policies in a scenario, for whoever tunes one: builds in seconds, where the whole program takes minutes.
//! `cargo run --release -p lookaside-sim --example run -- headline lookaside,round_robin,bound 3`

use std::process::ExitCode;

use lookaside_sim::{
    batch::compare,
    digest::Measure,
    dispatch::Policy,
    scenario::{Scenario, builtin},
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [scenario, policies, seeds] = args.as_slice() else {
        eprintln!("usage: run SCENARIO|FILE POLICY[,POLICY] SEEDS");
        return ExitCode::from(2);
    };
    let text = std::fs::read_to_string(scenario).ok();
    let scenario = text.map_or_else(|| builtin(scenario), |yaml| Scenario::parse(&yaml));
    let policies: Vec<Policy> = policies.split(',').flat_map(Policy::named).collect();
    let (Ok(scenario), false, Ok(seeds)) = (&scenario, policies.is_empty(), seeds.parse()) else {
        eprintln!(
            "no such scenario, policy or number: {:?}; policies are {:?}",
            scenario.err(),
            Policy::ALL.map(Policy::name)
        );
        return ExitCode::from(2);
    };
    let shown = [
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
    print!("{:<14}{:<12}", "policy", "window");
    shown.iter().for_each(|(name, _)| print!("{name:>16}"));
    println!();
    for cell in compare(scenario, &policies, seeds, |done| eprint!("\r{done} ")) {
        for window in cell.windows() {
            print!("{:<14}{window:<12}", cell.policy.name());
            for (_, measure) in shown {
                let value = cell.estimate(window, measure).map(|e| format!("{:.3} ±{:.3}", e.mean, e.half));
                print!("{:>16}", value.unwrap_or_default());
            }
            println!();
        }
    }
    ExitCode::SUCCESS
}
