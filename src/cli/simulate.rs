//! `lookaside simulate`: ways to balance compared under a virtual clock, the service's own table and picker among them. Asks no
//! balancer. What is played and measured is `lookaside-sim`'s; here it is asked for and shown. Nothing catches signals, so that
//! Ctrl-C ends it at once.

mod gates;
mod run;
mod scenarios;
mod suite;

use std::path::Path;
use std::time::Instant;

use lookaside_balancer::config::nearest;
use lookaside_sim::scenario::{BUILTIN, Error, Scenario, builtin};

use crate::Global;
use crate::exit::{Exit, Failure};

/// Compare ways to balance under a virtual clock: the same seed gives the same results
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate scenarios
  lookaside simulate run --scenario headline --policy lookaside,round_robin,bound --seeds 3
  lookaside simulate gates
  lookaside simulate suite --out study

Asks no balancer. Progress goes to stderr, and all cores are used; results do not depend on how many there are. Tables and CSV of
the same version, scenario and seeds are the same to the byte; JSON also has generatedAt, the time of writing.")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Run(run::Args),
    Gates(gates::Args),
    Suite(suite::Args),
    Scenarios(scenarios::Args),
}

impl Args {
    /// Whether what is asked for can be written as CSV.
    pub(crate) fn writes_csv(&self) -> bool {
        matches!(self.what, What::Run(_))
    }
}

/// Runs one of them.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    match args.what {
        What::Run(args) => run::run(global, args),
        What::Gates(args) => gates::run(global, args),
        What::Suite(args) => suite::run(global, args),
        What::Scenarios(args) => scenarios::run(global, args),
    }
}

/// A scenario by the name of a built-in one, or from a file: whatever has a dot or a slash in it is one.
fn scenario(named: &str) -> Result<Scenario, Failure> {
    if !named.contains(['.', '/']) {
        let hint = || meant(named) + &file_of(named, |file| Path::new(file).exists());
        return builtin(named).map_err(|error| unplayable(named, &error, hint));
    }
    let text = std::fs::read_to_string(named)
        .map_err(|error| Failure::new(Exit::NotFound, format!("cannot read {named}: {error}")))?;
    Scenario::parse(&text).map_err(|error| unplayable(named, &error, String::new))
}

/// A scenario that comes with the program.
fn built_in(name: &str) -> Result<Scenario, Failure> {
    builtin(name).map_err(|error| unplayable(name, &error, || meant(name)))
}

fn unplayable(named: &str, error: &Error, hint: impl FnOnce() -> String) -> Failure {
    match error {
        Error::Unknown { .. } => {
            Failure::new(Exit::NotFound, format!("{error}{}", hint())).next("lookaside simulate scenarios")
        }
        Error::Malformed { .. } | Error::Value { .. } => Failure::new(Exit::Config, format!("{named}: {error}")),
    }
}

/// The scenario that a name may have been meant for.
fn meant(named: &str) -> String {
    let known: Vec<&str> = BUILTIN.iter().map(|(name, _)| *name).collect();
    nearest(named, &known).map_or_else(String::new, |near| format!(" (did you mean `{near}`?)"))
}

/// The file that it may have been meant for.
fn file_of(named: &str, exists: impl Fn(&str) -> bool) -> String {
    let file = ["yaml", "yml"].map(|ending| format!("{named}.{ending}")).into_iter().find(|file| exists(file));
    file.map_or_else(String::new, |file| format!(" (there is a file of that name: say {file})"))
}

/// Tells on stderr how far the runs are: all the time on a terminal, else ten times.
struct Progress {
    begun: Instant,
}

impl Progress {
    fn begin() -> Self {
        Self { begun: Instant::now() }
    }

    fn tell(&self, done: usize, all: usize) {
        let line = format!("  {done} of {all} runs, {:.0} s", self.begun.elapsed().as_secs_f64());
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            eprint!("\r{line}{}", if done == all { "\n" } else { "" });
        } else if done * 10 / all > (done - 1) * 10 / all {
            eprintln!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn a_scenario_is_a_name_or_a_file_and_each_mistake_has_its_exit_code() {
        assert_eq!(scenario("headline").unwrap().name, "headline");
        let exit = |named: &str| scenario(named).unwrap_err().exit;
        assert_eq!((exit("nope"), exit("./nope.yaml")), (Exit::NotFound, Exit::NotFound));
        assert_eq!(exit(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")), Exit::Config);
        assert_eq!(built_in("./headline.yaml").unwrap_err().exit, Exit::NotFound, "no file comes with the program");
    }

    #[test]
    fn a_name_with_a_slip_is_understood_and_a_file_without_its_ending_found() {
        assert_eq!((meant("sinkhol"), meant("nope")), (" (did you mean `sinkhole`?)".to_owned(), String::new()));
        assert_eq!(file_of("mine", |file| file == "mine.yaml"), " (there is a file of that name: say mine.yaml)");
        assert_eq!(file_of("mine", |_| false), "");
    }

    #[test]
    fn only_a_simulation_is_written_as_csv() {
        let exit = |words: &str| {
            let cli = Cli::try_parse_from(words.split(' ')).unwrap_or_else(|error| panic!("{words}: {error}"));
            crate::format(&cli).err().map(|failure| failure.exit)
        };
        assert_eq!(exit("lookaside simulate run --policy lookaside,prequal -o csv"), None);
        assert_eq!(exit("lookaside simulate gates -o json"), None);
        for words in
            ["lookaside version -o csv", "lookaside -o csv simulate gates", "lookaside simulate suite --out x -o csv"]
        {
            assert_eq!(exit(words), Some(Exit::Usage), "{words}");
        }
    }
}
