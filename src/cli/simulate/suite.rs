//! `lookaside simulate suite`: the whole study, as files.

use std::path::{Path, PathBuf};
use std::time::Instant;

use lookaside_sim::digest::{Cell, Digest};
use lookaside_sim::dispatch::Policy;
use lookaside_sim::scenario::Error;
use lookaside_sim::suite::{Played, SEEDS, files, play, scenarios};
use serde::Serialize;

use super::Progress;
use crate::Global;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};

/// Play all scenarios with all policies, and write CSV, a report and pictures
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate suite --out study
  lookaside simulate suite --out storms --only retry_storm,sinkhole --seeds 3
  lookaside simulate suite --out study --runs study-runs

Writes results.csv (a line per scenario, policy, window and measure), README.md, and SVG pictures into the directory; what it
does not write stays. Left out are endpoints_10000, and policies to whom a scenario says nothing. The whole study takes three hours on two cores; the same version writes the same bytes.")]
pub(crate) struct Args {
    /// Directory for the files, made if need be
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Only these scenarios
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    only: Vec<String>,

    /// Keep runs in this directory, and do not play again what an earlier suite has left there: for one that was interrupted.
    /// Empty it when the program has changed; nothing else notices that
    #[arg(long, value_name = "DIR")]
    runs: Option<PathBuf>,

    /// Seeds of each
    #[arg(long, value_name = "N", default_value_t = SEEDS, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    seeds: u64,
}

/// A file that was written.
#[derive(Serialize)]
struct Item {
    file: PathBuf,
    bytes: usize,
}

/// How the runs were made.
#[derive(Serialize)]
struct Extra {
    version: &'static str,
    seeds: u64,
}

/// Plays it all, and says which files were written.
pub(crate) fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let unwritten =
        |what: &std::path::Path, error| Failure::new(Exit::Failed, format!("cannot write {}: {error}", what.display()));
    // Before hours of work, not after.
    let names: Vec<String> =
        if args.only.is_empty() { scenarios().map(str::to_owned).collect() } else { args.only.clone() };
    for name in &names {
        super::built_in(name)?;
    }
    for folder in std::iter::once(&args.out).chain(&args.runs) {
        std::fs::create_dir_all(folder).map_err(|error| unwritten(folder, error))?;
    }
    let played: Result<Vec<Played>, Failure> = names.iter().map(|name| played(name, &args)).collect();
    let mut items = Vec::new();
    for file in files(&played?) {
        let path = args.out.join(&file.name);
        std::fs::write(&path, &file.text).map_err(|error| unwritten(&path, error))?;
        items.push(Item { file: path, bytes: file.text.len() });
    }
    match global.output {
        Format::Table => {
            let row = |item: &Item| [item.file.display().to_string(), item.bytes.to_string()];
            output::text(&output::table(["FILE", "BYTES"], items.iter().map(row).collect()))
        }
        Format::Json => {
            let extra = Extra { version: env!("CARGO_PKG_VERSION"), seeds: args.seeds };
            output::json(&Envelope::with("SimulationSuite", "", extra, items))
        }
    }
}

fn played(name: &str, args: &Args) -> Result<Played, Failure> {
    let (begun, progress) = (Instant::now(), Progress::begin());
    let runs = Runs { folder: args.runs.as_deref(), scenario: name };
    let tell = |done, all| progress.tell(done, all);
    let played = play(name, args.seeds, |policy| runs.read(policy), |cell| runs.write(cell), tell)
        .map_err(|Unplayed(reason)| Failure::new(Exit::Failed, format!("{name}: {reason}")))?;
    eprintln!("{name}: {} policies in {:.0} s", played.cells.len(), begun.elapsed().as_secs_f64());
    Ok(played)
}

/// Why a scenario was not played to its end.
struct Unplayed(String);

impl From<Error> for Unplayed {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// Runs of a scenario, where they are kept.
struct Runs<'a> {
    folder: Option<&'a Path>,
    scenario: &'a str,
}

impl Runs<'_> {
    fn path(&self, policy: Policy) -> Option<PathBuf> {
        Some(self.folder?.join(format!("{}.{}.json", self.scenario, policy.name())))
    }

    fn read(&self, policy: Policy) -> Result<Option<Cell>, Unplayed> {
        let Some(path) = self.path(policy) else { return Ok(None) };
        let unread = |reason: &dyn std::fmt::Display| Unplayed(format!("cannot read {}: {reason}", path.display()));
        match std::fs::read(&path) {
            Ok(bytes) => {
                let seeds: Vec<Digest> = serde_json::from_slice(&bytes).map_err(|error| unread(&error))?;
                Ok(Some(Cell { policy, seeds }))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unread(&error)),
        }
    }

    fn write(&self, cell: &Cell) -> Result<(), Unplayed> {
        let Some(path) = self.path(cell.policy) else { return Ok(()) };
        let unwritten = |reason: &dyn std::fmt::Display| Unplayed(format!("cannot write {}: {reason}", path.display()));
        let text = serde_json::to_string(&cell.seeds).map_err(|error| unwritten(&error))?;
        // Whole or not at all: who interrupts a suite wants to go on with it.
        let partial = path.with_extension("partial");
        let written = std::fs::write(&partial, text).and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|error| unwritten(&error))
    }
}
