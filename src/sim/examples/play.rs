//! Plays one scenario by some policies, and says what came of it and how long that took:
//! `cargo run --release -p lookaside-sim --example play -- headline lookaside,round_robin 1 139000`, where the last two are
//! the seed and how long is measured, milliseconds; `--seconds` shows each second. 139 s of the headline scenario are a million calls.

#![allow(clippy::unwrap_used, missing_docs, reason = "an example: what cannot be ends it")]

use std::time::Instant;

use lookaside_sim::{
    dispatch::Policy,
    run::run,
    scenario::{Scenario, builtin},
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--seconds").collect();
    let arg = |at: usize, otherwise: &str| args.get(at).cloned().unwrap_or_else(|| otherwise.to_owned());
    let name = arg(0, "headline");
    let mut scenario = builtin(&name).unwrap_or_else(|unknown| match std::fs::read_to_string(&name) {
        Ok(yaml) => Scenario::parse(&yaml).unwrap(),
        Err(_) => panic!("{unknown}"),
    });
    scenario.measured_ms = args.get(3).map_or(scenario.measured_ms, |ms| ms.parse().unwrap());
    println!("{}: {}", scenario.name, scenario.title);
    let shows_seconds = std::env::args().any(|arg| arg == "--seconds");
    for name in arg(1, "lookaside").split(',') {
        let policy = Policy::parse(name).unwrap_or_else(|| panic!("no policy `{name}`"));
        let began = Instant::now();
        let run = run(&scenario, policy, arg(2, "1").parse().unwrap());
        let took = began.elapsed().as_secs_f64();
        let unit = run.service_time_us_mean as f64;
        let total = &run.total;
        let quantile = |share| total.latency_us.quantile(share) as f64 / unit;
        println!(
            "{name:>12}: p50 {:.3} p90 {:.3} p99 {:.3} p99.9 {:.3} mean {:.3}; RIF p99 {}; {} calls, {} failed, {:.3} probes a \
             call; utilisation max/mean {:.3}; {} lists; {} events in {took:.2} s",
            quantile(0.5),
            quantile(0.9),
            quantile(0.99),
            quantile(0.999),
            total.latency_us.mean() / unit,
            total.rif.quantile(0.99),
            total.calls,
            total.failed.sum(),
            total.probes_per_call(),
            run.shares.first().map_or(0.0, |shares| shares.utilization_max_over_mean()),
            run.lists,
            run.events,
        );
        for (name, figures) in &run.windows {
            let p99 = figures.latency_us.quantile(0.99) as f64 / unit;
            let marked = figures.attempts_marked as f64 / figures.attempts.max(1) as f64;
            println!(
                "{:>14}{name}: p99 {p99:.3}, {} calls, {} failed, {} attempts, {:.3} % to marked endpoints",
                "",
                figures.calls,
                figures.failed.sum(),
                figures.attempts,
                marked * 100.0
            );
        }
        for (at, second) in run.timeline.iter().enumerate().filter(|_| shows_seconds) {
            let p99 = second.latency_us_p99 as f64 / unit;
            println!(
                "{at:>6} s: p99 {p99:.3}, {} calls, {} attempts, {} failed",
                second.calls, second.attempts, second.failed
            );
        }
    }
}
