//! `lookaside bench sparse`: many clients that each make so few calls that they learn next to nothing from their own.

use lookaside_load::bench::clients::Policy;
use lookaside_load::bench::fleet::Shape;

use super::grid::{self, Grid, Windows};
use crate::Global;
use crate::exit::{Exit, Failure};

/// Calls per second of one client.
const RATE_PER_S: f64 = 3.0;
const LOAD: f64 = 0.8;
const MEAN_S: f64 = 0.04;
/// Every client has a connection to every endpoint, and all backends are in one process, as are all clients.
const CONNECTIONS_MAX: u32 = 30_000;

/// How well calls are balanced that many clients make, three a second each: Lookaside beside P2C and turns
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside bench sparse
  lookaside bench sparse --clients 50 --repeats 1 --for 10s
  lookaside bench sparse --clients 2000 --endpoints 15 -o json

Every client makes 3 calls a second to 15 endpoints, and has a real connection to each: 2,000 clients would have 30,000, 400 have
6,000. Each endpoint has as many slots as make that a load of 0.8; a call takes 40 ms or nearly so, exponentially distributed. What the
rest means: `lookaside bench quality --help`. Exit code 1: no window is left of a policy, the machine having been too busy.")]
pub(super) struct Args {
    /// Clients
    #[arg(long, value_name = "N", default_value_t = 400, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    clients: u32,
    /// Endpoints
    #[arg(long, value_name = "N", default_value_t = 15, value_parser = clap::value_parser!(u32).range(2..=200))]
    endpoints: u32,
    /// Ways to choose an endpoint: lookaside, p2c, round_robin, tonic, peak_ewma
    #[arg(long, value_name = "POLICY", value_delimiter = ',', value_parser = grid::policy,
        default_value = "lookaside,p2c,round_robin")]
    policy: Vec<Policy>,
    #[command(flatten)]
    windows: Windows,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let Args { clients, endpoints, policy: policies, windows } = args;
    let connections = clients * endpoints;
    if connections > CONNECTIONS_MAX {
        let text = format!("{clients} clients x {endpoints} endpoints are {connections} connections");
        return Err(Failure::new(Exit::Usage, format!("{text}, more than {CONNECTIONS_MAX}")).next("fewer --endpoints"));
    }
    let shape = shape(clients, endpoints);
    eprintln!("{clients} clients with {RATE_PER_S} calls/s each, {connections} connections");
    let grid = Grid { shape, clients, loads: vec![LOAD], policies, deadline_ms: 10_000, windows };
    let rows = grid.run().await?;
    grid::tell(global, "BenchSparse", &grid, rows, false)
}

/// As many slots as go with some 40 ms a call, and a time that makes the load the one wanted.
fn shape(clients: u32, endpoints: u32) -> Shape {
    let rate_per_s = f64::from(clients) * RATE_PER_S / f64::from(endpoints);
    let slots = (rate_per_s / LOAD * MEAN_S).round().max(1.0);
    let mean_us = (LOAD * slots / rate_per_s * 1e6) as u64;
    Shape { endpoints, slots: slots as u32, queue: 100, mean_us, slow: 0, slow_factor: 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_and_time_follow_the_clients_so_that_the_load_stays() {
        for (clients, endpoints, slots, mean_us) in
            [(400, 15, 4, 40_000), (2_000, 15, 20, 40_000), (40, 15, 1, 100_000)]
        {
            let shape = shape(clients, endpoints);
            assert_eq!((shape.slots, shape.mean_us), (slots, mean_us));
            let load = f64::from(clients) * RATE_PER_S / shape.capacity_per_s();
            assert!((load - LOAD).abs() < 1e-6, "{load}");
        }
    }
}
