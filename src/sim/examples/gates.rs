//! Measures the gates, for whoever works on them; see `lookaside simulate gates`.
//! `cargo run --release -p lookaside-sim --example gates -- 10 headline`

use lookaside_sim::gates::{GATES, measure};

fn main() {
    let mut args = std::env::args().skip(1);
    let seeds = args.next().and_then(|seeds| seeds.parse().ok()).unwrap_or(3);
    let word = args.next().unwrap_or_default();
    let gates: Vec<_> = GATES.into_iter().filter(|gate| gate.name.contains(&word)).collect();
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
