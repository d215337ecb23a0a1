//! `lookaside bench ramp`: load that rises in nine steps from three quarters of the capacity to far beyond it, under a deadline;
//! the shape of the load ramp by which Prequal was shown (Wydrowski and others, NSDI 2024).

use lookaside_load::bench::clients::Policy;
use lookaside_load::bench::fleet::Shape;

use super::grid::{self, Grid, Windows};
use crate::Global;
use crate::exit::Failure;

/// The first, and how many follow, each by this factor: 0.75 to 1.74.
const FIRST: f64 = 0.75;
const STEPS: i32 = 9;
const FACTOR: f64 = 10.0 / 9.0;
const DEADLINE_MS: u64 = 5_000;

/// Latency and failed calls while load rises from 0.75 to 1.74 of the capacity: Lookaside beside turns and P2C
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside bench ramp
  lookaside bench ramp --repeats 1 --for 5s --warm-up 2s
  lookaside bench ramp --steps 3 -o json

20 endpoints with 4 slots each, 40 ms a call, exponentially distributed, 20 clients, a deadline of 5 s, and room for all that wait
at an endpoint. Nine steps, each 10/9 of the one before, of the capacity of all slots together: from 1.0 on some calls must fail,
and the question is how many and what becomes of the others. A policy's step begins when the calls of the one before have ended.
What the rest means: `lookaside bench quality --help`. Five repeats take hours; one is a first look. Exit code 1: no window is left
of a policy and a step, the machine having been too busy.")]
pub(super) struct Args {
    /// Steps, beginning with the lowest
    #[arg(long, value_name = "N", default_value_t = STEPS, value_parser = clap::value_parser!(i32).range(1..=9))]
    steps: i32,
    /// Ways to choose an endpoint: lookaside, p2c, round_robin, tonic, peak_ewma
    #[arg(long, value_name = "POLICY", value_delimiter = ',', value_parser = grid::policy,
        default_value = "lookaside,round_robin,p2c")]
    policy: Vec<Policy>,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    clients: u32,
    #[command(flatten)]
    windows: Windows,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let shape = Shape { endpoints: 20, slots: 4, queue: 100_000, mean_us: 40_000, slow: 0, slow_factor: 1.0 };
    let Args { steps, policy: policies, clients, windows } = args;
    let loads = (0..steps).map(|step| FIRST * FACTOR.powi(step)).collect();
    let grid = Grid { shape, clients, loads, policies, deadline_ms: DEADLINE_MS, windows };
    let rows = grid.run().await?;
    grid::tell(global, "BenchRamp", &grid, rows, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_is_that_of_the_paper() {
        assert!((FIRST * FACTOR.powi(STEPS - 1) - 1.74).abs() < 0.005);
    }
}
