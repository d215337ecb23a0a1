//! `lookaside simulate suite`: the whole study, as files.

use std::path::PathBuf;
use std::time::Instant;

use lookaside_sim::suite::{Played, SEEDS, files, play, scenarios};
use serde::Serialize;

use super::Progress;
use crate::Global;
use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};

/// Play every scenario with every policy, and write CSV, a report and pictures
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside simulate suite --out study
  lookaside simulate suite --out storms --only retry_storm,sinkhole --seeds 3

Writes results.csv (a line per scenario, policy, window and measure), README.md, and SVG pictures into the directory; what it
does not write stays. The whole study takes three hours or so on two cores; the same version writes the same bytes.")]
pub(crate) struct Args {
    /// Directory for the files, made if need be
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Only these scenarios
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    only: Vec<String>,

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
    std::fs::create_dir_all(&args.out).map_err(|error| unwritten(&args.out, error))?;
    let names: Vec<String> =
        if args.only.is_empty() { scenarios().map(str::to_owned).collect() } else { args.only.clone() };
    for name in &names {
        super::scenario(name)?;
    }
    let played: Result<Vec<Played>, Failure> = names.iter().map(|name| played(name, args.seeds)).collect();
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

fn played(name: &str, seeds: u64) -> Result<Played, Failure> {
    let (begun, progress) = (Instant::now(), Progress::begin());
    let played = play(name, seeds, |done, all| progress.tell(done, all))
        .map_err(|error| Failure::new(Exit::Failed, format!("{name}: {error}")))?;
    eprintln!("{name}: {} policies in {:.0} s", played.cells.len(), begun.elapsed().as_secs_f64());
    Ok(played)
}
