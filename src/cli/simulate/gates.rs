//! `lookaside simulate gates`: what Lookaside promises of its balancing, measured.

use lookaside_sim::gates::{GATES, Gate, Held, SEEDS, measure};
use serde::Serialize;

use super::Progress;
use crate::Global;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};

/// Measure what is promised of the balancing, and fail if any of it falls short
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate gates
  lookaside simulate gates -o json | jq '.items[] | select(.holds | not)'
  lookaside simulate gates --only sparse --seeds 3

A gate holds if the mean over the seeds is on the good side of its bar; the interval is that of 95 %. Takes minutes. Exits with 1
if a gate falls short.")]
pub(crate) struct Args {
    /// Only gates with this in their name
    #[arg(long, value_name = "WORD")]
    only: Option<String>,

    /// Seeds of each
    #[arg(long, value_name = "N", default_value_t = SEEDS, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
}

/// One gate.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    gate: &'static str,
    scenario: &'static str,
    value: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    low: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    high: Option<f64>,
    sign: &'static str,
    bar: f64,
    holds: bool,
    seeds: usize,
}

/// How they were measured.
#[derive(Serialize)]
struct Extra {
    version: &'static str,
    holds: bool,
}

/// Measures them and prints how they are held.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let wanted = |gate: &Gate| args.only.as_ref().is_none_or(|word| gate.name.contains(word));
    let gates: Vec<Gate> = GATES.into_iter().filter(wanted).collect();
    if gates.is_empty() {
        let names: Vec<&str> = GATES.iter().map(|gate| gate.name).collect();
        return Err(Failure::new(Exit::NotFound, format!("no gate is called so; there are {}", names.join(", "))));
    }
    let progress = Progress::begin();
    let held = measure(&gates, args.seeds, |done, all| progress.tell(done, all))
        .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    let short: Vec<&str> = held.iter().filter(|held| !held.holds).map(|held| held.gate.name).collect();
    match global.output {
        Format::Table => output::text(&table(&held))?,
        Format::Json => {
            let extra = Extra { version: env!("CARGO_PKG_VERSION"), holds: short.is_empty() };
            output::json(&Envelope::with("SimulationGates", "", extra, held.iter().map(item).collect()))?;
        }
    }
    if short.is_empty() {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, format!("short of the bar: {}", short.join(", "))))
    }
}

fn item(held: &Held) -> Item {
    let Held { gate, value, holds } = held;
    let [low, high] = value.interval().map_or([None; 2], |ends| ends.map(Some));
    Item {
        gate: gate.name,
        scenario: gate.scenario,
        value: value.mean,
        low,
        high,
        sign: gate.bar.sign(),
        bar: gate.bar.at(),
        holds: *holds,
        seeds: value.count,
    }
}

fn table(held: &[Held]) -> String {
    let row = |held: &Held| {
        let Held { gate, value, holds } = held;
        [
            gate.name.to_owned(),
            value.words(3),
            format!("{} {}", gate.bar.sign(), gate.bar.at()),
            if *holds { "holds" } else { "FALLS SHORT" }.to_owned(),
        ]
    };
    output::table(["GATE", "VALUE", "BAR", ""], held.iter().map(row).collect())
}
