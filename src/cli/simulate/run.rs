//! `lookaside simulate run`: policies beside each other in one scenario.

use lookaside_balancer::config::nearest;
use lookaside_sim::{
    batch::compare,
    digest::{Cell, Measure},
    dispatch::Policy,
    rows::{CSV_HEAD, Row, rows},
};
use serde::Serialize;

use super::{Progress, scenario};
use crate::Global;
use crate::exit::Failure;
use crate::output::{self, Asked, Envelope};

/// Compare policies in one scenario
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate run --scenario headline --policy lookaside,round_robin,bound --seeds 3
  lookaside simulate run --scenario slow_half --policy lookaside,prequal -o json | jq '.items[] | select(.measure == \"failed_percent\")'
  lookaside simulate run --scenario mine.yaml --policy all --seeds 10 -o csv > mine.csv

Policies:
  bound        one queue for all cores of the fleet, fastest first, without its faults: no policy can beat it where
               cores are alike; where some are slow, one that leaves those idle can, a little
  oracle       the endpoint that truly has least to do per capacity, known without delay
  lookaside    the picker of the SDK and the balancer's own table, reports, lists and outcomes with their delays
  random       any endpoint
  round_robin  in turns
  p2c          two at random, the one with fewer calls of this client (least_request of Envoy and gRPC)
  peak_ewma    two at random, latency times calls in flight (Finagle, tower)
  wrr          turns by calls per second over utilisation, reported every 10 s (gRPC's proposal A58)
  pid          turns by weights that feedback moves towards equal utilisation
  prequal_0, prequal_60, prequal_84
               an emulation of Prequal from the rules of its paper, without its unpublished heuristics against endpoints
               that fail fast; the number is the quantile of calls in flight below which an endpoint is cold
  probing_p2c  two at random are asked before every call
`prequal` stands for its three, of which the study shows the best of each scenario; `all` for every policy.

Columns:
  P50 P99 P99.9  latency of the calls that were answered, in mean service times (50 ms unless the scenario says otherwise);
                 the network is in it
  GAP %          the part of the way from round_robin to bound that the policy comes, at P99; needs both, and is below 0 for
                 one that is worse than round_robin
  FAILED %       calls that failed
  PROBES/CALL    how often endpoints were asked how busy they are, per call
  FULLEST/MEAN   utilisation of the fullest endpoint over the mean: 1 is perfectly even; of the whole measured time alone
CSV and JSON have these by name, and more:
  slowdown_p99        latency over what the call alone would take on a free endpoint
  rif_p99, rif_max    calls in flight that an attempt finds at its endpoint
  marked_percent      attempts that went to endpoints which a fault of the scenario is about
  asks_percent        calls that were sent only after endpoints were asked
After ± stands half the width of the 95 % interval over the seeds, from two seeds on. WINDOW `all` is the whole measured time.

The default takes five seconds or so on two cores, all policies most of a minute. Time grows with policies, seeds, endpoints and
calls; a few of the built-in scenarios take minutes for a policy and a seed.")]
pub(crate) struct Args {
    /// A built-in scenario, or a file (anything with a dot or a slash)
    #[arg(long, value_name = "FILE|NAME", default_value = "headline")]
    scenario: String,

    /// Policies to compare
    #[arg(long, value_name = "POLICY[,POLICY]", value_delimiter = ',', default_value = "lookaside,round_robin,bound", value_parser = policies)]
    policy: Vec<Several>,

    /// How many runs of each, with the seeds 1 to N
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
}

/// What one word may stand for.
#[derive(Clone)]
struct Several(Vec<Policy>);

fn policies(word: &str) -> Result<Several, String> {
    let policies = Policy::named(word);
    if policies.is_empty() {
        let near = nearest(word, &Policy::ALL.map(Policy::name));
        let near = near.map_or_else(String::new, |near| format!("did you mean `{near}`? "));
        return Err(format!("{near}there are {}, prequal and all", Policy::ALL.map(Policy::name).join(", ")));
    }
    Ok(Several(policies))
}

/// How the runs were made.
#[derive(Serialize)]
struct Extra {
    version: &'static str,
    title: String,
    seeds: u64,
}

/// Compares them and prints what came of it.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let scenario = scenario(&args.scenario)?;
    let is_wanted = |policy: &Policy| args.policy.iter().any(|several| several.0.contains(policy));
    let policies: Vec<Policy> = Policy::ALL.into_iter().filter(is_wanted).collect();
    let (progress, all) = (Progress::begin(), policies.len() * args.seeds as usize);
    let cells = compare(&scenario, &policies, args.seeds, |done| progress.tell(done, all));
    match global.asked {
        Asked::Table => output::text(&table(&cells)),
        Asked::Json => {
            let extra = Extra { version: env!("CARGO_PKG_VERSION"), title: scenario.title.clone(), seeds: args.seeds };
            output::json(&Envelope::with("Simulation", "", extra, rows(&scenario.name, &cells)))
        }
        Asked::Csv => {
            let lines: String = rows(&scenario.name, &cells).iter().map(Row::csv).collect();
            output::text(format!("{CSV_HEAD}{lines}").trim_end())
        }
    }
}

fn table(cells: &[Cell]) -> String {
    let header = ["POLICY", "WINDOW", "P50", "P99", "P99.9", "GAP %", "FAILED %", "PROBES/CALL", "FULLEST/MEAN"];
    let row = |cell: &Cell, window: &str| {
        let of = |measure, digits: usize| {
            let estimate = cell.estimate(window, measure);
            estimate.map_or_else(String::new, |estimate| estimate.words(digits))
        };
        [
            cell.policy.name().to_owned(),
            window.to_owned(),
            of(Measure::P50, 2),
            of(Measure::P99, 2),
            of(Measure::P999, 2),
            of(Measure::GapClosedPercent, 1),
            of(Measure::FailedPercent, 3),
            of(Measure::ProbesPerCall, 2),
            of(Measure::UtilizationMaxOverMean, 3),
        ]
    };
    let rows = cells.iter().flat_map(|cell| cell.windows().map(move |window| row(cell, window)));
    output::table(header, rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_has_every_policy() {
        let help = <Args as clap::Args>::augment_args(clap::Command::new("run")).render_help().to_string();
        for name in Policy::ALL.map(Policy::name) {
            assert!(help.contains(&format!("\n  {name}")) || help.contains(&format!(", {name}")), "{name}");
        }
    }

    #[test]
    fn a_word_stands_for_a_policy_or_for_several() {
        let of = |word| policies(word).map(|several| several.0);
        assert_eq!(of("p2c"), Ok(vec![Policy::P2c]));
        assert_eq!(of("prequal").map(|several| several.len()), Ok(3));
        assert_eq!(of("all"), Ok(Policy::ALL.to_vec()));
        let refused = of("p2").unwrap_err();
        assert!(refused.contains("lookaside") && refused.contains("peak_ewma"), "{refused}");
        assert!(of("lookasid").unwrap_err().starts_with("did you mean `lookaside`?"));
    }
}
