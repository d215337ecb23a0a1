//! `lookaside simulate scenarios`: what is built in, and how it is written.

use lookaside_sim::scenario::{BUILTIN, KEYS, Scenario};
use serde::Serialize;

use super::{built_in, unplayable};
use crate::Global;
use crate::exit::Failure;
use crate::output::{self, Envelope, Format};

/// List the built-in scenarios, print one, or explain the keys
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate scenarios
  lookaside simulate scenarios --show headline
  lookaside simulate scenarios --keys > mine.yaml
  lookaside simulate run --scenario mine.yaml

A scenario of your own begins with --keys: every key, what it means, its default, and what can go wrong. It
can be played as it is; take out what you leave as it is.")]
pub(crate) struct Args {
    /// Print the YAML of this one
    #[arg(long, value_name = "NAME")]
    show: Option<String>,

    /// Print a scenario with every key explained, as a start for your own
    #[arg(long, conflicts_with = "show")]
    keys: bool,
}

#[derive(Serialize)]
struct Item {
    name: &'static str,
    title: String,
    yaml: &'static str,
}

/// Prints them.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    if args.keys {
        return match global.output {
            Format::Table => output::text(KEYS.trim_end()),
            Format::Json => output::json(&Envelope::new("ScenarioList", "", vec![item("mine", KEYS)?])),
        };
    }
    if let Some(name) = &args.show {
        built_in(name)?;
    }
    let wanted = |name: &str| args.show.as_ref().is_none_or(|show| show == name);
    let chosen = BUILTIN.iter().filter(|(name, _)| wanted(name));
    let items: Result<Vec<Item>, Failure> = chosen.map(|(name, yaml)| item(name, yaml)).collect();
    let items = items?;
    match (global.output, args.show.is_some()) {
        (Format::Json, _) => output::json(&Envelope::new("ScenarioList", "", items)),
        (Format::Table, true) => output::text(items.iter().map(|item| item.yaml).collect::<String>().trim_end()),
        (Format::Table, false) => {
            let row = |item: Item| [item.name.to_owned(), item.title];
            output::text(&output::table(["NAME", "WHAT IT SHOWS"], items.into_iter().map(row).collect()))
        }
    }
}

fn item(name: &'static str, yaml: &'static str) -> Result<Item, Failure> {
    let scenario = Scenario::parse(yaml).map_err(|error| unplayable(name, &error, String::new))?;
    Ok(Item { name, title: scenario.title, yaml })
}
