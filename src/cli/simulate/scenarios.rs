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
  lookaside simulate scenarios --show headline > mine.yaml
  lookaside simulate scenarios --show sinkhole --full

With --full every key is written out with its default, and the file can be played as it is.

Times end in _ms or _us. Time 0 is the begin of the measured time, which warm_up_ms of the same load come before: at_ms of a
fault below 0 is in the warm-up, and one before that holds from the begin of the run.

Lists that are empty where nothing needs them:
  load_steps     [{ at_ms: 20000, factor: 1.5 }]                        from then on the load times the factor
  windows        [{ name: storm, from_ms: 20000, until_ms: 30000 }]     measured by themselves as well
  clients.zones  [{ zone: eu/a, percent: 60 }, { zone: eu/b, percent: 40 }]
  faults         [{ kind: pause, endpoints: { group: all, first: 0, count: 2 }, at_ms: 1000, for_ms: 5000 }]
                 group: the first if it is left out; count 0: all from `first` on; for_ms 0: for good

Kinds of faults: pause, { pauses: { every_ms, pause_ms } }, { antagonist: { on_ms, off_ms, speed_factor } },
{ cold: { factor } }, { fast_fail: { after_us } }, { slow_fail: { after_us } }, { partial: { permille } }, lie (says that it is
idle), join, leave, crash, balancer_down.
Sizes of calls: exponential, fixed, truncated_normal, { lognormal: { cv } }, { bimodal: { long_permille, factor } }.
Models of endpoints: ps (all calls share the cores), fcfs (calls wait in turn).")]
pub(crate) struct Args {
    /// Print the YAML of this one
    #[arg(long, value_name = "NAME")]
    show: Option<String>,

    /// With every key and its default written out
    #[arg(long, requires = "show")]
    full: bool,
}

#[derive(Serialize)]
struct Item {
    name: &'static str,
    title: String,
    yaml: String,
}

/// Prints them.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    if let Some(name) = &args.show {
        scenario(name)?;
    }
    let wanted = |name: &str| args.show.as_ref().is_none_or(|show| show == name);
    let chosen = BUILTIN.iter().filter(|(name, _)| wanted(name));
    let items: Result<Vec<Item>, Failure> = chosen.map(|(name, yaml)| item(name, yaml, args.full)).collect();
    let items = items?;
    match (global.output, args.show.is_some()) {
        (Format::Json, _) => output::json(&Envelope::new("ScenarioList", "", items)),
        (Format::Table, true) => {
            output::text(items.iter().map(|item| item.yaml.as_str()).collect::<String>().trim_end())
        }
        (Format::Table, false) => {
            let row = |item: Item| [item.name.to_owned(), item.title];
            output::text(&output::table(["NAME", "WHAT IT SHOWS"], items.into_iter().map(row).collect()))
        }
    }
}

fn item(name: &'static str, yaml: &'static str, is_full: bool) -> Result<Item, Failure> {
    let failed = |error| Failure::new(Exit::Failed, format!("{name}: {error}"));
    let scenario = builtin(name).map_err(failed)?;
    let yaml = if is_full { scenario.to_yaml().map_err(failed)? } else { yaml.to_owned() };
    Ok(Item { name, title: scenario.title, yaml })
}
