//! `lookaside simulate scenarios`: what is built in, and how it is written.

use lookaside_sim::scenario::{BUILTIN, builtin};
use serde::Serialize;

use super::scenario;
use crate::Global;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};

/// List the built-in scenarios, or print one as a start for your own
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate scenarios
  lookaside simulate scenarios --show headline > mine.yaml")]
pub(crate) struct Args {
    /// Print the YAML of this one
    #[arg(long, value_name = "NAME")]
    show: Option<String>,
}

#[derive(Serialize)]
struct Item {
    name: &'static str,
    title: String,
    yaml: &'static str,
}

/// Prints them.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    if let Some(name) = &args.show {
        scenario(name)?;
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
    let scenario = builtin(name).map_err(|error| Failure::new(Exit::Failed, format!("{name}: {error}")))?;
    Ok(Item { name, title: scenario.title, yaml })
}
