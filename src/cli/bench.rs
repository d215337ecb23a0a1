//! `lookaside bench`: what Lookaside costs on this machine and how well it balances, measured on whole processes. Each command
//! starts what it needs as children of its own, asks them over stdin and stdout, and ends them; nothing listens beyond loopback.

mod child;
mod fanout;
mod grid;
mod part;
mod peer;
mod quality;
mod ramp;
mod sdk;
mod sinkhole;
mod sparse;

use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use lookaside_load::bench::figures::median;
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::output::{self, Envelope, Format};
use crate::signals::Stop;
use crate::{Global, duration};

/// Measure what Lookaside costs and how well it balances, with whole processes on loopback
#[derive(clap::Args)]
#[command(after_help = "Examples:
  lookaside bench sdk
  lookaside bench fanout -o json
  lookaside bench fanout --streams 20000 --check
  lookaside bench quality --repeats 1 --for 10s

Progress goes to stderr. Quiet the machine first: what else runs on it is in every figure but the ratios.")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    Sdk(sdk::Args),
    Fanout(fanout::Args),
    Quality(quality::Args),
    Sinkhole(sinkhole::Args),
    Sparse(sparse::Args),
    Ramp(ramp::Args),
    #[command(hide = true)]
    Part(part::Args),
}

/// Runs one of them. Told to stop, it ends what it has started.
pub(crate) async fn run(global: &Global, args: Args) -> Result<(), Failure> {
    let measuring: LocalBoxFuture<'_, _> = match args.what {
        What::Sdk(args) => Box::pin(sdk::run(global, args)),
        What::Fanout(args) => Box::pin(fanout::run(global, args)),
        What::Quality(args) => Box::pin(quality::run(global, args)),
        What::Sinkhole(args) => Box::pin(sinkhole::run(global, args)),
        What::Sparse(args) => Box::pin(sparse::run(global, args)),
        What::Ramp(args) => Box::pin(ramp::run(global, args)),
        What::Part(args) => return part::run(args).await,
    };
    let mut stop = Stop::catch()?;
    tokio::select! {
        done = measuring => done,
        () = stop.requested() => Err(Failure::new(Exit::Failed, "told to stop: nothing was measured to its end")),
    }
}

/// A duration within a range.
fn duration_of(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let found = duration::parse(text)?;
    if range.contains(&found) {
        return Ok(found);
    }
    Err(format!("from {} s to {} s is expected", range.start().as_secs(), range.end().as_secs()))
}

/// One figure.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Figure {
    /// What was measured, with its unit.
    name: String,
    /// Of which part of the run.
    of: String,
    value: f64,
    /// What it must not exceed, where we promise that.
    #[serde(skip_serializing_if = "Option::is_none")]
    bar: Option<f64>,
}

impl Figure {
    fn new(of: &str, name: &str, value: f64) -> Self {
        Self { name: name.to_owned(), of: of.to_owned(), value, bar: None }
    }

    fn at_most(self, bar: f64) -> Self {
        Self { bar: Some(bar), ..self }
    }

    fn is_missed(&self) -> bool {
        self.bar.is_some_and(|bar| self.value > bar)
    }

    fn row(&self) -> [String; 4] {
        let number = |value: f64| match value.abs() {
            below if below < 10.0 => format!("{value:.3}"),
            below if below < 100.0 => format!("{value:.1}"),
            _ => format!("{value:.0}"),
        };
        let bar = self.bar.map_or_else(String::new, |bar| {
            format!("<= {}{}", number(bar), if self.is_missed() { "  MISSED" } else { "" })
        });
        [self.of.clone(), self.name.clone(), number(self.value), bar]
    }
}

/// How a run was made, for whoever compares two.
#[derive(Serialize)]
struct Extra<S: Serialize> {
    version: &'static str,
    cores: usize,
    settings: S,
}

impl<S: Serialize> Extra<S> {
    fn of(settings: S) -> Self {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        Self { version: env!("CARGO_PKG_VERSION"), cores, settings }
    }
}

/// Writes what came of a run; with `check` a bar that was missed is a failure.
fn tell<S: Serialize>(
    global: &Global,
    kind: &'static str,
    settings: S,
    figures: Vec<Figure>,
    check: bool,
) -> Result<(), Failure> {
    let missed: Vec<String> =
        figures.iter().filter(|f| f.is_missed()).map(|f| format!("{} {}", f.of, f.name)).collect();
    match global.output {
        Format::Table => {
            let rows = figures.iter().map(Figure::row).collect();
            output::text(&output::table(["OF", "FIGURE", "VALUE", "BAR"], rows))?;
        }
        Format::Json => output::json(&Envelope::with(kind, "", Extra::of(settings), figures))?,
    }
    match missed.as_slice() {
        missed if check && !missed.is_empty() => {
            Err(Failure::new(Exit::Failed, format!("above the bar: {}", missed.join(", "))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_says_when_it_is_above_its_bar() {
        let figure = Figure::new("SDK", "cpu_ratio", 1.2).at_most(1.1);
        assert!(figure.is_missed());
        assert_eq!(figure.row(), ["SDK", "cpu_ratio", "1.200", "<= 1.100  MISSED"]);
        assert!(!Figure::new("SDK", "cpu_ratio", 1.2).is_missed());
    }
}
